// SPDX-License-Identifier: Apache-2.0
//
// An instruction is a list of operands that take effect together. Where one faults, those after it are
// not translated, and those before it have no effect: no memory and no dirty bit has changed. An exit to
// the hypervisor starts it again, from its first operand or, where a fetch stands for a whole block, from
// the one that trapped.
#include <memory>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

Execution run(Guest& guest, const std::vector<Operand>& operands, Restart restart = Restart::instruction)
{
    Execution result;
    guest.machine.execute(0, operands, restart, result);
    return result;
}

std::span<const std::byte> bytes_of(const std::uint64_t& value)
{
    return std::as_bytes(std::span{&value, 1});
}

}  // namespace

TEST_CASE("instruction: all operands are placed in order", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Restart restart : {Restart::instruction, Restart::operand}) {
            Guest guest{Paging::four_level, options};
            guest.map(0x40'0000, 0x101'000, P | W);
            guest.map(0x50'0000, 0x102'000, P | W);
            const Execution done = run(
                guest,
                {Guest::operand(AccessKind::fetch, 0x40'0123, 3), Guest::operand(AccessKind::read, 0x50'0010),
                 Guest::operand(AccessKind::write, 0x50'0020)},
                restart);
            REQUIRE_FALSE(done.fault);
            REQUIRE(done.placed.size() == 3);
            CHECK(done.placed[0].parts[0].address.value() == 0x101'123);
            CHECK(done.placed[1].parts[0].address.value() == 0x102'010);
            CHECK(done.placed[2].parts[0].address.value() == 0x102'020);
            CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A));
            CHECK(guest.entry(0x50'0000, 1) == (0x102'000 | P | W | A | D));
        }
    }
}

TEST_CASE("instruction: nothing happens where an operand faults", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000, P | W | A);
        guest.map(0x50'0000, 0x102'000, P | W | A);
        guest.map(0x60'0000, 0x103'000, P | W);
        for (int again = 0; again < 2; ++again) {
            const Execution done = run(
                guest,
                {Guest::operand(AccessKind::write, 0x40'0000), Guest::operand(AccessKind::write, 0x50'0000),
                 Guest::operand(AccessKind::write, 0x70'0004), Guest::operand(AccessKind::write, 0x60'0000)});
            REQUIRE(done.fault);
            CHECK(done.fault->vector == Vector::page_fault);
            CHECK(done.fault->error_code == pf::kWrite);
            CHECK(done.fault->address.value() == 0x70'0004);
            CHECK(done.placed.size() == 2);
            CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A));
            CHECK(guest.entry(0x50'0000, 1) == (0x102'000 | P | W | A));
            CHECK(guest.entry(0x60'0000, 1) == (0x103'000 | P | W));
            CHECK(guest.machine.audit().empty());
        }
        // The writes work on their own.
        CHECK(guest.write(0x40'0000).ok());
        CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A | D));
    }
}

