// SPDX-License-Identifier: Apache-2.0
//
// The P2M as tables: building that of 64 GiB in 4 KiB pages (items are frames; the counter is what it takes),
// looking frames up in it after a change.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>

#include <mmusim/p2m/p2m.hpp>

namespace {

using namespace mmusim;

constexpr std::uint64_t kFrames = std::uint64_t{64} << 18;

P2m p2m_in(SparseMemory& memory, std::uint64_t frames)
{
    const P2mLayout layout{.kind = P2mLayout::Kind::offset, .offset = 1, .seed = 0, .entries = {}};
    return P2m{FrameLayout{GuestRam{{{Gfn{0}, frames}}}, layout},
               std::make_unique<P2mTables>(memory, P2mFormat::ept, 4, Mfn{(std::uint64_t{1} << 40) - 1}), 1};
}

void build_64_gib(benchmark::State& state)
{
    std::uint64_t pages = 0;
    for (auto _ : state) {
        SparseMemory memory;
        P2m p2m = p2m_in(memory, kFrames);
        p2m.populate_all();
        pages = p2m.tables()->pages();
        benchmark::DoNotOptimize(pages);
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kFrames));
    state.counters["MB"] = static_cast<double>(pages * kPageBytes) / 1e6;
}

void look_up_changed(benchmark::State& state)
{
    constexpr std::uint64_t kSmall = std::uint64_t{1} << 18;
    SparseMemory memory;
    P2m p2m = p2m_in(memory, kSmall);
    p2m.populate_all();
    p2m.set(Gfn{7}, 1, {Mfn{0x999'9999}, P2mType::ram_ro, MemAccess::rwx});
    std::uint64_t gfn = 0;
    for (auto _ : state) {
        gfn = (gfn * 5 + 12345) % kSmall;
        benchmark::DoNotOptimize(p2m.mfn_of(Gfn{gfn}));
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}

}  // namespace

BENCHMARK(build_64_gib)->Unit(benchmark::kMillisecond);
BENCHMARK(look_up_changed);
