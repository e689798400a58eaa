// SPDX-License-Identifier: Apache-2.0
//
// The coherence oracle in hand-written cases: each row of the table of invalidations (SDM vol. 3A 4.10.4.1;
// reference/hardware.md section 2), what each kind of staleness is, and the ways in which a cached
// translation may be a mixture of old and new entries.
//
// The guest: root table in frame 1, below it L3 2, L2 3 and L1 4, in long mode; page n is linear address n *
// 4K.
#include <mmusim/coherence/coherence_oracle.hpp>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "coherence/oracle_guest.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::test;

namespace {

constexpr std::uint64_t kRoot = 1, kL3 = 2, kL2 = 3, kL1 = 4;
constexpr std::uint64_t kOther = 8;  // frames 8 to 11: the same tree for another root

constexpr std::uint64_t table(std::uint64_t frame)
{
    return frame << 12 | kAll;
}
constexpr std::uint64_t page(std::uint64_t number)
{
    return number << 12;
}
/// Leaf entry of a frame.
constexpr std::uint64_t leaf(std::uint64_t frame, std::uint64_t flags = kAll)
{
    return frame << 12 | flags;
}

Registers with_pcid(std::uint64_t frame, std::uint64_t pcid)
{
    Registers r = registers_for(Paging::four_level, frame);
    r.cr4 |= cr4::kPcide;
    r.cr3 |= pcid;
    return r;
}

void told(const OracleGuest& guest, std::string_view part)
{
    INFO(guest.text);
    CHECK(guest.text.find(part) != std::string::npos);
}

void build(OracleGuest& guest, std::uint64_t root)
{
    guest.entry(root, 0, table(root + 1));
    guest.entry(root + 1, 0, table(root + 2));
    guest.entry(root + 2, 0, table(root + 3));
}

/// Four levels, one vCPU, PCID 0.
struct LongGuest : OracleGuest {
    explicit LongGuest(unsigned vcpus = 1, std::size_t sweep_after = CoherenceOracle::kSweepAfter)
        : OracleGuest{vcpus, sweep_after}
    {
        build(*this, kRoot);
        for (unsigned i = 0; i < vcpus; ++i) load(registers_for(Paging::four_level, kRoot), i);
    }
    /// Maps page n and sees that a fresh walk is right.
    void map(unsigned n, std::uint64_t entry_value)
    {
        entry(kL1, n, entry_value);
        REQUIRE(ask(page(n), entry_value & pte::kFrame) == Verdict::right);
    }
};

}  // namespace

TEST_CASE("coherence: what a fresh walk gives is right", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    CHECK(guest.ask(page(5) + 0x123, page(0x25) + 0x123) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write, true) == Verdict::right);
    // Not present before: nothing was cached, so the new entry is all there is.
    guest.entry(kL1, 6, leaf(0x26));
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::right);
    CHECK(guest.ask(page(6), page(0x27)) == Verdict::violation);
    told(guest, "no walk that is remembered");
    CHECK(guest.oracle.counts().checked == 5);
    CHECK(guest.oracle.counts().stale() == 0);
    CHECK(guest.oracle.counts().violations == 1);
}

TEST_CASE("coherence: with paging off there is nothing to check", "[coherence]")
{
    LongGuest guest;
    guest.load(registers_for(Paging::off, 0));
    CHECK(guest.ask(page(5), page(0x99)) == Verdict::right);
    CHECK(guest.oracle.counts().checked == 0);
}

TEST_CASE("coherence: a change without a flush may stay unseen, with its age", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.entry(kL1, 5, leaf(0x35));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    const StalenessCounts& counts = guest.oracle.counts();
    CHECK(counts.address == 2);
    CHECK(counts.stale() == 2);
    CHECK(counts.age_sum == 1 + 3);
    CHECK(counts.oldest == 3);
}

TEST_CASE("coherence: a violation tells what changed and what should have removed it", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.entry(kL1, 5, leaf(0x35));
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write, true) == Verdict::stale);
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5) + 8, page(0x25) + 8, AccessKind::write, true) == Verdict::violation);
    CHECK(guest.text ==
          "vCPU 0, PCID 0: user-mode write of linear address 0x5008 went to guest-physical 0x25008; a fresh "
          "walk goes to 0x35008; L1 entry 0x5 of table frame 0x4 was 0x25067 and became 0x35067, changed 2 "
          "accesses ago; INVLPG, 1 access ago, should have removed what was cached");
    guest.entry(kL1, 5, 0);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "a fresh walk ends in #PF, error code 0x0 (-), CR2 0x5000 (not present at L1)");
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::stale);
    CHECK(guest.oracle.counts().violations == 2);
}

