// SPDX-License-Identifier: Apache-2.0
#include "trace/byte_source.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "trace/fault.hpp"

namespace mmusim::trace {

namespace {

constexpr std::size_t kBlockBytes = std::size_t{128} << 10;

[[noreturn]] void refuse(std::string message)
{
    throw PlacedFault{0, 0, std::move(message)};
}

[[noreturn]] void refuse_errno(const char* what, int error)
{
    refuse(fmt::format("{}: {}", what, std::generic_category().message(error)));
}

FileDescriptor opened(const std::string& path)
{
    if (path == "-") return FileDescriptor{STDIN_FILENO};
    FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file.open()) refuse_errno("can't be opened", errno);
    struct stat status {};
    if (::fstat(file.number(), &status) == 0 && S_ISDIR(status.st_mode)) refuse("is a directory");
    return file;
}

bool is_zstd(std::span<const char> start)
{
    static_assert(std::endian::native == std::endian::little);
    std::uint32_t magic = 0;
    if (start.size() < sizeof magic) return false;
    std::memcpy(&magic, start.data(), sizeof magic);
    return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

}  // namespace

struct ByteSource::Decompressor {
    struct Free {
        void operator()(ZSTD_DCtx* dead) const { ZSTD_freeDCtx(dead); }
    };
    std::unique_ptr<ZSTD_DCtx, Free> context{ZSTD_createDCtx()};
    bool within_frame = false;
    bool full = false;  // the last call filled its output: there may be more without more input
    std::string error;  // found, but not said yet
};

ByteSource::ByteSource(const std::string& path) : file_{opened(path)}, stored_(kBlockBytes)
{
    // A pipe may hand over the magic number in pieces.
    constexpr std::size_t kMagicBytes = 4;
    while (end_ < kMagicBytes && refill()) {
    }
    if (is_zstd({stored_.data(), end_})) {
        decompressor_ = std::make_unique<Decompressor>();
        if (!decompressor_->context) throw std::bad_alloc{};
    } else if (path.ends_with(".zst")) {
        refuse(end_ == 0 ? "is empty" : "is not a zstd frame, though its name ends in .zst");
    }
}

ByteSource::~ByteSource() = default;

/// Appends to the input block; false at the end of the file.
bool ByteSource::refill()
{
    if (begin_ == end_) begin_ = end_ = 0;
    while (!at_end_) {
        const ssize_t got = ::read(file_.number(), stored_.data() + end_, stored_.size() - end_);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            at_end_ = true;
            refuse_errno("can't be read", errno);
        }
        if (got == 0) {
            at_end_ = true;
            break;
        }
        end_ += static_cast<std::size_t>(got);
        return true;
    }
    return false;
}

std::size_t ByteSource::read(std::span<char> bytes)
{
    return decompressor_ ? read_compressed(bytes) : read_plain(bytes);
}

std::size_t ByteSource::read_plain(std::span<char> bytes)
{
    if (begin_ == end_ && !refill()) return 0;
    const std::size_t count = std::min(bytes.size(), end_ - begin_);
    std::memcpy(bytes.data(), stored_.data() + begin_, count);
    begin_ += count;
    return count;
}

std::size_t ByteSource::read_compressed(std::span<char> bytes)
{
    // zstd says nothing of what it has put out in a call that ends in an error: small steps lose little.
    constexpr std::size_t kStepBytes = std::size_t{16} << 10;
    Decompressor& zstd = *decompressor_;
    std::size_t filled = 0;
    while (filled < bytes.size() && zstd.error.empty()) {
        if (begin_ == end_ && !zstd.full) {
            if (filled > 0) break;  // what is here need not wait for a slow pipe
            if (!refill()) {
                if (zstd.within_frame) zstd.error = "the last zstd frame is cut short";
                break;
            }
        }
        ZSTD_inBuffer input{stored_.data() + begin_, end_ - begin_, 0};
        ZSTD_outBuffer output{bytes.data() + filled, std::min(kStepBytes, bytes.size() - filled), 0};
        const std::size_t result = ZSTD_decompressStream(zstd.context.get(), &output, &input);
        begin_ += input.pos;
        filled += output.pos;
        if (ZSTD_isError(result) != 0) {
            zstd.error = fmt::format("broken zstd frame: {}", ZSTD_getErrorName(result));
        } else {
            zstd.within_frame = result != 0;
            zstd.full = zstd.within_frame && output.pos == output.size;
        }
    }
    if (filled == 0 && !zstd.error.empty()) refuse(zstd.error);
    return filled;
}

}  // namespace mmusim::trace
