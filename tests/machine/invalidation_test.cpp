// SPDX-License-Identifier: Apache-2.0
//
// What is stale, and until when. Under a coherent policy nothing ever is, whatever the guest flushes.
// Under tlb-like an address keeps its translation after the guest has changed its tables, until the guest
// invalidates as it would for a TLB: INVLPG, INVPCID, MOV CR3, a change of CR4.PGE, paging off; and a #PF
// at that page drops it. Other vCPUs keep theirs.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kNeighbour = 0x40'1000;
constexpr std::uint64_t kTables = 0x80'0000'0000;  // the guest's window on its leaf table

/// A guest that can write the leaf table of kLinear through kTables.
struct WindowGuest : Guest {
    explicit WindowGuest(Options options) : Guest{Paging::four_level, options}
    {
        map(kLinear, 0x101'000);
        map(kNeighbour, 0x102'000);
        map(kTables, entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
        for (unsigned vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
            read(kLinear, 8, vcpu);
            read(kNeighbour, 8, vcpu);
        }
    }
    /// The guest stores to the entry of an address.
    void change(std::uint64_t linear, std::uint64_t entry, unsigned vcpu = 0)
    {
        REQUIRE(store(kTables | (entry_at(linear, 1) & 0xfff), entry, 8, vcpu).ok());
    }
};

Options with_vcpus(const std::string& policy, unsigned vcpus)
{
    Options options = under(policy);
    options.vcpus = vcpus;
    return options;
}

constexpr std::uint64_t kOther = 0x103'000 | kAll;

}  // namespace

TEST_CASE("invalidation: a coherent machine shows each change at once", "[machine]")
{
    for (const Options& options :
         {native(), under("write-protect"), under("write-protect", Populate::step)}) {
        WindowGuest guest{options};
        guest.change(kLinear, kOther);
        CHECK(guest.read(kLinear).at() == 0x103'000);
        guest.change(kLinear, 0);
        CHECK(guest.read(kLinear).page_fault(0, kLinear));
        guest.change(kLinear, 0x101'000 | P | A);
        CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
        CHECK(guest.read(kNeighbour).at() == 0x102'000);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("invalidation: tlb-like is stale until INVLPG of the page", "[machine]")
{
    WindowGuest guest{under("tlb-like")};
    guest.change(kLinear, kOther);
    guest.change(kNeighbour, 0);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.write(kLinear).at() == 0x101'000);
    CHECK(guest.invlpg(kLinear | 0x123));
    CHECK(guest.read(kLinear).at() == 0x103'000);
    CHECK(guest.read(kNeighbour).at() == 0x102'000);
    CHECK(guest.invlpg(kNeighbour));
    CHECK(guest.read(kNeighbour).page_fault(0, kNeighbour));
    CHECK(guest.counters().invlpg == 2);
}

TEST_CASE("invalidation: what empties a tlb-like vCPU", "[machine]")
{
    using Verb = bool (*)(WindowGuest&);
    const std::pair<const char*, Verb> verbs[] = {
        {"MOV CR3", [](WindowGuest& guest) { return guest.mov_cr3(guest.root()); }},
        {"CR4.PGE", [](WindowGuest& guest) { return guest.set_cr4(cr4::kPge, true); }},
        {"CR4.SMEP", [](WindowGuest& guest) { return guest.set_cr4(cr4::kSmep, true); }},
        {"INVPCID of the context",
         [](WindowGuest& guest) { return !guest.machine.invpcid(0, 1, 0, LinearAddress{}); }},
        {"INVPCID of all",
         [](WindowGuest& guest) { return !guest.machine.invpcid(0, 2, 0, LinearAddress{}); }},
        {"INVPCID of all but global",
         [](WindowGuest& guest) { return !guest.machine.invpcid(0, 3, 0, LinearAddress{}); }},
        {"paging off and on",
         [](WindowGuest& guest) { return guest.set_cr0(cr0::kPg, false) && guest.set_cr0(cr0::kPg, true); }},
        {"registers set from outside",
         [](WindowGuest& guest) {
             return !guest.machine.set_registers(0, guest.machine.registers(0)).has_value();
         }},
    };
    for (const auto& [name, verb] : verbs) {
        INFO(name);
        WindowGuest guest{under("tlb-like")};
        guest.change(kLinear, kOther);
        guest.change(kNeighbour, 0);
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(verb(guest));
        CHECK(guest.read(kLinear).at() == 0x103'000);
        CHECK(guest.read(kNeighbour).page_fault(0, kNeighbour));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("invalidation: INVPCID of one address", "[machine]")
{
    WindowGuest guest{under("tlb-like")};
    guest.change(kLinear, kOther);
    guest.change(kNeighbour, 0);
    CHECK(!guest.machine.invpcid(0, 0, 0, LinearAddress{kLinear}));
    CHECK(guest.read(kLinear).at() == 0x103'000);
    CHECK(guest.read(kNeighbour).at() == 0x102'000);
    // Refused: no such type, a PCID without CR4.PCIDE, an address that is not canonical.
    CHECK(guest.machine.invpcid(0, 4, 0, LinearAddress{}));
    CHECK(guest.machine.invpcid(0, 0, 1, LinearAddress{kLinear}));
    CHECK(guest.machine.invpcid(0, 0, 0, LinearAddress{0x8000'0000'0000}));
    CHECK(guest.read(kNeighbour).at() == 0x102'000);
}

TEST_CASE("invalidation: what needs none", "[machine]")
{
    // Rights that need no flush to be in force: CR0.WP, SMAP, PKRU, AC are of the vCPU, not of an entry.
    for (const Options& options : everywhere()) {
        WindowGuest guest{options};
        CHECK(guest.set_cr4(cr4::kSmap, true));
        CHECK(guest.read(kLinear).page_fault(pf::kPresent, kLinear));
        guest.machine.set_ac(0, true);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.set_cr4(cr4::kPke, true));
        CHECK(!guest.machine.wrpkru(0, 1));
        CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kProtectionKey, kLinear));
        CHECK(!guest.machine.wrpkru(0, 0));
        CHECK(guest.read(kLinear).ok());
    }
}

TEST_CASE("invalidation: a page fault drops the page", "[machine]")
{
    // A stale translation without the right to write; the fresh walk faults too. Afterwards what it would
    // have permitted must not be used any more.
    WindowGuest guest{under("tlb-like")};
    guest.set_entry(kLinear, 1, 0x101'000 | P | A);
    CHECK(guest.read(kLinear).ok());
    guest.change(kLinear, 0);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.write(kLinear).page_fault(pf::kWrite, kLinear));
    CHECK(guest.read(kLinear).page_fault(0, kLinear));
    CHECK(guest.read(kNeighbour).at() == 0x102'000);
}

TEST_CASE("invalidation: a spurious fault is not the guest's", "[machine]")
{
    // More rights, no flush: the stale translation denies the write, the fresh walk permits it.
    WindowGuest guest{under("tlb-like")};
    guest.set_entry(kLinear, 1, 0x101'000 | P | A);
    CHECK(guest.read(kLinear).ok());
    guest.change(kLinear, 0x103'000 | P | W | U);
    CHECK(guest.write(kLinear).at() == 0x103'000);
    CHECK(guest.entry(kLinear, 1) == (0x103'000 | kAll));
}

TEST_CASE("invalidation: INVLPG inside a large page drops all of it", "[machine]")
{
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(0x20'0000, 0x20'0000, kAll, 2);
    guest.map(0x80'0000'0000, guest.entry_at(0x20'0000, 2) & ~std::uint64_t{0xfff});
    CHECK(guest.read(0x20'0000).at() == 0x20'0000);
    CHECK(guest.read(0x28'0000).at() == 0x28'0000);
    CHECK(guest.store(0x80'0000'0000 | (guest.entry_at(0x20'0000, 2) & 0xfff), kAll | PS).ok());
    CHECK(guest.read(0x20'0000).at() == 0x20'0000);
    CHECK(guest.read(0x28'0000).at() == 0x28'0000);
    CHECK(guest.invlpg(0x21'5000));
    CHECK(guest.read(0x20'0000).at() == 0);
    CHECK(guest.read(0x28'0000).at() == 0x8'0000);
}

TEST_CASE("invalidation: each vCPU keeps its own", "[machine]")
{
    WindowGuest guest{with_vcpus("tlb-like", 2)};
    guest.change(kLinear, kOther, 0);
    CHECK(guest.read(kLinear, 8, 0).at() == 0x101'000);
    CHECK(guest.read(kLinear, 8, 1).at() == 0x101'000);
    CHECK(guest.invlpg(kLinear, 1));
    CHECK(guest.read(kLinear, 8, 0).at() == 0x101'000);
    CHECK(guest.read(kLinear, 8, 1).at() == 0x103'000);
}

TEST_CASE("invalidation: INVLPG of no canonical address does nothing", "[machine]")
{
    WindowGuest guest{under("tlb-like")};
    guest.change(kLinear, 0);
    CHECK(guest.invlpg(0x8000'0000'0000 | kLinear));
    CHECK(guest.read(kLinear).ok());
    guest.machine.set_cpl(0, 3);
    CHECK_FALSE(guest.invlpg(kLinear));
    CHECK(guest.read(kLinear).ok());
}

TEST_CASE("invalidation: a change of an upper entry", "[machine]")
{
    // No walk ever combined the old leaf with the new upper entry: once the new one is in use, what was
    // reached through the old one is gone, although the guest has not flushed it.
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(kLinear, 0x101'000);
    guest.map(kNeighbour, 0x102'000);
    guest.map(kTables, guest.entry_at(kLinear, 2) & ~std::uint64_t{0xfff});
    CHECK(guest.write(kLinear).ok());
    const std::uint64_t upper = guest.entry(kLinear, 2);
    CHECK(guest.store(kTables | (guest.entry_at(kLinear, 2) & 0xfff), upper & ~W).ok());
    CHECK(guest.write(kLinear).ok());    // stale
    CHECK(guest.read(kNeighbour).ok());  // walks through the new entry
    CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
}

TEST_CASE("invalidation: an old leaf entry does not meet a new upper one", "[machine]")
{
    // Leaf writable, upper entry read-only: walks give read-only. Then the other way round, without a
    // flush: again read-only. Nothing ever permitted a write, so none may pass.
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(kLinear, 0x101'000);
    guest.map(kNeighbour, 0x102'000);
    const std::uint64_t upper = guest.entry(kLinear, 2);
    guest.set_entry(kLinear, 2, upper & ~W);
    guest.map(kTables, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    guest.map(kTables + 0x1000, guest.entry_at(kLinear, 2) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.store(kTables | (guest.entry_at(kLinear, 1) & 0xfff), 0x101'000 | (kAll & ~W)).ok());
    CHECK(guest.store((kTables + 0x1000) | (guest.entry_at(kLinear, 2) & 0xfff), upper).ok());
    CHECK(guest.write(kNeighbour).ok());  // walks through the new upper entry
    CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
}
