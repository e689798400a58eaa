// SPDX-License-Identifier: Apache-2.0
//
// Events against what was counted without them: over each recorded kernel, policy by policy, there are as
// many events of a kind as its counter says.
#include <map>
#include <string>

#include <mmusim/replay/event_line.hpp>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

using Counts = std::map<std::string, std::uint64_t>;

/// Counts events by name; those of an emulation and of a search also by why.
class Counting : public ShadowObserver {
public:
    explicit Counting(const Replayer& replayer) : replayer_{&replayer} {}
    Counts counts;
    std::string text;
    bool keep_text = false;

    void on_event(const ShadowEvent& event) override
    {
        std::string name{name_of(event.kind)};
        if (!event.how.empty()) name += fmt::format(" {}", event.how);
        if (event.kind == ShadowEventKind::wrmap_bf && event.level == 0) name += " resync";
        ++counts[name];
        const auto* const clock = replayer_->machine().clock();
        if (keep_text) {
            text += to_json_line(event, replayer_->record(),
                                 clock != nullptr ? std::optional{clock->now()} : std::nullopt) +
                    '\n';
        }
    }

private:
    const Replayer* replayer_;
};

struct Observed {
    Counts events;
    std::string text;
    ShadowCounters counters;
    std::vector<Cycles> cycles;
};

Observed observe(const std::string& path, const ReplayConfig& config, bool keep_text = false)
{
    TraceReader reader{path};
    Replayer replayer{reader.header(), config, builtin_shadow_policies()};
    Counting counting{replayer};
    counting.keep_text = keep_text;
    replayer.observe(&counting);
    Record record;
    while (!replayer.finished() && reader.next(record)) replayer.replay(record);
    replayer.finish();
    return {counting.counts, counting.text, replayer.total().shadow, replayer.total().hardware.cycles};
}

/// The same numbers by counter; docs/statistics.md and docs/events.md say which is which.
void check_against_counters(Observed seen)
{
    Counts& events = seen.events;
    const ShadowCounters& c = seen.counters;
    CHECK(events["not_shadow"] == c.fault_bail_real_fault);
    CHECK(events["fixup"] == c.fault_fixed);
    CHECK(events["link"] == c.fault_linked);
    CHECK(events["mmio"] == c.fault_mmio);
    CHECK(events["fast_mmio"] == c.fault_fast_mmio);
    CHECK(events["fast_propagate"] == c.fault_fast_gnp);
    CHECK(events["false_fast_path"] == c.fault_fast_fail);
    CHECK(events["emulate wp"] == c.fault_emulate_wp);
    CHECK(events["emulate fast"] == c.fault_fast_emulate);
    CHECK(events["emulate table"] + events["emulate_unshadow_user"] == c.fault_emulate_write);
    CHECK(events["emulate_unshadow_user"] <= c.fault_emulate_failed);
    CHECK(events["wrmap_bf"] == c.writeable_bf);
    CHECK(events["wrmap_bf resync"] == c.writeable_bf_1);
    CHECK(events["prealloc_unpin"] >= c.prealloc_1 - c.prealloc_2);
    CHECK(events["prealloc_unhook"] >= c.prealloc_2);
    CHECK(events["resync_full"] == c.resync);
    CHECK(events["unsync"] == c.unsync);
    CHECK(events["unsync_evict"] == c.unsync_evict);
    CHECK(events["oos_fixup_add"] == c.oos_fixup_add);
    CHECK(events["oos_fixup_evict"] == c.oos_fixup_evict);
    CHECK(events["early_unshadow"] == c.early_unshadow);
    CHECK(events["unshadow"] == c.unshadow);
    CHECK(events["promote"] == c.alloc);
    CHECK(events["demote"] == c.free);
    CHECK(events["invlpg page"] + events["invlpg nothing"] + events["invlpg everything"] == c.invlpg);
    CHECK(events["emulate_further wrote_table"] == c.em_ex_pt);
    CHECK(events["emulate_further wrote_none"] == c.em_ex_non_pt);
    CHECK(events["emulate_further failed"] == c.em_ex_fail);
    // Each fault ends in one.
    CHECK(events["not_shadow"] + events["fixup"] + events["link"] + events["mmio"] + events["fast_mmio"] +
              events["fast_propagate"] + events["false_fast_path"] + events["emulate wp"] +
              events["emulate fast"] + events["emulate table"] + events["emulate_unshadow_user"] ==
          c.fault);
    CHECK(c.fault > 0);
}

}  // namespace

TEST_CASE("as many events of each kind as the counters count", "[replay][events]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const char* const trace : {"amd64-4level", "686pae-pae", "686-2level", "amd64-bringup"}) {
        for (const ShadowPolicyCatalog::Entry& policy : catalog.entries()) {
            for (const Populate populate : {Populate::leaf, Populate::step}) {
                if (populate == Populate::step && policy.name != "xen") continue;
                ReplayConfig config;
                config.policy = policy.name;
                config.populate = populate;
                config.clock = ClockKind::off;
                INFO(trace << " " << policy.name << " " << (populate == Populate::step ? "step" : "leaf"));
                check_against_counters(observe(bundled(trace), config));
            }
        }
    }
}

TEST_CASE("a small pool: events as the counters count", "[replay][events]")
{
    ReplayConfig config;
    config.clock = ClockKind::off;
    config.shadow_pool_pages = 32;
    Observed seen = observe(bundled("686-2level"), config);
    check_against_counters(seen);
    CHECK(seen.counters.prealloc_1 > 0);
    CHECK(seen.events["prealloc_unpin"] > 0);
    CHECK(seen.events["prealloc_unhook"] == seen.counters.prealloc_2);  // one vCPU has one root
}

TEST_CASE("events change nothing, are the same each time, and leave skipped records out", "[replay][events]")
{
    ReplayConfig config;
    config.limit = 160000;
    const Observed one = observe(bundled("amd64-4level"), config, true);
    const Observed two = observe(bundled("amd64-4level"), config, true);
    CHECK(one.text == two.text);
    CHECK(one.text.size() > 10000);

    TraceReader reader{bundled("amd64-4level")};
    Replayer alone{reader.header(), config, builtin_shadow_policies()};
    Record record;
    while (!alone.finished() && reader.next(record)) alone.replay(record);
    alone.finish();
    CHECK(alone.total().hardware.cycles == one.cycles);
    CHECK(alone.total().shadow == one.counters);

    ReplayConfig later = config;
    later.skip = 100000;
    later.limit = 60000;
    const Observed rest = observe(bundled("amd64-4level"), later, true);
    check_against_counters(rest);
    // The end of the same text: of records beyond the 100000th.
    REQUIRE(!rest.text.empty());
    CHECK(one.text.ends_with(rest.text));
    CHECK(rest.text.size() < one.text.size());
}

TEST_CASE("native: there is nothing to tell", "[replay][events]")
{
    ReplayConfig config;
    config.mode = TranslationMode::native;
    config.limit = 20000;
    CHECK(observe(bundled("amd64-4level"), config).events.empty());
}
