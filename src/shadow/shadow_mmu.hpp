// SPDX-License-Identifier: Apache-2.0
//
// The engine for one guest mode: what in ShadowEngine depends on the format of the guest's tables.
// Compiled once per mode; `Guest` alone is the parameter, the shadow's mode follows from it. Its members are
// in three sources: shadow_mmu.cpp (what is where), shadow_fault.cpp (a page fault), propagate.cpp (entries).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/shadow/shadow_engine.hpp>

#include "identity_tables.hpp"
#include "propagate.hpp"

namespace mmusim {

template <PagingMode Guest>
class ShadowMmu {
public:
    explicit ShadowMmu(ShadowEngine& engine) : e_{&engine} {}

    template <class Tables>
    [[nodiscard]] FaultAnswer fault(Tables& tables, unsigned vcpu, const GuestContext& guest, Access access,
                                    std::uint32_t error_code);
    [[nodiscard]] FaultAnswer emulated_access(GuestMemory& tables, unsigned vcpu, const GuestContext& guest,
                                              const Access& access, bool checked);
    /// What of an access mem_access does not permit; nothing where the guest's own walk faults before.
    template <class Tables>
    [[nodiscard]] std::optional<ShadowEngine::Violation> violation_of(Tables& tables,
                                                                      const GuestContext& guest,
                                                                      const Access& access) const;
    /// What mem_access makes of an access; nothing: it goes on as any other.
    template <class Tables>
    [[nodiscard]] std::optional<FaultAnswer> check_access(Tables& tables, unsigned vcpu,
                                                          const GuestContext& guest, const Access& access);
    void load_roots(unsigned vcpu, const GuestContext& guest);
    /// Drops the entry of the address.
    void drop_entry(unsigned vcpu, LinearAddress address);
    /// The entries of the address that are of tables out of sync, under the vCPU's root and its previous
    /// ones: an upper one goes, one of level 1 goes or is made right.
    void resync_page(unsigned vcpu, LinearAddress address);
    /// Puts the entries of the vCPU's roots to sleep, but those with global pages alone, if those may stay.
    void drop_top(unsigned vcpu, bool globals_too);
    [[nodiscard]] InvlpgAnswer invlpg_answer(unsigned vcpu, LinearAddress address);
    /// The level-1 entry for the address under the vCPU's root, where there is a shadow.
    [[nodiscard]] std::optional<ShadowSlot> leaf_slot(unsigned vcpu, LinearAddress address);
    /// Guest entries in bytes [first, last] of the shadow's frame have changed: propagates each. False: they
    /// don't make a table.
    [[nodiscard]] bool validate(ShadowId shadow, unsigned first, unsigned last);
    /// Makes the entries right that are present: with Repair::compare those whose guest entry is not as in
    /// the snapshot.
    void resync_entries(ShadowId shadow, const OutOfSyncTables::Table& table);
    void audit_entries(ShadowId shadow, std::vector<std::string>& violations) const;
    /// Where the guest's tables lead an access, if they permit it.
    [[nodiscard]] std::optional<Gfn> frame_of(const GuestContext& guest, const Access& access) const;
    /// Whether these are the shadows of the guest's roots.
    [[nodiscard]] bool are_roots(unsigned vcpu, const GuestContext& guest,
                                 const std::array<ShadowId, 4>& roots) const;

private:
    static constexpr TableFormat kFormat = format_of(Guest);

    [[nodiscard]] static ShadowKey table_key(Gfn frame, int level, std::uint8_t role);
    [[nodiscard]] static ShadowKey splinter_key(Gfn page, int level, unsigned role);
    /// The role of a large page's splinter: its protection key and view and, where shadows are found by
    /// rights, what the whole path takes away.
    [[nodiscard]] std::uint8_t splinter_role(unsigned protection_key, std::uint8_t denials,
                                             std::uint8_t view) const;
    [[nodiscard]] static std::uint64_t splinter_flags(std::uint8_t role)
    {
        return narrowed(kSplinterFlags | std::uint64_t{role & 0xfu} << pte::kKeyShift, role);
    }
    /// The control bits that the shadow of a table depends on, and back.
    [[nodiscard]] static std::uint8_t role_of(EntrySettings settings);
    [[nodiscard]] static EntrySettings settings_of(std::uint8_t role);
    /// The entry of `shadow` (of `level`) for the address.
    [[nodiscard]] static ShadowSlot slot_of(ShadowId shadow, int level, LinearAddress address);
    /// Frames that a table of `level` maps.
    [[nodiscard]] static constexpr std::uint64_t frames_under(int level)
    {
        return std::uint64_t{1} << (Guest.shift(level + 1) - kPageShift);
    }
    [[nodiscard]] static Gfn frame_under(Pte<Guest> entry, int level, bool leaf);

