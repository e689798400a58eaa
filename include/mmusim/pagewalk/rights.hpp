// SPDX-License-Identifier: Apache-2.0
//
// Access rights over a whole path (SDM vol. 3A 4.6 and 4.7): U/S and R/W are ANDed, XD is ORed over the
// levels, the protection key is the leaf's. `denied` is the single place that knows WP, SMEP, SMAP, AC,
// implicit accesses and keys.
#pragma once

#include <cstdint>

#include <mmusim/words/access.hpp>
#include <mmusim/words/page_fault.hpp>
#include <mmusim/words/paging_mode.hpp>
#include <mmusim/words/pte.hpp>
#include <mmusim/words/registers.hpp>

namespace mmusim {

/// Rights of one entry, or accumulated over a path.
struct Rights {
    bool user = true;
    bool writable = true;
    bool no_execute = false;
    std::uint8_t key = 0;

    friend bool operator==(const Rights&, const Rights&) = default;
};

/// What the control registers say about rights.
struct RightsControl {
    bool write_protect = false;  ///< CR0.WP
    bool smep = false;
    bool smap = false;             ///< CR4.SMAP
    bool ac = false;               ///< EFLAGS.AC
    bool user_keys = false;        ///< CR4.PKE in long mode
    bool supervisor_keys = false;  ///< CR4.PKS in long mode
    bool nxe_format = false;       ///< execute-disable is in force: EFER.NXE with 8-byte entries
    std::uint32_t pkru = 0;
    std::uint32_t pkrs = 0;

    /// The error-code bits that describe the access itself, whatever the walk finds.
    [[nodiscard]] constexpr std::uint32_t access_bits(const Access& access) const
    {
        std::uint32_t code = 0;
        if (access.kind == AccessKind::write) code |= pf::kWrite;
        if (access.user_mode) code |= pf::kUser;
        if (access.kind == AccessKind::fetch && (nxe_format || smep)) code |= pf::kInstruction;
        return code;
    }
};

/// Whether the protection key of the page denies the access. Keys never stop a fetch.
[[nodiscard]] constexpr bool key_denies(const Rights& rights, const RightsControl& control,
                                        const Access& access)
{
    if (access.kind == AccessKind::fetch) return false;
    if (!(rights.user ? control.user_keys : control.supervisor_keys)) return false;
    const std::uint32_t bits = (rights.user ? control.pkru : control.pkrs) >> (2 * rights.key);
    const bool access_disabled = (bits & 1) != 0;
    const bool write_disabled = (bits & 2) != 0;
    return access_disabled || (write_disabled && access.kind == AccessKind::write &&
                               (access.user_mode || control.write_protect));
}

/// Whether anything but the key denies the access.
[[nodiscard]] constexpr bool page_denies(const Rights& rights, const RightsControl& control,
                                         const Access& access)
{
    const bool fetch = access.kind == AccessKind::fetch;
    const bool write = access.kind == AccessKind::write;
    if (fetch && rights.no_execute) return true;
    if (access.user_mode) return !rights.user || (write && !rights.writable);
    if (rights.user) {
        if (fetch && control.smep) return true;
        if (!fetch && control.smap && (access.implicit || !control.ac)) return true;
    }
    return write && !rights.writable && control.write_protect;
}

/// The #PF error code with which a present page denies the access, or 0 if it permits it.
[[nodiscard]] constexpr std::uint32_t denied(const Rights& rights, const RightsControl& control,
                                             const Access& access)
{
    const bool by_key = key_denies(rights, control, access);
    if (!by_key && !page_denies(rights, control, access)) return 0;
    return control.access_bits(access) | pf::kPresent | (by_key ? pf::kProtectionKey : 0u);
}

/// Everything besides the tables that a walk depends on, for one paging mode.
struct WalkRules {
    EntryRules entries;
    RightsControl control;
};

/// The rules under which a CPU with these registers walks. `mode` is that of `registers.paging()`.
[[nodiscard]] WalkRules walk_rules(PagingMode mode, const Registers& registers, const Cpuid& cpuid);

}  // namespace mmusim
