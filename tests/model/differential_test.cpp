// SPDX-License-Identifier: Apache-2.0
//
// The library's hardware against the second simulator: random programs on random CPUs, and on all bundled
// profiles. After each event the outcome, the addresses and the time must be the same; from time to time, and
// at the end, all counters and the cycles by label; at the end the whole of memory. A program that fails is
// run again, with everything compared after each event, and is then cut down to few events that still differ:
// the message has them, the seed and the profile.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>

#include "model/describe.hpp"
#include "model/from_profile.hpp"
#include "model/guest_tables.hpp"
#include "model/hardware_model.hpp"
#include "model/random_profile.hpp"
#include "model/random_program.hpp"
#include "support/catch.hpp"

namespace {

using model::Event;
using model::FrontEnd;
using u64 = std::uint64_t;

/// What differs.
struct Mismatch : std::runtime_error {
    using std::runtime_error::runtime_error;
    std::size_t event = 0;  // after which it was seen
};

std::string to_string(FrontEnd front_end)
{
    switch (front_end.kind) {
    case FrontEnd::Kind::off: return "off";
    case FrontEnd::Kind::blocking: return "blocking";
    case FrontEnd::Kind::window: break;
    }
    return fmt::format("window:{}", front_end.window);
}

std::string to_string(const Event& event)
{
    constexpr std::array kKinds{"access", "instruction", "mov cr0", "mov cr3", "mov cr4", "wrmsr", "wrpkru",
                                "invlpg", "invpcid",     "cpl",     "ac",      "set",     "poke"};
    constexpr std::array kAccesses{"read", "write", "fetch"};
    const auto kind = static_cast<std::size_t>(event.kind);
    return fmt::format(
        "vcpu {} {} {} {:#x} size {}{}{}{} value {:#x} msr {:#x} type {} pcid {} gap {}", event.cpu,
        kKinds[kind],
        event.kind == Event::Kind::access ? kAccesses[static_cast<std::size_t>(event.access)] : "",
        event.address, event.bytes, event.user ? " user" : "", event.implicit ? " implicit" : "",
        event.stores ? " stores" : "", event.value, event.msr, event.type, event.pcid, event.gap);
}

mmusim::Cpuid cpuid_of(const reference::Features& f)
{
    mmusim::Cpuid cpuid;
    cpuid.vendor = f.amd ? mmusim::Vendor::amd : mmusim::Vendor::intel;
    cpuid.physical_address_bits = f.width;
    cpuid.nx = f.nx;
    cpuid.pse = f.pse;
    cpuid.pse36 = f.pse36;
    cpuid.pge = f.pge;
    cpuid.pcid = f.pcid;
    cpuid.invpcid = f.invpcid;
    cpuid.smep = f.smep;
    cpuid.smap = f.smap;
    cpuid.pku = f.pku;
    cpuid.pks = f.pks;
    cpuid.page1gb = f.page1gb;
    cpuid.la57 = f.la57;
    return cpuid;
}

mmusim::MachineConfig config_of(const model::Program& program, const mmusim::CpuProfile& profile,
                                FrontEnd front_end, bool program_data)
{
    mmusim::MachineConfig config;
    config.cpuid = cpuid_of(program.features);
    config.vcpus = program.cpus;
    for (const auto& [first, count] : program.ram) config.ram.push_back({mmusim::Gfn{first}, count});
    config.mode = mmusim::TranslationMode::native;
    config.cpu = std::make_shared<const mmusim::CpuProfile>(profile);
    config.clock = front_end.kind == FrontEnd::Kind::off        ? mmusim::ClockKind::off
                   : front_end.kind == FrontEnd::Kind::blocking ? mmusim::ClockKind::blocking
                                                                : mmusim::ClockKind::window;
    config.window = front_end.window;
    config.program_uses_caches = program_data;
    return config;
}

mmusim::Registers registers_of(const reference::Cpu& cpu)
{
    mmusim::Registers registers;
    registers.cr0 = cpu.cr0;
    registers.cr3 = cpu.cr3;
    registers.cr4 = cpu.cr4;
    registers.efer = cpu.efer;
    registers.pkru = cpu.pkru;
    registers.pkrs = cpu.pkrs;
    registers.cpl = static_cast<std::uint8_t>(cpu.cpl);
    registers.ac = cpu.ac;
    return registers;
}

/// One program on both.
class Pair {
public:
    Pair(const model::Program& program, const mmusim::CpuProfile& profile, FrontEnd front_end,
         bool program_data)
        : program_{program}
        , reference_{model::machine_for(program)}
        , model_{model::from_profile(profile, program_data), reference_, program.cpus, front_end}
        , machine_{config_of(program, profile, front_end, program_data)}
    {
        for (const auto& [word, value] : program.memory.nonzero()) poke(word * 8, 8, value);
        for (unsigned cpu = 0; cpu < program.cpus; ++cpu) {
            if (machine_.set_registers(cpu, registers_of(program.registers[cpu]))) {
                throw std::logic_error("the first registers are refused");
            }
        }
    }

