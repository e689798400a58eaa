// SPDX-License-Identifier: Apache-2.0
//
// Rights where the shadow's hardware does not run as the guest believes: CR0.WP is always set for it, so
// what a clear one permits is done for the guest; superpages are split, but each part keeps the key and
// the rights of the entry through which it is reached. And implicit accesses, which are the supervisor's
// at any CPL and which EFLAGS.AC does not help past SMAP.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;

Seen implicit(Guest& guest, AccessKind kind, bool user_mode)
{
    Operand operand = Guest::operand(kind, kLinear, 8, user_mode);
    operand.implicit = true;
    return guest.access(operand);
}

}  // namespace

TEST_CASE("rights: implicit accesses are the supervisor's", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const bool user_mode : {false, true}) {
            Guest guest{Paging::four_level, options};
            guest.map(kLinear, 0x101'000, P | W | A | D);  // supervisor
            CHECK(implicit(guest, AccessKind::read, user_mode).ok());
            CHECK(implicit(guest, AccessKind::write, user_mode).ok());
            guest.set_entry(kLinear, 1, 0x101'000 | kAll);  // user
            CHECK(guest.invlpg(kLinear));
            CHECK(implicit(guest, AccessKind::read, user_mode).ok());
            REQUIRE(guest.set_cr4(cr4::kSmap, true));
            for (const bool ac : {false, true}) {
                guest.machine.set_ac(0, ac);
                CHECK(implicit(guest, AccessKind::read, user_mode).page_fault(pf::kPresent, kLinear));
                CHECK(implicit(guest, AccessKind::write, user_mode)
                          .page_fault(pf::kPresent | pf::kWrite, kLinear));
                CHECK(guest.read(kLinear).ok() == ac);
                CHECK(guest.access(Guest::operand(AccessKind::read, kLinear, 8, true)).ok());
            }
        }
    }
}

