// SPDX-License-Identifier: Apache-2.0
//
// The access vectors of tests/data/vectors: one access, one answer, and every table entry afterwards. The
// answers come from the manuals and were seen on real machines. They have to be the same whoever translates:
// the hardware on the guest's own tables, or shadows of any policy, step and P2M layout. How many
// expectations a file has was counted in its text.
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

struct Vectors {
    const char* name;
    TranslationMode shadow_mode;
    std::uint64_t checked;
    Statistics::Accesses accesses;
};

// checked: `gpa` and `fault` of accesses and register records, and `expect_memory`.
constexpr std::array<Vectors, 4> kVectors{{
    {"four_level", TranslationMode::shadow_4_on_4, 719 + 2281 + 12000, {935, 2206, 1070}},
    {"pae", TranslationMode::shadow_3_on_3, 1280 + 1720 + 9000, {1003, 1545, 1071}},
    {"two_level", TranslationMode::shadow_2_on_3, 1519 + 1481 + 6000, {997, 1549, 1051}},
    {"pae-gp", TranslationMode::shadow_3_on_3, 700, {0, 0, 0}},
}};

std::string file_of(const Vectors& vectors)
{
    return std::string{MMUSIM_SOURCE_DIR} + "/tests/data/vectors/" + vectors.name + ".jsonl.zst";
}

/// All replays of a file; what a guest can count is the same in each.
void replay_everywhere(const Vectors& vectors)
{
    std::optional<std::uint64_t> guest_faults;
    std::vector<ReplayConfig> setups = all_setups();
    for (const ReplayConfig& nested : nested_setups()) setups.push_back(nested);
    for (ReplayConfig config : setups) {
        if (config.mode == TranslationMode::shadow) config.mode = vectors.shadow_mode;
        config.audit = 97;
        const Outcome outcome = replay_file(file_of(vectors), config);
        INFO(vectors.name << ", " << describe(config) << "\n" << describe(outcome.mismatches));
        CHECK(outcome.error.empty());
        CHECK(outcome.total.checks.mismatched == 0);
        CHECK(outcome.total.checks.checked == vectors.checked);
        CHECK(outcome.total.accesses == vectors.accesses);
        if (!guest_faults) guest_faults = outcome.total.guest_faults;
        CHECK(outcome.total.guest_faults == *guest_faults);
    }
}

}  // namespace

TEST_CASE("four-level access vectors hold in every mode, policy and layout", "[replay][vectors]")
{
    replay_everywhere(kVectors[0]);
}

TEST_CASE("PAE access vectors hold in every mode, policy and layout", "[replay][vectors]")
{
    replay_everywhere(kVectors[1]);
}

TEST_CASE("two-level access vectors hold in every mode, policy and layout", "[replay][vectors]")
{
    replay_everywhere(kVectors[2]);
}

TEST_CASE("PDPTEs with reserved bits are refused in every mode, policy and layout", "[replay][vectors]")
{
    replay_everywhere(kVectors[3]);
}

TEST_CASE("access vectors hold without an explicit shadow mode", "[replay][vectors]")
{
    for (const Vectors& vectors : kVectors) {
        const Outcome outcome = replay_file(file_of(vectors), checking());
        INFO(vectors.name << "\n" << describe(outcome.mismatches));
        CHECK(outcome.total.checks == Statistics::Checks{vectors.checked, 0});
    }
}

TEST_CASE("an access vector with another answer is noticed", "[replay][vectors]")
{
    // Every expectation of the first cases is made wrong, one at a time.
    for (const Vectors& vectors : kVectors) {
        TraceReader reader{file_of(vectors)};
        std::vector<Record> records;
        for (Record record; records.size() < 300 && reader.next(record);) records.push_back(record);
        std::uint64_t expectations = 0;
        for (std::size_t wrong = 0; wrong < records.size(); ++wrong) {
            std::vector<Record> changed = records;
            bool is_expectation = true;
            if (auto* access = std::get_if<AccessRecord>(&changed[wrong])) {
                if (access->gpa) {
                    *access->gpa ^= 0x1000;
                } else if (access->fault) {
                    access->fault->error_code ^= 1;
                } else {
                    is_expectation = false;
                }
            } else if (auto* memory = std::get_if<ExpectMemoryRecord>(&changed[wrong])) {
                memory->value ^= 0x40;
            } else if (auto* write = std::get_if<RegisterWriteRecord>(&changed[wrong]);
                       write && write->fault) {
                write->fault.reset();
            } else {
                is_expectation = false;
            }
            if (!is_expectation) continue;
            ++expectations;
            Replayer replayer{reader.header(), checking(), builtin_shadow_policies()};
            for (const Record& record : changed) replayer.replay(record);
            replayer.finish();
            INFO(vectors.name << ", record " << wrong + 1);
            CHECK(replayer.total().checks.mismatched == 1);
            REQUIRE(replayer.mismatches().size() == 1);
            CHECK(replayer.mismatches()[0].record == wrong + 1);
        }
        CHECK(expectations > 40);
    }
}
