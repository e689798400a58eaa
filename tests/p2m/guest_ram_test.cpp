// SPDX-License-Identifier: Apache-2.0
//
// Which frames are RAM, and their order: against a std::set of all of them, for random lists of ranges that
// touch, leave holes and come in any order. The position of a frame in the list and the frame at a position
// are inverse to each other. Ranges as large as the physical address space cost nothing.
#include <mmusim/p2m/guest_ram.hpp>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "support/catch.hpp"

using namespace mmusim;

TEST_CASE("guest ram: random ranges against a set of frames", "[p2m]")
{
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        INFO("seed " << seed);
        std::mt19937_64 random{seed};
        std::vector<GfnRange> ranges;
        std::set<std::uint64_t> frames;
        std::uint64_t next = random() % 4;
        for (std::uint64_t n = 1 + random() % 6; n != 0; --n) {
            const std::uint64_t count = 1 + random() % 40;
            ranges.push_back({Gfn{next}, count});
            for (std::uint64_t i = 0; i < count; ++i) frames.insert(next + i);
            next += count + (random() % 3 == 0 ? 0 : random() % 30);
        }
        std::shuffle(ranges.begin(), ranges.end(), random);
        const GuestRam ram{ranges};
        CHECK(ram.frames() == frames.size());
        CHECK(ram.end() == Gfn{*frames.rbegin() + 1});
        CHECK(ram.ranges().size() == ranges.size());
        CHECK(std::is_sorted(ram.ranges().begin(), ram.ranges().end(),
                             [](const GfnRange& a, const GfnRange& b) { return a.first < b.first; }));
        std::uint64_t index = 0;
        for (std::uint64_t gfn = 0; gfn < next + 10; ++gfn) {
            const bool inside = frames.count(gfn) != 0;
            REQUIRE(ram.contains(Gfn{gfn}) == inside);
            REQUIRE(ram.index_of(Gfn{gfn}).has_value() == inside);
            if (!inside) continue;
            REQUIRE(ram.index_of(Gfn{gfn}) == index);
            REQUIRE(ram.frame_at(index) == Gfn{gfn});
            ++index;
        }
        CHECK_FALSE(ram.contains(Gfn{~std::uint64_t{0}}));
    }
}

TEST_CASE("guest ram: none, one frame, and a whole address space", "[p2m]")
{
    const GuestRam none;
    CHECK(none.frames() == 0);
    CHECK(none.end() == Gfn{0});
    CHECK_FALSE(none.contains(Gfn{0}));
    CHECK_FALSE(none.index_of(Gfn{0}).has_value());

    const GuestRam one{{{Gfn{7}, 1}}};
    CHECK_FALSE(one.contains(Gfn{6}));
    CHECK(one.contains(Gfn{7}));
    CHECK_FALSE(one.contains(Gfn{8}));
    CHECK(one.index_of(Gfn{7}) == 0u);

    const std::uint64_t half = std::uint64_t{1} << 39;
    const GuestRam all{{{Gfn{half}, half}, {Gfn{0}, half}}};
    CHECK(all.frames() == 2 * half);
    CHECK(all.end() == Gfn{2 * half});
    CHECK(all.index_of(Gfn{half}) == half);
    CHECK(all.index_of(Gfn{2 * half - 1}) == 2 * half - 1);
    CHECK_FALSE(all.contains(Gfn{2 * half}));
}