    /// Throws Mismatch. Compares all there is after each `every`-th event.
    void run(std::size_t every)
    {
        for (std::size_t i = 0; i < program_.events.size(); ++i) {
            const Event& event = program_.events[i];
            try {
                step(event);
                if (i % every == every - 1) compare_counters();
            } catch (Mismatch& wrong) {
                wrong.event = i;
                throw;
            }
        }
        try {
            compare_counters();
            compare_memory();
        } catch (Mismatch& wrong) {
            wrong.event = program_.events.size() - 1;
            throw;
        }
    }

private:
    void poke(u64 address, unsigned bytes, u64 value)
    {
        std::array<std::byte, 8> raw{};
        std::memcpy(raw.data(), &value, 8);
        machine_.poke(mmusim::GuestPhysical{address}, std::span{raw}.first(bytes));
    }
    void same(const char* what, u64 machine, u64 expected)
    {
        if (machine != expected) {
            throw Mismatch(fmt::format("{} is {:#x}, in the model {:#x}", what, machine, expected));
        }
    }

    void step(const Event& event)
    {
        const model::Played played = model::play(model_, reference_, program_, event);
        if (event.kind == Event::Kind::access) {
            access(event, played.outcome);
        } else if (event.kind == Event::Kind::instruction) {
            instruction(event, played.execution);
        } else {
            other(event, played.vector);
        }
        if (machine_.clock() != nullptr) same("the time", machine_.clock()->now(), model_.cycles());
    }

    static mmusim::Operand operand_of(const model::Operand& from, u64 gap)
    {
        mmusim::Operand operand;
        operand.address = mmusim::LinearAddress{from.linear};
        operand.bytes = from.bytes;
        operand.kind = from.kind == reference::Kind::read    ? mmusim::AccessKind::read
                       : from.kind == reference::Kind::write ? mmusim::AccessKind::write
                                                             : mmusim::AccessKind::fetch;
        operand.user_mode = from.user;
        operand.implicit = from.implicit;
        operand.gap = gap;
        return operand;
    }
    void same_fault(const mmusim::Exception& exception, const reference::Fault& expected)
    {
        const bool page_fault = exception.vector == mmusim::Vector::page_fault;
        same("#PF", page_fault, expected.vector == reference::kPageFault);
        same("#SS", exception.vector == mmusim::Vector::stack_fault,
             expected.vector == reference::kStackFault);
        if (!page_fault) return;
        same("the error code", exception.error_code, expected.code);
        same("CR2", exception.address.value(), expected.cr2);
    }
    void same_place(const mmusim::Placed& placed, const model::Outcome& expected)
    {
        same("the number of pages", placed.count, expected.physical.size());
        for (std::size_t i = 0; i < placed.count; ++i) {
            same("the address", placed.parts[i].address.value(), expected.physical[i]);
        }
    }

