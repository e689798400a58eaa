// SPDX-License-Identifier: Apache-2.0
//
// What there is to find of a CPU's translation hardware from outside, from how long accesses take: for each
// level, kind of access and page size the entries, ways, sets and the index function; the paging-structure
// caches likewise. And what a profile says of the same, to compare with.
//
// The experiments: empty everything, bring some pages in, look whether they are there. A page is there if
// its access is faster than the fastest walk, that of a fresh page whose neighbour was just walked. Which
// level had it, the latency says; pages are pushed out of level 1 by others, or brought in by another kind of
// access, to see level 2. A paging-structure cache has an entry if a fresh page below it takes a shorter
// walk. Two levels of TLBs are looked at. A level whose hits take no longer than those of the one before it
// can't be told from it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/microbench/storage_shape.hpp>
#include <mmusim/microbench/testbed.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim::microbench {

enum class Presence : std::uint8_t {
    present,
    pieces,   ///< such pages are held as smaller ones
    absent,   ///< nothing of the kind answers
    unclear,  ///< something answers, but its shape was not found
};

struct TlbGeometry {
    unsigned level = 1;
    AccessKind kind = AccessKind::read;
    PageSize page = PageSize::k4k;
    Presence presence = Presence::absent;
    StorageShape shape = {};                     ///< of `present`
    unsigned piece_shift = 0;                    ///< of `pieces`: log2 of their bytes
    Cycles hit_cycles = 0;                       ///< of an access that hits there, data included
    std::optional<AccessKind> shared_with = {};  ///< a kind before it that the same entries serve

    friend bool operator==(const TlbGeometry&, const TlbGeometry&) = default;
};

struct PagingStructureCacheGeometry {
    int level = 2;  ///< of the entries: 2 PDE to 5 PML5E
    Presence presence = Presence::absent;
    StorageShape shape = {};
    Cycles walk_cycles = 0;  ///< of an access whose walk resumes there, table entries and data in cache 1

    friend bool operator==(const PagingStructureCacheGeometry&,
                           const PagingStructureCacheGeometry&) = default;
};

struct Geometry {
    std::vector<TlbGeometry> tlbs;  ///< by page size, level and kind of access: read, write, fetch
    std::vector<PagingStructureCacheGeometry> paging_structure_caches;  ///< PDE first

    friend bool operator==(const Geometry&, const Geometry&) = default;
};

/// Finds it by experiment.
[[nodiscard]] Geometry find_geometry(const std::shared_ptr<const CpuProfile>& cpu, std::uint64_t seed = 1);
/// What the profile says, of the same things in the same order.
[[nodiscard]] Geometry stated_geometry(const CpuProfile& cpu);

/// "2048 = 128 sets x 16 ways, xor-7", "held as 2M pieces", "none", "not found".
[[nodiscard]] std::string to_string(const TlbGeometry& geometry);
[[nodiscard]] std::string to_string(const PagingStructureCacheGeometry& geometry);

}  // namespace mmusim::microbench
