// SPDX-License-Identifier: Apache-2.0
//
// The front end of the simulated clock (docs/timing.md, "Time" and "Cycles add up"): when an access is issued
// and retires, what gaps and instructions that are no accesses do, and whose each cycle is. First the clock
// on its own, by hand and against one that counts slot by slot; then on machines.
#include <mmusim/timing/clock.hpp>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"
#include "timing/timed_guest.hpp"
#include "tlb/small_profiles.hpp"

using namespace timed;

namespace {

constexpr Label kWork = 1, kSystem = 2, kLabels = 8;

/// An access of one stage. Returns when it was issued.
Cycles pass(Clock& clock, std::uint64_t gap, Cycles cycles, Label label = kWork)
{
    clock.pass(gap);
    const Cycles issued = clock.issue();
    Passage passage{issued};
    passage.spend(label, issued + cycles);
    clock.retire(issued, passage);
    return issued;
}

Clock window(unsigned size, unsigned width)
{
    return {ClockKind::window, size, width, kLabels};
}

Cycles sum(const std::vector<Cycles>& by)
{
    Cycles total = 0;
    for (const Cycles cycles : by) total += cycles;
    return total;
}

}  // namespace

TEST_CASE("clock: blocking", "[timing]")
{
    Clock clock{ClockKind::blocking, 0, 4, kLabels};
    CHECK(pass(clock, 0, 10) == 0);
    CHECK(pass(clock, 0, 5) == 10);
    CHECK(pass(clock, 1, 5) == 16);  // 1 / 4, rounded up
    CHECK(pass(clock, 4, 5) == 22);
    CHECK(pass(clock, 5, 0) == 29);
    CHECK(pass(clock, 0, 0) == 29);  // what takes no time takes none
    clock.pass(9);
    clock.serialize(kSystem, 7);
    CHECK(clock.now() == 29 + 3 + 7);
    CHECK(pass(clock, 0, 1) == 39);
    CHECK(clock.by() == std::vector<Cycles>{1 + 1 + 2 + 3, 26, 7, 0, 0, 0, 0, 0});
}

TEST_CASE("clock: issue slots", "[timing]")
{
    Clock clock = window(16, 3);
    for (unsigned i = 0; i < 8; ++i) CHECK(pass(clock, 0, 100) == i / 3);
    CHECK(pass(clock, 2, 100) == 3);   // slots 8 and 9, then 10
    CHECK(pass(clock, 1, 100) == 4);   // slot 11, then 12
    CHECK(pass(clock, 100, 1) == 37);  // slots 13 to 112, then 113
    CHECK(clock.now() == 104);
    CHECK(pass(clock, 1000, 1) == 371);
    CHECK(clock.now() == 372);
    CHECK(clock.by()[CycleLabels::kInstructions] == 371 - 104);
    CHECK(sum(clock.by()) == clock.now());
}

TEST_CASE("clock: not before the N-th access before it has retired", "[timing]")
{
    Clock one = window(1, 4);
    CHECK(pass(one, 0, 10) == 0);
    CHECK(pass(one, 0, 10) == 10);
    CHECK(pass(one, 100, 10) == 35);  // slots 41 to 140 are the gap's
    Clock two = window(2, 4);
    CHECK(pass(two, 0, 10) == 0);
    CHECK(pass(two, 0, 30) == 0);
    CHECK(pass(two, 0, 5) == 10);
    CHECK(pass(two, 0, 5) == 30);  // the second one's retirement
    CHECK(two.now() == 35);
    // In order: the third was ready at 15, but retired with the second.
    CHECK(pass(two, 0, 1) == 30);
}

TEST_CASE("clock: a gap is issued while accesses are in flight", "[timing]")
{
    // The window is full; the instructions of the gap are no accesses, and do not wait for it.
    Clock clock = window(1, 1);
    CHECK(pass(clock, 0, 100) == 0);
    CHECK(pass(clock, 30, 10) == 100);
    CHECK(pass(clock, 30, 10) == 131);  // slots 101 to 130, then 131: the access before took slot 100
    CHECK(clock.now() == 141);
    CHECK(clock.by()[CycleLabels::kInstructions] == 131 - 110);
}

TEST_CASE("clock: in order", "[timing]")
{
    Clock clock = window(8, 8);
    CHECK(pass(clock, 0, 50, 3) == 0);
    CHECK(pass(clock, 0, 10, 4) == 0);  // ready long before it retires
    CHECK(pass(clock, 0, 60, 5) == 0);  // its last ten cycles are its own
    CHECK(pass(clock, 0, 60, 6) == 0);  // retires with it
    CHECK(clock.now() == 60);
    CHECK(clock.by() == std::vector<Cycles>{0, 0, 0, 50, 0, 10, 0, 0});
}