TEST_CASE("instruction: an operand without a linear address is a fault like others", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000, P | W | A);
        guest.map(0x50'0000, 0x102'000, P | A);
        const Operand nowhere = Guest::operand(AccessKind::read, 0x8000'0000'0000);
        Execution done = run(guest, {Guest::operand(AccessKind::write, 0x40'0000), nowhere,
                                     Guest::operand(AccessKind::read, 0x70'0000)});
        REQUIRE(done.fault);
        CHECK(done.fault->vector == Vector::general_protection);
        CHECK(done.placed.size() == 1);
        CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A));
        // A page fault of an operand before it comes first, as the write that it is.
        done = run(guest, {Guest::operand(AccessKind::write, 0x70'0000), nowhere});
        REQUIRE(done.fault);
        CHECK(done.fault->vector == Vector::page_fault);
        CHECK(done.fault->error_code == pf::kWrite);
        done = run(guest, {Guest::operand(AccessKind::write, 0x50'0000), nowhere});
        REQUIRE(done.fault);
        CHECK(done.fault->vector == Vector::page_fault);
        CHECK(done.fault->error_code == (pf::kWrite | pf::kPresent));
    }
}

TEST_CASE("instruction: the first operand is walked again after each trap", "[machine]")
{
    // Cold, each of the three pages traps once. From the start again: 1 + 2 + 3 and 3 walks that succeed.
    const std::vector<Operand> operands{Guest::operand(AccessKind::fetch, 0x40'0000),
                                        Guest::operand(AccessKind::read, 0x40'1000),
                                        Guest::operand(AccessKind::read, 0x40'2000)};
    const auto walks = [&](Restart restart) {
        Guest guest{Paging::four_level, under("write-protect")};
        for (std::uint64_t page = 0; page < 3; ++page) {
            guest.map(0x40'0000 + page * 4096, 0x101'000 + page * 4096);
        }
        CHECK_FALSE(run(guest, operands, restart).fault);
        CHECK(guest.counters().fault == 3);
        return guest.machine.counters().walks;
    };
    CHECK(walks(Restart::instruction) == 1 + 2 + 3 + 3);
    CHECK(walks(Restart::operand) == 3 + 3);
}

TEST_CASE("instruction: a write to a frame that becomes a table in the same instruction", "[machine]")
{
    // The first operand writes the L1 table through which the second is translated, for the first time.
    for (const Populate populate : {Populate::leaf, Populate::step}) {
        for (const Restart restart : {Restart::instruction, Restart::operand}) {
            Guest guest{Paging::four_level, under("write-protect", populate)};
            guest.map(0x40'0000, 0x101'000);
            const std::uint64_t entry = guest.entry_at(0x40'0000, 1);
            guest.map(0x8000'0000, entry & ~std::uint64_t{0xfff});
            CHECK(guest.write(0x8000'0000).ok());  // mapped writable: no table yet
            const Execution done = run(guest,
                                       {Guest::operand(AccessKind::write, 0x8000'0000 | (entry & 0xfff)),
                                        Guest::operand(AccessKind::read, 0x40'0000)},
                                       restart);
            REQUIRE_FALSE(done.fault);
            CHECK(done.placed[1].parts[0].address.value() == 0x101'000);
            guest.machine.store(done.placed[0], bytes_of(0x102'000 | kAll));
            CHECK(guest.machine.audit().empty());
            CHECK(guest.read(0x40'0000).at() == 0x102'000);
        }
    }
}

TEST_CASE("instruction: the same where the hypervisor does the second operand", "[machine]")
{
    // The second is a write that CR0.WP = 0 permits: emulated, once its shadows have been linked.
    for (const Restart restart : {Restart::instruction, Restart::operand}) {
        Guest guest{Paging::four_level, under("write-protect")};
        guest.map(0x40'0000, 0x101'000, P | A | D);
        REQUIRE(guest.set_cr0(cr0::kWp, false));
        const std::uint64_t entry = guest.entry_at(0x40'0000, 2);
        guest.map(0x80'0000'0000, entry & ~std::uint64_t{0xfff});
        CHECK(guest.write(0x80'0000'0000).ok());
        const Execution done = run(guest,
                                   {Guest::operand(AccessKind::write, 0x80'0000'0000 | (entry & 0xfff)),
                                    Guest::operand(AccessKind::write, 0x40'0000)},
                                   restart);
        REQUIRE_FALSE(done.fault);
        CHECK(done.placed[1].parts[0].emulated);
        guest.machine.store(done.placed[0], bytes_of(0));
        CHECK(guest.machine.audit().empty());
        CHECK(guest.read(0x40'0000).page_fault(0, 0x40'0000));
    }
}

TEST_CASE("instruction: a fault after an emulated operand drops a stale translation too", "[machine]")
{
    // tlb-like: the page's translation is stale; an access that takes it would succeed. After an operand
    // outside RAM the whole instruction is emulated and meets the fresh entry: a #PF, which must drop it.
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(0x40'0000, 0x101'000);
    guest.map(0x50'0000, 0x9000'0000);
    guest.map(0x8000'0000, guest.entry_at(0x40'0000, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(0x40'0000).ok());
    CHECK(guest.store(0x8000'0000 | (guest.entry_at(0x40'0000, 1) & 0xfff), 0).ok());
    CHECK(guest.read(0x40'0000).ok());  // stale, and permitted
    const Execution done = run(
        guest, {Guest::operand(AccessKind::read, 0x50'0000), Guest::operand(AccessKind::read, 0x40'0000)});
    if (!done.fault) return;  // to take the stale one is permitted as well
    CHECK(guest.read(0x40'0000).page_fault(0, 0x40'0000));
}

TEST_CASE("instruction: a page that passes by a stale translation dirties no other", "[machine]")
{
    // tlb-like: page 0 has a stale translation, page 1's write would be the first, page 2 faults.
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(0x40'0000, 0x101'000);
    guest.map(0x40'1000, 0x102'000, P | W | A);
    guest.map(0x8000'0000, guest.entry_at(0x40'0000, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(0x40'0000).ok());
    CHECK(guest.read(0x40'1000).ok());
    CHECK(guest.store(0x8000'0000 | (guest.entry_at(0x40'0000, 1) & 0xfff), 0).ok());
    const Execution done =
        run(guest, {Guest::operand(AccessKind::read, 0x40'0000), Guest::operand(AccessKind::write, 0x40'1000),
                    Guest::operand(AccessKind::read, 0x70'0000)});
    REQUIRE(done.fault);
    CHECK(guest.entry(0x40'1000, 1) == (0x102'000 | P | W | A));
}

TEST_CASE("instruction: an emulated write before a page that was stale dirties nothing", "[machine]")
{
    // tlb-like, CR0.WP = 0: the first operand is done by the hypervisor, the second has a stale translation
    // while a fresh walk faults. Either outcome is permitted, but a #PF goes with no dirty bit.
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(0x40'0000, 0x101'000);
    guest.map(0x40'1000, 0x102'000, P | A);
    guest.map(0x8000'0000, guest.entry_at(0x40'0000, 1) & ~std::uint64_t{0xfff});
    REQUIRE(guest.set_cr0(cr0::kWp, false));
    CHECK(guest.read(0x40'0000).ok());
    CHECK(guest.store(0x8000'0000 | (guest.entry_at(0x40'0000, 1) & 0xfff), 0).ok());
    const Execution done = run(
        guest, {Guest::operand(AccessKind::write, 0x40'1000), Guest::operand(AccessKind::read, 0x40'0000)});
    CHECK(guest.entry(0x40'1000, 1) == (0x102'000 | P | A | (done.fault ? 0 : D)));
}

TEST_CASE(
    "instruction: a write whose exit comes after a stale operand dirties nothing if that one then faults",
    "[machine]")
{
    // The fetch passes by a stale translation; the write's exit makes the page's translation anew, and with
    // it the fetch, which starts again, faults.
    for (const char* const cpu : {"none", "golden_cove"}) {
        for (const Options& options : everywhere()) {
            if (options.mode == TranslationMode::native) continue;
            INFO(options.policy << " on " << cpu);
            MachineConfig config = config_of(options);
            config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(cpu));
            Guest guest{Paging::four_level, config};
            guest.map(0x40'0000, 0x101'000, P | W | U | A);
            const std::uint64_t entry = guest.entry_at(0x40'0000, 1);
            guest.map(0x8000'0000, entry & ~std::uint64_t{0xfff});
            const Operand fetch = Guest::operand(AccessKind::fetch, 0x40'0000, 1, true);
            Operand write = Guest::operand(AccessKind::write, 0x40'0800);
            write.implicit = true;
            CHECK(run(guest, {fetch}).placed.size() == 1);
            CHECK(guest.store(0x8000'0000 | (entry & 0xfff), 0x101'000 | P | W | A).ok());
            const Execution done = run(guest, {fetch, write});
            CHECK(guest.entry(0x40'0000, 1) == (0x101'000 | P | W | A | (done.fault ? 0 : D)));
        }
    }
}
