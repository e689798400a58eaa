// SPDX-License-Identifier: Apache-2.0
#include "model/random_program.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "model/guest_tables.hpp"
#include "model/random_profile.hpp"
#include "support/random.hpp"

namespace model {

namespace {

using reference::Paging;

u64 bit(unsigned number)
{
    return u64{1} << number;
}

constexpr u64 kFirstDataFrame = 0x10, kDataFrames = 0x60;
constexpr u64 kFirstTableFrame = 0x100, kTableFrames = 0x300;
constexpr unsigned kPcids = 5;

/// A page that accesses are made to.
struct MappedPage {
    u64 linear = 0;
    unsigned shift = 12;
    Paging paging = Paging::off;
    bool kernel = false;
    bool to_tables = false;  // its frame holds a table
    u64 root = 0;            // of its address space; the kernel's pages are in all of them
    u64 flags = kAll;        // that its entry began with
};

/// A table entry that is changed now and then.
struct Slot {
    u64 address = 0;
    unsigned bytes = 8;
    unsigned level = 1;
    u64 value = 0;   // that it began with
    u64 linear = 0;  // an address that it translates
};

struct AddressSpace {
    u64 root = 0;
    std::vector<MappedPage> user;
};

/// The tables of one paging mode.
struct Mode {
    Paging paging = Paging::four_level;
    std::vector<AddressSpace> spaces;
    std::vector<MappedPage> kernel;
    std::vector<Slot> slots;
    u64 window = 0;  // where frame kFirstTableFrame is mapped, and those after it
};

class Maker {
public:
    Maker(std::uint64_t seed, const ProgramOptions& options) : random_{seed}, options_{options} {}

    Program program()
    {
        make_features();
        program_.ram = {{0, 0x800}, {0x40000, 0x10}, {0x100000, 0x10}};
        image_.ram = program_.ram;
        make_modes();
        program_.memory = image_.words;
        program_.cpus = random_.percent(60) ? 1 : random_.from_to(1, options_.max_cpus);
        belief_.features = program_.features;
        belief_.memory = image_;
        belief_.cpus.resize(program_.cpus);
        for (unsigned cpu = 0; cpu < program_.cpus; ++cpu) {
            // All registers that are made can be loaded.
            program_.registers.push_back(make_registers(modes_.front()));
            belief_.set_registers(cpu, program_.registers.back());
        }
        recent_.resize(program_.cpus);
        calm_ = random_.one_of(std::array{1u, 2u, 4u, 10u});
        while (program_.events.size() < options_.events) step();
        program_.events.resize(options_.events);
        return std::move(program_);
    }

private:
    bool long_mode(const Mode& mode) const
    {
        return mode.paging == Paging::four_level || mode.paging == Paging::five_level;
    }
    reference::Cpu& cpu() { return belief_.cpus[cpu_]; }

    // --- memory ---
    void make_features();
    void make_modes();
    void make_mode(Paging paging);
    u64 page_flags(const Mode& mode, bool kernel, unsigned level);
    u64 frame_for(unsigned shift);
    void map(Mode& mode, u64 root, u64 linear, unsigned level, bool kernel, std::vector<MappedPage>& pages);
    void map_window(Mode& mode, u64 root, u64 linear);
    void map_self(Mode& mode, AddressSpace& space);
    reference::Cpu make_registers(const Mode& mode);

    // --- events ---
    void step();
    Event& emit(Event::Kind kind);
    void be_supervisor();
    const Mode& mode_now();
    MappedPage any_page();
    void access();
    void instruction();
    void access_to(u64 linear);
    void change_slot();
    std::size_t any_slot(const Mode& mode);
    u64 changed(const Mode& mode, const Slot& slot, u64 value);
    void repair();
    void control();
    void toggle_cr4(unsigned bit);
    void mov_cr3(bool keep_pcid_zero);
    void invalidate();
    void paging_off_for_a_while();

