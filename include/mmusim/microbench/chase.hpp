// SPDX-License-Identifier: Apache-2.0
//
// The curves that people measure of TLBs: accesses to one line in each of a number of pages, each after the
// one before it, round and round in an order that is random but fixed; the mean latency. Each point of a
// curve has a machine of its own, so that no point depends on the others.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/microbench/testbed.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim::microbench {

/// Parameters with which an experiment can't be made. The message says why.
struct ExperimentError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Mapping : std::uint8_t {
    shared,  ///< all pages to one of memory: the data are always in the nearest cache
    own,     ///< each to its own
};

/// How a chase goes. Rounds are at least so many, and more where the pages are few.
struct ChaseOptions {
    AccessKind kind = AccessKind::read;
    PageSize page = PageSize::k4k;
    Mapping mapping = Mapping::shared;
    Cycles work = 2;  ///< cycles between accesses, for the next address
    unsigned warm_up_rounds = 2;
    unsigned rounds = 4;
    std::uint64_t seed = 1;
};

struct CurvePoint {
    std::uint64_t pages = 0;
    double cycles = 0;  ///< of an access

    friend bool operator==(const CurvePoint&, const CurvePoint&) = default;
};

/// From 1 to `most`, about eight a doubling.
[[nodiscard]] std::vector<std::uint64_t> curve_steps(std::uint64_t most);

struct CurveOptions {
    ChaseOptions chase = {};
    std::vector<std::uint64_t> pages = curve_steps(65536);
    std::uint64_t stride = 1;  ///< pages from one to the next
};
[[nodiscard]] std::vector<CurvePoint> latency_curve(const std::shared_ptr<const CpuProfile>& cpu,
                                                    const CurveOptions& options);

/// How many pages at a stride the levels hold. Exact, whatever the replacement policies: it does not go by
/// means, but looks for the first page that is not there.
struct StrideSweepOptions {
    AccessKind kind = AccessKind::read;
    PageSize page = PageSize::k4k;
    std::vector<std::uint64_t> strides = {1,   2,   3,   4,   5,    8,    16,   32,   64,
                                          128, 129, 256, 512, 1024, 2048, 4096, 8192, 16384};  ///< in pages
    std::uint64_t most = 16384;                                                                ///< pages
    std::uint64_t seed = 1;
};
struct StridePoint {
    std::uint64_t stride = 0;
    std::uint64_t first_level = 0;   ///< pages
    std::uint64_t second_level = 0;  ///< pages; 0: there is none
};
[[nodiscard]] std::vector<StridePoint> stride_sweep(const std::shared_ptr<const CpuProfile>& cpu,
                                                    const StrideSweepOptions& options);

/// So many pages at a stride, where the curves' pages are too.
[[nodiscard]] std::vector<LinearAddress> row_of_pages(std::uint64_t pages, std::uint64_t stride,
                                                      PageSize size);

/// Cyclic sweeps over few pages, as many as fit one set and some more. Where a policy's victims depend on
/// what was there before, so does the mean: hence several trials, each after other pages.
struct SetSweepOptions {
    ChaseOptions chase = {};
    std::vector<LinearAddress> addresses = {};  ///< n pages are the first n of them
    std::uint64_t first = 1;                    ///< least n
    unsigned trials = 16;
};
struct SetPoint {
    std::uint64_t pages = 0;
    double least = 0;  ///< cycles of an access: of the trial with the least mean
    double mean = 0;   ///< of all trials
    double most = 0;
};
[[nodiscard]] std::vector<SetPoint> set_sweep(const std::shared_ptr<const CpuProfile>& cpu,
                                              const SetSweepOptions& options);
/// Pages that share a set in both levels, of those that `find_geometry` finds. Empty, if level 1 was not
/// found.
[[nodiscard]] std::vector<LinearAddress> pages_of_one_set(const std::shared_ptr<const CpuProfile>& cpu,
                                                          AccessKind kind, PageSize page,
                                                          std::size_t count = 0);

/// What the paging-structure caches reach: pages below a number of upper entries, more pages than the TLBs
/// hold.
struct ReachOptions {
    ChaseOptions chase = {};    ///< of 4K pages
    int level = 2;              ///< of the entries: 2 PDE, 3 PDPTE, 4 PML4E
    std::uint64_t spacing = 1;  ///< entries from one to the next; 0: random ones
    std::vector<std::uint64_t> entries = curve_steps(128);
    std::uint64_t pages =
        8192;  ///< in all; but no more than 512 below an entry, each with a lower entry of its own
};
struct ReachPoint {
    std::uint64_t entries = 0;
    std::uint64_t pages = 0;
    double cycles = 0;
};
[[nodiscard]] std::vector<ReachPoint> reach(const std::shared_ptr<const CpuProfile>& cpu,
                                            const ReachOptions& options);

/// Several chases at a time, each over pages of its own: `window:N` with N chases, one access each in flight.
struct ParallelOptions {
    ChaseOptions chase = {.work = 0};
    std::uint64_t pages = 16384;  ///< in all
    std::vector<unsigned> chains = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32};
};
struct ParallelPoint {
    unsigned chains = 0;
    double cycles = 0;  ///< from one access's end to the next one's, of any chain
};
struct ParallelWalks {
    std::vector<ParallelPoint> points;
    /// Walks in flight: what a walk alone takes beyond a hit in the last TLB, by what the most chains wait
    /// from one walk's end to the next one's. 0: even more chains would be faster, or nothing ever hits.
    unsigned walkers = 0;
};
[[nodiscard]] ParallelWalks parallel_walks(const std::shared_ptr<const CpuProfile>& cpu,
                                           const ParallelOptions& options);

}  // namespace mmusim::microbench
