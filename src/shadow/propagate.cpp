// SPDX-License-Identifier: Apache-2.0
//
// Entries follow the guest's: what a guest entry becomes, what is made right when it was written or flushed,
// and the audit of all.
#include "shadow_mmu.hpp"

#include <fmt/format.h>

namespace mmusim {

namespace {

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
std::uint64_t ShadowMmu<Guest>::leaf_for(Pte<Guest> entry, const EntryRules& rules, std::uint8_t role,
                                         bool write) const
{
    if (!entry.present()) return e_->marks_absent_ ? magic::kNotPresent : 0;
    if (rules.reserved_bit_set(entry.raw(), 1)) return 0;
    const Gfn frame = frame_under(entry, 1, true);
    const P2mEntry behind = e_->p2m_->entry(frame);
    if (!behind.has_frame()) return behind.type == P2mType::mmio_dm ? e_->mmio_mark(frame, entry.raw()) : 0;
    std::uint64_t flags = propagated_flags(entry, 1, rules);
    if (flags == 0 || e_->withheld(frame, role)) return 0;
    if (is_read_only(behind.type)) flags &= ~pte::kWritable;
    flags = e_->permitted(frame, narrowed(flags, role));
    if (flags == 0) return 0;
    const bool table = e_->declared_.protects_tables && e_->cache_.is_table(frame);
    if (table && !(write && e_->out_of_sync_.may_write(frame))) flags &= ~pte::kWritable;
    if (e_->unlogged(frame)) flags &= ~pte::kWritable;
    return behind.mfn.address().value() | flags;
}

template <PagingMode Guest>
std::uint64_t ShadowMmu<Guest>::piece_for(Gfn frame, std::uint8_t role, bool writes_table) const
{
    const P2mEntry behind = e_->p2m_->entry(frame);
    if (!behind.has_frame())
        return behind.type == P2mType::mmio_dm ? e_->mmio_mark(frame, kSplinterFlags) : 0;
    if (e_->withheld(frame, role)) return 0;
    std::uint64_t flags = e_->permitted(frame, splinter_flags(role));
    if (flags == 0) return 0;
    if (is_read_only(behind.type)) flags &= ~pte::kWritable;
    const bool table = e_->declared_.protects_tables && e_->cache_.is_table(frame);
    if (table && !writes_table) flags &= ~pte::kWritable;
    if (e_->unlogged(frame)) flags &= ~pte::kWritable;
    return behind.mfn.address().value() | flags;
}

template <PagingMode Guest>
void ShadowMmu<Guest>::resync_page(unsigned vcpu, LinearAddress address)
{
    resync_page_under(root_slot(vcpu, address), address);
    for (const ShadowId root : e_->vcpus_[vcpu].previous_roots) resync_page_under(root, address);
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
    // Of a table that no walk may read nothing stands below.
    const bool readable = key.frame == kIdentityTable || e_->permitted(key.frame, pte::kPresent) != 0;
    for (unsigned i = first / Guest.entry_bytes; i <= last / Guest.entry_bytes; ++i) {
        if (!cache[shadow].alive()) return fine;
        if (e_->declared_.written_entry == WrittenEntry::drop || !readable) {
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
            } else if (e_->p2m_->entry(frame).type != P2mType::populate_on_demand) {
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
            const Gfn page = key.frame + i * (frames_under(level) / cache[shadow].entries());
            if (mark) {
                if (raw != e_->mmio_mark(page, kSplinterFlags) || e_->p2m_->mfn_of(page))
                    complain("marks another frame than the superpage's, or RAM");
                continue;
            }
            const std::uint64_t of_path = e_->permitted(page, splinter_flags(key.role));
            if (level == 1 && ((raw ^ of_path) & (pte::kUser | pte::kNoExecute)) != 0) {
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
        const bool leaf = rules.is_leaf(entry.raw(), level);
        const Gfn frame = frame_under(entry, level, leaf);
        // (Of one that may not be mapped at all another check tells.)
        if (const std::uint64_t rest = e_->permitted(frame, allowed); level == 1 && rest != 0) allowed = rest;
        constexpr std::uint64_t kSame = pte::kUser | pte::kNoExecute;
        if (((raw ^ allowed) & kSame) != 0) complain("U/S or XD differs from the guest's");
        if ((raw & ~allowed & pte::kWritable) != 0)
            complain("writable, though the guest's is not, or not dirty");
        if (level == 1 && ((raw ^ allowed) & pte::kKey) != 0) complain("protection key differs");
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

}  // namespace mmusim
