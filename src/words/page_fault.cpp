// SPDX-License-Identifier: Apache-2.0
#include <mmusim/words/page_fault.hpp>

#include <array>
#include <utility>

#include <fmt/format.h>

namespace mmusim {

std::string describe_error_code(std::uint32_t error_code)
{
    static constexpr std::array<std::pair<std::uint32_t, std::string_view>, 6> kBits{{
        {pf::kPresent, "P"},
        {pf::kWrite, "W"},
        {pf::kUser, "U"},
        {pf::kReserved, "RSVD"},
        {pf::kInstruction, "I/D"},
        {pf::kProtectionKey, "PK"},
    }};
    std::string text;
    for (const auto& [bit, name] : kBits) {
        if ((error_code & bit) == 0) continue;
        if (!text.empty()) text += ' ';
        text += name;
    }
    return text.empty() ? "-" : text;
}

std::string_view name_of(Vector vector)
{
    switch (vector) {
    case Vector::undefined_opcode: return "#UD";
    case Vector::stack_fault: return "#SS";
    case Vector::general_protection: return "#GP";
    case Vector::page_fault: return "#PF";
    case Vector::mem_access: return "mem_access";
    }
    return "?";
}

std::string describe(const Exception& exception)
{
    if (exception.vector != Vector::page_fault) {
        return fmt::format("{}: {}", name_of(exception.vector), exception.why);
    }
    return fmt::format("#PF, error code {:#x} ({}), CR2 {}", exception.error_code,
                       describe_error_code(exception.error_code), exception.address);
}

}  // namespace mmusim
