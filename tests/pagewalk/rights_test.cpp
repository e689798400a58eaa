// SPDX-License-Identifier: Apache-2.0
//
// Access rights, exhaustively: U/S, R/W, XD x WP, SMEP, SMAP, AC x user, supervisor, implicit x read, write,
// fetch x PKE, PKS, AD, WD x NXE, in each paging mode, against the oracle in plain_walk.hpp (SDM vol. 3A 4.6,
// 4.7). One corner is left open there and here: the PK bit of a user-mode access to a supervisor page whose
// key IA32_PKRS denies; that it faults is not open.
#include <mmusim/pagewalk/rights.hpp>

#include <string>
#include <vector>

#include <fmt/format.h>

#include "pagewalk/fake_tables.hpp"
#include "pagewalk/plain_walk.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using plain::Who;

namespace {

constexpr bool flag(unsigned word, int n)
{
    return (word >> n & 1u) != 0;
}

/// A register in which key `key` has these rights and every other key has the opposite ones.
std::uint32_t key_register(int key, bool access_disable, bool write_disable)
{
    std::uint32_t value = 0;
    for (int k = 0; k < 16; ++k) {
        const bool own = k == key;
        if (own ? access_disable : !access_disable) value |= 1u << (2 * k);
        if (own ? write_disable : !write_disable) value |= 2u << (2 * k);
    }
    return value;
}

std::string text_of(const plain::Cpu& cpu, const plain::Page& page, AccessKind kind, Who who)
{
    return fmt::format(
        "{} {} by {}: U{} W{} XD{} key {}; WP{} SMEP{} SMAP{} AC{} NXE{} PKE{} {:#x} PKS{} {:#x}",
        name_of(cpu.paging), name_of(kind), static_cast<int>(who), int{page.user}, int{page.writable},
        int{page.xd}, page.key, int{cpu.wp}, int{cpu.smep}, int{cpu.smap}, int{cpu.ac}, int{cpu.nxe},
        int{cpu.pke}, cpu.pkru, int{cpu.pks}, cpu.pkrs);
}

}  // namespace

TEST_CASE("rights: every combination against the manual", "[pagewalk]")
{
    std::vector<std::string> wrong;
    unsigned long cases = 0;
    for (const Paging paging : test::kModes) {
        for (unsigned control = 0; control < 1u << 11; ++control) {
            for (const int key : {0, 7, 15}) {
                plain::Cpu cpu;
                cpu.paging = paging;
                cpu.wp = flag(control, 0);
                cpu.smep = flag(control, 1);
                cpu.smap = flag(control, 2);
                cpu.ac = flag(control, 3);
                cpu.nxe = flag(control, 4);
                cpu.pke = flag(control, 5);
                cpu.pks = flag(control, 6);
                cpu.pkru = key_register(key, flag(control, 7), flag(control, 8));
                cpu.pkrs = key_register(key, flag(control, 9), flag(control, 10));
                const RightsControl library = test::with_mode(paging, [&]<PagingMode Mode>() {
                    return walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu)).control;
                });
                for (unsigned entry = 0; entry < 8; ++entry) {
                    const plain::Page page{flag(entry, 0), flag(entry, 1), flag(entry, 2), key};
                    // XD comes from an entry in which it is not reserved.
                    if (page.xd && (!cpu.nxe || paging == Paging::two_level)) continue;
                    const Rights rights{page.user, page.writable, page.xd, static_cast<std::uint8_t>(key)};
                    for (const auto kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
                        for (const auto who : {Who::user, Who::supervisor, Who::implicit_supervisor}) {
                            ++cases;
                            const Access access = plain::access_of(0x1000, kind, who);
                            std::uint32_t got = denied(rights, library, access);
                            std::uint32_t expected = plain::code_of_rights(cpu, page, kind, who);
                            const bool open = who == Who::user && !page.user;
                            if (open) {
                                got &= ~32u;
                                expected &= ~32u;
                            }
                            if (got != expected) {
                                wrong.push_back(fmt::format("{:#x}, expected {:#x}: {}", got, expected,
                                                            text_of(cpu, page, kind, who)));
                            }
                        }
                    }
                }
            }
        }
    }
    INFO((wrong.empty() ? std::string{} : wrong.front()));
    CHECK(wrong.empty());
    CHECK(cases > 1'000'000);
}

