// SPDX-License-Identifier: Apache-2.0
#include "model/from_profile.hpp"

#include <stdexcept>

namespace model {

namespace {

EntryKind kind_of(mmusim::EntryKind kind)
{
    switch (kind) {
    case mmusim::EntryKind::page_4k: return EntryKind::page_4k;
    case mmusim::EntryKind::page_2m: return EntryKind::page_2m;
    case mmusim::EntryKind::page_4m: return EntryKind::page_4m;
    case mmusim::EntryKind::page_1g: return EntryKind::page_1g;
    case mmusim::EntryKind::pde: return EntryKind::pde;
    }
    throw std::logic_error("no such kind");
}

PolicyConfig policy_of(const mmusim::ReplacementSpec& spec)
{
    if (spec.custom) throw std::logic_error("the model has no policies of others");
    const auto policy = [&] {
        switch (spec.kind) {
        case mmusim::ReplacementKind::lru: return Policy::lru;
        case mmusim::ReplacementKind::tree_plru: return Policy::tree_plru;
        case mmusim::ReplacementKind::bit_plru: return Policy::bit_plru;
        case mmusim::ReplacementKind::fifo: return Policy::fifo;
        case mmusim::ReplacementKind::random: return Policy::random;
        case mmusim::ReplacementKind::srrip: return Policy::srrip;
        case mmusim::ReplacementKind::mru_groups: return Policy::mru_groups;
        }
        throw std::logic_error("no such policy");
    };
    return {policy(), spec.groups, spec.seed};
}

Inclusion inclusion_of(mmusim::Inclusion inclusion)
{
    switch (inclusion) {
    case mmusim::Inclusion::neither: return Inclusion::neither;
    case mmusim::Inclusion::inclusive: return Inclusion::inclusive;
    case mmusim::Inclusion::exclusive: return Inclusion::exclusive;
    }
    throw std::logic_error("no such inclusion");
}

ArrayConfig array_of(const mmusim::TlbArraySpec& spec)
{
    ArrayConfig array;
    array.entries = spec.entries;
    array.ways = spec.ways;
    for (const mmusim::EntryView& view : spec.views) {
        array.views.push_back({kind_of(view.kind), view.ways, view.first_way, view.stride});
    }
    array.index.xor_masks = spec.index.xor_masks;
    array.replacement = policy_of(spec.replacement);
    return array;
}

TlbConfig tlb_of(const mmusim::TlbSpec& spec)
{
    TlbConfig tlb;
    tlb.name = spec.name;
    tlb.level = spec.level;
    tlb.fetches = spec.fetches;
    tlb.loads = spec.loads;
    tlb.stores = spec.stores;
    for (const mmusim::TlbArraySpec& array : spec.arrays) tlb.arrays.push_back(array_of(array));
    tlb.lookup_cycles = spec.lookup_cycles;
    tlb.inclusion = inclusion_of(spec.inclusion);
    tlb.refills = spec.refills;
    tlb.takes_evictions = spec.takes_evictions;
    tlb.touched_by_earlier_hits = spec.touched_by_earlier_hits;
    tlb.splinters = spec.splinters;
    tlb.pcids_kept_flush = spec.pcids_kept_flush;
    tlb.pcids_kept_noflush = spec.pcids_kept_noflush;
    return tlb;
}

DataCacheConfig data_cache_of(const mmusim::CacheSpec& spec)
{
    DataCacheConfig cache;
    cache.name = spec.name;
    cache.sets = spec.sets;
    cache.ways = spec.ways;
    cache.line_bytes = spec.line_bytes;
    cache.latency = spec.latency;
    cache.misses_in_flight = spec.misses_in_flight;
    cache.index.xor_masks = spec.index.xor_masks;
    cache.replacement = policy_of(spec.replacement);
    return cache;
}

}  // namespace

Config from_profile(const mmusim::CpuProfile& profile, bool program_data)
{
    Config config;
    for (const mmusim::TlbSpec& tlb : profile.tlbs.tlbs) config.tlbs.push_back(tlb_of(tlb));
    for (const mmusim::PagingStructureCacheSpec& psc : profile.tlbs.paging_structure_caches) {
        config.pscs.push_back({static_cast<unsigned>(psc.level), array_of(psc.array), psc.stored_in});
    }
    config.pcid = profile.tlbs.pcid;

    const mmusim::TimingSpec& timing = profile.timing;
    for (const mmusim::CacheSpec& cache : timing.data_caches) {
        config.data_caches.push_back(data_cache_of(cache));
    }
    config.program_data = program_data;
    config.memory_latency = timing.memory_latency;
    config.walkers = timing.walker.count;
    config.walk_start = timing.walker.start_cycles;
    config.walk_load = timing.walker.load_cycles;
    config.walk_assist = timing.walker.assist_cycles;
    config.issue_width = timing.front_end.issue_width;
    config.fetch_cycles = timing.front_end.fetch_cycles;
    config.mov_cr = timing.instructions.mov_cr;
    config.mov_cr3 = timing.instructions.mov_cr3;
    config.invlpg = timing.instructions.invlpg;
    config.invpcid = timing.instructions.invpcid;
    config.page_fault = timing.instructions.page_fault;
    return config;
}

}  // namespace model
