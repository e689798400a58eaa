// SPDX-License-Identifier: Apache-2.0
#include "trace/splitter.hpp"

#include "trace/document_splitter.hpp"
#include "trace/line_splitter.hpp"

namespace mmusim::trace {

namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kSpace = " \t\r\n";

/// What the start of the text says about the encoding.
enum class Guess { lines, document, open };

Guess guess(std::string_view text)
{
    const std::size_t brace = text.find_first_not_of(kSpace);
    if (brace == std::string_view::npos) return Guess::open;
    if (text[brace] != '{') return Guess::lines;
    const std::size_t quote = text.find_first_not_of(kSpace, brace + 1);
    if (quote == std::string_view::npos) return Guess::open;
    const std::string_view rest = text.substr(quote);
    for (const std::string_view key : {"\"header\"", "\"records\""}) {
        if (rest.starts_with(key)) return Guess::document;
        if (key.starts_with(rest)) return Guess::open;
    }
    return Guess::lines;
}

}  // namespace

std::unique_ptr<Splitter> splitter_for(TextBuffer& buffer)
{
    bool whole = !buffer.more();
    while (!whole && kByteOrderMark.starts_with(buffer.unread())) whole = !buffer.more();
    if (buffer.unread().empty()) throw PlacedFault{0, 0, "is empty: it has no header"};
    if (buffer.unread().starts_with(kByteOrderMark)) {
        throw PlacedFault{1, 1, "starts with a byte order mark, which JSON does not allow"};
    }
    Guess found = guess(buffer.unread());
    while (found == Guess::open && !whole && buffer.unread().size() < kMaxPieceBytes) {
        whole = !buffer.more();
        found = guess(buffer.unread());
    }
    if (found == Guess::document) return std::make_unique<DocumentSplitter>(buffer);
    return std::make_unique<LineSplitter>(buffer);
}

}  // namespace mmusim::trace
