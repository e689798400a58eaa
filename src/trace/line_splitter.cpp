// SPDX-License-Identifier: Apache-2.0
#include "trace/line_splitter.hpp"

#include <cstring>

#include <fmt/format.h>

namespace mmusim::trace {

bool LineSplitter::next(Extent& piece)
{
    ++line_;
    std::size_t searched = 0;
    for (;;) {
        const std::string_view text = buffer_->unread();
        const void* found = std::memchr(text.data() + searched, '\n', text.size() - searched);
        if (found != nullptr) {
            const auto length = static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
            if (length > kMaxPieceBytes) break;
            buffer_->consume(length + 1);
            piece = {text.substr(0, length), line_, 1};
            return true;
        }
        searched = text.size();
        if (searched > kMaxPieceBytes) break;
        if (!buffer_->more()) {
            if (searched == 0) return false;
            throw PlacedFault{line_, searched + 1, "the last line has no line end: the file was cut short"};
        }
    }
    throw PlacedFault{line_, 0, fmt::format("the line is longer than {} MiB", kMaxPieceBytes >> 20)};
}

}  // namespace mmusim::trace
