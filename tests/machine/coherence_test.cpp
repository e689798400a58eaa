// SPDX-License-Identifier: Apache-2.0
//
// The coherence oracle at work in a machine: staleness of the real TLBs is permitted and counted, a shadow
// policy that forgets a flush is found.
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kOld = 0x20'0000;
constexpr std::uint64_t kNew = 0x21'0000;

MachineConfig checked(const Options& options, const std::string& cpu)
{
    MachineConfig config = config_of(options);
    config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(cpu));
    config.check_coherence = true;
    return config;
}

/// Neither protects tables nor drops anything, and claims to be coherent.
class NeverFlushes final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {ShadowKeying::frame_and_type, false, 0};
    }
    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush) override { return FlushAnswer::nothing; }
};

constexpr std::uint64_t kWindow = 0x80'0000;

/// Maps the page, and a window on its level-1 table.
void map_with_window(Guest& guest)
{
    guest.map(kLinear, kOld);
    guest.map(kWindow, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
}

/// The guest's own store to the entry of the page.
void remap(Guest& guest, std::uint64_t entry)
{
    const std::uint64_t in_table = guest.entry_at(kLinear, 1) & 0xfff;
    REQUIRE(guest.store(kWindow + in_table, entry, guest.entry_bytes()).ok());
}

}  // namespace

TEST_CASE("a TLB may be stale until the guest flushes, and no longer", "[machine][coherence]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        for (const char* const cpu : {"golden_cove", "zen2", "nehalem"}) {
            INFO(name_of(paging) << ", " << cpu);
            Guest guest{paging, checked(native(), cpu)};
            map_with_window(guest);
            REQUIRE(guest.read(kLinear).at() == kOld);
            remap(guest, kNew | kAll);
            CHECK(guest.read(kLinear).at() == kOld);
            CHECK(guest.machine.counters().coherence.address == 1);
            CHECK(guest.machine.counters().coherence.oldest >= 1);
            REQUIRE(guest.invlpg(kLinear));
            CHECK(guest.read(kLinear).at() == kNew);
            // Gone altogether, with no flush: used on.
            remap(guest, 0);
            CHECK(guest.read(kLinear).at() == kNew);
            CHECK(guest.machine.counters().coherence.not_present == 1);
            REQUIRE(guest.mov_cr3(guest.root()));
            CHECK(guest.read(kLinear).raised(Vector::page_fault));
            CHECK(guest.machine.counters().coherence.violations == 0);
            CHECK(guest.machine.take_violations().empty());
        }
    }
}

TEST_CASE("accessed and dirty bits that a cached translation leaves clear are known", "[machine][coherence]")
{
    Guest guest{Paging::four_level, checked(native(), "golden_cove")};
    map_with_window(guest);
    REQUIRE(guest.write(kLinear).ok());
    const std::uint64_t at = guest.entry_at(kLinear, 1);
    remap(guest, kOld | P | W | U);
    CHECK(guest.machine.left_unset(GuestPhysical{at}) == 0);
    REQUIRE(guest.write(kLinear).ok());
    CHECK(guest.machine.left_unset(GuestPhysical{at}) == (A | D));
    CHECK(guest.entry(kLinear, 1) == (kOld | P | W | U));
    CHECK(guest.machine.counters().coherence.stale() == 1);
}

TEST_CASE("a shadow policy that forgets a flush is found", "[machine][coherence]")
{
    for (const char* const cpu : {"none", "golden_cove"}) {
        MachineConfig config = checked(under("write-protect"), cpu);
        config.policy = [] { return std::make_unique<NeverFlushes>(); };
        Guest guest{Paging::four_level, std::move(config)};
        map_with_window(guest);
        REQUIRE(guest.read(kLinear).at() == kOld);
        remap(guest, kNew | kAll);
        CHECK(guest.read(kLinear).at() == kOld);  // as a TLB might
        CHECK(guest.machine.take_violations().empty());
        REQUIRE(guest.invlpg(kLinear));
        CHECK(guest.read(kLinear).at() == kOld);  // as none may
        const std::vector<std::string> violations = guest.machine.take_violations();
        REQUIRE(violations.size() == 1);
        INFO(violations.front());
        CHECK(violations.front().find("INVLPG") != std::string::npos);
        CHECK(violations.front().find("0x400000") != std::string::npos);
        CHECK(guest.machine.counters().coherence.violations == 1);
    }
}

TEST_CASE("the library's policies forget nothing", "[machine][coherence]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        for (const Options& options : everywhere()) {
            Guest guest{paging, checked(options, "golden_cove")};
            map_with_window(guest);
            for (unsigned round = 0; round < 8; ++round) {
                const std::uint64_t page = round % 2 == 0 ? kNew : kOld;
                REQUIRE(guest.read(kLinear).ok());
                remap(guest, page | kAll);
                REQUIRE(guest.read(kLinear).ok());
                REQUIRE((round % 3 == 0 ? guest.mov_cr3(guest.root()) : guest.invlpg(kLinear)));
                CHECK(guest.read(kLinear).at() == page);
            }
            CHECK(guest.machine.take_violations().empty());
        }
    }
}

