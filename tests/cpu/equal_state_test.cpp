// SPDX-License-Identifier: Apache-2.0
//
// "State changes in the order of the trace. Time lies over it": random programs come to the same outcomes,
// hits, misses, walks and evictions with the clock off, in `blocking` and in every window, on every bundled
// profile. And the same run twice, or after a reset, comes to the same cycles.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "timing/timed_guest.hpp"

using namespace timed;

namespace {

constexpr std::uint64_t kTables = 0x10, kTableFrames = 0x30;  // where all of a guest's tables are

/// A guest's tables as an image of memory, and the addresses that they map.
struct Image {
    Paging paging;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> words;  ///< address, value
    Registers registers;
    std::vector<std::uint64_t> roots;
    std::vector<std::uint64_t> addresses;  ///< of pages
    std::vector<std::uint64_t> entries;    ///< where leaf entries are
};

Image image_of(Paging paging)
{
    MachineConfig config = config_of(native());
    Guest guest{paging, config};
    Image image{paging, {}, {}, {}, {}, {}};
    const auto map = [&](std::uint64_t linear, std::uint64_t gpa, std::uint64_t flags, int level) {
        guest.map(linear, gpa, flags, level);
        image.addresses.push_back(linear);
        image.entries.push_back(guest.entry_at(linear, level));
    };
    constexpr std::array<std::uint64_t, 6> kFlags{kAll,          kAll | G,  P | W | A,
                                                  P | U | A | D, P | W | U, kAll & ~D};
    for (std::uint64_t page = 0; page < 150; ++page) {
        // In three tables; neighbours, and pages that share sets.
        const std::uint64_t linear = 0x40'0000 + (page % 3) * 0x2000'0000 + (page << 12);
        map(linear, 0x100'000 + (page % 64) * 0x1000, kFlags[page % kFlags.size()], 1);
    }
    for (std::uint64_t page = 0; page < 8; ++page) {
        map(0xa000'0000 + (page << guest.shift(2)), 0x4000'0000, kFlags[page % kFlags.size()], 2);
    }
    if (guest.levels() > 3) {
        for (std::uint64_t page = 0; page < 4; ++page) {
            map(0x80'0000'0000 + (page << 30), 0x4000'0000, kFlags[page], 3);
        }
        map(0xffff'8000'0000'0000 | (guest.levels() == 5 ? 0xff00'0000'0000'0000 : 0), 0x103'000, kAll, 1);
    }
    // A second root that leads to the same tables.
    const std::uint64_t root = guest.root().address().value();
    const std::uint64_t second = guest.new_table().address().value();
    for (std::uint64_t at = 0; at < 0x1000; at += 8) guest.poke(second + at, guest.word(root + at));
    image.roots = {root, second};
    for (std::uint64_t at = kTables << 12; at < (kTables + kTableFrames) << 12; at += 8) {
        if (const std::uint64_t word = guest.word(at)) image.words.emplace_back(at, word);
    }
    REQUIRE(guest.new_table().number() < kTables + kTableFrames);
    image.registers = guest.machine.registers(0);
    return image;
}

void load(Machine& machine, const Image& image)
{
    for (const auto& [address, value] : image.words) {
        machine.poke(GuestPhysical{address}, std::as_bytes(std::span{&value, 1}));
    }
    for (unsigned vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
        if (machine.set_registers(vcpu, image.registers)) throw std::logic_error("registers refused");
    }
}

struct Op {
    enum class Kind {
        access,
        execute,
        stream,
        invlpg,
        invpcid,
        mov_cr3,
        toggle_cr4,
        toggle_wp,
        poke,
        ac,
        gap
    };
    Kind kind = Kind::access;
    unsigned vcpu = 0;
    std::vector<Operand> operands;
    std::uint64_t address = 0;
    std::uint64_t value = 0;
    std::uint64_t type = 0;
};

class Program {
public:
    Program(const Image& image, std::uint64_t seed, unsigned length, unsigned vcpus)
        : image_{&image}, random_{seed}
    {
        for (unsigned i = 0; i < length; ++i) ops_.push_back(op(vcpus));
    }
    [[nodiscard]] const std::vector<Op>& ops() const { return ops_; }

private:
    std::uint64_t below(std::uint64_t end) { return random_() % end; }
    std::uint64_t linear()
    {
        if (below(3) != 0) last_ = image_->addresses[below(image_->addresses.size())];
        if (below(20) == 0) last_ += below(8) << 12;
        return last_;
    }
    Operand operand()
    {
        Operand one;
        one.address = LinearAddress{linear() + below(4096)};
        one.kind = static_cast<AccessKind>(below(3));
        constexpr std::array<std::uint32_t, 6> kSizes{1, 4, 8, 16, 64, 300};
        one.bytes = kSizes[below(8) == 0 ? below(6) : below(3)];
        one.user_mode = below(4) == 0;
        if (below(3) == 0) one.gap = below(50);
        return one;
    }
    Op op(unsigned vcpus)
    {
        const bool long_mode = image_->paging == Paging::four_level || image_->paging == Paging::five_level;
        Op made;
        made.vcpu = static_cast<unsigned>(below(vcpus));
        const std::uint64_t dice = below(100);
        using Kind = Op::Kind;
        if (dice < 60) {
            made.operands = {operand()};
        } else if (dice < 68) {
            made.kind = Kind::execute;
            for (std::uint64_t i = 1 + below(3); i > 0; --i) made.operands.push_back(operand());
        } else if (dice < 76) {
            made.kind = Kind::stream;
            for (std::uint64_t i = 1 + below(20); i > 0; --i) made.operands.push_back(operand());
        } else if (dice < 80) {
            made.kind = Kind::invlpg;
            made.address = linear();
        } else if (dice < 82) {
            made.kind = Kind::invpcid;
            made.type = below(4);
            made.value = long_mode ? below(4) : 0;
            made.address = linear();
        } else if (dice < 86) {
            made.kind = Kind::mov_cr3;
            made.value = image_->roots[below(2)] | (long_mode ? below(4) | below(2) << 63 : 0);
        } else if (dice < 88) {
            made.kind = Kind::toggle_cr4;
            constexpr std::array<std::uint64_t, 5> kBits{cr4::kPge, cr4::kPge, cr4::kSmep, cr4::kSmap,
                                                         cr4::kPcide};
            made.value = kBits[below(long_mode ? 5 : 4)];
        } else if (dice < 89) {
            made.kind = Kind::toggle_wp;
        } else if (dice < 95) {
            made.kind = Kind::poke;
            made.address = image_->entries[below(image_->entries.size())];
            constexpr std::array<std::uint64_t, 7> kBits{P, W, U, A, D, D, G};
            made.value = kBits[below(kBits.size())];
        } else if (dice < 96) {
            made.kind = Kind::ac;
            made.value = below(2);
        } else {
            made.kind = Kind::gap;
            made.value = below(200);
        }
        return made;
    }

    const Image* image_;
    std::mt19937_64 random_;
    std::uint64_t last_ = 0x40'0000;
    std::vector<Op> ops_;
};

/// What there is to compare after each step, in one number: outcomes and all counters but cycles.
struct Digest {
    std::uint64_t value = 0xcbf2'9ce4'8422'2325;

    void add(std::uint64_t word)
    {
        value ^= word;
        value *= 0x100'0000'01b3;
        value ^= value >> 29;
    }
    void add(const Exception& exception)
    {
        add(static_cast<std::uint64_t>(exception.vector) + 1);
        add(exception.error_code);
        add(exception.address.value());
    }
    void add(const Placed& placed)
    {
        for (const Placed::Part& part : placed.pages()) add(part.address.value());
    }
    void add(const MachineCounters& counters)
    {
        add(counters.walks);
        add(counters.memory_references);
        for (const TlbCounters& tlb : counters.tlbs) {
            for (const std::uint64_t count :
                 {tlb.lookups, tlb.hits, tlb.dirty_walks, tlb.denied, tlb.fills, tlb.evictions}) {
                add(count);
            }
        }
        for (const PagingStructureCacheCounters& cache : counters.paging_structure_caches) {
            add(cache.lookups);
            add(cache.hits);
        }
    }
};

struct Run {
    std::vector<std::uint64_t> digests;  ///< after each step
    MachineCounters counters;
    Cycles cycles = 0;
    bool adds_up = true;
};

Run run(Machine& machine, const Image& image, const Program& program)
{
    load(machine, image);
    Run result;
    Digest digest;
    const auto took = [&](const std::optional<Exception>& exception) {
        if (exception) digest.add(*exception);
    };
    for (const Op& op : program.ops()) {
        const Registers& registers = machine.registers(op.vcpu);
        switch (op.kind) {
        case Op::Kind::access: {
            const auto placed = machine.access(op.vcpu, op.operands[0]);
            if (placed) {
                digest.add(*placed);
            } else {
                digest.add(placed.error());
            }
            break;
        }
        case Op::Kind::execute: {
            Execution execution;
            machine.execute(op.vcpu, op.operands, Restart::operand, execution);
            for (const Placed& placed : execution.placed) digest.add(placed);
            took(execution.fault);
            break;
        }
        case Op::Kind::stream: {
            std::vector<StreamAccess> accesses;
            for (const Operand& operand : op.operands) {
                accesses.push_back({operand.address, static_cast<std::uint32_t>(operand.gap),
                                    static_cast<std::uint16_t>(operand.bytes), operand.kind,
                                    operand.user_mode});
            }
            digest.add(machine.run(op.vcpu, accesses));
            break;
        }
        case Op::Kind::invlpg: took(machine.invlpg(op.vcpu, LinearAddress{op.address})); break;
        case Op::Kind::invpcid:
            took(machine.invpcid(op.vcpu, op.type, op.value, LinearAddress{op.address}));
            break;
        case Op::Kind::mov_cr3: took(machine.mov_cr3(op.vcpu, op.value)); break;
        case Op::Kind::toggle_cr4: took(machine.mov_cr4(op.vcpu, registers.cr4 ^ op.value)); break;
        case Op::Kind::toggle_wp: took(machine.mov_cr0(op.vcpu, registers.cr0 ^ cr0::kWp)); break;
        case Op::Kind::poke: {
            std::byte byte{};
            // Flags up to bit 7 in the first byte, G in the second.
            const GuestPhysical at{op.address + (op.value >> 8 != 0 ? 1 : 0)};
            machine.peek(at, {&byte, 1});
            byte ^= static_cast<std::byte>(op.value >> 8 != 0 ? op.value >> 8 : op.value);
            machine.poke(at, {&byte, 1});
            break;
        }
        case Op::Kind::ac: machine.set_ac(op.vcpu, op.value != 0); break;
        case Op::Kind::gap: machine.gap(op.value); break;
        }
        digest.add(machine.counters());
        result.digests.push_back(digest.value);
        if (const Clock* const clock = machine.clock()) {
            Cycles sum = 0;
            for (const Cycles cycles : clock->by()) sum += cycles;
            result.adds_up = result.adds_up && sum == clock->now() && clock->now() >= result.cycles;
            result.cycles = clock->now();
        }
    }
    result.counters = machine.counters();
    return result;
}

MachineConfig machine_config(const std::shared_ptr<const CpuProfile>& profile, ClockMode clock,
                             const Options& options = native(), bool program_uses_caches = true)
{
    MachineConfig config = config_of(options);
    if (profile->name.rfind("zen", 0) == 0) config.cpuid.vendor = Vendor::amd;
    config.cpu = profile;
    config.clock = clock.kind;
    config.window = clock.window;
    config.program_uses_caches = program_uses_caches;
    return config;
}

void check_equal(const Run& expected, const Run& run)
{
    CHECK(run.adds_up);
    if (run.digests == expected.digests) return;
    const auto differ = std::mismatch(expected.digests.begin(), expected.digests.end(), run.digests.begin());
    FAIL_CHECK("they differ from step " << differ.first - expected.digests.begin() << " on");
}

constexpr ClockMode kOff{ClockKind::off, 0};
constexpr std::array<ClockMode, 5> kClocks{{{ClockKind::blocking, 0},
                                            {ClockKind::window, 1},
                                            {ClockKind::window, 2},
                                            {ClockKind::window, 7},
                                            {ClockKind::window, 64}}};
constexpr std::array<Paging, 4> kPagings{Paging::two_level, Paging::pae, Paging::four_level,
                                         Paging::five_level};

void check_programs(std::uint64_t first_seed, unsigned programs, unsigned length)
{
    TlbCounters seen;
    std::uint64_t structure_hits = 0;
    for (const Paging paging : kPagings) {
        const Image image = image_of(paging);
        for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
            const auto profile =
                std::make_shared<const CpuProfile>(find_cpu_profile(std::string{bundled.name}));
            for (std::uint64_t seed = first_seed; seed < first_seed + programs; ++seed) {
                const Program program{image, seed, length, 2};
                Options options = native();
                options.vcpus = 2;
                Machine off{machine_config(profile, kOff, options)};
                const Run expected = run(off, image, program);
                for (const TlbCounters& tlb : expected.counters.tlbs) seen.add(tlb);
                for (const auto& cache : expected.counters.paging_structure_caches) {
                    structure_hits += cache.hits;
                }
                for (const ClockMode& clock : kClocks) {
                    INFO(name_of(paging)
                         << ", " << bundled.name << ", seed " << seed << ", " << clock.name());
                    Machine machine{machine_config(profile, clock, options, seed % 2 == 0)};
                    check_equal(expected, run(machine, image, program));
                }
            }
        }
    }
    // The programs come across everything.
    for (const std::uint64_t count :
         {seen.hits, seen.dirty_walks, seen.denied, seen.evictions, structure_hits}) {
        CHECK(count > 50);
    }
}

}  // namespace

TEST_CASE("time changes no state: random programs on all profiles", "[cpu]")
{
    check_programs(1, 1, 500);
}

TEST_CASE("time changes no state: many random programs on all profiles", "[cpu][slow]")
{
    check_programs(100, 12, 2000);
}

TEST_CASE("time changes no state: under shadows", "[cpu]")
{
    for (const char* const policy : {"write-protect", "tlb-like"}) {
        for (const Paging paging : kPagings) {
            const Image image = image_of(paging);
            for (const char* const name : {"golden_cove", "zen3", "nehalem", "none"}) {
                const auto profile = std::make_shared<const CpuProfile>(find_cpu_profile(name));
                const Program program{image, 7, 300, 2};
                Options options = under(policy);
                options.vcpus = 2;
                Machine off{machine_config(profile, kOff, options)};
                const Run expected = run(off, image, program);
                for (const ClockMode& clock : kClocks) {
                    INFO(policy << ", " << name_of(paging) << ", " << name << ", " << clock.name());
                    Machine machine{machine_config(profile, clock, options)};
                    check_equal(expected, run(machine, image, program));
                }
            }
        }
    }
}

TEST_CASE("the same run comes to the same cycles, also after a reset", "[cpu]")
{
    for (const Paging paging : {Paging::pae, Paging::four_level}) {
        const Image image = image_of(paging);
        for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
            const auto profile =
                std::make_shared<const CpuProfile>(find_cpu_profile(std::string{bundled.name}));
            for (const ClockMode& clock : kClocks) {
                for (const Options& options : {native(), under("write-protect")}) {
                    INFO(name_of(paging) << ", " << bundled.name << ", " << clock.name());
                    const Program program{image, 11, 250, 1};
                    Machine machine{machine_config(profile, clock, options)};
                    const Run first = run(machine, image, program);
                    Machine another{machine_config(profile, clock, options)};
                    const Run second = run(another, image, program);
                    CHECK(first.counters == second.counters);
                    CHECK(first.cycles == second.cycles);
                    // Something else in between.
                    run(machine, image, Program{image, 12, 100, 1});
                    machine.reset();
                    const Run third = run(machine, image, program);
                    CHECK(first.counters == third.counters);
                    CHECK(first.digests == third.digests);
                    CHECK(first.cycles == third.cycles);
                }
            }
        }
    }
}