TEST_CASE("coherence: the kinds of staleness", "[coherence]")
{
    LongGuest guest;
    const auto stale_once = [&](std::uint64_t StalenessCounts::*kind, std::uint64_t now, AccessKind access) {
        guest.map(5, leaf(0x25));
        guest.invlpg(page(5));
        guest.entry(kL1, 5, now);
        const std::uint64_t before = guest.oracle.counts().*kind;
        CHECK(guest.ask(page(5), page(0x25), access, true) == Verdict::stale);
        CHECK(guest.oracle.counts().*kind == before + 1);
        guest.invlpg(page(5));
        CHECK(guest.ask(page(5), page(0x25), access, true) == Verdict::violation);
    };
    stale_once(&StalenessCounts::not_present, 0, AccessKind::read);
    stale_once(&StalenessCounts::not_present, leaf(0x25) | std::uint64_t{1} << 45, AccessKind::read);
    stale_once(&StalenessCounts::rights, leaf(0x25, P | W | A | D), AccessKind::read);
    stale_once(&StalenessCounts::rights, leaf(0x25, P | U | A | D), AccessKind::write);
    stale_once(&StalenessCounts::rights, leaf(0x25) | NX, AccessKind::fetch);
    stale_once(&StalenessCounts::address, leaf(0x26), AccessKind::read);
    stale_once(&StalenessCounts::accessed, leaf(0x25, P | W | U | D), AccessKind::read);
    stale_once(&StalenessCounts::dirty, leaf(0x25, P | W | U | A), AccessKind::write);
    CHECK(guest.oracle.counts().stale() == 8);
}

TEST_CASE("coherence: rights are judged at use, with the registers as they are", "[coherence]")
{
    LongGuest guest;
    Registers r = registers_for(Paging::four_level, kRoot);
    guest.map(5, leaf(0x25, P | U | A | D));
    guest.entry(kL1, 5, leaf(0x35, P | U | A | D));
    // CR0.WP = 1: no translation, old or new, permits the write.
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write) == Verdict::violation);
    r.cr0 &= ~cr0::kWp;
    guest.load(r);
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x35), AccessKind::write) == Verdict::right);
    r.cr4 |= cr4::kSmap;
    guest.load(r);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::violation);
    r.ac = true;
    guest.load(r);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::right);
    r.cr4 |= cr4::kPke;
    r.pkru = 1u << 6;  // key 3
    guest.load(r);
    guest.entry(kL1, 5, leaf(0x35, P | U | A | D) | std::uint64_t{3} << 59);
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::stale);
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::violation);
}

// --- the table of invalidations ------------------------------------------------------------------------

TEST_CASE("coherence: what each invalidation covers", "[coherence]")
{
    // Cached before: pages 5, 6 and (global) 7 under PCID 1, page 5 under PCID 2 (root 8). Then all change.
    struct Row {
        const char* name;
        std::function<void(CoherenceOracle&)> invalidate;
        bool page5, page6, global, other_pcid;  // gone
    };
    const LinearAddress five{page(5)};
    const LinearAddress seven{page(7)};
    const std::vector<Row> rows{
        {"nothing", [](CoherenceOracle&) {}, false, false, false, false},
        {"INVLPG of 5", [&](CoherenceOracle& o) { o.invalidated_page(0, 1, five, true, "x"); },  //
         true, false, false, false},
        {"INVLPG of 7", [&](CoherenceOracle& o) { o.invalidated_page(0, 1, seven, true, "x"); },  //
         false, false, true, false},
        {"INVPCID 0 of 1, 5", [&](CoherenceOracle& o) { o.invalidated_page(0, 1, five, false, "x"); },  //
         true, false, false, false},
        {"INVPCID 0 of 1, 7", [&](CoherenceOracle& o) { o.invalidated_page(0, 1, seven, false, "x"); },  //
         false, false, false, false},
        {"INVPCID 0 of 2, 5", [&](CoherenceOracle& o) { o.invalidated_page(0, 2, five, false, "x"); },  //
         false, false, false, true},
        {"INVPCID 1 of 1", [](CoherenceOracle& o) { o.invalidated_pcid(0, 1, "x"); },  //
         true, true, false, false},
        {"INVPCID 1 of 2", [](CoherenceOracle& o) { o.invalidated_pcid(0, 2, "x"); },  //
         false, false, false, true},
        {"INVPCID 2", [](CoherenceOracle& o) { o.invalidated_all(0, true, "x"); },  //
         true, true, true, true},
        {"INVPCID 3", [](CoherenceOracle& o) { o.invalidated_all(0, false, "x"); },  //
         true, true, false, true},
    };
    for (const Row& row : rows) {
        INFO(row.name);
        OracleGuest guest;
        build(guest, kRoot);
        build(guest, kOther);
        guest.entry(kL1, 5, leaf(0x25));
        guest.entry(kL1, 6, leaf(0x26));
        guest.entry(kL1, 7, leaf(0x27) | G);
        guest.entry(kOther + 3, 5, leaf(0x28));
        guest.load(with_pcid(kOther, 2));
        REQUIRE(guest.ask(page(5), page(0x28)) == Verdict::right);
        guest.load(with_pcid(kRoot, 1));
        for (unsigned n = 5; n < 8; ++n) {
            REQUIRE(guest.ask(page(n), page(0x20 + n)) == Verdict::right);
            guest.entry(kL1, n, leaf(0x30 + n) | (n == 7 ? G : 0));
        }
        guest.entry(kOther + 3, 5, leaf(0x38));
        row.invalidate(guest.oracle);
        const auto expected = [](bool gone) { return gone ? Verdict::violation : Verdict::stale; };
        CHECK(guest.ask(page(5), page(0x25)) == expected(row.page5));
        CHECK(guest.ask(page(6), page(0x26)) == expected(row.page6));
        CHECK(guest.ask(page(7), page(0x27)) == expected(row.global));
        CHECK(guest.ask(page(5), page(0x28)) == Verdict::violation);  // another PCID's
        told(guest, "belongs to PCID 2");
        guest.load(with_pcid(kOther, 2));  // bit 63 set
        CHECK(guest.ask(page(5), page(0x28)) == expected(row.other_pcid));
        CHECK(guest.ask(page(7), page(0x27)) == expected(row.global));  // global, whatever the PCID
        CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
        CHECK(guest.ask(page(5), page(0x38)) == Verdict::right);
    }
}

