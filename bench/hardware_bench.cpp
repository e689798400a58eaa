// SPDX-License-Identifier: Apache-2.0
//
// What the modelled hardware costs: accesses a second (items/s), everything in memory beforehand. A recorded
// kernel, whose accesses mostly hit; and pages at random, where each access walks.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

namespace {

using mmusim::AccessRecord;
using mmusim::ClockKind;
using mmusim::StreamAccess;

/// A trace as runs of plain accesses between other records.
struct Prepared {
    struct Step {
        std::vector<StreamAccess> run;
        mmusim::Record then;  ///< after the run
    };
    mmusim::TraceHeader header;
    std::vector<Step> steps;
    std::uint64_t accesses = 0;
};

/// Whether an access is no more than its address: it stores nothing, and is at the vCPU's own level.
bool plain(const AccessRecord& access)
{
    return !access.segment && !access.cpl && !access.implicit && access.vcpu == 0 &&
           (access.kind != mmusim::AccessKind::write || access.content.empty());
}

Prepared prepare(const std::string& name)
{
    mmusim::TraceReader reader{std::string{MMUSIM_SOURCE_DIR "/traces/"} + name};
    Prepared trace{reader.header(), {}, 0};
    mmusim::Record record;
    trace.steps.emplace_back();
    bool user = false;
    while (reader.next(record)) {
        if (const auto* access = std::get_if<AccessRecord>(&record)) {
            ++trace.accesses;
            if (plain(*access)) {
                StreamAccess one{mmusim::LinearAddress{access->address}};
                one.bytes = static_cast<std::uint16_t>(access->bytes);
                one.kind = access->rmw ? mmusim::AccessKind::write : access->kind;
                one.user_mode = user;
                trace.steps.back().run.push_back(one);
                continue;
            }
        }
        using Write = mmusim::RegisterWriteRecord;
        if (const auto* write = std::get_if<Write>(&record); write && write->target == Write::Target::cpl) {
            user = write->value == 3;
        }
        trace.steps.back().then = record;
        trace.steps.emplace_back();
    }
    trace.steps.back().then = mmusim::EndRecord{};
    return trace;
}

struct Setup {
    const char* cpu;
    ClockKind clock;
    mmusim::TranslationMode mode = mmusim::TranslationMode::native;
    bool coherence = false;
};

void recorded_kernel(benchmark::State& state, const Setup& setup)
{
    static const Prepared trace = prepare("linux-6.1-amd64-4level.jsonl.zst");
    mmusim::ReplayConfig config;
    config.mode = setup.mode;
    config.cpu = setup.cpu;
    config.clock = setup.clock;
    config.window = setup.clock == ClockKind::window ? 16 : 0;
    config.check_coherence = setup.coherence;
    std::uint64_t accesses = 0;
    for (auto _ : state) {
        mmusim::Replayer replayer{trace.header, config, mmusim::builtin_shadow_policies()};
        for (const Prepared::Step& step : trace.steps) {
            benchmark::DoNotOptimize(replayer.machine().run(0, step.run));
            replayer.replay(step.then);
        }
        accesses += trace.accesses;
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(accesses));
}

/// A native 4-level guest with `pages` pages from 0 on, all on one frame.
std::unique_ptr<mmusim::Machine> guest(const Setup& setup, std::uint64_t pages)
{
    mmusim::MachineConfig config;
    config.ram = {{mmusim::Gfn{0}, 0x10000}};
    config.mode = mmusim::TranslationMode::native;
    config.cpu = std::make_shared<const mmusim::CpuProfile>(mmusim::find_cpu_profile(setup.cpu));
    config.clock = setup.clock;
    auto machine = std::make_unique<mmusim::Machine>(config);
    const auto put = [&](std::uint64_t frame, std::uint64_t index, std::uint64_t entry) {
        machine->poke(mmusim::GuestPhysical{frame * 4096 + index * 8}, std::as_bytes(std::span{&entry, 1}));
    };
    constexpr std::uint64_t kRights = 0x67;
    put(1, 0, 2 << 12 | kRights);
    put(2, 0, 3 << 12 | kRights);
    for (std::uint64_t table = 0; table * 512 < pages; ++table) {
        put(3, table, (0x100 + table) << 12 | kRights);
        for (std::uint64_t i = 0; i < 512; ++i) put(0x100 + table, i, 0x10 << 12 | kRights);
    }
    mmusim::Registers registers;
    registers.cr0 = 0x80010011;
    registers.cr3 = 0x1000;
    registers.cr4 = 0x20;
    registers.efer = 0x500;
    if (machine->set_registers(0, registers)) std::abort();
    return machine;
}

void pages(benchmark::State& state, const Setup& setup, bool in_order)
{
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    const auto machine = guest(setup, pages);
    std::vector<StreamAccess> accesses(1 << 20);
    std::uint64_t random = 1;
    std::uint64_t next = 0;
    for (StreamAccess& access : accesses) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const std::uint64_t page = in_order ? next++ : random >> 33;
        access.address = mmusim::LinearAddress{page % pages * 4096};
        access.bytes = 8;
    }
    for (auto _ : state) benchmark::DoNotOptimize(machine->run(0, accesses));
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(accesses.size()));
    const auto counters = machine->counters();
    state.counters["walks/access"] =
        static_cast<double>(counters.walks) /
        (static_cast<double>(state.iterations()) * static_cast<double>(accesses.size()));
}

void random_pages(benchmark::State& state, const Setup& setup)
{
    pages(state, setup, false);
}

void pages_in_order(benchmark::State& state, const Setup& setup)
{
    pages(state, setup, true);
}

constexpr auto kShadow = mmusim::TranslationMode::shadow;
constexpr auto kNested = mmusim::TranslationMode::nested;

}  // namespace

BENCHMARK_CAPTURE(recorded_kernel, golden_cove_clock_off, Setup{"golden_cove", ClockKind::off})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, zen4_clock_off, Setup{"zen4", ClockKind::off})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, skylake_clock_off, Setup{"skylake", ClockKind::off})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_blocking, Setup{"golden_cove", ClockKind::blocking})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_window, Setup{"golden_cove", ClockKind::window})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_shadow_clock_off,
                  Setup{"golden_cove", ClockKind::off, kShadow})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_shadow_blocking,
                  Setup{"golden_cove", ClockKind::blocking, kShadow})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_nested_clock_off,
                  Setup{"golden_cove", ClockKind::off, kNested})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_nested_blocking,
                  Setup{"golden_cove", ClockKind::blocking, kNested})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_check_coherence,
                  Setup{"golden_cove", ClockKind::off, mmusim::TranslationMode::native, true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, golden_cove_shadow_check_coherence,
                  Setup{"golden_cove", ClockKind::blocking, kShadow, true})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(recorded_kernel, none_clock_off, Setup{"none", ClockKind::off})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(random_pages, golden_cove_clock_off, Setup{"golden_cove", ClockKind::off})
    ->Arg(48)
    ->Arg(512)
    ->Arg(16384)
    ->Arg(262144);
BENCHMARK_CAPTURE(pages_in_order, golden_cove_clock_off, Setup{"golden_cove", ClockKind::off})->Arg(16384);
BENCHMARK_CAPTURE(pages_in_order, none_clock_off, Setup{"none", ClockKind::off})->Arg(16384);
BENCHMARK_CAPTURE(random_pages, zen4_clock_off, Setup{"zen4", ClockKind::off})->Arg(48)->Arg(16384);
BENCHMARK_CAPTURE(random_pages, golden_cove_blocking, Setup{"golden_cove", ClockKind::blocking})
    ->Arg(48)
    ->Arg(16384);
