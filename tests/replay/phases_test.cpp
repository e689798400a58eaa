// SPDX-License-Identifier: Apache-2.0
//
// What is counted when: phases between marks, records skipped, a limit, audits. Phases add up to the whole,
// counter by counter; a gauge is the value at the end.
#include <random>
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

const std::string kLong = Header{}.line() + four_level_guest();
const std::string kRead = R"({"op":"read","la":"0x10000","gpa":"0x20000"})"
                          "\n";
const std::string kFault = R"({"op":"write","la":"0x12000","gpa":"0x20000"})"
                           "\n";

std::string mark(const std::string& name)
{
    return R"({"op":"mark","name":")" + name + "\"}\n";
}

std::vector<std::string> names_of(const Outcome& outcome)
{
    std::vector<std::string> names;
    for (const Phase& phase : outcome.phases) names.push_back(phase.name);
    return names;
}

using Names = std::vector<std::string>;

/// The sum of all phases, apart from the records: a mark belongs to none.
void check_sum(const Outcome& outcome)
{
    Statistics sum;
    for (const Phase& phase : outcome.phases) sum.add(phase.statistics);
    sum.records = outcome.total.records;
    CHECK(sum == outcome.total);
}

}  // namespace

TEST_CASE("a phase runs from its mark to the next one or the end", "[replay][phases]")
{
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(kLong + kRead + mark("roi") + kRead + kFault + mark("two words") +
                                                mark("roi") + kRead + kRead +
                                                R"({"op":"reset"})"
                                                "\n" +
                                                mark("") + kRead + mark("last"),
                                            config);
        INFO(describe(config));
        CHECK(names_of(outcome) == Names{"", "roi", "two words", "roi", "", "last"});
        REQUIRE(outcome.phases.size() == 6);
        const auto phase = [&](std::size_t i) -> const Statistics& { return outcome.phases[i].statistics; };
        CHECK(phase(0).accesses == Statistics::Accesses{0, 1, 0});
        CHECK(phase(1).accesses == Statistics::Accesses{0, 1, 1});
        CHECK(phase(1).guest_faults == 1);
        CHECK(phase(1).checks == Statistics::Checks{2, 1});
        CHECK(phase(2).accesses.total() == 0);
        CHECK(phase(2).checks == Statistics::Checks{0, 0});
        CHECK(phase(3).accesses.read == 2);
        CHECK(phase(4).accesses.read == 1);
        CHECK(phase(5).accesses.total() == 0);
        check_sum(outcome);
        if (config.mode != TranslationMode::native) {
            CHECK(phase(1).shadow.alloc_count > 0);
            CHECK(phase(2).shadow.alloc_count == phase(1).shadow.alloc_count);
            CHECK(phase(2).shadow.alloc == 0);
            CHECK(phase(5).shadow.alloc_count == outcome.total.shadow.alloc_count);
        }
    }
}

TEST_CASE("what stands before the first mark is a phase only if something stands there", "[replay][phases]")
{
    CHECK(names_of(replay_text(Header{}.line())).empty());
    CHECK(names_of(replay_text(Header{}.line() + mark("a"))) == Names{"a"});
    CHECK(names_of(replay_text(Header{}.line() + mark("a") + mark("a"))) == Names{"a", "a"});
    CHECK(names_of(replay_text(kLong)) == Names{""});
    CHECK(names_of(replay_text(kLong + mark("warmup x"))) == Names{"", "warmup x"});
    CHECK(names_of(replay_text(Header{}.line() + mark("a") +
                               R"({"op":"end","records":1})"
                               "\n")) == Names{"a"});
}

TEST_CASE("the names of phases are kept verbatim", "[replay][phases]")
{
    const Outcome outcome = replay_text(Header{}.line() + mark(R"(a \"b\" \\ \n ü 中  )") + mark(" roi"));
    CHECK(names_of(outcome) == Names{"a \"b\" \\ \n \u00fc \u4e2d  ", " roi"});
}

TEST_CASE("a trace without marks is one phase, equal to the whole", "[replay][phases]")
{
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(kLong + kRead + kFault, config);
        REQUIRE(outcome.phases.size() == 1);
        CHECK(outcome.phases[0].name.empty());
        CHECK(outcome.phases[0].statistics == outcome.total);
    }
}

TEST_CASE("phases add up whatever stands between the marks", "[replay][phases]")
{
    for (unsigned seed = 1; seed <= 15; ++seed) {
        std::mt19937 random{seed};
        std::string text = kLong;
        const std::vector<std::string> pieces{
            kRead,
            kFault,
            mark("a"),
            mark("roi"),
            R"({"op":"write","la":"0x18090","size":8,"value":"0x37007"})"
            "\n",
            R"({"op":"write","la":"0x18090","size":8,"value":"0x0"})"
            "\n",
            R"({"op":"invlpg","la":"0x12000"})"
            "\n",
            R"({"op":"mov_cr3","value":"0x1000"})"
            "\n",
            R"({"op":"shadow_blow"})"
            "\n",
            R"({"op":"reset"})"
            "\n",
            four_level_guest(),
            two_level_guest(),
            R"({"op":"expect_memory","gpa":"0x20000","size":1,"value":0})"
            "\n",
            R"({"op":"insn","la":"0x11000","mem":[{"op":"write","la":"0x10000"},{"op":"write","la":"0x12000"}]})"
            "\n",
        };
        std::size_t marks = 0;
        for (int i = 0; i < 60; ++i) {
            const std::size_t which = random() % pieces.size();
            if (which == 2 || which == 3) ++marks;
            text += pieces[which];
        }
        INFO("seed " << seed);
        for (const ReplayConfig& config : all_setups()) {
            const Outcome outcome = replay_text(text, config);
            INFO(describe(config));
            CHECK(outcome.error.empty());
            CHECK(outcome.phases.size() == marks + 1);
            check_sum(outcome);
        }
    }
}

