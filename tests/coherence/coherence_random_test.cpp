// SPDX-License-Identifier: Apache-2.0
//
// The coherence oracle against two references, over random guests of some eight tables with two entries each.
//
// Snapshots: the whole state is kept at each step, and a permitted answer is looked for by plain enumeration:
// all moments at which the root was read, then the next entry, … in order. Verdict and kind must be the same.
//
// The greatest TLB: a machine that caches all that it may, upper entries and translations, and drops what it
// must and no more (SDM vol. 3A 4.10.4.1). Nothing that it holds is a violation.
//
// With a sweep after every few changes both must hold as well. Walks and their rights are those of
// pagewalk/plain_walk.hpp.
#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "coherence/oracle_guest.hpp"
#include "pagewalk/plain_walk.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using test::OracleGuest;
using test::Verdict;

namespace {

constexpr std::uint64_t kTables = 9;  // frames 1 to 8
constexpr unsigned kVcpus = 2;
constexpr std::uint64_t kPcids = 3;

struct CpuState {
    plain::Cpu cpu;
    bool on = true;
    std::uint64_t root = 1;
    std::array<std::uint64_t, 4> pdptes{};
    std::uint64_t pcid = 0;
    bool pge = true;
};

/// Two words of each table; all else is 0.
using Memory = std::array<std::array<std::uint64_t, 2>, kTables>;

struct Flush {
    enum class Kind { none, page, pcid, all } kind = Kind::none;
    unsigned vcpu = 0;
    std::uint64_t pcid = 0;
    std::uint64_t la = 0;
    bool globals = false;
};

/// The state after an event.
struct Snapshot {
    Memory memory{};
    std::array<CpuState, kVcpus> cpus;
    Flush flush;
};

struct Question {
    unsigned vcpu = 0;
    std::uint64_t la = 0;
    AccessKind kind = AccessKind::read;
    plain::Who who = plain::Who::user;
    std::uint64_t at = 0;
};

bool permits(const plain::Cpu& cpu, const plain::Page& page, const Question& question)
{
    return plain::code_of_rights(cpu, page, question.kind, question.who) == 0;
}

/// Made once for each setting: it is asked bit by bit.
const plain::Format& format_of(const plain::Cpu& cpu)
{
    static std::map<std::tuple<Paging, bool, bool>, plain::Format> known;
    const std::tuple key{cpu.paging, cpu.nxe, cpu.pse};
    const auto found = known.find(key);
    return found != known.end() ? found->second : known.emplace(key, plain::Format{cpu}).first->second;
}

std::uint64_t load(const Memory& memory, std::uint64_t at, std::uint64_t bytes)
{
    const std::uint64_t frame = at >> 12, offset = at & 0xfff;
    if (frame >= kTables || offset >= 16) return 0;
    const std::uint64_t word = memory[frame][offset / 8];
    return bytes == 8 ? word : word >> offset % 8 * 8 & 0xffff'ffff;
}

plain::Page add(plain::Page page, std::uint64_t entry, Paging paging)
{
    page.user = page.user && plain::has_bit(entry, 2);
    page.writable = page.writable && plain::has_bit(entry, 1);
    page.xd = page.xd || (paging != Paging::two_level && plain::has_bit(entry, 63));
    return page;
}

struct Leaf {
    std::uint64_t address;
    unsigned shift;
};

Leaf leaf_of(Paging paging, const plain::Step& step, std::uint64_t entry, std::uint64_t la)
{
    const bool two = paging == Paging::two_level;
    std::uint64_t address = plain::field(entry, two ? 31 : 51, step.low) | plain::field(la, step.low - 1, 0);
    if (two && step.level == 2) address |= plain::field(entry, 20, 13) << 19;
    return {address, static_cast<unsigned>(step.low)};
}

// --- the first reference
// ------------------------------------------------------------------------------------

class Snapshots {
public:
    std::vector<Snapshot> steps;

