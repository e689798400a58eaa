// SPDX-License-Identifier: Apache-2.0
//
// Refinement: whatever translates (the guest's own tables, or shadows under any policy, step and P2M
// layout), a guest observes what the plain reference model says.
//
// Random guest programs over a small RAM. Tables hold mostly sensible entries: tables shared between
// address spaces and between levels, entries that reference their own table, superpages of all sizes,
// frames outside RAM, reserved bits now and then, A and D clear or set. The operations are accesses of
// all kinds, alone or several as one instruction, stores to tables through translated addresses, loads of
// control registers (some of them refused), invalidations, mode changes, and changes from outside.
//
// What must hold:
//   native, coherent policies    each fault, error code, CR2, guest-physical address, and each bit of
//                                memory with A and D is the reference's
//   policies with stale levels   each fault is that of a fresh walk. An access that ends otherwise than a
//                                fresh walk is explained by ONE earlier walk whose translation could still
//                                be cached; A and D bits may be missing only after such an access
// and audit() finds nothing. A program that fails is run again with a log of its operations.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/reference_machine.hpp"

namespace {

using namespace mmusim;

struct Setup {
    TranslationMode mode = TranslationMode::native;
    std::string policy;  // of a shadow mode
    Populate populate = Populate::leaf;
    std::string layout = "identity";
    bool secure = false;       // frames are made secure, vCPUs go in and out of secure mode
    bool cr3_targets = false;  // with a list of CR3 values that need no exit
};

std::string to_string(const Setup& setup)
{
    if (setup.mode == TranslationMode::native) return "native";
    return fmt::format("{} {} populate {} p2m {}{}{}", name_of(setup.mode), setup.policy,
                       setup.populate == Populate::leaf ? "leaf" : "step", setup.layout,
                       setup.secure ? " secure" : "", setup.cr3_targets ? " cr3_targets" : "");
}

/// What a program found to be wrong.
struct Mismatch : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Random = support::Random64;

// --- the guest's RAM -----------------------------------------------------------------------------------

constexpr unsigned kTables = 10;          // frames 0 to 9 hold tables
constexpr std::uint64_t kFirstPdpt = 36;  // frames 36 and 37 hold PDPTEs
constexpr std::uint64_t kLowFrames = 40;
const std::vector<GfnRange> kRam{{Gfn{0}, kLowFrames},
                                 {Gfn{0x200}, 4},             // in the second 2 MiB page
                                 {Gfn{0x400}, 4},             // in the second 4 MiB page
                                 {Gfn{0x40000}, 4},           // in the second 1 GiB page
                                 {Gfn{0x100000}, 4}};         // above 4 GiB
constexpr std::array<unsigned, 5> kIndices{0, 1, 2, 3, 511};  // of a table with 512 entries
constexpr std::array<unsigned, 6> kIndices32{0, 1, 2, 511, 512, 1023};

/// The level of the table that a frame holds, as far as the guest keeps to it.
unsigned level_of(unsigned frame, reference::Paging paging)
{
    using P = reference::Paging;
    constexpr std::array<unsigned, kTables> kTwo{2, 2, 2, 2, 1, 1, 1, 1, 1, 1};
    constexpr std::array<unsigned, kTables> kFour{4, 4, 3, 3, 2, 2, 2, 1, 1, 1};
    constexpr std::array<unsigned, kTables> kFive{5, 4, 3, 3, 2, 2, 2, 1, 1, 1};
    if (paging == P::four_level) return kFour[frame];
    return paging == P::five_level ? kFive[frame] : kTwo[frame];
}

unsigned top_level(reference::Paging paging)
{
    using P = reference::Paging;
    if (paging == P::five_level) return 5;
    return paging == P::four_level ? 4 : 2;
}

/// What programs came across: a sweep that never meets what it is about shows nothing.
struct Coverage {
    std::uint64_t placed = 0;     // pages that were translated
    std::uint64_t faults = 0;     // #PF of the guest
    std::uint64_t stale = 0;      // pages whose translation was a stale one
    std::uint64_t emulated = 0;   // pages that the hypervisor accessed for the guest
    std::uint64_t to_tables = 0;  // writes to the frames of tables
    std::uint64_t unsynced = 0;   // tables gone out of sync
    std::uint64_t secure = 0;     // pages accessed in secure frames
    std::uint64_t withheld = 0;   // #PF at a page whose first frame is secure
    std::uint64_t unseen = 0;     // MOV CR3 without an exit
};

class Program {
public:
    Program(const Setup& setup, std::uint64_t seed, bool log)
        : random_{seed}
        , log_{log}
        , setup_{setup}
        , machine_{config_for(setup, random_, reference_)}
        , settled_{seed % 2 == 0}
    {
        const ShadowEngine* shadow = machine_.shadow();
        coherent_ =
            (shadow == nullptr || shadow->policy().coherent()) && machine_.config().cpu->tlbs.tlbs.empty();
        reference_.cpus.resize(machine_.config().vcpus);
        for (const GfnRange& range : kRam) {
            reference_.memory.ram.emplace_back(range.first.number(), range.count);
        }
    }

    /// Throws Mismatch.
    void run(unsigned operations)
    {
        start();
        for (unsigned i = 0; i < operations; ++i) {
            operate();
            if (i % 8 == 7) audit();
            if (i % 16 == 15) compare_memory();
        }
        audit();
        compare_memory();
    }

    [[nodiscard]] const std::string& log() const { return text_; }
    [[nodiscard]] const Coverage& coverage() const { return coverage_; }
    [[nodiscard]] Machine& machine() { return machine_; }
    [[nodiscard]] std::uint64_t unsynced() const
    {
        return machine_.shadow() != nullptr ? machine_.shadow()->counters().unsync : 0;
    }

private:
    static MachineConfig config_for(const Setup& setup, Random& random, reference::Machine& reference);

    template <class... T>
    void note(fmt::format_string<T...> format, T&&... values)
    {
        if (!log_) return;
        text_ += fmt::format(format, std::forward<T>(values)...);
        text_ += '\n';
    }
    template <class... T>
    [[noreturn]] void mismatch(fmt::format_string<T...> format, T&&... values)
    {
        throw Mismatch(fmt::format(format, std::forward<T>(values)...));
    }

    // --- random values ---
    reference::Cpu& cpu() { return reference_.cpus[vcpu_]; }
    reference::Paging format();
    std::uint64_t any_frame();
    std::uint64_t entry(reference::Paging paging, unsigned level);
    std::uint64_t entry_offset(reference::Paging paging);
    std::uint64_t random_linear();
    std::uint64_t fresh_linear();
    std::uint64_t random_value(std::uint64_t old);
    std::uint64_t random_cr3(reference::Paging paging);
    reference::Cpu random_registers(reference::Paging paging);

