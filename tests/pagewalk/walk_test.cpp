// SPDX-License-Identifier: Apache-2.0
//
// The walk against the oracle in plain_walk.hpp, in two ways. (1) In the manner of kvm-unit-tests' access.c:
// for each mode and each size of page, all combinations of one-bit switches in the last two entries of the
// path with all combinations of register switches and accesses. The ordinary test draws one in sixteen,
// evenly; the slow one takes all. (2) Tables filled at random at all levels, with tables that reference
// themselves, frames outside memory, superpages everywhere.
// Compared: fault or not, error code, deciding level, CR2, address, page size, rights, entries afterwards,
// and the number of entries read. On a fault no entry changes (the manual would allow upper accessed bits;
// mmusim sets none). In all of them no exchange ever changes any bit but A, and D in the leaf on a write.
#include <mmusim/pagewalk/walk.hpp>

#include <algorithm>
#include <map>
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

constexpr bool flag(std::uint64_t word, int n)
{
    return (word >> n & 1u) != 0;
}

/// One CPU setting, in the oracle's terms and in the library's.
struct Setting {
    explicit Setting(const plain::Cpu& c)
        : cpu{c}, format{c}, rules{test::with_mode(c.paging, [&]<PagingMode Mode>() {
            return walk_rules(Mode, plain::registers_of(c), plain::cpuid_of(c));
        })}
    {
    }
    plain::Cpu cpu;
    plain::Format format;
    WalkRules rules;
};

struct Request {
    std::uint64_t la;
    AccessKind kind;
    Who who;
};

/// Walks in both ways and compares. Leaves memory as the library's walk left it.
template <PagingMode Mode>
class Comparison {
public:
    explicit Comparison(FakeTables& tables) : tables_{tables} {}

    WalkRoot<space::Machine> root;
    unsigned long faults = 0;
    unsigned long successes = 0;
    unsigned long entries_used_twice = 0;       ///< walks in which a table named itself
    std::map<int, unsigned long> page_sizes{};  ///< log2 of bytes: successful walks

    /// Empty if both agree.
    std::string difference(const Setting& setting, const Request& request)
    {
        plain::walk(expected_, setting.cpu, setting.format, root.frame.address().value(), root.pdptes,
                    request.la, request.kind, request.who,
                    [&](std::uint64_t at, std::uint64_t size) { return tables_.peek(at, size); });
        tables_.forget();
        const auto got = walk<Mode>(tables_, root, setting.rules,
                                    plain::access_of(request.la, request.kind, request.who), AdBits::set);
        ++(expected_.fault ? faults : successes);
        if (!expected_.fault) ++page_sizes[expected_.page_bits];
        if (expected_.entry_used_twice) ++entries_used_twice;

        const char* what = nullptr;
        if (got.ok() == expected_.fault) {
            what = "fault or not";
        } else if (expected_.fault) {
            const PageFault& fault = got.error();
            // The PK bit of a user access to a supervisor page is not settled.
            const std::uint32_t open = request.who == Who::user && !expected_.page.user ? 32u : 0u;
            if ((fault.error_code | open) != (expected_.code | open)) what = "error code";
            if (fault.level != expected_.level) what = "level";
            if (fault.address.value() != request.la) what = "CR2";
            const FaultCause cause = (expected_.code & 8) != 0   ? FaultCause::reserved_bit
                                     : (expected_.code & 1) != 0 ? FaultCause::rights
                                                                 : FaultCause::not_present;
            if (fault.cause != cause) what = "cause";
        } else {
            if (got->address.value() != expected_.address) what = "address";
            if (got->page_shift != static_cast<unsigned>(expected_.page_bits)) what = "page size";
            if (got->dirty != expected_.dirty) what = "dirty";
            const Rights rights{expected_.page.user, expected_.page.writable, expected_.page.xd,
                                static_cast<std::uint8_t>(expected_.page.key)};
            if (!(got->rights == rights)) what = "rights";
        }
        if (!expected_.entry_used_twice &&
            tables_.loads().size() != static_cast<std::size_t>(expected_.loads))
            what = "number of loads";
        if (const char* entries = entries_differ(request.kind)) what = entries;
        if (what == nullptr) return {};
        return fmt::format(
            "{}: {} la {:#x} {} who {}; expected fault {} code {:#x} level {} address {:#x} bits {}; got {}",
            what, name_of(Mode.paging), request.la, name_of(request.kind), static_cast<int>(request.who),
            expected_.fault, expected_.code, expected_.level, expected_.address, expected_.page_bits,
            got.ok() ? fmt::format("{} bits {}", got->address, got->page_shift)
                     : fmt::format("code {:#x} level {}", got.error().error_code, got.error().level));
    }

