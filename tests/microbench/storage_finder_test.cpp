// SPDX-License-Identifier: Apache-2.0
//
// Shapes of storages: their canonical form, and how one is found from yes and no alone. The storages here are
// not those of a machine but the plainest ones that answer.
#include <bit>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <mmusim/microbench/storage_shape.hpp>

#include "microbench/random.hpp"
#include "microbench/storage_finder.hpp"

#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::microbench;

namespace {

constexpr unsigned kBits = 26;

/// Holds what fits the sets that a function names.
template <class SetOf>
class PlainStorage final : public Storage {
public:
    PlainStorage(unsigned ways, SetOf set_of) : ways_{ways}, set_of_{set_of} {}
    [[nodiscard]] unsigned bits() const override { return kBits; }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override
    {
        ++questions;
        std::map<std::uint64_t, std::set<std::uint64_t>> sets;
        std::set<std::uint64_t> asked;
        for (const std::uint64_t number : numbers) {
            sets[set_of_(number)].insert(number);
            asked.insert(set_of_(number));
        }
        for (const std::uint64_t number : more) sets[set_of_(number)].insert(number);
        for (const std::uint64_t set : asked) {
            if (sets[set].size() > ways_) return false;
        }
        return true;
    }
    unsigned questions = 0;

private:
    unsigned ways_;
    SetOf set_of_;
};

std::optional<StorageShape> found(const StorageShape& shape, std::uint64_t seed = 1)
{
    PlainStorage storage{shape.ways, [&](std::uint64_t number) { return shape.set_of(number); }};
    Random random{seed};
    return find_shape(storage, random);
}

}  // namespace

TEST_CASE("microbench: masks have one reduced form", "[microbench]")
{
    using Masks = std::vector<std::uint64_t>;
    CHECK(reduced_masks(Masks{}).empty());
    CHECK(reduced_masks(Masks{0, 0}).empty());
    CHECK(reduced_masks(Masks{0b0110, 0b0011, 0b0101}) == Masks{0b0101, 0b0011});
    // However the sets are named: rows replaced by their sums.
    const auto xor_7 = xor_index(7).xor_masks;
    auto renamed = xor_7;
    renamed[0] ^= renamed[3];
    renamed[6] ^= renamed[0] ^ renamed[1];
    std::swap(renamed[2], renamed[5]);
    CHECK(reduced_masks(renamed) == reduced_masks(xor_7));
    CHECK(reduced_masks(xor_7).size() == 7);

    Random random{7};
    for (unsigned trial = 0; trial < 200; ++trial) {
        std::vector<std::uint64_t> masks(1 + random.below(8));
        for (std::uint64_t& mask : masks) mask = random.below(std::uint64_t{1} << kBits);
        const auto reduced = reduced_masks(masks);
        const auto kernel = kernel_of(reduced, kBits);
        CHECK(kernel.size() + reduced.size() == kBits);
        CHECK(reduced_masks(kernel).size() == kernel.size());
        for (const std::uint64_t vector : kernel) {
            for (const std::uint64_t mask : masks) CHECK(std::popcount(mask & vector) % 2 == 0);
        }
    }
}

TEST_CASE("microbench: a shape that is stated in several ways is one", "[microbench]")
{
    const StorageShape linear = shape_of(64, 4, {}, kBits);
    CHECK(linear == StorageShape{64, 4});
    CHECK(shape_of(64, 4, {{1, 2, 4, 8, 16, 32}}, kBits) == linear);
    CHECK(shape_of(64, 4, {{3, 2, 4, 8, 24, 48}}, kBits) == linear);
    // Two bits that are always the same are one.
    CHECK(shape_of(4, 4, {{3, 3}}, kBits) == StorageShape{2, 4, {3}});
    // Bits beyond the numbers have no say.
    CHECK(shape_of(2, 4, {{std::uint64_t{1} << 40 | 1}}, kBits) == StorageShape{2, 4});

    CHECK(to_string(StorageShape{16, 6}) == "96 = 16 sets x 6 ways, linear");
    CHECK(to_string(StorageShape{1, 16}) == "16, fully associative");
    CHECK(to_string(shape_of(128, 16, xor_index(7), kBits)) == "2048 = 128 sets x 16 ways, xor-7");
    CHECK(to_string(shape_of(2, 1, {{3}}, kBits)) == "2 = 2 sets x 1 way, xor 0x3");

    const std::vector<StorageShape> both{{16, 6}, shape_of(128, 16, xor_index(7), kBits)};
    const auto same = same_set(both, 0x5000, 40);
    CHECK(same.front() == 0x5000);
    for (const std::uint64_t number : same) {
        CHECK(number % 16 == 0);
        CHECK(((number ^ (number >> 7)) & 0x7f) == ((0x5000 ^ (0x5000 >> 7)) & 0x7f));
    }
}

TEST_CASE("microbench: shapes are found from what fits together", "[microbench]")
{
    for (const unsigned ways : {1u, 2u, 3u, 4u, 6u, 8u, 12u, 16u, 33u}) {
        for (const std::uint64_t sets :
             {1u, 2u, 3u, 4u, 7u, 16u, 31u, 64u, 96u, 100u, 128u, 192u, 384u, 512u, 768u}) {
            const StorageShape shape{sets, ways};
            INFO(to_string(shape));
            CHECK(found(shape) == shape);
        }
    }
    CHECK(found({1, 96}) == StorageShape{1, 96});
    const StorageShape xor_7 = shape_of(128, 12, xor_index(7), kBits);
    CHECK(found(xor_7) == xor_7);
}

TEST_CASE("microbench: any XOR of bits is found", "[microbench]")
{
    Random random{11};
    for (unsigned trial = 0; trial < 120; ++trial) {
        IndexSpec index;
        index.xor_masks.resize(1 + random.below(8));
        for (std::uint64_t& mask : index.xor_masks) {
            mask = random.below(std::uint64_t{1} << (8 + random.below(kBits - 8)));
        }
        const StorageShape shape = shape_of(0, static_cast<unsigned>(1 + random.below(16)), index, kBits);
        if (shape.sets == 1) continue;
        INFO(to_string(shape));
        CHECK(found(shape, trial) == shape);
    }
}

TEST_CASE("microbench: a shape of another kind is not guessed", "[microbench]")
{
    Random random{3};
    PlainStorage products{4, [](std::uint64_t number) { return number * 0x9e3779b97f4a7c15 >> 58; }};
    CHECK(!find_shape(products, random));
    PlainStorage endless{100000, [](std::uint64_t number) { return number % 64; }};
    CHECK(!find_shape(endless, random));
    // Two halves of different kinds.
    PlainStorage halves{4, [](std::uint64_t number) {
                            const bool upper = (number >> (kBits - 1)) != 0;
                            return upper ? 1000 + number % 48 : number % 64;
                        }};
    CHECK(!find_shape(halves, random));
}
