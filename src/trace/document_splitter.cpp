// SPDX-License-Identifier: Apache-2.0
#include "trace/document_splitter.hpp"

#include <utility>

#include <fmt/format.h>

namespace mmusim::trace {

namespace {

constexpr std::string_view kSpace = " \t\r\n";

/// Finds the end of an object whose text comes in pieces.
class ExtentScanner {
public:
    /// Looks at `text` from where it stopped; the object's size once it is complete, else 0.
    std::size_t scan(std::string_view text)
    {
        for (; at_ < text.size(); ++at_) {
            const char c = text[at_];
            if (in_string_) {
                if (c == '\\') {
                    ++at_;  // whatever is escaped ends no string
                } else if (c == '"') {
                    in_string_ = false;
                }
            } else if (c == '"') {
                in_string_ = true;
            } else if (c == '{' || c == '[') {
                ++depth_;
            } else if (c == '}' || c == ']') {
                if (--depth_ == 0) return at_ + 1;
            }
        }
        return 0;
    }

private:
    std::size_t at_ = 0;
    std::size_t depth_ = 0;
    bool in_string_ = false;
};

}  // namespace

void DocumentSplitter::refuse(std::string message, std::string key) const
{
    throw PlacedFault{line_, column(), std::move(message), std::move(key)};
}

/// Takes note of the line ends in `text`, which starts at `offset`.
void DocumentSplitter::skip_lines(std::string_view text, std::uint64_t offset)
{
    for (std::size_t at = text.find('\n'); at != std::string_view::npos; at = text.find('\n', at + 1)) {
        ++line_;
        line_start_ = offset + at + 1;
    }
}

char DocumentSplitter::peek(const char* wanted)
{
    for (;;) {
        const std::string_view text = buffer_->unread();
        const std::size_t at = text.find_first_not_of(kSpace);
        const std::size_t space = at == std::string_view::npos ? text.size() : at;
        skip_lines(text.substr(0, space), buffer_->offset());
        buffer_->consume(space);
        if (at != std::string_view::npos) return text[at];
        if (!buffer_->more()) refuse(fmt::format("the document ends where {} should stand", wanted));
    }
}

void DocumentSplitter::expect(char wanted_character, const char* wanted)
{
    const char found = peek(wanted);
    if (found != wanted_character)
        refuse(fmt::format("'{}' where {} should stand", shown({&found, 1}), wanted));
    buffer_->consume(1);
}

/// A key of the document itself, as it is written.
std::string DocumentSplitter::key()
{
    constexpr std::size_t kLongestKey = 4096;
    if (peek("a key") != '"') refuse("a key should stand here");
    for (;;) {
        const std::string_view text = buffer_->unread();
        for (std::size_t at = 1; at < text.size(); ++at) {
            if (text[at] == '\\') {
                ++at;
            } else if (text[at] == '"') {
                return std::string{text.substr(1, at - 1)};
            }
        }
        if (text.size() > kLongestKey) refuse("a key of the document is too long");
        if (!buffer_->more()) refuse("the document ends within a key");
    }
}

void DocumentSplitter::cut_object(Extent& piece, const char* wanted)
{
    if (peek(wanted) != '{') refuse(fmt::format("{} should stand here", wanted));
    ExtentScanner scanner;
    std::size_t size = 0;
    while ((size = scanner.scan(buffer_->unread())) == 0) {
        if (buffer_->unread().size() > kMaxPieceBytes) break;
        if (!buffer_->more()) refuse(fmt::format("the document ends within {}: it was cut short", wanted));
    }
    if (size == 0 || size > kMaxPieceBytes) {
        refuse(fmt::format("{} is longer than {} MiB", wanted, kMaxPieceBytes >> 20));
    }
    piece = {buffer_->unread().substr(0, size), line_, column()};
    due_ = size;
}

bool DocumentSplitter::next(Extent& piece)
{
    if (due_ > 0) {
        skip_lines(buffer_->unread().substr(0, due_), buffer_->offset());
        buffer_->consume(std::exchange(due_, 0));
    }
    switch (state_) {
    case State::start:
        expect('{', "the document");
        if (const std::string name = key(); name != "header") refuse("the header must come first", name);
        buffer_->consume(std::string_view{"\"header\""}.size());
        expect(':', "':'");
        cut_object(piece, "the header, an object");
        state_ = State::first_record;
        return true;
    case State::first_record:
        if (peek("',' and the records") == '}') refuse("missing in the document", "records");
        expect(',', "','");
        if (const std::string name = key(); name != "records") {
            refuse(name == "header" ? "stands twice" : "\"records\" should stand here", shown(name));
        }
        buffer_->consume(std::string_view{"\"records\""}.size());
        expect(':', "':'");
        expect('[', "the list of records");
        state_ = State::later_record;
        if (peek("a record") != ']') {
            cut_object(piece, "a record, an object");
            return true;
        }
        finish();
        return false;
    case State::later_record:
        if (peek("',' or ']'") != ']') {
            expect(',', "',' or ']'");
            cut_object(piece, "a record, an object");
            return true;
        }
        finish();
        return false;
    case State::end: return false;
    }
    return false;
}

/// From the ']' of the records to the end of the text.
void DocumentSplitter::finish()
{
    expect(']', "']'");
    if (peek("'}'") == ',') {
        buffer_->consume(1);
        const std::string name = key();
        refuse(name == "header" || name == "records" ? "stands twice" : "is not a key of a trace",
               shown(name));
    }
    expect('}', "'}'");
    state_ = State::end;
    do {
        const std::string_view text = buffer_->unread();
        const std::size_t at = text.find_first_not_of(kSpace);
        const std::size_t space = at == std::string_view::npos ? text.size() : at;
        skip_lines(text.substr(0, space), buffer_->offset());
        buffer_->consume(space);
        if (at != std::string_view::npos) refuse("text after the end of the document");
    } while (buffer_->more());
}

}  // namespace mmusim::trace