    /// Takes back what the last walk stored.
    void undo()
    {
        const auto& exchanges = tables_.exchanges();
        for (auto each = exchanges.rbegin(); each != exchanges.rend(); ++each)
            tables_.poke(each->at, Mode.entry_bytes, each->before);
    }

private:
    const char* entries_differ(AccessKind kind)
    {
        const auto& exchanges = tables_.exchanges();
        for (const FakeTables::Exchange& each : exchanges) {
            const std::uint64_t changed = each.before ^ each.after;
            if ((changed & ~each.after) != 0) return "an exchange cleared a bit";
            if ((changed & ~(bit(5) | bit(6))) != 0) return "an exchange changed more than A and D";
            if ((changed & bit(6)) != 0 && kind != AccessKind::write) return "D without a write";
            if (changed == 0) return "an exchange without effect";
        }
        for (const auto& change : expected_.changes)
            if (tables_.peek(change.at, Mode.entry_bytes) != change.entry) return "an entry afterwards";
        for (const FakeTables::Exchange& each : exchanges) {
            if (std::none_of(expected_.changes.begin(), expected_.changes.end(),
                             [&](const auto& change) { return change.at == each.at; }))
                return "an entry that must stay changed";
        }
        return nullptr;
    }

    FakeTables& tables_;
    plain::Answer expected_;
};

// ---- (1) switches

constexpr Request kAccesses[] = {
    {0, AccessKind::read, Who::user},
    {0, AccessKind::write, Who::user},
    {0, AccessKind::fetch, Who::user},
    {0, AccessKind::read, Who::supervisor},
    {0, AccessKind::write, Who::supervisor},
    {0, AccessKind::fetch, Who::supervisor},
    {0, AccessKind::read, Who::implicit_supervisor},
    {0, AccessKind::write, Who::implicit_supervisor},
};

/// The eight switches of an entry, in a byte.
std::uint64_t switches(unsigned byte, Paging paging)
{
    static constexpr int kBits[] = {0, 1, 2, 5, 6, 7};  // P RW US A D PS
    std::uint64_t bits = 0;
    for (int n = 0; n < 6; ++n)
        if (flag(byte, n)) bits |= bit(kBits[n]);
    if (paging == Paging::two_level) {
        if (flag(byte, 6)) bits |= bit(8);   // G: nothing
        if (flag(byte, 7)) bits |= bit(21);  // reserved in a 4M page; an address bit elsewhere
    } else {
        if (flag(byte, 6)) bits |= bit(63);
        if (flag(byte, 7)) bits |= bit(51);  // above MAXPHYADDR
    }
    return bits;
}

