// SPDX-License-Identifier: Apache-2.0
//
// Each replacement policy to the bit (docs/timing.md, "Replacement"): short sequences worked out by hand,
// then long random ones against naive_replacement.hpp.
#include <mmusim/storage/replacement.hpp>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "storage/naive_replacement.hpp"
#include "support/catch.hpp"

using namespace mmusim;

namespace {

/// One set whose ways are filled in order.
struct FullSet {
    std::unique_ptr<Replacement> policy;
    unsigned ways;

    FullSet(ReplacementSpec spec, unsigned number) : policy{spec.make(1, number)}, ways{number}
    {
        for (unsigned way = 0; way < ways; ++way) policy->on_fill(0, way);
    }
    FullSet(ReplacementKind kind, unsigned number) : FullSet{ReplacementSpec{.kind = kind}, number} {}
    void hit(std::initializer_list<unsigned> list)
    {
        for (const unsigned way : list) policy->on_hit(0, way);
    }
    unsigned victim() { return victim({0, ways}); }
    unsigned victim(WayRange range) { return policy->victim(0, range); }
    /// The next victims, each filled again.
    std::vector<unsigned> evict(unsigned number) { return evict(number, {0, ways}); }
    std::vector<unsigned> evict(unsigned number, WayRange range)
    {
        std::vector<unsigned> victims;
        for (unsigned i = 0; i < number; ++i) {
            victims.push_back(victim(range));
            policy->on_fill(0, victims.back());
        }
        return victims;
    }
};

using Ways = std::vector<unsigned>;

ReplacementSpec mru_groups(unsigned groups)
{
    return {.kind = ReplacementKind::mru_groups, .groups = groups};
}

constexpr std::array<ReplacementKind, 7> kKinds{
    ReplacementKind::lru,    ReplacementKind::tree_plru, ReplacementKind::bit_plru,  ReplacementKind::fifo,
    ReplacementKind::random, ReplacementKind::srrip,     ReplacementKind::mru_groups};

}  // namespace

TEST_CASE("replacement: lru", "[storage]")
{
    FullSet set{ReplacementKind::lru, 4};
    CHECK(set.evict(5) == Ways{0, 1, 2, 3, 0});
    // Order of use now: 1 2 3 0.
    set.hit({1, 3, 1});
    CHECK(set.evict(4) == Ways{2, 0, 3, 1});
    set.hit({2});
    CHECK(set.victim({2, 2}) == 3);
    CHECK(set.victim({2, 1}) == 2);
}

TEST_CASE("replacement: fifo", "[storage]")
{
    FullSet set{ReplacementKind::fifo, 4};
    set.hit({0, 0, 1, 2});
    CHECK(set.evict(5) == Ways{0, 1, 2, 3, 0});
    // Overwriting is a fill: 1 becomes the youngest.
    set.policy->on_fill(0, 1);
    set.hit({2});
    CHECK(set.evict(4) == Ways{2, 3, 0, 1});
    CHECK(set.victim({1, 2}) == 2);
}

TEST_CASE("replacement: tree-plru", "[storage]")
{
    // Four ways, filled in order: the root names the low side, so do both of its sides.
    FullSet set{ReplacementKind::tree_plru, 4};
    CHECK(set.evict(4) == Ways{0, 2, 1, 3});
    // A hit on 0: the root names the high side, where 2 is older; then the low one, where 1 is.
    set.hit({0});
    CHECK(set.evict(3) == Ways{2, 1, 3});
    // The root names the low side after the hit on 3, but there is no candidate.
    set.hit({3});
    CHECK(set.victim({2, 2}) == 2);
    CHECK(set.victim({3, 1}) == 3);
    CHECK(set.victim({1, 2}) == 1);
}

TEST_CASE("replacement: tree-plru over three ways", "[storage]")
{
    // A tree over four, of which the last is no way. 0 and 1 are below the root's low side, 2 is the high
    // one.
    FullSet set{ReplacementKind::tree_plru, 3};
    CHECK(set.evict(6) == Ways{0, 2, 1, 2, 0, 2});
    set.hit({0, 2});
    CHECK(set.victim() == 1);
    set.hit({1});
    CHECK(set.victim() == 2);
}

TEST_CASE("replacement: bit-plru", "[storage]")
{
    // The fill of 3 sets the last bit: only bit 3 stays.
    FullSet set{ReplacementKind::bit_plru, 4};
    CHECK(set.victim() == 0);
    set.hit({0, 2});
    CHECK(set.victim() == 1);
    CHECK(set.victim({2, 2}) == 2);  // of the candidates none is clear: the lowest
    set.hit({1});                    // all set: only bit 1 stays
    CHECK(set.evict(3) == Ways{0, 2, 3});
    CHECK(set.evict(2) == Ways{0, 1});
}

TEST_CASE("replacement: bit-plru of one way", "[storage]")
{
    FullSet set{ReplacementKind::bit_plru, 1};
    CHECK(set.evict(3) == Ways{0, 0, 0});
}

