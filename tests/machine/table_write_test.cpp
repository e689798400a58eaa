// SPDX-License-Identifier: Apache-2.0
//
// Writes of a guest to its own tables. Under write-protect the frame of a shadowed table is read-only in
// every shadow, superpages included: each write traps, is done for the guest, and the entries concerned
// are propagated to all shadows of the frame, which address spaces and vCPUs share. Under tlb-like they
// are ordinary writes.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kTables = 0x80'0000'0000;

/// Whether a level-1 shadow entry maps the guest frame writable.
unsigned writable_mappings(const Guest& guest, Gfn frame)
{
    const auto mfn = guest.machine.p2m().mfn_of(frame);
    REQUIRE(mfn);
    unsigned count = 0;
    for (const ShadowId id : guest.shadows().all()) {
        const Shadow& shadow = guest.shadows()[id];
        if (shadow.key.type.level != 1) continue;
        for (unsigned i = 0; i < shadow.entries(); ++i) {
            const std::uint64_t entry = guest.shadows().entry({id, static_cast<std::uint16_t>(i)});
            if ((entry & (P | W)) == (P | W) && (entry & pte::kFrame) == mfn->address().value()) ++count;
        }
    }
    return count;
}

}  // namespace

TEST_CASE("table writes: trapped and propagated under write-protect", "[machine]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        Guest guest{paging, under("write-protect")};
        const std::uint64_t window = paging == Paging::two_level ? 0x8000'0000 : 0x4000'0000;
        guest.map(kLinear, 0x101'000);
        guest.map(window, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
        CHECK(guest.read(kLinear).at() == 0x101'000);
        const unsigned bytes = guest.entry_bytes();
        for (unsigned i = 1; i <= 3; ++i) {
            const Seen seen = guest.store(window | (guest.entry_at(kLinear, 1) & 0xfff),
                                          (0x101'000 + i * 0x1000) | kAll, bytes);
            CHECK(seen.emulated());
            CHECK(guest.counters().fault_emulate_write == i);
            CHECK(guest.counters().validate_gl1e_calls == i);
            const std::uint64_t faults = guest.counters().fault;
            CHECK(guest.read(kLinear).at() == 0x101'000 + i * 0x1000);
            CHECK(guest.counters().fault == faults);  // the entry is there already
        }
        // Two entries in one write.
        CHECK(guest.write(window + 16 * bytes, 2 * bytes).ok());
        guest.store(window + 16 * bytes, 0, 8);
        CHECK(guest.counters().validate_gl1e_calls == (bytes == 4 ? 5 : 4));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("table writes: a frame loses its writable mappings on becoming a table", "[machine]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    const Gfn table = Gfn::of(GuestPhysical{guest.entry_at(kLinear, 1)});
    // Mapped by a page, by another page, and inside a 2 MiB page.
    guest.map(kTables, table.address().value());
    guest.map(kTables + 0x1000, table.address().value());
    guest.map(0, 0, kAll, 2);
    CHECK(guest.write(kTables).ok());
    CHECK(guest.write(kTables + 0x1000).ok());
    CHECK(guest.write(table.address().value()).ok());
    CHECK(writable_mappings(guest, table) == 3);
    CHECK(guest.counters().fault_emulate_write == 0);

    CHECK(guest.read(kLinear).ok());
    CHECK(writable_mappings(guest, table) == 0);
    CHECK(guest.write(kTables).emulated());
    CHECK(guest.write(kTables + 0x1000).emulated());
    CHECK(guest.write(table.address().value()).emulated());
    CHECK(writable_mappings(guest, table) == 0);
    CHECK(guest.machine.audit().empty());
    // Reads do not trap.
    const std::uint64_t faults = guest.counters().fault;
    CHECK_FALSE(guest.read(kTables).emulated());
    CHECK(guest.counters().fault == faults);
}

TEST_CASE("table writes: no table any more", "[machine]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    const std::uint64_t table = guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff};
    guest.map(kTables, table);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kTables).emulated());
    guest.machine.blow_shadows();
    const Seen seen = guest.write(kTables);
    CHECK(seen.ok());
    CHECK_FALSE(seen.emulated());
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("table writes: under tlb-like they are writes like others", "[machine]")
{
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(kLinear, 0x101'000);
    guest.map(kTables, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kTables).ok());
    const std::uint64_t faults = guest.counters().fault;
    CHECK_FALSE(guest.store(kTables | (guest.entry_at(kLinear, 1) & 0xfff), 0).emulated());
    CHECK(guest.counters().fault == faults);
    CHECK(guest.counters().fault_emulate_write == 0);
    CHECK(guest.counters().writeable == 0);
}

TEST_CASE("table writes: two address spaces that share a table", "[machine]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    guest.map(kTables, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    const Gfn other = guest.new_table();
    for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}}) {
        guest.poke(other.address(index * 8).value(), guest.word(guest.root().address(index * 8).value()));
    }
    CHECK(guest.read(kLinear).at() == 0x101'000);
    const std::uint64_t before = guest.counters().alloc;
    CHECK(guest.mov_cr3(other));
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.counters().alloc == before + 1);  // the new root alone

    // A change made in one is there in both, at once.
    CHECK(guest.store(kTables | (guest.entry_at(kLinear, 1) & 0xfff), 0x102'000 | kAll).emulated());
    CHECK(guest.read(kLinear).at() == 0x102'000);
    CHECK(guest.mov_cr3(guest.root()));
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.read(kLinear).at() == 0x102'000);
    CHECK(guest.counters().fault == faults);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("table writes: several vCPUs share the shadows", "[machine]")
{
    Options options = under("write-protect");
    options.vcpus = 3;
    Guest guest{Paging::four_level, options};
    guest.map(kLinear, 0x101'000);
    guest.map(kTables, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear, 8, 0).ok());
    const std::uint64_t shadows = guest.counters().alloc;
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.read(kLinear, 8, 1).ok());
    CHECK(guest.read(kLinear, 8, 2).ok());
    CHECK(guest.counters().alloc == shadows);
    CHECK(guest.counters().fault == faults);
    CHECK(guest.store(kTables | (guest.entry_at(kLinear, 1) & 0xfff), 0, 8, 2).emulated());
    for (unsigned vcpu = 0; vcpu < 3; ++vcpu) CHECK(guest.read(kLinear, 8, vcpu).page_fault(0, kLinear));
    // Another paging mode on the same memory: tables stay read-only for it too.
    REQUIRE(guest.set_cr0(cr0::kPg, false, 1));
    CHECK(guest.write(guest.entry_at(kLinear, 1), 8, 1).emulated());
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("table writes: a table that maps itself", "[machine]")
{
    // The root's last entry references the root: the tables are reached through themselves.
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(kLinear, 0x101'000);
        guest.poke(guest.root().address(511 * 8).value(), guest.root().address().value() | P | W | U);
        const std::uint64_t own = 0xffff'ff80'0000'0000 + (kLinear >> 12) * 8;
        CHECK(guest.read(own).at() == guest.entry_at(kLinear, 1));
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.store(own, 0x102'000 | kAll).ok());
        CHECK(guest.invlpg(kLinear));
        CHECK(guest.read(kLinear).at() == 0x102'000);
        const std::uint64_t root = 0xffff'ffff'ffff'fff8;
        CHECK(guest.read(root).at() == guest.root().address(511 * 8).value());
        CHECK((guest.word(guest.root().address(511 * 8).value()) & (A | D)) == A);
        CHECK(guest.store(root, 0).ok());
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.read(own).page_fault(0, own));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("table writes: a table shadowed in two formats", "[machine]")
{
    // One vCPU uses a frame as a PAE leaf table, another as the leaf table of 2-level paging. Accessed and
    // dirty bits that the second sets change the first's entries, in their upper half: to another page.
    Options options = under("write-protect");
    options.vcpus = 2;
    Guest guest{Paging::pae, options};
    guest.map(kLinear, 0x101'000);
    const std::uint64_t entry = guest.entry_at(kLinear, 1);
    REQUIRE((entry & 0xfff) == 0);
    CHECK(guest.read(kLinear).at() == 0x101'000);

    // In 2-level paging its upper half is entry 1. P makes it bit 32 of a PAE frame; RAM is there.
    const Gfn directory = guest.new_table();
    guest.poke(directory.address().value(), (entry & 0xffff'f000) | P | W | U, 4);
    guest.poke(entry + 4, P, 4);
    Registers registers;
    registers.cr0 = cr0::kPg | cr0::kWp | cr0::kPe;
    registers.cr3 = directory.address().value();
    REQUIRE(!guest.machine.set_registers(1, registers));
    CHECK(guest.read(kLinear).emulated());  // at 0x1'0010'1000, outside RAM
    guest.poke(entry, 0x2000 | kAll, 4);
    CHECK(guest.read(kLinear).at() == 0x1'0000'2000);

    CHECK(guest.read(0x1000, 4, 1).at() == 0);  // sets A in what is bit 37 of the PAE entry
    CHECK(guest.word(entry + 4, 4) == (P | A));
    CHECK(guest.read(kLinear).at() == 0x21'0000'2000);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("table writes: two formats, and an entry that is used twice in one walk", "[machine]")
{
    // As before, but the 2-level directory is its own leaf table: one entry at both levels of the walk. Its
    // accessed bit is set at the first, and the walk starts again, since the second finds it changed.
    Options options = under("write-protect");
    options.vcpus = 2;
    Guest guest{Paging::pae, options};
    guest.map(kLinear, 0x101'000);
    guest.set_entry(kLinear, 2, 0 | P | W | U | A);  // frame 0 is the PAE leaf table
    const std::uint64_t last = kLinear + 511 * 0x1000;
    guest.poke(0xff8, 0x2000 | kAll, 4);
    guest.poke(0xffc, P, 4);  // and entry 1023 of a directory in frame 0
    CHECK(guest.read(last).at() == 0x1'0000'2000);

    Registers registers;
    registers.cr0 = cr0::kPg | cr0::kWp | cr0::kPe;
    REQUIRE(!guest.machine.set_registers(1, registers));
    CHECK(guest.read(0xffff'f800, 4, 1).at() == 0x800);
    CHECK(guest.word(0xffc, 4) == (P | A));
    CHECK(guest.read(last).at() == 0x21'0000'2000);
    CHECK(guest.machine.audit().empty());
}
