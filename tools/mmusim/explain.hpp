// SPDX-License-Identifier: Apache-2.0
//
// One translation in words, level by level. Looks only: no accessed or dirty bit is set.
#pragma once

#include <string>

#include <mmusim/machine/machine.hpp>
#include <mmusim/words/access.hpp>

namespace mmusim::tool {

/// The guest's own walk: each entry decoded, with its P2M step, the rights, the verdict and why.
[[nodiscard]] std::string explain_guest_walk(const Machine& machine, unsigned vcpu, const Access& access);
/// The hardware's walk of the shadows. Empty in native mode.
[[nodiscard]] std::string explain_shadow_walk(const Machine& machine, unsigned vcpu, const Access& access);

}  // namespace mmusim::tool
