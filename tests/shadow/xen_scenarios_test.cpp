// SPDX-License-Identifier: Apache-2.0
//
// What Xen's mechanism does in the scenarios of reference/xen.md H2, counter by counter.
#include <array>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kWindow = 0x80'0000;  ///< maps tables

/// The counters that have changed since the last look, by name.
class Changes {
public:
    explicit Changes(const Guest& guest) : guest_{&guest}, last_{guest.counters()} {}

    std::map<std::string, std::uint64_t> take()
    {
        const ShadowCounters now = guest_->counters();
        std::map<std::string, std::uint64_t> changed;
        for (const ShadowCounterName& counter : kShadowCounterNames) {
            if (now.*counter.member != last_.*counter.member)
                changed[std::string{counter.name}] = now.*counter.member - last_.*counter.member;
        }
        last_ = now;
        return changed;
    }

private:
    const Guest* guest_;
    ShadowCounters last_;
};

using Counts = std::map<std::string, std::uint64_t>;

Guest guest_of(Paging paging, const std::string& policy = "xen", unsigned vcpus = 1)
{
    Options options = under(policy);
    options.vcpus = vcpus;
    return Guest{paging, options};
}

/// Maps the table of `level` that translates kLinear at kWindow, and touches code of the guest there.
std::uint64_t window_to_table(Guest& guest, int level, std::uint64_t at = kWindow)
{
    const std::uint64_t entry = guest.entry_at(kLinear, level);
    guest.map(at, entry & ~std::uint64_t{0xfff});
    return at | (entry & 0xfff);
}

}  // namespace