TEST_CASE("rights: supervisor writes with CR0.WP clear", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
            Guest guest{paging, options};
            guest.map(kLinear, 0x101'000, P | U | A);  // read-only
            CHECK(guest.store(kLinear, 7).page_fault(pf::kPresent | pf::kWrite, kLinear));
            REQUIRE(guest.set_cr0(cr0::kWp, false));
            const bool shadow = options.mode != TranslationMode::native;
            for (std::uint64_t i = 1; i <= 3; ++i) {
                const Seen seen = guest.store(kLinear, i);
                REQUIRE(seen.ok());
                CHECK(seen.at() == 0x101'000);
                CHECK(seen.emulated() == shadow);
                CHECK(guest.load_word(kLinear) == i);
            }
            CHECK(guest.entry(kLinear, 1) == (0x101'000 | P | U | A | D));
            // Of a PAE guest some policies emulate what follows in the same exit.
            const bool further = shadow && paging == Paging::pae && guest.counters().em_ex_non_pt != 0;
            if (shadow) CHECK(guest.counters().fault_emulate_wp == (further ? 1 : 3));
            // Not for user-mode, and not for what R/W has nothing to do with.
            CHECK(guest.access(Guest::operand(AccessKind::write, kLinear, 8, true))
                      .page_fault(pf::kPresent | pf::kWrite | pf::kUser, kLinear));
            REQUIRE(guest.set_cr4(cr4::kSmap, true));
            CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("rights: a write with CR0.WP clear to a read-only mapping of a table", "[machine]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    guest.map(0x80'0000'0000, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff}, P | A);
    REQUIRE(guest.set_cr0(cr0::kWp, false));
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.store(0x80'0000'0000 | (guest.entry_at(kLinear, 1) & 0xfff), 0x102'000 | kAll).emulated());
    CHECK(guest.read(kLinear).at() == 0x102'000);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("rights: protection keys", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(kLinear, 0x101'000, kAll | key(5));
        guest.map(kLinear + 0x1000, 0x101'000, kAll | key(6));
        REQUIRE(guest.set_cr4(cr4::kPke, true));
        CHECK(guest.write(kLinear).ok());
        CHECK(guest.write(kLinear + 0x1000).ok());
        constexpr std::uint32_t kKey = pf::kPresent | pf::kProtectionKey;

        CHECK(!guest.machine.wrpkru(0, 1u << 10));  // AD of key 5
        CHECK(guest.read(kLinear).page_fault(kKey, kLinear));
        CHECK(guest.write(kLinear).page_fault(kKey | pf::kWrite, kLinear));
        CHECK(guest.fetch(kLinear).ok());
        CHECK(guest.write(kLinear + 0x1000).ok());

        CHECK(!guest.machine.wrpkru(0, 2u << 10));  // WD of key 5
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.write(kLinear).page_fault(kKey | pf::kWrite, kLinear));
        // Not for a supervisor while CR0.WP is clear; for a user always.
        REQUIRE(guest.set_cr0(cr0::kWp, false));
        CHECK(guest.write(kLinear).ok());
        CHECK(guest.access(Guest::operand(AccessKind::write, kLinear, 8, true))
                  .page_fault(kKey | pf::kWrite | pf::kUser, kLinear));
        CHECK(!guest.machine.wrpkru(0, 0));
        CHECK(guest.write(kLinear).ok());
    }
}

TEST_CASE("rights: PKRS is for supervisor pages", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(kLinear, 0x101'000, P | W | A | D | key(3));
        guest.map(kLinear + 0x1000, 0x102'000, kAll | key(3));
        Registers registers = guest.machine.registers(0);
        registers.cr4 |= cr4::kPks;
        registers.pkrs = 1u << 6;
        REQUIRE(!guest.machine.set_registers(0, registers));
        CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kProtectionKey, kLinear));
        CHECK(guest.read(kLinear + 0x1000).ok());
    }
}

TEST_CASE("rights: one large page behind two entries", "[machine]")
{
    // Two 2 MiB entries for the same page differ in key, rights or dirty bit: each address has its own.
    for (const Options& options : everywhere()) {
        for (const Populate populate : {Populate::leaf, Populate::step}) {
            Options with = options;
            with.populate = populate;
            Guest guest{Paging::four_level, with};
            const std::uint64_t a = 0x4000'0000, b = 0x8000'0000, c = 0xc000'0000;
            guest.map(a, 0x20'0000, kAll | key(1), 2);
            guest.map(b, 0x20'0000, kAll | key(2), 2);
            guest.map(c, 0x20'0000, (kAll & ~W & ~U) | key(1) | NX, 2);
            REQUIRE(guest.set_cr4(cr4::kPke, true));
            CHECK(!guest.machine.wrpkru(0, 1u << 4));  // AD of key 2
            for (int again = 0; again < 2; ++again) {
                CHECK(guest.write(a + 0x3008).at() == 0x20'3008);
                CHECK(guest.read(b + 0x3008).page_fault(pf::kPresent | pf::kProtectionKey, b + 0x3008));
                CHECK(guest.read(c + 0x3008).at() == 0x20'3008);
                CHECK(guest.write(c + 0x3008).page_fault(pf::kPresent | pf::kWrite, c + 0x3008));
                CHECK(guest.fetch(c).page_fault(pf::kPresent | pf::kInstruction, c));
                CHECK(guest.fetch(b).at() == 0x20'0000);
            }
            CHECK(!guest.machine.wrpkru(0, 1u << 2));  // AD of key 1
            CHECK(guest.read(a + 0x3008).page_fault(pf::kPresent | pf::kProtectionKey, a + 0x3008));
            CHECK(guest.write(b + 0x3008).at() == 0x20'3008);
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("rights: WRPKRU and privileged instructions", "[machine]")
{
    Guest guest{Paging::four_level, native()};
    guest.machine.set_cpl(0, 3);
    CHECK_FALSE(guest.mov_cr3(guest.root()));
    CHECK_FALSE(guest.set_cr0(cr0::kWp, false));
    CHECK_FALSE(guest.set_cr4(cr4::kPge, true));
    CHECK(guest.machine.wrmsr(0, efer::kMsr, efer::kLme | efer::kLma));
    CHECK(guest.machine.invpcid(0, 2, 0, LinearAddress{}));
    CHECK(!guest.machine.wrpkru(0, 5));
    CHECK(guest.machine.registers(0).pkru == 5);
    guest.machine.set_cpl(0, 0);
    CHECK(guest.mov_cr3(guest.root()));

    MachineConfig config = config_of(native());
    config.cpuid.pku = false;
    config.cpuid.invpcid = false;
    Guest older{Paging::four_level, config};
    CHECK(older.machine.wrpkru(0, 5)->vector == Vector::undefined_opcode);
    CHECK(older.machine.invpcid(0, 2, 0, LinearAddress{})->vector == Vector::undefined_opcode);
}

TEST_CASE("rights: XD is a reserved bit while EFER.NXE is clear", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const bool superpage : {false, true}) {
            Guest guest{Paging::four_level, options};
            const int level = superpage ? 2 : 1;
            guest.map(kLinear, 0, kAll | NX, level);
            const std::uint64_t lme = efer::kLme;
            for (int again = 0; again < 2; ++again) {
                CHECK(guest.read(kLinear).ok());
                CHECK(guest.fetch(kLinear).page_fault(pf::kPresent | pf::kInstruction, kLinear));
                REQUIRE(!guest.machine.wrmsr(0, efer::kMsr, lme));
                CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kReserved, kLinear));
                CHECK(guest.fetch(kLinear).page_fault(pf::kPresent | pf::kReserved, kLinear));
                REQUIRE(!guest.machine.wrmsr(0, efer::kMsr, lme | efer::kNxe));
            }
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("rights: PS in a 2-level directory is ignored while CR4.PSE is clear", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::two_level, options};
        guest.map(0, 0x101'000);
        REQUIRE((guest.entry(0, 2) & ~std::uint64_t{0xfff}) ==
                0x11'000);  // bit 16: of a page, address bit 35
        guest.set_entry(0, 2, guest.entry(0, 2) | PS);
        for (int again = 0; again < 2; ++again) {
            CHECK(guest.read(0).at() == 0x8'0000'0000);
            REQUIRE(guest.set_cr4(cr4::kPse, false));
            CHECK(guest.read(0).at() == 0x101'000);
            REQUIRE(guest.set_cr4(cr4::kPse, true));
        }
        guest.set_entry(0, 2, 0xc0'0000 | PS | P | W | A);
        CHECK(guest.read(0x5000).at() == 0xc0'5000);
        CHECK(guest.machine.audit().empty());
    }
}
