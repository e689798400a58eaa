// SPDX-License-Identifier: Apache-2.0
//
// A window on the text of a trace that slides forward: what was read but not consumed yet, in one
// piece. It grows with the longest piece that somebody looks at, up to kMaxPieceBytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "trace/byte_source.hpp"

namespace mmusim::trace {

/// Bytes after the text that can be read (simdjson looks that far ahead).
inline constexpr std::size_t kTextPadding = 64;

/// The longest line of a trace, and the longest record of a document.
inline constexpr std::size_t kMaxPieceBytes = std::size_t{16} << 20;

class TextBuffer {
public:
    explicit TextBuffer(ByteSource& source);

    /// What is here. Valid until the next call of more().
    [[nodiscard]] std::string_view unread() const { return {text_.data() + begin_, end_ - begin_}; }
    void consume(std::size_t bytes) { begin_ += bytes; }
    /// Where unread() starts in the whole text.
    [[nodiscard]] std::uint64_t offset() const { return dropped_ + begin_; }

    /// Reads on: unread() gets longer. False at the end of the text.
    /// The caller keeps unread() from growing past kMaxPieceBytes.
    [[nodiscard]] bool more();

private:
    ByteSource* source_;
    std::vector<char> text_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    std::uint64_t dropped_ = 0;
};

}  // namespace mmusim::trace
