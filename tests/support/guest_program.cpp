// SPDX-License-Identifier: Apache-2.0
#include "support/guest_program.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "support/random.hpp"

namespace stress {

namespace {

using namespace mmusim;
using P = reference::Paging;
using Target = RegisterWriteRecord::Target;

}  // namespace

reference::Machine reference_for(const TraceHeader& header)
{
    reference::Machine machine;
    const Cpuid& c = header.cpuid;
    machine.features = {.amd = c.vendor == Vendor::amd,
                        .width = c.physical_address_bits,
                        .nx = c.nx,
                        .pse = c.pse,
                        .pse36 = c.pse36,
                        .pge = c.pge,
                        .pcid = c.pcid,
                        .invpcid = c.invpcid,
                        .smep = c.smep,
                        .smap = c.smap,
                        .pku = c.pku,
                        .pks = c.pks,
                        .page1gb = c.page1gb,
                        .la57 = c.la57};
    for (const GfnRange& range : header.ram)
        machine.memory.ram.emplace_back(range.first.number(), range.count);
    machine.cpus.resize(header.vcpus);
    return machine;
}

// --- what a step does --------------------------------------------------------------------------------------

std::optional<unsigned> perform(reference::Machine& machine, const Record& step)
{
    if (const auto* set = std::get_if<SetRecord>(&step)) {
        reference::Cpu wanted = machine.cpus[set->vcpu];
        wanted.cr0 = set->cr0.value_or(wanted.cr0);
        wanted.cr3 = set->cr3.value_or(wanted.cr3);
        wanted.cr4 = set->cr4.value_or(wanted.cr4);
        wanted.efer = set->efer.value_or(wanted.efer);
        wanted.pkru = set->pkru.value_or(wanted.pkru);
        wanted.pkrs = set->pkrs.value_or(wanted.pkrs);
        wanted.cpl = set->cpl.value_or(static_cast<std::uint8_t>(wanted.cpl));
        wanted.ac = set->ac.value_or(wanted.ac);
        if (machine.set_registers(set->vcpu, wanted)) return std::nullopt;
        return reference::kGeneralProtection;
    }
    if (const auto* write = std::get_if<RegisterWriteRecord>(&step)) {
        switch (write->target) {
        case Target::cr0: return machine.mov_cr0(write->vcpu, write->value);
        case Target::cr3: return machine.mov_cr3(write->vcpu, write->value);
        case Target::cr4: return machine.mov_cr4(write->vcpu, write->value);
        case Target::msr: return machine.wrmsr_efer(write->vcpu, write->value);
        case Target::pkru: return machine.wrpkru(write->vcpu, static_cast<std::uint32_t>(write->value));
        case Target::cpl: machine.cpus[write->vcpu].cpl = static_cast<unsigned>(write->value); break;
        case Target::ac: machine.cpus[write->vcpu].ac = write->value != 0; break;
        }
    } else if (const auto* invlpg = std::get_if<InvlpgRecord>(&step)) {
        return machine.invlpg(invlpg->vcpu, invlpg->address);
    } else if (const auto* invpcid = std::get_if<InvpcidRecord>(&step)) {
        return machine.invpcid(invpcid->vcpu, invpcid->type, invpcid->pcid, invpcid->address);
    } else if (const auto* poke = std::get_if<PokeRecord>(&step)) {
        machine.memory.write(poke->gpa.value(), poke->bytes, poke->value);
    } else if (const auto* page = std::get_if<PageRecord>(&step)) {
        for (std::uint64_t at = 0; at < 4096; at += 8)
            machine.memory.write(page->gfn.address(at).value(), 8, 0);
        for (const auto& [index, value] : page->entries)
            machine.memory.write(page->gfn.address(index * page->width).value(), page->width, value);
    } else if (const auto* set = std::get_if<P2mSetRecord>(&step)) {
        const auto slot = set->mfn ? std::optional{set->mfn->number()} : std::nullopt;
        if (set->type == P2mType::populate_on_demand) {
            machine.memory.put_empty(set->gfn.number(), set->count);
        } else {
            machine.memory.put(set->gfn.number(), set->count, slot, set->type == P2mType::ram_ro);
        }
    } else if (const auto* clear = std::get_if<P2mClearRecord>(&step)) {
        machine.memory.take(clear->gfn.number(), clear->count);
    } else if (const auto* frames = std::get_if<SecureFramesRecord>(&step)) {
        machine.secure_frames.clear();
        for (const Gfn frame : frames->gfns) machine.secure_frames.insert(frame.number());
    } else if (const auto* mode = std::get_if<SecureModeRecord>(&step)) {
        if (mode->on) {
            machine.in_secure_mode.insert(mode->vcpu);
        } else {
            machine.in_secure_mode.erase(mode->vcpu);
        }
    }
    return std::nullopt;
}

OperandList operands_of(const Record& step)
{
    OperandList list;
    if (const auto* access = std::get_if<AccessRecord>(&step)) {
        list.push_back(access);
    } else if (const auto* instruction = std::get_if<InstructionRecord>(&step)) {
        list.push_back(&instruction->fetch);
        for (const AccessRecord& operand : instruction->operands) list.push_back(&operand);
    }
    return list;
}

Pages pages_of(const reference::Machine& machine, unsigned vcpu, Operands operands)
{
    const reference::Cpu& cpu = machine.cpus[vcpu];
    const bool long_mode = cpu.long_mode();
    const unsigned width = cpu.linear_bits();
    Pages pages;
    for (unsigned i = 0; i < operands.size(); ++i) {
        const AccessRecord& operand = *operands[i];
        const std::uint64_t first = operand.address;
        if (long_mode &&
            !(reference::canonical(first, width) && reference::canonical(first + operand.bytes - 1, width))) {
            pages.misplaced = i;
            break;
        }
        const auto kind = operand.kind == AccessKind::read    ? reference::Kind::read
                          : operand.kind == AccessKind::write ? reference::Kind::write
                                                              : reference::Kind::fetch;
        const auto add = [&](std::uint64_t address, std::uint32_t bytes) {
            const bool user = operand.cpl.value_or(static_cast<std::uint8_t>(cpu.cpl)) == 3;
            pages.parts.push_back(
                {{machine.linear_of(vcpu, address), kind, user, operand.implicit}, bytes, i});
        };
        const auto room = static_cast<std::uint32_t>(4096 - first % 4096);
        add(first, std::min(room, operand.bytes));
        if (operand.bytes > room) add(first + room, operand.bytes - room);
    }
    return pages;
}

std::uint64_t Outcome::address(const Pages& pages, std::size_t page) const
{
    const reference::Page& found = walks[page].page;
    return found.physical + (pages.parts[page].access.linear & ((std::uint64_t{1} << found.shift) - 1));
}

Outcome outcome_of(const reference::Machine& machine, unsigned vcpu, const Pages& pages)
{
    Outcome outcome;
    for (const PagePart& part : pages.parts) {
        reference::Walk walk = machine.walk(vcpu, part.access);
        outcome.fault = walk.fault;
        if (walk.fault) break;
        outcome.walks.push_back(walk);
    }
    return outcome;
}

void complete(reference::Machine& machine, unsigned vcpu, Operands operands, const Pages& pages,
              const Outcome& outcome)
{
    const bool done = !outcome.fault && !pages.misplaced;
    for (std::size_t i = 0; i < outcome.walks.size(); ++i) {
        // The writes of an instruction that faults are translated, but do not happen.
        const bool dirties = done && pages.parts[i].access.kind == reference::Kind::write;
        machine.set_bits(outcome.walks[i], dirties);
        machine.cache(vcpu, outcome.walks[i].page, dirties);
    }
    if (outcome.fault) machine.drop_page(vcpu, outcome.fault->cr2);
    if (!done) return;
    for (std::size_t i = 0, byte = 0; i < pages.parts.size(); ++i) {
        const PagePart& part = pages.parts[i];
        if (i == 0 || pages.parts[i - 1].operand != part.operand) byte = 0;
        const AccessRecord& operand = *operands[part.operand];
        for (std::uint32_t k = 0; k < part.bytes; ++k, ++byte) {
            if (operand.kind != AccessKind::write || operand.content.empty()) continue;
            machine.memory.store(outcome.address(pages, i) + k, 1,
                                 std::to_integer<std::uint64_t>(operand.content[byte]));
        }
    }
}

// --- random programs
// -----------------------------------------------------------------------------------------

namespace {

constexpr std::uint64_t kFirstPdpt = 36;  // frames 36 and 37 hold PDPTEs
constexpr std::uint64_t kLowFrames = 40;
const std::array<GfnRange, 5> kRam{{{Gfn{0}, kLowFrames},
                                    {Gfn{0x200}, 4},          // in the second 2 MiB page
                                    {Gfn{0x400}, 4},          // in the second 4 MiB page
                                    {Gfn{0x40000}, 4},        // in the second 1 GiB page
                                    {Gfn{0x100000}, 4}}};     // above 4 GiB
constexpr std::uint64_t kSpareFrames = 0x700'0000;            // machine frames that no layout uses
constexpr std::array<unsigned, 5> kIndices{0, 1, 2, 3, 511};  // of a table with 512 entries
constexpr std::array<unsigned, 6> kIndices32{0, 1, 2, 511, 512, 1023};

/// The level of the table that a frame holds, as far as the guest keeps to it.
unsigned level_of(std::uint64_t frame, P paging)
{
    constexpr std::array<unsigned, kTables> kTwo{2, 2, 2, 2, 1, 1, 1, 1, 1, 1};
    constexpr std::array<unsigned, kTables> kFour{4, 4, 3, 3, 2, 2, 2, 1, 1, 1};
    constexpr std::array<unsigned, kTables> kFive{5, 4, 3, 3, 2, 2, 2, 1, 1, 1};
    if (paging == P::four_level) return kFour[frame];
    return paging == P::five_level ? kFive[frame] : kTwo[frame];
}

unsigned top_level(P paging)
{
    if (paging == P::five_level) return 5;
    return paging == P::four_level ? 4 : 2;
}

std::uint64_t bit(unsigned number)
{
    return std::uint64_t{1} << number;
}

// No two choices in one expression whose operands have no order: the same programs with every compiler.
class Generator {
public:
    Generator(P home, std::uint64_t seed)
        : random_{seed}
        , home_{home}
        , settled_{seed % 2 == 0}
        , secure_{seed % 8 >= 6}
        , remaps_{seed % 8 >= 3 && seed % 8 <= 6}
        , reference_{reference_for(header())}
    {
    }

