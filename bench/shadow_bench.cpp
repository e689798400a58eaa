// SPDX-License-Identifier: Apache-2.0
//
// The hypervisor's side alone, no TLBs and no clock: what a shadow fault costs the host, and what a search
// through all shadows for writable mappings. Items are faults; entries searched.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include <mmusim/machine/machine.hpp>

namespace {

using namespace mmusim;

constexpr std::uint64_t kAll = pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed | pte::kDirty;
constexpr std::uint64_t kTables = 64;     ///< level-1 tables of 512 pages
constexpr std::uint64_t kRoot = 0x100;    ///< frames: root, level 3, level 2, another level 2, level-1 tables
constexpr std::uint64_t kPages = 0x1000;  ///< first frame that they map
constexpr std::uint64_t kOtherRegion = std::uint64_t{1} << 30;

class BenchGuest {
public:
    explicit BenchGuest(const std::string& policy, bool heuristic = true) : machine{config(policy, heuristic)}
    {
        set(kRoot, 0, kRoot + 1);
        set(kRoot + 1, 0, kRoot + 2);
        set(kRoot + 1, 1, kRoot + 3);
        for (std::uint64_t table = 0; table < kTables; ++table) {
            set(kRoot + 2, table, kRoot + 4 + table);
            for (std::uint64_t i = 0; i < 512; ++i) set(kRoot + 4 + table, i, kPages + table * 512 + i);
        }
        Registers registers;
        registers.cr0 = cr0::kPg | cr0::kWp | cr0::kPe;
        registers.cr3 = kRoot << kPageShift;
        registers.cr4 = cr4::kPae;
        registers.efer = efer::kLme;
        if (machine.set_registers(0, registers)) std::abort();
    }

    void set(std::uint64_t table, std::uint64_t index, std::uint64_t frame)
    {
        const std::uint64_t entry = frame == 0 ? 0 : frame << kPageShift | kAll;
        machine.poke(GuestPhysical{(table << kPageShift) + index * 8}, std::as_bytes(std::span{&entry, 1}));
    }
    void touch(AccessKind kind, std::uint64_t linear)
    {
        Operand operand;
        operand.address = LinearAddress{linear};
        operand.kind = kind;
        if (!machine.access(0, operand)) std::abort();
    }

    Machine machine;

private:
    static MachineConfig config(const std::string& policy, bool heuristic)
    {
        MachineConfig config;
        config.cpuid.nx = true;
        config.ram = {{Gfn{0}, 0x20000}};
        config.policy = builtin_shadow_policies().find(policy);
        if (!heuristic) {
            ShadowSwitches switches = kAllShadowSwitches;
            switches.writable_heuristic = false;
            config.policy = [switches] {
                return make_custom_policy({.switches = switches, .out_of_sync = false});
            };
        }
        return config;
    }
};

/// Faults that fill an entry, half of them a new level-1 shadow too; the last, with the entries that prefetch
/// fills.
void fault(benchmark::State& state, const std::string& policy)
{
    constexpr std::uint64_t kStride = 256;  // pages: two faults for each level-1 shadow
    BenchGuest guest{policy};
    const std::uint64_t before = guest.machine.shadow()->counters().fault;
    for (auto _ : state) {
        for (std::uint64_t page = 0; page < kTables * 512; page += kStride)
            guest.touch(AccessKind::read, page << kPageShift);
        state.PauseTiming();
        guest.machine.blow_shadows();
        state.ResumeTiming();
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(guest.machine.shadow()->counters().fault - before));
}

/// A page that is mapped writable becomes a table, with no guess where it is mapped.
void search(benchmark::State& state)
{
    BenchGuest guest{"custom", false};
    for (std::uint64_t table = 0; table < kTables; ++table)
        guest.touch(AccessKind::read, table * 512 << kPageShift);
    const std::uint64_t new_table = kPages + 7;
    const std::uint64_t before = guest.machine.shadow()->work().entries_searched;
    guest.set(new_table, 0, kPages + 9);
    for (auto _ : state) {
        guest.touch(AccessKind::write, 7 << kPageShift);
        guest.set(kRoot + 3, 0, new_table);
        guest.touch(AccessKind::read, kOtherRegion);
        state.PauseTiming();
        guest.set(kRoot + 3, 0, 0);
        state.ResumeTiming();
    }
    state.SetItemsProcessed(
        static_cast<std::int64_t>(guest.machine.shadow()->work().entries_searched - before));
}

}  // namespace

BENCHMARK_CAPTURE(fault, xen, "xen");
BENCHMARK_CAPTURE(fault, xen_2006_first, "xen-2006-first");
BENCHMARK_CAPTURE(fault, kvm, "kvm");
BENCHMARK_CAPTURE(fault, tlb_like, "tlb-like");
BENCHMARK(search);
