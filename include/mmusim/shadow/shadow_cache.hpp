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
// A shadow lives as long as something refers to it: an entry of another, a vCPU's root slot, a pin.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <boost/container/small_vector.hpp>
#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/shadow/counters.hpp>
#include <mmusim/shadow/shadow_type.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>

namespace mmusim {

using ShadowId = std::uint32_t;
inline constexpr ShadowId kNoShadow = ~ShadowId{0};

struct ShadowKey {
    Gfn frame;  ///< of the guest table; splinter: first frame that it maps
    ShadowType type;
    std::uint8_t role = 0;  ///< what else the content depends on (control bits; splinter: protection key)

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
    ShadowId next_of_frame = kNoShadow;
    boost::container::small_vector<ShadowSlot, 2> parents;  ///< entries that reference it

    [[nodiscard]] bool alive() const { return references != 0; }
    [[nodiscard]] unsigned entries() const { return key.type.frames() * 512; }
};

class ShadowCache {
public:
    /// Shadow pages are taken from `pool_first` upwards. `track_writable` keeps the reverse map.
    ShadowCache(SparseMemory& machine, Mfn pool_first, bool track_writable, ShadowCounters& counters);

    [[nodiscard]] const Shadow& operator[](ShadowId id) const { return shadows_[id]; }

    /// The shadow with this key, or kNoShadow.
    [[nodiscard]] ShadowId find(const ShadowKey& key);
    /// A new, empty shadow. It must be given a reference at once.
    [[nodiscard]] ShadowId create(const ShadowKey& key);
    /// Root references of vCPUs.
    void retain(ShadowId id) { ++shadows_[id].references; }
    void release(ShadowId id);
    /// A reference of the cache's own: the shadow stays when nobody uses it.
    void pin(ShadowId id);
    void unpin(ShadowId id);

    /// Shadows of tables in this guest frame (splinters left out), oldest first.
    [[nodiscard]] std::vector<ShadowId> of_frame(Gfn frame) const;
    [[nodiscard]] bool is_table(Gfn frame) const;
    /// Whether it is shadowed as a table of another format.
    [[nodiscard]] bool is_table_of_other(TableFormat format, Gfn frame) const;

    [[nodiscard]] std::uint64_t entry(ShadowSlot slot) const;
    /// The shadow that an entry above level 1 references; kNoShadow if it is not present.
    [[nodiscard]] ShadowId child(ShadowSlot slot) const;
    /// Makes the entries that stand for one guest entry (a pair in an l2_32) reference `child`.
    void link(ShadowSlot slot, ShadowId child, std::uint64_t flags);
    /// Sets a level-1 entry (0: not present).
    void set_leaf(ShadowSlot slot, std::uint64_t entry);
    /// Empties the entries that stand for one guest entry.
    void clear(ShadowSlot slot);
    void clear_all(ShadowId id);

    /// Takes the writable bit from every entry that maps the frame; the number of these entries.
    unsigned remove_write_access(Mfn frame);

    /// Whether an entry that the hardware may have cached was taken away or lost a right, since the last
    /// call.
    [[nodiscard]] bool take_flush_due() { return std::exchange(flush_due_, false); }
    /// Entries written so far.
    [[nodiscard]] std::uint64_t entries_written() const { return entries_written_; }

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
    void drop_parent(ShadowId child, ShadowSlot slot);
    void track(std::uint64_t entry, ShadowSlot slot);
    void untrack(std::uint64_t entry, ShadowSlot slot);
    void destroy(ShadowId id);

    SparseMemory* machine_;
    ShadowCounters* counters_;
    bool flush_due_ = false;
    std::uint64_t entries_written_ = 0;
    bool track_writable_;
    Mfn pool_first_;
    std::vector<ShadowId> page_owner_;  ///< by page of the pool
    std::vector<Mfn> free_pages_;
    std::vector<Shadow> shadows_;
    std::vector<ShadowId> free_ids_;
    boost::unordered_flat_map<std::uint64_t, ShadowId> by_frame_;  ///< head of each frame's list
    boost::unordered_flat_map<std::uint64_t, boost::container::small_vector<ShadowSlot, 2>> writable_;
};

}  // namespace mmusim
