// SPDX-License-Identifier: Apache-2.0
//
// One physical array of translations or of upper-level entries: tags, contents, and the policy that says
// who makes room (docs/timing.md, "TLBs"). A tag is page number, kind, PCID and G in one word, so that a
// lookup compares whole words.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/pagewalk/rights.hpp>
#include <mmusim/storage/equal_bytes.hpp>
#include <mmusim/storage/index_function.hpp>
#include <mmusim/storage/replacement.hpp>
#include <mmusim/tlb/tlb_spec.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim {

/// The small figures of an entry in one word. (As bytes of their own, written apart and copied together, they
/// would stall each copy.)
class TlbAttributes {
public:
    constexpr TlbAttributes() = default;
    /// `page_shift`: log2 of the bytes of the whole page. `dirty`: D was set when this was filled.
    constexpr TlbAttributes(Rights rights, unsigned page_shift, bool dirty)
        : word_{(rights.user ? kUser : 0) | (rights.writable ? kWritable : 0) |
                (rights.no_execute ? kNoExecute : 0) | (dirty ? kDirty : 0) |
                std::uint64_t{rights.key} << kKeyAt | std::uint64_t{page_shift} << kPageAt |
                std::uint64_t{page_shift} << kEntryAt | std::uint64_t{page_shift} << kWholeAt}
    {
    }
    /// What a second level leaves together of a larger page of the guest's.
    [[nodiscard]] constexpr TlbAttributes part_of(unsigned whole_shift) const
    {
        TlbAttributes part = *this;
        part.word_ = (word_ & ~(std::uint64_t{63} << kWholeAt)) | std::uint64_t{whole_shift} << kWholeAt;
        return part.as_entry_of(page_shift());
    }
    [[nodiscard]] constexpr Rights rights() const
    {
        return {(word_ & kUser) != 0, (word_ & kWritable) != 0, (word_ & kNoExecute) != 0,
                static_cast<std::uint8_t>(word_ >> kKeyAt & 15)};
    }
    [[nodiscard]] constexpr bool dirty() const { return (word_ & kDirty) != 0; }
    [[nodiscard]] constexpr unsigned page_shift() const { return word_ >> kPageAt & 63; }
    /// log2 of the bytes of the page in the guest's tables, which INVLPG drops all of.
    [[nodiscard]] constexpr unsigned whole_shift() const { return word_ >> kWholeAt & 63; }
    /// log2 of the bytes of the entry: less than the whole page's for a fragment.
    [[nodiscard]] constexpr unsigned entry_shift() const { return word_ >> kEntryAt & 63; }
    [[nodiscard]] constexpr bool fragment() const { return (word_ & kFragment) != 0; }
    [[nodiscard]] constexpr TlbAttributes as_entry_of(unsigned shift) const
    {
        TlbAttributes entry = *this;
        entry.word_ = (word_ & ~(kFragment | std::uint64_t{63} << kEntryAt)) |
                      std::uint64_t{shift} << kEntryAt | (shift < whole_shift() ? kFragment : 0);
        return entry;
    }

private:
    static constexpr std::uint64_t kUser = 1, kWritable = 2, kNoExecute = 4, kDirty = 8,
                                   kFragment = std::uint64_t{1} << 24;
    static constexpr unsigned kKeyAt = 4, kPageAt = 8, kEntryAt = 16, kWholeAt = 32;
    std::uint64_t word_ = 0;
};

/// What is cached of a page: the fragment around an address where the page is larger than the entry. Of a
/// table: where it is, and the rights so far.
struct TlbContent {
    std::uint64_t frame = 0;   ///< machine address of the first byte
    std::uint64_t origin = 0;  ///< what the guest calls that address
    Cycles ready_at = 0;
    std::uint64_t id = 0;  ///< given by the array: a number that no other content of it has had
    TlbAttributes attributes;
};

/// A tag word: valid (bit 0), global (1), kind (4:2), PCID (16:5, 0 if global), page number (63:17).
class TlbTag {
public:
    constexpr TlbTag() = default;
    constexpr TlbTag(EntryKind kind, std::uint64_t number, unsigned pcid, bool global)
        : word_{kValid | (global ? kGlobal : std::uint64_t{pcid} << kPcidAt) |
                static_cast<std::uint64_t>(kind) << kKindAt | number << kNumberAt}
    {
    }
    [[nodiscard]] constexpr bool valid() const { return word_ != 0; }
    [[nodiscard]] constexpr bool global() const { return (word_ & kGlobal) != 0; }
    [[nodiscard]] constexpr EntryKind kind() const { return static_cast<EntryKind>(word_ >> kKindAt & 7); }
    [[nodiscard]] constexpr unsigned pcid() const { return static_cast<unsigned>(word_ >> kPcidAt & 0xfff); }
    [[nodiscard]] constexpr std::uint64_t number() const { return word_ >> kNumberAt; }
    /// Whether kind and page number are the same.
    [[nodiscard]] constexpr bool same_page(TlbTag other) const
    {
        return ((word_ ^ other.word_) & ~(kGlobal | kPcid)) == 0;
    }
    [[nodiscard]] constexpr bool serves(unsigned pcid) const { return global() || this->pcid() == pcid; }
    /// A byte that tells pages apart well, never 0.
    [[nodiscard]] constexpr std::uint8_t fingerprint() const
    {
        const std::uint64_t hash = (word_ & ~(kGlobal | kPcid)) * 0x9e3779b97f4a7c15;
        return static_cast<std::uint8_t>(hash >> 56 | 1);
    }

