// SPDX-License-Identifier: Apache-2.0
//
// The table "Closed forms" of docs/timing.md, row by row, for every bundled profile, without tolerance: what
// an access takes and which label gets each of its cycles. A row that a profile cannot have is passed over
// where it says so.
#include <functional>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "storage/naive_replacement.hpp"
#include "support/catch.hpp"
#include "timing/timed_guest.hpp"

using namespace timed;

namespace {

constexpr std::array<AccessKind, 3> kKinds{AccessKind::fetch, AccessKind::read, AccessKind::write};
constexpr std::array<Paging, 4> kPagings{Paging::two_level, Paging::pae, Paging::four_level,
                                         Paging::five_level};
constexpr std::array<ClockMode, 3> kClocks{
    {{ClockKind::blocking, 0}, {ClockKind::window, 1}, {ClockKind::window, 16}}};

/// One profile under one clock.
struct Setup {
    std::shared_ptr<const CpuProfile> profile;
    ClockMode clock;
    bool program = true;

    [[nodiscard]] Figures figures() const { return {profile, program}; }
    [[nodiscard]] TimedGuest guest(Paging paging) const { return {paging, profile, clock, program}; }
    [[nodiscard]] std::string name() const
    {
        return fmt::format("{}, {}{}", profile->name, clock.name(), program ? "" : ", program: false");
    }
};

const std::vector<std::shared_ptr<const CpuProfile>>& profiles()
{
    static const auto all = [] {
        std::vector<std::shared_ptr<const CpuProfile>> list;
        for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
            list.push_back(std::make_shared<const CpuProfile>(find_cpu_profile(std::string{bundled.name})));
        }
        return list;
    }();
    return all;
}

void for_each_setup(const std::function<void(const Setup&)>& check)
{
    for (const auto& profile : profiles()) {
        for (const ClockMode& clock : kClocks) {
            for (const bool program : {true, false}) {
                const Setup setup{profile, clock, program};
                INFO(setup.name());
                check(setup);
            }
        }
    }
}

void compare(TimedGuest& guest, const std::vector<Way>& expected, const std::function<void()>& work)
{
    const Spent spent = guest.measure(work);
    CHECK(spent == attribute(expected));
    CHECK(guest.adds_up());
}

/// One access, which ends with its data in the nearest cache, or with a fetch of one block.
void compare(TimedGuest& guest, const Way& expected, AccessKind kind, std::uint64_t address)
{
    compare(guest, std::vector{expected}, [&] { guest.do_access(kind, address); });
}

/// The lowest level whose entries a paging-structure cache of the profile keeps, or one above the root's.
int level_of_resume(const Figures& figures, int leaf, int top)
{
    for (int level = leaf + 1; level <= top; ++level) {
        if (figures.has_structure_cache(level)) return level;
    }
    return top + 1;
}

EntryKind kind_of_page(Paging paging, int leaf)
{
    if (leaf == 1) return EntryKind::page_4k;
    if (leaf == 3) return EntryKind::page_1g;
    return paging == Paging::two_level ? EntryKind::page_4m : EntryKind::page_2m;
}

struct Home {
    const TlbArraySpec* array = nullptr;
    EntryView view;

