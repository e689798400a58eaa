// SPDX-License-Identifier: Apache-2.0
//
// Tables change and nobody flushes. What the CPU must not keep (what was not there, what was not accessed),
// what it may keep, and that it never faults for what it has kept (docs/timing.md, "TLBs", "Paging-structure
// caches"). Then the same from the other side: the hypervisor, which has to flush what it takes away.
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "tlb/small_profiles.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000, kNeighbour = 0x40'1000, kThird = 0x40'2000, kFourth = 0x40'3000;
constexpr std::array<Paging, 4> kPagings{Paging::two_level, Paging::pae, Paging::four_level,
                                         Paging::five_level};

struct StaleGuest : Guest {
    explicit StaleGuest(Paging paging, const CpuProfile& profile = small::large())
        : Guest{paging, small::config(profile)}, mode{paging}
    {
        map(kLinear, 0x101'000);
        map(kNeighbour, 0x102'000);
        map(kThird, 0x103'000);
        map(kFourth, 0x109'000);
    }
    /// Levels whose tables are in memory.
    [[nodiscard]] int top() const { return mode == Paging::pae ? 2 : levels(); }
    [[nodiscard]] bool has_nx() const { return mode != Paging::two_level; }
    void set_bits(std::uint64_t linear, int level, std::uint64_t bits)
    {
        set_entry(linear, level, entry(linear, level) | bits);
    }
    void clear_bits(std::uint64_t linear, int level, std::uint64_t bits)
    {
        set_entry(linear, level, entry(linear, level) & ~bits);
    }
    [[nodiscard]] MachineCounters counters() const { return machine.counters(); }
    Seen user(AccessKind kind, std::uint64_t linear) { return access(operand(kind, linear, 1, true)); }

    Paging mode;
};

std::uint64_t hits(const MachineCounters& counters)
{
    std::uint64_t sum = 0;
    for (const TlbCounters& tlb : counters.tlbs) sum += tlb.hits;
    return sum;
}

}  // namespace

TEST_CASE("stale entries: what is not present is not cached", "[tlb]")
{
    for (const Paging paging : kPagings) {
        StaleGuest guest{paging};
        for (int level = 1; level <= guest.top(); ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            REQUIRE_FALSE(guest.machine.set_registers(0, guest.machine.registers(0)));
            guest.clear_bits(kLinear, level, P);
            CHECK(guest.read(kLinear).page_fault(0, kLinear));
            CHECK(guest.write(kLinear).page_fault(pf::kWrite, kLinear));
            guest.set_bits(kLinear, level, P);
            CHECK(guest.read(kLinear).at() == 0x101'000);
        }
    }
}

TEST_CASE("stale entries: nor is one with a reserved bit", "[tlb]")
{
    // Bit 51 is above MAXPHYADDR.
    for (const Paging paging : {Paging::pae, Paging::four_level, Paging::five_level}) {
        StaleGuest guest{paging};
        for (int level = 1; level <= guest.top(); ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            REQUIRE_FALSE(guest.machine.set_registers(0, guest.machine.registers(0)));
            guest.set_bits(kLinear, level, std::uint64_t{1} << 51);
            CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kReserved, kLinear));
            guest.clear_bits(kLinear, level, std::uint64_t{1} << 51);
            CHECK(guest.read(kLinear).ok());
        }
    }
}

TEST_CASE("stale entries: a failed walk fills nothing", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.clear_bits(kLinear, 1, P);
    CHECK_FALSE(guest.read(kLinear).ok());
    CHECK_FALSE(guest.read(kLinear).ok());
    const MachineCounters counters = guest.counters();
    for (const TlbCounters& tlb : counters.tlbs) CHECK(tlb.fills + tlb.hits == 0);
    for (const PagingStructureCacheCounters& cache : counters.paging_structure_caches) {
        CHECK(cache.hits == 0);
    }
    CHECK(counters.walks == 2);
    CHECK(counters.memory_references == 8);
}

TEST_CASE("stale entries: A clear is not cached", "[tlb]")
{
    for (const Paging paging : kPagings) {
        StaleGuest guest{paging};
        for (int level = 1; level <= guest.top(); ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            REQUIRE_FALSE(guest.machine.set_registers(0, guest.machine.registers(0)));
            guest.clear_bits(kLinear, level, A);
            CHECK(guest.read(kLinear).ok());
            CHECK((guest.entry(kLinear, level) & A) != 0);
            // Cleared behind the CPU's back: it may take the page for accessed until it is flushed.
            guest.clear_bits(kLinear, level, A);
            const MachineCounters before = guest.counters();
            CHECK(guest.read(kLinear).ok());
            CHECK((guest.entry(kLinear, level) & A) == 0);
            CHECK(guest.counters().walks == before.walks);
            REQUIRE(guest.invlpg(kLinear));
            CHECK(guest.read(kLinear).ok());
            CHECK((guest.entry(kLinear, level) & A) != 0);
        }
    }
}

TEST_CASE("stale entries: a walk from a paging-structure cache sets A below it", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    CHECK(guest.read(kLinear).ok());
    guest.clear_bits(kNeighbour, 1, A);
    guest.clear_bits(kNeighbour, 2, A);
    CHECK(guest.read(kNeighbour).ok());
    CHECK((guest.entry(kNeighbour, 1) & A) != 0);
    CHECK((guest.entry(kNeighbour, 2) & A) == 0);  // the cached PDE had it set
    CHECK(guest.counters().paging_structure_caches[2].hits == 1);
}

TEST_CASE("stale entries: dirty bits", "[tlb]")
{
    for (const Paging paging : kPagings) {
        INFO(mmusim::name_of(paging));
        StaleGuest guest{paging};
        guest.clear_bits(kLinear, 1, D);
        CHECK(guest.read(kLinear).ok());
        CHECK((guest.entry(kLinear, 1) & D) == 0);
        CHECK(guest.write(kLinear).ok());
        CHECK((guest.entry(kLinear, 1) & D) != 0);
        CHECK(guest.counters().tlbs[small::kL1d].dirty_walks == 1);
        // Cleared without a flush: the entry that has D goes on.
        guest.clear_bits(kLinear, 1, D);
        const MachineCounters before = guest.counters();
        CHECK(guest.write(kLinear).ok());
        CHECK((guest.entry(kLinear, 1) & D) == 0);
        CHECK(guest.counters().walks == before.walks);
        CHECK(hits(guest.counters()) == hits(before) + 1);
        REQUIRE(guest.invlpg(kLinear));
        CHECK(guest.write(kLinear).ok());
        CHECK((guest.entry(kLinear, 1) & D) != 0);
    }
}

TEST_CASE("stale entries: the walk that sets D judges the tables as they are", "[tlb]")
{
    for (const Paging paging : kPagings) {
        INFO(mmusim::name_of(paging));
        StaleGuest guest{paging};
        guest.clear_bits(kLinear, 1, D);
        CHECK(guest.read(kLinear).ok());
        guest.clear_bits(kLinear, 1, W);
        CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
        CHECK((guest.entry(kLinear, 1) & D) == 0);
        // And it goes where they point now.
        guest.set_entry(kLinear, 1, 0x104'000 | (kAll & ~D));
        CHECK(guest.read(kLinear).at() == 0x104'000);
        guest.set_entry(kLinear, 1, 0x105'000 | (kAll & ~D));
        CHECK(guest.read(kLinear).at() == 0x104'000);
        CHECK(guest.write(kLinear).at() == 0x105'000);
        CHECK(guest.read(kLinear).at() == 0x105'000);
    }
}

TEST_CASE("stale entries: rights that were loosened never fault", "[tlb]")
{
    struct Right {
        const char* name;
        std::uint64_t bit;
        bool denies_if_set;
        bool user;
        AccessKind allowed;  ///< of a supervisor, to have it cached
        AccessKind denied;
    };
    const std::array<Right, 3> rights{{{"R/W", W, false, false, AccessKind::read, AccessKind::write},
                                       {"U/S", U, false, true, AccessKind::read, AccessKind::read},
                                       {"XD", NX, true, false, AccessKind::read, AccessKind::fetch}}};
    for (const Paging paging : kPagings) {
        for (const Right& right : rights) {
            if (right.bit == NX && paging == Paging::two_level) continue;
            const int top = StaleGuest{paging}.top();
            for (int level = 1; level <= top; ++level) {
                INFO(mmusim::name_of(paging) << ", " << right.name << ", level " << level);
                StaleGuest guest{paging};
                const auto deny = [&](std::uint64_t linear, bool yes) {
                    if (yes == right.denies_if_set) {
                        guest.set_bits(linear, level, right.bit);
                    } else {
                        guest.clear_bits(linear, level, right.bit);
                    }
                };
                const auto try_it = [&](std::uint64_t linear) {
                    return guest.access(Guest::operand(right.denied, linear, 1, right.user));
                };
                for (const std::uint64_t page : {kLinear, kNeighbour, kThird, kFourth}) deny(page, true);
                CHECK(guest.access(Guest::operand(right.allowed, kLinear, 1)).ok());
                CHECK(guest.access(Guest::operand(right.allowed, kNeighbour, 1)).ok());
                // Cached and denied, in truth.
                CHECK_FALSE(try_it(kNeighbour).ok());
                CHECK(guest.access(Guest::operand(right.allowed, kNeighbour, 1)).ok());
                for (const std::uint64_t page : {kLinear, kNeighbour, kThird, kFourth}) deny(page, false);
                const MachineCounters before = guest.counters();
                // By the TLB's entry; and where no page is cached, by the paging-structure caches alone.
                CHECK(try_it(kThird).ok());
                CHECK(guest.counters().walks == before.walks + 1);
                // Walked once more from the root, the caches have the rights of now: one entry is enough.
                const std::uint64_t loads = guest.counters().memory_references;
                CHECK(try_it(kFourth).ok());
                CHECK(guest.counters().memory_references == loads + 1);
                CHECK(try_it(kLinear).ok());
                CHECK(try_it(kNeighbour).ok());
                const MachineCounters after = guest.counters();
                CHECK(try_it(kLinear).ok());
                CHECK(try_it(kThird).ok());
                CHECK(guest.counters().walks == after.walks);
            }
        }
    }
}

TEST_CASE("stale entries: rights that were taken away may stay in force until a flush", "[tlb]")
{
    for (const Paging paging : kPagings) {
        const int top = StaleGuest{paging}.top();
        for (int level = 1; level <= top; ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            StaleGuest guest{paging};
            CHECK(guest.user(AccessKind::write, kLinear).ok());
            CHECK(guest.user(AccessKind::fetch, kLinear).ok());
            guest.clear_bits(kLinear, level, W | U);
            if (guest.has_nx()) guest.set_bits(kLinear, level, NX);
            const MachineCounters before = guest.counters();
            CHECK(guest.user(AccessKind::write, kLinear).ok());
            CHECK(guest.user(AccessKind::fetch, kLinear).ok());
            CHECK(guest.counters().walks == before.walks);
            // A page that no TLB has, through the entries of tables that are cached.
            if (level > 1) {
                CHECK(guest.user(AccessKind::write, kNeighbour).ok());
                CHECK(guest.counters().walks == before.walks + 1);
            }
            REQUIRE(guest.invlpg(kLinear));
            CHECK(guest.user(AccessKind::read, kLinear).page_fault(pf::kPresent | pf::kUser, kLinear));
            CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
            if (guest.has_nx()) {
                CHECK(guest.fetch(kLinear).page_fault(pf::kPresent | pf::kInstruction, kLinear));
            }
        }
    }
}

TEST_CASE("stale entries: a page that is gone stays until a flush", "[tlb]")
{
    for (const Paging paging : kPagings) {
        const int top = StaleGuest{paging}.top();
        for (int level = 1; level <= top; ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            StaleGuest guest{paging};
            CHECK(guest.read(kLinear).ok());
            guest.clear_bits(kLinear, level, P);
            CHECK(guest.read(kLinear).at() == 0x101'000);
            CHECK(guest.read(kNeighbour).ok());
            REQUIRE(guest.invlpg(kLinear));
            CHECK(guest.read(kLinear).page_fault(0, kLinear));
        }
    }
}

TEST_CASE("stale entries: a stale table entry that leads nowhere is not the guest's fault", "[tlb]")
{
    for (const Paging paging : kPagings) {
        const int top = StaleGuest{paging}.top();
        for (int level = 2; level <= top; ++level) {
            INFO(mmusim::name_of(paging) << ", level " << level);
            StaleGuest guest{paging};
            CHECK(guest.read(kLinear).ok());
            // The tables below are moved, and the old ones wiped.
            const std::uint64_t old = guest.entry(kLinear, level) & ~std::uint64_t{0xfff};
            const std::uint64_t moved = guest.new_table().address().value();
            for (std::uint64_t at = 0; at < 0x1000; at += 8) {
                guest.poke(moved + at, guest.word(old + at));
                guest.poke(old + at, 0);
            }
            guest.set_entry(kLinear, level, moved | (guest.entry(kLinear, level) & 0xfff));
            REQUIRE(guest.machine.counters().walks == 1);
            const std::uint64_t far = level == 2 ? kNeighbour : kNeighbour + (1ull << guest.shift(level - 1));
            if (level > 2) guest.map(far, 0x106'000);
            if (level > 2) guest.map(far + 0x1000, 0x107'000);
            const MachineCounters before = guest.counters();
            CHECK(guest.read(far).at() == (level > 2 ? 0x106'000u : 0x102'000u));
            const MachineCounters after = guest.counters();
            const auto which = static_cast<std::size_t>(level);
            if (paging != Paging::pae) {  // there `map` has flushed, by reloading the PDPTEs
                CHECK(after.paging_structure_caches[which].hits ==
                      before.paging_structure_caches[which].hits + 1);
                // One entry of the wiped table, then all from the root.
                CHECK(after.memory_references ==
                      before.memory_references + 1 + static_cast<unsigned>(guest.levels()));
            }
            CHECK(after.walks == before.walks + 1);
            // The stale entry was overwritten, and nothing of what it led to was kept: full rights, one
            // entry.
            CHECK(guest.user(AccessKind::write, far + 0x1000).ok());
            CHECK(guest.counters().memory_references == after.memory_references + 1);
        }
    }
}

TEST_CASE("stale entries: a denied match is dropped everywhere, and no later TLB is asked", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.clear_bits(kLinear, 1, W);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.fetch(kLinear).ok());
    CHECK(guest.read(kNeighbour).ok());
    guest.set_entry(kLinear, 1, 0x104'000 | kAll);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    const MachineCounters before = guest.counters();
    CHECK(guest.write(kLinear).at() == 0x104'000);
    const MachineCounters after = guest.counters();
    CHECK(after.tlbs[small::kL1d].lookups == before.tlbs[small::kL1d].lookups + 1);
    CHECK(after.tlbs[small::kL1d].denied == 1);
    CHECK(after.tlbs[small::kL1d].hits == before.tlbs[small::kL1d].hits);
    CHECK(after.tlbs[small::kL2].lookups == before.tlbs[small::kL2].lookups);
    CHECK(after.walks == before.walks + 1);
    CHECK(after.memory_references == before.memory_references + 4);
    // The fetches' TLB has lost its entry; the neighbour is where it was.
    CHECK(guest.fetch(kLinear).at() == 0x104'000);
    CHECK(guest.counters().tlbs[small::kL2].hits == after.tlbs[small::kL2].hits + 1);
    CHECK(guest.read(kNeighbour).ok());
    CHECK(guest.counters().tlbs[small::kL1d].hits == after.tlbs[small::kL1d].hits + 1);
}

TEST_CASE("stale entries: a denied match on level 2", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.set_bits(kLinear, 1, NX);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.fetch(kLinear).page_fault(pf::kPresent | pf::kInstruction, kLinear));
    MachineCounters counters = guest.counters();
    CHECK(counters.tlbs[small::kL1i].denied == 0);
    CHECK(counters.tlbs[small::kL2].denied == 1);
    guest.clear_bits(kLinear, 1, NX);
    CHECK(guest.read(kLinear).ok());  // dropped on level 1 too
    CHECK(guest.counters().walks == counters.walks + 1);
}

TEST_CASE("stale entries: a denied match is walked afresh, without the paging-structure caches", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.clear_bits(kLinear, 1, W);
    CHECK(guest.read(kLinear).ok());
    guest.set_bits(kLinear, 1, W);
    const MachineCounters before = guest.counters();
    CHECK(guest.write(kLinear).ok());
    const MachineCounters after = guest.counters();
    CHECK(after.paging_structure_caches == before.paging_structure_caches);
    CHECK(after.memory_references == before.memory_references + 4);
    // They have been emptied of what led there, and filled by that walk.
    CHECK(guest.read(kThird).ok());
    CHECK(guest.counters().paging_structure_caches[2].hits == before.paging_structure_caches[2].hits + 1);
}

TEST_CASE("stale entries: a denied match drops what a page fault would", "[tlb]")
{
    // All fragments of the page, and of the paging-structure caches what leads to the address.
    CpuProfile profile =
        small::profile({small::tlb("l1", 1, "fls", {small::fully_associative(64, {EntryKind::page_4k})})});
    small::add_structure_caches(profile, 8);
    Guest guest{Paging::four_level, small::config(profile)};
    guest.map(0x20'0000, 0x4000'0000, kAll & ~W, 2);
    guest.map(0x40'0000, 0x4000'0000, kAll, 2);
    for (const std::uint64_t page : {0x20'0000u, 0x20'1000u, 0x40'0000u}) CHECK(guest.read(page).ok());
    guest.set_entry(0x20'0000, 2, 0x4000'0000 | kAll | PS);
    CHECK(guest.write(0x20'0000).ok());
    const MachineCounters before = guest.machine.counters();
    CHECK(before.tlbs[0].denied == 1);
    CHECK(guest.read(0x20'1000).ok());
    CHECK(guest.machine.counters().tlbs[0].hits == before.tlbs[0].hits);
    CHECK(guest.read(0x40'0000).ok());
    CHECK(guest.machine.counters().tlbs[0].hits == before.tlbs[0].hits + 1);
}

TEST_CASE("stale entries: rights are judged with the registers as they are now", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.clear_bits(kLinear, 1, W);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));
    CHECK(guest.read(kLinear).ok());
    REQUIRE(guest.set_cr0(cr0::kWp, false));
    CHECK(guest.write(kLinear).ok());
    REQUIRE(guest.set_cr0(cr0::kWp, true));
    CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite, kLinear));

    CHECK(guest.fetch(kNeighbour).ok());
    CHECK(guest.read(kNeighbour).ok());
    REQUIRE(guest.set_cr4(cr4::kSmap, true));
    CHECK(guest.read(kNeighbour).page_fault(pf::kPresent, kNeighbour));
    guest.machine.set_ac(0, true);
    CHECK(guest.read(kNeighbour).ok());
    CHECK(guest.read(kNeighbour).ok());
    guest.machine.set_ac(0, false);
    CHECK(guest.read(kNeighbour).page_fault(pf::kPresent, kNeighbour));
    REQUIRE(guest.set_cr4(cr4::kSmap, false));
    CHECK(guest.read(kNeighbour).ok());

    CHECK(guest.fetch(kThird).ok());
    REQUIRE(guest.set_cr4(cr4::kSmep, true));
    CHECK(guest.fetch(kThird).page_fault(pf::kPresent | pf::kInstruction, kThird));
    CHECK(guest.user(AccessKind::fetch, kThird).ok());
    CHECK(guest.fetch(kThird).page_fault(pf::kPresent | pf::kInstruction, kThird));
    REQUIRE(guest.set_cr4(cr4::kSmep, false));
    CHECK(guest.fetch(kThird).ok());
}

TEST_CASE("stale entries: an entry keeps its protection key, not what the key allows", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    REQUIRE(guest.set_cr4(cr4::kPke, true));
    guest.set_bits(kLinear, 1, key(1));
    CHECK(guest.read(kLinear).ok());
    REQUIRE_FALSE(guest.machine.wrpkru(0, 0b0100));  // key 1: no access
    CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kProtectionKey, kLinear));
    CHECK(guest.fetch(kLinear).ok());
    REQUIRE_FALSE(guest.machine.wrpkru(0, 0b1000));  // key 1: no writes
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.write(kLinear).page_fault(pf::kPresent | pf::kWrite | pf::kProtectionKey, kLinear));
    REQUIRE_FALSE(guest.machine.wrpkru(0, 0));
    CHECK(guest.read(kLinear).ok());
    // Another key in memory: the old one may stay in force until a flush.
    guest.set_entry(kLinear, 1, 0x101'000 | kAll | key(2));
    REQUIRE_FALSE(guest.machine.wrpkru(0, 0b01'0000));
    CHECK(guest.read(kLinear).ok());
    REQUIRE(guest.invlpg(kLinear));
    CHECK(guest.read(kLinear).page_fault(pf::kPresent | pf::kProtectionKey, kLinear));
}

TEST_CASE("stale entries: G counts only while CR4.PGE is set", "[tlb]")
{
    StaleGuest guest{Paging::four_level};
    guest.set_bits(kLinear, 1, G);
    CHECK(guest.read(kLinear).ok());
    REQUIRE(guest.mov_cr3(guest.root()));
    const std::uint64_t walks = guest.counters().walks;
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().walks == walks + 1);
    REQUIRE(guest.set_cr4(cr4::kPge, true));
    CHECK(guest.read(kLinear).ok());
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().walks == walks + 2);
}

TEST_CASE("stale entries: none lets an instruction pass in which a write comes before a fault", "[tlb]")
{
    for (const AccessKind kind : {AccessKind::read, AccessKind::write}) {
        for (const bool crossing : {false, true}) {
            INFO(mmusim::name_of(kind) << (crossing ? ", over two pages" : ", two operands"));
            StaleGuest guest{Paging::four_level};
            guest.clear_bits(kLinear, 1, D);
            for (const std::uint64_t page : {kLinear, kNeighbour, kThird}) CHECK(guest.read(page).ok());
            guest.clear_bits(kNeighbour, 1, P);
            const MachineCounters before = guest.counters();
            Execution execution;
            std::vector<Operand> operands{Guest::operand(kind, kNeighbour - 4, 8)};
            if (!crossing) {
                operands = {Guest::operand(kind, kLinear, 8),
                            Guest::operand(AccessKind::read, kNeighbour, 1)};
            }
            guest.machine.execute(0, operands, Restart::instruction, execution);
            if (kind == AccessKind::read) {
                // Nothing that a fault would have to undo: the stale entry may serve.
                CHECK_FALSE(execution.fault);
                CHECK(guest.counters().walks == before.walks);
                continue;
            }
            REQUIRE(execution.fault);
            CHECK(execution.fault->address.value() == kNeighbour);
            // The write has translated as a read does: a hit, and no D.
            CHECK((guest.entry(kLinear, 1) & D) == 0);
            const MachineCounters after = guest.counters();
            CHECK(after.tlbs[small::kL1d].dirty_walks == 0);
            CHECK(after.tlbs[small::kL1d].hits == before.tlbs[small::kL1d].hits + 1);
            CHECK(after.walks == before.walks + 1);
            // Dropped is the page that faults, and no other.
            CHECK(guest.read(kThird).ok());
            CHECK(guest.counters().walks == after.walks);
            CHECK_FALSE(guest.read(kNeighbour).ok());
        }
    }
}

// --- under shadows
// ------------------------------------------------------------------------------------------

namespace {

/// Two vCPUs on one set of tables, which the guest writes through a window.
struct ShadowGuest : Guest {
    static constexpr std::uint64_t kWindow = 0x80'0000'0000, kGlobal = 0x40'3000, kLarge = 0xc0'0000,
                                   kFree = 0x40'5000;

    explicit ShadowGuest(const std::string& policy) : Guest{Paging::four_level, config(policy)}
    {
        map(kLinear, 0x101'000);
        map(kNeighbour, 0x102'000);
        map(kThird, 0x103'000, kAll & ~W);
        map(kGlobal, 0x104'000, kAll | G);
        map(kLarge, 0x20'0000, kAll, 2);
        map(kWindow, entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
        for (const unsigned vcpu : {0u, 1u}) {
            REQUIRE(set_cr4(cr4::kPge, true, vcpu));
            warm(vcpu);
        }
        // What the shadows fill in may have come in between.
        for (const unsigned vcpu : {0u, 1u}) warm(vcpu);
    }
    void warm(unsigned vcpu)
    {
        for (const std::uint64_t page : {kLinear, kNeighbour, kThird, kGlobal, kLarge, kLarge + 0x5000}) {
            CHECK(read(page, 8, vcpu).ok());
        }
    }
    void change(std::uint64_t linear, std::uint64_t entry, unsigned vcpu = 0)
    {
        REQUIRE(store(kWindow | (entry_at(linear, 1) & 0xfff), entry, 8, vcpu).ok());
    }
    /// Whether a read hits in the vCPU's TLBs.
    bool cached(std::uint64_t linear, unsigned vcpu)
    {
        const std::uint64_t before = machine.mmu(vcpu).walks();
        CHECK(read(linear, 8, vcpu).ok());
        return machine.mmu(vcpu).walks() == before;
    }

private:
    static MachineConfig config(const std::string& policy)
    {
        Options options = under(policy);
        options.vcpus = 2;
        return small::config(small::large(), options);
    }
};

}  // namespace

TEST_CASE("stale entries under shadows: what the guest takes away it flushes itself", "[tlb]")
{
    struct Change {
        const char* name;
        std::uint64_t entry;
    };
    for (const auto& [name, entry] : {Change{"gone", 0}, Change{"moved", 0x105'000 | kAll},
                                      Change{"no longer writable", 0x101'000 | (kAll & ~W)},
                                      Change{"no longer the user's", 0x101'000 | (kAll & ~U)},
                                      Change{"no longer executable", 0x101'000 | kAll | NX}}) {
        for (const unsigned vcpu : {0u, 1u}) {
            INFO(name << ", seen by vCPU " << vcpu);
            ShadowGuest guest{"write-protect"};
            CHECK(guest.write(kLinear, 8, vcpu).ok());
            CHECK(guest.fetch(kLinear, 1, vcpu).ok());
            CHECK(guest.cached(kNeighbour, vcpu));
            guest.change(kLinear, entry);
            CHECK(guest.cached(kLinear, vcpu));
            CHECK(guest.cached(kNeighbour, vcpu));
            REQUIRE(guest.invlpg(kLinear, vcpu));
            CHECK(guest.cached(kNeighbour, vcpu));
            const Seen seen = guest.access(Guest::operand(AccessKind::read, kLinear, 1, true), vcpu);
            CHECK(seen.ok() == ((entry & (P | U)) == (P | U)));
            if (seen.ok()) CHECK(seen.at() == (entry & 0xfff'f000));
            CHECK(guest.write(kLinear, 8, vcpu).ok() == ((entry & (P | W)) == (P | W)));
            CHECK(guest.fetch(kLinear, 1, vcpu).ok() == ((entry & P) != 0 && (entry & NX) == 0));
        }
    }
}

TEST_CASE("stale entries under shadows: changes of level-1 entries flush nothing", "[tlb]")
{
    for (const unsigned vcpu : {0u, 1u}) {
        INFO("vCPU " << vcpu);
        ShadowGuest guest{"write-protect"};
        // Traps once to be protected; what that costs is not the point.
        guest.change(ShadowGuest::kFree, 0);
        guest.warm(vcpu);
        guest.change(ShadowGuest::kFree, 0x106'000 | kAll);
        CHECK(guest.cached(kLinear, vcpu));
        CHECK(guest.read(ShadowGuest::kFree, 8, vcpu).at() == 0x106'000);
        CHECK(guest.cached(kLinear, vcpu));
        guest.change(kThird, 0x103'000 | kAll);  // R/W
        CHECK(guest.cached(kLinear, vcpu));
        CHECK(guest.write(kThird, 8, vcpu).ok());
        CHECK(guest.cached(kLinear, vcpu));
        guest.change(kThird, 0x103'000 | kAll | NX);
        CHECK(guest.cached(kLinear, vcpu));
        guest.change(kThird, 0x103'000 | kAll);  // XD
        CHECK(guest.cached(kLinear, vcpu));
        CHECK(guest.fetch(kThird, 1, vcpu).ok());
        CHECK(guest.cached(kLinear, vcpu));
    }
}

TEST_CASE("stale entries under shadows: the guest's flushes", "[tlb]")
{
    using Pages = std::vector<std::uint64_t>;
    const Pages all{kLinear, kNeighbour, ShadowGuest::kGlobal, ShadowGuest::kLarge,
                    ShadowGuest::kLarge + 0x5000};
    struct Event {
        const char* name;
        std::function<bool(ShadowGuest&)> happen;
        Pages dropped;
    };
    const std::vector<Event> events{
        {"MOV CR3", [](ShadowGuest& guest) { return guest.mov_cr3(guest.root()); }, all},
        {"INVLPG", [](ShadowGuest& guest) { return guest.invlpg(kLinear); }, {kLinear}},
        {"INVLPG of a page that is global",
         [](ShadowGuest& guest) { return guest.invlpg(ShadowGuest::kGlobal); },
         {ShadowGuest::kGlobal}},
        {"INVLPG of a page that is splintered",
         [](ShadowGuest& guest) { return guest.invlpg(ShadowGuest::kLarge + 0x9000); }, all},
    };
    for (const Event& event : events) {
        for (const std::uint64_t page : all) {
            for (const unsigned vcpu : {0u, 1u}) {
                INFO(event.name << fmt::format(", {:#x}, vCPU {}", page, vcpu));
                ShadowGuest guest{"write-protect"};
                REQUIRE(event.happen(guest));
                const bool dropped = vcpu == 0 && std::find(event.dropped.begin(), event.dropped.end(),
                                                            page) != event.dropped.end();
                CHECK(guest.cached(page, vcpu) == !dropped);
            }
        }
    }
}

TEST_CASE("stale entries under shadows: dropped shadows leave nothing behind", "[tlb]")
{
    for (const char* const policy : {"write-protect", "tlb-like"}) {
        for (const unsigned vcpu : {0u, 1u}) {
            INFO(policy << ", vCPU " << vcpu);
            ShadowGuest guest{policy};
            guest.machine.blow_shadows();
            CHECK_FALSE(guest.cached(kLinear, vcpu));
            guest.warm(vcpu);
            CHECK(guest.cached(kLinear, vcpu));
            // Memory that changes from outside takes its shadows along.
            guest.set_entry(kLinear, 1, 0x107'000 | kAll);
            CHECK(guest.read(kLinear, 8, vcpu).at() == 0x107'000);
        }
    }
}

TEST_CASE("stale entries under shadows: tlb-like is stale until each vCPU's own flush", "[tlb]")
{
    ShadowGuest guest{"tlb-like"};
    guest.change(kLinear, 0x108'000 | kAll);
    for (const unsigned vcpu : {0u, 1u}) CHECK(guest.read(kLinear, 8, vcpu).at() == 0x101'000);
    for (const unsigned vcpu : {1u, 0u}) {
        REQUIRE(guest.invlpg(kLinear, vcpu));
        CHECK(guest.read(kLinear, 8, vcpu).at() == 0x108'000);
        CHECK(guest.read(kNeighbour, 8, vcpu).at() == 0x102'000);
    }
}

TEST_CASE("stale entries under shadows: the hardware knows no PCID and no global page", "[tlb]")
{
    ShadowGuest guest{"write-protect"};
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    guest.warm(0);
    CHECK(guest.machine.hardware_context(0).pcid == 0);
    CHECK_FALSE(guest.machine.hardware_context(0).globals);
    const std::uint64_t root = guest.root().address().value();
    REQUIRE_FALSE(guest.machine.mov_cr3(0, root | 5 | cr3::kNoFlush));
    CHECK(guest.machine.hardware_context(0).pcid == 0);
    for (const std::uint64_t page : {kLinear, ShadowGuest::kGlobal}) CHECK_FALSE(guest.cached(page, 0));
}
