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

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

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

    friend bool operator==(const WalkRoot&, const WalkRoot&) = default;
};

/// Where a walk goes on that found an upper entry in a paging-structure cache: the table to read next, of
/// `level`, and the rights of the path to it. All entries of that path have A set.
template <class Space>
struct WalkResume {
    int level = 0;
    Frame<Space> table;
    Rights rights;
};

/// A walk that begins at the root.
struct FromRoot {};

/// What a successful walk found.
template <class Space>
struct Translation {
    Address<Space> address;
    unsigned page_shift = kPageShift;  ///< log2 of the page's bytes: 12, 21, 22 or 30
    Rights rights;
    bool dirty = false;     ///< the leaf's dirty bit, after the walk
    bool global = false;    ///< the leaf's G bit
    bool assisted = false;  ///< the walk has set an accessed or dirty bit
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

template <PagingMode Mode>
using EntryWord = std::conditional_t<Mode.entry_bytes == 4, std::uint32_t, std::uint64_t>;

/// The way down: what was read at each level, and where it ended.
struct Descent {
    std::array<std::uint64_t, kMaxLevels + 1> raw;  ///< by level, from the root's down to `level`
    std::uint64_t all = ~std::uint64_t{0};          ///< AND of the entries used
    std::uint64_t any = 0;                          ///< OR of them
    int level = 0;                                  ///< of the last entry read
    bool complete = false;                          ///< a leaf was reached, nothing reserved was met
    FaultCause cause = FaultCause::not_present;
};

/// One level, then those below: unrolled at compile time, so that every shift is a constant.
template <PagingMode Mode, int Level, TableMemory Tables, class Trail>
[[gnu::always_inline]] inline void descend(Tables& tables, Frame<typename Tables::Space> table,
                                           const EntryRules& rules, LinearAddress address, Descent& way,
                                           Trail& trail)
{
    const unsigned offset = Mode.index(address, Level) * Mode.entry_bytes;
    const Pte<Mode> entry{tables.template load<EntryWord<Mode>>(table, offset)};
    trail.entry(Level, table, offset, entry.raw());
    way.level = Level;
    if (!entry.present()) return;
    const bool leaf = rules.is_leaf(entry.raw(), Level);
    const auto& reserved = leaf ? rules.reserved_in_leaf : rules.reserved_in_table;
    if ((entry.raw() & reserved[Level]) != 0) [[unlikely]] {
        way.cause = FaultCause::reserved_bit;
        return;
    }
    way.raw[Level] = entry.raw();
    way.all &= entry.raw();
    way.any |= entry.raw();
    if constexpr (Level > 1) {
        if (!leaf) {
            const Frame<typename Tables::Space> next{entry.table_address() >> kPageShift};
            descend<Mode, Level - 1>(tables, next, rules, address, way, trail);
            return;
        }
    }
    way.complete = true;
}

/// The descent from a table of a level known at run time.
template <PagingMode Mode, TableMemory Tables, class Trail>
[[gnu::always_inline]] inline void descend_from(int level, Tables& tables,
                                                Frame<typename Tables::Space> table, const EntryRules& rules,
                                                LinearAddress address, Descent& way, Trail& trail)
{
    constexpr int kRoot = Mode.root_level();
    switch (level) {
    case 1: return descend<Mode, 1>(tables, table, rules, address, way, trail);
    case 2: return descend<Mode, std::min(2, kRoot)>(tables, table, rules, address, way, trail);
    case 3: return descend<Mode, std::min(3, kRoot)>(tables, table, rules, address, way, trail);
    case 4: return descend<Mode, std::min(4, kRoot)>(tables, table, rules, address, way, trail);
    default: return descend<Mode, kRoot>(tables, table, rules, address, way, trail);
    }
}

/// Sets what is missing of the accessed bits on the way and of the leaf's dirty bit; the way begins at
/// `level`, in `table`. False if an entry changed since it was read.
template <PagingMode Mode, TableMemory Tables>
[[nodiscard, gnu::noinline]] bool set_ad_bits(Tables& tables, int level, Frame<typename Tables::Space> table,
                                              LinearAddress address, const Descent& way, bool make_dirty)
{
    // A table may be an entry of itself: then an entry on the way is there twice, and what the walk has made
    // of it above is what it finds below.
    struct Done {
        Frame<typename Tables::Space> table;
        unsigned offset = 0;
        std::uint64_t raw = 0;
    };
    std::array<Done, kMaxLevels + 1> done{};
    std::size_t count = 0;
    for (; level >= way.level; --level) {
        const unsigned offset = Mode.index(address, level) * Mode.entry_bytes;
        std::uint64_t raw = way.raw[static_cast<std::size_t>(level)];
        for (std::size_t i = 0; i < count; ++i) {
            if (done[i].table == table && done[i].offset == offset) raw = done[i].raw;
        }
        std::uint64_t desired = raw | pte::kAccessed;
        if (level == way.level && make_dirty) desired |= pte::kDirty;
        using Word = EntryWord<Mode>;
        if (desired != raw &&
            !tables.exchange(table, offset, static_cast<Word>(raw), static_cast<Word>(desired))) {
            return false;
        }
        done[count++] = {table, offset, desired};
        table = Frame<typename Tables::Space>{Pte<Mode>{raw}.table_address() >> kPageShift};
    }
    return true;
}

}  // namespace detail

