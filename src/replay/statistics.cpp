// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/statistics.hpp>

#include <array>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <mmusim/version.hpp>

namespace mmusim {

namespace {

using Json = nlohmann::ordered_json;

/// Calls `visit` for each pair of elements. What has not been counted yet has none: zeros.
template <class Mine, class Theirs, class Visit>
void for_each_pair(std::vector<Mine>& mine, const std::vector<Theirs>& theirs, Visit visit)
{
    if (mine.size() < theirs.size()) mine.resize(theirs.size());
    for (std::size_t i = 0; i < theirs.size(); ++i) visit(mine[i], theirs[i]);
}

/// Calls `visit(mine, theirs)` for each count of two statistics, and `visit_gauge` for each gauge.
template <class Mine, class Theirs, class Count, class Gauge>
void for_each_pair(Mine& mine, Theirs& theirs, Count count, Gauge gauge)
{
    count(mine.records, theirs.records);
    count(mine.accesses.fetch, theirs.accesses.fetch);
    count(mine.accesses.read, theirs.accesses.read);
    count(mine.accesses.write, theirs.accesses.write);
    count(mine.guest_faults, theirs.guest_faults);
    count(mine.checks.checked, theirs.checks.checked);
    count(mine.checks.mismatched, theirs.checks.mismatched);
    count(mine.checks.stale, theirs.checks.stale);
    count(mine.hardware.walks, theirs.hardware.walks);
    count(mine.hardware.memory_references, theirs.hardware.memory_references);
    count(mine.hardware.exits, theirs.hardware.exits);
    count(mine.hardware.flushes, theirs.hardware.flushes);
    count(mine.hardware.unseen_switches, theirs.hardware.unseen_switches);
    for (const HazardName& hazard : kHazardNames)
        count(mine.hardware.hazards.*hazard.member, theirs.hardware.hazards.*hazard.member);
    for (const SecondLevelCounterName& counter : kSecondLevelCounterNames)
        count(mine.hardware.second_level.*counter.member, theirs.hardware.second_level.*counter.member);
    for (const MemAccessCountName& one : kMemAccessCountNames)
        count(mine.hardware.mem_access.*one.member, theirs.hardware.mem_access.*one.member);
    for_each_pair(mine.hardware.tlbs, theirs.hardware.tlbs, [&](auto& one, auto& other) {
        count(one.lookups, other.lookups);
        count(one.hits, other.hits);
        count(one.dirty_walks, other.dirty_walks);
        count(one.denied, other.denied);
        count(one.fills, other.fills);
        count(one.evictions, other.evictions);
    });
    for (std::size_t i = 0; i < mine.hardware.paging_structure_caches.size(); ++i) {
        count(mine.hardware.paging_structure_caches[i].lookups,
              theirs.hardware.paging_structure_caches[i].lookups);
        count(mine.hardware.paging_structure_caches[i].hits, theirs.hardware.paging_structure_caches[i].hits);
    }
    for_each_pair(mine.hardware.cycles, theirs.hardware.cycles, count);
    const auto named = [&](const auto& names, auto& ours, auto& others) {
        for (const auto& counter : names) {
            if (counter.gauge) {
                gauge(ours.*counter.member, others.*counter.member);
            } else {
                count(ours.*counter.member, others.*counter.member);
            }
        }
    };
    named(kShadowCounterNames, mine.shadow, theirs.shadow);
    named(kLogDirtyCounterNames, mine.hardware.log_dirty, theirs.hardware.log_dirty);
}

template <class Names, class Counters>
Json counters_json(const Names& names, const Counters& counters)
{
    Json json = Json::object();
    for (const auto& counter : names) json[std::string{counter.name}] = counters.*counter.member;
    return json;
}

Json hits_of(std::uint64_t lookups, std::uint64_t hits)
{
    return {{"lookups", lookups}, {"hits", hits}};
}

Json tlb_json(const TlbCounters& counters)
{
    Json json = hits_of(counters.lookups, counters.hits);
    json["dirty_walks"] = counters.dirty_walks;
    json["denied"] = counters.denied;
    json["fills"] = counters.fills;
    json["evictions"] = counters.evictions;
    return json;
}

/// What the public names stand for: "l1i", "l1d" and "l2" add up the profile's TLBs of that level that serve
/// fetches alone, anything else, or anything; where that is more than one, each is there by its own name too.
Json tlbs_json(const StatisticsDocument& document, const MachineCounters& hardware)
{
    Json json = Json::object();
    const std::vector<TlbSpec>& specs = document.cpu->tlbs.tlbs;
    const auto public_name = [](const TlbSpec& spec) -> std::string {
        if (spec.level != 1) return fmt::format("l{}", spec.level);
        return spec.fetches && !spec.loads && !spec.stores ? "l1i" : "l1d";
    };
    for (std::size_t i = 0; i < specs.size(); ++i) {
        const std::string name = public_name(specs[i]);
        if (json.contains(name)) continue;
        TlbCounters sum;
        unsigned parts = 0;
        Json by_name = Json::object();
        for (std::size_t j = i; j < specs.size(); ++j) {
            if (public_name(specs[j]) != name) continue;
            sum.add(hardware.tlbs[j]);
            by_name[specs[j].name] = tlb_json(hardware.tlbs[j]);
            ++parts;
        }
        json[name] = tlb_json(sum);
        if (parts > 1) json[name]["parts"] = std::move(by_name);
    }
    return json;
}

Json second_level_json(const MachineCounters& hardware)
{
    const SecondLevelCounters& counters = hardware.second_level;
    Json violations{{"total", counters.violations()}};
    for (const SecondLevelCounterName& counter : kSecondLevelCounterNames) {
        if (counter.violation) violations[counter.name] = counters.*counter.member;
    }
    return {{"tlb", hits_of(counters.lookups, counters.hits)},
            {"walks", {{"count", counters.walks}, {"memory_references", counters.memory_references}}},
            {"violations", std::move(violations)},
            {"exits", hardware.exits},
            {"flushes", hardware.flushes}};
}

Json hazards_json(const HazardCounts& counts)
{
    return counters_json(kHazardNames, counts);
}

Json mem_access_json(const MemAccessCounts& counts)
{
    Json json = Json::object();
    for (const MemAccessCountName& one : kMemAccessCountNames)
        json[std::string{one.name}] = counts.*one.member;
    return json;
}

Json coherence_json(const StalenessCounts& counts)
{
    return {{"checked", counts.checked},
            {"permitted",
             {{"total", counts.stale()},
              {"not_present", counts.not_present},
              {"rights", counts.rights},
              {"address", counts.address},
              {"dirty", counts.dirty},
              {"accessed", counts.accessed}}},
            {"age_sum", counts.age_sum},
            {"oldest", counts.oldest},
            {"violations", counts.violations}};
}

/// Cycles whose cause is a walk: those with a label "walk.…".
Cycles walk_cycles(const CycleLabels& labels, const std::vector<Cycles>& by_label)
{
    Cycles sum = 0;
    for (std::size_t i = 0; i < by_label.size(); ++i) {
        if (labels.name(static_cast<Label>(i)).starts_with("walk.")) sum += by_label[i];
    }
    return sum;
}

Json cycles_json(const StatisticsDocument& document, const std::vector<Cycles>& by_label)
{
    Json by = Json::object();
    Cycles total = 0;
    for (std::size_t i = 0; i < by_label.size(); ++i) {
        const auto label = static_cast<Label>(i);
        if (!document.shadow && !document.nested && document.labels.of_hypervisor(label)) continue;
        by[document.labels.name(label)] = by_label[i];
        total += by_label[i];
    }
    return {{"total", total}, {"by", std::move(by)}};
}

/// The members that the whole and each phase have.
void add_counters(Json& json, const StatisticsDocument& document, const Statistics& statistics)
{
    json["accesses"] = {{"total", statistics.accesses.total()},
                        {"fetch", statistics.accesses.fetch},
                        {"read", statistics.accesses.read},
                        {"write", statistics.accesses.write}};
    json["guest_faults"] = statistics.guest_faults;
    json["checks"] = {{"checked", statistics.checks.checked},
                      {"mismatched", statistics.checks.mismatched},
                      {"stale", statistics.checks.stale}};
    const MachineCounters& hardware = statistics.hardware;
    const bool timed = !hardware.cycles.empty();
    if (timed) json["cycles"] = cycles_json(document, hardware.cycles);
    if (document.cpu != nullptr && !document.cpu->tlbs.tlbs.empty() && !hardware.tlbs.empty()) {
        json["tlb"] = tlbs_json(document, hardware);
    }
    if (document.cpu != nullptr && !document.cpu->tlbs.paging_structure_caches.empty()) {
        constexpr std::array<const char*, kMaxLevels + 1> kNames{"", "", "pde", "pdpte", "pml4e", "pml5e"};
        Json caches = Json::object();
        for (const PagingStructureCacheSpec& spec : document.cpu->tlbs.paging_structure_caches) {
            const auto level = static_cast<std::size_t>(spec.level);
            const auto& counters = hardware.paging_structure_caches[level];
            caches[kNames[level]] = hits_of(counters.lookups, counters.hits);
        }
        json["paging_structure_cache"] = std::move(caches);
    }
    if (document.coherence) json["coherence"] = coherence_json(hardware.coherence);
    json["walks"] = {{"count", hardware.walks}, {"memory_references", hardware.memory_references}};
    if (timed) json["walks"]["cycles"] = walk_cycles(document.labels, hardware.cycles);
    if (document.nested) json["second_level"] = second_level_json(hardware);
    if (document.mem_access) json["mem_access"] = mem_access_json(hardware.mem_access);
    if (!document.shadow) return;
    if (document.hazards) {
        json["unseen_switches"] = hardware.unseen_switches;
        json["hazards"] = hazards_json(hardware.hazards);
    }
    json["shadow"] = counters_json(kShadowCounterNames, statistics.shadow);
    if (document.total.hardware.log_dirty != LogDirtyCounters{})
        json["log_dirty"] = counters_json(kLogDirtyCounterNames, hardware.log_dirty);
}

}  // namespace

void Statistics::add(const Statistics& more)
{
    for_each_pair(
        *this, more, [](auto& mine, auto theirs) { mine += theirs; },
        [](auto& mine, auto theirs) { mine = theirs; });
    hardware.coherence += more.hardware.coherence;
}

Statistics Statistics::since(const Statistics& earlier) const
{
    Statistics difference = *this;
    for_each_pair(
        difference, earlier, [](auto& mine, auto theirs) { mine -= theirs; }, [](auto&, auto) {});
    difference.hardware.coherence -= earlier.hardware.coherence;
    return difference;
}

nlohmann::ordered_json to_json(const StatisticsDocument& document)
{
    Json json;
    json["schema"] = "mmusim-stats";
    json["version"] = 1;
    json["mmusim"] = kVersion;
    json["complete"] = document.complete;
    if (document.config != nullptr) json["config"] = *document.config;
    json["trace"] = {{"name", document.trace_name}, {"records", document.total.records}};
    if (!document.trace_sha256.empty()) json["trace"]["sha256"] = document.trace_sha256;
    add_counters(json, document, document.total);
    json["phases"] = Json::array();
    for (const Phase& phase : document.phases) {
        Json entry{{"name", phase.name}};
        add_counters(entry, document, phase.statistics);
        json["phases"].push_back(std::move(entry));
    }
    const double seconds = document.host.seconds;
    const auto accesses = static_cast<double>(document.total.accesses.total());
    json["host"] = {{"seconds", seconds},
                    {"accesses_per_second", seconds > 0 ? accesses / seconds : 0.0},
                    {"peak_memory_bytes", document.host.peak_memory_bytes}};
    return json;
}

}  // namespace mmusim
