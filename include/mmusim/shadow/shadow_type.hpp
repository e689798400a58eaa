// SPDX-License-Identifier: Apache-2.0
//
// What a shadow shadows: a guest table of some format and level, or a part of a guest superpage
// (reference/xen.md B1, B8). Four-level and five-level guests share the 64-bit formats. The names are
// Xen's: l1_32, fl1_64 ("f" for fabricated: a splintered superpage), ...; fl2_64 (a 1 GiB page) and
// l5_64 are new.
//
// The shadow of a 32-bit table has more than one page, since a shadow entry has 8 bytes:
//   l1_32, fl1_32   1024 entries  ->  2 pages of 512; entry i is entry i%512 of page i/512
//   l2_32           1024 entries of 4 MiB  ->  4 pages; entry i is the pair 2i, 2i+1 (2 MiB each): the
//                   even one references the first page of the l1_32, the odd one the second
// All others have one page and one entry for an entry.
#pragma once

#include <cstdint>
#include <string>

#include <mmusim/words/paging_mode.hpp>

namespace mmusim {

enum class TableFormat : std::uint8_t { bits32, pae, bits64 };

[[nodiscard]] constexpr TableFormat format_of(PagingMode mode)
{
    if (mode == kTwoLevel) return TableFormat::bits32;
    return mode == kPae ? TableFormat::pae : TableFormat::bits64;
}

struct ShadowType {
    TableFormat format = TableFormat::bits64;
    std::uint8_t level = 1;
    bool splinter = false;  ///< of a guest superpage, not of a table

    /// Machine frames of one such shadow.
    [[nodiscard]] constexpr unsigned frames() const
    {
        if (format != TableFormat::bits32) return 1;
        return level == 1 ? 2 : 4;
    }
    /// Shadow entries for one guest entry.
    [[nodiscard]] constexpr unsigned entries_per_guest_entry() const
    {
        return format == TableFormat::bits32 && level == 2 ? 2 : 1;
    }

    /// Xen's number of the type, which its hash takes in; of types that Xen has not, numbers above its own.
    [[nodiscard]] constexpr unsigned code() const
    {
        constexpr unsigned kFl2 = 16, kL5 = 17;
        switch (format) {
        case TableFormat::bits32: return level == 2 ? 3 : splinter ? 2 : 1;
        case TableFormat::pae: return level == 2 ? 6 : splinter ? 5 : 4;
        case TableFormat::bits64: break;
        }
        switch (level) {
        case 1: return splinter ? 8 : 7;
        case 2: return splinter ? kFl2 : 9;
        case 3: return 11;
        case 4: return 12;
        default: return kL5;
        }
    }
    /// Whether the vCPUs' roots are of this type, so that one is kept when nobody uses it.
    [[nodiscard]] constexpr bool top() const
    {
        return format == TableFormat::bits64 ? level >= 4 : level == 2;
    }
    /// Whether a shadow knows the entry that referenced it first.
    [[nodiscard]] constexpr bool has_up_pointer() const { return format != TableFormat::bits32 && !top(); }

    friend constexpr bool operator==(const ShadowType&, const ShadowType&) = default;
};

/// The bucket of the hash table (reference/xen.md B2): of a frame and a type's code.
inline constexpr unsigned kShadowBuckets = 251;
[[nodiscard]] constexpr unsigned shadow_bucket(std::uint64_t frame, unsigned code)
{
    constexpr int kKeyBytes = 5;  // those of a frame number in 52 bits of address
    std::uint32_t k = code;
    for (int i = 0; i < kKeyBytes; ++i) {
        const auto byte = static_cast<std::uint32_t>(frame >> (8 * i) & 0xff);
        k = byte + (k << 6) + (k << 16) - k;
    }
    return k % kShadowBuckets;
}

/// "l1_32", "fl1_pae", "l4_64", ...
[[nodiscard]] std::string to_string(ShadowType type);

static_assert(ShadowType{TableFormat::bits32, 2}.frames() * 512 ==
              1024 * ShadowType{TableFormat::bits32, 2}.entries_per_guest_entry());
static_assert(ShadowType{TableFormat::bits32, 1}.frames() * 512 == 1024);

}  // namespace mmusim
