// SPDX-License-Identifier: Apache-2.0
//
// The engine for one guest mode: what in ShadowEngine depends on the format of the guest's tables.
// Compiled once per mode; `Guest` alone is the parameter, the shadow's mode follows from it.
#pragma once

#include <array>
#include <optional>
#include <string>
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
                                              const Access& access);
    void load_roots(unsigned vcpu, const GuestContext& guest);
    /// Drops the entry of the address; `out_of_sync_only`: if the table that it shadows is out of sync.
    void drop_entry(unsigned vcpu, LinearAddress address, bool out_of_sync_only);
    [[nodiscard]] InvlpgAnswer invlpg_answer(unsigned vcpu, LinearAddress address);
    /// The level-1 entry for the address under the vCPU's root, where there is a shadow.
    [[nodiscard]] std::optional<ShadowSlot> leaf_slot(unsigned vcpu, LinearAddress address);
    /// Guest entries in bytes [first, last] of the shadow's frame have changed: propagates each. False: they
    /// don't make a table.
    [[nodiscard]] bool validate(ShadowId shadow, unsigned first, unsigned last);
    /// Propagates the entries that are present and whose guest entry is not as in the snapshot, which becomes
    /// the guest's table.
    void resync_entries(ShadowId shadow, std::array<std::byte, kPageBytes>& snapshot);
    void audit_entries(ShadowId shadow, std::vector<std::string>& violations) const;

private:
    static constexpr TableFormat kFormat = format_of(Guest);

    [[nodiscard]] static ShadowKey table_key(Gfn frame, int level, std::uint8_t role);
    [[nodiscard]] static ShadowKey splinter_key(Gfn page, int level, unsigned protection_key,
                                                std::uint8_t view);
    /// The control bits that the shadow of a table depends on, and back.
    [[nodiscard]] static std::uint8_t role_of(EntrySettings settings);
    [[nodiscard]] static EntrySettings settings_of(std::uint8_t role);
    /// The entry of `shadow` (of `level`) for the address.
    [[nodiscard]] static ShadowSlot slot_of(ShadowId shadow, int level, LinearAddress address);
    [[nodiscard]] static Gfn frame_under(Pte<Guest> entry, int level, bool leaf);

    using GuestWalk = Result<Translation<space::GuestPhysical>, PageFault>;
    /// The walk of the guest's tables on the guest's behalf: sets accessed and dirty bits; a fault drops what
    /// was cached of the page.
    template <class Tables>
    [[nodiscard]] GuestWalk walk_guest(Tables& tables, unsigned vcpu, const GuestContext& guest,
                                       const Access& access, WalkPath<space::GuestPhysical>& path);
    [[nodiscard]] ShadowId& root_slot(unsigned vcpu, LinearAddress address);
    void count_walk(const WalkPath<space::GuestPhysical>& path);
    /// The walk of an emulated access, unless the virtual TLB has it. (It is done all the same: what the
    /// virtual TLB would say may be stale.)
    void count_walk_of_emulator(unsigned vcpu, const GuestContext& guest, const Access& access,
                                const WalkPath<space::GuestPhysical>& path, Gfn found);
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
    /// Protects the tables of a walk. True: one was resynced, the walk has to be done again.
    [[nodiscard]] bool protect_path(unsigned vcpu, LinearAddress address,
                                    const WalkPath<space::GuestPhysical>& path);
    /// A write to a shadowed table that is not let out of sync.
    [[nodiscard]] FaultAnswer emulate_write(unsigned vcpu, const GuestContext& guest, const Access& access,
                                            GuestPhysical address,
                                            const WalkPath<space::GuestPhysical>& path);
    /// Shadows of the walk's path, and the entry of its page.
    [[nodiscard]] FaultAnswer build(unsigned vcpu, const GuestContext& guest, const Access& access,
                                    const Translation<space::GuestPhysical>& walked,
                                    const WalkPath<space::GuestPhysical>& path, bool write);
    /// Fills entries after `slot`, as far as the guest's are in use.
    void prefetch(ShadowSlot slot, const WalkPath<space::GuestPhysical>& path, const GuestContext& guest);
    /// The level-1 entry for a guest entry in a shadow with this role, or 0. `write`: a write that is under
    /// way.
    [[nodiscard]] std::uint64_t leaf_for(Pte<Guest> entry, const EntryRules& rules, std::uint8_t role,
                                         bool write) const;
    [[nodiscard]] ShadowId find_or_create(const ShadowKey& key);
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
