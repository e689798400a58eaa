// SPDX-License-Identifier: Apache-2.0
//
// Log-dirty under shadows (reference/xen.md B15, S8 of H2): what is marked, what it costs, and that no write
// is ever missing from the set.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "support/stress.hpp"

using namespace guest;
using Action = LogDirtyAction;
using Home = reference::Paging;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;

std::vector<std::uint64_t> numbers(const std::vector<Gfn>& frames)
{
    std::vector<std::uint64_t> all;
    for (const Gfn frame : frames) all.push_back(frame.number());
    return all;
}

using Frames = std::vector<std::uint64_t>;

/// A guest with four pages, dirty in its tables, log-dirty on.
Guest logged_guest(const std::string& policy = "xen", unsigned vcpus = 1)
{
    Options options = under(policy);
    options.vcpus = vcpus;
    Guest guest{Paging::four_level, options};
    for (std::uint64_t i = 0; i < 4; ++i) guest.map(kLinear + i * 0x1000, 0x100'000 + i * 0x1000);
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    return guest;
}

Frames peeked(Guest& guest)
{
    const LogDirtyAnswer answer = guest.machine.log_dirty(Action::peek);
    CHECK(answer.rc == 0);
    CHECK(answer.dirty_count == answer.frames.size());
    return numbers(answer.frames);
}

Frames cleaned(Guest& guest)
{
    const LogDirtyAnswer answer = guest.machine.log_dirty(Action::clean);
    CHECK(answer.rc == 0);
    return numbers(answer.frames);
}

std::uint64_t shadow_leaf(Guest& guest, std::uint64_t linear)
{
    for (const ShadowId id : guest.shadows().leaf_shadows()) {
        const ShadowSlot slot{id, static_cast<std::uint16_t>(linear >> 12 & 511)};
        if (guest.shadows()[id].key.type.splinter) continue;
        if (guest.shadows().entry(slot) != 0) return guest.shadows().entry(slot);
    }
    return 0;
}

}  // namespace

