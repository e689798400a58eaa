// SPDX-License-Identifier: Apache-2.0
#include "support/reference_machine.hpp"

#include <algorithm>

namespace reference {

namespace {

using u64 = std::uint64_t;

constexpr u64 bit(unsigned n)
{
    return u64{1} << n;
}

/// Bits from..to, inclusive; 0 if there are none.
constexpr u64 bits(unsigned from, unsigned to)
{
    return from > to ? 0 : ~u64{0} >> (63 - (to - from)) << from;
}

constexpr unsigned kFrameFirst = 12, kFrameLast = 51;

}  // namespace

bool canonical(u64 address, unsigned linear_bits)
{
    const u64 upper = bits(linear_bits - 1, 63);
    return (address & upper) == 0 || (address & upper) == upper;
}

// --- memory ------------------------------------------------------------------------------------------

void Words::set(u64 word, u64 value)
{
    std::uint32_t index = page_of(word / kPage);
    if (index == kNone) {
        index = static_cast<std::uint32_t>(pages_.size());
        pages_.push_back({});
        index_.emplace(word / kPage, index);
        remembered_[word / kPage % remembered_.size()] = {word / kPage, index};
    }
    pages_[index][word % kPage] = value;
}

std::vector<std::pair<u64, u64>> Words::nonzero() const
{
    std::vector<std::pair<u64, u64>> all;
    for (const auto& [page, index] : index_) {
        for (u64 i = 0; i < kPage; ++i) {
            if (pages_[index][i] != 0) all.emplace_back(page * kPage + i, pages_[index][i]);
        }
    }
    return all;
}

bool Words::holds(const Words& other) const
{
    return std::all_of(other.index_.begin(), other.index_.end(), [&](const auto& page) {
        for (u64 i = 0; i < kPage; ++i) {
            if ((*this)[page.first * kPage + i] != other.pages_[page.second][i]) return false;
        }
        return true;
    });
}

Memory::Behind Memory::behind(u64 frame) const
{
    if (const auto found = changed.find(frame); found != changed.end()) return found->second;
    const bool is_ram = std::any_of(ram.begin(), ram.end(), [&](const auto& range) {
        return frame >= range.first && frame < range.first + range.second;
    });
    return {is_ram ? std::optional{frame} : std::nullopt};
}

/// Where a word is; nowhere: in a slot that nothing is ever stored to.
u64 Memory::place(u64 word) const
{
    if (changed.empty()) return word;
    constexpr u64 kNowhere = u64{1} << 41;
    return behind(word / Words::kPage).slot.value_or(kNowhere) * Words::kPage + word % Words::kPage;
}

u64 Memory::read(u64 address, unsigned bytes) const
{
    const unsigned shift = address % 8 * 8;
    u64 value = words[place(address / 8)] >> shift;
    if (shift + 8 * bytes > 64) value |= words[place(address / 8 + 1)] << (64 - shift);
    return value & bits(0, 8 * bytes - 1);
}

void Memory::write(u64 address, unsigned bytes, u64 value)
{
    for (unsigned done = 0; done < bytes;) {
        const u64 at = address + done;
        const unsigned shift = at % 8 * 8;
        const unsigned here = std::min(bytes - done, 8 - shift / 8);  // bytes in this word
        const u64 mask = bits(shift, shift + 8 * here - 1);
        const u64 word = place(at / 8);
        if (is_ram(at)) words.set(word, (words[word] & ~mask) | (value >> 8 * done << shift & mask));
        done += here;
    }
}

void Memory::store(u64 address, unsigned bytes, u64 value)
{
    for (unsigned i = 0; i < bytes; ++i) {
        if (!behind((address + i) / 4096).read_only) write(address + i, 1, value >> 8 * i & 0xff);
    }
}

std::optional<u64> Memory::owner(u64 slot) const
{
    for (const auto& [frame, now] : changed) {
        if (now.slot == slot) return frame;
    }
    if (changed.count(slot) == 0 && behind(slot).slot) return slot;
    return std::nullopt;
}

void Memory::put(u64 frame, u64 count, std::optional<u64> slot, bool read_only)
{
    std::vector<std::optional<u64>> slots;
    for (u64 i = 0; i < count; ++i) slots.push_back(slot ? *slot + i : behind(frame + i).slot);
    for (u64 i = 0; i < count; ++i) {
        if (const auto other = slots[i] ? owner(*slots[i]) : std::nullopt) changed[*other] = {};
    }
    for (u64 i = 0; i < count; ++i) changed[frame + i] = {slots[i], read_only};
}

void Memory::take(u64 frame, u64 count)
{
    for (u64 i = 0; i < count; ++i) changed[frame + i] = {};
}

void Memory::put_empty(u64 frame, u64 count)
{
    for (u64 i = 0; i < count; ++i) changed[frame + i] = {unused_++};
}

std::vector<std::pair<u64, u64>> Memory::nonzero() const
{
    std::vector<std::pair<u64, u64>> all;
    for (const auto& [word, value] : words.nonzero()) {
        if (const auto frame = owner(word / Words::kPage))
            all.emplace_back((*frame * Words::kPage + word % Words::kPage) * 8, value);
    }
    return all;
}

// --- registers ---------------------------------------------------------------------------------------

Paging Cpu::paging() const
{
    if (!pg()) return Paging::off;
    if (!cr4_bit(kPae)) return Paging::two_level;
    if (!long_mode()) return Paging::pae;
    return cr4_bit(kLa57) ? Paging::five_level : Paging::four_level;
}

unsigned Cpu::linear_bits() const
{
    if (!long_mode()) return 32;
    return cr4_bit(kLa57) ? 57 : 48;
}

bool Machine::impossible(const Cpu& cpu) const
{
    if (cpu.cr0 >> 32 != 0) return true;
    if (cpu.pg() && (cpu.cr0 & 1) == 0) return true;                        // PG without PE
    if ((cpu.cr0 & bit(29)) != 0 && (cpu.cr0 & bit(30)) == 0) return true;  // NW without CD
    if (cpu.long_mode() && !cpu.cr4_bit(kPae)) return true;
    if (cpu.cr4_bit(kPcide) && !cpu.long_mode()) return true;
    const std::pair<unsigned, bool> listed[] = {
        {kPse, features.pse},   {kPge, features.pge},   {kLa57, features.la57}, {kPcide, features.pcid},
        {kSmep, features.smep}, {kSmap, features.smap}, {kPke, features.pku},   {kPks, features.pks}};
    for (const auto& [number, there] : listed) {
        if (cpu.cr4_bit(number) && !there) return true;
    }
    if ((cpu.cr4 & (bit(15) | bits(26, 31) | bits(33, 63))) != 0) return true;
    if (cpu.nxe() && !features.nx) return true;
    if ((cpu.efer & (bits(1, 7) | bit(9) | bits(16, 63))) != 0) return true;
    return (cpu.cr3 & bits(features.width, 63)) != 0;
}

bool Machine::load_pdptes(Cpu& cpu) const
{
    const u64 reserved = bits(1, 2) | bits(5, 8) | bits(features.width, 63);
    for (unsigned i = 0; i < 4; ++i) {
        const u64 pdpte = memory.read((cpu.cr3 & 0xffff'ffe0) + 8 * i, 8);
        if ((pdpte & 1) != 0 && (pdpte & reserved) != 0) return false;
        cpu.pdptes[i] = pdpte;
    }
    return true;
}

std::optional<unsigned> Machine::load(unsigned index, Cpu next, bool cr3_write)
{
    Cpu& old = cpus[index];
    if (old.cpl != 0) return kGeneralProtection;
    next.cr0 |= bit(4);
    next.efer &= ~bit(10);
    if ((next.efer & bit(8)) != 0 && next.pg()) next.efer |= bit(10);
    if (impossible(next)) return kGeneralProtection;
    const u64 cr0_changed = old.cr0 ^ next.cr0;
    const u64 cr4_changed = old.cr4 ^ next.cr4;
    const bool reloads = cr3_write || (cr0_changed & (bit(29) | bit(30) | bit(31))) != 0 ||
                         (cr4_changed & (bit(kPae) | bit(kPge) | bit(kPse) | bit(kSmep))) != 0;
    if (next.paging() == Paging::pae && reloads && !load_pdptes(next)) return kGeneralProtection;

    // What must not be used any more.
    const bool paging_left = old.pg() && !next.pg();
    const bool pcids_left = old.cr4_bit(kPcide) && !next.cr4_bit(kPcide);
    const bool smep_set = !old.cr4_bit(kSmep) && next.cr4_bit(kSmep);
    if (paging_left || pcids_left || (cr4_changed & bit(kPge)) != 0) {
        next.cached.clear();
    } else if (smep_set || (cr4_changed & bit(kPae)) != 0) {
        std::erase_if(next.cached, [&](const Page& page) { return page.pcid == old.pcid() || page.global; });
    }
    old = std::move(next);
    return std::nullopt;
}

std::optional<unsigned> Machine::mov_cr0(unsigned cpu, u64 value)
{
    Cpu next = cpus[cpu];
    next.cr0 = value;
    return load(cpu, next, false);
}

std::optional<unsigned> Machine::mov_cr3(unsigned cpu, u64 value)
{
    Cpu next = cpus[cpu];
    const bool pcids = next.cr4_bit(kPcide);
    const bool no_flush = pcids && (value & bit(63)) != 0;
    next.cr3 = pcids ? value & ~bit(63) : value;
    if (const auto refused = load(cpu, next, true)) return refused;
    if (!no_flush) {
        const u64 pcid = cpus[cpu].pcid();
        std::erase_if(cpus[cpu].cached, [&](const Page& page) { return page.pcid == pcid && !page.global; });
    }
    return std::nullopt;
}

std::optional<unsigned> Machine::mov_cr4(unsigned cpu, u64 value)
{
    Cpu next = cpus[cpu];
    next.cr4 = value;
    if (next.long_mode() && next.cr4_bit(kLa57) != cpus[cpu].cr4_bit(kLa57)) return kGeneralProtection;
    const bool sets_pcide = next.cr4_bit(kPcide) && !cpus[cpu].cr4_bit(kPcide);
    if (sets_pcide && (next.cr3 & 0xfff) != 0) return kGeneralProtection;
    return load(cpu, next, false);
}

std::optional<unsigned> Machine::wrmsr_efer(unsigned cpu, u64 value)
{
    Cpu next = cpus[cpu];
    next.efer = value;
    if (next.pg() && ((value ^ cpus[cpu].efer) & bit(8)) != 0) return kGeneralProtection;
    return load(cpu, next, false);
}

std::optional<unsigned> Machine::wrpkru(unsigned cpu, std::uint32_t value)
{
    if (!features.pku) return kUndefined;
    cpus[cpu].pkru = value;
    return std::nullopt;
}

std::optional<unsigned> Machine::invlpg(unsigned cpu, u64 linear)
{
    if (cpus[cpu].cpl != 0) return kGeneralProtection;
    if (!cpus[cpu].long_mode()) linear &= 0xffff'ffff;
    if (cpus[cpu].long_mode() && !canonical(linear, cpus[cpu].linear_bits())) return std::nullopt;
    drop_page(cpu, linear);
    return std::nullopt;
}

std::optional<unsigned> Machine::invpcid(unsigned cpu, u64 type, u64 pcid, u64 linear)
{
    Cpu& me = cpus[cpu];
    if (!features.invpcid) return kUndefined;
    if (me.cpl != 0 || type > 3 || pcid > 0xfff) return kGeneralProtection;
    if (type < 2 && pcid != 0 && !me.cr4_bit(kPcide)) return kGeneralProtection;
    if (!me.long_mode()) linear &= 0xffff'ffff;
    if (type == 0 && me.long_mode() && !canonical(linear, me.linear_bits())) return kGeneralProtection;
    std::erase_if(me.cached, [&](const Page& page) {
        switch (type) {
        case 0: return page.pcid == pcid && !page.global && page.linear == linear >> page.shift << page.shift;
        case 1: return page.pcid == pcid && !page.global;
        case 2: return true;
        default: return !page.global;
        }
    });
    return std::nullopt;
}

bool Machine::set_registers(unsigned cpu, Cpu wanted)
{
    wanted.cr0 |= bit(4);
    wanted.efer &= ~bit(10);
    if ((wanted.efer & bit(8)) != 0 && wanted.pg()) wanted.efer |= bit(10);
    wanted.pdptes = {};
    if (impossible(wanted)) return false;
    if (!wanted.long_mode() && wanted.cr3 >> 32 != 0) return false;
    if (wanted.paging() == Paging::pae && !load_pdptes(wanted)) return false;
    wanted.cached.clear();
    cpus[cpu] = wanted;
    return true;
}

// --- translation ---------------------------------------------------------------------------------------

u64 Machine::linear_of(unsigned cpu, u64 address) const
{
    return cpus[cpu].long_mode() ? address : address & 0xffff'ffff;
}

std::uint32_t Machine::refused(const Cpu& cpu, const Page& page, const Access& access) const
{
    if (!cpu.pg()) return 0;
    const bool supervisor = !access.user || access.implicit;
    const bool write = access.kind == Kind::write;
    bool refuse = false;
    bool by_key = false;
    if (access.kind == Kind::fetch) {
        refuse |= page.no_execute;
        refuse |= supervisor ? page.user && cpu.cr4_bit(kSmep) : !page.user;
    } else {
        if (!supervisor) {
            refuse |= !page.user;
            refuse |= write && !page.writable;
        } else {
            refuse |= page.user && cpu.cr4_bit(kSmap) && (access.implicit || !cpu.ac);
            refuse |= write && !page.writable && cpu.wp();
        }
        if (cpu.long_mode() && cpu.cr4_bit(page.user ? kPke : kPks)) {
            const std::uint32_t rights = (page.user ? cpu.pkru : cpu.pkrs) >> 2 * page.key;
            by_key |= (rights & 1) != 0;
            by_key |= (rights & 2) != 0 && write && (!supervisor || cpu.wp());
        }
    }
    if (!refuse && !by_key) return 0;
    return by_key ? 1u | 1u << 5 : 1u;
}

Walk Machine::walk(unsigned index, const Access& access) const
{
    const Cpu& cpu = cpus[index];
    const u64 linear = access.linear;
    const Paging paging = cpu.paging();
    Walk walk;
    walk.page.linear = linear & ~bits(0, 11);
    std::uint32_t about_access = 0;
    if (access.kind == Kind::write) about_access |= 1u << 1;
    if (access.user && !access.implicit) about_access |= 1u << 2;
    if (access.kind == Kind::fetch && paging != Paging::off &&
        ((cpu.nxe() && cpu.cr4_bit(kPae)) || cpu.cr4_bit(kSmep))) {
        about_access |= 1u << 4;
    }
    const auto fail = [&](std::uint32_t code) {
        walk.fault = Fault{kPageFault, code | about_access, linear};
        return walk;
    };
    const auto found = [&] {
        const u64 frame = (walk.page.physical | (linear & bits(0, walk.page.shift - 1))) >> 12;
        const bool withheld = secure_frames.count(frame) != 0 && in_secure_mode.count(index) == 0;
        return withheld ? fail(1) : walk;
    };
    if (paging == Paging::off) {
        walk.page.physical = walk.page.linear;
        return found();
    }

    unsigned shift = 22;  // of the level, above the leaf's 12
    if (paging == Paging::pae) shift = 21;
    if (paging == Paging::four_level) shift = 39;
    if (paging == Paging::five_level) shift = 48;
    const unsigned entry_bytes = paging == Paging::two_level ? 4 : 8;
    const unsigned index_bits = paging == Paging::two_level ? 10 : 9;

    u64 table = cpu.cr3 & bits(kFrameFirst, cpu.long_mode() ? kFrameLast : 31);
    if (paging == Paging::pae) {
        const u64 pdpte = cpu.pdptes[linear >> 30 & 3];
        if ((pdpte & 1) == 0) return fail(0);
        table = pdpte & bits(kFrameFirst, kFrameLast);
    }
    Page& page = walk.page;
    for (;; shift -= index_bits) {
        const u64 at = table + (linear >> shift & bits(0, index_bits - 1)) * entry_bytes;
        const u64 entry = memory.read(at, entry_bytes);
        if ((entry & 1) == 0) return fail(0);

        const bool ps = shift > 12 && (entry & bit(7)) != 0;
        bool leaf = shift == 12;
        u64 reserved = 0;
        if (paging == Paging::two_level) {
            if (ps && cpu.cr4_bit(kPse)) {
                leaf = true;
                reserved = features.pse36 ? bits(std::min(40u, features.width) - 19, 21) : bits(13, 21);
            }
        } else {
            reserved = bits(features.width, kFrameLast);
            if (paging == Paging::pae) reserved |= bits(52, 62);
            if (!cpu.nxe()) reserved |= bit(63);
            if (ps && shift == 21) {
                leaf = true;
                reserved |= bits(13, 20);
            }
            if (ps && shift == 30) {
                leaf = true;
                reserved |= features.page1gb ? bits(13, 29) : bit(7);
            }
            if (shift >= 39) reserved |= bit(7) | (features.amd ? bit(8) : 0);
        }
        if ((entry & reserved) != 0) return fail(1u | 1u << 3);

        walk.used.push_back({at, entry_bytes});
        page.writable = page.writable && (entry & bit(1)) != 0;
        page.user = page.user && (entry & bit(2)) != 0;
        page.no_execute = page.no_execute || (entry_bytes == 8 && (entry & bit(63)) != 0);
        if (!leaf) {
            table = entry & bits(kFrameFirst, entry_bytes == 4 ? 31 : kFrameLast);
            continue;
        }
        page.shift = shift;
        page.linear = linear >> shift << shift;
        page.physical = entry & bits(shift, entry_bytes == 4 ? 31 : kFrameLast);
        if (shift == 22) page.physical |= (entry >> 13 & 0xff) << 32;
        page.dirty = (entry & bit(6)) != 0;
        page.global = (entry & bit(8)) != 0 && cpu.cr4_bit(kPge);
        page.pcid = cpu.pcid();
        page.key = cpu.long_mode() ? static_cast<unsigned>(entry >> 59 & 15) : 0;
        if (const std::uint32_t code = refused(cpu, page, access)) return fail(code);
        return found();
    }
}

void Machine::set_bits(const Walk& walk, bool dirty)
{
    for (const Entry& entry : walk.used) {
        u64 value = memory.read(entry.address, entry.bytes) | bit(5);
        if (dirty && &entry == &walk.used.back()) value |= bit(6);
        memory.write(entry.address, entry.bytes, value);
    }
}

// --- staleness -------------------------------------------------------------------------------------------

void Machine::cache(unsigned cpu, Page page, bool dirty)
{
    if (cpus[cpu].paging() == Paging::off) return;
    page.dirty = page.dirty || dirty;
    // Often the same pages again: these need not be there twice.
    std::vector<Page>& cached = cpus[cpu].cached;
    const auto from = cached.size() > 8 ? cached.end() - 8 : cached.begin();
    if (std::find(from, cached.end(), page) == cached.end()) cached.push_back(page);
}

bool Machine::explains(unsigned index, const Access& access, u64 physical) const
{
    const Cpu& cpu = cpus[index];
    return std::any_of(cpu.cached.begin(), cpu.cached.end(), [&](const Page& page) {
        const u64 inside = access.linear & bits(0, page.shift - 1);
        return page.linear == access.linear - inside && page.physical + inside == physical &&
               (page.pcid == cpu.pcid() || page.global) && refused(cpu, page, access) == 0 &&
               (access.kind != Kind::write || page.dirty);
    });
}

void Machine::drop_page(unsigned index, u64 linear)
{
    Cpu& cpu = cpus[index];
    std::erase_if(cpu.cached, [&](const Page& page) {
        return page.linear == linear >> page.shift << page.shift && (page.pcid == cpu.pcid() || page.global);
    });
}

}  // namespace reference