TEST_CASE("replacement: srrip", "[storage]")
{
    // Counters 2 2 2 2; the first victim makes them 3 3 3 3 and is filled with 2.
    FullSet set{ReplacementKind::srrip, 4};
    CHECK(set.evict(1) == Ways{0});
    set.hit({2});                             // 2 3 0 3
    CHECK(set.evict(2) == Ways{1, 3});        // 2 2 0 2
    CHECK(set.evict(3) == Ways{0, 1, 3});     // 3 3 1 3 -> 2 2 1 2
    CHECK(set.evict(4) == Ways{0, 1, 3, 0});  // 3 3 2 3 -> 2 2 2 2, then 3 3 3 3 -> 2 3 3 3
    // Only candidates count up: 2 3 3 3 with hits 2 0 0 3, of 1 and 2 alone 3 3.
    set.hit({1, 2});
    CHECK(set.victim({1, 2}) == 1);
    CHECK(set.victim({0, 1}) == 0);
    CHECK(set.victim() == 0);
}

TEST_CASE("replacement: random is splitmix64", "[storage]")
{
    // The first outputs of splitmix64 with seed 1234567, from its reference implementation.
    constexpr std::array<std::uint64_t, 5> kOutputs{6457827717110365317u, 3203168211198807973u,
                                                    9817491932198370423u, 4593380528125082431u,
                                                    16408922859458223821u};
    FullSet all{ReplacementSpec{.kind = ReplacementKind::random, .seed = 1234567}, 7};
    for (const std::uint64_t output : kOutputs) CHECK(all.victim() == output % 7);
    FullSet some{ReplacementSpec{.kind = ReplacementKind::random, .seed = 1234567}, 7};
    for (const std::uint64_t output : kOutputs) CHECK(some.victim({3, 4}) == 3 + output % 4);
}

TEST_CASE("replacement: random draws once for an array's victim, whatever the set", "[storage]")
{
    const ReplacementSpec spec{.kind = ReplacementKind::random, .seed = 42};
    const auto one = spec.make(1, 8);
    const auto many = spec.make(4, 8);
    for (unsigned i = 0; i < 100; ++i) {
        many->on_fill(i % 4, i % 8);
        many->on_hit(i % 4, i % 8);
        CHECK(many->victim(i % 3, {0, 8}) == one->victim(0, {0, 8}));
    }
}

TEST_CASE("replacement: mru-groups", "[storage]")
{
    // Two groups of two. 3 was filled last: group 0 is next, then group 1, and so on.
    FullSet set{mru_groups(2), 4};
    CHECK(set.evict(5) == Ways{0, 2, 1, 3, 0});
    set.hit({3});
    CHECK(set.victim() == 1);
    set.hit({1});
    CHECK(set.victim() == 2);
    CHECK(set.victim({0, 2}) == 0);  // the next group has no candidate, the one after it has
    CHECK(set.victim({1, 2}) == 2);
}

TEST_CASE("replacement: mru-groups before any use", "[storage]")
{
    // "0 before any use": the group after group 0.
    const auto policy = mru_groups(3).make(1, 6);
    CHECK(policy->victim(0, {0, 6}) == 2);
}

TEST_CASE("replacement: mru-groups of three ways", "[storage]")
{
    FullSet set{mru_groups(2), 6};
    CHECK(set.evict(8) == Ways{0, 3, 2, 5, 1, 4, 2, 5});
}

TEST_CASE("replacement: sets know nothing of each other", "[storage]")
{
    for (const ReplacementKind kind : kKinds) {
        if (kind == ReplacementKind::random) continue;  // has one generator
        INFO(name_of(kind));
        const ReplacementSpec spec{.kind = kind, .groups = 2};
        const auto policy = spec.make(3, 8);
        FullSet alone{spec, 8};
        for (unsigned way = 0; way < 8; ++way) policy->on_fill(1, way);
        for (unsigned i = 0; i < 50; ++i) {
            policy->on_fill(0, i * 3 % 8);
            policy->on_hit(2, i * 5 % 8);
            policy->on_fill(2, i % 8);
            if (i % 3 != 0) {
                policy->on_hit(1, i * 7 % 8);
                alone.hit({i * 7 % 8});
            }
            const unsigned victim = policy->victim(1, {0, 8});
            policy->on_fill(1, victim);
            CHECK(alone.evict(1) == Ways{victim});
        }
    }
}

TEST_CASE("replacement: names", "[storage]")
{
    for (const ReplacementKind kind : kKinds) CHECK(parse_replacement(name_of(kind)) == kind);
    for (const char* const name : {"", "LRU", "plru", "nru", "lru ", "tree_plru"}) {
        CHECK_FALSE(parse_replacement(name));
    }
}