    void access(const Event& event, const model::Outcome& expected)
    {
        const model::Operand operand{event.address, event.bytes,    event.access,
                                     event.user,    event.implicit, false};
        if (++accesses_ % 4 == 0 && !event.stores && !event.implicit) {
            // The other way to have an access made. It does not say where the memory is.
            const mmusim::Operand same_one = operand_of(operand, event.gap);
            const mmusim::StreamAccess stream{same_one.address, static_cast<std::uint32_t>(event.gap),
                                              static_cast<std::uint16_t>(event.bytes), same_one.kind,
                                              event.user};
            return same("a fault", machine_.run(event.cpu, {&stream, 1}), expected.fault ? 1 : 0);
        }
        const auto placed = machine_.access(event.cpu, operand_of(operand, event.gap));
        same("a fault", placed ? 0 : 1, expected.fault ? 1 : 0);
        if (!placed) return same_fault(placed.error(), *expected.fault);
        same_place(*placed, expected);
        if (!event.stores) return;
        std::array<std::byte, 8> raw{};
        std::memcpy(raw.data(), &event.value, 8);
        machine_.store(*placed, std::span{raw}.first(event.bytes));
    }

    void instruction(const Event& event, const model::Execution& expected)
    {
        std::vector<mmusim::Operand> operands;
        for (const model::Operand& operand : program_.instructions[event.value]) {
            operands.push_back(operand_of(operand, operands.empty() ? event.gap : 0));
        }
        mmusim::Execution execution;
        machine_.execute(event.cpu, operands, mmusim::Restart::instruction, execution);
        same("a fault", execution.fault ? 1 : 0, expected.fault ? 1 : 0);
        if (execution.fault) same_fault(*execution.fault, *expected.fault);
        std::size_t translated = expected.operands.size();
        if (translated > 0 && expected.operands.back().fault) --translated;
        same("the operands that were translated", execution.placed.size(), translated);
        for (std::size_t i = 0; i < translated; ++i) same_place(execution.placed[i], expected.operands[i]);
    }

    void other(const Event& event, std::optional<unsigned> expected)
    {
        std::optional<mmusim::Exception> exception;
        std::optional<bool> refused;
        machine_.gap(event.gap);
        switch (event.kind) {
        case Event::Kind::access:
        case Event::Kind::instruction: break;
        case Event::Kind::mov_cr0: exception = machine_.mov_cr0(event.cpu, event.value); break;
        case Event::Kind::mov_cr3: exception = machine_.mov_cr3(event.cpu, event.value); break;
        case Event::Kind::mov_cr4: exception = machine_.mov_cr4(event.cpu, event.value); break;
        case Event::Kind::wrmsr: exception = machine_.wrmsr(event.cpu, event.msr, event.value); break;
        case Event::Kind::wrpkru:
            exception = machine_.wrpkru(event.cpu, static_cast<std::uint32_t>(event.value));
            break;
        case Event::Kind::invlpg:
            exception = machine_.invlpg(event.cpu, mmusim::LinearAddress{event.address});
            break;
        case Event::Kind::invpcid:
            exception =
                machine_.invpcid(event.cpu, event.type, event.pcid, mmusim::LinearAddress{event.address});
            break;
        case Event::Kind::cpl: machine_.set_cpl(event.cpu, static_cast<std::uint8_t>(event.value)); break;
        case Event::Kind::ac: machine_.set_ac(event.cpu, event.value != 0); break;
        case Event::Kind::set:
            refused =
                machine_.set_registers(event.cpu, registers_of(program_.registers[event.value])).has_value();
            break;
        case Event::Kind::poke: poke(event.address, event.bytes, event.value); break;
        }
        same("refused", refused.value_or(exception.has_value()), expected.has_value());
    }

