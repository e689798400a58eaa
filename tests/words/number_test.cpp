// SPDX-License-Identifier: Apache-2.0
//
// Numbers on the command line: decimal or hex, and nothing that is read as something else.
#include <mmusim/words/number.hpp>

#include "support/catch.hpp"

using mmusim::parse_number;

TEST_CASE("number: decimal and hex", "[words]")
{
    CHECK(parse_number("0") == 0);
    CHECK(parse_number("010") == 10);  // not octal
    CHECK(parse_number("08") == 8);
    CHECK(parse_number("0x10") == 16);
    CHECK(parse_number("0xFfFf") == 0xffff);
    CHECK(parse_number("18446744073709551615") == ~std::uint64_t{0});
    CHECK(parse_number("0xffffffffffffffff") == ~std::uint64_t{0});
}

TEST_CASE("number: what is none", "[words]")
{
    for (const char* const text : {"", "0x", "0X1", "-1", "+1", " 1", "1 ", "1k", "0xg", "1.0", "1e3",
                                   "18446744073709551616", "0x10000000000000000"}) {
        INFO(text);
        CHECK_FALSE(parse_number(text).has_value());
    }
}
