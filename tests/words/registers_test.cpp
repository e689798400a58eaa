// SPDX-License-Identifier: Apache-2.0
//
// Loading the control registers: which values the CPU refuses with #GP, and what a load does (SDM vol. 2
// "MOV - Move to/from Control Registers" and "WRMSR"; vol. 3A 2.5, 4.1.1, 4.1.2, 4.4.1, 4.10.1, 4.10.4.1).
// Three kinds of checks: a table of named cases; every bit of every register from every mode against a
// list of the manual's refusals (`refused` below), with each feature alone missing; and long random sequences
// of loads against the same list. Bits are written here by their numbers, not by the library's names.
#include <mmusim/words/registers.hpp>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

enum class Load { cr0, cr3, cr4, efer };

constexpr std::uint64_t bit(int n)
{
    return std::uint64_t{1} << n;
}

constexpr std::uint64_t kPe = bit(0), kEt = bit(4), kWp = bit(16), kNw = bit(29), kCd = bit(30),
                        kPg = bit(31);
constexpr std::uint64_t kPse = bit(4), kPaeBit = bit(5), kPge = bit(7), kLa57 = bit(12), kPcide = bit(17),
                        kSmep = bit(20), kSmap = bit(21), kPke = bit(22), kPks = bit(24);
constexpr std::uint64_t kLme = bit(8), kLma = bit(10), kNxe = bit(11);

Cpuid everything()
{
    Cpuid cpuid;
    for (const auto& [name, member] : kFeatureNames) cpuid.*member = true;
    return cpuid;
}

Cpuid all_but(bool Cpuid::*member)
{
    Cpuid cpuid = everything();
    cpuid.*member = false;
    return cpuid;
}

RegisterLoad load(Load which, const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    switch (which) {
    case Load::cr0: return mov_cr0(old, value, cpuid);
    case Load::cr3: return mov_cr3(old, value, cpuid);
    case Load::cr4: return mov_cr4(old, value, cpuid);
    case Load::efer: return wrmsr_efer(old, value, cpuid);
    }
    return old;
}

/// What CR4 bit `n` needs: nothing, a feature, or it can't be set at all.
bool cr4_bit_exists(int n, const Cpuid& cpuid)
{
    switch (n) {
    case 0:
    case 1:
    case 2:
    case 3:  // VME PVI TSD DE
    case 5:
    case 6:  // PAE MCE
    case 8:
    case 9:
    case 10:
    case 11:  // PCE OSFXSR OSXMMEXCPT UMIP
    case 13:
    case 14:
    case 16:  // VMXE SMXE FSGSBASE
    case 18:
    case 19:
    case 25:
    case 32:  // OSXSAVE KL UINTR FRED
        return true;
    case 4: return cpuid.pse;
    case 7: return cpuid.pge;
    case 12: return cpuid.la57;
    case 17: return cpuid.pcid;
    case 20: return cpuid.smep;
    case 21: return cpuid.smap;
    case 22: return cpuid.pku;
    case 24: return cpuid.pks;
    default: return false;  // reserved, or a feature that no header can list (CET, LASS, LAM)
    }
}

bool efer_bit_exists(int n, const Cpuid& cpuid)
{
    if (n == 0 || n == 8 || n == 10) return true;  // SCE LME LMA
    if (n == 11) return cpuid.nx;
    return cpuid.vendor == Vendor::amd && (n == 12 || n == 14 || n == 15);  // SVME FFXSR TCE
}

