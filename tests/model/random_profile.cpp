// SPDX-License-Identifier: Apache-2.0
#include "model/random_profile.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include <fmt/format.h>

#include "support/random.hpp"

namespace model {

namespace {

using namespace mmusim;

class Maker {
public:
    explicit Maker(std::uint64_t seed) : random_{seed}, scale_{random_.percent(25) ? 4u : 1u} {}

    CpuProfile profile()
    {
        CpuProfile made;
        made.tlbs.tlbs = tlbs();
        made.tlbs.paging_structure_caches = paging_structure_caches(made.tlbs.tlbs);
        made.tlbs.pcid = random_.percent(85);
        made.timing = timing();
        return made;
    }

private:
    ReplacementSpec replacement(unsigned ways, bool stamps_only = false)
    {
        using K = ReplacementKind;
        ReplacementSpec spec;
        spec.kind = stamps_only ? random_.one_of(std::array{K::lru, K::fifo, K::random})
                                : random_.one_of(std::array{K::lru, K::tree_plru, K::bit_plru, K::fifo,
                                                            K::random, K::srrip, K::mru_groups});
        spec.seed = random_.word();
        if (spec.kind == K::mru_groups) {
            do {
                spec.groups = random_.from_to(1, ways);
            } while (ways % spec.groups != 0);
        }
        return spec;
    }

    IndexSpec index(unsigned sets)
    {
        IndexSpec spec;
        if (sets == 1 || !std::has_single_bit(sets) || random_.percent(50)) return spec;
        const auto bits = static_cast<unsigned>(std::countr_zero(sets));
        for (unsigned i = 0; i < bits; ++i) {
            std::uint64_t mask = std::uint64_t{1} << i | std::uint64_t{1} << (i + bits);
            if (random_.percent(30)) mask |= std::uint64_t{1} << random_.below(30);
            spec.xor_masks.push_back(mask);
        }
        return spec;
    }

    /// All kinds in the same rows; a kind may have only some ways of a row.
    TlbArraySpec shared_array(const std::vector<EntryKind>& kinds, unsigned max_sets, unsigned max_ways)
    {
        TlbArraySpec array;
        const unsigned sets = random_.from_to(1, max_sets * scale_);
        array.ways = random_.from_to(1, max_ways);
        array.entries = sets * array.ways;
        for (const EntryKind kind : kinds) {
            EntryView view{kind, array.ways, 0, array.ways};
            if (random_.percent(25)) {
                view.ways = random_.from_to(1, array.ways);
                view.first_way = random_.from_to(0, array.ways - view.ways);
            }
            array.views.push_back(view);
        }
        array.index = index(sets);
        array.replacement = replacement(array.ways);
        return array;
    }

    /// Each kind cuts the entries into rows of its own.
    TlbArraySpec recut_array(const std::vector<EntryKind>& kinds)
    {
        TlbArraySpec array;
        array.entries = 12 * random_.from_to(1, 3);
        array.ways = 4;
        for (const EntryKind kind : kinds) {
            const unsigned stride = random_.one_of(std::array{1u, 2u, 3u, 4u, 6u, 12u});
            const unsigned ways = random_.percent(70) ? stride : random_.from_to(1, stride);
            array.views.push_back({kind, ways, random_.from_to(0, stride - ways), stride});
        }
        array.replacement = replacement(array.ways, true);
        return array;
    }

    /// One to three arrays that hold some of the kinds of pages, each kind in one of them.
    std::vector<TlbArraySpec> arrays(unsigned level)
    {
        std::vector<std::vector<EntryKind>> groups(random_.from_to(1, 3));
        for (const auto& [kind, chance] : {std::pair{EntryKind::page_4k, 92u},
                                           {EntryKind::page_2m, 65u},
                                           {EntryKind::page_4m, 50u},
                                           {EntryKind::page_1g, 45u}}) {
            if (random_.percent(chance)) {
                groups[random_.below(static_cast<unsigned>(groups.size()))].push_back(kind);
            }
        }
        std::vector<TlbArraySpec> made;
        for (std::vector<EntryKind>& kinds : groups) {
            if (kinds.empty()) continue;
            if (random_.percent(30)) std::reverse(kinds.begin(), kinds.end());
            made.push_back(random_.percent(20) ? recut_array(kinds)
                                               : shared_array(kinds, level == 1 ? 4 : 7, level == 1 ? 5 : 9));
        }
        if (made.empty()) made.push_back(shared_array({EntryKind::page_4k}, 4, 4));
        return made;
    }

