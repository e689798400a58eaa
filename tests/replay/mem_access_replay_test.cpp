// SPDX-License-Identifier: Apache-2.0
//
// The records `mem_access` and the expectation `event` in a trace: what holds, what does not, and what the
// statistics say of it.
#include <nlohmann/json.hpp>

#include "replay/replay_run.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// The page at 0x10000 leads to the frame 0x20, the one at 0x11000 to 0x31.
const std::string kWatched = lines({
    R"({"op":"mem_access","gfn":"0x20","access":"r"})",
    R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
    R"({"op":"write","la":"0x10008","size":8,"value":7,"gpa":"0x20008",)"
    R"("event":{"kind":"mem_access","gfn":"0x20","rights":"w"}})",
    R"({"op":"write","la":"0x10008","size":8,"value":8,"event":{"kind":"mem_access","gfn":"0x20","rights":"rw"}})",
    R"({"op":"expect_memory","gpa":"0x20008","size":8,"value":8})",
    R"({"op":"fetch","la":"0x10000","event":{"kind":"mem_access","gfn":"0x20","rights":"x"}})",
    R"({"op":"mem_access","default":true,"access":"rw"})",
    R"({"op":"fetch","la":"0x11000","event":{"kind":"mem_access","gfn":"0x31","rights":"x"}})",
    R"({"op":"write","la":"0x10000"})",
    R"({"op":"mem_access","listener":"detached","default":true,"access":"rx"})",
    R"({"op":"write","la":"0x11000","gpa":"0x31000"})",
    R"({"op":"reset"})",
    R"({"op":"write","la":"0x20000","gpa":"0x20000"})",
});

ReplayConfig plain()
{
    ReplayConfig config;
    config.check = true;
    config.cpu = "none";
    config.clock = ClockKind::off;
    return config;
}

}  // namespace

TEST_CASE("mem_access records and events in a trace", "[replay][mem_access]")
{
    for (const NamedGuest& guest : paging_guests()) {
        for (ReplayConfig config : all_setups()) {
            if (config.mode == TranslationMode::native) continue;
            INFO(guest.name << " " << describe(config));
            const Outcome outcome = replay_text(Header{}.line() + guest.records + kWatched, config);
            INFO(outcome.error << describe(outcome.mismatches));
            CHECK(outcome.error.empty());
            CHECK(outcome.total.checks == Statistics::Checks{9, 0, 0});
            const MemAccessCounts& counts = outcome.total.hardware.mem_access;
            CHECK(counts.events == 4);
            CHECK(counts.single_steps == 4);
            CHECK(counts.stopped == 0);
            CHECK(counts.unheard >= 1);
        }
    }
}

TEST_CASE("events that do not come, or not as expected", "[replay][mem_access]")
{
    const auto mismatches = [](const std::string& records, const ReplayConfig& config = plain()) {
        const Outcome outcome = replay_text(Header{}.line() + four_level_guest() + records, config);
        INFO(outcome.error);
        CHECK(outcome.error.empty());
        return outcome.mismatches;
    };
    const std::string expected = R"("event":{"kind":"mem_access","gfn":"0x20","rights":"w"}})";
    const auto none = mismatches(lines({R"({"op":"write","la":"0x10000",)" + expected}));
    REQUIRE(none.size() == 1);
    CHECK(none[0].expected == "event of frame 0x20, rights rw");
    CHECK(none[0].happened == "no event");
    const auto other = mismatches(lines(
        {R"({"op":"mem_access","gfn":"0x20","access":"x"})", R"({"op":"read","la":"0x10000",)" + expected}));
    REQUIRE(other.size() == 1);
    CHECK(other[0].happened == "event of frame 0x20, rights r");

    // An access that is not done has no place, and stores nothing.
    ReplayConfig resume = plain();
    resume.event_response = EventAction::resume;
    const auto undone =
        mismatches(lines({R"({"op":"mem_access","gfn":"0x20","access":"r"})",
                          R"({"op":"write","la":"0x10000","size":8,"value":1,"gpa":"0x20000",)" + expected,
                          R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":0})"}),
                   resume);
    REQUIRE(undone.size() == 1);
    CHECK(undone[0].expected == "guest-physical address 0x20000");
    // With "allow" the first event of a frame is the last.
    ReplayConfig allow = plain();
    allow.event_response.reset();
    CHECK(mismatches(lines({R"({"op":"mem_access","gfn":"0x20","access":"r"})",
                            R"({"op":"write","la":"0x10000",)" + expected,
                            R"({"op":"write","la":"0x10000",)" + expected}),
                     allow)
              .size() == 1);
    // In an instruction, each with its operand.
    CHECK(mismatches(lines({R"({"op":"mem_access","gfn":"0x20","access":"r"})",
                            R"({"op":"insn","la":"0x11000","mem":[{"op":"read","la":"0x10000"},)"
                            R"({"op":"write","la":"0x10000",)" +
                                expected + "]}"}))
              .empty());
}

TEST_CASE("mem_access records that make no sense", "[replay][mem_access]")
{
    const auto error = [](const std::string& record, const ReplayConfig& config) {
        return replay_text(Header{}.line() + lines({record}), config).error;
    };
    const std::string set = R"({"op":"mem_access","gfn":"0x20","access":"r"})";
    ReplayConfig native = plain();
    native.mode = TranslationMode::native;
    CHECK_FALSE(error(set, native).empty());
    CHECK_FALSE(error(R"({"op":"mem_access","gfn":"0xfffff","access":"r"})", plain()).empty());
    ReplayConfig no_ring = plain();
    no_ring.event_ring_pages = 0;
    CHECK(error(set, no_ring).empty());
    CHECK_FALSE(error(R"({"op":"mem_access","listener":"attached"})", no_ring).empty());
    const std::string ends =
        R"({"op":"mem_access","listener":"detached","required":true,"gfn":"0x20","access":"r"})";
    const std::string ended =
        replay_text(Header{}.line() + lines({ends, R"({"op":"write","la":"0x20000"})"}), plain()).error;
    CHECK(ended.find("ended the domain") != std::string::npos);
}

TEST_CASE("mem_access in the statistics", "[replay][mem_access]")
{
    StatisticsDocument document;
    document.total.hardware.mem_access.events = 3;
    CHECK_FALSE(to_json(document).contains("mem_access"));
    document.mem_access = true;
    const auto json = to_json(document);
    CHECK(json.at("mem_access").at("events") == 3);
    CHECK(json.at("mem_access").at("stopped") == 0);
    CHECK(json.at("mem_access").size() == kMemAccessCountNames.size());
}