/// The manual's refusals, one by one.
bool refused(Load which, const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    const bool pg = (old.cr0 & kPg) != 0;
    const bool lme = (old.efer & kLme) != 0;
    const bool active = pg && lme;
    switch (which) {
    case Load::cr0:
        if (value >> 32 != 0) return true;
        if ((value & kPg) != 0 && (value & kPe) == 0) return true;
        if ((value & kNw) != 0 && (value & kCd) == 0) return true;
        if (!pg && (value & kPg) != 0 && lme && (old.cr4 & kPaeBit) == 0) return true;
        return pg && (value & kPg) == 0 && (old.cr4 & kPcide) != 0;
    case Load::cr3:
        for (int n = static_cast<int>(cpuid.physical_address_bits); n <= 62; ++n)
            if ((value & bit(n)) != 0) return true;
        return (value & bit(63)) != 0 && (old.cr4 & kPcide) == 0;
    case Load::cr4:
        for (int n = 0; n < 64; ++n)
            if ((value & bit(n)) != 0 && !cr4_bit_exists(n, cpuid)) return true;
        if (active && (value & kPaeBit) == 0) return true;
        if (active && ((value ^ old.cr4) & kLa57) != 0) return true;
        if ((old.cr4 & kPcide) == 0 && (value & kPcide) != 0) return !active || (old.cr3 & 0xfff) != 0;
        return false;
    case Load::efer:
        for (int n = 0; n < 64; ++n)
            if ((value & bit(n)) != 0 && !efer_bit_exists(n, cpuid)) return true;
        return pg && ((value ^ old.efer) & kLme) != 0;
    }
    return false;
}

/// What the registers hold after a load that is not refused.
Registers loaded(Load which, Registers registers, std::uint64_t value)
{
    switch (which) {
    case Load::cr0: registers.cr0 = value | kEt; break;
    case Load::cr3: registers.cr3 = value & ~bit(63); break;
    case Load::cr4: registers.cr4 = value; break;
    case Load::efer: registers.efer = value; break;
    }
    const bool active = (registers.cr0 & kPg) != 0 && (registers.efer & kLme) != 0;
    registers.efer = active ? registers.efer | kLma : registers.efer & ~kLma;  // never software's choice
    return registers;
}

std::string text_of(Load which, const Registers& old, std::uint64_t value)
{
    return fmt::format("load {} with {:#x}; CR0 {:#x} CR3 {:#x} CR4 {:#x} EFER {:#x}",
                       std::vector{"CR0", "CR3", "CR4", "EFER"}[static_cast<std::size_t>(which)], value,
                       old.cr0, old.cr3, old.cr4, old.efer);
}

/// Empty if the library loads or refuses as the list says.
std::string difference(Load which, const Registers& old, std::uint64_t value, const Cpuid& cpuid)
{
    const auto got = load(which, old, value, cpuid);
    const bool refuse = refused(which, old, value, cpuid);
    const auto wrong = [&](std::string_view how) {
        return fmt::format("{}: {}", how, text_of(which, old, value));
    };
    if (refuse && got.ok()) return wrong("must refuse");
    if (!refuse && !got.ok()) return wrong("must accept");
    if (refuse) return got.error().why.empty() ? wrong("no reason") : std::string{};
    return *got == loaded(which, old, value) ? std::string{} : wrong("wrong result");
}

struct State {
    std::string name;
    Registers registers;
    Paging paging;
    unsigned linear_bits;
};

Registers state(std::uint64_t cr0, std::uint64_t cr3, std::uint64_t cr4, std::uint64_t efer)
{
    Registers registers;
    registers.cr0 = cr0;
    registers.cr3 = cr3;
    registers.cr4 = cr4;
    registers.efer = efer;
    return registers;
}

const std::uint64_t kOn = kPg | kPe | kEt;
const std::uint64_t kLong = kLme | kLma;

