// SPDX-License-Identifier: Apache-2.0
//
// Pagetable entries: the bits, and which of them are reserved (SDM vol. 3A 4.3 to 4.5, tables 4-4 to
// 4-20; reference/hardware.md section 2). An entry is its raw bits, 4 or 8 bytes wide; the names are
// the same in all modes. Level 1 is the leaf table. What the reserved bits are depends on CPUID
// (MAXPHYADDR, PSE-36, 1 GiB pages, vendor) and on two control bits (EFER.NXE, CR4.PSE): EntryRules
// holds the masks for one such setting.
#pragma once

#include <array>
#include <cstdint>

#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/paging_mode.hpp>

namespace mmusim {

namespace pte {
inline constexpr std::uint64_t kPresent = 1u << 0;
inline constexpr std::uint64_t kWritable = 1u << 1;
inline constexpr std::uint64_t kUser = 1u << 2;
inline constexpr std::uint64_t kWriteThrough = 1u << 3;
inline constexpr std::uint64_t kCacheDisable = 1u << 4;
inline constexpr std::uint64_t kAccessed = 1u << 5;
inline constexpr std::uint64_t kDirty = 1u << 6;
inline constexpr std::uint64_t kPageSize = 1u << 7;  ///< PS above level 1; PAT at level 1
inline constexpr std::uint64_t kGlobal = 1u << 8;
inline constexpr unsigned kKeyShift = 59;
inline constexpr std::uint64_t kKey = std::uint64_t{15} << kKeyShift;
inline constexpr std::uint64_t kNoExecute = std::uint64_t{1} << 63;
/// Bits 51:12, the frame field of an 8-byte entry.
inline constexpr std::uint64_t kFrame = 0x000f'ffff'ffff'f000;
}  // namespace pte

/// Bits first..last of a 64-bit word, inclusive; none if last < first.
[[nodiscard]] constexpr std::uint64_t bit_range(unsigned first, unsigned last)
{
    if (last < first) return 0;
    return (~std::uint64_t{0} >> (63 - last)) & (~std::uint64_t{0} << first);
}

template <PagingMode Mode>
class Pte {
public:
    constexpr Pte() = default;
    constexpr explicit Pte(std::uint64_t raw) : raw_{raw} {}

    [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }
    [[nodiscard]] constexpr bool has(std::uint64_t bits) const { return (raw_ & bits) == bits; }
    [[nodiscard]] constexpr bool present() const { return has(pte::kPresent); }
    [[nodiscard]] constexpr bool writable() const { return has(pte::kWritable); }
    [[nodiscard]] constexpr bool user() const { return has(pte::kUser); }
    [[nodiscard]] constexpr bool accessed() const { return has(pte::kAccessed); }
    [[nodiscard]] constexpr bool dirty() const { return has(pte::kDirty); }
    [[nodiscard]] constexpr bool no_execute() const { return Mode.has_nx && has(pte::kNoExecute); }
    [[nodiscard]] constexpr unsigned key() const
    {
        return Mode.has_keys ? static_cast<unsigned>((raw_ & pte::kKey) >> pte::kKeyShift) : 0;
    }

    /// Byte address of the table that a non-leaf entry references.
    [[nodiscard]] constexpr std::uint64_t table_address() const
    {
        return raw_ & (Mode.entry_bytes == 4 ? 0xffff'f000u : pte::kFrame);
    }
    /// Byte address of the page that a leaf entry at `level` maps. With 4-byte entries a superpage's
    /// address bits 39:32 are in entry bits 20:13 (PSE-36); the rules see to it that absent ones are 0.
    [[nodiscard]] constexpr std::uint64_t page_address(int level) const
    {
        if constexpr (Mode.entry_bytes == 4) {
            if (level == 1) return raw_ & 0xffff'f000u;
            return (raw_ & 0xffc0'0000u) | ((raw_ & bit_range(13, 20)) << (32 - 13));
        } else {
            return raw_ & pte::kFrame & ~((std::uint64_t{1} << Mode.shift(level)) - 1);
        }
    }

    friend constexpr bool operator==(Pte, Pte) = default;

private:
    std::uint64_t raw_ = 0;
};

/// The control bits that decide how an entry is read.
struct EntrySettings {
    bool nxe = false;  ///< EFER.NXE (never in two-level paging)
    bool pse = false;  ///< CR4.PSE (two-level paging only)

    friend bool operator==(const EntrySettings&, const EntrySettings&) = default;
};

/// Which bits are reserved in a present entry, and at which levels an entry may be a leaf, for one
/// paging mode under one setting. Indexed by level, 1 to 5; index 0 is unused.
struct EntryRules {
    std::array<std::uint64_t, kMaxLevels + 1> reserved_in_table{};
    std::array<std::uint64_t, kMaxLevels + 1> reserved_in_leaf{};
    /// The bit that makes a present entry a leaf: P at level 1, PS where the level may map pages, none
    /// elsewhere.
    std::array<std::uint64_t, kMaxLevels + 1> leaf_bit{0, pte::kPresent, 0, 0, 0, 0};

    [[nodiscard]] constexpr bool is_leaf(std::uint64_t entry, int level) const
    {
        return (entry & leaf_bit[static_cast<std::size_t>(level)]) != 0;
    }
    [[nodiscard]] constexpr bool reserved_bit_set(std::uint64_t entry, int level) const
    {
        const auto& masks = is_leaf(entry, level) ? reserved_in_leaf : reserved_in_table;
        return (entry & masks[static_cast<std::size_t>(level)]) != 0;
    }
};

[[nodiscard]] EntryRules entry_rules(PagingMode mode, const Cpuid& cpuid, EntrySettings settings);

/// Bits that make a present PAE PDPTE unloadable: 2:1, 8:5 and 63:MAXPHYADDR (SDM vol. 3A 4.4.1).
[[nodiscard]] std::uint64_t reserved_in_pdpte(const Cpuid& cpuid);

static_assert(Pte<kTwoLevel>{0x0040'2081}.page_address(2) == 0x1'0040'0000);
static_assert(Pte<kFourLevel>{0x8000'0000'4020'1083}.page_address(2) == 0x4020'0000);

}  // namespace mmusim
