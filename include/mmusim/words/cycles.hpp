// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace mmusim {

/// A time on the simulated clock, or a length of time, in cycles of the core.
using Cycles = std::uint64_t;

}  // namespace mmusim
