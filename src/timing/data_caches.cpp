// SPDX-License-Identifier: Apache-2.0
#include <mmusim/timing/data_caches.hpp>

#include <algorithm>
#include <array>
#include <bit>

#include <boost/container/static_vector.hpp>

namespace mmusim {

DataCaches::Cache::Cache(const CacheSpec& spec)
    : line_shift{static_cast<unsigned>(std::countr_zero(spec.line_bytes))}
    , ways{spec.ways}
    , latency{spec.latency}
    , index{spec.index, spec.sets}
    , replacement{spec.replacement.make(spec.sets, spec.ways)}
    , lines(std::size_t{spec.sets} * spec.ways)
    , ready_at(lines.size())
    , misses{spec.misses_in_flight}
{
}

std::uint32_t DataCaches::Cache::find(std::uint64_t line, unsigned set) const
{
    const std::uint32_t first = set * ways;
    for (std::uint32_t i = first; i < first + ways; ++i) {
        if (lines[i] == line + 1) return i;
    }
    return kNone;
}

void DataCaches::Cache::fill(std::uint64_t line, unsigned set, Cycles ready)
{
    std::uint64_t* const first = lines.begin() + std::size_t{set} * ways;
    if (*first == 0) used_sets.push_back(set);  // free ways are taken in order: the set was empty
    std::uint64_t* const free = std::find(first, first + ways, 0);
    const unsigned way =
        free != first + ways ? static_cast<unsigned>(free - first) : replacement->find_victim(set, {0, ways});
    lines[std::size_t{set} * ways + way] = line + 1;
    ready_at[std::size_t{set} * ways + way] = ready;
    replacement->on_fill(set, way);
}

DataCaches::DataCaches(const std::vector<CacheSpec>& specs, Cycles memory_latency)
    : memory_latency_{memory_latency}
{
    for (const CacheSpec& spec : specs) caches_.emplace_back(spec);
    if (!caches_.empty()) line_shift_ = caches_.front().line_shift;
}

void DataCaches::reset()
{
    for (Cache& cache : caches_) {
        for (const unsigned set : cache.used_sets) {
            std::fill_n(cache.lines.begin() + std::size_t{set} * cache.ways, cache.ways, 0);
            cache.replacement->reset(set);
        }
        cache.used_sets.clear();
        cache.misses.reset();
    }
}

DataCaches::Load DataCaches::load(std::uint64_t address, Cycles now)
{
    if (caches_.empty()) return {now + memory_latency_, 0};
    Cache& nearest = caches_.front();
    const std::uint64_t line = address >> nearest.line_shift;
    const unsigned set = nearest.index(line);
    const std::uint32_t found = nearest.find(line, set);
    if (found == Cache::kNone) return miss(address, now);
    nearest.replacement->on_hit(set, found - set * nearest.ways);
    return {std::max(now + nearest.latency, nearest.ready_at[found]), 0};
}

DataCaches::Load DataCaches::miss(std::uint64_t address, Cycles now)
{
    // Down to the cache that has the line, with a miss slot of each that has not.
    boost::container::static_vector<Slots::Held, 8> held;
    unsigned level = 0;
    Load load{};
    for (;; ++level) {
        if (level == caches_.size()) {
            load = {now + memory_latency_, level};
            break;
        }
        Cache& cache = caches_[level];
        const std::uint64_t line = address >> cache.line_shift;
        const unsigned set = cache.index(line);
        const std::uint32_t found = cache.find(line, set);
        if (found != Cache::kNone) {
            cache.replacement->on_hit(set, found - set * cache.ways);
            load = {std::max(now + cache.latency, cache.ready_at[found]), level};
            break;
        }
        held.push_back(cache.misses.take(now));
        now = held.back().from;
    }
    for (unsigned i = 0; i < level; ++i) {
        Cache& cache = caches_[i];
        const std::uint64_t line = address >> cache.line_shift;
        cache.misses.release(held[i].slot, load.ready_at);
        cache.fill(line, cache.index(line), load.ready_at);
    }
    return load;
}

}  // namespace mmusim
