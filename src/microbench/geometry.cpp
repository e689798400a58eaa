// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/geometry.hpp>

#include <algorithm>
#include <array>
#include <deque>

#include <fmt/format.h>

#include "microbench/laboratory.hpp"
#include "microbench/storages.hpp"

namespace mmusim::microbench {

namespace {

constexpr unsigned kTrials = 24;  ///< of what chance may spoil
constexpr unsigned kNeeded = 4;   ///< of these

/// log2 of the bytes around a page's first one that are held with it: `held(offset)` says whether the byte at
/// an offset is.
template <class Held>
unsigned held_shift(PageSize size, Held held)
{
    unsigned shift = kPageShift;
    while (shift < shift_of(size) && held(std::uint64_t{1} << shift)) ++shift;
    return shift;
}

class TlbExperiments {
public:
    TlbExperiments(const std::shared_ptr<const CpuProfile>& cpu, PageSize size, std::uint64_t seed)
        : lab_{cpu, size, seed}
    {
        for (const AccessKind kind : kKinds) latencies_[index(kind)] = calibrate(lab_, kind);
    }

    /// Level 1 of this size, by kind.
    std::array<TlbGeometry, 3> first_level()
    {
        std::array<TlbGeometry, 3> found;
        for (const AccessKind kind : kKinds) {
            TlbGeometry& one = found[index(kind)];
            one = {.level = 1, .kind = kind, .page = lab_.size()};
            const Latencies& latencies = latencies_[index(kind)];
            if (!latencies.hit(latencies.repeated)) continue;
            one.hit_cycles = latencies.repeated;
            const bool shared = copy_shared(found, one, [&](AccessKind other, std::uint64_t number) {
                lab_.bed.flush();
                lab_.access(other, number);
                return lab_.access(kind, number) == latencies.repeated;
            });
            if (shared) continue;
            const std::uint64_t number = lab_.any_page();
            settle_pieces(one, held_shift(lab_.size(), [&](std::uint64_t offset) {
                              warm_line(offset);
                              lab_.bed.flush();
                              lab_.access(kind, number);
                              return lab_.bed.access(kind, lab_.page(number) + offset) == latencies.repeated;
                          }));
            if (one.presence == Presence::pieces) continue;
            FirstLevel storage{lab_, kind, latencies};
            settle_shape(one, storage);
        }
        return found;
    }

    /// Level 2, by kind; `first[kind]`: what level 1 holds, by page size.
    std::array<TlbGeometry, 3> second_level(const std::array<std::array<StorageShape, 3>, 3>& first)
    {
        std::array<TlbGeometry, 3> found;
        std::deque<SecondLevel> storages;
        for (const AccessKind kind : kKinds) {
            TlbGeometry& one = found[index(kind)];
            one = {.level = 2, .kind = kind, .page = lab_.size()};
            const Latencies& latencies = latencies_[index(kind)];
            SecondLevel& storage = storages.emplace_back(lab_, kind, latencies);
            if (!latencies.hit(latencies.repeated) || !storage.find_approach(first[index(kind)])) continue;
            one.hit_cycles = storage.hit_cycles();
            const bool shared = copy_shared(found, one, [&](AccessKind other, std::uint64_t number) {
                lab_.bed.flush();
                lab_.access(other, number);
                if (lab_.access(kind, number) == one.hit_cycles) return true;
                SecondLevel& before = storages[index(other)];
                return before.approach().bring != kind &&
                       before.probe(number, kind, lab_.page(number)) == one.hit_cycles;
            });
            if (shared) continue;
            std::uint64_t number = lab_.any_page();
            while (storage.probe(number, kind, lab_.page(number)) != one.hit_cycles) number = lab_.any_page();
            settle_pieces(one, held_shift(lab_.size(), [&](std::uint64_t offset) {
                              const LinearAddress probed = lab_.page(number) + offset;
                              warm_line(offset);
                              for (unsigned i = 0; i < kTrials; ++i) {
                                  if (storage.probe(number, kind, probed) == one.hit_cycles) return true;
                              }
                              return false;
                          }));
            if (one.presence == Presence::pieces) continue;
            do {
                settle_shape(one, storage);
            } while (one.presence == Presence::unclear && storage.next_approach());
        }
        return found;
    }

private:
    static std::size_t index(AccessKind kind) { return static_cast<std::size_t>(kind); }

