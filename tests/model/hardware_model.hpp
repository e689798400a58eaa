// SPDX-License-Identifier: Apache-2.0
//
// The second simulator of TLBs, paging-structure caches, walkers, data caches and time, written from
// docs/timing.md alone. It shares no code with the library: storage is vectors and maps, an entry is a
// struct, a resource is a list of times. Clarity goes before speed.
//
// Native mode only. Registers and memory are those of a reference::Machine; this adds what the hardware
// keeps of its tables, and when things happen. Where docs/timing.md leaves a choice, the source has a
// comment that starts with "Reading:".
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/reference_machine.hpp"

namespace model {

using u64 = std::uint64_t;

// --- what there is --------------------------------------------------------------------------------------

/// What an entry is for. The order is the order in which they are searched.
enum class EntryKind { page_4k, page_2m, page_4m, page_1g, pde };

/// Set s of a kind is the entries s * stride + first_way and the next ways - 1.
struct View {
    EntryKind kind = EntryKind::page_4k;
    unsigned ways = 1;
    unsigned first_way = 0;
    unsigned stride = 1;
};

struct Index {
    std::vector<u64> xor_masks;  // empty: the number modulo the sets

    u64 set_of(u64 number, u64 sets) const;
};

enum class Policy { lru, fifo, random, tree_plru, bit_plru, srrip, mru_groups };

struct PolicyConfig {
    Policy policy = Policy::lru;
    unsigned groups = 1;  // of mru_groups
    u64 seed = 1;         // of random
};

struct ArrayConfig {
    unsigned entries = 4;
    unsigned ways = 4;  // of a row, which replacement works on
    std::vector<View> views;
    Index index;
    PolicyConfig replacement;
};

enum class Inclusion { neither, inclusive, exclusive };

struct TlbConfig {
    std::string name;
    unsigned level = 1;
    bool fetches = false, loads = false, stores = false;
    std::vector<ArrayConfig> arrays;
    u64 lookup_cycles = 0;
    Inclusion inclusion = Inclusion::neither;
    bool refills = true;
    bool takes_evictions = false;
    bool touched_by_earlier_hits = false;
    bool splinters = false;
    unsigned pcids_kept_flush = 4096;
    unsigned pcids_kept_noflush = 4096;
};

/// A paging-structure cache of the entries of a level: 2 PDE, 3 PDPTE, 4 PML4E, 5 PML5E.
struct PscConfig {
    unsigned level = 2;
    ArrayConfig array;      // one view, of kind pde
    std::string stored_in;  // a TLB whose arrays hold these entries; empty: `array` does
};

struct DataCacheConfig {
    std::string name;
    unsigned sets = 1, ways = 1, line_bytes = 64;
    u64 latency = 0;
    unsigned misses_in_flight = 1;
    Index index;
    PolicyConfig replacement;
};

struct Config {
    std::vector<TlbConfig> tlbs;
    std::vector<PscConfig> pscs;
    bool pcid = true;
    std::vector<DataCacheConfig> data_caches;
    bool program_data = true;  // the program's own loads and stores go through the data caches
    u64 memory_latency = 0;
    unsigned walkers = 1;
    u64 walk_start = 0;
    std::array<u64, 6> walk_load{};  // by level; [0] is unused
    u64 walk_assist = 0;
    unsigned issue_width = 1;
    u64 fetch_cycles = 0;
    u64 mov_cr = 0, mov_cr3 = 0, invlpg = 0, invpcid = 0, page_fault = 0;
};

struct FrontEnd {
    enum class Kind { off, blocking, window };
    Kind kind = Kind::blocking;
    unsigned window = 1;
};

// --- replacement ----------------------------------------------------------------------------------------

/// Of an array whose entries are numbered; entry / ways is its row, entry % ways its way there.
class Replacement {
public:
    virtual ~Replacement() = default;
    /// One of `candidates`, which are in ascending order and all in use.
    virtual std::size_t victim(const std::vector<std::size_t>& candidates) = 0;
    virtual void hit(std::size_t entry) = 0;
    virtual void filled(std::size_t entry) = 0;
};

std::unique_ptr<Replacement> make_replacement(const PolicyConfig& config, std::size_t entries, unsigned ways);

// --- storage --------------------------------------------------------------------------------------------

struct Entry {
    EntryKind kind = EntryKind::page_4k;
    u64 number = 0;  // of the page, in pages of its size; of a PDE and its like: the tag
    u64 pcid = 0;
    bool global = false;
    u64 physical = 0;  // of the page, or of the next table
    bool user = true, writable = true, no_execute = false;
    unsigned key = 0;
    bool dirty = false;
    unsigned page_shift = 12;  // log2 of the whole page's bytes: more than the entry's, if it is a fragment
    u64 ready = 0;

    bool usable_in(u64 current_pcid) const { return global || pcid == current_pcid; }
};

class Array {
public:
    explicit Array(const ArrayConfig& config);

