// SPDX-License-Identifier: Apache-2.0
//
// Where a P2M keeps its entries: pagetables that hardware can walk, or a list. A page is 4 KiB, 2 MiB or
// 1 GiB; setting a part of a larger one splits it, and only a request merges 512 that fit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/p2m/p2m_format.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>

namespace mmusim {

/// Levels of the pages there are: 1 (4 KiB), 2 (2 MiB), 3 (1 GiB).
inline constexpr int kLargestP2mPage = 3;
/// Frames that a page of `level` has.
[[nodiscard]] constexpr std::uint64_t p2m_page_frames(int level)
{
    return std::uint64_t{1} << (9 * (level - 1));
}

class P2mStore {
public:
    /// An entry, and the level of the page that it is of.
    struct Found {
        P2mEntry entry;  ///< of the frame asked for
        int level = 1;
    };

    virtual ~P2mStore() = default;
    [[nodiscard]] virtual Found get(Gfn gfn) const = 0;
    /// Sets the page of `level` that begins at `first`, which is aligned. `entry` is its first frame's.
    virtual void set(Gfn first, int level, const P2mEntry& entry) = 0;
    /// Makes one page of `level` of those of the next lower level around `gfn`, if they are all there, alike
    /// and in a row in memory; whether it has.
    virtual bool merge(Gfn gfn, int level) = 0;
    virtual void clear() = 0;
    /// Memory that it takes, in pages.
    [[nodiscard]] virtual std::uint64_t pages() const = 0;
    /// Violated invariants, as sentences.
    virtual void audit(std::vector<std::string>& violations) const = 0;
};

/// A list by frame: nothing but 4 KiB pages.
class FlatP2m final : public P2mStore {
public:
    [[nodiscard]] Found get(Gfn gfn) const override;
    void set(Gfn first, int level, const P2mEntry& entry) override;
    bool merge(Gfn, int) override { return false; }
    void clear() override { entries_.clear(); }
    [[nodiscard]] std::uint64_t pages() const override { return 0; }
    void audit(std::vector<std::string>&) const override {}

private:
    boost::unordered_flat_map<std::uint64_t, P2mEntry> entries_;
};

/// Tables in machine memory: a radix tree of 4 or 5 levels of 512 entries.
///
///   gfn | 9 bits | 9 bits | 9 bits | 9 bits |
///   root --> L4 ----> L3 ----> L2 ----> L1 --> machine frame
///                      |        |
///                    1 GiB    2 MiB
class P2mTables final : public P2mStore {
public:
    /// Tables are taken from `last` downwards, the ones given back first.
    P2mTables(SparseMemory& memory, P2mFormat format, int levels, Mfn last);

    [[nodiscard]] Found get(Gfn gfn) const override;
    void set(Gfn first, int level, const P2mEntry& entry) override;
    bool merge(Gfn gfn, int level) override;
    void clear() override;
    [[nodiscard]] std::uint64_t pages() const override { return taken_ - free_.size(); }
    void audit(std::vector<std::string>& violations) const override;

    /// Fills the level-1 table of the 512 frames from `first`, which has none yet, with what `entry_of(i)`
    /// says.
    template <class EntryOf>
    void fill_table(Gfn first, EntryOf entry_of)
    {
        const Mfn table = make_table(first, 1);
        for (unsigned i = 0; i < kEntries; ++i) {
            const std::uint64_t raw = encode(format_, entry_of(i), 1);
            if (raw != 0) memory_->store(table.number(), i * 8, raw);
        }
    }

    [[nodiscard]] Mfn root() const { return root_; }
    [[nodiscard]] int levels() const { return levels_; }
    [[nodiscard]] P2mFormat format() const { return format_; }

private:
    static constexpr unsigned kEntries = 512;

    [[nodiscard]] static unsigned index(Gfn gfn, int level)
    {
        return static_cast<unsigned>(gfn.number() >> (9 * (level - 1)) & (kEntries - 1));
    }
    [[nodiscard]] std::uint64_t load(Mfn table, unsigned i) const
    {
        return memory_->load<std::uint64_t>(table.number(), i * 8);
    }
    void store(Mfn table, unsigned i, std::uint64_t raw) { memory_->store(table.number(), i * 8, raw); }
    [[nodiscard]] Mfn take();
    void give_back(Mfn table, int level);
    /// The table of `level` for the frame: made, or split from a page, where there is none.
    [[nodiscard]] Mfn make_table(Gfn gfn, int level);
    void audit_table(Mfn table, int level, std::uint64_t& tables, std::vector<std::string>& violations) const;

    SparseMemory* memory_;
    P2mFormat format_;
    int levels_;
    Mfn last_;
    std::uint64_t taken_ = 0;
    std::vector<Mfn> free_;
    Mfn root_;
};

}  // namespace mmusim
