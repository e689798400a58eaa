// SPDX-License-Identifier: Apache-2.0
//
// Page tables for the model's tests and for random programs: entry by entry into a reference::Memory.
// Levels are numbered as everywhere, 1 is the leaf table. All entries are plain numbers.
#pragma once

#include <cstdint>
#include <map>

#include "support/reference_machine.hpp"

namespace model {

inline constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80, kG = 0x100,
                               kNx = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kAll = kP | kW | kU | kA | kD;

inline unsigned levels_of(reference::Paging paging)
{
    switch (paging) {
    case reference::Paging::pae: return 3;
    case reference::Paging::four_level: return 4;
    case reference::Paging::five_level: return 5;
    default: return 2;
    }
}

class GuestTables {
public:
    /// Tables are made from `first_frame` on, one after the other.
    GuestTables(reference::Memory& memory, reference::Paging paging, std::uint64_t first_frame)
        : memory_{&memory}, paging_{paging}, next_frame_{first_frame}
    {
    }

    /// The address of a new, empty table.
    std::uint64_t new_table() { return next_frame_++ << 12; }
    std::uint64_t next_frame() const { return next_frame_; }
    unsigned levels() const { return levels_of(paging_); }
    unsigned entry_bytes() const { return paging_ == reference::Paging::two_level ? 4 : 8; }
    unsigned shift(unsigned level) const
    {
        return 12 + (level - 1) * (paging_ == reference::Paging::two_level ? 10 : 9);
    }
    /// Where the entry of a level for an address is; the tables above it must be there.
    std::uint64_t entry_at(std::uint64_t root, std::uint64_t linear, unsigned level) const
    {
        std::uint64_t table = root;
        for (unsigned at = levels();; --at) {
            const std::uint64_t index = linear >> shift(at) & (entry_bytes() == 4 ? 1023 : 511);
            const std::uint64_t here = table + index * entry_bytes();
            if (at == level) return here;
            table = memory_->read(here, entry_bytes()) & 0x000f'ffff'ffff'f000;
        }
    }
    /// Maps a page (of `level`: a superpage), and makes the tables above it that are missing with the rights
    /// of `above`.
    void map(std::uint64_t root, std::uint64_t linear, std::uint64_t physical, std::uint64_t flags = kAll,
             unsigned level = 1, std::uint64_t above = kP | kW | kU | kA)
    {
        for (unsigned at = levels(); at > level; --at) {
            const std::uint64_t where = entry_at(root, linear, at);
            if ((memory_->read(where, entry_bytes()) & kP) != 0) continue;
            const bool pdpte = paging_ == reference::Paging::pae && at == 3;
            memory_->write(where, entry_bytes(), new_table() | (pdpte ? kP : above));
        }
        memory_->write(entry_at(root, linear, level), entry_bytes(),
                       physical | flags | (level > 1 ? kPs : 0));
    }

private:
    reference::Memory* memory_;
    reference::Paging paging_;
    std::uint64_t next_frame_;
};

/// The registers that a guest in that mode has, at CPL 0.
inline reference::Cpu registers_for(reference::Paging paging, std::uint64_t root)
{
    reference::Cpu cpu;
    cpu.cr0 = 0x8001'0011;  // PG, WP, ET, PE
    cpu.cr3 = root;
    if (paging == reference::Paging::off) {
        cpu.cr0 = 0x11;
        return cpu;
    }
    cpu.cr4 = 1u << reference::kPse;
    if (paging == reference::Paging::two_level) return cpu;
    cpu.cr4 |= 1u << reference::kPae;
    cpu.efer = 1u << 11;                                        // NXE
    if (paging != reference::Paging::pae) cpu.efer |= 1u << 8;  // LME
    if (paging == reference::Paging::five_level) cpu.cr4 |= 1u << reference::kLa57;
    return cpu;
}

}  // namespace model
