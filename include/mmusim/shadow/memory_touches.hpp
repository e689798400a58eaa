// SPDX-License-Identifier: Apache-2.0
//
// Machine memory that the engine's work reads and writes, in order: for whoever models the data caches
// (docs/timing.md, "Under shadows"). Guest tables and shadows; not the hypervisor's own structures (hash
// table, books, P2M, snapshots), which have no addresses here.
#pragma once

#include <cstdint>
#include <vector>

namespace mmusim {

struct MemoryTouch {
    std::uint64_t address = 0;  ///< of the machine
    std::uint32_t bytes = 0;
};
using MemoryTouches = std::vector<MemoryTouch>;

}  // namespace mmusim