    // --- operations ---
    void start();
    void write_tables(reference::Paging paging, unsigned percent);
    void poke(std::uint64_t address, unsigned bytes, std::uint64_t value);
    void set_registers(const reference::Cpu& wanted);
    void operate();
    void instruction();
    [[nodiscard]] std::optional<std::uint64_t> window_to(std::uint64_t address);
    void change_used_entry();
    void control_register();
    void change_mode();
    void invalidate();
    void from_outside();
    void secure_view();

    // --- checks ---
    template <class Answer>
    void same(const char* what, const Answer& machine, std::optional<unsigned> reference);
    void same_registers();
    void audit();
    void compare_memory();
    std::uint64_t machine_word(const reference::Entry& entry) const;

    Random random_;
    bool log_;
    Setup setup_;
    reference::Machine reference_;
    Machine machine_;
    bool coherent_ = true;
    unsigned vcpu_ = 0;
    std::array<std::array<std::uint64_t, 6>, 3> recent_{};      // linear addresses, by vCPU
    std::array<std::array<std::uint64_t, 6>, 3> translated_{};  // those that were no fault
    std::array<reference::Entry, 16> recent_entries_{};         // that walks have used
    unsigned turn_ = 0;
    bool settled_ = false;                         ///< all vCPUs have paging on and keep to one mode
    std::optional<std::uint64_t> forced_address_;  // of the next instruction's first operand
    std::optional<std::uint32_t> forced_bytes_;    // which is a write, then
    Coverage coverage_;
    std::string text_;
};

/// Whether entries are propagated that no access has asked for, as by the speculative walks of a CPU, or
/// upper entries outlive what is below them, as in paging-structure caches. What such a shadow may hold the
/// coherence oracle knows, which has tests of its own.
bool speculates(const ShadowPolicy& policy)
{
    return policy.declared().protects_tables && !policy.declared().coherent();
}

MachineConfig Program::config_for(const Setup& setup, Random& random, reference::Machine& reference)
{
    reference::Features& f = reference.features;
    if (random.percent(30)) {  // else: everything
        f.amd = random.percent(50);
        f.width = random.one_of(std::array<unsigned, 3>{36, 40, 52});
        for (bool* feature : {&f.nx, &f.pse, &f.pse36, &f.pge, &f.pcid, &f.invpcid, &f.smep, &f.smap, &f.pku,
                              &f.pks, &f.page1gb, &f.la57}) {
            *feature = random.percent(75);
        }
    }
    MachineConfig config;
    config.cpuid = {.vendor = f.amd ? Vendor::amd : Vendor::intel,
                    .physical_address_bits = f.width,
                    .nx = f.nx,
                    .pse = f.pse,
                    .pse36 = f.pse36,
                    .pge = f.pge,
                    .pcid = f.pcid,
                    .invpcid = f.invpcid,
                    .smep = f.smep,
                    .smap = f.smap,
                    .pku = f.pku,
                    .pks = f.pks,
                    .page1gb = f.page1gb,
                    .la57 = f.la57};
    config.vcpus = random.percent(30) ? 1 : 2 + random.below(2);
    config.ram = kRam;
    config.mode = setup.mode;
    if (setup.mode != TranslationMode::native) {
        config.p2m = parse_p2m_layout(setup.layout).value();
        config.policy = builtin_shadow_policies().find(setup.policy);
        config.check_coherence = speculates(*config.policy());
        config.populate = setup.populate;
        if (setup.cr3_targets) config.cr3_targets = {0, 0x1000, 0x2000, 0x3000};
        // What a TLB keeps must go too.
        if (setup.secure && random.percent(50)) {
            config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile("golden_cove"));
            config.check_coherence = true;
        }
    }
    return config;
}

// --- random values ---------------------------------------------------------------------------------------

/// The format that the vCPU's tables are written in.
reference::Paging Program::format()
{
    const reference::Paging now = cpu().paging();
    return now == reference::Paging::off ? reference::Paging::two_level : now;
}

std::uint64_t Program::any_frame()
{
    const unsigned kind = random_.below(100);
    if (kind < 40) return random_.below(kTables);
    if (kind < 80) return random_.below(kLowFrames);
    if (kind < 92) {
        const auto& range = kRam[1 + random_.below(static_cast<unsigned>(kRam.size()) - 1)];
        return range.first.number() + random_.below(static_cast<unsigned>(range.count));
    }
    return random_.one_of(std::array<std::uint64_t, 4>{kLowFrames, 0x210, 0xfee00, 0x50000});
}

std::uint64_t Program::entry(reference::Paging paging, unsigned level)
{
    if (random_.percent(3)) return random_.word();
    std::uint64_t value = 0;
    const auto flag = [&](unsigned chance, unsigned bit) {
        if (random_.percent(chance)) value |= std::uint64_t{1} << bit;
    };
    flag(92, 0);
    flag(85, 1);
    flag(75, 2);
    flag(55, 5);
    flag(50, 6);
    flag(20, 8);
    const bool two_level = paging == reference::Paging::two_level;
    const bool superpage = level > 1 && random_.percent(level == 2 ? 25 : level == 3 ? 15 : 2);
    if (superpage || (level == 1 && random_.percent(10))) value |= 1u << 7;
    std::uint64_t frame = any_frame();
    if (superpage) {
        // 2 MiB, 4 MiB or 1 GiB: aligned frames that have RAM behind them, and one that has none.
        frame = random_.one_of(std::array<std::uint64_t, 7>{0, 0, 0x200, 0x400, 0x40000, 0x100000, 0x80000});
        if (level >= 3) frame &= ~std::uint64_t{0x3ffff};
        if (two_level) frame &= ~std::uint64_t{0x3ff};
        flag(10, 12);  // PAT
    } else if (level > 1 && random_.percent(90)) {
        frame = random_.below(kTables);
        while (level_of(static_cast<unsigned>(frame), paging) != level - 1) frame = (frame + 1) % kTables;
    }
    if (two_level) {
        value |= frame << 12 & 0xffff'f000;
        if (superpage) value |= frame >> 20 << 13;  // PSE-36
        if (random_.percent(3)) flag(100, 13 + random_.below(9));
        return value & 0xffff'ffff;
    }
    value |= frame << 12;
    flag(cpu().nxe() ? 12 : 1, 63);
    const bool long_mode = paging != reference::Paging::pae;
    if (long_mode && random_.percent(30)) value |= std::uint64_t{random_.below(16)} << 59;
    if (random_.percent(3)) flag(100, random_.percent(50) ? 13 + random_.below(8) : 36 + random_.below(27));
    return value;
}