    [[nodiscard]] bool permitted(const Question& question) const
    {
        for (std::uint64_t pcid = 0; pcid < kPcids; ++pcid) {
            for (std::size_t t = 0; t < steps.size(); ++t) {
                const CpuState& cpu = state(question, t);
                if (!cpu.on || cpu.pcid != pcid) continue;
                Search search{*this, question, pcid, t, {}};
                const auto levels = plain::steps_of(cpu.cpu.paging);
                if (cpu.cpu.paging != Paging::pae) {
                    if (search.down(levels, 0, cpu.root, t, {})) return true;
                    continue;
                }
                const std::uint64_t pdpte = cpu.pdptes[plain::field(question.la, 31, 30) >> 30];
                if ((pdpte & 1) != 0 && search.down(levels, 1, plain::field(pdpte, 51, 12) >> 12, t, {})) {
                    return true;
                }
            }
        }
        return false;
    }

private:
    struct Search {
        const Snapshots& all;
        const Question& question;
        std::uint64_t pcid;
        std::size_t root_time;
        std::set<std::tuple<std::size_t, std::uint64_t, std::size_t, int>> seen;

        bool down(std::span<const plain::Step> levels, std::size_t depth, std::uint64_t table,
                  std::size_t from, const plain::Page& above)
        {
            const int rights = above.user | above.writable << 1 | above.xd << 2;
            if (!seen.emplace(depth, table, from, rights).second) return false;
            const plain::Step& step = levels[depth];
            // The root's entry is read while it is the root.
            const std::size_t to = from == root_time && seen.size() == 1 ? from + 1 : all.steps.size();
            for (std::size_t t = from; t < to; ++t) {
                const CpuState& cpu = all.state(question, t);
                if (!cpu.on || cpu.pcid != pcid) continue;
                const Paging paging = cpu.cpu.paging;
                const std::uint64_t bytes = paging == Paging::two_level ? 4 : 8;
                const std::uint64_t at =
                    table << 12 | (plain::field(question.la, step.high, step.low) >> step.low) * bytes;
                const std::uint64_t entry = all.entry_of_version(at, bytes, t);
                const plain::Format& format = format_of(cpu.cpu);
                if (!plain::has_bit(entry, 0) || !plain::has_bit(entry, 5)) continue;
                if (format.reserved(entry, step.level)) continue;
                plain::Page page = add(above, entry, paging);
                if (!format.page(entry, step.level)) {
                    const std::uint64_t next = plain::field(entry, bytes == 4 ? 31 : 51, 12) >> 12;
                    if (down(levels, depth + 1, next, t, page)) return true;
                    continue;
                }
                if (plain::in_long_mode(cpu.cpu)) {
                    page.key = static_cast<int>(plain::field(entry, 62, 59) >> 59);
                }
                const Leaf leaf = leaf_of(paging, step, entry, question.la);
                if (leaf.address != question.at) continue;
                if (question.kind == AccessKind::write && !plain::has_bit(entry, 6)) continue;
                if (!permits(all.state(question, all.steps.size() - 1).cpu, page, question)) continue;
                if (survives(t, leaf.shift, cpu.pge && plain::has_bit(entry, 8))) return true;
            }
            return false;
        }

        [[nodiscard]] bool survives(std::size_t leaf_time, unsigned shift, bool global) const
        {
            const std::uint64_t now = all.state(question, all.steps.size() - 1).pcid;
            if (!global && pcid != now) return false;
            const auto covers_page = [&](const Flush& flush) {
                return flush.kind == Flush::Kind::page && flush.la >> shift == question.la >> shift;
            };
            for (std::size_t t = root_time + 1; t < all.steps.size(); ++t) {
                const Flush& flush = all.steps[t].flush;
                if (flush.kind == Flush::Kind::none || flush.vcpu != question.vcpu) continue;
                const bool whole_pcid =
                    (flush.kind == Flush::Kind::pcid && flush.pcid == pcid) || flush.kind == Flush::Kind::all;
                if (!global) {
                    if (whole_pcid || (covers_page(flush) && flush.pcid == pcid)) return false;
                    continue;
                }
                if (flush.kind == Flush::Kind::all && flush.globals) return false;
                if (whole_pcid && t <= leaf_time) return false;
                if (covers_page(flush) && flush.globals) {
                    if (t > leaf_time) return false;
                    // Only the last one's own PCID loses its upper entries, as far as the oracle knows.
                    if (flush.pcid == pcid && last_global(shift) == t) return false;
                }
            }
            return true;
        }
        [[nodiscard]] std::size_t last_global(unsigned shift) const
        {
            std::size_t last = 0;
            for (std::size_t t = 0; t < all.steps.size(); ++t) {
                const Flush& flush = all.steps[t].flush;
                const bool page =
                    flush.kind == Flush::Kind::page && flush.la >> shift == question.la >> shift;
                const bool covers = page || flush.kind == Flush::Kind::all;
                if (covers && flush.globals && flush.vcpu == question.vcpu) last = t;
            }
            return last;
        }
    };

