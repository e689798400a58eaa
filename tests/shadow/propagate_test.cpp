// SPDX-License-Identifier: Apache-2.0
//
// Propagation, exhaustively over the flags of an entry, against rules written down again from
// reference/xen.md B7: absent unless the guest's entry is present, accessed and free of reserved bits;
// read-only unless it is writable and, where it maps a page, dirty; U/S and XD as the guest has them; the
// key of a 4 KiB leaf; nothing else.
#include "shadow/propagate.hpp"
#include "support/catch.hpp"

using namespace mmusim;

namespace {

constexpr std::uint64_t bit(unsigned n)
{
    return std::uint64_t{1} << n;
}

/// What the shadow of an entry may hold, in words. `leaf`: the entry maps a page. `reserved`: a bit is.
std::uint64_t expected(std::uint64_t entry, int level, bool leaf, bool reserved, bool long_mode)
{
    if ((entry & bit(0)) == 0) return 0;
    if ((entry & bit(5)) == 0) return 0;
    if (reserved) return 0;
    std::uint64_t flags = bit(0) | bit(5);
    if ((entry & bit(1)) != 0 && (!leaf || (entry & bit(6)) != 0)) flags |= bit(1);
    if ((entry & bit(2)) != 0) flags |= bit(2);
    if ((entry & bit(63)) != 0) flags |= bit(63);
    if (level == 1 && long_mode) flags |= entry & (bit(59) | bit(60) | bit(61) | bit(62));
    if (level == 1 && (entry & bit(6)) != 0) flags |= bit(6);  // not compared: the hardware sets it
    if (level > 1) flags |= bit(6);
    return flags;
}

/// All combinations of the twelve low bits, with each of `high` set or clear.
template <PagingMode Mode>
void check(int level, const Cpuid& cpuid, EntrySettings settings, std::initializer_list<unsigned> high,
           bool (*is_leaf)(std::uint64_t), bool (*is_reserved)(std::uint64_t))
{
    const EntryRules rules = entry_rules(Mode, cpuid, settings);
    const std::vector<unsigned> bits{high};
    unsigned wrong = 0;
    for (std::uint64_t low = 0; low < 0x1000; ++low) {
        for (std::uint64_t set = 0; set < bit(static_cast<unsigned>(bits.size())); ++set) {
            std::uint64_t entry = low;
            for (std::size_t i = 0; i < bits.size(); ++i) {
                if ((set >> i & 1) != 0) entry |= bit(bits[i]);
            }
            // At level 1 the hardware keeps D for itself: both are right.
            const std::uint64_t ignore = level == 1 ? bit(6) : 0;
            const std::uint64_t flags = propagated_flags(Pte<Mode>{entry}, level, rules);
            const std::uint64_t want =
                expected(entry, level, is_leaf(entry), is_reserved(entry), Mode.has_keys);
            if (((flags ^ want) & ~ignore) != 0 && ++wrong == 1) {
                INFO(name_of(Mode.paging) << " level " << level << " entry " << entry);
                CHECK((flags & ~ignore) == (want & ~ignore));
            }
        }
    }
    CHECK(wrong == 0);
}

bool always(std::uint64_t)
{
    return true;
}
bool never(std::uint64_t)
{
    return false;
}
bool ps(std::uint64_t entry)
{
    return (entry & bit(7)) != 0;
}

Cpuid everything()
{
    Cpuid cpuid;
    for (const auto& [name, feature] : kFeatureNames) cpuid.*feature = true;
    return cpuid;
}

constexpr EntrySettings kOn{.nxe = true, .pse = true};
constexpr EntrySettings kOff{.nxe = false, .pse = false};

}  // namespace

TEST_CASE("propagate: 2-level entries", "[shadow]")
{
    const Cpuid cpuid = everything();
    check<kTwoLevel>(1, cpuid, kOn, {12, 22, 31}, always, never);
    check<kTwoLevel>(2, cpuid, kOn, {12, 13, 20, 21, 22, 31}, ps,
                     [](std::uint64_t entry) { return ps(entry) && (entry & bit(21)) != 0; });
    check<kTwoLevel>(2, cpuid, kOff, {12, 13, 21, 31}, never, never);
    Cpuid no_pse36 = cpuid;
    no_pse36.pse36 = false;
    check<kTwoLevel>(2, no_pse36, kOn, {12, 13, 20, 21, 22}, ps, [](std::uint64_t entry) {
        return ps(entry) && (entry & (bit(13) | bit(20) | bit(21))) != 0;
    });
}

TEST_CASE("propagate: PAE entries", "[shadow]")
{
    const Cpuid cpuid = everything();
    const auto high = [](std::uint64_t entry) { return entry >> 40 << 41 != 0; };  // 62:40
    check<kPae>(1, cpuid, kOn, {12, 39, 40, 51, 52, 62, 63}, always, high);
    check<kPae>(1, cpuid, kOff, {12, 39, 63}, always,
                [](std::uint64_t entry) { return (entry & bit(63)) != 0; });
    check<kPae>(2, cpuid, kOn, {12, 13, 20, 21, 40, 63}, ps, [](std::uint64_t entry) {
        return (entry & bit(40)) != 0 || (ps(entry) && (entry & (bit(13) | bit(20))) != 0);
    });
}

TEST_CASE("propagate: entries of 4-level and 5-level paging", "[shadow]")
{
    const Cpuid cpuid = everything();
    const auto high = [](std::uint64_t entry) { return (entry & (bit(40) | bit(51))) != 0; };
    check<kFourLevel>(1, cpuid, kOn, {12, 39, 40, 51, 52, 58, 59, 62, 63}, always, high);
    check<kFiveLevel>(1, cpuid, kOn, {12, 40, 59, 60, 61, 62, 63}, always, high);
    check<kFourLevel>(2, cpuid, kOn, {12, 13, 20, 21, 40, 59, 63}, ps, [](std::uint64_t entry) {
        return (entry & bit(40)) != 0 || (ps(entry) && (entry & (bit(13) | bit(20))) != 0);
    });
    check<kFourLevel>(3, cpuid, kOn, {12, 13, 21, 29, 30, 59, 63}, ps, [](std::uint64_t entry) {
        return ps(entry) && (entry & (bit(13) | bit(21) | bit(29))) != 0;
    });
    Cpuid no_1g = cpuid;
    no_1g.page1gb = false;
    check<kFourLevel>(3, no_1g, kOff, {12, 30, 59, 63}, never,
                      [](std::uint64_t entry) { return ps(entry) || (entry & bit(63)) != 0; });
    check<kFourLevel>(4, cpuid, kOn, {12, 40, 52, 63}, never,
                      [](std::uint64_t entry) { return ps(entry) || (entry & bit(40)) != 0; });
    check<kFiveLevel>(5, cpuid, kOn, {12, 40, 63}, never,
                      [](std::uint64_t entry) { return ps(entry) || (entry & bit(40)) != 0; });
    Cpuid amd = cpuid;
    amd.vendor = Vendor::amd;
    check<kFourLevel>(4, amd, kOn, {12, 63}, never,
                      [](std::uint64_t entry) { return ps(entry) || (entry & bit(8)) != 0; });
}