    [[nodiscard]] std::uint64_t sets() const { return array->entries / view.stride; }
    [[nodiscard]] std::uint64_t set_of(std::uint64_t address) const
    {
        const std::uint64_t number = (address & 0x1ff'ffff'ffff'ffff) >> shift_of(view.kind);
        return naive::set_of(number, array->index.xor_masks, sets());
    }
};

/// Where a TLB has entries of a kind, if it has.
std::optional<Home> home_of(const TlbSpec& tlb, EntryKind kind)
{
    for (const TlbArraySpec& array : tlb.arrays) {
        for (const EntryView& view : array.views) {
            if (view.kind == kind) return Home{&array, view};
        }
    }
    return std::nullopt;
}

/// Has level 1 evict the page of an address, which the second level keeps. False if that can't be.
bool push_to_level_2(TimedGuest& guest, const Figures& figures, AccessKind kind, std::uint64_t address,
                     int leaf)
{
    const auto chain = figures.chain(kind);
    if (chain.size() < 2) return false;
    const EntryKind page = kind_of_page(guest.mode(), leaf);
    const auto first = home_of(*chain[0], page);
    const auto second = home_of(*chain[1], page);
    if (!first || !second) return false;
    // Other pages of the same table, in the same set of level 1 and another one of level 2.
    const std::uint64_t half = guest.mode() == Paging::two_level ? 512 : 256;
    const unsigned shift = guest.shift(leaf);
    const std::uint64_t base = address >> shift << shift & ~((half - 1) << shift);
    std::vector<std::uint64_t> others;
    for (std::uint64_t index = 0; index < half; ++index) {
        const std::uint64_t other = (base + (index << shift)) | (address & 0xfff);
        if (other >> shift == address >> shift) continue;
        if (first->set_of(other) != first->set_of(address)) continue;
        if (second->set_of(other) != second->set_of(address)) others.push_back(other);
    }
    const bool needs_more_rounds = first->array->replacement.kind != ReplacementKind::lru;
    const std::size_t wanted = first->view.ways * (needs_more_rounds ? 2u : 1u);
    if (others.size() < wanted) return false;
    for (const std::uint64_t other : others) guest.do_access(kind, other);
    return true;
}

}  // namespace

TEST_CASE("closed forms: hit in level 1", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            TimedGuest guest = setup.guest(paging);
            for (const AccessKind kind : kKinds) {
                if (figures.chain(kind).empty()) continue;  // no TLB: "none"
                for (int leaf = 1; leaf <= 3 && leaf <= guest.levels(); ++leaf) {
                    if (!guest.can_be_leaf(leaf)) continue;
                    INFO(name_of(paging) << ", " << name_of(kind) << ", leaf " << leaf);
                    const std::uint64_t address = guest.target(leaf);
                    guest.do_access(kind, address);
                    Way way;
                    figures.lookups(way, kind, 1);
                    figures.own(way, kind);
                    compare(guest, way, kind, address);
                    const Cycles own = kind == AccessKind::fetch
                                           ? setup.profile->timing.front_end.fetch_cycles
                                       : figures.memory() > 0 ? setup.profile->timing.data_caches[0].latency
                                       : setup.program        ? setup.profile->timing.memory_latency
                                                              : 0;
                    CHECK(way.now == figures.chain(kind)[0]->lookup_cycles + own);
                }
            }
        }
    });
}

TEST_CASE("closed forms: hit in level 2", "[timing]")
{
    std::set<std::string> seen;
    for_each_setup([&](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const AccessKind kind : kKinds) {
            for (const int leaf : {1, 2, 3}) {
                INFO(name_of(kind) << ", leaf " << leaf);
                TimedGuest guest = setup.guest(Paging::four_level);
                const std::uint64_t address = guest.target(leaf);
                guest.do_access(kind, address);
                // Passed over: no second level, none for that size, or none that keeps it that long.
                if (!push_to_level_2(guest, figures, kind, address, leaf)) continue;
                Way way;
                figures.lookups(way, kind, 2);
                figures.own(way, kind);
                compare(guest, way, kind, address);
                seen.insert(fmt::format("{} {}", setup.profile->name, leaf));
                // It has come to level 1.
                Way again;
                figures.lookups(again, kind, 1);
                figures.own(again, kind);
                compare(guest, again, kind, address);
            }
        }
    });
    for (const auto& profile : profiles()) {
        if (profile->name == "none") continue;
        INFO(profile->name);
        CHECK(seen.count(fmt::format("{} 1", profile->name)) == 1);
    }
    for (const char* const name : {"haswell 2", "skylake 2", "golden_cove 2", "zen2 2", "skylake 3"}) {
        INFO(name);
        CHECK(seen.count(name) == 1);
    }
}

