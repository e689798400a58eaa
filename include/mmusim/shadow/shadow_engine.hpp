// SPDX-License-Identifier: Apache-2.0
//
// The shadow engine of one domain: the hypervisor's side of shadow paging, for all guest modes
// (reference/xen.md B4 to B13; for the other designs reference/other_policies.md). It acts; the policy
// decides. Outside it is seen through a few verbs: a fault, a load of roots, a flush, a store made by
// emulation, a change from outside.
//
//   guest root --> [guest tables, gfns]                       what the guest wrote
//                       | emulated walk through the P2M, then propagate, entry by entry
//   root slots --> [shadow tables, mfns]                      what the hardware walks
//
// A shadow entry is present only where the guest's is present and accessed, writable only where the
// guest's leaf is dirty; superpages are splintered to 4 KiB; G, PS, PAT and available bits are dropped,
// a leaf's protection key is kept. Guest modes shadow as 2-on-3, 3-on-3, 4-on-4 and 5-on-5; a vCPU with
// paging off runs 2-on-3 on an identity table that exists in the engine alone.
//
// Guest tables are read-only in all shadows, and each write to one is emulated and propagated. Where the
// policy says so, a table (of level 1, or of any) goes out of sync instead: the guest writes it freely, and
// its shadow is repaired when the guest flushes. Or the policy protects no tables: the shadows of a vCPU are
// a TLB of its own. Shadows live in a pool of a fixed size; when it runs dry, first shadows are given up that
// are kept unused, then entries of running roots, then the domain.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <boost/unordered/unordered_flat_set.hpp>

#include <mmusim/p2m/access_monitor.hpp>
#include <mmusim/p2m/dirty_set.hpp>
#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/p2m/log_dirty.hpp>
#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/shadow/counters.hpp>
#include <mmusim/shadow/flush_filter.hpp>
#include <mmusim/shadow/hazards.hpp>
#include <mmusim/shadow/magic_entry.hpp>
#include <mmusim/shadow/out_of_sync.hpp>
#include <mmusim/shadow/policy.hpp>
#include <mmusim/shadow/secure_frames.hpp>
#include <mmusim/shadow/shadow_cache.hpp>
#include <mmusim/shadow/shadow_events.hpp>
#include <mmusim/shadow/virtual_tlb.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/registers.hpp>

namespace mmusim {

/// How far a fault builds shadows.
enum class Populate : std::uint8_t {
    leaf,  ///< down to the entry of the page
    step,  ///< one more level for each fault, as textbooks tell it
};

/// What the hypervisor knows of a vCPU's own translation.
struct GuestContext {
    Paging paging = Paging::off;
    WalkRules rules;
    EntrySettings settings;
    WalkRoot<space::GuestPhysical> root;
    bool globals = false;  ///< CR4.PGE
};

/// The hypervisor had to end the domain; the message says why.
struct DomainCrashed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Pages of a domain's pool below which Xen does not go (reference/xen.md B4), and what its tool stack gives.
[[nodiscard]] std::uint64_t shadow_pool_floor(unsigned vcpus, std::uint64_t ram_pages, bool hvm,
                                              std::uint64_t p2m_pages);
[[nodiscard]] std::uint64_t default_shadow_pool(unsigned vcpus, std::uint64_t ram_pages);

/// How the hypervisor answers a page fault that the shadows caused.
struct FaultAnswer {
    enum class Kind : std::uint8_t {
        retry,     ///< the shadows have changed: run the instruction again
        guest,     ///< the fault is the guest's own: `fault`
        emulated,  ///< the access was done for the guest, at `address`
        populate,  ///< the frame of `address` is to be given memory, then again
        stopped,   ///< mem_access did not permit the access at `address`: it is not done
    };
    Kind kind = Kind::retry;
    PageFault fault;
    GuestPhysical address;
    /// Of `emulated`: the hypervisor tries to emulate the next instructions too, before it returns.
    bool goes_on = false;
    /// Of `emulated`: mem_access did not permit it, but the listener lets this instruction pass, so.
    std::optional<EventAction> granted = {};
};
/// How many more at most (reference/xen.md B9, step 14).
inline constexpr std::uint8_t kFurtherInstructions = 4;

/// What the engine has done so far, in units that have a price.
struct ShadowWork {
    std::uint64_t faults = 0;
    std::uint64_t guest_entries_read = 0;  ///< on walks of the guest's tables
    std::uint64_t shadows_made = 0;
    std::uint64_t entries_written = 0;
    std::uint64_t entries_prefetched = 0;  ///< of these, without a fault of their own
    std::uint64_t emulated = 0;            ///< accesses done for the guest
    std::uint64_t roots_loaded = 0;
    std::uint64_t hash_steps = 0;
    std::uint64_t entries_searched = 0;  ///< in searches for writable mappings
    std::uint64_t guesses = 0;           ///< of writable mappings
    std::uint64_t snapshots = 0;
    std::uint64_t entries_compared = 0;  ///< with a snapshot
    std::uint64_t access_events = 0;     ///< of mem_access, put into the ring
};

/// What the hardware has still to do for an INVLPG of the guest.
struct InvlpgAnswer {
    bool suppress = false;   ///< nothing of the page is mapped: not even the instruction
    bool flush_all = false;  ///< the page is in pieces: everything
};

class ShadowEngine {
public:
    /// The guest's RAM is in `machine`; shadows live in `pool_pages` frames of `tables` from `pool_first`
    /// upwards. The hardware that walks them has physical addresses of `machine_bits`: with 52 no bit is
    /// reserved that could mark an entry (magic_entry.hpp). Rights to frames are those of `monitor`.
    ShadowEngine(SparseMemory& machine, SparseMemory& tables, const P2m& p2m, AccessMonitor& monitor,
                 const Cpuid& cpuid, unsigned vcpus, std::unique_ptr<ShadowPolicy> policy, Populate populate,
                 Mfn pool_first, std::uint64_t pool_pages, unsigned machine_bits,
                 SecureView secure_view = SecureView::separate);

