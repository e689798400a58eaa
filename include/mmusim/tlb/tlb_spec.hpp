// SPDX-License-Identifier: Apache-2.0
//
// The shape of a CPU's TLBs and paging-structure caches, as a CPU profile states it: plain values.
// docs/timing.md says what each does; docs/cpu-profiles.md how a file says it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/storage/index_function.hpp>
#include <mmusim/storage/replacement.hpp>

namespace mmusim {

/// What an entry of a TLB array is for: a page of a size, or (AMD) an upper-level entry kept beside pages.
enum class EntryKind : std::uint8_t { page_4k, page_2m, page_4m, page_1g, pde };
inline constexpr unsigned kEntryKinds = 5;

/// "4K", "2M", "4M", "1G", "pde".
[[nodiscard]] std::string_view name_of(EntryKind kind);
/// log2 of the bytes of a page; of a PDE as far as the paging mode has 8-byte entries.
[[nodiscard]] constexpr unsigned shift_of(EntryKind kind)
{
    constexpr std::array<unsigned, kEntryKinds> kShifts{12, 21, 22, 30, 21};
    return kShifts[static_cast<std::size_t>(kind)];
}

/// Where entries of one kind may be in an array: set s of this kind is the entries
/// [s * stride + first_way, + ways).
struct EntryView {
    EntryKind kind = EntryKind::page_4k;
    unsigned ways = 1;
    unsigned first_way = 0;
    unsigned stride = 1;  ///< entries from one set to the next
};

/// One physical array: `entries` entries in rows of `ways`. Most have one row for each set, shared by all
/// kinds; a view may leave a kind only some ways of a row, or cut the entries into rows of its own (then
/// replacement is by stamps: lru, fifo or random).
struct TlbArraySpec {
    unsigned entries = 64;
    unsigned ways = 4;
    std::vector<EntryView> views;
    IndexSpec index;
    ReplacementSpec replacement;
};

/// How a second or later level relates to the ones before it.
enum class Inclusion : std::uint8_t {
    neither,    ///< walks fill it; its evictions and theirs do not concern each other
    inclusive,  ///< as `neither`, and what it evicts leaves the levels before it
    exclusive,  ///< holds what the level before it has evicted; a hit moves the entry there
};

/// One TLB: a level for certain kinds of access.
struct TlbSpec {
    std::string name;  ///< "l1i", "l1d", "l1d_load", "l1d_store", "l2", "l2i", "l2d", …
    unsigned level = 1;
    bool fetches = false;
    bool loads = false;
    bool stores = false;
    std::vector<TlbArraySpec> arrays;
    std::uint64_t lookup_cycles = 0;  ///< from the miss before it (or the access) to this level's answer
    Inclusion inclusion = Inclusion::neither;
    bool refills = true;                   ///< a hit here fills the levels before it
    bool takes_evictions = false;          ///< what the level before it evicts is filled in here
    bool touched_by_earlier_hits = false;  ///< a hit in level 1 counts as use here too
    bool splinters = false;  ///< a page larger than any kind here is held as fragments of the largest
    /// After MOV CR3 the entries of so many most recently used PCIDs stay, the new one included: for a
    /// load that flushes, and one with bit 63 set.
    unsigned pcids_kept_flush = 4096;
    unsigned pcids_kept_noflush = 4096;
};

/// One paging-structure cache.
struct PagingStructureCacheSpec {
    int level = 2;          ///< of the entries: 2 PDE, 3 PDPTE, 4 PML4E, 5 PML5E
    TlbArraySpec array;     ///< its one view is of kind `pde`, whatever the level
    std::string stored_in;  ///< name of the TLB whose arrays hold these entries; empty: `array` does
};

struct TlbsSpec {
    std::vector<TlbSpec> tlbs;  ///< in order of level
    std::vector<PagingStructureCacheSpec> paging_structure_caches;
    bool pcid = true;  ///< entries are tagged by PCID; else each MOV CR3 drops all that is not global
};

}  // namespace mmusim
