// SPDX-License-Identifier: Apache-2.0
//
// One record from its JSON text. Every rule on the form of a record is here.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include <mmusim/trace/record.hpp>

#include "trace/fault.hpp"

namespace mmusim::trace {

class RecordParser {
public:
    explicit RecordParser(const TraceHeader& header);
    ~RecordParser();
    RecordParser(const RecordParser&) = delete;
    RecordParser& operator=(const RecordParser&) = delete;

    /// Reads `text` (with kTextPadding readable bytes after it) into `record`, whose storage is used again,
    /// also where it held another kind of record before. `records` went before it: that is what `end` must
    /// say. Throws Fault.
    void parse(std::string_view text, std::uint64_t records, Record& record);

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace mmusim::trace
