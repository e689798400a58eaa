// SPDX-License-Identifier: Apache-2.0
//
// One TLB: a level for certain kinds of access, of one or several arrays, with what it counts
// (docs/timing.md, "TLBs"). It finds, holds and drops; how levels work together is the Mmu's business.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mmusim/tlb/tlb_array.hpp>
#include <mmusim/tlb/tlb_spec.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

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
    };
    [[nodiscard]] Place place_for(unsigned page_shift) const;

    TlbSpec spec_;
    std::vector<TlbArray> arrays_;
    std::vector<Probe> probes_;    ///< pages alone, in the order of search
    std::array<Place, 4> places_;  ///< by page size
    bool searches_by_size_ = true;
    std::vector<unsigned> recent_pcids_;  ///< most recent first; those that may have entries here
};

}  // namespace mmusim
