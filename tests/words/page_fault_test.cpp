// SPDX-License-Identifier: Apache-2.0
//
// The #PF error code's bits at the manual's positions (SDM vol. 3A figure 4-12), how they are put into
// words, and that a page fault becomes the exception that the guest sees.
#include <mmusim/words/page_fault.hpp>

#include <string>
#include <utility>
#include <vector>

#include <mmusim/words/result.hpp>

#include <fmt/format.h>

#include "support/catch.hpp"

using namespace mmusim;

TEST_CASE("page fault: bits of the error code", "[words]")
{
    CHECK(pf::kPresent == 1);
    CHECK(pf::kWrite == 2);
    CHECK(pf::kUser == 4);
    CHECK(pf::kReserved == 8);
    CHECK(pf::kInstruction == 16);
    CHECK(pf::kProtectionKey == 32);
}

TEST_CASE("page fault: every error code in words", "[words]")
{
    const std::vector<std::string> names{"P", "W", "U", "RSVD", "I/D", "PK"};
    for (std::uint32_t code = 0; code < 64; ++code) {
        std::vector<std::string> set;
        for (std::size_t n = 0; n < names.size(); ++n)
            if ((code >> n & 1u) != 0) set.push_back(names[n]);
        if (set.empty()) set.emplace_back("-");
        CHECK(describe_error_code(code) == fmt::format("{}", fmt::join(set, " ")));
    }
}

TEST_CASE("page fault: as an exception", "[words]")
{
    const Exception seen =
        Exception::of(PageFault{LinearAddress{0xffff'8000'0000'1234}, 0x15, FaultCause::rights, 1});
    CHECK(seen.vector == Vector::page_fault);
    CHECK(seen.error_code == 0x15);
    CHECK(seen.address == LinearAddress{0xffff'8000'0000'1234});
    CHECK(name_of(Vector::page_fault) == "#PF");
    CHECK(name_of(Vector::general_protection) == "#GP");
    CHECK(name_of(Vector::stack_fault) == "#SS");
    CHECK(name_of(Vector::undefined_opcode) == "#UD");
}

TEST_CASE("result: one of two answers", "[words]")
{
    const Result<int, std::string> good{7};
    CHECK(good.ok());
    CHECK(static_cast<bool>(good));
    CHECK(good.value() == 7);
    CHECK(*good == 7);
    const Result<int, std::string> bad{std::string{"no"}};
    CHECK_FALSE(bad.ok());
    CHECK(bad.error() == "no");
    const Result<std::pair<int, int>, int> pair{std::pair{1, 2}};
    CHECK(pair->second == 2);
    // The two may be of one type's look: which one it is, is remembered.
    static_assert(Result<int, char>{5}.ok() && !Result<int, char>{'x'}.ok());
}
