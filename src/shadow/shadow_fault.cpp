// SPDX-License-Identifier: Apache-2.0
//
// A page fault of the hardware, from the walk of the guest's tables to the entry that is made, the write that
// is emulated or the fault that the guest gets.
#include "shadow_mmu.hpp"

#include <algorithm>
#include <cassert>

#include <fmt/format.h>

namespace mmusim {

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
    if (walked->assisted && e_->log_dirty_.on) log_assists(access, guest, path);
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
void ShadowMmu<Guest>::log_assists(const Access& access, const GuestContext& guest,
                                   const WalkPath<space::GuestPhysical>& path)
{
    // The walk has read the entries before it set bits in them.
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        const Pte<Guest> entry{path.entries[i]};
        const bool leaf = guest.rules.entries.is_leaf(entry.raw(), level);
        const bool made_dirty = leaf && access.kind == AccessKind::write && !entry.dirty();
        if (!entry.accessed() || made_dirty) e_->mark_dirty(path.tables[i]);
    }
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
void ShadowMmu<Guest>::end(ShadowEventKind kind, const WalkPath<space::GuestPhysical>& path,
                           std::optional<Gfn> frame)
{
    end(kind, path, frame, [](ShadowEvent&) {});
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
    e_->log_write(Gfn::of(address));
    FaultAnswer answer = emulated_at(vcpu, address);
    answer.goes_on = Guest == kPae && e_->declared_.switches.fast_emulation;
    return answer;
}

template <PagingMode Guest>
template <class Tables>
std::optional<ShadowEngine::Violation> ShadowMmu<Guest>::violation_of(Tables& tables,
                                                                      const GuestContext& guest,
                                                                      const Access& access) const
{
    const AccessTracker& rights = e_->monitor_->rights();
    const auto has_frame = [&](Gfn frame) { return frame != kIdentityTable && e_->p2m_->mfn_of(frame); };
    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk<Guest>(tables, guest.root, guest.rules, access, AdBits::leave, path);
    // In the order in which hardware that enforces it would meet them: a table that may not be read cannot
    // tell of a fault.
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        if (has_frame(path.tables[i]) && !rights_of(rights.of(path.tables[i])).read)
            return ShadowEngine::Violation{path.tables[i], path.offsets[i], AccessKind::read, true};
    }
    if (!walked) return std::nullopt;
    for (int level = Guest.root_level(); level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        const bool dirties = level == path.lowest && access.kind == AccessKind::write && !walked->dirty;
        const bool writes = dirties || (path.entries[i] & pte::kAccessed) == 0;
        if (writes && has_frame(path.tables[i]) && !permits_walk_writes(rights.of(path.tables[i])))
            return ShadowEngine::Violation{path.tables[i], path.offsets[i], AccessKind::write, true};
    }
    const Gfn page = Gfn::of(walked->address);
    const P2mEntry behind = e_->p2m_->entry(page);
    if (!behind.has_frame() && behind.type != P2mType::populate_on_demand) return std::nullopt;
    if (rights_of(rights.of(page)).permits(access.kind)) return std::nullopt;
    return ShadowEngine::Violation{page, walked->address.offset_in_page(), access.kind, false};
}

template <PagingMode Guest>
template <class Tables>
std::optional<FaultAnswer> ShadowMmu<Guest>::check_access(Tables& tables, unsigned vcpu,
                                                          const GuestContext& guest, const Access& access)
{
    using Kind = AccessMonitor::Answer::Kind;
    for (;;) {
        if (!e_->monitor_->restricts()) return std::nullopt;
        const auto violation = violation_of(tables, guest, access);
        if (!violation) return std::nullopt;
        if (!violation->in_guest_tables && e_->refusal(vcpu, guest, access, violation->frame))
            return std::nullopt;  // the guest sees a fault instead
        const AccessMonitor::Answer answer = e_->answer_violation(vcpu, access.address, *violation);
        if (answer.kind == Kind::again) continue;
        WalkPath<space::GuestPhysical> path;
        if (answer.kind == Kind::stop) {
            (void)walk<Guest>(tables, guest.root, guest.rules, access, AdBits::leave, path);
            count_walk(path);
            return FaultAnswer{FaultAnswer::Kind::stopped, {}, violation->frame.address()};
        }
        const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
        count_walk(path);
        e_->vcpus_[vcpu].zero_written.reset();
        if (!walked) return FaultAnswer{FaultAnswer::Kind::guest, walked.error(), {}};
        FaultAnswer granted = emulated_at(vcpu, walked->address);
        if (answer.action == EventAction::single_step) --e_->work_.emulated;
        granted.granted = answer.action;
        return granted;
    }
}

