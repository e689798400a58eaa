// SPDX-License-Identifier: Apache-2.0
//
// The command as a user runs it: what it prints where, and its exit codes (0 done, 1 an expectation did not
// hold, 2 bad usage, configuration or input). Bad traces are bad_input_test.cpp's business.
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mmusim/version.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using namespace mmusim::replay_test;

namespace {

using Json = nlohmann::ordered_json;

const std::vector<std::string> kRecordings{"amd64-4level", "686pae-pae", "686-2level", "amd64-bringup"};

const std::string kGood = Header{}.line() + four_level_guest() +
                          R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                          "\n";
const std::string kMissing = R"({"op":"read","la":"0x10000","gpa":"0x21000"})"
                             "\n";

/// Splits at spaces: the examples of the help need no quoting.
std::vector<std::string> words_of(const std::string& line)
{
    std::vector<std::string> words;
    std::istringstream stream{line};
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

std::vector<std::string> examples_of(const std::string& help)
{
    std::vector<std::string> examples;
    bool within = false;
    for (const std::string& line : lines_of(help)) {
        if (line.starts_with("Example")) {
            within = true;
        } else if (within && !line.empty()) {
            examples.push_back(line);
        }
    }
    return examples;
}

Json without_host(Json document)
{
    document.erase("host");
    return document;
}

}  // namespace

TEST_CASE("the exit code tells done, missed and refused apart", "[command]")
{
    const ScratchFile good{kGood};
    const ScratchFile missed{kGood + kMissing};
    const ScratchFile cut{kGood + R"({"op":"read")"};
    CHECK(run({"replay", good.path()}).code == 0);
    CHECK(run({"replay", good.path(), "--check"}).code == 0);
    CHECK(run({"replay", missed.path()}).code == 0);
    CHECK(run({"replay", missed.path(), "--check"}).code == 1);
    CHECK(run({"replay", missed.path(), "--set", "check=true"}).code == 1);
    CHECK(run({"replay", cut.path()}).code == 2);
    // Bad input counts more than an expectation that was missed before it.
    const ScratchFile both{kGood + kMissing + "x\n"};
    CHECK(run({"replay", both.path(), "--check"}).code == 2);
}

TEST_CASE("replay prints a summary on standard output and nothing on standard error", "[command]")
{
    for (const std::string& name : kRecordings) {
        const Run replayed = run({"replay", bundled(name), "--check"});
        INFO(replayed.out << replayed.error);
        CHECK(replayed.code == 0);
        CHECK(replayed.error.empty());
        CHECK(has(replayed.out, "linux-6.1-" + name));
        CHECK(has(replayed.out, "0 mismatches"));
        // Neither progress nor colour on a pipe.
        CHECK(replayed.out.find('\033') == std::string::npos);
        CHECK(replayed.out.find('\r') == std::string::npos);
    }
}

TEST_CASE("replay --check prints the first ten mismatches", "[command]")
{
    std::string text = kGood;
    for (int i = 0; i < 25; ++i) text += kMissing;
    const ScratchFile file{text};
    const Run replayed = run({"replay", file.path(), "--check"});
    CHECK(replayed.code == 1);
    CHECK(replayed.error.empty());
    std::size_t mismatches = 0;
    for (const std::string& line : lines_of(replayed.out)) {
        if (!line.starts_with("mismatch")) continue;
        INFO(line);
        CHECK(has(line, fmt::format("record {}:", 7 + mismatches)));
        CHECK(has(line, "0x21000"));
        CHECK(has(line, "0x20000"));
        ++mismatches;
    }
    CHECK(mismatches == 10);
    CHECK(has(replayed.out, "15 more"));
    CHECK(has(replayed.out, "26 expectations, 25 mismatches"));
    CHECK(!has(run({"replay", file.path()}).out, "mismatch"));
}

TEST_CASE("the statistics go to the file, or alone to standard output", "[command]")
{
    const ScratchFile file{kGood + kMissing};
    const ScratchPath stats{".json"};
    const Run to_file = run({"replay", file.path(), "--check", "--stats", stats.path()});
    CHECK(to_file.code == 1);
    CHECK(to_file.error.empty());
    CHECK(has(to_file.out, "mismatch"));
    const Json document = Json::parse(content_of(stats.path()));
    CHECK(document["complete"] == true);
    CHECK(document["trace"]["records"] == 7);
    CHECK(document["trace"]["name"] == "hand-written");
    CHECK(document["checks"].dump() == R"({"checked":2,"mismatched":1,"stale":0})");
    CHECK(document["host"]["seconds"] >= 0.0);
    CHECK(document["host"]["peak_memory_bytes"] > 100000);

    const Run to_out = run({"replay", file.path(), "--check", "--stats", "-"});
    CHECK(to_out.code == 1);
    CHECK(has(to_out.error, "mismatch"));
    CHECK(without_host(Json::parse(to_out.out)) == without_host(document));
    // A file that was there is replaced.
    const Run again = run({"replay", file.path(), "--limit", "1", "--stats", stats.path()});
    CHECK(again.code == 0);
    CHECK(Json::parse(content_of(stats.path()))["trace"]["records"] == 1);
}

TEST_CASE("the statistics hold the SHA-256 of the file as it is stored", "[command]")
{
    const auto sha_of = [](const std::string& text, const std::vector<std::string>& more,
                           std::string_view suffix) {
        const ScratchFile file{text, suffix};
        std::vector<std::string> arguments{"replay", file.path(), "--stats", "-"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return Json::parse(run(arguments).out)["trace"]["sha256"].get<std::string>();
    };
    // Of these bytes by sha256sum.
    const std::string text = R"({"format":"mmusim-trace","version":1,"name":"s","guest":{"kind":"hvm",)"
                             R"("physical_address_bits":40,"ram":[{"first_gfn":0,"count":1}]}})"
                             "\n"
                             R"({"op":"read","la":0})"
                             "\n";
    const std::string expected = "830f889aba961a0611ce1a121de6940f42411aad7d261159b09c6d3e02eedd38";
    CHECK(sha_of(text, {}, ".jsonl") == expected);
    // What is beyond a limit belongs to the file too.
    CHECK(sha_of(text, {"--limit", "0"}, ".jsonl") == expected);
    CHECK(sha_of(text, {"--skip", "5"}, ".jsonl") == expected);
    CHECK(sha_of(packed(text), {}, ".jsonl.zst") != expected);
    CHECK(sha_of(packed(text), {}, ".jsonl.zst") == sha_of(packed(text), {"--limit", "0"}, ".jsonl.zst"));
}

TEST_CASE("two runs give the same document, apart from the host", "[command]")
{
    for (const std::string& name : kRecordings) {
        for (const char* const mode : {"native", "shadow"}) {
            const std::vector<std::string> arguments{"replay", bundled(name), "--check", "--limit", "100000",
                                                     "--mode", mode,          "--stats", "-"};
            Json one = Json::parse(run(arguments).out);
            Json two = Json::parse(run(arguments).out);
            CHECK(one.contains("host"));
            one.erase("host");
            two.erase("host");
            CHECK(one.dump(2) == two.dump(2));
            CHECK(one.contains("shadow") == (mode == std::string{"shadow"}));
        }
    }
}

TEST_CASE("the configuration of a document is enough to run it again", "[command]")
{
    const std::string trace = bundled("686pae-pae");
    const Json first =
        Json::parse(run({"replay", trace, "--check", "--mode", "3-on-3", "--policy", "tlb-like", "--p2m",
                         "shuffled:7", "--set", "shadow.populate=step", "--skip", "1000", "--limit", "20000",
                         "--audit", "5000", "--stats", "-"})
                        .out);
    CHECK(first["trace"]["records"] == 20000);
    const ScratchFile config{first["config"].dump(), ".json"};
    const Json second = Json::parse(run({"replay", trace, "--config", config.path(), "--stats", "-"}).out);
    CHECK(without_host(first) == without_host(second));
}

TEST_CASE("replay audits in every mode", "[command]")
{
    const std::vector<std::pair<std::string, std::string>> modes{{"amd64-4level", "4-on-4"},
                                                                 {"686pae-pae", "3-on-3"},
                                                                 {"686-2level", "2-on-3"},
                                                                 {"amd64-bringup", "shadow"}};
    for (const auto& [name, shadow] : modes) {
        for (const std::string& mode : {shadow, std::string{"native"}}) {
            for (const char* const policy : {"write-protect", "tlb-like"}) {
                const Run replayed = run({"replay", bundled(name), "--mode", mode, "--policy", policy,
                                          "--audit", "10000", "--limit", "100000", "--check"});
                INFO(name << " " << mode << " " << policy << "\n" << replayed.out << replayed.error);
                CHECK(replayed.code == 0);
                CHECK(replayed.error.empty());
            }
        }
    }
}

TEST_CASE("replay reads standard input", "[command]")
{
    const ScratchFile file{kGood};
    const Run replayed = run({"replay", "-", "--check", "--stats", "-"}, {file.path(), ""});
    CHECK(replayed.code == 0);
    const Json document = Json::parse(replayed.out);
    CHECK(document["accesses"]["total"] == 1);
    Json from_file = Json::parse(run({"replay", file.path(), "--check", "--stats", "-"}).out);
    from_file["trace"].erase("sha256");  // a stream can't be read twice
    CHECK(without_host(document) == without_host(from_file));
}

TEST_CASE("a plain document and its packed form replay like the lines", "[command]")
{
    const std::vector<std::string> lines = lines_of(kGood);
    std::string document = "{\"header\": " + lines[0] + ",\n\"records\": [\n";
    for (std::size_t i = 1; i < lines.size(); ++i) document += (i > 1 ? ",\n" : "") + lines[i];
    document += "\n]}\n";
    const ScratchFile plain{document, ".json"};
    const ScratchFile packed_document{packed(document), ".json.zst"};
    const ScratchFile packed_lines{packed(kGood), ".jsonl.zst"};
    const ScratchFile good{kGood};
    Json expected = Json::parse(run({"replay", good.path(), "--check", "--stats", "-"}).out);
    for (const std::string& path : {plain.path(), packed_document.path(), packed_lines.path()}) {
        Json found = Json::parse(run({"replay", path, "--check", "--stats", "-"}).out);
        CHECK(found["checks"] == expected["checks"]);
        CHECK(found["shadow"] == expected["shadow"]);
        CHECK(found["trace"]["records"] == expected["trace"]["records"]);
    }
}

// ---- help, usage

TEST_CASE("the help of every verb has examples that run", "[command]")
{
    const std::vector<std::vector<std::string>> verbs{
        {"replay"},   {"walk"},   {"trace"},  {"trace", "info"}, {"trace", "validate"},
        {"policies"}, {"config"}, {"version"}};
    std::set<std::string> ran;
    for (std::vector<std::string> verb : verbs) {
        verb.emplace_back("--help");
        const Run help = run(verb);
        INFO(verb[0] << "\n" << help.out);
        CHECK(help.code == 0);
        CHECK(help.error.empty());
        CHECK(help.out.find('\033') == std::string::npos);
        const std::vector<std::string> examples = examples_of(help.out);
        CHECK(!examples.empty());
        for (const std::string& example : examples) {
            INFO(example);
            const std::vector<std::string> words = words_of(example);
            REQUIRE(!words.empty());
            CHECK(words[0] == "mmusim");
            if (!ran.insert(example).second) continue;
            const Run result = run({words.begin() + 1, words.end()});
            CHECK(result.code == 0);
            CHECK(!result.out.empty());
        }
    }
    CHECK(ran.size() >= 10);
}

TEST_CASE("the help lists every verb, with -h too", "[command]")
{
    const Run help = run({"--help"});
    CHECK(help.code == 0);
    CHECK(help.error.empty());
    for (const char* const verb : {"replay", "walk", "trace", "policies", "config", "version"}) {
        CHECK(has(help.out, verb));
        CHECK(run({verb, "-h"}).code == 0);
    }
}

TEST_CASE("bad usage is refused, with a hint at the help", "[command]")
{
    const std::vector<std::vector<std::string>> usages{{},
                                                       {"replay"},
                                                       {"replay", "a", "b"},
                                                       {"replay", "a", "--bogus"},
                                                       {"replay", "a", "--audit"},
                                                       {"replay", "a", "--audit", "often"},
                                                       {"replay", "a", "--limit", "1.5"},
                                                       {"walk", "a", "--kind", "jump", "--la", "0"},
                                                       {"walk", "a", "--cpl", "4", "--la", "0"},
                                                       {"walk", "a", "--la", "here"},
                                                       {"trace"},
                                                       {"trace", "info"},
                                                       {"trace", "shorten", "a"},
                                                       {"config"}};
    for (const std::vector<std::string>& usage : usages) {
        const Run refused = run(usage);
        INFO(fmt::format("{}", fmt::join(usage, " ")) << "\n" << refused.out << refused.error);
        CHECK(refused.code == 2);
        CHECK(refused.out.empty());
        CHECK(has(refused.error, "--help"));
        CHECK(lines_of(refused.error).size() <= 2);
    }
}

TEST_CASE("an option that does not exist is named", "[command]")
{
    CHECK(has(run({"replay", "a", "--bogus"}).error, "--bogus"));
    CHECK(has(run({"replay", "a", "--audit", "often"}).error, "--audit"));
    CHECK(has(run({"policies", "--all"}).error, "--all"));
}

TEST_CASE("a verb that does not exist is named", "[command]")
{
    const Run refused = run({"frobnicate", "a"});
    INFO(refused.error);
    CHECK(refused.code == 2);
    CHECK(has(refused.error, "frobnicate"));
}

TEST_CASE("a number that is negative or too large for its option is refused", "[command]")
{
    for (const char* const option : {"--audit", "--limit", "--skip"}) {
        for (const char* const number : {"-1", "18446744073709551616", "99999999999999999999999"}) {
            const Run printed = run({"config", "--print", option, number});
            INFO(option << " " << number << "\n" << printed.out << printed.error);
            CHECK(printed.code == 2);
            CHECK(has(printed.error, option));
        }
        CHECK(run({"config", "--print", option, "18446744073709551615"}).code == 0);
    }
}

TEST_CASE("output that can't be written is an error", "[command]")
{
    const ScratchFile file{kGood};
    const Run to_file = run({"replay", file.path(), "--stats", "/nonexistent/stats.json"});
    CHECK(to_file.code == 2);
    CHECK(is_one_plain_line(to_file.error));
    CHECK(has(to_file.error, "/nonexistent/stats.json"));
    CHECK(run({"replay", file.path(), "--stats", std::filesystem::temp_directory_path().string()}).code == 2);
    if (!std::filesystem::exists("/dev/full")) return;
    CHECK(run({"replay", file.path(), "--stats", "/dev/full"}).code == 2);
}

TEST_CASE("standard output that can't be written is an error", "[command]")
{
    if (!std::filesystem::exists("/dev/full")) return;
    const ScratchFile file{kGood};
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"replay", file.path(), "--stats", "-"},
          {"config", "--print"},
          {"policies"}}) {
        const Run refused = run(arguments, {"/dev/null", "/dev/full"});
        INFO(arguments[0]);
        CHECK(refused.code == 2);
    }
}

