// SPDX-License-Identifier: Apache-2.0
#include <mmusim/trace/trace_writer.hpp>

#include <cassert>
#include <cerrno>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include "trace/file_descriptor.hpp"

namespace mmusim {

namespace {

constexpr std::size_t kBlockBytes = std::size_t{128} << 10;
constexpr int kCompressionLevel = 3;

/// A new file, compressed where its name says so.
class ByteSink {
public:
    explicit ByteSink(const std::string& path)
        : path_{path}, file_{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)}
    {
        if (!file_.open()) fail();
        if (!path.ends_with(".zst")) return;
        compressor_.reset(ZSTD_createCCtx());
        if (!compressor_) throw std::bad_alloc{};
        ZSTD_CCtx_setParameter(compressor_.get(), ZSTD_c_compressionLevel, kCompressionLevel);
        ZSTD_CCtx_setParameter(compressor_.get(), ZSTD_c_checksumFlag, 1);
        packed_.resize(ZSTD_CStreamOutSize());
    }

    void write(std::string_view text)
    {
        if (compressor_) {
            compress(text, ZSTD_e_continue);
        } else {
            put(text);
        }
    }
    void finish()
    {
        if (compressor_) compress({}, ZSTD_e_end);
        if (!file_.close()) fail();
    }

private:
    struct Free {
        void operator()(ZSTD_CCtx* dead) const { ZSTD_freeCCtx(dead); }
    };

    void compress(std::string_view text, ZSTD_EndDirective directive)
    {
        ZSTD_inBuffer input{text.data(), text.size(), 0};
        for (;;) {
            ZSTD_outBuffer output{packed_.data(), packed_.size(), 0};
            const std::size_t left = ZSTD_compressStream2(compressor_.get(), &output, &input, directive);
            if (ZSTD_isError(left) != 0) throw std::runtime_error{path_ + ": " + ZSTD_getErrorName(left)};
            put({packed_.data(), output.pos});
            if (directive == ZSTD_e_end ? left == 0 : input.pos == input.size) return;
        }
    }
    void put(std::string_view bytes)
    {
        while (!bytes.empty()) {
            const ssize_t written = ::write(file_.number(), bytes.data(), bytes.size());
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) fail();
            bytes.remove_prefix(static_cast<std::size_t>(written));
        }
    }
    [[noreturn]] void fail() const { throw std::system_error{errno, std::generic_category(), path_}; }

    std::string path_;
    trace::FileDescriptor file_;
    std::unique_ptr<ZSTD_CCtx, Free> compressor_;
    std::vector<char> packed_;
};

}  // namespace

class TraceWriter::Impl {
public:
    Impl(const std::string& path, const TraceHeader& header) : sink_{path}, text_{to_json_line(header)} {}

    void write(const Record& record)
    {
        assert(!finished_);
        if (std::holds_alternative<EndRecord>(record)) return;
        // The line before gets its end only now, so that a file which is not finished lacks one.
        text_ += '\n';
        text_ += to_json_line(record);
        ++records_;
        if (text_.size() >= kBlockBytes) flush();
    }

    void finish()
    {
        assert(!finished_);
        finished_ = true;
        text_ += '\n';
        text_ += to_json_line(Record{EndRecord{records_}});
        text_ += '\n';
        flush();
        sink_.finish();
    }

private:
    void flush()
    {
        sink_.write(text_);
        text_.clear();
    }

    ByteSink sink_;
    std::string text_;
    std::uint64_t records_ = 0;
    bool finished_ = false;
};

TraceWriter::TraceWriter(const std::string& path, const TraceHeader& header)
    : impl_{std::make_unique<Impl>(path, header)}
{
}

TraceWriter::~TraceWriter() = default;

void TraceWriter::write(const Record& record)
{
    impl_->write(record);
}

void TraceWriter::finish()
{
    impl_->finish();
}

}  // namespace mmusim
