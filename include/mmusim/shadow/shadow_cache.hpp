// SPDX-License-Identifier: Apache-2.0
//
// The shadows of one domain: their pages in machine memory, the index by guest frame, the links between
// them and the reverse map of writable mappings (reference/xen.md B2 to B6). This is mechanism: it knows
// nothing of guest modes, rights or policies, it keeps the books right whatever entries it is told to
// set. The entries themselves are bits in machine memory, for the hardware to walk.
//
//   guest frame --> [shadow l2_64] --entry--> [shadow l1_64] --entry--> machine frame of the guest
//        |                ^                        |                        |
//        `--> others      `------- parents --------'           reverse map: `--> writable entries
//
// A shadow lives as long as something refers to it: an entry of another, a vCPU's root slot, a pin. Its pages
// come from a pool of a fixed size; the page that has been free for longest is taken first.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <boost/container/small_vector.hpp>
#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/shadow/counters.hpp>
#include <mmusim/shadow/flush_filter.hpp>
#include <mmusim/shadow/magic_entry.hpp>
#include <mmusim/shadow/memory_touches.hpp>
#include <mmusim/shadow/shadow_events.hpp>
#include <mmusim/shadow/shadow_type.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>
#include <mmusim/words/pte.hpp>

namespace mmusim {

using ShadowId = std::uint32_t;
inline constexpr ShadowId kNoShadow = ~ShadowId{0};

struct ShadowKey {
    Gfn frame;  ///< of the guest table; splinter: first frame that it maps
    ShadowType type;
    /// What else the content depends on: control bits or, of a splinter, a protection key; and the rights
    /// that the entries above take away, where shadows are found by them.
    std::uint8_t role = 0;

    friend bool operator==(const ShadowKey&, const ShadowKey&) = default;
};

/// One entry of one shadow. Indices run over all pages of the shadow.
struct ShadowSlot {
    ShadowId shadow = kNoShadow;
    std::uint16_t index = 0;

    friend bool operator==(ShadowSlot, ShadowSlot) = default;
};

struct Shadow {
    ShadowKey key;
    std::array<Mfn, 4> frames{};
    std::uint32_t references = 0;
    bool pinned = false;
    std::uint8_t writes = 0;  ///< emulated ones since it was used last
    ShadowId next_of_frame = kNoShadow;
    ShadowId next_in_bucket = kNoShadow;
    ShadowSlot up;  ///< Xen's up-pointer: the entry that referenced it when no other did; not renewed
    boost::container::small_vector<ShadowSlot, 2> parents;  ///< entries that reference it

    [[nodiscard]] bool alive() const { return references != 0; }
    [[nodiscard]] unsigned entries() const { return key.type.frames() * 512; }
};

class ShadowCache {
public:
    /// Shadow pages are taken from `pool_first` upwards, `pool_pages` of them. `filter`: who has to flush
    /// before a page is used again.
    ShadowCache(SparseMemory& machine, Mfn pool_first, std::uint64_t pool_pages, FlushFilter& filter,
                ShadowCounters& counters, ShadowEvents& events);

    [[nodiscard]] const Shadow& operator[](ShadowId id) const { return shadows_[id]; }

    /// The shadow with this key, or kNoShadow. One that is found moves to the head of its bucket.
    [[nodiscard]] ShadowId find(const ShadowKey& key);
    /// The same for a look that costs nothing and changes nothing.
    [[nodiscard]] ShadowId peek(const ShadowKey& key) const;
    /// A new, empty shadow; the pool must have the pages. It must be given a reference at once.
    [[nodiscard]] ShadowId create(const ShadowKey& key);
    /// The shadow stands for another table (of the same type) from now on.
    void rekey(ShadowId id, const ShadowKey& key);
    /// Emulated writes in a row.
    void used(ShadowId id) { shadows_[id].writes = 0; }
    [[nodiscard]] unsigned written(ShadowId id) { return ++shadows_[id].writes; }
    /// Root references of vCPUs.
    void retain(ShadowId id) { ++shadows_[id].references; }
    void release(ShadowId id);
    /// A reference of the cache's own: the shadow stays when nobody uses it. Pinned again, it is the one
    /// pinned last.
    void pin(ShadowId id);
    void unpin(ShadowId id);
    /// The one pinned longest ago first.
    [[nodiscard]] const std::vector<ShadowId>& pinned() const { return pinned_; }
    /// A page of the pool for other things than shadows, of zeros; the pool must have one. And back.
    [[nodiscard]] Mfn take_other_page();
    void give_other_page(Mfn page);
    /// Called for each shadow that is about to be destroyed.
    void on_destroy(std::function<void(ShadowId)> hook) { on_destroy_ = std::move(hook); }
    /// While on, the shadows of long-mode L3 tables have no up-pointer, since they may be pinned.
    void let_l3_be_pinned(bool may) { l3_may_be_pinned_ = may; }
    [[nodiscard]] bool l3_may_be_pinned() const { return l3_may_be_pinned_; }