    [[nodiscard]] const CpuState& state(const Question& question, std::size_t t) const
    {
        return steps[t].cpus[question.vcpu];
    }
    /// With the accessed and dirty bits that it came to have before something else happened to its word.
    [[nodiscard]] std::uint64_t entry_of_version(std::uint64_t at, std::uint64_t bytes, std::size_t t) const
    {
        const std::uint64_t word = at & ~std::uint64_t{7};
        const std::uint64_t bits = bytes == 8 ? 0x60 : 0x60'0000'0060;
        for (; t + 1 < steps.size(); ++t) {
            const std::uint64_t old = load(steps[t].memory, word, 8);
            const std::uint64_t next = load(steps[t + 1].memory, word, 8);
            if ((old & ~next) != 0 || ((old ^ next) & ~bits) != 0) break;
        }
        return load(steps[t].memory, at, bytes);
    }
};

// --- the second
// ---------------------------------------------------------------------------------------------

/// All that one vCPU may have cached.
class GreatestTlb {
public:
    void drop(const Flush& flush)
    {
        const auto of = [&](std::uint64_t pcid) {
            return flush.kind == Flush::Kind::all || flush.pcid == pcid;
        };
        const bool one_page = flush.kind == Flush::Kind::page;
        std::erase_if(tlb_, [&](const Entry& entry) {
            if (one_page && entry.la >> entry.shift != flush.la >> entry.shift) return false;
            return entry.global ? flush.globals : of(entry.pcid);
        });
        std::erase_if(upper_, [&](const Upper& upper) {
            // INVLPG: all of the PCID. INVPCID of one address, and a page fault: those for the address.
            if (one_page && !flush.globals && upper.la >> upper.shift != flush.la >> upper.shift)
                return false;
            return of(upper.pcid);
        });
    }

    void fill(const Memory& memory, const CpuState& state, const std::vector<std::uint64_t>& pages)
    {
        if (!state.on) return;
        const auto levels = plain::steps_of(state.cpu.paging);
        for (const std::uint64_t la : pages) {
            if (state.cpu.paging == Paging::pae) {
                const std::uint64_t pdpte = state.pdptes[plain::field(la, 31, 30) >> 30];
                if ((pdpte & 1) != 0)
                    walk(memory, state, levels, 1, plain::field(pdpte, 51, 12) >> 12, la, {});
            } else {
                walk(memory, state, levels, 0, state.root, la, {});
            }
            for (std::size_t depth = 1; depth < levels.size(); ++depth) {
                const std::vector<Upper> known{upper_.begin(), upper_.end()};
                for (const Upper& upper : known) {
                    if (upper.depth != depth || upper.pcid != state.pcid) continue;
                    if (upper.la >> upper.shift != la >> upper.shift) continue;
                    walk(memory, state, levels, depth, upper.table, la,
                         {upper.user, upper.writable, upper.xd, 0});
                }
            }
        }
    }

    /// The addresses at which the access may end.
    [[nodiscard]] std::vector<std::uint64_t> answers(const CpuState& state, const Question& question) const
    {
        std::vector<std::uint64_t> found;
        if (!state.on) return found;
        for (const Entry& e : tlb_) {
            if (!e.global && e.pcid != state.pcid) continue;
            if (e.la >> e.shift != question.la >> e.shift) continue;
            if (question.kind == AccessKind::write && !e.dirty) continue;
            if (!permits(state.cpu, {e.user, e.writable, e.xd, e.key}, question)) continue;
            found.push_back(e.address | (question.la & ((std::uint64_t{1} << e.shift) - 1)));
        }
        return found;
    }

private:
    struct Upper {
        std::size_t depth;  ///< of the table that it names
        unsigned shift;     ///< of the linear address that it is for
        std::uint64_t la, pcid, table;
        bool user, writable, xd;
        auto operator<=>(const Upper&) const = default;
    };
    struct Entry {
        std::uint64_t la, pcid, address;
        unsigned shift;
        bool user, writable, xd, dirty, global;
        int key;
        auto operator<=>(const Entry&) const = default;
    };

