// SPDX-License-Identifier: Apache-2.0
//
// The shadows as the hardware finds them: bits in memory, walked here entry by entry. Where a guest entry
// goes in a 2-on-3 shadow (reference/xen.md B1, vectors of H1), what a present entry looks like, how many
// pages a shadow of each shape has.
#include <map>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr Paging kPagings[] = {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level};

std::uint64_t raw(const Guest& guest, std::uint64_t machine_address)
{
    return guest.machine.table_memory().load<std::uint64_t>(machine_address >> 12,
                                                            static_cast<unsigned>(machine_address & 0xfff));
}

/// Machine addresses of the shadow entries for a linear address, root first, as far as they are present.
std::vector<std::uint64_t> path(const Guest& guest, std::uint64_t linear)
{
    const auto& hardware = guest.machine.hardware_context(0);
    const bool pae = hardware.paging == Paging::pae;
    std::uint64_t table = hardware.root.frame.address().value();
    unsigned shift = hardware.paging == Paging::five_level ? 48 : 39;
    if (pae) {
        table = hardware.root.pdptes[linear >> 30 & 3];
        shift = 21;
        if ((table & P) == 0) return {};
    }
    std::vector<std::uint64_t> entries;
    for (;; shift -= 9) {
        const std::uint64_t at = (table & pte::kFrame) + (linear >> shift & 511) * 8;
        entries.push_back(at);
        table = raw(guest, at);
        if (shift == 12 || (table & P) == 0) return entries;
    }
}

/// The shadow entry for the page of an address; 0 if a level above is absent.
std::uint64_t leaf(const Guest& guest, std::uint64_t linear)
{
    const auto entries = path(guest, linear);
    const bool pae = guest.machine.hardware_context(0).paging == Paging::pae;
    const std::size_t levels = pae                                                              ? 2
                               : guest.machine.hardware_context(0).paging == Paging::five_level ? 5
                                                                                                : 4;
    return entries.size() == levels ? raw(guest, entries.back()) : 0;
}

std::uint64_t machine_page(const Guest& guest, std::uint64_t gpa)
{
    const auto mfn = guest.machine.p2m().mfn_of(Gfn{gpa >> 12});
    REQUIRE(mfn);
    return mfn->address().value();
}

ShadowId shadow_of(const Guest& guest, const std::string& type)
{
    for (const ShadowId id : guest.shadows().all()) {
        if (to_string(guest.shadows()[id].key.type) == type) return id;
    }
    return kNoShadow;
}

}  // namespace