TEST_CASE("closed forms: where the data is", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        if (!setup.program) return;  // touches no cache
        for (unsigned cache = 0; cache <= figures.memory(); ++cache) {
            for (const AccessKind kind : {AccessKind::read, AccessKind::write}) {
                INFO(figures.cache_name(cache) << ", " << name_of(kind));
                TimedGuest guest = setup.guest(Paging::four_level);
                const std::uint64_t address = guest.target(1);
                guest.do_access(kind, address);
                // Another line of the page: with paging off it is loaded, and driven out of the nearer
                // caches.
                const std::uint64_t line = 33 * 64;
                const std::uint64_t machine = TimedGuest::kData + line;
                if (cache < figures.memory()) {
                    std::vector<std::uint64_t> lines{machine};
                    if (cache > 0) {
                        const auto more = guest.rivals(machine, cache);
                        lines.insert(lines.end(), more.begin(), more.end());
                    }
                    guest.touch_lines(lines);
                    guest.do_access(kind, address);
                }
                Way way;
                if (!figures.chain(kind).empty()) {
                    figures.lookups(way, kind, 1);
                } else {
                    figures.start(way);
                    figures.loads(way, 4, 1);
                }
                figures.data(way, cache);
                compare(guest, way, kind, (address & ~std::uint64_t{0xfff}) | line);
            }
        }
    });
}

TEST_CASE("closed forms: walks from the root and from each paging-structure cache", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            for (const AccessKind kind : kKinds) {
                TimedGuest guest = setup.guest(paging);
                const int top = guest.top();
                for (int leaf = 1; leaf <= 3 && leaf <= top; ++leaf) {
                    if (!guest.can_be_leaf(leaf)) continue;
                    for (int hit = leaf + 1; hit <= top + 1; ++hit) {
                        // Passed over: the profile has no cache for that level. (top + 1: none hits.)
                        if (hit <= top && !figures.has_structure_cache(hit)) continue;
                        INFO(name_of(paging)
                             << ", " << name_of(kind) << ", leaf " << leaf << ", hit " << hit);
                        // The neighbour under the table that `hit` leads to shares all lines.
                        const std::uint64_t first = guest.target(leaf);
                        const bool pdpte = paging == Paging::pae && hit == top + 1;
                        const std::uint64_t address = guest.next(first, pdpte ? 3 : hit - 1);
                        REQUIRE(guest.mov_cr3(guest.root()));
                        guest.do_access(kind, first);
                        Way way;
                        figures.all_lookups(way, kind);
                        figures.start(way);
                        figures.loads(way, hit - 1, leaf);
                        figures.own(way, kind);
                        compare(guest, way, kind, address);
                    }
                }
            }
        }
    });
}

TEST_CASE("closed forms: a first walk ever", "[timing]")
{
    // Every table's entry in memory, and the data too.
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            for (const AccessKind kind : kKinds) {
                for (const int leaf : {1, 2, 3}) {
                    TimedGuest guest = setup.guest(paging);
                    if (leaf > guest.top() || !guest.can_be_leaf(leaf)) continue;
                    INFO(name_of(paging) << ", " << name_of(kind) << ", leaf " << leaf);
                    Way way;
                    figures.all_lookups(way, kind);
                    figures.start(way);
                    for (int level = guest.top(); level >= leaf; --level) {
                        figures.load(way, level, figures.memory());
                    }
                    if (kind == AccessKind::fetch) {
                        figures.fetch(way, 1);
                    } else {
                        figures.data(way, figures.memory());
                    }
                    compare(guest, way, kind, guest.target(leaf));
                }
            }
        }
    });
}

