// SPDX-License-Identifier: Apache-2.0
//
// The records `secure_frames` and `secure_mode` in a trace, and what is wrong with them where there is no
// hypervisor.
#include <nlohmann/json.hpp>

#include "replay/replay_run.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// The page at 0x10000 leads to the frame 0x20, which is secure; 0x11000 to another.
const std::string kVisits = lines({
    R"({"op":"secure_frames","gfns":["0x20"]})",
    R"({"op":"read","la":"0x10000","fault":1,"cr2":"0x10000"})",
    R"({"op":"secure_mode","value":1})",
    R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
    R"({"op":"secure_mode","value":0})",
    R"({"op":"write","la":"0x10008","size":8,"value":1,"fault":3})",
    R"({"op":"expect_memory","gpa":"0x20008","size":8,"value":0})",
    R"({"op":"read","la":"0x11000","gpa":"0x31000"})",
    R"({"op":"reset"})",
    R"({"op":"read","la":"0x20000","gpa":"0x20000"})",
});

}  // namespace

TEST_CASE("secure records in a trace", "[replay][secure]")
{
    for (const NamedGuest& guest : paging_guests()) {
        for (ReplayConfig config : all_setups()) {
            if (config.mode == TranslationMode::native) continue;
            INFO(guest.name << " " << describe(config));
            const Outcome outcome = replay_text(Header{}.line() + guest.records + kVisits, config);
            INFO(outcome.error << describe(outcome.mismatches));
            CHECK(outcome.error.empty());
            CHECK(outcome.total.checks == Statistics::Checks{7, 0, 0});
            CHECK(outcome.total.guest_faults == 2);
            // The hypervisor gives them to the guest, as those that are the guest's own.
            CHECK(outcome.total.shadow.fault_bail_real_fault == 2);
        }
    }
}

TEST_CASE("hazards in the statistics and by record", "[replay][secure]")
{
    // The guest's level-1 table maps itself at 0x18000; its root is the value of CR3 that needs no exit.
    const std::string text =
        Header{}.line() + four_level_guest() +
        lines({
            R"({"op":"read","la":"0x10000","gpa":"0x20000"})",              // record 6
            R"({"op":"write","la":"0x18800","size":8,"value":0})",          // out of sync
            R"({"op":"write","la":"0x18080","size":8,"value":"0x21067"})",  // the entry of 0x10000
            R"({"op":"mark","name":"roi"})",                                //
            R"({"op":"mov_cr3","value":"0x1000"})",                         // record 10
            R"({"op":"read","la":"0x10000"})",                              //
        });
    for (const bool list : {true, false}) {
        ReplayConfig config;
        config.cpu = "none";
        config.clock = ClockKind::off;
        config.check_coherence = true;
        if (list) config.cr3_targets = {0x1000};
        CHECK(can_have_hazards(config) == list);
        TraceReader reader{ScratchFile{text}.path()};
        Replayer replayer{reader.header(), config, builtin_shadow_policies()};
        for (Record record; reader.next(record);) replayer.replay(record);
        replayer.finish();
        const MachineCounters& total = replayer.total().hardware;
        HazardCounts expected;
        expected.stale_shadows = list ? 1 : 0;
        CHECK(total.hazards == expected);
        CHECK(total.unseen_switches == (list ? 1 : 0));
        CHECK(total.coherence.violations == (list ? 1 : 0));
        CHECK(replayer.hazards().size() == (list ? 1 : 0));
        if (list) CHECK(replayer.hazards()[0].record == 10);
        // Seen, MOV CR3 is an exit whose resync makes the entry right; unseen, nothing exits.
        REQUIRE(replayer.phases().size() == 2);
        CHECK(replayer.phases()[1].statistics.hardware.hazards == expected);
        CHECK(replayer.phases()[1].statistics.hardware.exits == (list ? 0 : 1));

        StatisticsDocument document;
        document.hazards = can_have_hazards(config);
        document.total = replayer.total();
        const auto json = to_json(document);
        CHECK(json.contains("hazards") == list);
        CHECK(json.contains("unseen_switches") == list);
        if (list) {
            CHECK(json["unseen_switches"] == 1);
            CHECK(json["hazards"].size() == kHazardNames.size());
            CHECK(json["hazards"]["stale_shadows"] == 1);
            CHECK(json["hazards"]["root_references"] == 0);
        }
    }
}

TEST_CASE("secure records where there is no hypervisor", "[replay][secure]")
{
    ReplayConfig config = checking();
    config.mode = TranslationMode::native;
    for (const char* const record :
         {R"({"op":"secure_frames","gfns":[]})", R"({"op":"secure_mode","value":0})"}) {
        const Outcome outcome = replay_text(Header{}.line() + four_level_guest() + lines({record}), config);
        INFO(record);
        CHECK(outcome.error.find("mode native has none") != std::string::npos);
        CHECK(outcome.key == "op");
    }
}
