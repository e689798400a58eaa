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