    GuestProgram make(unsigned steps)
    {
        start();
        const std::size_t end = program_.steps.size() + steps;
        while (program_.steps.size() < end) operate();
        program_.steps.resize(end);
        return std::move(program_);
    }

private:
    const TraceHeader& header();
    void emit(Record step);

    // --- random values ---
    reference::Cpu& cpu() { return reference_.cpus[vcpu_]; }
    std::uint16_t vcpu() const { return static_cast<std::uint16_t>(vcpu_); }
    P format();
    std::uint64_t any_frame();
    std::uint64_t entry(P paging, unsigned level);
    std::uint64_t entry_offset(P paging);
    std::uint64_t random_linear();
    std::uint64_t fresh_linear();
    std::uint64_t random_value(std::uint64_t old);
    std::uint64_t random_pdpte();
    std::uint64_t random_cr3(P paging);
    SetRecord random_registers(P paging);

    // --- steps ---
    void start();
    void write_tables(P paging, unsigned percent);
    void poke(std::uint64_t address, unsigned bytes, std::uint64_t value);
    void write_register(Target target, std::uint64_t value);
    void operate();
    AccessRecord operand(unsigned number, const AccessRecord* before);
    void instruction();
    std::optional<std::uint64_t> window_to(std::uint64_t address);
    void change_used_entry();
    void control_register();
    void change_mode(P paging);
    void invalidate();
    void from_outside();
    void secure_view();
    void change_p2m();

