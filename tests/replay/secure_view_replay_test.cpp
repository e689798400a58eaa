// SPDX-License-Identifier: Apache-2.0
//
// The records `secure_frames` and `secure_mode` in a trace, and what is wrong with them where there is no
// hypervisor.
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
