// SPDX-License-Identifier: Apache-2.0
//
// JSON Lines: a piece is a line. Each has its line end, the last one too: without it the file was cut.
#pragma once

#include "trace/splitter.hpp"

namespace mmusim::trace {

class LineSplitter final : public Splitter {
public:
    explicit LineSplitter(TextBuffer& buffer) : buffer_{&buffer} {}

    bool next(Extent& piece) override;
    [[nodiscard]] std::uint64_t line() const override { return line_; }

private:
    TextBuffer* buffer_;
    std::uint64_t line_ = 0;
};

}  // namespace mmusim::trace
