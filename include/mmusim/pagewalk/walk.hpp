// SPDX-License-Identifier: Apache-2.0
//
// The page walk: one algorithm over all four paging modes and over both kinds of frames (SDM vol. 3A
// 4.3 to 4.8). Hardware walks the tables of a native guest or the shadows (machine frames), the
// hypervisor walks a guest's tables through the P2M (guest frames): `Tables` says whose frames the
// entries name.
//
//   linear   | L5 index | L4 index | L3 index | L2 index | L1 index | offset |
//                 |          |          |          |          |
//   root ----> [entry] -> [entry] -> [entry] -> [entry] -> [entry] --> frame + offset
//                                       |          |
//                                    1G page    2M / 4M page        (where the mode has them)
//
// At each level: P first, then the reserved bits; rights at the very end, over the whole path. Only an
// access that is permitted sets accessed bits (in every entry used; not in PAE's PDPTEs, which are
// registers) and the leaf's dirty bit, each by compare-exchange: an entry that changed meanwhile makes
// the walk start again. On a faulting walk no bit is set; the manual allows both.
// Left out: shadow stacks, HLAT, LAM, memory types.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>

#include <mmusim/pagewalk/rights.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/page_fault.hpp>
#include <mmusim/words/paging_mode.hpp>
#include <mmusim/words/pte.hpp>
#include <mmusim/words/result.hpp>

namespace mmusim {

/// Memory that holds tables. `load` reads an entry, 4 or 8 bytes wide (`Word`), at a byte offset of a
/// frame; what does not exist reads as 0. `exchange` stores `desired` if the entry still is `expected`,
/// and says whether it was.
// clang-format off
template <class T>
concept TableMemory = requires(T& tables, Frame<typename T::Space> frame, unsigned offset) {
    { tables.template load<std::uint64_t>(frame, offset) } -> std::same_as<std::uint64_t>;
    { tables.template load<std::uint32_t>(frame, offset) } -> std::same_as<std::uint32_t>;
    { tables.exchange(frame, offset, std::uint64_t{}, std::uint64_t{}) } -> std::same_as<bool>;
    { tables.exchange(frame, offset, std::uint32_t{}, std::uint32_t{}) } -> std::same_as<bool>;
};
// clang-format on

/// Where a walk begins.
template <class Space>
struct WalkRoot {
    Frame<Space> frame;                     ///< the root table's frame (not in PAE mode)
    std::array<std::uint64_t, 4> pdptes{};  ///< the PDPTE registers (PAE mode)
};

/// What a successful walk found.
template <class Space>
struct Translation {
    Address<Space> address;
    unsigned page_shift = kPageShift;  ///< log2 of the page's bytes: 12, 21, 22 or 30
    Rights rights;
    bool dirty = false;  ///< the leaf's dirty bit, after the walk
};

/// Whether a walk sets accessed and dirty bits.
enum class AdBits : std::uint8_t { leave, set };

/// The default observer of a walk: none, at no cost.
struct NoTrail {
    template <class Space>
    static constexpr void entry(int, Frame<Space>, unsigned, std::uint64_t)
    {
    }
};

/// The entries that a walk used, by level; a PAE PDPTE has no frame.
template <class Space>
struct WalkPath {
    std::array<std::uint64_t, kMaxLevels + 1> entries{};
    std::array<Frame<Space>, kMaxLevels + 1> tables{};
    std::array<unsigned, kMaxLevels + 1> offsets{};
    int lowest = kMaxLevels + 1;  ///< level of the last entry read