TEST_CASE("coherence: MOV CR3 without PCIDs takes all but globals", "[coherence]")
{
    LongGuest guest;
    build(guest, kOther);
    guest.map(5, leaf(0x25));
    guest.map(6, leaf(0x26) | G);
    guest.load(registers_for(Paging::four_level, kOther));
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "it was right with root frame 0x1, until 1 access ago");
    told(guest, "MOV CR3, 1 access ago, should have removed what was cached");
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::stale);
    // CR4.PGE off: G has no meaning, and everything has gone.
    Registers r = registers_for(Paging::four_level, kOther);
    r.cr4 &= ~cr4::kPge;
    guest.load(r);
    guest.oracle.invalidated_all(0, true, "MOV CR4");
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::violation);
    told(guest, "MOV CR4");
}

TEST_CASE("coherence: without CR4.PGE a G bit protects nothing", "[coherence]")
{
    LongGuest guest;
    Registers r = registers_for(Paging::four_level, kRoot);
    r.cr4 &= ~cr4::kPge;
    guest.load(r);
    guest.oracle.invalidated_all(0, true, "MOV CR4");
    guest.map(6, leaf(0x26) | G);
    guest.entry(kL1, 6, leaf(0x36) | G);
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::stale);
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::violation);
}

TEST_CASE("coherence: vCPUs flush for themselves", "[coherence]")
{
    LongGuest guest{2};
    guest.map(5, leaf(0x25));
    REQUIRE(guest.ask(page(5), page(0x25), AccessKind::read, false, 1) == Verdict::right);
    guest.entry(kL1, 5, leaf(0x35));
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x25), AccessKind::read, false, 1) == Verdict::stale);
    guest.invlpg(page(5), 0, 1);
    CHECK(guest.ask(page(5), page(0x25), AccessKind::read, false, 1) == Verdict::violation);
    told(guest, "vCPU 1");
}

TEST_CASE("coherence: a walk after a page fault is a new one", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.entry(kL1, 5, 0);
    guest.oracle.invalidated_page(0, 0, LinearAddress{page(5)}, false, "#PF");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "#PF, 1 access ago, should have removed");
}

// --- pages of other sizes ------------------------------------------------------------------------------

