// SPDX-License-Identifier: Apache-2.0
//
// What a replay counted, as a whole and by phase, and the statistics document made of it (schema
// "mmusim-stats" version 1, docs/statistics.md). What was not modelled is absent from the document, never 0.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <mmusim/machine/machine.hpp>
#include <mmusim/shadow/counters.hpp>

namespace mmusim {

struct Statistics {
    struct Accesses {
        std::uint64_t fetch = 0;
        std::uint64_t read = 0;
        std::uint64_t write = 0;

        [[nodiscard]] std::uint64_t total() const { return fetch + read + write; }
        friend bool operator==(const Accesses&, const Accesses&) = default;
    };
    struct Checks {
        std::uint64_t checked = 0;     ///< expectations, each counted once
        std::uint64_t mismatched = 0;  ///< of these, how many did not hold
        /// Held but for accessed or dirty bits that permitted stale translations have left clear.
        std::uint64_t stale = 0;

        friend bool operator==(const Checks&, const Checks&) = default;
    };

    std::uint64_t records = 0;
    Accesses accesses;
    std::uint64_t guest_faults = 0;  ///< page faults that accesses raised in the guest
    Checks checks;
    MachineCounters hardware;
    ShadowCounters shadow;

    /// Adds counts; of gauges keeps the later value, `more`'s.
    void add(const Statistics& more);
    /// What was counted since `earlier`; gauges as they are now.
    [[nodiscard]] Statistics since(const Statistics& earlier) const;

    friend bool operator==(const Statistics&, const Statistics&) = default;
};

struct Phase {
    std::string name;
    Statistics statistics;

    friend bool operator==(const Phase&, const Phase&) = default;
};

/// The machine the replay ran on, not the one it simulated.
struct HostFigures {
    double seconds = 0;
    std::uint64_t peak_memory_bytes = 0;
};

struct StatisticsDocument {
    bool complete = true;  ///< the trace was replayed to its end (or to the limit)
    const nlohmann::ordered_json* config = nullptr;
    std::string trace_name;
    std::string trace_sha256;               ///< of the file as it is stored; empty: not known
    bool coherence = false;                 ///< translations were compared with fresh walks
    bool hazards = false;                   ///< with `shadow`: the configuration is one that has hazards
    bool mem_access = false;                ///< the trace has spoken of it
    bool shadow = true;                     ///< a shadow mode: the document has shadow counters
    bool nested = false;                    ///< a second level was counted; there is a hypervisor
    std::shared_ptr<const CpuProfile> cpu;  ///< whose TLBs were counted
    CycleLabels labels;                     ///< of the cycles
    Statistics total;
    std::vector<Phase> phases;
    HostFigures host;
};

[[nodiscard]] nlohmann::ordered_json to_json(const StatisticsDocument& document);

}  // namespace mmusim
