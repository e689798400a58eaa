// SPDX-License-Identifier: Apache-2.0
//
// For tests of time: a native guest in which every address is mapped, what an access should take as stages
// from a profile's figures, and whose each cycle is. The formulas are those of docs/timing.md; nothing of the
// library computes here.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "support/guest_builder.hpp"

namespace timed {

using namespace guest;

/// How the clock runs.
struct ClockMode {
    ClockKind kind = ClockKind::blocking;
    unsigned window = 0;

    [[nodiscard]] std::string name() const
    {
        return kind == ClockKind::blocking ? "blocking" : fmt::format("window:{}", window);
    }
};

// --- what is expected
// ---------------------------------------------------------------------------------------

struct Stage {
    std::string label;
    Cycles until = 0;
};

/// One access, from its issue on.
struct Way {
    Cycles issued = 0;
    Cycles now = 0;
    std::vector<Stage> stages;

    explicit Way(Cycles at = 0) : issued{at}, now{at} {}
    void until(const std::string& label, Cycles end)
    {
        if (end <= now) return;
        stages.push_back({label, end});
        now = end;
    }
    void spend(const std::string& label, Cycles cycles) { until(label, now + cycles); }
};

using CyclesBy = std::map<std::string, Cycles>;

struct Spent {
    Cycles total = 0;
    CyclesBy by;

    friend bool operator==(const Spent&, const Spent&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Spent& spent)
    {
        out << spent.total << " {";
        for (const auto& [label, cycles] : spent.by) out << ' ' << label << ' ' << cycles;
        return out << " }";
    }
};

/// Cycle by cycle: to the oldest access that has not retired, and to what it is at.
inline Spent attribute(const std::vector<Way>& ways)
{
    std::vector<Cycles> retired;
    for (const Way& way : ways) retired.push_back(std::max(way.now, retired.empty() ? 0 : retired.back()));
    Spent spent;
    spent.total = retired.empty() ? 0 : retired.back();
    std::size_t oldest = 0;
    for (Cycles cycle = 0; cycle < spent.total; ++cycle) {
        while (retired[oldest] <= cycle) ++oldest;
        const Way& way = ways[oldest];
        std::string label = "instructions";
        if (way.issued <= cycle) {
            label = std::find_if(way.stages.begin(), way.stages.end(), [&](const Stage& stage) {
                        return stage.until > cycle;
                    })->label;
        }
        ++spent.by[label];
    }
    return spent;
}

/// A profile's figures by the symbols of docs/timing.md.
class Figures {
public:
    Figures(std::shared_ptr<const CpuProfile> profile, bool program_uses_caches)
        : profile_{std::move(profile)}, program_{program_uses_caches}
    {
    }
    [[nodiscard]] const CpuProfile& profile() const { return *profile_; }
    [[nodiscard]] const TimingSpec& timing() const { return profile_->timing; }
    [[nodiscard]] bool program_uses_caches() const { return program_; }
    /// The TLBs that serve a kind of access, level 1 first.
    [[nodiscard]] std::vector<const TlbSpec*> chain(AccessKind kind) const
    {
        std::vector<const TlbSpec*> found;
        for (const TlbSpec& tlb : profile_->tlbs.tlbs) {
            const bool serves = kind == AccessKind::fetch  ? tlb.fetches
                                : kind == AccessKind::read ? tlb.loads
                                                           : tlb.stores;
            if (serves) found.push_back(&tlb);
        }
        std::stable_sort(found.begin(), found.end(),
                         [](const TlbSpec* a, const TlbSpec* b) { return a->level < b->level; });
        return found;
    }
    [[nodiscard]] bool has_structure_cache(int level) const
    {
        const auto& caches = profile_->tlbs.paging_structure_caches;
        return std::any_of(caches.begin(), caches.end(),
                           [&](const PagingStructureCacheSpec& cache) { return cache.level == level; });
    }
    /// Number of the data caches; that of memory.
    [[nodiscard]] unsigned memory() const { return static_cast<unsigned>(timing().data_caches.size()); }
    /// Where a line that was just loaded is.
    [[nodiscard]] unsigned nearest() const { return 0; }
    /// C_j, or M.
    [[nodiscard]] Cycles latency(unsigned cache) const
    {
        return cache < memory() ? timing().data_caches[cache].latency : timing().memory_latency;
    }
    [[nodiscard]] std::string cache_name(unsigned cache) const
    {
        return cache < memory() ? timing().data_caches[cache].name : "memory";
    }