const std::vector<State> kStates{
    {"reset", state(kEt, 0, 0, 0), Paging::off, 32},
    {"protected", state(kPe | kEt, 0x1000, 0, 0), Paging::off, 32},
    {"PAE set, paging off", state(kPe | kEt, 0x1000, kPaeBit, 0), Paging::off, 32},
    {"LME set, paging off", state(kPe | kEt, 0x1000, kPaeBit, kLme), Paging::off, 32},
    {"LME without PAE, paging off", state(kPe | kEt, 0x1000, 0, kLme), Paging::off, 32},
    {"LA57 set, paging off", state(kPe | kEt, 0x1000, kPaeBit | kLa57, kLme), Paging::off, 32},
    {"two-level", state(kOn | kWp, 0x1000, kPse, 0), Paging::two_level, 32},
    {"two-level, LA57 without effect", state(kOn, 0x1000, kLa57, 0), Paging::two_level, 32},
    {"PAE", state(kOn | kWp, 0x1020, kPaeBit, kNxe), Paging::pae, 32},
    {"PAE, LA57 without effect", state(kOn, 0x1020, kPaeBit | kLa57, 0), Paging::pae, 32},
    {"four-level", state(kOn | kWp, 0x2000, kPaeBit | kPge, kLong | kNxe), Paging::four_level, 48},
    {"four-level, CR3 flags", state(kOn, 0x2018, kPaeBit, kLong), Paging::four_level, 48},
    {"four-level, PCIDE", state(kOn, 0x2007, kPaeBit | kPcide, kLong), Paging::four_level, 48},
    {"five-level", state(kOn, 0x3000, kPaeBit | kLa57, kLong), Paging::five_level, 57},
    {"five-level, PCIDE", state(kOn, 0x3fff, kPaeBit | kLa57 | kPcide | kSmep, kLong), Paging::five_level,
     57},
};

const State& named(const std::string& name)
{
    for (const State& each : kStates)
        if (each.name == name) return each;
    FAIL("no state named " << name);
    return kStates.front();
}

}  // namespace

TEST_CASE("registers: paging mode and linear width", "[words]")
{
    for (const State& each : kStates) {
        INFO(each.name);
        CHECK(each.registers.paging() == each.paging);
        CHECK(each.registers.linear_bits() == each.linear_bits);
        CHECK(each.registers.long_mode() == (each.linear_bits > 32));
        CHECK(each.registers.entry_settings().nxe == ((each.registers.efer & kNxe) != 0));
        CHECK(each.registers.entry_settings().pse == ((each.registers.cr4 & kPse) != 0));
        CHECK_FALSE(impossible(each.registers, everything()).has_value());
        CHECK(settled(each.registers) == each.registers);
    }
}

TEST_CASE("registers: the state after reset", "[words]")
{
    const Registers registers;
    CHECK(registers.cr0 == 0x10);
    CHECK(registers.cr3 == 0);
    CHECK(registers.cr4 == 0);
    CHECK(registers.efer == 0);
    CHECK(registers.cpl == 0);
    CHECK_FALSE(registers.ac);
    CHECK(registers.pkru == 0);
    CHECK(registers.pkrs == 0);
}

