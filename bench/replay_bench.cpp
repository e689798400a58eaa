// SPDX-License-Identifier: Apache-2.0
//
// Replay of a recorded kernel from memory, record by record, every access walked: what an access costs
// without reading the trace. items/s are accesses a second. (With TLBs and clock: hardware_bench.)
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

namespace {

struct LoadedTrace {
    mmusim::TraceHeader header;
    std::vector<mmusim::Record> records;
};

LoadedTrace load(const std::string& name)
{
    mmusim::TraceReader reader{std::string{MMUSIM_SOURCE_DIR "/traces/"} + name};
    LoadedTrace trace{reader.header(), {}};
    mmusim::Record record;
    while (reader.next(record)) trace.records.push_back(record);
    return trace;
}

void replay(benchmark::State& state, const std::string& name, mmusim::TranslationMode mode,
            const std::string& policy)
{
    const LoadedTrace trace = load(name);
    mmusim::ReplayConfig config;
    config.mode = mode;
    config.policy = policy;
    config.cpu = "none";
    config.clock = mmusim::ClockKind::off;
    std::uint64_t accesses = 0;
    for (auto _ : state) {
        mmusim::Replayer replayer{trace.header, config, mmusim::builtin_shadow_policies()};
        for (const mmusim::Record& record : trace.records) replayer.replay(record);
        replayer.finish();
        accesses += replayer.total().accesses.total();
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(accesses));
}

constexpr auto kNative = mmusim::TranslationMode::native;
constexpr auto kShadow = mmusim::TranslationMode::shadow;
constexpr auto k4Level = "linux-6.1-amd64-4level.jsonl.zst";
constexpr auto kPae = "linux-6.1-686pae-pae.jsonl.zst";
constexpr auto k2Level = "linux-6.1-686-2level.jsonl.zst";

}  // namespace

BENCHMARK_CAPTURE(replay, 4level_native, k4Level, kNative, "write-protect")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 4level_write_protect, k4Level, kShadow, "write-protect")
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 4level_tlb_like, k4Level, kShadow, "tlb-like")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 4level_xen, k4Level, kShadow, "xen")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 4level_kvm, k4Level, kShadow, "kvm")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, pae_native, kPae, kNative, "write-protect")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, pae_write_protect, kPae, kShadow, "write-protect")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 2level_native, k2Level, kNative, "write-protect")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(replay, 2level_write_protect, k2Level, kShadow, "write-protect")
    ->Unit(benchmark::kMillisecond);