    // --- stages ---
    /// L_1 + … + L_k.
    void lookups(Way& way, AccessKind kind, unsigned levels) const
    {
        const auto tlbs = chain(kind);
        for (unsigned k = 0; k < levels; ++k) way.spend("tlb." + tlbs[k]->name, tlbs[k]->lookup_cycles);
    }
    void all_lookups(Way& way, AccessKind kind) const
    {
        lookups(way, kind, static_cast<unsigned>(chain(kind).size()));
    }
    void start(Way& way) const { way.spend("walk.start", timing().walker.start_cycles); }
    void load(Way& way, int level, unsigned cache) const
    {
        constexpr std::array<const char*, 6> kNames{"", "pte", "pde", "pdpte", "pml4e", "pml5e"};
        way.spend(fmt::format("walk.{}.{}", kNames[static_cast<std::size_t>(level)], cache_name(cache)),
                  timing().walker.load_cycles[static_cast<std::size_t>(level)] + latency(cache));
    }
    /// Entries of levels from `from` down to `leaf`, all in the nearest cache.
    void loads(Way& way, int from, int leaf) const
    {
        for (int level = from; level >= leaf; --level) load(way, level, nearest());
    }
    void assist(Way& way) const { way.spend("walk.assist", timing().walker.assist_cycles); }
    /// The program's own line.
    void data(Way& way, unsigned cache) const
    {
        if (program_) {
            way.spend("data." + cache_name(cache), latency(cache));
        } else if (memory() > 0) {
            way.spend("data." + cache_name(0), latency(0));
        }
    }
    void fetch(Way& way, unsigned blocks) const
    {
        way.spend("fetch", timing().front_end.fetch_cycles * blocks);
    }
    /// D: of a read or write in the nearest cache, or of a fetch of one block.
    void own(Way& way, AccessKind kind) const
    {
        if (kind == AccessKind::fetch) {
            fetch(way, 1);
        } else {
            data(way, nearest());
        }
    }

private:
    std::shared_ptr<const CpuProfile> profile_;
    bool program_;
};

// --- the guest
// ----------------------------------------------------------------------------------------------

/// Every address is mapped, by one table for each level: lower halves of the tables lead to the next, upper
/// halves (where the mode has such pages) are leaves. All pages of a size are the same page; A and D are set.
class TimedGuest : public Guest {
public:
    static constexpr std::uint64_t kData = 0x0100'0000;   // the 4K page
    static constexpr std::uint64_t kLarge = 0x4000'0000;  // the others

    TimedGuest(Paging paging, std::shared_ptr<const CpuProfile> profile, ClockMode clock, bool program)
        : Guest{paging, config(std::move(profile), clock, program)}, mode_{paging}
    {
        tables_[static_cast<std::size_t>(levels())] = root();
        for (int level = levels() - 1; level >= 1; --level) {
            tables_[static_cast<std::size_t>(level)] = new_table();
        }
        for (int level = 1; level <= levels(); ++level) {
            for (std::uint64_t index = 0; index < entries(level); ++index) {
                set(level, index, entry_of(level, index));
            }
        }
        if (paging == Paging::pae) reload();
    }
    [[nodiscard]] Paging mode() const { return mode_; }
    /// The highest level with tables in memory.
    [[nodiscard]] int top() const { return mode_ == Paging::pae ? 2 : levels(); }
    [[nodiscard]] bool can_be_leaf(int level) const
    {
        return level <= 2 || (level == 3 && mode_ != Paging::pae);
    }
    /// An address that a walk to a leaf of that level translates with an index of its own on each level:
    /// entries of different lines, none of them the line of the data.
    [[nodiscard]] std::uint64_t target(int leaf) const
    {
        std::uint64_t address = kDataLine * 64;
        for (int level = levels(); level >= leaf; --level) {
            const std::uint64_t per_line = 64 / entry_bytes();
            std::uint64_t index = per_line * (4 + 2 * static_cast<unsigned>(level));
            if (mode_ == Paging::pae && level == 3) index = 1;
            if (level == leaf && leaf > 1) index += entries(level) / 2;
            address |= index << shift(level);
        }
        return address;
    }
    /// The address with the next index on a level; the entry is in the same line.
    [[nodiscard]] std::uint64_t next(std::uint64_t address, int level) const
    {
        return address + (std::uint64_t{1} << shift(level));
    }
    /// Where the entry of a level for an address is.
    [[nodiscard]] std::uint64_t entry_address(std::uint64_t linear, int level) const
    {
        const std::uint64_t index = linear >> shift(level) & (entries(level) - 1);
        return table(level) + index * (mode_ == Paging::two_level ? 4 : 8);
    }
    void set_bits(std::uint64_t linear, int level, std::uint64_t bits)
    {
        const std::uint64_t at = entry_address(linear, level);
        poke(at, word(at, entry_bytes()) | bits, entry_bytes());
    }
    void clear_bits(std::uint64_t linear, int level, std::uint64_t bits)
    {
        const std::uint64_t at = entry_address(linear, level);
        poke(at, word(at, entry_bytes()) & ~bits, entry_bytes());
    }

