// SPDX-License-Identifier: Apache-2.0
//
// A shadow policy decides; the engine acts. The engine asks on slow paths alone, and never lets a policy
// write an entry: a policy can make a guest slow, but not wrong. What it may leave stale it declares, and
// the checkers hold it to that. It declares the mechanisms that it uses with their sizes, and is asked what
// a flush of the guest does and what becomes of a write to a shadowed table.
//
// Order of calls: `declared` once, before anything else. `on_flush` after the guest's instruction has
// taken effect on its registers; new roots are loaded afterwards. `on_table_write` on each fault of a write
// to a shadowed table, after the walk.
//
// What the built-in policies declare is in reference/xen.md B20 and reference/other_policies.md part 4.
#pragma once

#include <cstdint>
#include <stdexcept>

#include <mmusim/words/address.hpp>

namespace mmusim {

/// What a shadow page is found again by.
enum class ShadowKeying : std::uint8_t {
    frame_and_type,    ///< one shadow for a guest table, shared by all address spaces, kept when unused
    frame_and_access,  ///< one for each set of rights that the entries above the table leave it: upper
                       ///< entries permit everything, level-1 entries have the rights of the whole path
    position,          ///< a shadow belongs to its place under one vCPU's root and dies with it
    vcpu,              ///< one tree for each vCPU, whatever root it loads; tables are emptied when used again
};

/// Which tables may be out of sync, and who resyncs them.
enum class OutOfSyncList : std::uint8_t {
    /// Xen's: a few slots for each vCPU. Level 1 alone, each table shadowed once, while all vCPUs have paging
    /// on. A vCPU resyncs its own, looks through those of others, and resyncs all where an upper entry is
    /// linked.
    per_vcpu,
    /// One list of the domain without a limit, of tables whose levels are all in `stale_levels`. What is
    /// linked is resynced with what is below it.
    per_domain,
};

/// How the shadows of a table that was out of sync are made right.
enum class Repair : std::uint8_t {
    compare,   ///< entries that differ from a copy made when it went out of sync are propagated again
    rederive,  ///< each entry that is present is propagated again; no copy
    drop,      ///< they are emptied; no copy
};

/// How writable mappings of a frame are found.
enum class WriteSearch : std::uint8_t {
    shadows,      ///< guesses, if switched on, then a search through all level-1 shadows
    reverse_map,  ///< a chain for each frame
};

/// What becomes of the entries that an emulated write has changed.
enum class WrittenEntry : std::uint8_t { propagate, drop };

/// What gives way where the pool is used up.
enum class Reclaim : std::uint8_t {
    oldest_root,  ///< the root loaded longest ago, with what it alone refers to; then running roots' entries
    oldest_shadow,  ///< the shadow made longest ago, whatever it is; what it referred to stays
};

/// When a page fault resyncs tables, before anything else.
enum class FaultResync : std::uint8_t {
    never,
    path_changed,  ///< all, if an entry on the faulting address's path differs from the copy
    always,        ///< all
};

/// Xen's optimisation switches (reference/xen.md B17). The ninth, out of sync, is a matter of
/// `on_table_write`.
struct ShadowSwitches {
    bool writable_heuristic = false;  ///< guess where a table is mapped writable before searching all shadows
    bool early_unshadow = false;      ///< two zeros in a row written to a table: it is being torn down
    bool fast_fault_path = false;     ///< marks in entries tell faults of the guest, and MMIO, without a walk
    bool prefetch = false;            ///< a fault fills the entries after its own too
    bool linux_l3_toplevel = false;   ///< long-mode L3 shadows are kept while few L4 ones are
    bool skip_verify = false;         ///< emulated writes from not present to not present are not propagated
    bool virtual_tlb = false;         ///< translations for emulated writes are remembered
    bool fast_emulation = false;      ///< a write to the page that was emulated last is, without a walk