    using GuestWalk = Result<Translation<space::GuestPhysical>, PageFault>;
    /// The walk of the guest's tables on the guest's behalf: sets accessed and dirty bits; a fault drops what
    /// was cached of the page.
    template <class Tables>
    [[nodiscard]] GuestWalk walk_guest(Tables& tables, unsigned vcpu, const GuestContext& guest,
                                       const Access& access, WalkPath<space::GuestPhysical>& path);
    [[nodiscard]] ShadowId& root_slot(unsigned vcpu, LinearAddress address);
    /// Of a vCPU that has not all: at most so many.
    [[nodiscard]] unsigned pages_of_missing_roots(unsigned vcpu) const;
    void count_walk(const WalkPath<space::GuestPhysical>& path);
    /// The walk of an emulated access, unless the virtual TLB has it. (It is done all the same: what the
    /// virtual TLB would say may be stale.)
    void count_walk_of_emulator(unsigned vcpu, const GuestContext& guest, const Access& access,
                                const WalkPath<space::GuestPhysical>& path, Gfn found);
    // A fault ends: what is told of it. (A write that is emulated ends with its store.)
    template <class Fill>
    void end(ShadowEventKind kind, const WalkPath<space::GuestPhysical>& path, std::optional<Gfn> frame,
             Fill fill);
    void end(ShadowEventKind kind, const WalkPath<space::GuestPhysical>& path, std::optional<Gfn> frame);
    void end_emulated(ShadowEventKind kind, const Access& access, const WalkPath<space::GuestPhysical>& path,
                      GuestPhysical at, std::string_view how);
    static void describe(ShadowEvent& event, const WalkPath<space::GuestPhysical>& path);
    /// The access is done for the guest; if it is a write, its store comes next.
    [[nodiscard]] FaultAnswer emulated_at(unsigned vcpu, GuestPhysical address);
    /// The same for a write to RAM. A PAE guest writes an entry in two halves: the second one, it is hoped,
    /// follows soon.
    [[nodiscard]] FaultAnswer emulated_write_at(unsigned vcpu, GuestPhysical address);
    /// A write to the page that was written last by emulation, if the guest's tables still say so.
    template <class Tables>
    [[nodiscard]] std::optional<FaultAnswer> emulate_fast(Tables& tables, unsigned vcpu,
                                                          const GuestContext& guest, const Access& access,
                                                          std::uint32_t error_code);
    /// The answer that the mark of the address's entry tells, if the guest's tables say so too.
    template <class Tables>
    [[nodiscard]] std::optional<FaultAnswer> answer_by_mark(Tables& tables, unsigned vcpu,
                                                            const GuestContext& guest, const Access& access);
    /// Protects the tables of a walk. True: one was resynced, the walk has to be done again.
    [[nodiscard]] bool protect_path(unsigned vcpu, LinearAddress address,
                                    const WalkPath<space::GuestPhysical>& path);
    /// A write to a shadowed table that is not let out of sync.
    [[nodiscard]] FaultAnswer emulate_write(unsigned vcpu, const GuestContext& guest, const Access& access,
                                            GuestPhysical address,
                                            const WalkPath<space::GuestPhysical>& path);
    /// Before anything of the walk's path is linked: resyncs what is out of sync at or below a shadow that is
    /// going to be. True: something was, the walk has to be done again.
    [[nodiscard]] bool resync_before_linking(unsigned vcpu, LinearAddress address, const GuestContext& guest,
                                             const WalkPath<space::GuestPhysical>& path,
                                             const Translation<space::GuestPhysical>& walked);
    /// What the path's entry of `level` asks for below it.
    struct Step {
        ShadowKey wanted;
        std::uint64_t flags = 0;
        std::uint8_t denials = 0;  ///< with those of the entry
    };
    [[nodiscard]] Step step_of(unsigned vcpu, int level, std::uint8_t denials, const GuestContext& guest,
                               const WalkPath<space::GuestPhysical>& path,
                               const Translation<space::GuestPhysical>& walked) const;
    /// Whether an entry on the address's path is not as in the copy of its table.
    template <class Tables>
    [[nodiscard]] bool path_changed(Tables& tables, const GuestContext& guest, const Access& access);
    /// Marks the tables on the path in which the walk has set accessed and dirty bits.
    void log_assists(const Access& access, const GuestContext& guest,
                     const WalkPath<space::GuestPhysical>& path);
    /// The copies of tables on the path learn of accessed and dirty bits that the walk has set.
    void note_assists(const WalkPath<space::GuestPhysical>& path);
    void resync_page_under(ShadowId root, LinearAddress address);
    /// Propagates a level-1 entry again.
    void repair_leaf(ShadowSlot slot);
    /// The shadow that an entry holds that is asleep or to change, emptied for `wanted`; of the same table
    /// with the same rights, global pages stay. A new one if it holds none of that type.
    [[nodiscard]] ShadowId wake(ShadowSlot slot, const ShadowKey& wanted, std::uint64_t flags);
    void empty_for_use(ShadowId shadow, bool globals_too);
    /// Of a page whose P2M type has no frame, and is no device's.
    [[nodiscard]] std::optional<FaultAnswer> answer_without_frame(
        unsigned vcpu, const Access& access, const GuestContext& guest,
        const Translation<space::GuestPhysical>& walked, const WalkPath<space::GuestPhysical>& path);
    /// Shadows of the walk's path, and the entry of its page. `had_room`: nothing had to give way for it.
    [[nodiscard]] FaultAnswer build(unsigned vcpu, const GuestContext& guest, const Access& access,
                                    const Translation<space::GuestPhysical>& walked,
                                    const WalkPath<space::GuestPhysical>& path, bool write, bool had_room);
    /// Fills entries after `slot`, as far as the guest's are in use; how many.
    unsigned prefetch(ShadowSlot slot, const WalkPath<space::GuestPhysical>& path, const GuestContext& guest);
    /// The level-1 entry for a guest entry in a shadow with this role: a mapping, a mark or 0. `write`: a
    /// write that is under way.
    [[nodiscard]] std::uint64_t leaf_for(Pte<Guest> entry, const EntryRules& rules, std::uint8_t role,
                                         bool write) const;
    /// The same for 4 KiB of a superpage. `writes_table`: a write to a table that is out of sync.
    [[nodiscard]] std::uint64_t piece_for(Gfn frame, std::uint8_t role, bool writes_table) const;
    /// Entries of the aligned group around `slot`.
    unsigned prefetch_group(ShadowSlot slot, const WalkPath<space::GuestPhysical>& path,
                            const GuestContext& guest);
    [[nodiscard]] ShadowId find_or_create(const ShadowKey& key);
    [[nodiscard]] ShadowId create(unsigned vcpu, const ShadowKey& key);
    void load_root(unsigned vcpu, ShadowId& slot, const ShadowKey* wanted);
    [[nodiscard]] const ShadowKey* root_key(unsigned vcpu, const GuestContext& guest, unsigned slot,
                                            ShadowKey& key) const;
    /// The shadow's child for `wanted` under `slot`, linked with `flags`. Sets `linked` if it was not.
    ShadowId link_child(ShadowSlot slot, const ShadowKey& wanted, std::uint64_t flags, bool& linked);

    ShadowEngine* e_;
};

extern template class ShadowMmu<kTwoLevel>;
extern template class ShadowMmu<kPae>;
extern template class ShadowMmu<kFourLevel>;
extern template class ShadowMmu<kFiveLevel>;

}  // namespace mmusim
