// SPDX-License-Identifier: Apache-2.0
#include <mmusim/words/registers.hpp>

namespace mmusim {

namespace {

/// CR4 bits that do not concern paging: VME, PVI, TSD, DE, MCE, PCE, OSFXSR, OSXMMEXCPT, UMIP, VMXE,
/// SMXE, FSGSBASE, OSXSAVE, KL, UINTR, FRED. They are accepted without effect.
constexpr std::uint64_t kCr4NotPaging = bit_range(0, 3) | bit_range(6, 6) | bit_range(8, 11) |
                                        bit_range(13, 14) | bit_range(16, 16) | bit_range(18, 19) |
                                        bit_range(25, 25) | bit_range(32, 32);

std::uint64_t cr4_bits_of(const Cpuid& cpuid)
{
    std::uint64_t bits = kCr4NotPaging | cr4::kPae;
    if (cpuid.pse) bits |= cr4::kPse;
    if (cpuid.pge) bits |= cr4::kPge;
    if (cpuid.la57) bits |= cr4::kLa57;
    if (cpuid.pcid) bits |= cr4::kPcide;
    if (cpuid.smep) bits |= cr4::kSmep;
    if (cpuid.smap) bits |= cr4::kSmap;
    if (cpuid.pku) bits |= cr4::kPke;
    if (cpuid.pks) bits |= cr4::kPks;
    return bits;
}

std::uint64_t efer_bits_of(const Cpuid& cpuid)
{
    std::uint64_t bits = efer::kSce | efer::kLme | efer::kLma;
    if (cpuid.nx) bits |= efer::kNxe;
    if (cpuid.vendor == Vendor::amd) bits |= efer::kSvme | efer::kFfxsr | efer::kTce;
    return bits;
}

std::uint64_t changed(std::uint64_t old, std::uint64_t now, std::uint64_t bits)
{
    return (old ^ now) & bits;
}

/// The new state if a CPU can be in it.
RegisterLoad checked(Registers registers, const Cpuid& cpuid)
{
    registers = settled(registers);
    if (const auto refusal = impossible(registers, cpuid)) return *refusal;
    return registers;
}

}  // namespace

Paging Registers::paging() const
{
    if (!has_cr0(cr0::kPg)) return Paging::off;
    if (!has_cr4(cr4::kPae)) return Paging::two_level;
    if (!long_mode()) return Paging::pae;
    return has_cr4(cr4::kLa57) ? Paging::five_level : Paging::four_level;
}

unsigned Registers::linear_bits() const
{
    if (!long_mode()) return 32;
    return has_cr4(cr4::kLa57) ? kFiveLevel.linear_bits : kFourLevel.linear_bits;
}

Registers settled(Registers registers)
{
    registers.cr0 |= cr0::kEt;
    registers.efer &= ~efer::kLma;
    if (registers.has_efer(efer::kLme) && registers.has_cr0(cr0::kPg)) registers.efer |= efer::kLma;
    return registers;
}

std::optional<Refusal> impossible(const Registers& registers, const Cpuid& cpuid)
{
    if ((registers.cr0 >> 32) != 0) return Refusal{"CR0 bits 63:32 are reserved"};
    if (registers.has_cr0(cr0::kPg) && !registers.has_cr0(cr0::kPe)) {
        return Refusal{"CR0.PG needs CR0.PE"};
    }
    if (registers.has_cr0(cr0::kNw) && !registers.has_cr0(cr0::kCd)) {
        return Refusal{"CR0.NW needs CR0.CD"};
    }
    if ((registers.cr4 & ~cr4_bits_of(cpuid)) != 0) {
        return Refusal{"CR4 has a bit that is reserved or whose feature is not listed"};
    }
    if ((registers.efer & ~efer_bits_of(cpuid)) != 0) {
        return Refusal{"EFER has a bit that is reserved or whose feature is not listed"};
    }
    if (registers.long_mode() && !registers.has_cr4(cr4::kPae)) {
        return Refusal{"long mode needs CR4.PAE"};
    }
    if (registers.has_cr4(cr4::kPcide) && !registers.long_mode()) {
        return Refusal{"CR4.PCIDE needs long mode"};
    }
    if ((registers.cr3 & bit_range(cpuid.physical_address_bits, 63)) != 0) {
        return Refusal{"CR3 has bits at or above MAXPHYADDR"};
    }
    return std::nullopt;
}

RegisterLoad mov_cr0(const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    Registers now = old;
    now.cr0 = value;
    return checked(now, cpuid);
}

RegisterLoad mov_cr3(const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    Registers now = old;
    now.cr3 = old.has_cr4(cr4::kPcide) ? value & ~cr3::kNoFlush : value;
    return checked(now, cpuid);
}

RegisterLoad mov_cr4(const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    if (old.long_mode() && changed(old.cr4, value, cr4::kLa57) != 0) {
        return Refusal{"CR4.LA57 can't change in long mode"};
    }
    if (changed(old.cr4, value, cr4::kPcide) != 0 && (value & cr4::kPcide) != 0 &&
        (old.cr3 & cr3::kPcid) != 0) {
        return Refusal{"CR4.PCIDE can be set only while CR3 bits 11:0 are 0"};
    }
    Registers now = old;
    now.cr4 = value;
    return checked(now, cpuid);
}

RegisterLoad wrmsr_efer(const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    if (old.has_cr0(cr0::kPg) && changed(old.efer, value, efer::kLme) != 0) {
        return Refusal{"EFER.LME can't change while CR0.PG is set"};
    }
    Registers now = old;
    now.efer = value;
    return checked(now, cpuid);
}

bool reloads_pdptes(const Registers& old, const Registers& now)
{
    return now.paging() == Paging::pae &&
           (changed(old.cr0, now.cr0, cr0::kCd | cr0::kNw | cr0::kPg) != 0 ||
            changed(old.cr4, now.cr4, cr4::kPae | cr4::kPge | cr4::kPse | cr4::kSmep) != 0);
}

FlushScope due_flush(const Registers& old, const Registers& now)
{
    const bool paging_left = old.has_cr0(cr0::kPg) && !now.has_cr0(cr0::kPg);
    const bool pcide_left = old.has_cr4(cr4::kPcide) && !now.has_cr4(cr4::kPcide);
    if (paging_left || pcide_left || changed(old.cr4, now.cr4, cr4::kPge) != 0) return FlushScope::everything;
    const bool smep_set = !old.has_cr4(cr4::kSmep) && now.has_cr4(cr4::kSmep);
    if (smep_set || changed(old.cr4, now.cr4, cr4::kPae) != 0) return FlushScope::current_pcid;
    return FlushScope::none;
}

}  // namespace mmusim