    bool holds(EntryKind kind) const { return view(kind) != nullptr; }
    /// The place of the first match.
    std::optional<std::size_t> find(EntryKind kind, u64 number, u64 pcid) const;
    Entry& at(std::size_t place) { return *places_[place]; }
    void hit(std::size_t place) { replacement_->hit(place); }
    void erase(std::size_t place) { places_[place].reset(); }
    /// Returns what had to make room.
    std::optional<Entry> fill(const Entry& entry);
    template <class Condition>
    void erase_if(Condition condition)
    {
        for (std::optional<Entry>& place : places_) {
            if (place && condition(*place)) place.reset();
        }
    }
    std::vector<Entry> content() const;

private:
    const View* view(EntryKind kind) const;
    std::size_t first_place(const View& view, u64 number) const;

    ArrayConfig config_;
    std::vector<std::optional<Entry>> places_;
    std::unique_ptr<Replacement> replacement_;
};

// --- time -----------------------------------------------------------------------------------------------

/// What one access is at, from its issue on: each part ends where the next begins.
struct Timeline {
    u64 now = 0;
    std::vector<std::pair<std::string, u64>> parts;  // label, end

    void until(const std::string& label, u64 end);
    void spend(const std::string& label, u64 cycles) { until(label, now + cycles); }
};

/// A resource: the times at which its slots become free.
struct Slots {
    std::vector<u64> free;

    std::size_t first() const;  // the slot that is free first
};

/// The front end, and whose each cycle is.
class Clock {
public:
    Clock(FrontEnd front_end, unsigned issue_width) : front_end_{front_end}, width_{issue_width} {}

    void gap(u64 instructions);
    /// When the next access is issued.
    u64 issue();
    /// That access, from its issue to its end.
    void retire(u64 issued, const Timeline& timeline);
    /// Something that is not an access.
    void alone(const std::string& label, u64 cycles);

    bool on() const { return front_end_.kind != FrontEnd::Kind::off; }
    u64 total() const { return retired_; }
    const std::map<std::string, u64>& by() const { return by_; }

private:
    void charge(const std::string& label, u64 from, u64 to);

    FrontEnd front_end_;
    unsigned width_;
    u64 retired_ = 0;              // the last thing so far
    u64 next_ = 0;                 // blocking: the next issue
    u64 slot_ = 0;                 // window: the next issue slot, counted from time 0
    u64 gap_end_ = 0;              // window: when the last gap was through
    std::deque<u64> retirements_;  // window: of the accesses since it started, the last N
    std::map<std::string, u64> by_;
};

// --- counters -------------------------------------------------------------------------------------------

struct TlbCounters {
    u64 lookups = 0, hits = 0, dirty_walks = 0, denied = 0, fills = 0, evictions = 0;
    friend bool operator==(const TlbCounters&, const TlbCounters&) = default;
};

struct LookupCounters {
    u64 lookups = 0, hits = 0;
    friend bool operator==(const LookupCounters&, const LookupCounters&) = default;
};

/// Of one vCPU.
struct Counters {
    std::map<std::string, TlbCounters> tlbs;
    std::map<unsigned, LookupCounters> pscs;  // by level
    std::map<std::string, LookupCounters> data_caches;
    u64 walks = 0;
    u64 memory_references = 0;  // table entries that walks have read
    friend bool operator==(const Counters&, const Counters&) = default;
};

// --- the hardware ---------------------------------------------------------------------------------------

struct Operand {
    u64 linear = 0;
    unsigned bytes = 1;  // 1 to 4096
    reference::Kind kind = reference::Kind::read;
    bool user = false;
    bool implicit = false;
    bool stack = false;  // not canonical is #SS, not #GP
};

struct Outcome {
    std::optional<reference::Fault> fault;
    std::vector<u64> physical;  // of each page, if there is no fault
    u64 ready_at = 0;
};

struct Execution {
    std::vector<Outcome> operands;  // those that were translated; the last one may be the faulting one
    std::optional<reference::Fault> fault;
};

class Hardware {
public:
    Hardware(Config config, reference::Machine& machine, unsigned cpus, FrontEnd front_end);
    Hardware(const Hardware&) = delete;
    Hardware& operator=(const Hardware&) = delete;

    // --- the guest ---
    /// Instructions before the next event.
    void gap(u64 instructions) { clock_.gap(instructions); }
    Outcome access(unsigned cpu, const Operand& operand);
    /// Several operands as one instruction.
    Execution execute(unsigned cpu, const std::vector<Operand>& operands);

    // A vector where the CPU refuses, and then nothing has changed.
    std::optional<unsigned> mov_cr0(unsigned cpu, u64 value);
    std::optional<unsigned> mov_cr3(unsigned cpu, u64 value);
    std::optional<unsigned> mov_cr4(unsigned cpu, u64 value);
    std::optional<unsigned> wrmsr(unsigned cpu, std::uint32_t msr, u64 value);
    std::optional<unsigned> wrpkru(unsigned cpu, std::uint32_t value);
    std::optional<unsigned> invlpg(unsigned cpu, u64 linear);
    std::optional<unsigned> invpcid(unsigned cpu, u64 type, u64 pcid, u64 linear);
    void set_cpl(unsigned cpu, unsigned cpl) { machine_.cpus[cpu].cpl = cpl; }
    void set_ac(unsigned cpu, bool ac) { machine_.cpus[cpu].ac = ac; }
    /// From outside: false where no CPU can be in that state.
    bool set_registers(unsigned cpu, const reference::Cpu& wanted);

