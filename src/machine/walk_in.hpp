// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mmusim/pagewalk/walk.hpp>

namespace mmusim {

/// A walk under a paging mode known at run time. `off` is the caller's business.
template <class Tables>
[[gnu::always_inline]] inline Result<Translation<typename Tables::Space>, PageFault> walk_in(
    Paging paging, Tables& tables, const WalkRoot<typename Tables::Space>& root, const WalkRules& rules,
    const Access& access, AdBits ad_bits)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return walk<kTwoLevel>(tables, root, rules, access, ad_bits);
    case Paging::pae: return walk<kPae>(tables, root, rules, access, ad_bits);
    case Paging::four_level: return walk<kFourLevel>(tables, root, rules, access, ad_bits);
    case Paging::five_level: return walk<kFiveLevel>(tables, root, rules, access, ad_bits);
    }
    return PageFault{};
}

}  // namespace mmusim
