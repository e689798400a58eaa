// SPDX-License-Identifier: Apache-2.0
//
// How levels of TLBs work together, and where an entry goes inside one (docs/timing.md, "TLBs"): seen by the
// counters of small machines made for it, in sequences worked out by hand and in random ones against a plain
// list of sets.
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "storage/naive_replacement.hpp"
#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "tlb/small_profiles.hpp"

using namespace guest;

namespace {

using Kinds = std::vector<EntryKind>;
const Kinds k4K{EntryKind::page_4k};

/// Fully associative, LRU, 4K pages alone.
TlbSpec level(const std::string& name, unsigned number, unsigned entries, const std::string& serves = "fls")
{
    return small::tlb(name, number, serves, {small::fully_associative(entries, k4K)});
}

/// Pages 0 to 63, and accesses named by their numbers.
struct PageGuest : Guest {
    static constexpr std::uint64_t kBase = 0x40'0000;

    explicit PageGuest(const CpuProfile& profile) : Guest{Paging::four_level, small::config(profile)}
    {
        for (std::uint64_t page = 0; page < 64; ++page) map(kBase + (page << 12), 0x101'000);
    }
    /// 1, 2, …: the level that had it; 0: a walk.
    unsigned touch(std::uint64_t page, AccessKind kind = AccessKind::read)
    {
        const MachineCounters before = machine.counters();
        REQUIRE(access(operand(kind, kBase + (page << 12), 1)).ok());
        const MachineCounters after = machine.counters();
        unsigned found = 0;
        for (std::size_t i = 0; i < after.tlbs.size(); ++i) {
            if (after.tlbs[i].hits == before.tlbs[i].hits) continue;
            CHECK(found == 0);
            found = machine.mmu(0).tlb(i).level;
        }
        CHECK(after.walks == before.walks + (found == 0 ? 1 : 0));
        return found;
    }
    std::vector<unsigned> touch_all(std::initializer_list<std::uint64_t> pages,
                                    AccessKind kind = AccessKind::read)
    {
        std::vector<unsigned> levels;
        for (const std::uint64_t page : pages) levels.push_back(touch(page, kind));
        return levels;
    }
    [[nodiscard]] TlbCounters tlb(std::size_t i) const { return machine.counters().tlbs[i]; }
};

using Levels = std::vector<unsigned>;

}  // namespace

TEST_CASE("levels of TLBs: a walk fills all, a hit fills those before", "[tlb]")
{
    PageGuest guest{small::profile({level("l1", 1, 2), level("l2", 2, 4), level("l3", 3, 8)})};
    CHECK(guest.touch_all({0, 1, 2, 3}) == Levels{0, 0, 0, 0});
    for (const std::size_t tlb : {0u, 1u, 2u}) CHECK(guest.tlb(tlb).fills == 4);
    CHECK(guest.tlb(0).evictions == 2);
    CHECK(guest.touch_all({3, 2, 0}) == Levels{1, 1, 2});
    CHECK(guest.tlb(0).fills == 5);
    CHECK(guest.tlb(1).fills == 4);
    CHECK(guest.touch_all({4, 5}) == Levels{0, 0});
    // Level 2 has had 1 2 3 0 4 5 and one hit, on 0: 1 and 2 have gone, to level 3 they had gone before.
    CHECK(guest.touch_all({1, 0, 1}) == Levels{3, 2, 1});
    CHECK(guest.tlb(1).fills == 7);
    CHECK(guest.tlb(2).fills == 6);
    CHECK(guest.tlb(2).evictions == 0);
}

TEST_CASE("levels of TLBs: one that does not refill", "[tlb]")
{
    TlbSpec second = level("l2", 2, 4);
    second.refills = false;
    PageGuest guest{small::profile({level("l1", 1, 1), second})};
    CHECK(guest.touch_all({0, 1, 0, 0, 0, 1, 1}) == Levels{0, 0, 2, 2, 2, 1, 1});
    CHECK(guest.tlb(0).fills == 2);
    CHECK(guest.tlb(0).lookups == 7);
    CHECK(guest.tlb(1).lookups == 5);
}

TEST_CASE("levels of TLBs: an exclusive one holds what was evicted", "[tlb]")
{
    TlbSpec second = level("l2", 2, 2);
    second.inclusion = Inclusion::exclusive;
    PageGuest guest{small::profile({level("l1", 1, 2), second})};
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});
    CHECK(guest.tlb(1).fills == 0);
    CHECK(guest.touch_all({2, 3}) == Levels{0, 0});  // 0 and 1 go there
    CHECK(guest.tlb(1).fills == 2);
    CHECK(guest.touch(0) == 2);  // moves to level 1, which evicts 2
    CHECK(guest.tlb(1).fills == 3);
    CHECK(guest.tlb(1).evictions == 0);  // 0 had left
    CHECK(guest.touch_all({0, 3}) == Levels{1, 1});
    CHECK(guest.touch_all({2, 1}) == Levels{2, 2});
    CHECK(guest.touch(4) == 0);  // 2 to level 2, where 0 and 3 are: 0 goes
    CHECK(guest.tlb(1).evictions == 1);
    CHECK(guest.touch(0) == 0);
    // Four pages at a time, in two and two entries.
    CHECK(guest.touch_all({1, 4, 2, 0}) == Levels{2, 2, 2, 2});
}

