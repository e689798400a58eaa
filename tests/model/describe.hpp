// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "model/hardware_model.hpp"

namespace model {

/// A configuration for people, some lines.
std::string describe(const Config& config);

}  // namespace model