    void walk(const Memory& memory, const CpuState& state, std::span<const plain::Step> levels,
              std::size_t depth, std::uint64_t table, std::uint64_t la, plain::Page page)
    {
        const plain::Format& format = format_of(state.cpu);
        const bool two = state.cpu.paging == Paging::two_level;
        const std::uint64_t bytes = two ? 4 : 8;
        for (; depth < levels.size(); ++depth) {
            const plain::Step& step = levels[depth];
            const std::uint64_t at =
                table << 12 | (plain::field(la, step.high, step.low) >> step.low) * bytes;
            const std::uint64_t entry = load(memory, at, bytes);
            if (!plain::has_bit(entry, 0) || !plain::has_bit(entry, 5)) return;
            if (format.reserved(entry, step.level)) return;
            page = add(page, entry, state.cpu.paging);
            const auto shift = static_cast<unsigned>(step.low);
            const std::uint64_t first = la >> shift << shift;
            if (format.page(entry, step.level)) {
                if (plain::in_long_mode(state.cpu))
                    page.key = static_cast<int>(plain::field(entry, 62, 59) >> 59);
                tlb_.insert({first, state.pcid, leaf_of(state.cpu.paging, step, entry, first).address, shift,
                             page.user, page.writable, page.xd, plain::has_bit(entry, 6),
                             state.pge && plain::has_bit(entry, 8), page.key});
                return;
            }
            table = plain::field(entry, two ? 31 : 51, 12) >> 12;
            upper_.insert({depth + 1, shift, first, state.pcid, table, page.user, page.writable, page.xd});
        }
    }

    std::set<Upper> upper_;
    std::set<Entry> tlb_;
};

// --- a guest
// ------------------------------------------------------------------------------------------------

struct Mismatch : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Coverage {
    std::uint64_t right = 0, stale = 0, violations = 0, held = 0, beyond = 0, forgotten = 0;
};

class Program {
public:
    /// With `log`, the state at each step is told.
    Program(Paging paging, std::uint64_t seed, std::size_t sweep_after, std::string* log = nullptr)
        : random_{seed}, paging_{paging}, guest_{kVcpus, sweep_after}, sweeps_{sweep_after < 100}, log_{log}
    {
        for (int i = 0; i < 6; ++i) pages_.push_back(random_page());
        now_.memory[0] = {};
        for (std::uint64_t frame = 1; frame < kTables; ++frame) {
            for (unsigned i = 0; i < 2; ++i) write(frame, i * 8, 8, random_word());
        }
        for (unsigned v = 0; v < kVcpus; ++v) {
            CpuState& cpu = now_.cpus[v];
            cpu.cpu.paging = paging;
            cpu.cpu.wp = percent(70);
            cpu.cpu.nxe = percent(70);
            cpu.cpu.pse = percent(70);
            cpu.cpu.page1gb = true;
            cpu.cpu.smap = percent(20);
            cpu.pge = percent(80);
            new_root(cpu);
            tell(v);
        }
        step({});
    }

    /// Throws Mismatch.
    void run(int events, Coverage& coverage)
    {
        for (int i = 0; i < events; ++i) {
            event();
            for (unsigned n = 0; n < 4; ++n) ask(coverage);
        }
    }

private:
    std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
    bool percent(unsigned chance) { return random_() % 100 < chance; }
    bool long_mode() const { return paging_ == Paging::four_level || paging_ == Paging::five_level; }

    std::uint64_t random_page()
    {
        std::uint64_t la = 0;
        for (const plain::Step& step : plain::steps_of(paging_)) {
            la |= below(paging_ == Paging::two_level && step.level == 1 ? 4 : 2) << step.low;
        }
        return la;
    }
    std::uint64_t random_entry()
    {
        if (percent(12)) return below(2) == 0 ? 0 : random_() & 0xfff & ~1u;
        std::uint64_t entry = 0x1 | (1 + below(kTables - 1)) << 12;
        if (percent(15)) entry = 0x1 | (0x20 + below(3)) << 12;
        if (percent(85)) entry |= 0x2;
        if (percent(85)) entry |= 0x4;
        if (percent(85)) entry |= 0x20;
        if (percent(80)) entry |= 0x40;
        if (percent(30)) entry |= 0x100;
        if (percent(12))
            entry = (entry & 0xfff) | 0x80 | below(4) << (paging_ == Paging::two_level ? 22 : 30);
        if (paging_ != Paging::two_level) {
            if (percent(5)) entry |= plain::bit(63);
            if (percent(2)) entry |= plain::bit(51);
            if (long_mode() && percent(5)) entry |= plain::bit(59);
        }
        return entry;
    }
    std::uint64_t random_word()
    {
        if (paging_ != Paging::two_level) return random_entry();
        return random_entry() | random_entry() << 32;
    }
    void new_root(CpuState& cpu)
    {
        cpu.root = 1 + below(kTables - 1);
        for (auto& pdpte : cpu.pdptes) pdpte = percent(90) ? (1 + below(kTables - 1)) << 12 | 1 : 0;
    }