TEST_CASE("clock: what is no access begins when all has retired, and all begins after it", "[timing]")
{
    Clock clock = window(8, 2);
    CHECK(pass(clock, 0, 40) == 0);
    CHECK(pass(clock, 0, 3) == 0);
    clock.serialize(kSystem, 100);
    CHECK(clock.now() == 140);
    CHECK(pass(clock, 0, 7) == 140);
    CHECK(pass(clock, 0, 7) == 140);
    CHECK(pass(clock, 0, 7) == 141);
    clock.serialize(kSystem, 10);
    clock.serialize(kSystem, 10);
    CHECK(clock.now() == 168);
    CHECK(clock.by() == std::vector<Cycles>{0, 40 + 8, 120, 0, 0, 0, 0, 0});
}

TEST_CASE("clock: a gap before what is no access, with nothing in flight", "[timing]")
{
    Clock clock = window(8, 2);
    clock.pass(7);
    clock.serialize(kSystem, 10);
    CHECK(clock.now() == 4 + 10);
    CHECK(clock.by()[CycleLabels::kInstructions] == 4);
}

TEST_CASE("clock: a gap before what is no access takes issue slots as any other", "[timing]")
{
    // "each at the end of the cycle whose slot it takes": these are over long before the access is.
    Clock clock = window(8, 2);
    CHECK(pass(clock, 0, 100) == 0);
    clock.pass(50);
    clock.serialize(kSystem, 10);
    CHECK(clock.now() == 110);
    CHECK(clock.by() == std::vector<Cycles>{0, 100, 10, 0, 0, 0, 0, 0});
    // And here some are not: slots 220 to 320, the access took the one before.
    CHECK(pass(clock, 0, 20) == 110);
    clock.pass(100);
    clock.serialize(kSystem, 5);
    CHECK(clock.now() == 161 + 5);
}

TEST_CASE("clock: gaps one after the other", "[timing]")
{
    Clock blocking{ClockKind::blocking, 0, 4, kLabels};
    blocking.pass(3);
    blocking.pass(3);
    CHECK(blocking.now() == 2);  // each rounded up by itself
    Clock clock = window(2, 4);
    clock.pass(3);
    clock.pass(3);
    CHECK(clock.now() == 0);  // counts when something after it is issued
    CHECK(pass(clock, 0, 5) == 1);
    CHECK(clock.now() == 6);
    clock.pass(1000);
    CHECK(clock.now() == 6);
}

// --- slot by slot
// -------------------------------------------------------------------------------------------

namespace {

/// The same rules, without arithmetic: a list of slots that were taken, and each cycle given away.
class PlainClock {
public:
    PlainClock(unsigned size, unsigned width) : size_{size}, width_{width} {}

    struct Stage {
        Label label;
        Cycles cycles;
    };
    Cycles access(std::uint64_t gap, const std::vector<Stage>& stages)
    {
        pass(gap);
        if (retired_.size() >= size_) {
            while (cycle_ < retired_[retired_.size() - size_]) next_cycle();
        }
        const Cycles issued = take_slot();
        Cycles at = issued;
        give(CycleLabels::kInstructions, at);
        for (const auto& [label, cycles] : stages) {
            at += cycles;
            give(label, at);
        }
        retired_.push_back(by_cycle_.size());
        return issued;
    }
    void alone(std::uint64_t gap, Label label, Cycles cycles)
    {
        pass(gap);
        give(CycleLabels::kInstructions, passed_);
        give(label, by_cycle_.size() + cycles);
        // All slots of the cycle in which it ends are free.
        cycle_ = by_cycle_.size();
        taken_ = 0;
    }
    [[nodiscard]] std::vector<Cycles> by() const
    {
        std::vector<Cycles> counts(kLabels, 0);
        for (const Label label : by_cycle_) ++counts[label];
        return counts;
    }

private:
    void pass(std::uint64_t gap)
    {
        for (std::uint64_t i = 0; i < gap; ++i) passed_ = take_slot() + 1;
    }
    void next_cycle()
    {
        ++cycle_;
        taken_ = 0;
    }
    Cycles take_slot()
    {
        if (taken_ == width_) next_cycle();
        ++taken_;
        return cycle_;
    }
    /// Cycles that nobody older has, up to `end`.
    void give(Label label, Cycles end)
    {
        while (by_cycle_.size() < end) by_cycle_.push_back(label);
    }

