// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mmusim/shadow/shadow_engine.hpp>

#include "shadow_mmu.hpp"

namespace mmusim {

/// Calls `verb` with the ShadowMmu of the guest's mode.
template <class Verb>
inline void in_mode(ShadowEngine& engine, Paging paging, Verb verb)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: verb(ShadowMmu<kTwoLevel>{engine}); break;
    case Paging::pae: verb(ShadowMmu<kPae>{engine}); break;
    case Paging::four_level: verb(ShadowMmu<kFourLevel>{engine}); break;
    case Paging::five_level: verb(ShadowMmu<kFiveLevel>{engine}); break;
    }
}

}  // namespace mmusim
