// SPDX-License-Identifier: Apache-2.0
//
// A trace that can't be read or makes no sense, with its place. The message is one line:
//   FILE:LINE:COLUMN: key "KEY": MESSAGE     (line, column and key only where they are known)
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mmusim {

/// Where in a trace file something stands. 0: not known.
struct TracePlace {
    std::string file;
    std::uint64_t line = 0;    ///< 1 is the first line
    std::uint64_t column = 0;  ///< in bytes; 1 is the first
};

class TraceError : public std::runtime_error {
public:
    /// `key`: the JSON key in question, or empty.
    TraceError(TracePlace place, const std::string& message, std::string key = {});

    [[nodiscard]] const TracePlace& place() const { return place_; }
    [[nodiscard]] const std::string& key() const { return key_; }

private:
    TracePlace place_;
    std::string key_;
};

}  // namespace mmusim
