// SPDX-License-Identifier: Apache-2.0
//
// CPU profiles for tests: built in a line or two, without figures that a test does not ask for.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <mmusim/cpu/cpu_profile.hpp>

#include "support/guest_builder.hpp"

namespace small {

using namespace mmusim;

inline const std::vector<EntryKind> kAllPages{EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_4m,
                                              EntryKind::page_1g};

/// Each kind in all ways of each row.
inline TlbArraySpec array(unsigned entries, unsigned ways, const std::vector<EntryKind>& kinds,
                          ReplacementSpec replacement = {})
{
    TlbArraySpec spec;
    spec.entries = entries;
    spec.ways = ways;
    for (const EntryKind kind : kinds) {
        spec.views.push_back({.kind = kind, .ways = ways, .first_way = 0, .stride = ways});
    }
    spec.replacement = std::move(replacement);
    return spec;
}

inline TlbArraySpec fully_associative(unsigned entries, const std::vector<EntryKind>& kinds)
{
    return array(entries, entries, kinds);
}

/// `serves`: letters of "fls", for fetches, loads, stores.
inline TlbSpec tlb(const std::string& name, unsigned level, const std::string& serves,
                   const std::vector<TlbArraySpec>& arrays)
{
    const auto has = [&](char letter) { return serves.find(letter) != std::string::npos; };
    TlbSpec spec;
    spec.name = name;
    spec.level = level;
    spec.fetches = has('f');
    spec.loads = has('l');
    spec.stores = has('s');
    spec.arrays = arrays;
    return spec;
}

inline CpuProfile profile(const std::vector<TlbSpec>& tlbs)
{
    CpuProfile profile;
    profile.tlbs.tlbs = tlbs;
    return profile;
}

/// Paging-structure caches of all levels.
inline void add_structure_caches(CpuProfile& profile, unsigned entries)
{
    for (int level = 2; level <= kMaxLevels; ++level) {
        profile.tlbs.paging_structure_caches.push_back(
            {.level = level, .array = fully_associative(entries, {EntryKind::pde}), .stored_in = {}});
    }
}

// Of `large`, the places of its TLBs.
inline constexpr std::size_t kL1i = 0, kL1d = 1, kL2 = 2;

/// Two levels, all page sizes, so large that a test never has anything evicted.
inline CpuProfile large(bool pdes_in_l2 = false)
{
    CpuProfile made = profile({tlb("l1i", 1, "f", {fully_associative(64, kAllPages)}),
                               tlb("l1d", 1, "ls", {fully_associative(64, kAllPages)}),
                               tlb("l2", 2, "fls", {fully_associative(128, kAllPages)})});
    add_structure_caches(made, 32);
    if (pdes_in_l2) {
        made.tlbs.paging_structure_caches.front().stored_in = "l2";
        made.tlbs.tlbs[kL2].arrays[0].views.push_back(
            {.kind = EntryKind::pde, .ways = 128, .first_way = 0, .stride = 128});
    }
    return made;
}

inline MachineConfig config(const CpuProfile& cpu, const guest::Options& options = guest::native())
{
    MachineConfig config = guest::config_of(options);
    config.cpu = std::make_shared<const CpuProfile>(cpu);
    return config;
}

}  // namespace small
