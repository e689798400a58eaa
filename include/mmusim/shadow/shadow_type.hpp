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

    friend constexpr bool operator==(const ShadowType&, const ShadowType&) = default;
};

/// "l1_32", "fl1_pae", "l4_64", ...
[[nodiscard]] std::string to_string(ShadowType type);

static_assert(ShadowType{TableFormat::bits32, 2}.frames() * 512 ==
              1024 * ShadowType{TableFormat::bits32, 2}.entries_per_guest_entry());
static_assert(ShadowType{TableFormat::bits32, 1}.frames() * 512 == 1024);

}  // namespace mmusim
