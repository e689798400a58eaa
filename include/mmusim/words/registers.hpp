// SPDX-License-Identifier: Apache-2.0
//
// The registers that address translation depends on, and the rules for loading them (SDM vol. 3A 2.5,
// 4.1, 4.10.4; vol. 2 MOV CR, WRMSR). Each load is a pure function from the old registers to the new
// ones or to the reason why the CPU refuses (#GP). What needs memory (the PDPTEs) and what must be
// flushed afterwards is the machine's business; `reloads_pdptes` and `FlushScope` say what is due.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/paging_mode.hpp>
#include <mmusim/words/pte.hpp>
#include <mmusim/words/result.hpp>
#include <mmusim/words/segment.hpp>

namespace mmusim {

namespace cr0 {
inline constexpr std::uint64_t kPe = std::uint64_t{1} << 0;
inline constexpr std::uint64_t kEt = std::uint64_t{1} << 4;
inline constexpr std::uint64_t kWp = std::uint64_t{1} << 16;
inline constexpr std::uint64_t kNw = std::uint64_t{1} << 29;
inline constexpr std::uint64_t kCd = std::uint64_t{1} << 30;
inline constexpr std::uint64_t kPg = std::uint64_t{1} << 31;
}  // namespace cr0

namespace cr3 {
inline constexpr std::uint64_t kPcid = 0xfff;
inline constexpr std::uint64_t kNoFlush = std::uint64_t{1} << 63;  ///< of a MOV operand, never stored
}  // namespace cr3

namespace cr4 {
inline constexpr std::uint64_t kPse = std::uint64_t{1} << 4;
inline constexpr std::uint64_t kPae = std::uint64_t{1} << 5;
inline constexpr std::uint64_t kPge = std::uint64_t{1} << 7;
inline constexpr std::uint64_t kLa57 = std::uint64_t{1} << 12;
inline constexpr std::uint64_t kPcide = std::uint64_t{1} << 17;
inline constexpr std::uint64_t kSmep = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kSmap = std::uint64_t{1} << 21;
inline constexpr std::uint64_t kPke = std::uint64_t{1} << 22;
inline constexpr std::uint64_t kPks = std::uint64_t{1} << 24;
}  // namespace cr4

namespace efer {
inline constexpr std::uint32_t kMsr = 0xc000'0080;
inline constexpr std::uint64_t kSce = std::uint64_t{1} << 0;
inline constexpr std::uint64_t kLme = std::uint64_t{1} << 8;
inline constexpr std::uint64_t kLma = std::uint64_t{1} << 10;
inline constexpr std::uint64_t kNxe = std::uint64_t{1} << 11;
inline constexpr std::uint64_t kSvme = std::uint64_t{1} << 12;
inline constexpr std::uint64_t kFfxsr = std::uint64_t{1} << 14;
inline constexpr std::uint64_t kTce = std::uint64_t{1} << 15;
}  // namespace efer

inline constexpr std::uint32_t kPkrsMsr = 0x6e1;  ///< IA32_PKRS

struct Registers {
    std::uint64_t cr0 = cr0::kEt;
    std::uint64_t cr3 = 0;
    std::uint64_t cr4 = 0;
    std::uint64_t efer = 0;
    std::uint32_t pkru = 0;
    std::uint32_t pkrs = 0;
    std::uint8_t cpl = 0;
    bool ac = false;  ///< EFLAGS.AC
    SegmentRegisters segments;

    [[nodiscard]] bool has_cr0(std::uint64_t bits) const { return (cr0 & bits) == bits; }
    [[nodiscard]] bool has_cr4(std::uint64_t bits) const { return (cr4 & bits) == bits; }
    [[nodiscard]] bool has_efer(std::uint64_t bits) const { return (efer & bits) == bits; }

    /// EFER.LMA: long mode is active. Code is then taken to be 64-bit code.
    [[nodiscard]] bool long_mode() const { return has_efer(efer::kLma); }
    [[nodiscard]] Paging paging() const;
    /// Width of a linear address in bits: 32, 48 or 57.
    [[nodiscard]] unsigned linear_bits() const;
    [[nodiscard]] EntrySettings entry_settings() const { return {has_efer(efer::kNxe), has_cr4(cr4::kPse)}; }

    friend bool operator==(const Registers&, const Registers&) = default;
};

/// Why the CPU refuses a value: a literal for people.
struct Refusal {
    std::string_view why;
};

using RegisterLoad = Result<Registers, Refusal>;

[[nodiscard]] RegisterLoad mov_cr0(const Registers& old, std::uint64_t value, const Cpuid& cpuid);
/// `value` as in the instruction: bit 63 asks for no flush if CR4.PCIDE is set, and is not stored.
[[nodiscard]] RegisterLoad mov_cr3(const Registers& old, std::uint64_t value, const Cpuid& cpuid);
[[nodiscard]] RegisterLoad mov_cr4(const Registers& old, std::uint64_t value, const Cpuid& cpuid);
[[nodiscard]] RegisterLoad wrmsr_efer(const Registers& old, std::uint64_t value, const Cpuid& cpuid);

/// EFER.LMA brought in line with LME and CR0.PG, and CR0.ET set, as the CPU does by itself.
[[nodiscard]] Registers settled(Registers registers);
/// Why a CPU can't be in this (settled) state, if it can't.
[[nodiscard]] std::optional<Refusal> impossible(const Registers& registers, const Cpuid& cpuid);

/// Whether MOV to CR0 or CR4 loads the PDPTEs (SDM vol. 3A 4.4.1). MOV to CR3 in PAE mode always does.
[[nodiscard]] bool reloads_pdptes(const Registers& old, const Registers& now);

/// What a register load must at least invalidate (SDM vol. 3A 4.10.4.1).
enum class FlushScope : std::uint8_t {
    none,
    current_pcid,  ///< all entries of the current PCID
    everything,    ///< with global entries, all PCIDs
};
[[nodiscard]] FlushScope due_flush(const Registers& old, const Registers& now);

}  // namespace mmusim