    std::size_t size_;
    unsigned width_;
    Cycles cycle_ = 0;
    unsigned taken_ = 0;
    Cycles passed_ = 0;  ///< when the last instruction of a gap is over
    std::vector<Cycles> retired_;
    std::vector<Label> by_cycle_;
};

}  // namespace

TEST_CASE("clock: random accesses against one that counts slots", "[timing]")
{
    constexpr unsigned kSeed = 5150;
    std::mt19937 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](unsigned end) { return static_cast<unsigned>(random() % end); };
    for (const unsigned size : {1u, 2u, 3u, 8u, 50u}) {
        for (const unsigned width : {1u, 2u, 3u, 4u, 6u, 9u}) {
            INFO("window " << size << ", width " << width);
            Clock clock = window(size, width);
            PlainClock plain{size, width};
            for (unsigned step = 0; step < 800; ++step) {
                INFO("step " << step);
                if (below(20) == 0) {
                    const unsigned gap = below(2) == 0 ? below(100) : 0;
                    const Cycles cycles = below(31);
                    clock.pass(gap);
                    clock.serialize(kSystem, cycles);
                    plain.alone(gap, kSystem, cycles);
                } else {
                    const unsigned gap = below(3) == 0 ? below(40) : 0;
                    std::vector<PlainClock::Stage> stages(below(4));
                    for (auto& [label, cycles] : stages) {
                        label = static_cast<Label>(3 + below(5));
                        cycles = below(3) == 0 ? below(60) : below(5);
                    }
                    clock.pass(gap);
                    const Cycles issued = clock.issue();
                    Passage passage{issued};
                    for (const auto& [label, cycles] : stages) passage.spend(label, passage.now() + cycles);
                    clock.retire(issued, passage);
                    REQUIRE(issued == plain.access(gap, stages));
                }
                REQUIRE(clock.by() == plain.by());
                REQUIRE(clock.now() == sum(clock.by()));
            }
        }
    }
}

TEST_CASE("clock: a window larger than all is bound by slots alone", "[timing]")
{
    Clock clock = window(1000, 5);
    for (unsigned i = 0; i < 900; ++i) CHECK(pass(clock, 0, 777) == i / 5);
    CHECK(clock.now() == 899 / 5 + 777);
}

TEST_CASE("clock: labels have names of their own", "[timing]")
{
    const CycleLabels labels{{"l1i", "l1d", "l2"}, {"l1d", "l2"}};
    std::vector<std::string> names;
    for (std::size_t label = 0; label < labels.size(); ++label) {
        names.push_back(labels.name(static_cast<Label>(label)));
    }
    auto sorted = names;
    std::sort(sorted.begin(), sorted.end());
    CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
    for (const char* const name :
         {"instructions",      "fetch",           "tlb.l1i",         "tlb.l1d",        "tlb.l2",
          "walk.wait",         "walk.start",      "walk.assist",     "walk.pml5e.l1d", "walk.pml4e.l2",
          "walk.pdpte.memory", "walk.pde.l1d",    "walk.pte.memory", "data.l1d",       "data.l2",
          "data.memory",       "guest_fault",     "system.mov_cr",   "system.mov_cr3", "system.invlpg",
          "system.invpcid",    "hypervisor.exit", "hypervisor.entry"}) {
        INFO(name);
        CHECK(std::find(names.begin(), names.end(), name) != names.end());
    }
}

// --- on a machine
// -------------------------------------------------------------------------------------------

namespace {

/// Round figures, so that cases can be followed by hand: L1 hits take 1 + 4, walks 10 a load.
std::shared_ptr<const CpuProfile> round_profile(unsigned walkers = 1, unsigned width = 1)
{
    auto profile = std::make_shared<CpuProfile>(
        small::profile({small::tlb("l1", 1, "fls", {small::fully_associative(64, small::kAllPages)})}));
    profile->name = "round";
    profile->tlbs.tlbs[0].lookup_cycles = 1;
    TimingSpec& timing = profile->timing;
    CacheSpec cache;
    cache.name = "l1d";
    cache.latency = 4;
    cache.misses_in_flight = 2;
    timing.data_caches = {cache};
    timing.memory_latency = 100;
    timing.walker.count = walkers;
    timing.walker.load_cycles = {0, 6, 6, 6, 6, 6};
    timing.walker.assist_cycles = 50;
    timing.front_end = {.issue_width = width, .fetch_cycles = 2};
    timing.instructions = {.mov_cr = 20, .mov_cr3 = 30, .invlpg = 40, .invpcid = 60, .page_fault = 500};
    return profile;
}

constexpr ClockMode kBlocking{ClockKind::blocking, 0};

TimedGuest round_guest(ClockMode clock, unsigned walkers = 1, unsigned width = 1)
{
    return {Paging::four_level, round_profile(walkers, width), clock, true};
}

Spent spent(CyclesBy by)
{
    Spent result{0, std::move(by)};
    for (const auto& [label, cycles] : result.by) result.total += cycles;
    return result;
}

}  // namespace