    // --- what there is to see ---
    Counters counters(unsigned cpu) const;
    u64 cycles() const { return clock_.total(); }
    const std::map<std::string, u64>& cycles_by() const { return clock_.by(); }
    /// All entries of a TLB, array by array.
    std::vector<Entry> tlb_content(unsigned cpu, const std::string& name) const;
    /// All entries of the paging-structure cache of a level.
    std::vector<Entry> psc_content(unsigned cpu, unsigned level) const;

private:
    struct Tlb {
        TlbConfig config;
        std::vector<Array> arrays;
        TlbCounters counters;
    };
    struct Psc {
        PscConfig config;
        Tlb* home = nullptr;  // if its entries are in a TLB
        std::vector<Array> own;
        LookupCounters counters;
    };
    struct Line {
        u64 number = 0;
        u64 ready = 0;
    };
    struct DataCache {
        DataCacheConfig config;
        std::vector<std::optional<Line>> lines;
        std::unique_ptr<Replacement> replacement;
        Slots misses;
        LookupCounters counters;
    };
    /// A vCPU.
    struct Core {
        unsigned number = 0;
        std::list<Tlb> tlbs;
        std::list<Psc> pscs;
        std::vector<DataCache> data_caches;
        Slots walkers;
        std::list<u64> recent_pcids;  // each once, the current one first
        u64 walks = 0;
        u64 memory_references = 0;
    };
    using Chain = std::vector<Tlb*>;

    /// One page of an operand.
    struct Piece {
        reference::Access access;
        unsigned bytes = 0;
        std::size_t operand = 0;
    };
    struct Translated {
        std::optional<reference::Fault> fault;
        u64 physical = 0;
        Timeline timeline;
    };
    struct Match {
        Array* array = nullptr;
        std::size_t place = 0;
        Entry& entry() const { return array->at(place); }
    };
    struct Loaded {
        u64 ready = 0;
        std::string by;  // the cache that had the line, or "memory"
    };
    /// An entry of a table, as a walk has read it.
    struct TableEntry {
        unsigned level = 0;
        u64 address = 0;
        unsigned bytes = 8;
        u64 next_table = 0;
        bool user = true, writable = true, no_execute = false;  // of the path so far
        u64 ready = 0;
    };
    /// The way down from a table to a leaf, or to a fault.
    struct Descent {
        bool succeeded = false;
        std::vector<TableEntry> read;
        reference::Page page;  // if it succeeded
    };

    reference::Cpu& registers(const Core& core) const { return machine_.cpus[core.number]; }
    /// That tags entries.
    u64 pcid_of(const Core& core) const { return config_.pcid ? registers(core).pcid() : 0; }

    // --- an access ---
    Translated translate(Core& core, const reference::Access& access, u64 issued);
    Chain chain_of(Core& core, reference::Kind kind);
    std::optional<Match> look_up(Core& core, Tlb& tlb, u64 linear);
    void after_hit(Core& core, const Chain& chain, std::size_t position, const Match& match, u64 linear,
                   u64 ready);
    void fill(Core& core, const Chain& chain, std::size_t position, Entry entry, u64 linear);
    void evicted(Core& core, Tlb& tlb, const Entry& entry);
    Loaded load(Core& core, u64 address, u64 asked);
    void data(Core& core, const Operand& operand, const std::vector<std::pair<u64, unsigned>>& pages,
              Timeline& timeline);

    // --- a walk ---
    std::optional<reference::Page> walk(Core& core, const Chain& chain, const reference::Access& access,
                                        bool denied, Timeline& timeline);
    std::optional<std::pair<unsigned, Entry>> ask_pscs(Core& core, u64 linear);
    Descent descend(Core& core, const reference::Access& access, unsigned level, Entry from,
                    Timeline& timeline);
    Descent descend_from_root(Core& core, const reference::Access& access, Timeline& timeline);
    u64 reserved_bits(const Core& core, unsigned level, bool leaf) const;
    bool set_accessed_and_dirty(const Descent& descent, bool write);
    void fill_pscs(Core& core, u64 linear, const Descent& descent);
    std::vector<Array>& arrays_of(Psc& psc) const { return psc.home != nullptr ? psc.home->arrays : psc.own; }

    // --- invalidation ---
    template <class Condition>
    void drop_pages(Core& core, Condition condition);
    template <class Condition>
    void drop_tables(Core& core, Condition condition);
    void drop_all(Core& core);
    void drop_for_fault(Core& core, u64 linear);
    bool leads_to(const Core& core, const Psc& psc, const Entry& entry, u64 linear) const;
    void made_current(Core& core, u64 pcid);
    void registers_changed(Core& core, const reference::Cpu& before, bool loads_pdptes);

    Config config_;
    reference::Machine& machine_;
    std::list<Core> cores_;
    Clock clock_;

    Core& core(unsigned cpu);
    const Core& core(unsigned cpu) const;
};

}  // namespace model
