// SPDX-License-Identifier: Apache-2.0
//
// What goes wrong in shadow paging when the hypervisor does not see each MOV CR3, or keeps secure frames with
// shadows that ordinary address spaces share (docs/secure-view.md). Each is counted where it would matter,
// and told in a sentence. Where mmusim does right all the same, the sentence tells what a hypervisor would
// have done.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace mmusim {

struct HazardCounts {
    std::uint64_t shared_tables = 0;    ///< an ordinary root reaches a shadow entry that maps a secure frame
    std::uint64_t stale_shadows = 0;    ///< shadows that MOV CR3 did not bring up to date
    std::uint64_t virtual_tlb = 0;      ///< a translation of another root would have been used by emulation
    std::uint64_t fast_emulation = 0;   ///< a write would have gone to a table of another root
    std::uint64_t root_references = 0;  ///< a root would have been freed while a vCPU ran on it

    friend bool operator==(const HazardCounts&, const HazardCounts&) = default;
};

struct HazardName {
    std::string_view name;
    std::uint64_t HazardCounts::*member;
};

inline constexpr std::array<HazardName, 5> kHazardNames{{
    {"shared_tables", &HazardCounts::shared_tables},
    {"stale_shadows", &HazardCounts::stale_shadows},
    {"virtual_tlb", &HazardCounts::virtual_tlb},
    {"fast_emulation", &HazardCounts::fast_emulation},
    {"root_references", &HazardCounts::root_references},
}};
static_assert(sizeof(HazardCounts) == kHazardNames.size() * sizeof(std::uint64_t), "every hazard has a name");

}  // namespace mmusim
