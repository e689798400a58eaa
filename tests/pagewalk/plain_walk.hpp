// SPDX-License-Identifier: Apache-2.0
//
// The tests' own reading of the manual: rights (SDM vol. 3A 4.6.1 and 4.6.2), error codes (4.7) and the walk
// (4.3 to 4.5, 4.8), as plainly as they can be put. It shares no code with the library but the names of the
// paging modes and the containers in which registers travel. Reserved bits come from
// words/reserved_oracle.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include <mmusim/words/access.hpp>
#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/paging_mode.hpp>
#include <mmusim/words/registers.hpp>

#include "words/reserved_oracle.hpp"

namespace mmusim::plain {

constexpr std::uint64_t bit(int n)
{
    return std::uint64_t{1} << n;
}
constexpr bool has_bit(std::uint64_t word, int n)
{
    return (word >> n & 1) != 0;
}

enum class Who : std::uint8_t { user, supervisor, implicit_supervisor };

/// The part of a CPU's state that a walk depends on.
struct Cpu {
    Paging paging = Paging::four_level;
    int maxphyaddr = 40;
    bool amd = false;
    bool page1gb = false;
    bool pse36 = false;
    bool nxe = false;
    bool pse = false;
    bool wp = false;
    bool smep = false;
    bool smap = false;
    bool ac = false;
    bool pke = false;
    bool pks = false;
    std::uint32_t pkru = 0;
    std::uint32_t pkrs = 0;
};

/// The same state in the library's registers, bits by their numbers in the manual.
inline Registers registers_of(const Cpu& cpu)
{
    const bool long_mode = cpu.paging == Paging::four_level || cpu.paging == Paging::five_level;
    Registers r;
    r.cr0 = bit(31) | bit(4) | bit(0) | (cpu.wp ? bit(16) : 0);
    r.cr4 = (cpu.paging != Paging::two_level ? bit(5) : 0) |
            (cpu.paging == Paging::five_level ? bit(12) : 0) | (cpu.pse ? bit(4) : 0) |
            (cpu.smep ? bit(20) : 0) | (cpu.smap ? bit(21) : 0) | (cpu.pke ? bit(22) : 0) |
            (cpu.pks ? bit(24) : 0);
    r.efer = (long_mode ? bit(8) | bit(10) : 0) | (cpu.nxe ? bit(11) : 0);
    r.ac = cpu.ac;
    r.pkru = cpu.pkru;
    r.pkrs = cpu.pkrs;
    return r;
}

inline Cpuid cpuid_of(const Cpu& cpu)
{
    Cpuid c;
    for (const auto& [name, member] : kFeatureNames) c.*member = true;
    c.vendor = cpu.amd ? Vendor::amd : Vendor::intel;
    c.physical_address_bits = static_cast<unsigned>(cpu.maxphyaddr);
    c.page1gb = cpu.page1gb;
    c.pse36 = cpu.pse36;
    return c;
}

inline Access access_of(std::uint64_t la, AccessKind kind, Who who)
{
    return {LinearAddress{la}, kind, who == Who::user, who == Who::implicit_supervisor};
}

// ---- rights

/// What the entries of a path say together.
struct Page {
    bool user = true;
    bool writable = true;
    bool xd = false;
    int key = 0;
};

inline bool in_long_mode(const Cpu& cpu)
{
    return cpu.paging == Paging::four_level || cpu.paging == Paging::five_level;
}

/// 4.6.2: keys concern data accesses in long mode. PKRU for user-mode addresses, IA32_PKRS for the others.
inline bool key_permits(const Cpu& cpu, const Page& page, AccessKind kind, Who who)
{
    if (kind == AccessKind::fetch || !in_long_mode(cpu)) return true;
    std::uint32_t rights = 0;
    if (page.user && cpu.pke) rights = cpu.pkru;
    if (!page.user && cpu.pks) rights = cpu.pkrs;
    const bool access_disable = has_bit(rights, 2 * page.key);
    const bool write_disable = has_bit(rights, 2 * page.key + 1);
    if (access_disable) return false;
    if (kind == AccessKind::read || !write_disable) return true;
    return who != Who::user && !cpu.wp;  // supervisor writes heed WD only with CR0.WP
}

/// 4.6.1, list by list.
inline bool page_permits(const Cpu& cpu, const Page& page, AccessKind kind, Who who)
{
    if (who == Who::user) {
        if (!page.user) return false;
        if (kind == AccessKind::read) return true;
        return kind == AccessKind::write ? page.writable : !page.xd;
    }
    if (kind == AccessKind::fetch) {
        if (page.xd) return false;
        return page.user ? !cpu.smep : true;
    }
    bool data = true;
    if (page.user && cpu.smap) data = who == Who::supervisor && cpu.ac;
    if (kind == AccessKind::read) return data;
    return data && (page.writable || !cpu.wp);
}

/// 4.7: the bits that describe the access.
inline std::uint32_t code_of_access(const Cpu& cpu, AccessKind kind, Who who)
{
    const bool nx_in_force = cpu.paging != Paging::two_level && cpu.nxe;
    std::uint32_t code = 0;
    if (kind == AccessKind::write) code += 2;
    if (who == Who::user) code += 4;
    if (kind == AccessKind::fetch && (cpu.smep || nx_in_force)) code += 16;
    return code;
}

/// The error code if the page denies the access, else 0.
inline std::uint32_t code_of_rights(const Cpu& cpu, const Page& page, AccessKind kind, Who who)
{
    const bool key = key_permits(cpu, page, kind, who);
    if (key && page_permits(cpu, page, kind, who)) return 0;
    return code_of_access(cpu, kind, who) + 1 + (key ? 0 : 32);
}

// ---- the walk

/// Bits `high`:`low` of the linear address select the entry at `level`.
struct Step {
    int level;
    int high;
    int low;
};

inline std::span<const Step> steps_of(Paging paging)
{
    static constexpr Step kTwo[] = {{2, 31, 22}, {1, 21, 12}};
    static constexpr Step kThree[] = {{3, 31, 30}, {2, 29, 21}, {1, 20, 12}};
    static constexpr Step kFive[] = {{5, 56, 48}, {4, 47, 39}, {3, 38, 30}, {2, 29, 21}, {1, 20, 12}};
    if (paging == Paging::two_level) return kTwo;
    if (paging == Paging::pae) return kThree;
    const std::span<const Step> all{kFive};
    return paging == Paging::five_level ? all : all.subspan(1);
}

/// Bits `high`:`low` of `word`, where they are.
constexpr std::uint64_t field(std::uint64_t word, int high, int low)
{
    std::uint64_t value = word;
    value <<= 63 - high;
    value >>= 63 - high + low;
    return value << low;
}

/// Reserved bits and leaves for one CPU, asked of the oracle once and kept.
class Format {
public:
    explicit Format(const Cpu& cpu)
    {
        const oracle::EntryFormat format{cpu.paging, cpu.maxphyaddr, cpu.nxe, cpu.pse,
                                         cpu.pse36,  cpu.page1gb,    cpu.amd};
        for (int level = 1; level <= 5; ++level) {
            const auto at = static_cast<std::size_t>(level);
            for (const bool ps : {false, true}) page_[at][ps] = oracle::maps_page(format, level, ps);
            for (const bool page : {false, true})
                for (int n = 0; n < 64; ++n)
                    if (oracle::bit_is_reserved(format, level, page, n)) reserved_[at][page] |= bit(n);
        }
    }
    [[nodiscard]] bool page(std::uint64_t entry, int level) const
    {
        return page_[static_cast<std::size_t>(level)][has_bit(entry, 7)];
    }
    [[nodiscard]] bool reserved(std::uint64_t entry, int level) const
    {
        return (entry & reserved_[static_cast<std::size_t>(level)][page(entry, level)]) != 0;
    }

private:
    std::array<std::array<bool, 2>, 6> page_{};
    std::array<std::array<std::uint64_t, 2>, 6> reserved_{};
};

struct Answer {
    bool fault = false;
    std::uint32_t code = 0;
    int level = 0;  ///< of the entry that decided
    std::uint64_t address = 0;
    int page_bits = 0;
    Page page;
    bool dirty = false;
    int loads = 0;
    /// Entries in memory that changed: physical address and what is there afterwards, in order of address.
    struct Change {
        std::uint64_t at;
        std::uint64_t entry;
        friend bool operator==(const Change&, const Change&) = default;
    };
    std::vector<Change> changes;
    bool entry_used_twice = false;  ///< one entry served two levels
};

/// `read(physical address, bytes)` is memory. `pdptes` are PAE's registers. Into `answer`, to spare
/// allocations.
template <class Read>
void walk(Answer& answer, const Cpu& cpu, const Format& format, std::uint64_t root,
          const std::array<std::uint64_t, 4>& pdptes, std::uint64_t la, AccessKind kind, Who who, Read&& read)
{
    struct Used {
        std::uint64_t at;
        std::uint64_t entry;
    };
    std::array<Used, 5> used{};
    std::size_t count = 0;
    const bool two_level = cpu.paging == Paging::two_level;
    const std::uint64_t bytes = two_level ? 4 : 8;

    answer.fault = false;
    answer.page = Page{};
    answer.dirty = false;
    answer.loads = 0;
    answer.changes.clear();
    answer.entry_used_twice = false;
    const auto fault = [&](std::uint32_t more) {
        answer.fault = true;
        answer.code = code_of_access(cpu, kind, who) | more;
    };

    std::uint64_t table = root;
    for (const Step& step : steps_of(cpu.paging)) {
        answer.level = step.level;
        const std::uint64_t slot = field(la, step.high, step.low) >> step.low;
        if (cpu.paging == Paging::pae && step.level == 3) {
            if (!has_bit(pdptes[slot], 0)) return fault(0);
            table = field(pdptes[slot], 51, 12);
            continue;
        }
        const std::uint64_t at = table + slot * bytes;
        const std::uint64_t entry = read(at, bytes);
        ++answer.loads;
        if (!has_bit(entry, 0)) return fault(0);
        if (format.reserved(entry, step.level)) return fault(1 + 8);
        for (std::size_t i = 0; i < count; ++i) answer.entry_used_twice |= used[i].at == at;
        used[count++] = {at, entry};
        answer.page.writable = answer.page.writable && has_bit(entry, 1);
        answer.page.user = answer.page.user && has_bit(entry, 2);
        answer.page.xd = answer.page.xd || (!two_level && has_bit(entry, 63));
        table = field(entry, two_level ? 31 : 51, 12);
        if (!format.page(entry, step.level)) continue;

        if (in_long_mode(cpu)) answer.page.key = static_cast<int>(field(entry, 62, 59) >> 59);
        if (const auto code = code_of_rights(cpu, answer.page, kind, who); code != 0) {
            answer.fault = true;
            answer.code = code;
            return;
        }
        answer.page_bits = step.low;
        answer.address = field(entry, two_level ? 31 : 51, step.low) | field(la, step.low - 1, 0);
        if (two_level && step.level == 2) answer.address |= field(entry, 20, 13) << 19;
        answer.dirty = has_bit(entry, 6) || kind == AccessKind::write;
        for (std::size_t i = 0; i < count; ++i) {
            std::uint64_t after = used[i].entry | bit(5);
            if (i + 1 == count && kind == AccessKind::write) after |= bit(6);
            if (after == used[i].entry) continue;
            const auto same = std::find_if(answer.changes.begin(), answer.changes.end(),
                                           [&](const Answer::Change& c) { return c.at == used[i].at; });
            if (same == answer.changes.end()) {
                answer.changes.push_back({used[i].at, after});
            } else {
                same->entry |= after;
            }
        }
        std::sort(answer.changes.begin(), answer.changes.end(),
                  [](const auto& a, const auto& b) { return a.at < b.at; });
        return;
    }
}

}  // namespace mmusim::plain