/// Offset in a table of an entry that accesses use.
std::uint64_t Program::entry_offset(reference::Paging paging)
{
    if (paging == reference::Paging::two_level) return random_.one_of(kIndices32) * std::uint64_t{4};
    return random_.one_of(kIndices) * std::uint64_t{8};
}

/// Often an address that was used before; with paging off, an entry that walks have used.
std::uint64_t Program::random_linear()
{
    if (cpu().paging() == reference::Paging::off && random_.percent(60)) {
        return random_.one_of(recent_entries_).address;
    }
    const unsigned what = random_.below(100);
    if (what < 40) return random_.one_of(translated_[vcpu_]);
    if (what < 55) return random_.one_of(recent_[vcpu_]);
    return recent_[vcpu_][random_.below(6)] = fresh_linear();
}

/// What a store puts in the place of `old`: often a table entry, or `old` with a change.
std::uint64_t Program::random_value(std::uint64_t old)
{
    const unsigned what = random_.below(100);
    if (what < 40) {
        constexpr std::array<unsigned, 14> kBits{0, 1, 1, 2, 2, 5, 6, 6, 7, 8, 12, 13, 60, 63};
        return old ^ std::uint64_t{1} << random_.one_of(kBits);
    }
    if (what < 55) return (old & ~std::uint64_t{0xff000}) | std::uint64_t{random_.below(kLowFrames)} << 12;
    if (what < 85) return entry(format(), 1 + random_.below(top_level(format())));
    return what < 90 ? 0 : random_.word();
}

std::uint64_t Program::fresh_linear()
{
    using P = reference::Paging;
    std::uint64_t linear = 0;
    const P paging = cpu().paging();
    switch (paging) {
    case P::off: linear = any_frame() << 12; break;
    case P::two_level:
        linear = std::uint64_t{random_.one_of(kIndices32)} << 22 | std::uint64_t{random_.one_of(kIndices32)}
                                                                       << 12;
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
        if (paging != P::pae && random_.percent(2)) linear ^= std::uint64_t{1} << 60;  // not canonical
    }
    if (random_.percent(60)) return linear | entry_offset(format());
    return linear | (random_.percent(50) ? 4096 - 1 - random_.below(16) : random_.below(4096));
}

std::uint64_t Program::random_cr3(reference::Paging paging)
{
    if (paging == reference::Paging::pae) {
        return (kFirstPdpt + random_.below(2)) << 12 | std::uint64_t{random_.below(4)} << 5;
    }
    if (random_.percent(3)) return any_frame() << 12;
    unsigned frame = random_.below(kTables);
    while (level_of(frame, paging) != top_level(paging)) frame = (frame + 1) % kTables;
    return std::uint64_t{frame} << 12;
}

reference::Cpu Program::random_registers(reference::Paging paging)
{
    using P = reference::Paging;
    const reference::Features& f = reference_.features;
    reference::Cpu wanted;
    const auto bit = [&](std::uint64_t& target, unsigned number, unsigned chance, bool there = true) {
        if (random_.percent(chance) && there) target |= std::uint64_t{1} << number;
    };
    wanted.cr0 = paging == P::off ? 0x11 : 0x8000'0011;
    bit(wanted.cr0, 16, 70);
    bit(wanted.cr4, reference::kPse, 80, f.pse);
    bit(wanted.cr4, reference::kPge, 50, f.pge);
    bit(wanted.cr4, reference::kSmep, 25, f.smep);
    bit(wanted.cr4, reference::kSmap, 25, f.smap);
    bit(wanted.cr4, reference::kPke, 30, f.pku);
    bit(wanted.cr4, reference::kPks, 20, f.pks);
    bit(wanted.efer, 11, 80, f.nx);
    const bool long_mode = paging == P::four_level || paging == P::five_level;
    if (long_mode || paging == P::pae) wanted.cr4 |= 1u << reference::kPae;
    if (long_mode) wanted.efer |= 1u << 8;
    if (paging == P::five_level) wanted.cr4 |= 1u << reference::kLa57;
    if (long_mode) bit(wanted.cr4, reference::kPcide, 40, f.pcid);
    wanted.cr3 = random_cr3(paging);
    if ((wanted.cr4 >> reference::kPcide & 1) != 0) wanted.cr3 |= random_.below(2);
    wanted.ac = random_.percent(40);
    if (random_.percent(40)) wanted.pkru = static_cast<std::uint32_t>(random_.word() & random_.word());
    if (random_.percent(40)) wanted.pkrs = static_cast<std::uint32_t>(random_.word() & random_.word());
    return wanted;
}

// --- operations --------------------------------------------------------------------------------------------

void Program::start()
{
    using P = reference::Paging;
    P paging = random_.one_of(std::array<P, 4>{P::two_level, P::pae, P::four_level, P::five_level});
    if (paging == P::five_level && !reference_.features.la57) paging = P::four_level;
    write_tables(paging, 90);
    for (vcpu_ = 0; vcpu_ < reference_.cpus.size(); ++vcpu_) {
        // The last of several often has paging off, and so writes where it likes.
        if (settled_ || random_.percent(vcpu_ > 0 && vcpu_ + 1 == reference_.cpus.size() ? 40 : 97)) {
            set_registers(random_registers(paging));
        }
    }
    vcpu_ = 0;
}

void Program::write_tables(reference::Paging paging, unsigned percent)
{
    const bool two_level = paging == reference::Paging::two_level;
    const auto fill = [&](unsigned frame, unsigned index) {
        if (!random_.percent(percent)) return;
        const unsigned bytes = two_level ? 4 : 8;
        poke(frame * 4096u + index * bytes, bytes, entry(paging, level_of(frame, paging)));
    };
    for (unsigned frame = 0; frame < kTables; ++frame) {
        if (two_level) {
            for (const unsigned index : kIndices32) fill(frame, index);
        } else {
            for (const unsigned index : kIndices) fill(frame, index);
        }
    }
    for (std::uint64_t i = 0; i < 32 && paging == reference::Paging::pae; ++i) {
        std::uint64_t pdpte = std::uint64_t{random_.below(4)} << 12 | (random_.percent(90) ? 1 : 0);
        if (random_.percent(2)) pdpte |= 2;
        poke((kFirstPdpt + i / 16) << 12 | i % 16 << 3, 8, pdpte);
    }
}

