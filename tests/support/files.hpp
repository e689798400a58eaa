// SPDX-License-Identifier: Apache-2.0
//
// Files that a test makes for itself, and zstd.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>
#include <unistd.h>
#include <zstd.h>

namespace mmusim::test {

/// A path that nobody else has; what comes to be there goes with the object.
class ScratchPath {
public:
    explicit ScratchPath(std::string_view suffix = ".jsonl")
    {
        static std::atomic<unsigned> count{0};
        const auto name = fmt::format("mmusim-test-{}-{}{}", ::getpid(), count++, suffix);
        path_ = (std::filesystem::temp_directory_path() / name).string();
    }
    ScratchPath(const ScratchPath&) = delete;
    ScratchPath& operator=(const ScratchPath&) = delete;
    ~ScratchPath()
    {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    [[nodiscard]] const std::string& path() const { return path_; }

private:
    std::string path_;
};

class ScratchFile : public ScratchPath {
public:
    explicit ScratchFile(std::string_view content, std::string_view suffix = ".jsonl") : ScratchPath{suffix}
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

/// One zstd frame with a checksum.
inline std::string packed(std::string_view text)
{
    std::string frame(ZSTD_compressBound(text.size()), '\0');
    ZSTD_CCtx* const context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), text.data(), text.size()));
    ZSTD_freeCCtx(context);
    return frame;
}

}  // namespace mmusim::test
