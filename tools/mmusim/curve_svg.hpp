// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include <mmusim/microbench/measured.hpp>

namespace mmusim::tool {

/// A drawing of the two curves, over the logarithm of the number of pages.
[[nodiscard]] std::string curve_svg(std::span<const microbench::ComparedPoint> points,
                                    const std::string& title, const std::string& measured_name,
                                    const std::string& model_name);

}  // namespace mmusim::tool
