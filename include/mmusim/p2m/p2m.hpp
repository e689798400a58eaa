// SPDX-License-Identifier: Apache-2.0
//
// The P2M: what stands behind each guest frame, and back (M2P). It begins as the layout says, all of it plain
// RAM; the hypervisor may change it while the guest runs. Each machine frame is one guest frame's at most.
//
//   guest frame --> P2mEntry{machine frame, type, access}      entry(), mfn_of()
//   machine frame --> guest frame                              gfn_of()
//
// The entries are in a P2mStore: pagetables in the format that hardware walks, or a list. As the RAM may be
// as large as the address space, a region's entries are put there when someone first needs them, a change or
// a hardware walk; until then the layout says the same.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>
#include <boost/unordered/unordered_flat_set.hpp>

#include <mmusim/p2m/frame_layout.hpp>
#include <mmusim/p2m/p2m_store.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

class P2m {
public:
    /// Entries in a list. Throws LayoutError as FrameLayout.
    P2m(GuestRam ram, P2mLayout layout) : P2m{FrameLayout{std::move(ram), std::move(layout)}} {}
    explicit P2m(FrameLayout layout);
    /// Entries in tables that hardware can walk, with pages up to `largest_page` (a level, 1 to 3).
    P2m(FrameLayout layout, std::unique_ptr<P2mTables> tables, int largest_page);

    /// As the layout says; what the initial RAM is.
    [[nodiscard]] const FrameLayout& layout() const { return layout_; }
    [[nodiscard]] const GuestRam& ram() const { return layout_.ram(); }
    /// Everything as in the beginning.
    void reset();

    [[nodiscard]] P2mEntry entry(Gfn gfn) const
    {
        if (changed_) [[unlikely]]
            return look_up(gfn);
        const auto mfn = layout_.mfn_of(gfn);
        return mfn ? P2mEntry{*mfn, P2mType::ram_rw, MemAccess::rwx} : P2mEntry{};
    }
    /// The machine frame, where there is one.
    [[nodiscard]] std::optional<Mfn> mfn_of(Gfn gfn) const
    {
        if (!changed_) [[likely]]
            return layout_.mfn_of(gfn);
        const P2mEntry found = look_up(gfn);
        return found.has_frame() ? std::optional{found.mfn} : std::nullopt;
    }
    /// M2P.
    [[nodiscard]] std::optional<Gfn> gfn_of(Mfn mfn) const;
    /// Level of the page that the frame's entry is of, in the store.
    [[nodiscard]] int page_level(Gfn gfn);

    /// Sets `count` frames from `first` on, in the largest pages that fit; `entry` is the first one's. A
    /// machine frame that was another guest frame's is so no more: that one becomes a hole.
    void set(Gfn first, std::uint64_t count, const P2mEntry& entry);
    /// Whether anything was ever set since the beginning.
    [[nodiscard]] bool changed() const { return changed_; }
    /// Makes larger pages of smaller ones around the frame, as far as they fit; the level that it has then.
    int merge(Gfn gfn);

    /// Sees to it that the store has the frame's entry, as a hardware walk needs it.
    void populate(Gfn gfn)
    {
        const std::uint64_t region = gfn.number() >> 9;
        if (populated_last_ == region) [[likely]]
            return;
        if (!populated(region)) populate_region(region);
        populated_last_ = region;
    }
    void populate_all();

    /// The tables; null if there are none.
    [[nodiscard]] const P2mTables* tables() const { return tables_; }
    /// Violated invariants, as sentences.
    void audit(std::vector<std::string>& violations) const;

private:
    static constexpr std::uint64_t kNoRegion = ~std::uint64_t{0};
    static constexpr std::uint64_t kNobody = ~std::uint64_t{0};

    /// Regions: the 512 frames of a 2 MiB page; where a 1 GiB page holds, all of its.
    [[nodiscard]] bool populated(std::uint64_t region) const
    {
        return regions_.contains(region) || (largest_page_ > 2 && regions_1g_.contains(region >> 9));
    }
    [[nodiscard]] P2mEntry look_up(Gfn gfn) const;
    void populate_region(std::uint64_t region);
    [[nodiscard]] P2mEntry initial(Gfn gfn) const;
    void set_page(Gfn first, int level, const P2mEntry& entry);

    FrameLayout layout_;
    std::unique_ptr<P2mStore> store_;
    P2mTables* tables_ = nullptr;  ///< the store, if it is one of tables
    int largest_page_ = 1;
    bool changed_ = false;
    std::uint64_t populated_last_ = kNoRegion;
    boost::unordered_flat_set<std::uint64_t> regions_;     ///< by frame / 2^9
    boost::unordered_flat_set<std::uint64_t> regions_1g_;  ///< by frame / 2^18
    boost::unordered_flat_set<std::uint64_t> begun_1g_;    ///< those of which smaller regions are there
    /// Of the machine frames whose guest frame is not as in the layout; kNobody: none has it.
    boost::unordered_flat_map<std::uint64_t, std::uint64_t> m2p_;
};

}  // namespace mmusim