TEST_CASE("closed forms: a table entry in each cache, and in memory", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        if (!setup.program) return;  // the lines are arranged by the program's own loads
        const unsigned caches = figures.memory();
        for (const Paging paging : kPagings) {
            const int top = setup.guest(paging).top();
            for (int leaf = 1; leaf <= 3 && leaf <= top; ++leaf) {
                if (!setup.guest(paging).can_be_leaf(leaf)) continue;
                for (int far = leaf; far <= top; ++far) {
                    for (unsigned cache = 0; cache <= caches; ++cache) {
                        INFO(name_of(paging) << ", leaf " << leaf << ", level " << far << " in "
                                             << figures.cache_name(cache));
                        TimedGuest guest = setup.guest(paging);
                        const std::uint64_t address = guest.target(leaf);
                        const std::uint64_t page = leaf == 1 ? TimedGuest::kData : TimedGuest::kLarge;
                        std::vector<std::uint64_t> lines{page + (address & 0xfff)};
                        for (int level = leaf; level <= top; ++level) {
                            const std::uint64_t entry = guest.entry_address(address, level);
                            if (level != far || cache < caches) lines.push_back(entry);
                            if (level != far || cache == 0 || cache == caches) continue;
                            const auto more = guest.rivals(entry, cache);
                            lines.insert(lines.end(), more.begin(), more.end());
                        }
                        guest.touch_lines(lines);
                        Way way;
                        figures.all_lookups(way, AccessKind::read);
                        figures.start(way);
                        for (int level = top; level >= leaf; --level) {
                            figures.load(way, level, level == far ? cache : figures.nearest());
                        }
                        figures.own(way, AccessKind::read);
                        compare(guest, way, AccessKind::read, address);
                    }
                }
            }
        }
    });
}

TEST_CASE("closed forms: a walk that sets A or D", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            TimedGuest guest = setup.guest(paging);
            const int top = guest.top();
            for (int leaf = 1; leaf <= 3 && leaf <= top; ++leaf) {
                if (!guest.can_be_leaf(leaf)) continue;
                const std::uint64_t address = guest.target(leaf);
                const auto check = [&](AccessKind kind, bool assisted) {
                    // From the root, with all lines in the nearest cache.
                    REQUIRE(guest.mov_cr3(guest.root()));
                    Way way;
                    figures.all_lookups(way, kind);
                    figures.start(way);
                    figures.loads(way, top, leaf);
                    if (assisted) figures.assist(way);
                    figures.own(way, kind);
                    compare(guest, way, kind, address);
                };
                INFO(name_of(paging) << ", leaf " << leaf);
                guest.do_access(AccessKind::read, address);
                for (int level = leaf; level <= top; ++level) {
                    INFO("level " << level);
                    guest.clear_bits(address, level, A);
                    check(AccessKind::read, true);
                    check(AccessKind::read, false);
                }
                guest.clear_bits(address, leaf, D);
                check(AccessKind::read, false);
                check(AccessKind::write, true);
                check(AccessKind::write, false);
                // Once, however many bits.
                for (int level = leaf; level <= top; ++level) guest.clear_bits(address, level, A | D);
                check(AccessKind::write, true);
            }
        }
    });
}