    void entry(int level, Frame<Space> table, unsigned offset, std::uint64_t raw)
    {
        const auto i = static_cast<std::size_t>(level);
        entries[i] = raw;
        tables[i] = table;
        offsets[i] = offset;
        lowest = level;
    }
};

namespace detail {

/// One entry that accessed or dirty bits may have to be set in.
template <class Space>
struct UsedEntry {
    Frame<Space> table;
    unsigned offset = 0;
    std::uint64_t raw = 0;
};

template <PagingMode Mode>
using EntryWord = std::conditional_t<Mode.entry_bytes == 4, std::uint32_t, std::uint64_t>;

}  // namespace detail

template <PagingMode Mode, TableMemory Tables, class Trail = NoTrail>
[[nodiscard]] Result<Translation<typename Tables::Space>, PageFault> walk(
    Tables& tables, const WalkRoot<typename Tables::Space>& root, const WalkRules& rules, Access access,
    AdBits ad_bits, Trail&& trail = NoTrail{})
{
    using Space = typename Tables::Space;
    using Word = detail::EntryWord<Mode>;

    const auto fault = [&](std::uint32_t more, FaultCause cause, int level) {
        return PageFault{access.address, rules.control.access_bits(access) | more, cause,
                         static_cast<std::uint8_t>(level)};
    };

again:
    Frame<Space> table = root.frame;
    Rights rights;
    std::uint64_t all_entries = ~std::uint64_t{0};  // AND: tells whether every accessed bit is set
    std::array<detail::UsedEntry<Space>, kMaxLevels + 1> used;
    int level = Mode.levels;

    if constexpr (Mode.top_in_registers) {
        const std::uint64_t pdpte = root.pdptes[Mode.index(access.address, level)];
        trail.entry(level, Frame<Space>{}, Mode.index(access.address, level) * Mode.entry_bytes, pdpte);
        if ((pdpte & pte::kPresent) == 0) return fault(0, FaultCause::not_present, level);
        table = Frame<Space>{(pdpte & pte::kFrame) >> kPageShift};
        --level;
    }

    for (;; --level) {
        const unsigned offset = Mode.index(access.address, level) * Mode.entry_bytes;
        const Pte<Mode> entry{tables.template load<Word>(table, offset)};
        trail.entry(level, table, offset, entry.raw());
        if (!entry.present()) return fault(0, FaultCause::not_present, level);
        if (rules.entries.reserved_bit_set(entry.raw(), level)) {
            return fault(pf::kPresent | pf::kReserved, FaultCause::reserved_bit, level);
        }
        all_entries &= entry.raw();
        used[static_cast<std::size_t>(level)] = {table, offset, entry.raw()};
        if constexpr (Mode.has_nx) rights.no_execute |= entry.no_execute();
        if (rules.entries.is_leaf(entry.raw(), level)) break;
        table = Frame<Space>{entry.table_address() >> kPageShift};
    }
    const Pte<Mode> leaf{used[static_cast<std::size_t>(level)].raw};
    rights.user = (all_entries & pte::kUser) != 0;
    rights.writable = (all_entries & pte::kWritable) != 0;
    rights.key = static_cast<std::uint8_t>(leaf.key());

    if (const std::uint32_t code = denied(rights, rules.control, access)) {
        return PageFault{access.address, code, FaultCause::rights, static_cast<std::uint8_t>(level)};
    }

    bool dirty = leaf.dirty();
    const bool make_dirty = access.kind == AccessKind::write && !dirty;
    if (ad_bits == AdBits::set && (make_dirty || (all_entries & pte::kAccessed) == 0)) [[unlikely]] {
        for (int at = Mode.root_level(); at >= level; --at) {
            const auto& [frame, offset, raw] = used[static_cast<std::size_t>(at)];
            std::uint64_t desired = raw | pte::kAccessed;
            if (at == level && make_dirty) desired |= pte::kDirty;
            if (desired == raw) continue;
            if (!tables.exchange(frame, offset, static_cast<Word>(raw), static_cast<Word>(desired)))
                goto again;
        }
        dirty |= make_dirty;
    }

    const unsigned shift = Mode.shift(level);
    const std::uint64_t in_page = access.address.value() & ((std::uint64_t{1} << shift) - 1);
    return Translation<Space>{Address<Space>{leaf.page_address(level) | in_page}, shift, rights, dirty};
}

}  // namespace mmusim
