// SPDX-License-Identifier: Apache-2.0
//
// Reads a trace from a file, record by record, in bounded memory: JSON Lines, or a single document
// {"header": ..., "records": [...]}; each plain or compressed with zstd (told by its content). Strict:
// whatever the format (docs/trace-format.md) does not allow is a TraceError with file, line, column
// where known, and key.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <mmusim/trace/record.hpp>
#include <mmusim/trace/trace_error.hpp>

namespace mmusim {

class TraceReader {
public:
    /// Opens the file and reads the header. "-" is standard input.
    explicit TraceReader(const std::string& path);
    ~TraceReader();
    TraceReader(TraceReader&&) noexcept;
    TraceReader& operator=(TraceReader&&) noexcept;

    [[nodiscard]] const TraceHeader& header() const;

    /// Reads the next record into `record`, whose storage is used again; false at the end.
    bool next(Record& record);

    /// Records read so far, without `end`.
    [[nodiscard]] std::uint64_t records() const;
    /// Place of the record that was read last (of the header before the first).
    [[nodiscard]] TracePlace place() const;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace mmusim