    void tell(unsigned v)
    {
        const CpuState& cpu = now_.cpus[v];
        Registers r = plain::registers_of(cpu.cpu);
        if (!cpu.on) r.cr0 &= ~cr0::kPg;
        r = settled(r);
        r.cr3 = cpu.root << 12;
        if (cpu.pge) r.cr4 |= cr4::kPge;
        if (long_mode() && cpu.on) {
            r.cr4 |= cr4::kPcide;
            r.cr3 |= cpu.pcid;
        }
        guest_.cpuid = plain::cpuid_of(cpu.cpu);
        guest_.pdptes(cpu.pdptes, v);
        guest_.load(r, v);
    }
    void tell(const Flush& flush)
    {
        switch (flush.kind) {
        case Flush::Kind::none: break;
        case Flush::Kind::page:
            guest_.oracle.invalidated_page(flush.vcpu, flush.pcid, LinearAddress{flush.la}, flush.globals,
                                           "p");
            break;
        case Flush::Kind::pcid: guest_.oracle.invalidated_pcid(flush.vcpu, flush.pcid, "c"); break;
        case Flush::Kind::all: guest_.oracle.invalidated_all(flush.vcpu, flush.globals, "a"); break;
        }
    }
    /// What has happened so far is one event.
    void step(const Flush& flush)
    {
        now_.flush = flush;
        snapshots_.steps.push_back(now_);
        if (log_ != nullptr) *log_ += told();
        if (flush.kind != Flush::Kind::none) tlbs_[flush.vcpu].drop(flush);
        for (unsigned v = 0; v < kVcpus; ++v) tlbs_[v].fill(now_.memory, now_.cpus[v], pages_);
    }

    [[nodiscard]] std::string told() const
    {
        std::string text = fmt::format("step {}: ", snapshots_.steps.size() - 1);
        constexpr std::array<std::string_view, 4> kKinds{"no flush", "page", "pcid", "all"};
        const Flush& flush = now_.flush;
        text += fmt::format("{} vcpu {} pcid {} la {:#x} globals {}\n",
                            kKinds[static_cast<std::size_t>(flush.kind)], flush.vcpu, flush.pcid, flush.la,
                            flush.globals);
        for (const CpuState& cpu : now_.cpus) {
            text += fmt::format("  {} root {} {:#x} pcid {} pge {} nxe {} pse {}\n", cpu.on ? "on" : "off",
                                cpu.root, fmt::join(cpu.pdptes, " "), cpu.pcid, cpu.pge, cpu.cpu.nxe,
                                cpu.cpu.pse);
        }
        for (std::uint64_t frame = 1; frame < kTables; ++frame) {
            text += fmt::format("  {}: {:#x}\n", frame, fmt::join(now_.memory[frame], " "));
        }
        return text;
    }

    void write(std::uint64_t frame, unsigned offset, unsigned bytes, std::uint64_t value)
    {
        guest_.store(frame << 12 | offset, value, bytes);
        std::memcpy(reinterpret_cast<char*>(now_.memory[frame].data()) + offset, &value, bytes);
    }