// ---- configuration

TEST_CASE("config --print shows what --config reads", "[command]")
{
    const Run defaults = run({"config", "--print"});
    CHECK(defaults.code == 0);
    CHECK(defaults.error.empty());
    CHECK(Json::parse(defaults.out)["mode"] == "shadow");
    CHECK(Json::parse(defaults.out)["policy"] == "xen");
    const std::vector<std::vector<std::string>> options{
        {},
        {"--mode", "native"},
        {"--mode", "5-on-5", "--policy", "tlb-like"},
        {"--p2m", "shuffled:7", "--audit", "3"},
        {"--p2m", "offset:0x100000", "--skip", "5", "--limit", "0"},
        {"--set", "shadow.populate=step", "--set", "check=true"},
        {"--check"}};
    for (const std::vector<std::string>& some : options) {
        std::vector<std::string> arguments{"config", "--print"};
        arguments.insert(arguments.end(), some.begin(), some.end());
        const Run printed = run(arguments);
        REQUIRE(printed.code == 0);
        const ScratchFile file{printed.out, ".json"};
        const Run again = run({"config", "--print", "--config", file.path()});
        CHECK(again.out == printed.out);
        if (!some.empty()) CHECK(printed.out != defaults.out);
    }
}

TEST_CASE("options win over settings, settings over the file", "[command]")
{
    const ScratchFile file{R"({"mode":"native","policy":"tlb-like","audit":1,"check":true} // comment)",
                           ".json"};
    const Json config = Json::parse(run({"config", "--print", "--config", file.path(), "--set", "audit=2",
                                         "--set", "mode=3-on-3", "--mode", "4-on-4"})
                                        .out);
    CHECK(config["mode"] == "4-on-4");
    CHECK(config["policy"] == "tlb-like");
    CHECK(config["audit"] == 2);
    CHECK(config["check"] == true);
}