TEST_CASE("closed forms: a write that hits an entry with D clear", "[timing]")
{
    std::set<std::string> seen;
    for_each_setup([&](const Setup& setup) {
        const Figures figures = setup.figures();
        const auto loads = figures.chain(AccessKind::read);
        const auto stores = figures.chain(AccessKind::write);
        if (stores.empty()) return;  // no TLB: "none"
        const bool split = loads[0] != stores[0];
        for (const Paging paging : kPagings) {
            for (const unsigned level : {1u, 2u}) {
                // Passed over: a store TLB of its own is filled by writes alone, and these set D.
                if (split && level == 1) continue;
                TimedGuest guest = setup.guest(paging);
                const std::uint64_t address = guest.target(1);
                guest.clear_bits(address, 1, D);
                guest.do_access(AccessKind::read, address);
                if (level == 2 && !split) {
                    REQUIRE(push_to_level_2(guest, figures, AccessKind::read, address, 1));
                }
                // The line of the entry is in the nearest cache by a neighbour's walk. The TLBs have the
                // clean entry, the paging-structure caches what leads to it.
                guest.do_access(AccessKind::read, guest.next(address, 1));
                INFO(name_of(paging) << ", level " << level);
                Way way;
                figures.lookups(way, AccessKind::write, level);
                figures.start(way);
                figures.loads(way, level_of_resume(figures, 1, guest.top()) - 1, 1);
                figures.assist(way);
                figures.own(way, AccessKind::write);
                compare(guest, way, AccessKind::write, address);
                seen.insert(fmt::format("{} {}", setup.profile->name, level));
                Way again;
                figures.lookups(again, AccessKind::write, 1);
                figures.own(again, AccessKind::write);
                compare(guest, again, AccessKind::write, address);
            }
        }
    });
    for (const char* const name : {"skylake 1", "skylake 2", "golden_cove 2", "zen4 1", "zen4 2"}) {
        CHECK(seen.count(name) == 1);
    }
}

TEST_CASE("closed forms: a match that denies the access", "[timing]")
{
    // A walk from the root, since what led to the page is dropped; asked for when that TLB has answered.
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            for (const AccessKind kind : {AccessKind::read, AccessKind::write}) {
                if (figures.chain(kind).empty()) continue;  // no TLB: "none"
                INFO(name_of(paging) << ", " << name_of(kind));
                TimedGuest guest = setup.guest(paging);
                const std::uint64_t address = guest.target(1);
                guest.clear_bits(address, 1, U);
                guest.do_access(kind, address);
                guest.set_bits(address, 1, U);
                Way way;
                figures.lookups(way, kind, 1);
                figures.start(way);
                figures.loads(way, guest.top(), 1);
                figures.own(way, kind);
                compare(guest, {way},
                        [&] { REQUIRE(guest.access(Guest::operand(kind, address, 1, true)).ok()); });
            }
        }
    });
}

TEST_CASE("closed forms: a walk that is done again from the root", "[timing]")
{
    // The entry from which it went on says less than the tables do now.
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        for (const Paging paging : kPagings) {
            TimedGuest guest = setup.guest(paging);
            const int resume = level_of_resume(figures, 1, guest.top());
            if (resume > guest.top()) continue;  // no paging-structure cache
            INFO(name_of(paging));
            const std::uint64_t first = guest.target(1);
            guest.clear_bits(first, resume, U);
            guest.do_access(AccessKind::read, first);
            guest.set_bits(first, resume, U);
            Way way;
            figures.all_lookups(way, AccessKind::read);
            figures.start(way);
            figures.loads(way, resume - 1, 1);
            figures.loads(way, guest.top(), 1);
            figures.own(way, AccessKind::read);
            const std::uint64_t address = guest.next(first, resume - 1);
            compare(guest, {way},
                    [&] { REQUIRE(guest.access(Guest::operand(AccessKind::read, address, 1, true)).ok()); });
        }
    });
}

