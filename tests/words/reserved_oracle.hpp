// SPDX-License-Identifier: Apache-2.0
//
// Which bits of a present entry are reserved, one bit at a time: the manuals' tables read aloud (SDM vol.
// 3A 4.3 tables 4-4 to 4-6, 4.4.2 tables 4-9 to 4-11, 4.5.4 tables 4-15 to 4-20; AMD64 APM vol. 2 5.3.3
// for G in the upper entries). It shares no mask and no helper with the library.
#pragma once

#include <cstdint>

#include <mmusim/words/paging_mode.hpp>

namespace mmusim::oracle {

/// All that the meaning of an entry's bits depends on.
struct EntryFormat {
    Paging paging = Paging::four_level;
    int maxphyaddr = 40;
    bool nxe = false;
    bool pse = false;
    bool pse36 = false;
    bool page1gb = false;
    bool amd = false;
};

/// Whether a present entry at `level` with PS as given maps a page.
inline bool maps_page(const EntryFormat& format, int level, bool ps)
{
    if (level == 1) return true;  // bit 7 is PAT there
    if (!ps) return false;
    if (level == 2) return format.paging != Paging::two_level || format.pse;
    if (level == 3) return format.paging != Paging::pae && format.page1gb;
    return false;
}

/// Whether `bit` must be 0 in a present entry at `level`; `page`: the entry maps a page.
inline bool bit_is_reserved(const EntryFormat& format, int level, bool page, int bit)
{
    if (format.paging == Paging::two_level) {
        if (level != 2 || !page) return false;
        if (bit == 21) return true;
        const int address_bit = bit - 13 + 32;  // PSE-36: entry bits 20:13 hold address bits 39:32
        return bit >= 13 && bit <= 20 && (!format.pse36 || address_bit >= format.maxphyaddr);
    }
    switch (bit) {
    case 63: return !format.nxe;
    case 7: return level >= 4 || (level == 3 && !format.page1gb);
    case 8: return level >= 4 && format.amd;
    default: break;
    }
    if (bit >= 52) return format.paging == Paging::pae;
    if (bit >= format.maxphyaddr) return true;
    if (page && level == 2) return bit >= 13 && bit <= 20;
    if (page && level == 3) return bit >= 13 && bit <= 29;
    return false;
}

/// The same for a PDPTE of PAE paging (SDM vol. 3A table 4-8).
inline bool bit_is_reserved_in_pdpte(int maxphyaddr, int bit)
{
    return bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= maxphyaddr;
}

}  // namespace mmusim::oracle
