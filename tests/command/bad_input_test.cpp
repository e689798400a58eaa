// SPDX-License-Identifier: Apache-2.0
//
// Traces that are damaged, or make no sense: one clear line on standard error that names the file, the line
// and the key where there is one; exit code 2; and the statistics of what was replayed before, marked
// incomplete. Nothing of it takes more memory or time than the good part of the file.
#include <string>
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

/// Header and guest, then five reads: eleven lines, ten records.
const std::string kGood = [] {
    std::string text = Header{}.line() + four_level_guest();
    for (int i = 0; i < 5; ++i)
        text += R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                "\n";
    return text;
}();
constexpr std::uint64_t kGoodRecords = 10;
constexpr std::uint64_t kNextLine = 12;

/// Replays a bad file with statistics.
struct Refused {
    Run run;
    Json document;  ///< null if there is none

    explicit Refused(const std::string& path, const std::vector<std::string>& options = {})
    {
        const ScratchPath stats{".json"};
        std::vector<std::string> arguments{"replay", path, "--check", "--stats", stats.path()};
        arguments.insert(arguments.end(), options.begin(), options.end());
        run = command_test::run(arguments);
        if (std::filesystem::exists(stats.path())) document = Json::parse(content_of(stats.path()));
    }
};

void check_line(const Refused& refused, const std::string& path, const std::string& place,
                const std::string& words)
{
    INFO(path << place << " ... " << words << "\n" << refused.run.error.substr(0, 1000));
    CHECK(refused.run.code == 2);
    CHECK(is_one_plain_line(refused.run.error));
    CHECK(refused.run.error.starts_with("mmusim: " + path + place));
    CHECK(has(refused.run.error, words));
    CHECK(refused.run.error.size() < 600);
}

/// What was replayed before is in the document, and in the summary.
void check_document(const Refused& refused, std::uint64_t records, std::uint64_t checked)
{
    INFO(refused.document.dump(2));
    REQUIRE(refused.document.is_object());
    CHECK(refused.document["complete"] == false);
    CHECK(refused.document["trace"]["records"] == records);
    CHECK(refused.document["trace"]["sha256"].get<std::string>().size() == 64);
    CHECK(refused.document["checks"]["checked"] == checked);
    CHECK(refused.document["checks"]["mismatched"] == 0);
    CHECK(has(refused.run.out, "incomplete"));
}

struct BadLine {
    const char* line;
    const char* words;
};

}  // namespace

