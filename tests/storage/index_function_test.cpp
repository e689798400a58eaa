// SPDX-License-Identifier: Apache-2.0
//
// Sets of pages and lines: modulo any number, parities under masks, XOR-n as a case of these.
#include <mmusim/storage/index_function.hpp>

#include <random>

#include "storage/naive_replacement.hpp"
#include "support/catch.hpp"

using namespace mmusim;

TEST_CASE("index function: by hand", "[storage]")
{
    CHECK(IndexFunction({}, 1)(0x7fff'ffff'ffff'ffff) == 0);
    CHECK(IndexFunction({}, 12)(100) == 4);
    CHECK(IndexFunction({}, 16)(0x123) == 3);
    const IndexFunction xor7{xor_index(7), 128};
    CHECK(xor7(0) == 0);
    CHECK(xor7(0x7f) == 0x7f);
    CHECK(xor7(0x80) == 1);
    CHECK(xor7(0x3fff) == 0);
    CHECK(xor7(0x4000) == 0);  // bits above the masks don't matter
    CHECK(xor7(0x2a55) == (0x54u ^ 0x55u));
    const IndexFunction masks{{{0b1011, 0b1'0000'0000}}, 4};
    CHECK(masks(0b1011) == 1);
    CHECK(masks(0b0011) == 0);
    CHECK(masks(0b1'0000'1000) == 3);
}

TEST_CASE("index function: xor-n is bits i and i + n", "[storage]")
{
    CHECK(xor_index(0).xor_masks.empty());
    CHECK(xor_index(2) == IndexSpec{{0b101, 0b1010}});
    CHECK(xor_index(7).xor_masks.front() == 0x81);
    CHECK(xor_index(7).xor_masks.back() == 0x2040);
}

TEST_CASE("index function: the naive one agrees on random numbers", "[storage]")
{
    constexpr unsigned kSeed = 77;
    std::mt19937_64 random{kSeed};
    INFO("seed " << kSeed);
    const auto compare = [&](const IndexSpec& spec, unsigned sets) {
        const IndexFunction index{spec, sets};
        for (unsigned i = 0; i < 300; ++i) {
            const std::uint64_t number = random() >> (1 + random() % 60);
            REQUIRE(index(number) == naive::set_of(number, spec.xor_masks, sets));
        }
    };
    for (const unsigned sets : {1u, 2u, 3u, 5u, 7u, 12u, 16u, 48u, 96u, 128u, 1000u, 1u << 20}) {
        INFO(sets << " sets");
        compare({}, sets);
    }
    for (unsigned bits = 1; bits <= 12; ++bits) {
        INFO("xor-" << bits);
        compare(xor_index(bits), 1u << bits);
        // Nearly XOR-n, but not: must not be taken for it.
        IndexSpec spec = xor_index(bits);
        spec.xor_masks[random() % bits] ^= std::uint64_t{1} << random() % 40;
        compare(spec, 1u << bits);
        std::vector<std::uint64_t> masks;
        for (unsigned i = 0; i < bits; ++i) masks.push_back(random());
        compare({masks}, 1u << bits);
    }
}
