// SPDX-License-Identifier: Apache-2.0
//
// Records a synthetic workload of process creation and exit as a trace:
//
//   process_workload PAGING OUT [--processes N] [--seed S]
//
// PAGING is 2-level, pae or 4-level; OUT a file, compressed if its name ends in .zst. A small kernel
// (guest_kernel.hpp) runs processes (build_job.hpp) on a native machine, and what that shows is what the
// trace expects. So
//
//   mmusim replay OUT --check
//
// holds in every mode and under every policy. It needs nothing but the installed library. The same arguments
// give the same file.
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "build_job.hpp"

using namespace process_workload;

namespace {

constexpr std::string_view kUsage =
    "usage: process_workload 2-level|pae|4-level OUT.jsonl.zst [--processes N] [--seed S]\n";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct PagingName {
    std::string_view name;
    Paging paging;
};
constexpr std::array<PagingName, 3> kPagingNames{
    {{"2-level", Paging::two_level}, {"pae", Paging::pae}, {"4-level", Paging::four_level}}};

struct Arguments {
    PagingName paging;
    std::string out;
    unsigned processes = 40;
    std::uint64_t seed = 1;
};

template <class Number>
Number number_of(std::string_view option, std::string_view text)
{
    Number number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) {
        throw UsageError{fmt::format("{}: '{}' is not a number that fits", option, text)};
    }
    return number;
}

Arguments parse(int argc, char** argv)
{
    if (argc < 3) throw UsageError{"a paging mode and a file are needed"};
    Arguments arguments;
    const std::string_view name = argv[1];
    for (const PagingName& one : kPagingNames) {
        if (one.name == name) arguments.paging = one;
    }
    if (arguments.paging.name.empty()) throw UsageError{fmt::format("'{}' is no paging mode", name)};
    arguments.out = argv[2];
    for (int i = 3; i < argc; i += 2) {
        const std::string_view option = argv[i];
        if (option != "--processes" && option != "--seed") {
            throw UsageError{fmt::format("unknown option '{}'", option)};
        }
        if (i + 1 == argc) throw UsageError{fmt::format("{} needs a number", option)};
        if (option == "--seed") {
            arguments.seed = number_of<std::uint64_t>(option, argv[i + 1]);
        } else {
            arguments.processes = number_of<unsigned>(option, argv[i + 1]);
        }
    }
    return arguments;
}

}  // namespace

int main(int argc, char** argv)
try {
    const Arguments arguments = parse(argc, argv);
    TraceHeader header = GuestKernel::header(arguments.paging.paging);
    header.name = fmt::format("processes-{}", arguments.paging.name);
    header.meta = fmt::format(
        R"({{"recorder":"examples/process_workload","workload":"{} processes are forked, exec and exit; seed {}"}})",
        arguments.processes, arguments.seed);
    Recorder recorder{arguments.out, header};
    recorder.mark("boot");
    BuildJob job{recorder, arguments.paging.paging, arguments.seed};
    job.run(arguments.processes);
    recorder.finish();
    fmt::print("{}: {} records, {} page faults\n", arguments.out, recorder.records(), recorder.page_faults());
    return 0;
} catch (const UsageError& error) {
    fmt::print(stderr, "process_workload: {}\n{}", error.what(), kUsage);
    return 2;
} catch (const std::exception& error) {
    fmt::print(stderr, "process_workload: {}\n", error.what());
    return 2;
}
