// SPDX-License-Identifier: Apache-2.0
//
// The one place where the second simulator meets the library: its configuration from a CPU profile.
#pragma once

#include <mmusim/cpu/cpu_profile.hpp>

#include "model/hardware_model.hpp"

namespace model {

/// `program_data`: the program's own loads and stores go through the data caches.
Config from_profile(const mmusim::CpuProfile& profile, bool program_data = true);

}  // namespace model
