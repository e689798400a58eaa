// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_cache.hpp>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstring>

#include <fmt/format.h>

#include <mmusim/shadow/magic_entry.hpp>
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

/// Whether an entry above level 1 that becomes `now` leaves something in the hardware that `now` does not
/// give.
bool takes_away(std::uint64_t old, std::uint64_t now)
{
    if ((old & pte::kPresent) == 0) return false;
    constexpr std::uint64_t kRights = pte::kPresent | pte::kWritable | pte::kUser;
    return ((old ^ now) & pte::kFrame) != 0 || (old & ~now & kRights) != 0 ||
           (now & ~old & pte::kNoExecute) != 0;
}

/// Whether a level-1 entry maps a page.
bool maps(std::uint64_t entry)
{
    return (entry & pte::kPresent) != 0 && !magic::is_mark(entry);
}

bool maps_writable(std::uint64_t entry)
{
    return maps(entry) && (entry & pte::kWritable) != 0;
}

}  // namespace

ShadowCache::ShadowCache(SparseMemory& machine, Mfn pool_first, std::uint64_t pool_pages, FlushFilter& filter,
                         ShadowCounters& counters, ShadowEvents& events)
    : machine_{&machine}
    , filter_{&filter}
    , counters_{&counters}
    , events_{&events}
    , pool_first_{pool_first}
    , pool_pages_{pool_pages}
{
    buckets_.fill(kNoShadow);
}

ShadowId ShadowCache::find(const ShadowKey& key)
{
    ++counters_->hash_lookups;
    if (!key.type.splinter) ++counters_->get_shadow_status;
    ShadowId& head = bucket_of(key);
    ShadowId before = kNoShadow;
    for (ShadowId id = head; id != kNoShadow; before = id, id = shadows_[id].next_in_bucket) {
        ++work_.hash_steps;
        if (!(shadows_[id].key == key)) continue;
        if (before == kNoShadow) {
            ++counters_->hash_lookup_head;
        } else {
            shadows_[before].next_in_bucket = shadows_[id].next_in_bucket;
            shadows_[id].next_in_bucket = head;
            head = id;
        }
        return id;
    }
    ++counters_->hash_lookup_miss;
    return kNoShadow;
}

ShadowId ShadowCache::peek(const ShadowKey& key) const
{
    ShadowId id = buckets_[shadow_bucket(key.frame.number(), key.type.code())];
    while (id != kNoShadow && !(shadows_[id].key == key)) id = shadows_[id].next_in_bucket;
    return id;
}

Mfn ShadowCache::take_page()
{
    if (page_owner_.size() < pool_pages_) {
        page_owner_.push_back(kNoShadow);
        return pool_first_ + (page_owner_.size() - 1);
    }
    assert(!free_pages_.empty() && "the caller has made room");
    const FreePage page = free_pages_.front();
    free_pages_.pop_front();
    if (filter_->needed(page.freed)) {
        if (!flush_due_) ++counters_->alloc_tlbflush;
        flush_due_ = true;
    }
    return page.frame;
}

Mfn ShadowCache::take_other_page()
{
    const Mfn page = take_page();
    ++counters_->alloc;
    ++counters_->alloc_count;
    peak_pages_ = std::max(peak_pages_, counters_->alloc_count);
    ++other_pages_;
    touch(page, 0, static_cast<unsigned>(kPageBytes));
    return page;
}

void ShadowCache::give_other_page(Mfn page)
{
    machine_->discard(page.number());
    free_pages_.push_back({page, filter_->now()});
    ++counters_->free;
    --counters_->alloc_count;
    --other_pages_;
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
    shadow.writes = 0;
    for (unsigned i = 0; i < key.type.frames(); ++i) {
        shadow.frames[i] = take_page();
        page_owner_[shadow.frames[i].number() - pool_first_.number()] = id;
    }
    // The guest may still write the table by translations that it has not flushed.
    if (!key.type.splinter && filter_->needed(write_access_went_)) flush_due_ = true;
    index(id);
    ++counters_->alloc;
    ++counters_->hash_inserts;
    counters_->alloc_count += key.type.frames();
    peak_pages_ = std::max(peak_pages_, counters_->alloc_count);
    touch_all(id);
    events_->flag(PathFlag::promote);
    events_->tell(ShadowEventKind::promote, [&](ShadowEvent& event) {
        event.frame = key.frame;
        event.type = key.type;
    });
    return id;
}

