// SPDX-License-Identifier: Apache-2.0
//
// Traces as text, for the tests of the reader and the writer.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>
#include <zstd.h>

#include <mmusim/trace/trace_reader.hpp>

#include "support/files.hpp"

namespace mmusim::test {

inline const std::string kHeaderLine =
    R"({"format":"mmusim-trace","version":1,"name":"t","guest":{"kind":"hvm","vcpus":2,)"
    R"("physical_address_bits":40,"features":["nx"],"ram":[{"first_gfn":"0x0","count":"0x100"}]}})"
    "\n";

struct Reading {
    std::optional<TraceHeader> header;
    std::vector<Record> records;  // with `end`
    std::optional<TraceError> error;
    std::string what;  // of the error
};

/// Reads a file until its end or its first error.
inline Reading read_file(const std::string& path)
{
    Reading reading;
    try {
        TraceReader reader{path};
        reading.header = reader.header();
        for (Record record; reader.next(record);) reading.records.push_back(record);
    } catch (const TraceError& error) {
        reading.what = error.what();
        reading.error = error;
    }
    return reading;
}

inline Reading read_text(std::string_view text, std::string_view suffix = ".jsonl")
{
    return read_file(ScratchFile{text, suffix}.path());
}

}  // namespace mmusim::test
