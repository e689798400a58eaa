// SPDX-License-Identifier: Apache-2.0
//
// The policies of the library, one source file each.
#pragma once

#include <memory>

#include <mmusim/shadow/policy.hpp>

namespace mmusim {

[[nodiscard]] std::unique_ptr<ShadowPolicy> make_kvm_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_tlb_like_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_vtlb_nova_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_vtlb_stale_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_write_protect_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_xen_2005_policy(FaultResync fault_resync);

}  // namespace mmusim
