// SPDX-License-Identifier: Apache-2.0
//
// The numbers of a trace that are strings: "0x" and hex digits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mmusim::trace {

inline constexpr unsigned kNoHexDigit = 16;

inline constexpr std::array<std::uint8_t, 256> kHexDigits = [] {
    std::array<std::uint8_t, 256> digits{};
    digits.fill(kNoHexDigit);
    for (unsigned i = 0; i < 10; ++i) digits['0' + i] = static_cast<std::uint8_t>(i);
    for (unsigned i = 0; i < 6; ++i) {
        digits['a' + i] = digits['A' + i] = static_cast<std::uint8_t>(10 + i);
    }
    return digits;
}();

[[nodiscard]] inline unsigned hex_digit(char c)
{
    return kHexDigits[static_cast<unsigned char>(c)];
}

struct HexScan {
    std::uint64_t value = 0;
    std::size_t digits = 0;
    bool fits = true;  ///< in 64 bits
};

/// Reads hex digits up to the first character that is none. There must be one.
[[nodiscard]] inline HexScan scan_hex(const char* text)
{
    HexScan scan;
    std::uint64_t lost = 0;
    const char* at = text;
    for (unsigned digit = 0; (digit = hex_digit(*at)) != kNoHexDigit; ++at) {
        lost |= scan.value >> 60;
        scan.value = scan.value << 4 | digit;
    }
    scan.digits = static_cast<std::size_t>(at - text);
    scan.fits = lost == 0;
    return scan;
}

}  // namespace mmusim::trace
