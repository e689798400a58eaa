// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/migrate.hpp>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

namespace mmusim {

namespace {

constexpr std::uint64_t kMillion = 1'000'000;

bool is_access(const Record& record)
{
    return std::holds_alternative<AccessRecord>(record) || std::holds_alternative<InstructionRecord>(record);
}

/// Records from the first one on that belongs to the migration.
struct Extent {
    std::uint64_t first = 0;  ///< its number
    std::uint64_t count = 0;
};

Extent extent_of(const std::string& trace, const ReplayConfig& config)
{
    Extent extent;
    TraceReader reader{trace};
    Record record;
    std::uint64_t number = 0;
    const std::uint64_t limit = config.limit.value_or(~std::uint64_t{0});
    while (extent.count < limit && reader.next(record)) {
        if (std::holds_alternative<EndRecord>(record)) break;
        ++number;
        if (extent.first == 0 && (number <= config.skip || !is_access(record))) continue;
        if (extent.first == 0) extent.first = number;
        ++extent.count;
    }
    return extent;
}

MigrationCost cost_of(const Machine& machine)
{
    MigrationCost cost;
    cost.faults = machine.shadow()->counters().fault;
    const MachineCounters counters = machine.counters();
    cost.exits = counters.exits;
    cost.cycles = std::accumulate(counters.cycles.begin(), counters.cycles.end(), Cycles{0});
    return cost;
}

std::uint64_t ram_pages(const Machine& machine)
{
    std::uint64_t pages = 0;
    for (const GfnRange& range : machine.config().ram) {
        if (!machine.p2m().changed()) {
            pages += range.count;
            continue;
        }
        for (std::uint64_t i = 0; i < range.count; ++i)
            pages += machine.p2m().mfn_of(range.first + i).has_value() ? 1 : 0;
    }
    return pages;
}

/// The two replays.
class Migrator {
public:
    Migrator(const std::string& trace, const ReplayConfig& config, const ShadowPolicyCatalog& catalog,
             const MigrationPlan& plan, const Extent& extent)
        : reader_{trace}
        , tracked_{reader_.header(), config, catalog}
        , untracked_{reader_.header(), config, catalog}
        , plan_{plan}
        , extent_{extent}
    {
    }

    Migration run()
    {
        Record record;
        for (std::uint64_t number = 1; number < extent_.first; ++number) step(record);
        result_.first_record = extent_.first;
        result_.timed = tracked_.machine().clock() != nullptr;
        result_.ram_pages = ram_pages(tracked_.machine());
        tracked_at_ = cost_of(tracked_.machine());
        untracked_at_ = cost_of(untracked_.machine());
        if (log_dirty(LogDirtyAction::enable).rc != 0)
            refuse("before this, the trace has turned log-dirty on");
        std::uint64_t to_send = result_.ram_pages;
        for (std::uint64_t i = 0; i < plan_.rounds && (to_send != 0 || i == 0); ++i)
            to_send = round(i, to_send, record);
        result_.downtime_pages += to_send;
        return result_;
    }

private:
    [[noreturn]] void refuse(const std::string& why) const { throw TraceError(reader_.place(), why, "op"); }

    void step(Record& record)
    {
        if (!reader_.next(record)) return;
        try {
            tracked_.replay(record);
            untracked_.replay(record);
        } catch (const RecordError& error) {
            throw TraceError(reader_.place(), error.what(), error.key);
        }
    }

    LogDirtyAnswer log_dirty(LogDirtyAction action)
    {
        LogDirtyAnswer answer = tracked_.machine().log_dirty(action);
        if (answer.rc == LogDirtyAnswer::kNoMemory) {
            throw MigrationError(
                "the shadow pool had no page for the set of dirty frames: shadow.pool_pages must be larger");
        }
        return answer;
    }

