// SPDX-License-Identifier: Apache-2.0
//
// The fast fault path: marks in level-1 shadow entries (reference/xen.md B7, B9 step 2, H1).
#include <array>
#include <string>

#include <mmusim/shadow/magic_entry.hpp>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kDevice = 0x40'1000;   ///< right after it: what is fetched for one reaches the other
constexpr std::uint64_t kOutside = 0x50'0000;  ///< the 4 MiB of RAM end before
constexpr std::uint64_t kWindow = 0x80'0000;   ///< maps the level-1 table

/// What a fault came to, besides `fault` itself.
struct Ends {
    std::uint64_t walks, fixed, real, mmio, fast_mmio, fast_gnp, fast_fail;

    friend bool operator==(const Ends&, const Ends&) = default;
};

Ends ends_of(const ShadowCounters& counters)
{
    return {counters.guest_walk,     counters.fault_fixed,     counters.fault_bail_real_fault,
            counters.fault_mmio,     counters.fault_fast_mmio, counters.fault_fast_gnp,
            counters.fault_fast_fail};
}

/// The change that `action` makes.
template <class Action>
Ends during(const Guest& guest, Action action)
{
    const Ends before = ends_of(guest.counters());
    action();
    const Ends after = ends_of(guest.counters());
    return {after.walks - before.walks,         after.fixed - before.fixed,
            after.real - before.real,           after.mmio - before.mmio,
            after.fast_mmio - before.fast_mmio, after.fast_gnp - before.fast_gnp,
            after.fast_fail - before.fast_fail};
}

Guest guest_of(Paging paging, const CustomShadowPolicy& parts, const std::string& layout = "offset:0x8000")
{
    Options options = under("custom");
    options.layout = layout;
    MachineConfig config = config_of(options);
    config.policy = [parts] { return make_custom_policy(parts); };
    return Guest{paging, config};
}

constexpr std::array kPagings{Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level};

}  // namespace