TEST_CASE("registers: named cases", "[words]")
{
    struct Case {
        const char* rule;
        const char* state;
        Load which;
        std::uint64_t value;
        bool accepted;
    };
    const std::vector<Case> cases{
        {"PG needs PE", "protected", Load::cr0, kPg, false},
        {"PE with PG", "protected", Load::cr0, kPg | kPe, true},
        {"PE can't go while PG stays", "two-level", Load::cr0, kPg, false},
        {"PE and PG go together", "two-level", Load::cr0, 0, true},
        {"NW needs CD", "protected", Load::cr0, kPe | kNw, false},
        {"NW with CD", "protected", Load::cr0, kPe | kNw | kCd, true},
        {"CD alone", "protected", Load::cr0, kPe | kCd, true},
        {"CR0 is 32 bits", "four-level", Load::cr0, kOn | bit(32), false},
        {"CR0 is 32 bits", "four-level", Load::cr0, kOn | bit(63), false},
        {"PG with LME needs PAE", "LME without PAE, paging off", Load::cr0, kPg | kPe, false},
        {"PG with LME and PAE", "LME set, paging off", Load::cr0, kPg | kPe, true},
        {"PG can't go while PCIDE is set", "four-level, PCIDE", Load::cr0, kPe, false},
        {"WP may change under PCIDE", "four-level, PCIDE", Load::cr0, kOn | kWp, true},

        {"CR3 below MAXPHYADDR", "four-level", Load::cr3, 0xff'ffff'ffff, true},
        {"CR3 bit MAXPHYADDR", "four-level", Load::cr3, bit(40), false},
        {"CR3 bit 62", "four-level, PCIDE", Load::cr3, bit(62) | 0x1000, false},
        {"bit 63 without PCIDE", "four-level", Load::cr3, bit(63) | 0x1000, false},
        {"bit 63 with PCIDE", "four-level, PCIDE", Load::cr3, bit(63) | 0x1005, true},

        {"PAE can't go in long mode", "four-level", Load::cr4, 0, false},
        {"PAE may go in PAE paging", "PAE", Load::cr4, 0, true},
        {"PAE may go while LME waits", "LME set, paging off", Load::cr4, 0, true},
        {"LA57 can't come in long mode", "four-level", Load::cr4, kPaeBit | kLa57, false},
        {"LA57 can't go in long mode", "five-level", Load::cr4, kPaeBit, false},
        {"LA57 outside long mode", "PAE", Load::cr4, kPaeBit | kLa57, true},
        {"LA57 may go outside long mode", "LA57 set, paging off", Load::cr4, kPaeBit, true},
        {"PCIDE needs long mode", "PAE", Load::cr4, kPaeBit | kPcide, false},
        {"PCIDE needs long mode to be active", "LME set, paging off", Load::cr4, kPaeBit | kPcide, false},
        {"PCIDE in long mode", "four-level", Load::cr4, kPaeBit | kPcide, true},
        {"PCIDE with five levels", "five-level", Load::cr4, kPaeBit | kLa57 | kPcide, true},
        {"PCIDE can't come with CR3 11:0 set", "four-level, CR3 flags", Load::cr4, kPaeBit | kPcide, false},
        {"PCIDE stays with CR3 11:0 set", "four-level, PCIDE", Load::cr4, kPaeBit | kPcide | kPge, true},
        {"PCIDE goes with CR3 11:0 set", "four-level, PCIDE", Load::cr4, kPaeBit, true},
        {"CR4 bit 15", "protected", Load::cr4, bit(15), false},
        {"CR4 bit 63", "protected", Load::cr4, bit(63), false},
        {"CR4 that does not concern paging", "protected", Load::cr4, bit(9) | bit(10) | bit(18), true},

        {"LME can't come under PG", "PAE", Load::efer, kLme | kNxe, false},
        {"LME can't come under PG", "two-level", Load::efer, kLme, false},
        {"LME can't go under PG", "four-level", Load::efer, kNxe, false},
        {"LME with paging off", "protected", Load::efer, kLme, true},
        {"LME goes with paging off", "LME set, paging off", Load::efer, 0, true},
        {"NXE under PG", "four-level", Load::efer, kLme, true},
        {"LMA is not written", "protected", Load::efer, kLma, true},
        {"LMA is not cleared", "four-level", Load::efer, kLme | kNxe, true},
        {"EFER bit 1", "protected", Load::efer, bit(1), false},
        {"EFER bit 16", "protected", Load::efer, bit(16), false},
    };
    for (const Case& each : cases) {
        INFO(each.rule << " (" << each.state << ")");
        const Registers& old = named(each.state).registers;
        CHECK(load(each.which, old, each.value, everything()).ok() == each.accepted);
        CHECK(refused(each.which, old, each.value, everything()) == !each.accepted);  // the list itself
    }
}

TEST_CASE("registers: LMA follows LME and PG", "[words]")
{
    const Cpuid cpuid = everything();
    auto now = wrmsr_efer(named("PAE set, paging off").registers, kLme, cpuid);
    REQUIRE(now.ok());
    CHECK(now->efer == kLme);
    now = mov_cr0(*now, kPg | kPe, cpuid);
    REQUIRE(now.ok());
    CHECK(now->efer == (kLme | kLma));
    CHECK(now->paging() == Paging::four_level);
    now = wrmsr_efer(*now, kLme | kNxe, cpuid);  // with LMA clear in the operand
    REQUIRE(now.ok());
    CHECK(now->efer == (kLme | kLma | kNxe));
    now = mov_cr0(*now, kPe, cpuid);
    REQUIRE(now.ok());
    CHECK(now->efer == (kLme | kNxe));
    CHECK(now->paging() == Paging::off);
    now = wrmsr_efer(*now, kLma, cpuid);
    REQUIRE(now.ok());
    CHECK(now->efer == 0);
}

