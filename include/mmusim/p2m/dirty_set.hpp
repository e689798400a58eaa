// SPDX-License-Identifier: Apache-2.0
//
// A set of guest frames as Xen keeps it for log-dirty (reference/xen.md B15, part F): a trie of four levels
// in pages of machine memory. A leaf is a bitmap of 32,768 frames, a page above it has 512 entries. Pages
// come from whoever the set is for, one at a time as frames need them, and stay when the set is emptied.
//
//   gfn:   41..33      32..24      23..15      14..0
//          root     -> node     -> node     -> bit in a leaf
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>

namespace mmusim {

class DirtySet {
public:
    /// Levels of the trie: pages that the first mark of a region may take.
    static constexpr unsigned kLevels = 4;
    static constexpr std::uint64_t kFramesPerLeaf = 32768;

    /// Gives a page of zeros, if there is one.
    using TakePage = std::function<std::optional<Mfn>()>;
    /// Told of each entry or byte of bitmap that is looked at.
    using Touched = std::function<void(Mfn page, unsigned offset, unsigned bytes)>;

    DirtySet(SparseMemory& memory, TakePage take_page, Touched touched)
        : memory_{&memory}, take_page_{std::move(take_page)}, touched_{std::move(touched)}
    {
    }

    enum class Mark : std::uint8_t { added, known, no_page };
    Mark mark(Gfn frame);
    [[nodiscard]] bool contains(Gfn frame) const;
    /// All frames, in ascending order.
    [[nodiscard]] std::vector<Gfn> frames() const;
    /// No frame is in the set any more; the pages stay.
    void clear();
    /// The same, and the pages are no longer the set's: all of them.
    [[nodiscard]] std::vector<Mfn> release();
    [[nodiscard]] const std::vector<Mfn>& pages() const { return pages_; }

private:
    [[nodiscard]] std::optional<Mfn> leaf_of(Gfn frame) const;
    /// Calls `visit(leaf, first frame)` for each leaf, in ascending order.
    template <class Visit>
    void for_each_leaf(Mfn page, unsigned level, std::uint64_t first, Visit& visit) const;

    SparseMemory* memory_;
    TakePage take_page_;
    Touched touched_;
    std::vector<Mfn> pages_;  ///< the root first
};

}  // namespace mmusim