TEST_CASE("closed forms: walks at once on a number of walkers", "[timing]")
{
    for (const auto& bundled : profiles()) {
        for (const unsigned width : {bundled->timing.front_end.issue_width, 1024u}) {
            auto profile = std::make_shared<CpuProfile>(*bundled);
            profile->timing.front_end.issue_width = width;
            for (const bool program : {true, false}) {
                for (const AccessKind kind : kKinds) {
                    const unsigned walkers = profile->timing.walker.count;
                    for (const unsigned number : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 13u, 16u, 29u}) {
                        const Setup setup{profile, {ClockKind::window, number <= 16 ? 16u : 64u}, program};
                        INFO(setup.name()
                             << ", " << name_of(kind) << ", " << number << " at " << width << " a cycle");
                        const Figures figures = setup.figures();
                        TimedGuest guest = setup.guest(Paging::four_level);
                        // One page of each line of entries has been used, so the lines are there, and the
                        // PDE.
                        const std::uint64_t first = guest.target(1);
                        std::vector<std::uint64_t> pages;
                        for (unsigned i = 0; pages.size() < number; ++i) {
                            const std::uint64_t page = first + (std::uint64_t{i} << 12);
                            if (i % 8 == 0) {
                                guest.do_access(kind, page);
                            } else {
                                pages.push_back(page);
                            }
                        }
                        std::vector<Way> ways;
                        std::vector<Cycles> ends;
                        for (unsigned i = 0; i < number; ++i) {
                            Way way{i / width};
                            figures.all_lookups(way, kind);
                            const Cycles asked = way.now;
                            if (i >= walkers) way.until("walk.wait", ends[i - walkers]);
                            const Cycles begun = way.now;
                            figures.start(way);
                            figures.loads(way, level_of_resume(figures, 1, 4) - 1, 1);
                            ends.push_back(way.now);
                            if (width == 1024)
                                CHECK(way.now == asked + (i / walkers + 1) * (way.now - begun));
                            figures.own(way, kind);
                            ways.push_back(way);
                        }
                        compare(guest, ways, [&] {
                            for (const std::uint64_t page : pages) guest.do_access(kind, page);
                        });
                    }
                }
            }
        }
    }
}

TEST_CASE("closed forms: a second access while the walk is under way", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        if (setup.clock.kind != ClockKind::window || setup.clock.window < 2) return;  // nothing overlaps
        const Cycles width = setup.profile->timing.front_end.issue_width;
        for (const AccessKind kind : kKinds) {
            if (figures.chain(kind).empty()) continue;  // no TLB: "none"
            for (const std::uint64_t gap : {std::uint64_t{0}, std::uint64_t{7}, std::uint64_t{1000}}) {
                INFO(name_of(kind) << ", gap " << gap);
                TimedGuest guest = setup.guest(Paging::four_level);
                const std::uint64_t first = guest.target(1);
                guest.do_access(kind, first);
                const std::uint64_t address = guest.next(first, 4);  // walks from the root
                Way walk;
                figures.all_lookups(walk, kind);
                figures.start(walk);
                figures.loads(walk, 4, 1);
                const Cycles end = walk.now;
                figures.own(walk, kind);
                // The second: a line that is in no cache, or a longer fetch, so that it ends last.
                Way second{(1 + gap) / width};
                figures.lookups(second, kind, 1);
                second.until("tlb." + figures.chain(kind)[0]->name, end);
                const Cycles there = std::max((1 + gap) / width + figures.chain(kind)[0]->lookup_cycles, end);
                CHECK(second.now == there);
                const std::uint64_t other = (address & ~std::uint64_t{0xfff}) | 20 * 64;
                const std::uint32_t bytes = kind == AccessKind::fetch ? 48 : 1;
                if (kind == AccessKind::fetch) {
                    figures.fetch(second, 3);
                } else {
                    figures.data(second, figures.memory());
                }
                compare(guest, {walk, second}, [&] {
                    guest.do_access(kind, address);
                    Operand operand = Guest::operand(kind, other, bytes);
                    operand.gap = gap;
                    REQUIRE(guest.access(operand).ok());
                });
            }
        }
    });
}