TEST_CASE("registers: CR3 is stored without bit 63", "[words]")
{
    const Registers old = named("four-level, PCIDE").registers;
    CHECK(mov_cr3(old, bit(63) | 0x5007, everything())->cr3 == 0x5007);
    CHECK(mov_cr3(old, 0x5fff, everything())->cr3 == 0x5fff);
}

TEST_CASE("registers: each of CR3 bits 11 to 0 alone keeps PCIDE from being set", "[words]")
{
    Registers old = named("four-level").registers;
    for (int n = 0; n < 40; ++n) {
        old.cr3 = bit(n);
        INFO("CR3 bit " << n);
        CHECK(mov_cr4(old, kPaeBit | kPcide, everything()).ok() == (n >= 12));
        CHECK(mov_cr4(old, kPaeBit | kPge, everything()).ok());
    }
}

TEST_CASE("registers: every CR3 bit at every MAXPHYADDR", "[words]")
{
    for (const State& each : kStates) {
        for (unsigned width = 32; width <= 52; ++width) {
            Cpuid cpuid = everything();
            cpuid.physical_address_bits = width;
            for (int n = 0; n < 64; ++n) {
                const std::string wrong = difference(Load::cr3, each.registers, bit(n), cpuid);
                INFO(each.name << ": " << wrong);
                CHECK(wrong.empty());
                const bool pcide = (each.registers.cr4 & kPcide) != 0;
                CHECK(mov_cr3(each.registers, bit(n), cpuid).ok() ==
                      (n < static_cast<int>(width) || (n == 63 && pcide)));
            }
        }
    }
}

TEST_CASE("registers: every single bit of CR0, CR4 and EFER changed, in every mode", "[words]")
{
    std::vector<Cpuid> machines{everything(), Cpuid{}};
    for (const auto& [name, member] : kFeatureNames) machines.push_back(all_but(member));
    machines.push_back(everything());
    machines.back().vendor = Vendor::amd;
    std::vector<std::string> wrong;
    for (const Cpuid& cpuid : machines) {
        for (const State& each : kStates) {
            if (impossible(each.registers, cpuid)) continue;  // it can't be in this state
            for (int n = 0; n < 64; ++n) {
                const Registers& old = each.registers;
                for (const auto& [which, value] :
                     {std::pair{Load::cr0, old.cr0 ^ bit(n)}, std::pair{Load::cr4, old.cr4 ^ bit(n)},
                      std::pair{Load::efer, old.efer ^ bit(n)}}) {
                    if (auto text = difference(which, old, value, cpuid); !text.empty())
                        wrong.push_back(std::move(text));
                }
            }
        }
    }
    INFO((wrong.empty() ? std::string{} : wrong.front()));
    CHECK(wrong.empty());
}

TEST_CASE("registers: each CR4 bit needs its feature and no other", "[words]")
{
    struct Need {
        std::uint64_t bit;
        bool Cpuid::*feature;
    };
    for (const Need& need : {Need{kPse, &Cpuid::pse}, Need{kPge, &Cpuid::pge}, Need{kLa57, &Cpuid::la57},
                             Need{kSmep, &Cpuid::smep}, Need{kSmap, &Cpuid::smap}, Need{kPke, &Cpuid::pku},
                             Need{kPks, &Cpuid::pks}}) {
        INFO(fmt::format("CR4 bit {:#x}", need.bit));
        Cpuid only;
        only.*need.feature = true;
        const Registers pae = state(kOn, 0x1020, kPaeBit, 0);
        CHECK(mov_cr4(pae, kPaeBit | need.bit, only).ok());
        CHECK_FALSE(mov_cr4(pae, kPaeBit | need.bit, all_but(need.feature)).ok());
        Registers now = pae;
        now.cr4 |= need.bit;
        CHECK_FALSE(impossible(now, only).has_value());
        CHECK(impossible(now, all_but(need.feature)).has_value());
    }
    Cpuid only;
    only.pcid = true;
    const Registers four = state(kOn, 0x2000, kPaeBit, kLong);
    CHECK(mov_cr4(four, kPaeBit | kPcide, only).ok());
    CHECK_FALSE(mov_cr4(four, kPaeBit | kPcide, all_but(&Cpuid::pcid)).ok());
    only = Cpuid{};
    only.nx = true;
    CHECK(wrmsr_efer(four, kLong | kNxe, only).ok());
    CHECK_FALSE(wrmsr_efer(four, kLong | kNxe, all_but(&Cpuid::nx)).ok());
    CHECK(mov_cr4(named("reset").registers, kPaeBit, Cpuid{}).ok());  // PAE is always there
    CHECK(wrmsr_efer(named("reset").registers, kLme, Cpuid{}).ok());
}