void Program::poke(std::uint64_t address, unsigned bytes, std::uint64_t value)
{
    note("poke {:#x} size {} value {:#x}", address, bytes, value);
    std::array<std::byte, 8> raw{};
    std::memcpy(raw.data(), &value, 8);
    machine_.poke(GuestPhysical{address}, std::span{raw}.first(bytes));
    reference_.memory.write(address, bytes, value);
}

void Program::set_registers(const reference::Cpu& wanted)
{
    note("vcpu {}: set cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} pkru {:#x} pkrs {:#x} ac {}", vcpu_,
         wanted.cr0, wanted.cr3, wanted.cr4, wanted.efer, wanted.pkru, wanted.pkrs, wanted.ac);
    Registers registers;
    registers.cr0 = wanted.cr0;
    registers.cr3 = wanted.cr3;
    registers.cr4 = wanted.cr4;
    registers.efer = wanted.efer;
    registers.pkru = wanted.pkru;
    registers.pkrs = wanted.pkrs;
    registers.ac = wanted.ac;
    const bool refused = machine_.set_registers(vcpu_, registers).has_value();
    if (refused == reference_.set_registers(vcpu_, wanted)) mismatch("set: refused {}", refused);
    same_registers();
}

void Program::operate()
{
    vcpu_ = random_.below(static_cast<unsigned>(reference_.cpus.size()));
    if (setup_.secure && random_.percent(12)) return secure_view();
    const unsigned what = random_.below(100);
    if (settled_ && (what < 30 || what >= 86)) {
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
        change_mode();
    } else if (what < 97) {
        const auto value = static_cast<std::uint32_t>(random_.word() & random_.word());
        note("vcpu {}: wrpkru {:#x}", vcpu_, value);
        same("wrpkru", machine_.wrpkru(vcpu_, value), reference_.wrpkru(vcpu_, value));
    } else {
        cpu().ac = !cpu().ac;
        note("vcpu {}: ac {}", vcpu_, cpu().ac);
        machine_.set_ac(vcpu_, cpu().ac);
    }
}