    void compare_counters()
    {
        u64 walks = 0, references = 0;
        for (unsigned cpu = 0; cpu < program_.cpus; ++cpu) {
            const model::Counters expected = model_.counters(cpu);
            const mmusim::Mmu& mmu = machine_.mmu(cpu);
            for (std::size_t i = 0; i < mmu.tlbs(); ++i) {
                const std::string& name = mmu.tlb(i).name;
                const mmusim::TlbCounters seen = mmu.tlb_counters(i);
                const model::TlbCounters& counters = expected.tlbs.at(name);
                const auto check = [&](const char* what, u64 one, u64 other) {
                    same(fmt::format("vcpu {} {} {}", cpu, name, what).c_str(), one, other);
                };
                check("lookups", seen.lookups, counters.lookups);
                check("hits", seen.hits, counters.hits);
                check("dirty walks", seen.dirty_walks, counters.dirty_walks);
                check("denied", seen.denied, counters.denied);
                check("fills", seen.fills, counters.fills);
                check("evictions", seen.evictions, counters.evictions);
            }
            for (const auto& [level, counters] : expected.pscs) {
                const mmusim::PagingStructureCacheCounters& seen = mmu.psc_counters(static_cast<int>(level));
                same(fmt::format("vcpu {} level {} lookups", cpu, level).c_str(), seen.lookups,
                     counters.lookups);
                same(fmt::format("vcpu {} level {} hits", cpu, level).c_str(), seen.hits, counters.hits);
            }
            same(fmt::format("vcpu {} walks", cpu).c_str(), mmu.walks(), expected.walks);
            walks += expected.walks;
            references += expected.memory_references;
        }
        const mmusim::MachineCounters counters = machine_.counters();
        same("walks", counters.walks, walks);
        same("memory references", counters.memory_references, references);
        if (machine_.clock() == nullptr) return;
        const auto& by = model_.cycles_by();
        u64 found = 0;
        for (std::size_t label = 0; label < counters.cycles.size(); ++label) {
            if (counters.cycles[label] == 0) continue;
            const std::string name = machine_.cycle_labels().name(static_cast<mmusim::Label>(label));
            const auto expected = by.find(name);
            same(fmt::format("cycles of {}", name).c_str(), counters.cycles[label],
                 expected == by.end() ? 0 : expected->second);
            ++found;
        }
        same("the number of labels", found, by.size());
    }

    void compare_memory()
    {
        std::array<u64, 512> words{};
        for (const auto& [first, count] : program_.ram) {
            for (u64 frame = first; frame < first + count; ++frame) {
                machine_.peek(mmusim::GuestPhysical{frame << 12}, std::as_writable_bytes(std::span{words}));
                for (u64 i = 0; i < 512; ++i) {
                    const u64 value = reference_.memory.words[frame * 512 + i];
                    if (words[i] != value) {
                        throw Mismatch(fmt::format("memory at {:#x} is {:#x}, in the model {:#x}",
                                                   frame << 12 | i << 3, words[i], value));
                    }
                }
            }
        }
    }

    const model::Program& program_;
    u64 accesses_ = 0;
    reference::Machine reference_;
    model::Hardware model_;
    mmusim::Machine machine_;
};

/// A program and what it runs on.
struct Case {
    u64 seed = 0;
    model::Program program;
    mmusim::CpuProfile profile;
    FrontEnd front_end;
    bool program_data = true;

    Case(u64 number, const model::ProgramOptions& options, mmusim::CpuProfile on)
        : seed{number}, program{model::random_program(number, options)}, profile{std::move(on)}
    {
        const std::array front_ends{FrontEnd{FrontEnd::Kind::blocking, 1},
                                    FrontEnd{FrontEnd::Kind::window, 1},
                                    FrontEnd{FrontEnd::Kind::window, static_cast<unsigned>(2 + seed % 30)},
                                    FrontEnd{FrontEnd::Kind::off, 1}};
        front_end = front_ends[seed % front_ends.size()];
        program_data = seed % 7 != 0;
    }

