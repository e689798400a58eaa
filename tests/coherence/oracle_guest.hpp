// SPDX-License-Identifier: Apache-2.0
//
// A guest without a machine: memory, registers and the oracle that is told what happens to them. Answers are
// made up by the test.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include <mmusim/coherence/coherence_oracle.hpp>
#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/rights.hpp>
#include <mmusim/words/registers.hpp>

namespace mmusim::test {

inline constexpr std::uint64_t P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100;
inline constexpr std::uint64_t NX = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kAll = P | W | U | A | D;

inline Cpuid everything()
{
    Cpuid cpuid;
    for (const auto& [name, feature] : kFeatureNames) cpuid.*feature = true;
    return cpuid;
}

/// Registers of a kernel in this mode with its root in `frame`.
inline Registers registers_for(Paging paging, std::uint64_t frame)
{
    Registers r;
    r.cr0 |= cr0::kPe | cr0::kWp | (paging == Paging::off ? 0 : cr0::kPg);
    r.cr3 = frame << kPageShift;
    r.cr4 = cr4::kPge | cr4::kPse;
    if (paging != Paging::two_level) r.cr4 |= cr4::kPae;
    if (paging == Paging::four_level || paging == Paging::five_level) r.efer |= efer::kLme;
    if (paging == Paging::five_level) r.cr4 |= cr4::kLa57;
    r.efer |= efer::kNxe;
    return settled(r);
}

enum class Verdict : std::uint8_t { right, stale, violation };

class OracleGuest {
public:
    static constexpr std::uint64_t kFrames = 0x1000;

    explicit OracleGuest(unsigned vcpus = 1, std::size_t sweep_after = CoherenceOracle::kSweepAfter,
                         bool stale_for_all = false)
        : oracle{memory_, vcpus, stale_for_all, sweep_after}, pdptes_(vcpus)
    {
    }

    // --- memory ---
    void store(std::uint64_t at, std::uint64_t value, unsigned bytes = 8)
    {
        std::array<std::byte, 8> raw{};
        std::memcpy(raw.data(), &value, 8);
        store(at, std::span<const std::byte>{raw}.first(bytes));
    }
    void store(std::uint64_t at, std::span<const std::byte> bytes)
    {
        oracle.before_store(GuestPhysical{at}, bytes);
        memory_.write(GuestPhysical{at}, bytes);
    }
    void entry(std::uint64_t frame, unsigned index, std::uint64_t value, unsigned bytes = 8)
    {
        store((frame << kPageShift) + index * bytes, value, bytes);
    }
    /// As a walk sets bits: nobody is told.
    void silently(std::uint64_t at, std::uint64_t value, unsigned bytes = 8)
    {
        std::array<std::byte, 8> raw{};
        std::memcpy(raw.data(), &value, 8);
        memory_.write(GuestPhysical{at}, std::span<const std::byte>{raw}.first(bytes));
    }
    [[nodiscard]] std::uint64_t word(std::uint64_t at) const
    {
        return memory_.load<std::uint64_t>(Gfn{at >> kPageShift},
                                           static_cast<unsigned>(at & kPageOffsetMask));
    }

    // --- registers; nothing is invalidated ---
    void load(const Registers& registers, unsigned vcpu = 0)
    {
        const Paging paging = registers.paging();
        WalkRoot<space::GuestPhysical> root;
        root.frame = Gfn{(registers.cr3 & bit_range(kPageShift, 51)) >> kPageShift};
        if (paging == Paging::pae) root.pdptes = pdptes_[vcpu];
        const bool pcids = registers.has_cr4(cr4::kPcide);
        oracle.context(vcpu, paging, walk_rules(mode_of(paging), registers, cpuid), root,
                       pcids ? registers.cr3 & cr3::kPcid : 0, registers.has_cr4(cr4::kPge));
    }
    void pdptes(const std::array<std::uint64_t, 4>& values, unsigned vcpu = 0) { pdptes_[vcpu] = values; }

    // --- the question ---
    Verdict ask(std::uint64_t la, std::uint64_t at, AccessKind kind = AccessKind::read, bool user = false,
                unsigned vcpu = 0)
    {
        const std::uint64_t stale = oracle.counts().stale();
        const auto violation = oracle.check(vcpu, {LinearAddress{la}, kind, user, false}, GuestPhysical{at});
        if (violation) {
            text = violation->text;
            return Verdict::violation;
        }
        return oracle.counts().stale() > stale ? Verdict::stale : Verdict::right;
    }

    // --- invalidations, as the instructions do them ---
    void invlpg(std::uint64_t la, std::uint64_t pcid = 0, unsigned vcpu = 0)
    {
        oracle.invalidated_page(vcpu, pcid, LinearAddress{la}, true, "INVLPG");
    }

    Cpuid cpuid = everything();

private:
    SparseMemory machine_;
    P2m p2m_{GuestRam{{{Gfn{0}, kFrames}}}, P2mLayout{}};
    GuestMemory memory_{machine_, p2m_};

public:
    CoherenceOracle oracle;
    std::string text;  ///< of the last violation

private:
    std::vector<std::array<std::uint64_t, 4>> pdptes_;
};

inline std::ostream& operator<<(std::ostream& out, Verdict verdict)
{
    return out << (verdict == Verdict::right ? "right" : verdict == Verdict::stale ? "stale" : "violation");
}

}  // namespace mmusim::test