TEST_CASE("records skipped are replayed, but neither counted nor checked", "[replay][phases]")
{
    const std::string text = kLong + kRead + kFault + kRead + kRead;
    for (ReplayConfig config : all_setups()) {
        config.skip = 7;
        const Outcome outcome = replay_text(text, config);
        INFO(describe(config));
        CHECK(outcome.total.records == 2);
        CHECK(outcome.total.accesses == Statistics::Accesses{0, 2, 0});
        CHECK(outcome.total.guest_faults == 0);
        CHECK(outcome.total.checks == Statistics::Checks{2, 0});
        CHECK(outcome.total.hardware.walks == 2);
        CHECK(outcome.mismatches.empty());
        CHECK(outcome.total.shadow.fault == 0);
        if (config.mode != TranslationMode::native) CHECK(outcome.total.shadow.alloc_count > 0);
        CHECK(names_of(outcome) == Names{""});
        CHECK(outcome.phases[0].statistics == outcome.total);
    }
}

TEST_CASE("a mismatch after skipped records has its number in the file", "[replay][phases]")
{
    ReplayConfig config = checking();
    config.skip = 6;
    const Outcome outcome = replay_text(kLong + kRead + kRead + kFault, config);
    REQUIRE(outcome.mismatches.size() == 1);
    CHECK(outcome.mismatches[0].record == 8);
}

TEST_CASE("a skipped mark names the phase that the first counted record is in", "[replay][phases]")
{
    ReplayConfig config = checking();
    config.skip = 8;
    const Outcome outcome = replay_text(
        kLong + mark("early") + kRead + mark("warmup") + kRead + mark("roi") + kRead + kRead, config);
    CHECK(names_of(outcome) == Names{"warmup", "roi"});
    CHECK(outcome.phases[0].statistics.accesses.read == 1);
    CHECK(outcome.phases[1].statistics.accesses.read == 2);
    CHECK(outcome.total.accesses.read == 3);
    check_sum(outcome);
}

TEST_CASE("skipping more than there is leaves nothing counted", "[replay][phases]")
{
    for (const std::uint64_t skip : {std::uint64_t{6}, std::uint64_t{1000}, ~std::uint64_t{0}}) {
        ReplayConfig config = checking();
        config.skip = skip;
        const Outcome outcome = replay_text(kLong + kRead, config);
        CHECK(outcome.total.records == 0);
        CHECK(outcome.total.accesses.total() == 0);
        CHECK(outcome.total.checks.checked == 0);
        CHECK(outcome.total.hardware.walks == 0);
        CHECK(outcome.phases.empty());
    }
}

TEST_CASE("a limit stops after so many records beyond those skipped", "[replay][phases]")
{
    const std::string text = kLong + kRead + kRead + kFault + kRead;
    struct Case {
        std::uint64_t skip;
        std::uint64_t limit;
        std::uint64_t read;  // of the file
        std::uint64_t accesses;
    };
    for (const Case& one :
         {Case{0, 0, 0, 0}, Case{0, 5, 5, 0}, Case{0, 6, 6, 1}, Case{6, 2, 8, 2}, Case{5, 0, 5, 0},
          Case{5, 100, 9, 4}, Case{0, ~std::uint64_t{0}, 9, 4}, Case{8, ~std::uint64_t{0}, 9, 1}}) {
        ReplayConfig config = checking();
        config.skip = one.skip;
        config.limit = one.limit;
        const Outcome outcome = replay_text(text, config);
        INFO("skip " << one.skip << ", limit " << one.limit);
        CHECK(outcome.records == one.read);
        CHECK(outcome.total.accesses.total() == one.accesses);
        CHECK(outcome.total.records == one.read - one.skip);
    }
}

TEST_CASE("the pieces of a trace, skipped and limited, add up to the whole", "[replay][phases]")
{
    const std::string path = bundled("686-2level");
    ReplayConfig config = checking();
    config.limit = 60000;
    const Outcome whole = replay_file(path, config);
    for (const char* const policy : {"write-protect", "tlb-like"}) {
        config.policy = policy;
        config.skip = 0;
        config.limit = 60000;
        const Outcome all = replay_file(path, config);
        Statistics sum;
        config.limit = 20000;
        for (const std::uint64_t skip : {0u, 20000u, 40000u}) {
            config.skip = skip;
            sum.add(replay_file(path, config).total);
        }
        CHECK(sum == all.total);
        CHECK(all.total.accesses == whole.total.accesses);
    }
}

TEST_CASE("an audit is made every so many records", "[replay][phases]")
{
    // All setups audit each record and find nothing, so that is the only thing to see: what an audit finds
    // ends the replay with an AuditFailure. Counting is not disturbed.
    ReplayConfig config = checking();
    const Outcome plain = replay_text(kLong + kRead + kFault, config);
    for (const std::uint64_t audit : {1u, 2u, 1000u}) {
        config.audit = audit;
        CHECK(replay_text(kLong + kRead + kFault, config).total == plain.total);
    }
}
