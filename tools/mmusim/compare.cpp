// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/compare.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "text.hpp"
#include "verbs.hpp"

namespace mmusim::tool {

namespace {

using Json = nlohmann::ordered_json;

/// A column of the table; in CSV and JSON its key.
struct Column {
    const char* title;
    const char* key;
    std::function<std::uint64_t(const Contest&)> value;
};

std::uint64_t cycles_of(const Contest& contest, std::initializer_list<const char*> causes)
{
    std::uint64_t sum = 0;
    for (const char* const cause : causes) sum += contest.cycles_of(cause);
    return sum;
}

const std::vector<Column>& columns()
{
    using C = const Contest&;
    static const std::vector<Column> kColumns{
        {"cycles", "cycles", [](C c) { return c.cycles(); }},
        {"exits", "exits", [](C c) { return c.total.hardware.exits; }},
        {"fixed", "faults_fixed", [](C c) { return c.total.shadow.fault_fixed; }},
        {"emulated", "writes_emulated",
         [](C c) { return c.total.shadow.fault_emulate_write + c.total.shadow.fault_fast_emulate; }},
        {"resyncs", "resyncs", [](C c) { return c.total.shadow.resync; }},
        {"flushes", "tlb_flushes", [](C c) { return c.total.hardware.flushes; }},
        {"pages", "shadow_pages_peak", [](C c) { return c.shadow_pages; }},
        {"c.exits", "cycles_exits",
         [](C c) {
             return cycles_of(c, {"hypervisor.exit", "hypervisor.entry"});
         }},
        {"c.faults", "cycles_faults",
         [](C c) {
             return cycles_of(c, {"hypervisor.fault_handler", "hypervisor.guest_walk"});
         }},
        {"c.shadows", "cycles_shadows",
         [](C c) {
             return cycles_of(
                 c, {"hypervisor.shadow_page", "hypervisor.propagate", "hypervisor.prefetch",
                     "hypervisor.load_root", "hypervisor.hash", "hypervisor.snapshot", "hypervisor.compare"});
         }},
        {"c.search", "cycles_search",
         [](C c) {
             return cycles_of(c, {"hypervisor.guess", "hypervisor.search"});
         }},
        {"c.emulate", "cycles_emulate", [](C c) { return cycles_of(c, {"hypervisor.emulate"}); }},
        {"c.flush", "cycles_flush",
         [](C c) {
             return cycles_of(c, {"hypervisor.flush", "hypervisor.ipi"});
         }},
        {"c.memory", "cycles_memory", [](C c) { return cycles_of(c, {"hypervisor.data."}); }},
        {"c.guest", "cycles_guest", [](C c) { return c.cycles() - c.cycles_of("hypervisor."); }},
    };
    return kColumns;
}

std::string policy_of(const Contest& contest)
{
    return has_shadows(contest.config) ? contest.config.policy : "-";
}

void print_table(std::FILE* out, const std::vector<Contest>& contests)
{
    std::vector<std::vector<std::string>> rows{{"policy", "mode", "cpu"}};
    for (const Column& column : columns()) rows[0].emplace_back(column.title);
    for (const Contest& contest : contests) {
        rows.push_back({policy_of(contest), std::string{name_of(contest.config.mode)}, contest.config.cpu});
        for (const Column& column : columns()) rows.back().push_back(grouped(column.value(contest)));
    }
    constexpr std::size_t kNames = 3;
    fmt::print(out, "{}", table_of(rows, kNames));
    fmt::print(out,
               "fixed: faults that the hypervisor fixed; emulated: writes to tables; pages: of 4 KiB, "
               "shadows at most at a "
               "time;\nc.…: cycles by kind, c.guest those of the guest's own hardware\n");
}

std::string csv_of(const std::vector<Contest>& contests)
{
    std::string text = "policy,mode,cpu";
    for (const Column& column : columns()) text += fmt::format(",{}", column.key);
    text += '\n';
    for (const Contest& contest : contests) {
        text += fmt::format("{},{},{}", policy_of(contest), name_of(contest.config.mode), contest.config.cpu);
        for (const Column& column : columns()) text += fmt::format(",{}", column.value(contest));
        text += '\n';
    }
    return text;
}

Json json_of(const std::string& trace, const std::vector<Contest>& contests)
{
    Json rows = Json::array();
    for (const Contest& contest : contests) {
        Json row{{"policy", policy_of(contest)},
                 {"mode", name_of(contest.config.mode)},
                 {"cpu", contest.config.cpu}};
        for (const Column& column : columns()) row[column.key] = column.value(contest);
        Json by = Json::object();
        for (std::size_t i = 0; i < contest.total.hardware.cycles.size(); ++i) {
            if (contest.total.hardware.cycles[i] != 0)
                by[contest.labels.name(static_cast<Label>(i))] = contest.total.hardware.cycles[i];
        }
        row["cycles_by"] = std::move(by);
        row["checks"] = {{"checked", contest.total.checks.checked},
                         {"mismatched", contest.total.checks.mismatched}};
        row["config"] = to_json(contest.config);
        rows.push_back(std::move(row));
    }
    return {{"schema", "mmusim-comparison"}, {"version", 1}, {"trace", trace}, {"rows", std::move(rows)}};
}

/// What one of the lists holds, or what the configuration has if it is empty.
std::vector<std::optional<std::string>> choices(const std::vector<std::string>& list)
{
    std::vector<std::optional<std::string>> all{list.begin(), list.end()};
    if (all.empty()) all.emplace_back();
    return all;
}

}  // namespace

int compare(const CompareOptions& options)
{
    std::vector<ReplayConfig> configs;
    for (const auto& mode : choices(options.modes)) {
        for (const auto& cpu : choices(options.cpus)) {
            for (const auto& policy : choices(options.policies)) {
                ConfigOptions one = options.config;
                if (mode) one.mode = mode;
                if (cpu) one.cpu = cpu;
                if (policy) one.policy = policy;
                const ReplayConfig config = one.effective();
                // Without shadows there is no policy: one row for all.
                const bool there =
                    !has_shadows(config) &&
                    std::any_of(configs.begin(), configs.end(), [&](const ReplayConfig& other) {
                        return other.mode == config.mode && other.cpu == config.cpu;
                    });
                if (!there) configs.push_back(config);
            }
        }
    }
    if (!std::filesystem::is_regular_file(options.trace) && std::filesystem::exists(options.trace)) {
        throw std::runtime_error(fmt::format(
            "{}: compare reads the trace once for each row, so it must be a file", options.trace));
    }
    const auto threads = static_cast<unsigned>(std::min<std::uint64_t>(
        options.threads.value_or(std::max(std::thread::hardware_concurrency(), 1u)), 1024));
    std::vector<Contest> contests =
        mmusim::compare(options.trace, configs, builtin_shadow_policies(), threads);
    std::stable_sort(contests.begin(), contests.end(), [](const Contest& one, const Contest& other) {
        return one.cycles() != other.cycles() ? one.cycles() < other.cycles()
                                              : one.total.hardware.exits < other.total.hardware.exits;
    });
    if (options.csv != "-" && options.json != "-") print_table(stdout, contests);
    if (!options.csv.empty()) write_to(options.csv, csv_of(contests));
    if (!options.json.empty()) write_to(options.json, json_of(options.trace, contests).dump(2) + "\n");

    bool failed = false;
    for (const Contest& contest : contests) {
        if (contest.total.checks.mismatched == 0 && contest.violations == 0) continue;
        failed = true;
        fmt::print(stderr, "mmusim: {}, policy {}: {} mismatches, {} violations\n",
                   name_of(contest.config.mode), policy_of(contest), contest.total.checks.mismatched,
                   contest.violations);
    }
    return failed ? kExpectationFailed : kDone;
}

}  // namespace mmusim::tool
