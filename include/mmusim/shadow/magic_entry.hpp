// SPDX-License-Identifier: Apache-2.0
//
// Magic level-1 shadow entries (reference/xen.md B7): marks in place of mappings. Address bits that the
// machine does not have are set in them, so the hardware ends a walk there with a page fault whose code says
// RSVD, and the handler knows what the page is without a walk of its own. They need a machine whose physical
// addresses have less than 52 bits.
//
//   guest not present   all ones
//   outside RAM         bits 63:36 ones | 35:4 guest frame | 3 zero | U/S, R/W of the guest's entry | P
#pragma once

#include <cstdint>

#include <mmusim/words/address.hpp>
#include <mmusim/words/pte.hpp>

namespace mmusim::magic {

inline constexpr std::uint64_t kNotPresent = ~std::uint64_t{0};
inline constexpr std::uint64_t kMark = bit_range(36, 63) | pte::kPresent;
inline constexpr std::uint64_t kNoMmio = std::uint64_t{1} << 3;
inline constexpr unsigned kFrameShift = 4;
inline constexpr std::uint64_t kFrame = bit_range(4, 35);

/// Whether a level-1 entry is no mapping but a mark.
[[nodiscard]] constexpr bool is_mark(std::uint64_t entry)
{
    return (entry & kMark) == kMark;
}
[[nodiscard]] constexpr bool is_mmio(std::uint64_t entry)
{
    return is_mark(entry) && (entry & kNoMmio) == 0;
}

/// The mark of a guest frame outside RAM with the rights among `flags`; 0 (not present) for a frame number of
/// more than 32 bits: Xen's guests under shadow paging have none.
[[nodiscard]] constexpr std::uint64_t mmio(Gfn frame, std::uint64_t flags)
{
    const std::uint64_t number = frame.number() << kFrameShift;
    if ((number & ~kFrame) != 0 || frame.number() >> 60 != 0) return 0;
    return kMark | number | (flags & (pte::kWritable | pte::kUser));
}
[[nodiscard]] constexpr Gfn mmio_frame(std::uint64_t entry)
{
    return Gfn{(entry & kFrame) >> kFrameShift};
}

// The vector of reference/xen.md H1.
static_assert(mmio(Gfn{0xfee00}, pte::kPresent | pte::kWritable) == 0xffff'fff0'00fe'e003);

}  // namespace mmusim::magic