TEST_CASE("levels of TLBs: a write that finds D clear is no use of the entry", "[tlb]")
{
    // "The policy is not told, nothing moves between levels": seen in a level that the walk does not fill.
    TlbSpec second = level("l2", 2, 2);
    second.inclusion = Inclusion::exclusive;
    PageGuest guest{small::profile({level("l1", 1, 1), second})};
    guest.set_entry(PageGuest::kBase, 1, 0x101'000 | (kAll & ~D));
    CHECK(guest.touch_all({0, 1, 2}) == Levels{0, 0, 0});  // level 2: 0, then 1
    const MachineCounters before = guest.machine.counters();
    CHECK(guest.write(PageGuest::kBase).ok());
    CHECK(guest.tlb(1).dirty_walks == 1);
    CHECK(guest.machine.counters().walks == before.walks + 1);
    // Level 1 has evicted 2, which has taken the place of 0.
    CHECK(guest.tlb(1).evictions == before.tlbs[1].evictions + 1);
    CHECK(guest.touch(1) == 2);
}

TEST_CASE("levels of TLBs: an exclusive one that does not refill loses what it gives", "[tlb]")
{
    TlbSpec second = level("l2", 2, 2);
    second.inclusion = Inclusion::exclusive;
    second.refills = false;
    PageGuest guest{small::profile({level("l1", 1, 1), second})};
    CHECK(guest.touch_all({0, 1, 0, 0}) == Levels{0, 0, 2, 0});
}

TEST_CASE("levels of TLBs: a hit refills exclusive ones, a walk does not fill them", "[tlb]")
{
    TlbSpec second = level("l2", 2, 4);
    second.inclusion = Inclusion::exclusive;
    PageGuest guest{small::profile({level("l1", 1, 1), second, level("l3", 3, 8)})};
    CHECK(guest.touch(0) == 0);
    CHECK(guest.tlb(1).fills == 0);
    CHECK(guest.touch_all({1, 2, 3, 4, 5}) == Levels{0, 0, 0, 0, 0});  // level 2: 1 2 3 4
    CHECK(guest.tlb(1).fills == 5);
    CHECK(guest.touch(0) == 3);
    CHECK(guest.tlb(1).fills == 7);  // 0 itself; and 5, which level 1 has evicted
    CHECK(guest.tlb(0).fills == 7);
    CHECK(guest.touch(1) == 3);  // 1 and 2 made room for them
    CHECK(guest.touch(0) == 2);
}

TEST_CASE("levels of TLBs: a fragment that moves on is its whole page again", "[tlb]")
{
    for (const bool exclusive : {true, false}) {
        INFO((exclusive ? "exclusive" : "takes evictions"));
        TlbSpec second = small::tlb("l2", 2, "fls",
                                    {small::fully_associative(8, {EntryKind::page_4k, EntryKind::page_2m})});
        if (exclusive) {
            second.inclusion = Inclusion::exclusive;
        } else {
            second.takes_evictions = true;
        }
        PageGuest guest{small::profile({level("l1", 1, 1), second})};
        guest.map(0x80'0000, 0x4000'0000, kAll, 2);
        CHECK(guest.touch(0x405) == 0);
        CHECK(guest.touch(0) == 0);  // evicts the fragment
        const TlbCounters before = guest.tlb(1);
        const Seen seen = guest.read(0x80'0000 + 0x12'3456, 1);
        CHECK(seen.at() == 0x4000'0000 + 0x12'3456);
        CHECK(guest.tlb(1).hits == before.hits + 1);
    }
    // From a level of 2M entries to one of 4K: the fragment around its first address.
    TlbSpec second = level("l2", 2, 8);
    second.inclusion = Inclusion::exclusive;
    second.splinters = true;
    PageGuest guest{small::profile(
        {small::tlb("l1", 1, "fls", {small::fully_associative(1, {EntryKind::page_4k, EntryKind::page_2m})}),
         second})};
    guest.map(0x80'0000, 0x4000'0000, kAll, 2);
    CHECK(guest.touch(0x405) == 0);
    CHECK(guest.touch(0) == 0);
    CHECK(guest.touch(0x405) == 0);
    CHECK(guest.touch(0) == 2);
    CHECK(guest.touch(0x400) == 2);
}

TEST_CASE("levels of TLBs: one that takes evictions", "[tlb]")
{
    // Filled by walks too; an evicted entry that is there still is overwritten, which is a use.
    TlbSpec second = level("l2", 2, 2);
    second.takes_evictions = true;
    PageGuest guest{small::profile({level("l1", 1, 2), second})};
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});
    CHECK(guest.tlb(1).fills == 2);
    // 2: level 2 evicts 0 for it; level 1 evicts 0, and level 2 evicts 1 for that.
    CHECK(guest.touch(2) == 0);
    CHECK(guest.tlb(1).fills == 4);
    CHECK(guest.tlb(1).evictions == 2);
    CHECK(guest.touch(0) == 2);  // level 1 evicts 1: in level 2, 2 makes room
    CHECK(guest.tlb(1).fills == 5);
    CHECK(guest.touch_all({2, 0, 1}) == Levels{1, 1, 2});
}

TEST_CASE("levels of TLBs: one of another kind takes no evictions", "[tlb]")
{
    // "the next TLB of the same chain": fetches have another one.
    TlbSpec second = level("l2d", 2, 4, "ls");
    second.takes_evictions = true;
    PageGuest guest{small::profile({level("l1", 1, 1), second, level("l2i", 2, 4, "f")})};
    CHECK(guest.touch_all({0, 1}, AccessKind::fetch) == Levels{0, 0});
    CHECK(guest.tlb(1).fills == 0);
    CHECK(guest.tlb(2).fills == 2);
    CHECK(guest.touch(2, AccessKind::read) == 0);  // level 1 evicts 1, on behalf of a read
    CHECK(guest.tlb(1).fills == 2);
    CHECK(guest.touch(1, AccessKind::read) == 2);
}

TEST_CASE("levels of TLBs: what an inclusive one evicts leaves those before it", "[tlb]")
{
    for (const Inclusion inclusion : {Inclusion::neither, Inclusion::inclusive}) {
        const bool inclusive = inclusion == Inclusion::inclusive;
        INFO((inclusive ? "inclusive" : "neither"));
        TlbSpec second = level("l2", 2, 2);
        second.inclusion = inclusion;
        PageGuest guest{small::profile({level("l1i", 1, 4, "f"), level("l1d", 1, 4, "ls"), second})};
        CHECK(guest.touch(0, AccessKind::fetch) == 0);
        CHECK(guest.touch(0) == 2);
        CHECK(guest.touch_all({1, 2}) == Levels{0, 0});  // 0 leaves level 2
        CHECK(guest.tlb(2).evictions == 1);
        CHECK(guest.touch(0, AccessKind::fetch) == (inclusive ? 0u : 1u));
        if (inclusive) continue;  // that walk has brought it back
        CHECK(guest.touch(0) == 1);
    }
    TlbSpec third = level("l3", 3, 2);
    third.inclusion = Inclusion::inclusive;
    PageGuest guest{small::profile({level("l1", 1, 4), level("l2", 2, 4), third})};
    CHECK(guest.touch_all({0, 1, 2, 0}) == Levels{0, 0, 0, 0});
    CHECK(guest.touch_all({2, 0, 1}) == Levels{1, 1, 0});
}

TEST_CASE("levels of TLBs: an inclusive one drops the entry of its own PCID alone", "[tlb]")
{
    TlbSpec second = level("l2", 2, 2);
    second.inclusion = Inclusion::inclusive;
    PageGuest guest{small::profile({level("l1", 1, 8), second})};
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    const auto load = [&](unsigned pcid) {
        REQUIRE_FALSE(guest.machine.mov_cr3(0, guest.root().address().value() | pcid | cr3::kNoFlush));
    };
    CHECK(guest.touch(0) == 0);
    load(1);
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});  // the entry of PCID 0 leaves level 2
    CHECK(guest.touch(0) == 1);
    load(0);
    CHECK(guest.touch(0) == 0);
}

TEST_CASE("levels of TLBs: a large page that an inclusive level evicts takes its fragments along", "[tlb]")
{
    TlbSpec second =
        small::tlb("l2", 2, "fls", {small::fully_associative(1, {EntryKind::page_4k, EntryKind::page_2m})});
    second.inclusion = Inclusion::inclusive;
    PageGuest guest{small::profile({level("l1", 1, 8), second})};
    guest.map(0x80'0000, 0x4000'0000, kAll, 2);
    CHECK(guest.touch(0x400) == 0);
    CHECK(guest.touch_all({0x401, 0x402}) == Levels{2, 2});
    CHECK(guest.touch_all({0x400, 0x401, 0x402}) == Levels{1, 1, 1});
    CHECK(guest.touch(0) == 0);  // the large page makes room on level 2
    CHECK(guest.touch(0x401) == 0);
    CHECK(guest.touch_all({0x400, 0x402}) == Levels{2, 2});
}