TEST_CASE("a bad configuration is one line on standard error", "[command]")
{
    const ScratchFile good{kGood};
    const ScratchFile unknown{R"({"shadow":{"colour":1}})", ".json"};
    const ScratchFile broken{"{\"mode\":", ".json"};
    const ScratchFile twice{R"({"audit":1,"audit":1})", ".json"};
    struct Case {
        std::vector<std::string> options;
        std::vector<std::string> words;
    };
    const std::vector<Case> cases{
        {{"--policy", "nope"}, {"nope", "write-protect", "tlb-like"}},
        {{"--set", "policy=nope"}, {"nope", "write-protect", "tlb-like"}},
        {{"--mode", "nested?"}, {"mode", "nested?", "native"}},
        {{"--mode", "native", "--policy", "nope"}, {"nope"}},
        {{"--p2m", "random"}, {"p2m", "random", "shuffled"}},
        {{"--p2m", "offset:0xfffffffffffff"}, {"p2m"}},
        {{"--set", "audit"}, {"audit", "key.path=value"}},
        {{"--set", "nope=1"}, {"nope"}},
        {{"--set", "shadow.nope=1"}, {"shadow.nope"}},
        {{"--set", "audit=x"}, {"audit"}},
        {{"--config", "/nonexistent/c.json"}, {"/nonexistent/c.json"}},
        {{"--config", std::filesystem::temp_directory_path().string()}, {"directory"}},
        {{"--config", unknown.path()}, {unknown.path(), "shadow.colour"}},
        {{"--config", broken.path()}, {broken.path()}},
        {{"--config", twice.path()}, {twice.path(), "audit"}},
    };
    for (const Case& one : cases) {
        std::vector<std::string> arguments{"replay", good.path()};
        arguments.insert(arguments.end(), one.options.begin(), one.options.end());
        const Run refused = run(arguments);
        INFO(fmt::format("{}", fmt::join(one.options, " ")) << "\n" << refused.error);
        CHECK(refused.code == 2);
        CHECK(refused.out.empty());
        CHECK(is_one_plain_line(refused.error));
        CHECK(refused.error.starts_with("mmusim: "));
        for (const std::string& word : one.words) CHECK(has(refused.error, word));
    }
}

