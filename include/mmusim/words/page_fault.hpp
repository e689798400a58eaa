// SPDX-License-Identifier: Apache-2.0
//
// Exceptions that an address translation can raise, as values: #PF with its error code (SDM vol. 3A
// 4.7) and CR2, #GP and #SS for a segment violation or an address that is not canonical, #UD for an
// instruction that the CPU does not have.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <mmusim/words/address.hpp>

namespace mmusim {

/// Bits of the #PF error code.
namespace pf {
inline constexpr std::uint32_t kPresent = 1u << 0;        ///< P: a page-level protection violation
inline constexpr std::uint32_t kWrite = 1u << 1;          ///< W
inline constexpr std::uint32_t kUser = 1u << 2;           ///< U: a user-mode access
inline constexpr std::uint32_t kReserved = 1u << 3;       ///< RSVD: a reserved bit was set
inline constexpr std::uint32_t kInstruction = 1u << 4;    ///< I/D: an instruction fetch
inline constexpr std::uint32_t kProtectionKey = 1u << 5;  ///< PK
}  // namespace pf

/// Why a walk ended in a fault.
enum class FaultCause : std::uint8_t { not_present, reserved_bit, rights };

struct PageFault {
    LinearAddress address;  ///< what CR2 receives
    std::uint32_t error_code = 0;
    FaultCause cause = FaultCause::not_present;
    std::uint8_t level = 0;  ///< level of the entry that ended the walk (1 = leaf table)
};

/// "P W U RSVD I/D PK", the bits that are set; "-" for none.
[[nodiscard]] std::string describe_error_code(std::uint32_t error_code);

enum class Vector : std::uint8_t {
    undefined_opcode,
    stack_fault,
    general_protection,
    page_fault,
    mem_access,  ///< none of the guest's: the hypervisor did not let the access be done (docs/mem-access.md)
};

/// "#PF", "#GP", ...
[[nodiscard]] std::string_view name_of(Vector vector);

/// What the guest sees instead of a completed access or instruction.
struct Exception {
    Vector vector = Vector::general_protection;
    std::uint32_t error_code = 0;  ///< of a page fault
    LinearAddress address;         ///< CR2 of a page fault
    std::string_view why = {};     ///< for people: the rule that was broken (a literal)

    [[nodiscard]] static Exception of(const PageFault& fault)
    {
        return {Vector::page_fault, fault.error_code, fault.address, {}};
    }
};

/// "#PF, error code 0x6 (W U), CR2 0x1000", "#GP: why".
[[nodiscard]] std::string describe(const Exception& exception);

}  // namespace mmusim
