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
#pragma once

#include <cstdint>

#include <mmusim/words/address.hpp>

namespace mmusim {

/// What a shadow page is found again by.
enum class ShadowKeying : std::uint8_t {
    frame_and_type,  ///< one shadow for a guest table, shared by all address spaces, kept when unused
    position,        ///< a shadow belongs to its place under one vCPU's root and dies with it
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
    unsigned out_of_sync = 3;       ///< tables out of sync for each vCPU; 0: none ever is
    unsigned fixups = 2;            ///< writable mappings remembered of each
    unsigned prefetch_window = 32;  ///< entries that a fault fills at most, its own included
    unsigned virtual_tlb = 13;      ///< translations remembered for each vCPU

    friend bool operator==(const ShadowSizes&, const ShadowSizes&) = default;
};

/// What holds for a policy all the time.
struct PolicyDeclaration {
    ShadowKeying keyed_by = ShadowKeying::frame_and_type;
    /// Shadowed guest tables are read-only in every shadow, unless the policy has let one out of sync.
    bool protects_tables = true;
    /// Bit n: entries shadowing level n may be stale until the guest flushes as the architecture demands.
    unsigned stale_levels = 0;
    ShadowSwitches switches = {};
    ShadowSizes sizes = {};

    [[nodiscard]] bool coherent() const { return stale_levels == 0; }
};

/// An invalidation that the guest is entitled to.
enum class GuestFlush : std::uint8_t {
    address,     ///< INVLPG, INVPCID of one address: the page, and all paging-structure caches
    page_fault,  ///< a #PF was given to the guest: the page of CR2
    context,     ///< MOV CR3 (also with the no-flush bit), INVPCID of a PCID, a change of CR4.SMEP or PAE
    everything,  ///< CR4.PGE, CR0.PG, CR4.PCIDE, INVPCID of all; registers set from outside
};

enum class FlushAnswer : std::uint8_t {
    nothing,     ///< the shadows are right as they are
    drop_entry,  ///< the entry of the page (of the whole guest superpage)
    drop_tree,   ///< everything under the vCPU's roots
    resync,      ///< an address: its entry, if its table is out of sync; else all tables that are
};

/// A fault of a write to a frame that is shadowed as a table.
struct TableWrite {
    unsigned vcpu = 0;
    Gfn frame;
    bool user_mode = false;
    bool may_unsync = false;  ///< it is shadowed once, as a level-1 table, and all vCPUs have paging on
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