TEST_CASE("policies are listed with a line each, version says which this is", "[command]")
{
    const Run policies = run({"policies"});
    CHECK(policies.code == 0);
    CHECK(lines_of(policies.out).size() == builtin_shadow_policies().entries().size());
    std::size_t i = 0;
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const std::string& line : lines_of(policies.out)) {
        const ShadowPolicyCatalog::Entry& entry = catalog.entries()[i++];
        CHECK(line.starts_with(entry.name));
        CHECK(has(line, entry.description));
        CHECK(has(line, "default") == (entry.name == kDefaultShadowPolicy));
    }
    const Run version = run({"version"});
    CHECK(version.code == 0);
    CHECK(version.out == fmt::format("mmusim {}\n", kVersion));
}

// ---- traces

TEST_CASE("trace info shows the header and counts the records", "[command]")
{
    const std::map<std::string, std::vector<std::string>> words{
        {"amd64-4level",
         {"linux-6.1-amd64-4level", "400,267", "170,718", "95,529", "133,746", "nx pse pge", "65,536",
          "identity"}},
        {"686pae-pae", {"400,138", "144,667", "113,698", "141,628"}},
        {"686-2level", {"400,086", "136,895", "135,098", "127,995", "mov_cr3", "invlpg"}},
        {"amd64-bringup", {"452,741", "150,670", "2,054", "wrmsr", "la57"}}};
    for (const auto& [name, expected] : words) {
        const Run info = run({"trace", "info", bundled(name)});
        INFO(info.out << info.error);
        CHECK(info.code == 0);
        CHECK(info.error.empty());
        for (const std::string& word : expected) CHECK(has(info.out, word));
    }
}

