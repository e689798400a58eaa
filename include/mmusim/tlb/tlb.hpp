// SPDX-License-Identifier: Apache-2.0
//
// One TLB: a level for certain kinds of access, of one or several arrays, with what it counts
// (docs/timing.md, "TLBs"). It finds, holds and drops; how levels work together is the Mmu's business.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mmusim/tlb/tlb_array.hpp>
#include <mmusim/tlb/tlb_spec.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

/// Bits 56 to `shift` of the address: canonical copies of a narrower address's top bit are part of it.
[[nodiscard]] constexpr std::uint64_t page_number(LinearAddress address, unsigned shift)
{
    constexpr std::uint64_t kWidest = (std::uint64_t{1} << 57) - 1;
    return (address.value() & kWidest) >> shift;
}

struct TlbCounters {
    std::uint64_t lookups = 0;
    std::uint64_t hits = 0;
    std::uint64_t dirty_walks = 0;  ///< hits of a write on an entry whose D is clear
    std::uint64_t denied = 0;       ///< lookups whose match denied the access
    std::uint64_t fills = 0;
    std::uint64_t evictions = 0;

    void add(const TlbCounters& more);
    void subtract(const TlbCounters& earlier);
    friend bool operator==(const TlbCounters&, const TlbCounters&) = default;
};

class Tlb {
public:
    explicit Tlb(const TlbSpec& spec);

    struct Match {
        TlbArray* array = nullptr;
        std::uint32_t entry = 0;

        explicit operator bool() const { return array != nullptr; }
        [[nodiscard]] const TlbContent& content() const { return array->content(entry); }
    };
    [[nodiscard]] Match find(LinearAddress address, unsigned pcid);

    /// A page as a fill brings it.
    struct Page {
        LinearAddress address;  ///< one in it
        unsigned pcid = 0;
        bool global = false;
        TlbContent content;  ///< `frame` and `origin` are those of `address`
    };
    struct Fill {
        Match match;  ///< null if this TLB does not hold such pages
        EntryKind kind = EntryKind::page_4k;
        bool evicted = false;
    };
    /// `evicted` and `absent` as in TlbArray::insert.
    Fill fill(const Page& page, TlbArray::Evicted* evicted, bool absent);

    /// Drops the page's entries (all fragments): global ones, those of the PCID, or both.
    void drop_page(LinearAddress address, unsigned pcid, bool with_globals, bool with_pcid);
    void drop_pcid(unsigned pcid);
    void drop_all(bool with_globals);
    /// Drops what covers any of the evicted entry's bytes, in its PCID or globally as it was.
    void drop_overlapping(const TlbArray::Evicted& evicted);
    /// MOV CR3 has made `pcid` current, which `old` was. Keeps the PCIDs that the profile says.
    void pcid_loaded(unsigned old, unsigned pcid, bool flushing);

    /// As it was in the beginning.
    void reset();
    template <class Visit>
    void for_each(Visit visit) const
    {
        for (const TlbArray& array : arrays_) array.for_each(visit);
    }
    /// Violated invariants, as sentences.
    void audit(std::vector<std::string>& violations) const;
    /// Has all its policies stamp from one counter.
    void share_clock(std::uint64_t& clock);

    [[nodiscard]] const TlbSpec& spec() const { return spec_; }
    /// The first array that holds entries of the kind; null if none does.
    [[nodiscard]] TlbArray* array_of(EntryKind kind);
    /// Whether the order of search is that of page sizes.
    [[nodiscard]] bool searches_by_size() const { return searches_by_size_; }
    /// Whether any page larger than this kind is there.
    [[nodiscard]] bool any_larger(EntryKind kind) const;
    /// Whether hits change no more than `Replacement::touch` does.
    [[nodiscard]] bool touch_is_enough();

    TlbCounters counters;

private:
    struct Probe {
        TlbArray* array;
        EntryKind kind;
        unsigned shift;
    };
    struct Place {
        TlbArray* array = nullptr;
        EntryKind kind = EntryKind::page_4k;
        unsigned shift = 12;
    };

    static constexpr unsigned kPageKinds = (1u << static_cast<unsigned>(EntryKind::pde)) - 1;

    TlbSpec spec_;
    std::vector<TlbArray> arrays_;
    std::vector<Probe> probes_;     ///< pages alone, in the order of search: by array, then by size
    std::array<Place, 32> places_;  ///< by log2 of the page's bytes
    bool searches_by_size_ = true;
    std::vector<unsigned> recent_pcids_;  ///< most recent first
};

inline Tlb::Match Tlb::find(LinearAddress address, unsigned pcid)
{
    for (TlbArray& array : arrays_) {
        for (unsigned kinds = array.live_kinds() & kPageKinds; kinds != 0; kinds &= kinds - 1) {
            const auto kind = static_cast<EntryKind>(std::countr_zero(kinds));
            const std::uint32_t entry = array.find(kind, page_number(address, shift_of(kind)), pcid);
            if (entry != TlbArray::kNone) return {&array, entry};
        }
    }
    return {};
}

inline Tlb::Fill Tlb::fill(const Page& page, TlbArray::Evicted* evicted, bool absent)
{
    const unsigned page_shift = page.content.attributes.page_shift();
    const Place& place = places_[page_shift];
    if (place.array == nullptr) return {};
    const std::uint64_t in_entry = (std::uint64_t{1} << place.shift) - 1;
    TlbContent content = page.content;
    content.frame &= ~in_entry;
    content.origin &= ~in_entry;
    if (place.shift != page_shift || content.attributes.fragment()) [[unlikely]]
        content.attributes = content.attributes.as_entry_of(place.shift);
    const TlbTag tag{place.kind, page_number(page.address, place.shift), page.pcid, page.global};
    const TlbArray::Insertion done = place.array->insert(tag, content, evicted, absent);
    ++counters.fills;
    counters.evictions += done.evicted ? 1 : 0;
    return {{place.array, done.entry}, place.kind, done.evicted};
}

}  // namespace mmusim
