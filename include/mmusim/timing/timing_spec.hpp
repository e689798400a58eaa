// SPDX-License-Identifier: Apache-2.0
//
// What things take, as a CPU profile states it: the data caches, the walkers, instructions that concern
// the MMU, and the price list of hypervisor work. Plain values, all in cycles of the core.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mmusim/storage/index_function.hpp>
#include <mmusim/storage/replacement.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim {

struct CacheSpec {
    std::string name;  ///< "l1d", "l2", "l3"
    unsigned sets = 64;
    unsigned ways = 8;
    unsigned line_bytes = 64;
    Cycles latency = 4;  ///< load to use, from the request, when this level has the line
    unsigned misses_in_flight = 10;
    IndexSpec index;
    ReplacementSpec replacement;
};

struct WalkerSpec {
    unsigned count = 1;       ///< walks in flight
    Cycles start_cycles = 0;  ///< before the first load
    /// Before the load of an entry of level 1 to 5, besides the data caches' own latency; index 0 is unused.
    std::array<Cycles, 6> load_cycles{};
    Cycles assist_cycles = 0;  ///< of a walk that sets accessed or dirty bits, once
};

struct FrontEndSpec {
    unsigned issue_width = 1;  ///< accesses or instructions a cycle
    Cycles fetch_cycles = 1;   ///< of each 16 bytes that a fetch touches
};

/// Instructions and events of a guest that runs without a hypervisor.
struct InstructionSpec {
    Cycles mov_cr = 0;  ///< MOV to CR0, CR4, WRMSR
    Cycles mov_cr3 = 0;
    Cycles invlpg = 0;
    Cycles invpcid = 0;
    Cycles page_fault = 0;  ///< delivery and return
};

/// Work of the hypervisor: one price for each unit of work.
struct PriceList {
    Cycles exit = 0;             ///< guest to hypervisor
    Cycles entry = 0;            ///< and back
    Cycles fault_handler = 0;    ///< fixed part of a page fault's handling
    Cycles guest_walk_load = 0;  ///< each entry of the guest's tables that the handler reads
    Cycles shadow_page = 0;      ///< a shadow page found free, cleared, hashed
    Cycles propagate = 0;        ///< an entry made or changed
    Cycles prefetch = 0;         ///< a further entry that a fault fills
    Cycles emulate = 0;          ///< an instruction emulated
    Cycles load_root = 0;        ///< the roots of a CR3 load found or made
    Cycles hash_step = 0;        ///< a shadow looked at in a chain of the hash table
    Cycles guess = 0;            ///< a place where a table may be mapped writable looked at
    Cycles search_entry = 0;     ///< an entry looked at in a search for such mappings
    Cycles snapshot = 0;         ///< a guest table copied
    Cycles compare_entry = 0;    ///< an entry compared with the copy
    Cycles flush = 0;            ///< of a vCPU's TLB
    Cycles ipi = 0;              ///< to another vCPU that has to flush, and the wait for it
    Cycles access_event = 0;     ///< of mem_access: put into the ring, the listener woken, its answer taken
};

struct TimingSpec {
    std::vector<CacheSpec> data_caches;  ///< nearest first; may be empty
    Cycles memory_latency = 200;         ///< load to use, when no cache has the line
    WalkerSpec walker;
    FrontEndSpec front_end;
    InstructionSpec instructions;
    PriceList hypervisor;
};

}  // namespace mmusim
