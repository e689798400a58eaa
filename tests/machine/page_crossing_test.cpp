// SPDX-License-Identifier: Apache-2.0
//
// An access that crosses into a second page is two translations, both needed before either counts. The
// lower page is translated first. Where one faults, CR2 is the first byte concerned in that page, D is
// set in neither and memory does not change. Outside long mode addresses wrap at 2^32; in long mode a
// first or last byte that is not canonical is #GP before any walk, #SS through the stack segment.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

TEST_CASE("page crossing: both pages are translated", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
            Guest guest{paging, options};
            guest.map(0x3f'f000, 0x105'000);
            guest.map(0x40'0000, 0x102'000);
            const Seen seen = guest.store(0x3f'fffd, 0x1122'3344'5566'7788);
            REQUIRE(seen.ok());
            REQUIRE(seen.placed.pages().size() == 2);
            CHECK(seen.at(0) == 0x105'ffd);
            CHECK(seen.placed.parts[0].bytes == 3);
            CHECK(seen.at(1) == 0x102'000);
            CHECK(seen.placed.parts[1].bytes == 5);
            CHECK(guest.word(0x105'ff8) == 0x6677'8800'0000'0000);
            CHECK(guest.word(0x102'000) == 0x11'2233'4455);
            CHECK(guest.load_word(0x3f'fffd) == 0x1122'3344'5566'7788);
            // Up to the last byte of a page nothing is crossed.
            CHECK(guest.read(0x3f'fff8).placed.pages().size() == 1);
            CHECK(guest.read(0x3f'fff9).placed.pages().size() == 2);
        }
    }
}

TEST_CASE("page crossing: a fault in the second page", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const std::uint64_t second : {std::uint64_t{0}, std::uint64_t{0x102'000 | P | A}}) {
            Guest guest{Paging::four_level, options};
            guest.map(0x40'0000, 0x101'000, P | W | A);
            guest.map(0x40'1000, 0);
            guest.set_entry(0x40'1000, 1, second);
            for (int again = 0; again < 2; ++again) {
                const std::uint32_t code = second == 0 ? pf::kWrite : pf::kWrite | pf::kPresent;
                CHECK(guest.write(0x40'0ffc).page_fault(code, 0x40'1000));
                CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A));
                CHECK(guest.entry(0x40'1000, 1) == second);
            }
            CHECK(guest.machine.audit().empty());
            // The same bytes of the first page alone.
            CHECK(guest.write(0x40'0ffc, 4).ok());
            CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A | D));
        }
    }
}

TEST_CASE("page crossing: the first page's fault wins", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000, P | A);
        guest.map(0x40'1000, 0x102'000, P | W | A);
        CHECK(guest.write(0x40'0ffc).page_fault(pf::kWrite | pf::kPresent, 0x40'0ffc));
        CHECK(guest.entry(0x40'1000, 1) == (0x102'000 | P | W | A));
    }
}

TEST_CASE("page crossing: both pages may be one frame", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000, P | W);
        guest.map(0x40'1000, 0x101'000, P | W);
        REQUIRE(guest.store(0x40'0ffc, 0x8877'6655'4433'2211).ok());
        CHECK(guest.word(0x101'ff8) == 0x4433'2211'0000'0000);
        CHECK(guest.word(0x101'000) == 0x8877'6655);
        CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A | D));
        CHECK(guest.entry(0x40'1000, 1) == (0x101'000 | P | W | A | D));
    }
}

TEST_CASE("page crossing: addresses wrap at 2 to the 32 outside long mode", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : {Paging::two_level, Paging::pae}) {
            Guest guest{paging, options};
            guest.map(0xffff'f000, 0x101'000);
            CHECK(guest.write(0xffff'fffe, 4).page_fault(pf::kWrite, 0));
            guest.map(0, 0x102'000);
            const Seen seen = guest.write(0xffff'fffe, 4);
            CHECK(seen.at(0) == 0x101'ffe);
            CHECK(seen.at(1) == 0x102'000);
        }
    }
}

TEST_CASE("page crossing: paging off", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::two_level, options};
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        const Seen seen = guest.read(0x3fff);
        CHECK(seen.at(0) == 0x3fff);
        CHECK(seen.at(1) == 0x4000);
        CHECK(guest.read(0xffff'fffc).at(1) == 0);
    }
}

TEST_CASE("page crossing: what is not canonical is no page fault", "[machine]")
{
    struct Case {
        Paging paging;
        std::uint64_t last_low;
    };
    for (const Options& options : everywhere()) {
        for (const auto& [paging, last_low] :
             {Case{Paging::four_level, 0x7fff'ffff'ffff}, Case{Paging::five_level, 0xff'ffff'ffff'ffff}}) {
            Guest guest{paging, options};
            const std::uint64_t first_high = ~last_low;
            CHECK(guest.read(last_low, 1).page_fault(0, last_low));
            CHECK(guest.read(first_high, 1).page_fault(0, first_high));
            CHECK(guest.read(last_low + 1, 1).raised(Vector::general_protection));
            CHECK(guest.read(first_high - 1, 1).raised(Vector::general_protection));
            // The last byte counts too, though the first page has no translation.
            CHECK(guest.read(last_low - 3, 4).page_fault(0, last_low - 3));
            CHECK(guest.read(last_low - 3, 5).raised(Vector::general_protection));
            Operand push = Guest::operand(AccessKind::write, last_low - 3, 8);
            push.segmented = SegmentedAddress{Segment::ss, VirtualAddress{last_low - 3}};
            CHECK(guest.access(push).raised(Vector::stack_fault));
        }
    }
}