TEST_CASE("trace validate tells a whole trace from one without end", "[command]")
{
    const Run whole = run({"trace", "validate", bundled("686-2level")});
    CHECK(whole.code == 0);
    CHECK(has(whole.out, "400,086 records"));
    CHECK(has(whole.out, "whole"));
    CHECK(!has(whole.out, "may have been cut"));
    const ScratchFile open{kGood};
    const Run maybe = run({"trace", "validate", open.path()});
    CHECK(maybe.code == 0);
    CHECK(has(maybe.out, "6 records"));
    CHECK(has(maybe.out, "may have been cut"));
    const ScratchFile cut{kGood.substr(0, kGood.size() - 5)};
    CHECK(run({"trace", "validate", cut.path()}).code == 2);
    for (const char* const name : {"four_level", "pae", "two_level", "pae-gp"}) {
        CHECK(run({"trace", "validate", fmt::format("tests/data/vectors/{}.jsonl.zst", name)}).code == 0);
    }
}

// ---- walk

TEST_CASE("walk explains accesses of the recordings", "[command]")
{
    for (const std::string& name : kRecordings) {
        // Records far apart that expect an address, one of each kind, and the first fault.
        TraceReader reader{bundled(name)};
        std::map<std::uint64_t, AccessRecord> picked;
        std::set<AccessKind> kinds;
        bool fault = false;
        for (Record record; reader.next(record) && reader.records() < 60000;) {
            const auto* access = std::get_if<AccessRecord>(&record);
            if (access == nullptr) continue;
            const bool first_of_kind = access->gpa && kinds.insert(access->kind).second;
            const bool first_fault = access->fault && !fault;
            fault |= access->fault.has_value();
            if (first_of_kind || first_fault || (access->gpa && reader.records() % 20000 == 0)) {
                picked.emplace(reader.records(), *access);
            }
        }
        REQUIRE(picked.size() >= 4);
        for (const auto& [number, access] : picked) {
            const Run walked = run({"walk", bundled(name), "--at", std::to_string(number)});
            INFO(name << " record " << number << "\n" << walked.out << walked.error);
            CHECK(walked.code == 0);
            CHECK(walked.error.empty());
            CHECK(has(walked.out, fmt::format("record {}", number)));
            CHECK(has(walked.out, fmt::format("{} of {} byte", name_of(access.kind), access.bytes)));
            CHECK(has(walked.out, fmt::format("{:#x}", access.address)));
            CHECK(has(walked.out, "guest-physical"));
            if (access.gpa) {
                CHECK(has(walked.out, fmt::format("verdict: guest-physical {:#x}, ", *access.gpa)));
            } else {
                CHECK(has(walked.out,
                          fmt::format("the guest sees #PF, error code {:#x}", access.fault->error_code)));
                CHECK(has(walked.out, fmt::format("CR2 {:#x}", access.address)));
            }
        }
    }
}