    void event()
    {
        const auto v = static_cast<unsigned>(below(kVcpus));
        CpuState& cpu = now_.cpus[v];
        Flush flush{Flush::Kind::none, v, cpu.pcid, pages_[below(pages_.size())], false};
        switch (below(16)) {
        case 0:  // MOV CR3, with or without PCIDs and bit 63; or a load of PDPTEs alone
        case 1:
            new_root(cpu);
            if (long_mode()) cpu.pcid = below(kPcids);
            tell(v);
            if (percent(50)) flush = {Flush::Kind::pcid, v, cpu.pcid, 0, false};
            break;
        case 2:
            if (!long_mode()) break;
            cpu.pcid = below(kPcids);
            tell(v);
            break;
        case 3:  // INVLPG
        case 4:
            flush.kind = Flush::Kind::page;
            flush.globals = true;
            break;
        case 5:  // INVPCID of an address, or a page fault
            flush.kind = Flush::Kind::page;
            if (long_mode()) flush.pcid = below(kPcids);
            break;
        case 6:
            if (percent(50)) flush = {Flush::Kind::all, v, 0, 0, percent(30)};
            break;
        case 7:  // control bits
            if (percent(40)) cpu.cpu.nxe = !cpu.cpu.nxe;
            if (percent(40)) cpu.cpu.pse = !cpu.cpu.pse;
            if (percent(40)) cpu.cpu.wp = !cpu.cpu.wp;
            if (percent(40)) cpu.cpu.ac = !cpu.cpu.ac;
            if (long_mode() && percent(40)) cpu.cpu.pke = !cpu.cpu.pke;
            if (percent(10)) {
                cpu.pge = !cpu.pge;
                flush = {Flush::Kind::all, v, 0, 0, true};
            }
            cpu.cpu.pkru = 0x4;
            tell(v);
            break;
        case 8:  // CR0.PG
            if (cpu.on && percent(70)) break;
            cpu.on = !cpu.on;
            tell(v);
            if (!cpu.on) flush = {Flush::Kind::all, v, 0, 0, true};
            break;
        case 9: {  // accessed and dirty bits, by a walk
            const std::uint64_t frame = 1 + below(kTables - 1);
            const unsigned i = below(2) != 0;
            std::uint64_t word = now_.memory[frame][i] | (percent(50) ? 0x20 : 0x60);
            if (paging_ == Paging::two_level && percent(50)) word = now_.memory[frame][i] | 0x60'0000'0000;
            guest_.silently(frame << 12 | i * 8, word);
            now_.memory[frame][i] = word;
            break;
        }
        case 10: {  // the same by a store, and back
            const std::uint64_t frame = 1 + below(kTables - 1);
            const unsigned i = below(2) != 0;
            write(frame, i * 8, 8, now_.memory[frame][i] ^ (percent(50) ? 0x20 : 0x40));
            break;
        }
        case 11: {  // both words at once, from outside
            const std::uint64_t frame = 1 + below(kTables - 1);
            const std::array<std::uint64_t, 2> words{random_word(), random_word()};
            guest_.store(frame << 12, std::as_bytes(std::span{words}));
            now_.memory[frame] = words;
            break;
        }
        default: {
            const std::uint64_t frame = 1 + below(kTables - 1);
            const bool half = paging_ == Paging::two_level;
            const unsigned bytes = half ? 4 : 8;
            write(frame, static_cast<unsigned>(below(half ? 4 : 2)) * bytes, bytes, random_entry());
        }
        }
        tell(flush);
        step(flush);
    }

