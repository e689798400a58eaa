// SPDX-License-Identifier: Apache-2.0
//
// Propagation: what a guest entry permits its shadow to hold (reference/xen.md B7). A pure function, the
// only place where guest flags become shadow flags.
#pragma once

#include <cstdint>

#include <mmusim/words/pte.hpp>

namespace mmusim {

/// Flags of an entry whose rights another one holds: inside a splintered superpage.
inline constexpr std::uint64_t kSplinterFlags = pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed;

/// Rights that the entries above a table take away, in three bits of a role; none: 0.
inline constexpr std::uint8_t kDeniesWrite = 1 << 4, kDeniesUser = 1 << 5, kDeniesExecute = 1 << 6;
inline constexpr std::uint8_t kDenials = kDeniesWrite | kDeniesUser | kDeniesExecute;

/// What an upper entry (or a large page's) with these flags takes away.
[[nodiscard]] constexpr std::uint8_t denials_of(std::uint64_t flags)
{
    unsigned denials = 0;
    if ((flags & pte::kWritable) == 0) denials |= kDeniesWrite;
    if ((flags & pte::kUser) == 0) denials |= kDeniesUser;
    if ((flags & pte::kNoExecute) != 0) denials |= kDeniesExecute;
    return static_cast<std::uint8_t>(denials);
}

/// Flags with what the role's denials leave of them.
[[nodiscard]] constexpr std::uint64_t narrowed(std::uint64_t flags, std::uint8_t role)
{
    if ((role & kDeniesWrite) != 0) flags &= ~pte::kWritable;
    if ((role & kDeniesUser) != 0) flags &= ~pte::kUser;
    if ((role & kDeniesExecute) != 0) flags |= pte::kNoExecute;
    return flags;
}

/// Software bits of a shadow's upper entry, in ShadowKeying::vcpu: below it are global pages alone; what is
/// below has to be emptied before it is used again, globals too. In a level-1 entry: the page is global.
inline constexpr std::uint64_t kGlobalMark = std::uint64_t{1} << 9;
inline constexpr std::uint64_t kEmptyMark = std::uint64_t{1} << 10;

/// Flags of the shadow of `entry` (the frame is the caller's), or 0 if it must not be present.
template <PagingMode Guest>
[[nodiscard]] constexpr std::uint64_t propagated_flags(Pte<Guest> entry, int level, const EntryRules& rules)
{
    // Accessed clear: the hypervisor must see the first use, to set the bit for the guest.
    if (!entry.present() || !entry.accessed() || rules.reserved_bit_set(entry.raw(), level)) return 0;
    std::uint64_t flags = entry.raw() & (pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed);
    if (entry.no_execute()) flags |= pte::kNoExecute;
    // Dirty clear: the same for the first write.
    if (rules.is_leaf(entry.raw(), level) && !entry.dirty()) flags &= ~pte::kWritable;
    if (level > 1) {
        flags |= pte::kDirty;  // no hardware reads it there; set, it never needs to be
    } else if constexpr (Guest.has_keys) {
        flags |= entry.raw() & pte::kKey;
    }
    return flags;
}

}  // namespace mmusim
