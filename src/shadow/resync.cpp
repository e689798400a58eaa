// SPDX-License-Identifier: Apache-2.0
//
// Write access to guest tables: how it is found and taken away (reference/xen.md B10), let through for tables
// that go out of sync, and how these are made right again, by whom (B11;
// reference/other_policies.md 1.7, 2.1, 3.3).
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>
#include <array>

#include <mmusim/shadow/write_map_guess.hpp>

#include "in_mode.hpp"

namespace mmusim {

bool ShadowEngine::remove_write_access(unsigned vcpu, Gfn table, int level, LinearAddress address)
{
    if (cache_.is_table(table) && !out_of_sync_.may_write(table)) return false;
    const auto mfn = p2m_->mfn_of(table);
    if (!mfn || cache_.writable_mappings(*mfn).empty()) return false;
    ++counters_.writeable;
    events_.flag(PathFlag::wrmap);
    const auto left = [&] { return !cache_.writable_mappings(*mfn).empty(); };
    // Those that are in a shadow, taken away.
    const auto shoot_in = [&](ShadowId shadow) {
        bool found = false;
        const auto slots = cache_.writable_mappings(*mfn);
        const std::vector<ShadowSlot> copy{slots.begin(), slots.end()};
        for (const ShadowSlot slot : copy) {
            if (slot.shadow != shadow) continue;
            cache_.remove_write_access(slot);
            found = true;
        }
        return found;
    };
    if (declared_.write_search == WriteSearch::reverse_map) {
        const auto slots = cache_.writable_mappings(*mfn);
        const std::vector<ShadowSlot> copy{slots.begin(), slots.end()};
        work_.entries_searched += copy.size();
        for (const ShadowSlot slot : copy) cache_.remove_write_access(slot);
        return true;
    }
    Vcpu& mine = vcpus_[vcpu];
    if (declared_.switches.writable_heuristic) {
        for (const WriteMapGuess& guess : write_map_guesses(mine.roots.paging, level, address, table)) {
            ++work_.guesses;
            std::optional<ShadowSlot> slot;
            in_mode(*this, mine.roots.paging, [&](auto mmu) { slot = mmu.leaf_slot(vcpu, guess.address); });
            if (!slot) continue;
            cache_.touch(*slot);
            const std::uint64_t entry = cache_.entry(*slot);
            constexpr std::uint64_t kBoth = pte::kPresent | pte::kWritable;
            if ((entry & kBoth) != kBoth || magic::is_mark(entry) ||
                Mfn{(entry & pte::kFrame) >> kPageShift} != *mfn)
                continue;
            cache_.remove_write_access(*slot);
            const std::array<std::uint64_t*, 7> counted{nullptr,
                                                        &counters_.writeable_h_1,
                                                        &counters_.writeable_h_2,
                                                        &counters_.writeable_h_3,
                                                        &counters_.writeable_h_4,
                                                        &counters_.writeable_h_5,
                                                        &counters_.writeable_h_6};
            ++*counted[guess.heuristic];
            events_.flag(PathFlag::wrmap_guess_found);
            if (!left()) return true;
        }
        if (mine.last_writable != kNoShadow) {
            work_.entries_searched += cache_[mine.last_writable].entries();
            cache_.touch_all(mine.last_writable);
            if (shoot_in(mine.last_writable)) {
                ++counters_.writeable_h_5;
                events_.flag(PathFlag::wrmap_guess_found);
            }
            if (!left()) return true;
        }
    }
    ++(level > 0 ? counters_.writeable_bf : counters_.writeable_bf_1);
    events_.flag(PathFlag::wrmap_brute_force);
    events_.tell(ShadowEventKind::wrmap_bf, [&](ShadowEvent& event) {
        event.frame = table;
        event.level = level;
    });
    for (const ShadowId shadow : cache_.leaf_shadows()) {
        work_.entries_searched += cache_[shadow].entries();
        cache_.touch_all(shadow);
        if (!shoot_in(shadow)) continue;
        mine.last_writable = shadow;
        if (!left()) break;
    }
    return true;
}

bool ShadowEngine::out_of_sync_active() const
{
    return std::all_of(vcpus_.begin(), vcpus_.end(),
                       [](const Vcpu& vcpu) { return vcpu.roots.paging != Paging::off; });
}

bool ShadowEngine::may_unsync(Gfn frame) const
{
    if (declared_.stale_levels == 0 || out_of_sync_.find(frame) != nullptr) return false;
    const auto ids = cache_.of_frame(frame);
    if (listed()) {
        return std::all_of(ids.begin(), ids.end(), [&](ShadowId id) {
            return (declared_.stale_levels >> cache_[id].key.type.level & 1) != 0;
        });
    }
    if (declared_.sizes.out_of_sync == 0 || !out_of_sync_active()) return false;
    return ids.size() == 1 && cache_[ids[0]].key.type.level == 1;
}

void ShadowEngine::unsync(unsigned vcpu, Gfn frame)
{
    if (const auto loser = out_of_sync_.evicted_by(vcpu, frame)) {
        resync(vcpu, *loser);
        ++counters_.unsync_evict;
        tell_of_table(ShadowEventKind::unsync_evict, *loser);
    }
    OutOfSyncTables::Table& table = out_of_sync_.add(vcpu, frame);
    if (declared_.repair == Repair::compare) {
        guest_memory_.read(frame.address(), table.snapshot);
        touch(frame, 0, static_cast<unsigned>(kPageBytes));
        ++work_.snapshots;
    }
    ++counters_.unsync;
    events_.flag(PathFlag::unsync);
    tell_of_table(ShadowEventKind::unsync, frame);
}

bool ShadowEngine::revoke(unsigned vcpu, Gfn table, ShadowSlot fixup)
{
    vcpus_[vcpu].dying = dying(table);
    const auto slots = cache_.writable_mappings(p2m_->mfn_of(table).value());
    if (std::find(slots.begin(), slots.end(), fixup) == slots.end()) {
        ++counters_.writeable_h_8;
        return false;
    }
    cache_.remove_write_access(fixup);
    ++counters_.writeable_h_7;
    return true;
}

void ShadowEngine::add_fixup(OutOfSyncTables::Table& table, ShadowSlot slot)
{
    auto& ring = table.fixups;
    if (ring.empty()) return;
    ++counters_.oos_fixup_add;
    events_.flag(PathFlag::oos_fixup_add);
    tell_of_entry(ShadowEventKind::oos_fixup_add, table.frame, slot);
    if (std::find(ring.begin(), ring.end(), slot) != ring.end()) return;
    ShadowSlot& place = ring[table.next_fixup];
    if (place.shadow != kNoShadow) {
        ++counters_.oos_fixup_evict;
        events_.flag(PathFlag::oos_fixup_evict);
        tell_of_entry(ShadowEventKind::oos_fixup_evict, table.frame, place);
        (void)revoke(current_, table.frame, place);
    }
    place = slot;
    table.next_fixup = (table.next_fixup + 1) % ring.size();
}

void ShadowEngine::resync_entries(OutOfSyncTables::Table& table)
{
    for (const ShadowId id : cache_.of_frame(table.frame)) {
        in_mode(*this, paging_of(cache_[id].key.type.format),
                [&](auto mmu) { mmu.resync_entries(id, table); });
    }
    if (declared_.repair == Repair::compare) guest_memory_.read(table.frame.address(), table.snapshot);
}

void ShadowEngine::protect_again(unsigned vcpu, OutOfSyncTables::Table& table)
{
    for (const ShadowSlot fixup : table.fixups) {
        if (fixup.shadow != kNoShadow) (void)revoke(vcpu, table.frame, fixup);
    }
    (void)remove_write_access(vcpu, table.frame, 0, {});
    cache_.flush_due();
    table.may_write = false;
}

void ShadowEngine::resync(unsigned vcpu, Gfn frame)
{
    OutOfSyncTables::Table* const table = out_of_sync_.find(frame);
    if (table == nullptr) return;
    if (any_level()) {
        resync_domain(vcpu);
        return;
    }
    protect_again(vcpu, *table);
    resync_entries(*table);
    out_of_sync_.remove(frame);
    ++counters_.resync;
    tell_of_table(ShadowEventKind::resync_full, frame);
}

void ShadowEngine::resync_own(unsigned vcpu)
{
    for (const Gfn frame : out_of_sync_.of(vcpu)) resync(vcpu, frame);
}

void ShadowEngine::resync_all(unsigned vcpu)
{
    if (!out_of_sync_.any()) return;
    if (any_level()) {
        resync_domain(vcpu);
        return;
    }
    if (listed()) {
        for (const Gfn frame : out_of_sync_.all()) resync(vcpu, frame);
        return;
    }
    resync_own(vcpu);
    for (unsigned other = 0; other < vcpus_.size(); ++other) {
        if (other == vcpu) continue;
        for (const Gfn frame : out_of_sync_.of(other)) resync(vcpu, frame);
    }
}

void ShadowEngine::resync_others_lightly(unsigned vcpu)
{
    if (!out_of_sync_.any()) return;
    for (unsigned other = 0; other < vcpus_.size(); ++other) {
        if (other == vcpu) continue;
        for (const Gfn frame : out_of_sync_.of(other)) {
            if (proven_elsewhere(vcpu, frame)) continue;
            resync_entries(*out_of_sync_.find(frame));
            tell_of_table(ShadowEventKind::resync_only, frame);
        }
    }
}

void ShadowEngine::resync_domain(unsigned vcpu)
{
    if (!out_of_sync_.any()) return;
    for (const Gfn frame : out_of_sync_.all()) protect_again(vcpu, *out_of_sync_.find(frame));
    // From here on none is: propagating an entry of one may not resync another. What is above is made right
    // when what is below is.
    std::vector<OutOfSyncTables::Table> tables = out_of_sync_.take_all();
    for (int level = 1; level <= kMaxLevels; ++level) {
        for (OutOfSyncTables::Table& table : tables) {
            for (const ShadowId id : cache_.of_frame(table.frame)) {
                if (!cache_[id].alive() || cache_[id].key.type.level != level) continue;
                in_mode(*this, paging_of(cache_[id].key.type.format),
                        [&](auto mmu) { mmu.resync_entries(id, table); });
            }
        }
    }
    counters_.resync += tables.size();
    for (const OutOfSyncTables::Table& table : tables)
        tell_of_table(ShadowEventKind::resync_full, table.frame);
}

void ShadowEngine::resync_reachable(unsigned vcpu)
{
    if (!out_of_sync_.any()) return;
    for (const Gfn frame : out_of_sync_.all()) {
        const auto& roots = vcpus_[vcpu].roots.ids;
        const bool reachable = std::any_of(roots.begin(), roots.end(), [&](ShadowId root) {
            return root != kNoShadow && is_below(frame, root);
        });
        if (reachable) resync(vcpu, frame);
    }
}

bool ShadowEngine::is_below(ShadowId at, ShadowId top) const
{
    if (at == top) return true;
    if (cache_[at].key.type.level >= cache_[top].key.type.level) return false;
    const auto& parents = cache_[at].parents;
    return std::any_of(parents.begin(), parents.end(),
                       [&](const ShadowSlot& parent) { return is_below(parent.shadow, top); });
}

bool ShadowEngine::is_below(Gfn table, ShadowId top) const
{
    const auto ids = cache_.of_frame(table);
    return std::any_of(ids.begin(), ids.end(), [&](ShadowId id) { return is_below(id, top); });
}

bool ShadowEngine::out_of_sync_below(ShadowId top) const
{
    if (!out_of_sync_.any()) return false;
    const auto frames = out_of_sync_.all();
    return std::any_of(frames.begin(), frames.end(), [&](Gfn frame) { return is_below(frame, top); });
}

bool ShadowEngine::out_of_sync_above_level_1() const
{
    if (!any_level() || !out_of_sync_.any()) return false;
    const auto frames = out_of_sync_.all();
    return std::any_of(frames.begin(), frames.end(), [&](Gfn frame) {
        const auto ids = cache_.of_frame(frame);
        return !ids.empty() && cache_[ids.back()].key.type.level > 1;
    });
}

bool ShadowEngine::proven_elsewhere(unsigned vcpu, Gfn frame) const
{
    const auto ids = cache_.of_frame(frame);
    if (ids.size() != 1) return false;
    ShadowId at = ids[0];
    while (!cache_[at].key.type.top()) {
        if (cache_[at].references != 1 || cache_[at].up.shadow == kNoShadow) return false;
        at = cache_[at].up.shadow;
    }
    const auto& roots = vcpus_[vcpu].roots.ids;
    return std::find(roots.begin(), roots.end(), at) == roots.end();
}

}  // namespace mmusim