TEST_CASE("a wider window is never slower on one walker, and never faster than what has to be done", "[cpu]")
{
    // With one thing at a time in each resource, waiting less in front of it cannot make it end later.
    const Image image = image_of(Paging::four_level);
    for (const char* const name : {"haswell", "nehalem", "none", "drcachesim"}) {
        const auto profile = std::make_shared<const CpuProfile>(find_cpu_profile(name));
        std::vector<StreamAccess> accesses;
        std::mt19937_64 random{3};
        for (unsigned i = 0; i < 3000; ++i) {
            // Pages that all are readable by a supervisor.
            accesses.push_back(
                {LinearAddress{image.addresses[random() % 150]}, 0, 1, AccessKind::read, false});
        }
        Cycles last = ~Cycles{0};
        for (const unsigned window : {1u, 2u, 4u, 16u, 64u}) {
            INFO(name << ", window " << window);
            Machine machine{machine_config(profile, {ClockKind::window, window}, native(), false)};
            load(machine, image);
            CHECK(machine.run(0, accesses) == 0);
            CHECK(machine.clock()->now() <= last);
            last = machine.clock()->now();
            CHECK(last >= accesses.size() / profile->timing.front_end.issue_width);
        }
        Machine blocking{machine_config(profile, {ClockKind::blocking, 0}, native(), false)};
        load(blocking, image);
        CHECK(blocking.run(0, accesses) == 0);
        Machine one{machine_config(profile, {ClockKind::window, 1}, native(), false)};
        load(one, image);
        CHECK(one.run(0, accesses) == 0);
        // One at a time: only accesses of no time at all would differ, by their issue slots.
        if (profile->timing.data_caches.empty()) continue;
        CHECK(blocking.clock()->by() == one.clock()->by());
    }
}
