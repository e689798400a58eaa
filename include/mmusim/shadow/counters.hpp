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
    std::uint64_t alloc_tlbflush = 0;         ///< ... of pages that a vCPU had to flush first
    std::uint64_t alloc_count = 0;            ///< gauge: 4 KiB pages in use
    std::uint64_t free = 0;                   ///< shadows destroyed
    std::uint64_t prealloc_1 = 0;             ///< pinned shadows given up for room: times
    std::uint64_t prealloc_2 = 0;             ///< entries of running roots given up for room: times
    std::uint64_t fault = 0;                  ///< page faults that reached the hypervisor
    std::uint64_t fault_fast_gnp = 0;         ///< ... of an entry marked not present in the guest
    std::uint64_t fault_fast_mmio = 0;        ///< ... of an entry marked outside RAM
    std::uint64_t fault_fast_fail = 0;        ///< ... of an entry that is not marked any more
    std::uint64_t fault_bail_bad_gfn = 0;     ///< faults of the guest, for want of a frame behind the page's
    std::uint64_t fault_bail_real_fault = 0;  ///< ... that belonged to the guest
    std::uint64_t fault_emulate_write = 0;    ///< ... ended by emulating a write to a table
    std::uint64_t fault_emulate_failed = 0;   ///< ... of a write that gives its table up instead
    std::uint64_t fault_emulate_wp = 0;       ///< ... ended by emulating what CR0.WP = 0 permits
    std::uint64_t fault_fast_emulate = 0;     ///< ... ended by emulating without a walk, as before
    std::uint64_t fault_fast_emulate_fail = 0;  ///< ... which then was not possible
    std::uint64_t fault_mmio = 0;               ///< ... at an address outside RAM, emulated
    std::uint64_t fault_fixed = 0;              ///< ... ended by an entry for the page accessed
    std::uint64_t fault_linked = 0;             ///< ... ended by a link to a lower table (`populate: step`)
    std::uint64_t guest_walk = 0;               ///< walks of guest tables by the hypervisor
    std::uint64_t validate_gl1e_calls = 0;      ///< entries propagated after an emulated write, by level
    std::uint64_t validate_gl2e_calls = 0;
    std::uint64_t validate_gl3e_calls = 0;
    std::uint64_t validate_gl4e_calls = 0;
    std::uint64_t validate_gl5e_calls = 0;
    std::uint64_t hash_lookups = 0;
    std::uint64_t hash_lookup_head = 0;  ///< ... that the first of a bucket answered
    std::uint64_t hash_lookup_miss = 0;
    std::uint64_t get_shadow_status = 0;  ///< lookups of guest tables: no splintered superpages
    std::uint64_t hash_inserts = 0;
    std::uint64_t hash_deletes = 0;
    std::uint64_t writeable = 0;       ///< searches for writable mappings of a table
    std::uint64_t writeable_h_1 = 0;   ///< mappings that a guess found: Windows, 2-level
    std::uint64_t writeable_h_2 = 0;   ///< ... Windows, PAE
    std::uint64_t writeable_h_3 = 0;   ///< ... Windows, 4-level
    std::uint64_t writeable_h_4 = 0;   ///< ... Linux and Solaris: low memory, direct map
    std::uint64_t writeable_h_5 = 0;   ///< ... in the shadow where a search found one last
    std::uint64_t writeable_h_6 = 0;   ///< ... FreeBSD
    std::uint64_t writeable_h_7 = 0;   ///< mappings of an out-of-sync table that were where its fixup says
    std::uint64_t writeable_h_8 = 0;   ///< ... that were not
    std::uint64_t writeable_bf = 0;    ///< searches through all shadows
    std::uint64_t writeable_bf_1 = 0;  ///< ... while resyncing
    std::uint64_t mappings = 0;        ///< frames whose mappings had to go
    std::uint64_t mappings_bf = 0;     ///< ... for which all shadows were searched
    std::uint64_t early_unshadow = 0;  ///< tables given up because zeros were written
    std::uint64_t unshadow = 0;        ///< tables given up
    std::uint64_t up_pointer = 0;      ///< ... through the one entry that references them
    std::uint64_t unshadow_bf = 0;     ///< ... with other references left
    std::uint64_t check_gwalk = 0;     ///< walks compared with the tables again
    std::uint64_t inconsistent_gwalk = 0;  ///< ... that were not the same
    std::uint64_t rm_write_flush_tlb = 0;  ///< faults that took write access away
    std::uint64_t invlpg = 0;              ///< INVLPG of the guest
    std::uint64_t em_ex_pt = 0;            ///< further instructions emulated that wrote a table (PAE)
    std::uint64_t em_ex_non_pt = 0;        ///< ... that did not
    std::uint64_t em_ex_fail = 0;          ///< ... that were tried, but could not be
    std::uint64_t oos_fixup_add = 0;       ///< writable mappings made of out-of-sync tables
    std::uint64_t oos_fixup_evict = 0;     ///< ... that took the place of another
    std::uint64_t unsync = 0;              ///< tables gone out of sync
    std::uint64_t unsync_evict = 0;        ///< ... for which another had to be resynced
    std::uint64_t resync = 0;              ///< tables resynced

    friend bool operator==(const ShadowCounters&, const ShadowCounters&) = default;
};

