// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_cache.hpp>

#include <algorithm>
#include <cassert>

#include <fmt/format.h>

#include <mmusim/words/pte.hpp>

namespace mmusim {

namespace {

constexpr unsigned kEntries = 512;  // of a shadow page: shadow entries always have 8 bytes

unsigned offset_of(ShadowSlot slot)
{
    return slot.index % kEntries * 8u;
}

Mfn frame_in(std::uint64_t entry)
{
    return Mfn{(entry & pte::kFrame) >> kPageShift};
}

/// Whether a cached copy of `old` permits or answers what `now` does not. (A page that becomes the user's may
/// be closed to the supervisor, by SMAP and SMEP.)
bool takes_away(std::uint64_t old, std::uint64_t now)
{
    if ((old & pte::kPresent) == 0) return false;
    constexpr std::uint64_t kSame = pte::kPresent | pte::kFrame | pte::kKey | pte::kPageSize | pte::kUser;
    return ((old ^ now) & kSame) != 0 || (old & ~now & pte::kWritable) != 0 ||
           (now & ~old & pte::kNoExecute) != 0;
}

bool maps_writable(std::uint64_t entry)
{
    constexpr std::uint64_t kBoth = pte::kPresent | pte::kWritable;
    return (entry & kBoth) == kBoth;
}

}  // namespace

ShadowCache::ShadowCache(SparseMemory& machine, Mfn pool_first, bool track_writable, ShadowCounters& counters)
    : machine_{&machine}, counters_{&counters}, track_writable_{track_writable}, pool_first_{pool_first}
{
}

ShadowId ShadowCache::find(const ShadowKey& key)
{
    ++counters_->hash_lookups;
    if (const auto head = by_frame_.find(key.frame.number()); head != by_frame_.end()) {
        for (ShadowId id = head->second; id != kNoShadow; id = shadows_[id].next_of_frame) {
            if (shadows_[id].key == key) return id;
        }
    }
    ++counters_->hash_lookup_miss;
    return kNoShadow;
}

ShadowId ShadowCache::create(const ShadowKey& key)
{
    ShadowId id;
    if (free_ids_.empty()) {
        id = static_cast<ShadowId>(shadows_.size());
        shadows_.emplace_back();
    } else {
        id = free_ids_.back();
        free_ids_.pop_back();
    }
    Shadow& shadow = shadows_[id];
    shadow.key = key;
    for (unsigned i = 0; i < key.type.frames(); ++i) {
        if (free_pages_.empty()) {
            free_pages_.push_back(pool_first_ + page_owner_.size());
            page_owner_.push_back(kNoShadow);
        }
        shadow.frames[i] = free_pages_.back();
        free_pages_.pop_back();
        page_owner_[shadow.frames[i].number() - pool_first_.number()] = id;
    }
    const auto [head, first] = by_frame_.try_emplace(key.frame.number(), kNoShadow);
    shadow.next_of_frame = head->second;
    head->second = id;
    ++counters_->alloc;
    ++counters_->hash_inserts;
    counters_->alloc_count += key.type.frames();
    return id;
}

void ShadowCache::release(ShadowId id)
{
    assert(shadows_[id].references > 0);
    if (--shadows_[id].references == 0) destroy(id);
}

void ShadowCache::pin(ShadowId id)
{
    if (shadows_[id].pinned) return;
    shadows_[id].pinned = true;
    retain(id);
}

void ShadowCache::unpin(ShadowId id)
{
    if (!shadows_[id].pinned) return;
    shadows_[id].pinned = false;
    release(id);
}

void ShadowCache::destroy(ShadowId id)
{
    assert(shadows_[id].parents.empty());
    clear_all(id);
    Shadow& shadow = shadows_[id];

    const auto head = by_frame_.find(shadow.key.frame.number());
    assert(head != by_frame_.end());
    ShadowId* link = &head->second;
    while (*link != id) link = &shadows_[*link].next_of_frame;
    *link = shadow.next_of_frame;
    if (head->second == kNoShadow) by_frame_.erase(head);

    for (unsigned i = 0; i < shadow.key.type.frames(); ++i) {
        machine_->discard(shadow.frames[i].number());
        page_owner_[shadow.frames[i].number() - pool_first_.number()] = kNoShadow;
        free_pages_.push_back(shadow.frames[i]);
    }
    ++counters_->free;
    ++counters_->hash_deletes;
    counters_->alloc_count -= shadow.key.type.frames();
    shadow.next_of_frame = kNoShadow;
    free_ids_.push_back(id);
}

std::vector<ShadowId> ShadowCache::of_frame(Gfn frame) const
{
    std::vector<ShadowId> ids;
    const auto head = by_frame_.find(frame.number());
    if (head == by_frame_.end()) return ids;
    for (ShadowId id = head->second; id != kNoShadow; id = shadows_[id].next_of_frame) {
        if (!shadows_[id].key.type.splinter) ids.push_back(id);
    }
    std::reverse(ids.begin(), ids.end());
    return ids;
}

template <class Question>
bool ShadowCache::any_of_frame(Gfn frame, Question question) const
{
    const auto head = by_frame_.find(frame.number());
    if (head == by_frame_.end()) return false;
    for (ShadowId id = head->second; id != kNoShadow; id = shadows_[id].next_of_frame) {
        if (!shadows_[id].key.type.splinter && question(shadows_[id].key.type)) return true;
    }
    return false;
}

bool ShadowCache::is_table(Gfn frame) const
{
    return any_of_frame(frame, [](ShadowType) { return true; });
}

bool ShadowCache::is_table_of_other(TableFormat format, Gfn frame) const
{
    return any_of_frame(frame, [&](ShadowType type) { return type.format != format; });
}

std::uint64_t ShadowCache::entry(ShadowSlot slot) const
{
    return machine_->load<std::uint64_t>(frame_of(slot).number(), offset_of(slot));
}

void ShadowCache::store(ShadowSlot slot, std::uint64_t entry)
{
    flush_due_ |= takes_away(this->entry(slot), entry);
    ++entries_written_;
    machine_->store(frame_of(slot).number(), offset_of(slot), entry);
}

ShadowId ShadowCache::shadow_at(Mfn frame) const
{
    if (frame < pool_first_ || frame.number() - pool_first_.number() >= page_owner_.size()) return kNoShadow;
    return page_owner_[frame.number() - pool_first_.number()];
}

ShadowId ShadowCache::child(ShadowSlot slot) const
{
    assert(shadows_[slot.shadow].key.type.level > 1);
    const std::uint64_t present = entry(slot);
    return (present & pte::kPresent) != 0 ? shadow_at(frame_in(present)) : kNoShadow;
}

void ShadowCache::link(ShadowSlot slot, ShadowId child_id, std::uint64_t flags)
{
    const ShadowId old = child(slot);
    if (old != child_id) {
        // The new reference first: the old child may be the only parent of what the new one needs.
        ++shadows_[child_id].references;
        shadows_[child_id].parents.push_back(slot);
    }
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    assert(slot.index % count == 0);
    for (unsigned i = 0; i < count; ++i) {
        const auto index = static_cast<std::uint16_t>(slot.index + i);
        store({slot.shadow, index}, shadows_[child_id].frames[i].address().value() | flags);
    }
    if (old != kNoShadow && old != child_id) drop_parent(old, slot);
}

void ShadowCache::drop_parent(ShadowId child_id, ShadowSlot slot)
{
    auto& parents = shadows_[child_id].parents;
    const auto found = std::find(parents.begin(), parents.end(), slot);
    assert(found != parents.end());
    parents.erase(found);
    release(child_id);
}

void ShadowCache::track(std::uint64_t entry, ShadowSlot slot)
{
    if (track_writable_ && maps_writable(entry)) writable_[frame_in(entry).number()].push_back(slot);
}

void ShadowCache::untrack(std::uint64_t entry, ShadowSlot slot)
{
    if (!track_writable_ || !maps_writable(entry)) return;
    const auto found = writable_.find(frame_in(entry).number());
    assert(found != writable_.end());
    auto& slots = found->second;
    slots.erase(std::find(slots.begin(), slots.end(), slot));
    if (slots.empty()) writable_.erase(found);
}

void ShadowCache::set_leaf(ShadowSlot slot, std::uint64_t now)
{
    assert(shadows_[slot.shadow].key.type.level == 1);
    const std::uint64_t old = entry(slot);
    if (old == now) return;
    untrack(old, slot);
    track(now, slot);
    store(slot, now);
}

void ShadowCache::clear(ShadowSlot slot)
{
    if (shadows_[slot.shadow].key.type.level == 1) {
        set_leaf(slot, 0);
        return;
    }
    const ShadowId old = child(slot);
    if (old == kNoShadow) return;
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    for (unsigned i = 0; i < count; ++i) store({slot.shadow, static_cast<std::uint16_t>(slot.index + i)}, 0);
    drop_parent(old, slot);
}

void ShadowCache::clear_all(ShadowId id)
{
    const ShadowType type = shadows_[id].key.type;
    const unsigned step = type.entries_per_guest_entry();
    for (unsigned page = 0; page < type.frames(); ++page) {
        if (machine_->find(shadows_[id].frames[page].number()) == nullptr) continue;  // never stored to
        for (unsigned i = 0; i < kEntries; i += step) {
            clear({id, static_cast<std::uint16_t>(page * kEntries + i)});
        }
    }
}

unsigned ShadowCache::remove_write_access(Mfn frame)
{
    assert(track_writable_);
    const auto found = writable_.find(frame.number());
    if (found == writable_.end()) return 0;
    for (const ShadowSlot slot : found->second) store(slot, entry(slot) & ~pte::kWritable);
    const auto removed = static_cast<unsigned>(found->second.size());
    writable_.erase(found);
    return removed;
}

std::vector<ShadowId> ShadowCache::all() const
{
    std::vector<ShadowId> ids;
    for (ShadowId id = 0; id < shadows_.size(); ++id) {
        if (shadows_[id].alive()) ids.push_back(id);
    }
    return ids;
}

void ShadowCache::audit(const std::function<std::uint32_t(ShadowId)>& roots,
                        std::vector<std::string>& violations) const
{
    std::vector<std::uint32_t> references(shadows_.size(), 0);
    std::uint64_t pages = 0;
    std::uint64_t writable_entries = 0;
    for (const ShadowId id : all()) {
        const Shadow& shadow = shadows_[id];
        const std::string name = fmt::format("{} of frame {}", to_string(shadow.key.type), shadow.key.frame);
        references[id] += roots(id) + (shadow.pinned ? 1u : 0u);
        pages += shadow.key.type.frames();
        const unsigned step = shadow.key.type.entries_per_guest_entry();
        for (unsigned i = 0; i < shadow.entries(); i += step) {
            const ShadowSlot slot{id, static_cast<std::uint16_t>(i)};
            const std::uint64_t raw = entry(slot);
            if ((raw & pte::kPresent) == 0) continue;
            if (shadow.key.type.level == 1) {
                if (!track_writable_ || !maps_writable(raw)) continue;
                ++writable_entries;
                const auto found = writable_.find(frame_in(raw).number());
                if (found == writable_.end() ||
                    std::find(found->second.begin(), found->second.end(), slot) == found->second.end()) {
                    violations.push_back(
                        fmt::format("{}[{}] is writable but not in the reverse map", name, i));
                }
                continue;
            }
            const ShadowId below = shadow_at(frame_in(raw));
            if (below == kNoShadow) {
                violations.push_back(fmt::format("{}[{}] references no shadow", name, i));
                continue;
            }
            ++references[below];
            const auto& parents = shadows_[below].parents;
            if (std::find(parents.begin(), parents.end(), slot) == parents.end()) {
                violations.push_back(fmt::format("{}[{}] is missing among its child's parents", name, i));
            }
            if (shadows_[below].key.type.level + 1 != shadow.key.type.level) {
                violations.push_back(fmt::format("{}[{}] references a shadow of level {}", name, i,
                                                 shadows_[below].key.type.level));
            }
            for (unsigned k = 0; k < step; ++k) {
                const std::uint64_t half = entry({id, static_cast<std::uint16_t>(i + k)});
                constexpr std::uint64_t kHardware = pte::kAccessed | pte::kDirty;
                if (frame_in(half) != shadows_[below].frames[k] ||
                    ((half ^ raw) & ~(pte::kFrame | kHardware)) != 0) {
                    violations.push_back(fmt::format("{}[{}]: the pair does not match", name, i));
                }
            }
        }
        bool indexed = false;
        const auto head = by_frame_.find(shadow.key.frame.number());
        if (head != by_frame_.end()) {
            for (ShadowId at = head->second; at != kNoShadow; at = shadows_[at].next_of_frame)
                indexed |= at == id;
        }
        if (!indexed) violations.push_back(fmt::format("{} is not in the index", name));
    }
    for (const ShadowId id : all()) {
        if (references[id] != shadows_[id].references) {
            violations.push_back(fmt::format("{} of frame {}: {} references counted, {} found",
                                             to_string(shadows_[id].key.type), shadows_[id].key.frame,
                                             shadows_[id].references, references[id]));
        }
    }
    std::uint64_t in_map = 0;
    for (const auto& [frame, slots] : writable_) in_map += slots.size();
    if (track_writable_ && in_map != writable_entries) {
        violations.push_back(
            fmt::format("the reverse map has {} entries, {} are writable", in_map, writable_entries));
    }
    if (pages + free_pages_.size() != page_owner_.size() || pages != counters_->alloc_count) {
        violations.push_back(fmt::format("pool: {} pages in use, {} free, {} in all, gauge {}", pages,
                                         free_pages_.size(), page_owner_.size(), counters_->alloc_count));
    }
}

}  // namespace mmusim
