// SPDX-License-Identifier: Apache-2.0
//
// Random small CPU profiles, valid by construction: one to three levels of TLBs, all policies and kinds of
// inclusion, odd numbers of sets, XOR indices, views, splintering, limits on PCIDs, paging-structure caches
// of their own or in a TLB, zero to three data caches. Small, so that evictions are frequent.
#pragma once

#include <cstdint>

#include <mmusim/cpu/cpu_profile.hpp>

namespace model {

mmusim::CpuProfile random_profile(std::uint64_t seed);

}  // namespace model
