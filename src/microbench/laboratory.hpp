// SPDX-License-Identifier: Apache-2.0
//
// Where the experiments on the shape of TLBs and paging-structure caches are made: a testbed whose linear
// addresses are all mapped, to one page of memory, through one table for each level. So all that a walk reads
// is in few lines, and differences in latency come from the translation alone.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include <mmusim/microbench/testbed.hpp>

#include "microbench/random.hpp"

namespace mmusim::microbench {

inline constexpr std::array<PageSize, 3> kSizes{PageSize::k4k, PageSize::k2m, PageSize::k1g};
inline constexpr std::array<AccessKind, 3> kKinds{AccessKind::read, AccessKind::write, AccessKind::fetch};

/// Bits of the tested part's addresses: half of those that are canonical without sign, in tables of so many
/// levels.
[[nodiscard]] constexpr unsigned tested_bits(int levels)
{
    return kFiveLevel.shift(levels) + 7;
}

/// The tested part in pages of one size, and beside it some pages of every size.
class Laboratory {
public:
    Testbed bed;
    Random random;

    Laboratory(const std::shared_ptr<const CpuProfile>& cpu, PageSize tested, std::uint64_t seed,
               Paging paging = Paging::four_level);

    [[nodiscard]] PageSize size() const { return size_; }
    /// Tested pages have numbers of so many bits.
    [[nodiscard]] unsigned bits() const { return tested_bits(bed.levels()) - shift_of(size_); }
    [[nodiscard]] LinearAddress page(std::uint64_t number) const
    {
        return LinearAddress{number << shift_of(size_)};
    }
    [[nodiscard]] std::uint64_t any_page() { return random.below(std::uint64_t{1} << bits()); }
    Cycles access(AccessKind kind, std::uint64_t number) { return bed.access(kind, page(number)); }

    /// The other pages of a size: where they begin, and how many there are.
    [[nodiscard]] LinearAddress first_other(PageSize other) const;
    [[nodiscard]] std::uint64_t others(PageSize other) const;

    /// All entries of the tested part's tables into the data caches.
    void warm_tables();
    /// The fastest walk from the root.
    [[nodiscard]] Cycles whole_walk();

private:
    PageSize size_;
};

/// What is known of a kind of access before anything is asked about entries.
struct Latencies {
    Cycles repeated = 0;  ///< of an access to the page that was accessed last
    Cycles walk = 0;      ///< of the fastest walk: that of a fresh page beside one that was just walked

    /// Some TLB has answered.
    [[nodiscard]] bool hit(Cycles latency) const { return latency < walk; }
};
[[nodiscard]] Latencies calibrate(Laboratory& lab, AccessKind kind);

}  // namespace mmusim::microbench
