// SPDX-License-Identifier: Apache-2.0
#include "shadow_mmu.hpp"

#include <algorithm>
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
ShadowKey ShadowMmu<Guest>::splinter_key(Gfn page, int level, unsigned role)
{
    const Gfn first{page.number() & ~(frames_under(Guest, level) - 1)};
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
    if (guest.paging != Paging::off && !e_->p2m_->ram().contains(frame)) return nullptr;
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
template <class Tables>
typename ShadowMmu<Guest>::GuestWalk ShadowMmu<Guest>::walk_guest(Tables& tables, unsigned vcpu,
                                                                  const GuestContext& guest,
                                                                  const Access& access,
                                                                  WalkPath<space::GuestPhysical>& path)
{
    if (e_->secure_frames_.any() && !e_->secure_mode(vcpu)) {
        // Refused, it leaves accessed and dirty bits alone, as any walk that ends in a fault.
        const GuestWalk found = walk<Guest>(tables, guest.root, guest.rules, access, AdBits::leave, path);
        if (found) {
            if (const auto refused = e_->refusal(vcpu, guest, access, Gfn::of(found->address))) {
                e_->answer_flush(vcpu, GuestFlush::page_fault, access.address);
                return *refused;
            }
        }
        path = {};
    }
    const GuestWalk walked = walk<Guest>(tables, guest.root, guest.rules, access, AdBits::set, path);
    if (!walked) {
        e_->answer_flush(vcpu, GuestFlush::page_fault, access.address);
        return walked;
    }
    if (walked->assisted) e_->events_.flag(PathFlag::set_ad);
    if (e_->any_level() && walked->assisted) note_assists(path);
    // Accessed and dirty bits can only add rights to shadows of this format. As entries of another format
    // they mean anything.
    for (int level = Guest.root_level(); e_->declared_.protects_tables && level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        if (!e_->cache_.is_table_of_other(kFormat, path.tables[i])) continue;
        if (e_->out_of_sync_.find(path.tables[i]) != nullptr) continue;
        e_->revalidate(path.tables[i], path.offsets[i], path.offsets[i] + Guest.entry_bytes - 1, kFormat);
    }
    return walked;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::note_assists(const WalkPath<space::GuestPhysical>& path)
{
    using Word = detail::EntryWord<Guest>;
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        OutOfSyncTables::Table* const table = e_->out_of_sync_.find(path.tables[i]);
        if (table == nullptr) continue;
        if (table->template copied<Word>(path.offsets[i]) != static_cast<Word>(path.entries[i])) continue;
        table->copy(path.offsets[i], e_->guest_memory_.template load<Word>(path.tables[i], path.offsets[i]));
    }
}

template <PagingMode Guest>
template <class Tables>
bool ShadowMmu<Guest>::path_changed(Tables& tables, const GuestContext& guest, const Access& access)
{
    WalkPath<space::GuestPhysical> path;
    (void)walk<Guest>(tables, guest.root, guest.rules, access, AdBits::leave, path);
    count_walk(path);
    using Word = detail::EntryWord<Guest>;
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        const OutOfSyncTables::Table* const table = e_->out_of_sync_.find(path.tables[i]);
        if (table == nullptr) continue;
        if (table->template copied<Word>(path.offsets[i]) != static_cast<Word>(path.entries[i])) return true;
    }
    return false;
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
void ShadowMmu<Guest>::count_walk(const WalkPath<space::GuestPhysical>& path)
{
    ++e_->counters_.guest_walk;
    e_->work_.guest_entries_read += static_cast<std::uint64_t>(Guest.root_level() - path.lowest + 1);
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        e_->touch(path.tables[i], path.offsets[i], Guest.entry_bytes);
    }
}

template <PagingMode Guest>
void ShadowMmu<Guest>::count_walk_of_emulator(unsigned vcpu, const GuestContext& guest, const Access& access,
                                              const WalkPath<space::GuestPhysical>& path, Gfn found)
{
    VirtualTlb& remembered = e_->vcpus_[vcpu].virtual_tlb;
    const std::uint32_t needed = guest.rules.control.access_bits(access) | pf::kPresent;
    if (auto& old = e_->vcpus_[vcpu].unflushed) {
        const auto kept = old->virtual_tlb.find(access.address, needed);
        if (kept && *kept != found) {
            e_->tell(
                &HazardCounts::virtual_tlb,
                fmt::format("vCPU {}: MOV CR3 was not seen, so the virtual TLB still leads {} to frame {}, "
                            "as another root does; under root {} it is frame {}",
                            vcpu, access.address, *kept, guest.root.frame, found));
        }
        old->virtual_tlb.insert(access.address, found, needed);
    }
    if (remembered.find(access.address, needed)) return;
    count_walk(path);
    remembered.insert(access.address, found, needed);
}

