// SPDX-License-Identifier: Apache-2.0
//
// The record `log_dirty` in a trace: what it expects, what it counts, and what is wrong with it.
#include <nlohmann/json.hpp>

#include "replay/replay_run.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// The page at 0x10000 leads to the frame 0x20, that at 0x11000 to 0x31. All are accessed and dirty first.
const std::string kLogged = lines({
    R"({"op":"write","la":"0x10000"})",
    R"({"op":"write","la":"0x11000"})",
    R"({"op":"mark","name":"logged"})",
    R"({"op":"log_dirty","action":"enable"})",
    R"({"op":"log_dirty","action":"peek","expect":[]})",
    R"({"op":"read","la":"0x10000"})",
    R"({"op":"log_dirty","action":"peek","expect":[]})",
    R"({"op":"write","la":"0x11000"})",
    R"({"op":"write","la":"0x10000"})",
    R"({"op":"write","la":"0x10008"})",
    R"({"op":"log_dirty","action":"clean","expect":["0x31","0x20"]})",
    R"({"op":"mark","name":"cleaned"})",
    R"({"op":"write","la":"0x11000"})",
    R"({"op":"poke","gpa":"0x38000","size":1,"value":0})",
    R"({"op":"log_dirty","action":"peek","expect":["0x31","0x38"]})",
    R"({"op":"log_dirty","action":"disable"})",
    R"({"op":"write","la":"0x10000"})",
});

}  // namespace

TEST_CASE("log_dirty records in a trace", "[replay][log_dirty]")
{
    for (const NamedGuest& guest : paging_guests()) {
        for (ReplayConfig config : all_setups()) {
            if (config.mode == TranslationMode::native || config.mode == TranslationMode::nested) continue;
            INFO(guest.name << " " << describe(config));
            const Outcome outcome = replay_text(Header{}.line() + guest.records + kLogged, config);
            INFO(outcome.error << describe(outcome.mismatches));
            CHECK(outcome.error.empty());
            CHECK(outcome.total.checks == Statistics::Checks{4, 0, 0});
            const LogDirtyCounters& counters = outcome.total.hardware.log_dirty;
            CHECK(counters.dirty_count == 4);
            CHECK(counters.enables == 1);
            CHECK(counters.peeks == 3);
            CHECK(counters.cleans == 1);
            CHECK(counters.pages_of_trie == 0);
            REQUIRE(outcome.phases.size() == 3);
            CHECK(outcome.phases[1].statistics.hardware.log_dirty.dirty_count == 2);
            CHECK(outcome.phases[1].statistics.hardware.log_dirty.pages_of_trie == 4);
            CHECK(outcome.phases[2].statistics.hardware.log_dirty.dirty_count == 2);
        }
    }
}

TEST_CASE("log_dirty records: what does not hold, and what is refused", "[replay][log_dirty]")
{
    const auto replayed = [](std::initializer_list<const char*> records, ReplayConfig config = {}) {
        std::string text = Header{}.line() + four_level_guest();
        for (const char* const record : records) text += std::string{record} + '\n';
        config.check = true;
        return replay_text(text, config);
    };
    const char* const enable = R"({"op":"log_dirty","action":"enable"})";
    const Outcome wrong = replayed({enable, R"({"op":"log_dirty","action":"clean","expect":[1,2]})"});
    CHECK(wrong.error.empty());
    REQUIRE(wrong.mismatches.size() == 1);
    CHECK(wrong.mismatches[0].expected == "2 dirty frames: 0x1 0x2");
    CHECK(wrong.mismatches[0].happened == "0 dirty frames:");

    const auto has = [](const Outcome& outcome, const char* text) {
        INFO(outcome.error);
        CHECK(outcome.error.find(text) != std::string::npos);
    };
    has(replayed({enable, enable}), "it is on already (-EINVAL)");
    has(replayed({R"({"op":"log_dirty","action":"disable"})"}), "it is off (-EINVAL)");
    has(replayed({enable, R"({"op":"reset"})", R"({"op":"log_dirty","action":"peek"})"}),
        "it is off (-EINVAL)");
    ReplayConfig native;
    native.mode = TranslationMode::native;
    has(replayed({enable}, native), "is for a hypervisor to do");
    ReplayConfig nested;
    nested.mode = TranslationMode::nested;
    has(replayed({enable}, nested), "log_dirty needs shadows");
    ReplayConfig small;
    small.shadow_pool_pages = 64;
    has(replayed({enable, R"({"op":"write","la":"0x10000"})", R"({"op":"log_dirty","action":"peek"})"},
                 small),
        "(-ENOMEM)");
}
