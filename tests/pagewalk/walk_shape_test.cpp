// SPDX-License-Identifier: Apache-2.0
//
// What a walk costs and where it looks: the number of entries it reads in each mode (two in two-level paging
// and in PAE, whose PDPTEs are registers; four; five; one less for each level that a large page cuts off; on
// a fault those read so far), which ones, and that it writes nothing when asked to leave accessed and dirty
// bits alone. Then the corners: tables that reference themselves, a root outside memory, 40-bit addresses
// by PSE-36, 1 GiB pages, five levels.
#include <mmusim/pagewalk/walk.hpp>

#include <algorithm>
#include <vector>

#include <mmusim/pagewalk/machine_tables.hpp>
#include <mmusim/words/memory.hpp>

#include "pagewalk/fake_tables.hpp"
#include "pagewalk/plain_walk.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using plain::bit;
using plain::Who;
using test::FakeTables;

namespace {

constexpr std::uint64_t kLa32 = 0xc0d0'5678;
constexpr std::uint64_t kLa48 = 0x0000'5555'd0d0'5678;
constexpr std::uint64_t kLa57 = 0x00aa'5555'd0d0'5678;

constexpr std::uint64_t linear(PagingMode mode)
{
    return mode.linear_bits == 32 ? kLa32 : mode.linear_bits == 48 ? kLa48 : kLa57;
}

/// Tables for one address: level n's table in frame n - 1, every right given, A and D clear.
template <PagingMode Mode>
struct OnePath {
    static constexpr int kTop = Mode == kPae ? 2 : Mode.levels;
    static constexpr std::uint64_t kSize = Mode.entry_bytes;

    explicit OnePath(int leaf_level)
    {
        cpu.paging = Mode.paging;
        cpu.pse = cpu.pse36 = cpu.page1gb = true;
        root.frame = FakeTables::frame(kTop - 1);
        for (const auto& step : plain::steps_of(Mode.paging)) {
            if (step.level > kTop || step.level < leaf_level) continue;
            const std::uint64_t slot = plain::field(linear(Mode), step.high, step.low) >> step.low;
            at[static_cast<std::size_t>(step.level)] =
                FakeTables::address(static_cast<std::size_t>(step.level - 1)) + slot * kSize;
            if (step.level > leaf_level) {
                put(step.level, FakeTables::address(static_cast<std::size_t>(step.level - 2)) | 7);
            } else {
                put(step.level, (leaf_level == 1 ? 0x12'3007 : 0x4000'0087));
            }
        }
        // PAE: the registers name the page directory; memory at a PDPT does not exist for the walk.
        if (Mode == kPae) root.pdptes[plain::field(kLa32, 31, 30) >> 30] = FakeTables::address(1) | 1;
    }

    void put(int level, std::uint64_t entry)
    {
        tables.poke(at[static_cast<std::size_t>(level)], kSize, entry);
    }

    auto run(AccessKind kind, AdBits ad_bits = AdBits::set, Who who = Who::user)
    {
        tables.forget();
        const auto rules = walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu));
        return walk<Mode>(tables, root, rules, plain::access_of(linear(Mode), kind, who), ad_bits);
    }

    FakeTables tables;
    plain::Cpu cpu;
    WalkRoot<space::Machine> root;
    std::array<std::uint64_t, 6> at{};
};