TEST_CASE("coherence: a root that another vCPU uses is looked through also when it is found after a blow",
          "[machine]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        INFO(policy.name);
        MachineConfig config = config_of(under(policy.name));
        config.vcpus = 2;
        config.check_coherence = true;
        Guest guest{Paging::four_level, config};
        guest.map(0x40'0000, 0x101'000);
        guest.map(0x40'1000, 0x102'000);
        const std::uint64_t entry = guest.entry_at(0x40'0000, 1);
        guest.map(0x8000'0000, entry & ~std::uint64_t{0xfff});
        guest.machine.blow_shadows();
        CHECK(guest.read(0x40'0000, 8, 1).ok());
        CHECK(guest.store(0x8000'0000 | (entry & 0xfff), 0, 8, 1).ok());
        // The second vCPU may go on with what it has cached; the first one has cached nothing, and sees a
        // fault.
        CHECK_FALSE(guest.read(0x40'0000).ok());
        CHECK(guest.read(0x40'1000).ok());
        CHECK_FALSE(guest.read(0x40'0000).ok());
        CHECK(guest.machine.take_violations().empty());
    }
}

TEST_CASE(
    "coherence: a table stays protected where its root, out of sync as another table, is found after a blow",
    "[machine]")
{
    // Frame 0x10 is the first vCPU's root, and a level-1 table under the second one's, which writes it: it
    // goes out of sync. Its last entry makes frame 0x12 a table for the one, a page for the other.
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        INFO(policy.name);
        MachineConfig config = config_of(under(policy.name));
        config.vcpus = 2;
        config.check_coherence = true;
        Guest guest{Paging::two_level, config};
        const Gfn other = guest.new_table();
        const Gfn table = guest.new_table();
        constexpr std::uint64_t kLast = 0xffc0'0000;
        guest.poke(guest.root().address(4 * 1023).value(), table.address().value() | P | W | A | D, 4);
        guest.poke(table.address(4).value(), 0x101'000 | P | W | A | D, 4);
        guest.poke(other.address().value(), guest.root().address().value() | P | W | A | D, 4);
        guest.poke(guest.root().address().value(), guest.root().address().value() | P | W | A | D, 4);
        guest.load(1, other);
        guest.machine.blow_shadows();
        CHECK(guest.store(8, 0, 4, 1).at() == guest.root().address(8).value());
        CHECK(guest.store(1023 * 0x1000 + 8, 0, 4, 1).at() == table.address(8).value());
        CHECK(guest.read(kLast + 0x1000).at() == 0x101'000);
        CHECK(guest.store(1023 * 0x1000 + 4, 0, 4, 1).at() == table.address(4).value());
        CHECK_FALSE(guest.read(kLast + 0x5000).ok());
        if (guest.invlpg(kLast + 0x1000)) CHECK_FALSE(guest.read(kLast + 0x1000).ok());
        CHECK(guest.machine.audit().empty());
        CHECK(guest.machine.take_violations().empty());
    }
}

TEST_CASE("coherence: a page fault that the hypervisor raises while it emulates drops the page from the TLB",
          "[machine]")
{
    MachineConfig config = config_of(under("write-protect"));
    config.check_coherence = true;
    config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile("golden_cove"));
    Guest guest{Paging::four_level, config};
    guest.map(0x40'0000, 0x101'000, P | W | A | D);
    guest.map(0x50'0000, 0x7000'0000);  // no RAM: emulated, and the rest of the instruction with it
    const std::uint64_t entry = guest.entry_at(0x40'0000, 1);
    guest.map(0x8000'0000, entry & ~std::uint64_t{0xfff});
    CHECK(guest.read(0x40'0000).ok());
    CHECK(guest.store(0x8000'0000 | (entry & 0xfff), 0x102'000 | P | W | A | D).ok());
    Execution done;
    guest.machine.execute(0,
                          std::array{Guest::operand(AccessKind::read, 0x50'0000),
                                     Guest::operand(AccessKind::write, 0x40'0008, 8, true)},
                          Restart::instruction, done);
    CHECK(done.fault);
    CHECK(guest.read(0x40'0000).at() == 0x102'000);
    CHECK(guest.machine.take_violations().empty());
}

TEST_CASE("coherence: a table is protected though a resync has mapped it writable since its walk",
          "[machine]")
{
    // Under 0x4000'0000 a level-1 table that is out of sync. Its entry for 0x4000'1000 becomes a mapping of
    // what the next walk uses as a level-1 table, in a new branch: linking that resyncs all.
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        INFO(policy.name);
        Guest guest{Paging::four_level, under(policy.name)};
        guest.map(0x4000'0000, 0x101'000);
        guest.map(0x4000'1000, 0x102'000);
        const std::uint64_t first = guest.entry_at(0x4000'0000, 1);
        guest.map(0x8000'0000, first & ~std::uint64_t{0xfff});
        guest.map(0xc000'0000, 0x103'000);
        const std::uint64_t table = guest.entry_at(0xc000'0000, 1) & ~std::uint64_t{0xfff};
        CHECK(guest.read(0x4000'0000).ok());
        CHECK(guest.read(0x4000'1000).ok());
        CHECK(guest.store(0x8000'0000 | (first & 0xfff), 0x101'000 | kAll).ok());
        CHECK(guest.store(0x8000'0008 | (first & 0xfff), table | kAll).ok());
        CHECK(guest.read(0xc000'0000).ok());
        CHECK(guest.machine.audit().empty());
    }
}