    /// Pages of the pool that are free.
    [[nodiscard]] std::uint64_t free_pages() const { return pool_pages_ - counters_->alloc_count; }
    [[nodiscard]] std::uint64_t pool_pages() const { return pool_pages_; }
    /// The most that were in use at a time.
    [[nodiscard]] std::uint64_t peak_pages() const { return peak_pages_; }

    /// Shadows of tables in this guest frame (splinters left out), lower levels first.
    [[nodiscard]] boost::container::small_vector<ShadowId, 4> of_frame(Gfn frame) const;
    [[nodiscard]] bool is_table(Gfn frame) const;
    [[nodiscard]] bool is_table_of(TableFormat format, Gfn frame) const;
    /// Whether it is shadowed as a table of another format.
    [[nodiscard]] bool is_table_of_other(TableFormat format, Gfn frame) const;
    [[nodiscard]] bool first_of_bucket(ShadowId id) const;
    /// Shadows of level 1, splinters too, in the order of the hash table.
    [[nodiscard]] std::vector<ShadowId> leaf_shadows() const;

    [[nodiscard]] std::uint64_t entry(ShadowSlot slot) const;
    /// Where to note what memory is touched; null: nowhere. `child` notes its entry, what stores
    /// an entry that one, `create` and what destroys the whole shadow; `entry` nothing.
    void note_touches(MemoryTouches* touches) { touches_ = touches; }
    [[nodiscard]] bool notes_touches() const { return touches_ != nullptr; }
    void touch(Mfn frame, unsigned offset, unsigned bytes) const
    {
        if (touches_ != nullptr) touches_->push_back({frame.address(offset).value(), bytes});
    }
    void touch(ShadowSlot slot) const { touch(frame_of(slot), slot.index % 512u * 8u, 8); }
    /// All of it: from its first entry to its last.
    void touch_all(ShadowId id) const;
    /// For an event.
    [[nodiscard]] ShadowEvent::Entry described(ShadowSlot slot) const
    {
        const ShadowKey& key = shadows_[slot.shadow].key;
        return {key.type, key.frame, slot.index, entry(slot)};
    }
    /// The shadow that an entry above level 1 references; kNoShadow if it is not present.
    [[nodiscard]] ShadowId child(ShadowSlot slot) const;
    /// The same, also of an entry that was put to sleep.
    [[nodiscard]] ShadowId held_child(ShadowSlot slot) const;
    /// Makes an entry above level 1 not present; it goes on holding its shadow. `marks`: software bits of it.
    /// Asks for no flush.
    void put_to_sleep(ShadowSlot slot, std::uint64_t marks);
    /// Takes software bits from the entries that stand for one guest entry.
    void take_marks(ShadowSlot slot, std::uint64_t marks);
    /// Makes the entries that stand for one guest entry (a pair in an l2_32) reference `child`.
    void link(ShadowSlot slot, ShadowId child, std::uint64_t flags);
    /// Sets a level-1 entry (0: not present; or a mark, magic_entry.hpp). Asks for no flush: what the guest
    /// took away it must flush itself.
    void set_leaf(ShadowSlot slot, std::uint64_t entry);
    /// Empties the entries that stand for one guest entry.
    void clear(ShadowSlot slot);
    void clear_all(ShadowId id);

    /// Empties the entries of a level-1 shadow that map a frame of which `gone` says so.
    template <class Gone>
    void remove_mappings(ShadowId id, Gone gone)
    {
        for (unsigned i = 0; i < shadows_[id].entries(); ++i) {
            const ShadowSlot slot{id, static_cast<std::uint16_t>(i)};
            const std::uint64_t raw = entry(slot);
            if ((raw & pte::kPresent) == 0 || magic::is_mark(raw)) continue;
            if (!gone(Mfn{(raw & pte::kFrame) >> kPageShift})) continue;
            set_leaf(slot, 0);
        }
    }
    /// Whether an entry was marked as a device's since the last call.
    [[nodiscard]] bool take_mmio_marks() { return std::exchange(mmio_marks_, false); }