template <PagingMode Mode>
void check_loads(int leaf_level, std::size_t expected)
{
    INFO(name_of(Mode.paging) << ", leaf at level " << leaf_level);
    for (const auto ad_bits : {AdBits::set, AdBits::leave}) {
        OnePath<Mode> path{leaf_level};
        REQUIRE(path.run(AccessKind::write, ad_bits).ok());
        CHECK(path.tables.loads().size() == expected);
        // From the root down, each entry once.
        for (std::size_t n = 0; n < expected; ++n) {
            const auto level = static_cast<std::size_t>(OnePath<Mode>::kTop) - n;
            CHECK(path.tables.loads()[n] == path.at[level]);
        }
    }
    // A fault at each level: what was read so far, with the entry that stopped it.
    for (int level = OnePath<Mode>::kTop; level >= leaf_level; --level) {
        INFO("fault at level " << level);
        const auto read = static_cast<std::size_t>(OnePath<Mode>::kTop - level + 1);
        OnePath<Mode> path{leaf_level};
        path.put(level, 0);
        auto got = path.run(AccessKind::write);
        REQUIRE_FALSE(got.ok());
        CHECK(got.error().error_code == 6);
        CHECK(got.error().level == level);
        CHECK(path.tables.loads().size() == read);
        CHECK(path.tables.attempts() == 0);
        if (Mode == kTwoLevel) continue;
        path.put(level, bit(51) | 7);
        got = path.run(AccessKind::write);
        REQUIRE_FALSE(got.ok());
        CHECK(got.error().error_code == 0xf);
        CHECK(got.error().level == level);
        CHECK(path.tables.loads().size() == read);
        CHECK(path.tables.attempts() == 0);
    }
    // Rights are looked at last: all entries are read even if the first denies.
    OnePath<Mode> path{leaf_level};
    path.put(OnePath<Mode>::kTop, path.tables.peek(path.at[OnePath<Mode>::kTop], Mode.entry_bytes) & ~bit(1));
    const auto got = path.run(AccessKind::write);
    REQUIRE_FALSE(got.ok());
    CHECK(got.error().error_code == 7);
    CHECK(path.tables.loads().size() == expected);
    CHECK(path.tables.attempts() == 0);
}

template <PagingMode Mode>
void check_leave(int leaf_level)
{
    INFO(name_of(Mode.paging) << ", leaf at level " << leaf_level);
    OnePath<Mode> path{leaf_level};
    for (const auto kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
        const auto left = path.run(kind, AdBits::leave);
        CHECK(path.tables.attempts() == 0);
        CHECK(path.tables.exchanges().empty());
        REQUIRE(left.ok());
        CHECK_FALSE(left->dirty);  // nobody set it
        OnePath<Mode> other{leaf_level};
        const auto set = other.run(kind, AdBits::set);
        REQUIRE(set.ok());
        CHECK(set->address == left->address);
        CHECK(set->page_shift == left->page_shift);
        CHECK(set->rights == left->rights);
        CHECK(set->dirty == (kind == AccessKind::write));
    }
    path.put(leaf_level,
             path.tables.peek(path.at[static_cast<std::size_t>(leaf_level)], Mode.entry_bytes) | 0x60);
    CHECK(path.run(AccessKind::read, AdBits::leave)->dirty);
}

}  // namespace

TEST_CASE("walk: how many entries it reads, and which", "[pagewalk]")
{
    check_loads<kTwoLevel>(1, 2);
    check_loads<kTwoLevel>(2, 1);
    check_loads<kPae>(1, 2);
    check_loads<kPae>(2, 1);
    check_loads<kFourLevel>(1, 4);
    check_loads<kFourLevel>(2, 3);
    check_loads<kFourLevel>(3, 2);
    check_loads<kFiveLevel>(1, 5);
    check_loads<kFiveLevel>(2, 4);
    check_loads<kFiveLevel>(3, 3);
}

TEST_CASE("walk: asked to leave accessed and dirty bits, it writes nothing", "[pagewalk]")
{
    check_leave<kTwoLevel>(1);
    check_leave<kTwoLevel>(2);
    check_leave<kPae>(1);
    check_leave<kPae>(2);
    for (const int leaf : {1, 2, 3}) {
        check_leave<kFourLevel>(leaf);
        check_leave<kFiveLevel>(leaf);
    }
}

