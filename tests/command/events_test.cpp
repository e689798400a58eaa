// SPDX-License-Identifier: Apache-2.0
//
// mmusim replay --events: the document line by line, paths that can't be written, and what it excludes.
#include <nlohmann/json.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using namespace mmusim::replay_test;

namespace {

using Json = nlohmann::ordered_json;

/// A page is read and written, a table is written twice, a page that is not there is read.
const std::string kTrace = Header{}.line() + four_level_guest() +
                           lines({R"({"op":"read","la":"0x10000"})", R"({"op":"write","la":"0x10008"})",
                                  R"({"op":"write","la":"0x18088","size":8,"value":"0x32007"})",
                                  R"({"op":"write","la":"0x18090","size":8,"value":"0x33007"})",
                                  R"({"op":"read","la":"0x13f000"})", R"({"op":"invlpg","la":"0x10000"})"});

const std::vector<std::string> kExpected{
    R"({"event":"promote","record":5,"vcpu":0,"guest_levels":4,"gfn":"0x1","shadow":"l4_64","flags":["promote"]})",
    R"({"event":"update_cr3","record":5,"vcpu":0,"guest_levels":4,"tables":["0x1"],"flags":["promote"]})",
    R"({"event":"promote","record":6,"vcpu":0,"guest_levels":4,"la":"0x10000","error_code":"0x0","gfn":"0x2","shadow":"l3_64","flags":["set_ad","promote"]})",
    R"({"event":"promote","record":6,"vcpu":0,"guest_levels":4,"la":"0x10000","error_code":"0x0","gfn":"0x3","shadow":"l2_64","flags":["set_ad","promote"]})",
    R"({"event":"promote","record":6,"vcpu":0,"guest_levels":4,"la":"0x10000","error_code":"0x0","gfn":"0x4","shadow":"l1_64","flags":["set_ad","promote"]})",
    R"({"event":"fixup","record":6,"vcpu":0,"guest_levels":4,"la":"0x10000","error_code":"0x0","gfn":"0x20","tables":["0x1","0x2","0x3","0x4"],"guest_entry":"0x20007","shadow_entry":{"shadow":"l1_64","gfn":"0x4","index":16,"value":"0x20025"},"prefetched":0,"flags":["set_ad","l1_get_ref","l2_propagate","promote"]})",
    R"({"event":"fixup","record":7,"vcpu":0,"guest_levels":4,"la":"0x10008","error_code":"0x3","gfn":"0x20","tables":["0x1","0x2","0x3","0x4"],"guest_entry":"0x20027","shadow_entry":{"shadow":"l1_64","gfn":"0x4","index":16,"value":"0x20027"},"prefetched":0,"flags":["set_ad","l1_get_ref","l1_put_ref"]})",
    R"({"event":"emulate","record":8,"vcpu":0,"guest_levels":4,"la":"0x18088","error_code":"0x2","how":"table","gfn":"0x4","tables":["0x1","0x2","0x3","0x4"],"guest_entry":"0x4007","gpa":"0x4088","size":8,"value":"0x32007","flags":["set_ad","l1_get_ref"]})",
    R"({"event":"emulate","record":9,"vcpu":0,"guest_levels":4,"la":"0x18090","error_code":"0x3","how":"table","gfn":"0x4","tables":["0x1","0x2","0x3","0x4"],"guest_entry":"0x4067","gpa":"0x4090","size":8,"value":"0x33007","flags":[]})",
    R"({"event":"not_shadow","record":10,"vcpu":0,"guest_levels":4,"la":"0x13f000","error_code":"0x0","guest_error_code":"0x0","tables":["0x1","0x2","0x3","0x4"],"guest_entry":"0x0","flags":[]})",
    R"({"event":"invlpg","record":11,"vcpu":0,"guest_levels":4,"la":"0x10000","how":"page","flags":[]})",
};

const std::vector<std::string> kOptions{"--policy", "write-protect", "--clock", "off"};

std::vector<std::string> replay(const std::string& trace, const std::vector<std::string>& more)
{
    std::vector<std::string> arguments{"replay", trace};
    arguments.insert(arguments.end(), kOptions.begin(), kOptions.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

}  // namespace

TEST_CASE("events file: the exact lines of a small trace", "[command][events]")
{
    const ScratchFile trace{kTrace};
    const ScratchPath events{".jsonl"};
    const Run to_file = run(replay(trace.path(), {"--events", events.path()}));
    INFO(to_file.error);
    CHECK(to_file.code == 0);
    CHECK(has(to_file.out, "shadow faults"));
    CHECK(lines_of(content_of(events.path())) == kExpected);
    // On standard output they are alone.
    const Run to_stdout = run(replay(trace.path(), {"--events", "-"}));
    CHECK(to_stdout.code == 0);
    CHECK(lines_of(to_stdout.out) == kExpected);
    CHECK(has(to_stdout.error, "shadow faults"));
    // With a clock there is a cycle, which does not go back.
    const Run timed = run({"replay", trace.path(), "--events", "-"});
    CHECK(timed.code == 0);
    std::uint64_t last = 0;
    for (const std::string& line : lines_of(timed.out)) {
        const std::uint64_t cycle = Json::parse(line).at("cycle").get<std::uint64_t>();
        CHECK(cycle >= last);
        last = cycle;
    }
    CHECK(last > 0);
}

TEST_CASE("events file: the example in docs/events.md is what the command says", "[command][events]")
{
    const std::string text = content_of(MMUSIM_SOURCE_DIR "/docs/events.md");
    const std::string fence = "```sh\nmmusim ";
    const std::size_t command = text.find(fence);
    REQUIRE(command != std::string::npos);
    std::istringstream words{text.substr(command + fence.size(),
                                         text.find('\n', command + fence.size()) - command - fence.size())};
    std::vector<std::string> arguments;
    for (std::string word; words >> word;) arguments.push_back(word);
    const std::string answer = "```json\n";
    const std::size_t begin = text.find(answer, command) + answer.size();
    const std::string shown = text.substr(begin, text.find("```", begin) - begin);
    const Run example = run(arguments);
    CHECK(example.code == 0);
    CHECK(example.out == shown);
}

TEST_CASE("events file: what can't be written is an error before the replay", "[command][events]")
{
    const ScratchFile trace{kTrace};
    const auto refused = [&](const std::string& path, const std::vector<std::string>& more,
                             const std::string& words) {
        std::vector<std::string> options{"--events", path};
        options.insert(options.end(), more.begin(), more.end());
        const Run run = command_test::run(replay(trace.path(), options));
        INFO(path << ": " << run.error);
        CHECK(run.code == 2);
        CHECK(run.out.empty());
        CHECK(is_one_plain_line(run.error));
        CHECK(has(run.error, words));
    };
    refused("/nonexistent/events.jsonl", {}, "/nonexistent/events.jsonl: No such file");
    const std::string folder = std::filesystem::temp_directory_path().string();
    refused(folder, {}, "irectory");
    refused("-", {"--stats", "-"}, "--stats");
    const ScratchPath both{".json"};
    refused(both.path(), {"--stats", both.path()}, "--stats");
    CHECK_FALSE(std::filesystem::exists(both.path()));
    refused(trace.path(), {}, "is the trace");
    CHECK(content_of(trace.path()) == kTrace);
    const ScratchPath events{".jsonl"};
    refused(events.path(), {"--mode", "native"}, "native");
    CHECK_FALSE(std::filesystem::exists(events.path()));
}

TEST_CASE("events file: a full disk is an error, and the statistics say incomplete", "[command][events]")
{
    if (!std::filesystem::exists("/dev/full")) return;
    const ScratchFile trace{kTrace};
    const ScratchPath stats{".json"};
    const Run full = run(replay(trace.path(), {"--events", "/dev/full", "--stats", stats.path()}));
    CHECK(full.code == 2);
    CHECK(has(full.error, "/dev/full: No space left"));
    CHECK(Json::parse(content_of(stats.path()))["complete"] == false);
    // So many events that it shows in the middle: the replay ends there.
    const Run longer = run({"replay", bundled("amd64-4level"), "--policy", "tlb-like", "--clock", "off",
                            "--events", "/dev/full", "--stats", stats.path()});
    CHECK(longer.code == 2);
    const Json document = Json::parse(content_of(stats.path()));
    CHECK(document["complete"] == false);
    CHECK(document["trace"]["records"] < 400267);
    RunOptions to_full;
    to_full.output = "/dev/full";
    const Run out = run(replay(trace.path(), {"--events", "-"}), to_full);
    CHECK(out.code == 2);
    CHECK(has(out.error, "No space left"));
}

TEST_CASE("events file: those before a bad line are there", "[command][events]")
{
    const ScratchFile trace{kTrace + "hello\n"};
    const ScratchPath events{".jsonl"};
    const Run bad = run(replay(trace.path(), {"--events", events.path()}));
    CHECK(bad.code == 2);
    CHECK(has(bad.error, trace.path() + ":"));
    CHECK(lines_of(content_of(events.path())) == kExpected);
}
