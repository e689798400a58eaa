// SPDX-License-Identifier: Apache-2.0
//
// A latency curve that was measured elsewhere, on a real CPU, and how far the model's is from it.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <mmusim/microbench/chase.hpp>

namespace mmusim::microbench {

/// A file that is no such curve. The message names the file and the line.
struct MeasuredCurveError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Reads a CSV file: names in the first line, of which one is `pages` and one is `column` (cycles of an
/// access). The pages have to rise. Throws MeasuredCurveError.
[[nodiscard]] std::vector<CurvePoint> read_curve(const std::string& path, const std::string& column);

struct ComparedPoint {
    std::uint64_t pages = 0;
    double measured = 0;
    double model = 0;

    /// Of the model, in parts of what was measured: 0.1 is 10 % too slow.
    [[nodiscard]] double error() const { return model / measured - 1; }
};

/// The points that both curves have.
[[nodiscard]] std::vector<ComparedPoint> compare(std::span<const CurvePoint> measured,
                                                 std::span<const CurvePoint> model);

struct MeanError {
    double error = 0;  ///< the mean of the points' absolute errors
    std::size_t points = 0;
};
/// Over the points from `least` to `most` pages.
[[nodiscard]] MeanError mean_error(std::span<const ComparedPoint> points, std::uint64_t least = 0,
                                   std::uint64_t most = std::numeric_limits<std::uint64_t>::max());

}  // namespace mmusim::microbench