    support::Random64 random_;
    ProgramOptions options_;
    Program program_;
    reference::Memory image_;
    u64 next_table_frame_ = kFirstTableFrame;
    std::vector<Mode> modes_;
    reference::Machine belief_;  // its registers; its memory stays as it was
    unsigned cpu_ = 0;
    unsigned calm_ = 1;                            // how rare all but accesses is
    std::vector<std::vector<MappedPage>> recent_;  // by vCPU
    std::vector<std::pair<const Mode*, std::size_t>> changed_slots_;
};

// --- memory -----------------------------------------------------------------------------------------------

void Maker::make_features()
{
    reference::Features& f = program_.features;
    f.amd = random_.percent(40);
    f.width = random_.one_of(std::array{40u, 40u, 36u, 52u});
    if (random_.percent(65)) return;
    for (bool* feature : {&f.nx, &f.pse, &f.pse36, &f.pge, &f.pcid, &f.invpcid, &f.smep, &f.smap, &f.pku,
                          &f.pks, &f.page1gb}) {
        *feature = random_.percent(75);
    }
}

void Maker::make_modes()
{
    const std::array all{Paging::two_level, Paging::pae, Paging::four_level, Paging::four_level,
                         Paging::five_level};
    make_mode(random_.one_of(all));
    if (random_.percent(40)) make_mode(random_.one_of(all));
}

u64 Maker::page_flags(const Mode& mode, bool kernel, unsigned level)
{
    const reference::Features& f = program_.features;
    u64 flags = kP;
    const auto flag = [&](u64 bits, unsigned chance) {
        if (random_.percent(chance)) flags |= bits;
    };
    flag(kW, 80);
    if (!kernel) flags |= kU;
    flag(kA, 75);
    flag(kD, 60);
    flag(kG, kernel ? 60 : 8);
    if (mode.paging != Paging::two_level && f.nx) flag(kNx, 20);
    if (long_mode(mode) && random_.percent(20)) flags |= u64{random_.below(4)} << 59;
    if (random_.percent(1)) {  // a reserved bit, if that is one
        flags |= level > 1 ? u64{1} << 14 : mode.paging == Paging::two_level ? 0 : u64{1} << 51;
    }
    return flags;
}

/// Where a page of that size is. The larger ones have RAM only at their beginning.
u64 Maker::frame_for(unsigned shift)
{
    switch (shift) {
    case 12: return (kFirstDataFrame + random_.below(kDataFrames)) << 12;
    case 21: return random_.one_of(std::array<u64, 4>{0x60'0000, 0x60'0000, 0x4000'0000, 0x1'0000'0000});
    case 22: return random_.one_of(std::array<u64, 2>{0x40'0000, 0x4000'0000});
    default: return random_.one_of(std::array<u64, 2>{0x4000'0000, 0x1'0000'0000});
    }
}

void Maker::map(Mode& mode, u64 root, u64 linear, unsigned level, bool kernel, std::vector<MappedPage>& pages)
{
    GuestTables tables{image_, mode.paging, next_table_frame_};
    const unsigned shift = tables.shift(level);
    u64 above = kP | kW | (kernel ? 0 : kU);
    if (random_.percent(70)) above |= kA;
    if (random_.percent(5)) above &= ~kW;
    if (random_.percent(5) && mode.paging != Paging::two_level && program_.features.nx) above |= kNx;
    const u64 flags = page_flags(mode, kernel, level);
    tables.map(root, linear, frame_for(shift), flags, level, above);
    next_table_frame_ = tables.next_frame();
    if (next_table_frame_ > kFirstTableFrame + kTableFrames) throw std::logic_error("too many tables");

    pages.push_back({linear, shift, mode.paging, kernel, false, root, flags});
    const auto add_slot = [&](unsigned at) {
        const u64 address = tables.entry_at(root, linear, at);
        const u64 value = image_.read(address, tables.entry_bytes());
        mode.slots.push_back({address, tables.entry_bytes(), at, value, linear});
    };
    add_slot(level);
    const unsigned top = mode.paging == Paging::pae ? 2 : tables.levels();
    if (level < top && random_.percent(15)) add_slot(random_.from_to(level + 1, top));
}

/// All frames of tables, for supervisor's stores.
void Maker::map_window(Mode& mode, u64 root, u64 linear)
{
    GuestTables tables{image_, mode.paging, next_table_frame_};
    const u64 global = random_.percent(50) ? kG : 0;
    const bool has_superpages = mode.paging != Paging::two_level || program_.features.pse;
    if (has_superpages && random_.percent(50)) {
        const u64 size = u64{1} << tables.shift(2);
        for (u64 at = 0; at < (kFirstTableFrame + kTableFrames) << 12; at += size) {
            tables.map(root, linear + at, at, (kAll & ~kU) | global, 2, kP | kW | kA);
        }
        mode.window = linear + (kFirstTableFrame << 12);
    } else {
        for (u64 frame = 0; frame < kTableFrames; ++frame) {
            tables.map(root, linear + (frame << 12), (kFirstTableFrame + frame) << 12, (kAll & ~kU) | global,
                       1, kP | kW | kA);
        }
        mode.window = linear;
    }
    next_table_frame_ = tables.next_frame();
}

/// The root as an entry of itself, so that tables are pages too.
void Maker::map_self(Mode& mode, AddressSpace& space)
{
    if (mode.paging == Paging::pae) return;
    const GuestTables tables{image_, mode.paging, next_table_frame_};
    const unsigned top = tables.levels();
    const unsigned top_shift = tables.shift(top);
    const unsigned per_level = mode.paging == Paging::two_level ? 10 : 9;
    const u64 index = mode.paging == Paging::two_level ? 1000 : 300;
    const unsigned width = top_shift + per_level;
    const u64 sign = long_mode(mode) ? ~u64{0} << width : 0;
    image_.write(space.root + index * tables.entry_bytes(), tables.entry_bytes(),
                 space.root | kP | kW | (random_.percent(70) ? kA : 0));
    const std::vector<MappedPage> pages = space.user;
    for (const MappedPage& page : pages) {
        if (random_.percent(80)) continue;
        const u64 below = (u64{1} << top_shift) - 1;
        const u64 entry = page.linear >> per_level & below & ~u64{tables.entry_bytes() - 1};
        space.user.push_back({(sign | index << top_shift | entry) & ~u64{0xfff}, 12, mode.paging, true, true,
                              space.root, kAll});
    }
}

void Maker::make_mode(Paging paging)
{
    Mode& mode = modes_.emplace_back();
    mode.paging = paging;
    const bool narrow = paging == Paging::two_level || paging == Paging::pae;
    const u64 kernel_base = narrow                         ? 0xc000'0000
                            : paging == Paging::five_level ? 0xff00'0000'0000'0000
                                                           : 0xffff'8000'0000'0000;
    const u64 second_base = narrow ? 0x4800'0000 : 0x80'4000'0000;
    const u64 third_base = narrow ? 0xb7f0'0000 : 0x7fff'f000'0000;
    const std::array<u64, 3> user_bases{0x40'0000, second_base, third_base};
    const bool superpages = paging != Paging::two_level || program_.features.pse;
    const bool giant = !narrow && program_.features.page1gb;

    const unsigned spaces = random_.from_to(1, 4);
    for (unsigned i = 0; i < spaces; ++i) {
        AddressSpace& space = mode.spaces.emplace_back();
        space.root = next_table_frame_++ << 12;
        if (i == 0) {
            map_window(mode, space.root, kernel_base + 0x1000'0000);
            const unsigned small = random_.from_to(4, 40);
            for (unsigned page = 0; page < small; ++page) {
                if (random_.percent(85)) {
                    map(mode, space.root, kernel_base + (u64{page} << 12), 1, true, mode.kernel);
                }
            }
            for (unsigned page = 0; superpages && page < 4; ++page) {
                const u64 linear =
                    kernel_base + 0x800'0000 + (u64{page} << (narrow && paging != Paging::pae ? 22 : 21));
                if (random_.percent(60)) map(mode, space.root, linear, 2, true, mode.kernel);
            }
            for (unsigned page = 0; giant && page < 2; ++page) {
                if (random_.percent(60)) {
                    map(mode, space.root, kernel_base + (u64{page + 4} << 30), 3, true, mode.kernel);
                }
            }
        } else {
            // The kernel's half is the first space's.
            const unsigned bytes = paging == Paging::two_level ? 4 : 8;
            const unsigned entries = paging == Paging::two_level ? 1024 : paging == Paging::pae ? 4 : 512;
            const unsigned first = narrow ? entries * 3 / 4 : entries / 2;
            for (u64 at = first; at < entries; ++at) {
                const u64 value = image_.read(mode.spaces.front().root + at * bytes, bytes);
                const bool self = (value & ~u64{0xfff}) == mode.spaces.front().root;
                if (value != 0 && !self) image_.write(space.root + at * bytes, bytes, value);
            }
        }
        const unsigned small = random_.from_to(4, 60) * options_.spread;
        const u64 spread = random_.one_of(std::array<u64, 3>{1, 1, 7});
        for (unsigned page = 0; page < small; ++page) {
            const u64 base = random_.one_of(user_bases);
            const u64 linear = base + ((page * spread) << 12);
            if (random_.percent(85)) map(mode, space.root, linear, 1, false, space.user);
        }
        for (unsigned page = 0; superpages && page < 4; ++page) {
            const unsigned shift = paging == Paging::two_level ? 22 : 21;
            const u64 linear = 0x2000'0000 + (u64{page} << shift);
            if (random_.percent(50)) map(mode, space.root, linear, 2, false, space.user);
        }
        for (unsigned page = 0; giant && page < 2; ++page) {
            const u64 linear = 0x1'0000'0000 + (u64{page} << 30);
            if (random_.percent(50)) map(mode, space.root, linear, 3, false, space.user);
        }
        if (options_.self_maps && random_.percent(50)) map_self(mode, space);
        if (space.user.empty()) map(mode, space.root, user_bases[0], 1, false, space.user);
    }
}

reference::Cpu Maker::make_registers(const Mode& mode)
{
    const reference::Features& f = program_.features;
    reference::Cpu made = registers_for(mode.paging, random_.one_of(mode.spaces).root);
    const auto flag = [&](u64& target, unsigned number, unsigned chance, bool there) {
        target = random_.percent(chance) && there ? target | bit(number) : target & ~bit(number);
    };
    flag(made.cr0, 16, 80, true);
    flag(made.cr4, reference::kPse, 95, f.pse);
    flag(made.cr4, reference::kPge, 65, f.pge);
    flag(made.cr4, reference::kSmep, 20, f.smep);
    flag(made.cr4, reference::kSmap, 20, f.smap);
    flag(made.cr4, reference::kPke, 25, f.pku);
    flag(made.cr4, reference::kPks, 10, f.pks);
    flag(made.cr4, reference::kPcide, 60, f.pcid && long_mode(mode));
    flag(made.efer, 11, 95, f.nx && mode.paging != Paging::two_level);
    flag(made.efer, 15, 50, f.amd);
    if (made.cr4_bit(reference::kPcide)) made.cr3 |= random_.below(kPcids);
    made.ac = random_.percent(50);
    made.cpl = random_.percent(70) ? 0 : 3;
    if (random_.percent(30)) made.pkru = random_.below(256);
    if (random_.percent(10)) made.pkrs = random_.below(64) & ~3u;
    return made;
}

// --- events
// -------------------------------------------------------------------------------------------------

Event& Maker::emit(Event::Kind kind)
{
    Event& event = program_.events.emplace_back();
    event.kind = kind;
    event.cpu = cpu_;
    const unsigned what = random_.below(100);
    if (what < 45 && kind != Event::Kind::set && kind != Event::Kind::poke) {
        event.gap = what < 40 ? random_.below(12) : random_.below(150);
    }
    return event;
}

void Maker::be_supervisor()
{
    if (cpu().cpl == 0 || random_.percent(3)) return;
    emit(Event::Kind::cpl).value = 0;
    cpu().cpl = 0;
}

const Mode& Maker::mode_now()
{
    const Paging paging = cpu().paging();
    for (const Mode& mode : modes_) {
        if (mode.paging == paging) return mode;
    }
    return modes_.front();
}

MappedPage Maker::any_page()
{
    const Mode& mode = mode_now();
    if (!mode.kernel.empty() && random_.percent(35)) return random_.one_of(mode.kernel);
    for (const AddressSpace& space : mode.spaces) {
        if (space.root == (cpu().cr3 & ~u64{0xfff}) && random_.percent(95)) return random_.one_of(space.user);
    }
    return random_.one_of(random_.one_of(mode.spaces).user);
}

void Maker::access()
{
    // Mostly one of the pages used of late, the first ones most of all, if it is in this address space.
    std::vector<MappedPage>& recent = recent_[cpu_];
    const unsigned number = 24 * options_.spread;
    const std::size_t place = std::min(random_.below(number), random_.below(number));
    while (recent.size() < number) recent.push_back(any_page());
    MappedPage& page = recent[place];
    const Mode& mode = mode_now();
    const u64 root = cpu().cr3 & ~u64{0xfff};
    const bool kernel = page.kernel && !page.to_tables;
    const bool elsewhere = page.paging != mode.paging || (!kernel && page.root != root);
    if ((elsewhere && random_.percent(95)) || random_.percent(8)) page = any_page();
    Event& event = emit(Event::Kind::access);
    u64 linear = page.linear;
    // A larger page is used in a few places.
    if (page.shift > 12) linear += u64{random_.below(6)} << 12;
    if (page.shift > 12 && random_.percent(20))
        linear += (u64{1} << (page.shift - 1)) + (random_.below(4) << 12);
    if (page.shift == 30 && random_.percent(50)) linear += u64{random_.below(3)} << 21;
    const unsigned where = random_.below(100);
    event.bytes = 1u << random_.below(4);
    if (where < 70) {
        linear += random_.below(64) * 8;
    } else if (where < 85) {
        linear += random_.below(4096);
    } else if (where < 92) {
        linear += 4096 - random_.from_to(1, 8);
        event.bytes = random_.from_to(1, 16);
    } else if (where < 93) {
        linear += random_.below(4096);
        event.bytes = random_.from_to(1, 4096);
    } else {
        linear += random_.below(512) * 8;
        if (random_.percent(10)) linear += 4096;  // perhaps a hole
    }
    if (random_.percent(1)) linear ^= u64{1} << (random_.percent(30) ? 60 : random_.from_to(12, 47));
    if (!cpu().long_mode()) linear &= 0xffff'ffff;
    event.address = linear;
    const unsigned kind = random_.below(100);
    event.access = kind < 45   ? reference::Kind::read
                   : kind < 78 ? reference::Kind::write
                               : reference::Kind::fetch;
    // Mostly what the page permits.
    const bool odd = (event.access == reference::Kind::write && (page.flags & kW) == 0) ||
                     (event.access == reference::Kind::fetch && (page.flags & kNx) != 0);
    if (odd && random_.percent(85)) event.access = reference::Kind::read;
    event.user = random_.percent(page.kernel ? 2 : 90);
    event.implicit = event.access != reference::Kind::fetch && random_.percent(2);
    if (event.access == reference::Kind::write && !page.to_tables && event.bytes <= 8 &&
        random_.percent(30)) {
        event.stores = true;
        event.value = random_.word();
    }
}

/// A fetch and some operands.
void Maker::instruction()
{
    std::vector<Operand> operands;
    const std::size_t first = program_.events.size();
    for (unsigned i = random_.from_to(2, 4); i > 0; --i) access();
    for (std::size_t i = first; i < program_.events.size(); ++i) {
        const Event& one = program_.events[i];
        operands.push_back({one.address, one.bytes, one.access, one.user, one.implicit, false});
    }
    if (random_.percent(70)) operands.front().kind = reference::Kind::fetch;
    if (operands.front().kind == reference::Kind::fetch) operands.front().implicit = false;
    program_.events.resize(first);
    emit(Event::Kind::instruction).value = program_.instructions.size();
    program_.instructions.push_back(std::move(operands));
}

void Maker::access_to(u64 linear)
{
    Event& event = emit(Event::Kind::access);
    event.address = linear + random_.below(500) * 8;
    event.bytes = 8;
    event.access = random_.one_of(std::array{reference::Kind::read, reference::Kind::write});
    event.user = random_.percent(50);
}

/// Half of the time that of a page used of late.
std::size_t Maker::any_slot(const Mode& mode)
{
    const std::vector<MappedPage>& recent = recent_[cpu_];
    if (!recent.empty() && random_.percent(50)) {
        const u64 linear = random_.one_of(recent).linear;
        const auto slot = std::find_if(mode.slots.begin(), mode.slots.end(),
                                       [&](const Slot& one) { return one.linear == linear; });
        if (slot != mode.slots.end()) return static_cast<std::size_t>(slot - mode.slots.begin());
    }
    return random_.below(static_cast<unsigned>(mode.slots.size()));
}

u64 Maker::changed(const Mode& mode, const Slot& slot, u64 value)
{
    const unsigned what = random_.below(100);
    if (what < 12) return value ^ kP;
    if (what < 27) return value ^ kW;
    if (what < 35) return value ^ kU;
    if (what < 50) return value & ~(kA | kD);
    if (what < 58) return value ^ kG;
    if (what < 63 && slot.bytes == 8 && program_.features.nx) return value ^ kNx;
    if (what < 68 && long_mode(mode)) return value ^ u64 { random_.below(4) } << 59;
    if (slot.level == 1) return (value & ~u64{0xff'f000}) | frame_for(12);
    if ((value & kPs) != 0 && random_.percent(60)) return value ^ (random_.percent(50) ? kD : kA);
    // Another entry of the same level: other tables below, or another size of page.
    for (unsigned attempt = 0; attempt < 8; ++attempt) {
        const Slot& other = random_.one_of(mode.slots);
        if (other.level == slot.level && other.value != value) return other.value;
    }
    return value;
}

/// A store to a table, and often what a guest does after it.
void Maker::change_slot()
{
    const Mode& mode = mode_now();
    const std::size_t number = any_slot(mode);
    const Slot& slot = mode.slots[number];
    if (slot.level > 1 && random_.percent(50)) return;
    u64 value = slot.value;
    if (random_.percent(70)) value = changed(mode, slot, value);
    if (random_.percent(20)) value = changed(mode, slot, value);
    if (slot.bytes == 4) value &= 0xffff'ffff;
    changed_slots_.emplace_back(&mode, number);

    const bool from_inside = random_.percent(80) && cpu().paging() == mode.paging;
    Event& event = emit(from_inside ? Event::Kind::access : Event::Kind::poke);
    event.bytes = slot.bytes;
    event.value = value;
    event.address = slot.address;
    if (from_inside) {
        event.address = mode.window + slot.address - (kFirstTableFrame << 12);
        event.access = reference::Kind::write;
        event.stores = true;
    }

    const unsigned then = random_.below(100);
    if (then < 40) {
        be_supervisor();
        emit(Event::Kind::invlpg).address = slot.linear;
    } else if (then < 50) {
        be_supervisor();
        Event& flush = emit(Event::Kind::invpcid);
        flush.type = random_.below(4);
        flush.pcid = cpu().pcid();
        flush.address = slot.linear;
    } else if (then < 55) {
        mov_cr3(false);
    }
    if (random_.percent(70)) access_to(slot.linear);
}

/// The tables as they were, from outside. Nobody is told.
void Maker::repair()
{
    for (unsigned i = 0; i < 8 && !changed_slots_.empty(); ++i) {
        const std::size_t which = random_.below(static_cast<unsigned>(changed_slots_.size()));
        const auto [mode, number] = changed_slots_[which];
        changed_slots_.erase(changed_slots_.begin() + static_cast<std::ptrdiff_t>(which));
        const Slot& slot = mode->slots[number];
        Event& event = emit(Event::Kind::poke);
        event.address = slot.address;
        event.bytes = slot.bytes;
        event.value = slot.value;
    }
}

void Maker::mov_cr3(bool pcid_zero)
{
    be_supervisor();
    const Mode& mode = mode_now();
    u64 value = random_.one_of(mode.spaces).root;
    if (cpu().cr4_bit(reference::kPcide)) {
        if (!pcid_zero) value |= random_.below(kPcids);
        if (random_.percent(50)) value |= u64{1} << 63;
    }
    if (random_.percent(1)) value |= u64{1} << 61;
    emit(Event::Kind::mov_cr3).value = value;
    belief_.mov_cr3(cpu_, value);
}

void Maker::toggle_cr4(unsigned number)
{
    be_supervisor();
    if (number == reference::kPcide && !cpu().cr4_bit(number) && (cpu().cr3 & 0xfff) != 0) mov_cr3(true);
    const u64 value = cpu().cr4 ^ bit(number);
    emit(Event::Kind::mov_cr4).value = value;
    belief_.mov_cr4(cpu_, value);
}

void Maker::control()
{
    const unsigned what = random_.below(100);
    if (what < 30) return mov_cr3(false);
    if (what < 45) {
        be_supervisor();
        const u64 value = cpu().cr0 ^ bit(random_.one_of(std::array{16u, 16u, 16u, 16u, 16u, 30u, 29u}));
        emit(Event::Kind::mov_cr0).value = value;
        belief_.mov_cr0(cpu_, value);
        return;
    }
    if (what < 68) {
        const std::array common{reference::kPge,  reference::kPge,  reference::kSmep,
                                reference::kSmep, reference::kSmap, reference::kSmap,
                                reference::kPke,  reference::kPks,  reference::kPcide};
        const std::array rare{reference::kPse, reference::kPae, reference::kLa57, 28u};
        return toggle_cr4(random_.percent(90) ? random_.one_of(common) : random_.one_of(rare));
    }
    if (what < 74) {
        be_supervisor();
        Event& event = emit(Event::Kind::wrmsr);
        if (random_.percent(30)) {
            event.msr = 0x6e1;
            event.value = random_.percent(70) ? 0 : random_.below(64) & ~3u;
            return;
        }
        event.msr = 0xc000'0080;
        const std::array of_amd{15u, 15u, 15u, 0u, 0u, 11u};
        const std::array of_intel{0u, 0u, 0u, 11u};
        const unsigned flipped = program_.features.amd ? random_.one_of(of_amd) : random_.one_of(of_intel);
        event.value = cpu().efer ^ bit(flipped);
        belief_.wrmsr_efer(cpu_, event.value);
        return;
    }
    if (what < 82) {
        Event& event = emit(Event::Kind::wrpkru);
        event.value = random_.percent(60) ? 0 : random_.below(256) & ~3u;
        return;
    }
    if (what < 92) {
        const unsigned cpl = cpu().cpl == 0 ? 3 : 0;
        emit(Event::Kind::cpl).value = cpl;
        cpu().cpl = cpl;
        return;
    }
    cpu().ac = !cpu().ac;
    emit(Event::Kind::ac).value = cpu().ac ? 1 : 0;
}

void Maker::invalidate()
{
    be_supervisor();
    const std::vector<MappedPage>& recent = recent_[cpu_];
    const MappedPage page = recent.empty() || random_.percent(20) ? any_page() : random_.one_of(recent);
    u64 linear = page.linear + random_.below(4096);
    if (page.shift > 12) linear += u64{random_.below(200)} << 12;
    if (random_.percent(1)) linear ^= u64{1} << 60;
    if (!cpu().long_mode()) linear &= 0xffff'ffff;
    if (random_.percent(65)) {
        emit(Event::Kind::invlpg).address = linear;
        return;
    }
    Event& event = emit(Event::Kind::invpcid);
    event.address = linear;
    event.type = random_.percent(3) ? 4 + random_.below(2) : random_.below(4);
    event.pcid = random_.percent(50) ? cpu().pcid() : random_.below(kPcids);
    if (random_.percent(1)) event.pcid = 0x1000;
}

void Maker::paging_off_for_a_while()
{
    be_supervisor();
    if (cpu().cr4_bit(reference::kPcide)) toggle_cr4(reference::kPcide);
    const u64 on = cpu().cr0 | u64{1} << 31;
    emit(Event::Kind::mov_cr0).value = on & ~(u64{1} << 31);
    belief_.mov_cr0(cpu_, on & ~(u64{1} << 31));
    for (unsigned i = random_.below(6); i > 0; --i) {
        Event& event = emit(Event::Kind::access);
        event.address = (kFirstDataFrame << 12) + random_.below(0x20000);
        event.bytes = random_.from_to(1, 8);
        event.access =
            random_.one_of(std::array{reference::Kind::read, reference::Kind::write, reference::Kind::fetch});
    }
    emit(Event::Kind::mov_cr0).value = on;
    belief_.mov_cr0(cpu_, on);
}

void Maker::step()
{
    if (program_.cpus > 1 && random_.percent(10)) cpu_ = random_.below(program_.cpus);
    const bool has_nxe = cpu().nxe() || !program_.features.nx || mode_now().paging == Paging::two_level;
    if (!has_nxe && random_.percent(3)) {  // without it, much faults
        be_supervisor();
        Event& event = emit(Event::Kind::wrmsr);
        event.msr = 0xc000'0080;
        event.value = cpu().efer | u64{1} << 11;
        belief_.wrmsr_efer(cpu_, event.value);
    }
    const unsigned what = random_.below(1000);
    if (what < 875 || !random_.percent(100 / calm_)) {
        if (random_.percent(5)) return instruction();
        access();
    } else if (what < 915) {
        change_slot();
    } else if (what < 925) {
        repair();
    } else if (what < 960) {
        control();
    } else if (what < 995) {
        invalidate();
    } else if (what < 998) {
        paging_off_for_a_while();
    } else {
        program_.registers.push_back(make_registers(random_.one_of(modes_)));
        emit(Event::Kind::set).value = program_.registers.size() - 1;
        belief_.set_registers(cpu_, program_.registers.back());
    }
}

}  // namespace

Program random_program(std::uint64_t seed, const ProgramOptions& options)
{
    return Maker{seed, options}.program();
}

reference::Machine machine_for(const Program& program)
{
    reference::Machine machine;
    machine.features = program.features;
    machine.memory.ram = program.ram;
    machine.memory.words = program.memory;
    machine.cpus.resize(program.cpus);
    for (unsigned cpu = 0; cpu < program.cpus; ++cpu) machine.set_registers(cpu, program.registers[cpu]);
    return machine;
}

Played play(Hardware& hardware, reference::Machine& machine, const Program& program, const Event& event)
{
    Played played;
    hardware.gap(event.gap);
    switch (event.kind) {
    case Event::Kind::access: {
        const Operand operand{event.address, event.bytes, event.access, event.user, event.implicit, false};
        played.outcome = hardware.access(event.cpu, operand);
        if (!event.stores || played.outcome.fault) break;
        const auto first = std::min<unsigned>(event.bytes, 4096 - event.address % 4096);
        for (unsigned i = 0; i < event.bytes; ++i) {
            const u64 at =
                i < first ? played.outcome.physical[0] + i : played.outcome.physical[1] + i - first;
            machine.memory.write(at, 1, event.value >> 8 * i & 0xff);
        }
        break;
    }
    case Event::Kind::instruction:
        played.execution = hardware.execute(event.cpu, program.instructions[event.value]);
        break;
    case Event::Kind::mov_cr0: played.vector = hardware.mov_cr0(event.cpu, event.value); break;
    case Event::Kind::mov_cr3: played.vector = hardware.mov_cr3(event.cpu, event.value); break;
    case Event::Kind::mov_cr4: played.vector = hardware.mov_cr4(event.cpu, event.value); break;
    case Event::Kind::wrmsr: played.vector = hardware.wrmsr(event.cpu, event.msr, event.value); break;
    case Event::Kind::wrpkru:
        played.vector = hardware.wrpkru(event.cpu, static_cast<std::uint32_t>(event.value));
        break;
    case Event::Kind::invlpg: played.vector = hardware.invlpg(event.cpu, event.address); break;
    case Event::Kind::invpcid:
        played.vector = hardware.invpcid(event.cpu, event.type, event.pcid, event.address);
        break;
    case Event::Kind::cpl: hardware.set_cpl(event.cpu, static_cast<unsigned>(event.value)); break;
    case Event::Kind::ac: hardware.set_ac(event.cpu, event.value != 0); break;
    case Event::Kind::set: {
        const bool loaded = hardware.set_registers(event.cpu, program.registers[event.value]);
        if (!loaded) played.vector = reference::kGeneralProtection;
        break;
    }
    case Event::Kind::poke: machine.memory.write(event.address, event.bytes, event.value); break;
    }
    return played;
}

}  // namespace model
