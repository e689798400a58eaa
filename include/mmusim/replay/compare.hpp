// SPDX-License-Identifier: Apache-2.0
//
// One trace replayed under several configurations, in threads: each replay is on its own, so the results do
// not depend on how many threads there are.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <mmusim/replay/config.hpp>
#include <mmusim/replay/statistics.hpp>

namespace mmusim {

/// How a trace did under one configuration.
struct Contest {
    ReplayConfig config;
    Statistics total;
    CycleLabels labels;              ///< of the cycles
    std::uint64_t shadow_pages = 0;  ///< 4 KiB pages that shadows took at most at a time
    std::uint64_t violations = 0;    ///< of coherence, with check_coherence
    [[nodiscard]] Cycles cycles() const;
    /// Of the causes whose names begin so ("hypervisor.").
    [[nodiscard]] Cycles cycles_of(std::string_view prefix) const;
};

/// A replay that did not get to the end: which, and why.
struct ContestError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Replays the trace file under each configuration, in at most `threads` threads. The results are in the
/// order of the configurations. Throws ContestError, of the first one that failed.
[[nodiscard]] std::vector<Contest> compare(const std::string& trace, const std::vector<ReplayConfig>& configs,
                                           const ShadowPolicyCatalog& catalog, unsigned threads);

}  // namespace mmusim
