// SPDX-License-Identifier: Apache-2.0
//
// What the shadow code did, counted with the names of Xen's performance counters without their prefix
// (reference/xen.md B18). All count events, but `alloc_count`, a gauge: pages in use by shadows now.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace mmusim {

struct ShadowCounters {
    std::uint64_t alloc = 0;                  ///< shadows made
    std::uint64_t free = 0;                   ///< shadows destroyed
    std::uint64_t alloc_count = 0;            ///< gauge: 4 KiB pages in use
    std::uint64_t fault = 0;                  ///< page faults that reached the hypervisor
    std::uint64_t fault_bail_real_fault = 0;  ///< ... that belonged to the guest
    std::uint64_t fault_emulate_write = 0;    ///< ... ended by emulating a write to a table
    std::uint64_t fault_emulate_wp = 0;       ///< ... ended by emulating a write that CR0.WP = 0 permits
    std::uint64_t fault_mmio = 0;             ///< ... at an address outside RAM, emulated
    std::uint64_t fault_fixed = 0;            ///< ... ended by an entry for the page accessed
    std::uint64_t fault_linked = 0;           ///< ... ended by a link to a lower table (`populate: step`)
    std::uint64_t guest_walk = 0;             ///< walks of guest tables by the hypervisor
    std::uint64_t hash_lookups = 0;
    std::uint64_t hash_lookup_miss = 0;
    std::uint64_t hash_inserts = 0;
    std::uint64_t hash_deletes = 0;
    std::uint64_t writeable = 0;            ///< frames that lost writable mappings on becoming a table
    std::uint64_t invlpg = 0;               ///< INVLPG of the guest
    std::uint64_t validate_gl1e_calls = 0;  ///< entries propagated after an emulated write, by level
    std::uint64_t validate_gl2e_calls = 0;
    std::uint64_t validate_gl3e_calls = 0;
    std::uint64_t validate_gl4e_calls = 0;
    std::uint64_t validate_gl5e_calls = 0;

    friend bool operator==(const ShadowCounters&, const ShadowCounters&) = default;
};

struct ShadowCounterName {
    std::string_view name;
    std::uint64_t ShadowCounters::*member;
    bool gauge = false;  ///< a level, not a count: phases show its value at their end
};

inline constexpr std::array<ShadowCounterName, 22> kShadowCounterNames{{
    {"alloc", &ShadowCounters::alloc},
    {"free", &ShadowCounters::free},
    {"alloc_count", &ShadowCounters::alloc_count, true},
    {"fault", &ShadowCounters::fault},
    {"fault_bail_real_fault", &ShadowCounters::fault_bail_real_fault},
    {"fault_emulate_write", &ShadowCounters::fault_emulate_write},
    {"fault_emulate_wp", &ShadowCounters::fault_emulate_wp},
    {"fault_mmio", &ShadowCounters::fault_mmio},
    {"fault_fixed", &ShadowCounters::fault_fixed},
    {"fault_linked", &ShadowCounters::fault_linked},
    {"guest_walk", &ShadowCounters::guest_walk},
    {"hash_lookups", &ShadowCounters::hash_lookups},
    {"hash_lookup_miss", &ShadowCounters::hash_lookup_miss},
    {"hash_inserts", &ShadowCounters::hash_inserts},
    {"hash_deletes", &ShadowCounters::hash_deletes},
    {"writeable", &ShadowCounters::writeable},
    {"invlpg", &ShadowCounters::invlpg},
    {"validate_gl1e_calls", &ShadowCounters::validate_gl1e_calls},
    {"validate_gl2e_calls", &ShadowCounters::validate_gl2e_calls},
    {"validate_gl3e_calls", &ShadowCounters::validate_gl3e_calls},
    {"validate_gl4e_calls", &ShadowCounters::validate_gl4e_calls},
    {"validate_gl5e_calls", &ShadowCounters::validate_gl5e_calls},
}};

static_assert(sizeof(ShadowCounters) == kShadowCounterNames.size() * sizeof(std::uint64_t),
              "every counter has a name");

}  // namespace mmusim