TEST_CASE("clock on a machine: gaps before accesses", "[timing]")
{
    TimedGuest guest = round_guest(kBlocking, 1, 4);
    const std::uint64_t address = guest.target(1);
    guest.do_access(AccessKind::read, address);
    Operand operand = Guest::operand(AccessKind::read, address, 1);
    operand.gap = 9;
    CHECK(guest.measure([&] { CHECK(guest.access(operand).ok()); }) ==
          spent({{"instructions", 3}, {"tlb.l1", 1}, {"data.l1d", 4}}));
    // As a stream, and over two pages, too.
    const StreamAccess stream{LinearAddress{address}, 9, 1, AccessKind::read, false};
    CHECK(guest.measure([&] {
        CHECK(guest.machine.run(0, {&stream, 1}) == 0);
    }) == spent({{"instructions", 3}, {"tlb.l1", 1}, {"data.l1d", 4}}));
    operand.address = LinearAddress{(address & ~std::uint64_t{0xfff}) + 0xffc};
    operand.bytes = 8;
    CHECK(guest.access(operand).ok());
    CHECK(guest.measure([&] { CHECK(guest.access(operand).ok()); }) ==
          spent({{"instructions", 3}, {"tlb.l1", 1}, {"data.l1d", 4}}));
}

TEST_CASE("clock on a machine: each operand of an instruction is issued on its own", "[timing]")
{
    TimedGuest guest = round_guest({ClockKind::window, 8}, 2, 1);
    const std::uint64_t address = guest.target(1);
    std::array<Operand, 3> operands{Guest::operand(AccessKind::fetch, address, 1),
                                    Guest::operand(AccessKind::read, address, 1),
                                    Guest::operand(AccessKind::write, address, 1)};
    operands[0].gap = 5;
    Execution execution;
    guest.machine.execute(0, operands, Restart::instruction, execution);
    // Issued at 5, 6, 7; the last has its data at 7 + 5.
    const Spent taken =
        guest.measure([&] { guest.machine.execute(0, operands, Restart::instruction, execution); });
    CHECK_FALSE(execution.fault);
    CHECK(taken == spent({{"instructions", 5}, {"tlb.l1", 1}, {"fetch", 2}, {"data.l1d", 4}}));
}

TEST_CASE("clock on a machine: gaps before instructions that are no accesses", "[timing]")
{
    TimedGuest guest = round_guest(kBlocking, 1, 4);
    const auto check = [&](const char* label, Cycles cycles, const std::function<bool()>& work) {
        INFO(label);
        const Spent with_gap = guest.measure([&] {
            guest.machine.gap(10);
            CHECK(work());
        });
        CHECK(with_gap == spent({{"instructions", 3}, {label, cycles}}));
        const Spent without = guest.measure([&] { CHECK(work()); });
        CHECK(without == spent({{label, cycles}}));
    };
    check("system.mov_cr", 20, [&] { return guest.set_cr4(cr4::kPge, true); });
    check("system.mov_cr3", 30, [&] { return guest.mov_cr3(guest.root()); });
    check("system.invlpg", 40, [&] { return guest.invlpg(0); });
    check("system.invpcid", 60, [&] { return !guest.machine.invpcid(0, 2, 0, LinearAddress{}); });
}

TEST_CASE("clock on a machine: WRMSR of IA32_PKRS is a WRMSR", "[timing]")
{
    // docs/cpu-profiles.md: instructions.mov_cr is of "MOV to CR0 and CR4, WRMSR".
    TimedGuest guest = round_guest(kBlocking, 1, 4);
    const Spent taken = guest.measure([&] {
        guest.machine.gap(10);
        CHECK_FALSE(guest.machine.wrmsr(0, kPkrsMsr, 0));
    });
    CHECK(taken == spent({{"instructions", 3}, {"system.mov_cr", 20}}));
}