    // All verbs may throw DomainCrashed.

    /// The hardware could not translate `access` with the shadows: its page fault had `error_code`.
    [[nodiscard]] FaultAnswer fault(unsigned vcpu, const GuestContext& guest, const Access& access,
                                    std::uint32_t error_code);
    /// An access of an instruction that is being emulated: the guest's own walk decides. Never `retry`.
    /// `checked`: and mem_access.
    [[nodiscard]] FaultAnswer emulated_access(unsigned vcpu, const GuestContext& guest, const Access& access,
                                              bool checked = true);
    /// The vCPU's root or paging mode has changed: finds or makes the shadows of its new root tables.
    void load_roots(unsigned vcpu, const GuestContext& guest);
    /// The guest has invalidated; `address` counts for GuestFlush::address and page_fault.
    void flush(unsigned vcpu, GuestFlush flush, LinearAddress address = {});
    /// The same for one address, as an INVLPG of the guest.
    [[nodiscard]] InvlpgAnswer invlpg(unsigned vcpu, LinearAddress address);
    /// An operand's store done by emulation, in one frame or the two parts of one that crosses pages: memory
    /// changes, and so do the shadows of its entries.
    struct StorePart {
        GuestPhysical at;
        std::span<const std::byte> bytes;
    };
    void emulated_store(std::span<const StorePart> parts);
    /// What came of a further instruction that was tried.
    enum class Further : std::uint8_t { wrote_table, wrote_none, failed };
    void count_further(unsigned vcpu, Further outcome);
    /// Whether a write of the guest to this frame would trap.
    [[nodiscard]] bool traps_writes_to(Gfn frame) const
    {
        return declared_.protects_tables && cache_.is_table(frame) && !out_of_sync_.may_write(frame);
    }
    /// The guest's hint that an address space is being torn down (Xen's hypercall HVMOP_pagetable_dying):
    /// `root` is what its CR3 held. Its user half is unhooked; from now on the domain's zero writes alone no
    /// longer give tables up (reference/xen.md B9, "Early unshadow").
    void pagetable_dying(unsigned vcpu, GuestPhysical root);
    /// A vCPU's hardware has flushed everything.
    void hardware_flushed(unsigned vcpu);
    /// The content of a guest frame was changed from outside the guest.
    void forget(Gfn frame);
    /// Drops every shadow.
    void blow();
    /// The P2M entries of these frames are going to change: they are tables no more, and nothing maps what is
    /// behind them.
    void before_p2m_change(std::span<const Gfn> frames);
    /// They have changed.
    void after_p2m_change();
    /// The rights to these frames have changed: no entry permits what the old ones did.
    void access_changed(std::span<const Gfn> frames);
    /// ... and those to all frames.
    void default_access_changed();
    /// Whether the guest's tables permit the access, but mem_access may leave it undone.
    [[nodiscard]] bool may_be_stopped(const GuestContext& guest, const Access& access) const;

