// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/compare.hpp>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>

#include <fmt/format.h>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

namespace mmusim {

namespace {

/// Fills in the results; an empty text, or why not.
std::string run(const std::string& trace, const ShadowPolicyCatalog& catalog, Contest& contest)
try {
    TraceReader reader{trace};
    Replayer replayer{reader.header(), contest.config, catalog};
    Record record;
    try {
        while (!replayer.finished() && reader.next(record)) replayer.replay(record);
    } catch (const RecordError& error) {
        throw TraceError(reader.place(), error.what(), error.key);
    }
    replayer.finish();
    contest.total = replayer.total();
    const Machine& machine = replayer.machine();
    contest.labels = machine.cycle_labels();
    if (machine.shadow() != nullptr) contest.shadow_pages = machine.shadow()->cache().peak_pages();
    contest.violations = contest.total.hardware.coherence.violations;
    return {};
} catch (const std::exception& error) {
    const bool shadows = has_shadows(contest.config);
    return fmt::format("{}{}{}: {}", name_of(contest.config.mode), shadows ? ", policy " : "",
                       shadows ? contest.config.policy : "", error.what());
}

}  // namespace

Cycles Contest::cycles() const
{
    return std::accumulate(total.hardware.cycles.begin(), total.hardware.cycles.end(), Cycles{0});
}

Cycles Contest::cycles_of(std::string_view prefix) const
{
    Cycles sum = 0;
    for (std::size_t i = 0; i < total.hardware.cycles.size(); ++i) {
        if (labels.name(static_cast<Label>(i)).starts_with(prefix)) sum += total.hardware.cycles[i];
    }
    return sum;
}

std::vector<Contest> compare(const std::string& trace, const std::vector<ReplayConfig>& configs,
                             const ShadowPolicyCatalog& catalog, unsigned threads)
{
    std::vector<Contest> contests(configs.size());
    std::vector<std::string> errors(configs.size());
    for (std::size_t i = 0; i < configs.size(); ++i) contests[i].config = configs[i];
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i = next++; i < contests.size(); i = next++)
            errors[i] = run(trace, catalog, contests[i]);
    };
    std::vector<std::jthread> helpers;
    const auto count = std::min<std::size_t>(std::max(threads, 1u), configs.size());
    for (std::size_t i = 1; i < count; ++i) helpers.emplace_back(work);
    work();
    helpers.clear();
    for (const std::string& error : errors) {
        if (!error.empty()) throw ContestError(error);
    }
    return contests;
}

}  // namespace mmusim