TEST_CASE("rights: cases by hand", "[pagewalk]")
{
    const Access user_read{LinearAddress{0}, AccessKind::read, true, false};
    const Access user_write{LinearAddress{0}, AccessKind::write, true, false};
    const Access user_fetch{LinearAddress{0}, AccessKind::fetch, true, false};
    const Access kernel_read{LinearAddress{0}, AccessKind::read, false, false};
    const Access kernel_write{LinearAddress{0}, AccessKind::write, false, false};
    const Access kernel_fetch{LinearAddress{0}, AccessKind::fetch, false, false};
    const Access implicit_read{LinearAddress{0}, AccessKind::read, false, true};
    const Rights user_page{true, true, false, 0};
    const Rights user_read_only{true, false, false, 0};
    const Rights kernel_page{false, true, false, 0};

    RightsControl control;
    CHECK(denied(kernel_page, control, user_read) == 5);
    CHECK(denied(user_read_only, control, user_write) == 7);
    CHECK(denied(user_read_only, control, kernel_write) == 0);  // WP clear
    CHECK(denied(kernel_page, control, user_fetch) == 5);       // no I/D without NXE and SMEP
    control.write_protect = true;
    CHECK(denied(user_read_only, control, kernel_write) == 3);
    control.smep = true;
    CHECK(denied(user_page, control, kernel_fetch) == 0x11);
    CHECK(denied(kernel_page, control, user_fetch) == 0x15);
    CHECK(denied(user_page, control, user_fetch) == 0);
    control.smap = true;
    CHECK(denied(user_page, control, kernel_read) == 1);
    control.ac = true;
    CHECK(denied(user_page, control, kernel_read) == 0);
    CHECK(denied(user_page, control, implicit_read) == 1);  // AC does not help
    CHECK(denied(kernel_page, control, implicit_read) == 0);
    control = {};
    control.nxe_format = true;
    CHECK(denied({true, true, true, 0}, control, user_fetch) == 0x15);
    CHECK(denied({false, true, true, 0}, control, kernel_fetch) == 0x11);
    CHECK(denied({true, true, true, 0}, control, user_read) == 0);
    // Key 3: writes disabled.
    control = {};
    control.user_keys = true;
    control.pkru = 2u << 6;
    const Rights key3{true, true, false, 3};
    CHECK(denied(key3, control, user_read) == 0);
    CHECK(denied(key3, control, user_write) == 0x27);
    CHECK(denied(key3, control, kernel_write) == 0);
    control.write_protect = true;
    CHECK(denied(key3, control, kernel_write) == 0x23);
    control.pkru = 1u << 6;
    CHECK(denied(key3, control, kernel_read) == 0x21);
    CHECK(denied(key3, control, user_fetch) == 0);
    // PK together with what denies besides.
    CHECK(denied({true, false, false, 3}, control, user_write) == 0x27);
}

TEST_CASE("rights: keys and execute-disable belong to the modes that have them", "[pagewalk]")
{
    for (const Paging paging : test::kModes) {
        plain::Cpu cpu;
        cpu.paging = paging;
        cpu.nxe = cpu.pke = cpu.pks = true;
        const RightsControl control = test::with_mode(paging, [&]<PagingMode Mode>() {
            return walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu)).control;
        });
        INFO(name_of(paging));
        const bool long_mode = paging == Paging::four_level || paging == Paging::five_level;
        CHECK(control.user_keys == long_mode);
        CHECK(control.supervisor_keys == long_mode);
        CHECK(control.nxe_format == (paging != Paging::two_level));
    }
}
