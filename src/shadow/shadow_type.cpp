// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_type.hpp>

#include <fmt/format.h>

namespace mmusim {

std::string to_string(ShadowType type)
{
    const char* format = "64";
    if (type.format == TableFormat::bits32) format = "32";
    if (type.format == TableFormat::pae) format = "pae";
    return fmt::format("{}l{}_{}", type.splinter ? "f" : "", type.level, format);
}

}  // namespace mmusim
