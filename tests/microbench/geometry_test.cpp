// SPDX-License-Identifier: Apache-2.0
//
// What the experiments find, from latencies alone, against what the profile states and against figures that
// are written down here.
#include <memory>
#include <optional>
#include <string>

#include <fmt/format.h>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/microbench/geometry.hpp>

#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::microbench;

namespace {

constexpr AccessKind kRead = AccessKind::read, kWrite = AccessKind::write, kFetch = AccessKind::fetch;
constexpr PageSize k4k = PageSize::k4k, k2m = PageSize::k2m, k1g = PageSize::k1g;

std::shared_ptr<const CpuProfile> bundled(const std::string& name)
{
    return std::make_shared<const CpuProfile>(find_cpu_profile(name));
}

std::shared_ptr<const CpuProfile> parsed(const std::string& text)
{
    return std::make_shared<const CpuProfile>(parse_cpu_profile(text, "a test"));
}

TlbGeometry tlb(const Geometry& geometry, unsigned level, AccessKind kind, PageSize page)
{
    for (const TlbGeometry& one : geometry.tlbs) {
        if (one.level == level && one.kind == kind && one.page == page) return one;
    }
    FAIL("not looked at");
    return {};
}

std::string told(const Geometry& geometry)
{
    std::string text;
    for (const TlbGeometry& one : geometry.tlbs) {
        text += fmt::format("level {} {} {}: {}, {} cycles, shared with {}\n", one.level, name_of(one.page),
                            name_of(one.kind), to_string(one), one.hit_cycles,
                            one.shared_with ? name_of(*one.shared_with) : "none");
    }
    for (const PagingStructureCacheGeometry& one : geometry.paging_structure_caches) {
        text +=
            fmt::format("entries of level {}: {}, {} cycles\n", one.level, to_string(one), one.walk_cycles);
    }
    return text;
}

/// Two levels for everything, with the rest of what a profile needs.
std::string small_profile(const std::string& first_array, const std::string& second_array,
                          const std::string& second_keys = R"("lookup_cycles": 7)")
{
    return fmt::format(R"({{
        "schema": "mmusim-cpu-profile", "version": 1, "name": "small",
        "tlbs": [
            {{"name": "l1", "level": 1, "fetches": true, "loads": true, "stores": true, "lookup_cycles": 1,
              "arrays": [{{"pages": ["4K", "2M", "4M", "1G"], {}}}]}},
            {{"name": "l2", "level": 2, "fetches": true, "loads": true, "stores": true, {},
              "arrays": [{{"pages": ["4K", "2M"], {}}}]}}
        ],
        "paging_structure_caches": {{"pde": {{"entries": 24, "ways": 4, "replacement": "random"}},
                                     "pml4e": {{"entries": 2, "ways": "full"}}}},
        "data_caches": [{{"name": "l1d", "sets": 64, "ways": 8, "latency": 4}}],
        "walker": {{"count": 2, "start_cycles": 3}}
    }})",
                       first_array, second_keys, second_array);
}

void check_found(const std::shared_ptr<const CpuProfile>& cpu, std::uint64_t seed = 1)
{
    const Geometry found = find_geometry(cpu, seed);
    const Geometry stated = stated_geometry(*cpu);
    CHECK(told(found) == told(stated));
    CHECK(found == stated);
}

}  // namespace

TEST_CASE("microbench: what golden_cove states, in figures", "[microbench]")
{
    const Geometry stated = stated_geometry(*bundled("golden_cove"));
    const auto shape = [&](unsigned level, AccessKind kind, PageSize page) {
        const TlbGeometry one = tlb(stated, level, kind, page);
        CHECK(one.presence == Presence::present);
        return one.shape;
    };
    CHECK(shape(1, kRead, k4k) == StorageShape{16, 6});
    CHECK(shape(1, kRead, k2m) == StorageShape{8, 4});
    CHECK(shape(1, kRead, k1g) == StorageShape{1, 8});
    CHECK(shape(1, kWrite, k4k) == StorageShape{1, 16});
    CHECK(shape(1, kFetch, k4k) == StorageShape{32, 8});
    const auto xor_7 = reduced_masks(xor_index(7).xor_masks);
    for (const AccessKind kind : {kRead, kWrite, kFetch}) {
        CHECK(shape(2, kind, k4k) == StorageShape{128, 16, xor_7});
        CHECK(shape(2, kind, k2m) == StorageShape{128, 8, xor_7});
        CHECK(shape(2, kind, k1g) == StorageShape{128, 8, xor_7});
    }
    CHECK(tlb(stated, 1, kRead, k4k).hit_cycles == 5);
    CHECK(tlb(stated, 2, kRead, k4k).hit_cycles == 12);
    CHECK(tlb(stated, 2, kFetch, k4k).hit_cycles == 8);
    CHECK(tlb(stated, 1, kFetch, k1g).presence == Presence::pieces);
    CHECK(tlb(stated, 1, kFetch, k1g).piece_shift == 21);
    CHECK(!tlb(stated, 1, kWrite, k4k).shared_with);
    CHECK(tlb(stated, 2, kFetch, k4k).shared_with == kRead);
}

