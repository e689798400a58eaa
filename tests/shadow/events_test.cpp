// SPDX-License-Identifier: Apache-2.0
//
// What the engine tells an observer, event by event, in scenarios of reference/xen.md H2; each fault ends in
// one event.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <mmusim/shadow/shadow_events.hpp>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kWindow = 0x4000'0000;  ///< maps tables; under other tables than kLinear

using Names = std::vector<std::string>;
using Kind = ShadowEventKind;

class Told : public ShadowObserver {
public:
    std::vector<ShadowEvent> events;

    void on_event(const ShadowEvent& event) override { events.push_back(event); }
    /// The names of those since the last call.
    Names take()
    {
        Names names;
        for (const ShadowEvent& event : events) names.emplace_back(name_of(event.kind));
        last = std::move(events);
        events.clear();
        return names;
    }
    std::vector<ShadowEvent> last;  ///< those that `take` named
};

std::vector<std::string> flags_of(const ShadowEvent& event)
{
    std::vector<std::string> flags;
    for (std::size_t i = 0; i < kPathFlags; ++i) {
        if (event.has(static_cast<PathFlag>(i))) flags.emplace_back(name_of(static_cast<PathFlag>(i)));
    }
    return flags;
}

Gfn frame_of_table(const Guest& guest, std::uint64_t linear, int level)
{
    return Gfn{guest.entry_at(linear, level) >> 12};
}

std::uint64_t window_to_table(Guest& guest, int level)
{
    const std::uint64_t entry = guest.entry_at(kLinear, level);
    guest.map(kWindow, entry & ~std::uint64_t{0xfff});
    return kWindow | (entry & 0xfff);
}

}  // namespace

