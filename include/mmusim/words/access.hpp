// SPDX-License-Identifier: Apache-2.0
//
// What an access asks of the MMU (SDM vol. 3A 4.6 "Access Rights"): its kind and its mode. A user-mode
// access is one made at CPL 3; an implicit access (to a descriptor table or the TSS) is a
// supervisor-mode access at any CPL, and EFLAGS.AC does not help it past SMAP.
#pragma once

#include <cstdint>
#include <string_view>

#include <mmusim/words/address.hpp>

namespace mmusim {

enum class AccessKind : std::uint8_t { read, write, fetch };

[[nodiscard]] constexpr std::string_view name_of(AccessKind kind)
{
    switch (kind) {
    case AccessKind::read: return "read";
    case AccessKind::write: return "write";
    case AccessKind::fetch: return "fetch";
    }
    return "?";
}

/// One access to one page, as the walk sees it.
struct Access {
    LinearAddress address;
    AccessKind kind = AccessKind::read;
    bool user_mode = false;
    bool implicit = false;  ///< implicit supervisor access; then user_mode is false
};

}  // namespace mmusim