    /// If pages that an earlier kind of access has brought in serve this one, what was found there holds.
    template <class Serves>
    bool copy_shared(const std::array<TlbGeometry, 3>& found, TlbGeometry& one, Serves serves)
    {
        for (const AccessKind other : kKinds) {
            if (other == one.kind) break;
            const TlbGeometry& before = found[index(other)];
            if (before.presence == Presence::absent) continue;
            unsigned served = 0;
            for (unsigned i = 0; i < kTrials; ++i) served += serves(other, lab_.any_page()) ? 1 : 0;
            if (served < kNeeded) continue;
            one.presence = before.presence;
            one.shape = before.shape;
            one.piece_shift = before.piece_shift;
            one.shared_with = other;
            return true;
        }
        return false;
    }
    /// All pages are the same memory.
    void warm_line(std::uint64_t offset) { lab_.bed.access(AccessKind::read, lab_.page(0) + offset); }
    void settle_pieces(TlbGeometry& one, unsigned shift) const
    {
        if (shift >= shift_of(lab_.size())) return;
        one.presence = Presence::pieces;
        one.piece_shift = shift;
    }
    void settle_shape(TlbGeometry& one, Storage& storage)
    {
        const auto shape = find_shape(storage, lab_.random);
        one.presence = shape ? Presence::present : Presence::unclear;
        if (shape) one.shape = *shape;
    }

    Laboratory lab_;
    std::array<Latencies, 3> latencies_;
};

/// The caches of entries of levels `first` to the root's.
std::vector<PagingStructureCacheGeometry> find_upper(Laboratory& lab, int first)
{
    lab.warm_tables();
    std::vector<PagingStructureCacheGeometry> found;
    Cycles longer = lab.whole_walk();
    for (int level = lab.bed.levels(); level >= first; --level) {
        PagingStructureCacheGeometry one{.level = level};
        UpperEntries storage{lab, level};
        const Cycles walk = storage.walk_cycles();
        if (walk < longer) {
            one.walk_cycles = walk;
            const auto shape = find_shape(storage, lab.random);
            one.presence = shape ? Presence::present : Presence::unclear;
            if (shape) one.shape = *shape;
        }
        longer = std::min(longer, walk);
        found.insert(found.begin(), one);
    }
    return found;
}

}  // namespace

Geometry find_geometry(const std::shared_ptr<const CpuProfile>& cpu, std::uint64_t seed)
{
    Geometry found;
    std::vector<std::unique_ptr<TlbExperiments>> experiments;
    std::vector<std::array<TlbGeometry, 3>> levels;
    std::array<std::array<StorageShape, kSizes.size()>, kKinds.size()> first{};  // by kind and size
    for (std::size_t size = 0; size < kSizes.size(); ++size) {
        experiments.push_back(std::make_unique<TlbExperiments>(cpu, kSizes[size], seed));
        levels.push_back(experiments.back()->first_level());
        for (const AccessKind kind : kKinds) {
            const auto k = static_cast<std::size_t>(kind);
            if (levels[size][k].presence == Presence::present) first[k][size] = levels[size][k].shape;
        }
    }
    for (std::size_t size = 0; size < kSizes.size(); ++size) {
        const auto second = experiments[size]->second_level(first);
        found.tlbs.insert(found.tlbs.end(), levels[size].begin(), levels[size].end());
        found.tlbs.insert(found.tlbs.end(), second.begin(), second.end());
    }
    experiments.clear();

    Laboratory four{cpu, PageSize::k4k, seed};
    found.paging_structure_caches = find_upper(four, 2);
    Laboratory five{cpu, PageSize::k4k, seed, Paging::five_level};
    for (const auto& one : find_upper(five, 5)) found.paging_structure_caches.push_back(one);
    return found;
}

namespace {

std::string to_string(Presence presence, const StorageShape& shape)
{
    switch (presence) {
    case Presence::present: return to_string(shape);
    case Presence::absent: return "none";
    case Presence::pieces:
    case Presence::unclear: break;
    }
    return "not found";
}

}  // namespace

std::string to_string(const TlbGeometry& geometry)
{
    if (geometry.presence != Presence::pieces) return to_string(geometry.presence, geometry.shape);
    constexpr unsigned kMega = 20;
    return geometry.piece_shift < kMega
               ? fmt::format("held as {}K pieces", 1u << (geometry.piece_shift - 10))
               : fmt::format("held as {}M pieces", 1u << (geometry.piece_shift - kMega));
}

std::string to_string(const PagingStructureCacheGeometry& geometry)
{
    return to_string(geometry.presence, geometry.shape);
}

}  // namespace mmusim::microbench
