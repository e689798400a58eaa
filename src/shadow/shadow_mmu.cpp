// SPDX-License-Identifier: Apache-2.0
#include "shadow_mmu.hpp"

#include <cassert>

#include <fmt/format.h>

namespace mmusim {

namespace {

constexpr std::uint8_t kRoleNxe = 1;
constexpr std::uint8_t kRolePse = 2;

/// Frames that a table of `level` maps.
constexpr std::uint64_t frames_under(PagingMode mode, int level)
{
    return std::uint64_t{1} << (mode.shift(level + 1) - kPageShift);
}

std::uint64_t* counter_of_level(ShadowCounters& counters, int level)
{
    switch (level) {
    case 1: return &counters.validate_gl1e_calls;
    case 2: return &counters.validate_gl2e_calls;
    case 3: return &counters.validate_gl3e_calls;
    case 4: return &counters.validate_gl4e_calls;
    default: return &counters.validate_gl5e_calls;
    }
}

}  // namespace

template <PagingMode Guest>
ShadowKey ShadowMmu<Guest>::table_key(Gfn frame, int level, std::uint8_t role)
{
    return {frame, {kFormat, static_cast<std::uint8_t>(level), false}, role};
}

template <PagingMode Guest>
ShadowKey ShadowMmu<Guest>::splinter_key(Gfn page, int level, unsigned protection_key)
{
    const Gfn first{page.number() & ~(frames_under(Guest, level) - 1)};
    return {
        first, {kFormat, static_cast<std::uint8_t>(level), true}, static_cast<std::uint8_t>(protection_key)};
}

template <PagingMode Guest>
std::uint8_t ShadowMmu<Guest>::role_of(EntrySettings settings)
{
    if constexpr (Guest == kTwoLevel) return settings.pse ? kRolePse : 0;
    return settings.nxe ? kRoleNxe : 0;
}

template <PagingMode Guest>
EntrySettings ShadowMmu<Guest>::settings_of(std::uint8_t role)
{
    return {(role & kRoleNxe) != 0, (role & kRolePse) != 0};
}

template <PagingMode Guest>
ShadowSlot ShadowMmu<Guest>::slot_of(ShadowId shadow, int level, LinearAddress address)
{
    const unsigned pair = ShadowType{kFormat, static_cast<std::uint8_t>(level)}.entries_per_guest_entry();
    return {shadow, static_cast<std::uint16_t>(Guest.index(address, level) * pair)};
}

template <PagingMode Guest>
Gfn ShadowMmu<Guest>::frame_under(Pte<Guest> entry, int level, bool leaf)
{
    return Gfn::of(GuestPhysical{leaf ? entry.page_address(level) : entry.table_address()});
}

template <PagingMode Guest>
ShadowId& ShadowMmu<Guest>::root_slot(unsigned vcpu, LinearAddress address)
{
    const unsigned slot = Guest.top_in_registers ? Guest.index(address, Guest.levels) : 0;
    return e_->roots_[vcpu].ids[slot];
}

template <PagingMode Guest>
const ShadowKey* ShadowMmu<Guest>::root_key(const GuestContext& guest, unsigned slot, ShadowKey& key) const
{
    Gfn frame = guest.root.frame;
    if constexpr (Guest.top_in_registers) {
        const std::uint64_t pdpte = guest.root.pdptes[slot];
        if ((pdpte & pte::kPresent) == 0) return nullptr;
        frame = Gfn{(pdpte & pte::kFrame) >> kPageShift};
    } else if (slot != 0) {
        return nullptr;
    }
    // A table outside RAM reads as 0: there is nothing to shadow.
    if (guest.paging != Paging::off && !e_->p2m_->ram().contains(frame)) return nullptr;
    key = table_key(frame, Guest.root_level(), role_of(guest.settings));
    return &key;
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::find_or_create(const ShadowKey& key)
{
    if (!e_->keyed_by_position()) {
        if (const ShadowId found = e_->cache_.find(key); found != kNoShadow) return found;
    }
    const bool first = !key.type.splinter && e_->declared_.protects_tables && !e_->cache_.is_table(key.frame);
    const ShadowId made = e_->cache_.create(key);
    if (!first) return made;
    if (const auto mfn = e_->p2m_->mfn_of(key.frame)) {
        if (e_->cache_.remove_write_access(*mfn) != 0) ++e_->counters_.writeable;
    }
    return made;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::load_root(ShadowId& slot, const ShadowKey* wanted)
{
    const ShadowId old = slot;
    if (wanted != nullptr) {
        // A shadow that is found by position can only be the one that is there.
        if (old != kNoShadow && e_->keyed_by_position() && e_->cache_[old].key == *wanted) return;
        slot = find_or_create(*wanted);
        e_->cache_.retain(slot);
        if (!e_->keyed_by_position()) e_->cache_.pin(slot);
    } else {
        slot = kNoShadow;
    }
    if (old != kNoShadow) e_->cache_.release(old);
}

template <PagingMode Guest>
void ShadowMmu<Guest>::load_roots(unsigned vcpu, const GuestContext& guest)
{
    for (unsigned i = 0; i < 4; ++i) {
        ShadowKey key;
        load_root(e_->roots_[vcpu].ids[i], root_key(guest, i, key));
    }
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::link_child(ShadowSlot slot, const ShadowKey& wanted, std::uint64_t flags,
                                      bool& linked)
{
    ShadowCache& cache = e_->cache_;
    ShadowId child = cache.child(slot);
    const bool same_child = child != kNoShadow && cache[child].key == wanted;
    if (!same_child) {
        child = find_or_create(wanted);
        linked = true;
    } else {
        const std::uint64_t changed = (cache.entry(slot) ^ flags) & ~pte::kFrame;
        if (changed == 0) return child;
        // Entries below that may be stale were made under the old rights. Combined with new ones they could
        // permit what no walk ever did.
        if (e_->declared_.stale_levels != 0 && !wanted.type.splinter) cache.clear_all(child);
    }
    cache.link(slot, child, flags);
    return child;
}

template <PagingMode Guest>
template <class Tables>
typename ShadowMmu<Guest>::GuestWalk ShadowMmu<Guest>::walk_guest(Tables& tables, unsigned vcpu,
                                                                  const GuestContext& guest,
                                                                  const Access& access,
                                                                  WalkPath<space::GuestPhysical>& path)
{
    ++e_->counters_.guest_walk;
    const GuestWalk walked = walk<Guest>(tables, guest.root, guest.rules, access, AdBits::set, path);
    e_->work_.guest_entries_read += static_cast<std::uint64_t>(Guest.root_level() - path.lowest + 1);
    if (!walked) {
        e_->flush(vcpu, GuestFlush::page_fault, access.address);
        return walked;
    }
    // Accessed and dirty bits can only add rights to shadows of this format. As entries of another format
    // they mean anything.
    for (int level = Guest.root_level(); e_->declared_.protects_tables && level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        if (!e_->cache_.is_table_of_other(kFormat, path.tables[i])) continue;
        e_->revalidate(path.tables[i], path.offsets[i], path.offsets[i] + Guest.entry_bytes - 1, kFormat);
    }
    return walked;
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_at(GuestPhysical address)
{
    ++e_->work_.emulated;
    return {FaultAnswer::Kind::emulated, {}, address};
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_access(GuestMemory& tables, unsigned vcpu, const GuestContext& guest,
                                              const Access& access)
{
    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
    if (!walked) return {FaultAnswer::Kind::guest, walked.error(), {}};
    return emulated_at(walked->address);
}

template <PagingMode Guest>
template <class Tables>
FaultAnswer ShadowMmu<Guest>::fault(Tables& tables, unsigned vcpu, const GuestContext& guest, Access access)
{
    ShadowCounters& counters = e_->counters_;
    ++counters.fault;

    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
    if (!walked) {
        ++counters.fault_bail_real_fault;
        return {FaultAnswer::Kind::guest, walked.error(), {}};
    }
    const Gfn page = Gfn::of(walked->address);
    const auto mfn = e_->p2m_->mfn_of(page);
    if (!mfn) {
        ++counters.fault_mmio;
        return emulated_at(walked->address);
    }

    // The path, from the root to the level-1 table. Below a superpage's entry it is fabricated.
    ShadowId& root = root_slot(vcpu, access.address);
    if (root == kNoShadow) load_roots(vcpu, guest);
    ShadowId at = root;
    assert(at != kNoShadow);
    for (int level = Guest.root_level(); level > 1; --level) {
        // The trail holds what the walk read: accessed (and dirty) bits have been set since.
        const auto index = static_cast<std::size_t>(level);
        const bool fabricated = level < path.lowest;
        const bool leaf = level == path.lowest;
        const Pte<Guest> entry{path.entries[index] | pte::kAccessed |
                               (leaf && walked->dirty ? pte::kDirty : 0)};
        const std::uint64_t flags =
            fabricated ? kSplinterFlags | pte::kDirty : propagated_flags(entry, level, guest.rules.entries);
        const ShadowKey wanted = level > path.lowest ? table_key(frame_under(entry, level, false), level - 1,
                                                                 role_of(guest.settings))
                                                     : splinter_key(page, level - 1, walked->rights.key);
        bool linked = false;
        at = link_child(slot_of(at, level, access.address), wanted, flags, linked);
        if (linked && e_->populate_ == Populate::step) {
            ++counters.fault_linked;
            return {};
        }
    }

    const bool protect = e_->traps_writes_to(page);
    if (protect && access.kind == AccessKind::write) {
        ++counters.fault_emulate_write;
        return emulated_at(walked->address);
    }
    // The hardware runs with CR0.WP set: what only a clear one permits has to be done for the guest.
    RightsControl hardware = guest.rules.control;
    hardware.write_protect = true;
    if (denied(walked->rights, hardware, access) != 0) {
        ++counters.fault_emulate_wp;
        return emulated_at(walked->address);
    }

    std::uint64_t flags = kSplinterFlags;
    if (path.lowest == 1) {
        const Pte<Guest> entry{path.entries[1] | pte::kAccessed | (walked->dirty ? pte::kDirty : 0)};
        flags = propagated_flags(entry, 1, guest.rules.entries);
    } else {
        flags |= std::uint64_t{walked->rights.key} << pte::kKeyShift;
    }
    if (protect) flags &= ~pte::kWritable;
    e_->cache_.set_leaf(slot_of(at, 1, access.address), mfn->address().value() | flags);
    ++counters.fault_fixed;
    return {};
}

template <PagingMode Guest>
void ShadowMmu<Guest>::drop_entry(unsigned vcpu, LinearAddress address)
{
    ShadowId at = root_slot(vcpu, address);
    for (int level = Guest.root_level(); at != kNoShadow; --level) {
        const ShadowSlot slot = slot_of(at, level, address);
        const ShadowId child = level > 1 ? e_->cache_.child(slot) : kNoShadow;
        // One guest page, however large, is one entry.
        if (level == 1 || (child != kNoShadow && e_->cache_[child].key.type.splinter)) {
            e_->cache_.clear(slot);
            return;
        }
        at = child;
    }
}

template <PagingMode Guest>
bool ShadowMmu<Guest>::splintered(unsigned vcpu, LinearAddress address)
{
    ShadowId at = root_slot(vcpu, address);
    for (int level = Guest.root_level(); at != kNoShadow && level > 1; --level) {
        at = e_->cache_.child(slot_of(at, level, address));
        if (at != kNoShadow && e_->cache_[at].key.type.splinter) return true;
    }
    return false;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::validate(ShadowId shadow, unsigned first, unsigned last)
{
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[shadow].key;
    const int level = key.type.level;
    const EntryRules rules = entry_rules(Guest, e_->cpuid_, settings_of(key.role));
    for (unsigned i = first / Guest.entry_bytes; i <= last / Guest.entry_bytes; ++i) {
        ++*counter_of_level(e_->counters_, level);
        const Pte<Guest> entry{
            e_->guest_memory_.template load<detail::EntryWord<Guest>>(key.frame, i * Guest.entry_bytes)};
        const ShadowSlot slot{shadow, static_cast<std::uint16_t>(i * key.type.entries_per_guest_entry())};
        const std::uint64_t flags = propagated_flags(entry, level, rules);
        if (flags == 0) {
            cache.clear(slot);
            continue;
        }
        const bool leaf = rules.is_leaf(entry.raw(), level);
        const Gfn frame = frame_under(entry, level, leaf);
        if (level == 1) {
            const auto mfn = e_->p2m_->mfn_of(frame);
            const std::uint64_t kept = cache.is_table(frame) ? flags & ~pte::kWritable : flags;
            cache.set_leaf(slot, mfn ? mfn->address().value() | kept : 0);
            continue;
        }
        // Only what exists is linked: the next fault makes the rest.
        const ShadowId child = cache.find(leaf ? splinter_key(frame, level - 1, entry.key())
                                               : table_key(frame, level - 1, key.role));
        if (child == kNoShadow) {
            cache.clear(slot);
        } else {
            cache.link(slot, child, flags);
        }
    }
}

template <PagingMode Guest>
void ShadowMmu<Guest>::audit_entries(ShadowId shadow, std::vector<std::string>& violations) const
{
    const ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[shadow].key;
    const int level = key.type.level;
    const unsigned pair = key.type.entries_per_guest_entry();
    const EntryRules rules = entry_rules(Guest, e_->cpuid_, settings_of(key.role));
    const IdentityTables identity;
    for (unsigned i = 0; i < cache[shadow].entries() / pair; ++i) {
        const ShadowSlot slot{shadow, static_cast<std::uint16_t>(i * pair)};
        const std::uint64_t raw = cache.entry(slot);
        if ((raw & pte::kPresent) == 0) continue;
        const auto complain = [&](std::string_view what) {
            violations.push_back(fmt::format("{} of frame {}, entry {} ({:#x}): {}", to_string(key.type),
                                             key.frame, i, raw, what));
        };
        if (key.type.splinter) {
            const Gfn page = key.frame + i * (frames_under(Guest, level) / cache[shadow].entries());
            if (level == 1 && e_->p2m_->mfn_of(page) != Mfn{(raw & pte::kFrame) >> kPageShift}) {
                complain("maps another frame than the superpage");
            }
            if (level == 1 && e_->declared_.protects_tables && (raw & pte::kWritable) != 0 &&
                cache.is_table(page)) {
                complain("maps a guest table writable");
            }
            continue;
        }
        using Word = detail::EntryWord<Guest>;
        const unsigned offset = i * Guest.entry_bytes;
        const Pte<Guest> entry{key.frame == kIdentityTable
                                   ? identity.load<Word>(key.frame, offset)
                                   : e_->guest_memory_.template load<Word>(key.frame, offset)};
        const std::uint64_t allowed = propagated_flags(entry, level, rules);
        if (allowed == 0) {
            complain("the guest's entry is not present, not accessed or has a reserved bit");
            continue;
        }
        constexpr std::uint64_t kSame = pte::kUser | pte::kNoExecute;
        if (((raw ^ allowed) & kSame) != 0) complain("U/S or XD differs from the guest's");
        if ((raw & ~allowed & pte::kWritable) != 0)
            complain("writable, though the guest's is not, or not dirty");
        if (level == 1 && ((raw ^ allowed) & pte::kKey) != 0) complain("protection key differs");
        const bool leaf = rules.is_leaf(entry.raw(), level);
        const Gfn frame = frame_under(entry, level, leaf);
        if (level == 1) {
            if (e_->p2m_->mfn_of(frame) != Mfn{(raw & pte::kFrame) >> kPageShift})
                complain("maps another frame");
            if ((raw & pte::kWritable) != 0 && cache.is_table(frame)) complain("maps a guest table writable");
            continue;
        }
        const ShadowKey below =
            leaf ? splinter_key(frame, level - 1, entry.key()) : table_key(frame, level - 1, key.role);
        if (!(cache[cache.child(slot)].key == below)) complain("references the shadow of something else");
    }
}

template class ShadowMmu<kTwoLevel>;
template class ShadowMmu<kPae>;
template class ShadowMmu<kFourLevel>;
template class ShadowMmu<kFiveLevel>;

template FaultAnswer ShadowMmu<kTwoLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access);
template FaultAnswer ShadowMmu<kTwoLevel>::fault(IdentityTables&, unsigned, const GuestContext&, Access);
template FaultAnswer ShadowMmu<kPae>::fault(GuestMemory&, unsigned, const GuestContext&, Access);
template FaultAnswer ShadowMmu<kFourLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access);
template FaultAnswer ShadowMmu<kFiveLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access);

}  // namespace mmusim