TEST_CASE("replacement: how many ways a policy can have", "[storage]")
{
    const auto refused = [](ReplacementKind kind, unsigned ways, unsigned groups = 1) {
        return !ReplacementSpec{.kind = kind, .groups = groups}.refusal(ways).empty();
    };
    for (const ReplacementKind kind :
         {ReplacementKind::lru, ReplacementKind::fifo, ReplacementKind::random}) {
        CHECK_FALSE(refused(kind, 100'000));
    }
    for (const ReplacementKind kind : {ReplacementKind::tree_plru, ReplacementKind::bit_plru}) {
        CHECK_FALSE(refused(kind, 64));
        CHECK(refused(kind, 65));
    }
    CHECK_FALSE(refused(ReplacementKind::srrip, 32));
    CHECK(refused(ReplacementKind::srrip, 33));
    CHECK_FALSE(refused(ReplacementKind::mru_groups, 12, 3));
    CHECK(refused(ReplacementKind::mru_groups, 12, 5));
    CHECK(refused(ReplacementKind::mru_groups, 12, 0));
    CHECK(refused(ReplacementKind::mru_groups, 12, 24));
}

TEST_CASE("replacement: the naive policies agree on random sequences", "[storage]")
{
    constexpr unsigned kSeed = 20'240;
    std::mt19937_64 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](std::uint64_t end) { return static_cast<unsigned>(random() % end); };
    struct Shape {
        unsigned ways;
        unsigned groups;
    };
    constexpr std::array<Shape, 18> kShapes{{{1, 1},
                                             {2, 1},
                                             {2, 2},
                                             {3, 1},
                                             {4, 2},
                                             {5, 1},
                                             {6, 2},
                                             {6, 3},
                                             {7, 1},
                                             {8, 4},
                                             {9, 3},
                                             {12, 3},
                                             {12, 4},
                                             {16, 1},
                                             {20, 4},
                                             {32, 8},
                                             {63, 1},
                                             {64, 2}}};
    for (const ReplacementKind kind : kKinds) {
        for (const auto& [ways, groups] : kShapes) {
            const std::uint64_t seed = random();
            const ReplacementSpec spec{.kind = kind, .groups = groups, .seed = seed};
            if (!spec.refusal(ways).empty()) continue;
            INFO(name_of(kind) << ", " << ways << " ways, " << groups << " groups");
            constexpr unsigned kSets = 3;
            const auto policy = spec.make(kSets, ways);
            const auto source = std::make_shared<naive::SplitMix>(naive::SplitMix{seed});
            std::vector<std::unique_ptr<naive::Policy>> expected;
            std::vector<std::vector<bool>> used(kSets, std::vector<bool>(ways, false));
            for (unsigned set = 0; set < kSets; ++set) {
                expected.push_back(naive::make_policy(std::string{name_of(kind)}, ways, groups, source));
            }
            bool same = true;
            for (unsigned step = 0; step < 3000 && same; ++step) {
                const unsigned set = below(kSets);
                const auto fill = [&](unsigned way) {
                    used[set][way] = true;
                    policy->on_fill(set, way);
                    expected[set]->filled(way);
                };
                const unsigned dice = below(16);
                if (dice == 0) {  // an invalidation, of which the policy hears nothing
                    used[set][below(ways)] = false;
                } else if (dice < 9) {
                    const unsigned way = below(ways);
                    if (!used[set][way]) continue;
                    policy->on_hit(set, way);
                    expected[set]->hit(way);
                } else if (dice == 9) {  // overwriting
                    const unsigned way = below(ways);
                    if (used[set][way]) fill(way);
                } else {
                    WayRange range{0, ways};
                    if (below(3) == 0) {
                        range.first = below(ways);
                        range.count = 1 + below(ways - range.first);
                    }
                    std::vector<unsigned> candidates;
                    unsigned free = ways;
                    for (unsigned way = range.first; way < range.first + range.count; ++way) {
                        candidates.push_back(way);
                        if (!used[set][way] && free == ways) free = way;
                    }
                    if (free != ways) {
                        fill(free);
                        continue;
                    }
                    const unsigned victim = policy->victim(set, range);
                    INFO("step " << step << ", set " << set);
                    CHECK(victim == expected[set]->victim(candidates));
                    same = victim >= range.first && victim < range.first + range.count;
                    CHECK(same);
                    if (same) fill(victim);
                }
            }
        }
    }
}

TEST_CASE("replacement: a reset set begins anew", "[storage]")
{
    for (const ReplacementKind kind : kKinds) {
        INFO(name_of(kind));
        const ReplacementSpec spec{.kind = kind, .groups = 2, .seed = 5};
        const auto used = spec.make(2, 8);
        std::mt19937 random{7};
        const auto any_way = [&] { return static_cast<unsigned>(random() % 8); };
        for (unsigned way = 0; way < 8; ++way) used->on_fill(1, way);
        for (unsigned i = 0; i < 100; ++i) {
            used->on_hit(1, any_way());
            used->on_fill(1, used->victim(1, {0, 8}));
        }
        used->reset(1);
        const auto fresh = spec.make(2, 8);
        for (unsigned way = 0; way < 8; ++way) {
            used->on_fill(1, 7 - way);
            fresh->on_fill(1, 7 - way);
        }
        for (unsigned i = 0; i < 50; ++i) {
            const unsigned way = any_way();
            used->on_hit(1, way);
            fresh->on_hit(1, way);
            const unsigned victim = used->victim(1, {i % 4, 4});
            CHECK(victim == fresh->victim(1, {i % 4, 4}));
            used->on_fill(1, victim);
            fresh->on_fill(1, victim);
        }
    }
}
