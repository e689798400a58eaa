// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mmusim::tool {

/// 1234567 as "1,234,567".
[[nodiscard]] inline std::string grouped(std::uint64_t number)
{
    std::string text = std::to_string(number);
    for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) {
        text.insert(static_cast<std::size_t>(at), 1, ',');
    }
    return text;
}

/// Rows of the same length, the first the titles, as lines: the first `names` columns to the left, numbers to
/// the right.
[[nodiscard]] std::string table_of(const std::vector<std::vector<std::string>>& rows, std::size_t names);

/// "-" is standard output. Throws std::system_error.
void write_to(const std::string& path, const std::string& text);

}  // namespace mmusim::tool