    void ask(Coverage& coverage)
    {
        Question question;
        question.vcpu = static_cast<unsigned>(below(kVcpus));
        question.la = pages_[below(pages_.size())] | (percent(20) ? below(4096) : 0);
        question.kind = static_cast<AccessKind>(below(3));
        question.who = percent(60) ? plain::Who::user : plain::Who::supervisor;
        const CpuState& cpu = now_.cpus[question.vcpu];

        plain::Answer fresh;
        if (cpu.on) {
            plain::walk(fresh, cpu.cpu, format_of(cpu.cpu), cpu.root << 12, cpu.pdptes, question.la,
                        question.kind, question.who,
                        [&](std::uint64_t at, std::uint64_t bytes) { return load(now_.memory, at, bytes); });
        }
        const auto held = tlbs_[question.vcpu].answers(cpu, question);
        question.at = (1 + below(kTables - 1)) << 12 | (question.la & 0xfff);
        if (percent(30) && !fresh.fault) question.at = fresh.address;
        if (percent(60) && !held.empty()) question.at = held[below(held.size())];

        // What it should be.
        StalenessCounts expected = guest_.oracle.counts();
        Verdict verdict = Verdict::right;
        if (cpu.on) {
            ++expected.checked;
            const bool same = !fresh.fault && fresh.address == question.at;
            if (!same || !fresh.changes.empty()) {
                verdict = snapshots_.permitted(question) ? Verdict::stale : Verdict::violation;
            }
            bool dirty = false;
            for (const auto& change : fresh.changes) {
                const std::uint64_t bytes = paging_ == Paging::two_level ? 4 : 8;
                dirty |= ((change.entry & ~load(now_.memory, change.at, bytes)) & 0x40) != 0;
            }
            if (verdict == Verdict::violation) {
                ++expected.violations;
            } else if (verdict == Verdict::stale) {
                const bool denied = fresh.fault && (fresh.code & 9) == 1;
                ++(fresh.fault ? (denied ? expected.rights : expected.not_present)
                   : !same     ? expected.address
                   : dirty     ? expected.dirty
                               : expected.accessed);
            }
        }
        const bool is_held = std::find(held.begin(), held.end(), question.at) != held.end();
        coverage.right += verdict == Verdict::right;
        coverage.stale += verdict == Verdict::stale;
        coverage.violations += verdict == Verdict::violation;
        coverage.held += is_held && verdict == Verdict::stale;
        coverage.beyond += !is_held && verdict == Verdict::stale;

        const Verdict answer = guest_.ask(question.la, question.at, question.kind,
                                          question.who == plain::Who::user, question.vcpu);
        StalenessCounts counts = guest_.oracle.counts();
        expected.age_sum = counts.age_sum;
        expected.oldest = counts.oldest;
        const auto tell_all = [&](std::string_view what) {
            return fmt::format("{}: step {}, vCPU {} {} {} at {:#x}: {:#x}: oracle {}, snapshots {}{}", what,
                               snapshots_.steps.size(), question.vcpu, name_of(question.kind),
                               question.who == plain::Who::user ? "user" : "supervisor", question.la,
                               question.at, static_cast<int>(answer), static_cast<int>(verdict),
                               answer == Verdict::violation ? "\n" + guest_.text : "");
        };
        if (is_held && verdict == Verdict::violation)
            throw Mismatch(tell_all("held, but not in the snapshots"));
        // A bit that a walk sets late counts from the entry's beginning on, unless the table was forgotten
        // then.
        if (sweeps_ && answer == Verdict::violation && verdict == Verdict::stale && !is_held) {
            ++coverage.forgotten;
            return;
        }
        if (answer != verdict) throw Mismatch(tell_all("verdict"));
        if (!(counts == expected)) throw Mismatch(tell_all("kind"));
    }

    std::mt19937_64 random_;
    Paging paging_;
    OracleGuest guest_;
    bool sweeps_;
    std::string* log_;
    std::vector<std::uint64_t> pages_;
    Snapshot now_;
    Snapshots snapshots_;
    std::array<GreatestTlb, kVcpus> tlbs_;
};

void run_programs(Paging paging, std::uint64_t first_seed, int programs, int events, std::size_t sweep_after)
{
    Coverage coverage;
    for (int i = 0; i < programs; ++i) {
        const std::uint64_t seed = first_seed + static_cast<std::uint64_t>(i);
        INFO(name_of(paging) << ", seed " << seed << ", sweep after " << sweep_after);
        try {
            Program{paging, seed, sweep_after}.run(events, coverage);
        } catch (const Mismatch& mismatch) {
            std::string log;
            try {
                Coverage again;
                Program{paging, seed, sweep_after, &log}.run(events, again);
            } catch (const Mismatch&) {
            }
            FAIL(log << mismatch.what());
        }
    }
    // It was about something.
    INFO(fmt::format(
        "right {}, stale {}, violations {}; stale and in the greatest TLB {}, beyond it {}, forgotten {}",
        coverage.right, coverage.stale, coverage.violations, coverage.held, coverage.beyond,
        coverage.forgotten));
    CHECK(coverage.right > 0);
    CHECK(coverage.stale > 0);
    CHECK(coverage.violations > 0);
    // What is permitted beyond the greatest TLB (docs/coherence.md) is rare.
    CHECK(coverage.beyond * 10 < coverage.stale);
    CHECK(coverage.forgotten * 100 < coverage.stale);
}

constexpr std::array<Paging, 4> kModes{Paging::two_level, Paging::pae, Paging::four_level,
                                       Paging::five_level};

}  // namespace

TEST_CASE("coherence: random guests against snapshots and the greatest TLB", "[coherence]")
{
    for (const Paging paging : kModes) run_programs(paging, 1, 60, 40, CoherenceOracle::kSweepAfter);
}

TEST_CASE("coherence: random guests with frequent sweeps", "[coherence]")
{
    for (const Paging paging : kModes) run_programs(paging, 1001, 60, 40, 4);
}

TEST_CASE("coherence: many random guests", "[coherence][slow]")
{
    for (const Paging paging : kModes) {
        run_programs(paging, 10'001, 200, 60, CoherenceOracle::kSweepAfter);
        run_programs(paging, 20'001, 200, 60, 4);
    }
}