template <PagingMode Guest>
FaultAnswer ShadowMmu<Guest>::emulated_access(GuestMemory& tables, unsigned vcpu, const GuestContext& guest,
                                              const Access& access, bool checked)
{
    if (checked) {
        if (const auto answer = check_access(tables, vcpu, guest, access)) return *answer;
    }
    WalkPath<space::GuestPhysical> path;
    const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
    if (!walked) {
        count_walk(path);
        return {FaultAnswer::Kind::guest, walked.error(), {}};
    }
    count_walk_of_emulator(vcpu, guest, access, path, Gfn::of(walked->address));
    if (const auto nothing = e_->nothing_behind(guest, access, Gfn::of(walked->address)))
        return {FaultAnswer::Kind::guest, *nothing, {}};
    if (access.kind == AccessKind::write) e_->log_write(Gfn::of(walked->address));
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
    if (const auto answer = check_access(tables, vcpu, guest, access)) return answer;
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
unsigned ShadowMmu<Guest>::pages_of_missing_roots(unsigned vcpu) const
{
    if (kFormat == TableFormat::bits64) return 1;
    if (Guest == kTwoLevel) return 4;
    const auto& ids = e_->vcpus_[vcpu].roots.ids;
    return static_cast<unsigned>(std::count(ids.begin(), ids.end(), kNoShadow));
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
        if (const auto answer = check_access(tables, vcpu, guest, access)) {
            if (answer->kind == FaultAnswer::Kind::guest) ++counters.fault_bail_real_fault;
            return *answer;
        }
        path = {};
        const GuestWalk walked = walk_guest(tables, vcpu, guest, access, path);
        if (walked && e_->is_on_demand(Gfn::of(walked->address))) {
            --counters.fault;  // of which this is not yet the end
            return {FaultAnswer::Kind::populate, {}, walked->address};
        }
        count_walk(path);
        if (!walked) {
            ++counters.fault_bail_real_fault;
            mine.zero_written.reset();
            end(ShadowEventKind::not_shadow, path, std::nullopt,
                [&](ShadowEvent& event) { event.guest_error_code = walked.error().error_code; });
            return {FaultAnswer::Kind::guest, walked.error(), {}};
        }
        if (e_->p2m_->changed()) {
            if (const auto answer = answer_without_frame(vcpu, access, guest, *walked, path)) return *answer;
        }
        const std::uint32_t proved = guest.rules.control.access_bits(access) | pf::kPresent;
        mine.virtual_tlb.insert(access.address, Gfn::of(walked->address), proved);
        if (mine.unflushed)
            mine.unflushed->virtual_tlb.insert(access.address, Gfn::of(walked->address), proved);
        // Of whatever is missing: all but the top level, a guest's 1G page in pieces of pieces. After a blow
        // the roots too.
        unsigned missing = Guest == kTwoLevel ? 2 : static_cast<unsigned>(Guest.root_level() - 1);
        const bool no_root = root_slot(vcpu, access.address) == kNoShadow;
        if (no_root) missing += pages_of_missing_roots(vcpu);
        // Of the first write to a region the set of dirty frames may take a page for each level.
        if (e_->log_dirty_.on) missing += DirtySet::kLevels;
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
std::optional<FaultAnswer> ShadowMmu<Guest>::answer_without_frame(
    unsigned vcpu, const Access& access, const GuestContext& guest,
    const Translation<space::GuestPhysical>& walked, const WalkPath<space::GuestPhysical>& path)
{
    const auto nothing = e_->nothing_behind(guest, access, Gfn::of(walked.address));
    if (!nothing) return std::nullopt;
    ++e_->counters_.fault_bail_bad_gfn;
    e_->vcpus_[vcpu].zero_written.reset();
    e_->answer_flush(vcpu, GuestFlush::page_fault, access.address);
    end(ShadowEventKind::not_shadow, path, std::nullopt,
        [&](ShadowEvent& event) { event.guest_error_code = nothing->error_code; });
    return FaultAnswer{FaultAnswer::Kind::guest, *nothing, {}};
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

    const P2mEntry behind = e_->p2m_->entry(page);
    const bool ram = behind.has_frame();
    const bool table = ram && e_->declared_.protects_tables && e_->cache_.is_table(page);
    // What may be written or executed but not read has no entry: each access is done for the guest.
    const bool by_absence = ram && e_->monitor_->restricts() && !e_->monitor_->rights_to(page).read;
    if (table && write && !by_absence) {
        const TableWrite asked{vcpu, page, access.user_mode, e_->may_unsync(page)};
        if (e_->policy_->on_table_write(asked) == TableWriteAnswer::unsync && asked.may_unsync)
            e_->unsync(vcpu, page);
    }

    const ShadowSlot slot = slot_of(at, 1, access.address);
    OutOfSyncTables::Table* const target = table && write ? e_->out_of_sync_.find(page) : nullptr;
    if (write) e_->log_write(page);
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
    if (by_absence) {
        count_walk_of_emulator(vcpu, guest, access, path, page);
        end_emulated(ShadowEventKind::emulate, access, path, walked.address, "absent");
        return write ? emulated_write_at(vcpu, walked.address) : emulated_at(vcpu, walked.address);
    }
    if (write && is_read_only(behind.type)) {
        count_walk_of_emulator(vcpu, guest, access, path, page);
        end_emulated(ShadowEventKind::emulate, access, path, walked.address, "read-only");
        return emulated_write_at(vcpu, walked.address);
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
    e_->count_logged_fault();
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

template std::optional<FaultAnswer> ShadowMmu<kTwoLevel>::check_access(IdentityTables&, unsigned,
                                                                       const GuestContext&, const Access&);
template std::optional<ShadowEngine::Violation> ShadowMmu<kTwoLevel>::violation_of(IdentityTables&,
                                                                                   const GuestContext&,
                                                                                   const Access&) const;
template std::optional<ShadowEngine::Violation> ShadowMmu<kTwoLevel>::violation_of(GuestMemory&,
                                                                                   const GuestContext&,
                                                                                   const Access&) const;
template std::optional<ShadowEngine::Violation> ShadowMmu<kPae>::violation_of(GuestMemory&,
                                                                              const GuestContext&,
                                                                              const Access&) const;
template std::optional<ShadowEngine::Violation> ShadowMmu<kFourLevel>::violation_of(GuestMemory&,
                                                                                    const GuestContext&,
                                                                                    const Access&) const;
template std::optional<ShadowEngine::Violation> ShadowMmu<kFiveLevel>::violation_of(GuestMemory&,
                                                                                    const GuestContext&,
                                                                                    const Access&) const;

}  // namespace mmusim
