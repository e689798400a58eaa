// SPDX-License-Identifier: Apache-2.0
//
// The statistics document (docs/statistics.md): its names are a contract with tools outside the project, and
// what was not modelled is absent, never 0.
#include <mmusim/replay/statistics.hpp>

#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mmusim/version.hpp>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

using Json = nlohmann::ordered_json;
using Names = std::vector<std::string>;

Names names_of(const Json& object)
{
    Names names;
    for (const auto& [name, value] : object.items()) names.push_back(name);
    return names;
}

const std::string kTrace = Header{}.line() + four_level_guest() +
                           R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                           "\n"
                           R"({"op":"mark","name":"roi"})"
                           "\n"
                           R"({"op":"write","la":"0x12000","gpa":"0x0"})"
                           "\n"
                           R"({"op":"fetch","la":"0x11000"})"
                           "\n";

Json document_of(const std::string& text, const ReplayConfig& config)
{
    const Outcome outcome = replay_text(text, config);
    const Json configuration = to_json(config);
    StatisticsDocument document;
    document.config = &configuration;
    document.trace_name = "hand-written";
    document.trace_sha256 = "00ff";
    document.shadow = has_shadows(config);
    document.nested = config.mode == TranslationMode::nested;
    document.total = outcome.total;
    document.phases = outcome.phases;
    document.host = {2.0, 4096};
    return to_json(document);
}

/// Adds the numbers of `more`, whose members are the same.
void add(Json& sum, const Json& more)
{
    for (const auto& [name, value] : more.items()) {
        if (value.is_object()) {
            add(sum[name], value);
        } else if (value.is_number()) {
            const std::uint64_t before = sum.contains(name) ? sum[name].get<std::uint64_t>() : 0;
            sum[name] = before + value.get<std::uint64_t>();
        }
    }
}

const Names kShadowCounters{"alloc",
                            "free",
                            "alloc_count",
                            "fault",
                            "fault_bail_real_fault",
                            "fault_emulate_write",
                            "fault_emulate_wp",
                            "fault_mmio",
                            "fault_fixed",
                            "fault_linked",
                            "guest_walk",
                            "hash_lookups",
                            "hash_lookup_miss",
                            "hash_inserts",
                            "hash_deletes",
                            "writeable",
                            "invlpg",
                            "validate_gl1e_calls",
                            "validate_gl2e_calls",
                            "validate_gl3e_calls",
                            "validate_gl4e_calls",
                            "validate_gl5e_calls"};

}  // namespace

TEST_CASE("the statistics document has its names, and no others", "[replay][statistics]")
{
    for (const ReplayConfig& config : all_setups()) {
        const Json json = document_of(kTrace, config);
        const bool shadow = config.mode != TranslationMode::native;
        INFO(json.dump(2));
        Names names{"schema",       "version", "mmusim", "complete", "config", "trace", "accesses",
                    "guest_faults", "checks",  "walks",  "shadow",   "phases", "host"};
        if (!shadow) std::erase(names, "shadow");
        CHECK(names_of(json) == names);
        CHECK(json["schema"] == "mmusim-stats");
        CHECK(json["version"] == 1);
        CHECK(json["mmusim"] == kVersion);
        CHECK(json["complete"] == true);
        CHECK(json["config"] == to_json(config));
        CHECK(names_of(json["trace"]) == Names{"name", "records", "sha256"});
        CHECK(json["trace"]["records"] == 9);
        CHECK(names_of(json["accesses"]) == Names{"total", "fetch", "read", "write"});
        CHECK(json["accesses"].dump() == R"({"total":3,"fetch":1,"read":1,"write":1})");
        CHECK(json["guest_faults"] == 1);
        CHECK(json["checks"].dump() == R"({"checked":2,"mismatched":1,"stale":0})");
        CHECK(names_of(json["walks"]) == Names{"count", "memory_references"});
        CHECK(names_of(json["host"]) == Names{"seconds", "accesses_per_second", "peak_memory_bytes"});
        CHECK(json["host"]["accesses_per_second"] == 1.5);
        if (shadow) {
            const Names found = names_of(json["shadow"]);
            for (const std::string& name : kShadowCounters) {
                CHECK(std::count(found.begin(), found.end(), name) == 1);
            }
        }
        REQUIRE(json["phases"].is_array());
        REQUIRE(json["phases"].size() == 2);
        for (const Json& phase : json["phases"]) {
            Names members{"name", "accesses", "guest_faults", "checks", "walks", "shadow"};
            if (!shadow) std::erase(members, "shadow");
            CHECK(names_of(phase) == members);
            for (const char* const member : {"accesses", "checks", "walks"}) {
                CHECK(names_of(phase[member]) == names_of(json[member]));
            }
        }
        CHECK(json["phases"][0]["name"] == "");
        CHECK(json["phases"][1]["name"] == "roi");
    }
}

