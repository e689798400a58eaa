// SPDX-License-Identifier: Apache-2.0
//
// The text of a trace as a stream of bytes: a file, a pipe or standard input, decompressed where it
// starts with zstd's magic number (RFC 8878: frames one after the other, skippable ones among them).
// Needs memory for one block of input and for zstd's window (at most 128 MiB, its default limit).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trace/file_descriptor.hpp"

namespace mmusim::trace {

class ByteSource {
public:
    /// "-" is standard input. Throws PlacedFault, as all functions here.
    explicit ByteSource(const std::string& path);
    ~ByteSource();
    ByteSource(const ByteSource&) = delete;
    ByteSource& operator=(const ByteSource&) = delete;

    /// Puts the next bytes of the text into `bytes`; 0 is its end. What could be decompressed before a
    /// damaged place comes first, the error with the next call.
    std::size_t read(std::span<char> bytes);

private:
    struct Decompressor;

    [[nodiscard]] bool refill();
    std::size_t read_plain(std::span<char> bytes);
    std::size_t read_compressed(std::span<char> bytes);

    FileDescriptor file_;
    std::vector<char> stored_;  // the input block
    std::size_t begin_ = 0;     // what is left of it
    std::size_t end_ = 0;
    bool at_end_ = false;
    std::unique_ptr<Decompressor> decompressor_;  // none: the bytes are the text
};

}  // namespace mmusim::trace
