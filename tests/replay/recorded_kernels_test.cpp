// SPDX-License-Identifier: Apache-2.0
//
// What real kernels did to a real MMU (traces/): three processes' worth of Linux under each paging mode, and
// one that switches paging on, off and on again. Each recorded address, value and fault has to come out of
// the simulation, whoever translates. The counts below are those of the recordings, counted in their text; so
// this also says that no record is left out.
//
// That the check can fail is checked too: the same traces without some of their records must not hold.
#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

struct Recording {
    const char* name;
    TranslationMode shadow_mode;
    std::uint64_t records;
    Statistics::Accesses accesses;  ///< fetch, read, write
    std::uint64_t expected_gpa;
    std::uint64_t expected_faults;
    std::uint64_t expected_values;  ///< loads from tables
    std::uint64_t expect_memory;
    std::uint64_t stores;  ///< to tables

    [[nodiscard]] std::uint64_t expectations() const
    {
        return expected_gpa + expected_faults + expected_values + expect_memory;
    }
};

constexpr Recording kAmd64{"amd64-4level",
                           TranslationMode::shadow_4_on_4,
                           400267,
                           {170718, 95529, 133746},
                           399820,
                           35,
                           5710,
                           0,
                           3434};
constexpr Recording k686Pae{
    "686pae-pae", TranslationMode::shadow_3_on_3, 400138, {144667, 113698, 141628}, 399895, 19, 4438, 0,
    4815};
constexpr Recording k686{
    "686-2level", TranslationMode::shadow_2_on_3, 400086, {136895, 135098, 127995}, 399907, 13, 3032, 0,
    12809};
constexpr Recording kBringUp{
    "amd64-bringup", TranslationMode::shadow, 452741, {150670, 149515, 150485}, 450670, 0, 1025, 2054, 1538};
constexpr std::array<Recording, 4> kRecordings{kAmd64, k686Pae, k686, kBringUp};

struct Trace {
    TraceHeader header;
    std::vector<Record> records;
};

using Filter = std::function<bool(const Record&)>;

Trace load(const Recording& recording, const Filter& keep = {})
{
    TraceReader reader{bundled(recording.name)};
    Trace trace{reader.header(), {}};
    trace.records.reserve(recording.records);
    for (Record record; reader.next(record);) {
        if (!keep || keep(record)) trace.records.push_back(record);
    }
    return trace;
}

/// Replays without reading the file again.
Outcome replay(const Trace& trace, const ReplayConfig& config)
{
    Replayer replayer{trace.header, config, builtin_shadow_policies()};
    for (const Record& record : trace.records) replayer.replay(record);
    replayer.finish();
    return {replayer.total(), replayer.phases(), replayer.mismatches(), {}, {}, trace.records.size()};
}

/// Native, and the recording's own shadow mode under both policies.
std::vector<ReplayConfig> modes_of(const Recording& recording)
{
    std::vector<ReplayConfig> modes(3, checking());
    modes[0].mode = TranslationMode::native;
    modes[1].mode = modes[2].mode = recording.shadow_mode;
    modes[1].policy = "write-protect";
    modes[2].policy = "tlb-like";
    return modes;
}

void check_outcome(const Recording& recording, const ReplayConfig& config, const Outcome& outcome)
{
    INFO(recording.name << ", " << describe(config) << "\n" << describe(outcome.mismatches));
    CHECK(outcome.error.empty());
    CHECK(outcome.total.records == recording.records);
    CHECK(outcome.total.accesses == recording.accesses);
    CHECK(outcome.total.checks.checked == recording.expectations());
    CHECK(outcome.total.checks.mismatched == 0);
    CHECK(outcome.total.guest_faults == recording.expected_faults);
    REQUIRE(outcome.phases.size() == 1);
    CHECK(outcome.phases[0].name.empty());
    CHECK(outcome.phases[0].statistics == outcome.total);
}

