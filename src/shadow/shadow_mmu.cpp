// SPDX-License-Identifier: Apache-2.0
//
// What is where: keys of shadows, roots, the path of an address, links.
#include "shadow_mmu.hpp"

#include <algorithm>

namespace mmusim {

namespace {

constexpr std::uint8_t kRoleNxe = 1;
constexpr std::uint8_t kRolePse = 2;

}  // namespace

template <PagingMode Guest>
ShadowKey ShadowMmu<Guest>::table_key(Gfn frame, int level, std::uint8_t role)
{
    return {frame, {kFormat, static_cast<std::uint8_t>(level), false}, role};
}

template <PagingMode Guest>
ShadowKey ShadowMmu<Guest>::splinter_key(Gfn page, int level, unsigned role)
{
    const Gfn first{page.number() & ~(frames_under(level) - 1)};
    return {first, {kFormat, static_cast<std::uint8_t>(level), true}, static_cast<std::uint8_t>(role)};
}

template <PagingMode Guest>
std::uint8_t ShadowMmu<Guest>::splinter_role(unsigned protection_key, std::uint8_t denials,
                                             std::uint8_t view) const
{
    const unsigned taken = e_->keyed_by_access() ? denials : 0u;
    return static_cast<std::uint8_t>(protection_key | taken | (view & kSecureRole));
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
    return e_->vcpus_[vcpu].roots.ids[slot];
}

template <PagingMode Guest>
const ShadowKey* ShadowMmu<Guest>::root_key(unsigned vcpu, const GuestContext& guest, unsigned slot,
                                            ShadowKey& key) const
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
    if (guest.paging != Paging::off && !e_->p2m_->mfn_of(frame)) return nullptr;
    key = table_key(frame, Guest.root_level(), role_of(guest.settings) | e_->view_of(vcpu));
    return &key;
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::find_or_create(const ShadowKey& key)
{
    if (!e_->keyed_by_position()) {
        if (const ShadowId found = e_->cache_.find(key); found != kNoShadow) return found;
    }
    if (!key.type.splinter && !e_->listed()) e_->resync(e_->current_, key.frame);
    return create(e_->current_, key);
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::create(unsigned vcpu, const ShadowKey& key)
{
    // Resyncs since the path was protected may have mapped the frame writable again: it was no table yet.
    if (e_->declared_.protects_tables && !key.type.splinter && !e_->cache_.is_table(key.frame))
        (void)e_->remove_write_access(vcpu, key.frame, 0, {});
    const ShadowId made = e_->cache_.create(key);
    e_->made(made);
    return made;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::load_root(unsigned vcpu, ShadowId& slot, const ShadowKey* wanted)
{
    ShadowEngine& e = *e_;
    const ShadowId old = slot;
    if (wanted == nullptr) {
        slot = kNoShadow;
    } else {
        // A shadow that is found by position can only be the one that is there.
        if (old != kNoShadow && e.keyed_by_position() && e.cache_[old].key == *wanted) return;
        const bool same_view =
            old != kNoShadow && ((e.cache_[old].key.role ^ wanted->role) & kSecureRole) == 0;
        if (same_view && e.keyed_by_vcpu() && e.cache_[old].key.type == wanted->type) {
            e.cache_.rekey(old, *wanted);
            return;
        }
        if (e.declared_.sizes.previous_roots != 0 && kFormat == TableFormat::bits64) {
            if (old != kNoShadow && e.cache_[old].key == *wanted) return;
            auto& previous = e.vcpus_[vcpu].previous_roots;
            const auto hit = std::find_if(previous.begin(), previous.end(),
                                          [&](ShadowId id) { return e.cache_[id].key == *wanted; });
            if (hit != previous.end()) {
                slot = *hit;
                previous.erase(hit);
                if (old != kNoShadow) e.keep_previous_root(e.vcpus_[vcpu], old);
                e.cache_.used(slot);
                return;
            }
            // What of a root that is not at hand is stale nobody knows.
            e.vcpus_[vcpu].resync_roots = true;
        }
        ShadowId found = e.keyed_by_position() ? kNoShadow : e.cache_.find(*wanted);
        if (found == kNoShadow) {
            e.make_room(wanted->type.frames());
            e.resync(vcpu, wanted->frame);
            found = create(vcpu, *wanted);
            e.cache_.retain(found);
            if (kFormat == TableFormat::bits64) e.l4_made();
        } else {
            e.cache_.retain(found);
        }
        slot = found;
        e.cache_.used(found);
        if (!e.keyed_by_position() && e.declared_.reclaim == Reclaim::oldest_root) e.cache_.pin(found);
        if (old != kNoShadow && e.declared_.sizes.previous_roots != 0 && kFormat == TableFormat::bits64) {
            e.keep_previous_root(e.vcpus_[vcpu], old);
            return;
        }
    }
    if (old != kNoShadow) e.cache_.release(old);
}

template <PagingMode Guest>
void ShadowMmu<Guest>::load_roots(unsigned vcpu, const GuestContext& guest)
{
    ShadowKey key;
    if (e_->declared_.protects_tables) {
        // While the old roots are still there to guess with.
        for (unsigned i = 0; i < 4; ++i) {
            if (root_key(vcpu, guest, i, key) == nullptr) continue;
            (void)e_->remove_write_access(vcpu, key.frame, Guest.root_level(), {});
        }
    }
    for (unsigned i = 0; i < 4; ++i) {
        load_root(vcpu, e_->vcpus_[vcpu].roots.ids[i], root_key(vcpu, guest, i, key));
    }
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::link_child(ShadowSlot slot, const ShadowKey& wanted, std::uint64_t flags,
                                      bool& linked)
{
    ShadowCache& cache = e_->cache_;
    ShadowId child = cache.child(slot);
    const bool same_child = child != kNoShadow && cache[child].key == wanted;
    if (e_->keyed_by_vcpu()) {
        const bool same = same_child && ((cache.entry(slot) ^ flags) & ~(pte::kFrame | kGlobalMark)) == 0;
        if (same) {
            // One page that is not global is enough.
            if ((flags & kGlobalMark) == 0) cache.take_marks(slot, kGlobalMark);
            return child;
        }
        child = wake(slot, wanted, flags);
        linked = true;
    } else if (!same_child) {
        child = find_or_create(wanted);
        linked = true;
        if (!wanted.type.splinter && wanted.type.level == 1 && !e_->listed())
            e_->resync(e_->current_, wanted.frame);
    } else {
        const std::uint64_t changed = (cache.entry(slot) ^ flags) & ~pte::kFrame;
        if (changed == 0) return child;
        // Entries below that may be stale were made under the old rights. Combined with new ones they could
        // permit what no walk ever did.
        if (wanted.type.splinter) {
            // They have no rights of their own.
        } else if (!e_->declared_.protects_tables) {
            cache.clear_all(child);
        } else if (wanted.type.level == 1 && !e_->listed()) {
            e_->resync(e_->current_, wanted.frame);
        }
    }
    if (wanted.type.level == 1) e_->events_.flag(PathFlag::l2_propagate);
    cache.link(slot, child, flags);
    if (kFormat == TableFormat::bits64 && wanted.type.level == 3 && !wanted.type.splinter &&
        e_->cache_.l3_may_be_pinned() && !e_->keyed_by_position()) {
        cache.pin(child);
    }
    return child;
}

template <PagingMode Guest>
ShadowId ShadowMmu<Guest>::wake(ShadowSlot slot, const ShadowKey& wanted, std::uint64_t flags)
{
    ShadowCache& cache = e_->cache_;
    const ShadowId held = cache.held_child(slot);
    if (held == kNoShadow || cache[held].key.type != wanted.type) return find_or_create(wanted);
    // Global pages were translated under the entry as it was: what it is now may permit more.
    const std::uint64_t entry = cache.entry(slot);
    constexpr std::uint64_t kBooks = pte::kFrame | pte::kPresent | kGlobalMark | kEmptyMark;
    const bool asleep = (entry & pte::kPresent) == 0;
    const bool same = cache[held].key == wanted && ((entry ^ flags) & ~kBooks) == 0;
    if (!asleep) cache.flush_due();
    empty_for_use(held, !asleep || !same || (entry & kEmptyMark) != 0);
    cache.rekey(held, wanted);
    return held;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::empty_for_use(ShadowId shadow, bool globals_too)
{
    ShadowCache& cache = e_->cache_;
    const ShadowType type = cache[shadow].key.type;
    const unsigned step = type.entries_per_guest_entry();
    for (unsigned i = 0; i < cache[shadow].entries(); i += step) {
        const ShadowSlot slot{shadow, static_cast<std::uint16_t>(i)};
        const std::uint64_t entry = cache.entry(slot);
        if (entry == 0 || (!globals_too && (entry & kGlobalMark) != 0)) continue;
        if (type.level > 1) {
            cache.put_to_sleep(slot, globals_too ? kEmptyMark : 0);
        } else {
            cache.set_leaf(slot, 0);
        }
    }
}

template <PagingMode Guest>
void ShadowMmu<Guest>::drop_top(unsigned vcpu, bool globals_too)
{
    for (const ShadowId root : e_->vcpus_[vcpu].roots.ids) {
        if (root != kNoShadow) empty_for_use(root, globals_too);
    }
}

template <PagingMode Guest>
std::optional<Gfn> ShadowMmu<Guest>::frame_of(const GuestContext& guest, const Access& access) const
{
    const GuestWalk walked = walk<Guest>(e_->guest_memory_, guest.root, guest.rules, access, AdBits::leave);
    if (!walked) return std::nullopt;
    return Gfn::of(walked->address);
}

template <PagingMode Guest>
bool ShadowMmu<Guest>::are_roots(unsigned vcpu, const GuestContext& guest,
                                 const std::array<ShadowId, 4>& roots) const
{
    for (unsigned i = 0; i < 4; ++i) {
        ShadowKey key;
        const bool wanted = root_key(vcpu, guest, i, key) != nullptr;
        if (wanted != (roots[i] != kNoShadow) || (wanted && !(e_->cache_[roots[i]].key == key))) return false;
    }
    return true;
}

template <PagingMode Guest>
std::optional<ShadowSlot> ShadowMmu<Guest>::leaf_slot(unsigned vcpu, LinearAddress address)
{
    ShadowId at = root_slot(vcpu, address);
    for (int level = Guest.root_level(); at != kNoShadow && level > 1; --level) {
        at = e_->cache_.child(slot_of(at, level, address));
    }
    if (at == kNoShadow) return std::nullopt;
    return slot_of(at, 1, address);
}

template <PagingMode Guest>
void ShadowMmu<Guest>::drop_entry(unsigned vcpu, LinearAddress address)
{
    ShadowCache& cache = e_->cache_;
    ShadowId at = root_slot(vcpu, address);
    for (int level = Guest.root_level(); at != kNoShadow; --level) {
        const ShadowSlot slot = slot_of(at, level, address);
        const ShadowId child = level > 1 ? cache.child(slot) : kNoShadow;
        // One guest page, however large, is one entry.
        if (level == 1 || (child != kNoShadow && cache[child].key.type.splinter)) {
            cache.clear(slot);
            return;
        }
        at = child;
    }
}

template <PagingMode Guest>
InvlpgAnswer ShadowMmu<Guest>::invlpg_answer(unsigned vcpu, LinearAddress address)
{
    ShadowId at = root_slot(vcpu, address);
    for (int level = Guest.root_level(); at != kNoShadow && level > 1; --level) {
        at = e_->cache_.child(slot_of(at, level, address));
        if (at != kNoShadow && e_->cache_[at].key.type.splinter) return {true, true};
    }
    return {at == kNoShadow, false};
}

template class ShadowMmu<kTwoLevel>;
template class ShadowMmu<kPae>;
template class ShadowMmu<kFourLevel>;
template class ShadowMmu<kFiveLevel>;

}  // namespace mmusim
