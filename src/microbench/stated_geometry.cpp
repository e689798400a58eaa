// SPDX-License-Identifier: Apache-2.0
//
// What a profile says of the things that geometry.cpp finds.
#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include <mmusim/microbench/geometry.hpp>

#include "microbench/laboratory.hpp"

namespace mmusim::microbench {

namespace {

bool serves(const TlbSpec& tlb, AccessKind kind)
{
    switch (kind) {
    case AccessKind::fetch: return tlb.fetches;
    case AccessKind::read: return tlb.loads;
    case AccessKind::write: return tlb.stores;
    }
    return false;
}

EntryKind entry_of(PageSize size)
{
    switch (size) {
    case PageSize::k4k: return EntryKind::page_4k;
    case PageSize::k2m: return EntryKind::page_2m;
    case PageSize::k1g: break;
    }
    return EntryKind::page_1g;
}

std::optional<StorageShape> shape_in(const TlbArraySpec& array, EntryKind kind, unsigned bits)
{
    for (const EntryView& view : array.views) {
        if (view.kind == kind) return shape_of(array.entries / view.stride, view.ways, array.index, bits);
    }
    return std::nullopt;
}

std::optional<StorageShape> shape_in(const TlbSpec& tlb, EntryKind kind, unsigned bits)
{
    for (const TlbArraySpec& array : tlb.arrays) {
        if (auto shape = shape_in(array, kind, bits)) return shape;
    }
    return std::nullopt;
}

/// The TLBs that serve a kind of access, level 1 first.
std::vector<const TlbSpec*> chain_of(const CpuProfile& cpu, AccessKind kind)
{
    std::vector<const TlbSpec*> chain;
    for (const TlbSpec& tlb : cpu.tlbs.tlbs) {
        if (serves(tlb, kind)) chain.push_back(&tlb);
    }
    return chain;
}

Cycles data_cycles(const CpuProfile& cpu, AccessKind kind)
{
    if (kind == AccessKind::fetch) return cpu.timing.front_end.fetch_cycles;
    return cpu.timing.data_caches.empty() ? cpu.timing.memory_latency
                                          : cpu.timing.data_caches.front().latency;
}

void state(TlbGeometry& one, const TlbSpec& tlb)
{
    const unsigned bits = tested_bits(kFourLevel.levels) - shift_of(one.page);
    if (const auto shape = shape_in(tlb, entry_of(one.page), bits)) {
        one.presence = Presence::present;
        one.shape = *shape;
        return;
    }
    if (tlb.level > 1 && !tlb.splinters) return;
    for (const EntryKind smaller : {EntryKind::page_4k, EntryKind::page_2m}) {
        if (shift_of(smaller) < shift_of(one.page) && shape_in(tlb, smaller, bits)) {
            one.presence = Presence::pieces;
            one.piece_shift = shift_of(smaller);
        }
    }
}

TlbGeometry stated_tlb(const CpuProfile& cpu, PageSize size, unsigned level, AccessKind kind)
{
    TlbGeometry one{.level = level, .kind = kind, .page = size};
    const auto chain = chain_of(cpu, kind);
    if (chain.size() < level) return one;
    const TlbSpec* const tlb = chain[level - 1];
    state(one, *tlb);
    if (one.presence == Presence::absent) return one;
    one.hit_cycles = data_cycles(cpu, kind);
    for (unsigned i = 0; i < level; ++i) one.hit_cycles += chain[i]->lookup_cycles;
    for (const AccessKind other : kKinds) {
        if (other == kind) break;
        if (serves(*tlb, other)) {
            one.shared_with = other;
            break;
        }
    }
    return one;
}

PagingStructureCacheGeometry stated_upper(const CpuProfile& cpu, int level)
{
    PagingStructureCacheGeometry one{.level = level};
    const unsigned bits = tested_bits(std::max(level, kFourLevel.levels)) - kFiveLevel.shift(level);
    for (const PagingStructureCacheSpec& cache : cpu.tlbs.paging_structure_caches) {
        if (cache.level != level) continue;
        std::optional<StorageShape> shape;
        if (cache.stored_in.empty()) shape = shape_in(cache.array, EntryKind::pde, bits);
        for (const TlbSpec& tlb : cpu.tlbs.tlbs) {
            if (!cache.stored_in.empty() && tlb.name == cache.stored_in) {
                shape = shape_in(tlb, EntryKind::pde, bits);
            }
        }
        if (!shape) continue;
        one.presence = Presence::present;
        one.shape = *shape;
    }
    if (one.presence == Presence::absent) return one;
    const Cycles load = data_cycles(cpu, AccessKind::read);
    one.walk_cycles = load + cpu.timing.walker.start_cycles;
    for (const TlbSpec* const tlb : chain_of(cpu, AccessKind::read)) one.walk_cycles += tlb->lookup_cycles;
    for (int below = 1; below < level; ++below) {
        one.walk_cycles += cpu.timing.walker.load_cycles[static_cast<std::size_t>(below)] + load;
    }
    return one;
}

}  // namespace

Geometry stated_geometry(const CpuProfile& cpu)
{
    Geometry stated;
    for (const PageSize size : kSizes) {
        for (unsigned level = 1; level <= 2; ++level) {
            for (const AccessKind kind : kKinds) stated.tlbs.push_back(stated_tlb(cpu, size, level, kind));
        }
    }
    for (int level = 2; level <= 5; ++level) {
        stated.paging_structure_caches.push_back(stated_upper(cpu, level));
    }
    return stated;
}

}  // namespace mmusim::microbench