void check_everywhere(const Recording& recording)
{
    const Trace trace = load(recording);
    for (ReplayConfig config : modes_of(recording)) {
        for (const char* const layout : {"identity", "offset:0x100000", "shuffled:7"}) {
            if (config.mode == TranslationMode::native && layout != std::string{"identity"}) continue;
            config.p2m = parse_p2m_layout(layout);
            for (const Populate populate : {Populate::leaf, Populate::step}) {
                if (populate == Populate::step && layout != std::string{"shuffled:7"}) continue;
                config.populate = populate;
                config.audit = 20000;
                const Outcome outcome = replay(trace, config);
                check_outcome(recording, config, outcome);
            }
        }
    }
}

/// Nested: a CPU without TLBs, where each access is walked, and one that caches.
void check_nested(const Recording& recording)
{
    const Trace trace = load(recording);
    for (ReplayConfig config : nested_setups()) {
        config.audit = 20000;
        for (const char* const cpu : {"none", "golden_cove"}) {
            if (cpu != std::string{"none"} && config.nested.largest_page == 1)
                config.clock = ClockKind::blocking;
            config.cpu = cpu;
            check_outcome(recording, config, replay(trace, config));
        }
    }
}

template <class Kind>
Filter without()
{
    return [](const Record& record) { return !std::holds_alternative<Kind>(record); };
}

bool loads_cr3(const Record& record)
{
    const auto* write = std::get_if<RegisterWriteRecord>(&record);
    return write != nullptr && write->target == RegisterWriteRecord::Target::cr3;
}

bool stores(const Record& record)
{
    const auto* access = std::get_if<AccessRecord>(&record);
    return access != nullptr && access->kind == AccessKind::write && !access->content.empty();
}

}  // namespace

TEST_CASE("the 4-level recording holds in every mode, policy and layout", "[replay][recorded]")
{
    check_everywhere(kAmd64);
}

TEST_CASE("the PAE recording holds in every mode, policy and layout", "[replay][recorded]")
{
    check_everywhere(k686Pae);
}

TEST_CASE("the 2-level recording holds in every mode, policy and layout", "[replay][recorded]")
{
    check_everywhere(k686);
}

TEST_CASE("the bring-up recording holds in every mode, policy and layout", "[replay][recorded]")
{
    check_everywhere(kBringUp);
}

TEST_CASE("the 4-level recording holds in nested mode", "[replay][recorded][nested]")
{
    check_nested(kAmd64);
}

TEST_CASE("the PAE recording holds in nested mode", "[replay][recorded][nested]")
{
    check_nested(k686Pae);
}

TEST_CASE("the 2-level recording holds in nested mode", "[replay][recorded][nested]")
{
    check_nested(k686);
}

TEST_CASE("the bring-up recording holds in nested mode", "[replay][recorded][nested]")
{
    check_nested(kBringUp);
}

TEST_CASE("a recording holds as it is read from its file, in the mode that fits", "[replay][recorded]")
{
    for (const Recording& recording : kRecordings) {
        const Outcome outcome = replay_file(bundled(recording.name), checking());
        check_outcome(recording, checking(), outcome);
        CHECK(outcome.records == recording.records);
    }
}

TEST_CASE("recordings hold the stores to tables that they should", "[replay][recorded]")
{
    for (const Recording& recording : kRecordings) {
        const Trace trace = load(recording);
        INFO(recording.name);
        CHECK(static_cast<std::uint64_t>(std::count_if(trace.records.begin(), trace.records.end(), stores)) ==
              recording.stores);
    }
}

TEST_CASE("a recording without its CR3 writes does not hold", "[replay][recorded]")
{
    for (const Recording* recording : {&kAmd64, &k686Pae, &k686}) {
        const Trace trace = load(*recording, [](const Record& record) { return !loads_cr3(record); });
        for (const ReplayConfig& config : modes_of(*recording)) {
            INFO(recording->name << ", " << describe(config));
            const Outcome outcome = replay(trace, config);
            CHECK(outcome.total.checks.mismatched > 1000);
            CHECK(outcome.mismatches.size() == Replayer::kMismatchesKept);
        }
    }
}

TEST_CASE("a recording without its stores to tables does not hold", "[replay][recorded][slow]")
{
    for (const Recording& recording : kRecordings) {
        const Trace trace = load(recording, [](const Record& record) { return !stores(record); });
        for (const ReplayConfig& config : modes_of(recording)) {
            INFO(recording.name << ", " << describe(config));
            CHECK(replay(trace, config).total.checks.mismatched > 10);
        }
    }
}

