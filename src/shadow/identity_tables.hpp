// SPDX-License-Identifier: Apache-2.0
//
// The guest tables of a vCPU with paging off: one 2-level table of 1024 present, writable, user,
// accessed and dirty 4 MiB entries that maps each linear address to itself (reference/xen.md A1). It
// takes no memory, and nobody can write it.
#pragma once

#include <cstdint>

#include <mmusim/shadow/shadow_cache.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/pte.hpp>

namespace mmusim {

/// Stands for the table's frame; beyond any guest's physical address width.
inline constexpr Gfn kIdentityTable{~std::uint64_t{0} >> kPageShift};

class IdentityTables {
public:
    using Space = space::GuestPhysical;

    template <class Word>
    [[nodiscard]] Word load(Gfn, unsigned offset) const
    {
        constexpr std::uint64_t kFlags =
            pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed | pte::kDirty | pte::kPageSize;
        const std::uint64_t index = offset / kTwoLevel.entry_bytes;
        return static_cast<Word>(index << kTwoLevel.shift(2) | kFlags);
    }

    template <class Word>
    [[nodiscard]] bool exchange(Gfn, unsigned, Word, Word) const
    {
        return true;  // never asked: every accessed and dirty bit is set
    }
};

}  // namespace mmusim