TEST_CASE("xen S8: log-dirty", "[machine]")
{
    Guest guest{Paging::four_level, under("xen")};
    for (std::uint64_t i = 0; i < 4; ++i) guest.map(kLinear + i * 0x1000, 0x100'000 + i * 0x1000);
    CHECK(guest.write(kLinear).ok());
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    CHECK(guest.shadows().all().empty());
    CHECK(guest.machine.log_dirty(Action::enable).rc == -22);

    // A read fault installs read-only entries, though the guest's are dirty; so does the prefetch.
    std::uint64_t faults = guest.counters().fault;
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().fault == ++faults);
    CHECK((shadow_leaf(guest, kLinear) & (P | W)) == P);
    CHECK((shadow_leaf(guest, kLinear + 0x3000) & (P | W)) == P);
    CHECK(peeked(guest).empty());

    // The first write to a clean page costs one fault, which marks it.
    CHECK(guest.store(kLinear + 0x1000, 1).ok());
    CHECK(guest.counters().fault == ++faults);
    CHECK((shadow_leaf(guest, kLinear + 0x1000) & (P | W)) == (P | W));
    CHECK((shadow_leaf(guest, kLinear) & (P | W)) == P);
    CHECK(guest.store(kLinear + 0x1008, 2).ok());
    CHECK(guest.store(kLinear + 0x1ff8, 3).ok());
    CHECK(guest.counters().fault == faults);
    CHECK(guest.store(kLinear + 0x2000, 4).ok());
    CHECK(guest.counters().fault == ++faults);

    // Peek copies, clean empties and makes everything read-only again.
    LogDirtyAnswer answer = guest.machine.log_dirty(Action::peek);
    CHECK(numbers(answer.frames) == Frames{0x101, 0x102});
    CHECK(answer.fault_count == 3);
    CHECK(answer.dirty_count == 2);
    CHECK(guest.store(kLinear + 0x1000, 5).ok());
    CHECK(guest.counters().fault == faults);
    answer = guest.machine.log_dirty(Action::clean);
    CHECK(numbers(answer.frames) == Frames{0x101, 0x102});
    CHECK(answer.fault_count == 3);
    CHECK(answer.dirty_count == 2);
    CHECK(guest.shadows().all().empty());
    answer = guest.machine.log_dirty(Action::peek);
    CHECK(answer.frames.empty());
    CHECK(answer.fault_count == 0);
    CHECK(answer.dirty_count == 0);
    CHECK(guest.store(kLinear + 0x1000, 6).ok());
    CHECK(guest.counters().fault == ++faults);
    answer = guest.machine.log_dirty(Action::peek);
    CHECK(numbers(answer.frames) == Frames{0x101});
    CHECK(answer.fault_count == 1);
    CHECK(answer.dirty_count == 1);

    // Over all: two times on, three reads, one of which emptied the set.
    const LogDirtyCounters counters = guest.machine.counters().log_dirty;
    CHECK(counters.fault_count == 4);
    CHECK(counters.dirty_count == 3);
    CHECK(counters.enables == 1);
    CHECK(counters.cleans == 1);
    CHECK(counters.pages_of_trie == 4);
    const std::uint64_t in_use = guest.counters().alloc_count;
    CHECK(guest.machine.log_dirty(Action::disable).rc == 0);
    CHECK(guest.counters().alloc_count == in_use - 4);
    CHECK(guest.machine.counters().log_dirty.pages_of_trie == 0);
    for (const Action action : {Action::peek, Action::clean, Action::disable})
        CHECK(guest.machine.log_dirty(action).rc == -22);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("log-dirty: pages marked by one mapping are writable by all", "[machine]")
{
    Guest guest = logged_guest();
    guest.map(0x80'0000, 0x100'000);
    (void)cleaned(guest);
    CHECK(guest.store(kLinear, 1).ok());
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.store(0x80'0000, 2).ok());  // not there yet
    CHECK(guest.counters().fault == faults + 1);
    CHECK(guest.read(kLinear + 0x1000).ok());  // prefetched
    CHECK(guest.counters().fault == faults + 1);
    CHECK(peeked(guest) == Frames{0x100});
}

TEST_CASE("log-dirty: who else writes", "[machine]")
{
    Guest guest = logged_guest("write-protect");
    SECTION("the hypervisor, for someone outside")
    {
        guest.poke(0x105'000, 1);
        CHECK(peeked(guest) == Frames{0x105});
        guest.machine.clear_frame(Gfn{0x106});
        CHECK(peeked(guest) == Frames{0x105, 0x106});
    }
    SECTION("its walk, which sets accessed and dirty bits")
    {
        guest.set_entry(kLinear, 1, 0x100'000 | P | W | U);
        (void)cleaned(guest);
        const std::uint64_t table = guest.entry_at(kLinear, 1) >> 12;
        CHECK(guest.read(kLinear).ok());
        CHECK(cleaned(guest) == Frames{table});
        CHECK(guest.read(kLinear).ok());
        CHECK(peeked(guest).empty());
        CHECK(guest.write(kLinear).ok());
        CHECK(cleaned(guest) == Frames{table, 0x100});
        guest.set_entry(kLinear, 3, guest.entry(kLinear, 3) & ~A);
        (void)cleaned(guest);
        CHECK(guest.read(kLinear).ok());
        CHECK(cleaned(guest) == Frames{guest.entry_at(kLinear, 3) >> 12});
    }
    SECTION("its emulation of writes to tables")
    {
        const std::uint64_t table = guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff};
        guest.map(0x80'0000, table);
        (void)cleaned(guest);
        CHECK(guest.read(kLinear).ok());
        for (unsigned i = 0; i < 3; ++i) {
            const Seen seen = guest.store(0x80'0000 + 8 * i, 0x107'000 | kAll);
            CHECK(seen.emulated());
            CHECK(cleaned(guest) == Frames{table >> 12});
            CHECK(guest.read(kLinear).ok());
        }
        CHECK(guest.counters().fault_emulate_write > 0);
    }
    SECTION("a change of the P2M, for memory that is new")
    {
        CHECK_FALSE(guest.machine.set_p2m(Gfn{0x101}, 1, P2mType::ram_ro, MemAccess::rwx, std::nullopt));
        CHECK(peeked(guest).empty());
        CHECK(guest.store(kLinear + 0x1000, 1).ok());  // discarded
        CHECK(peeked(guest).empty());
        CHECK_FALSE(guest.machine.set_p2m(Gfn{0x102}, 1, P2mType::ram_rw, MemAccess::rwx, Mfn{0x7000}));
        CHECK(peeked(guest) == Frames{0x102});
        CHECK_FALSE(
            guest.machine.set_p2m(Gfn{0x103}, 1, P2mType::populate_on_demand, MemAccess::rwx, std::nullopt));
        CHECK(guest.read(kLinear + 0x3000).ok());
        CHECK(peeked(guest) == Frames{0x102, 0x103});
    }
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("log-dirty: a write that faults marks nothing", "[machine]")
{
    Guest guest = logged_guest();
    guest.set_entry(kLinear + 0x1000, 1, 0);
    (void)cleaned(guest);
    CHECK_FALSE(guest.write(kLinear + 0xffc, 8).ok());
    CHECK(peeked(guest).empty());
    guest.set_entry(kLinear + 0x1000, 1, 0x101'000 | kAll);
    (void)cleaned(guest);
    CHECK(guest.write(kLinear + 0xffc, 8).ok());
    CHECK(peeked(guest) == Frames{0x100, 0x101});
}

TEST_CASE("log-dirty: pieces of a superpage", "[machine]")
{
    Guest guest{Paging::four_level, under("xen")};
    guest.map(0x20'0000, 0x20'0000, kAll, 2);
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    CHECK(guest.read(0x20'0000).ok());
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.write(0x20'5000).ok());  // prefetched, read-only
    CHECK(guest.counters().fault == faults + 1);
    CHECK(guest.write(0x20'7000).ok());
    CHECK(guest.counters().fault == faults + 2);
    CHECK(guest.write(0x20'5000).ok());
    CHECK(guest.counters().fault == faults + 2);
    CHECK(peeked(guest) == Frames{0x205, 0x207});
}

TEST_CASE("log-dirty: natively nobody sees", "[machine]")
{
    Guest guest{Paging::four_level, native()};
    CHECK(guest.machine.log_dirty(Action::enable).rc == -22);
}

TEST_CASE("log-dirty: what TLBs hold is flushed when it begins and when the set is emptied", "[machine]")
{
    for (const unsigned vcpus : {1u, 2u, 4u}) {
        Options options = under("xen");
        options.vcpus = vcpus;
        MachineConfig config = config_of(options);
        config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile("golden_cove"));
        Guest guest{Paging::four_level, config};
        guest.map(kLinear, 0x100'000);
        const auto write_on_all = [&] {
            for (unsigned vcpu = 0; vcpu < vcpus; ++vcpu) CHECK(guest.write(kLinear, 8, vcpu).ok());
        };
        write_on_all();
        CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
        for (unsigned vcpu = 0; vcpu < vcpus; ++vcpu) {
            CHECK(guest.machine.audit().empty());
            CHECK(peeked(guest).empty());
            CHECK(guest.write(kLinear, 8, vcpu).ok());
            CHECK(cleaned(guest) == Frames{0x100});
            write_on_all();
            CHECK(cleaned(guest) == Frames{0x100});
        }
    }
}

// The set's pages come from the shadows' pool. What a fault has just made must not go to make room for them:
// room for both is made first.
TEST_CASE("XSA-427: the first write to a region, the pool nearly empty", "[machine]")
{
    MachineConfig config = config_of(under("xen"));
    config.shadow_pool_pages = 160;
    Guest guest{Paging::four_level, config};
    constexpr std::uint64_t kRegion = 0x20'0000;            // of a table of level 1
    constexpr std::uint64_t kFar = std::uint64_t{1} << 39;  // its path is its own below the root
    guest.map(kFar, std::uint64_t{0x100'000} << 12);
    for (std::uint64_t i = 0; i < 160; ++i) guest.map(i * kRegion, 0x100'000);
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    // Tables under the root that runs fill the pool: nothing can be unpinned for others.
    for (std::uint64_t i = 0; guest.shadows().free_pages() > 6; ++i) CHECK(guest.read(i * kRegion).ok());
    CHECK(guest.shadows().free_pages() == 6);
    CHECK(guest.machine.counters().log_dirty.pages_of_trie == 0);
    CHECK(guest.counters().prealloc_2 == 0);
    // Three shadows and four pages of the set.
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.write(kFar).ok());
    CHECK(guest.write(kFar).ok());
    CHECK(guest.counters().fault == faults + 1);
    CHECK(guest.counters().prealloc_2 == 1);
    CHECK(guest.machine.counters().log_dirty.failed_allocations == 0);
    CHECK(guest.machine.counters().log_dirty.pages_of_trie == 4);
    CHECK(peeked(guest) == Frames{0x100'000});
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("log-dirty: a set that gets no pages cannot be read", "[machine]")
{
    MachineConfig config = config_of(under("xen"));
    config.shadow_pool_pages = 128;  // Xen's floor for a vCPU: nothing is given away
    Guest guest{Paging::four_level, config};
    guest.map(kLinear, 0x100'000);
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    CHECK(guest.machine.log_dirty(Action::peek).rc == 0);
    CHECK(guest.store(kLinear, 1).ok());
    CHECK(guest.machine.counters().log_dirty.failed_allocations > 0);
    CHECK(guest.machine.log_dirty(Action::peek).rc == -12);
    CHECK(guest.machine.log_dirty(Action::clean).rc == -12);
    CHECK(guest.machine.log_dirty(Action::disable).rc == 0);
    CHECK(guest.machine.log_dirty(Action::enable).rc == 0);
    CHECK(guest.machine.log_dirty(Action::peek).rc == 0);
    CHECK(guest.machine.audit().empty());
}

namespace {

void check_programs(Home home, std::uint64_t first_seed, std::uint64_t programs)
{
    std::vector<stress::Contestant> contestants;
    for (stress::Contestant& one : stress::contestants()) {
        if (one.name == "native" || one.name == "nested") continue;
        contestants.push_back(one);
        // Every one also with TLBs, which are what could keep a write from being seen.
        contestants.push_back({one.name + " with TLBs", [one](std::uint64_t seed) {
                                   stress::Setup setup = one.make(seed);
                                   setup.config.cpu = "golden_cove";
                                   return setup;
                               }});
    }
    std::vector<stress::Coverage> coverage;
    const auto found = stress::run({home, first_seed, programs, 500, {25, 0, 10}}, contestants, coverage);
    if (found) FAIL(stress::report(*found, home));
    for (const stress::Coverage& seen : coverage) CHECK(seen.dirty * 10 > seen.steps);
}

}  // namespace

TEST_CASE("no write is lost: 2-level programs", "[machine]")
{
    check_programs(Home::two_level, 1, 4);
}

TEST_CASE("no write is lost: PAE programs", "[machine]")
{
    check_programs(Home::pae, 1, 4);
}

TEST_CASE("no write is lost: 4-level programs", "[machine]")
{
    check_programs(Home::four_level, 1, 4);
}

TEST_CASE("no write is lost: 5-level programs", "[machine]")
{
    check_programs(Home::five_level, 1, 4);
}

TEST_CASE("no write is lost: many programs", "[machine][slow]")
{
    for (const Home home : {Home::two_level, Home::pae, Home::four_level, Home::five_level})
        check_programs(home, 1000, 12);
}
