// SPDX-License-Identifier: Apache-2.0
#include <mmusim/tlb/tlb_spec.hpp>

namespace mmusim {

std::string_view name_of(EntryKind kind)
{
    constexpr std::array<std::string_view, kEntryKinds> kNames{"4K", "2M", "4M", "1G", "pde"};
    return kNames[static_cast<std::size_t>(kind)];
}

}  // namespace mmusim