TEST_CASE("walk shows the machine address behind the P2M", "[command]")
{
    const ScratchFile file{kGood};
    const Run offset = run({"walk", file.path(), "--at", "6", "--p2m", "offset:0x500"});
    CHECK(offset.code == 0);
    CHECK(has(offset.out, "guest-physical 0x20000"));
    CHECK(has(offset.out, "0x520000"));
    const Run native = run({"walk", file.path(), "--at", "6", "--mode", "native"});
    CHECK(native.code == 0);
    CHECK(has(native.out, "guest-physical 0x20000"));
    CHECK(!has(native.out, "shadow"));
    const Run tlb_like =
        run({"walk", file.path(), "--at", "6", "--policy", "tlb-like", "--set", "shadow.populate=step"});
    CHECK(tlb_like.code == 0);
    CHECK(has(tlb_like.out, "guest-physical 0x20000"));
}

TEST_CASE("walk translates any address, at the end or before a record", "[command]")
{
    const ScratchFile file{kGood + R"({"op":"poke","gpa":"0x4080","size":8,"value":"0x55007"})"
                                   "\n"};
    CHECK(has(run({"walk", file.path(), "--la", "0x10123"}).out, "guest-physical 0x55123"));
    CHECK(has(run({"walk", file.path(), "--la", "0x10123", "--at", "7"}).out, "guest-physical 0x20123"));
    const Run write = run({"walk", file.path(), "--la", "0x13000", "--kind", "write", "--cpl", "3"});
    CHECK(write.code == 0);
    CHECK(has(write.out, "error code 0x7"));
    CHECK(has(write.out, "not writable"));
    const Run fetch = run({"walk", file.path(), "--la", "0x15000", "--kind", "fetch"});
    CHECK(has(fetch.out, "error code 0x11"));
    CHECK(has(fetch.out, "execute-disable"));
    CHECK(has(run({"walk", file.path(), "--la", "0x12000"}).out, "not present"));
    CHECK(has(run({"walk", file.path(), "--la", "0x16000"}).out, "outside RAM"));
    const Run refused = run({"walk", file.path(), "--la", "0x800000000000"});
    CHECK(refused.code == 0);
    CHECK(has(refused.out, "#GP"));
    CHECK(has(refused.out, "canonical"));
}