TEST_CASE("levels of TLBs: fragments of another PCID stay", "[tlb]")
{
    // Level 2 has room for two large pages, and no 4K pages: level 1 alone has those.
    TlbSpec second = small::tlb("l2", 2, "fls", {small::fully_associative(2, {EntryKind::page_2m})});
    second.inclusion = Inclusion::inclusive;
    PageGuest guest{small::profile({level("l1", 1, 8), second})};
    guest.map(0x80'0000, 0x4000'0000, kAll, 2);
    guest.map(0xa0'0000, 0x4000'0000, kAll, 2);
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    const auto load = [&](unsigned pcid) {
        REQUIRE_FALSE(guest.machine.mov_cr3(0, guest.root().address().value() | pcid | cr3::kNoFlush));
    };
    CHECK(guest.touch_all({0x400, 0x401}) == Levels{0, 2});
    load(1);
    CHECK(guest.touch_all({0x400, 0x401}) == Levels{0, 2});
    CHECK(guest.touch(0x600) == 0);  // the large page of PCID 0 makes room
    CHECK(guest.touch_all({0x400, 0x401}) == Levels{1, 1});
    load(0);
    CHECK(guest.touch(0x400) == 0);
}

TEST_CASE("levels of TLBs: a fragment that an inclusive level evicts takes the large page along", "[tlb]")
{
    TlbSpec second = level("l2", 2, 2);
    second.inclusion = Inclusion::inclusive;
    second.splinters = true;
    PageGuest guest{small::profile(
        {small::tlb("l1", 1, "fls", {small::fully_associative(8, {EntryKind::page_4k, EntryKind::page_2m})}),
         second})};
    guest.map(0x80'0000, 0x4000'0000, kAll, 2);
    CHECK(guest.touch_all({0x401, 0x402, 0, 0x403}) == Levels{0, 1, 0, 1});
    CHECK(guest.touch(1) == 0);  // the fragment around 0x401 makes room
    CHECK(guest.touch(0x403) == 0);
}

TEST_CASE("levels of TLBs: hits in the first level that count in the second", "[tlb]")
{
    for (const bool touched : {false, true}) {
        INFO((touched ? "touched" : "not touched"));
        TlbSpec second = level("l2", 2, 2);
        second.touched_by_earlier_hits = touched;
        PageGuest guest{small::profile({level("l1", 1, 2), second})};
        CHECK(guest.touch_all({0, 1, 0, 0}) == Levels{0, 0, 1, 1});
        CHECK(guest.tlb(1).lookups == 2);
        CHECK(guest.tlb(1).hits == 0);
        CHECK(guest.touch(2) == 0);  // level 1 evicts 1; level 2 evicts 0, or 1 if the hits on 0 count
        CHECK(guest.touch(0) == 1);
        CHECK(guest.touch(1) == (touched ? 0u : 2u));
    }
}

TEST_CASE("levels of TLBs: a hit in level 2 counts as use in no third level", "[tlb]")
{
    // "After a hit in level 1". Level 2 forgets 0 and 1 as well before they are asked for again.
    TlbSpec third = level("l3", 3, 2);
    third.touched_by_earlier_hits = true;
    PageGuest guest{small::profile({level("l1", 1, 1), level("l2", 2, 2), third})};
    CHECK(guest.touch_all({0, 1, 0}) == Levels{0, 0, 2});
    CHECK(guest.touch(2) == 0);  // level 2 evicts 1, level 3 evicts 0
    CHECK(guest.touch(1) == 3);
}

// --- inside one TLB
// -----------------------------------------------------------------------------------------

TEST_CASE("fills: free ways first, the lowest number first", "[tlb]")
{
    // Random replacement, so that any victim would be seen: there is none.
    CpuProfile profile = small::profile({small::tlb(
        "l1", 1, "fls", {small::array(8, 8, k4K, {.kind = ReplacementKind::random, .seed = 1})})});
    PageGuest guest{profile};
    for (std::uint64_t page = 0; page < 8; ++page) CHECK(guest.touch(page) == 0);
    for (const std::uint64_t page : {5u, 2u, 7u}) REQUIRE(guest.invlpg(PageGuest::kBase + (page << 12)));
    CHECK(guest.touch_all({8, 9, 10}) == Levels{0, 0, 0});
    CHECK(guest.tlb(0).evictions == 0);
    CHECK(guest.touch_all({0, 1, 3, 4, 6, 8, 9, 10}) == Levels(8, 1));
    // bit-plru names the lowest way whose bit is clear: fills show which way they took.
    profile.tlbs.tlbs[0].arrays = {small::array(4, 4, k4K, {.kind = ReplacementKind::bit_plru})};
    PageGuest other{profile};
    CHECK(other.touch_all({0, 1, 2, 3}) == Levels{0, 0, 0, 0});  // only bit 3 is set
    for (const std::uint64_t page : {1u, 3u}) REQUIRE(other.invlpg(PageGuest::kBase + (page << 12)));
    CHECK(other.touch(4) == 0);  // way 1; bits 1 and 3: invalidation leaves the policy's state
    CHECK(other.touch(5) == 0);  // way 3
    CHECK(other.touch(6) == 0);  // evicts way 0; bits 0, 1, 3
    CHECK(other.touch(0) == 0);  // evicts way 2
    CHECK(other.touch_all({4, 5, 6, 0}) == Levels{1, 1, 1, 1});
}

TEST_CASE("fills: a walk for D overwrites the entry", "[tlb]")
{
    PageGuest guest{small::profile({level("l1", 1, 2), level("l2", 2, 2)})};
    guest.set_entry(PageGuest::kBase, 1, 0x101'000 | (kAll & ~D));
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});
    const MachineCounters before = guest.machine.counters();
    CHECK(guest.write(PageGuest::kBase).ok());
    for (const std::size_t tlb : {0u, 1u}) {
        CHECK(guest.tlb(tlb).fills == before.tlbs[tlb].fills + 1);
        CHECK(guest.tlb(tlb).evictions == 0);
    }
    CHECK(guest.tlb(0).dirty_walks == 1);
    CHECK(guest.tlb(0).hits == before.tlbs[0].hits + 1);
    CHECK(guest.tlb(1).lookups == before.tlbs[1].lookups);  // no later TLB is asked
    CHECK(guest.touch_all({0, 1}, AccessKind::write) == Levels{1, 1});
}

