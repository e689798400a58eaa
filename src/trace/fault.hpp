// SPDX-License-Identifier: Apache-2.0
//
// What is wrong with a piece of a trace's text, before anybody knows which file it is from. The reader
// turns a Fault into a TraceError with file, line and column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mmusim::trace {

/// A piece of the trace's text (the header or one record), and where it starts. Whatever the encoding,
/// kTextPadding bytes after it can be read.
struct Extent {
    std::string_view text;
    std::uint64_t line = 0;
    std::uint64_t column = 0;
};

/// Thrown by what looks into one Extent.
struct Fault {
    std::size_t offset = 0;  ///< in the text
    std::string message;
    std::string key = {};  ///< the JSON key in question, or empty
};

/// Thrown by what looks at the text as a whole: it knows line and column (0: not known).
struct PlacedFault {
    std::uint64_t line = 0;
    std::uint64_t column = 0;
    std::string message;
    std::string key = {};
};

/// Text from the file as an error message shows it: in one line, not too long.
[[nodiscard]] inline std::string shown(std::string_view text, std::size_t longest = 60)
{
    std::string result;
    for (const char c : text.substr(0, longest)) {
        result += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    }
    if (text.size() <= longest) return result;
    // Not in the middle of a character.
    while (!result.empty() && (static_cast<unsigned char>(result.back()) & 0xc0) == 0x80) result.pop_back();
    if (!result.empty() && static_cast<unsigned char>(result.back()) >= 0xc0) result.pop_back();
    return result + "...";
}

}  // namespace mmusim::trace