TEST_CASE("xen S1, S2: a page is read for the first time, then written", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    guest.map(kLinear, 0x101'000, P | W);
    guest.map(kLinear + 0x1000, 0x102'000, P | W | A | D);
    for (int level = 4; level > 1; --level) guest.set_entry(kLinear, level, guest.entry(kLinear, level) & ~A);
    Changes changes{guest};
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(changes.take() == Counts{{"fault", 1},
                                   {"guest_walk", 1},
                                   {"fault_fixed", 1},
                                   {"alloc", 3},
                                   {"alloc_count", 3},
                                   {"hash_lookups", 3},
                                   {"get_shadow_status", 3},
                                   {"hash_lookup_miss", 3},
                                   {"hash_inserts", 3}});
    for (int level = 4; level > 0; --level) CHECK((guest.entry(kLinear, level) & A) != 0);
    // The neighbour has been prefetched.
    CHECK(guest.read(kLinear + 0x1000).at() == 0x102'000);
    CHECK(guest.write(kLinear + 0x1000).at() == 0x102'000);
    CHECK(changes.take().empty());

    CHECK(guest.write(kLinear).at() == 0x101'000);
    CHECK(changes.take() == Counts{{"fault", 1}, {"guest_walk", 1}, {"fault_fixed", 1}});
    CHECK((guest.entry(kLinear, 1) & D) != 0);
    CHECK(guest.write(kLinear).ok());
    CHECK(changes.take().empty());
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen: prefetch stops at an entry not yet accessed or dirtied, and at the end of the window",
          "[shadow]")
{
    for (const unsigned stop : {5u, 31u, 100u}) {
        Guest guest = guest_of(Paging::four_level);
        for (unsigned i = 0; i < 64; ++i) {
            guest.map(kLinear + i * 0x1000, 0x101'000, i == stop ? P | W | A : kAll);
        }
        CHECK(guest.read(kLinear).ok());
        const std::uint64_t faults = guest.counters().fault;
        for (unsigned i = 0; i < 64; ++i) {
            INFO(stop << ": page " << i);
            const std::uint64_t before = guest.counters().fault;
            CHECK(guest.read(kLinear + i * 0x1000).ok());
            const bool first_fault = guest.counters().fault != before && before == faults;
            if (first_fault) CHECK(i == std::min(stop, 32u));
        }
    }
}

TEST_CASE("xen S3, S7: the kernel writes a level-1 table", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        Guest guest = guest_of(paging);
        guest.map(kLinear, 0x101'000);
        const std::uint64_t entry =
            window_to_table(guest, 1, paging == Paging::two_level ? kWindow : kWindow);
        const unsigned bytes = guest.entry_bytes();
        const auto store = [&](std::uint64_t frame) {
            CHECK_FALSE(guest.store(entry, frame | kAll, bytes).emulated());
        };
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(guest.read(entry).ok());
        Changes changes{guest};
        store(0x102'000);
        CHECK(
            changes.take() ==
            Counts{{"fault", 1}, {"guest_walk", 1}, {"fault_fixed", 1}, {"unsync", 1}, {"oos_fixup_add", 1}});
        store(0x103'000);
        CHECK(changes.take().empty());                 // no exits
        CHECK(guest.read(kLinear).at() == 0x101'000);  // as in a TLB
        REQUIRE(guest.invlpg(kLinear));
        CHECK(guest.read(kLinear).at() == 0x103'000);
        CHECK(changes.take() == Counts{{"invlpg", 1}, {"fault", 1}, {"guest_walk", 1}, {"fault_fixed", 1}});
        store(0x102'000);
        CHECK(changes.take().empty());
        REQUIRE(guest.mov_cr3(guest.root()));
        Counts resynced = changes.take();
        CHECK(resynced["resync"] == 1);
        CHECK(resynced["writeable_h_7"] == 1);
        CHECK(resynced["hash_lookups"] == 2);
        CHECK(guest.read(kLinear).at() == 0x102'000);
        CHECK(changes.take().empty());  // propagated when resynced
        store(0x103'000);               // and again
        CHECK(changes.take()["unsync"] == 1);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("xen S4: the kernel writes a level-2 table", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    guest.map(kLinear, 0x101'000);
    guest.map(kLinear + 0x20'0000 * 2, 0x105'000);
    const std::uint64_t entry = window_to_table(guest, 2, 0x4000'0000);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Changes changes{guest};
    const std::uint64_t other = guest.entry(kLinear + 0x20'0000 * 2, 2);
    CHECK(guest.store(entry + 8, other).emulated());
    Counts first = changes.take();
    CHECK(first["fault_emulate_write"] == 1);
    CHECK(first["validate_gl2e_calls"] == 1);
    CHECK(first["unsync"] == 0);
    CHECK(first["guest_walk"] == 1);
    // The same page again: no walk.
    CHECK(guest.store(entry + 16, other).emulated());
    Counts second = changes.take();
    CHECK(second["fault_fast_emulate"] == 1);
    CHECK(second["fault_emulate_write"] == 0);
    CHECK(second["guest_walk"] == 0);
    CHECK(second["validate_gl2e_calls"] == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen S5: two zeros in a row written to an upper table", "[shadow]")
{
    for (const char* policy : {"xen", "xen-2006", "write-protect"}) {
        Guest guest = guest_of(Paging::four_level, policy);
        guest.map(kLinear, 0x101'000);
        const std::uint64_t entry = window_to_table(guest, 2, 0x4000'0000);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.read(entry).ok());
        Changes changes{guest};
        CHECK(guest.store(entry, 0).emulated());
        CHECK(changes.take()["early_unshadow"] == 0);
        CHECK(guest.store(entry + 8, 0).emulated());
        Counts counts = changes.take();
        const bool on = std::string{policy} != "write-protect";
        CHECK(counts["early_unshadow"] == (on ? 1 : 0));
        CHECK(counts["unshadow"] == (on ? 1 : 0));
        CHECK(counts["up_pointer"] == (on ? 1 : 0));
        // It is no table any more: written freely.
        CHECK(guest.store(entry + 16, 0).emulated() == !on);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("xen S6: the fourth out-of-sync table of a vCPU", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    // Tables at frames that have one home among three slots: every third.
    std::vector<std::uint64_t> entries;
    for (std::uint64_t i = 0; i < 9; ++i) guest.map(i * 0x20'0000, 0x101'000);
    for (std::uint64_t i = 0; i < 9; ++i) {
        const std::uint64_t entry = guest.entry_at(i * 0x20'0000, 1);
        if (entry >> 12 % 3 == 0 || (entry >> 12) % 3 != guest.entry_at(0, 1) / 4096 % 3) continue;
        guest.map(0x4000'0000 + i * 0x1000, entry & ~std::uint64_t{0xfff});
        CHECK(guest.read(i * 0x20'0000).ok());
        entries.push_back(0x4000'0000 + i * 0x1000 + 0x800);
    }
    REQUIRE(entries.size() == 3);
    Changes changes{guest};
    CHECK_FALSE(guest.store(entries[0], 0).emulated());
    CHECK_FALSE(guest.store(entries[1], 0).emulated());
    Counts two = changes.take();
    CHECK(two["unsync"] == 2);
    CHECK(two["unsync_evict"] == 0);
    CHECK_FALSE(guest.store(entries[2], 0).emulated());
    Counts three = changes.take();
    CHECK(three["unsync"] == 1);
    CHECK(three["unsync_evict"] == 1);
    CHECK(three["resync"] == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen S9: the root loaded longest ago makes room", "[shadow]")
{
    Options options = under("xen");
    MachineConfig config = config_of(options);
    config.shadow_pool_pages = 16;
    Guest guest{Paging::four_level, config};
    std::vector<Gfn> roots;
    for (unsigned i = 0; i < 5; ++i) {
        roots.push_back(i == 0 ? guest.root() : guest.new_table());
        guest.map_in(roots.back(), kLinear, 0x101'000 + i * 0x1000);
    }
    for (const Gfn root : {roots[0], roots[1], roots[2]}) {
        REQUIRE(guest.mov_cr3(root));
        CHECK(guest.read(kLinear).ok());
    }
    CHECK(guest.counters().alloc_count == 12);
    REQUIRE(guest.mov_cr3(roots[0]));  // now the second is the oldest
    REQUIRE(guest.mov_cr3(roots[3]));
    CHECK(guest.counters().prealloc_1 == 0);
    CHECK(guest.read(kLinear).at() == 0x104'000);
    CHECK(guest.counters().alloc_count == 16);
    Changes changes{guest};
    REQUIRE(guest.mov_cr3(roots[4]));
    Counts counts = changes.take();
    CHECK(counts["prealloc_1"] == 1);
    CHECK(counts["prealloc_2"] == 0);
    CHECK(counts["free"] == 4);  // it had its lower tables alone, and with so many roots no L3 is kept
    CHECK_FALSE(guest.shadows().is_table(roots[1]));
    for (const Gfn root : {roots[0], roots[2], roots[3], roots[4]}) CHECK(guest.shadows().is_table(root));
    CHECK(guest.read(kLinear).at() == 0x105'000);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen: a pool that is too small ends the domain, with the reason", "[shadow]")
{
    MachineConfig config = config_of(under("xen"));
    config.shadow_pool_pages = 3;
    Guest guest{Paging::four_level, config};
    guest.map(kLinear, 0x101'000);
    try {
        (void)guest.read(kLinear);
        FAIL("it went on");
    } catch (const DomainCrashed& crashed) {
        CHECK(std::string{crashed.what()}.find("pool exhausted: 2 of 3 pages are free, 3 are needed") !=
              std::string::npos);
    }
}

TEST_CASE("xen S11: all mappings of a superpage share its pieces", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    guest.map(0x4000'0000, 0x20'0000, P | W | U | A, 2);
    guest.map(0x8000'0000, 0x20'0000, kAll, 2);
    CHECK(guest.read(0x4000'0000).ok());
    const std::uint64_t pages = guest.counters().alloc_count;
    for (std::uint64_t i = 0; i < 512; i += 13) CHECK(guest.read(0x4000'0000 + i * 0x1000).ok());
    CHECK(guest.counters().alloc_count == pages);
    CHECK((guest.entry(0x4000'0000, 2) & D) == 0);
    CHECK(guest.write(0x4000'0000 + 7 * 0x1000).ok());
    CHECK((guest.entry(0x4000'0000, 2) & D) != 0);
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.write(0x4000'0000).ok());
    CHECK(guest.counters().fault == faults);
    CHECK(guest.read(0x8000'0000).ok());
    CHECK(guest.counters().alloc_count == pages + 1);  // an L2, no second fl1
}

TEST_CASE("xen S12: two address spaces share a level-1 table", "[shadow]")
{
    Guest guest = guest_of(Paging::two_level);
    guest.map(kLinear, 0x101'000);
    const Gfn other = guest.new_table();
    guest.poke(other.address().value() + 4, guest.entry(kLinear, 2), 4);
    CHECK(guest.read(kLinear).ok());
    const std::uint64_t pages = guest.counters().alloc_count;
    CHECK(pages == 4 + 2);
    REQUIRE(guest.mov_cr3(other));
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.counters().alloc_count == pages + 4);
    const auto ids = guest.shadows().of_frame(Gfn{guest.entry_at(kLinear, 1) >> 12});
    REQUIRE(ids.size() == 1);
    CHECK(guest.shadows()[ids[0]].references == 2);
    CHECK(guest.shadows()[ids[0]].up.shadow == kNoShadow);
}

TEST_CASE("xen S13: PDPTEs are read when CR3 is loaded", "[shadow]")
{
    Guest guest = guest_of(Paging::pae);
    guest.map(kLinear, 0x101'000);
    guest.map(0x4000'0000 + kLinear, 0x102'000);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    const std::uint64_t second = guest.word(guest.root().address().value() + 8);
    guest.poke(guest.root().address().value(), second);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    Changes changes{guest};
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(changes.take()["hash_lookups"] == 2);  // one for each slot that is present
    CHECK(guest.read(kLinear).at() == 0x102'000);
}

TEST_CASE("xen: a user's write to a table gives the table up", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 1, 0x4000'0000);
    CHECK(guest.read(kLinear).ok());
    Changes changes{guest};
    CHECK_FALSE(guest.access(Guest::operand(AccessKind::write, entry, 8, true)).emulated());
    Counts counts = changes.take();
    CHECK(counts["fault_emulate_failed"] == 1);
    CHECK(counts["unshadow"] == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen: a device's write of another vCPU does not interrupt a run of zeros", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level, "xen", 2);
    constexpr std::uint64_t kDevice = 0x8000'0000;
    guest.map(kLinear, 0x101'000);
    guest.map(kDevice, 0x50'0000);  // above the 4 MiB of RAM
    const std::uint64_t entry = window_to_table(guest, 2, 0x4000'0000);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Changes changes{guest};
    CHECK(guest.store(entry, 0).emulated());
    CHECK(guest.store(kDevice, 0x1234, 8, 1).emulated());
    CHECK(changes.take()["early_unshadow"] == 0);
    CHECK(guest.store(entry + 8, 0).emulated());
    CHECK(changes.take()["early_unshadow"] == 1);
}

TEST_CASE("xen: the second half of a PAE entry is emulated in the exit of the first", "[shadow]")
{
    // reference/xen.md B9, step 14, and part I.
    for (const char* policy : {"xen", "xen-2006", "write-protect"}) {
        INFO(policy);
        Guest guest = guest_of(Paging::pae, policy);
        guest.map(kLinear, 0x101'000);
        guest.map(0x60'0000, 0x103'000);
        const std::uint64_t entry = window_to_table(guest, 2, 0x4000'0000);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.read(entry).ok());
        const std::uint64_t table = guest.entry(0x60'0000, 2);
        Changes changes{guest};
        const std::uint64_t exits = guest.machine.counters().exits;
        CHECK(guest.store(entry + 8, table & 0xffff'ffff, 4).emulated());
        CHECK(guest.store(entry + 12, table >> 32, 4).emulated());
        Counts counts = changes.take();
        const bool xen = std::string{policy} != "write-protect";
        CHECK(counts["fault"] == (xen ? 1 : 2));
        CHECK(guest.machine.counters().exits - exits == (xen ? 1 : 2));
        CHECK(counts["em_ex_pt"] == (xen ? 1 : 0));
        CHECK(counts["em_ex_non_pt"] == 0);
        CHECK(counts["validate_gl2e_calls"] == 2);  // as a write of its own
        CHECK(guest.entry(kLinear + 0x20'0000, 2) == table);
        CHECK(guest.read(0x60'0000).at() == 0x103'000);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("xen: how far the hypervisor goes on emulating a PAE guest", "[shadow]")
{
    constexpr std::uint64_t kData = 0x4000'8000, kDevice = 0x4000'9000, kUnmapped = 0x4000'a000;
    const auto prepared = [&](Paging paging, const CustomShadowPolicy& parts = {}) {
        MachineConfig config = config_of(under("xen"));
        config.policy = [parts] { return make_custom_policy(parts); };
        Guest guest{paging, config};
        guest.map(kLinear, 0x101'000);
        guest.map(kData, 0x102'000, kAll & ~U);
        guest.map(kDevice, 0x50'0000);
        (void)window_to_table(guest, 2, 0x4000'0000);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.write(kData).ok());
        CHECK(guest.read(0x4000'0000).ok());
        return guest;
    };
    constexpr std::uint64_t kEntry = 0x4000'0800;
    const auto extra = [](Counts counts) {
        return std::array{counts["em_ex_pt"], counts["em_ex_non_pt"], counts["em_ex_fail"]};
    };
    using Extra = std::array<std::uint64_t, 3>;
    SECTION("four more, fetches not among them")
    {
        Guest guest = prepared(Paging::pae);
        CHECK(guest.store(kEntry, 0x1000, 4).emulated());
        Changes changes{guest};
        CHECK_FALSE(guest.fetch(kData).emulated());
        CHECK(guest.read(kData).emulated());
        CHECK(guest.store(kData, 7, 4).emulated());
        CHECK(guest.read(kData + 8).emulated());
        CHECK(guest.read(kData + 0x10).emulated());
        CHECK(extra(changes.take()) == Extra{0, 4, 0});
        CHECK_FALSE(guest.read(kData).emulated());
        CHECK(guest.load_word(kData, 4) == 7);
        CHECK(guest.store(kEntry + 4, 0, 4).emulated());
        Counts counts = changes.take();
        CHECK(counts["fault"] == 1);  // too late: a fault of its own, which begins anew
        CHECK(guest.store(kEntry + 8, 0x2000, 4).emulated());
        CHECK(extra(changes.take()) == Extra{1, 0, 0});
    }
    SECTION("an emulated second half is the last")
    {
        Guest guest = prepared(Paging::pae);
        Changes changes{guest};
        for (unsigned i = 0; i < 4; ++i) CHECK(guest.store(kEntry + 4 * i, 0, 4).emulated());
        Counts counts = changes.take();
        CHECK(counts["fault"] == 2);
        CHECK(extra(counts) == Extra{2, 0, 0});
    }
    SECTION("an instruction of two operands is one")
    {
        Guest guest = prepared(Paging::pae);
        CHECK(guest.store(kEntry, 0x1000, 4).emulated());
        Changes changes{guest};
        const std::array move{Guest::operand(AccessKind::fetch, kData, 2),
                              Guest::operand(AccessKind::read, kData, 4),
                              Guest::operand(AccessKind::write, kEntry + 4, 4)};
        Execution execution;
        guest.machine.execute(0, move, Restart::instruction, execution);
        CHECK_FALSE(execution.fault);
        CHECK(extra(changes.take()) == Extra{1, 0, 0});
    }
    SECTION("what would fault, lies outside RAM, is the user's or loads a register runs by itself")
    {
        const auto tried = [&](auto next) {
            Guest guest = prepared(Paging::pae);
            CHECK(guest.store(kEntry, 0x1000, 4).emulated());
            Changes changes{guest};
            next(guest);
            CHECK(guest.read(kData).ok());  // no more
            return extra(changes.take());
        };
        CHECK(tried([&](Guest& guest) { CHECK(guest.read(kUnmapped).page_fault(0, kUnmapped)); }) ==
              Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) { CHECK(guest.read(kDevice).emulated()); }) == Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) {
                  CHECK(guest.access(Guest::operand(AccessKind::read, kLinear, 4, true)).ok());
              }) == Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) { CHECK(guest.mov_cr3(guest.root())); }) == Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) { CHECK(guest.invlpg(kData)); }) == Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) { guest.machine.set_cpl(0, 0); }) == Extra{0, 0, 1});
        CHECK(tried([&](Guest& guest) { guest.reload(); }) == Extra{0, 0, 0});  // nothing of the guest's
    }
    SECTION("other vCPUs, other modes, another policy")
    {
        Guest four = prepared(Paging::four_level);
        CHECK(four.store(kEntry, 0x1000, 4).emulated());
        CHECK_FALSE(four.read(kData).emulated());
        CustomShadowPolicy parts;
        parts.switches.fast_emulation = false;
        Guest slow = prepared(Paging::pae, parts);
        CHECK(slow.store(kEntry, 0x1000, 4).emulated());
        CHECK_FALSE(slow.read(kData).emulated());
    }
}

TEST_CASE("xen: misaligned writes to tables give them up, but are done", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level);
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 2, 0x4000'0000);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Changes changes{guest};
    CHECK(guest.store((entry & ~std::uint64_t{0xfff}) | 0x803, 0x1122'3344, 4).emulated());
    CHECK(changes.take()["unshadow"] == 1);
    CHECK(guest.load_word((entry & ~std::uint64_t{0xfff}) | 0x803, 4) == 0x1122'3344);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen: other vCPUs' out-of-sync tables are synced at a CR3 load, and stay writable", "[shadow]")
{
    Guest guest = guest_of(Paging::four_level, "xen", 2);
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 1, 0x4000'0000);
    for (const unsigned vcpu : {0u, 1u}) CHECK(guest.read(kLinear, 8, vcpu).ok());
    CHECK_FALSE(guest.store(entry, 0x102'000 | kAll).emulated());
    CHECK(guest.read(kLinear, 8, 1).at() == 0x101'000);
    Changes changes{guest};
    REQUIRE(guest.mov_cr3(guest.root(), 1));
    CHECK(guest.read(kLinear, 8, 1).at() == 0x102'000);
    CHECK(changes.take()["resync"] == 0);
    CHECK_FALSE(guest.store(entry, 0x103'000 | kAll).emulated());
    CHECK(changes.take()["fault"] == 0);
    // Its own are resynced in full.
    REQUIRE(guest.mov_cr3(guest.root(), 0));
    CHECK(changes.take()["resync"] == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen: each switch turned off alone shows in the counters", "[shadow]")
{
    // A kernel's day: a page is read and written, an L2 table is written with zeros and with entries, a root
    // is left for another.
    const auto counters_with = [](const CustomShadowPolicy& parts) {
        MachineConfig config = config_of(under("xen"));
        config.policy = [parts] { return make_custom_policy(parts); };
        Guest guest{Paging::four_level, config};
        for (std::uint64_t i = 0; i < 8; ++i) guest.map(kLinear + i * 0x1000, 0x101'000 + i * 0x1000);
        // Linux's direct map, in which all tables are.
        constexpr std::uint64_t kDirect = 0xffff'8800'0000'0000;
        for (std::uint64_t frame = 0; frame < 0x40; ++frame)
            guest.map(kDirect + frame * 0x1000, frame * 0x1000);
        const std::uint64_t table = kDirect + (guest.entry_at(kLinear, 2) & ~std::uint64_t{0xfff});
        // The tables are data before they are tables.
        for (std::uint64_t frame = 0x10; frame < 0x30; ++frame)
            CHECK(guest.write(kDirect + frame * 0x1000).ok());
        for (std::uint64_t i = 0; i < 8; ++i) CHECK(guest.read(kLinear + i * 0x1000).ok());
        CHECK(guest.store(table + 0x800, 0x1000).emulated());  // not present, as before
        CHECK(guest.store(table + 0x808, 0x2000).emulated());
        const std::uint64_t leaf = kDirect + guest.entry_at(kLinear, 1);
        CHECK(guest.store(leaf, 0x105'000 | kAll).ok());
        CHECK(guest.invlpg(kLinear));
        CHECK(guest.read(kLinear).at() == 0x105'000);
        CHECK(guest.store(table + 0x800, 0).emulated());
        CHECK(guest.store(table + 0x808, 0).emulated());
        (void)guest.store(table + 0x810, 0);
        CHECK(guest.machine.audit().empty());
        return guest.counters();
    };
    const auto without = [&](bool ShadowSwitches::*part) {
        CustomShadowPolicy parts;
        parts.switches.*part = false;
        return counters_with(parts);
    };
    const ShadowCounters all = counters_with({});
    CHECK(all.writeable_h_4 > 0);
    CHECK(all.early_unshadow == 1);
    CHECK(all.fault_fast_emulate > 0);
    CHECK(all.unsync > 0);

    const ShadowCounters guessless = without(&ShadowSwitches::writable_heuristic);
    CHECK(guessless.writeable_h_4 == 0);
    CHECK(guessless.writeable_bf == guessless.writeable);
    CHECK(guessless.writeable_bf > all.writeable_bf);
    CHECK(without(&ShadowSwitches::early_unshadow).early_unshadow == 0);
    CHECK(without(&ShadowSwitches::prefetch).fault_fixed > all.fault_fixed);
    CHECK(without(&ShadowSwitches::skip_verify).validate_gl2e_calls > all.validate_gl2e_calls);
    CHECK(without(&ShadowSwitches::virtual_tlb).guest_walk > all.guest_walk);
    const ShadowCounters slow = without(&ShadowSwitches::fast_emulation);
    CHECK(slow.fault_fast_emulate == 0);
    CHECK(slow.fault_emulate_write == all.fault_emulate_write + all.fault_fast_emulate);
    const ShadowCounters in_sync = counters_with({.out_of_sync = false});
    CHECK(in_sync.unsync == 0);
    CHECK(in_sync.validate_gl1e_calls == 1);
}

TEST_CASE("xen: long-mode L3 shadows are kept while few roots are", "[shadow]")
{
    for (const bool on : {true, false}) {
        INFO(on);
        CustomShadowPolicy parts;
        parts.switches.linux_l3_toplevel = on;
        MachineConfig config = config_of(under("xen"));
        config.policy = [parts] { return make_custom_policy(parts); };
        Guest guest{Paging::four_level, config};
        guest.map(kLinear, 0x101'000);
        guest.map(0xffff'8800'0000'0000, 0);
        const Gfn l3{guest.entry_at(kLinear, 3) >> 12};
        CHECK(guest.read(kLinear).ok());
        const auto ids = guest.shadows().of_frame(l3);
        REQUIRE(ids.size() == 1);
        CHECK(guest.shadows()[ids[0]].pinned == on);
        CHECK((guest.shadows()[ids[0]].up.shadow == kNoShadow) == on);
        // The root's entry goes: so does the L3, unless it is kept.
        const std::uint64_t window = 0xffff'8800'0000'1000;
        guest.map(window, guest.root().address().value());
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.store(window + (guest.entry_at(kLinear, 4) & 0xfff), 0).emulated());
        CHECK(guest.shadows().is_table(l3) == on);
        CHECK(guest.machine.audit().empty());
    }
}