TEST_CASE("a bad line is named by its number and key, and what came before is reported",
          "[command][bad_input]")
{
    const std::vector<BadLine> bad{
        {"hello", "JSON"},
        {"", "empty line"},
        {"{}", "key \"op\""},
        {"[]", "object"},
        {"{\"op\":\"read\",\"la\":\"0x0\"", "JSON"},
        {R"({"op":"read","la":"0x0"} {"op":"read","la":"0x0"})", ""},
        {R"({"op":"read","la":"0x0","colour":1})", "key \"colour\""},
        {R"({"op":"red","la":"0x0"})", "unknown op \"red\""},
        {R"({"op":7})", "key \"op\""},
        {R"({"op":"read"})", "key \"la\""},
        {R"({"op":"read","la":"0x0","la":"0x0"})", "key \"la\""},
        {R"({"op":"read","la":"0x0","size":0})", "key \"size\""},
        {R"({"op":"read","la":"0x0","size":4097})", "key \"size\""},
        {R"({"op":"read","la":"0x0","size":"4"})", "key \"size\""},
        {R"({"op":"read","la":"0x0","size":-1})", "key \"size\""},
        {R"({"op":"read","la":"0x0","size":1.5})", "key \"size\""},
        {R"({"op":"read","la":"0x10000000000000000"})", "key \"la\""},
        {R"({"op":"read","la":"12"})", "key \"la\""},
        {R"({"op":"read","la":"0xg"})", "key \"la\""},
        {R"({"op":"read","la":-1})", "key \"la\""},
        {R"({"op":"read","la":null})", "key \"la\""},
        {R"({"op":"read","la":"0x0","cpl":4})", "key \"cpl\""},
        {R"({"op":"read","la":"0x0","vcpu":1})", "key \"vcpu\""},
        {R"({"op":"read","la":"0x0","rmw":1})", "key \"rmw\""},
        {R"({"op":"read","la":"0x0","fault":"pf"})", "key \"fault\""},
        {R"({"op":"read","va":"0x0","seg":"xs"})", "key \"seg\""},
        {R"({"op":"write","la":"0x0","size":1,"value":256})", "key \"value\""},
        {R"({"op":"write","la":"0x0","size":9,"value":0})", "key \"value\""},
        {R"({"op":"write","la":"0x0","size":2,"bytes":"00"})", "key \"bytes\""},
        {R"({"op":"insn","la":"0x0","mem":[{"op":"fetch","la":"0x0"}]})", "key \"op\""},
        {R"({"op":"mov_cr3"})", "key \"value\""},
        {R"({"op":"mov_cr3","value":"0x1000","fault":"ss"})", "key \"fault\""},
        {R"({"op":"wrpkru","value":"0x100000000"})", "key \"value\""},
        {R"({"op":"set","cr5":0})", "key \"cr5\""},
        {R"({"op":"set","cr4":"0x8000"})", "CR4"},
        {R"({"op":"set","cr0":"0x80000000"})", "CR0.PG needs CR0.PE"},
        {R"({"op":"set","cr3":"0x10000000000"})", "CR3"},
        {R"({"op":"page","gfn":"0x100","width":8,"entries":[]})", "key \"gfn\""},
        {R"({"op":"page","gfn":"0x10","width":2,"entries":[]})", "key \"width\""},
        {R"({"op":"page","gfn":"0x10","width":8,"entries":[[512,0]]})", "key \"entries\""},
        {R"({"op":"poke","gpa":"0x100000","size":8,"value":0})", "key \"gpa\""},
        {R"({"op":"poke","gpa":"0xfff","size":2,"value":0})", "key \"gpa\""},
        {R"({"op":"poke","gpa":"0xff0","size":3,"value":0})", "key \"size\""},
        {R"({"op":"expect_memory","gpa":"0x100000","size":8,"value":0})", "key \"gpa\""},
        {R"({"op":"end","records":9})", "key \"records\""},
        {R"({"op":"frame","mfn":0,"owner":"self"})", "frame"},
        {R"({"format":"mmusim-trace","version":1})", ""},
        {"{\"op\":\"mark\",\"name\":\"\xff\xfe\"}", ""},
        {"{\"op\":\"mark\",\"name\":\"a\tb\"}", ""},
        {"{\"op\":\"mark\",\"name\":\"\\ud800\"}", ""},
        {"{\"op\":\"mark\",\"name\":3}", "key \"name\""},
        // What stands in the file does not reach the terminal as it is.
        {"{\"op\":\"\\u001b[31mred\"}", ""},
        {"{\"op\":\"read\",\"\\u001b[31m\\n\":1}", ""},
        {"\033[31m", ""},
    };
    for (const BadLine& one : bad) {
        const ScratchFile file{kGood + one.line + "\n" +
                               R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                               "\n"};
        const Refused refused{file.path()};
        INFO(one.line);
        check_line(refused, file.path(), fmt::format(":{}", kNextLine), one.words);
        // A record that is refused as it is replayed was read: it counts as a record, and as nothing else.
        const std::uint64_t records =
            refused.document.is_object() ? refused.document["trace"]["records"].get<std::uint64_t>() : 0;
        CHECK((records == kGoodRecords || records == kGoodRecords + 1));
        check_document(refused, records, 5);
    }
}

TEST_CASE("a number in a bad line may have any form, its place is still known", "[command][bad_input]")
{
    for (const char* const line :
         {"{\"op\":\"read\",\"la\":1e999}", "{\"op\":\"read\",\"la\":01}", "{\"op\":\"read\",\"la\":+1}",
          "{\"op\":\"read\",\"la\":0x10}", "{\"op\":\"read\",\"la\":NaN}"}) {
        const ScratchFile file{kGood + line + "\n"};
        const Refused refused{file.path()};
        INFO(line);
        check_line(refused, file.path(), fmt::format(":{}:", kNextLine), "");
        check_document(refused, kGoodRecords, 5);
    }
}

TEST_CASE("a linear address that is too wide is a bad line", "[command][bad_input]")
{
    const ScratchFile file{Header{}.line() + two_level_guest() +
                           R"({"op":"read","la":"0x100000000"})"
                           "\n"};
    const Refused refused{file.path()};
    check_line(refused, file.path(), ":6", "key \"la\"");
    REQUIRE(refused.document.is_object());
    CHECK(refused.document["complete"] == false);
    CHECK(refused.document["accesses"]["total"] == 0);
}

