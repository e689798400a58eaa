// SPDX-License-Identifier: Apache-2.0
//
// An entry's fields, bit by bit, against the manual's figures (SDM vol. 3A figures 4-4, 4-7 and 4-11):
// flags by position, and where each bit of an entry goes in the address that it names. For every mode,
// level and bit: a bit is a flag, or moves to exactly one address bit, or is no part of the address.
#include <mmusim/words/pte.hpp>

#include <optional>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

constexpr std::uint64_t bit(int n)
{
    return std::uint64_t{1} << n;
}

/// Which address bit entry bit `n` is, in an entry that names a table.
std::optional<int> address_bit_of_table(PagingMode mode, int n)
{
    if (n < 12 || n > (mode == kTwoLevel ? 31 : 51)) return std::nullopt;
    return n;
}

/// Which address bit entry bit `n` is, in an entry at `level` that maps a page.
std::optional<int> address_bit_of_page(PagingMode mode, int level, int n)
{
    if (mode == kTwoLevel && level == 2) {
        if (n >= 22 && n <= 31) return n;
        if (n >= 13 && n <= 20) return n + 19;  // PSE-36: 39:32
        return std::nullopt;
    }
    const int lowest = level == 1 ? 12 : level == 2 ? 21 : 30;
    if (n < lowest || n > (mode == kTwoLevel ? 31 : 51)) return std::nullopt;
    return n;
}

template <PagingMode Mode>
void check_addresses(int highest_page_level)
{
    INFO(name_of(Mode.paging));
    for (int n = 0; n < static_cast<int>(Mode.entry_bytes) * 8; ++n) {
        INFO("entry bit " << n);
        const auto table = address_bit_of_table(Mode, n);
        CHECK(Pte<Mode>{bit(n)}.table_address() == (table ? bit(*table) : 0));
        for (int level = 1; level <= highest_page_level; ++level) {
            INFO("page at level " << level);
            const auto page = address_bit_of_page(Mode, level, n);
            CHECK(Pte<Mode>{bit(n)}.page_address(level) == (page ? bit(*page) : 0));
        }
    }
}

template <PagingMode Mode>
void check_flags()
{
    INFO(name_of(Mode.paging));
    for (int n = 0; n < static_cast<int>(Mode.entry_bytes) * 8; ++n) {
        INFO("entry bit " << n);
        const Pte<Mode> entry{bit(n)};
        CHECK(entry.raw() == bit(n));
        CHECK(entry.present() == (n == 0));
        CHECK(entry.writable() == (n == 1));
        CHECK(entry.user() == (n == 2));
        CHECK(entry.accessed() == (n == 5));
        CHECK(entry.dirty() == (n == 6));
        CHECK(entry.no_execute() == (n == 63));
        const bool key_bit = Mode.has_keys && n >= 59 && n <= 62;
        CHECK(entry.key() == (key_bit ? 1u << (n - 59) : 0u));
    }
}

}  // namespace

TEST_CASE("pte: names of the bits", "[words]")
{
    CHECK(pte::kPresent == 0x1);
    CHECK(pte::kWritable == 0x2);
    CHECK(pte::kUser == 0x4);
    CHECK(pte::kWriteThrough == 0x8);
    CHECK(pte::kCacheDisable == 0x10);
    CHECK(pte::kAccessed == 0x20);
    CHECK(pte::kDirty == 0x40);
    CHECK(pte::kPageSize == 0x80);
    CHECK(pte::kGlobal == 0x100);
    CHECK(pte::kKey == 0x7800'0000'0000'0000);
    CHECK(pte::kNoExecute == 0x8000'0000'0000'0000);
    CHECK(pte::kFrame == 0x000f'ffff'ffff'f000);
}

TEST_CASE("pte: flags by position", "[words]")
{
    check_flags<kTwoLevel>();
    check_flags<kPae>();
    check_flags<kFourLevel>();
    check_flags<kFiveLevel>();
}

TEST_CASE("pte: where each bit goes in the address", "[words]")
{
    check_addresses<kTwoLevel>(2);
    check_addresses<kPae>(2);
    check_addresses<kFourLevel>(3);
    check_addresses<kFiveLevel>(3);
}

TEST_CASE("pte: has asks for all of the bits", "[words]")
{
    const Pte<kFourLevel> entry{0x3};
    CHECK(entry.has(0x1));
    CHECK(entry.has(0x3));
    CHECK_FALSE(entry.has(0x7));
    CHECK(entry == Pte<kFourLevel>{3});
    CHECK_FALSE(entry == Pte<kFourLevel>{1});
    CHECK(Pte<kPae>{}.raw() == 0);
}

TEST_CASE("bit_range: every pair of ends", "[words]")
{
    unsigned wrong = 0;
    for (unsigned first = 0; first < 64; ++first) {
        for (unsigned last = 0; last < 64; ++last) {
            std::uint64_t expected = 0;
            for (unsigned n = first; n <= last; ++n) expected |= std::uint64_t{1} << n;
            if (bit_range(first, last) != expected) ++wrong;
        }
    }
    CHECK(wrong == 0);
}
