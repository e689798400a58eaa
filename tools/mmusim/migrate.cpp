// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/migrate.hpp>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>
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
    std::uint64_t (*value)(const MigrationRound&);
    bool timed = false;  ///< there only with a clock
};

using R = const MigrationRound&;
constexpr std::array<Column, 9> kColumns{{
    {"records", "records", [](R r) { return r.records; }},
    {"sent", "pages_sent", [](R r) { return r.pages_sent; }},
    {"dirtied", "pages_dirtied", [](R r) { return r.pages_dirtied; }},
    {"faults", "faults", [](R r) { return r.tracked.faults; }},
    {"untracked", "faults_untracked", [](R r) { return r.untracked.faults; }},
    {"exits", "exits", [](R r) { return r.tracked.exits; }},
    {"untracked", "exits_untracked", [](R r) { return r.untracked.exits; }},
    {"cycles", "cycles", [](R r) { return r.tracked.cycles; }, true},
    {"untracked", "cycles_untracked", [](R r) { return r.untracked.cycles; }, true},
}};

/// All rounds as one.
MigrationRound sum_of(const Migration& migration)
{
    MigrationRound sum;
    for (const MigrationRound& round : migration.rounds) {
        sum.records += round.records;
        sum.pages_sent += round.pages_sent;
        sum.pages_dirtied += round.pages_dirtied;
    }
    sum.tracked = migration.tracked();
    sum.untracked = migration.untracked();
    return sum;
}

/// What tracking added, with its sign.
std::string added(std::uint64_t tracked, std::uint64_t untracked)
{
    return tracked < untracked ? fmt::format("-{}", grouped(untracked - tracked))
                               : grouped(tracked - untracked);
}

void print_table(const Migration& migration)
{
    std::vector<std::vector<std::string>> rows{{"round"}};
    for (const Column& column : kColumns) {
        if (!column.timed || migration.timed) rows[0].emplace_back(column.title);
    }
    if (migration.timed) rows[0].emplace_back("cost");
    const auto add = [&](std::string name, const MigrationRound& round) {
        rows.push_back({std::move(name)});
        for (const Column& column : kColumns) {
            if (!column.timed || migration.timed) rows.back().push_back(grouped(column.value(round)));
        }
        if (migration.timed) rows.back().push_back(added(round.tracked.cycles, round.untracked.cycles));
    };
    for (std::size_t i = 0; i < migration.rounds.size(); ++i) add(std::to_string(i), migration.rounds[i]);
    add("all", sum_of(migration));
    fmt::print("{}", table_of(rows, 1));
    fmt::print("from record {} on; untracked: the same records without log-dirty", migration.first_record);
    fmt::print("{}", migration.timed ? "; cost: cycles that tracking added\n" : "\n");
    fmt::print(
        "downtime: {} pages{}; sent in all: {} pages, of {} in RAM; the set of dirty frames: {} pages\n",
        grouped(migration.downtime_pages),
        migration.trace_ended ? " (the trace ended before a round's pages were sent)" : "",
        grouped(migration.pages_sent()), grouped(migration.ram_pages), migration.pages_of_trie);
}

std::string csv_of(const Migration& migration)
{
    std::string text = "round";
    for (const Column& column : kColumns) {
        if (!column.timed || migration.timed) text += fmt::format(",{}", column.key);
    }
    text += '\n';
    for (std::size_t i = 0; i < migration.rounds.size(); ++i) {
        text += std::to_string(i);
        for (const Column& column : kColumns) {
            if (!column.timed || migration.timed)
                text += fmt::format(",{}", column.value(migration.rounds[i]));
        }
        text += '\n';
    }
    return text;
}

Json row_of(const Migration& migration, const MigrationRound& round)
{
    Json row = Json::object();
    for (const Column& column : kColumns) {
        if (!column.timed || migration.timed) row[column.key] = column.value(round);
    }
    return row;
}

Json json_of(const std::string& trace, const ReplayConfig& config, const MigrationPlan& plan,
             const Migration& migration)
{
    Json rounds = Json::array();
    for (const MigrationRound& round : migration.rounds) rounds.push_back(row_of(migration, round));
    Json json{{"schema", "mmusim-migration"},
              {"version", 1},
              {"trace", trace},
              {"config", to_json(config)},
              {"plan", {{"rounds", plan.rounds}}},
              {"first_record", migration.first_record},
              {"ram_pages", migration.ram_pages},
              {"rounds", std::move(rounds)},
              {"all", row_of(migration, sum_of(migration))},
              {"downtime_pages", migration.downtime_pages},
              {"pages_sent", migration.pages_sent()},
              {"trace_ended", migration.trace_ended},
              {"pages_of_trie", migration.pages_of_trie}};
    if (plan.pages_per_million_cycles)
        json["plan"]["pages_per_million_cycles"] = *plan.pages_per_million_cycles;
    return json;
}

}  // namespace

int migrate(const MigrateOptions& options)
{
    constexpr std::uint64_t kRounds = 5;
    MigrationPlan plan;
    plan.rounds = options.rounds.value_or(kRounds);
    plan.pages_per_million_cycles = options.bandwidth;
    if (!std::filesystem::is_regular_file(options.trace) && std::filesystem::exists(options.trace)) {
        throw std::runtime_error(
            fmt::format("{}: migrate reads the trace twice, so it must be a file", options.trace));
    }
    const ReplayConfig config = options.config.effective();
    const Migration migration = mmusim::migrate(options.trace, config, builtin_shadow_policies(), plan);
    if (options.csv != "-" && options.json != "-") print_table(migration);
    if (!options.csv.empty()) write_to(options.csv, csv_of(migration));
    if (!options.json.empty())
        write_to(options.json, json_of(options.trace, config, plan, migration).dump(2) + "\n");
    return kDone;
}

}  // namespace mmusim::tool
