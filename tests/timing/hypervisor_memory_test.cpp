// SPDX-License-Identifier: Apache-2.0
//
// The hypervisor's accesses to guest tables and shadows go through the data caches (docs/timing.md, "Under
// shadows"): closed forms, counted by hand, on a machine whose other work costs nothing.
#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kWindow = 0x4000'0000;  ///< maps tables; under other tables than kLinear
constexpr Cycles kNear = 10;
constexpr Cycles kMemory = 1000;
constexpr unsigned kMisses = 16;
constexpr Cycles kWholePage = 64 / kMisses * kMemory;  ///< of 64 lines, none of which is near

/// One cache that holds all that these tests touch; no TLB.
std::shared_ptr<CpuProfile> bare_profile()
{
    auto profile = std::make_shared<CpuProfile>();
    CacheSpec cache;
    cache.name = "near";
    cache.sets = 4096;
    cache.ways = 8;
    cache.latency = kNear;
    cache.misses_in_flight = kMisses;
    profile->timing.data_caches = {cache};
    profile->timing.memory_latency = kMemory;
    profile->timing.hypervisor = {};
    return profile;
}

using CyclesBy = std::map<std::string, Cycles>;

class Timed {
public:
    Guest guest;

    Timed(const std::string& policy, std::shared_ptr<const CpuProfile> profile,
          ClockKind clock = ClockKind::blocking, unsigned vcpus = 1)
        : guest{Paging::four_level, config(policy, std::move(profile), clock, vcpus)}
    {
    }
    [[nodiscard]] CyclesBy by() const
    {
        CyclesBy cycles;
        const auto& spent = guest.machine.clock()->by();
        for (std::size_t i = 0; i < spent.size(); ++i)
            cycles[guest.machine.cycle_labels().name(static_cast<Label>(i))] += spent[i];
        return cycles;
    }
    /// Cycles by label since the last call. They are all.
    CyclesBy take()
    {
        CyclesBy now = by();
        Cycles sum = 0;
        for (const auto& [label, cycles] : now) sum += cycles;
        CHECK(sum == guest.machine.clock()->now());
        CyclesBy more;
        for (const auto& [label, cycles] : now) {
            if (cycles != last_[label]) more[label] = cycles - last_[label];
        }
        last_ = std::move(now);
        return more;
    }

private:
    static MachineConfig config(const std::string& policy, std::shared_ptr<const CpuProfile> profile,
                                ClockKind clock, unsigned vcpus)
    {
        Options options = under(policy);
        options.vcpus = vcpus;
        MachineConfig config = config_of(options);
        config.cpu = std::move(profile);
        config.clock = clock;
        config.window = clock == ClockKind::window ? 16 : 0;
        return config;
    }
    CyclesBy last_;
};

}  // namespace