TEST_CASE("a mode that does not fit is an error of the line that needs another", "[command][bad_input]")
{
    const ScratchFile file{kGood};
    for (const char* const mode : {"2-on-3", "3-on-3", "5-on-5"}) {
        const Refused refused{file.path(), {"--mode", mode}};
        check_line(refused, file.path(), ":7", mode);
        REQUIRE(refused.document.is_object());
        CHECK(refused.document["complete"] == false);
        CHECK(refused.document["accesses"]["total"] == 0);
        CHECK(refused.document["config"]["mode"] == mode);
    }
}

TEST_CASE("a file that was cut is an error wherever it was cut", "[command][bad_input]")
{
    const std::string text = kGood + R"({"op":"end","records":10})"
                                     "\n";
    const std::size_t header = text.find('\n') + 1;
    for (std::size_t length = header + 1; length < text.size(); length += 7) {
        if (text[length - 1] == '\n') continue;  // between two lines; only `end` could tell
        const ScratchFile file{text.substr(0, length)};
        const Refused refused{file.path()};
        const auto line =
            1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(length), '\n');
        check_line(refused, file.path(), fmt::format(":{}", line), "");
        REQUIRE(refused.document.is_object());
        CHECK(refused.document["complete"] == false);
        CHECK(refused.document["trace"]["records"] == line - 2);
    }
    const ScratchFile cut_header{text.substr(0, header - 1)};
    CHECK(Refused{cut_header.path()}.run.code == 2);
}

TEST_CASE("a packed file that was cut or damaged is an error, and its good part counts",
          "[command][bad_input]")
{
    const std::string stored = content_of(bundled("686-2level"));
    REQUIRE(stored.size() > 300000);
    for (const std::size_t length : {stored.size() / 2, stored.size() - 1, stored.size() - 4}) {
        const ScratchFile file{stored.substr(0, length), ".jsonl.zst"};
        const Refused refused{file.path(), {"--mode", "native"}};
        check_line(refused, file.path(), ":", "zstd");
        REQUIRE(refused.document.is_object());
        CHECK(refused.document["complete"] == false);
        CHECK(refused.document["trace"]["records"] > 100000);
        CHECK(refused.document["checks"]["mismatched"] == 0);
    }
    for (const std::size_t at : {stored.size() / 2, stored.size() * 3 / 4}) {
        std::string damaged = stored;
        for (std::size_t i = 0; i < 64; ++i) damaged[at + i] = static_cast<char>(~damaged[at + i]);
        const ScratchFile file{damaged, ".jsonl.zst"};
        const Refused refused{file.path(), {"--mode", "native"}};
        check_line(refused, file.path(), ":", "");
        REQUIRE(refused.document.is_object());
        CHECK(refused.document["complete"] == false);
        CHECK(refused.document["trace"]["records"] > 50000);
    }
    // Another frame, or anything else, after the last.
    const ScratchFile more{packed(kGood) + "garbage", ".jsonl.zst"};
    const Refused refused{more.path()};
    check_line(refused, more.path(), ":", "zstd");
    check_document(refused, kGoodRecords, 5);
    const ScratchFile two{packed(kGood) + packed(R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                                                 "\n"),
                          ".jsonl.zst"};
    CHECK(run({"replay", two.path(), "--check"}).code == 0);
}