TEST_CASE("registers: states that no CPU can be in", "[words]")
{
    const Cpuid cpuid = everything();
    CHECK(impossible(state(kPg | kEt, 0, 0, 0), cpuid).has_value());
    CHECK(impossible(state(kPe | kEt | kNw, 0, 0, 0), cpuid).has_value());
    CHECK(impossible(state(kEt | bit(32), 0, 0, 0), cpuid).has_value());
    CHECK(impossible(state(kEt, bit(40), 0, 0), cpuid).has_value());
    CHECK(impossible(state(kEt, bit(63), 0, 0), cpuid).has_value());
    CHECK(impossible(state(kOn, 0, kPaeBit | kPcide, 0), cpuid).has_value());
    CHECK(impossible(state(kOn, 0, 0, kLong), cpuid).has_value());
    CHECK(impossible(state(kEt, 0, bit(15), 0), cpuid).has_value());
    CHECK(impossible(state(kEt, 0, 0, bit(9)), cpuid).has_value());
    // A PCID beside PCIDE is an ordinary state, though PCIDE can't be set while it is there.
    CHECK_FALSE(impossible(state(kOn, 0x1fff, kPaeBit | kPcide, kLong), cpuid).has_value());
}

TEST_CASE("registers: settled puts LMA and ET right", "[words]")
{
    CHECK(settled(state(0, 0, 0, kLma)) == state(kEt, 0, 0, 0));
    CHECK(settled(state(kPg | kPe, 0, kPaeBit, kLme)) == state(kOn, 0, kPaeBit, kLong));
    CHECK(settled(state(kPg | kPe, 0, kPaeBit, kLma)) == state(kOn, 0, kPaeBit, 0));
    CHECK(settled(state(kPe, 0, kPaeBit, kLong)) == state(kPe | kEt, 0, kPaeBit, kLme));
}

TEST_CASE("registers: random sequences of loads", "[words]")
{
    // Bits that decide something, so that sequences get into all modes; and now and then any bit.
    const std::vector<int> cr0_bits{0, 4, 16, 29, 30, 31};
    const std::vector<int> cr4_bits{4, 5, 7, 12, 17, 20, 21, 22, 24, 9};
    const std::vector<int> efer_bits{0, 8, 8, 10, 11};
    std::array<unsigned long, 5> visits{};
    for (const std::uint64_t seed : {11ull, 12ull, 13ull, 14ull}) {
        INFO("seed " << seed);
        std::mt19937_64 random{seed};
        Cpuid cpuid = everything();
        for (const auto& [name, member] : kFeatureNames) cpuid.*member = random() % 4 != 0;
        cpuid.vendor = random() % 2 == 0 ? Vendor::intel : Vendor::amd;
        cpuid.physical_address_bits = 32 + static_cast<unsigned>(random() % 21);
        Registers now;
        now.pkru = 5;
        now.ac = true;
        const auto flipped = [&](std::uint64_t value, const std::vector<int>& bits) {
            for (std::uint64_t n = 1 + random() % 3; n != 0; --n) {
                value ^= bit(bits[random() % bits.size()]);
                if (random() % 16 == 0) value ^= bit(static_cast<int>(random() % 64));
            }
            return value;
        };
        for (int step = 0; step < 50'000; ++step) {
            const auto which = static_cast<Load>(random() % 4);
            std::uint64_t value = 0;
            switch (which) {
            case Load::cr0: value = flipped(now.cr0, cr0_bits); break;
            case Load::cr3:
                value = random() >> (random() % 64);
                if (random() % 2 == 0) value &= 0x1'ffff'f000;
                break;
            case Load::cr4: value = flipped(now.cr4, cr4_bits); break;
            case Load::efer: value = flipped(now.efer, efer_bits); break;
            }
            const Registers before = now;
            const std::string wrong = difference(which, now, value, cpuid);
            if (!wrong.empty()) {
                INFO(wrong);
                FAIL("differs from the manual's list at step " << step);
            }
            const auto got = load(which, now, value, cpuid);
            if (!(now == before)) FAIL("a load changed its argument");
            if (got.ok()) now = *got;
            ++visits[static_cast<std::size_t>(now.paging())];
            // A state that was reached by loads is possible and settled.
            if (impossible(now, cpuid) || !(settled(now) == now)) FAIL("an impossible state was reached");
        }
    }
    for (const unsigned long each : visits) CHECK(each > 100);
}