TEST_CASE("walk explains both pages of an access and all operands of an instruction", "[command]")
{
    const ScratchFile file{kGood + R"({"op":"write","la":"0x10ffc","size":8,"value":1})"
                                   "\n"
                                   R"({"op":"insn","la":"0x17000","mem":[{"op":"read","la":"0x11008"},)"
                                   R"({"op":"write","la":"0x10010"}]})"
                                   "\n"
                                   R"({"op":"read","va":"0x10010","seg":"fs"})"
                                   "\n"};
    const Run crossing = run({"walk", file.path(), "--at", "7"});
    CHECK(has(crossing.out, "guest-physical 0x20ffc"));
    CHECK(has(crossing.out, "guest-physical 0x31000"));
    const Run instruction = run({"walk", file.path(), "--at", "8"});
    CHECK(instruction.code == 0);
    for (const char* const address : {"0x36000", "0x31008", "0x20010"}) {
        CHECK(has(instruction.out, std::string{"guest-physical "} + address));
    }
    CHECK(has(run({"walk", file.path(), "--at", "9"}).out, "guest-physical 0x20010"));
}

TEST_CASE("walk refuses what is no access, in one line", "[command]")
{
    const ScratchFile file{kGood};
    struct Case {
        std::vector<std::string> options;
        std::string word;
    };
    for (const Case& one :
         {Case{{"--at", "1"}, "not an access"}, Case{{"--at", "7"}, "6 records"}, Case{{"--at", "0"}, "0"},
          Case{{}, "--at"}, Case{{"--la", "0", "--vcpu", "1"}, "vcpu"},
          Case{{"--at", "6", "--mode", "3-on-3"}, "3-on-3"}}) {
        std::vector<std::string> arguments{"walk", file.path()};
        arguments.insert(arguments.end(), one.options.begin(), one.options.end());
        const Run refused = run(arguments);
        INFO(fmt::format("{}", fmt::join(one.options, " ")) << "\n" << refused.error);
        CHECK(refused.code == 2);
        CHECK(is_one_plain_line(refused.error));
        CHECK(has(refused.error, one.word));
    }
    const ScratchFile narrow{Header{}.line() + two_level_guest()};
    const Run wide = run({"walk", narrow.path(), "--la", "0x100000000"});
    CHECK(wide.code == 2);
    CHECK(is_one_plain_line(wide.error));
}