TEST_CASE("closed forms: a second access that finds the page under way in level 2", "[timing]")
{
    std::size_t seen = 0;
    for_each_setup([&](const Setup& setup) {
        const Figures figures = setup.figures();
        const auto loads = figures.chain(AccessKind::read);
        const auto stores = figures.chain(AccessKind::write);
        if (setup.clock.kind != ClockKind::window || setup.clock.window < 2) return;  // nothing overlaps
        if (loads.size() < 2 || loads[0] == stores[0]) return;  // not two first levels on one second
        ++seen;
        const Cycles width = setup.profile->timing.front_end.issue_width;
        TimedGuest guest = setup.guest(Paging::four_level);
        const std::uint64_t first = guest.target(1);
        guest.do_access(AccessKind::read, first);
        const std::uint64_t address = guest.next(first, 4);
        Way walk;
        figures.all_lookups(walk, AccessKind::read);
        figures.start(walk);
        figures.loads(walk, 4, 1);
        const Cycles end = walk.now;
        figures.own(walk, AccessKind::read);
        Way second{1 / width};
        figures.lookups(second, AccessKind::write, 2);
        second.until("tlb." + stores[1]->name, end);
        figures.data(second, figures.nearest());
        // And a third finds in its first level what the second has brought there, and waits as long.
        Way third{2 / width};
        figures.lookups(third, AccessKind::write, 1);
        third.until("tlb." + stores[0]->name, end);
        figures.data(third, figures.memory());
        compare(guest, {walk, second, third}, [&] {
            const std::uint64_t page = address & ~std::uint64_t{0xfff};
            guest.do_access(AccessKind::read, address);
            guest.do_access(AccessKind::write, address);
            guest.do_access(AccessKind::write, page | 21 * 64);
        });
    });
    CHECK(seen > 0);
}

TEST_CASE("closed forms: an access over two pages", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        const unsigned walkers = setup.profile->timing.walker.count;
        for (const Paging paging : kPagings) {
            for (const AccessKind kind : kKinds) {
                enum class Pages { both_hit, second_walks, first_walks, both_walk, both_from_root };
                for (const Pages pages : {Pages::both_hit, Pages::second_walks, Pages::first_walks,
                                          Pages::both_walk, Pages::both_from_root}) {
                    const bool tlbs = !figures.chain(kind).empty();
                    const bool from_root = pages == Pages::both_from_root;
                    if (!tlbs && !from_root) continue;  // no TLB: each page walks
                    INFO(name_of(paging) << ", " << name_of(kind) << ", case " << static_cast<int>(pages));
                    TimedGuest guest = setup.guest(paging);
                    const int top = guest.top();
                    const std::uint64_t target = guest.target(1) & ~std::uint64_t{0xfff};
                    // Lines and tables by another page of the same table; data: a page's first and last line.
                    const std::uint64_t other = guest.next(guest.next(target, 1), 1);
                    guest.do_access(kind, other);
                    guest.do_access(kind, other | 0xfff);
                    std::uint64_t low = target;
                    if (from_root) low = guest.next(target, paging == Paging::pae ? 3 : top);
                    const std::uint64_t high = low + 0x1000;
                    if (pages == Pages::both_hit || pages == Pages::second_walks) guest.do_access(kind, low);
                    if (pages == Pages::both_hit || pages == Pages::first_walks) guest.do_access(kind, high);

                    const bool low_walks = pages != Pages::both_hit && pages != Pages::second_walks;
                    const bool high_walks = pages != Pages::both_hit && pages != Pages::first_walks;
                    const int resume = level_of_resume(figures, 1, top);
                    Way first;
                    Cycles table_ready = 0;  // of the entry from which the second walk can go on
                    if (low_walks) {
                        figures.all_lookups(first, kind);
                        figures.start(first);
                        for (int level = from_root ? top : resume - 1; level >= 1; --level) {
                            figures.load(first, level, figures.nearest());
                            if (level == resume) table_ready = first.now;
                        }
                    } else {
                        figures.lookups(first, kind, 1);
                    }
                    Way second;
                    if (high_walks) {
                        figures.all_lookups(second, kind);
                        if (low_walks && walkers == 1) second.until("walk.wait", first.now);
                        figures.start(second);
                        second.until("walk.wait", table_ready);
                        figures.loads(second, resume - 1, 1);
                    } else {
                        figures.lookups(second, kind, 1);
                    }
                    Way whole = second.now > first.now ? second : first;
                    if (kind == AccessKind::fetch) {
                        figures.fetch(whole, 2);
                    } else {
                        figures.data(whole, figures.nearest());
                    }
                    compare(guest, {whole}, [&] { guest.do_access(kind, high - 4, 8); });
                }
            }
        }
    });
}