    friend bool operator==(const ShadowSwitches&, const ShadowSwitches&) = default;
};
inline constexpr ShadowSwitches kAllShadowSwitches{.writable_heuristic = true,
                                                   .early_unshadow = true,
                                                   .fast_fault_path = true,
                                                   .prefetch = true,
                                                   .linux_l3_toplevel = true,
                                                   .skip_verify = true,
                                                   .virtual_tlb = true,
                                                   .fast_emulation = true};

/// Sizes of what the mechanisms keep (reference/xen.md part F).
struct ShadowSizes {
    unsigned out_of_sync = 3;        ///< of OutOfSyncList::per_vcpu: for each vCPU; 0: none ever is
    unsigned fixups = 2;             ///< writable mappings remembered of each
    unsigned prefetch_window = 32;   ///< entries that a fault fills at most, its own included
    unsigned virtual_tlb = 13;       ///< translations remembered for each vCPU
    unsigned previous_roots = 0;     ///< roots that each vCPU holds besides its own; long mode alone
    unsigned writes_before_zap = 0;  ///< emulated writes in a row to an upper table that end it; 0: none do

    friend bool operator==(const ShadowSizes&, const ShadowSizes&) = default;
};

/// What holds for a policy all the time.
struct PolicyDeclaration {
    ShadowKeying keyed_by = ShadowKeying::frame_and_type;
    /// Shadowed guest tables are read-only in every shadow, unless the policy has let one out of sync.
    bool protects_tables = true;
    /// Bit n: entries shadowing level n may be stale until the guest flushes as the architecture demands.
    unsigned stale_levels = 0;
    /// A table that is out of sync may be used stale under a PCID or on a vCPU that did not have it while it
    /// held that, until that one flushes. Else only where a TLB could hold the same.
    bool stale_for_all = false;
    ShadowSwitches switches = {};
    ShadowSizes sizes = {};
    OutOfSyncList out_of_sync = OutOfSyncList::per_vcpu;
    Repair repair = Repair::compare;
    WriteSearch write_search = WriteSearch::shadows;
    WrittenEntry written_entry = WrittenEntry::propagate;
    Reclaim reclaim = Reclaim::oldest_root;
    FaultResync fault_resync = FaultResync::never;
    /// Prefetch fills the aligned group of the faulting entry; else what comes after it.
    bool prefetch_aligned = false;
    /// A write of user mode to a table is never let through: the table is given up.
    bool gives_up_user_written = true;

    [[nodiscard]] bool coherent() const { return stale_levels == 0; }
};

/// A declaration whose parts do not go together; the message says which.
struct BadPolicy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Throws BadPolicy. The engine asks before it starts.
void require_sound(const PolicyDeclaration& declared);

/// An invalidation that the guest is entitled to.
enum class GuestFlush : std::uint8_t {
    address,           ///< INVLPG, INVPCID of one address: the page, and all paging-structure caches
    page_fault,        ///< a #PF was given to the guest: the page of CR2
    load_cr3,          ///< MOV CR3: all but global pages
    load_cr3_noflush,  ///< MOV CR3 with bit 63: nothing, but the root is another
    context,           ///< INVPCID of a PCID, a change of CR4.SMEP or PAE: all but global pages
    everything,        ///< CR4.PGE, CR0.PG, CR4.PCIDE, INVPCID of all; registers set from outside
};

enum class FlushAnswer : std::uint8_t {
    nothing,     ///< the shadows are right as they are
    drop_entry,  ///< the entry of the page (of the whole guest superpage)
    drop_tree,   ///< everything under the vCPU's roots
    drop_top,    ///< the roots' entries, but those with nothing but global pages below, unless globals go
                 ///< too; the tables below when they are used again (ShadowKeying::vcpu)
    resync,      ///< an address: its entry, if its table is out of sync; else all tables that are
    resync_reachable,  ///< an address: the same; else those that are under the vCPU's new roots
};

/// A fault of a write to a frame that is shadowed as a table.
struct TableWrite {
    unsigned vcpu = 0;
    Gfn frame;
    bool user_mode = false;
    bool may_unsync = false;  ///< OutOfSyncList and `stale_levels` permit it
};

enum class TableWriteAnswer : std::uint8_t {
    emulate,  ///< do the write for the guest and propagate it
    unsync,   ///< let the guest write the table until the next resync; where that may not be: emulate
};

class ShadowPolicy {
public:
    virtual ~ShadowPolicy() = default;

    [[nodiscard]] virtual PolicyDeclaration declared() const = 0;
    [[nodiscard]] virtual FlushAnswer on_flush(unsigned vcpu, GuestFlush flush) = 0;
    [[nodiscard]] virtual TableWriteAnswer on_table_write(const TableWrite& /*write*/)
    {
        return TableWriteAnswer::emulate;
    }
};

}  // namespace mmusim