TEST_CASE("in nested mode the document has what the second level did", "[replay][statistics][nested]")
{
    for (ReplayConfig config : nested_setups()) {
        config.nested.largest_page = 1;
        config.nested.levels = 4;
        const Json json = document_of(kTrace, config);
        INFO(json.dump(2));
        CHECK_FALSE(json.contains("shadow"));
        const Json& second = json["second_level"];
        CHECK(names_of(second) == Names{"tlb", "walks", "violations", "exits", "flushes"});
        // Two accesses read 4 entries of the guest's tables and translate a page, one stops at the last
        // entry.
        const bool cached = config.nested.tlb_entries != 0;
        CHECK(second["tlb"]["lookups"] == (cached ? 14 : 0));
        CHECK(second["walks"]["memory_references"] == second["walks"]["count"].get<unsigned>() * 4);
        CHECK(json["walks"]["count"] == 3);
        CHECK(json["walks"]["memory_references"] ==
              second["walks"]["memory_references"].get<unsigned>() + 12);
        if (cached) {
            CHECK(second["tlb"]["lookups"] ==
                  second["tlb"]["hits"].get<unsigned>() + second["walks"]["count"].get<unsigned>());
        } else {
            CHECK(second["walks"]["count"] == 14);
        }
        CHECK(second["violations"].dump() ==
              R"({"total":0,"of_tables":0,"reads":0,"writes":0,"fetches":0,"misconfigurations":0})");
        CHECK(second["exits"] == 0);
        Json sum;
        for (const Json& phase : json["phases"]) add(sum, phase["second_level"]);
        CHECK(sum == second);
    }
}

TEST_CASE("what is not modelled is absent from the document", "[replay][statistics]")
{
    for (const ReplayConfig& config : all_setups()) {
        const Json json = document_of(kTrace, config);
        for (const char* const name : {"cycles", "tlb", "paging_structure_cache", "pv"}) {
            CHECK(!json.contains(name));
            CHECK(!json["phases"][0].contains(name));
        }
        CHECK(!json["walks"].contains("cycles"));
        CHECK(json.contains("shadow") == (config.mode != TranslationMode::native));
    }
}

TEST_CASE("the phases of the document add up to its whole", "[replay][statistics]")
{
    const std::string text = kTrace +
                             R"({"op":"mark","name":"again"})"
                             "\n"
                             R"({"op":"reset"})"
                             "\n" +
                             two_level_guest() +
                             R"({"op":"write","la":"0x10ffe","size":4,"gpa":"0x20ffe"})"
                             "\n";
    for (const ReplayConfig& config : all_setups()) {
        const Json json = document_of(text, config);
        Json sum = Json::object();
        for (Json phase : json["phases"]) {
            phase.erase("name");
            add(sum, phase);
        }
        if (sum.contains("shadow"))
            sum["shadow"]["alloc_count"] = json["phases"].back()["shadow"]["alloc_count"];
        INFO(json.dump(2));
        REQUIRE(!sum.empty());
        for (const auto& [name, value] : sum.items()) CHECK(json[name] == value);
    }
}

TEST_CASE("the same run gives the same document", "[replay][statistics]")
{
    for (const ReplayConfig& config : all_setups()) {
        CHECK(document_of(kTrace, config).dump(2) == document_of(kTrace, config).dump(2));
    }
}

TEST_CASE("the walks of the document are the hardware's", "[replay][statistics]")
{
    // Three accesses: the tables are read level by level, a fault at the last included.
    ReplayConfig native = checking();
    native.mode = TranslationMode::native;
    CHECK(document_of(kTrace, native)["walks"].dump() == R"({"count":3,"memory_references":12})");
    const std::string pae = Header{}.line() + pae_guest() +
                            R"({"op":"read","la":"0x10000"})"
                            "\n";
    // PDPTEs are registers.
    CHECK(document_of(pae, native)["walks"].dump() == R"({"count":1,"memory_references":2})");
    const std::string off = Header{}.line() + R"({"op":"read","la":"0x10000"})"
                                              "\n";
    CHECK(document_of(off, native)["walks"].dump() == R"({"count":0,"memory_references":0})");
}

TEST_CASE("a document without time has no rate", "[replay][statistics]")
{
    const Json json = to_json(StatisticsDocument{});
    CHECK(json["host"]["seconds"] == 0.0);
    CHECK(json["host"]["accesses_per_second"] == 0.0);
    CHECK(json["phases"].is_array());
    CHECK(json["phases"].empty());
    StatisticsDocument incomplete;
    incomplete.complete = false;
    CHECK(to_json(incomplete)["complete"] == false);
}

TEST_CASE("statistics add counts and keep the later gauge", "[replay][statistics]")
{
    Statistics one;
    one.records = 1;
    one.accesses = {1, 2, 3};
    one.guest_faults = 4;
    one.checks = {5, 6};
    one.hardware.walks = 7;
    one.hardware.memory_references = 8;
    one.hardware.tlbs = {{1, 2, 3, 4, 5, 6}};
    one.hardware.paging_structure_caches[3] = {9, 8};
    one.hardware.cycles = {10, 20};
    std::uint64_t next = 10;
    for (const ShadowCounterName& counter : kShadowCounterNames) one.shadow.*counter.member = next++;
    Statistics two = one;
    two.shadow.alloc_count = 3;
    Statistics sum = one;
    sum.add(two);
    CHECK(sum.records == 2);
    CHECK(sum.accesses == Statistics::Accesses{2, 4, 6});
    CHECK(sum.guest_faults == 8);
    CHECK(sum.checks == Statistics::Checks{10, 12});
    CHECK(sum.hardware.walks == 14);
    CHECK(sum.hardware.memory_references == 16);
    CHECK(sum.hardware.tlbs == std::vector<TlbCounters>{{2, 4, 6, 8, 10, 12}});
    CHECK(sum.hardware.paging_structure_caches[3] == PagingStructureCacheCounters{18, 16});
    CHECK(sum.hardware.cycles == std::vector<Cycles>{20, 40});
    CHECK(sum.shadow.alloc == 20);
    CHECK(sum.shadow.alloc_count == 3);
    const Statistics back = sum.since(one);
    CHECK(back == two);
    std::set<std::string_view> names;
    for (const ShadowCounterName& counter : kShadowCounterNames) CHECK(names.insert(counter.name).second);
}
