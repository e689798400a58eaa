// SPDX-License-Identifier: Apache-2.0
//
// The header of a trace, from its JSON text.
#pragma once

#include <string_view>

#include <mmusim/trace/record.hpp>

#include "trace/fault.hpp"

namespace mmusim::trace {

inline constexpr unsigned kMaxVcpus = 1024;

/// Throws Fault; its key is the path in the header ("guest.p2m.offset").
[[nodiscard]] TraceHeader parse_header(std::string_view text);

}  // namespace mmusim::trace
