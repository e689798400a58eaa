// SPDX-License-Identifier: Apache-2.0
//
// Cuts the text of a trace into its header and its records, in bounded memory. The two encodings have
// one splitter each: lines of JSON (LineSplitter) and a single document (DocumentSplitter).
#pragma once

#include <cstdint>
#include <memory>

#include "trace/fault.hpp"
#include "trace/text_buffer.hpp"

namespace mmusim::trace {

class Splitter {
public:
    virtual ~Splitter() = default;

    /// The next piece: first the header, then the records; false at the end of the trace. The text is
    /// valid until the next call.
    virtual bool next(Extent& piece) = 0;
    /// The line that next() has come to.
    [[nodiscard]] virtual std::uint64_t line() const = 0;
};

/// The splitter for the text in `buffer`, told by its first key.
[[nodiscard]] std::unique_ptr<Splitter> splitter_for(TextBuffer& buffer);

}  // namespace mmusim::trace