TEST_CASE("magic entries: the values", "[shadow]")
{
    CHECK(magic::mmio(Gfn{0xfee00}, W) == 0xffff'fff0'00fe'e003);  // H1
    CHECK(magic::mmio_frame(0xffff'fff0'00fe'e003) == Gfn{0xfee00});
    CHECK(magic::mmio(Gfn{0xffff'ffff}, kAll) == (0xffff'fff0'0000'0000 | 0xffff'ffff0 | P | W | U));
    CHECK(magic::mmio(Gfn{0x1'0000'0000}, kAll) == 0);  // more than the field holds
    CHECK(magic::mmio(Gfn{std::uint64_t{1} << 60}, kAll) == 0);
    CHECK(magic::is_mmio(magic::mmio(Gfn{0xffff'ffff}, kAll)));
    CHECK(magic::is_mark(magic::kNotPresent));
    CHECK_FALSE(magic::is_mmio(magic::kNotPresent));
    // Not what the greatest frame of a machine of 51 bits may look like, with all flags.
    CHECK_FALSE(magic::is_mark(0xfff7'ffff'ffff'ffff));
    CHECK_FALSE(magic::is_mark(0));
}

TEST_CASE("fast fault path: a device's page is walked once", "[shadow]")
{
    for (const Paging paging : kPagings) {
        for (const bool on : {true, false}) {
            INFO(static_cast<int>(paging) << ", " << on);
            CustomShadowPolicy parts;
            parts.switches.fast_fault_path = on;
            Guest guest = guest_of(paging, parts);
            guest.map(kLinear, 0x101'000);
            guest.map(kDevice, kOutside, P | W | A | D);
            const Ends walked{1, 0, 0, 1, 0, 0, 0};
            const Ends marked{0, 0, 0, 0, 1, 0, 0};
            CHECK(during(guest, [&] { CHECK(guest.read(kDevice + 8).at() == kOutside + 8); }) == walked);
            CHECK(during(guest, [&] { CHECK(guest.read(kDevice).at() == kOutside); }) ==
                  (on ? marked : walked));
            CHECK(during(guest, [&] { CHECK(guest.store(kDevice, 7).emulated()); }) ==
                  (on ? marked : walked));
            // The rights are the guest's.
            CHECK(
                guest.access(Guest::operand(AccessKind::read, kDevice, 1, true)).page_fault(P | U, kDevice));
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("fast fault path: accessed and dirty bits, and rights, stay right", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level, {});
    guest.map(kDevice, kOutside, P | W);
    CHECK(guest.read(kDevice).ok());
    CHECK((guest.entry(kDevice, 1) & (A | D)) == A);
    CHECK(guest.write(kDevice).ok());
    CHECK((guest.entry(kDevice, 1) & (A | D)) == (A | D));
    guest.map(kLinear, kOutside, P | A);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kLinear).page_fault(P | W, kLinear));
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("fast fault path: prefetch marks devices too", "[shadow]")
{
    Guest guest = guest_of(Paging::pae, {});
    guest.map(kLinear, 0x101'000);
    guest.map(kDevice, kOutside);
    CHECK(guest.read(kLinear).ok());
    CHECK(during(guest, [&] { CHECK(guest.read(kDevice).ok()); }) == Ends{0, 0, 0, 0, 1, 0, 0});
}

TEST_CASE("fast fault path: a superpage that is RAM in part", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::four_level}) {
        Guest guest = guest_of(paging, {});
        guest.map(0x4000'0000, 0x4000'0000, kAll, 2);  // RAM has its first 16 pages
        CHECK(during(guest, [&] { CHECK(guest.read(0x4000'0000).ok()); }) == Ends{1, 1, 0, 0, 0, 0, 0});
        CHECK(during(guest, [&] { CHECK(guest.read(0x4001'0000).emulated()); }) == Ends{0, 0, 0, 0, 1, 0, 0});
        CHECK(during(guest, [&] { CHECK(guest.read(0x4010'0000).emulated()); }) == Ends{1, 0, 0, 1, 0, 0, 0});
        CHECK(during(guest, [&] { CHECK(guest.read(0x4010'0000).emulated()); }) == Ends{0, 0, 0, 0, 1, 0, 0});
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("fast fault path: a page that the guest has not present, where all tables are in sync", "[shadow]")
{
    for (const Paging paging : kPagings) {
        for (const bool out_of_sync : {false, true}) {
            INFO(static_cast<int>(paging) << ", " << out_of_sync);
            Guest guest = guest_of(paging, {.out_of_sync = out_of_sync});
            guest.map(kLinear, 0x101'000);
            const std::uint64_t entry = guest.entry_at(kDevice, 1);
            guest.map(kWindow, entry & ~std::uint64_t{0xfff});
            CHECK(guest.read(kWindow).ok());
            CHECK(guest.read(kLinear).ok());  // prefetches the one after it
            const Ends marked{0, 0, 0, 0, 0, 1, 0};
            const Ends walked{1, 0, 1, 0, 0, 0, 0};
            CHECK(during(guest, [&] { CHECK(guest.read(kDevice).page_fault(0, kDevice)); }) ==
                  (out_of_sync ? walked : marked));
            CHECK(during(guest, [&] {
                      CHECK(guest.access(Guest::operand(AccessKind::write, kDevice, 1, true))
                                .page_fault(W | U, kDevice));
                  }) == (out_of_sync ? walked : marked));
            CHECK(guest.machine.audit().empty());
            // It becomes present, goes, and comes back: no flush is owed for the first.
            const std::uint64_t at = kWindow | (entry & 0xfff);
            CHECK(guest.store(at, 0x102'000 | kAll, guest.entry_bytes()).ok());
            CHECK(guest.read(kDevice).at() == 0x102'000);
            CHECK(guest.store(at, 0, guest.entry_bytes()).ok());
            CHECK(guest.invlpg(kDevice));
            CHECK(guest.read(kDevice).page_fault(0, kDevice));
            CHECK(guest.store(at, 0x103'000 | kAll, guest.entry_bytes()).ok());
            CHECK(guest.read(kDevice).at() == 0x103'000);
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("fast fault path: a mark in a table that is out of sync is not believed, and is resynced",
          "[shadow]")
{
    for (const bool flushed : {false, true}) {
        Guest guest = guest_of(Paging::four_level, {});
        guest.map(kLinear, 0x101'000);
        guest.map(kDevice, kOutside);
        const std::uint64_t entry = guest.entry_at(kDevice, 1);
        guest.map(kWindow, entry & ~std::uint64_t{0xfff});
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.read(kDevice).emulated());
        CHECK_FALSE(guest.store(kWindow | (entry & 0xfff), 0x102'000 | kAll).emulated());
        CHECK(guest.counters().unsync == 1);
        if (flushed) {
            REQUIRE(guest.mov_cr3(guest.root()));
            CHECK(guest.counters().resync == 1);
        }
        const Ends ends = during(guest, [&] { CHECK(guest.read(kDevice).at() == 0x102'000); });
        CHECK(ends == (flushed ? Ends{0, 0, 0, 0, 0, 0, 0} : Ends{1, 1, 0, 0, 0, 0, 0}));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("fast fault path: marks are no mappings", "[shadow]")
{
    // A frame outside RAM, mapped writable, becomes a table of nobody; and no search takes a mark for a
    // mapping.
    Guest guest = guest_of(Paging::four_level, {.out_of_sync = false});
    guest.map(kLinear, 0x101'000);
    guest.map(kDevice, kOutside);
    guest.map(kWindow, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.write(kDevice).emulated());
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kWindow + 0x800).emulated());
    CHECK(guest.shadows().writable_mappings(Mfn{(magic::mmio(Gfn{0x500}, W) & pte::kFrame) >> 12}).empty());
    CHECK(guest.machine.audit().empty());
    guest.machine.blow_shadows();
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(guest.read(kDevice).emulated());
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("fast fault path: no marks where the machine's addresses use all 52 bits", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level, {.out_of_sync = false}, "offset:0x8000000000");
    guest.map(kLinear, 0x101'000);
    guest.map(kDevice, kOutside);
    for (unsigned i = 0; i < 3; ++i) CHECK(guest.read(kDevice).emulated());
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.read(kDevice + 0x1000).page_fault(0, kDevice + 0x1000));
    CHECK(guest.counters().fault_mmio == 3);
    CHECK(guest.counters().fault_fast_mmio == 0);
    CHECK(guest.counters().fault_fast_gnp == 0);
    CHECK(guest.machine.audit().empty());
}
