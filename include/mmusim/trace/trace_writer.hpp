// SPDX-License-Identifier: Apache-2.0
//
// Writes a trace as JSON Lines, compressed with zstd where the file's name ends in ".zst". The text is
// the same for the same records: keys in the order of docs/trace-format.md, defaults left out, numbers
// that are addresses or entries as hex strings. Reading it back gives the same records.
#pragma once

#include <memory>
#include <string>

#include <mmusim/trace/record.hpp>

namespace mmusim {

/// One record or the header as a line of JSON, without the line's end.
[[nodiscard]] std::string to_json_line(const TraceHeader& header);
[[nodiscard]] std::string to_json_line(const Record& record);

class TraceWriter {
public:
    /// Opens the file and writes the header. Throws std::system_error where the file can't be written.
    TraceWriter(const std::string& path, const TraceHeader& header);
    ~TraceWriter();

    /// An `end` record is passed over: finish() writes the one of this trace.
    void write(const Record& record);
    /// Writes the `end` record and closes the file; a file that is not finished is recognised as cut.
    void finish();

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace mmusim