void ShadowCache::index(ShadowId id)
{
    Shadow& shadow = shadows_[id];
    ShadowId& bucket = bucket_of(shadow.key);
    shadow.next_in_bucket = bucket;
    bucket = id;
    const auto [head, first] = by_frame_.try_emplace(shadow.key.frame.number(), kNoShadow);
    shadow.next_of_frame = head->second;
    head->second = id;
}

void ShadowCache::unindex(ShadowId id)
{
    ShadowId* link = &bucket_of(shadows_[id].key);
    while (*link != id) link = &shadows_[*link].next_in_bucket;
    *link = shadows_[id].next_in_bucket;

    const auto head = by_frame_.find(shadows_[id].key.frame.number());
    assert(head != by_frame_.end());
    link = &head->second;
    while (*link != id) link = &shadows_[*link].next_of_frame;
    *link = shadows_[id].next_of_frame;
    if (head->second == kNoShadow) by_frame_.erase(head);
}

void ShadowCache::rekey(ShadowId id, const ShadowKey& key)
{
    assert(shadows_[id].key.type == key.type);
    if (shadows_[id].key == key) return;
    unindex(id);
    shadows_[id].key = key;
    index(id);
}

void ShadowCache::release(ShadowId id)
{
    assert(shadows_[id].references > 0);
    if (--shadows_[id].references == 0) destroy(id);
}

void ShadowCache::pin(ShadowId id)
{
    if (shadows_[id].pinned) {
        pinned_.erase(std::find(pinned_.begin(), pinned_.end(), id));
    } else {
        shadows_[id].pinned = true;
        retain(id);
    }
    pinned_.push_back(id);
}

void ShadowCache::unpin(ShadowId id)
{
    if (!shadows_[id].pinned) return;
    shadows_[id].pinned = false;
    pinned_.erase(std::find(pinned_.begin(), pinned_.end(), id));
    release(id);
}

void ShadowCache::destroy(ShadowId id)
{
    assert(shadows_[id].parents.empty());
    unindex(id);
    ++counters_->hash_deletes;
    if (on_destroy_) on_destroy_(id);

    // The hardware may go on using what it cached: whoever takes the pages next asks the flush filter.
    empty_all(id);
    Shadow& shadow = shadows_[id];
    for (unsigned i = 0; i < shadow.key.type.frames(); ++i) {
        machine_->discard(shadow.frames[i].number());
        page_owner_[shadow.frames[i].number() - pool_first_.number()] = kNoShadow;
        free_pages_.push_back({shadow.frames[i], filter_->now()});
    }
    ++counters_->free;
    counters_->alloc_count -= shadow.key.type.frames();
    events_->flag(PathFlag::demote);
    events_->tell(ShadowEventKind::demote, [&](ShadowEvent& event) {
        event.frame = shadow.key.frame;
        event.type = shadow.key.type;
    });
    shadow.next_of_frame = kNoShadow;
    shadow.next_in_bucket = kNoShadow;
    shadow.up = {};
    free_ids_.push_back(id);
}

boost::container::small_vector<ShadowId, 4> ShadowCache::of_frame(Gfn frame) const
{
    boost::container::small_vector<ShadowId, 4> ids;
    const auto head = by_frame_.find(frame.number());
    if (head == by_frame_.end()) return ids;
    for (ShadowId id = head->second; id != kNoShadow; id = shadows_[id].next_of_frame) {
        if (!shadows_[id].key.type.splinter) ids.push_back(id);
    }
    std::reverse(ids.begin(), ids.end());
    std::stable_sort(ids.begin(), ids.end(), [&](ShadowId a, ShadowId b) {
        return shadows_[a].key.type.level < shadows_[b].key.type.level;
    });
    return ids;
}

