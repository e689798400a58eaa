// SPDX-License-Identifier: Apache-2.0
//
// Live migration by pre-copy, over a trace: all memory is sent while the guest runs on, then what it has
// written meanwhile, and so on in rounds; what was written in the last one is sent while the guest stands
// still (docs/log-dirty.md). The trace is replayed twice at once, with log-dirty on and off: the difference
// is what tracking costs. Sending itself costs the guest nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <mmusim/replay/config.hpp>
#include <mmusim/timing/clock.hpp>
#include <mmusim/trace/record.hpp>

namespace mmusim {

struct MigrationPlan {
    /// Rounds while the guest runs, the one that sends all memory among them; at least 1.
    std::uint64_t rounds = 1;
    /// Pages sent in a million cycles: a round lasts as long as its pages take. Without it each round has the
    /// same number of the trace's records.
    std::optional<std::uint64_t> pages_per_million_cycles;
};

/// What one run did in a round.
struct MigrationCost {
    std::uint64_t faults = 0;  ///< page faults that reached the hypervisor
    std::uint64_t exits = 0;
    Cycles cycles = 0;  ///< 0 without a clock

    MigrationCost& operator+=(const MigrationCost& more);
    [[nodiscard]] MigrationCost since(const MigrationCost& earlier) const;
    friend bool operator==(const MigrationCost&, const MigrationCost&) = default;
};

struct MigrationRound {
    std::uint64_t records = 0;
    std::uint64_t pages_sent = 0;
    std::uint64_t pages_dirtied = 0;
    MigrationCost tracked;
    MigrationCost untracked;  ///< the same records without log-dirty
};

struct Migration {
    std::uint64_t first_record = 0;  ///< of the trace; 1 is the first after the header
    std::uint64_t ram_pages = 0;     ///< with memory behind them, at the start
    std::vector<MigrationRound> rounds;
    /// What is sent while the guest stands still: dirtied in the last round, or not sent yet when the trace
    /// ended.
    std::uint64_t downtime_pages = 0;
    bool trace_ended = false;  ///< before the last round's pages were sent
    std::uint64_t pages_of_trie = 0;
    bool timed = false;

    [[nodiscard]] std::uint64_t pages_sent() const;  ///< in all, the last ones too
    [[nodiscard]] MigrationCost tracked() const;
    [[nodiscard]] MigrationCost untracked() const;
};

/// A trace or a configuration that cannot be migrated, and why.
struct MigrationError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Migrates the guest of the trace file. Migration begins before the first access or instruction beyond
/// `config.skip`, and has to do with `config.limit` records at most. Throws MigrationError, and what a replay
/// throws.
[[nodiscard]] Migration migrate(const std::string& trace, const ReplayConfig& config,
                                const ShadowPolicyCatalog& catalog, const MigrationPlan& plan);

}  // namespace mmusim
