// SPDX-License-Identifier: Apache-2.0
//
// A trace is a stream: how long it is makes no difference to the memory that its replay needs.
#include <string>
#include <thread>
#include <vector>

#include <sys/stat.h>
#include <nlohmann/json.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using namespace mmusim::replay_test;

namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kChunkRecords = 100000;

/// Accesses to a small set of pages, faults and stores to tables among them.
std::string chunk(const std::string& separator)
{
    const std::vector<std::string> records{
        R"({"op":"read","la":"0x10008","size":8,"gpa":"0x20008"})",
        R"({"op":"write","la":"0x11008","size":8,"value":"0x5"})",
        R"({"op":"fetch","la":"0x17000","size":15,"gpa":"0x36000"})",
        R"({"op":"read","la":"0x12000","fault":0})",
        R"({"op":"insn","la":"0x17000","mem":[{"op":"write","la":"0x10ffc","size":8}]})",
        R"({"op":"write","la":"0x18080","size":8,"value":"0x20067"})",
        R"({"op":"read","la":"0x10000"})",
        R"({"op":"invlpg","la":"0x10000"})"};
    std::string text;
    for (std::uint64_t i = 0; i < kChunkRecords; ++i) text += records[i % records.size()] + separator;
    return text;
}

struct Peaks {
    std::uint64_t child = 0;
    std::uint64_t reported = 0;
};

Peaks replayed(const std::string& path, std::uint64_t records, const std::string& mode)
{
    const Run run = command_test::run({"replay", path, "--check", "--mode", mode, "--stats", "-"});
    INFO(run.error);
    REQUIRE(run.code == 0);
    const Json document = Json::parse(run.out);
    CHECK(document["trace"]["records"] == records);
    CHECK(document["checks"]["mismatched"] == 0);
    CHECK(document["checks"]["checked"] > records / 5);
    return {run.peak_bytes, document["host"]["peak_memory_bytes"].get<std::uint64_t>()};
}

void check_same(const Peaks& few, const Peaks& many)
{
    INFO(few.child / kMiB << " MiB, then " << many.child / kMiB << " MiB");
    CHECK(many.child < few.child + 20 * kMiB);
    CHECK(many.reported < few.reported + 20 * kMiB);
    // What the document says of the host is what the system says of the process.
    CHECK(many.reported <= many.child + 4 * kMiB);  // the kernel counts pages in batches
    CHECK(many.reported + 20 * kMiB > many.child);
}

}  // namespace

TEST_CASE("three million records need no more memory than a hundred thousand", "[command][memory][slow]")
{
    const std::string start = packed(Header{}.line() + four_level_guest());
    const std::string frame = packed(chunk("\n"));
    std::string many = start;
    for (int i = 0; i < 30; ++i) many += frame;
    const ScratchFile short_file{start + frame, ".jsonl.zst"};
    const ScratchFile long_file{many, ".jsonl.zst"};
    for (const char* const mode : {"native", "shadow"}) {
        check_same(replayed(short_file.path(), kChunkRecords + 5, mode),
                   replayed(long_file.path(), 30 * kChunkRecords + 5, mode));
    }
}

TEST_CASE("a single document is a stream too", "[command][memory][slow]")
{
    std::string start = "{\"header\":" + Header{}.line() + ",\"records\":[\n";
    std::string guest = four_level_guest();
    for (std::size_t i = 0; i < guest.size(); ++i) {
        if (guest[i] == '\n') guest.replace(i++, 1, ",\n");
    }
    const std::string frame = packed(chunk(",\n"));
    const std::string end = packed(R"({"op":"mark","name":"end"}]})"
                                   "\n");
    std::string many = packed(start + guest);
    const ScratchFile short_file{many + frame + end, ".json.zst"};
    for (int i = 0; i < 10; ++i) many += frame;
    const ScratchFile long_file{many + end, ".json.zst"};
    check_same(replayed(short_file.path(), kChunkRecords + 6, "native"),
               replayed(long_file.path(), 10 * kChunkRecords + 6, "native"));
}

TEST_CASE("a trace may come through a pipe, in pieces", "[command][memory]")
{
    const ScratchPath fifo{".jsonl"};
    REQUIRE(::mkfifo(fifo.path().c_str(), 0600) == 0);
    const std::string text = Header{}.line() + four_level_guest() + chunk("\n");
    std::thread writer{[&] {
        std::ofstream out{fifo.path(), std::ios::binary};
        for (std::size_t at = 0; at < text.size(); at += 10007) out << text.substr(at, 10007) << std::flush;
    }};
    const Peaks peaks = replayed(fifo.path(), kChunkRecords + 5, "shadow");
    writer.join();
    CHECK(peaks.child > 0);
}

// Slow by its tag alone: sanitizers keep freed memory.
TEST_CASE("resets and case after case need no more memory", "[command][memory][slow]")
{
    // Each case makes shadows and touches pages of its own.
    std::string cases;
    for (unsigned i = 0; i < 2000; ++i) {
        cases += R"({"op":"reset","name":"case"})"
                 "\n" +
                 four_level_guest();
        cases += fmt::format(R"({{"op":"poke","gpa":"0x4080","size":8,"value":"{:#x}"}})"
                             "\n",
                             0x20007 + (i % 200) * 4096);
        cases += fmt::format(R"({{"op":"write","la":"0x10000","size":8,"value":1,"gpa":"{:#x}"}})"
                             "\n",
                             0x20000 + (i % 200) * 4096);
        cases += R"({"op":"expect_memory","gpa":"0x4080","size":1,"value":"0x67"})"
                 "\n";
    }
    const std::string frame = packed(cases);
    const std::string start = packed(Header{}.line());
    const ScratchFile few{start + frame, ".jsonl.zst"};
    const ScratchFile many{start + frame + frame + frame + frame + frame, ".jsonl.zst"};
    check_same(replayed(few.path(), 2000 * 9, "shadow"), replayed(many.path(), 5 * 2000 * 9, "shadow"));
}

TEST_CASE("the peak memory in the statistics is the command's own", "[command][memory]")
{
    // Linux hands ru_maxrss on from the process that started the command; the figure must not follow it.
    const ScratchFile file{Header{}.line() + four_level_guest()};
    const std::vector<std::string> arguments{"replay", file.path(), "--stats", "-"};
    const auto reported = [&] {
        return Json::parse(run(arguments).out)["host"]["peak_memory_bytes"].get<std::uint64_t>();
    };
    const std::uint64_t before = reported();
    std::vector<char> large(300 * kMiB);
    for (std::size_t i = 0; i < large.size(); i += 1024) large[i] = static_cast<char>(i);
    const std::uint64_t after = reported();
    INFO(before / kMiB << " MiB, from a large process " << after / kMiB << " MiB, " << int{large[1024]});
    CHECK(after < before + 100 * kMiB);
}