/// `from`: FromRoot, or the WalkResume of a paging-structure-cache entry.
template <PagingMode Mode, TableMemory Tables, class Trail = NoTrail, class From = FromRoot>
[[nodiscard]] Result<Translation<typename Tables::Space>, PageFault> walk(
    Tables& tables, const WalkRoot<typename Tables::Space>& root, const WalkRules& rules,
    const Access& access, AdBits ad_bits, Trail&& trail = NoTrail{}, const From& from = {})
{
    using Space = typename Tables::Space;
    constexpr bool kFromRoot = std::is_same_v<From, FromRoot>;
    const LinearAddress address = access.address;
    const auto fault = [&](std::uint32_t code, FaultCause cause, int level) {
        return PageFault{address, code, cause, static_cast<std::uint8_t>(level)};
    };

    Frame<Space> top = root.frame;
    int top_level = Mode.root_level();
    if constexpr (!kFromRoot) {
        top = from.table;
        top_level = from.level;
    } else if constexpr (Mode.top_in_registers) {
        const unsigned index = Mode.index(address, Mode.levels);
        const std::uint64_t pdpte = root.pdptes[index];
        trail.entry(Mode.levels, Frame<Space>{}, index * Mode.entry_bytes, pdpte);
        if ((pdpte & pte::kPresent) == 0) {
            return fault(rules.control.access_bits(access), FaultCause::not_present, Mode.levels);
        }
        top = Frame<Space>{(pdpte & pte::kFrame) >> kPageShift};
    }

    for (;;) {
        detail::Descent way;
        if constexpr (kFromRoot) {
            detail::descend<Mode, Mode.root_level()>(tables, top, rules.entries, address, way, trail);
        } else {
            if (!from.rights.writable) way.all &= ~pte::kWritable;
            if (!from.rights.user) way.all &= ~pte::kUser;
            if (from.rights.no_execute) way.any |= pte::kNoExecute;
            detail::descend_from<Mode>(top_level, tables, top, rules.entries, address, way, trail);
        }
        if (!way.complete) {
            const bool reserved = way.cause == FaultCause::reserved_bit;
            const std::uint32_t more = reserved ? pf::kPresent | pf::kReserved : 0;
            return fault(rules.control.access_bits(access) | more, way.cause, way.level);
        }
        const Pte<Mode> leaf{way.raw[static_cast<std::size_t>(way.level)]};
        const Rights rights{(way.all & pte::kUser) != 0, (way.all & pte::kWritable) != 0,
                            Mode.has_nx && (way.any & pte::kNoExecute) != 0,
                            static_cast<std::uint8_t>(leaf.key())};
        if (const std::uint32_t code = denied(rights, rules.control, access)) {
            return fault(code, FaultCause::rights, way.level);
        }
        bool dirty = leaf.dirty();
        const bool make_dirty = access.kind == AccessKind::write && !dirty;
        const bool all_accessed = (way.all & pte::kAccessed) != 0;
        const bool assist = ad_bits == AdBits::set && (make_dirty || !all_accessed);
        if (assist) [[unlikely]] {
            if (!detail::set_ad_bits<Mode>(tables, top_level, top, address, way, make_dirty)) continue;
            dirty |= make_dirty;
        }
        const unsigned shift = Mode.shift(way.level);
        const std::uint64_t in_page = address.value() & ((std::uint64_t{1} << shift) - 1);
        return Translation<Space>{Address<Space>{leaf.page_address(way.level) | in_page},
                                  shift,
                                  rights,
                                  dirty,
                                  leaf.has(pte::kGlobal),
                                  assist};
    }
}

}  // namespace mmusim