std::vector<ShadowId> ShadowCache::leaf_shadows() const
{
    std::vector<ShadowId> ids;
    for (const ShadowId head : buckets_) {
        for (ShadowId id = head; id != kNoShadow; id = shadows_[id].next_in_bucket) {
            if (shadows_[id].key.type.level == 1) ids.push_back(id);
        }
    }
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

bool ShadowCache::is_table_of(TableFormat format, Gfn frame) const
{
    return any_of_frame(frame, [&](ShadowType type) { return type.format == format; });
}

bool ShadowCache::first_of_bucket(ShadowId id) const
{
    const ShadowKey& key = shadows_[id].key;
    return buckets_[shadow_bucket(key.frame.number(), key.type.code())] == id;
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
    ++work_.entries_written;
    touch(slot);
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
    touch(slot);
    const std::uint64_t present = entry(slot);
    return (present & pte::kPresent) != 0 ? shadow_at(frame_in(present)) : kNoShadow;
}

void ShadowCache::touch_all(ShadowId id) const
{
    if (touches_ == nullptr) return;
    for (unsigned i = 0; i < shadows_[id].key.type.frames(); ++i)
        touch(shadows_[id].frames[i], 0, static_cast<unsigned>(kPageBytes));
}

ShadowId ShadowCache::held_child(ShadowSlot slot) const
{
    assert(shadows_[slot.shadow].key.type.level > 1);
    const std::uint64_t held = entry(slot);
    return held != 0 ? shadow_at(frame_in(held)) : kNoShadow;
}

void ShadowCache::put_to_sleep(ShadowSlot slot, std::uint64_t marks)
{
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    for (unsigned i = 0; i < count; ++i) {
        const ShadowSlot one{slot.shadow, static_cast<std::uint16_t>(slot.index + i)};
        const std::uint64_t old = entry(one);
        const std::uint64_t now = (old & ~pte::kPresent) | marks;
        if (old != now) store(one, now);
    }
}

void ShadowCache::take_marks(ShadowSlot slot, std::uint64_t marks)
{
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    for (unsigned i = 0; i < count; ++i) {
        const ShadowSlot one{slot.shadow, static_cast<std::uint16_t>(slot.index + i)};
        const std::uint64_t old = entry(one);
        if ((old & marks) != 0) store(one, old & ~marks);
    }
}

void ShadowCache::add_parent(ShadowId child_id, ShadowSlot slot)
{
    Shadow& shadow = shadows_[child_id];
    ++shadow.references;
    shadow.parents.push_back(slot);
    const ShadowType type = shadow.key.type;
    const bool l3 = type.format == TableFormat::bits64 && type.level == 3;
    if (shadow.up.shadow == kNoShadow && type.has_up_pointer() && !(l3 && l3_may_be_pinned_)) {
        shadow.up = slot;
    }
}

void ShadowCache::link(ShadowSlot slot, ShadowId child_id, std::uint64_t flags)
{
    const ShadowId old = held_child(slot);
    // The new reference first: the old child may be the only parent of what the new one needs.
    if (old != child_id) add_parent(child_id, slot);
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    assert(slot.index % count == 0);
    for (unsigned i = 0; i < count; ++i) {
        const ShadowSlot one{slot.shadow, static_cast<std::uint16_t>(slot.index + i)};
        const std::uint64_t now = shadows_[child_id].frames[i].address().value() | flags;
        flush_due_ |= takes_away(entry(one), now);
        store(one, now);
    }
    if (old != kNoShadow && old != child_id) drop_parent(old, slot);
}

void ShadowCache::drop_parent(ShadowId child_id, ShadowSlot slot)
{
    Shadow& shadow = shadows_[child_id];
    const auto found = std::find(shadow.parents.begin(), shadow.parents.end(), slot);
    assert(found != shadow.parents.end());
    shadow.parents.erase(found);
    if (shadow.up == slot) shadow.up = {};
    release(child_id);
}

void ShadowCache::track(std::uint64_t entry, ShadowSlot slot)
{
    if (maps_writable(entry)) writable_[frame_in(entry).number()].push_back(slot);
}

void ShadowCache::untrack(std::uint64_t entry, ShadowSlot slot)
{
    if (!maps_writable(entry)) return;
    const auto found = writable_.find(frame_in(entry).number());
    assert(found != writable_.end());
    write_access_went_ = filter_->now();
    auto& slots = found->second;
    slots.erase(std::find(slots.begin(), slots.end(), slot));
    if (slots.empty()) writable_.erase(found);
}

void ShadowCache::set_leaf(ShadowSlot slot, std::uint64_t now)
{
    assert(shadows_[slot.shadow].key.type.level == 1);
    const std::uint64_t old = entry(slot);
    if (old == now) return;
    if (maps(now)) events_->flag(PathFlag::l1_get_ref);
    mmio_marks_ |= magic::is_mmio(now);
    if (maps(old)) events_->flag(PathFlag::l1_put_ref);
    untrack(old, slot);
    track(now, slot);
    if (!watched_.empty()) note_watched(old, now, slot);
    store(slot, now);
}

void ShadowCache::watch(std::span<const Mfn> frames)
{
    watched_.clear();
    for (const Mfn frame : frames) watched_.try_emplace(frame.number());
    if (frames.empty()) return;
    for (const ShadowId id : leaf_shadows()) {
        for (unsigned i = 0; i < shadows_[id].entries(); ++i) {
            const ShadowSlot slot{id, static_cast<std::uint16_t>(i)};
            note_watched(0, entry(slot), slot);
        }
    }
}

void ShadowCache::note_watched(std::uint64_t old, std::uint64_t now, ShadowSlot slot)
{
    if (const auto of = watched_.find(frame_in(old).number());
        (old & pte::kPresent) != 0 && of != watched_.end()) {
        std::erase(of->second, slot);
    }
    if (const auto of = watched_.find(frame_in(now).number());
        (now & pte::kPresent) != 0 && of != watched_.end()) {
        of->second.push_back(slot);
    }
}

std::span<const ShadowSlot> ShadowCache::watched_mappings(Mfn frame) const
{
    const auto found = watched_.find(frame.number());
    if (found == watched_.end()) return {};
    return found->second;
}

void ShadowCache::empty(ShadowSlot slot)
{
    if (shadows_[slot.shadow].key.type.level == 1) {
        set_leaf(slot, 0);
        return;
    }
    const ShadowId old = held_child(slot);
    if (old == kNoShadow) return;
    const unsigned count = shadows_[slot.shadow].key.type.entries_per_guest_entry();
    for (unsigned i = 0; i < count; ++i) store({slot.shadow, static_cast<std::uint16_t>(slot.index + i)}, 0);
    drop_parent(old, slot);
}

void ShadowCache::empty_all(ShadowId id)
{
    const ShadowType type = shadows_[id].key.type;
    const unsigned step = type.entries_per_guest_entry();
    touch_all(id);
    for (unsigned page = 0; page < type.frames(); ++page) {
        const std::byte* const bytes = machine_->find(shadows_[id].frames[page].number());
        if (bytes == nullptr) continue;  // never stored to
        constexpr unsigned kLine = 8;
        for (unsigned line = 0; line < kEntries; line += kLine) {
            std::array<std::uint64_t, kLine> entries;
            std::memcpy(entries.data(), bytes + line * sizeof entries[0], sizeof entries);
            std::uint64_t any = 0;
            for (const std::uint64_t entry : entries) any |= entry;
            if (any == 0) continue;  // most are
            for (unsigned i = 0; i < kLine; i += step) {
                if (entries[i] != 0) empty({id, static_cast<std::uint16_t>(page * kEntries + line + i)});
            }
        }
    }
}

void ShadowCache::clear(ShadowSlot slot)
{
    if ((entry(slot) & pte::kPresent) != 0) flush_due_ = true;
    empty(slot);
}

void ShadowCache::clear_all(ShadowId id)
{
    flush_due_ = true;
    empty_all(id);
}

std::span<const ShadowSlot> ShadowCache::writable_mappings(Mfn frame) const
{
    const auto found = writable_.find(frame.number());
    if (found == writable_.end()) return {};
    return {found->second.data(), found->second.size()};
}

void ShadowCache::remove_write_access(ShadowSlot slot)
{
    flush_due_ = true;
    set_leaf(slot, entry(slot) & ~pte::kWritable);
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
    std::uint64_t pages = other_pages_;
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
            if (raw == 0) continue;
            if (shadow.key.type.level == 1) {
                if (!maps_writable(raw)) continue;
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
    if (in_map != writable_entries) {
        violations.push_back(
            fmt::format("the reverse map has {} entries, {} are writable", in_map, writable_entries));
    }
    if (pages + free_pages_.size() != page_owner_.size() || pages != counters_->alloc_count ||
        pages > pool_pages_) {
        violations.push_back(
            fmt::format("pool: {} pages in use, {} free again, {} ever used, {} in all, gauge {}", pages,
                        free_pages_.size(), page_owner_.size(), pool_pages_, counters_->alloc_count));
    }
}

}  // namespace mmusim