    // Log-dirty (reference/xen.md B15): a frame that is not marked is mapped read-only in all shadows. All
    // that may write guest memory, the hypervisor's walks among them, mark.

    [[nodiscard]] LogDirtyAnswer log_dirty(LogDirtyAction action);
    /// The frame has been written, or is going to be. Does nothing while log-dirty is off.
    void mark_dirty(Gfn frame);
    /// Whether a write to the frame has to be marked before it may happen.
    [[nodiscard]] bool unlogged(Gfn frame) const;
    [[nodiscard]] LogDirtyCounters log_dirty_counters() const;

    /// From now on these frames alone are secure. Entries that map one outside the secure view go.
    void set_secure_frames(std::vector<Gfn> frames);
    /// The vCPU enters or leaves secure mode: loads the roots of its view.
    void set_secure_mode(unsigned vcpu, bool on, const GuestContext& guest);
    [[nodiscard]] bool secure_mode(unsigned vcpu) const { return vcpus_[vcpu].secure; }
    /// The page fault that the guest gets for an access that its own tables permit: the frame is secure, the
    /// vCPU is not in secure mode.
    [[nodiscard]] std::optional<PageFault> refusal(unsigned vcpu, const GuestContext& guest,
                                                   const Access& access, Gfn frame) const;

    /// The page fault that the guest gets for an access whose frame's P2M entry says that there is nothing,
    /// not even a device (reference/xen.md B9 step 8). Throws DomainCrashed where the frame is broken.
    [[nodiscard]] std::optional<PageFault> nothing_behind(const GuestContext& guest, const Access& access,
                                                          Gfn frame) const
    {
        return p2m_->changed() ? look_for_nothing(guest, access, frame) : std::nullopt;
    }

    // A list of CR3 values, as a CPU's: MOV CR3 to one of them does not exit, once its root is prepared.

    /// The vCPU's roots, just loaded, are those of value number `target`.
    void prepare_root(unsigned vcpu, unsigned target);
    void forget_prepared(unsigned vcpu);
    /// The hardware goes to a prepared root, and to the mode in which it was prepared; the hypervisor does
    /// not see it. False: it is not prepared.
    [[nodiscard]] bool switch_unseen(unsigned vcpu, unsigned target, const GuestContext& guest);
    /// At an exit, before anything else: does what an unseen MOV CR3 would have done.
    void catch_up(unsigned vcpu, const GuestContext& guest);
    [[nodiscard]] std::uint64_t unseen_switches() const { return unseen_switches_; }

    [[nodiscard]] const HazardCounts& hazards() const { return hazards_; }
    /// The first ones since the last call, as sentences.
    [[nodiscard]] std::vector<std::string> take_hazards() { return std::exchange(hazard_texts_, {}); }
    [[nodiscard]] bool keeps_views_apart() const { return !secure_frames_.shared(); }

    /// From now on `observer` is told what happens; null: nobody is.
    void observe(ShadowObserver* observer) { events_.observe(observer); }
    /// Tells of an emulated write whose store has not come, and will not.
    void complete_events() { events_.complete(); }

    /// Whether the hardware has to drop what it has cached, on all vCPUs: asked after each verb.
    [[nodiscard]] bool take_flush_due() { return cache_.take_flush_due(); }
    [[nodiscard]] ShadowWork work() const;

    /// From now on memory that is touched is noted there, in order; null: nowhere.
    void note_touches(MemoryTouches* touches) { cache_.note_touches(touches); }
    /// The vCPU whose emulated access was answered last: a store is its.
    [[nodiscard]] unsigned emulating() const { return emulation_.vcpu; }

    /// Where the hardware's walk begins. A root that has no shadow yet is an empty table.
    [[nodiscard]] WalkRoot<space::Machine> hardware_root(unsigned vcpu) const;