TEST_CASE("registers: which loads reload the PDPTEs", "[words]")
{
    // In PAE paging afterwards, and one of CR0.CD, NW, PG or CR4.PAE, PGE, PSE, SMEP changed.
    const Registers pae = state(kOn, 0x1000, kPaeBit, 0);
    for (int n = 0; n < 32; ++n) {
        INFO("bit " << n);
        Registers old = pae;
        old.cr0 ^= bit(n);
        CHECK(reloads_pdptes(old, pae) == (n == 29 || n == 30 || n == 31));
        old = pae;
        old.cr4 ^= bit(n);
        CHECK(reloads_pdptes(old, pae) == (n == 4 || n == 5 || n == 7 || n == 20));
        for (const char* elsewhere : {"protected", "two-level", "four-level", "five-level"}) {
            const Registers now = named(elsewhere).registers;
            old = now;
            old.cr0 ^= bit(n);
            CHECK_FALSE(reloads_pdptes(old, now));
            old = now;
            old.cr4 ^= bit(n);
            CHECK_FALSE(reloads_pdptes(old, now));
        }
    }
    CHECK_FALSE(reloads_pdptes(pae, pae));
    // Leaving PAE paging loads nothing.
    CHECK_FALSE(reloads_pdptes(pae, state(kPe | kEt, 0x1000, kPaeBit, 0)));
    CHECK_FALSE(reloads_pdptes(pae, state(kOn, 0x1000, 0, 0)));
}

TEST_CASE("registers: what a load must flush at least", "[words]")
{
    const auto with = [](unsigned flags) {
        return state(((flags & 1) != 0 ? kPg : 0) | kPe | kEt, 0x1000,
                     ((flags & 2) != 0 ? kPge : 0) | ((flags & 4) != 0 ? kPcide : 0) |
                         ((flags & 8) != 0 ? kSmep : 0) | ((flags & 16) != 0 ? kPaeBit : 0),
                     0);
    };
    for (unsigned a = 0; a < 32; ++a) {
        for (unsigned b = 0; b < 32; ++b) {
            const unsigned set = b & ~a;
            const unsigned cleared = a & ~b;
            FlushScope expected = FlushScope::none;
            if ((set & 8) != 0 || ((a ^ b) & 16) != 0) expected = FlushScope::current_pcid;
            if ((cleared & 1) != 0 || ((a ^ b) & 2) != 0 || (cleared & 4) != 0)
                expected = FlushScope::everything;
            INFO("from " << a << " to " << b);
            CHECK(due_flush(with(a), with(b)) == expected);
        }
    }
    // No other bit asks for a flush.
    const Registers now = state(kOn, 0x1000, kPaeBit, kLong);
    for (const std::uint64_t other : {kPse, kSmap, kPke, kPks, bit(9)}) {
        Registers old = now;
        old.cr4 ^= other;
        CHECK(due_flush(old, now) == FlushScope::none);
        CHECK(due_flush(now, old) == FlushScope::none);
    }
    for (const std::uint64_t other : {kWp, kCd}) {
        Registers old = now;
        old.cr0 ^= other;
        CHECK(due_flush(old, now) == FlushScope::none);
        CHECK(due_flush(now, old) == FlushScope::none);
    }
}
