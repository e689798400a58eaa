// SPDX-License-Identifier: Apache-2.0
//
// From the engine, which knows no mode, to the ShadowMmu of one.
#pragma once

#include <mmusim/shadow/shadow_engine.hpp>

#include "shadow_mmu.hpp"

namespace mmusim {

/// The mode whose entries a table format has. Those of five-level paging include four-level's.
inline Paging paging_of(TableFormat format)
{
    switch (format) {
    case TableFormat::bits32: return Paging::two_level;
    case TableFormat::pae: return Paging::pae;
    case TableFormat::bits64: return Paging::five_level;
    }
    return Paging::five_level;
}

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