TEST_CASE("closed forms: a fetch takes its time for each 16 bytes", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        TimedGuest guest = setup.guest(Paging::four_level);
        const std::uint64_t page = guest.target(1) & ~std::uint64_t{0xfff};
        guest.do_access(AccessKind::fetch, page);
        for (const std::uint32_t bytes : {1u, 2u, 15u, 16u, 17u, 32u, 33u, 255u, 4096u}) {
            for (const std::uint64_t offset : {0u, 1u, 15u, 16u, 31u, 2048u}) {
                if (offset + bytes > 4096) continue;
                INFO(bytes << " bytes at " << offset);
                std::set<std::uint64_t> blocks;
                for (std::uint64_t at = offset; at < offset + bytes; ++at) blocks.insert(at / 16);
                Way way;
                if (figures.chain(AccessKind::fetch).empty()) {
                    figures.start(way);
                    figures.loads(way, 4, 1);
                } else {
                    figures.lookups(way, AccessKind::fetch, 1);
                }
                figures.fetch(way, static_cast<unsigned>(blocks.size()));
                compare(guest, {way}, [&] { guest.do_access(AccessKind::fetch, page + offset, bytes); });
            }
        }
    });
}

TEST_CASE("closed forms: without paging", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        const Figures figures = setup.figures();
        TimedGuest guest = setup.guest(Paging::four_level);
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        Way far;
        figures.data(far, figures.memory());
        compare(guest, far, AccessKind::read, 0x12'3456);
        Way near;
        figures.data(near, figures.nearest());
        compare(guest, near, AccessKind::write, 0x12'3456);
        Way fetch;
        figures.fetch(fetch, 1);
        compare(guest, fetch, AccessKind::fetch, 0x12'3456);
    });
}

TEST_CASE("closed forms: instructions that are no accesses", "[timing]")
{
    for_each_setup([](const Setup& setup) {
        TimedGuest guest = setup.guest(Paging::four_level);
        const InstructionSpec& costs = setup.profile->timing.instructions;
        const auto check = [&](const char* label, Cycles cycles, const std::function<bool()>& work) {
            INFO(label);
            Way way;
            way.spend(label, cycles);
            compare(guest, {way}, [&] { CHECK(work()); });
        };
        check("system.mov_cr", costs.mov_cr, [&] { return guest.set_cr4(cr4::kPge, true); });
        check("system.mov_cr", costs.mov_cr, [&] { return !guest.machine.wrmsr(0, efer::kMsr, 0xd01); });
        check("system.mov_cr3", costs.mov_cr3, [&] { return guest.mov_cr3(guest.root()); });
        check("system.invlpg", costs.invlpg, [&] { return guest.invlpg(0); });
        for (std::uint64_t type = 0; type < 4; ++type) {
            check("system.invpcid", costs.invpcid,
                  [&] { return !guest.machine.invpcid(0, type, 0, LinearAddress{0}); });
        }
        // A fault: the walk up to where it ends, then the delivery.
        const Figures figures = setup.figures();
        const std::uint64_t address = guest.target(1);
        guest.clear_bits(address, 1, P);
        REQUIRE(guest.mov_cr3(guest.root()));
        Way way;
        figures.all_lookups(way, AccessKind::read);
        figures.start(way);
        for (int level = 4; level >= 1; --level) figures.load(way, level, figures.memory());
        way.spend("guest_fault", costs.page_fault);
        compare(guest, {way}, [&] { CHECK_FALSE(guest.read(address).ok()); });
    });
}
