// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/policy_catalog.hpp>

#include <algorithm>

#include <fmt/format.h>

#include "policies.hpp"

namespace mmusim {

void ShadowPolicyCatalog::add(std::string name, std::string description, ShadowPolicyFactory make)
{
    std::erase_if(entries_, [&](const Entry& entry) { return entry.name == name; });
    entries_.push_back({std::move(name), std::move(description), std::move(make)});
}

const ShadowPolicyFactory& ShadowPolicyCatalog::find(std::string_view name) const
{
    std::string known;
    for (const Entry& entry : entries_) {
        if (entry.name == name) return entry.make;
        known += (known.empty() ? "" : ", ") + entry.name;
    }
    throw UnknownPolicy(fmt::format("unknown shadow policy '{}'; known: {}", name, known));
}

ShadowPolicyCatalog builtin_shadow_policies()
{
    ShadowPolicyCatalog catalog;
    catalog.add("xen",
                "level-1 tables go out of sync at the first write and are resynced at flushes; writes to "
                "upper ones are "
                "emulated",
                [] { return make_custom_policy({}); });
    catalog.add("xen-2006", "as xen, but each write to a table is emulated: Xen until June 2008",
                [] { return make_custom_policy({.out_of_sync = false}); });
    catalog.add("xen-2006-first", "as xen-2006, with the two optimisations of August 2006 alone", [] {
        return make_custom_policy(
            {.switches = {.writable_heuristic = true, .early_unshadow = true}, .out_of_sync = false});
    });
    catalog.add("custom", "xen with the switches and sizes of the configuration's keys shadow.custom",
                [] { return make_custom_policy({}); });
    catalog.add("xen-2005",
                "any table goes out of sync at its first write; a fault on a changed path, and each MOV CR3, "
                "resyncs all",
                [] { return make_xen_2005_policy(FaultResync::path_changed); });
    catalog.add("xen-2005-always", "as xen-2005, but each fault resyncs all",
                [] { return make_xen_2005_policy(FaultResync::always); });
    catalog.add("kvm",
                "shadows by frame and rights; level-1 tables go out of sync without a limit and are resynced "
                "with their root; writes to upper ones drop their entry",
                make_kvm_policy);
    catalog.add("write-protect",
                "guest tables are read-only, each write to one is emulated and propagated; shadows are kept "
                "and shared",
                make_write_protect_policy);
    catalog.add("tlb-like",
                "the guest writes its tables freely; a CR3 write or flush drops everything under the root, "
                "INVLPG one entry",
                make_tlb_like_policy);
    catalog.add("vtlb-nova",
                "as tlb-like, with one tree for each vCPU: MOV CR3 drops its top entries, but not those with "
                "global pages alone",
                make_vtlb_nova_policy);
    catalog.add(
        "vtlb-stale",
        "the first write to a table makes it stale and is let through; a flush drops what stale tables "
        "had",
        make_vtlb_stale_policy);
    return catalog;
}

}  // namespace mmusim
