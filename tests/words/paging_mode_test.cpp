// SPDX-License-Identifier: Apache-2.0
//
// The paging modes against the manual's pictures (SDM vol. 3A figures 4-2 to 4-11): which bits of a linear
// address select the entry at which level, where the root lies, and which addresses are canonical at 48
// and 57 bits (vol. 1 3.3.7.1).
#include <mmusim/words/paging_mode.hpp>

#include <set>
#include <string_view>
#include <vector>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

/// Bits `high`:`low` of the linear address select the entry at `level`.
struct Field {
    PagingMode mode;
    int level;
    int high;
    int low;
};

const std::vector<Field> kFields{
    {kTwoLevel, 2, 31, 22},  {kTwoLevel, 1, 21, 12},                                                     //
    {kPae, 3, 31, 30},       {kPae, 2, 29, 21},       {kPae, 1, 20, 12},                                 //
    {kFourLevel, 4, 47, 39}, {kFourLevel, 3, 38, 30}, {kFourLevel, 2, 29, 21}, {kFourLevel, 1, 20, 12},  //
    {kFiveLevel, 5, 56, 48}, {kFiveLevel, 4, 47, 39}, {kFiveLevel, 3, 38, 30}, {kFiveLevel, 2, 29, 21},
    {kFiveLevel, 1, 20, 12},
};

constexpr std::uint64_t bit(int n)
{
    return std::uint64_t{1} << n;
}

}  // namespace

TEST_CASE("paging mode: each bit of a linear address lands in its index", "[words]")
{
    for (const Field& field : kFields) {
        INFO(name_of(field.mode.paging) << " level " << field.level);
        CHECK(field.mode.shift(field.level) == static_cast<unsigned>(field.low));
        for (int n = 0; n < 64; ++n) {
            INFO("address bit " << n);
            const bool inside = n >= field.low && n <= field.high;
            const unsigned expected = inside ? 1u << (n - field.low) : 0u;
            CHECK(field.mode.index(LinearAddress{bit(n)}, field.level) == expected);
        }
        CHECK(field.mode.index(LinearAddress{~std::uint64_t{0}}, field.level) ==
              (1u << (field.high - field.low + 1)) - 1);
    }
}

TEST_CASE("paging mode: shape of the tables", "[words]")
{
    CHECK(kTwoLevel.levels == 2);
    CHECK(kTwoLevel.entries() == 1024);
    CHECK(kTwoLevel.entry_bytes == 4);
    CHECK(kTwoLevel.linear_bits == 32);
    for (const PagingMode mode : {kPae, kFourLevel, kFiveLevel}) {
        CHECK(mode.entries() == 512);
        CHECK(mode.entry_bytes == 8);
        CHECK(mode.has_nx);
    }
    CHECK_FALSE(kTwoLevel.has_nx);
    CHECK(kPae.levels == 3);
    CHECK(kPae.linear_bits == 32);
    CHECK(kFourLevel.linear_bits == 48);
    CHECK(kFiveLevel.linear_bits == 57);
    // Keys are long mode's; the PDPTEs are registers in PAE paging alone.
    CHECK_FALSE(kTwoLevel.has_keys);
    CHECK_FALSE(kPae.has_keys);
    CHECK(kFourLevel.has_keys);
    CHECK(kFiveLevel.has_keys);
    CHECK(kTwoLevel.root_level() == 2);
    CHECK(kPae.root_level() == 2);
    CHECK(kFourLevel.root_level() == 4);
    CHECK(kFiveLevel.root_level() == 5);
    // A table fills a page, in every mode.
    for (const PagingMode mode : {kTwoLevel, kPae, kFourLevel, kFiveLevel})
        CHECK(mode.entries() * mode.entry_bytes == 4096);
}

TEST_CASE("paging mode: the shadow of each guest's mode", "[words]")
{
    CHECK(shadow_mode_of(kTwoLevel) == kPae);
    CHECK(shadow_mode_of(kPae) == kPae);
    CHECK(shadow_mode_of(kFourLevel) == kFourLevel);
    CHECK(shadow_mode_of(kFiveLevel) == kFiveLevel);
}

TEST_CASE("paging mode: each has a name of its own", "[words]")
{
    std::set<std::string_view> names;
    for (const auto paging :
         {Paging::off, Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level})
        names.insert(name_of(paging));
    CHECK(names.size() == 5);
    CHECK(names.count("?") == 0);
}

TEST_CASE("canonical: the edges at 48 bits", "[words]")
{
    for (const std::uint64_t address :
         {0x0ull, 0x1ull, 0x7fff'ffff'ffffull, 0xffff'8000'0000'0000ull, 0xffff'ffff'ffff'ffffull})
        CHECK(canonical(address, 48));
    for (const std::uint64_t address :
         {0x8000'0000'0000ull, 0xffff'7fff'ffff'ffffull, 0x0001'0000'0000'0000ull, 0x8000'0000'0000'0000ull,
          0x7fff'8000'0000'0000ull, 0xfffe'8000'0000'0000ull, 0x00ff'ffff'ffff'ffffull})
        CHECK_FALSE(canonical(address, 48));
}

TEST_CASE("canonical: the edges at 57 bits", "[words]")
{
    for (const std::uint64_t address :
         {0x0ull, 0x8000'0000'0000ull, 0x00ff'ffff'ffff'ffffull, 0xff00'0000'0000'0000ull, ~0ull})
        CHECK(canonical(address, 57));
    for (const std::uint64_t address : {0x0100'0000'0000'0000ull, 0xfeff'ffff'ffff'ffffull,
                                        0x8000'0000'0000'0000ull, 0x7f00'0000'0000'0000ull})
        CHECK_FALSE(canonical(address, 57));
}

TEST_CASE("canonical: bits above the width repeat its top bit, bit by bit", "[words]")
{
    for (const unsigned width : {48u, 57u}) {
        const int top = static_cast<int>(width) - 1;
        for (int n = 0; n < 64; ++n) {
            INFO(width << " bits, bit " << n);
            CHECK(canonical(bit(n), width) == (n < top));
            CHECK(canonical(~bit(n), width) == (n < top));
        }
    }
}
