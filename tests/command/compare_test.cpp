// SPDX-License-Identifier: Apache-2.0
//
// `mmusim compare`: a row for each combination, sorted by cycles, the same for any number of threads, and
// each row what a replay of its own says.
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using mmusim::test::content_of;
using mmusim::test::ScratchFile;

namespace {

using Json = nlohmann::ordered_json;

const std::string kTrace = MMUSIM_SOURCE_DIR "/traces/linux-6.1-686-2level.jsonl.zst";

}  // namespace

TEST_CASE("compare: rows by cycles, each as a replay of its own", "[command][compare]")
{
    const Run compared = run({"compare", kTrace, "--policy", "write-protect,xen,tlb-like", "--mode",
                              "2-on-3,native", "--limit", "60000", "--json", "-"});
    CHECK(compared.code == 0);
    CHECK(compared.error.empty());
    const Json document = Json::parse(compared.out);
    CHECK(document.at("schema") == "mmusim-comparison");
    const Json& rows = document.at("rows");
    REQUIRE(rows.size() == 4);  // natively there is no policy
    CHECK(rows[0].at("mode") == "native");
    CHECK(rows[0].at("policy") == "-");
    CHECK(rows[0].at("exits") == 0);
    std::uint64_t last = 0;
    for (const Json& row : rows) {
        INFO(row.dump());
        const auto cycles = row.at("cycles").get<std::uint64_t>();
        CHECK(cycles >= last);
        last = cycles;
        std::uint64_t by_kind = 0;
        for (const char* const kind :
             {"exits", "faults", "shadows", "search", "emulate", "flush", "memory", "guest"}) {
            by_kind += row.at(std::string{"cycles_"} + kind).get<std::uint64_t>();
        }
        CHECK(by_kind == cycles);
        std::vector<std::string> arguments{"replay",  kTrace, "--limit", "60000",
                                           "--stats", "-",    "--mode",  row.at("mode").get<std::string>()};
        if (row.at("policy") != "-") {
            arguments.insert(arguments.end(), {"--policy", row.at("policy").get<std::string>()});
        }
        const Json alone = Json::parse(run(arguments).out);
        CHECK(alone.at("cycles").at("total") == row.at("cycles"));
        if (row.at("policy") != "-") {
            CHECK(alone.at("shadow").at("fault_fixed") == row.at("faults_fixed"));
            CHECK(alone.at("shadow").at("alloc_count").get<std::uint64_t>() <=
                  row.at("shadow_pages_peak").get<std::uint64_t>());
        }
    }
}

TEST_CASE("compare: the number of threads changes nothing", "[command][compare]")
{
    const auto with = [](const char* threads, const char* format) {
        return run({"compare", kTrace, "--policy", "xen,xen-2006,tlb-like", "--limit", "20000", "--cpu",
                    "golden_cove,zen4", "--threads", threads, format, "-"});
    };
    for (const char* format : {"--json", "--csv"}) {
        const Run one = with("1", format);
        CHECK(one.code == 0);
        CHECK(lines_of(one.out).size() > 6);
        for (const char* threads : {"2", "3", "16"}) CHECK(with(threads, format).out == one.out);
    }
}

TEST_CASE("compare: the table, and files beside it", "[command][compare]")
{
    const ScratchFile csv{"", ".csv"};
    const Run table = run({"compare", kTrace, "--policy", "xen", "--limit", "2000", "--csv", csv.path()});
    CHECK(table.code == 0);
    CHECK(table.out.starts_with("policy  mode "));
    CHECK(has(table.out, "\nxen "));
    CHECK(content_of(csv.path()).starts_with("policy,mode,cpu,cycles,exits,faults_fixed,"));
}

TEST_CASE("compare: what is refused", "[command][compare]")
{
    const Run unknown = run({"compare", kTrace, "--policy", "xen,nope"});
    CHECK(unknown.code == 2);
    CHECK(has(unknown.error, "unknown shadow policy 'nope'; known: xen, "));
    const Run small = run({"compare", kTrace, "--policy", "tlb-like", "--mode", "4-on-4"});
    CHECK(small.code == 2);
    CHECK(has(small.error, "4-on-4, policy tlb-like: "));
    CHECK(has(small.error, "does not fit"));
    const Run missing = run({"compare", "/nonexistent.jsonl", "--policy", "xen"});
    CHECK(missing.code == 2);
    const Run pipe = run({"compare", "/dev/null"});
    CHECK(pipe.code == 2);
    CHECK(has(pipe.error, "must be a file"));
}
