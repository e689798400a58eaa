// SPDX-License-Identifier: Apache-2.0
//
// A single document {"header": {...}, "records": [{...}, ...]}, compact or pretty-printed: a piece is
// the text of the header or of one record. Only the frame around the pieces is checked here; what is in
// them is up to their parsers. The extent of a piece follows from its strings and its brackets alone.
#pragma once

#include <string>
#include <string_view>

#include "trace/splitter.hpp"

namespace mmusim::trace {

class DocumentSplitter final : public Splitter {
public:
    explicit DocumentSplitter(TextBuffer& buffer) : buffer_{&buffer} {}

    bool next(Extent& piece) override;
    [[nodiscard]] std::uint64_t line() const override { return line_; }

private:
    enum class State { start, first_record, later_record, end };

    /// The next character that is not white space, without consuming it.
    char peek(const char* wanted);
    void expect(char wanted_character, const char* wanted);
    [[nodiscard]] std::string key();
    void cut_object(Extent& piece, const char* wanted);
    void finish();
    void skip_lines(std::string_view text, std::uint64_t offset);
    [[nodiscard]] std::uint64_t column() const { return buffer_->offset() - line_start_ + 1; }
    [[noreturn]] void refuse(std::string message, std::string key = {}) const;

    TextBuffer* buffer_;
    State state_ = State::start;
    std::uint64_t line_ = 1;
    std::uint64_t line_start_ = 0;  // offset in the text
    std::size_t due_ = 0;           // bytes of the last piece, to be consumed
};

}  // namespace mmusim::trace