    // --- state ---
    void do_access(AccessKind kind, std::uint64_t address, std::uint32_t bytes = 1)
    {
        if (!access(operand(kind, address, bytes)).ok()) throw std::logic_error("an access faulted");
    }
    /// Loads the line of a machine address, with paging off: no TLB hears of it. Empties the TLBs.
    void touch_lines(const std::vector<std::uint64_t>& addresses)
    {
        if (!set_cr0(cr0::kPg, false)) throw std::logic_error("paging off: refused");
        for (const std::uint64_t address : addresses) do_access(AccessKind::read, address);
        if (!set_cr0(cr0::kPg, true)) throw std::logic_error("paging on: refused");
    }
    /// Lines that together drive a line out of the caches before `cache`, which keeps it.
    [[nodiscard]] std::vector<std::uint64_t> rivals(std::uint64_t address, unsigned cache) const
    {
        const auto& caches = machine.config().cpu->timing.data_caches;
        const auto set = [&](unsigned j, std::uint64_t at) { return at / 64 % caches[j].sets; };
        unsigned ways = 0;
        std::uint64_t sets = 1;
        for (unsigned j = 0; j < cache; ++j) {
            ways = std::max(ways, caches[j].ways);
            sets = std::max<std::uint64_t>(sets, caches[j].sets);
        }
        std::vector<std::uint64_t> found;
        for (std::uint64_t at = 0x1000'0000 + address % (sets * 64); found.size() < std::size_t{8} * ways;
             at += sets * 64) {
            if (cache >= caches.size() || set(cache, at) != set(cache, address)) found.push_back(at);
        }
        return found;
    }
    /// A moment at which nothing is in flight. Drops nothing.
    void idle()
    {
        if (!set_cr0(cr0::kPe, true)) throw std::logic_error("MOV CR0 refused");
    }

    // --- time ---
    [[nodiscard]] CyclesBy cycles_by() const
    {
        CyclesBy by;
        for (std::size_t label = 0; label < machine.clock()->by().size(); ++label) {
            const Cycles cycles = machine.clock()->by()[label];
            if (cycles > 0) by[machine.cycle_labels().name(static_cast<Label>(label))] += cycles;
        }
        return by;
    }
    /// What some work takes, begun when nothing is in flight.
    Spent measure(const std::function<void()>& work)
    {
        idle();
        const Cycles start = machine.clock()->now();
        const CyclesBy before = cycles_by();
        work();
        Spent spent;
        spent.total = machine.clock()->now() - start;
        for (const auto& [label, cycles] : cycles_by()) {
            const auto old = before.find(label);
            const Cycles more = cycles - (old == before.end() ? 0 : old->second);
            if (more > 0) spent.by[label] = more;
        }
        return spent;
    }
    /// Cycles by label add up to the time, at any moment.
    [[nodiscard]] bool adds_up() const
    {
        Cycles sum = 0;
        for (const Cycles cycles : machine.clock()->by()) sum += cycles;
        return sum == machine.clock()->now();
    }

private:
    static constexpr std::uint64_t kDataLine = 50;

    static MachineConfig config(std::shared_ptr<const CpuProfile> profile, ClockMode clock, bool program)
    {
        MachineConfig config = config_of(native());
        if (profile->name.rfind("zen", 0) == 0) config.cpuid.vendor = Vendor::amd;
        config.ram = {{Gfn{0}, 0x8'0000}};
        config.cpu = std::move(profile);
        config.clock = clock.kind;
        config.window = clock.window;
        config.program_uses_caches = program;
        return config;
    }
    [[nodiscard]] std::uint64_t entries(int level) const
    {
        if (mode_ == Paging::two_level) return 1024;
        return mode_ == Paging::pae && level == 3 ? 4 : 512;
    }
    [[nodiscard]] std::uint64_t table(int level) const
    {
        return tables_[static_cast<std::size_t>(level)].address().value();
    }
    void set(int level, std::uint64_t index, std::uint64_t value)
    {
        poke(table(level) + index * entry_bytes(), value, entry_bytes());
    }
    [[nodiscard]] std::uint64_t entry_of(int level, std::uint64_t index) const
    {
        if (level == 1) return kData | kAll;
        if (mode_ == Paging::pae && level == 3) return table(2) | P;
        if (can_be_leaf(level) && index >= entries(level) / 2) return kLarge | kAll | PS;
        return table(level - 1) | P | W | U | A;
    }

    Paging mode_;
    std::array<Gfn, 6> tables_{};
};

}  // namespace timed
