// SPDX-License-Identifier: Apache-2.0
//
// In PAE paging the four PDPTEs are registers. They are loaded from memory by MOV CR3, and by MOV CR0 and
// MOV CR4 that leave PAE paging on and change CD, NW, PG, PAE, PGE, PSE or SMEP. What the guest writes to
// their memory in between counts for nothing. A present one with a reserved bit makes the load #GP, and
// then neither a register nor a PDPTE has changed (SDM vol. 3A 4.4.1).
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x4000'1000;  // under PDPTE 1

/// Two trees that map kLinear to different pages; CR3 points to the first's PDPT.
struct TwoTrees : Guest {
    std::uint64_t pdpte;  // address of PDPTE 1
    std::uint64_t first;
    std::uint64_t second;

    explicit TwoTrees(const Options& options) : Guest{Paging::pae, options}
    {
        const Gfn other = new_table();
        map(kLinear, 0x100'000);
        map_in(other, kLinear, 0x101'000);
        pdpte = entry_at(kLinear, 3);
        first = word(pdpte);
        second = word(entry_at(other, kLinear, 3));
        reload();
    }
};

}  // namespace

TEST_CASE("PDPTE registers: memory is not seen until CR3 is loaded", "[machine]")
{
    for (const Options& options : everywhere()) {
        TwoTrees guest{options};
        CHECK(guest.read(kLinear).at() == 0x100'000);
        guest.poke(guest.pdpte, guest.second);
        CHECK(guest.read(kLinear).at() == 0x100'000);
        CHECK(guest.invlpg(kLinear));
        CHECK(guest.read(kLinear).at() == 0x100'000);
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(guest.machine.audit().empty());

        guest.poke(guest.pdpte, 0);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.read(kLinear).page_fault(0, kLinear));
    }
}

TEST_CASE("PDPTE registers: which bits of CR0 and CR4 load them", "[machine]")
{
    struct Case {
        bool in_cr4;
        std::uint64_t bit;
        bool loads;
    };
    const Case cases[] = {{false, cr0::kCd, true},  {false, cr0::kWp, false}, {true, cr4::kPse, true},
                          {true, cr4::kPge, true},  {true, cr4::kSmep, true}, {true, cr4::kSmap, false},
                          {true, cr4::kPke, false}, {true, cr4::kPks, false}};
    for (const Options& options : everywhere()) {
        for (const auto& [in_cr4, bit, loads] : cases) {
            TwoTrees guest{options};
            const bool old =
                ((in_cr4 ? guest.machine.registers(0).cr4 : guest.machine.registers(0).cr0) & bit) != 0;
            guest.machine.set_ac(0, true);  // so that SMAP does not matter
            CHECK(guest.read(kLinear).at() == 0x100'000);
            guest.poke(guest.pdpte, guest.second);
            REQUIRE((in_cr4 ? guest.set_cr4(bit, !old) : guest.set_cr0(bit, !old)));
            INFO((in_cr4 ? "CR4 " : "CR0 ") << bit);
            CHECK(guest.machine.pdptes(0)[1] == (loads ? guest.second : guest.first));
            // SMEP concerns fetches alone; WP does not concern a read.
            CHECK(guest.read(kLinear).at() == (loads ? 0x101'000u : 0x100'000u));
        }
    }
}

TEST_CASE("PDPTE registers: paging off and on again loads them, EFER does not", "[machine]")
{
    for (const Options& options : everywhere()) {
        TwoTrees guest{options};
        guest.poke(guest.pdpte, guest.second);
        REQUIRE(!guest.machine.wrmsr(0, efer::kMsr, 0));
        CHECK(guest.read(kLinear).at() == 0x100'000);
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        CHECK(guest.read(0x5000).at() == 0x5000);
        REQUIRE(guest.set_cr0(cr0::kPg, true));
        CHECK(guest.read(kLinear).at() == 0x101'000);
    }
}

TEST_CASE("PDPTE registers: a reserved bit is #GP and nothing changes", "[machine]")
{
    for (const Options& options : everywhere()) {
        TwoTrees guest{options};
        CHECK(guest.read(kLinear).at() == 0x100'000);
        const Registers before = guest.machine.registers(0);
        const auto pdptes = guest.machine.pdptes(0);
        for (const unsigned bit : {1u, 2u, 5u, 6u, 7u, 8u, 40u, 51u, 62u, 63u}) {
            INFO("bit " << bit);
            guest.poke(guest.pdpte, guest.second | std::uint64_t{1} << bit);
            CHECK_FALSE(guest.mov_cr3(guest.root()));
            CHECK_FALSE(guest.set_cr4(cr4::kPge, true));
            CHECK_FALSE(guest.set_cr0(cr0::kCd, true));
            CHECK(guest.machine.registers(0) == before);
            CHECK(guest.machine.pdptes(0) == pdptes);
            CHECK(guest.read(kLinear).at() == 0x100'000);
        }
        // Ignored where the PDPTE is not present; PWT, PCD and 11:9 are no reserved bits.
        guest.poke(guest.pdpte, (guest.second | 0x1e6) & ~P);
        CHECK(guest.mov_cr3(guest.root()));
        guest.poke(guest.pdpte, guest.second | 0xe18);
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.read(kLinear).at() == 0x101'000);
        // Refused from outside too.
        guest.poke(guest.pdpte, guest.second | W);
        CHECK(guest.machine.set_registers(0, before).has_value());
        CHECK(guest.read(kLinear).at() == 0x101'000);
    }
}

TEST_CASE("PDPTE registers: no rights and no accessed bit", "[machine]")
{
    for (const Options& options : everywhere()) {
        TwoTrees guest{options};
        CHECK(guest.access(Guest::operand(AccessKind::write, kLinear, 8, true)).ok());
        CHECK(guest.word(guest.pdpte) == guest.first);
    }
}

TEST_CASE("PDPTE registers: the table may stand anywhere at 32 bytes", "[machine]")
{
    for (const Options& options : everywhere()) {
        TwoTrees guest{options};
        guest.poke(0x9fe0 + 8, guest.second);
        REQUIRE(!guest.machine.mov_cr3(0, 0x9fe0));
        CHECK(guest.read(kLinear).at() == 0x101'000);
        // CR3 bits 4:0 are ignored.
        REQUIRE(!guest.machine.mov_cr3(0, 0x9fff));
        CHECK(guest.read(kLinear).at() == 0x101'000);
    }
}
