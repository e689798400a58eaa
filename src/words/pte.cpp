// SPDX-License-Identifier: Apache-2.0
#include <mmusim/words/pte.hpp>

#include <algorithm>

namespace mmusim {

namespace {

/// 4-byte entries have reserved bits in superpages alone: bit 21, and the PSE-36 bits that hold no
/// address (all of them without PSE-36).
EntryRules two_level_rules(const Cpuid& cpuid, EntrySettings settings)
{
    EntryRules rules;
    if (!settings.pse) return rules;  // PS is ignored
    rules.leaf_bit[2] = pte::kPageSize;
    const unsigned width = cpuid.pse36 ? std::min(cpuid.physical_address_bits, 40u) : 32u;
    rules.reserved_in_leaf[2] = bit_range(13 + (width - 32), 21);
    return rules;
}

}  // namespace

EntryRules entry_rules(PagingMode mode, const Cpuid& cpuid, EntrySettings settings)
{
    if (mode == kTwoLevel) return two_level_rules(cpuid, settings);

    EntryRules rules;
    // PAE reserves bits 62:52 too; long mode ignores them or holds a key there.
    const unsigned top_reserved = mode == kPae ? 62 : 51;
    std::uint64_t common = bit_range(cpuid.physical_address_bits, top_reserved);
    if (!settings.nxe) common |= pte::kNoExecute;
    for (std::size_t level = 1; level <= static_cast<std::size_t>(mode.root_level()); ++level) {
        rules.reserved_in_table[level] = common;
        rules.reserved_in_leaf[level] = common;
    }
    rules.leaf_bit[2] = pte::kPageSize;
    rules.reserved_in_leaf[2] |= bit_range(13, 20);
    if (mode == kPae) return rules;

    if (cpuid.page1gb) {
        rules.leaf_bit[3] = pte::kPageSize;
        rules.reserved_in_leaf[3] |= bit_range(13, 29);
    } else {
        rules.reserved_in_table[3] |= pte::kPageSize;
    }
    for (std::size_t level = 4; level <= static_cast<std::size_t>(mode.levels); ++level) {
        rules.reserved_in_table[level] |= pte::kPageSize;
        if (cpuid.vendor == Vendor::amd) rules.reserved_in_table[level] |= pte::kGlobal;
    }
    return rules;
}

std::uint64_t reserved_in_pdpte(const Cpuid& cpuid)
{
    return bit_range(1, 2) | bit_range(5, 8) | bit_range(cpuid.physical_address_bits, 63);
}

}  // namespace mmusim