void Program::instruction()
{
    struct PageOf {
        reference::Access access;
        std::uint32_t bytes;
        std::size_t operand;
        std::optional<std::uint64_t> found;  // by the machine
    };
    std::vector<Operand> operands;
    std::vector<PageOf> pages;
    std::optional<std::size_t> misplaced;
    const unsigned count = random_.percent(70) ? 1 : 2 + random_.below(3);
    if (count > 1 && random_.percent(10)) {
        note("blow shadows");
        machine_.blow_shadows();  // what becomes a table does so in the middle of the instruction
    }
    for (unsigned i = 0; i < count; ++i) {
        Operand operand;
        // Operands of one instruction are often near each other.
        const std::uint64_t before = operands.empty() ? 0 : operands.back().address.value();
        operand.address = LinearAddress{
            !operands.empty() && random_.percent(30) ? before + random_.below(8192) - 4096 : random_linear()};
        if (forced_address_ && i == 0) operand.address = LinearAddress{*forced_address_};
        operand.kind = random_.one_of(std::array{AccessKind::read, AccessKind::write, AccessKind::write,
                                                 AccessKind::read, AccessKind::fetch});
        const bool four_bytes = format() == reference::Paging::two_level && random_.percent(80);
        operand.bytes = random_.percent(60) ? (four_bytes ? 4u : 8u) : 1 + random_.below(16);
        operand.user_mode = random_.percent(40);
        if (forced_bytes_ && i == 0) {
            operand.kind = AccessKind::write;
            operand.bytes = *forced_bytes_;
            operand.user_mode &= !settled_;
        }
        operand.implicit = operand.kind != AccessKind::fetch && random_.percent(8);
        if (cpu().long_mode() && random_.percent(20)) {
            operand.segmented = SegmentedAddress{Segment::ss, VirtualAddress{operand.address.value()}};
        }
        operands.push_back(operand);

        const std::uint64_t first = operand.address.value();
        const unsigned width = cpu().linear_bits();
        if (cpu().long_mode() && !misplaced &&
            (!reference::canonical(first, width) ||
             !reference::canonical(first + operand.bytes - 1, width))) {
            misplaced = i;
        }
        if (misplaced) continue;
        const auto kind = operand.kind == AccessKind::read    ? reference::Kind::read
                          : operand.kind == AccessKind::write ? reference::Kind::write
                                                              : reference::Kind::fetch;
        const auto add = [&](std::uint64_t address, std::uint32_t bytes) {
            pages.push_back(
                {{reference_.linear_of(vcpu_, address), kind, operand.user_mode, operand.implicit},
                 bytes,
                 i,
                 {}});
        };
        const auto room = static_cast<std::uint32_t>(4096 - first % 4096);
        add(first, std::min(room, operand.bytes));
        if (operand.bytes > room) add(first + room, operand.bytes - room);
    }
    const Restart restart = random_.percent(50) ? Restart::instruction : Restart::operand;
    for (const Operand& operand : operands) {
        note("vcpu {}: {} {:#x} size {}{}{}{}", vcpu_, name_of(operand.kind), operand.address.value(),
             operand.bytes, operand.user_mode ? " user" : "", operand.implicit ? " implicit" : "",
             &operand == &operands.back() ? "" : " and");
    }

    Execution execution;
    if (count == 1 && random_.percent(80)) {
        const auto placed = machine_.access(vcpu_, operands[0]);
        if (placed) {
            execution.placed.push_back(*placed);
        } else {
            execution.fault = placed.error();
        }
    } else {
        machine_.execute(vcpu_, operands, restart, execution);
    }

    // Which page faulted, and where the others are.
    std::size_t passed = pages.size();
    bool page_fault = false;
    if (execution.fault) {
        const std::size_t at = execution.placed.size();
        page_fault = execution.fault->vector == Vector::page_fault;
        if (!page_fault && at != misplaced) mismatch("operand {}: {}", at, name_of(execution.fault->vector));
        if (!page_fault &&
            (execution.fault->vector == Vector::stack_fault) != operands[at].segmented.has_value()) {
            mismatch("operand {}: {} is the wrong vector", at, name_of(execution.fault->vector));
        }
        passed = 0;
        while (passed < pages.size() && pages[passed].operand < at) ++passed;
        const bool second = page_fault && passed + 1 < pages.size() && pages[passed + 1].operand == at &&
                            execution.fault->address.value() == pages[passed + 1].access.linear;
        if (second) ++passed;
        note("  {} code {:#x} at {:#x}, operand {}", name_of(execution.fault->vector),
             execution.fault->error_code, execution.fault->address.value(), at);
    } else if (misplaced) {
        mismatch("operand {} should have raised #GP or #SS", *misplaced);
    }
    std::size_t page = 0;
    for (const Placed& placed : execution.placed) {
        for (const Placed::Part& part : placed.pages()) {
            if (part.bytes != pages[page].bytes) mismatch("page {} has {} bytes", page, part.bytes);
            note("  page {} at {:#x}{}", page, part.address.value(), part.emulated ? " emulated" : "");
            pages[page++].found = part.address.value();
            if (part.emulated) ++coverage_.emulated;
        }
    }

    // The writes of an instruction that faults are translated, but do not happen.
    const auto done = [&](const PageOf& of) {
        reference::Access access = of.access;
        if (execution.fault && access.kind == reference::Kind::write) access.kind = reference::Kind::read;
        return access;
    };

    const std::vector<std::string> violations = machine_.take_violations();
    if (!violations.empty()) mismatch("{}", violations.front());
    const auto explained_by = [&](const reference::Access& access, std::uint64_t found) {
        return machine_.config().check_coherence || reference_.explains(vcpu_, access, found);
    };

    // Nothing stale can be a reason to reach a secure frame.
    for (const PageOf& of : pages) {
        const bool secure = of.found && reference_.secure_frames.count(*of.found >> 12) != 0;
        if (!secure) continue;
        if (reference_.in_secure_mode.count(vcpu_) == 0) mismatch("{:#x} is in a secure frame", *of.found);
        ++coverage_.secure;
    }

    // Each page: as a fresh walk says, or stale and explained.
    std::vector<reference::Walk> walks;
    std::vector<bool> fresh(passed, false);
    for (std::size_t i = 0; i < passed; ++i) {
        walks.push_back(reference_.walk(vcpu_, pages[i].access));
        const reference::Walk& walk = walks.back();
        const std::uint64_t here =
            walk.page.physical + (pages[i].access.linear & ((std::uint64_t{1} << walk.page.shift) - 1));
        fresh[i] = !walk.fault && (!pages[i].found || *pages[i].found == here);
        if (fresh[i]) continue;
        const bool explained = !coherent_ && (pages[i].found ? explained_by(done(pages[i]), *pages[i].found)
                                                             : !cpu().cached.empty());
        if (explained) continue;
        if (walk.fault) mismatch("page {} should fault with code {:#x}", i, walk.fault->code);
        mismatch("page {} is at {:#x}, not at {:#x}", i, *pages[i].found, here);
    }
    if (page_fault) {
        const reference::Walk walk = reference_.walk(vcpu_, pages[passed].access);
        if (!walk.fault) mismatch("page {} should not fault", passed);
        const reference::Fault seen{reference::kPageFault, execution.fault->error_code,
                                    execution.fault->address.value()};
        if (reference_.secure_frames.count(walk.page.physical >> 12) != 0 && (seen.code & 1) != 0)
            ++coverage_.withheld;
        if (seen != *walk.fault) {
            mismatch("page {}: code {:#x} CR2 {:#x}, not {:#x} and {:#x}", passed, seen.code, seen.cr2,
                     walk.fault->code, walk.fault->cr2);
        }
    }

    for (std::size_t i = 0; i < passed; ++i) {
        ++coverage_.placed;
        if (!fresh[i]) ++coverage_.stale;
        translated_[vcpu_][random_.below(6)] = operands[pages[i].operand].address.value();
        for (const reference::Entry& used : walks[i].used) recent_entries_[turn_++ % 16] = used;
    }
    if (page_fault) ++coverage_.faults;

    // Accessed and dirty bits. A faulting instruction dirties nothing.
    std::vector<std::vector<std::uint64_t>> before(passed);
    for (std::size_t i = 0; i < passed; ++i) {
        for (const reference::Entry& used : walks[i].used) {
            before[i].push_back(reference_.memory.read(used.address, used.bytes));
        }
    }
    for (std::size_t i = 0; i < passed; ++i) {
        const bool dirties = pages[i].access.kind == reference::Kind::write && !execution.fault;
        if (fresh[i]) reference_.set_bits(walks[i], dirties);
    }
    std::vector<bool> walked(passed, true);
    for (std::size_t i = 0; i < passed; ++i) {
        for (std::size_t k = 0; fresh[i] && k < walks[i].used.size(); ++k) {
            const reference::Entry& used = walks[i].used[k];
            const std::uint64_t expected = reference_.memory.read(used.address, used.bytes);
            const std::uint64_t seen = machine_word(used);
            if (seen == expected) continue;
            if (coherent_ || (seen & ~expected) != 0 || (before[i][k] & ~seen) != 0) {
                mismatch("page {}: the entry at {:#x} is {:#x}, not {:#x}", i, used.address, seen, expected);
            }
            walked[i] = false;
        }
        if (!walked[i] && pages[i].found && !explained_by(done(pages[i]), *pages[i].found)) {
            mismatch("page {}: A or D bits are missing without a stale translation", i);
        }
    }
    for (std::size_t i = 0; i < passed; ++i) {
        if (!fresh[i]) continue;
        const bool dirties = pages[i].access.kind == reference::Kind::write && !execution.fault;
        if (walked[i]) reference_.cache(vcpu_, walks[i].page, dirties);
        for (const reference::Entry& used : walks[i].used) {  // adopt
            reference_.memory.write(used.address, used.bytes, machine_word(used));
        }
    }
    // Pages after the one that faulted may have been walked too, before a stale translation was dropped.
    for (std::size_t i = passed; i < pages.size() && !coherent_; ++i) {
        const reference::Walk walk = reference_.walk(vcpu_, pages[i].access);
        for (const reference::Entry& used : walk.used) {
            const std::uint64_t old = reference_.memory.read(used.address, used.bytes);
            if (!walk.fault && machine_word(used) == (old | 1u << 5)) {
                reference_.memory.write(used.address, used.bytes, old | 1u << 5);
            }
        }
    }
    if (page_fault) reference_.drop_page(vcpu_, pages[passed].access.linear);
    if (execution.fault) return;

    // Data.
    page = 0;
    for (std::size_t i = 0; i < operands.size(); ++i) {
        std::vector<std::byte> bytes(operands[i].bytes);
        if (operands[i].kind == AccessKind::write) {
            const std::uint64_t target = *pages[page].found;
            const std::uint64_t value = random_value(reference_.memory.read(target, 8));
            if (target >> 12 < kTables) ++coverage_.to_tables;
            note("  operand {} stores {:#x}", i, value);
            for (std::size_t k = 0; k < bytes.size(); ++k) {
                bytes[k] = static_cast<std::byte>(value >> k % 8 * 8);
            }
            machine_.store(execution.placed[i], bytes);
        } else {
            machine_.load(execution.placed[i], bytes);
        }
        for (std::size_t next = 0; page < pages.size() && pages[page].operand == i; ++page) {
            for (std::uint32_t k = 0; k < pages[page].bytes; ++k, ++next) {
                const std::uint64_t at = *pages[page].found + k;
                const auto byte = std::to_integer<std::uint64_t>(bytes[next]);
                if (operands[i].kind == AccessKind::write) {
                    reference_.memory.write(at, 1, byte);
                } else if (reference_.memory.read(at, 1) != byte) {
                    mismatch("operand {} reads {:#x} at {:#x}", i, byte, at);
                }
            }
        }
    }
}

