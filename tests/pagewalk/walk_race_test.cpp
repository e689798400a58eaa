// SPDX-License-Identifier: Apache-2.0
//
// Accessed and dirty bits are set by a locked read-modify-write (SDM vol. 3A 4.8, 8.1.2.1), so another CPU
// may change an entry between the walk's load and its exchange. Then the walk must start again with what is
// there now: it may not write back the old entry, nor answer from it. The other CPU is a hook that runs
// before an exchange; every case runs in every mode, with the change in every entry of the path, and its
// result is that of a fresh walk (by the oracle in plain_walk.hpp) of memory after the change.
#include <mmusim/pagewalk/walk.hpp>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "pagewalk/fake_tables.hpp"
#include "pagewalk/plain_walk.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using plain::bit;
using plain::Who;
using test::FakeTables;

namespace {

/// One path through fresh tables (A and D clear everywhere), and a second chain beside it to be remapped to.
template <PagingMode Mode>
struct Path {
    static constexpr int kTop = Mode == kPae ? 2 : Mode.levels;
    static constexpr std::uint64_t kSize = Mode.entry_bytes;

    Path()
    {
        cpu.paging = Mode.paging;
        cpu.wp = true;
        rules = walk_rules(Mode, plain::registers_of(cpu), plain::cpuid_of(cpu));
        root.frame = FakeTables::frame(0);
        root.pdptes.fill(FakeTables::address(0) | 1);
        // Frames 0, 1, ... are the tables from the top; entry 0 of each is on the path.
        for (int level = kTop; level >= 1; --level) {
            const auto n = static_cast<std::size_t>(kTop - level);
            tables.poke(entry_at(level), kSize, (level > 1 ? FakeTables::address(n + 1) : kPage) | 7);
        }
        // The second chain, for whoever is sent there: a table whose entry 0 names that table, down to the
        // leaf.
        const std::size_t spare = FakeTables::kFrames - 2;
        other = Mode == kTwoLevel ? FakeTables::address(2) : FakeTables::address(spare);
        tables.poke(other, kSize, (Mode == kTwoLevel ? kOtherPage : other) | 7);
    }

    static constexpr std::uint64_t kPage = 0x0012'3000;
    static constexpr std::uint64_t kOtherPage = 0x0045'6000;

    [[nodiscard]] static std::uint64_t entry_at(int level)
    {
        return FakeTables::address(static_cast<std::size_t>(kTop - level));
    }

    [[nodiscard]] plain::Answer expected(AccessKind kind) const
    {
        plain::Answer answer;
        plain::walk(answer, cpu, plain::Format{cpu}, root.frame.address().value(), root.pdptes, 0x678, kind,
                    Who::user,
                    [this](std::uint64_t at, std::uint64_t size) { return tables.peek(at, size); });
        return answer;
    }

    auto walk_now(AccessKind kind)
    {
        return walk<Mode>(tables, root, rules, plain::access_of(0x678, kind, Who::user), AdBits::set);
    }

    FakeTables tables;
    plain::Cpu cpu;
    WalkRules rules;
    WalkRoot<space::Machine> root;
    std::uint64_t other = 0;
};

/// Runs one race: when the walk first comes to exchange the entry at `level`, `change` turns it into another.
template <PagingMode Mode>
void race(const std::string& name, int level, AccessKind kind,
          const std::function<std::uint64_t(const Path<Mode>&, std::uint64_t)>& change)
{
    INFO(name << ", " << name_of(Mode.paging) << " level " << level << ", " << name_of(kind));
    Path<Mode> path;
    constexpr auto kSize = Path<Mode>::kSize;
    bool done = false;
    std::uint64_t changed = 0;
    plain::Answer expected;
    path.tables.before_exchange = [&](std::uint64_t at) {
        if (done || at != Path<Mode>::entry_at(level)) return;
        done = true;
        changed = change(path, path.tables.peek(at, kSize));
        path.tables.poke(at, kSize, changed);
        expected = path.expected(kind);
    };
    const auto got = path.walk_now(kind);
    REQUIRE(done);
    REQUIRE(got.ok() == !expected.fault);
    if (got.ok()) {
        CHECK(got->address.value() == expected.address);
        CHECK(got->dirty == expected.dirty);
        CHECK(got->rights.writable == expected.page.writable);
        CHECK(got->rights.user == expected.page.user);
        for (const auto& entry : expected.changes) CHECK(path.tables.peek(entry.at, kSize) == entry.entry);
    } else {
        CHECK(got.error().error_code == expected.code);
        CHECK(got.error().level == expected.level);
        // The other CPU's entry is as that CPU left it.
        CHECK(path.tables.peek(Path<Mode>::entry_at(level), kSize) == changed);
    }
    for (const auto& exchange : path.tables.exchanges()) {
        const std::uint64_t set = exchange.after ^ exchange.before;
        CHECK((set & ~(bit(5) | bit(6))) == 0);
        CHECK((set & exchange.before) == 0);
        const bool leaf = exchange.at == Path<Mode>::entry_at(1) || exchange.at == path.other;
        if (!leaf || kind != AccessKind::write) CHECK((set & bit(6)) == 0);
    }
}

template <PagingMode Mode>
void races()
{
    using P = Path<Mode>;
    for (int level = P::kTop; level >= 1; --level) {
        for (const auto kind : {AccessKind::read, AccessKind::write}) {
            race<Mode>("made not present", level, kind,
                       [](const P&, std::uint64_t entry) { return entry & ~bit(0); });
            race<Mode>("zeroed", level, kind, [](const P&, std::uint64_t) { return std::uint64_t{0}; });
            race<Mode>("made read-only", level, kind,
                       [](const P&, std::uint64_t entry) { return entry & ~bit(1); });
            race<Mode>("made the kernel's", level, kind,
                       [](const P&, std::uint64_t entry) { return entry & ~bit(2); });
            race<Mode>("accessed bit set by another", level, kind,
                       [](const P&, std::uint64_t entry) { return entry | bit(5); });
            race<Mode>("dirty bit set by another", level, kind,
                       [](const P&, std::uint64_t entry) { return entry | bit(5) | bit(6); });
            race<Mode>("a software bit set by another", level, kind,
                       [](const P&, std::uint64_t entry) { return entry | bit(9) | bit(11); });
            race<Mode>("remapped", level, kind, [level](const P& path, std::uint64_t) {
                return (level == 1 ? P::kOtherPage : path.other) | 7;
            });
            if (Mode != kTwoLevel) {
                race<Mode>("a reserved bit set by another", level, kind,
                           [](const P&, std::uint64_t entry) { return entry | bit(51); });
            }
        }
    }
}

}  // namespace