template <PagingMode Guest>
template <class Fill>
void ShadowMmu<Guest>::end(ShadowEventKind kind, const WalkPath<space::GuestPhysical>& path,
                           std::optional<Gfn> frame, Fill fill)
{
    e_->events_.tell(kind, [&](ShadowEvent& event) {
        describe(event, path);
        event.frame = frame;
        fill(event);
    });
}

template <PagingMode Guest>
void ShadowMmu<Guest>::end_emulated(ShadowEventKind kind, const Access& access,
                                    const WalkPath<space::GuestPhysical>& path, GuestPhysical at,
                                    std::string_view how)
{
    const auto fill = [&](ShadowEvent& event) {
        describe(event, path);
        event.frame = Gfn::of(at);
        event.how = how;
    };
    if (access.kind == AccessKind::write) {
        e_->events_.tell_with_store(kind, at, fill);
    } else {
        e_->events_.tell(kind, fill);
    }
}

template <PagingMode Guest>
void ShadowMmu<Guest>::describe(ShadowEvent& event, const WalkPath<space::GuestPhysical>& path)
{
    if (path.tables[static_cast<std::size_t>(Guest.root_level())] == kIdentityTable) return;
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        event.tables.push_back(path.tables[static_cast<std::size_t>(level)]);
    }
    if (path.lowest <= Guest.levels) event.guest_entry = path.entries[static_cast<std::size_t>(path.lowest)];
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_at(unsigned vcpu, GuestPhysical address)
{
    ++e_->work_.emulated;
    e_->emulation_ = {vcpu, Guest.entry_bytes, std::nullopt};
    return {FaultAnswer::Kind::emulated, {}, address};
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_write_at(unsigned vcpu, GuestPhysical address)
{
    FaultAnswer answer = emulated_at(vcpu, address);
    answer.goes_on = Guest == kPae && e_->declared_.switches.fast_emulation;
    return answer;
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_access(GuestMemory& tables, unsigned vcpu, const GuestContext& guest,
                                              const Access& access)
{
    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
    if (!walked) {
        count_walk(path);
        return {FaultAnswer::Kind::guest, walked.error(), {}};
    }
    count_walk_of_emulator(vcpu, guest, access, path, Gfn::of(walked->address));
    return emulated_at(vcpu, walked->address);
}

template <PagingMode Guest>
template <class Tables>
std::optional<FaultAnswer> ShadowMmu<Guest>::emulate_fast(Tables& tables, unsigned vcpu,
                                                          const GuestContext& guest, const Access& access,
                                                          std::uint32_t error_code)
{
    auto& hint = e_->vcpus_[vcpu].fast_emulation;
    if (!hint || hint->page != access.address.value() >> kPageShift) return std::nullopt;
    if (error_code == (pf::kWrite | pf::kPresent) && e_->traps_writes_to(hint->table)) {
        // Xen goes by what the page was. What it is now costs it nothing, and is what the guest is entitled
        // to.
        WalkPath<space::GuestPhysical> path;
        const GuestWalk walked = walk<Guest>(tables, guest.root, guest.rules, access, AdBits::leave, path);
        if (walked && !walked->assisted && walked->dirty && Gfn::of(walked->address) == hint->table) {
            ++e_->counters_.fault_fast_emulate;
            const Gfn table = hint->table;
            count_walk_of_emulator(vcpu, guest, access, path, table);
            e_->unshadow_if_dying(table);  // then the hint goes
            end_emulated(ShadowEventKind::emulate, access, path, walked->address, "fast");
            return emulated_write_at(vcpu, walked->address);
        }
    }
    hint.reset();
    return std::nullopt;
}

template <PagingMode Guest>
template <class Tables>
std::optional<FaultAnswer> ShadowMmu<Guest>::answer_by_mark(Tables& tables, unsigned vcpu,
                                                            const GuestContext& guest, const Access& access)
{
    const auto slot = leaf_slot(vcpu, access.address);
    if (!slot) return std::nullopt;
    const ShadowKey key = e_->cache_[slot->shadow].key;
    if (!key.type.splinter && e_->out_of_sync_.find(key.frame) != nullptr) return std::nullopt;
    e_->cache_.touch(*slot);
    const std::uint64_t entry = e_->cache_.entry(*slot);
    if (!magic::is_mark(entry)) {
        ++e_->counters_.fault_fast_fail;
        end(ShadowEventKind::false_fast_path, {}, std::nullopt);
        return FaultAnswer{};
    }
    // Xen goes by the mark alone. What the guest's tables say now costs it nothing, and is what the guest is
    // entitled to: the mark knows nothing of rights, accessed and dirty bits.
    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
    if (magic::is_mmio(entry)) {
        if (!walked || Gfn::of(walked->address) != magic::mmio_frame(entry)) return std::nullopt;
        ++e_->counters_.fault_fast_mmio;
    } else {
        if (walked) return std::nullopt;
        ++e_->counters_.fault_fast_gnp;
    }
    e_->vcpus_[vcpu].zero_written.reset();
    if (!walked) {
        end(ShadowEventKind::fast_propagate, path, std::nullopt,
            [&](ShadowEvent& event) { event.guest_error_code = walked.error().error_code; });
        return FaultAnswer{FaultAnswer::Kind::guest, walked.error(), {}};
    }
    end_emulated(ShadowEventKind::fast_mmio, access, path, walked->address, {});
    return emulated_at(vcpu, walked->address);
}

template <PagingMode Guest>
bool ShadowMmu<Guest>::protect_path(unsigned vcpu, LinearAddress address,
                                    const WalkPath<space::GuestPhysical>& path)
{
    bool removed = false;
    bool resynced = false;
    // The top table is protected since it was loaded.
    for (int level = Guest.root_level() - 1; level >= path.lowest; --level) {
        const Gfn table = path.tables[static_cast<std::size_t>(level)];
        if (e_->out_of_sync_.find(table) == nullptr) {
            removed |= e_->remove_write_access(vcpu, table, level, address);
        } else if (level > 1 && !e_->any_level()) {
            e_->resync(vcpu, table);
            resynced = true;
        }
    }
    if (removed) {
        ++e_->counters_.rm_write_flush_tlb;
        if (!resynced) ++e_->counters_.check_gwalk;
    }
    return resynced;
}

template <PagingMode Guest>
std::uint64_t ShadowMmu<Guest>::leaf_for(Pte<Guest> entry, const EntryRules& rules, std::uint8_t role,
                                         bool write) const
{
    if (!entry.present()) return e_->marks_absent_ ? magic::kNotPresent : 0;
    if (rules.reserved_bit_set(entry.raw(), 1)) return 0;
    const Gfn frame = frame_under(entry, 1, true);
    const auto mfn = e_->p2m_->mfn_of(frame);
    if (!mfn) return e_->mmio_mark(frame, entry.raw());
    std::uint64_t flags = propagated_flags(entry, 1, rules);
    if (flags == 0 || e_->withheld(frame, role)) return 0;
    flags = narrowed(flags, role);
    const bool table = e_->declared_.protects_tables && e_->cache_.is_table(frame);
    if (table && !(write && e_->out_of_sync_.may_write(frame))) flags &= ~pte::kWritable;
    return mfn->address().value() | flags;
}

template <PagingMode Guest>
std::uint64_t ShadowMmu<Guest>::piece_for(Gfn frame, std::uint8_t role, bool writes_table) const
{
    const auto mfn = e_->p2m_->mfn_of(frame);
    if (!mfn) return e_->mmio_mark(frame, kSplinterFlags);
    if (e_->withheld(frame, role)) return 0;
    std::uint64_t flags = splinter_flags(role);
    const bool table = e_->declared_.protects_tables && e_->cache_.is_table(frame);
    if (table && !writes_table) flags &= ~pte::kWritable;
    return mfn->address().value() | flags;
}

template <PagingMode Guest>
unsigned ShadowMmu<Guest>::prefetch(ShadowSlot slot, const WalkPath<space::GuestPhysical>& path,
                                    const GuestContext& guest)
{
    constexpr unsigned kPageEntries = 512;
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[slot.shadow].key;
    const unsigned room = kPageEntries - slot.index % kPageEntries;  // never into another page of the shadow
    const unsigned count = std::min(e_->declared_.sizes.prefetch_window, room);
    OutOfSyncTables::Table* const loose = path.lowest == 1 ? e_->out_of_sync_.find(path.tables[1]) : nullptr;
    unsigned filled = 0;
    for (unsigned i = 1; i < count; ++i) {
        const ShadowSlot next{slot.shadow, static_cast<std::uint16_t>(slot.index + i)};
        cache.touch(next);
        if (cache.entry(next) != 0) break;
        if (path.lowest > 1) {
            // A piece of a superpage: fabricated.
            const std::uint64_t piece = piece_for(key.frame + next.index, key.role, false);
            cache.set_leaf(next, piece);
            if (piece != 0) ++filled;
            continue;
        }
        using Word = detail::EntryWord<Guest>;
        const unsigned offset = path.offsets[1] + i * Guest.entry_bytes;
        e_->touch(path.tables[1], offset, Guest.entry_bytes);
        const Word raw = e_->guest_memory_.template load<Word>(path.tables[1], offset);
        const Pte<Guest> entry{raw};
        if (entry.present() && (!entry.accessed() || (entry.has(pte::kWritable) && !entry.dirty()))) break;
        const std::uint64_t leaf = leaf_for(entry, guest.rules.entries, key.role, false);
        cache.set_leaf(next, leaf);
        if (leaf != 0) ++filled;
        if (loose != nullptr) loose->copy(offset, raw);
    }
    return filled;
}

template <PagingMode Guest>
unsigned ShadowMmu<Guest>::prefetch_group(ShadowSlot slot, const WalkPath<space::GuestPhysical>& path,
                                          const GuestContext& guest)
{
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[slot.shadow].key;
    const unsigned count = e_->declared_.sizes.prefetch_window;
    const unsigned first = slot.index - slot.index % count;
    const unsigned table_offset = path.offsets[1] - slot.index % count * Guest.entry_bytes;
    unsigned filled = 0;
    for (unsigned i = 0; i < count; ++i) {
        const ShadowSlot one{slot.shadow, static_cast<std::uint16_t>(first + i)};
        cache.touch(one);
        if (cache.entry(one) != 0) continue;
        std::uint64_t leaf = 0;
        if (path.lowest > 1) {
            const Gfn page = key.frame + one.index;
            if (e_->withheld(page, key.role)) continue;
            leaf = piece_for(page, key.role, false);
        } else {
            using Word = detail::EntryWord<Guest>;
            const unsigned offset = table_offset + i * Guest.entry_bytes;
            e_->touch(path.tables[1], offset, Guest.entry_bytes);
            const Word raw = e_->guest_memory_.template load<Word>(path.tables[1], offset);
            leaf = leaf_for(Pte<Guest>{raw}, guest.rules.entries, key.role, false);
        }
        // Where one can't be used, the next ones seldom can.
        if (leaf == 0) break;
        cache.set_leaf(one, leaf);
        ++filled;
    }
    return filled;
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulate_write(unsigned vcpu, const GuestContext& guest, const Access& access,
                                            GuestPhysical address, const WalkPath<space::GuestPhysical>& path)
{
    const Gfn frame = Gfn::of(address);
    if (access.user_mode) {
        // No kernel lets its user write its tables: the frame is none any more, unless this very walk uses
        // it.
        bool in_use = false;
        for (int level = Guest.root_level(); level >= path.lowest; --level) {
            in_use |= path.tables[static_cast<std::size_t>(level)] == frame;
        }
        ++e_->counters_.fault_emulate_failed;
        if (!in_use && e_->unshadow(frame, false)) {
            end(ShadowEventKind::emulate_unshadow_user, path, frame);
            return {};
        }
    }
    e_->unshadow_if_dying(frame);
    count_walk_of_emulator(vcpu, guest, access, path, frame);
    end_emulated(ShadowEventKind::emulate, access, path, address, "table");
    const FaultAnswer answer = emulated_write_at(vcpu, address);
    e_->emulation_.remember = {access.address.value() >> kPageShift, frame};
    return answer;
}

template <PagingMode Guest>
template <class Tables>
FaultAnswer ShadowMmu<Guest>::fault(Tables& tables, unsigned vcpu, const GuestContext& guest, Access access,
                                    std::uint32_t error_code)
{
    ShadowCounters& counters = e_->counters_;
    auto& mine = e_->vcpus_[vcpu];
    const bool write = access.kind == AccessKind::write;
    e_->current_ = vcpu;
    ++counters.fault;
    if (const auto answer = emulate_fast(tables, vcpu, guest, access, error_code)) return *answer;
    if ((error_code & pf::kReserved) != 0) {
        if (const auto answer = answer_by_mark(tables, vcpu, guest, access)) return *answer;
    }

    if (e_->declared_.fault_resync != FaultResync::never && e_->out_of_sync_.any()) {
        const bool always = e_->declared_.fault_resync == FaultResync::always;
        if (always || path_changed(tables, guest, access)) e_->resync_all(vcpu);
    }
    WalkPath<space::GuestPhysical> path;
    for (;;) {
        path = {};
        const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
        count_walk(path);
        if (!walked) {
            ++counters.fault_bail_real_fault;
            mine.zero_written.reset();
            end(ShadowEventKind::not_shadow, path, std::nullopt,
                [&](ShadowEvent& event) { event.guest_error_code = walked.error().error_code; });
            return {FaultAnswer::Kind::guest, walked.error(), {}};
        }
        const std::uint32_t proved = guest.rules.control.access_bits(access) | pf::kPresent;
        mine.virtual_tlb.insert(access.address, Gfn::of(walked->address), proved);
        if (mine.unflushed)
            mine.unflushed->virtual_tlb.insert(access.address, Gfn::of(walked->address), proved);
        // Of whatever is missing: all but the top level, a guest's 1G page in pieces of pieces. After a blow
        // the roots too.
        unsigned missing = Guest == kTwoLevel ? 2 : static_cast<unsigned>(Guest.root_level() - 1);
        const bool no_root = root_slot(vcpu, access.address) == kNoShadow;
        if (no_root) missing += kFormat == TableFormat::bits64 ? 1 : 4;
        const bool had_room = e_->make_room(missing);
        if (no_root) {
            load_roots(vcpu, guest);
            // Others may use the same roots: below them is what they have not flushed. A resync may give
            // write access, so it precedes the protection of the path.
            e_->listed() ? e_->resync_reachable(vcpu) : e_->resync_others_lightly(vcpu);
        }
        const bool again =
            e_->declared_.protects_tables &&
            (protect_path(vcpu, access.address, path) ||
             (e_->listed() && resync_before_linking(vcpu, access.address, guest, path, *walked)));
        if (!again) return build(vcpu, guest, access, *walked, path, write, had_room);
    }
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::build(unsigned vcpu, const GuestContext& guest, const Access& access,
                                    const Translation<space::GuestPhysical>& walked,
                                    const WalkPath<space::GuestPhysical>& path, bool write, bool had_room)
{
    ShadowCounters& counters = e_->counters_;
    auto& mine = e_->vcpus_[vcpu];
    const Gfn page = Gfn::of(walked.address);

    // The path, from the root to the level-1 table. Below a superpage's entry it is fabricated.
    ShadowId at = root_slot(vcpu, access.address);
    assert(at != kNoShadow);
    e_->cache_.used(at);
    const std::uint64_t mark = guest.globals && walked.global && e_->keyed_by_vcpu() ? kGlobalMark : 0;
    std::uint8_t denials = 0;
    bool upper_linked = false;
    for (int level = Guest.root_level(); level > 1; --level) {
        const Step step = step_of(vcpu, level, denials, guest, path, walked);
        denials = step.denials;
        // Below an upper table that is found again there may be level-1 tables that are out of sync.
        if (level == 2 && upper_linked && !e_->listed()) e_->resync_all(vcpu);
        bool linked = false;
        at = link_child(slot_of(at, level, access.address), step.wanted, step.flags | mark, linked);
        e_->cache_.used(at);
        upper_linked |= linked && level > 2;
        // What one step makes the next one's room could take away again: then it is done in one.
        if (linked && e_->populate_ == Populate::step && had_room) {
            if (level > 2 && !e_->listed()) e_->resync_all(vcpu);
            ++counters.fault_linked;
            end(ShadowEventKind::link, path, page,
                [&](ShadowEvent& event) { event.type = e_->cache_[at].key.type; });
            return {};
        }
    }

    const bool ram = e_->p2m_->mfn_of(page).has_value();
    const bool table = ram && e_->declared_.protects_tables && e_->cache_.is_table(page);
    if (table && write) {
        const TableWrite asked{vcpu, page, access.user_mode, e_->may_unsync(page)};
        if (e_->policy_->on_table_write(asked) == TableWriteAnswer::unsync && asked.may_unsync)
            e_->unsync(vcpu, page);
    }

    const ShadowSlot slot = slot_of(at, 1, access.address);
    OutOfSyncTables::Table* const target = table && write ? e_->out_of_sync_.find(page) : nullptr;
    std::uint64_t leaf = 0;
    if (path.lowest == 1) {
        const Pte<Guest> entry{path.entries[1] | pte::kAccessed | (walked.dirty ? pte::kDirty : 0)};
        leaf = leaf_for(entry, guest.rules.entries, e_->cache_[at].key.role, write);
        if (OutOfSyncTables::Table* const loose = e_->out_of_sync_.find(path.tables[1])) {
            loose->copy(path.offsets[1], static_cast<detail::EntryWord<Guest>>(entry.raw()));
        }
    } else {
        leaf = piece_for(page, e_->cache_[at].key.role, target != nullptr);
    }
    if (target != nullptr && (leaf & pte::kWritable) != 0) e_->add_fixup(*target, slot);
    if (leaf != 0) leaf |= mark;
    e_->cache_.set_leaf(slot, leaf);
    unsigned prefetched = 0;
    if (e_->declared_.switches.prefetch && leaf != 0) {
        prefetched =
            e_->declared_.prefetch_aligned ? prefetch_group(slot, path, guest) : prefetch(slot, path, guest);
        e_->work_.entries_prefetched += prefetched;
    }

    if (!ram) {
        ++counters.fault_mmio;
        mine.zero_written.reset();
        end_emulated(ShadowEventKind::mmio, access, path, walked.address, {});
        return emulated_at(vcpu, walked.address);
    }
    const bool distrusted = access.user_mode && e_->declared_.gives_up_user_written;
    if (table && write && (target == nullptr || distrusted)) {
        ++counters.fault_emulate_write;
        return emulate_write(vcpu, guest, access, walked.address, path);
    }
    // The hardware runs with CR0.WP set: what only a clear one permits has to be done for the guest.
    RightsControl hardware = guest.rules.control;
    hardware.write_protect = true;
    if (denied(walked.rights, hardware, access) != 0) {
        ++counters.fault_emulate_wp;
        count_walk_of_emulator(vcpu, guest, access, path, page);
        end_emulated(ShadowEventKind::emulate, access, path, walked.address, "wp");
        return emulated_write_at(vcpu, walked.address);
    }
    ++counters.fault_fixed;
    mine.zero_written.reset();
    end(ShadowEventKind::fixup, path, page, [&](ShadowEvent& event) {
        event.entry = e_->cache_.described(slot);
        event.prefetched = prefetched;
    });
    return {};
}

template <PagingMode Guest>
typename ShadowMmu<Guest>::Step ShadowMmu<Guest>::step_of(
    unsigned vcpu, int level, std::uint8_t denials, const GuestContext& guest,
    const WalkPath<space::GuestPhysical>& path, const Translation<space::GuestPhysical>& walked) const
{
    // The trail holds what the walk read: accessed (and dirty) bits have been set since.
    const bool fabricated = level < path.lowest;
    const bool leaf = level == path.lowest;
    const Pte<Guest> entry{path.entries[static_cast<std::size_t>(level)] | pte::kAccessed |
                           (leaf && walked.dirty ? pte::kDirty : 0)};
    constexpr std::uint64_t kPermissive = kSplinterFlags | pte::kDirty;
    Step step;
    step.flags = fabricated ? kPermissive : propagated_flags(entry, level, guest.rules.entries);
    if (e_->keyed_by_access()) {
        step.denials = fabricated ? denials : static_cast<std::uint8_t>(denials | denials_of(step.flags));
        step.flags = kPermissive;
    }
    const auto role = static_cast<std::uint8_t>(role_of(guest.settings) | e_->view_of(vcpu) | step.denials);
    step.wanted = level > path.lowest ? table_key(frame_under(entry, level, false), level - 1, role)
                                      : splinter_key(Gfn::of(walked.address), level - 1,
                                                     splinter_role(walked.rights.key, step.denials, role));
    return step;
}

template <PagingMode Guest>
bool ShadowMmu<Guest>::resync_before_linking(unsigned vcpu, LinearAddress address, const GuestContext& guest,
                                             const WalkPath<space::GuestPhysical>& path,
                                             const Translation<space::GuestPhysical>& walked)
{
    if (!e_->out_of_sync_.any()) return false;
    const ShadowCache& cache = e_->cache_;
    ShadowId at = root_slot(vcpu, address);
    std::uint8_t denials = 0;
    for (int level = Guest.root_level(); level > path.lowest; --level) {
        const Step step = step_of(vcpu, level, denials, guest, path, walked);
        denials = step.denials;
        if (at != kNoShadow) {
            const ShadowSlot slot = slot_of(at, level, address);
            const ShadowId child = cache.child(slot);
            constexpr std::uint64_t kRights = pte::kWritable | pte::kUser | pte::kNoExecute;
            at = child;
            if (child != kNoShadow && cache[child].key == step.wanted &&
                ((cache.entry(slot) ^ step.flags) & kRights) == 0) {
                continue;
            }
            at = kNoShadow;
        }
        // From here on everything is going to be linked.
        const Gfn frame = step.wanted.frame;
        const ShadowId found = cache.peek(step.wanted);
        OutOfSyncTables::Table* const loose = e_->out_of_sync_.find(frame);
        const bool any_level = e_->any_level();
        if (found == kNoShadow) {
            // A table may be out of sync as what it is, not as something else as well.
            const auto others = cache.of_frame(frame);
            const bool same = level == 2 && !others.empty() && cache[others.back()].key.type.level == 1 &&
                              cache[others.back()].key.type.format == kFormat && !any_level;
            if (loose == nullptr || same) continue;
            e_->resync(vcpu, frame);
            return true;
        }
        if (loose != nullptr && level == 2 && !any_level) {
            // Right for now; it stays out of sync.
            e_->resync_entries(*loose);
            continue;
        }
        if (!e_->out_of_sync_below(found)) continue;
        if (any_level) {
            e_->resync_domain(vcpu);
        } else {
            for (const Gfn table : e_->out_of_sync_.all()) {
                if (e_->is_below(table, found)) e_->resync(vcpu, table);
            }
        }
        return true;
    }
    return false;
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
void ShadowMmu<Guest>::resync_page(unsigned vcpu, LinearAddress address)
{
    resync_page_under(root_slot(vcpu, address), address);
    for (const ShadowId root : e_->vcpus_[vcpu].previous_roots) resync_page_under(root, address);
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
void ShadowMmu<Guest>::resync_page_under(ShadowId at, LinearAddress address)
{
    ShadowCache& cache = e_->cache_;
    for (int level = Guest.root_level(); at != kNoShadow; --level) {
        const ShadowKey key = cache[at].key;
        if (key.type.splinter) return;
        const ShadowSlot slot = slot_of(at, level, address);
        const bool loose = e_->out_of_sync_.find(key.frame) != nullptr;
        if (level == 1) {
            if (!loose) return;
            // The guest flushes the hardware itself.
            if (e_->declared_.repair != Repair::rederive) {
                cache.set_leaf(slot, 0);
            } else if ((cache.entry(slot) & pte::kPresent) != 0) {
                repair_leaf(slot);
            }
            return;
        }
        if (loose && e_->any_level()) {
            cache.clear(slot);
            return;
        }
        at = cache.child(slot);
    }
}

template <PagingMode Guest>
void ShadowMmu<Guest>::repair_leaf(ShadowSlot slot)
{
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[slot.shadow].key;
    const EntryRules rules = entry_rules(Guest, e_->cpuid_, settings_of(key.role));
    using Word = detail::EntryWord<Guest>;
    const Word now = e_->guest_memory_.template load<Word>(key.frame, slot.index * Guest.entry_bytes);
    // Where a table that is out of sync was mapped writable it may stay so.
    const bool writable = (cache.entry(slot) & pte::kWritable) != 0;
    cache.set_leaf(slot, leaf_for(Pte<Guest>{now}, rules, key.role, writable));
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

template <PagingMode Guest>
bool ShadowMmu<Guest>::validate(ShadowId shadow, unsigned first, unsigned last)
{
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[shadow].key;
    const int level = key.type.level;
    const EntryRules rules = entry_rules(Guest, e_->cpuid_, settings_of(key.role));
    OutOfSyncTables::Table* const loose = e_->out_of_sync_.find(key.frame);
    // What is to be propagated may change while it is: the shadow that it is for may go.
    ++e_->counters_.hash_lookups;
    ++e_->counters_.get_shadow_status;
    if (cache.first_of_bucket(shadow)) ++e_->counters_.hash_lookup_head;
    bool fine = true;
    for (unsigned i = first / Guest.entry_bytes; i <= last / Guest.entry_bytes; ++i) {
        if (!cache[shadow].alive()) return fine;
        if (e_->declared_.written_entry == WrittenEntry::drop) {
            cache.clear({shadow, static_cast<std::uint16_t>(i * key.type.entries_per_guest_entry())});
            continue;
        }
        ++*counter_of_level(e_->counters_, level);
        using Word = detail::EntryWord<Guest>;
        e_->touch(key.frame, i * Guest.entry_bytes, Guest.entry_bytes);
        const Word raw = e_->guest_memory_.template load<Word>(key.frame, i * Guest.entry_bytes);
        const Pte<Guest> entry{raw};
        const ShadowSlot slot{shadow, static_cast<std::uint16_t>(i * key.type.entries_per_guest_entry())};
        const std::uint64_t before = cache.entry(slot);
        if (level == 1) {
            cache.set_leaf(slot, leaf_for(entry, rules, key.role, false));
            if (cache.entry(slot) != before) e_->events_.flag(PathFlag::set_changed);
            if (loose != nullptr) loose->copy(i * Guest.entry_bytes, raw);
            continue;
        }
        if (level == 2) e_->events_.flag(PathFlag::l2_propagate);
        const std::uint64_t flags = propagated_flags(entry, level, rules);
        ShadowId child = kNoShadow;
        if (entry.present()) {
            // Only what exists is linked: the next fault makes the rest.
            const bool leaf = rules.is_leaf(entry.raw(), level);
            const Gfn frame = frame_under(entry, level, leaf);
            if (leaf || e_->p2m_->mfn_of(frame)) {
                child =
                    cache.find(leaf ? splinter_key(frame, level - 1, splinter_role(entry.key(), 0, key.role))
                                    : table_key(frame, level - 1, key.role));
            } else {
                fine = false;
            }
            if (child != kNoShadow && flags != 0) {
                if (level > 2) {
                    e_->resync_all(e_->emulation_.vcpu);
                } else if (!leaf) {
                    e_->resync(e_->emulation_.vcpu, frame);
                }
            }
        }
        if (flags == 0 || child == kNoShadow) {
            if (before != 0) e_->events_.flag(PathFlag::set_changed);
            cache.clear(slot);
            continue;
        }
        cache.link(slot, child, flags);
        if (cache.entry(slot) != before) e_->events_.flag(PathFlag::set_changed);
        if (kFormat == TableFormat::bits64 && level == 4 && e_->cache_.l3_may_be_pinned()) cache.pin(child);
    }
    return fine;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::resync_entries(ShadowId shadow, const OutOfSyncTables::Table& table)
{
    ShadowCache& cache = e_->cache_;
    const ShadowKey key = cache[shadow].key;
    const EntryRules rules = entry_rules(Guest, e_->cpuid_, settings_of(key.role));
    ++e_->counters_.hash_lookups;
    ++e_->counters_.get_shadow_status;
    if (cache.first_of_bucket(shadow)) ++e_->counters_.hash_lookup_head;
    if (e_->declared_.repair == Repair::drop) {
        cache.clear_all(shadow);
        return;
    }
    using Word = detail::EntryWord<Guest>;
    const unsigned pair = key.type.entries_per_guest_entry();
    cache.touch_all(shadow);
    e_->touch(key.frame, 0, static_cast<unsigned>(kPageBytes));
    for (unsigned offset = 0; offset < kPageBytes; offset += Guest.entry_bytes) {
        const ShadowSlot slot{shadow, static_cast<std::uint16_t>(offset / Guest.entry_bytes * pair)};
        if ((cache.entry(slot) & pte::kPresent) == 0) continue;
        ++e_->work_.entries_compared;
        if (e_->declared_.repair == Repair::rederive) {
            repair_leaf(slot);
            continue;
        }
        const Word now = e_->guest_memory_.template load<Word>(key.frame, offset);
        if (now == table.template copied<Word>(offset)) continue;
        if (key.type.level > 1) {
            (void)validate(shadow, offset, offset);
            if (!cache[shadow].alive()) return;
            continue;
        }
        cache.set_leaf(slot, leaf_for(Pte<Guest>{now}, rules, key.role, false));
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
        const bool mark = level == 1 && magic::is_mark(raw);
        const auto complain = [&](std::string_view what) {
            violations.push_back(fmt::format("{} of frame {}, entry {} ({:#x}): {}", to_string(key.type),
                                             key.frame, i, raw, what));
        };
        if (key.type.splinter) {
            const Gfn page = key.frame + i * (frames_under(Guest, level) / cache[shadow].entries());
            if (mark) {
                if (raw != e_->mmio_mark(page, kSplinterFlags) || e_->p2m_->mfn_of(page))
                    complain("marks another frame than the superpage's, or RAM");
                continue;
            }
            if (level == 1 && ((raw ^ splinter_flags(key.role)) & (pte::kUser | pte::kNoExecute)) != 0) {
                complain("has not the rights of its path");
            }
            if (level == 1 && e_->p2m_->mfn_of(page) != Mfn{(raw & pte::kFrame) >> kPageShift}) {
                complain("maps another frame than the superpage");
            }
            if (level == 1 && (raw & pte::kWritable) != 0 && e_->traps_writes_to(page)) {
                complain("maps a guest table writable");
            }
            continue;
        }
        using Word = detail::EntryWord<Guest>;
        const unsigned offset = i * Guest.entry_bytes;
        const Pte<Guest> entry{key.frame == kIdentityTable
                                   ? identity.load<Word>(key.frame, offset)
                                   : e_->guest_memory_.template load<Word>(key.frame, offset)};
        if (mark) {
            if (raw != leaf_for(entry, rules, key.role, false))
                complain("is not the mark of the guest's entry");
            continue;
        }
        std::uint64_t allowed = propagated_flags(entry, level, rules);
        const auto below_denials = static_cast<std::uint8_t>(
            e_->keyed_by_access() ? (key.role & kDenials) | denials_of(allowed) : 0);
        if (allowed != 0 && e_->keyed_by_access())
            allowed = level > 1 ? kSplinterFlags | pte::kDirty : narrowed(allowed, key.role);
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
            if ((raw & pte::kWritable) != 0 && e_->traps_writes_to(frame))
                complain("maps a guest table writable");
            continue;
        }
        const auto below_role =
            static_cast<std::uint8_t>((key.role & ~unsigned{kDenials}) | (leaf ? 0u : below_denials));
        const ShadowKey below =
            leaf ? splinter_key(frame, level - 1, splinter_role(entry.key(), below_denials, key.role))
                 : table_key(frame, level - 1, below_role);
        // By another path the rights may have grown: an entry that has fewer is used once more.
        ShadowKey held = cache[cache.child(slot)].key;
        if ((held.role & below.role & kDenials) == (below.role & kDenials) && e_->keyed_by_access())
            held.role =
                static_cast<std::uint8_t>((held.role & ~unsigned{kDenials}) | (below.role & kDenials));
        if (!(held == below)) complain("references the shadow of something else");
    }
}

template class ShadowMmu<kTwoLevel>;
template class ShadowMmu<kPae>;
template class ShadowMmu<kFourLevel>;
template class ShadowMmu<kFiveLevel>;

template FaultAnswer ShadowMmu<kTwoLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access,
                                                 std::uint32_t);
template FaultAnswer ShadowMmu<kTwoLevel>::fault(IdentityTables&, unsigned, const GuestContext&, Access,
                                                 std::uint32_t);
template FaultAnswer ShadowMmu<kPae>::fault(GuestMemory&, unsigned, const GuestContext&, Access,
                                            std::uint32_t);
template FaultAnswer ShadowMmu<kFourLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access,
                                                  std::uint32_t);
template FaultAnswer ShadowMmu<kFiveLevel>::fault(GuestMemory&, unsigned, const GuestContext&, Access,
                                                  std::uint32_t);

}  // namespace mmusim