TEST_CASE("clock on a machine: what takes no time holds up nothing", "[timing]")
{
    TimedGuest guest = round_guest({ClockKind::window, 8}, 1, 8);
    const std::uint64_t page = guest.target(1) & ~std::uint64_t{0xfff};
    guest.do_access(AccessKind::read, page);
    std::uint64_t line = 0;
    const auto check = [&](const char* what, const std::function<void()>& work) {
        INFO(what);
        // Two lines of memory at once: nothing between them waits for the first.
        line += 128;
        const Spent taken = guest.measure([&] {
            guest.do_access(AccessKind::read, page + line);
            work();
            guest.do_access(AccessKind::read, page + line + 64);
        });
        CHECK(taken == spent({{"tlb.l1", 1}, {"data.memory", 100}}));
    };
    Machine& machine = guest.machine;
    check("nothing", [] {});
    check("WRPKRU", [&] { CHECK_FALSE(machine.wrpkru(0, 0)); });
    check("AC", [&] { machine.set_ac(0, true); });
    check("CPL", [&] {
        machine.set_cpl(0, 3);
        machine.set_cpl(0, 0);
    });
    check("refused at CPL 3", [&] {
        machine.set_cpl(0, 3);
        CHECK(machine.mov_cr3(0, 0));
        CHECK(machine.mov_cr0(0, 0));
        CHECK(machine.wrmsr(0, kPkrsMsr, 0));
        CHECK(machine.invlpg(0, LinearAddress{page}));
        CHECK(machine.invpcid(0, 2, 0, LinearAddress{}));
        machine.set_cpl(0, 0);
    });
    check("refused for its value", [&] {
        CHECK(machine.mov_cr0(0, cr0::kPg));
        CHECK(machine.mov_cr4(0, std::uint64_t{1} << 63));
        CHECK(machine.wrmsr(0, 0x1234, 0));
        CHECK(machine.wrmsr(0, kPkrsMsr, std::uint64_t{1} << 32));
        CHECK(machine.invpcid(0, 4, 0, LinearAddress{}));
    });
    check("an address that is not canonical",
          [&] { CHECK(guest.read(0x8000'0000'0000).raised(Vector::general_protection)); });
    check("a gap", [&] { machine.gap(5); });  // issued beside the two accesses, in eight slots
    // `set` empties the TLB.
    const Spent set = guest.measure([&] { CHECK_FALSE(machine.set_registers(0, machine.registers(0))); });
    CHECK(set == spent({}));
}

TEST_CASE("clock on a machine: an access loads each line of cache 1 that it touches", "[timing]")
{
    for (const unsigned line : {16u, 32u, 64u, 128u, 256u}) {
        INFO(line << " bytes");
        auto profile = std::make_shared<CpuProfile>(*round_profile());
        CacheSpec second = profile->timing.data_caches[0];
        profile->timing.data_caches[0].line_bytes = line;
        profile->timing.data_caches[0].misses_in_flight = 1;
        second.name = "l2";
        second.latency = 30;
        second.misses_in_flight = 1;
        profile->timing.data_caches.push_back(second);
        TimedGuest guest{Paging::four_level, profile, kBlocking, true};
        const std::uint64_t page = guest.target(1) & ~std::uint64_t{0xfff};
        guest.do_access(AccessKind::fetch, page);
        // 512 bytes from the middle of a line of any size on; one miss at a time. The second cache has 64
        // bytes a line: what it has been given, it has.
        const std::uint64_t start = 0x800 + 8;
        Cycles ready = 1;
        bool from_memory = true;
        std::set<std::uint64_t> given;
        for (std::uint64_t at = start / line * line; at < start + 512; at += line) {
            from_memory = given.insert(at / 64).second;
            ready += from_memory ? 100 : 30;
        }
        const Spent taken = guest.measure([&] { guest.do_access(AccessKind::read, page + start, 512); });
        CHECK(taken == spent({{"tlb.l1", 1}, {from_memory ? "data.memory" : "data.l2", ready - 1}}));
        const Spent again = guest.measure([&] { guest.do_access(AccessKind::read, page + start, 512); });
        CHECK(again == spent({{"tlb.l1", 1}, {"data.l1d", 4}}));
    }
}

TEST_CASE("clock on a machine: no instruction of a gap is lost", "[timing]")
{
    using replay_test::checking;
    // Whatever stands behind the gap: a register without a price, an access that has no address.
    for (const char* const record :
         {R"({"op":"wrpkru","value":"0x0","gap":4000})", R"({"op":"ac","value":1,"gap":4000})",
          R"({"op":"cpl","value":3,"gap":4000})",
          R"({"op":"read","la":"0x800000000000","size":1,"gap":4000,"fault":"gp"})"}) {
        INFO(record);
        const test::ScratchFile trace{fmt::format("{}{}{}\n{}\n", replay_test::Header{}.line(),
                                                  replay_test::four_level_guest(), record,
                                                  R"({"op":"fetch","la":"0x0","size":1})")};
        ReplayConfig config = checking();
        config.mode = TranslationMode::native;
        config.clock = ClockKind::blocking;
        TraceReader reader{trace.path()};
        Replayer replayer{reader.header(), config, builtin_shadow_policies()};
        for (Record next; reader.next(next);) replayer.replay(next);
        replayer.finish();
        // "none" issues one instruction a cycle.
        CHECK(replayer.total().hardware.cycles[CycleLabels::kInstructions] == 4000);
    }
}