/// All switches for pages mapped at `leaf_level`; one combination in `sample`.
template <PagingMode Mode>
void try_switches(int leaf_level, unsigned sample)
{
    INFO(name_of(Mode.paging) << ", leaf at level " << leaf_level);
    FakeTables tables;
    Comparison<Mode> both{tables};
    constexpr unsigned kSize = Mode.entry_bytes;
    const std::uint64_t la = Mode.linear_bits == 32 ? 0xc0d0'5678u : 0x0000'5555'd0d0'5678u;

    // The path: the table of level n in frame n - 1, which is also fit to be a large page.
    const auto place = [&](int level) {
        const auto& steps = plain::steps_of(Mode.paging);
        const auto step =
            std::find_if(steps.begin(), steps.end(), [&](const auto& s) { return s.level == level; });
        return FakeTables::address(static_cast<std::size_t>(level - 1)) +
               (plain::field(la, step->high, step->low) >> step->low) * kSize;
    };
    const auto table = [](int level) { return FakeTables::address(static_cast<std::size_t>(level - 1)); };
    const int top = Mode == kPae ? 2 : Mode.levels;
    both.root.frame = Mfn{table(top) >> 12};
    both.root.pdptes.fill(table(2) | 1);
    for (int level = top; level > 1; --level) tables.poke(place(level), kSize, table(level - 1) | 0x27);
    const bool has_parent = leaf_level < top;
    const std::uint64_t page = leaf_level == 1   ? 0x0012'3000
                               : leaf_level == 2 ? 0x4180'0000  // fit for 2M and 4M
                                                 : 0x40'4000'0000;
    // A large page's entry without PS names a table: none there, which reads as not present.
    const std::uint64_t own = leaf_level > 1 ? bit(7) : 0;

    unsigned long tried = 0;
    std::uint64_t draw = 0;
    const unsigned registers = Mode == kTwoLevel ? 64 : 32;
    for (unsigned control = 0; control < registers; ++control) {
        plain::Cpu cpu;
        cpu.paging = Mode.paging;
        cpu.page1gb = true;
        cpu.pse36 = true;
        cpu.wp = flag(control, 0);
        cpu.nxe = flag(control, 1);
        cpu.smep = flag(control, 2);
        cpu.smap = flag(control, 3);
        cpu.ac = flag(control, 4);
        cpu.pse = Mode == kTwoLevel ? !flag(control, 5) : false;
        const Setting setting{cpu};
        for (unsigned parent = 0; parent < (has_parent ? 256u : 1u); ++parent) {
            if (has_parent) {
                tables.poke(place(leaf_level + 1), kSize, table(leaf_level) | switches(parent, Mode.paging));
            }
            for (unsigned leaf = 0; leaf < 256; ++leaf) {
                // PS: on unless switched, where it makes the leaf.
                const std::uint64_t entry = page | (switches(leaf, Mode.paging) ^ own);
                tables.poke(place(leaf_level), kSize, entry);
                for (const Request& access : kAccesses) {
                    // Evenly spread without a pattern in the switches: a multiplicative hash of the count.
                    if (sample > 1 && (++draw * 0x9e37'79b9'7f4a'7c15 >> 32) % sample != 0) continue;
                    ++tried;
                    const std::string wrong = both.difference(setting, {la, access.kind, access.who});
                    if (!wrong.empty()) {
                        INFO(fmt::format("parent {:#x} leaf {:#x} control {:#x}",
                                         switches(parent, Mode.paging), entry, control));
                        FAIL(wrong);
                    }
                    both.undo();
                }
            }
        }
    }
    CHECK(tried >= 256u * registers * 8u * (has_parent ? 256u : 1u) / sample * 9 / 10);
    CHECK(both.successes > tried / 300);
    CHECK(both.faults > tried / 300);
}

void try_all_switches(unsigned sample)
{
    for (const int leaf : {1, 2}) {
        // Where a leaf has no parent there are few combinations: all of them.
        try_switches<kTwoLevel>(leaf, leaf == 2 ? 1 : sample);
        try_switches<kPae>(leaf, leaf == 2 ? 1 : sample);
    }
    for (const int leaf : {1, 2, 3}) {
        try_switches<kFourLevel>(leaf, sample);
        try_switches<kFiveLevel>(leaf, sample);
    }
}

// ---- (2) random tables

/// Entries that get somewhere more often than not.
class EntryMaker {
public:
    EntryMaker(std::mt19937_64& random, const plain::Cpu& cpu) : random_{random}, cpu_{cpu} {}

    std::uint64_t entry()
    {
        std::uint64_t word = random_() & 0xffe;  // flags, and the available bits
        const bool superpage = one_in(4);
        if (!one_in(16)) word |= bit(0);
        if (!one_in(4)) word |= bit(1) | bit(2);
        word = superpage ? word | bit(7) : word & ~bit(7);
        if (!one_in(16)) word &= ~bit(8);
        const bool two_level = cpu_.paging == Paging::two_level;
        const std::uint64_t below = (two_level ? bit(32) : bit(cpu_.maxphyaddr)) - 1;
        if (superpage && !one_in(4)) {
            // A page somewhere, aligned well, with PAT and (in two-level paging) PSE-36 bits as they come.
            word |= random_() & below & ~(bit(one_in(2) ? 30 : 22) - 1);
            if (one_in(2)) word |= bit(12);
            if (two_level && one_in(2)) word |= random_() & 0x001f'e000;
            if (one_in(16)) word |= bit(13 + static_cast<int>(random_() % 17));
        } else if (!one_in(16)) {
            const std::size_t reachable = two_level || cpu_.maxphyaddr == 32 ? 3 : FakeTables::kFrames;
            word |= FakeTables::address(random_() % reachable);
        } else {
            word |= random_() & below & ~std::uint64_t{0xfff};  // not in memory
        }
        if (two_level) return word & 0xffff'ffff;
        if (one_in(8)) word |= bit(63);
        if (cpu_.paging != Paging::pae) word |= (random_() & 0x7ff) << 52;  // ignored, and the key
        if (one_in(32)) word |= bit(static_cast<int>(32 + random_() % 32));
        return word;
    }

private:
    bool one_in(std::uint64_t n) { return random_() % n == 0; }

    std::mt19937_64& random_;
    const plain::Cpu& cpu_;
};

template <PagingMode Mode>
void try_random_tables(std::uint64_t seed, int rounds, int walks)
{
    INFO(name_of(Mode.paging) << ", seed " << seed);
    std::mt19937_64 random{seed};
    FakeTables tables;
    Comparison<Mode> both{tables};
    for (int round = 0; round < rounds; ++round) {
        plain::Cpu shape;
        shape.paging = Mode.paging;
        static constexpr int kWidths[] = {32, 36, 39, 40, 46, 51, 52};
        shape.maxphyaddr = kWidths[random() % 7];
        shape.amd = random() % 2 == 0;
        shape.page1gb = random() % 2 == 0;
        shape.pse36 = random() % 2 == 0;
        EntryMaker make{random, shape};
        for (std::size_t frame = 0; frame < FakeTables::kFrames; ++frame)
            for (std::uint64_t at = 0; at < 4096; at += Mode.entry_bytes)
                tables.poke(FakeTables::address(frame) + at, Mode.entry_bytes, make.entry());
        both.root.frame = FakeTables::frame(random() % 3);
        for (auto& pdpte : both.root.pdptes)
            pdpte = FakeTables::address(random() % 3) | (random() % 8 != 0 ? 1u : 0u) | (random() & 0xe18);

        std::vector<Setting> settings;
        for (int n = 0; n < 8; ++n) {
            plain::Cpu cpu = shape;
            const std::uint64_t flags = random();
            cpu.nxe = !flag(flags, 0) || flag(flags, 1);
            cpu.pse = !flag(flags, 2) || flag(flags, 3);
            cpu.wp = flag(flags, 4);
            cpu.smep = flag(flags, 5);
            cpu.smap = flag(flags, 6);
            cpu.ac = flag(flags, 7);
            cpu.pke = flag(flags, 8);
            cpu.pks = flag(flags, 9);
            cpu.pkru = static_cast<std::uint32_t>(random() & random());
            cpu.pkrs = static_cast<std::uint32_t>(random() & random());
            settings.emplace_back(cpu);
        }
        for (int n = 0; n < walks; ++n) {
            std::uint64_t la = random();
            if (random() % 4 == 0) {  // the same index at all levels: reaches tables that name themselves
                la = 0;
                const std::uint64_t index = random() % Mode.entries();
                for (const plain::Step& step : plain::steps_of(Mode.paging)) la |= index << step.low;
            }
            if (Mode.linear_bits == 32) {
                la &= 0xffff'ffff;
            } else if (plain::has_bit(la, static_cast<int>(Mode.linear_bits) - 1)) {
                la |= ~(bit(static_cast<int>(Mode.linear_bits)) - 1);
            } else {
                la &= bit(static_cast<int>(Mode.linear_bits)) - 1;
            }
            const Request access = kAccesses[random() % 8];
            const Setting& setting = settings[random() % settings.size()];
            const std::string wrong = both.difference(setting, {la, access.kind, access.who});
            if (!wrong.empty()) {
                INFO("round " << round << ", walk " << n);
                FAIL(wrong);
            }
        }
    }
    // The draw reached what it is meant to reach.
    CHECK(both.successes > both.faults / 50);
    CHECK(both.faults > both.successes / 50);
    CHECK(both.entries_used_twice > 100);
    CHECK(both.page_sizes.size() == (Mode == kTwoLevel || Mode == kPae ? 2 : 3));
    for (const auto& [bits, count] : both.page_sizes) CHECK(count > 100);
}

}  // namespace

TEST_CASE("walk: one-bit switches in the last two entries, a sixteenth of all", "[pagewalk]")
{
    try_all_switches(16);
}

TEST_CASE("walk: one-bit switches in the last two entries, all of them", "[pagewalk][slow]")
{
    try_all_switches(1);
}

TEST_CASE("walk: random tables", "[pagewalk]")
{
    try_random_tables<kTwoLevel>(201, 60, 3000);
    try_random_tables<kPae>(202, 60, 3000);
    try_random_tables<kFourLevel>(203, 60, 3000);
    try_random_tables<kFiveLevel>(204, 60, 3000);
}