    friend constexpr bool operator==(TlbTag, TlbTag) = default;

private:
    static constexpr std::uint64_t kValid = 1, kGlobal = 2;
    static constexpr unsigned kKindAt = 2, kPcidAt = 5, kNumberAt = 17;
    static constexpr std::uint64_t kPcid = std::uint64_t{0xfff} << kPcidAt;
    std::uint64_t word_ = 0;
};

class TlbArray {
public:
    explicit TlbArray(const TlbArraySpec& spec);

    [[nodiscard]] bool holds(EntryKind kind) const
    {
        return views_[static_cast<std::size_t>(kind)].ways != 0;
    }
    /// Whether any entry of the kind is there.
    [[nodiscard]] bool any(EntryKind kind) const { return live_[static_cast<std::size_t>(kind)] != 0; }
    /// Bit k: whether any entry of kind k is there.
    [[nodiscard]] unsigned live_kinds() const { return live_kinds_; }

    static constexpr std::uint32_t kNone = ~std::uint32_t{0};
    /// The first entry of the kind for page `number`, global or of the PCID; or kNone.
    [[nodiscard]] std::uint32_t find(EntryKind kind, std::uint64_t number, unsigned pcid) const;
    /// A hit on the entry.
    void touch(std::uint32_t entry) { replacement_->on_hit(row_of(entry), way_of(entry)); }

    struct Evicted {
        TlbTag tag;
        TlbContent content;
    };
    struct Insertion {
        std::uint32_t entry;
        bool evicted;  ///< something had to make room
    };
    /// Inserts, overwriting an entry of the same tag. `evicted`, unless null, takes what had to make room.
    /// `absent`: no such entry is there, the caller has looked.
    Insertion insert(TlbTag tag, const TlbContent& content, Evicted* evicted, bool absent);
    void remove(std::uint32_t entry);
    /// As it was in the beginning.
    void reset();
    /// Drops every entry for which `drop(tag, content)`.
    template <class Drop>
    void remove_if(Drop drop)
    {
        for (std::uint32_t i = 0; i < tags_.size(); ++i) {
            if (tags_[i].valid() && drop(tags_[i], contents_[i])) remove(i);
        }
    }
    template <class Visit>
    void for_each(Visit visit) const
    {
        for (std::uint32_t i = 0; i < tags_.size(); ++i) {
            if (tags_[i].valid()) visit(tags_[i], contents_[i]);
        }
    }
    /// Violated invariants, as sentences that begin with `name`.
    void audit(std::string_view name, std::vector<std::string>& violations) const;
    /// Drops the entries of the kind for that page, global ones or those of the PCID or both.
    void remove_page(EntryKind kind, std::uint64_t number, unsigned pcid, bool with_globals,
                     bool with_pcid = true);
    /// Whether some entry is a fragment of a larger page.
    [[nodiscard]] bool any_fragment() const { return fragments_ != 0; }

    [[nodiscard]] const TlbContent& content(std::uint32_t entry) const { return contents_[entry]; }
    [[nodiscard]] TlbTag tag(std::uint32_t entry) const { return tags_[entry]; }
    [[nodiscard]] std::uint32_t entries() const { return static_cast<std::uint32_t>(tags_.size()); }

    // For short cuts to an entry: they hold while the id of its content is what it was.
    [[nodiscard]] Replacement& replacement() { return *replacement_; }
    [[nodiscard]] unsigned row_of(std::uint32_t entry) const
    {
        return static_cast<unsigned>(entry * row_reciprocal_ >> kReciprocalShift);
    }
    [[nodiscard]] unsigned way_of(std::uint32_t entry) const { return entry - row_of(entry) * row_ways_; }

private:
    struct View {
        unsigned ways = 0;
        unsigned first_way = 0;
        unsigned stride = 1;
        unsigned mask = 0;  ///< of the first 16 ways
        IndexFunction index;
    };
    [[nodiscard]] std::uint32_t first_of_set(const View& view, std::uint64_t number) const
    {
        return view.index(number) * view.stride + view.first_way;
    }

