// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/statistics.hpp>

#include <nlohmann/json.hpp>

#include <mmusim/version.hpp>

namespace mmusim {

namespace {

using Json = nlohmann::ordered_json;

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
    count(mine.hardware.walks, theirs.hardware.walks);
    count(mine.hardware.memory_references, theirs.hardware.memory_references);
    for (const ShadowCounterName& counter : kShadowCounterNames) {
        auto& one = mine.shadow.*counter.member;
        auto& other = theirs.shadow.*counter.member;
        if (counter.gauge) {
            gauge(one, other);
        } else {
            count(one, other);
        }
    }
}

/// The members that the whole and each phase have.
void add_counters(Json& json, const Statistics& statistics, bool shadow)
{
    json["accesses"] = {{"total", statistics.accesses.total()},
                        {"fetch", statistics.accesses.fetch},
                        {"read", statistics.accesses.read},
                        {"write", statistics.accesses.write}};
    json["guest_faults"] = statistics.guest_faults;
    json["checks"] = {{"checked", statistics.checks.checked}, {"mismatched", statistics.checks.mismatched}};
    json["walks"] = {{"count", statistics.hardware.walks},
                     {"memory_references", statistics.hardware.memory_references}};
    if (!shadow) return;
    Json counters = Json::object();
    for (const ShadowCounterName& counter : kShadowCounterNames) {
        counters[std::string{counter.name}] = statistics.shadow.*counter.member;
    }
    json["shadow"] = std::move(counters);
}

}  // namespace

void Statistics::add(const Statistics& more)
{
    for_each_pair(
        *this, more, [](auto& mine, auto theirs) { mine += theirs; },
        [](auto& mine, auto theirs) { mine = theirs; });
}

Statistics Statistics::since(const Statistics& earlier) const
{
    Statistics difference = *this;
    for_each_pair(
        difference, earlier, [](auto& mine, auto theirs) { mine -= theirs; }, [](auto&, auto) {});
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
    add_counters(json, document.total, document.shadow);
    json["phases"] = Json::array();
    for (const Phase& phase : document.phases) {
        Json entry{{"name", phase.name}};
        add_counters(entry, phase.statistics, document.shadow);
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