    [[nodiscard]] const ShadowCounters& counters() const { return counters_; }
    [[nodiscard]] const ShadowCache& cache() const { return cache_; }
    [[nodiscard]] const PolicyDeclaration& policy() const { return declared_; }
    /// Violated invariants (reference/xen.md B19), as sentences.
    [[nodiscard]] std::vector<std::string> audit() const;

private:
    template <PagingMode Guest>
    friend class ShadowMmu;

    struct Roots {
        Paging paging = Paging::off;
        std::array<ShadowId, 4> ids{kNoShadow, kNoShadow, kNoShadow, kNoShadow};
    };
    struct Vcpu {
        Roots roots;
        std::vector<ShadowId> previous_roots;  ///< each holds a reference; used last first
        bool resync_roots = false;             ///< once the next roots are loaded
        VirtualTlb virtual_tlb;
        bool secure = false;                 ///< in secure mode
        std::optional<Gfn> zero_written;     ///< the table that the last emulated zero went to
        ShadowId last_writable = kNoShadow;  ///< where a search found a writable mapping last
        bool dying = false;                  ///< it has said that an address space is being torn down
        /// The page whose write was emulated last, and the table that it maps.
        struct FastEmulation {
            std::uint64_t page = 0;
            Gfn table;
        };
        std::optional<FastEmulation> fast_emulation;
        /// Roots that the hardware can go to without an exit, by number of the CR3 value.
        struct Prepared {
            bool ready = false;
            bool secure = false;
            Roots roots;
        };
        std::vector<Prepared> prepared = {};
        std::optional<unsigned> unseen = {};  ///< where the hardware has gone since the last exit
        bool looked = false;                  ///< this exit's handler has found CR3 changed
        bool reference_missed = false;        ///< told already
        /// What a hypervisor that does not look at CR3 would still hold, from before an unseen switch.
        struct Unflushed {
            VirtualTlb virtual_tlb;
            std::optional<FastEmulation> fast_emulation;
        };
        std::optional<Unflushed> unflushed = {};
    };
    /// The emulation whose store comes next.
    struct Emulation {
        unsigned vcpu = 0;
        unsigned entry_bytes = 8;                     ///< of the guest's tables
        std::optional<Vcpu::FastEmulation> remember;  ///< if the page is still a table afterwards
    };

