// SPDX-License-Identifier: Apache-2.0
//
// Reserved bits, exhaustively: paging mode, level, PS, MAXPHYADDR 32 to 52, EFER.NXE, CR4.PSE, PSE-36, 1 GiB
// pages and vendor, and every single bit of an entry, against the predicate in reserved_oracle.hpp. Beyond
// single bits: an entry with every permitted bit set at once is accepted, and with one reserved bit more it
// is not.
#include <mmusim/words/pte.hpp>

#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "words/reserved_oracle.hpp"

using namespace mmusim;
using oracle::EntryFormat;

namespace {

constexpr std::uint64_t bit(int n)
{
    return std::uint64_t{1} << n;
}

std::string text_of(const EntryFormat& f, int level, bool ps)
{
    return fmt::format("{} L{} PS={} MAXPHYADDR={} NXE={} PSE={} pse36={} page1gb={} {}", name_of(f.paging),
                       level, ps, f.maxphyaddr, f.nxe, f.pse, f.pse36, f.page1gb, f.amd ? "amd" : "intel");
}

EntryRules rules_of(const EntryFormat& format)
{
    const PagingMode mode = format.paging == Paging::two_level    ? kTwoLevel
                            : format.paging == Paging::pae        ? kPae
                            : format.paging == Paging::four_level ? kFourLevel
                                                                  : kFiveLevel;
    Cpuid cpuid;
    cpuid.vendor = format.amd ? Vendor::amd : Vendor::intel;
    cpuid.physical_address_bits = static_cast<unsigned>(format.maxphyaddr);
    cpuid.nx = true;
    cpuid.pse = true;
    cpuid.pse36 = format.pse36;
    cpuid.page1gb = format.page1gb;
    return entry_rules(mode, cpuid, {.nxe = format.nxe, .pse = format.pse});
}

/// Calls `check(format)` for every combination.
template <class Check>
void for_each_format(Check check)
{
    for (const auto paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        for (int maxphyaddr = 32; maxphyaddr <= 52; ++maxphyaddr) {
            for (unsigned flags = 0; flags < 32; ++flags) {
                check(EntryFormat{paging, maxphyaddr, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0,
                                  (flags & 8) != 0, (flags & 16) != 0});
            }
        }
    }
}

int highest_level(Paging paging)
{
    // PAE's level 3 is no entry of a table: its own rule is below.
    return paging == Paging::five_level ? 5 : paging == Paging::four_level ? 4 : 2;
}

}  // namespace

TEST_CASE("entry rules: every bit of every entry under every setting", "[words]")
{
    unsigned long cases = 0;
    std::vector<std::string> wrong;
    for_each_format([&](const EntryFormat& format) {
        const EntryRules rules = rules_of(format);
        const int bits = format.paging == Paging::two_level ? 32 : 64;
        for (int level = 1; level <= highest_level(format.paging); ++level) {
            for (const bool ps : {false, true}) {
                const bool page = oracle::maps_page(format, level, ps);
                const std::uint64_t base = bit(0) | (ps ? bit(7) : 0);
                if (rules.is_leaf(base, level) != page)
                    wrong.push_back(fmt::format("leaf: {}", text_of(format, level, ps)));
                const bool base_reserved = ps && oracle::bit_is_reserved(format, level, page, 7);
                std::uint64_t permitted = base;
                for (int n = 0; n < bits; ++n) {
                    if (n == 7) continue;  // PS: varied outside
                    const bool reserved = oracle::bit_is_reserved(format, level, page, n);
                    if (!reserved) permitted |= bit(n);
                    ++cases;
                    if (rules.reserved_bit_set(base | bit(n), level) != (reserved || base_reserved))
                        wrong.push_back(fmt::format("bit {}: {}", n, text_of(format, level, ps)));
                }
                if (rules.reserved_bit_set(permitted, level) != base_reserved)
                    wrong.push_back(fmt::format("all permitted bits: {}", text_of(format, level, ps)));
                for (int n = 0; n < bits; ++n) {
                    if ((permitted & bit(n)) != 0 || n == 7) continue;
                    if (!rules.reserved_bit_set(permitted | bit(n), level))
                        wrong.push_back(
                            fmt::format("bit {} beside others: {}", n, text_of(format, level, ps)));
                }
            }
        }
    });
    INFO((wrong.empty() ? std::string{} : wrong.front()));
    CHECK(wrong.empty());
    CHECK(cases > 1'000'000);
}

TEST_CASE("entry rules: what is left of an entry that is not reserved, in numbers", "[words]")
{
    // Written out once by hand, so that the oracle itself is pinned to the manual.
    const auto reserved = [](const EntryFormat& format, int level, std::uint64_t entry) {
        return rules_of(format).reserved_bit_set(entry, level);
    };
    const EntryFormat two{.paging = Paging::two_level, .maxphyaddr = 40, .pse = true, .pse36 = true};
    CHECK_FALSE(reserved(two, 2, 0xffdf'ffff));
    CHECK(reserved(two, 2, 0x0020'0081));
    CHECK_FALSE(reserved(two, 2, 0xffff'ff7f));  // no PS: a table
    CHECK_FALSE(reserved(two, 1, 0xffff'ffff));
    const EntryFormat pae{.paging = Paging::pae, .maxphyaddr = 36, .nxe = true};
    CHECK_FALSE(reserved(pae, 1, 0x8000'000f'ffff'ffff));
    CHECK(reserved(pae, 1, 0x0000'0010'0000'0001));
    CHECK(reserved(pae, 1, 0x4000'0000'0000'0001));
    CHECK_FALSE(reserved(pae, 2, 0x8000'000f'ffe0'1fff));
    CHECK(reserved(pae, 2, 0x0000'0000'0010'0081));
    const EntryFormat four{.paging = Paging::four_level, .maxphyaddr = 52, .nxe = true, .page1gb = true};
    CHECK_FALSE(reserved(four, 4, 0xffff'ffff'ffff'ff7f));
    CHECK(reserved(four, 4, 0x81));
    CHECK_FALSE(reserved(four, 3, 0xffff'ffff'c000'1fff));
    CHECK(reserved(four, 3, 0x2081));
}

TEST_CASE("entry rules: reserved bits of a PAE PDPTE", "[words]")
{
    for (int maxphyaddr = 32; maxphyaddr <= 52; ++maxphyaddr) {
        Cpuid cpuid;
        cpuid.physical_address_bits = static_cast<unsigned>(maxphyaddr);
        for (const auto vendor : {Vendor::intel, Vendor::amd}) {
            for (const bool nx : {false, true}) {
                cpuid.vendor = vendor;
                cpuid.nx = nx;  // bit 63 is reserved there all the same
                std::uint64_t expected = 0;
                for (int n = 0; n < 64; ++n)
                    if (oracle::bit_is_reserved_in_pdpte(maxphyaddr, n)) expected |= bit(n);
                INFO("MAXPHYADDR " << maxphyaddr);
                CHECK(reserved_in_pdpte(cpuid) == expected);
            }
        }
    }
}