    support::Random64 random_;
    P home_;
    bool settled_;  // all vCPUs have paging on and keep to one mode
    bool secure_;   // frames are made secure, vCPUs go in and out of secure mode
    bool remaps_;   // the P2M changes
    GuestProgram program_;
    reference::Machine reference_;
    unsigned vcpu_ = 0;
    std::array<std::array<std::uint64_t, 6>, 4> recent_{};      // linear addresses, by vCPU
    std::array<std::array<std::uint64_t, 6>, 4> translated_{};  // those that were no fault
    std::array<reference::Entry, 16> recent_entries_{};         // that walks have used
    unsigned turn_ = 0;
    std::optional<std::uint64_t> forced_address_;  // of the next instruction's first operand
    std::optional<std::uint32_t> forced_bytes_;    // which is a write, then
};

const TraceHeader& Generator::header()
{
    TraceHeader& header = program_.header;
    header.cpuid.physical_address_bits = 40;
    for (const auto& [name, feature] : kFeatureNames) header.cpuid.*feature = true;
    if (random_.percent(30)) {  // else: everything
        header.cpuid.vendor = random_.percent(50) ? Vendor::amd : Vendor::intel;
        header.cpuid.physical_address_bits = random_.one_of(std::array<unsigned, 3>{36, 40, 52});
        for (const auto& [name, feature] : kFeatureNames) header.cpuid.*feature = random_.percent(75);
        header.cpuid.la57 |= home_ == P::five_level;
    }
    header.vcpus = random_.one_of(std::array<unsigned, 4>{1, 2, 2, 4});
    header.ram.assign(kRam.begin(), kRam.end());
    header.fetch = random_.percent(50) ? TraceHeader::Fetch::instruction : TraceHeader::Fetch::block;
    return header;
}

void Generator::emit(Record step)
{
    (void)perform(reference_, step);
    program_.steps.push_back(std::move(step));
}

/// The format that the vCPU's tables are written in.
P Generator::format()
{
    const P now = cpu().paging();
    return now == P::off ? P::two_level : now;
}

std::uint64_t Generator::any_frame()
{
    const unsigned kind = random_.below(100);
    if (kind < 40) return random_.below(kTables);
    if (kind < 80) return random_.below(kLowFrames);
    if (kind < 92) {
        const GfnRange& range = kRam[1 + random_.below(static_cast<unsigned>(kRam.size()) - 1)];
        return range.first.number() + random_.below(static_cast<unsigned>(range.count));
    }
    return random_.one_of(std::array<std::uint64_t, 4>{kLowFrames, 0x210, 0xfee00, 0x50000});
}

std::uint64_t Generator::entry(P paging, unsigned level)
{
    if (random_.percent(2)) return random_.word();
    std::uint64_t value = 0;
    const auto flag = [&](unsigned chance, unsigned number) {
        if (random_.percent(chance)) value |= bit(number);
    };
    flag(95, 0);
    flag(85, 1);
    flag(75, 2);
    flag(55, 5);
    flag(50, 6);
    flag(20, 8);
    const bool two_level = paging == P::two_level;
    const bool superpage = level > 1 && random_.percent(level == 2 ? 25 : level == 3 ? 15 : 2);
    if (superpage || (level == 1 && random_.percent(10))) value |= bit(7);
    std::uint64_t frame = any_frame();
    if (superpage) {
        // 2 MiB, 4 MiB or 1 GiB: aligned frames that have RAM behind them, and one that has none.
        frame = random_.one_of(std::array<std::uint64_t, 7>{0, 0, 0x200, 0x400, 0x40000, 0x100000, 0x80000});
        if (level >= 3) frame &= ~std::uint64_t{0x3ffff};
        if (two_level) frame &= ~std::uint64_t{0x3ff};
        flag(10, 12);  // PAT
    } else if (level > 1 && random_.percent(90)) {
        frame = random_.below(kTables);
        while (level_of(frame, paging) != level - 1) frame = (frame + 1) % kTables;
    }
    if (two_level) {
        value |= frame << 12 & 0xffff'f000;
        if (superpage) value |= frame >> 20 << 13;  // PSE-36
        if (random_.percent(3)) flag(100, 13 + random_.below(9));
        return value & 0xffff'ffff;
    }
    value |= frame << 12;
    flag(cpu().nxe() ? 6 : 1, 63);
    const bool long_mode = paging != P::pae;
    if (long_mode && random_.percent(30)) value |= std::uint64_t{random_.below(16)} << 59;
    if (random_.percent(3)) flag(100, random_.percent(50) ? 13 + random_.below(8) : 36 + random_.below(27));
    return value;
}

/// Offset in a table of an entry that accesses use.
std::uint64_t Generator::entry_offset(P paging)
{
    if (paging == P::two_level) return random_.one_of(kIndices32) * std::uint64_t{4};
    return random_.one_of(kIndices) * std::uint64_t{8};
}

/// Often an address that was used before; with paging off, an entry that walks have used.
std::uint64_t Generator::random_linear()
{
    if (cpu().paging() == P::off && random_.percent(60)) {
        return random_.one_of(recent_entries_).address;
    }
    const unsigned what = random_.below(100);
    if (what < 40) return random_.one_of(translated_[vcpu_]);
    if (what < 55) return random_.one_of(recent_[vcpu_]);
    // Often one that is mapped: few are.
    std::uint64_t linear = fresh_linear();
    const bool mapped = random_.percent(85);
    for (unsigned i = 0; i < 12 && mapped; ++i) {
        if (!reference_.walk(vcpu_, {linear, reference::Kind::read, false, false}).fault) break;
        linear = fresh_linear();
    }
    return recent_[vcpu_][random_.below(6)] = linear;
}

/// What a store puts in the place of `old`: often a table entry, or `old` with a change.
std::uint64_t Generator::random_value(std::uint64_t old)
{
    const unsigned what = random_.below(100);
    if (what < 40) {
        constexpr std::array<unsigned, 14> kBits{0, 1, 1, 2, 2, 5, 6, 6, 7, 8, 12, 13, 60, 63};
        return old ^ bit(random_.one_of(kBits));
    }
    if (what < 55) return (old & ~std::uint64_t{0xff000}) | std::uint64_t{random_.below(kLowFrames)} << 12;
    if (what < 85) return entry(format(), 1 + random_.below(top_level(format())));
    return what < 90 ? 0 : random_.word();
}

std::uint64_t Generator::fresh_linear()
{
    std::uint64_t linear = 0;
    const P paging = cpu().paging();
    switch (paging) {
    case P::off: linear = any_frame() << 12; break;
    case P::two_level:
        linear = std::uint64_t{random_.one_of(kIndices32)} << 22;
        linear |= std::uint64_t{random_.one_of(kIndices32)} << 12;
        break;
    default:
        for (unsigned shift = 12; shift < (paging == P::pae ? 30u : cpu().linear_bits()); shift += 9) {
            const unsigned limit = shift >= 39 ? 2 : 5;  // few tables at the top
            const unsigned pick = random_.below(limit);
            linear |= std::uint64_t{kIndices[pick == limit - 1 ? 4 : pick]} << shift;
        }
        if (paging == P::pae) linear |= std::uint64_t{random_.below(4)} << 30;
        if (paging != P::pae && (linear >> (cpu().linear_bits() - 1) & 1) != 0) {
            linear |= ~std::uint64_t{0} << cpu().linear_bits();
        }
        if (paging != P::pae && random_.percent(2)) linear ^= bit(60);  // not canonical
    }
    if (random_.percent(60)) return linear | entry_offset(format());
    return linear | (random_.percent(50) ? 4096 - 1 - random_.below(16) : random_.below(4096));
}

std::uint64_t Generator::random_cr3(P paging)
{
    if (paging == P::pae) {
        const std::uint64_t frame = kFirstPdpt + random_.below(2);
        return frame << 12 | std::uint64_t{random_.below(4)} << 5;
    }
    if (random_.percent(3)) return any_frame() << 12;
    std::uint64_t frame = random_.below(kTables);
    while (level_of(frame, paging) != top_level(paging)) frame = (frame + 1) % kTables;
    return frame << 12;
}

std::uint64_t Generator::random_pdpte()
{
    const std::uint64_t table = std::uint64_t{random_.below(4)} << 12;
    return table | (random_.percent(90) ? 1 : 0);
}

SetRecord Generator::random_registers(P paging)
{
    const reference::Features& f = reference_.features;
    SetRecord wanted;
    wanted.vcpu = vcpu();
    const auto maybe = [&](unsigned number, unsigned chance, bool there = true) {
        return random_.percent(chance) && there ? bit(number) : 0;
    };
    std::uint64_t cr4 = maybe(reference::kPse, 80, f.pse);
    cr4 |= maybe(reference::kPge, 50, f.pge);
    cr4 |= maybe(reference::kSmep, 25, f.smep);
    cr4 |= maybe(reference::kSmap, 25, f.smap);
    cr4 |= maybe(reference::kPke, 30, f.pku);
    cr4 |= maybe(reference::kPks, 20, f.pks);
    std::uint64_t efer = maybe(11, 80, f.nx);
    const bool long_mode = paging == P::four_level || paging == P::five_level;
    if (long_mode || paging == P::pae) cr4 |= bit(reference::kPae);
    if (long_mode) efer |= bit(8);
    if (paging == P::five_level) cr4 |= bit(reference::kLa57);
    if (long_mode) cr4 |= maybe(reference::kPcide, 40, f.pcid);
    std::uint64_t cr3 = random_cr3(paging);
    if ((cr4 & bit(reference::kPcide)) != 0) cr3 |= random_.below(2);
    wanted.cr0 = (paging == P::off ? 0x11 : 0x8000'0011) | maybe(16, 70);
    wanted.cr3 = cr3;
    wanted.cr4 = cr4;
    wanted.efer = efer;
    wanted.cpl = std::uint8_t{0};
    wanted.ac = random_.percent(40);
    const auto rights = [&] {
        return random_.percent(40) ? static_cast<std::uint32_t>(random_.word() & random_.word()) : 0;
    };
    wanted.pkru = rights();
    wanted.pkrs = rights();
    return wanted;
}

void Generator::start()
{
    write_tables(home_, 90);
    for (vcpu_ = 0; vcpu_ < reference_.cpus.size(); ++vcpu_) {
        // The last of several often has paging off, and so writes where it likes.
        if (settled_ || random_.percent(vcpu_ > 0 && vcpu_ + 1 == reference_.cpus.size() ? 40 : 97)) {
            emit(random_registers(home_));
        }
    }
    vcpu_ = 0;
}

void Generator::write_tables(P paging, unsigned percent)
{
    const bool two_level = paging == P::two_level;
    const auto fill = [&](std::uint64_t frame, unsigned index) {
        if (!random_.percent(percent)) return;
        const unsigned bytes = two_level ? 4 : 8;
        poke(frame * 4096 + index * bytes, bytes, entry(paging, level_of(frame, paging)));
    };
    for (std::uint64_t frame = 0; frame < kTables; ++frame) {
        if (two_level) {
            for (const unsigned index : kIndices32) fill(frame, index);
        } else {
            for (const unsigned index : kIndices) fill(frame, index);
        }
    }
    for (std::uint64_t i = 0; i < 32 && paging == P::pae; ++i) {
        std::uint64_t pdpte = random_pdpte();
        if (!settled_ && random_.percent(2)) pdpte |= 2;
        poke((kFirstPdpt + i / 16) << 12 | i % 16 << 3, 8, pdpte);
    }
}

void Generator::poke(std::uint64_t address, unsigned bytes, std::uint64_t value)
{
    const std::uint64_t mask = bytes == 8 ? ~std::uint64_t{0} : bit(8 * bytes) - 1;
    if (reference_.memory.is_ram(address)) emit(PokeRecord{GuestPhysical{address}, bytes, value & mask});
}

void Generator::write_register(Target target, std::uint64_t value)
{
    RegisterWriteRecord record;
    record.target = target;
    record.vcpu = vcpu();
    record.value = value;
    if (target == Target::msr) record.msr = 0xc000'0080;
    emit(record);
}

void Generator::operate()
{
    vcpu_ = random_.below(static_cast<unsigned>(reference_.cpus.size()));
    if (secure_ && random_.percent(12)) return secure_view();
    if (remaps_ && random_.percent(6)) return change_p2m();
    const unsigned what = random_.below(100);
    const bool astray = !settled_ && cpu().paging() != home_;
    if (settled_ && (what < 30 || what >= 94)) {
        change_used_entry();
    } else if (what < 50) {
        instruction();
    } else if (what < 62) {
        change_used_entry();
    } else if (what < 77) {
        control_register();
    } else if (what < 86) {
        invalidate();
    } else if (what < 92) {
        from_outside();
    } else if (what < 94) {
        if (!settled_)
            change_mode(
                random_.one_of(std::array<P, 5>{P::off, P::two_level, P::pae, P::four_level, P::five_level}));
    } else if (astray && cpu().paging() != P::off) {
        change_mode(home_);
    } else if (what < 97) {
        write_register(Target::pkru, static_cast<std::uint32_t>(random_.word() & random_.word()));
    } else {
        write_register(Target::ac, cpu().ac ? 0 : 1);
    }
}

AccessRecord Generator::operand(unsigned number, const AccessRecord* before)
{
    AccessRecord operand;
    operand.vcpu = vcpu();
    // Operands of one instruction are often near each other.
    operand.address = before != nullptr && random_.percent(30) ? before->address + random_.below(8192) - 4096
                                                               : random_linear();
    operand.kind = random_.one_of(std::array{AccessKind::read, AccessKind::write, AccessKind::write,
                                             AccessKind::read, AccessKind::fetch});
    if (number > 0 && operand.kind == AccessKind::fetch) operand.kind = AccessKind::write;
    const bool four_bytes = format() == P::two_level && random_.percent(80);
    operand.bytes = random_.percent(60) ? (four_bytes ? 4u : 8u) : 1 + random_.below(16);
    bool user = random_.percent(40);
    if (forced_address_ && number == 0) {
        operand.address = *forced_address_;
        if (forced_bytes_) {
            operand.kind = AccessKind::write;
            operand.bytes = *forced_bytes_;
            user &= !settled_;
        }
    }
    operand.cpl = user ? std::uint8_t{3} : std::uint8_t{0};
    operand.implicit = operand.kind != AccessKind::fetch && random_.percent(8);
    operand.address = reference_.linear_of(vcpu_, operand.address);
    if (cpu().long_mode() && random_.percent(20)) operand.segment = Segment::ss;
    return operand;
}

void Generator::instruction()
{
    boost::container::static_vector<AccessRecord, kMaxOperands> parts;
    const unsigned count = random_.percent(70) ? 1 : 2 + random_.below(3);
    // What becomes a table does so in the middle of the instruction.
    if (count > 1 && random_.percent(10)) emit(ShadowBlowRecord{});
    for (unsigned i = 0; i < count; ++i) parts.push_back(operand(i, i == 0 ? nullptr : &parts.back()));
    if (count > 1 && parts[0].kind != AccessKind::fetch) {
        // Several operands are an instruction, and its fetch comes first. One that has to be a write waits.
        const AccessRecord write = parts[0];
        parts[0].kind = AccessKind::fetch;
        parts[0].implicit = false;
        if (forced_bytes_) {
            parts[0].address = reference_.linear_of(vcpu_, random_.one_of(translated_[vcpu_]));
            parts[1] = write;
        }
    }
    OperandList operands;
    for (const AccessRecord& part : parts) operands.push_back(&part);
    const Pages pages = pages_of(reference_, vcpu_, operands);
    const Outcome outcome = outcome_of(reference_, vcpu_, pages);
    for (unsigned i = 0; i < count; ++i) {
        if (parts[i].kind != AccessKind::write) continue;
        std::uint64_t old = 0;
        for (std::size_t page = outcome.walks.size(); page-- > 0;) {
            if (pages.parts[page].operand == i) old = reference_.memory.read(outcome.address(pages, page), 8);
        }
        const std::uint64_t value = random_value(old);
        for (std::uint32_t k = 0; k < parts[i].bytes; ++k)
            parts[i].content.push_back(static_cast<std::byte>(value >> k % 8 * 8));
    }
    for (std::size_t page = 0; page < outcome.walks.size(); ++page) {
        translated_[vcpu_][random_.below(6)] = parts[pages.parts[page].operand].address;
        for (const reference::Entry& used : outcome.walks[page].used) recent_entries_[turn_++ % 16] = used;
    }
    complete(reference_, vcpu_, operands, pages, outcome);
    if (count == 1) {
        program_.steps.emplace_back(std::move(parts[0]));
    } else {
        InstructionRecord record{std::move(parts[0]), {}};
        record.operands.assign(std::make_move_iterator(parts.begin() + 1),
                               std::make_move_iterator(parts.end()));
        program_.steps.emplace_back(std::move(record));
    }
}

/// A linear address at which the vCPU's supervisor may write the guest-physical one, if a few tries find one.
std::optional<std::uint64_t> Generator::window_to(std::uint64_t address)
{
    for (unsigned i = 0; i < 60; ++i) {
        const std::uint64_t page = fresh_linear() & ~std::uint64_t{0xfff};
        const reference::Walk walk = reference_.walk(vcpu_, {page, reference::Kind::write, false, false});
        const std::uint64_t in_page = page & (bit(walk.page.shift) - 1);
        if (!walk.fault && walk.page.physical + in_page == (address & ~std::uint64_t{0xfff}))
            return page | (address & 0xfff);
    }
    return std::nullopt;
}

/// An entry that a translation came from is changed by a vCPU with paging off, if there is one, or through a
/// mapping of its table; then the address is used again.
void Generator::change_used_entry()
{
    const std::vector<reference::Page>& cached = cpu().cached;
    if (cached.empty()) return instruction();
    const reference::Page page = cached[random_.below(static_cast<unsigned>(cached.size()))];
    const std::uint64_t linear = page.linear | (entry_offset(format()) & (bit(page.shift) - 1));
    const reference::Walk walk = reference_.walk(vcpu_, {linear, reference::Kind::read, false, false});
    const unsigned user = vcpu_;
    vcpu_ = static_cast<unsigned>(reference_.cpus.size()) - 1;
    if (!walk.used.empty()) {
        const auto count = static_cast<unsigned>(walk.used.size());
        // The leaf often: it may go out of sync.
        const reference::Entry entry = walk.used[random_.percent(50) ? count - 1 : random_.below(count)];
        forced_address_ = entry.address;
        if (cpu().paging() != P::off) forced_address_ = settled_ ? window_to(entry.address) : std::nullopt;
        forced_bytes_ = entry.bytes;
    }
    if (forced_address_) instruction();
    forced_bytes_.reset();
    vcpu_ = user;
    forced_address_ = linear;
    instruction();
    forced_address_.reset();
}

void Generator::control_register()
{
    const unsigned what = random_.below(100);
    if (what < 45) {
        std::uint64_t value = random_cr3(format());
        if (cpu().cr4_bit(reference::kPcide)) {
            value |= random_.below(2);
            if (random_.percent(40)) value |= bit(63);
        }
        if (random_.percent(3)) value |= bit(61);
        write_register(Target::cr3, value);
    } else if (what < 60) {
        // WP mostly; CD loads PDPTEs; NW alone is refused
        const unsigned number = random_.one_of(std::array<unsigned, 6>{16, 16, 16, 16, 30, 29});
        write_register(Target::cr0, cpu().cr0 ^ bit(number));
    } else if (what < 85) {
        unsigned number = random_.one_of(
            std::array<unsigned, 12>{reference::kPse, reference::kPge, reference::kSmep, reference::kSmap,
                                     reference::kPke, reference::kPks, reference::kPcide, reference::kLa57,
                                     reference::kPae, reference::kPse, reference::kSmep, 28});
        if (settled_ && number == reference::kPae && !cpu().long_mode()) number = reference::kPge;
        write_register(Target::cr4, cpu().cr4 ^ bit(number));
    } else if (what < 97) {
        std::uint64_t value = cpu().efer ^ bit(11);
        if (random_.percent(5)) value ^= bit(8);
        write_register(Target::msr, value);
    } else {
        write_register(Target::cpl, cpu().cpl == 0 ? 3 : 0);
    }
}

/// As a guest does it: PCIDE and PG off, CR4, EFER, CR3, PG on; accesses come in between.
void Generator::change_mode(P paging)
{
    if (paging == P::five_level && !reference_.features.la57) paging = P::four_level;
    const SetRecord wanted = random_registers(paging);
    if (random_.percent(15)) return emit(wanted);
    write_register(Target::cpl, 0);
    const std::uint64_t pcide = bit(reference::kPcide);
    const auto step = [&](Target target, std::uint64_t value) {
        write_register(target, value);
        if (random_.percent(20)) instruction();
    };
    step(Target::cr4, cpu().cr4 & ~pcide);
    step(Target::cr0, cpu().cr0 & 0x7fff'ffff);
    if (random_.percent(50) && paging != P::off) write_tables(paging, 60);
    step(Target::cr4, *wanted.cr4 & ~pcide);
    write_register(Target::msr, *wanted.efer);
    step(Target::cr3, *wanted.cr3 & ~std::uint64_t{0xf});
    step(Target::cr0, *wanted.cr0);
    step(Target::cr4, *wanted.cr4);
}

void Generator::invalidate()
{
    const std::uint64_t linear = reference_.linear_of(vcpu_, random_linear());
    if (random_.percent(70))
        return emit(InvlpgRecord{.vcpu = vcpu(), .address = linear, .gap = 0, .fault = {}});
    const std::uint64_t type = random_.below(random_.percent(5) ? 6 : 4);
    const std::uint64_t pcid = random_.percent(3) ? 0x1000 : random_.below(2);
    emit(InvpcidRecord{.vcpu = vcpu(), .type = type, .pcid = pcid, .address = linear, .gap = 0, .fault = {}});
}

void Generator::from_outside()
{
    const unsigned what = random_.below(100);
    if (what < 30) {
        const reference::Entry& at = random_.one_of(recent_entries_);
        poke(at.address, at.bytes, random_value(reference_.memory.read(at.address, at.bytes)));
    } else if (what < 60) {
        const std::uint64_t frame = random_.below(kTables);
        const unsigned bytes = format() == P::two_level ? 4 : 8;
        const std::uint64_t value = entry(format(), level_of(frame, format()));
        poke(frame * 4096 + entry_offset(format()), bytes, value);
    } else if (what < 70) {
        const std::uint64_t pdpte = random_pdpte();
        poke(kFirstPdpt << 12 | std::uint64_t{random_.below(16)} << 3, 8, pdpte);
    } else if (what < 75) {
        write_tables(format(), 30);  // else they get worse and worse
    } else if (what < 85) {
        const Gfn frame{any_frame()};
        if (reference_.memory.is_ram(frame.address().value()))
            emit(PageRecord{.gfn = frame, .width = 8, .entries = {}});
    } else {
        emit(ShadowBlowRecord{});
    }
}

/// Frames of tables and others become secure or cease to be; a vCPU enters or leaves secure mode.
void Generator::secure_view()
{
    if (!random_.percent(25)) return emit(SecureModeRecord{vcpu(), random_.percent(50)});
    SecureFramesRecord secure;
    for (unsigned i = random_.below(12); i > 0; --i) {
        const Gfn frame{any_frame()};
        if (!reference_.memory.is_ram(frame.address().value())) continue;
        if (std::find(secure.gfns.begin(), secure.gfns.end(), frame) == secure.gfns.end())
            secure.gfns.push_back(frame);
    }
    emit(secure);
}

/// Frames get other memory, none, memory that they share with nobody, or what they have as something else.
/// Tables mostly get entries again: else no program gets far.
void Generator::change_p2m()
{
    const std::uint64_t frame = any_frame();
    const std::uint64_t count = random_.percent(80) ? 1 : 1 + random_.below(3);
    const unsigned what = random_.below(100);
    if (what < 20) {
        emit(P2mClearRecord{Gfn{frame}, count});
    } else {
        P2mSetRecord set;
        set.gfn = Gfn{frame};
        set.count = count;
        if (what < 40) {
            set.type = P2mType::populate_on_demand;
        } else {
            constexpr std::array kTypes{P2mType::ram_rw, P2mType::ram_rw, P2mType::ram_ro,
                                        P2mType::ram_logdirty};
            set.type = random_.one_of(kTypes);
            if (what < 75) set.mfn = Mfn{kSpareFrames + random_.below(8)};
        }
        emit(set);
    }
    if (frame >= kTables || !random_.percent(80)) return;
    const unsigned bytes = format() == P::two_level ? 4 : 8;
    const unsigned level = level_of(frame, format());
    for (unsigned i = 0; i < 6; ++i) {
        const std::uint64_t value = entry(format(), level);
        poke(frame * 4096 + entry_offset(format()), bytes, value);
    }
}

}  // namespace

GuestProgram random_program(P home, std::uint64_t seed, unsigned steps)
{
    return Generator{home, seed}.make(steps);
}

}  // namespace stress