TEST_CASE("microbench: what other profiles state, in figures", "[microbench]")
{
    const Geometry skylake = stated_geometry(*bundled("skylake"));
    CHECK(tlb(skylake, 2, kRead, k4k).shape == shape_of(128, 12, xor_index(7), 34));
    CHECK(tlb(skylake, 2, kRead, k1g).shape == StorageShape{4, 4});
    CHECK(tlb(skylake, 1, kFetch, k2m).shape == StorageShape{1, 8});
    CHECK(skylake.paging_structure_caches[0].shape == StorageShape{4, 8});

    const Geometry zen1 = stated_geometry(*bundled("zen1"));
    CHECK(tlb(zen1, 2, kRead, k4k).shape == StorageShape{192, 8});
    CHECK(tlb(zen1, 2, kRead, k2m).shape == StorageShape{768, 2});
    CHECK(tlb(zen1, 2, kRead, k1g).presence == Presence::pieces);
    CHECK(tlb(zen1, 2, kRead, k1g).piece_shift == 21);
    CHECK(tlb(zen1, 2, kFetch, k4k).shape == StorageShape{128, 8});
    CHECK(zen1.paging_structure_caches[0].shape == StorageShape{768, 2});

    const Geometry nehalem = stated_geometry(*bundled("nehalem"));
    CHECK(tlb(nehalem, 2, kRead, k4k).shape == StorageShape{128, 4});
    CHECK(tlb(nehalem, 2, kRead, k2m).presence == Presence::absent);

    const Geometry none = stated_geometry(*bundled("none"));
    for (const TlbGeometry& one : none.tlbs) CHECK(one.presence == Presence::absent);
    for (const auto& one : none.paging_structure_caches) CHECK(one.presence == Presence::absent);
}

TEST_CASE("microbench: golden_cove, skylake and none are found", "[microbench]")
{
    for (const char* const name : {"golden_cove", "skylake", "none"}) {
        INFO(name);
        check_found(bundled(name));
    }
}

TEST_CASE("microbench: the geometry of every bundled profile is found", "[microbench][slow]")
{
    for (const BundledCpuProfile& profile : bundled_cpu_profiles()) {
        INFO(profile.name);
        for (const std::uint64_t seed : {1u, 2u, 3u}) check_found(bundled(std::string{profile.name}), seed);
    }
}

TEST_CASE("microbench: no replacement policy hides the geometry", "[microbench][slow]")
{
    for (const char* const policy :
         {R"("lru")", R"("fifo")", R"("random")", R"("tree-plru")", R"("bit-plru")", R"("srrip")",
          R"({"policy": "mru-groups", "groups": 2})"}) {
        for (const char* const second :
             {R"("entries": 192, "ways": 6)", R"("entries": 256, "ways": 8, "index": "xor-5")",
              R"("entries": 36, "ways": 4, "index": "linear")"}) {
            INFO(policy << " " << second);
            check_found(
                parsed(small_profile(fmt::format(R"("entries": 32, "ways": 4, "replacement": {})", policy),
                                     fmt::format(R"({}, "replacement": {})", second, policy))));
        }
    }
}

TEST_CASE("microbench: relations between levels do not hide the geometry", "[microbench]")
{
    for (const char* const keys :
         {R"("lookup_cycles": 7, "inclusion": "inclusive")", R"("lookup_cycles": 1, "takes_evictions": true)",
          R"("lookup_cycles": 7, "touched_by_earlier_hits": true)", R"("lookup_cycles": 7, "refills": false)",
          R"("lookup_cycles": 3, "splinters": true)", R"("lookup_cycles": 7, "inclusion": "exclusive")"}) {
        INFO(keys);
        check_found(
            parsed(small_profile(R"("entries": 16, "ways": 4)", R"("entries": 256, "ways": 4)", keys)));
    }
}

TEST_CASE("microbench: a level that can't be told from another is not guessed", "[microbench]")
{
    const auto cpu = parsed(small_profile(R"("entries": 16, "ways": 4)", R"("entries": 256, "ways": 4)",
                                          R"("lookup_cycles": 0)"));
    const Geometry found = find_geometry(cpu);
    for (const AccessKind kind : {kRead, kWrite, kFetch}) {
        INFO(name_of(kind));
        CHECK(tlb(found, 2, kind, k4k).presence == Presence::absent);
        // Level 1 alone holds 1G pages.
        CHECK(tlb(found, 1, kind, k1g).shape == StorageShape{4, 4});
    }
}

TEST_CASE("microbench: a seed is an experiment", "[microbench]")
{
    const auto cpu = bundled("skylake");
    CHECK(find_geometry(cpu, 5) == find_geometry(cpu, 5));
    CHECK(find_geometry(cpu, 5) == find_geometry(cpu, 6));
}
