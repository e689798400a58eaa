// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/policy.hpp>

#include <string>

namespace mmusim {

void require_sound(const PolicyDeclaration& declared)
{
    const auto require = [](bool sound, const char* what) {
        if (!sound) throw BadPolicy(std::string{"the shadow policy's declaration: "} + what);
    };
    constexpr unsigned kLevel1 = 1u << 1;
    const bool private_trees =
        declared.keyed_by == ShadowKeying::position || declared.keyed_by == ShadowKeying::vcpu;
    require(!private_trees || !declared.protects_tables,
            "tables are protected only where shadows are found by frame");
    if (private_trees) return;

    const bool above_level_1 = (declared.stale_levels & ~kLevel1) != 0;
    require(!above_level_1 || declared.out_of_sync == OutOfSyncList::per_domain,
            "tables above level 1 are out of sync only in a list of the domain");
    require(!above_level_1 || declared.repair != Repair::rederive,
            "tables above level 1 are repaired by comparison or dropped");
    require(declared.out_of_sync == OutOfSyncList::per_domain || declared.repair == Repair::compare,
            "the tables of a vCPU's slots are repaired by comparison");
    require(
        declared.keyed_by != ShadowKeying::frame_and_access ||
            (declared.written_entry == WrittenEntry::drop &&
             declared.out_of_sync == OutOfSyncList::per_domain && declared.repair != Repair::compare),
        "shadows found by access drop written entries, and tables out of sync are in a list without copies");
    const unsigned window = declared.sizes.prefetch_window;
    require(window != 0 && (!declared.prefetch_aligned || 512 % window == 0),
            "the window of prefetch is 1 or more, of aligned prefetch a power of two up to 512");
    require(!declared.switches.virtual_tlb || declared.sizes.virtual_tlb != 0,
            "a virtual TLB has one entry or more");
}

}  // namespace mmusim
