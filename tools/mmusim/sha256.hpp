// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace mmusim::tool {

/// SHA-256 of a file's bytes, in hex; empty if it is no regular file (a pipe can't be read twice).
[[nodiscard]] std::string sha256_of_file(const std::string& path);

}  // namespace mmusim::tool
