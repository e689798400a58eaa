// SPDX-License-Identifier: Apache-2.0
//
// The policies of the library, one source file each.
#pragma once

#include <memory>

#include <mmusim/shadow/policy.hpp>

namespace mmusim {

[[nodiscard]] std::unique_ptr<ShadowPolicy> make_tlb_like_policy();
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_write_protect_policy();

}  // namespace mmusim