TEST_CASE("what is no trace at all is refused in one line", "[command][bad_input]")
{
    const std::string header = Header{}.line();
    const auto changed = [&](const std::string& from, const std::string& to) {
        std::string text = header;
        text.replace(text.find(from), from.size(), to);
        return text;
    };
    struct Case {
        std::string text;
        std::string suffix;
        std::string words;
    };
    const std::vector<Case> cases{
        {"", ".jsonl", "empty"},
        {"", ".jsonl.zst", "empty"},
        {packed(""), ".jsonl.zst", "empty"},
        {"\n", ".jsonl", "line"},
        {"   ", ".jsonl", ""},
        {"hello\n", ".jsonl", "JSON"},
        {kGood, ".jsonl.zst", "zstd"},
        {std::string(1000, '\0'), ".jsonl", ""},
        {"{\"op\":\"read\",\"la\":\"0x0\"}\n", ".jsonl", "header"},
        {"\xef\xbb\xbf" + header, ".jsonl", "byte order mark"},
        {changed("mmusim-trace", "other-trace"), ".jsonl", "key \"format\""},
        {changed("\"version\":1", "\"version\":2"), ".jsonl", "key \"version\""},
        {changed("\"kind\":\"hvm\"", "\"kind\":\"pv\""), ".jsonl", "kind"},
        {changed("\"nx\"", "\"nix\""), ".jsonl", "nix"},
        {changed("\"vcpus\":1", "\"vcpus\":0"), ".jsonl", "vcpus"},
        {changed("\"physical_address_bits\":40", "\"physical_address_bits\":53"), ".jsonl",
         "physical_address_bits"},
        {changed("\"count\":\"0x100\"", "\"count\":\"0x10000001\""), ".jsonl", "ram"},
        {changed("\"fetch\":\"instruction\"", "\"fetch\":\"page\""), ".jsonl", "fetch"},
        {changed("\"name\":\"hand-written\",", ""), ".jsonl", "name"},
        {changed("\"name\":", "\"colour\":1,\"name\":"), ".jsonl", "colour"},
        {header.substr(0, header.size() - 2) + "\n", ".jsonl", "JSON"},
    };
    for (const Case& one : cases) {
        const ScratchFile file{one.text, one.suffix};
        INFO(one.text.substr(0, 300));
        check_line(Refused{file.path()}, file.path(), ":", one.words);
        for (const std::vector<std::string>& arguments :
             {std::vector<std::string>{"trace", "info", file.path()},
              {"trace", "validate", file.path()},
              {"walk", file.path(), "--la", "0"}}) {
            const Run refused = run(arguments);
            CHECK(refused.code == 2);
            CHECK(refused.out.empty());
            CHECK(is_one_plain_line(refused.error));
            CHECK(has(refused.error, file.path()));
        }
    }
}

TEST_CASE("a file that can't be read is named with the reason", "[command][bad_input]")
{
    const std::string missing = "/nonexistent/t.jsonl";
    check_line(Refused{missing}, missing, ":", "No such file");
    const std::string folder = std::filesystem::temp_directory_path().string();
    check_line(Refused{folder}, folder, ":", "directory");
    check_line(Refused{"-"}, "-", ":", "empty");
    // Reading address 0 of a process fails as a bad sector does.
    if (std::filesystem::exists("/proc/self/mem")) {
        check_line(Refused{"/proc/self/mem"}, "/proc/self/mem", ":", "can't be read");
    }
    const ScratchFile secret{kGood};
    ::chmod(secret.path().c_str(), 0);
    if (::access(secret.path().c_str(), R_OK) != 0) {  // root may read all
        check_line(Refused{secret.path()}, secret.path(), ":", "ermission");
    }
}

TEST_CASE("statistics on standard output are JSON alone, also of a bad trace", "[command][bad_input]")
{
    const ScratchFile file{kGood + "hello\n"};
    const Run refused = run({"replay", file.path(), "--stats", "-"});
    CHECK(refused.code == 2);
    const Json document = Json::parse(refused.out);
    CHECK(document["complete"] == false);
    CHECK(document["trace"]["records"] == kGoodRecords);
    CHECK(has(refused.error, "incomplete"));
    CHECK(has(refused.error, fmt::format("{}:{}:", file.path(), kNextLine)));
}

TEST_CASE("records before an error keep their mismatches and phases", "[command][bad_input]")
{
    const ScratchFile file{kGood + R"({"op":"mark","name":"roi"})"
                                   "\n"
                                   R"({"op":"read","la":"0x10000","gpa":"0x0"})"
                                   "\n"
                                   "hello\n"};
    const Refused refused{file.path()};
    check_line(refused, file.path(), ":14", "");
    CHECK(has(refused.run.out, "mismatch at record 12"));
    REQUIRE(refused.document.is_object());
    CHECK(refused.document["checks"].dump() == R"({"checked":6,"mismatched":1,"stale":0})");
    REQUIRE(refused.document["phases"].size() == 2);
    CHECK(refused.document["phases"][1]["name"] == "roi");
}

