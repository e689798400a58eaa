// SPDX-License-Identifier: Apache-2.0
#include <mmusim/pagewalk/rights.hpp>

namespace mmusim {

WalkRules walk_rules(PagingMode mode, const Registers& registers, const Cpuid& cpuid)
{
    WalkRules rules;
    rules.entries = entry_rules(mode, cpuid, registers.entry_settings());
    rules.control = {
        .write_protect = registers.has_cr0(cr0::kWp),
        .smep = registers.has_cr4(cr4::kSmep),
        .smap = registers.has_cr4(cr4::kSmap),
        .ac = registers.ac,
        .user_keys = mode.has_keys && registers.has_cr4(cr4::kPke),
        .supervisor_keys = mode.has_keys && registers.has_cr4(cr4::kPks),
        .nxe_format = mode.has_nx && registers.has_efer(efer::kNxe),
        .pkru = registers.pkru,
        .pkrs = registers.pkrs,
    };
    return rules;
}

}  // namespace mmusim