    /// Throws Mismatch.
    void run(const model::Program& one, std::size_t every) const
    {
        Pair{one, profile, front_end, program_data}.run(every);
    }
    bool differs(const model::Program& one) const
    {
        try {
            run(one, 500);
        } catch (const Mismatch&) {
            return true;
        }
        return false;
    }
    u64 accesses() const
    {
        u64 number = 0;
        for (const Event& event : program.events) {
            if (event.kind == Event::Kind::access) ++number;
            if (event.kind == Event::Kind::instruction) number += program.instructions[event.value].size();
        }
        return number;
    }
};

/// Some of the events, in their order, without which there would be no difference.
std::vector<Event> needed_events(const Case& failed, std::size_t prefix)
{
    model::Program program = failed.program;
    std::vector<Event>& events = program.events;
    events.resize(prefix);
    if (!failed.differs(program)) return events;
    unsigned attempts = 500;
    for (std::size_t chunk = events.size() / 2; chunk > 0; chunk /= 2) {
        for (std::size_t first = 0; first < events.size() && attempts > 0; --attempts) {
            const std::vector<Event> all = events;
            const auto from = events.begin() + static_cast<std::ptrdiff_t>(first);
            events.erase(from, from + static_cast<std::ptrdiff_t>(std::min(chunk, events.size() - first)));
            if (failed.differs(program)) continue;
            events = all;
            first += chunk;
        }
    }
    return events;
}

/// What differs, where first, and how to get there.
std::string report(const Case& failed, Mismatch wrong)
{
    try {
        failed.run(failed.program, 1);
    } catch (const Mismatch& first) {
        wrong = first;
    }
    std::string text = fmt::format(
        "seed {}, {}, {}\nthe first {} of {} events, the last of them {}: {}\n", failed.seed,
        to_string(failed.front_end),
        failed.program_data ? "the program's data in the caches" : "no data in caches", wrong.event + 1,
        failed.program.events.size(), to_string(failed.program.events[wrong.event]), wrong.what());
    text += model::describe(model::from_profile(failed.profile));
    const std::vector<Event> events = needed_events(failed, wrong.event + 1);
    text += fmt::format("{} of these events are enough:\n", events.size());
    for (std::size_t i = events.size() - std::min<std::size_t>(events.size(), 60); i < events.size(); ++i) {
        text += fmt::format("  {}\n", to_string(events[i]));
        if (events[i].kind != Event::Kind::instruction) continue;
        for (const model::Operand& operand : failed.program.instructions[events[i].value]) {
            text += fmt::format("    {} {:#x} size {}{}{}\n",
                                std::array{"read", "write", "fetch"}[static_cast<std::size_t>(operand.kind)],
                                operand.linear, operand.bytes, operand.user ? " user" : "",
                                operand.implicit ? " implicit" : "");
        }
    }
    return text;
}

void check(const Case& one)
{
    try {
        one.run(one.program, 500);
    } catch (const Mismatch& wrong) {
        FAIL(report(one, wrong));
    }
}

/// Seed by seed, another program on another CPU; the front ends take turns. Returns the accesses.
u64 check_random_profiles(u64 first_seed, u64 programs, unsigned events)
{
    u64 accesses = 0;
    for (u64 seed = first_seed; seed < first_seed + programs; ++seed) {
        const Case one{seed, {events, 3, true}, model::random_profile(seed)};
        check(one);
        accesses += one.accesses();
    }
    return accesses;
}

/// All bundled profiles under each front end, with programs that use many pages: most of their TLBs are
/// large.
u64 check_bundled_profiles(u64 first_seed, u64 rounds, unsigned events)
{
    u64 accesses = 0;
    u64 seed = first_seed;
    for (u64 round = 0; round < rounds; ++round, ++seed) {
        for (const mmusim::BundledCpuProfile& bundled : mmusim::bundled_cpu_profiles()) {
            mmusim::CpuProfile profile = mmusim::parse_cpu_profile(bundled.text, bundled.name);
            const Case one{seed, {events, 3, true, seed % 3 == 0 ? 1u : 25u}, std::move(profile)};
            INFO("profile " << bundled.name);
            check(one);
            accesses += one.accesses();
            ++seed;
        }
    }
    return accesses;
}

}  // namespace

