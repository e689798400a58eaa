// SPDX-License-Identifier: Apache-2.0
//
// The page walk alone: what one walk costs over tables that are warm (accessed and dirty bits set, entries in
// the host's caches), by mode, by size of page and by whose tables they are. Items are walks, in a random
// order over `kPages` pages.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <vector>

#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/pagewalk/machine_tables.hpp>
#include <mmusim/pagewalk/walk.hpp>

namespace {

using namespace mmusim;

constexpr std::uint64_t kPages = 512;
constexpr std::uint64_t kFirstTable = 0x100;  ///< frame of the root table, the others follow
constexpr std::uint64_t kFirstLinear = 0x4000'0000;
constexpr std::uint64_t kUserPage =
    pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed | pte::kDirty;

/// Maps kPages pages of `leaf_level` from kFirstLinear on; `store(frame, offset, word)` writes an entry.
template <PagingMode Mode, class Load, class Store>
void map_pages(int leaf_level, Load load, Store store)
{
    using Word = detail::EntryWord<Mode>;
    std::uint64_t next_table = kFirstTable + 1;
    for (std::uint64_t page = 0; page < kPages; ++page) {
        const LinearAddress address{kFirstLinear + (page << Mode.shift(leaf_level))};
        std::uint64_t table = kFirstTable;
        for (int level = Mode.root_level();; --level) {
            const unsigned offset = Mode.index(address, level) * Mode.entry_bytes;
            if (level == leaf_level) {
                const std::uint64_t to = (page + 1) << Mode.shift(level);
                store(table, offset,
                      static_cast<Word>(to | kUserPage | (level > 1 ? pte::kPageSize : std::uint64_t{0})));
                break;
            }
            Word entry = load(table, offset);
            if (entry == 0) {
                entry = static_cast<Word>(next_table++ << kPageShift | kUserPage);
                store(table, offset, entry);
            }
            table = entry >> kPageShift;
        }
    }
}

Cpuid cpuid()
{
    Cpuid cpuid;
    cpuid.nx = cpuid.pse = cpuid.pse36 = cpuid.page1gb = true;
    return cpuid;
}

template <PagingMode Mode>
Registers registers()
{
    Registers r;
    r.cr0 |= cr0::kPe | cr0::kPg | cr0::kWp;
    if (Mode == kTwoLevel) r.cr4 |= cr4::kPse;
    if (Mode != kTwoLevel) r.cr4 |= cr4::kPae;
    if (Mode == kFiveLevel) r.cr4 |= cr4::kLa57;
    if (Mode.has_keys) r.efer |= efer::kLme | efer::kLma;
    r.efer |= efer::kNxe;
    return r;
}

template <PagingMode Mode, class Tables>
void run(benchmark::State& state, Tables& tables, int leaf_level)
{
    WalkRoot<typename Tables::Space> root;
    root.frame = Frame<typename Tables::Space>{kFirstTable};
    root.pdptes.fill(kFirstTable << kPageShift | pte::kPresent);  // PAE: one directory for all four
    const WalkRules rules = walk_rules(Mode, registers<Mode>(), cpuid());
    std::mt19937_64 random{1};
    std::vector<Access> accesses;
    for (int n = 0; n < 4096; ++n) {
        const std::uint64_t page = random() % kPages;
        const std::uint64_t address =
            kFirstLinear + (page << Mode.shift(leaf_level)) + (random() & kPageOffsetMask & ~7u);
        accesses.push_back({LinearAddress{address}, n % 4 == 0 ? AccessKind::write : AccessKind::read, true});
    }
    for (auto _ : state) {
        for (const Access& access : accesses) {
            auto result = walk<Mode>(tables, root, rules, access, AdBits::set);
            if (!result.ok()) return state.SkipWithError("a walk ended in a fault");
            benchmark::DoNotOptimize(result);
        }
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(accesses.size()));
}

/// Tables in machine memory: a native guest's, or shadows.
template <PagingMode Mode>
void machine_walk(benchmark::State& state)
{
    const auto leaf_level = static_cast<int>(state.range(0));
    SparseMemory memory;
    map_pages<Mode>(
        leaf_level,
        [&](std::uint64_t frame, unsigned offset) {
            return memory.load<detail::EntryWord<Mode>>(frame, offset);
        },
        [&](std::uint64_t frame, unsigned offset, auto word) { memory.store(frame, offset, word); });
    MachineTables tables{memory};
    run<Mode>(state, tables, leaf_level);
}

/// A guest's tables through its P2M, in software.
template <PagingMode Mode>
void guest_walk(benchmark::State& state)
{
    P2mLayout layout;
    layout.kind = static_cast<P2mLayout::Kind>(state.range(0));
    layout.seed = 1;
    const P2m p2m{GuestRam{{{Gfn{0}, 0x1'0000}}}, layout};
    SparseMemory memory;
    GuestMemory tables{memory, p2m};
    map_pages<Mode>(
        1,
        [&](std::uint64_t frame, unsigned offset) {
            return tables.template load<detail::EntryWord<Mode>>(Gfn{frame}, offset);
        },
        [&](std::uint64_t frame, unsigned offset, auto word) {
            memory.store(p2m.mfn_of(Gfn{frame})->number(), offset, word);
        });
    run<Mode>(state, tables, 1);
}

}  // namespace

BENCHMARK_TEMPLATE(machine_walk, kTwoLevel)->ArgName("leaf_level")->Arg(1)->Arg(2);
BENCHMARK_TEMPLATE(machine_walk, kPae)->ArgName("leaf_level")->Arg(1)->Arg(2);
BENCHMARK_TEMPLATE(machine_walk, kFourLevel)->ArgName("leaf_level")->Arg(1)->Arg(2)->Arg(3);
BENCHMARK_TEMPLATE(machine_walk, kFiveLevel)->ArgName("leaf_level")->Arg(1)->Arg(2)->Arg(3);
BENCHMARK_TEMPLATE(guest_walk, kFourLevel)
    ->ArgName("layout")
    ->Arg(static_cast<int>(mmusim::P2mLayout::Kind::identity))
    ->Arg(static_cast<int>(mmusim::P2mLayout::Kind::shuffled));