TEST_CASE("what is legal, though odd, is no error", "[command][bad_input]")
{
    const ScratchFile file{
        Header{}.line() + four_level_guest() +
        lines({R"({"op":"poke","gpa":"0x1ff8","size":8,"value":"0x1007"})",
               R"({"op":"poke","gpa":"0x4000","size":8,"value":"0xfffffff007"})",
               R"({"op":"poke","gpa":"0x2008","size":8,"value":"0xffffffe007"})",
               R"({"op":"read","la":"0xfffffffffffff000","size":8,"gpa":"0x1000"})",
               R"({"op":"write","la":"0x0","size":8,"value":1,"gpa":"0xfffffff000"})",
               R"({"op":"read","la":"0x40000000","fault":0})", R"({"op":"invlpg","la":"0x8000000000000000"})",
               R"({"op":"mark","name":""})", R"({"op":"mark","name":""})", R"({"op":"shadow_blow"})",
               R"({"op":"reset"})", R"({"op":"end","records":16})"})};
    for (const char* const mode : {"shadow", "native"}) {
        const Run replayed = run({"replay", file.path(), "--check", "--mode", mode, "--audit", "1"});
        INFO(replayed.out << replayed.error);
        CHECK(replayed.code == 0);
        CHECK(replayed.error.empty());
        CHECK(has(replayed.out, "3 expectations, 0 mismatches"));
    }
    CHECK(run({"trace", "validate", file.path()}).code == 0);
}

// ---- size

TEST_CASE("a line of 4 GB is refused in little memory", "[command][bad_input]")
{
    const std::uint64_t baseline = run({"version"}).peak_bytes;
    const auto check_bounded = [&](const std::string& path, const std::string& place) {
        const Run refused = run({"replay", path, "--check"});
        INFO(refused.error << refused.peak_bytes / kMiB << " MiB, " << baseline / kMiB
                           << " MiB for `version`");
        CHECK(refused.code == 2);
        CHECK(is_one_plain_line(refused.error));
        CHECK(refused.error.starts_with("mmusim: " + path + place));
        CHECK(has(refused.error, "longer than"));
        CHECK(refused.peak_bytes < baseline + 500 * kMiB);  // about 50; sanitizers keep what was freed
    };
    // As a sparse file: the header's line, and a later one.
    for (const std::string& start : {std::string{}, kGood}) {
        const ScratchFile sparse{start};
        std::error_code no_room;
        std::filesystem::resize_file(sparse.path(), std::uint64_t{1} << 32, no_room);
        if (no_room) continue;  // a file system without large files
        check_bounded(sparse.path(), start.empty() ? ":1:" : fmt::format(":{}:", kNextLine));
    }
    // Packed, 4 GiB become a few KiB: 64 frames of 64 MiB.
    for (const char fill : {'\0', ' ', '{', '"'}) {
        const std::string frame = packed(std::string(64 * kMiB, fill));
        std::string frames = packed(kGood);
        for (int i = 0; i < 64; ++i) frames += frame;
        const ScratchFile file{frames, ".jsonl.zst"};
        check_bounded(file.path(), fmt::format(":{}:", kNextLine));
    }
}

TEST_CASE("a zstd frame that asks for gigabytes is refused in little memory", "[command][bad_input]")
{
    // Magic number; a frame header with a window of 2 GiB, no content size; the block never comes.
    const ScratchFile file{std::string{"\x28\xb5\x2f\xfd\x00\xa8\x00\x00\x00", 9}, ".jsonl.zst"};
    const std::uint64_t baseline = run({"version"}).peak_bytes;
    const Run refused = run({"replay", file.path()});
    INFO(refused.error);
    CHECK(refused.code == 2);
    CHECK(is_one_plain_line(refused.error));
    CHECK(refused.peak_bytes < baseline + 200 * kMiB);
}

TEST_CASE("a deeply nested line is refused", "[command][bad_input]")
{
    std::string nested(1 << 20, '[');
    for (const std::string& line : {nested, R"({"op":"set","segments":)" + nested, R"({"op":)" + nested,
                                    R"({"op":"page","gfn":1,"width":8,"entries":)" + nested}) {
        const ScratchFile file{kGood + line + "\n"};
        const Refused refused{file.path()};
        check_line(refused, file.path(), fmt::format(":{}:", kNextLine), "");
        check_document(refused, kGoodRecords, 5);
    }
    // In the header, where anything may stand in `meta`.
    std::string header = Header{}.line();
    header.replace(header.size() - 2, 1, ",\"meta\":{\"a\":" + nested + "}");
    const ScratchFile deep{header};
    const Run refused = run({"trace", "info", deep.path()});
    CHECK(refused.code == 2);
    CHECK(is_one_plain_line(refused.error));
}