TEST_CASE("walk: with all bits set already there is no exchange", "[pagewalk]")
{
    OnePath<kFourLevel> path{1};
    REQUIRE(path.run(AccessKind::write).ok());
    CHECK(path.tables.exchanges().size() == 4);
    REQUIRE(path.run(AccessKind::write).ok());
    CHECK(path.tables.attempts() == 0);
    REQUIRE(path.run(AccessKind::read).ok());
    CHECK(path.tables.attempts() == 0);
    // A clean leaf: a read leaves D, a write sets it and nothing else.
    path.put(1, 0x12'3027);
    REQUIRE(path.run(AccessKind::read).ok());
    CHECK(path.tables.attempts() == 0);
    REQUIRE(path.run(AccessKind::write).ok());
    REQUIRE(path.tables.exchanges().size() == 1);
    CHECK(path.tables.exchanges()[0].after == 0x12'3067);
}

TEST_CASE("walk: PAE's PDPTEs are registers", "[pagewalk]")
{
    OnePath<kPae> path{1};
    // A PDPT in memory that says otherwise, where CR3 would point: nobody looks.
    const std::uint64_t pdpt = FakeTables::address(5);
    for (std::uint64_t n = 0; n < 4; ++n) path.tables.poke(pdpt + 8 * n, 8, FakeTables::address(6) | 1);
    path.root.frame = Mfn{pdpt >> 12};
    for (const auto kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
        const auto got = path.run(kind);
        REQUIRE(got.ok());
        CHECK(got->address.value() == 0x12'3678);
        for (const std::uint64_t at : path.tables.loads()) CHECK(at / 4096 != pdpt / 4096);
        for (const auto& exchange : path.tables.exchanges()) CHECK(exchange.at / 4096 != pdpt / 4096);
    }
    // They carry no rights and no accessed bit: P alone gives user writes. PWT, PCD and software's bits are
    // ignored.
    path.root.pdptes[3] |= 0xe18;
    CHECK(path.run(AccessKind::write).ok());
    CHECK(path.root.pdptes[3] == (FakeTables::address(1) | 0xe19));
    // Not present: the walk ends before any load, as level 3.
    path.root.pdptes[3] &= ~bit(0);
    const auto got = path.run(AccessKind::write);
    REQUIRE_FALSE(got.ok());
    CHECK(got.error().error_code == 6);
    CHECK(got.error().level == 3);
    CHECK(got.error().cause == FaultCause::not_present);
    CHECK(path.tables.loads().empty());
    // Each quarter of the address space has its own.
    for (std::uint64_t quarter = 0; quarter < 4; ++quarter) {
        path.root.pdptes.fill(0);
        path.root.pdptes[quarter] = FakeTables::address(1) | 1;
        CHECK(path.run(AccessKind::read).ok() == (quarter == kLa32 >> 30));
    }
}

TEST_CASE("walk: a PDPTE's address has 52 bits", "[pagewalk]")
{
    SparseMemory memory;
    MachineTables tables{memory};
    const std::uint64_t directory = 0xf'ffff'ffff'f000;
    memory.store<std::uint64_t>(directory >> 12, 0, 0x0020'0087);
    plain::Cpu cpu{.paging = Paging::pae, .maxphyaddr = 52};
    const WalkRoot<space::Machine> root{{}, {directory | 1, 0, 0, 0}};
    const auto got =
        walk<kPae>(tables, root, walk_rules(kPae, plain::registers_of(cpu), plain::cpuid_of(cpu)),
                   plain::access_of(0x1234, AccessKind::read, Who::supervisor), AdBits::set);
    REQUIRE(got.ok());
    CHECK(got->address.value() == 0x20'1234);
    CHECK(tables.loads() == 1);
    tables.reset_loads();
    CHECK(tables.loads() == 0);
}

TEST_CASE("walk: PS in a 4-byte directory entry is ignored with CR4.PSE clear", "[pagewalk]")
{
    OnePath<kTwoLevel> path{1};
    path.cpu.pse = false;
    path.put(2, FakeTables::address(0) | 0x87);
    const auto got = path.run(AccessKind::write);
    REQUIRE(got.ok());
    CHECK(got->address.value() == 0x12'3678);
    CHECK(got->page_shift == 12);
    CHECK(path.tables.peek(path.at[2], 4) == (FakeTables::address(0) | 0xa7));  // A, and no D
    CHECK(path.tables.peek(path.at[1], 4) == 0x12'3067);
}

TEST_CASE("walk: 40-bit addresses by PSE-36", "[pagewalk]")
{
    OnePath<kTwoLevel> path{2};
    // Address bits 39:32 in entry bits 20:13, bit 12 is PAT.
    path.put(2, 0x8000'0087u | 0xa5u << 13 | bit(12));
    auto got = path.run(AccessKind::write);
    REQUIRE(got.ok());
    CHECK(got->address.value() == 0xa5'8010'5678);  // offset: la 21:0
    CHECK(got->page_shift == 22);
    // MAXPHYADDR 36: bits 39:36 are reserved.
    path.cpu.maxphyaddr = 36;
    path.put(2, 0x8000'0087u | 0x05u << 13);
    got = path.run(AccessKind::write);
    REQUIRE(got.ok());
    CHECK(got->address.value() == 0x5'8010'5678);
    path.put(2, 0x8000'0087u | 0x10u << 13);
    CHECK(path.run(AccessKind::write).error().error_code == 0xf);
    // Wider machines get no more than 40 bits: bit 21 stays reserved.
    path.cpu.maxphyaddr = 52;
    path.put(2, 0x8000'0087u | bit(21));
    CHECK(path.run(AccessKind::write).error().error_code == 0xf);
    // Without PSE-36 there are 32.
    path.cpu.pse36 = false;
    path.put(2, 0x8000'0087u | bit(13));
    CHECK(path.run(AccessKind::write).error().error_code == 0xf);
}

TEST_CASE("walk: 1 GiB pages", "[pagewalk]")
{
    OnePath<kFourLevel> path{3};
    path.cpu.maxphyaddr = 52;
    path.put(3, 0x000f'ffff'c000'1087);  // PAT set
    auto got = path.run(AccessKind::write);
    REQUIRE(got.ok());
    CHECK(got->address.value() == (0x000f'ffff'c000'0000 | (kLa48 & 0x3fff'ffff)));
    CHECK(got->page_shift == 30);
    CHECK(path.tables.peek(path.at[3], 8) == 0x000f'ffff'c000'10e7);
    CHECK(path.tables.peek(path.at[4], 8) == (FakeTables::address(2) | 0x27));
    path.cpu.page1gb = false;
    CHECK(path.run(AccessKind::write).error().error_code == 0xf);
    CHECK(path.run(AccessKind::write).error().level == 3);
    path.cpu.page1gb = true;
    path.put(3, 0x000f'ffff'e000'0087);  // bit 29
    CHECK(path.run(AccessKind::write).error().error_code == 0xf);
}

TEST_CASE("walk: five levels", "[pagewalk]")
{
    OnePath<kFiveLevel> path{1};
    auto got = path.run(AccessKind::write);
    REQUIRE(got.ok());
    CHECK(got->address.value() == 0x12'3678);
    for (const std::size_t level : {5u, 4u, 3u, 2u})
        CHECK((path.tables.peek(path.at[level], 8) & 0x60) == 0x20);
    CHECK((path.tables.peek(path.at[1], 8) & 0x60) == 0x60);
    // Address bits 56:48 are the top index: another one is another entry, not there.
    const auto rules = walk_rules(kFiveLevel, plain::registers_of(path.cpu), plain::cpuid_of(path.cpu));
    const auto other =
        walk<kFiveLevel>(path.tables, path.root, rules,
                         plain::access_of(kLa57 ^ bit(56), AccessKind::read, Who::user), AdBits::set);
    REQUIRE_FALSE(other.ok());
    CHECK(other.error().level == 5);
    CHECK(other.error().error_code == 4);
    CHECK(other.error().address.value() == (kLa57 ^ bit(56)));
    path.put(5, FakeTables::address(3) | 0x87);  // PS: reserved
    CHECK(path.run(AccessKind::read).error().error_code == 0xd);
    path.put(5, FakeTables::address(3) | 5);  // read-only from the very top
    CHECK(path.run(AccessKind::write).error().error_code == 7);
    CHECK(path.run(AccessKind::read).ok());
}

TEST_CASE("walk: a table that references itself", "[pagewalk]")
{
    for (const Paging paging : test::kModes) {
        test::with_mode(paging, [&]<PagingMode Mode>() {
            INFO(name_of(paging));
            FakeTables tables;
            // Every entry of one frame names that frame.
            const std::uint64_t own = FakeTables::address(0);
            for (std::uint64_t at = 0; at < 4096; at += Mode.entry_bytes)
                tables.poke(own + at, Mode.entry_bytes, own | 7);
            WalkRoot<space::Machine> root;
            root.frame = FakeTables::frame(0);
            root.pdptes.fill(own | 1);
            plain::Cpu cpu{.paging = paging};
            const auto rules = walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu));
            // The recursive slot: one entry serves all levels. It is the leaf too, so a write makes it dirty.
            const auto got = walk<Mode>(tables, root, rules,
                                        plain::access_of(0, AccessKind::write, Who::user), AdBits::set);
            REQUIRE(got.ok());
            CHECK(got->address.value() == own);
            CHECK(got->dirty);
            CHECK(tables.peek(own, Mode.entry_bytes) == (own | 0x67));
            // An address whose indexes differ.
            const auto la = plain::field(linear(Mode), static_cast<int>(Mode.linear_bits) - 1, 0);
            const auto far = walk<Mode>(tables, root, rules,
                                        plain::access_of(la, AccessKind::write, Who::user), AdBits::set);
            REQUIRE(far.ok());
            CHECK(far->address.value() == (own | (la & 0xfff)));
        });
    }
}

TEST_CASE("walk: a root outside memory is not present", "[pagewalk]")
{
    for (const Paging paging : test::kModes) {
        test::with_mode(paging, [&]<PagingMode Mode>() {
            INFO(name_of(paging));
            FakeTables tables;
            WalkRoot<space::Machine> root;
            root.frame = Mfn{0x7'7777};
            root.pdptes.fill(0x7777'7000 | 1);
            plain::Cpu cpu{.paging = paging};
            const auto got =
                walk<Mode>(tables, root, walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu)),
                           plain::access_of(0x1000, AccessKind::write, Who::supervisor), AdBits::set);
            REQUIRE_FALSE(got.ok());
            CHECK(got.error().error_code == 2);
            CHECK(got.error().cause == FaultCause::not_present);
            CHECK(got.error().level == (Mode == kPae ? 2 : Mode.levels));
            CHECK(tables.loads().size() == 1);
            CHECK(tables.attempts() == 0);
        });
    }
}

TEST_CASE("walk: the path that it leaves behind", "[pagewalk]")
{
    OnePath<kFourLevel> path{1};
    const auto rules = walk_rules(kFourLevel, plain::registers_of(path.cpu), plain::cpuid_of(path.cpu));
    const Access access = plain::access_of(kLa48, AccessKind::read, Who::user);
    WalkPath<space::Machine> trail;
    REQUIRE(walk<kFourLevel>(path.tables, path.root, rules, access, AdBits::leave, trail).ok());
    CHECK(trail.lowest == 1);
    for (const std::size_t level : {4u, 3u, 2u, 1u}) {
        CHECK(trail.tables[level].address(trail.offsets[level]).value() == path.at[level]);
        CHECK(trail.entries[level] == path.tables.peek(path.at[level], 8));
    }
    path.put(2, 0);
    WalkPath<space::Machine> shorter;
    REQUIRE_FALSE(walk<kFourLevel>(path.tables, path.root, rules, access, AdBits::leave, shorter).ok());
    CHECK(shorter.lowest == 2);
    CHECK(shorter.entries[2] == 0);

    OnePath<kPae> pae{1};
    WalkPath<space::Machine> registers;
    REQUIRE(walk<kPae>(pae.tables, pae.root,
                       walk_rules(kPae, plain::registers_of(pae.cpu), plain::cpuid_of(pae.cpu)),
                       plain::access_of(kLa32, AccessKind::read, Who::user), AdBits::leave, registers)
                .ok());
    CHECK(registers.entries[3] == (FakeTables::address(1) | 1));
    CHECK(registers.lowest == 1);
}

TEST_CASE("walk: machine memory as tables", "[pagewalk]")
{
    SparseMemory memory;
    MachineTables tables{memory};
    memory.store<std::uint64_t>(5, 16, 0x77);
    CHECK(tables.load<std::uint64_t>(Mfn{5}, 16) == 0x77);
    CHECK(tables.load<std::uint32_t>(Mfn{5}, 20) == 0);
    CHECK(tables.load<std::uint64_t>(Mfn{6}, 0) == 0);
    CHECK(tables.loads() == 3);
    CHECK_FALSE(tables.exchange<std::uint64_t>(Mfn{5}, 16, 0x76, 1));
    CHECK(memory.load<std::uint64_t>(5, 16) == 0x77);
    CHECK(tables.exchange<std::uint64_t>(Mfn{5}, 16, 0x77, 0x97));
    CHECK(memory.load<std::uint64_t>(5, 16) == 0x97);
    CHECK(tables.exchange<std::uint32_t>(Mfn{5}, 20, 0, 0x1));
    CHECK(memory.load<std::uint64_t>(5, 16) == 0x1'0000'0097);
    CHECK(tables.loads() == 3);  // an exchange is no load
    CHECK(memory.frames_in_use() == 1);
}
