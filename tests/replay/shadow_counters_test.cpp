// SPDX-License-Identifier: Apache-2.0
//
// The shadow counters that a real Xen 4.17.7 showed in each phase of a guest program, against those of a
// replay of the same program under the policy `xen` (tests/data/shadow; reference/xen.md part I): every one
// equal.
#include <fstream>
#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

nlohmann::ordered_json expected()
{
    std::ifstream file{MMUSIM_SOURCE_DIR "/tests/data/shadow/expected_four_level_part.json"};
    return nlohmann::ordered_json::parse(file);
}

std::map<std::string, std::map<std::string, std::uint64_t>> phases_under(const ReplayConfig& config)
{
    TraceReader reader{MMUSIM_SOURCE_DIR "/tests/data/shadow/four_level_part.jsonl.zst"};
    Replayer replayer{reader.header(), config, builtin_shadow_policies()};
    Record record;
    while (reader.next(record)) replayer.replay(record);
    replayer.finish();
    CHECK(replayer.mismatches().empty());
    std::map<std::string, std::map<std::string, std::uint64_t>> phases;
    std::uint64_t pages = 0;
    for (const Phase& phase : replayer.phases()) {
        auto& counters = phases[phase.name];
        for (const ShadowCounterName& counter : kShadowCounterNames) {
            counters[std::string{counter.name}] = phase.statistics.shadow.*counter.member;
        }
        counters["change of alloc_count"] = phase.statistics.shadow.alloc_count - pages;
        pages = phase.statistics.shadow.alloc_count;
    }
    return phases;
}

}  // namespace

TEST_CASE("xen: the counters that a real hypervisor showed, phase by phase", "[replay]")
{
    const nlohmann::ordered_json real = expected();
    for (const char* cpu : {"none", "golden_cove"}) {
        ReplayConfig config;
        config.mode = TranslationMode::shadow_4_on_4;
        config.policy = "xen";
        config.cpu = cpu;
        config.clock = ClockKind::off;
        config.check = true;
        auto seen = phases_under(config);
        unsigned values = 0;
        for (const auto& phase : real.at("phases")) {
            const auto name = phase.at("name").get<std::string>();
            INFO(cpu << ", " << name);
            REQUIRE(seen.contains(name));
            auto& counters = seen[name];
            for (const auto& [counter, value] : phase.at("counters").items()) {
                INFO(counter);
                CHECK(counters[counter] == value.get<std::uint64_t>());  // one that mmusim has not counts 0
                ++values;
            }
            CHECK(counters["guest_walk"] ==
                  phase.at("derived").at("guest_walk_in_fault_handler").get<std::uint64_t>());
            CHECK(counters["change of alloc_count"] ==
                  phase.at("gauge_change").at("alloc_count").get<std::uint64_t>());
            values += 2;
        }
        CHECK(values == 792);
    }
}
