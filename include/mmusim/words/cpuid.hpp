// SPDX-License-Identifier: Apache-2.0
//
// What CPUID shows the guest, as far as address translation depends on it. PAE, long mode and PAT are
// always there.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace mmusim {

enum class Vendor : std::uint8_t { intel, amd };

struct Cpuid {
    Vendor vendor = Vendor::intel;
    unsigned physical_address_bits = 40;  ///< MAXPHYADDR, 32 to 52
    bool nx = false;
    bool pse = false;
    bool pse36 = false;
    bool pge = false;
    bool pcid = false;
    bool invpcid = false;
    bool smep = false;
    bool smap = false;
    bool pku = false;
    bool pks = false;
    bool page1gb = false;
    bool la57 = false;

    friend bool operator==(const Cpuid&, const Cpuid&) = default;
};

inline constexpr unsigned kMinPhysicalAddressBits = 32;
inline constexpr unsigned kMaxPhysicalAddressBits = 52;

/// The features by the name they have in a trace's header.
inline constexpr std::array<std::pair<std::string_view, bool Cpuid::*>, 12> kFeatureNames{{
    {"nx", &Cpuid::nx},
    {"pse", &Cpuid::pse},
    {"pse36", &Cpuid::pse36},
    {"pge", &Cpuid::pge},
    {"pcid", &Cpuid::pcid},
    {"invpcid", &Cpuid::invpcid},
    {"smep", &Cpuid::smep},
    {"smap", &Cpuid::smap},
    {"pku", &Cpuid::pku},
    {"pks", &Cpuid::pks},
    {"page1gb", &Cpuid::page1gb},
    {"la57", &Cpuid::la57},
}};

}  // namespace mmusim
