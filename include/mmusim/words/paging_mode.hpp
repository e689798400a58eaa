// SPDX-License-Identifier: Apache-2.0
//
// The four paging modes of x86 as values (SDM vol. 3A 4.1, 4.3 to 4.5). A PagingMode is used as a
// template argument, so that every shift and mask in a walk is a constant; the same value prints and
// compares. Levels are numbered as Intel and Xen do: L1 is the leaf table, L5 the root of five-level
// paging.
#pragma once

#include <cstdint>
#include <string_view>

#include <mmusim/words/address.hpp>

namespace mmusim {

inline constexpr int kMaxLevels = 5;

/// How a CPU translates at a given moment.
enum class Paging : std::uint8_t { off, two_level, pae, four_level, five_level };

[[nodiscard]] constexpr std::string_view name_of(Paging paging)
{
    switch (paging) {
    case Paging::off: return "paging off";
    case Paging::two_level: return "2-level";
    case Paging::pae: return "PAE";
    case Paging::four_level: return "4-level";
    case Paging::five_level: return "5-level";
    }
    return "?";
}

struct PagingMode {
    Paging paging;
    int levels;
    unsigned entry_bytes;
    unsigned index_bits;      ///< of every level but PAE's top
    unsigned top_index_bits;  ///< of the top level
    unsigned linear_bits;     ///< width of a linear address
    bool top_in_registers;    ///< PAE: the four PDPTEs are registers, loaded with CR3; they carry no rights
    bool has_nx;              ///< bit 63 can be execute-disable
    bool has_keys;            ///< bits 62:59 of a leaf can be a protection key

    friend constexpr bool operator==(const PagingMode&, const PagingMode&) = default;

    /// Entries of a table below the top.
    [[nodiscard]] constexpr unsigned entries() const { return 1u << index_bits; }
    /// Position of the lowest linear-address bit that `level` translates; also log2 of the bytes that one
    /// of its entries maps.
    [[nodiscard]] constexpr unsigned shift(int level) const
    {
        return kPageShift + static_cast<unsigned>(level - 1) * index_bits;
    }
    [[nodiscard]] constexpr unsigned index(LinearAddress address, int level) const
    {
        const unsigned bits = level == levels ? top_index_bits : index_bits;
        return static_cast<unsigned>(address.value() >> shift(level)) & ((1u << bits) - 1);
    }
    /// The highest level whose table is in memory.
    [[nodiscard]] constexpr int root_level() const { return top_in_registers ? levels - 1 : levels; }
};

inline constexpr PagingMode kTwoLevel{Paging::two_level, 2, 4, 10, 10, 32, false, false, false};
inline constexpr PagingMode kPae{Paging::pae, 3, 8, 9, 2, 32, true, true, false};
inline constexpr PagingMode kFourLevel{Paging::four_level, 4, 8, 9, 9, 48, false, true, true};
inline constexpr PagingMode kFiveLevel{Paging::five_level, 5, 8, 9, 9, 57, false, true, true};

/// Paging off has no mode of its own: a walk of tables that nobody does is taken for two-level.
[[nodiscard]] constexpr PagingMode mode_of(Paging paging)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return kTwoLevel;
    case Paging::pae: return kPae;
    case Paging::four_level: return kFourLevel;
    case Paging::five_level: return kFiveLevel;
    }
    return kTwoLevel;
}

/// The mode that the machine walks when a guest in `guest` runs on shadow pagetables.
[[nodiscard]] constexpr PagingMode shadow_mode_of(PagingMode guest)
{
    return guest == kTwoLevel ? kPae : guest;
}

static_assert(kTwoLevel.shift(2) == 22 && kPae.shift(3) == 30 && kFourLevel.shift(4) == 39);
static_assert(kFiveLevel.shift(5) == 48 && kFiveLevel.shift(5) + kFiveLevel.top_index_bits == 57);
static_assert(kPae.shift(3) + kPae.top_index_bits == 32 && kTwoLevel.shift(2) + 10 == 32);
static_assert(shadow_mode_of(kTwoLevel) == kPae && shadow_mode_of(kFiveLevel) == kFiveLevel);

/// Whether bits above the linear width repeat its top bit (SDM vol. 1 3.3.7.1).
[[nodiscard]] constexpr bool canonical(std::uint64_t address, unsigned linear_bits)
{
    const auto extended = static_cast<std::int64_t>(address << (64 - linear_bits)) >> (64 - linear_bits);
    return static_cast<std::uint64_t>(extended) == address;
}

}  // namespace mmusim