TEST_CASE("shadow format: where an entry of a 32-bit L1 table goes", "[shadow]")
{
    for (const auto& [index, page, entry] : {std::array{0u, 0u, 0u}, std::array{511u, 0u, 511u},
                                             std::array{512u, 1u, 0u}, std::array{1023u, 1u, 511u}}) {
        Guest guest{Paging::two_level, under("write-protect")};
        guest.map(std::uint64_t{index} << 12, 0x101'000);
        CHECK(guest.read(std::uint64_t{index} << 12).ok());
        const Shadow& shadow = guest.shadows()[shadow_of(guest, "l1_32")];
        for (unsigned at_page = 0; at_page < 2; ++at_page) {
            for (unsigned at = 0; at < 512; ++at) {
                const std::uint64_t found = raw(guest, shadow.frames[at_page].address(at * 8).value());
                const bool here = at_page == page && at == entry;
                REQUIRE((found & pte::kFrame) == (here ? machine_page(guest, 0x101'000) : 0));
            }
        }
    }
}

TEST_CASE("shadow format: where an entry of a 32-bit L2 table goes", "[shadow]")
{
    for (const auto& [index, page, entry] :
         {std::array{0u, 0u, 0u}, std::array{255u, 0u, 510u}, std::array{256u, 1u, 0u},
          std::array{769u, 3u, 2u}, std::array{1023u, 3u, 510u}}) {
        for (const unsigned half : {0u, 1u}) {
            const std::uint64_t linear = (std::uint64_t{index} << 22) | (half != 0 ? 0x20'0000 : 0);
            Guest guest{Paging::two_level, under("write-protect")};
            guest.map(linear, 0x101'000);
            CHECK(guest.read(linear).ok());
            const Shadow& top = guest.shadows()[shadow_of(guest, "l2_32")];
            const Shadow& below = guest.shadows()[shadow_of(guest, "l1_32")];
            // The four pages are the four tables of the hardware's PAE top.
            for (unsigned i = 0; i < 4; ++i) {
                CHECK(guest.machine.hardware_context(0).root.pdptes[i] ==
                      (top.frames[i].address().value() | P));
            }
            for (unsigned at_page = 0; at_page < 4; ++at_page) {
                for (unsigned at = 0; at < 512; ++at) {
                    const std::uint64_t found = raw(guest, top.frames[at_page].address(at * 8).value());
                    std::uint64_t expected = 0;
                    if (at_page == page && at == entry) expected = below.frames[0].address().value();
                    if (at_page == page && at == entry + 1) expected = below.frames[1].address().value();
                    REQUIRE((found & pte::kFrame) == expected);
                }
            }
            // Both of the pair have the same flags.
            const std::uint64_t even = raw(guest, top.frames[page].address(entry * 8).value());
            const std::uint64_t odd = raw(guest, top.frames[page].address(entry * 8 + 8).value());
            CHECK(((even ^ odd) & ~pte::kFrame & ~(A | D)) == 0);
            CHECK((even & 0xfff & ~(A | D)) == (P | W | U));
        }
    }
}

TEST_CASE("shadow format: flags of a present entry", "[shadow]")
{
    for (const Paging paging : kPagings) {
        for (const char* policy : {"write-protect", "tlb-like"}) {
            Guest guest{paging, under(policy)};
            guest.map(kLinear, 0x101'000, kAll | G | 0xe98);  // PAT, PCD, PWT, available bits
            guest.map(kLinear + 0x1000, 0x102'000, P | W);    // neither accessed nor dirty
            guest.map(kLinear + 0x2000, 0x103'000, P | A | D | U);
            CHECK(leaf(guest, kLinear) == 0);
            CHECK(guest.write(kLinear).ok());
            CHECK(leaf(guest, kLinear) == (machine_page(guest, 0x101'000) | P | W | U | A | D));

            // Not accessed in the guest: no shadow entry, however close the neighbour.
            CHECK((leaf(guest, kLinear + 0x1000) & P) == 0);
            CHECK(guest.read(kLinear + 0x1000).ok());
            CHECK(guest.entry(kLinear + 0x1000, 1) == (0x102'000 | P | W | A));
            CHECK((leaf(guest, kLinear + 0x1000) & ~D) == (machine_page(guest, 0x102'000) | P | A));
            const std::uint64_t faults = guest.counters().fault;
            CHECK(guest.write(kLinear + 0x1000).ok());
            CHECK(guest.counters().fault == faults + 1);
            CHECK(guest.entry(kLinear + 0x1000, 1) == (0x102'000 | P | W | A | D));
            CHECK((leaf(guest, kLinear + 0x1000) & ~D) == (machine_page(guest, 0x102'000) | P | W | A));

            CHECK(guest.read(kLinear + 0x2000).ok());
            CHECK((leaf(guest, kLinear + 0x2000) & ~D) == (machine_page(guest, 0x103'000) | P | U | A));
            // Above: rights, A and D alone.
            for (const std::uint64_t at : path(guest, kLinear)) {
                if (at == path(guest, kLinear).back()) continue;
                CHECK((raw(guest, at) & ~pte::kFrame) == (P | W | U | A | D));
                CHECK(guest.shadows().shadow_at(Mfn{(raw(guest, at) & pte::kFrame) >> 12}) != kNoShadow);
            }
        }
    }
}

TEST_CASE("shadow format: XD and keys", "[shadow]")
{
    for (const Paging paging : {Paging::pae, Paging::four_level, Paging::five_level}) {
        Guest guest{paging, under("write-protect")};
        const std::uint64_t with_key = paging == Paging::pae ? 0 : key(11);
        guest.map(kLinear, 0x101'000, kAll | NX | with_key);
        guest.set_entry(kLinear, 2, guest.entry(kLinear, 2) & ~U);
        CHECK(guest.read(kLinear).ok());
        CHECK((leaf(guest, kLinear) & (NX | key(15))) == (NX | with_key));
        const std::vector<std::uint64_t> entries = path(guest, kLinear);
        CHECK((raw(guest, entries[entries.size() - 2]) & (P | W | U | NX)) == (P | W));
        guest.set_entry(kLinear, 2, guest.entry(kLinear, 2) | NX);
        CHECK(guest.read(kLinear).ok());
        CHECK((raw(guest, path(guest, kLinear)[entries.size() - 2]) & NX) != 0);
    }
}

TEST_CASE("shadow format: superpages are splintered", "[shadow]")
{
    struct Case {
        Paging paging;
        int level;
        std::uint64_t pages;  // of 4 KiB
        std::vector<std::string> types;
    };
    const Case cases[] = {{Paging::two_level, 2, 1024, {"fl1_32"}},
                          {Paging::pae, 2, 512, {"fl1_pae"}},
                          {Paging::four_level, 2, 512, {"fl1_64"}},
                          {Paging::four_level, 3, 1 << 18, {"fl1_64", "fl2_64"}},
                          {Paging::five_level, 3, 1 << 18, {"fl1_64", "fl2_64"}}};
    for (const auto& [paging, level, pages, types] : cases) {
        Guest guest{paging, under("write-protect")};
        const std::uint64_t linear = 0x8000'0000;
        guest.map(linear, 0x4000'0000, P | W | U | G, level);
        CHECK(guest.read(linear + 0x3000).at() == 0x4000'3000);
        for (const std::string& type : types) CHECK(shadow_of(guest, type) != kNoShadow);
        // The page's own rights stand in the entry above, which is read-only until the page is dirty.
        std::vector<std::uint64_t> entries = path(guest, linear + 0x3000);
        const std::size_t own = entries.size() - types.size() - 1;
        CHECK((raw(guest, entries[own]) & (P | W | U | PS | G)) == (P | U));
        CHECK((leaf(guest, linear + 0x3000) & ~D) == (machine_page(guest, 0x4000'3000) | P | W | U | A));
        CHECK(leaf(guest, linear + 0x4000) == 0);  // on demand
        CHECK(guest.write(linear + 0x3000).ok());
        CHECK((raw(guest, entries[own]) & (P | W | U | PS | G)) == (P | W | U));
        CHECK((guest.entry(linear, level) & (A | D)) == (A | D));
        // Filled on demand, and one fault for a page.
        const std::uint64_t faults = guest.counters().fault;
        for (std::uint64_t page = 4; page < 8; ++page) CHECK(guest.write(linear + page * 4096).ok());
        CHECK(guest.counters().fault == faults + 4);
        // A part outside RAM is no entry.
        CHECK(guest.read(linear + (pages - 1) * 4096).emulated());
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("shadow format: a PSE-36 page above 4 GiB", "[shadow]")
{
    Guest guest{Paging::two_level, under("write-protect")};
    guest.map(0x8000'0000, 0x1'0000'0000, kAll, 2);
    CHECK(guest.write(0x8000'1008).at() == 0x1'0000'1008);
    CHECK((leaf(guest, 0x8000'1000) & pte::kFrame) == machine_page(guest, 0x1'0000'1000));
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("shadow shapes: pages of each", "[shadow]")
{
    struct Case {
        Paging paging;
        int level;
        std::map<std::string, unsigned> frames;
    };
    const Case cases[] = {
        {Paging::two_level, 1, {{"l2_32", 4}, {"l1_32", 2}}},
        {Paging::two_level, 2, {{"l2_32", 4}, {"fl1_32", 2}}},
        {Paging::pae, 1, {{"l2_pae", 1}, {"l1_pae", 1}}},
        {Paging::pae, 2, {{"l2_pae", 1}, {"fl1_pae", 1}}},
        {Paging::four_level, 1, {{"l4_64", 1}, {"l3_64", 1}, {"l2_64", 1}, {"l1_64", 1}}},
        {Paging::four_level, 2, {{"l4_64", 1}, {"l3_64", 1}, {"l2_64", 1}, {"fl1_64", 1}}},
        {Paging::four_level, 3, {{"l4_64", 1}, {"l3_64", 1}, {"fl2_64", 1}, {"fl1_64", 1}}},
        {Paging::five_level, 1, {{"l5_64", 1}, {"l4_64", 1}, {"l3_64", 1}, {"l2_64", 1}, {"l1_64", 1}}},
    };
    for (const char* policy : {"write-protect", "tlb-like"}) {
        for (const auto& [paging, level, frames] : cases) {
            Guest guest{paging, under(policy)};
            guest.map(0x4000'0000, 0x4000'0000, kAll, level);
            guest.machine.blow_shadows();
            CHECK(guest.read(0x4000'0000).ok());
            std::map<std::string, unsigned> seen;
            unsigned pages = 0;
            for (const ShadowId id : guest.shadows().all()) {
                const ShadowType type = guest.shadows()[id].key.type;
                CHECK(seen.emplace(to_string(type), type.frames()).second);
                pages += type.frames();
            }
            CHECK(seen == frames);
            CHECK(guest.counters().alloc_count == pages);
        }
    }
}

TEST_CASE("shadow shapes: paging off is a 2-level guest of identity superpages", "[shadow]")
{
    Machine machine{config_of(under("write-protect"))};
    const auto touch = [&](std::uint64_t at) {
        const auto placed = machine.access(0, Guest::operand(AccessKind::write, at));
        REQUIRE(placed.ok());
        CHECK(placed->parts[0].address.value() == at);
    };
    touch(0x1000);
    CHECK(machine.shadow()->counters().alloc_count == 4 + 2);
    touch(0x2000);
    CHECK(machine.shadow()->counters().alloc_count == 4 + 2);
    touch(0x4000'1000);
    CHECK(machine.shadow()->counters().alloc_count == 4 + 2 + 2);
    touch(0xfee0'0000);
    CHECK(machine.shadow()->counters().fault_mmio == 1);
    CHECK(machine.shadow()->counters().alloc_count == 4 + 2 + 2 + 2);
    CHECK(machine.audit().empty());
}
