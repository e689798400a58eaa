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

namespace mmusim::test {

inline const std::string kHeaderLine =
    R"({"format":"mmusim-trace","version":1,"name":"t","guest":{"kind":"hvm","vcpus":2,)"
    R"("physical_address_bits":40,"features":["nx"],"ram":[{"first_gfn":"0x0","count":"0x100"}]}})"
    "\n";

/// A path that nobody else has; the file, if one comes to be there, goes with the object.
class TempPath {
public:
    explicit TempPath(std::string_view suffix)
    {
        static std::atomic<unsigned> count{0};
        path_ = (std::filesystem::temp_directory_path() /
                 ("mmusim-trace-" + std::to_string(::getpid()) + "-" + std::to_string(count++)))
                    .string() +
                std::string{suffix};
    }
    TempPath(const TempPath&) = delete;
    TempPath& operator=(const TempPath&) = delete;
    ~TempPath()
    {
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
    }

    [[nodiscard]] const std::string& path() const { return path_; }

private:
    std::string path_;
};

class TempFile : public TempPath {
public:
    explicit TempFile(std::string_view content, std::string_view suffix = ".jsonl") : TempPath{suffix}
    {
        std::ofstream file{path(), std::ios::binary};
        file.write(content.data(), static_cast<std::streamsize>(content.size()));
    }
};

inline std::string content_of(const std::string& path)
{
    std::ifstream file{path, std::ios::binary};
    std::ostringstream text;
    text << file.rdbuf();
    return std::move(text).str();
}

inline std::string packed(std::string_view text)
{
    std::string frame(ZSTD_compressBound(text.size()), '\0');
    ZSTD_CCtx* const context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), text.data(), text.size()));
    ZSTD_freeCCtx(context);
    return frame;
}

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
    return read_file(TempFile{text, suffix}.path());
}

}  // namespace mmusim::test