TEST_CASE("hypervisor memory: a fault on a cold machine, and one on a warm one", "[timing]")
{
    for (const ClockKind clock : {ClockKind::blocking, ClockKind::window}) {
        Timed timed{"write-protect", bare_profile(), clock};
        Guest& guest = timed.guest;
        guest.map(kLinear, 0x101'000);
        guest.map(kLinear + 0x1000, 0x102'000);
        (void)timed.take();
        CHECK(guest.read(kLinear, 1).ok());
        CyclesBy spent = timed.take();
        // Four guest entries, each in a line of its own; three shadows cleared.
        CHECK(spent["hypervisor.data.memory"] == 4 * kMemory + 3 * kWholePage);
        // On three levels the entry is looked at (the first one by the hardware before) and set; and the
        // leaf.
        CHECK(spent["hypervisor.data.near"] == 7 * kNear);
        // The hardware's walks: the entry of the top table, then all four, which are near by now.
        CHECK(spent["walk.pml4e.memory"] == kMemory);
        CHECK(spent["walk.pml4e.near"] + spent["walk.pdpte.near"] + spent["walk.pde.near"] +
                  spent["walk.pte.near"] ==
              4 * kNear);
        CHECK(spent["data.memory"] == kMemory);
        CHECK(spent.size() == 8);  // nothing else took any time

        // The neighbour: the same lines.
        CHECK(guest.read(kLinear + 0x1000, 1).ok());
        spent = timed.take();
        CHECK(spent["hypervisor.data.near"] == (4 + 3 + 1) * kNear);
        CHECK(spent.count("hypervisor.data.memory") == 0);
        CHECK(spent["data.memory"] == kMemory);
    }
}

TEST_CASE("hypervisor memory: what it has loaded is near for the guest", "[timing]")
{
    // The guest reads its own level-1 table where the hypervisor's walk has just been.
    Timed timed{"write-protect", bare_profile()};
    Guest& guest = timed.guest;
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = guest.entry_at(kLinear, 1);
    guest.map(kWindow, entry & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear, 1).ok());
    (void)timed.take();
    CHECK(guest.read(kWindow | (entry & 0xfff), 8).ok());
    CyclesBy spent = timed.take();
    CHECK(spent["data.near"] == kNear);
    CHECK(spent.count("data.memory") == 0);
}

TEST_CASE("hypervisor memory: an emulated write and what it propagates", "[timing]")
{
    Timed timed{"write-protect", bare_profile(), ClockKind::blocking, 2};
    Guest& guest = timed.guest;
    guest.map(kLinear, 0x101'000);
    const std::uint64_t at = guest.entry_at(kLinear, 1);
    guest.map(kWindow, at & ~std::uint64_t{0xfff});
    const std::uint64_t entry = kWindow | (at & 0xfff);
    CHECK(guest.read(kLinear, 1, 1).ok());
    CHECK(guest.read(entry, 8, 1).ok());
    CHECK(guest.store(entry, 0x102'000 | kAll, 8, 1).emulated());
    (void)timed.take();
    const std::uint64_t walks = guest.counters().guest_walk;
    CHECK(guest.store(entry, 0x103'000 | kAll, 8, 1).emulated());
    CyclesBy spent = timed.take();
    // Each walk reads four entries, three levels of shadows are looked at; the store, the entry read again
    // to propagate it, and the shadow's entry set.
    const std::uint64_t read = 4 * (guest.counters().guest_walk - walks);
    CHECK(spent["hypervisor.data.near"] == (read + 3 + 3) * kNear);
    CHECK(spent.count("hypervisor.data.memory") == 0);
    // The caches are those of the vCPU that it was done for: the other one's are cold.
    CHECK(guest.store(entry, 0x102'000 | kAll, 8, 0).emulated());
    spent = timed.take();
    CHECK(spent["hypervisor.data.memory"] >= 4 * kMemory);
}

TEST_CASE("hypervisor memory: a table copied, searched for, repaired", "[timing]")
{
    Timed timed{"xen", bare_profile()};
    Guest& guest = timed.guest;
    guest.map(kLinear, 0x101'000);
    const std::uint64_t at = guest.entry_at(kLinear, 1);
    guest.map(kWindow, at & ~std::uint64_t{0xfff});
    const std::uint64_t entry = kWindow | (at & 0xfff);
    CHECK(guest.read(kLinear, 1).ok());
    CHECK(guest.read(entry, 8).ok());
    (void)timed.take();
    CHECK_FALSE(guest.store(entry, 0x102'000 | kAll).emulated());
    // The snapshot: all lines of the guest's table, of which one was near.
    CyclesBy spent = timed.take();
    CHECK(spent["hypervisor.data.memory"] == kWholePage);
    // Now the table is near, and its shadow since it was made: comparing them takes no access to memory.
    REQUIRE(guest.mov_cr3(guest.root()));
    spent = timed.take();
    CHECK(spent.count("hypervisor.data.memory") == 0);
    CHECK(spent["hypervisor.data.near"] > 0);
}

TEST_CASE("hypervisor: a prefetched entry has a price of its own", "[timing]")
{
    for (const unsigned pages : {1u, 2u, 7u, 40u}) {
        auto profile = bare_profile();
        profile->timing.hypervisor.propagate = 1000;
        profile->timing.hypervisor.prefetch = 3;
        Timed timed{"xen", profile};
        for (unsigned i = 0; i < pages; ++i) timed.guest.map(kLinear + i * 0x1000, 0x101'000 + i * 0x1000);
        (void)timed.take();
        CHECK(timed.guest.read(kLinear, 1).ok());
        CyclesBy spent = timed.take();
        CHECK(spent["hypervisor.prefetch"] == 3 * (std::min(pages, 32u) - 1));
        CHECK(spent["hypervisor.propagate"] == 4 * 1000);  // three links and the page's own
    }
}

TEST_CASE("hypervisor memory: not without data caches, nor without a clock", "[timing]")
{
    auto profile = bare_profile();
    profile->timing.data_caches.clear();
    Timed timed{"xen", profile};
    timed.guest.map(kLinear, 0x101'000);
    CHECK(timed.guest.read(kLinear, 1).ok());
    for (const auto& [label, cycles] : timed.by()) CHECK_FALSE(label.starts_with("hypervisor.data"));

    Timed native{"xen", bare_profile()};
    const CycleLabels& labels = native.guest.machine.cycle_labels();
    unsigned of_hypervisor = 0;
    for (std::size_t i = 0; i < labels.size(); ++i) {
        const auto label = static_cast<Label>(i);
        CHECK(labels.of_hypervisor(label) == labels.name(label).starts_with("hypervisor."));
        of_hypervisor += labels.of_hypervisor(label) ? 1 : 0;
    }
    CHECK(of_hypervisor == 17 + 2);
}

TEST_CASE("hypervisor: a flush of all vCPUs interrupts all but the one that exited", "[timing]")
{
    for (const unsigned vcpus : {1u, 2u, 4u}) {
        auto profile = bare_profile();
        profile->timing.hypervisor.flush = 10;
        profile->timing.hypervisor.ipi = 100;
        Timed timed{"xen", profile, ClockKind::blocking, vcpus};
        Guest& guest = timed.guest;
        guest.map(kLinear, 0x101'000);
        const std::uint64_t at = guest.entry_at(kLinear, 1);
        guest.map(kWindow, at & ~std::uint64_t{0xfff});
        CHECK(guest.read(kLinear, 1, vcpus - 1).ok());
        CHECK_FALSE(guest.store(kWindow | (at & 0xfff), 0x102'000 | kAll, 8, vcpus - 1).emulated());
        (void)timed.take();
        // The table's writable mapping goes: no vCPU may use it any more.
        REQUIRE(guest.mov_cr3(guest.root(), vcpus - 1));
        CyclesBy spent = timed.take();
        CHECK(spent["hypervisor.flush"] == 10 * vcpus);
        CHECK(spent["hypervisor.ipi"] == 100 * (vcpus - 1));
    }
}