TEST_CASE("clock on a machine: walks wait for a walker, cycles go to the oldest", "[timing]")
{
    // Four pages at once, each with one load of 10: the table entries are in the cache.
    const auto with = [](unsigned walkers) {
        auto profile = std::make_shared<CpuProfile>(*round_profile(walkers, 8));
        small::add_structure_caches(*profile, 8);
        return std::shared_ptr<const CpuProfile>{profile};
    };
    const auto taken = [&](unsigned walkers) {
        TimedGuest guest{Paging::four_level, with(walkers), {ClockKind::window, 8}, true};
        const std::uint64_t address = guest.target(1);
        guest.do_access(AccessKind::read, address);
        return guest.measure([&] {
            for (unsigned i = 1; i <= 4; ++i) guest.do_access(AccessKind::read, address + i * 0x1000);
        });
    };
    // One: ends at 11, 21, 31, 41; each has its data 4 later, when the next has had 4 of its load.
    CHECK(taken(1) == spent({{"tlb.l1", 1}, {"walk.pte.l1d", 10 + 3 * 6}, {"data.l1d", 4 + 3 * 4}}));
    // Two: 11, 11, 21, 21.
    CHECK(taken(2) == spent({{"tlb.l1", 1}, {"walk.pte.l1d", 10 + 6}, {"data.l1d", 8}}));
    CHECK(taken(4) == spent({{"tlb.l1", 1}, {"walk.pte.l1d", 10}, {"data.l1d", 4}}));
}

TEST_CASE("clock on a machine: misses of the data cache wait for a slot", "[timing]")
{
    // Two slots of 100: six lines that are in no cache.
    TimedGuest guest = round_guest({ClockKind::window, 8}, 1, 8);
    const std::uint64_t page = guest.target(1) & ~std::uint64_t{0xfff};
    guest.do_access(AccessKind::read, page);
    CHECK(guest.measure([&] {
        for (unsigned i = 1; i <= 6; ++i) guest.do_access(AccessKind::read, page + i * 64);
    }) == spent({{"tlb.l1", 1}, {"data.memory", 300}}));
    // A line that is on its way is waited for.
    CHECK(guest.measure([&] {
        guest.do_access(AccessKind::read, page + 20 * 64);
        guest.do_access(AccessKind::read, page + 20 * 64 + 8);
        guest.do_access(AccessKind::read, page + 20 * 64 + 16);
    }) == spent({{"tlb.l1", 1}, {"data.memory", 100}}));
    // One access of many lines asks for all at the same time.
    CHECK(guest.measure([&] { guest.do_access(AccessKind::read, page + 32 * 64, 5 * 64); }) ==
          spent({{"tlb.l1", 1}, {"data.memory", 300}}));
}

