// SPDX-License-Identifier: Apache-2.0
#include "model/describe.hpp"

#include <array>

#include <fmt/format.h>

namespace model {

namespace {

std::string describe(const PolicyConfig& config)
{
    constexpr std::array kNames{"lru", "fifo", "random", "tree-plru", "bit-plru", "srrip", "mru-groups"};
    return fmt::format("{} (groups {}, seed {:#x})", kNames[static_cast<std::size_t>(config.policy)],
                       config.groups, config.seed);
}

std::string describe(const Index& index)
{
    std::string text = index.xor_masks.empty() ? "modulo" : "xor";
    for (const u64 mask : index.xor_masks) text += fmt::format(" {:#x}", mask);
    return text;
}

std::string describe(const ArrayConfig& array)
{
    constexpr std::array kKinds{"4K", "2M", "4M", "1G", "PDE"};
    std::string text = fmt::format("    {} entries, rows of {}, {}, {}:", array.entries, array.ways,
                                   describe(array.index), describe(array.replacement));
    for (const View& view : array.views) {
        text += fmt::format(" {} ways {}+{} stride {}", kKinds[static_cast<std::size_t>(view.kind)],
                            view.first_way, view.ways, view.stride);
    }
    return text + '\n';
}

std::string describe(const TlbConfig& tlb)
{
    constexpr std::array kInclusions{"", " inclusive", " exclusive"};
    std::string text =
        fmt::format("  {}: level {}, {} cycles{}{}{}{}{}{}{}{}, PCIDs kept {} {}\n", tlb.name, tlb.level,
                    tlb.lookup_cycles, tlb.fetches ? " fetches" : "", tlb.loads ? " loads" : "",
                    tlb.stores ? " stores" : "", kInclusions[static_cast<std::size_t>(tlb.inclusion)],
                    tlb.refills ? " refills" : "", tlb.takes_evictions ? " takes_evictions" : "",
                    tlb.touched_by_earlier_hits ? " touched_by_earlier_hits" : "",
                    tlb.splinters ? " splinters" : "", tlb.pcids_kept_flush, tlb.pcids_kept_noflush);
    for (const ArrayConfig& array : tlb.arrays) text += describe(array);
    return text;
}

}  // namespace

std::string describe(const Config& config)
{
    std::string text = fmt::format("PCIDs {}, TLBs:\n", config.pcid ? "yes" : "no");
    for (const TlbConfig& tlb : config.tlbs) text += describe(tlb);
    for (const PscConfig& psc : config.pscs) {
        text += fmt::format("  paging-structure cache of level {}, {}\n", psc.level,
                            psc.stored_in.empty() ? "its own" : psc.stored_in);
        if (psc.stored_in.empty()) text += describe(psc.array);
    }
    for (const DataCacheConfig& cache : config.data_caches) {
        text += fmt::format("  {}: {} sets, {} ways, lines of {}, latency {}, {} misses, {}, {}\n",
                            cache.name, cache.sets, cache.ways, cache.line_bytes, cache.latency,
                            cache.misses_in_flight, describe(cache.index), describe(cache.replacement));
    }
    text += fmt::format("  memory {}, {} walkers, start {}, loads {} {} {} {} {}, assist {}\n",
                        config.memory_latency, config.walkers, config.walk_start, config.walk_load[1],
                        config.walk_load[2], config.walk_load[3], config.walk_load[4], config.walk_load[5],
                        config.walk_assist);
    text += fmt::format("  width {}, fetch {}, mov_cr {}, mov_cr3 {}, invlpg {}, invpcid {}, #PF {}\n",
                        config.issue_width, config.fetch_cycles, config.mov_cr, config.mov_cr3, config.invlpg,
                        config.invpcid, config.page_fault);
    return text;
}

}  // namespace model
