// SPDX-License-Identifier: Apache-2.0
//
// `mmusim migrate`: the same numbers as a table, CSV and JSON, and clear errors.
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;

namespace {

using Json = nlohmann::ordered_json;

const std::string kTrace = MMUSIM_SOURCE_DIR "/traces/linux-6.1-686-2level.jsonl.zst";

}  // namespace

TEST_CASE("migrate: table, CSV and JSON", "[command][migrate]")
{
    const Run run_json = run({"migrate", kTrace, "--rounds", "3", "--limit", "30000", "--json", "-"});
    CHECK(run_json.code == 0);
    CHECK(run_json.error.empty());
    const Json json = Json::parse(run_json.out);
    CHECK(json.at("schema") == "mmusim-migration");
    const Json& rounds = json.at("rounds");
    REQUIRE(rounds.size() == 3);
    CHECK(rounds[0].at("pages_sent") == json.at("ram_pages"));
    CHECK(rounds[2].at("pages_sent") == rounds[1].at("pages_dirtied"));
    CHECK(json.at("downtime_pages") == rounds[2].at("pages_dirtied"));
    std::uint64_t faults = 0;
    for (const Json& round : rounds) faults += round.at("faults").get<std::uint64_t>();
    CHECK(json.at("all").at("faults") == faults);

    const Run csv = run({"migrate", kTrace, "--rounds", "3", "--limit", "30000", "--csv", "-"});
    CHECK(csv.code == 0);
    std::string expected =
        "round,records,pages_sent,pages_dirtied,faults,faults_untracked,exits,exits_untracked,cycles,"
        "cycles_untracked\n";
    for (std::size_t i = 0; i < rounds.size(); ++i) {
        expected += std::to_string(i);
        for (const auto& item : rounds[i].items()) expected += fmt::format(",{}", item.value().dump());
        expected += '\n';
    }
    CHECK(csv.out == expected);

    const Run table = run({"migrate", kTrace, "--rounds", "3", "--limit", "30000", "--clock", "off"});
    CHECK(table.code == 0);
    CHECK(table.out.find("cycles") == std::string::npos);
    CHECK(table.out.find(fmt::format("downtime: {} pages;", json.at("downtime_pages").dump())) !=
          std::string::npos);
    CHECK(table.out == run({"migrate", kTrace, "--rounds", "3", "--limit", "30000", "--clock", "off"}).out);
}

TEST_CASE("migrate: errors", "[command][migrate]")
{
    const auto refused = [](std::vector<std::string> arguments, const char* why) {
        arguments.insert(arguments.begin(), "migrate");
        const Run one = run(arguments);
        INFO(one.error);
        CHECK(one.code == 2);
        CHECK(one.out.empty());
        CHECK(one.error.find(why) != std::string::npos);
    };
    refused({kTrace, "--mode", "native"}, "no hypervisor");
    refused({kTrace, "--mode", "nested"}, "under shadows alone");
    refused({kTrace, "--rounds", "0"}, "at least one round");
    refused({kTrace, "--bandwidth", "100", "--clock", "off"}, "need a clock");
    refused({kTrace, "--bandwidth", "0"}, "nothing is ever sent");
    refused({kTrace, "--set", "shadow.pool_pages=100"}, "shadow.pool_pages must be larger");
    refused({kTrace, "--skip", "100000000"}, "no access beyond record");
    refused({"/nowhere.jsonl"}, "/nowhere.jsonl");
}