    /// What of an access mem_access does not permit.
    struct Violation {
        Gfn frame;
        unsigned offset = 0;
        AccessKind kind = AccessKind::read;
        bool in_guest_tables = false;
    };
    void follow_access(std::span<const Gfn> frames);
    /// Empties level-1 entries that map these machine frames, in all shadows.
    void drop_mappings(const boost::unordered_flat_set<std::uint64_t>& machine_frames);
    /// What was remembered of translations, to save walks.
    void forget_translations();
    [[nodiscard]] AccessMonitor::Answer answer_violation(unsigned vcpu, LinearAddress address,
                                                         const Violation& violation);
    /// Flags of a level-1 entry with what mem_access leaves of them; 0 where x86 entries cannot say it.
    [[nodiscard]] std::uint64_t permitted(Gfn frame, std::uint64_t flags) const;
    /// Notes that guest memory is touched, within one frame.
    void touch(Gfn frame, unsigned offset, unsigned bytes) const;
    void answer_flush(unsigned vcpu, GuestFlush flush, LinearAddress address);
    void store_and_propagate(std::span<const StorePart> parts);
    void tell_of_shadow(ShadowEventKind kind, ShadowId shadow);
    void tell_of_table(ShadowEventKind kind, Gfn table);
    void tell_of_entry(ShadowEventKind kind, Gfn table, ShadowSlot slot);
    /// What the keys of a vCPU's shadows have in their role besides control bits.
    [[nodiscard]] std::uint8_t view_of(unsigned vcpu) const
    {
        return vcpus_[vcpu].secure && keeps_views_apart() ? kSecureRole : std::uint8_t{0};
    }
    /// Where the hardware is: other roots than the hypervisor knows, after an unseen switch.
    [[nodiscard]] const Roots& running(const Vcpu& vcpu) const
    {
        return vcpu.unseen ? vcpu.prepared[*vcpu.unseen].roots : vcpu.roots;
    }
    /// Whether a shadow with this role must not map the frame.
    [[nodiscard]] bool withheld(Gfn frame, std::uint8_t role) const
    {
        if (!secure_frames_.any()) return false;
        const bool secure = secure_frames_.shared() ? vcpus_[current_].secure : (role & kSecureRole) != 0;
        return !secure && secure_frames_.contains(frame);
    }
    [[nodiscard]] std::optional<PageFault> look_for_nothing(const GuestContext& guest, const Access& access,
                                                            Gfn frame) const;
    [[nodiscard]] bool is_on_demand(Gfn frame) const
    {
        return p2m_->changed() && p2m_->entry(frame).type == P2mType::populate_on_demand;
    }
    void release_roots(Vcpu& vcpu);
    /// No vCPU has a shadow of the frame as a root any more: one that did makes its roots anew.
    void leave_roots(Gfn frame);
    /// The root that the vCPU leaves stays at hand; the one left longest ago goes.
    void keep_previous_root(Vcpu& vcpu, ShadowId left);
    void release(const Roots& roots);
    void tell(std::uint64_t HazardCounts::*kind, std::string text);
    void look_for_stale_shadows(unsigned vcpu, const GuestContext& guest);
    void look_for_shared_tables();
    void look_for_missed_references();
    /// A fault in the page that was emulated last under another root.
    void look_at_old_hint(unsigned vcpu, const GuestContext& guest, const Access& access,
                          std::uint32_t error_code);
    /// The top shadows above this one, or it, in order of their ids.
    [[nodiscard]] std::vector<ShadowId> roots_above(ShadowId id) const;
    void audit_entries(ShadowId id, std::vector<std::string>& violations) const;
    [[nodiscard]] bool out_of_sync_active() const;
    [[nodiscard]] bool may_unsync(Gfn frame) const;
    /// Lets the guest write the table; a table that loses its slot is resynced.
    void unsync(unsigned vcpu, Gfn frame);
    /// An entry that maps an out-of-sync table writable was made.
    void add_fixup(OutOfSyncTables::Table& table, ShadowSlot slot);
    /// Makes its shadow right and takes the writable mappings away. In the context of `vcpu`.
    void resync(unsigned vcpu, Gfn frame);
    /// Makes its shadow right; it stays out of sync.
    void resync_entries(OutOfSyncTables::Table& table);
    void resync_all(unsigned vcpu);
    void resync_own(unsigned vcpu);
    /// All, lower levels first: those that may be of any level.
    void resync_domain(unsigned vcpu);
    /// Those under the vCPU's roots.
    void resync_reachable(unsigned vcpu);
    /// Whether the shadow, or one below it, is of a table that is out of sync.
    [[nodiscard]] bool out_of_sync_below(ShadowId top) const;
    [[nodiscard]] bool is_below(ShadowId at, ShadowId top) const;
    [[nodiscard]] bool is_below(Gfn table, ShadowId top) const;  ///< some shadow of the table
    [[nodiscard]] bool out_of_sync_above_level_1() const;
    [[nodiscard]] bool listed() const { return declared_.out_of_sync == OutOfSyncList::per_domain; }
    /// Tables above level 1 may be out of sync too.
    [[nodiscard]] bool any_level() const { return (declared_.stale_levels & ~0b11u) != 0 && listed(); }
    /// A page of the vCPU's tree is invalidated: drops or repairs its entry if its table is out of sync.
    void resync_page(unsigned vcpu, GuestFlush flush, LinearAddress address);
    /// Takes the writable mappings of a table that is out of sync away.
    void protect_again(unsigned vcpu, OutOfSyncTables::Table& table);
    /// Root references of vCPUs to it.
    [[nodiscard]] std::uint32_t holders_of(ShadowId id) const;
    /// Ends a shadow, and those below it that are out of sync: what referred to it does no more.
    void zap(ShadowId id);
    /// Those of other vCPUs that may be under this one's roots: entries alone.
    void resync_others_lightly(unsigned vcpu);
    /// Whether the shadows prove that a level-1 table is under none of the vCPU's roots.
    [[nodiscard]] bool proven_elsewhere(unsigned vcpu, Gfn frame) const;
    /// Takes a recorded writable mapping of a table away; false if it was none any more.
    bool revoke(unsigned vcpu, Gfn table, ShadowSlot fixup);
    /// Takes every writable mapping of a table away; whether there was one. `level` and `address`: of the
    /// walk that met it; level 0: a resync.
    bool remove_write_access(unsigned vcpu, Gfn table, int level, LinearAddress address);
    /// Gives up the shadows of a frame. `fast`: only by what is known of their references. False if some
    /// remain.
    bool unshadow(Gfn frame, bool fast);
    void count_logged_fault();
    /// A write of the guest's to the frame is under way.
    void log_write(Gfn frame);
    /// A page for the set of dirty frames, if the pool may give one.
    [[nodiscard]] std::optional<Mfn> take_trie_page();
    /// Room for `pages` more pages of shadows. False if others had to give way.
    bool make_room(std::uint64_t pages);
    void forget_hints(ShadowId destroyed);
    void consider_unshadowing(unsigned vcpu, GuestPhysical at, std::span<const std::byte> bytes);
    [[nodiscard]] bool dying(Gfn table) const { return dying_.contains(table.number()); }
    /// Whether it is a root of some vCPU now.
    [[nodiscard]] bool running_root(Gfn table) const;
    /// A write to a table that is being torn down gives it up, if that is cheap.
    void unshadow_if_dying(Gfn table);
    /// The mark of a frame outside RAM, or 0; `flags` of the guest's entry.
    [[nodiscard]] std::uint64_t mmio_mark(Gfn frame, std::uint64_t flags) const
    {
        return marks_mmio_ ? magic::mmio(frame, flags) : 0;
    }
    [[nodiscard]] bool may_skip_verifying(GuestPhysical at, std::span<const std::byte> bytes) const;
    void l4_made();
    /// Bytes [first, last] of a guest frame have changed: propagates their entries into the shadows of the
    /// frame, those of `except` apart.
    void revalidate(Gfn frame, unsigned first, unsigned last, std::optional<TableFormat> except);
    [[nodiscard]] bool keyed_by_position() const
    {
        return declared_.keyed_by == ShadowKeying::position || keyed_by_vcpu();
    }
    [[nodiscard]] bool keyed_by_vcpu() const { return declared_.keyed_by == ShadowKeying::vcpu; }
    [[nodiscard]] bool keyed_by_access() const
    {
        return declared_.keyed_by == ShadowKeying::frame_and_access;
    }
    /// After a shadow was made: what keeps it while nothing refers to it.
    void made(ShadowId id);