/// A linear address at which the vCPU's supervisor may write the guest-physical one, if a few tries find one.
std::optional<std::uint64_t> Program::window_to(std::uint64_t address)
{
    for (unsigned i = 0; i < 60; ++i) {
        const std::uint64_t page = fresh_linear() & ~std::uint64_t{0xfff};
        const reference::Walk walk = reference_.walk(vcpu_, {page, reference::Kind::write, false, false});
        const std::uint64_t in_page = page & ((std::uint64_t{1} << walk.page.shift) - 1);
        if (!walk.fault && walk.page.physical + in_page == (address & ~std::uint64_t{0xfff}))
            return page | (address & 0xfff);
    }
    return std::nullopt;
}

/// An entry that a translation came from is changed by a vCPU with paging off, if there is one, or through a
/// mapping of its table; then the address is used again.
void Program::change_used_entry()
{
    const std::vector<reference::Page>& cached = cpu().cached;
    if (cached.empty()) return instruction();
    const reference::Page page = cached[random_.below(static_cast<unsigned>(cached.size()))];
    const std::uint64_t linear = page.linear | (entry_offset(format()) & ((1u << page.shift) - 1));
    const reference::Walk walk = reference_.walk(vcpu_, {linear, reference::Kind::read, false, false});
    const unsigned user = vcpu_;
    vcpu_ = static_cast<unsigned>(reference_.cpus.size()) - 1;
    if (!walk.used.empty()) {
        const auto count = static_cast<unsigned>(walk.used.size());
        // The leaf often: it may go out of sync.
        const reference::Entry entry = walk.used[random_.percent(50) ? count - 1 : random_.below(count)];
        forced_address_ = entry.address;
        if (cpu().paging() != reference::Paging::off)
            forced_address_ = settled_ ? window_to(entry.address) : std::nullopt;
    }
    if (forced_address_) {
        const reference::Entry entry = walk.used.back();
        forced_bytes_ = entry.bytes;
        instruction();
        forced_bytes_.reset();
    }
    vcpu_ = user;
    forced_address_ = linear;
    instruction();
    forced_address_.reset();
}