TEST_CASE("coherence: an INVLPG anywhere in a superpage covers all of it", "[coherence]")
{
    LongGuest guest;
    const std::uint64_t first = 0x20'0000;
    guest.entry(kL2, 1, 0x40'0000 | kAll | PS);
    REQUIRE(guest.ask(first + 0x5123, 0x40'5123) == Verdict::right);
    SECTION("changed to another superpage")
    {
        guest.entry(kL2, 1, 0x60'0000 | kAll | PS);
        CHECK(guest.ask(first + 0x5123, 0x40'5123) == Verdict::stale);
        guest.invlpg(first + 0x20'0000);
        CHECK(guest.ask(first + 0x5123, 0x40'5123) == Verdict::stale);
        guest.invlpg(first + 0x9000);
        CHECK(guest.ask(first + 0x5123, 0x40'5123) == Verdict::violation);
        told(guest, "L2 entry 0x1 of table frame 0x3");
    }
    SECTION("split into small pages: all fragments go at once")
    {
        guest.entry(5, 9, leaf(0x45));
        guest.entry(kL2, 1, table(5));
        CHECK(guest.ask(first + 0x5123, 0x40'5123) == Verdict::stale);
        CHECK(guest.ask(first + 0x9123, 0x40'9123) == Verdict::stale);
        guest.invlpg(first + 0x9000);
        CHECK(guest.ask(first + 0x5123, 0x40'5123) == Verdict::violation);
        CHECK(guest.ask(first + 0x9123, 0x40'9123) == Verdict::violation);
        CHECK(guest.ask(first + 0x9123, page(0x45) + 0x123) == Verdict::right);
    }
}

TEST_CASE("coherence: small pages under a new superpage go one by one", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.map(6, leaf(0x26));
    guest.entry(kL2, 0, 0x40'0000 | kAll | PS);
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::stale);
    CHECK(guest.ask(page(6), 0x40'6000) == Verdict::right);
}

TEST_CASE("coherence: a 1 GiB page", "[coherence]")
{
    LongGuest guest;
    guest.entry(kL3, 1, 0x4000'0000 | kAll | PS);
    REQUIRE(guest.ask(0x4765'4321, 0x4765'4321) == Verdict::right);
    guest.entry(kL3, 1, 0x8000'0000 | kAll | PS);
    CHECK(guest.ask(0x4765'4321, 0x4765'4321) == Verdict::stale);
    guest.invlpg(0x7fff'f000);
    CHECK(guest.ask(0x4765'4321, 0x4765'4321) == Verdict::violation);
    CHECK(guest.ask(0x4765'4321, 0x8765'4321) == Verdict::right);
}

// --- mixtures -------------------------------------------------------------------------------------------

TEST_CASE("coherence: upper entries may be older than lower ones", "[coherence]")
{
    // L2 entry: table 4, later table 5. In each of them page 5's entry changes once.
    LongGuest guest;
    guest.entry(5, 5, leaf(0x27));
    guest.map(5, leaf(0x25));
    guest.entry(5, 5, leaf(0x28));    // 0x27 was never to be seen
    guest.entry(kL1, 5, leaf(0x26));  // 0x25 may be cached as a whole
    guest.entry(kL2, 0, table(5));
    guest.entry(kL1, 5, leaf(0x29));  // by way of the old L2 entry
    guest.entry(5, 5, leaf(0x2a));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x27)) == Verdict::violation);
    told(guest, "no walk that is remembered");
    CHECK(guest.ask(page(5), page(0x28)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x29)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x2a)) == Verdict::right);
    guest.invlpg(page(5));
    for (const unsigned frame : {0x25u, 0x26u, 0x28u, 0x29u}) {
        CHECK(guest.ask(page(5), page(frame)) == Verdict::violation);
    }
    CHECK(guest.ask(page(5), page(0x2a)) == Verdict::right);
}

TEST_CASE("coherence: rights of a mixture", "[coherence]")
{
    // The upper entry loses W before the lower one gains it: no translation ever had both.
    LongGuest guest;
    guest.map(5, leaf(0x25, P | U | A | D));
    SECTION("upper first")
    {
        guest.entry(kL2, 0, leaf(kL1, P | U | A));
        guest.entry(kL1, 5, leaf(0x25));
        // The old upper entry and the new lower one: cached.
        CHECK(guest.ask(page(5), page(0x25), AccessKind::write, true) == Verdict::stale);
    }
    SECTION("lower first")
    {
        guest.entry(kL2, 0, leaf(kL1, P | U | A));
        guest.invlpg(page(5));
        guest.entry(kL1, 5, leaf(0x25));
        guest.entry(kL1, 5, leaf(0x25, P | U | A | D));
        guest.entry(kL2, 0, table(kL1));
        CHECK(guest.ask(page(5), page(0x25), AccessKind::write, true) == Verdict::violation);
    }
}

TEST_CASE("coherence: a table that is no longer linked may still be read", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.entry(kL2, 0, table(6));
    guest.entry(6, 5, leaf(0x26));
    // Frame 4 is used for something else, without a flush: what looks like an entry is one.
    guest.entry(kL1, 5, leaf(0x99));
    CHECK(guest.ask(page(5), page(0x99)) == Verdict::stale);
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    guest.entry(kL1, 5, leaf(0x9a));
    CHECK(guest.ask(page(5), page(0x9a)) == Verdict::violation);
    guest.entry(kL1, 5, leaf(0x9b));
    // It becomes a table again: what it was in between is out of sight.
    guest.entry(kL2, 0, table(kL1));
    CHECK(guest.ask(page(5), page(0x9b)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x9a)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::stale);
}

TEST_CASE("coherence: a tree that is filled before it is linked", "[coherence]")
{
    LongGuest guest;
    guest.entry(0x10, 0, table(0x11));
    guest.entry(0x11, 5, leaf(0x25));
    guest.entry(0x11, 5, leaf(0x26));
    guest.entry(kL3, 1, table(0x10));
    const std::uint64_t la = 0x4000'5000;
    CHECK(guest.ask(la, page(0x25)) == Verdict::violation);
    guest.entry(0x11, 5, leaf(0x27));  // nobody has walked there yet; the CPU may have
    CHECK(guest.ask(la, page(0x26)) == Verdict::stale);
    CHECK(guest.ask(la, page(0x27)) == Verdict::right);
}

TEST_CASE("coherence: a table that names itself", "[coherence]")
{
    // Root entry 1 names the root: linear 0x8000000000 + … reads tables as pages.
    LongGuest guest;
    std::vector<std::byte> content(4096);
    const std::uint64_t self = table(kRoot), down = table(kL3);
    std::memcpy(content.data(), &down, 8);
    std::memcpy(content.data() + 8, &self, 8);
    guest.store(page(kRoot), content);
    const std::uint64_t of_root = 0x80'4020'1000;
    CHECK(guest.ask(of_root, page(kRoot)) == Verdict::right);
    CHECK(guest.ask(0x80'4020'0000, page(kL3)) == Verdict::right);
    guest.entry(kRoot, 0, table(7));
    CHECK(guest.ask(0x80'4020'0000, page(kL3)) == Verdict::stale);
    CHECK(guest.ask(0x80'4020'0000, page(7)) == Verdict::right);
}

TEST_CASE("coherence: roots of one PCID change without a flush", "[coherence]")
{
    OracleGuest guest;
    build(guest, kRoot);
    build(guest, kOther);
    guest.entry(kL1, 5, leaf(0x25));
    guest.entry(kOther + 3, 5, leaf(0x28));
    guest.load(with_pcid(kRoot, 1));
    guest.load(with_pcid(kOther, 1));  // bit 63 set
    CHECK(guest.ask(page(5), page(0x28)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    // The old root is still in use by what is cached below it, even for what is new there.
    guest.entry(kL1, 5, leaf(0x26));
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::stale);
    // … but the root itself is not read any more.
    guest.entry(0x10, 0, table(0x11));
    guest.entry(0x11, 0, table(0x12));
    guest.entry(0x12, 5, leaf(0x29));
    guest.entry(kRoot, 0, table(0x10));
    CHECK(guest.ask(page(5), page(0x29)) == Verdict::violation);
    guest.oracle.invalidated_pcid(0, 1, "MOV CR3");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
}

TEST_CASE("coherence: what a PCID's tables held while it was not current is out of sight", "[coherence]")
{
    OracleGuest guest;
    build(guest, kRoot);
    build(guest, kOther);
    guest.entry(kL1, 5, leaf(0x25));
    guest.load(with_pcid(kRoot, 1));
    guest.load(with_pcid(kOther, 2));
    guest.entry(kL1, 5, leaf(0x26));
    guest.entry(kL1, 5, leaf(0x27));
    guest.load(with_pcid(kRoot, 1));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x27)) == Verdict::right);
}

TEST_CASE("coherence: where tables are stale for all, what they held for another PCID or vCPU is permitted",
          "[coherence]")
{
    // As a shadow of a table that two roots share: filled under one, used under the other.
    OracleGuest guest{2, CoherenceOracle::kSweepAfter, true};
    build(guest, kRoot);
    build(guest, kOther);
    guest.entry(kOther + 2, 0, table(kL1));
    guest.entry(kL1, 5, leaf(0x25));
    guest.load(with_pcid(kRoot, 1));
    guest.load(with_pcid(kOther, 2));
    guest.load(with_pcid(kOther, 2), 1);
    guest.entry(kL1, 5, leaf(0x26));
    guest.entry(kL1, 5, leaf(0x27));
    guest.load(with_pcid(kRoot, 1));
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::stale);
    CHECK(guest.ask(page(5), page(0x28)) == Verdict::violation);
    // Its own flush ends it, another's does not.
    guest.oracle.invalidated_pcid(0, 2, "INVPCID");
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::stale);
    guest.oracle.invalidated_pcid(0, 1, "INVPCID");
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::violation);
    told(guest, "INVPCID, 1 access ago, should have removed what was cached");
    CHECK(guest.ask(page(5), page(0x27)) == Verdict::right);
}

// --- globals --------------------------------------------------------------------------------------------

TEST_CASE("coherence: global translations of another PCID", "[coherence]")
{
    OracleGuest guest;
    build(guest, kRoot);
    build(guest, kOther);
    guest.entry(kL1, 7, leaf(0x27) | G);
    guest.load(with_pcid(kRoot, 1));
    guest.load(with_pcid(kOther, 2));
    // Never mapped here; cached from the other address space.
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
    CHECK(guest.oracle.counts().not_present == 1);
    // No PCID's flush takes it.
    guest.oracle.invalidated_pcid(0, 1, "INVPCID");
    guest.oracle.invalidated_pcid(0, 2, "INVPCID");
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
    guest.invlpg(page(7), 2);
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
    told(guest, "INVLPG, 1 access ago, should have removed what was cached (global)");
}

TEST_CASE("coherence: INVLPG leaves the upper entries of other PCIDs", "[coherence]")
{
    // PCID 1 has cached an upper entry that is gone by now. An INVLPG under PCID 2 drops the global page, but
    // not that entry: PCID 1 may come by way of it to the same page again.
    OracleGuest guest;
    build(guest, kRoot);
    build(guest, kOther);
    guest.entry(kL1, 7, leaf(0x27) | G);
    guest.load(with_pcid(kRoot, 1));
    guest.entry(kL2, 0, 0);
    guest.load(with_pcid(kOther, 2));
    SECTION("under the other PCID")
    {
        guest.invlpg(page(7), 2);
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);  // PCID 1 was not current since
        guest.load(with_pcid(kRoot, 1));
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
    }
    SECTION("under its own")
    {
        guest.load(with_pcid(kRoot, 1));
        guest.invlpg(page(7), 1);
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
    }
}

TEST_CASE("coherence: a global translation is of one time between flushes", "[coherence]")
{
    // The upper entry of before a MOV CR3, the global leaf of after it: paging-structure caches don't live so
    // long.
    LongGuest guest;
    guest.entry(kL1, 7, leaf(0x27));
    REQUIRE(guest.ask(page(7), page(0x27)) == Verdict::right);
    guest.entry(kL2, 0, 0);
    guest.load(registers_for(Paging::four_level, kRoot));
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    guest.entry(kL1, 7, leaf(0x27) | G);
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
}

TEST_CASE("coherence: a load and its flush are one event", "[coherence]")
{
    // PCID 1 has cached an upper entry that is gone. As the MOV CR3 that comes back to PCID 1 drops it, no
    // global page is cached by way of it.
    OracleGuest guest;
    build(guest, kRoot);
    build(guest, kOther);
    guest.load(with_pcid(kRoot, 1));
    guest.load(with_pcid(kOther, 2));
    guest.entry(kL2, 0, 0);
    guest.entry(kL1, 7, leaf(0x27) | G);
    guest.load(with_pcid(kRoot, 1));
    SECTION("with the flush")
    {
        guest.oracle.invalidated_pcid(0, 1, "MOV CR3");
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
    }
    SECTION("a flush of its own, after an access")
    {
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
        guest.oracle.invalidated_pcid(0, 1, "INVPCID");
        CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
    }
}

// --- accessed and dirty ---------------------------------------------------------------------------------

TEST_CASE("coherence: accessed bits that a hit leaves clear", "[coherence]")
{
    LongGuest guest;
    guest.entry(kL1, 5, leaf(0x25, P | W | U));
    // A walk sets both, untold.
    guest.silently(page(kL1) + 40, leaf(0x25));
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write) == Verdict::right);
    guest.entry(kL1, 5, leaf(0x25, P | W | U));
    CHECK(guest.oracle.left_unset(GuestPhysical{page(kL1) + 40}) == 0);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.oracle.counts().accessed == 1);
    CHECK(guest.oracle.left_unset(GuestPhysical{page(kL1) + 40}) == A);
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write) == Verdict::stale);
    CHECK(guest.oracle.counts().dirty == 1);
    CHECK(guest.oracle.left_unset(GuestPhysical{page(kL1) + 40}) == (A | D));
    guest.silently(page(kL1) + 40, leaf(0x25, P | W | U | A));
    CHECK(guest.oracle.left_unset(GuestPhysical{page(kL1) + 40}) == D);
    // Stored to again: what counts is what was stored.
    guest.entry(kL1, 5, leaf(0x25, P | W | U | A));
    CHECK(guest.oracle.left_unset(GuestPhysical{page(kL1) + 40}) == 0);
    // After a flush the CPU must walk, and set it.
    guest.entry(kL1, 5, leaf(0x25, P | W | U));
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "a fresh walk goes there too, but sets A of the L1 entry");
    told(guest, "INVLPG, 1 access ago, should");
}

TEST_CASE("coherence: nothing is cached of entries that were never accessed", "[coherence]")
{
    LongGuest guest;
    guest.entry(kL1, 5, leaf(0x25, P | W | U));
    guest.entry(kL1, 5, leaf(0x26));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    // Clean: a write makes the CPU walk.
    guest.entry(kL1, 6, leaf(0x25, P | W | U | A));
    guest.entry(kL1, 6, leaf(0x26));
    CHECK(guest.ask(page(6), page(0x25), AccessKind::write) == Verdict::violation);
    CHECK(guest.ask(page(6), page(0x25)) == Verdict::stale);
}

TEST_CASE("coherence: setting accessed and dirty bits changes nothing", "[coherence]")
{
    LongGuest guest;
    guest.entry(kL1, 5, leaf(0x25, P | W | U));
    guest.entry(kL1, 5, leaf(0x25, P | W | U | A));
    guest.entry(kL1, 5, leaf(0x25));
    CHECK(guest.oracle.remembered() == 1);  // of 0
    CHECK(guest.ask(page(5), page(0x25), AccessKind::write) == Verdict::right);
}

// --- other modes ----------------------------------------------------------------------------------------

TEST_CASE("coherence: 2-level paging has two entries in a word", "[coherence]")
{
    OracleGuest guest;
    guest.entry(kRoot, 0, 0x2000 | kAll, 4);
    guest.entry(2, 6, leaf(0x26), 4);
    guest.entry(2, 7, leaf(0x27), 4);
    guest.load(registers_for(Paging::two_level, kRoot));
    REQUIRE(guest.ask(page(6), page(0x26)) == Verdict::right);
    REQUIRE(guest.ask(page(7), page(0x27)) == Verdict::right);
    guest.entry(2, 7, leaf(0x37), 4);
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::right);
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::stale);
    guest.entry(2, 6, leaf(0x36, P | W | U), 4);
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::stale);
    CHECK(guest.ask(page(6), page(0x36)) == Verdict::violation);
    CHECK(guest.oracle.left_unset(GuestPhysical{0x2018}) == A);
    guest.invlpg(page(7));
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
    told(guest, "L1 entry 0x7 of table frame 0x2 was 0x27067 and became 0x37067");
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::stale);
}

TEST_CASE("coherence: 4 MiB pages, and CR4.PSE", "[coherence]")
{
    OracleGuest guest;
    // A page at 4 MiB, with PSE; else a table in frame 0x400.
    guest.entry(0x400, 5, leaf(0x25), 4);
    guest.entry(kRoot, 1, 0x40'0000 | kAll | PS, 4);
    Registers r = registers_for(Paging::two_level, kRoot);
    guest.load(r);
    REQUIRE(guest.ask(0x40'5000, 0x40'5000) == Verdict::right);
    r.cr4 &= ~cr4::kPse;
    guest.load(r);
    CHECK(guest.ask(0x40'5000, page(0x25)) == Verdict::right);
    CHECK(guest.ask(0x40'5000, 0x40'5000) == Verdict::stale);
    guest.entry(0x400, 5, leaf(0x26), 4);
    CHECK(guest.ask(0x40'5000, page(0x25)) == Verdict::stale);
    guest.invlpg(0x40'6000);
    CHECK(guest.ask(0x40'5000, 0x40'5000) == Verdict::violation);
    CHECK(guest.ask(0x40'5000, page(0x25)) == Verdict::stale);
}

TEST_CASE("coherence: PAE's PDPTEs are registers", "[coherence]")
{
    OracleGuest guest;
    guest.entry(2, 0, table(3));
    guest.entry(3, 5, leaf(0x25));
    guest.entry(4, 0, table(6));
    guest.entry(6, 5, leaf(0x26));
    guest.entry(kRoot, 0, 0x2000 | P);
    const Registers r = registers_for(Paging::pae, kRoot);
    guest.pdptes({0x2000 | P, 0, 0, 0});
    guest.load(r);
    REQUIRE(guest.ask(page(5), page(0x25)) == Verdict::right);
    guest.entry(kRoot, 0, 0x4000 | P);  // memory alone
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::right);
    guest.pdptes({0x4000 | P, 0, 0, 0});
    guest.load(r);  // MOV CR4 may load them without a flush
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "it was right with other PDPTE registers");
}

TEST_CASE("coherence: EFER.NXE changes what entries are, not what is cached", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25) | NX);
    Registers r = registers_for(Paging::four_level, kRoot);
    r.efer &= ~efer::kNxe;
    guest.load(r);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.oracle.counts().not_present == 1);
    CHECK(guest.oracle.counts().age_sum == 1);
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
}

TEST_CASE("coherence: five levels", "[coherence]")
{
    OracleGuest guest;
    guest.entry(7, 0, table(kRoot));
    build(guest, kRoot);
    guest.entry(kL1, 5, leaf(0x25));
    guest.load(registers_for(Paging::five_level, 7));
    REQUIRE(guest.ask(page(5), page(0x25)) == Verdict::right);
    guest.entry(7, 0, table(kOther));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    guest.oracle.invalidated_all(0, false, "INVPCID");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "L5 entry 0x0 of table frame 0x7");
}

// --- from outside, and the books ------------------------------------------------------------------------

TEST_CASE("coherence: a whole page written from outside", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.map(6, leaf(0x26));
    std::vector<std::byte> content(4096);
    const std::uint64_t six = leaf(0x26);
    std::memcpy(content.data() + 48, &six, 8);
    guest.store(page(kL1), content);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    CHECK(guest.ask(page(6), page(0x26)) == Verdict::right);
    guest.oracle.invalidated_all(0, true, "x");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
}

TEST_CASE("coherence: stores at any alignment", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.store(page(kL1) + 41, 0x36, 1);  // frame number 0x25 -> 0x36, bits 15:8
    CHECK(guest.word(page(kL1) + 40) == 0x2'3667);
    CHECK(guest.ask(page(5), page(0x23)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    guest.store(page(kL1) + 38, 0x7fff'ffff, 6);  // over two entries
    CHECK(guest.ask(page(5), page(0x23)) == Verdict::stale);
}

TEST_CASE("coherence: reset forgets everything", "[coherence]")
{
    LongGuest guest;
    guest.map(5, leaf(0x25));
    guest.entry(kL1, 5, leaf(0x35));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::stale);
    guest.oracle.reset();
    CHECK(guest.oracle.counts() == StalenessCounts{});
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::right);  // paging is off
    guest.load(registers_for(Paging::four_level, kRoot));
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::right);
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    told(guest, "no walk that is remembered");
}

TEST_CASE("coherence: a frame that is no table any more is not watched for ever", "[coherence]")
{
    LongGuest guest{1, 100};
    const bool global = GENERATE(false, true);
    guest.map(5, leaf(0x25) | (global ? G : 0));
    // The table goes, properly.
    guest.entry(kL2, 0, table(6));
    guest.entry(6, 5, leaf(0x26));
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    for (std::uint64_t i = 0; i < 100'000; ++i) guest.store(page(kL1) + i % 512 * 8, i << 12 | kAll);
    CHECK(guest.oracle.remembered() < 1000);
    CHECK(guest.ask(page(5), page(0x25)) == (global ? Verdict::stale : Verdict::violation));
    guest.invlpg(page(5));
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x26)) == Verdict::right);
}

TEST_CASE("coherence: memory stays bounded while a guest maps and flushes", "[coherence]")
{
    LongGuest guest{1, 100};
    for (unsigned i = 0; i < 20'000; ++i) {
        const unsigned n = i % 500;
        guest.entry(kL1, n, leaf(0x100 + i % 16));
        guest.invlpg(page(n));
        if (i % 50 == 0) guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
        CHECK(guest.ask(page(n), page(0x100 + i % 16)) == Verdict::right);
    }
    CHECK(guest.oracle.remembered() < 2000);
}

TEST_CASE("coherence: what was right is looked at again after a sweep", "[coherence]")
{
    LongGuest guest{1, 100};
    build(guest, kOther);
    guest.map(5, leaf(0x25));
    guest.load(registers_for(Paging::four_level, kOther));
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    for (unsigned i = 0; i < 1000; ++i) guest.entry(kOther + 3, i % 512, leaf(i, P | W));  // never accessed
    guest.entry(kL1, 5, leaf(0x35));  // nobody watches that table now
    guest.load(registers_for(Paging::four_level, kRoot));
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    CHECK(guest.ask(page(5), page(0x25)) == Verdict::violation);
    CHECK(guest.ask(page(5), page(0x35)) == Verdict::right);
}

TEST_CASE("coherence: a sweep does not make entries older than they are", "[coherence]")
{
    // Page 7 has had no table since before its L1 entry, which another address leads to as well, became
    // global.
    LongGuest guest{1, 100};
    guest.entry(kL2, 1, table(kL1));
    guest.entry(kL2, 0, 0);
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    guest.entry(kL1, 7, leaf(0x27) | G);
    guest.oracle.invalidated_pcid(0, 0, "MOV CR3");
    for (unsigned i = 0; i < 1000; ++i) guest.entry(kL1, 100 + i % 100, leaf(i));
    CHECK(guest.ask(page(7), page(0x27)) == Verdict::violation);
    CHECK(guest.ask(0x20'0000 + page(7), page(0x27)) == Verdict::right);
}

TEST_CASE("coherence: counts add up", "[coherence]")
{
    StalenessCounts a{10, 1, 2, 3, 4, 5, 60, 7, 1};
    const StalenessCounts b{5, 1, 1, 1, 1, 1, 10, 9, 0};
    CHECK(a.stale() == 15);
    a += b;
    CHECK(a == StalenessCounts{15, 2, 3, 4, 5, 6, 70, 9, 1});
    a -= b;
    CHECK(a == StalenessCounts{10, 1, 2, 3, 4, 5, 60, 9, 1});
}