TEST_CASE("walk race: an entry that changes before its exchange", "[pagewalk]")
{
    races<kTwoLevel>();
    races<kPae>();
    races<kFourLevel>();
    races<kFiveLevel>();
}

TEST_CASE("walk race: the four cases in numbers", "[pagewalk]")
{
    // The oracle aside: a 4-level write, and the leaf changes under it.
    const auto run = [](std::uint64_t becomes) {
        Path<kFourLevel> path;
        path.tables.before_exchange = [&path, becomes](std::uint64_t at) {
            if (at == path.entry_at(1) && path.tables.peek(at, 8) == (path.kPage | 7))
                path.tables.poke(at, 8, becomes);
        };
        const auto got = path.walk_now(AccessKind::write);
        return std::pair{got.ok() ? got->address.value() : 0x1000'0000'0000 + got.error().error_code,
                         path.tables.peek(path.entry_at(1), 8)};
    };
    using Pair = std::pair<std::uint64_t, std::uint64_t>;
    CHECK(run(0x12'3006) == Pair{0x1000'0000'0006, 0x12'3006});  // not present
    CHECK(run(0x12'3005) == Pair{0x1000'0000'0007, 0x12'3005});  // read-only
    CHECK(run(0x45'6007) == Pair{0x45'6678, 0x45'6067});         // remapped
    CHECK(run(0x12'3027) == Pair{0x12'3678, 0x12'3067});         // A set
    CHECK(run(0x12'3e67) == Pair{0x12'3678, 0x12'3e67});         // A, D and software bits set
}

TEST_CASE("walk race: it goes on until it wins", "[pagewalk]")
{
    for (const int changes : {1, 2, 7, 100}) {
        Path<kFourLevel> path;
        int left = changes;
        path.tables.before_exchange = [&](std::uint64_t at) {
            if (left == 0 || at != path.entry_at(1)) return;
            --left;
            path.tables.poke(at, 8, path.tables.peek(at, 8) ^ bit(9));
        };
        const auto got = path.walk_now(AccessKind::write);
        REQUIRE(got.ok());
        CHECK(got->address.value() == 0x12'3678);
        CHECK(left == 0);
        CHECK(path.tables.peek(path.entry_at(1), 8) == ((0x12'3067u) | (changes % 2 != 0 ? bit(9) : 0)));
        // The upper entries' accessed bits are set once; each lost race costs one attempt and one walk.
        CHECK(path.tables.exchanges().size() == 4);
        CHECK(path.tables.attempts() == 4 + changes);
        CHECK(path.tables.loads().size() == 4u * (static_cast<unsigned>(changes) + 1));
    }
}

TEST_CASE("walk race: random changes by another CPU", "[pagewalk]")
{
    const std::uint64_t seed = 0xace5;
    INFO("seed " << seed);
    std::mt19937_64 random{seed};
    for (int round = 0; round < 20'000; ++round) {
        Path<kFourLevel> path;
        const auto kind = random() % 2 == 0 ? AccessKind::read : AccessKind::write;
        int left = static_cast<int>(random() % 4);
        plain::Answer expected = path.expected(kind);
        path.tables.before_exchange = [&](std::uint64_t at) {
            if (left == 0 || random() % 3 == 0) return;
            --left;
            std::uint64_t entry = path.tables.peek(at, 8);
            const int which[] = {1, 2, 5, 6, 9, 10, 0, 51};
            entry ^= bit(which[random() % (random() % 4 == 0 ? 8 : 6)]);
            path.tables.poke(at, 8, entry);
            expected = path.expected(kind);
        };
        const auto got = path.walk_now(kind);
        const bool same = expected.fault ? !got.ok() && got.error().error_code == expected.code
                                         : got.ok() && got->address.value() == expected.address &&
                                               got->dirty == expected.dirty;
        if (!same) FAIL("differs from a walk of what memory held at last, round " << round);
        if (!expected.fault) {
            for (const auto& entry : expected.changes)
                if (path.tables.peek(entry.at, 8) != entry.entry)
                    FAIL("an entry afterwards, round " << round);
        }
    }
}