void Program::control_register()
{
    const unsigned what = random_.below(100);
    if (what < 45) {
        std::uint64_t value = random_cr3(format());
        if (cpu().cr4_bit(reference::kPcide)) {
            value |= random_.below(2);
            if (random_.percent(40)) value |= std::uint64_t{1} << 63;
        }
        if (random_.percent(3)) value |= std::uint64_t{1} << 61;
        note("vcpu {}: mov cr3 {:#x}", vcpu_, value);
        same("mov cr3", machine_.mov_cr3(vcpu_, value), reference_.mov_cr3(vcpu_, value));
    } else if (what < 60) {
        // WP mostly; CD loads PDPTEs; NW alone is refused
        const unsigned bit = random_.one_of(std::array<unsigned, 6>{16, 16, 16, 16, 30, 29});
        const std::uint64_t value = cpu().cr0 ^ std::uint64_t{1} << bit;
        note("vcpu {}: mov cr0 {:#x}", vcpu_, value);
        same("mov cr0", machine_.mov_cr0(vcpu_, value), reference_.mov_cr0(vcpu_, value));
    } else if (what < 85) {
        std::uint64_t value = cpu().cr4;
        value ^= std::uint64_t{1} << random_.one_of(std::array<unsigned, 12>{
                     reference::kPse, reference::kPge, reference::kSmep, reference::kSmap, reference::kPke,
                     reference::kPks, reference::kPcide, reference::kLa57, reference::kPae, reference::kPse,
                     reference::kSmep, 28});
        note("vcpu {}: mov cr4 {:#x}", vcpu_, value);
        same("mov cr4", machine_.mov_cr4(vcpu_, value), reference_.mov_cr4(vcpu_, value));
    } else if (what < 97) {
        std::uint64_t value = cpu().efer ^ std::uint64_t{1} << 11;
        if (random_.percent(5)) value ^= std::uint64_t{1} << 8;
        note("vcpu {}: wrmsr efer {:#x}", vcpu_, value);
        same("wrmsr", machine_.wrmsr(vcpu_, 0xc000'0080, value), reference_.wrmsr_efer(vcpu_, value));
    } else {
        cpu().cpl = cpu().cpl == 0 ? 3 : 0;
        note("vcpu {}: cpl {}", vcpu_, cpu().cpl);
        machine_.set_cpl(vcpu_, static_cast<std::uint8_t>(cpu().cpl));
    }
    same_registers();
}

/// As a guest does it: PCIDE and PG off, CR4, EFER, CR3, PG on; accesses come in between.
void Program::change_mode()
{
    using P = reference::Paging;
    P paging = random_.one_of(std::array<P, 5>{P::off, P::two_level, P::pae, P::four_level, P::five_level});
    if (paging == P::five_level && !reference_.features.la57) paging = P::four_level;
    const reference::Cpu wanted = random_registers(paging);
    if (random_.percent(15)) {
        set_registers(wanted);
        return;
    }
    note("vcpu {}: change of mode", vcpu_);
    cpu().cpl = 0;
    machine_.set_cpl(vcpu_, 0);
    const std::uint64_t pcide = std::uint64_t{1} << reference::kPcide;
    const auto step = [&](const char* what, auto verb, auto reference_verb, std::uint64_t value) {
        note("vcpu {}: {} {:#x}", vcpu_, what, value);
        same(what, (machine_.*verb)(vcpu_, value), (reference_.*reference_verb)(vcpu_, value));
        same_registers();
        if (random_.percent(20)) instruction();
    };
    step("mov cr4", &Machine::mov_cr4, &reference::Machine::mov_cr4, cpu().cr4 & ~pcide);
    step("mov cr0", &Machine::mov_cr0, &reference::Machine::mov_cr0, cpu().cr0 & 0x7fff'ffff);
    if (random_.percent(50) && paging != P::off) write_tables(paging, 60);
    step("mov cr4", &Machine::mov_cr4, &reference::Machine::mov_cr4, wanted.cr4 & ~pcide);
    note("vcpu {}: wrmsr efer {:#x}", vcpu_, wanted.efer);
    same("wrmsr", machine_.wrmsr(vcpu_, 0xc000'0080, wanted.efer), reference_.wrmsr_efer(vcpu_, wanted.efer));
    step("mov cr3", &Machine::mov_cr3, &reference::Machine::mov_cr3, wanted.cr3 & ~std::uint64_t{0xf});
    step("mov cr0", &Machine::mov_cr0, &reference::Machine::mov_cr0, wanted.cr0);
    step("mov cr4", &Machine::mov_cr4, &reference::Machine::mov_cr4, wanted.cr4);
}

void Program::invalidate()
{
    const std::uint64_t linear = random_linear();
    if (random_.percent(70)) {
        note("vcpu {}: invlpg {:#x}", vcpu_, linear);
        same("invlpg", machine_.invlpg(vcpu_, LinearAddress{linear}), reference_.invlpg(vcpu_, linear));
        return;
    }
    const std::uint64_t type = random_.below(random_.percent(5) ? 6 : 4);
    const std::uint64_t pcid = random_.percent(3) ? 0x1000 : random_.below(2);
    note("vcpu {}: invpcid type {} pcid {} {:#x}", vcpu_, type, pcid, linear);
    same("invpcid", machine_.invpcid(vcpu_, type, pcid, LinearAddress{linear}),
         reference_.invpcid(vcpu_, type, pcid, linear));
}

void Program::from_outside()
{
    const unsigned what = random_.below(100);
    if (what < 30) {
        const reference::Entry& at = random_.one_of(recent_entries_);
        poke(at.address, at.bytes, random_value(reference_.memory.read(at.address, at.bytes)));
    } else if (what < 60) {
        const unsigned frame = random_.below(kTables);
        const unsigned bytes = format() == reference::Paging::two_level ? 4 : 8;
        poke(frame * 4096u + entry_offset(format()), bytes, entry(format(), level_of(frame, format())));
    } else if (what < 70) {
        poke(kFirstPdpt << 12 | std::uint64_t{random_.below(16)} << 3, 8,
             std::uint64_t{random_.below(4)} << 12 | (random_.percent(90) ? 1 : 0));
    } else if (what < 80) {
        const std::uint64_t frame = any_frame();
        note("clear frame {:#x}", frame);
        machine_.clear_frame(Gfn{frame});
        for (std::uint64_t at = frame << 12; at < (frame + 1) << 12; at += 8) {
            if (reference_.memory.read(at, 8) != 0) reference_.memory.write(at, 8, 0);
        }
    } else {
        note("blow shadows");
        machine_.blow_shadows();
    }
}

/// Frames of tables and others become secure or cease to be; a vCPU enters or leaves secure mode.
void Program::secure_view()
{
    if (random_.percent(25)) {
        std::vector<Gfn> frames;
        reference_.secure_frames.clear();
        for (unsigned i = random_.below(12); i > 0; --i) {
            const std::uint64_t frame = any_frame();
            if (!reference_.memory.is_ram(frame << 12)) continue;
            if (reference_.secure_frames.insert(frame).second) frames.push_back(Gfn{frame});
            note("secure frame {:#x}", frame);
        }
        note("no other frames are secure");
        machine_.set_secure_frames(frames);
        return;
    }
    const bool on = random_.percent(50);
    note("vcpu {}: secure mode {}", vcpu_, on);
    machine_.set_secure_mode(vcpu_, on);
    if (on) {
        reference_.in_secure_mode.insert(vcpu_);
    } else {
        reference_.in_secure_mode.erase(vcpu_);
    }
}

// --- checks
// --------------------------------------------------------------------------------------------------

template <class Answer>
void Program::same(const char* what, const Answer& machine, std::optional<unsigned> reference)
{
    std::optional<unsigned> vector;
    if (machine) {
        vector = machine->vector == Vector::general_protection ? reference::kGeneralProtection
                 : machine->vector == Vector::undefined_opcode ? reference::kUndefined
                                                               : 0;
    }
    if (vector != reference) {
        mismatch("{}: vector {}, not {} (0: none)", what, vector.value_or(0), reference.value_or(0));
    }
}

void Program::same_registers()
{
    const Registers& r = machine_.registers(vcpu_);
    const reference::Cpu& c = cpu();
    if (r.cr0 != c.cr0 || r.cr3 != c.cr3 || r.cr4 != c.cr4 || r.efer != c.efer) {
        mismatch("registers: cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}, not {:#x} {:#x} {:#x} {:#x}", r.cr0,
                 r.cr3, r.cr4, r.efer, c.cr0, c.cr3, c.cr4, c.efer);
    }
    if (c.paging() == reference::Paging::pae && machine_.pdptes(vcpu_) != c.pdptes) {
        mismatch("the PDPTE registers differ");
    }
    // Where MOV CR3 is not seen, the mode is that of the root.
    if (!setup_.cr3_targets) return;
    if (machine_.shadow()->secure_mode(vcpu_)) {
        reference_.in_secure_mode.insert(vcpu_);
    } else {
        reference_.in_secure_mode.erase(vcpu_);
    }
}

void Program::audit()
{
    const std::vector<std::string> violations = machine_.audit();
    if (!violations.empty()) mismatch("audit, {} in all: {}", violations.size(), violations.front());
}

void Program::compare_memory()
{
    std::array<std::uint64_t, 512> words{};
    for (const GfnRange& range : kRam) {
        for (std::uint64_t i = 0; i < range.count; ++i) {
            const Gfn frame = range.first + i;
            machine_.peek(frame.address(), std::as_writable_bytes(std::span{words}));
            auto expected = reference_.memory.words.lower_bound(frame.number() * 512);
            for (std::uint64_t k = 0; k < 512; ++k) {
                std::uint64_t value = 0;
                if (expected != reference_.memory.words.end() &&
                    expected->first == frame.number() * 512 + k) {
                    value = (expected++)->second;
                }
                if (words[k] != value) {
                    mismatch("memory at {:#x} is {:#x}, not {:#x}", frame.address(8 * k).value(), words[k],
                             value);
                }
            }
        }
    }
}

std::uint64_t Program::machine_word(const reference::Entry& entry) const
{
    std::uint64_t value = 0;
    machine_.peek(GuestPhysical{entry.address},
                  std::as_writable_bytes(std::span{&value, 1}).first(entry.bytes));
    return value;
}

// --- the cases
// -------------------------------------------------------------------------------------------------

/// Runs a program; the log of its operations and what is wrong, if something is.
std::string failure_of(const Setup& setup, std::uint64_t seed, unsigned operations, Coverage& coverage,
                       bool log = false)
{
    Program program{setup, seed, log};
    try {
        program.run(operations);
    } catch (const Mismatch& wrong) {
        if (!log) return failure_of(setup, seed, operations, coverage, true);
        return program.log() + wrong.what();
    }
    for (std::uint64_t Coverage::*count :
         {&Coverage::placed, &Coverage::faults, &Coverage::stale, &Coverage::emulated, &Coverage::to_tables,
          &Coverage::secure, &Coverage::withheld}) {
        coverage.*count += program.coverage().*count;
    }
    coverage.unsynced += program.unsynced();
    coverage.unseen += program.machine().counters().unseen_switches;
    const HazardCounts hazards = program.machine().counters().hazards;
    if (hazards.stale_shadows + hazards.shared_tables != 0)
        return program.log() + program.machine().take_hazards().front();
    return {};
}

void check_programs(const Setup& setup, unsigned programs, unsigned operations, std::uint64_t first_seed,
                    Coverage& coverage)
{
    INFO(to_string(setup));
    for (std::uint64_t seed = first_seed; seed < first_seed + programs; ++seed) {
        const std::string failure = failure_of(setup, seed, operations, coverage);
        if (failure.empty()) continue;
        INFO("seed " << seed << ", " << operations << " operations");
        INFO(failure);
        FAIL("the machine differs from the reference");
    }
    SUCCEED();
}

std::vector<Setup> shadow_setups(const std::string& policy)
{
    std::vector<Setup> setups;
    for (const Populate populate : {Populate::leaf, Populate::step}) {
        for (const char* layout : {"identity", "offset:0x300000", "shuffled:7"}) {
            setups.push_back({TranslationMode::shadow, policy, populate, layout});
        }
    }
    return setups;
}

constexpr unsigned kOperations = 80;

}  // namespace

TEST_CASE("refinement: native equals the reference", "[machine]")
{
    Coverage coverage;
    check_programs({}, 400, kOperations, 1, coverage);
    CHECK(coverage.placed > 4000);
    CHECK(coverage.faults > 4000);
    CHECK(coverage.to_tables > 400);
}

TEST_CASE("refinement: write-protect equals the reference", "[machine]")
{
    for (const Setup& setup : shadow_setups("write-protect")) {
        Coverage coverage;
        check_programs(setup, 250, kOperations, 1, coverage);
        CHECK(coverage.placed > 1500);
        CHECK(coverage.faults > 1500);
        CHECK(coverage.to_tables > 150);
        CHECK(coverage.emulated > 150);
    }
}

TEST_CASE("refinement: xen-2006 equals the reference", "[machine]")
{
    for (const Setup& setup : shadow_setups("xen-2006")) {
        Coverage coverage;
        check_programs(setup, 250, kOperations, 1, coverage);
        CHECK(coverage.emulated > 150);
    }
}

TEST_CASE("refinement: xen equals the reference up to permitted staleness", "[machine]")
{
    for (const Setup& setup : shadow_setups("xen")) {
        Coverage coverage;
        check_programs(setup, 250, kOperations, 1, coverage);
        CHECK(coverage.placed > 1500);
        CHECK(coverage.faults > 1500);
        CHECK(coverage.to_tables > 150);
        CHECK(coverage.emulated > 50);
        CHECK(coverage.stale > 0);
        CHECK(coverage.unsynced > 100);
    }
}

TEST_CASE("refinement: tlb-like equals the reference up to permitted staleness", "[machine]")
{
    for (const Setup& setup : shadow_setups("tlb-like")) {
        Coverage coverage;
        check_programs(setup, 250, kOperations, 1, coverage);
        CHECK(coverage.placed > 1500);
        CHECK(coverage.faults > 1500);
        CHECK(coverage.to_tables > 150);
        CHECK(coverage.stale > 10);
    }
}

TEST_CASE("refinement: secure frames are withheld under every policy", "[machine][secure]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        for (Setup setup : shadow_setups(policy.name)) {
            setup.secure = true;
            Coverage coverage;
            check_programs(setup, 100, kOperations, 1, coverage);
            CHECK(coverage.secure > 100);
            CHECK(coverage.withheld > 100);
        }
    }
}

TEST_CASE("refinement: the other policies equal the reference up to permitted staleness", "[machine]")
{
    for (const char* policy : {"kvm", "xen-2005", "xen-2005-always", "vtlb-nova", "vtlb-stale"}) {
        INFO(policy);
        for (const Setup& setup : shadow_setups(policy)) {
            Coverage coverage;
            check_programs(setup, 250, kOperations, 1, coverage);
            CHECK(coverage.placed > 1500);
            CHECK(coverage.faults > 1500);
            CHECK(coverage.to_tables > 150);
        }
    }
}

TEST_CASE("refinement: with CR3 values that need no exit, coherent policies stay right", "[machine][secure]")
{
    for (const char* const policy : {"write-protect", "xen-2006", "xen-2006-first"}) {
        for (Setup setup : shadow_setups(policy)) {
            setup.secure = true;
            setup.cr3_targets = true;
            Coverage coverage;
            check_programs(setup, 150, kOperations, 1, coverage);
            CHECK(coverage.secure > 100);
            CHECK(coverage.withheld > 100);
            CHECK(coverage.unseen > 50);
        }
    }
}

TEST_CASE("refinement: many native programs", "[machine][slow]")
{
    Coverage coverage;
    check_programs({}, 3000, 150, 100'000, coverage);
}

TEST_CASE("refinement: many programs under write-protect", "[machine][slow]")
{
    Coverage coverage;
    for (const Setup& setup : shadow_setups("write-protect")) {
        check_programs(setup, 900, 150, 100'000, coverage);
    }
}

TEST_CASE("refinement: many programs under the others", "[machine][slow]")
{
    for (const char* policy :
         {"xen", "xen-2006", "kvm", "xen-2005", "xen-2005-always", "vtlb-nova", "vtlb-stale"}) {
        for (const Setup& setup : shadow_setups(policy)) {
            Coverage coverage;
            check_programs(setup, 600, 150, 100'000, coverage);
        }
    }
}

TEST_CASE("refinement: many programs under tlb-like", "[machine][slow]")
{
    Coverage coverage;
    for (const Setup& setup : shadow_setups("tlb-like")) {
        check_programs(setup, 900, 150, 100'000, coverage);
    }
}