TEST_CASE("clock on a machine: a walk waits for the entry of another walk", "[timing]")
{
    auto profile = std::make_shared<CpuProfile>(*round_profile(2, 8));
    small::add_structure_caches(*profile, 8);
    TimedGuest guest{Paging::four_level, profile, {ClockKind::window, 8}, true};
    const std::uint64_t warm = guest.target(1);
    guest.do_access(AccessKind::read, warm);
    // Both under another entry of the root: the second finds the first one's PDE, ready at 1 + 30.
    const std::uint64_t address = guest.next(warm, 4);
    const Spent taken = guest.measure([&] {
        guest.do_access(AccessKind::read, address);
        guest.do_access(AccessKind::read, address + 0x1000);
    });
    CHECK(taken == spent({{"tlb.l1", 1},
                          {"walk.pml4e.l1d", 10},
                          {"walk.pdpte.l1d", 10},
                          {"walk.pde.l1d", 10},
                          {"walk.pte.l1d", 10},
                          {"data.l1d", 4}}));
    const MachineCounters counters = guest.machine.counters();
    CHECK(counters.paging_structure_caches[2].hits == 1);
    // Where its own entry is in memory, the second ends last: 31 for the PDE, 6 + 100, and 4 for the data.
    const std::uint64_t other = guest.next(address, 4);
    const Spent waited = guest.measure([&] {
        guest.do_access(AccessKind::read, other);
        guest.do_access(AccessKind::read, other + 0x10'0000);
    });
    CHECK(waited == spent({{"tlb.l1", 1},
                           {"walk.pml4e.l1d", 10},
                           {"walk.pdpte.l1d", 10},
                           {"walk.pde.l1d", 10},
                           {"walk.pte.l1d", 10},
                           {"data.l1d", 4 + 4},
                           {"walk.pte.memory", 106 - 14}}));
    CHECK(waited.total == 141);
}

TEST_CASE("clock on a machine: an entry on its way from level 2 is waited for", "[timing]")
{
    auto profile = std::make_shared<CpuProfile>(*round_profile(1, 8));
    profile->tlbs.tlbs[0].arrays = {small::fully_associative(1, small::kAllPages)};
    profile->tlbs.tlbs.push_back(
        small::tlb("l2", 2, "fls", {small::fully_associative(64, small::kAllPages)}));
    profile->tlbs.tlbs[1].lookup_cycles = 7;
    TimedGuest guest{Paging::four_level, profile, {ClockKind::window, 8}, true};
    const std::uint64_t address = guest.target(1);
    const std::uint64_t page = address & ~std::uint64_t{0xfff};
    guest.do_access(AccessKind::read, address);
    guest.do_access(AccessKind::read, guest.next(address, 1));
    // The first is ready at 1 + 7 + 4; the second finds the entry in level 1, where it is at 8.
    const Spent taken = guest.measure([&] {
        guest.do_access(AccessKind::read, address);
        guest.do_access(AccessKind::read, page | 20 * 64);
    });
    CHECK(taken == spent({{"tlb.l1", 1}, {"tlb.l2", 7}, {"data.l1d", 4}, {"data.memory", 96}}));
    const MachineCounters counters = guest.machine.counters();
    CHECK(counters.tlbs[1].hits == 1);
    CHECK(counters.tlbs[0].hits == 1);
}

TEST_CASE("clock on a machine: a fault ends what is in flight", "[timing]")
{
    for (const ClockMode clock : {kBlocking, ClockMode{ClockKind::window, 8}}) {
        INFO(clock.name());
        TimedGuest guest = round_guest(clock, 1, 4);
        const std::uint64_t address = guest.target(1);
        guest.do_access(AccessKind::read, address);
        guest.clear_bits(address, 1, P);
        const std::uint64_t next = guest.next(address, 4);
        const Spent taken = guest.measure([&] {
            CHECK_FALSE(guest.read(next, 1).ok());
            guest.do_access(AccessKind::read, address);
        });
        CHECK(taken == spent({{"tlb.l1", 1 + 1},
                              {"walk.pml4e.l1d", 10},
                              {"walk.pdpte.l1d", 10},
                              {"walk.pde.l1d", 10},
                              {"walk.pte.l1d", 10},
                              {"guest_fault", 500},
                              {"data.l1d", 4}}));
    }
}

TEST_CASE("clock on a machine: vCPUs take turns on one clock, with hardware of their own", "[timing]")
{
    MachineConfig config = small::config(*round_profile());
    config.vcpus = 2;
    config.clock = ClockKind::blocking;
    Guest guest{Paging::four_level, std::move(config)};
    guest.map(0x40'0000, 0x101'000);
    const auto taken = [&](unsigned vcpu) {
        const Cycles before = guest.machine.clock()->now();
        CHECK(guest.read(0x40'0000, 1, vcpu).ok());
        return guest.machine.clock()->now() - before;
    };
    CHECK(taken(0) == 1 + 4 * 106 + 100);
    CHECK(taken(0) == 5);
    CHECK(taken(1) == 1 + 4 * 106 + 100);
    CHECK(taken(1) == 5);
    CHECK(taken(0) == 5);
}

TEST_CASE("clock on a machine: under shadows", "[timing]")
{
    auto profile = std::make_shared<CpuProfile>(*round_profile());
    profile->timing.hypervisor = {.exit = 1000,
                                  .entry = 2000,
                                  .fault_handler = 10'000,
                                  .guest_walk_load = 1,
                                  .shadow_page = 100'000,
                                  .propagate = 3,
                                  .emulate = 1'000'000,
                                  .load_root = 7,
                                  .hash_step = 5,
                                  .flush = 40};
    MachineConfig config = small::config(*profile, under("write-protect"));
    config.clock = ClockKind::blocking;
    Guest guest{Paging::four_level, std::move(config)};
    guest.map(0x40'0000, 0x101'000);
    const auto by = [&] {
        CyclesBy cycles;
        for (std::size_t label = 0; label < guest.machine.clock()->by().size(); ++label) {
            cycles[guest.machine.cycle_labels().name(static_cast<Label>(label))] +=
                guest.machine.clock()->by()[label];
        }
        return cycles;
    };
    const CyclesBy before = by();
    CHECK(guest.read(0x40'0000, 1).ok());
    CyclesBy after = by();
    const auto more = [&](const char* label) { return after.at(label) - before.at(label); };
    // One exit, since the engine makes all shadows on the way at once; a fault, and a walk of four tables.
    CHECK(more("hypervisor.exit") == 1000);
    CHECK(more("hypervisor.entry") == 2000);
    CHECK(more("hypervisor.fault_handler") == 10'000);
    CHECK(more("hypervisor.guest_walk") == 4);
    CHECK(more("hypervisor.shadow_page") == 300'000);
    CHECK(more("hypervisor.emulate") == 0);
    CHECK(more("guest_fault") == 0);
    CHECK(more("tlb.l1") == 2);  // asked before the exit and after it
    Cycles total = 0;
    for (const auto& [label, cycles] : after) total += cycles;
    CHECK(total == guest.machine.clock()->now());
    // A second access is the hardware's alone.
    const Cycles start = guest.machine.clock()->now();
    CHECK(guest.read(0x40'0000, 1).ok());
    CHECK(guest.machine.clock()->now() - start == 5);
    // INVLPG: an exit and an entry, and no price of its own.
    after = by();
    CHECK(guest.invlpg(0x40'0000));
    const CyclesBy last = by();
    CHECK(last.at("system.invlpg") == 0);
    CHECK(last.at("hypervisor.exit") == after.at("hypervisor.exit") + 1000);
    CHECK(last.at("hypervisor.entry") == after.at("hypervisor.entry") + 2000);
}

TEST_CASE("clock on a machine: off", "[timing]")
{
    TimedGuest guest{Paging::four_level, round_profile(), {ClockKind::off, 0}, true};
    guest.do_access(AccessKind::read, guest.target(1));
    CHECK(guest.machine.clock() == nullptr);
    CHECK(guest.machine.counters().cycles.empty());
}

// --- phases
// -------------------------------------------------------------------------------------------------

TEST_CASE("clock in a replay: phases have their cycles, which add up to all", "[timing]")
{
    using replay_test::checking;
    const std::string guest = replay_test::four_level_guest();
    const std::string work = R"({"op":"read","la":"0x10000","size":8,"gap":3}
{"op":"write","la":"0x10ffc","size":8}
{"op":"fetch","la":"0x0","size":3,"gap":40}
{"op":"invlpg","la":"0x10000","gap":5}
{"op":"read","la":"0x11010","size":4}
{"op":"mov_cr3","value":"0x1000"}
{"op":"read","la":"0x12000","size":4,"fault":0}
)";
    const auto mark = [](const char* name) {
        return fmt::format(R"({{"op":"mark","name":"{}"}})"
                           "\n",
                           name);
    };
    const std::string reset = R"({"op":"reset","name":"again"})"
                              "\n";
    std::string text = replay_test::Header{}.line();
    for (const std::string& part :
         {guest, work, mark("second"), work, work, mark("empty"), mark("third"), reset, guest, work}) {
        text += part;
    }
    const test::ScratchFile trace{text};
    for (const TranslationMode mode : {TranslationMode::native, TranslationMode::shadow}) {
        for (const unsigned window : {0u, 1u, 8u}) {
            for (const char* const cpu : {"golden_cove", "zen4", "none"}) {
                ReplayConfig config = checking();
                config.mode = mode;
                config.cpu = cpu;
                config.clock = window == 0 ? ClockKind::blocking : ClockKind::window;
                config.window = window;
                INFO(name_of(mode) << ", window " << window << ", " << cpu);
                TraceReader reader{trace.path()};
                Replayer replayer{reader.header(), config, builtin_shadow_policies()};
                for (Record record; reader.next(record);) replayer.replay(record);
                replayer.finish();
                const std::vector<Cycles>& total = replayer.total().hardware.cycles;
                REQUIRE(replayer.phases().size() >= 3);
                std::vector<Cycles> added(total.size(), 0);
                for (const Phase& phase : replayer.phases()) {
                    for (std::size_t i = 0; i < added.size(); ++i) {
                        added[i] += phase.statistics.hardware.cycles[i];
                    }
                }
                CHECK(added == total);
                // After the reset all begins anew: the same records take the same cycles.
                CHECK(replayer.phases().back().statistics.hardware.cycles ==
                      replayer.phases().front().statistics.hardware.cycles);
                CHECK(sum(total) > 0);
            }
        }
    }
}