    const P2m* p2m_;
    AccessMonitor* monitor_;
    Cpuid cpuid_;
    GuestMemory guest_memory_;
    std::unique_ptr<ShadowPolicy> policy_;
    PolicyDeclaration declared_;
    Populate populate_;
    Mfn empty_table_;
    ShadowCounters counters_;
    ShadowEvents events_;
    ShadowWork work_;  ///< what is not counted elsewhere
    FlushFilter filter_;
    ShadowCache cache_;
    std::vector<Vcpu> vcpus_;
    OutOfSyncTables out_of_sync_;
    SecureFrames secure_frames_;
    std::vector<std::uint8_t> run_in_;  ///< by shadow: modes in which vCPUs have run on it; secure_view.cpp
    std::set<std::array<std::uint64_t, 5>> shared_tables_told_;
    HazardCounts hazards_;
    std::vector<std::string> hazard_texts_;
    std::uint64_t unseen_switches_ = 0;
    struct LogDirty {
        bool on = false;
        bool incomplete = false;  ///< a mark found no page
        std::uint64_t fault_count = 0;
        std::uint64_t dirty_count = 0;
    };
    DirtySet dirty_;
    LogDirty log_dirty_;
    LogDirtyCounters log_dirty_counters_;
    Emulation emulation_;
    unsigned current_ = 0;                            ///< the vCPU whose fault is being handled
    bool marks_mmio_;                                 ///< level-1 entries tell of frames outside RAM
    bool marks_absent_;                               ///< ... and of entries that the guest has not present
    bool dying_used_ = false;                         ///< the domain tells which tables are dying
    boost::unordered_flat_set<std::uint64_t> dying_;  ///< tables' frames
};

}  // namespace mmusim
