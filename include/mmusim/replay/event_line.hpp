// SPDX-License-Identifier: Apache-2.0
//
// A shadow event as a line of JSON (docs/events.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <mmusim/shadow/shadow_events.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim {

/// Without the line's end. `record`: of the trace, 1 is the first after the header. `cycle`: the simulated
/// clock; none: it is off. The same event gives the same text.
[[nodiscard]] std::string to_json_line(const ShadowEvent& event, std::uint64_t record,
                                       std::optional<Cycles> cycle);

}  // namespace mmusim