struct ShadowCounterName {
    std::string_view name;
    std::uint64_t ShadowCounters::*member;
    bool gauge = false;  ///< a level, not a count: phases show its value at their end
};

inline constexpr std::array<ShadowCounterName, 61> kShadowCounterNames{{
    {"alloc", &ShadowCounters::alloc},
    {"alloc_tlbflush", &ShadowCounters::alloc_tlbflush},
    {"alloc_count", &ShadowCounters::alloc_count, true},
    {"free", &ShadowCounters::free},
    {"prealloc_1", &ShadowCounters::prealloc_1},
    {"prealloc_2", &ShadowCounters::prealloc_2},
    {"fault", &ShadowCounters::fault},
    {"fault_fast_gnp", &ShadowCounters::fault_fast_gnp},
    {"fault_fast_mmio", &ShadowCounters::fault_fast_mmio},
    {"fault_fast_fail", &ShadowCounters::fault_fast_fail},
    {"fault_bail_bad_gfn", &ShadowCounters::fault_bail_bad_gfn},
    {"fault_bail_real_fault", &ShadowCounters::fault_bail_real_fault},
    {"fault_emulate_write", &ShadowCounters::fault_emulate_write},
    {"fault_emulate_failed", &ShadowCounters::fault_emulate_failed},
    {"fault_emulate_wp", &ShadowCounters::fault_emulate_wp},
    {"fault_fast_emulate", &ShadowCounters::fault_fast_emulate},
    {"fault_fast_emulate_fail", &ShadowCounters::fault_fast_emulate_fail},
    {"fault_mmio", &ShadowCounters::fault_mmio},
    {"fault_fixed", &ShadowCounters::fault_fixed},
    {"fault_linked", &ShadowCounters::fault_linked},
    {"guest_walk", &ShadowCounters::guest_walk},
    {"validate_gl1e_calls", &ShadowCounters::validate_gl1e_calls},
    {"validate_gl2e_calls", &ShadowCounters::validate_gl2e_calls},
    {"validate_gl3e_calls", &ShadowCounters::validate_gl3e_calls},
    {"validate_gl4e_calls", &ShadowCounters::validate_gl4e_calls},
    {"validate_gl5e_calls", &ShadowCounters::validate_gl5e_calls},
    {"hash_lookups", &ShadowCounters::hash_lookups},
    {"hash_lookup_head", &ShadowCounters::hash_lookup_head},
    {"hash_lookup_miss", &ShadowCounters::hash_lookup_miss},
    {"get_shadow_status", &ShadowCounters::get_shadow_status},
    {"hash_inserts", &ShadowCounters::hash_inserts},
    {"hash_deletes", &ShadowCounters::hash_deletes},
    {"writeable", &ShadowCounters::writeable},
    {"writeable_h_1", &ShadowCounters::writeable_h_1},
    {"writeable_h_2", &ShadowCounters::writeable_h_2},
    {"writeable_h_3", &ShadowCounters::writeable_h_3},
    {"writeable_h_4", &ShadowCounters::writeable_h_4},
    {"writeable_h_5", &ShadowCounters::writeable_h_5},
    {"writeable_h_6", &ShadowCounters::writeable_h_6},
    {"writeable_h_7", &ShadowCounters::writeable_h_7},
    {"writeable_h_8", &ShadowCounters::writeable_h_8},
    {"writeable_bf", &ShadowCounters::writeable_bf},
    {"writeable_bf_1", &ShadowCounters::writeable_bf_1},
    {"mappings", &ShadowCounters::mappings},
    {"mappings_bf", &ShadowCounters::mappings_bf},
    {"early_unshadow", &ShadowCounters::early_unshadow},
    {"unshadow", &ShadowCounters::unshadow},
    {"up_pointer", &ShadowCounters::up_pointer},
    {"unshadow_bf", &ShadowCounters::unshadow_bf},
    {"check_gwalk", &ShadowCounters::check_gwalk},
    {"inconsistent_gwalk", &ShadowCounters::inconsistent_gwalk},
    {"rm_write_flush_tlb", &ShadowCounters::rm_write_flush_tlb},
    {"invlpg", &ShadowCounters::invlpg},
    {"em_ex_pt", &ShadowCounters::em_ex_pt},
    {"em_ex_non_pt", &ShadowCounters::em_ex_non_pt},
    {"em_ex_fail", &ShadowCounters::em_ex_fail},
    {"oos_fixup_add", &ShadowCounters::oos_fixup_add},
    {"oos_fixup_evict", &ShadowCounters::oos_fixup_evict},
    {"unsync", &ShadowCounters::unsync},
    {"unsync_evict", &ShadowCounters::unsync_evict},
    {"resync", &ShadowCounters::resync},
}};

static_assert(sizeof(ShadowCounters) == kShadowCounterNames.size() * sizeof(std::uint64_t),
              "every counter has a name");

}  // namespace mmusim