    /// From now on the level-1 entries that map these frames are known, and those of no others.
    void watch(std::span<const Mfn> frames);
    /// Of a frame that is watched.
    [[nodiscard]] std::span<const ShadowSlot> watched_mappings(Mfn frame) const;

    /// Writable entries that map the frame: their number is Xen's count of the writable type.
    [[nodiscard]] std::span<const ShadowSlot> writable_mappings(Mfn frame) const;
    /// Takes the writable bit from an entry; the hardware has to be flushed.
    void remove_write_access(ShadowSlot slot);

    /// The hardware has to be flushed, on all vCPUs.
    void flush_due() { flush_due_ = true; }
    [[nodiscard]] bool flush_is_due() const { return flush_due_; }
    /// Whether it had to since the last call.
    [[nodiscard]] bool take_flush_due() { return std::exchange(flush_due_, false); }
    /// Entries written so far, steps along chains of the hash table.
    struct Work {
        std::uint64_t entries_written = 0;
        std::uint64_t hash_steps = 0;
    };
    [[nodiscard]] const Work& work() const { return work_; }

    /// All shadows alive, in order of their ids.
    [[nodiscard]] std::vector<ShadowId> all() const;
    /// The shadow that the machine frame is a page of; kNoShadow if it is none's.
    [[nodiscard]] ShadowId shadow_at(Mfn frame) const;

    /// Violated invariants of the books, as sentences. `roots` counts the root references by shadow.
    void audit(const std::function<std::uint32_t(ShadowId)>& roots,
               std::vector<std::string>& violations) const;

private:
    template <class Question>
    [[nodiscard]] bool any_of_frame(Gfn frame, Question question) const;
    [[nodiscard]] Mfn frame_of(ShadowSlot slot) const
    {
        return shadows_[slot.shadow].frames[slot.index / 512];
    }
    void store(ShadowSlot slot, std::uint64_t entry);
    void empty(ShadowSlot slot);
    void empty_all(ShadowId id);
    [[nodiscard]] Mfn take_page();
    void add_parent(ShadowId child, ShadowSlot slot);
    void drop_parent(ShadowId child, ShadowSlot slot);
    void track(std::uint64_t entry, ShadowSlot slot);
    void untrack(std::uint64_t entry, ShadowSlot slot);
    void note_watched(std::uint64_t old, std::uint64_t now, ShadowSlot slot);
    void destroy(ShadowId id);
    void index(ShadowId id);
    void unindex(ShadowId id);
    [[nodiscard]] ShadowId& bucket_of(const ShadowKey& key)
    {
        return buckets_[shadow_bucket(key.frame.number(), key.type.code())];
    }

    /// A page that was in use; `freed` by the flush filter's clock.
    struct FreePage {
        Mfn frame;
        std::uint32_t freed;
    };

    SparseMemory* machine_;
    FlushFilter* filter_;
    ShadowCounters* counters_;
    ShadowEvents* events_;
    MemoryTouches* touches_ = nullptr;
    bool flush_due_ = false;
    bool l3_may_be_pinned_ = false;
    bool mmio_marks_ = false;
    /// When a writable mapping was replaced last, by the filter's clock.
    std::uint32_t write_access_went_ = 0;
    Work work_;
    Mfn pool_first_;
    std::uint64_t pool_pages_;
    std::uint64_t peak_pages_ = 0;
    std::uint64_t other_pages_ = 0;     ///< in use, but for no shadow
    std::vector<ShadowId> page_owner_;  ///< by page of the pool, as far as it has been used
    std::deque<FreePage> free_pages_;   ///< among these; the one freed first comes first
    std::vector<Shadow> shadows_;
    std::vector<ShadowId> free_ids_;
    std::vector<ShadowId> pinned_;
    std::array<ShadowId, kShadowBuckets> buckets_;
    std::function<void(ShadowId)> on_destroy_;
    boost::unordered_flat_map<std::uint64_t, ShadowId> by_frame_;  ///< head of each frame's list
    boost::unordered_flat_map<std::uint64_t, boost::container::small_vector<ShadowSlot, 2>> writable_;
    boost::unordered_flat_map<std::uint64_t, std::vector<ShadowSlot>> watched_;
};

}  // namespace mmusim
