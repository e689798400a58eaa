// SPDX-License-Identifier: Apache-2.0
//
// The set of dirty frames against std::set, and its pages against the shape of Xen's trie.
#include <mmusim/p2m/dirty_set.hpp>

#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace mmusim;

namespace {

struct Pool {
    std::uint64_t given = 0;
    std::uint64_t limit = 1000;

    std::optional<Mfn> take()
    {
        if (given == limit) return std::nullopt;
        return Mfn{given++};
    }
};

struct Fixture {
    SparseMemory memory;
    Pool pool;
    std::vector<unsigned> touched;  ///< bytes
    DirtySet set{memory, [this] { return pool.take(); },
                 [this](Mfn, unsigned, unsigned bytes) { touched.push_back(bytes); }};
};

}  // namespace

TEST_CASE("dirty set: pages of the trie", "[p2m]")
{
    Fixture f;
    CHECK(f.set.frames().empty());
    CHECK_FALSE(f.set.contains(Gfn{0}));
    CHECK(f.set.mark(Gfn{0}) == DirtySet::Mark::added);
    CHECK(f.set.pages().size() == 4);
    f.touched.clear();
    CHECK(f.set.mark(Gfn{0}) == DirtySet::Mark::known);
    CHECK(f.touched == std::vector<unsigned>{8, 8, 8, 1});
    CHECK(f.set.mark(Gfn{32767}) == DirtySet::Mark::added);
    CHECK(f.set.pages().size() == 4);
    CHECK(f.set.mark(Gfn{32768}) == DirtySet::Mark::added);  // another leaf
    CHECK(f.set.pages().size() == 5);
    CHECK(f.set.mark(Gfn{std::uint64_t{1} << 24}) == DirtySet::Mark::added);  // and a page above it
    CHECK(f.set.pages().size() == 7);
    CHECK(f.set.mark(Gfn{std::uint64_t{1} << 33}) == DirtySet::Mark::added);
    CHECK(f.set.pages().size() == 10);
    CHECK(f.set.mark(Gfn{(std::uint64_t{1} << 40) - 1}) == DirtySet::Mark::added);
    CHECK(f.set.pages().size() == 13);
    CHECK(f.set.frames() == std::vector<Gfn>{Gfn{0}, Gfn{32767}, Gfn{32768}, Gfn{std::uint64_t{1} << 24},
                                             Gfn{std::uint64_t{1} << 33}, Gfn{(std::uint64_t{1} << 40) - 1}});
    f.set.clear();
    CHECK(f.set.frames().empty());
    CHECK(f.set.pages().size() == 13);
    CHECK(f.set.release().size() == 13);
    CHECK(f.set.pages().empty());
    CHECK(f.memory.frames_in_use() == 0);
}

TEST_CASE("dirty set: no page", "[p2m]")
{
    for (std::uint64_t limit = 0; limit < 4; ++limit) {
        Fixture f;
        f.pool.limit = limit;
        CHECK(f.set.mark(Gfn{7}) == DirtySet::Mark::no_page);
        CHECK_FALSE(f.set.contains(Gfn{7}));
        CHECK(f.set.pages().size() == limit);
        f.pool.limit = 4;
        CHECK(f.set.mark(Gfn{7}) == DirtySet::Mark::added);
        CHECK(f.set.frames() == std::vector<Gfn>{Gfn{7}});
    }
}

TEST_CASE("dirty set: as std::set", "[p2m]")
{
    constexpr std::uint64_t kSeed = 1;
    INFO("seed " << kSeed);
    support::Random64 random{kSeed};
    Fixture f;
    std::set<std::uint64_t> expected;
    for (unsigned i = 0; i < 20'000; ++i) {
        const std::uint64_t frame =
            random.below(3000) * 41 + (random.percent(10) ? std::uint64_t{1} << 30 : 0);
        const bool added = expected.insert(frame).second;
        CHECK(f.set.mark(Gfn{frame}) == (added ? DirtySet::Mark::added : DirtySet::Mark::known));
        CHECK(f.set.contains(Gfn{frame + 1}) == expected.contains(frame + 1));
        if (i % 5000 != 4999) continue;
        std::vector<std::uint64_t> read;
        for (const Gfn one : f.set.frames()) read.push_back(one.number());
        CHECK(read == std::vector<std::uint64_t>{expected.begin(), expected.end()});
        if (i == 9999) {
            f.set.clear();
            expected.clear();
        }
    }
}