TEST_CASE("a recording without its initial tables does not hold", "[replay][recorded][slow]")
{
    for (const Recording& recording : kRecordings) {
        const Trace trace = load(recording, without<PageRecord>());
        for (const ReplayConfig& config : modes_of(recording)) {
            INFO(recording.name << ", " << describe(config));
            CHECK(replay(trace, config).total.checks.mismatched > 1000);
        }
    }
}

TEST_CASE("the CR3 and CR0 writes of the bring-up matter", "[replay][recorded][slow]")
{
    // With a control register left as it was, addresses or tables at the end differ, or a later write is #GP.
    using Target = RegisterWriteRecord::Target;
    for (const Target target : {Target::cr0, Target::cr3, Target::cr4, Target::msr}) {
        const Trace trace = load(kBringUp, [&](const Record& record) {
            const auto* write = std::get_if<RegisterWriteRecord>(&record);
            return write == nullptr || write->target != target;
        });
        for (const ReplayConfig& config : modes_of(kBringUp)) {
            INFO(static_cast<int>(target) << ", " << describe(config));
            CHECK(replay(trace, config).total.checks.mismatched > 0);
        }
    }
}

TEST_CASE("the recordings hold without their invalidations", "[replay][recorded]")
{
    // Their INVLPGs are for pages that were not used before, or that a #PF has dropped from every TLB
    // already: nothing stale is ever used. That an INVLPG can matter is replayer_test.cpp's business.
    for (const Recording* recording : {&kAmd64, &k686Pae, &k686}) {
        const Trace trace = load(*recording, without<InvlpgRecord>());
        CHECK(trace.records.size() < recording->records);
        for (const ReplayConfig& config : modes_of(*recording)) {
            INFO(recording->name << ", " << describe(config));
            CHECK(replay(trace, config).total.checks.mismatched == 0);
        }
    }
}

TEST_CASE("the same input gives the same statistics", "[replay][recorded][slow]")
{
    for (const Recording& recording : kRecordings) {
        const Trace trace = load(recording);
        for (ReplayConfig config : modes_of(recording)) {
            config.p2m = parse_p2m_layout("shuffled:7");
            INFO(recording.name << ", " << describe(config));
            const Outcome first = replay(trace, config);
            const Outcome second = replay(trace, config);
            CHECK(first.total == second.total);
            CHECK(first.phases == second.phases);
        }
    }
}

TEST_CASE("what a guest sees of a recording does not depend on the layout of machine memory",
          "[replay][recorded]")
{
    // Shadow events neither: a layout only moves frames.
    const Trace trace = load(k686Pae);
    for (const char* const policy : {"write-protect", "tlb-like"}) {
        ReplayConfig config = checking();
        config.policy = policy;
        const Outcome identity = replay(trace, config);
        for (const char* const layout : {"offset:0x1", "shuffled:1", "shuffled:18446744073709551615"}) {
            config.p2m = parse_p2m_layout(layout);
            REQUIRE(config.p2m.has_value());
            INFO(describe(config));
            CHECK(replay(trace, config).total == identity.total);
        }
    }
}

TEST_CASE("a mode that does not fit a recording is refused at its first access", "[replay][recorded]")
{
    for (const Recording* recording : {&kAmd64, &k686Pae, &k686}) {
        for (const TranslationMode mode : {TranslationMode::shadow_2_on_3, TranslationMode::shadow_3_on_3,
                                           TranslationMode::shadow_4_on_4, TranslationMode::shadow_5_on_5}) {
            if (mode == recording->shadow_mode) continue;
            ReplayConfig config = checking();
            config.mode = mode;
            const Outcome outcome = replay_file(bundled(recording->name), config);
            INFO(recording->name << ", " << describe(config) << ": " << outcome.error);
            CHECK(outcome.error.find(name_of(mode)) != std::string::npos);
            CHECK(outcome.total.accesses.total() == 0);
            CHECK(outcome.records > 30);
        }
    }
}