    /// Bits for so many ways, 16 at most.
    [[nodiscard]] static unsigned first_ways(unsigned ways)
    {
        return (1u << std::min(ways, kEqualBytes)) - 1;
    }
    void count(std::size_t kind)
    {
        ++live_[kind];
        live_kinds_ |= 1u << kind;
    }
    void uncount(std::size_t kind)
    {
        if (--live_[kind] == 0) live_kinds_ &= ~(1u << kind);
    }
    /// Calls `visit(entry)` for the ways from `first` on whose fingerprint is `print`, lowest first, until it
    /// says true; that entry, or kNone.
    template <class Visit>
    [[nodiscard]] std::uint32_t find_print(std::uint32_t first, const View& view, std::uint8_t print,
                                           Visit visit) const
    {
        unsigned mask = view.mask;
        for (unsigned done = 0;;) {
            unsigned found = equal_bytes(prints_.data() + first + done, print) & mask;
            for (; found != 0; found &= found - 1) {
                const std::uint32_t entry = first + done + static_cast<unsigned>(std::countr_zero(found));
                if (visit(entry)) return entry;
            }
            done += kEqualBytes;
            if (done >= view.ways) [[likely]]
                return kNone;
            mask = first_ways(view.ways - done);
        }
    }

    std::array<View, kEntryKinds> views_;
    std::array<std::uint32_t, kEntryKinds> live_{};
    unsigned live_kinds_ = 0;
    std::uint32_t fragments_ = 0;
    std::uint32_t free_;
    /// Division by `row_ways_` as a product: exact as long as entries × ways < 2^40.
    static constexpr unsigned kReciprocalShift = 40;
    unsigned row_ways_;  ///< of the policy's rows
    bool own_rows_;      ///< a set is a row, or part of one; else all entries are one row
    std::uint64_t row_reciprocal_;
    std::unique_ptr<Replacement> replacement_;
    std::vector<TlbTag> tags_;
    std::vector<std::uint8_t> prints_;  ///< a byte of each tag's hash, 0: free; and 16 bytes beyond the last
    std::vector<TlbContent> contents_;
    std::uint64_t next_id_ = 0;
};

inline std::uint32_t TlbArray::find(EntryKind kind, std::uint64_t number, unsigned pcid) const
{
    const TlbTag wanted{kind, number, pcid, false};
    const View& view = views_[static_cast<std::size_t>(kind)];
    return find_print(first_of_set(view, number), view, wanted.fingerprint(), [&](std::uint32_t entry) {
        return tags_[entry].same_page(wanted) && tags_[entry].serves(pcid);
    });
}

inline TlbArray::Insertion TlbArray::insert(TlbTag tag, const TlbContent& content, Evicted* evicted,
                                            bool absent)
{
    const auto kind = static_cast<std::size_t>(tag.kind());
    const View& view = views_[kind];
    const std::uint32_t set = view.index(tag.number());
    const std::uint32_t first = set * view.stride + view.first_way;
    const unsigned row = own_rows_ ? set : 0;
    const std::uint32_t begin = row * row_ways_;
    const std::uint8_t print = tag.fingerprint();
    Insertion done{kNone, false};
    if (!absent) {
        done.entry = find_print(first, view, print, [&](std::uint32_t entry) { return tags_[entry] == tag; });
    }
    if (done.entry == kNone && free_ != 0) {
        done.entry = find_print(first, view, 0, [](std::uint32_t) { return true; });
    }
    if (done.entry == kNone) {
        done = {begin + replacement_->find_victim(row, {first - begin, view.ways}), true};
        if (evicted != nullptr) *evicted = {tags_[done.entry], contents_[done.entry]};
    }
    TlbContent& place = contents_[done.entry];
    const TlbTag old = tags_[done.entry];
    if (!old.valid()) {
        --free_;
        count(kind);
    } else {
        fragments_ -= place.attributes.fragment() ? 1 : 0;
        if (old.kind() != tag.kind()) {
            uncount(static_cast<std::size_t>(old.kind()));
            count(kind);
        }
    }
    tags_[done.entry] = tag;
    prints_[done.entry] = print;
    place.frame = content.frame;
    place.origin = content.origin;
    place.ready_at = content.ready_at;
    place.attributes = content.attributes;
    place.id = ++next_id_;
    fragments_ += content.attributes.fragment() ? 1 : 0;
    replacement_->on_fill(row, done.entry - begin);
    return done;
}

inline void TlbArray::remove(std::uint32_t entry)
{
    uncount(static_cast<std::size_t>(tags_[entry].kind()));
    fragments_ -= contents_[entry].attributes.fragment() ? 1 : 0;
    ++free_;
    tags_[entry] = {};
    prints_[entry] = 0;
    contents_[entry].id = 0;
}

}  // namespace mmusim