TEST_CASE("events S1, S2: a page is read for the first time, then written", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("xen")};
    guest.map(kLinear, 0x101'000, P | W | U | A);
    guest.map(kLinear + 0x1000, 0x102'000);
    guest.set_entry(kLinear, 2, guest.entry(kLinear, 2) & ~A);
    Told told;
    guest.machine.observe(&told);
    CHECK(guest.read(kLinear + 8).ok());
    CHECK(told.take() == Names{"promote", "promote", "promote", "fixup"});
    for (int level = 3; level > 0; --level) {
        const ShadowEvent& made = told.last[static_cast<std::size_t>(3 - level)];
        CHECK(made.frame == frame_of_table(guest, kLinear, level));
        CHECK(made.type == ShadowType{TableFormat::bits64, static_cast<std::uint8_t>(level), false});
        CHECK(made.address == LinearAddress{kLinear + 8});
    }
    const ShadowEvent& read = told.last[3];
    CHECK(read.vcpu == 0u);
    CHECK(read.guest_levels == 4u);
    CHECK(read.address == LinearAddress{kLinear + 8});
    CHECK(read.error_code == 0u);
    CHECK(read.frame == Gfn{0x101});
    REQUIRE(read.tables.size() == 4);
    for (int level = 4; level > 0; --level)
        CHECK(read.tables[static_cast<std::size_t>(4 - level)] == frame_of_table(guest, kLinear, level));
    CHECK(read.guest_entry == (0x101'000 | P | W | U | A));
    REQUIRE(read.entry);
    CHECK(read.entry->type == ShadowType{TableFormat::bits64, 1, false});
    CHECK(read.entry->frame == frame_of_table(guest, kLinear, 1));
    CHECK(read.entry->index == (kLinear >> 12 & 511));
    const std::uint64_t machine_frame = guest.machine.p2m().mfn_of(Gfn{0x101})->number();
    CHECK((read.entry->value & (pte::kFrame | P | W | U)) == (machine_frame << 12 | P | U));
    CHECK(read.prefetched == 1u);
    CHECK(flags_of(read) == Names{"set_ad", "l1_get_ref", "l2_propagate", "promote"});

    CHECK(guest.write(kLinear).ok());
    CHECK(told.take() == Names{"fixup"});
    CHECK(told.last[0].error_code == (pf::kPresent | pf::kWrite));
    CHECK((told.last[0].entry->value & W) != 0);
    CHECK(flags_of(told.last[0]) == Names{"set_ad", "l1_get_ref", "l1_put_ref"});
    CHECK(guest.write(kLinear).ok());
    CHECK(told.take().empty());

    // The guest's own fault: the hardware saw no entry, the guest has one.
    guest.map(kLinear + 0x5000, 0x103'000, P | A | D);
    CHECK_FALSE(guest.write(kLinear + 0x5000, 1).ok());
    CHECK(told.take() == Names{"not_shadow"});
    CHECK(told.last[0].error_code == pf::kWrite);
    CHECK(told.last[0].guest_error_code == (pf::kPresent | pf::kWrite));
    CHECK(told.last[0].guest_entry == (0x103'000 | P | A | D));
    guest.machine.observe(nullptr);
    CHECK_FALSE(guest.write(kLinear + 0x5000, 1).ok());
    CHECK(told.take().empty());
}

TEST_CASE("events S3, S7: the kernel writes a level-1 table", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("xen")};
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 1);
    const Gfn table = frame_of_table(guest, kLinear, 1);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Told told;
    guest.machine.observe(&told);
    CHECK_FALSE(guest.store(entry, 0x102'000 | kAll).emulated());
    CHECK(told.take() == Names{"unsync", "oos_fixup_add", "fixup"});
    CHECK(told.last[0].frame == table);
    CHECK(told.last[1].frame == table);
    REQUIRE(told.last[1].entry);
    CHECK(told.last[1].entry->frame == frame_of_table(guest, kWindow, 1));
    CHECK(told.last[1].entry->index == 0);
    CHECK(flags_of(told.last[2]) == Names{"l1_get_ref", "l1_put_ref", "unsync", "oos_fixup_add"});

    REQUIRE(guest.invlpg(kLinear));
    CHECK(told.take() == Names{"invlpg"});
    CHECK(told.last[0].address == LinearAddress{kLinear});
    CHECK(told.last[0].how == "page");
    CHECK(flags_of(told.last[0]) == Names{"l1_put_ref"});
    REQUIRE(guest.invlpg(0x7000'0000'0000));
    CHECK(told.take() == Names{"invlpg"});
    CHECK(told.last[0].how == "nothing");

    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(told.take() == Names{"resync_full", "update_cr3"});
    CHECK(told.last[0].frame == table);
    REQUIRE(told.last[1].tables.size() == 1);
    CHECK(told.last[1].tables[0] == guest.root());
}

TEST_CASE("events S4, S5: writes to a level-2 table, with their values", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("xen")};
    guest.map(kLinear, 0x101'000);
    guest.map(kLinear + 0x40'0000, 0x105'000);
    const std::uint64_t entry = window_to_table(guest, 2);
    const std::uint64_t gpa = guest.entry_at(kLinear, 2);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Told told;
    guest.machine.observe(&told);
    const std::uint64_t other = guest.entry(kLinear + 0x40'0000, 2);
    CHECK(guest.store(entry + 8, other).emulated());
    CHECK(told.take() == Names{"emulate"});
    const ShadowEvent& first = told.last[0];
    CHECK(first.how == "table");
    CHECK(first.frame == Gfn{gpa >> 12});
    REQUIRE(first.write);
    CHECK(first.write->at == GuestPhysical{gpa + 8});
    CHECK_FALSE(first.write->second);
    std::uint64_t value = 0;
    REQUIRE(first.write->bytes.size() == sizeof value);
    std::memcpy(&value, first.write->bytes.data(), sizeof value);
    CHECK(value == other);
    CHECK(flags_of(first) == Names{"l2_propagate"});  // that table has no shadow to link
    CHECK(guest.store(entry + 16, other).emulated());
    CHECK(told.take() == Names{"emulate"});
    CHECK(told.last[0].how == "fast");

    CHECK(guest.store(entry, 0).emulated());
    CHECK(told.take() == Names{"demote", "emulate"});
    CHECK(told.last[0].frame == frame_of_table(guest, kLinear, 2) + 1);
    CHECK(flags_of(told.last[1]) ==
          Names{"l1_put_ref", "l2_propagate", "set_changed", "set_flush", "demote"});
    CHECK(guest.store(entry + 8, 0).emulated());
    CHECK(told.take() == Names{"early_unshadow", "unshadow", "demote", "emulate"});
    for (std::size_t i = 0; i < 3; ++i) CHECK(told.last[i].frame == Gfn{gpa >> 12});
    CHECK(told.last[3].has(PathFlag::early_unshadow));
}

TEST_CASE("events: an emulated write whose store does not come is told all the same", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 1);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Told told;
    guest.machine.observe(&told);
    CHECK(guest.write(entry).emulated());
    CHECK(told.take().empty());  // the store may still come
    guest.machine.complete_events();
    CHECK(told.take() == Names{"emulate"});
    CHECK_FALSE(told.last[0].write);
    CHECK(guest.write(entry).emulated());
    CHECK(guest.read(kLinear + 0x1000).fault);
    CHECK(told.take() == Names{"emulate", "not_shadow"});
}

TEST_CASE("events: the operands of one instruction that are emulated", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = window_to_table(guest, 1);
    const std::uint64_t gpa = guest.entry_at(kLinear, 1);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(entry).ok());
    Told told;
    guest.machine.observe(&told);
    const std::vector<Operand> operands{Guest::operand(AccessKind::write, entry + 8),
                                        Guest::operand(AccessKind::write, entry + 0x10)};
    Execution done;
    guest.machine.execute(0, operands, Restart::instruction, done);
    REQUIRE(done.placed.size() == 2);
    const std::array<std::byte, 8> zeros{};
    guest.machine.store(done.placed[0], zeros);
    guest.machine.store(done.placed[1], zeros);
    CHECK(told.take() == Names{"emulate", "emulated_write"});
    CHECK(told.last[0].write->at == GuestPhysical{gpa + 8});
    CHECK(told.last[1].write->at == GuestPhysical{gpa + 0x10});
    CHECK_FALSE(told.last[1].address);
    // The other way round, each value still goes to its address.
    guest.machine.execute(0, operands, Restart::instruction, done);
    guest.machine.store(done.placed[1], zeros);
    guest.machine.store(done.placed[0], zeros);
    CHECK(told.take() == Names{"emulated_write", "emulate"});
    CHECK(told.last[0].write->at == GuestPhysical{gpa + 0x10});
    CHECK(told.last[1].write->at == GuestPhysical{gpa + 8});
}

TEST_CASE("events: a store over two pages is one", "[shadow][events]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    (void)window_to_table(guest, 1);
    const std::uint64_t table = frame_of_table(guest, kLinear, 1).address().value();
    guest.map(kWindow + 0x1000, 0x108'000);
    CHECK(guest.read(kLinear).ok());
    Told told;
    guest.machine.observe(&told);
    CHECK(guest.store(kWindow + 0xffc, 0, 8).emulated());
    const Names names = told.take();
    REQUIRE(!names.empty());
    CHECK(names.back() == "emulate");
    REQUIRE(told.last.back().write);
    const ShadowEvent::Write& write = *told.last.back().write;
    CHECK(write.at == GuestPhysical{table + 0xffc});
    CHECK(write.second == GuestPhysical{0x108'000});
    CHECK(write.bytes.size() == 8);
}

TEST_CASE("events: how else a fault ends", "[shadow][events]")
{
    Told told;
    SECTION("a device")
    {
        Guest guest{Paging::four_level, under("xen")};
        guest.map(kLinear, 0x7000'0000);
        guest.machine.observe(&told);
        CHECK(guest.read(kLinear).emulated());
        CHECK(told.take() == Names{"promote", "promote", "promote", "mmio"});
        CHECK(told.last.back().frame == Gfn{0x70000});
        CHECK(guest.store(kLinear + 4, 0x1234, 4).emulated());
        CHECK(told.take() == Names{"fast_mmio"});
        REQUIRE(told.last[0].write);
        CHECK(told.last[0].write->at == GuestPhysical{0x7000'0004});
    }
    SECTION("a mark of a page that is not present")
    {
        Guest guest{Paging::four_level, under("xen-2006")};
        guest.map(kLinear, 0x101'000);
        CHECK(guest.read(kLinear).ok());
        guest.machine.observe(&told);
        CHECK(guest.read(kLinear + 0x1000).page_fault(0, kLinear + 0x1000));
        CHECK(told.take() == Names{"fast_propagate"});
        CHECK(told.last[0].error_code == (pf::kPresent | pf::kReserved));
        CHECK(told.last[0].guest_error_code == 0u);
    }
    SECTION("CR0.WP")
    {
        Guest guest{Paging::four_level, under("xen")};
        guest.map(kLinear, 0x101'000, P | A | D);
        REQUIRE(guest.set_cr0(cr0::kWp, false));
        CHECK(guest.read(kLinear).ok());
        guest.machine.observe(&told);
        CHECK(guest.store(kLinear, 7).emulated());
        CHECK(told.take() == Names{"emulate"});
        CHECK(told.last[0].how == "wp");
        REQUIRE(told.last[0].write);
    }
    SECTION("the user writes a table")
    {
        Guest guest{Paging::four_level, under("write-protect")};
        guest.map(kLinear, 0x101'000);
        const std::uint64_t entry = window_to_table(guest, 1);
        CHECK(guest.read(kLinear).ok());
        guest.machine.observe(&told);
        CHECK(guest.machine.access(0, Guest::operand(AccessKind::write, entry, 8, true)));
        const Names names = told.take();
        CHECK(std::count(names.begin(), names.end(), "emulate_unshadow_user") == 1);
        CHECK(std::count(names.begin(), names.end(), "unshadow") == 1);
        CHECK(names.back() == "fixup");  // the instruction runs again
    }
    SECTION("step by step")
    {
        Guest guest{Paging::four_level, under("tlb-like", Populate::step)};
        guest.map(kLinear, 0x101'000);
        guest.machine.observe(&told);
        CHECK(guest.read(kLinear).ok());
        CHECK(told.take() == Names{"promote", "link", "promote", "link", "promote", "link", "fixup"});
        CHECK(told.last[1].type == ShadowType{TableFormat::bits64, 3, false});
    }
    SECTION("paging is off")
    {
        Guest guest{Paging::two_level, under("xen")};
        guest.machine.observe(&told);
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        CHECK(told.take().back() == "update_cr3");
        CHECK(guest.read(0x5000).at() == 0x5000);
        CHECK(told.take() == Names{"promote", "fixup"});
        CHECK(told.last[1].guest_levels == 2u);
        CHECK(told.last[1].tables.empty());
        CHECK(told.last[1].entry->type == ShadowType{TableFormat::bits32, 1, true});
    }
}

TEST_CASE("events S9: room is made, and in the end there is none", "[shadow][events]")
{
    MachineConfig config = config_of(under("xen"));
    config.shadow_pool_pages = 16;
    Guest guest{Paging::four_level, config};
    std::vector<Gfn> roots;
    for (unsigned i = 0; i < 5; ++i) {
        roots.push_back(i == 0 ? guest.root() : guest.new_table());
        guest.map_in(roots.back(), kLinear, 0x101'000 + i * 0x1000);
    }
    for (std::size_t i = 0; i < 4; ++i) {
        REQUIRE(guest.mov_cr3(roots[i]));
        CHECK(guest.read(kLinear).ok());
    }
    Told told;
    guest.machine.observe(&told);
    REQUIRE(guest.mov_cr3(roots[4]));
    CHECK(told.take() ==
          Names{"prealloc_unpin", "demote", "demote", "demote", "demote", "promote", "update_cr3"});
    CHECK(told.last[0].frame == roots[0]);
    CHECK(told.last[0].type == ShadowType{TableFormat::bits64, 4, false});

    // From outside the guest no vCPU does anything.
    guest.machine.blow_shadows();
    const Names names = told.take();
    CHECK(std::count(names.begin(), names.end(), "demote") == static_cast<std::ptrdiff_t>(names.size()));
    CHECK_FALSE(told.last[0].vcpu);

    MachineConfig small = config_of(under("xen"));
    small.shadow_pool_pages = 2;
    Guest doomed{Paging::four_level, small};
    doomed.map(kLinear, 0x101'000);
    doomed.machine.observe(&told);
    CHECK_THROWS_AS(doomed.read(kLinear), DomainCrashed);
    CHECK(told.take().back() == "domf_dying");
}

TEST_CASE("events: each kind and flag has a name of its own", "[shadow][events]")
{
    std::vector<std::string_view> names;
    for (std::size_t i = 0; i < kShadowEventKinds; ++i) names.push_back(name_of(static_cast<Kind>(i)));
    std::sort(names.begin(), names.end());
    CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
    CHECK(!names.front().empty());
    std::vector<std::string_view> flags;
    for (std::size_t i = 0; i < kPathFlags; ++i) flags.push_back(name_of(static_cast<PathFlag>(i)));
    std::sort(flags.begin(), flags.end());
    CHECK(std::adjacent_find(flags.begin(), flags.end()) == flags.end());
    CHECK(!flags.front().empty());
    CHECK(name_of(Kind::invlpg) == "invlpg");
    CHECK(name_of(Kind::emulated_write) == "emulated_write");
    CHECK(name_of(PathFlag::oos_fixup_evict) == "oos_fixup_evict");
}