    TlbSpec tlb(unsigned level, const std::string& suffix, bool fetches, bool loads, bool stores)
    {
        TlbSpec spec;
        spec.name = fmt::format("l{}{}", level, suffix);
        spec.level = level;
        spec.fetches = fetches;
        spec.loads = loads;
        spec.stores = stores;
        spec.arrays = arrays(level);
        spec.lookup_cycles = level == 1 ? random_.below(3) : random_.from_to(1, 9);
        spec.splinters = random_.percent(40);
        if (level > 1) {
            const unsigned what = random_.below(100);
            spec.inclusion = what < 45   ? Inclusion::neither
                             : what < 70 ? Inclusion::inclusive
                                         : Inclusion::exclusive;
            spec.refills = random_.percent(spec.inclusion == Inclusion::exclusive ? 95 : 80);
            spec.takes_evictions = spec.inclusion != Inclusion::exclusive && random_.percent(30);
            spec.touched_by_earlier_hits = random_.percent(25);
        }
        if (random_.percent(50)) spec.pcids_kept_flush = random_.below(4);
        if (random_.percent(50)) spec.pcids_kept_noflush = random_.below(4);
        return spec;
    }

    std::vector<TlbSpec> tlbs()
    {
        std::vector<TlbSpec> made;
        const unsigned first = random_.below(4);
        if (first == 0) {
            made.push_back(tlb(1, "", true, true, true));
        } else {
            made.push_back(tlb(1, "i", true, false, false));
            if (first == 1) {
                made.push_back(tlb(1, "d_load", false, true, false));
                made.push_back(tlb(1, "d_store", false, false, true));
            } else {
                made.push_back(tlb(1, "d", false, true, true));
            }
        }
        if (random_.percent(15)) return made;
        const unsigned second = random_.below(4);
        if (second <= 1) made.push_back(tlb(2, "", true, true, true));
        if (second == 2) made.push_back(tlb(2, "i", true, false, false));
        if (second >= 2) made.push_back(tlb(2, "d", false, true, true));
        if (random_.percent(65)) return made;
        const bool for_all = second <= 2 && random_.percent(60);
        made.push_back(tlb(3, for_all ? "" : "d", for_all, true, true));
        return made;
    }

    std::vector<PagingStructureCacheSpec> paging_structure_caches(std::vector<TlbSpec>& tlbs)
    {
        std::vector<PagingStructureCacheSpec> made;
        for (int level = 2; level <= 5; ++level) {
            if (random_.percent(30)) continue;
            PagingStructureCacheSpec& cache = made.emplace_back();
            cache.level = level;
            TlbSpec& home = tlbs[random_.below(static_cast<unsigned>(tlbs.size()))];
            if (level != 2 || home.level == 1 || random_.percent(50)) {
                cache.array = shared_array({EntryKind::pde}, 3, 4);
                continue;
            }
            cache.stored_in = home.name;
            TlbArraySpec& array = home.arrays[random_.below(static_cast<unsigned>(home.arrays.size()))];
            EntryView view = array.views.front();
            view.kind = EntryKind::pde;
            array.views.push_back(view);
        }
        return made;
    }

    TimingSpec timing()
    {
        TimingSpec made;
        Cycles latency = random_.from_to(0, 5);
        const unsigned caches = random_.below(4);
        for (unsigned i = 0; i < caches; ++i) {
            CacheSpec& cache = made.data_caches.emplace_back();
            cache.name = std::array{"l1d", "l2", "l3"}[i];
            cache.sets = random_.from_to(1, 8);
            cache.ways = random_.from_to(1, 6);
            cache.line_bytes = random_.percent(80) ? 64 : random_.percent(50) ? 32 : 128;
            cache.latency = latency;
            latency += random_.from_to(1, 20);
            cache.misses_in_flight = random_.from_to(1, 4);
            cache.index = index(cache.sets);
            cache.replacement = replacement(cache.ways);
        }
        made.memory_latency = latency + random_.below(150);
        made.walker.count = random_.from_to(1, 6);
        made.walker.start_cycles = random_.below(4);
        for (std::size_t level = 1; level <= 5; ++level) made.walker.load_cycles[level] = random_.below(3);
        made.walker.assist_cycles = random_.below(40);
        made.front_end.issue_width = random_.from_to(1, 4);
        made.front_end.fetch_cycles = random_.below(3);
        made.instructions.mov_cr = random_.below(50);
        made.instructions.mov_cr3 = random_.below(80);
        made.instructions.invlpg = random_.below(80);
        made.instructions.invpcid = random_.below(80);
        made.instructions.page_fault = random_.below(300);
        if (random_.percent(25)) made.instructions = {};  // nothing takes time
        return made;
    }

    support::Random64 random_;
    unsigned scale_ = 1;
};

}  // namespace

CpuProfile random_profile(std::uint64_t seed)
{
    CpuProfile profile = Maker{seed}.profile();
    profile.name = fmt::format("random-{}", seed);
    return profile;
}

}  // namespace model