    /// What it leaves to be sent.
    std::uint64_t round(std::uint64_t index, std::uint64_t to_send, Record& record)
    {
        MigrationRound round;
        round.pages_sent = to_send;
        const Clock* const clock = tracked_.machine().clock();
        const Cycles start = clock != nullptr ? clock->now() : 0;
        const std::uint64_t share = (extent_.count * (index + 1)) / plan_.rounds;
        const auto sent_by_now = [&] {
            const Cycles passed = clock->now() - start;
            return passed / kMillion * *plan_.pages_per_million_cycles +
                   passed % kMillion * *plan_.pages_per_million_cycles / kMillion;
        };
        for (; done_ < extent_.count; ++done_, ++round.records) {
            if (plan_.pages_per_million_cycles ? sent_by_now() >= to_send : done_ >= share) break;
            step(record);
            if (std::holds_alternative<ResetRecord>(record)) refuse("a guest that migrates cannot be reset");
            if (std::holds_alternative<LogDirtyRecord>(record))
                refuse("a guest that migrates has log-dirty on for that");
        }
        if (plan_.pages_per_million_cycles && sent_by_now() < to_send) {
            result_.trace_ended = true;
            round.pages_sent = sent_by_now();
            result_.downtime_pages += to_send - round.pages_sent;
        }
        result_.pages_of_trie = tracked_.machine().counters().log_dirty.pages_of_trie;
        round.pages_dirtied = log_dirty(LogDirtyAction::clean).frames.size();
        const MigrationCost tracked = cost_of(tracked_.machine());
        const MigrationCost untracked = cost_of(untracked_.machine());
        round.tracked = tracked.since(std::exchange(tracked_at_, tracked));
        round.untracked = untracked.since(std::exchange(untracked_at_, untracked));
        result_.rounds.push_back(round);
        if (!result_.trace_ended) return round.pages_dirtied;
        result_.downtime_pages += round.pages_dirtied;
        return 0;
    }

    TraceReader reader_;
    Replayer tracked_;
    Replayer untracked_;
    MigrationPlan plan_;
    Extent extent_;
    std::uint64_t done_ = 0;  ///< records of the extent
    MigrationCost tracked_at_;
    MigrationCost untracked_at_;
    Migration result_;
};

}  // namespace

MigrationCost& MigrationCost::operator+=(const MigrationCost& more)
{
    faults += more.faults;
    exits += more.exits;
    cycles += more.cycles;
    return *this;
}

MigrationCost MigrationCost::since(const MigrationCost& earlier) const
{
    return {faults - earlier.faults, exits - earlier.exits, cycles - earlier.cycles};
}

std::uint64_t Migration::pages_sent() const
{
    std::uint64_t pages = downtime_pages;
    for (const MigrationRound& round : rounds) pages += round.pages_sent;
    return pages;
}

MigrationCost Migration::tracked() const
{
    MigrationCost sum;
    for (const MigrationRound& round : rounds) sum += round.tracked;
    return sum;
}

MigrationCost Migration::untracked() const
{
    MigrationCost sum;
    for (const MigrationRound& round : rounds) sum += round.untracked;
    return sum;
}

Migration migrate(const std::string& trace, const ReplayConfig& config, const ShadowPolicyCatalog& catalog,
                  const MigrationPlan& plan)
{
    if (config.mode == TranslationMode::native)
        throw MigrationError("mode native has no hypervisor that could see what the guest writes");
    if (config.mode == TranslationMode::nested)
        throw MigrationError("what the guest writes is tracked under shadows alone, not in mode nested");
    if (plan.rounds == 0) throw MigrationError("a migration has at least one round");
    if (plan.pages_per_million_cycles && config.clock == ClockKind::off)
        throw MigrationError("pages per million cycles need a clock");
    if (plan.pages_per_million_cycles == 0)
        throw MigrationError("no page per million cycles: nothing is ever sent");
    const Extent extent = extent_of(trace, config);
    if (extent.count == 0)
        throw MigrationError(fmt::format(
            "{}: no access beyond record {}: nothing happens while the guest migrates", trace, config.skip));
    ReplayConfig replayed = config;
    replayed.skip = 0;
    replayed.limit.reset();
    return Migrator{trace, replayed, catalog, plan, extent}.run();
}

}  // namespace mmusim
