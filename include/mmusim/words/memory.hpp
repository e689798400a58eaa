// SPDX-License-Identifier: Apache-2.0
//
// Sparse memory that holds real bits: 4 KiB frames of little-endian words, made on the first store. A
// frame that was never stored to reads as 0 and costs nothing, so an address space of 2^52 bytes is as
// cheap as one of 2^20. One object belongs to one thread: reading remembers where a frame was found.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/words/address.hpp>

namespace mmusim {

static_assert(std::endian::native == std::endian::little, "guest memory is kept in host byte order");

class SparseMemory {
public:
    SparseMemory();

    /// Reads `Word` at `offset` (aligned to its size) of `frame`.
    template <class Word>
    [[nodiscard]] Word load(std::uint64_t frame, unsigned offset) const
    {
        const std::byte* page = find(frame);
        Word word = 0;
        if (page != nullptr) std::memcpy(&word, page + offset, sizeof word);
        return word;
    }

    template <class Word>
    void store(std::uint64_t frame, unsigned offset, Word word)
    {
        std::memcpy(make(frame) + offset, &word, sizeof word);
    }

    /// Bytes at `offset` of one frame; neither may run past its end.
    void read(std::uint64_t frame, unsigned offset, std::span<std::byte> bytes) const;
    void write(std::uint64_t frame, unsigned offset, std::span<const std::byte> bytes);

    /// The frame's 4096 bytes, or null if it was never stored to.
    [[nodiscard]] const std::byte* find(std::uint64_t frame) const
    {
        Remembered& slot = remembered_[frame % kRemembered];
        if (slot.frame != frame) [[unlikely]]
            look_up(slot, frame);
        return slot.page;
    }

    /// Makes the frame 0 and gives its page back.
    void discard(std::uint64_t frame);
    /// Makes everything 0. Costs time in proportion to the frames in use.
    void clear();

    [[nodiscard]] std::size_t frames_in_use() const { return pages_.size(); }

private:
    struct alignas(64) Page {
        std::array<std::byte, kPageBytes> bytes;
    };
    struct Remembered {
        std::uint64_t frame;
        std::byte* page;
    };
    static constexpr std::size_t kRemembered = 1024;  // 16 KiB: a small share of any L1 or L2 cache
    static constexpr std::uint64_t kNoFrame = ~std::uint64_t{0};

    [[nodiscard]] std::byte* make(std::uint64_t frame);
    void look_up(Remembered& slot, std::uint64_t frame) const;

    boost::unordered_flat_map<std::uint64_t, std::unique_ptr<Page>> pages_;
    std::vector<std::unique_ptr<Page>> free_;
    mutable std::vector<Remembered> remembered_;
};

}  // namespace mmusim
