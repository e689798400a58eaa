// SPDX-License-Identifier: Apache-2.0
//
// How fast a trace is read: records per second, of a recording of a real kernel as it is bundled (zstd) and
// as JSON Lines. Where the trace is not there, nothing is measured.
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <mmusim/trace/trace_reader.hpp>
#include <mmusim/trace/trace_writer.hpp>

using namespace mmusim;

namespace {

const std::string kPacked = MMUSIM_SOURCE_DIR "/traces/linux-6.1-amd64-4level.jsonl.zst";

/// The trace as JSON Lines, in a temporary file. Written by TraceWriter: the same records, nearly the same
/// text.
class Unpacked {
public:
    Unpacked()
        : path_{(std::filesystem::temp_directory_path() /
                 ("mmusim-trace-read-bench-" + std::to_string(::getpid()) + ".jsonl"))
                    .string()}
    {
        TraceReader reader{kPacked};
        TraceWriter writer{path_, reader.header()};
        for (Record record; reader.next(record);) writer.write(record);
        writer.finish();
    }
    Unpacked(const Unpacked&) = delete;
    Unpacked& operator=(const Unpacked&) = delete;
    ~Unpacked()
    {
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
    }

    [[nodiscard]] const std::string& path() const { return path_; }

private:
    std::string path_;
};

void read_all(benchmark::State& state, const std::string& path)
{
    std::uint64_t records = 0;
    for (auto _ : state) {
        TraceReader reader{path};
        for (Record record; reader.next(record);) benchmark::DoNotOptimize(record);
        records += reader.records();
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(records));
    const auto bytes = static_cast<double>(std::filesystem::file_size(path));
    state.counters["file_bytes"] = benchmark::Counter{bytes};
}

void read_json_lines(benchmark::State& state)
{
    if (!std::filesystem::exists(kPacked)) {
        state.SkipWithError("the trace is not here");
        return;
    }
    const Unpacked file;
    read_all(state, file.path());
}

void read_zstd(benchmark::State& state)
{
    if (!std::filesystem::exists(kPacked)) {
        state.SkipWithError("the trace is not here");
        return;
    }
    read_all(state, kPacked);
}

}  // namespace

BENCHMARK(read_json_lines)->Unit(benchmark::kMillisecond);
BENCHMARK(read_zstd)->Unit(benchmark::kMillisecond);