TEST_CASE("differential: the library and the model agree", "[model]")
{
    check_random_profiles(1, 100, 1500);
    check_bundled_profiles(1, 1, 1500);
}

// Random programs hardly ever come across this: of two entries for a page the later one is in the lower way.
TEST_CASE("differential: a page whose entry a dirty walk does not overwrite", "[model]")
{
    constexpr u64 kRoot = 0x10'0000, kPage = 0x4000'0000;
    model::Program program;
    program.ram = {{0, 0x800}};
    reference::Memory memory;
    memory.ram = program.ram;
    model::GuestTables tables{memory, reference::Paging::four_level, (kRoot >> 12) + 1};
    tables.map(kRoot, kPage, 0x2000, model::kAll & ~model::kD);
    std::vector<u64> others;  // some of them are in the page's set, in the lower ways
    for (u64 pages = 1; pages <= 2048; pages *= 2) others.push_back(kPage + (pages << 12));
    for (const u64 other : others) tables.map(kRoot, other, 0x5000);
    program.memory = memory.words;
    program.registers = {model::registers_for(reference::Paging::four_level, kRoot)};
    program.registers[0].cr4 |= u64{1} << reference::kPge;

    const auto add = [&](Event::Kind kind, u64 address, reference::Kind access = reference::Kind::read) {
        Event& event = program.events.emplace_back();
        event.kind = kind;
        event.address = address;
        event.bytes = 8;
        event.access = access;
    };
    for (const u64 other : others) add(Event::Kind::access, other);
    for (int i = 0; i < 3; ++i) add(Event::Kind::access, kPage);
    for (const u64 other : others) add(Event::Kind::invlpg, other);
    add(Event::Kind::poke, tables.entry_at(kRoot, kPage, 1));
    program.events.back().value = 0x3000 | (model::kAll & ~model::kD) | model::kG;
    add(Event::Kind::access, kPage, reference::Kind::write);
    for (int i = 0; i < 3; ++i) add(Event::Kind::access, kPage);

    for (const mmusim::BundledCpuProfile& bundled : mmusim::bundled_cpu_profiles()) {
        const mmusim::CpuProfile profile = mmusim::parse_cpu_profile(bundled.text, bundled.name);
        for (const FrontEnd front_end :
             {FrontEnd{FrontEnd::Kind::off, 1}, FrontEnd{FrontEnd::Kind::window, 8}}) {
            try {
                Pair{program, profile, front_end, true}.run(1);
            } catch (const Mismatch& wrong) {
                FAIL(fmt::format("{}, {}: {}: {}", bundled.name, to_string(front_end),
                                 to_string(program.events[wrong.event]), wrong.what()));
            }
        }
    }
}

TEST_CASE("differential: the library and the model agree on ten million accesses", "[model][slow]")
{
    u64 accesses = check_bundled_profiles(20'000, 8, 20'000);
    u64 seed = 30'000;
    std::set<mmusim::ReplacementKind> policies;
    std::set<mmusim::Inclusion> inclusions;
    while (accesses < 10'000'000) {
        for (const mmusim::TlbSpec& tlb : model::random_profile(seed).tlbs.tlbs) {
            inclusions.insert(tlb.inclusion);
            for (const mmusim::TlbArraySpec& array : tlb.arrays) policies.insert(array.replacement.kind);
        }
        accesses += check_random_profiles(seed, 1, 10'000);
        ++seed;
    }
    CHECK(policies.size() == 7);
    CHECK(inclusions.size() == 3);
}
