// SPDX-License-Identifier: Apache-2.0
//
// Numbers as people type them: decimal, or hex after "0x". Nothing else: no sign, no octal, no spaces.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace mmusim {

/// The number that the whole of `text` stands for, if it is one and fits 64 bits.
[[nodiscard]] inline std::optional<std::uint64_t> parse_number(std::string_view text)
{
    int base = 10;
    if (text.starts_with("0x")) {
        text.remove_prefix(2);
        base = 16;
    }
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
}

}  // namespace mmusim