TEST_CASE("fills: the largest smaller size where a TLB has not the page's", "[tlb]")
{
    constexpr std::uint64_t kLarge = 0x8000'0000;
    struct Case {
        Kinds level_1;
        Kinds level_2;
        bool splinters;
        Paging paging;
        int leaf;
        unsigned shift_1;  ///< of the entries on level 1
        unsigned shift_2;  ///< and on level 2; 0: none
    };
    const Kinds both{EntryKind::page_4k, EntryKind::page_2m};
    const Kinds all{EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_1g};
    const Kinds with_4m{EntryKind::page_4k, EntryKind::page_4m};
    const std::vector<Case> cases{
        {k4K, k4K, false, Paging::four_level, 2, 12, 0},
        {k4K, k4K, true, Paging::four_level, 2, 12, 12},
        {k4K, both, false, Paging::four_level, 2, 12, 21},
        {both, k4K, true, Paging::four_level, 2, 21, 12},
        {both, both, false, Paging::four_level, 3, 21, 0},
        {both, both, true, Paging::four_level, 3, 21, 21},
        {k4K, all, false, Paging::four_level, 3, 12, 30},
        {all, k4K, false, Paging::four_level, 3, 30, 0},
        {both, k4K, true, Paging::two_level, 2, 21, 12},
        {with_4m, both, true, Paging::two_level, 2, 22, 21},
        {with_4m, with_4m, false, Paging::four_level, 2, 12, 0},
        {with_4m, with_4m, true, Paging::four_level, 3, 12, 12},
        {{EntryKind::page_2m}, {EntryKind::page_2m}, false, Paging::four_level, 3, 21, 0},
    };
    for (std::size_t i = 0; i < cases.size(); ++i) {
        const Case& one = cases[i];
        INFO("case " << i);
        TlbSpec second = small::tlb("l2", 2, "fls", {small::fully_associative(64, one.level_2)});
        second.splinters = one.splinters;
        Guest guest{one.paging,
                    small::config(small::profile(
                        {small::tlb("l1", 1, "fls", {small::fully_associative(64, one.level_1)}), second}))};
        guest.map(kLarge, 0x4000'0000, kAll, one.leaf);
        const std::uint64_t page = std::uint64_t{1} << guest.shift(one.leaf);
        CHECK(guest.read(kLarge + page / 2 + 0x123).at() == 0x4000'0000 + page / 2 + 0x123);
        CHECK(guest.machine.counters().tlbs[0].fills == 1);
        CHECK(guest.machine.counters().tlbs[1].fills == (one.shift_2 != 0 ? 1 : 0));
        // All of the entry hits, nothing beyond it.
        const auto found = [&](std::uint64_t offset) {
            const MachineCounters before = guest.machine.counters();
            CHECK(guest.read(kLarge + offset, 1).at() == 0x4000'0000 + offset);
            const MachineCounters after = guest.machine.counters();
            if (after.tlbs[0].hits > before.tlbs[0].hits) return 1;
            return after.tlbs[1].hits > before.tlbs[1].hits ? 2 : 0;
        };
        const std::uint64_t size = std::uint64_t{1} << one.shift_1;
        CHECK(found(page / 2) == 1);
        if (size == page) {
            CHECK(found(0) == 1);
            CHECK(found(page - 1) == 1);
            continue;
        }
        CHECK(found(page / 2 + size - 1) == 1);
        if (size < page / 2) CHECK(found(page / 2 + size) == (one.shift_2 > one.shift_1 ? 2 : 0));
        CHECK(found(page / 2 - 1) == (one.shift_2 > one.shift_1 ? 2 : 0));
    }
}

TEST_CASE("lookups: arrays in the profile's order, in an array small pages first", "[tlb]")
{
    // Two translations of one address, after a change that nobody has flushed.
    struct Case {
        std::vector<TlbArraySpec> arrays;
        bool small_first;
    };
    const Kinds k2M{EntryKind::page_2m};
    const std::vector<Case> cases{
        {{small::fully_associative(8, {EntryKind::page_2m, EntryKind::page_4k})}, true},
        {{small::fully_associative(8, k4K), small::fully_associative(8, k2M)}, true},
        {{small::fully_associative(8, k2M), small::fully_associative(8, k4K)}, false},
    };
    for (const Case& one : cases) {
        Guest guest{Paging::four_level,
                    small::config(small::profile({small::tlb("l1", 1, "fls", one.arrays)}))};
        guest.map(0x20'0000, 0x101'000);
        guest.map(0x20'1000, 0x102'000);
        CHECK(guest.read(0x20'0000).at() == 0x101'000);
        guest.set_entry(0x20'0000, 2, 0x4000'0000 | kAll | PS);
        CHECK(guest.read(0x20'0000).at() == 0x101'000);
        CHECK(guest.read(0x20'1000).at() == 0x4000'1000);
        for (unsigned again = 0; again < 3; ++again) {
            CHECK(guest.read(0x20'0000).at() == (one.small_first ? 0x101'000u : 0x4000'0000u));
            CHECK(guest.read(0x20'1000).at() == 0x4000'1000);
        }
        REQUIRE(guest.invlpg(0x20'0000));  // both
        CHECK(guest.read(0x20'0000).at() == 0x4000'0000);
    }
}

TEST_CASE("lookups: in a set the lowest way first", "[tlb]")
{
    // An entry with another G is another entry. G has changed in memory without a flush, so a walk for D adds
    // a second one; the first is found again, which has D clear still.
    for (const std::uint64_t first : {std::uint64_t{0}, G}) {
        PageGuest guest{small::profile({level("l1", 1, 4)})};
        REQUIRE(guest.set_cr4(cr4::kPge, true));
        guest.set_entry(PageGuest::kBase, 1, 0x101'000 | (kAll & ~D) | first);
        CHECK(guest.touch(0) == 0);
        guest.set_entry(PageGuest::kBase, 1, 0x102'000 | (kAll & ~D) | (first ^ G));
        for (unsigned i = 1; i < 4; ++i) {
            CHECK(guest.write(PageGuest::kBase).at() == 0x102'000);
            CHECK(guest.tlb(0).dirty_walks == i);
            CHECK(guest.tlb(0).fills == i + 1);
            CHECK(guest.read(PageGuest::kBase).at() == 0x101'000);
        }
        CHECK(guest.tlb(0).evictions == 0);
        REQUIRE(guest.invlpg(PageGuest::kBase));  // both
        CHECK(guest.read(PageGuest::kBase).at() == 0x102'000);
    }
}

TEST_CASE("lookups: in a set the lowest way first, also of the page that was just looked up", "[tlb]")
{
    PageGuest guest{small::profile({level("l1", 1, 4)})};
    REQUIRE(guest.set_cr4(cr4::kPge, true));
    guest.set_entry(PageGuest::kBase, 1, 0x103'000 | (kAll & ~D));
    CHECK(guest.touch_all({1, 0, 0, 0}) == Levels{0, 0, 1, 1});
    REQUIRE(guest.invlpg(PageGuest::kBase + 0x1000));  // the lowest way is free
    guest.set_entry(PageGuest::kBase, 1, 0x104'000 | (kAll & ~D) | G);
    CHECK(guest.write(PageGuest::kBase).at() == 0x104'000);
    for (unsigned i = 0; i < 3; ++i) {
        CHECK(guest.read(PageGuest::kBase).at() == 0x104'000);
        CHECK(guest.write(PageGuest::kBase).at() == 0x104'000);
        CHECK(guest.fetch(PageGuest::kBase).at() == 0x104'000);
    }
    CHECK(guest.tlb(0).dirty_walks == 1);
}

TEST_CASE("lookups: in a set the lowest way first, whatever was looked up before", "[tlb]")
{
    for (const bool looked_up : {false, true}) {
        INFO((looked_up ? "looked up before" : "not looked up before"));
        Guest guest{
            Paging::four_level,
            small::config(small::profile({small::tlb(
                "l1", 1, "fls", {small::fully_associative(4, {EntryKind::page_4k, EntryKind::page_2m})})}))};
        REQUIRE(guest.set_cr4(cr4::kPge, true));
        guest.map(0x20'0000, 0x101'000);
        guest.map(0x40'0000, 0x4000'0000, kAll & ~D, 2);
        CHECK(guest.read(0x20'0000).ok());  // way 0
        CHECK(guest.read(0x40'0000).ok());  // way 1
        for (unsigned i = 0; looked_up && i < 2; ++i) CHECK(guest.read(0x40'5000).at() == 0x4000'5000);
        REQUIRE(guest.invlpg(0x20'0000));
        guest.set_entry(0x40'0000, 2, 0x6000'0000 | (kAll & ~D) | G | PS);
        CHECK(guest.write(0x40'1000).at() == 0x6000'1000);  // a second entry, for its G, in way 0
        CHECK(guest.read(0x40'6000).at() == 0x6000'6000);
        CHECK(guest.read(0x40'5000).at() == 0x6000'5000);
    }
}

TEST_CASE("lookups: global entries serve all PCIDs", "[tlb]")
{
    PageGuest guest{small::profile({level("l1", 1, 8), level("l2", 2, 8)})};
    REQUIRE(guest.set_cr4(cr4::kPge, true));
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    guest.set_entry(PageGuest::kBase, 1, 0x101'000 | kAll | G);
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});
    REQUIRE_FALSE(guest.machine.mov_cr3(0, guest.root().address().value() | 7));
    CHECK(guest.touch_all({0, 1}) == Levels{1, 0});
    REQUIRE_FALSE(guest.machine.mov_cr3(0, guest.root().address().value() | cr3::kNoFlush));
    CHECK(guest.touch_all({0, 1}) == Levels{1, 1});
}

TEST_CASE("lookups: the top of a linear address counts, in a page's number and in its set", "[tlb]")
{
    // Bits 56 to 12: the upper half's pages are other pages, and modulo three they have other sets.
    CpuProfile profile = small::profile({small::tlb("l1", 1, "fls", {small::array(3, 1, k4K)})});
    Guest guest{Paging::four_level, small::config(profile)};
    const std::uint64_t high = 0xffff'8000'0000'0000;
    const auto set = [](std::uint64_t address) { return (address & 0x1ff'ffff'ffff'ffff) / 0x1000 % 3; };
    const std::vector<std::uint64_t> pages{0x1000, 0x2000, high, high + 0x1000, high + 0x2000};
    for (const std::uint64_t page : pages) guest.map(page, 0x101'000);
    for (const std::uint64_t first : pages) {
        for (const std::uint64_t second : pages) {
            if (first == second) continue;
            INFO(fmt::format("{:#x}, {:#x}", first, second));
            REQUIRE(guest.mov_cr3(guest.root()));
            CHECK(guest.read(first).ok());
            CHECK(guest.read(second).ok());
            const std::uint64_t walks = guest.machine.counters().walks;
            CHECK(guest.read(first).ok());
            CHECK(guest.machine.counters().walks == walks + (set(first) == set(second) ? 1 : 0));
        }
    }
}

// --- paging-structure caches
// --------------------------------------------------------------------------------

namespace {

/// Pages at steps of 2 MiB, of which each walk needs a PDE of its own; nothing has TLBs.
struct StructureGuest : Guest {
    explicit StructureGuest(const TlbArraySpec& pdes) : Guest{Paging::four_level, config(pdes)} {}
    void map_area(std::uint64_t address)
    {
        for (const std::uint64_t offset : {0u, 0x1000u}) map(address + offset, 0x101'000);
    }
    bool hit(std::uint64_t address)
    {
        const std::uint64_t before = machine.counters().paging_structure_caches[2].hits;
        CHECK(read(address).ok());
        return machine.counters().paging_structure_caches[2].hits > before;
    }

private:
    static MachineConfig config(const TlbArraySpec& pdes)
    {
        CpuProfile profile;
        profile.tlbs.paging_structure_caches = {{.level = 2, .array = pdes, .stored_in = {}}};
        return small::config(profile);
    }
};

}  // namespace

TEST_CASE("paging-structure caches: asked from the deepest level up, filled for what was read", "[tlb]")
{
    CpuProfile profile;
    small::add_structure_caches(profile, 8);
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        INFO(mmusim::name_of(paging));
        Guest guest{paging, small::config(profile)};
        const int top = paging == Paging::pae ? 2 : guest.levels();
        const std::uint64_t base = 0x80'0000;
        guest.map(base, 0x101'000);
        for (int level = 2; level <= top; ++level) {
            guest.map(base + (std::uint64_t{1} << guest.shift(level - 1)), 0x101'000);
        }
        const auto read = [&](std::uint64_t address, int level_of_hit) {
            const MachineCounters before = guest.machine.counters();
            CHECK(guest.read(address).ok());
            const MachineCounters after = guest.machine.counters();
            for (int level = 2; level <= kMaxLevels; ++level) {
                const auto i = static_cast<std::size_t>(level);
                const bool asked = level <= top && (level_of_hit == 0 || level <= level_of_hit);
                INFO("level " << level);
                CHECK(after.paging_structure_caches[i].lookups ==
                      before.paging_structure_caches[i].lookups + (asked ? 1 : 0));
                CHECK(after.paging_structure_caches[i].hits ==
                      before.paging_structure_caches[i].hits + (level == level_of_hit ? 1 : 0));
            }
            const int loads = level_of_hit == 0 ? top : level_of_hit - 1;
            CHECK(after.memory_references - before.memory_references == static_cast<std::uint64_t>(loads));
        };
        read(base, 0);
        read(base, 2);
        for (int level = 2; level <= top; ++level) {
            const std::uint64_t far = base + (std::uint64_t{1} << guest.shift(level - 1));
            read(far, level);
            if (level > 2) read(far, 2);
        }
    }
}

TEST_CASE("paging-structure caches: large pages have their own last level", "[tlb]")
{
    CpuProfile profile;
    small::add_structure_caches(profile, 8);
    Guest guest{Paging::four_level, small::config(profile)};
    guest.map(0x4000'0000, 0x4000'0000, kAll, 2);
    guest.map(0x80'4000'0000, 0x4000'0000, kAll, 3);
    for (unsigned i = 0; i < 2; ++i) {
        CHECK(guest.read(0x4000'0000).ok());
        CHECK(guest.read(0x80'4000'0000).ok());
    }
    const MachineCounters counters = guest.machine.counters();
    CHECK(counters.paging_structure_caches[2].hits == 0);  // their PDE is a leaf, or is not there
    CHECK(counters.paging_structure_caches[3].hits == 1);
    CHECK(counters.paging_structure_caches[4].hits == 1);
    CHECK(counters.memory_references == 3 + 2 + 1 + 1);
}

TEST_CASE("paging-structure caches: sets, ways and policy", "[tlb]")
{
    {
        StructureGuest guest{small::array(4, 2, {EntryKind::pde})};
        for (std::uint64_t area = 0; area < 8; ++area) guest.map_area(area << 21);
        for (const std::uint64_t area : {0u, 2u, 1u}) CHECK_FALSE(guest.hit(area << 21));
        for (const std::uint64_t area : {2u, 0u, 1u}) CHECK(guest.hit(area << 21));
        CHECK_FALSE(guest.hit(4 << 21));  // set 0: evicts 2
        CHECK(guest.hit(0 << 21));
        CHECK(guest.hit(1 << 21));
        CHECK_FALSE(guest.hit(2 << 21));  // and 4
        CHECK(guest.hit(0 << 21));
    }
    TlbArraySpec xored = small::array(4, 1, {EntryKind::pde}, {.kind = ReplacementKind::fifo});
    xored.index = xor_index(2);
    StructureGuest guest{xored};
    for (const std::uint64_t area : {0u, 5u, 1u}) guest.map_area(area << 21);
    CHECK_FALSE(guest.hit(0 << 21));
    CHECK_FALSE(guest.hit(1 << 21));
    CHECK_FALSE(guest.hit(5 << 21));  // 01 ^ 01 = 0
    CHECK(guest.hit(1 << 21));
    CHECK_FALSE(guest.hit(0 << 21));
}

TEST_CASE("paging-structure caches: the set is that of the bits that lead to the entry", "[tlb]")
{
    // "from bit 56 down to 21": in the upper half the copies of bit 47 are in it. With three sets that
    // matters.
    const std::vector<std::uint64_t> areas{
        0x0, 0x20'0000, 0x40'0000, 0xffff'8000'0000'0000, 0xffff'8000'0020'0000, 0xffff'8000'0040'0000};
    const auto set = [](std::uint64_t address) { return (address & 0x1ff'ffff'ffff'ffff) / 0x20'0000 % 3; };
    for (const std::uint64_t first : areas) {
        for (const std::uint64_t second : areas) {
            if (first == second) continue;
            INFO(fmt::format("{:#x}, {:#x}", first, second));
            StructureGuest guest{small::array(3, 1, {EntryKind::pde})};
            guest.map_area(first);
            guest.map_area(second);
            CHECK_FALSE(guest.hit(first));
            CHECK_FALSE(guest.hit(second));
            CHECK(guest.hit(first) == (set(first) != set(second)));
        }
    }
}

TEST_CASE("paging-structure caches: PDEs among a TLB's pages", "[tlb]")
{
    // One set of four ways, shared. LRU, so who was used last stays.
    TlbSpec second = small::tlb("l2", 2, "fls", {small::array(4, 4, {EntryKind::page_4k, EntryKind::pde})});
    CpuProfile profile = small::profile({level("l1", 1, 1), second});
    profile.tlbs.paging_structure_caches = {{.level = 2, .array = {}, .stored_in = "l2"}};
    PageGuest guest{profile};
    const auto structure = [&] { return guest.machine.counters().paging_structure_caches[2]; };
    CHECK(guest.touch_all({0, 1, 2}) == Levels{0, 0, 0});  // a PDE and three pages
    CHECK(structure().lookups == 3);
    CHECK(structure().hits == 2);
    CHECK(guest.touch(3) == 0);  // hits the PDE; evicts page 0
    CHECK(guest.touch_all({1, 2}) == Levels{2, 2});
    CHECK(guest.touch(0) == 0);  // the PDE was used before these two, but is used now; evicts page 3
    CHECK(structure().hits == 4);
    CHECK(guest.touch(3) == 0);  // evicts page 1
    CHECK(guest.touch_all({2, 0}) == Levels{2, 2});
    // Pages push the PDE out when it was used longest ago.
    CHECK(guest.touch(1) == 0);  // hits the PDE once more; evicts page 3
    CHECK(guest.touch_all({2, 0, 1}) == Levels{2, 2, 2});
    guest.map(0x80'0000, 0x101'000);
    CHECK(guest.touch(0x400) == 0);  // its PDE evicts the other one, then its page evicts page 2
    CHECK(structure().hits == 6);
    CHECK(guest.touch(2) == 0);
    CHECK(structure().hits == 6);
}

TEST_CASE("paging-structure caches: what PDEs among pages count, and what they drive out", "[tlb]")
{
    // Level 2 has one set of two ways: each walk's PDE drives a page out.
    for (const Inclusion inclusion : {Inclusion::neither, Inclusion::inclusive}) {
        TlbSpec second =
            small::tlb("l2", 2, "fls", {small::array(2, 2, {EntryKind::page_4k, EntryKind::pde})});
        second.inclusion = inclusion;
        TlbSpec third = level("l3", 3, 8);
        third.takes_evictions = true;
        CpuProfile profile = small::profile({level("l1", 1, 8), second, third});
        profile.tlbs.paging_structure_caches = {{.level = 2, .array = {}, .stored_in = "l2"}};
        PageGuest guest{profile};
        guest.map(0x80'0000, 0x101'000);
        CHECK(guest.touch(0) == 0);
        CHECK(guest.tlb(1).fills == 1);  // the page; a PDE does not count
        CHECK(guest.tlb(1).evictions == 0);
        // The other PDE evicts the first one, the page then evicts page 0, which level 3 takes.
        CHECK(guest.touch(0x400) == 0);
        CHECK(guest.tlb(1).fills == 2);
        CHECK(guest.tlb(1).evictions == 2);
        CHECK(guest.tlb(2).fills == 3);
        // Page 0 has left level 1 if level 2 is inclusive; level 3 has it.
        CHECK(guest.touch(0) == (inclusion == Inclusion::inclusive ? 3u : 1u));
    }
    // A PDE evicts a page: that is filled nowhere else.
    TlbSpec second = small::tlb("l2", 2, "fls", {small::array(2, 2, {EntryKind::page_4k, EntryKind::pde})});
    second.inclusion = Inclusion::inclusive;
    TlbSpec third = level("l3", 3, 8);
    third.takes_evictions = true;
    CpuProfile profile = small::profile({level("l1", 1, 8), second, third});
    profile.tlbs.paging_structure_caches = {{.level = 2, .array = {}, .stored_in = "l2"}};
    PageGuest guest{profile};
    guest.map(0x80'0000, 0x101'000);
    CHECK(guest.touch_all({0, 1}) == Levels{0, 0});  // level 2: the PDE, and page 1 in place of page 0
    CHECK(guest.tlb(1).evictions == 1);
    CHECK(guest.tlb(2).fills == 3);
    CHECK(guest.touch(0) == 3);  // in place of the PDE, which goes nowhere
    CHECK(guest.tlb(1).evictions == 2);
    CHECK(guest.tlb(2).fills == 3);
    CHECK(guest.touch(1) == 1);
    // The new PDE in place of page 1, which leaves level 1; the new page in place of page 0, which goes on.
    CHECK(guest.touch(0x400) == 0);
    CHECK(guest.tlb(1).evictions == 4);
    CHECK(guest.tlb(2).fills == 5);
    CHECK(guest.touch(1) == 3);
}

TEST_CASE("paging-structure caches: the PCIDs that a TLB keeps do not concern the PDEs in it", "[tlb]")
{
    CpuProfile profile = small::large(true);
    profile.tlbs.tlbs[small::kL2].pcids_kept_flush = 0;
    profile.tlbs.tlbs[small::kL2].pcids_kept_noflush = 0;
    PageGuest guest{profile};
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    CHECK(guest.touch(0) == 0);
    REQUIRE_FALSE(guest.machine.mov_cr3(0, guest.root().address().value() | cr3::kNoFlush));
    CHECK(guest.touch(1) == 0);
    CHECK(guest.machine.counters().paging_structure_caches[2].hits == 1);
    CHECK(guest.touch(0, AccessKind::fetch) == 0);
}

// --- random sequences against plain sets
// ----------------------------------------------------------------------

namespace {

constexpr std::array<const char*, 7> kPolicies{"lru",    "fifo",  "tree-plru", "bit-plru",
                                               "random", "srrip", "mru-groups"};

struct NaiveEntry {
    unsigned shift = 12;
    std::uint64_t number = 0;

    friend bool operator==(const NaiveEntry&, const NaiveEntry&) = default;
};

/// One array, whose kinds may be limited to some ways.
class NaiveArray {
public:
    struct View {
        unsigned shift;
        unsigned first_way;
        unsigned ways;
    };
    NaiveArray(unsigned sets, unsigned ways, std::vector<View> views, std::vector<std::uint64_t> masks,
               const std::string& policy, unsigned groups, std::uint64_t seed)
        : sets_{sets}, views_{std::move(views)}, masks_{std::move(masks)}
    {
        const auto source = std::make_shared<naive::SplitMix>(naive::SplitMix{seed});
        for (unsigned set = 0; set < sets; ++set) {
            rows_.emplace_back(ways);
            policies_.push_back(naive::make_policy(policy, ways, groups, source));
        }
    }
    [[nodiscard]] const View* view_of(unsigned shift) const
    {
        for (const View& view : views_) {
            if (view.shift == shift) return &view;
        }
        return nullptr;
    }
    [[nodiscard]] const std::vector<View>& views() const { return views_; }
    std::optional<unsigned> find(const NaiveEntry& entry) const
    {
        const View& view = *view_of(entry.shift);
        for (unsigned way = view.first_way; way < view.first_way + view.ways; ++way) {
            if (rows_[set_of(entry)][way] == entry) return way;
        }
        return std::nullopt;
    }
    bool hit(const NaiveEntry& entry)
    {
        const auto way = find(entry);
        if (way) policies_[set_of(entry)]->hit(*way);
        return way.has_value();
    }
    void remove(const NaiveEntry& entry)
    {
        if (const auto way = find(entry)) rows_[set_of(entry)][*way].reset();
    }
    std::optional<NaiveEntry> fill(const NaiveEntry& entry)
    {
        const View& view = *view_of(entry.shift);
        auto& row = rows_[set_of(entry)];
        std::optional<unsigned> way = find(entry);
        std::vector<unsigned> candidates;
        for (unsigned i = view.first_way; i < view.first_way + view.ways; ++i) candidates.push_back(i);
        for (const unsigned i : candidates) {
            if (!way && !row[i]) way = i;
        }
        std::optional<NaiveEntry> evicted;
        if (!way) {
            way = policies_[set_of(entry)]->victim(candidates);
            evicted = row[*way];
        }
        row[*way] = entry;
        policies_[set_of(entry)]->filled(*way);
        return evicted;
    }

private:
    [[nodiscard]] std::size_t set_of(const NaiveEntry& entry) const
    {
        return naive::set_of(entry.number, masks_, sets_);
    }
    unsigned sets_;
    std::vector<View> views_;
    std::vector<std::uint64_t> masks_;
    std::vector<std::vector<std::optional<NaiveEntry>>> rows_;
    std::vector<std::unique_ptr<naive::Policy>> policies_;
};

}  // namespace

TEST_CASE("random accesses: one array of each policy, pages of all sizes", "[tlb]")
{
    // Short cuts to entries, restricted ways and mixed sizes must not change what a set remembers.
    constexpr unsigned kSeed = 31'337;
    std::mt19937_64 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](std::uint64_t end) { return random() % end; };
    struct Shape {
        unsigned sets;
        unsigned ways;
        unsigned groups;
        bool limited;  ///< large pages have the lower half of the ways, 1G pages the upper one
        unsigned xor_bits;
    };
    constexpr std::array<Shape, 9> kShapes{{{1, 4, 2, false, 0},
                                            {1, 16, 4, true, 0},
                                            {2, 8, 2, true, 1},
                                            {4, 4, 4, false, 0},
                                            {4, 12, 3, false, 2},
                                            {3, 6, 3, true, 0},
                                            {8, 1, 1, false, 3},
                                            {8, 2, 1, true, 0},
                                            {5, 5, 5, false, 0}}};
    for (const Shape& shape : kShapes) {
        for (const char* const policy : kPolicies) {
            INFO(fmt::format("{} sets of {} ways, {}, {} groups", shape.sets, shape.ways, policy,
                             shape.groups));
            const std::uint64_t seed = random();
            const unsigned half = std::max(1u, shape.ways / 2);
            TlbArraySpec array;
            array.entries = shape.sets * shape.ways;
            array.ways = shape.ways;
            if (shape.xor_bits > 0) array.index = xor_index(shape.xor_bits);
            array.replacement = {.kind = *parse_replacement(policy), .groups = shape.groups, .seed = seed};
            const unsigned limit = shape.limited ? half : shape.ways;
            const unsigned upper = shape.limited ? shape.ways - half : 0;
            array.views = {
                {.kind = EntryKind::page_4k, .ways = shape.ways, .first_way = 0, .stride = shape.ways},
                {.kind = EntryKind::page_2m, .ways = limit, .first_way = 0, .stride = shape.ways},
                {.kind = EntryKind::page_1g,
                 .ways = shape.ways - upper,
                 .first_way = upper,
                 .stride = shape.ways}};
            NaiveArray expected{shape.sets,
                                shape.ways,
                                {{12, 0, shape.ways}, {21, 0, limit}, {30, upper, shape.ways - upper}},
                                array.index.xor_masks,
                                policy,
                                shape.groups,
                                seed};

            Guest guest{Paging::four_level,
                        small::config(small::profile({small::tlb("l1", 1, "fls", {array})}))};
            // 4K pages below 2 MiB, 2M pages from 1 GiB on, 1G pages from 512 GiB on.
            constexpr std::uint64_t kPages = 40;
            const auto address_of = [&](unsigned shift, std::uint64_t page) {
                const std::uint64_t base = shift == 12 ? 0 : shift == 21 ? 0x4000'0000 : 0x80'0000'0000;
                return base + (page << shift);
            };
            for (std::uint64_t page = 0; page < kPages; ++page) {
                guest.map(address_of(12, page), 0x101'000);
                guest.map(address_of(21, page), 0x4000'0000, kAll, 2);
                guest.map(address_of(30, page), 0x4000'0000, kAll, 3);
            }
            std::uint64_t hits = 0;
            std::uint64_t evictions = 0;
            std::uint64_t last = 0;
            unsigned last_shift = 12;
            bool same = true;
            for (unsigned step = 0; step < 2500 && same; ++step) {
                const unsigned dice = static_cast<unsigned>(below(16));
                if (dice > 4) {  // else the same page again: the way of short cuts
                    const std::uint64_t which = below(8);
                    last_shift = which < 5 ? 12 : which < 7 ? 21 : 30;
                    last = below(2) == 0 ? below(6) : below(kPages);
                }
                const std::uint64_t address =
                    address_of(last_shift, last) + below(1ull << last_shift) / 8 * 8;
                const NaiveEntry entry{last_shift, (address & 0x1ff'ffff'ffff'ffff) >> last_shift};
                if (dice == 15) {
                    REQUIRE(guest.invlpg(address));
                    expected.remove(entry);
                    continue;
                }
                constexpr std::array<AccessKind, 3> kinds{AccessKind::read, AccessKind::write,
                                                          AccessKind::fetch};
                REQUIRE(guest.access(Guest::operand(kinds[below(3)], address, 1)).ok());
                if (expected.hit(entry)) {
                    ++hits;
                } else if (expected.fill(entry)) {
                    ++evictions;
                }
                const TlbCounters counters = guest.machine.counters().tlbs[0];
                same = counters.hits == hits && counters.evictions == evictions;
                INFO("step " << step);
                if (!same) {
                    CHECK(counters.hits == hits);
                    CHECK(counters.evictions == evictions);
                }
            }
            CHECK(hits > 200);
            CHECK(evictions > 200);
        }
    }
}

namespace {

/// Levels of TLBs for 4K pages. Fetches and loads have a first level each, or share one.
class NaiveLevels {
public:
    struct Tlb {
        TlbSpec spec;
        NaiveArray array;
        TlbCounters counters;
    };

    void add(const TlbSpec& spec, const std::string& policy, unsigned groups)
    {
        const TlbArraySpec& array = spec.arrays[0];
        tlbs_.push_back({spec,
                         NaiveArray{array.entries / array.ways,
                                    array.ways,
                                    {{12, 0, array.ways}},
                                    array.index.xor_masks,
                                    policy,
                                    groups,
                                    array.replacement.seed},
                         {}});
    }
    void access(std::uint64_t number, bool fetch)
    {
        const NaiveEntry entry{12, number};
        std::vector<Tlb*> chain;
        for (Tlb& tlb : tlbs_) {
            if (fetch ? tlb.spec.fetches : tlb.spec.loads) chain.push_back(&tlb);
        }
        for (std::size_t k = 0; k < chain.size(); ++k) {
            Tlb& tlb = *chain[k];
            ++tlb.counters.lookups;
            if (!tlb.array.hit(entry)) continue;
            ++tlb.counters.hits;
            if (k == 0) {
                for (std::size_t later = 1; later < chain.size(); ++later) {
                    if (chain[later]->spec.touched_by_earlier_hits) chain[later]->array.hit(entry);
                }
                return;
            }
            if (tlb.spec.inclusion == Inclusion::exclusive) tlb.array.remove(entry);
            if (!tlb.spec.refills) return;
            for (std::size_t before = k; before-- > 0;) fill(chain, before, entry);
            return;
        }
        for (std::size_t k = chain.size(); k-- > 0;) {
            if (chain[k]->spec.inclusion != Inclusion::exclusive) fill(chain, k, entry);
        }
    }
    void drop(std::uint64_t number)
    {
        for (Tlb& tlb : tlbs_) tlb.array.remove({12, number});
    }
    [[nodiscard]] const std::vector<Tlb>& tlbs() const { return tlbs_; }

private:
    void fill(const std::vector<Tlb*>& chain, std::size_t k, const NaiveEntry& entry)
    {
        Tlb& tlb = *chain[k];
        ++tlb.counters.fills;
        const auto evicted = tlb.array.fill(entry);
        if (!evicted) return;
        ++tlb.counters.evictions;
        if (k + 1 < chain.size() &&
            (chain[k + 1]->spec.inclusion == Inclusion::exclusive || chain[k + 1]->spec.takes_evictions)) {
            fill(chain, k + 1, *evicted);
        }
        if (tlb.spec.inclusion != Inclusion::inclusive) return;
        for (Tlb& lower : tlbs_) {
            if (lower.spec.level < tlb.spec.level) lower.array.remove(*evicted);
        }
    }
    std::vector<Tlb> tlbs_;
};

}  // namespace

TEST_CASE("random accesses: levels of all relations", "[tlb]")
{
    constexpr unsigned kSeed = 99;
    std::mt19937_64 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](std::uint64_t end) { return static_cast<unsigned>(random() % end); };
    for (unsigned round = 0; round < 150; ++round) {
        INFO("round " << round);
        NaiveLevels expected;
        CpuProfile profile;
        const unsigned levels = 2 + below(2);
        const bool split = below(2) == 0;
        const auto add = [&](const std::string& name, unsigned number, const std::string& serves) {
            constexpr std::array<unsigned, 4> kWays{1, 2, 3, 4};
            constexpr std::array<unsigned, 3> kSets{1, 2, 4};
            const unsigned ways = kWays[below(4)] * number;
            const unsigned sets = kSets[below(3)];
            const std::string policy = kPolicies[below(kPolicies.size())];
            const unsigned groups = ways % 2 == 0 ? 2 : 1;
            TlbSpec spec = small::tlb(
                name, number, serves,
                {small::array(sets * ways, ways, k4K,
                              {.kind = *parse_replacement(policy), .groups = groups, .seed = random()})});
            if (sets > 1 && below(2) == 0) spec.arrays[0].index = xor_index(sets == 2 ? 1 : 2);
            if (number > 1) {
                spec.inclusion = static_cast<Inclusion>(below(3));
                spec.refills = below(4) != 0;
                spec.takes_evictions = below(3) == 0;
                spec.touched_by_earlier_hits = below(3) == 0;
            }
            profile.tlbs.tlbs.push_back(spec);
            expected.add(spec, policy, groups);
        };
        if (split) {
            add("l1i", 1, "f");
            add("l1d", 1, "ls");
        } else {
            add("l1", 1, "fls");
        }
        for (unsigned number = 2; number <= levels; ++number) add(fmt::format("l{}", number), number, "fls");

        PageGuest guest{profile};
        bool same = true;
        std::uint64_t page = 0;
        for (unsigned step = 0; step < 600 && same; ++step) {
            if (below(4) != 0) page = below(2) == 0 ? below(8) : below(64);
            const std::uint64_t address = PageGuest::kBase + (page << 12);
            if (below(30) == 0) {
                REQUIRE(guest.invlpg(address));
                expected.drop(address >> 12);
                continue;
            }
            const bool fetch = below(2) == 0;
            REQUIRE((fetch ? guest.fetch(address) : guest.read(address)).ok());
            expected.access(address >> 12, fetch);
            const MachineCounters counters = guest.machine.counters();
            for (std::size_t i = 0; i < counters.tlbs.size() && same; ++i) {
                same = counters.tlbs[i] == expected.tlbs()[i].counters;
                if (same) continue;
                INFO("step " << step << ", " << expected.tlbs()[i].spec.name);
                CHECK(counters.tlbs[i].lookups == expected.tlbs()[i].counters.lookups);
                CHECK(counters.tlbs[i].hits == expected.tlbs()[i].counters.hits);
                CHECK(counters.tlbs[i].fills == expected.tlbs()[i].counters.fills);
                CHECK(counters.tlbs[i].evictions == expected.tlbs()[i].counters.evictions);
            }
        }
        CHECK(same);
    }
}

// --- a policy of one's own
// ------------------------------------------------------------------------------------

namespace {

/// Evicts the way hit most often; needs to be told of each hit.
class MostHit final : public Replacement {
public:
    MostHit(unsigned sets, unsigned ways) : Replacement{sets, ways}, counts_(std::size_t{sets} * ways) {}
    unsigned victim(unsigned set, WayRange candidates) override
    {
        unsigned found = candidates.first;
        for (unsigned way = found; way < candidates.first + candidates.count; ++way) {
            if (counts_[set * ways_ + way] > counts_[set * ways_ + found]) found = way;
        }
        return found;
    }
    void filled(unsigned set, unsigned way) override { counts_[set * ways_ + way] = 0; }
    void hit(unsigned set, unsigned way) override { ++counts_[set * ways_ + way]; }

private:
    std::vector<unsigned> counts_;
};

}  // namespace

TEST_CASE("a policy of one's own hears of each hit", "[tlb]")
{
    ReplacementSpec policy;
    policy.custom = [](unsigned sets, unsigned ways) { return std::make_unique<MostHit>(sets, ways); };
    PageGuest guest{small::profile({small::tlb("l1", 1, "fls", {small::array(3, 3, k4K, policy)})})};
    CHECK(guest.touch_all({0, 1, 2, 1, 1, 1, 0, 0}) == Levels{0, 0, 0, 1, 1, 1, 1, 1});
    CHECK(guest.touch(3) == 0);  // evicts 1
    CHECK(guest.touch(4) == 0);  // evicts 0
    CHECK(guest.touch_all({2, 2, 3, 4}) == Levels{1, 1, 1, 1});
    CHECK(guest.touch_all({1, 2}) == Levels{0, 0});
}
