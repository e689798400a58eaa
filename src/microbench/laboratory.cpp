// SPDX-License-Identifier: Apache-2.0
#include "microbench/laboratory.hpp"

#include <algorithm>

namespace mmusim::microbench {

namespace {

constexpr unsigned kTestedRootEntries = 128;
constexpr unsigned kOtherRootEntries = 32;  ///< for each size
constexpr unsigned kTrials = 8;             ///< of what comes out the same each time

static_assert(kFiveLevel.shift(4) + 7 == tested_bits(4) && kTestedRootEntries == 1 << 7);
static_assert(kTestedRootEntries + kSizes.size() * kOtherRootEntries <= 256, "addresses without sign");

unsigned first_root_entry(PageSize other)
{
    return kTestedRootEntries + (static_cast<unsigned>(other) - 1) * kOtherRootEntries;
}

}  // namespace

Laboratory::Laboratory(const std::shared_ptr<const CpuProfile>& cpu, PageSize tested, std::uint64_t seed,
                       Paging paging)
    : bed{cpu, {.paging = paging}}, random{seed}, size_{tested}
{
    bed.map_folded(0, kTestedRootEntries, tested);
    for (const PageSize other : kSizes) bed.map_folded(first_root_entry(other), kOtherRootEntries, other);
}

LinearAddress Laboratory::first_other(PageSize other) const
{
    return LinearAddress{std::uint64_t{first_root_entry(other)} << kFiveLevel.shift(bed.levels())};
}

std::uint64_t Laboratory::others(PageSize other) const
{
    return std::uint64_t{kOtherRootEntries} << (kFiveLevel.shift(bed.levels()) - shift_of(other));
}

void Laboratory::warm_tables()
{
    constexpr std::uint64_t kTableEntries = 512;
    for (std::uint64_t i = 0; i < kTableEntries; ++i) {
        std::uint64_t address = (i % kTestedRootEntries) << kFiveLevel.shift(bed.levels());
        for (int level = static_cast<int>(size_); level < bed.levels(); ++level) {
            address |= i << kFiveLevel.shift(level);
        }
        bed.access(AccessKind::read, LinearAddress{address});
    }
}

Cycles Laboratory::whole_walk()
{
    Cycles fastest = ~Cycles{0};
    for (unsigned i = 0; i < kTrials; ++i) {
        bed.flush();
        fastest = std::min(fastest, access(AccessKind::read, any_page()));
    }
    return fastest;
}

Latencies calibrate(Laboratory& lab, AccessKind kind)
{
    Latencies found{~Cycles{0}, ~Cycles{0}};
    for (unsigned i = 0; i < kTrials; ++i) {
        const std::uint64_t number = lab.any_page() & ~std::uint64_t{1};
        lab.bed.flush();
        lab.access(kind, number);
        found.repeated = std::min(found.repeated, lab.access(kind, number));
        found.walk = std::min(found.walk, lab.access(kind, number + 1));
    }
    return found;
}

}  // namespace mmusim::microbench
