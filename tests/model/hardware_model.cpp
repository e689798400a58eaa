// SPDX-License-Identifier: Apache-2.0
#include "model/hardware_model.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace model {

namespace {

u64 bit(unsigned n)
{
    return u64{1} << n;
}

/// Bits from..to, inclusive; 0 if there are none.
u64 bits(unsigned from, unsigned to)
{
    u64 mask = 0;
    for (unsigned n = from; n <= to; ++n) mask |= bit(n);
    return mask;
}

/// log2 of the bytes of a page.
unsigned shift_of(EntryKind kind)
{
    switch (kind) {
    case EntryKind::page_4k: return 12;
    case EntryKind::page_2m: return 21;
    case EntryKind::page_4m: return 22;
    case EntryKind::page_1g: return 30;
    case EntryKind::pde: break;
    }
    throw std::logic_error("a PDE is no page");
}

EntryKind page_of_shift(unsigned shift)
{
    for (const EntryKind kind :
         {EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_4m, EntryKind::page_1g}) {
        if (shift_of(kind) == shift) return kind;
    }
    throw std::logic_error("no page has that size");
}

/// The number of a page.
u64 page_number(u64 linear, unsigned shift)
{
    return (linear & bits(0, 56)) >> shift;
}

/// The lowest linear-address bit that an entry of a level translates.
unsigned level_shift(const reference::Cpu& cpu, unsigned level)
{
    const unsigned per_level = cpu.paging() == reference::Paging::two_level ? 10 : 9;
    return 12 + (level - 1) * per_level;
}

/// The tag of a paging-structure entry of a level.
u64 tag_of(const reference::Cpu& cpu, u64 linear, unsigned level)
{
    // Reading: in all modes from bit 56 on, as page numbers.
    return page_number(linear, level_shift(cpu, level));
}

/// Of the tables in memory.
unsigned top_level(const reference::Cpu& cpu)
{
    switch (cpu.paging()) {
    case reference::Paging::four_level: return 4;
    case reference::Paging::five_level: return 5;
    default: return 2;
    }
}

std::string entry_name(unsigned level)
{
    return std::array{"", "pte", "pde", "pdpte", "pml4e", "pml5e"}[level];
}

/// Whether the page that `entry` is of, or is a fragment of, holds the address.
bool on_page(const Entry& entry, u64 linear)
{
    const u64 first = entry.number << shift_of(entry.kind);
    return first >> entry.page_shift == page_number(linear, entry.page_shift);
}

/// Reading: a global entry and another are never the same, and of global ones the PCID does not matter.
bool same_owner(const Entry& a, const Entry& b)
{
    return a.global == b.global && (a.global || a.pcid == b.pcid);
}

}  // namespace

u64 Index::set_of(u64 number, u64 sets) const
{
    if (xor_masks.empty()) return number % sets;
    u64 set = 0;
    for (unsigned i = 0; i < xor_masks.size(); ++i) {
        if (std::popcount(number & xor_masks[i]) % 2 != 0) set |= bit(i);
    }
    return set;
}

// --- replacement ----------------------------------------------------------------------------------------

namespace {

/// lru and fifo: when each entry was last of note.
class Oldest : public Replacement {
public:
    Oldest(std::size_t entries, bool hits_count) : when_(entries, 0), hits_count_{hits_count} {}

    std::size_t victim(const std::vector<std::size_t>& candidates) override
    {
        return *std::min_element(candidates.begin(), candidates.end(),
                                 [&](std::size_t a, std::size_t b) { return when_[a] < when_[b]; });
    }
    void hit(std::size_t entry) override
    {
        if (hits_count_) when_[entry] = ++now_;
    }
    void filled(std::size_t entry) override { when_[entry] = ++now_; }

private:
    std::vector<u64> when_;
    bool hits_count_;
    u64 now_ = 0;
};

class Random : public Replacement {
public:
    explicit Random(u64 seed) : state_{seed} {}

    std::size_t victim(const std::vector<std::size_t>& candidates) override
    {
        state_ += 0x9e37'79b9'7f4a'7c15;
        u64 z = state_;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        z = z ^ (z >> 31);
        return candidates[z % candidates.size()];
    }
    void hit(std::size_t) override {}
    void filled(std::size_t) override {}

private:
    u64 state_;
};

/// A complete binary tree over ways, each node with the side it names. Node 1 is the root, the sons of
/// node n are 2n (the low ways) and 2n + 1.
class Tree {
public:
    explicit Tree(unsigned ways)
    {
        while (leaves_ < ways) leaves_ *= 2;
        names_high_.assign(leaves_, false);
    }

    unsigned victim(const std::vector<unsigned>& candidates) const
    {
        unsigned node = 1, first = 0, size = leaves_;
        while (size > 1) {
            size /= 2;
            const auto any_in = [&](unsigned from) {
                return std::any_of(candidates.begin(), candidates.end(),
                                   [&](unsigned way) { return way >= from && way < from + size; });
            };
            const bool high = names_high_[node] ? any_in(first + size) : !any_in(first);
            if (high) first += size;
            node = 2 * node + (high ? 1 : 0);
        }
        return first;
    }
    void use(unsigned way)
    {
        unsigned node = 1, first = 0, size = leaves_;
        while (size > 1) {
            size /= 2;
            const bool high = way >= first + size;
            names_high_[node] = !high;
            if (high) first += size;
            node = 2 * node + (high ? 1 : 0);
        }
    }

private:
    unsigned leaves_ = 1;
    std::vector<bool> names_high_;
};

/// Policies whose state is by row.
class ByRow : public Replacement {
public:
    explicit ByRow(unsigned ways) : ways_{ways} {}

    std::size_t victim(const std::vector<std::size_t>& candidates) override
    {
        const std::size_t row = candidates.front() / ways_;
        std::vector<unsigned> ways;
        for (const std::size_t entry : candidates) {
            if (entry / ways_ != row) throw std::logic_error("candidates of two rows");
            ways.push_back(static_cast<unsigned>(entry % ways_));
        }
        return row * ways_ + victim_in(row, ways);
    }
    void hit(std::size_t entry) override { hit_in(entry / ways_, static_cast<unsigned>(entry % ways_)); }
    void filled(std::size_t entry) override
    {
        filled_in(entry / ways_, static_cast<unsigned>(entry % ways_));
    }

protected:
    virtual unsigned victim_in(std::size_t row, const std::vector<unsigned>& candidates) = 0;
    virtual void hit_in(std::size_t row, unsigned way) = 0;
    virtual void filled_in(std::size_t row, unsigned way) { hit_in(row, way); }

private:
    unsigned ways_;
};

class TreePlru : public ByRow {
public:
    TreePlru(std::size_t rows, unsigned ways) : ByRow{ways}, trees_(rows, Tree{ways}) {}

private:
    unsigned victim_in(std::size_t row, const std::vector<unsigned>& candidates) override
    {
        return trees_[row].victim(candidates);
    }
    void hit_in(std::size_t row, unsigned way) override { trees_[row].use(way); }

    std::vector<Tree> trees_;
};

class BitPlru : public ByRow {
public:
    BitPlru(std::size_t rows, unsigned ways) : ByRow{ways}, used_(rows, std::vector<bool>(ways, false)) {}

private:
    unsigned victim_in(std::size_t row, const std::vector<unsigned>& candidates) override
    {
        for (const unsigned way : candidates) {
            if (!used_[row][way]) return way;
        }
        return candidates.front();
    }
    void hit_in(std::size_t row, unsigned way) override
    {
        std::vector<bool>& used = used_[row];
        used[way] = true;
        if (std::find(used.begin(), used.end(), false) != used.end()) return;
        used.assign(used.size(), false);
        used[way] = true;
    }

    std::vector<std::vector<bool>> used_;
};

class Srrip : public ByRow {
public:
    Srrip(std::size_t rows, unsigned ways) : ByRow{ways}, counters_(rows, std::vector<unsigned>(ways, 0)) {}

private:
    unsigned victim_in(std::size_t row, const std::vector<unsigned>& candidates) override
    {
        for (;;) {
            for (const unsigned way : candidates) {
                if (counters_[row][way] == 3) return way;
            }
            for (const unsigned way : candidates) ++counters_[row][way];
        }
    }
    void hit_in(std::size_t row, unsigned way) override { counters_[row][way] = 0; }
    void filled_in(std::size_t row, unsigned way) override { counters_[row][way] = 2; }

    std::vector<std::vector<unsigned>> counters_;
};

class MruGroups : public ByRow {
public:
    MruGroups(std::size_t rows, unsigned ways, unsigned groups)
        : ByRow{ways}
        , groups_{groups}
        , ways_in_group_{ways / groups}
        , last_(rows, 0)
        , trees_(rows, std::vector<Tree>(groups, Tree{ways / groups}))
    {
    }

private:
    unsigned victim_in(std::size_t row, const std::vector<unsigned>& candidates) override
    {
        for (unsigned step = 1; step <= groups_; ++step) {
            const unsigned group = (last_[row] + step) % groups_;
            std::vector<unsigned> inside;
            for (const unsigned way : candidates) {
                if (way / ways_in_group_ == group) inside.push_back(way % ways_in_group_);
            }
            if (!inside.empty()) return group * ways_in_group_ + trees_[row][group].victim(inside);
        }
        throw std::logic_error("no candidate");
    }
    void hit_in(std::size_t row, unsigned way) override
    {
        last_[row] = way / ways_in_group_;
        trees_[row][last_[row]].use(way % ways_in_group_);
    }

    unsigned groups_, ways_in_group_;
    std::vector<unsigned> last_;
    std::vector<std::vector<Tree>> trees_;
};

}  // namespace

std::unique_ptr<Replacement> make_replacement(const PolicyConfig& config, std::size_t entries, unsigned ways)
{
    const std::size_t rows = (entries + ways - 1) / ways;
    switch (config.policy) {
    case Policy::lru: return std::make_unique<Oldest>(entries, true);
    case Policy::fifo: return std::make_unique<Oldest>(entries, false);
    case Policy::random: return std::make_unique<Random>(config.seed);
    case Policy::tree_plru: return std::make_unique<TreePlru>(rows, ways);
    case Policy::bit_plru: return std::make_unique<BitPlru>(rows, ways);
    case Policy::srrip: return std::make_unique<Srrip>(rows, ways);
    case Policy::mru_groups: return std::make_unique<MruGroups>(rows, ways, config.groups);
    }
    throw std::logic_error("no such policy");
}

// --- storage --------------------------------------------------------------------------------------------

Array::Array(const ArrayConfig& config)
    : config_{config}
    , places_(config.entries)
    , replacement_{make_replacement(config.replacement, config.entries, config.ways)}
{
}

const View* Array::view(EntryKind kind) const
{
    for (const View& view : config_.views) {
        if (view.kind == kind) return &view;
    }
    return nullptr;
}

std::size_t Array::first_place(const View& view, u64 number) const
{
    const u64 sets = config_.entries / view.stride;
    return config_.index.set_of(number, sets) * view.stride + view.first_way;
}

std::optional<std::size_t> Array::find(EntryKind kind, u64 number, u64 pcid) const
{
    const View* const where = view(kind);
    if (where == nullptr) return std::nullopt;
    const std::size_t first = first_place(*where, number);
    // Reading: of several matches in a set, the one in the lowest way counts.
    for (std::size_t place = first; place < first + where->ways; ++place) {
        const std::optional<Entry>& entry = places_[place];
        if (entry && entry->kind == kind && entry->number == number && entry->usable_in(pcid)) return place;
    }
    return std::nullopt;
}

std::optional<Entry> Array::fill(const Entry& entry)
{
    const View* const where = view(entry.kind);
    if (where == nullptr) throw std::logic_error("an array without that kind");
    const std::size_t first = first_place(*where, entry.number);
    std::vector<std::size_t> set(where->ways);
    for (std::size_t i = 0; i < set.size(); ++i) set[i] = first + i;

    const auto matches = [&](std::size_t place) {
        const std::optional<Entry>& old = places_[place];
        return old && old->kind == entry.kind && old->number == entry.number && same_owner(*old, entry);
    };
    const auto is_free = [&](std::size_t place) { return !places_[place]; };
    auto found = std::find_if(set.begin(), set.end(), matches);
    if (found == set.end()) found = std::find_if(set.begin(), set.end(), is_free);
    std::optional<Entry> evicted;
    std::size_t place = 0;
    if (found != set.end()) {
        place = *found;
    } else {
        place = replacement_->victim(set);
        evicted = places_[place];
    }
    places_[place] = entry;
    replacement_->filled(place);
    return evicted;
}

std::vector<Entry> Array::content() const
{
    std::vector<Entry> entries;
    for (const std::optional<Entry>& place : places_) {
        if (place) entries.push_back(*place);
    }
    return entries;
}

// --- time -----------------------------------------------------------------------------------------------

void Timeline::until(const std::string& label, u64 end)
{
    if (end <= now) return;
    parts.emplace_back(label, end);
    now = end;
}

std::size_t Slots::first() const
{
    return static_cast<std::size_t>(std::min_element(free.begin(), free.end()) - free.begin());
}

void Clock::charge(const std::string& label, u64 from, u64 to)
{
    if (from < to) by_[label] += to - from;
}

void Clock::gap(u64 instructions)
{
    if (instructions == 0) return;
    if (front_end_.kind == FrontEnd::Kind::blocking) {
        // Reading: the cycles of a gap have passed as soon as the gap has, also at the end of a program.
        next_ += (instructions + width_ - 1) / width_;
        charge("instructions", retired_, next_);
        retired_ = next_;
    }
    slot_ += instructions;
    gap_end_ = (slot_ - 1) / width_ + 1;
}

u64 Clock::issue()
{
    switch (front_end_.kind) {
    case FrontEnd::Kind::off: return 0;
    case FrontEnd::Kind::blocking: return next_;
    case FrontEnd::Kind::window: break;
    }
    u64 cycle = slot_ / width_;
    if (retirements_.size() == front_end_.window && retirements_.front() > cycle) {
        cycle = retirements_.front();
        slot_ = cycle * width_;
    }
    ++slot_;
    return cycle;
}

void Clock::retire(u64 issued, const Timeline& timeline)
{
    if (front_end_.kind == FrontEnd::Kind::off) return;
    charge("instructions", retired_, issued);
    u64 from = issued;
    for (const auto& [label, end] : timeline.parts) {
        charge(label, std::max(from, retired_), end);
        from = end;
    }
    retired_ = std::max(retired_, timeline.now);
    next_ = retired_;
    retirements_.push_back(retired_);
    if (retirements_.size() > front_end_.window) retirements_.pop_front();
}

void Clock::alone(const std::string& label, u64 cycles)
{
    if (front_end_.kind == FrontEnd::Kind::off) return;
    // Reading: the instructions of a gap are over at the end of the cycle in which they are issued.
    const u64 start = front_end_.kind == FrontEnd::Kind::blocking ? next_ : std::max(retired_, gap_end_);
    charge("instructions", retired_, start);
    charge(label, start, start + cycles);
    retired_ = start + cycles;
    next_ = retired_;
    slot_ = retired_ * width_;
    retirements_.clear();
}

// --- the hardware ---------------------------------------------------------------------------------------

Hardware::Hardware(Config config, reference::Machine& machine, unsigned cpus, FrontEnd front_end)
    : config_{std::move(config)}, machine_{machine}, clock_{front_end, config_.issue_width}
{
    for (unsigned number = 0; number < cpus; ++number) {
        Core& core = cores_.emplace_back();
        core.number = number;
        for (const TlbConfig& tlb : config_.tlbs) {
            Tlb& made = core.tlbs.emplace_back();
            made.config = tlb;
            for (const ArrayConfig& array : tlb.arrays) made.arrays.emplace_back(array);
        }
        for (const PscConfig& psc : config_.pscs) {
            Psc& made = core.pscs.emplace_back();
            made.config = psc;
            if (psc.stored_in.empty()) made.own.emplace_back(psc.array);
            for (Tlb& tlb : core.tlbs) {
                if (tlb.config.name == psc.stored_in) made.home = &tlb;
            }
        }
        for (const DataCacheConfig& cache : config_.data_caches) {
            DataCache& made = core.data_caches.emplace_back();
            made.config = cache;
            made.lines.resize(std::size_t{cache.sets} * cache.ways);
            made.replacement = make_replacement(cache.replacement, made.lines.size(), cache.ways);
            made.misses.free.assign(cache.misses_in_flight, 0);
        }
        core.walkers.free.assign(config_.walkers, 0);
        made_current(core, pcid_of(core));
    }
}

Hardware::Core& Hardware::core(unsigned cpu)
{
    return *std::next(cores_.begin(), cpu);
}

const Hardware::Core& Hardware::core(unsigned cpu) const
{
    return *std::next(cores_.begin(), cpu);
}

// --- an access ------------------------------------------------------------------------------------------

Outcome Hardware::access(unsigned cpu, const Operand& operand)
{
    Execution execution = execute(cpu, {operand});
    if (execution.operands.empty()) return {execution.fault, {}, cycles()};  // it has no linear address
    return std::move(execution.operands.front());
}

Execution Hardware::execute(unsigned number, const std::vector<Operand>& operands)
{
    Core& core = this->core(number);
    const reference::Cpu& cpu = registers(core);
    Execution result;

    std::vector<Piece> pieces;
    std::size_t located = 0;
    std::optional<reference::Fault> misplaced;
    for (; located < operands.size(); ++located) {
        const Operand& operand = operands[located];
        const u64 last = operand.linear + operand.bytes - 1;
        const unsigned width = cpu.linear_bits();
        if (cpu.long_mode() &&
            !(reference::canonical(operand.linear, width) && reference::canonical(last, width))) {
            const unsigned vector = operand.stack ? reference::kStackFault : reference::kGeneralProtection;
            misplaced = reference::Fault{vector, 0, 0};
            break;
        }
        const auto room = static_cast<unsigned>(4096 - operand.linear % 4096);
        const auto add = [&](u64 linear, unsigned bytes) {
            const bool user = operand.user && !operand.implicit;
            pieces.push_back(
                {{machine_.linear_of(number, linear), operand.kind, user, operand.implicit}, bytes, located});
        };
        add(operand.linear, std::min(room, operand.bytes));
        if (operand.bytes > room) add(operand.linear + room, operand.bytes - room);
    }

    // A fault after a write: the write is not going to happen, and translates as a read.
    std::size_t will_fault = pieces.size();
    const std::size_t may_precede_a_fault = misplaced ? pieces.size() : pieces.size() - 1;
    const bool writes =
        std::any_of(pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(may_precede_a_fault),
                    [](const Piece& piece) { return piece.access.kind == reference::Kind::write; });
    for (std::size_t i = 0; writes && i < will_fault; ++i) {
        if (machine_.walk(number, pieces[i].access).fault) will_fault = i;
    }
    if (will_fault < pieces.size()) drop_for_fault(core, pieces[will_fault].access.linear);
    const bool completes = !misplaced && will_fault == pieces.size();

    std::size_t next = 0;
    for (std::size_t i = 0; i < located; ++i) {
        const u64 issued = clock_.issue();
        Outcome& outcome = result.operands.emplace_back();
        // Reading: of two translations, the access is at the one that ends last (of equals: the lower).
        Timeline timeline{issued, {}};
        std::vector<std::pair<u64, unsigned>> pages;
        u64 faulting = 0;
        for (; next < pieces.size() && pieces[next].operand == i; ++next) {
            reference::Access access = pieces[next].access;
            if (!completes && next < will_fault && access.kind == reference::Kind::write) {
                access.kind = reference::Kind::read;
            }
            Translated translated = translate(core, access, issued);
            if (translated.timeline.now > timeline.now) timeline = std::move(translated.timeline);
            if (translated.fault) {
                outcome.fault = translated.fault;
                faulting = access.linear;
                break;
            }
            pages.emplace_back(translated.physical, pieces[next].bytes);
        }
        // Reading: a write that is held back touches data, as a read.
        if (!outcome.fault) data(core, operands[i], pages, timeline);
        clock_.retire(issued, timeline);
        outcome.ready_at = clock_.on() ? timeline.now : 0;
        if (outcome.fault) {
            drop_for_fault(core, faulting);
            clock_.alone("guest_fault", config_.page_fault);
            result.fault = outcome.fault;
            return result;
        }
        for (const auto& [physical, bytes] : pages) outcome.physical.push_back(physical);
    }
    // Reading: #GP and #SS take no time.
    result.fault = misplaced;
    return result;
}

void Hardware::data(Core& core, const Operand& operand, const std::vector<std::pair<u64, unsigned>>& pages,
                    Timeline& timeline)
{
    if (operand.kind == reference::Kind::fetch) {
        const u64 blocks = (operand.linear % 16 + operand.bytes + 15) / 16;
        timeline.spend("fetch", blocks * config_.fetch_cycles);
        return;
    }
    if (!config_.program_data) {
        if (config_.data_caches.empty()) return;
        const DataCacheConfig& nearest = config_.data_caches.front();
        timeline.spend("data." + nearest.name, nearest.latency);
        return;
    }
    // Reading: of lines that are ready last at the same time, the first gives the label. A line that two
    // pages have in common is loaded twice.
    const u64 size = config_.data_caches.empty() ? 64 : config_.data_caches.front().line_bytes;
    Loaded last{timeline.now, {}};
    for (const auto& [physical, bytes] : pages) {
        for (u64 line = physical / size; line <= (physical + bytes - 1) / size; ++line) {
            const Loaded loaded = load(core, line * size, timeline.now);
            if (loaded.ready > last.ready) last = loaded;
        }
    }
    timeline.until("data." + last.by, last.ready);
}

Hardware::Loaded Hardware::load(Core& core, u64 address, u64 asked)
{
    std::vector<DataCache>& caches = core.data_caches;
    const auto find = [&](DataCache& cache) -> std::optional<std::size_t> {
        const u64 number = address / cache.config.line_bytes;
        const u64 set = cache.config.index.set_of(number, cache.config.sets);
        for (std::size_t way = 0; way < cache.config.ways; ++way) {
            const std::size_t place = set * cache.config.ways + way;
            if (cache.lines[place] && cache.lines[place]->number == number) return place;
        }
        return std::nullopt;
    };
    const auto put = [&](DataCache& cache, u64 ready) {
        const u64 number = address / cache.config.line_bytes;
        const u64 set = cache.config.index.set_of(number, cache.config.sets);
        std::vector<std::size_t> places;
        for (std::size_t way = 0; way < cache.config.ways; ++way)
            places.push_back(set * cache.config.ways + way);
        const auto unused = std::find_if(places.begin(), places.end(),
                                         [&](std::size_t place) { return !cache.lines[place]; });
        const std::size_t place = unused != places.end() ? *unused : cache.replacement->victim(places);
        cache.lines[place] = Line{number, ready};
        cache.replacement->filled(place);
    };

    std::size_t with_line = 0;
    Loaded loaded{0, "memory"};
    u64 line_ready = 0;
    for (; with_line < caches.size(); ++with_line) {
        DataCache& cache = caches[with_line];
        ++cache.counters.lookups;
        const auto place = find(cache);
        if (!place) continue;
        ++cache.counters.hits;
        cache.replacement->hit(*place);
        loaded.by = cache.config.name;
        line_ready = cache.lines[*place]->ready;
        break;
    }
    u64 now = asked;
    std::vector<std::size_t> slots;
    for (std::size_t i = 0; i < with_line; ++i) {
        slots.push_back(caches[i].misses.first());
        now = std::max(now, caches[i].misses.free[slots[i]]);
    }
    const u64 latency = with_line < caches.size() ? caches[with_line].config.latency : config_.memory_latency;
    loaded.ready = std::max(now + latency, line_ready);
    for (std::size_t i = 0; i < with_line; ++i) {
        caches[i].misses.free[slots[i]] = loaded.ready;
        put(caches[i], loaded.ready);
    }
    return loaded;
}

// --- a translation --------------------------------------------------------------------------------------

Hardware::Chain Hardware::chain_of(Core& core, reference::Kind kind)
{
    Chain chain;
    for (Tlb& tlb : core.tlbs) {
        const bool serves = kind == reference::Kind::fetch   ? tlb.config.fetches
                            : kind == reference::Kind::write ? tlb.config.stores
                                                             : tlb.config.loads;
        if (serves) chain.push_back(&tlb);
    }
    std::stable_sort(chain.begin(), chain.end(),
                     [](const Tlb* a, const Tlb* b) { return a->config.level < b->config.level; });
    return chain;
}

std::optional<Hardware::Match> Hardware::look_up(Core& core, Tlb& tlb, u64 linear)
{
    for (Array& array : tlb.arrays) {
        for (const EntryKind kind :
             {EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_4m, EntryKind::page_1g}) {
            const u64 number = page_number(linear, shift_of(kind));
            if (const auto place = array.find(kind, number, pcid_of(core))) return Match{&array, *place};
        }
    }
    return std::nullopt;
}

Hardware::Translated Hardware::translate(Core& core, const reference::Access& access, u64 issued)
{
    const reference::Cpu& cpu = registers(core);
    Translated result;
    result.timeline.now = issued;
    if (!cpu.pg()) {
        result.physical = access.linear;
        return result;
    }

    const Chain chain = chain_of(core, access.kind);
    bool denied = false;
    for (std::size_t position = 0; position < chain.size(); ++position) {
        Tlb& tlb = *chain[position];
        const std::string label = "tlb." + tlb.config.name;
        ++tlb.counters.lookups;
        result.timeline.spend(label, tlb.config.lookup_cycles);
        const auto match = look_up(core, tlb, access.linear);
        if (!match) continue;

        const Entry& entry = match->entry();
        reference::Page rights;
        rights.user = entry.user;
        rights.writable = entry.writable;
        rights.no_execute = entry.no_execute;
        rights.key = entry.key;
        if (machine_.refused(cpu, rights, access) != 0) {
            ++tlb.counters.denied;
            denied = true;
            drop_for_fault(core, access.linear);
            break;
        }
        ++tlb.counters.hits;
        if (access.kind == reference::Kind::write && !entry.dirty) {
            // Reading: this match is not told to the replacement policy, it moves nothing between levels,
            // and the walk does not wait for it to be ready.
            ++tlb.counters.dirty_walks;
            break;
        }
        result.timeline.until(label, entry.ready);
        result.physical = entry.physical | (access.linear & bits(0, shift_of(entry.kind) - 1));
        after_hit(core, chain, position, *match, access.linear, result.timeline.now);
        return result;
    }

    const auto page = walk(core, chain, access, denied, result.timeline);
    if (!page) {
        result.fault = machine_.walk(core.number, access).fault;
        if (!result.fault) throw std::logic_error("the model's walk faults, the reference's does not");
        return result;
    }
    result.physical = page->physical | (access.linear & bits(0, page->shift - 1));
    return result;
}

void Hardware::after_hit(Core& core, const Chain& chain, std::size_t position, const Match& match, u64 linear,
                         u64 ready)
{
    const TlbConfig& tlb = chain[position]->config;
    match.array->hit(match.place);
    if (tlb.level == 1) {
        for (std::size_t later = position + 1; later < chain.size(); ++later) {
            if (!chain[later]->config.touched_by_earlier_hits) continue;
            if (const auto other = look_up(core, *chain[later], linear)) other->array->hit(other->place);
        }
        return;
    }
    Entry entry = match.entry();
    entry.ready = ready;
    if (tlb.inclusion == Inclusion::exclusive) match.array->erase(match.place);
    if (!tlb.refills) return;
    for (std::size_t earlier = position; earlier-- > 0;) {
        // Reading: exclusive ones too; it is only after a walk that they are left out.
        fill(core, chain, earlier, entry, linear);
    }
}

/// `linear`: what the entry is filled for; of what another level has evicted, its first address.
void Hardware::fill(Core& core, const Chain& chain, std::size_t position, Entry entry, u64 linear)
{
    Tlb& tlb = *chain[position];
    const auto first_with = [&](EntryKind kind) {
        return std::find_if(tlb.arrays.begin(), tlb.arrays.end(),
                            [&](const Array& array) { return array.holds(kind); });
    };
    // Reading: what moves is the whole page, also if where it comes from only has a fragment.
    const auto become = [&](EntryKind kind) {
        const u64 first = entry.number << shift_of(entry.kind);
        const u64 page = entry.physical - (first & bits(0, entry.page_shift - 1));
        entry.kind = kind;
        entry.number = page_number(linear, shift_of(kind));
        entry.physical = page + (entry.number << shift_of(kind) & bits(0, entry.page_shift - 1));
    };
    become(page_of_shift(entry.page_shift));
    auto array = first_with(entry.kind);
    if (array == tlb.arrays.end() && (tlb.config.level == 1 || tlb.config.splinters)) {
        for (const EntryKind kind : {EntryKind::page_4m, EntryKind::page_2m, EntryKind::page_4k}) {
            if (shift_of(kind) >= entry.page_shift) continue;
            if (entry.page_shift == 30 && kind == EntryKind::page_4m) continue;
            array = first_with(kind);
            if (array == tlb.arrays.end()) continue;
            become(kind);
            break;
        }
    }
    if (array == tlb.arrays.end()) return;
    ++tlb.counters.fills;
    const auto victim = array->fill(entry);
    if (!victim) return;
    evicted(core, tlb, *victim);
    // Reading: a PDE goes nowhere; a page goes to the next level when the new entry is in its place.
    if (victim->kind == EntryKind::pde || position + 1 == chain.size()) return;
    const TlbConfig& next = chain[position + 1]->config;
    if (next.inclusion == Inclusion::exclusive || next.takes_evictions) {
        fill(core, chain, position + 1, *victim, victim->number << shift_of(victim->kind));
    }
}

void Hardware::evicted(Core& core, Tlb& tlb, const Entry& entry)
{
    // Reading: also if it is for a PDE, or if a PDE takes its place.
    ++tlb.counters.evictions;
    if (entry.kind == EntryKind::pde || tlb.config.inclusion != Inclusion::inclusive) return;
    for (Tlb& lower : core.tlbs) {
        if (lower.config.level >= tlb.config.level) continue;
        // Reading: what leaves is everything that overlaps it, larger entries and smaller ones.
        for (Array& array : lower.arrays) {
            array.erase_if([&](const Entry& other) {
                if (other.kind == EntryKind::pde || !same_owner(other, entry)) return false;
                const unsigned larger = std::max(shift_of(other.kind), shift_of(entry.kind));
                return other.number << shift_of(other.kind) >> larger ==
                       entry.number << shift_of(entry.kind) >> larger;
            });
        }
    }
}

// --- a walk ---------------------------------------------------------------------------------------------

/// What it found, or nothing where it ends in a fault.
std::optional<reference::Page> Hardware::walk(Core& core, const Chain& chain, const reference::Access& access,
                                              bool denied, Timeline& timeline)
{
    ++core.walks;
    const std::size_t walker = core.walkers.first();
    timeline.until("walk.wait", core.walkers.free[walker]);
    timeline.spend("walk.start", config_.walk_start);

    Descent descent;
    // Reading: after a denied lookup no paging-structure cache is asked, and so none counts a lookup.
    if (const auto cached = denied ? std::nullopt : ask_pscs(core, access.linear)) {
        const auto& [level, entry] = *cached;
        timeline.until("walk.wait", entry.ready);
        descent = descend(core, access, level - 1, entry, timeline);
    }
    if (!descent.succeeded) descent = descend_from_root(core, access, timeline);
    const bool write = access.kind == reference::Kind::write;
    if (descent.succeeded && set_accessed_and_dirty(descent, write)) {
        timeline.spend("walk.assist", config_.walk_assist);
    }
    core.walkers.free[walker] = timeline.now;
    if (!descent.succeeded) return std::nullopt;

    // Reading: the paging-structure caches are filled before the TLBs.
    fill_pscs(core, access.linear, descent);
    const reference::Page& page = descent.page;
    Entry entry;
    entry.kind = page_of_shift(page.shift);
    entry.number = page_number(access.linear, page.shift);
    entry.pcid = pcid_of(core);
    entry.global = page.global;
    entry.physical = page.physical;
    entry.user = page.user;
    entry.writable = page.writable;
    entry.no_execute = page.no_execute;
    entry.key = page.key;
    entry.dirty = page.dirty || write;
    entry.page_shift = page.shift;
    entry.ready = timeline.now;
    for (std::size_t position = chain.size(); position-- > 0;) {
        if (chain[position]->config.inclusion == Inclusion::exclusive) continue;
        fill(core, chain, position, entry, access.linear);
    }
    return page;
}

/// The level of the entry that a cache has, and that entry.
std::optional<std::pair<unsigned, Entry>> Hardware::ask_pscs(Core& core, u64 linear)
{
    const reference::Cpu& cpu = registers(core);
    for (unsigned level = 2; level <= top_level(cpu); ++level) {
        for (Psc& psc : core.pscs) {
            if (psc.config.level != level) continue;
            ++psc.counters.lookups;
            const u64 tag = tag_of(cpu, linear, level);
            for (Array& array : arrays_of(psc)) {
                const auto place = array.find(EntryKind::pde, tag, pcid_of(core));
                if (!place) continue;
                ++psc.counters.hits;
                array.hit(*place);
                return std::pair{level, array.at(*place)};
            }
        }
    }
    return std::nullopt;
}

Hardware::Descent Hardware::descend_from_root(Core& core, const reference::Access& access, Timeline& timeline)
{
    const reference::Cpu& cpu = registers(core);
    Entry root;
    root.physical = cpu.cr3 & bits(12, cpu.long_mode() ? 51 : 31);
    if (cpu.paging() == reference::Paging::pae) {
        const u64 pdpte = cpu.pdptes[access.linear >> 30 & 3];
        if ((pdpte & 1) == 0) return {};
        root.physical = pdpte & bits(12, 51);
    }
    return descend(core, access, top_level(cpu), root, timeline);
}

/// From a table of `level`; `from` has its address and the rights on the way to it.
Hardware::Descent Hardware::descend(Core& core, const reference::Access& access, unsigned level, Entry from,
                                    Timeline& timeline)
{
    const reference::Cpu& cpu = registers(core);
    const bool narrow = cpu.paging() == reference::Paging::two_level;
    Descent descent;
    TableEntry path;
    path.bytes = narrow ? 4 : 8;
    path.next_table = from.physical;
    path.user = from.user;
    path.writable = from.writable;
    path.no_execute = from.no_execute;
    for (;; --level) {
        const unsigned shift = level_shift(cpu, level);
        path.level = level;
        path.address = path.next_table + (access.linear >> shift & bits(0, narrow ? 9 : 8)) * path.bytes;

        ++core.memory_references;
        const Loaded loaded = load(core, path.address, timeline.now + config_.walk_load[level]);
        timeline.until("walk." + entry_name(level) + "." + loaded.by, loaded.ready);
        path.ready = loaded.ready;

        u64 entry = 0;
        if (machine_.memory.is_ram(path.address)) {
            entry = machine_.memory.words[path.address / 8];
            if (narrow) entry = entry >> path.address % 8 * 8 & 0xffff'ffff;
        }
        if ((entry & 1) == 0) return descent;
        const bool may_be_page =
            level == 2 ? !narrow || cpu.cr4_bit(reference::kPse) : level == 3 && machine_.features.page1gb;
        const bool leaf = level == 1 || (may_be_page && (entry & bit(7)) != 0);
        if ((entry & reserved_bits(core, level, leaf)) != 0) return descent;

        path.writable = path.writable && (entry & bit(1)) != 0;
        path.user = path.user && (entry & bit(2)) != 0;
        path.no_execute = path.no_execute || (!narrow && (entry & bit(63)) != 0);
        path.next_table = entry & bits(12, narrow ? 31 : 51);
        descent.read.push_back(path);
        if (!leaf) continue;

        reference::Page& page = descent.page;
        page.shift = shift;
        page.physical = entry & bits(shift, narrow ? 31 : 51);
        if (narrow && level == 2) page.physical |= (entry >> 13 & 0xff) << 32;
        page.user = path.user;
        page.writable = path.writable;
        page.no_execute = path.no_execute;
        page.dirty = (entry & bit(6)) != 0;
        page.global = (entry & bit(8)) != 0 && cpu.cr4_bit(reference::kPge);
        page.key = cpu.long_mode() ? static_cast<unsigned>(entry >> 59 & 15) : 0;
        descent.succeeded = machine_.refused(cpu, page, access) == 0;
        return descent;
    }
}

u64 Hardware::reserved_bits(const Core& core, unsigned level, bool leaf) const
{
    const reference::Cpu& cpu = registers(core);
    const reference::Features& features = machine_.features;
    const unsigned width = features.width;
    if (cpu.paging() == reference::Paging::two_level) {
        if (!leaf || level == 1) return 0;
        return features.pse36 ? bits(std::min(width, 40u) - 19, 21) : bits(13, 21);
    }
    u64 reserved = bits(width, 51);
    if (cpu.paging() == reference::Paging::pae) reserved |= bits(52, 62);
    if (!cpu.nxe()) reserved |= bit(63);
    if (leaf && level == 2) reserved |= bits(13, 20);
    if (leaf && level == 3) reserved |= bits(13, 29);
    if (!leaf && level == 3) reserved |= bit(7);  // set without 1 GiB pages
    if (level >= 4) reserved |= bit(7);
    if (level >= 4 && features.amd) reserved |= bit(8);
    return reserved;
}

/// Whether a bit was set that was not.
bool Hardware::set_accessed_and_dirty(const Descent& descent, bool write)
{
    bool changed = false;
    for (const TableEntry& entry : descent.read) {
        const bool leaf = &entry == &descent.read.back();
        const u64 old = machine_.memory.read(entry.address, entry.bytes);
        const u64 now = old | bit(5) | (leaf && write ? bit(6) : 0);
        if (now == old) continue;
        machine_.memory.write(entry.address, entry.bytes, now);
        changed = true;
    }
    return changed;
}

void Hardware::fill_pscs(Core& core, u64 linear, const Descent& descent)
{
    const reference::Cpu& cpu = registers(core);
    for (const TableEntry& read : descent.read) {
        if (&read == &descent.read.back()) break;  // the leaf
        for (Psc& psc : core.pscs) {
            if (psc.config.level != read.level) continue;
            Entry entry;
            entry.kind = EntryKind::pde;
            entry.number = tag_of(cpu, linear, read.level);
            entry.pcid = pcid_of(core);
            entry.physical = read.next_table;
            entry.user = read.user;
            entry.writable = read.writable;
            entry.no_execute = read.no_execute;
            entry.ready = read.ready;
            for (Array& array : arrays_of(psc)) {
                if (!array.holds(EntryKind::pde)) continue;
                // Reading: to the TLB, a PDE is no fill, and what it evicts is not filled elsewhere.
                const auto victim = array.fill(entry);
                if (psc.home != nullptr && victim) evicted(core, *psc.home, *victim);
                break;
            }
        }
    }
}

// --- invalidation ---------------------------------------------------------------------------------------

template <class Condition>
void Hardware::drop_pages(Core& core, Condition condition)
{
    for (Tlb& tlb : core.tlbs) {
        for (Array& array : tlb.arrays) {
            array.erase_if(
                [&](const Entry& entry) { return entry.kind != EntryKind::pde && condition(entry); });
        }
    }
}

template <class Condition>
void Hardware::drop_tables(Core& core, Condition condition)
{
    for (Psc& psc : core.pscs) {
        for (Array& array : arrays_of(psc)) {
            array.erase_if(
                [&](const Entry& entry) { return entry.kind == EntryKind::pde && condition(psc, entry); });
        }
    }
}

void Hardware::drop_all(Core& core)
{
    drop_pages(core, [](const Entry&) { return true; });
    drop_tables(core, [](const Psc&, const Entry&) { return true; });
}

bool Hardware::leads_to(const Core& core, const Psc& psc, const Entry& entry, u64 linear) const
{
    const reference::Cpu& cpu = registers(core);
    return entry.number == tag_of(cpu, linear, psc.config.level);
}

/// Also what a denied lookup drops.
void Hardware::drop_for_fault(Core& core, u64 linear)
{
    drop_pages(core,
               [&](const Entry& entry) { return entry.usable_in(pcid_of(core)) && on_page(entry, linear); });
    drop_tables(core, [&](const Psc& psc, const Entry& entry) {
        return entry.pcid == pcid_of(core) && leads_to(core, psc, entry, linear);
    });
}

std::optional<unsigned> Hardware::invlpg(unsigned number, u64 linear)
{
    if (const auto refused = machine_.invlpg(number, linear)) return refused;
    Core& core = this->core(number);
    const reference::Cpu& cpu = registers(core);
    linear = machine_.linear_of(number, linear);
    if (!cpu.long_mode() || reference::canonical(linear, cpu.linear_bits())) {
        drop_pages(core, [&](const Entry& entry) {
            return entry.usable_in(pcid_of(core)) && on_page(entry, linear);
        });
        const bool amd = machine_.features.amd;
        const bool tce = amd && (cpu.efer >> 15 & 1) != 0;
        drop_tables(core, [&](const Psc& psc, const Entry& entry) {
            if (tce) return entry.pcid == pcid_of(core) && leads_to(core, psc, entry, linear);
            return amd || entry.pcid == pcid_of(core);
        });
    }
    // Reading: it takes its time also where it does nothing.
    clock_.alone("system.invlpg", config_.invlpg);
    return std::nullopt;
}

std::optional<unsigned> Hardware::invpcid(unsigned number, u64 type, u64 pcid, u64 linear)
{
    if (const auto refused = machine_.invpcid(number, type, pcid, linear)) return refused;
    Core& core = this->core(number);
    const reference::Cpu& cpu = registers(core);
    linear = machine_.linear_of(number, linear);
    if (!config_.pcid) pcid = 0;
    const bool all_tables = type >= 2 || (type == 0 && machine_.features.amd && (cpu.efer >> 15 & 1) == 0);
    drop_pages(core, [&](const Entry& entry) {
        const bool of_pcid = entry.pcid == pcid && !entry.global;
        switch (type) {
        case 0: return of_pcid && on_page(entry, linear);
        case 1: return of_pcid;
        case 2: return true;
        default: return !entry.global;
        }
    });
    drop_tables(core, [&](const Psc& psc, const Entry& entry) {
        if (all_tables) return true;
        return entry.pcid == pcid && (type == 1 || leads_to(core, psc, entry, linear));
    });
    clock_.alone("system.invpcid", config_.invpcid);
    return std::nullopt;
}

/// A PCID is current from now on.
void Hardware::made_current(Core& core, u64 pcid)
{
    core.recent_pcids.remove(pcid);
    core.recent_pcids.push_front(pcid);
}

std::optional<unsigned> Hardware::mov_cr3(unsigned number, u64 value)
{
    if (const auto refused = machine_.mov_cr3(number, value)) return refused;
    Core& core = this->core(number);
    const reference::Cpu& cpu = registers(core);
    const u64 pcid = pcid_of(core);
    made_current(core, pcid);
    const bool no_flush = (value & bit(63)) != 0;
    if (!cpu.cr4_bit(reference::kPcide) || !config_.pcid) {
        drop_pages(core, [](const Entry& entry) { return !entry.global; });
        drop_tables(core, [](const Psc&, const Entry&) { return true; });
    } else {
        if (!no_flush) {
            drop_pages(core, [&](const Entry& entry) { return entry.pcid == pcid && !entry.global; });
            drop_tables(core, [&](const Psc&, const Entry& entry) { return entry.pcid == pcid; });
        }
        for (Tlb& tlb : core.tlbs) {
            const unsigned kept = no_flush ? tlb.config.pcids_kept_noflush : tlb.config.pcids_kept_flush;
            // Reading: PDEs in a TLB's arrays are none of its entries here.
            for (Array& array : tlb.arrays) {
                array.erase_if([&](const Entry& entry) {
                    const auto rank = std::distance(
                        core.recent_pcids.begin(),
                        std::find(core.recent_pcids.begin(), core.recent_pcids.end(), entry.pcid));
                    const bool is_page = entry.kind != EntryKind::pde;
                    return is_page && !entry.global && static_cast<std::size_t>(rank) >= kept;
                });
            }
        }
    }
    clock_.alone("system.mov_cr3", config_.mov_cr3);
    return std::nullopt;
}

/// What a change of registers by anything but MOV CR3 drops.
void Hardware::registers_changed(Core& core, const reference::Cpu& before, bool loads_pdptes)
{
    const reference::Cpu& now = registers(core);
    const auto cr4_changed = [&](unsigned number) { return before.cr4_bit(number) != now.cr4_bit(number); };
    const bool pcide_cleared = before.cr4_bit(reference::kPcide) && !now.cr4_bit(reference::kPcide);
    const bool smep_set = !before.cr4_bit(reference::kSmep) && now.cr4_bit(reference::kSmep);
    made_current(core, pcid_of(core));
    // Reading: a register that changes the paging mode only later (CR4.LA57, EFER.LME) drops nothing yet.
    if (before.paging() != now.paging() || cr4_changed(reference::kPge) || cr4_changed(reference::kPae) ||
        cr4_changed(reference::kPse) || before.nxe() != now.nxe() || pcide_cleared || smep_set ||
        loads_pdptes) {
        drop_all(core);
    }
}

std::optional<unsigned> Hardware::mov_cr0(unsigned cpu, u64 value)
{
    const reference::Cpu before = machine_.cpus[cpu];
    if (const auto refused = machine_.mov_cr0(cpu, value)) return refused;
    const reference::Cpu& now = machine_.cpus[cpu];
    const bool cd_or_nw = ((before.cr0 ^ now.cr0) & (bit(29) | bit(30))) != 0;
    registers_changed(core(cpu), before, cd_or_nw && now.paging() == reference::Paging::pae);
    clock_.alone("system.mov_cr", config_.mov_cr);
    return std::nullopt;
}

std::optional<unsigned> Hardware::mov_cr4(unsigned cpu, u64 value)
{
    const reference::Cpu before = machine_.cpus[cpu];
    if (const auto refused = machine_.mov_cr4(cpu, value)) return refused;
    const reference::Cpu& now = machine_.cpus[cpu];
    const bool smep = before.cr4_bit(reference::kSmep) != now.cr4_bit(reference::kSmep);
    // Reading: in PAE paging a change of SMEP loads the PDPTEs, either way.
    registers_changed(core(cpu), before, smep && now.paging() == reference::Paging::pae);
    clock_.alone("system.mov_cr", config_.mov_cr);
    return std::nullopt;
}

std::optional<unsigned> Hardware::wrmsr(unsigned cpu, std::uint32_t msr, u64 value)
{
    reference::Cpu& registers = machine_.cpus[cpu];
    if (msr == 0xc000'0080) {
        const reference::Cpu before = registers;
        if (const auto refused = machine_.wrmsr_efer(cpu, value)) return refused;
        registers_changed(core(cpu), before, false);
    } else {
        const bool is_pkrs = msr == 0x6e1 && machine_.features.pks && value >> 32 == 0;
        if (registers.cpl != 0 || !is_pkrs) return reference::kGeneralProtection;
        registers.pkrs = static_cast<std::uint32_t>(value);
    }
    clock_.alone("system.mov_cr", config_.mov_cr);
    return std::nullopt;
}

std::optional<unsigned> Hardware::wrpkru(unsigned cpu, std::uint32_t value)
{
    // Reading: it has no price, and does not wait for what is before it. Nor do changes of CPL and AC.
    return machine_.wrpkru(cpu, value);
}

bool Hardware::set_registers(unsigned cpu, const reference::Cpu& wanted)
{
    if (!machine_.set_registers(cpu, wanted)) return false;
    made_current(core(cpu), pcid_of(core(cpu)));
    drop_all(core(cpu));
    return true;
}

// --- what there is to see -------------------------------------------------------------------------------

Counters Hardware::counters(unsigned cpu) const
{
    const Core& core = this->core(cpu);
    Counters counters;
    for (const Tlb& tlb : core.tlbs) counters.tlbs[tlb.config.name] = tlb.counters;
    for (const Psc& psc : core.pscs) counters.pscs[psc.config.level] = psc.counters;
    for (const DataCache& cache : core.data_caches) counters.data_caches[cache.config.name] = cache.counters;
    counters.walks = core.walks;
    counters.memory_references = core.memory_references;
    return counters;
}

std::vector<Entry> Hardware::tlb_content(unsigned cpu, const std::string& name) const
{
    std::vector<Entry> entries;
    for (const Tlb& tlb : core(cpu).tlbs) {
        if (tlb.config.name != name) continue;
        for (const Array& array : tlb.arrays) {
            for (const Entry& entry : array.content()) {
                if (entry.kind != EntryKind::pde) entries.push_back(entry);
            }
        }
    }
    return entries;
}

std::vector<Entry> Hardware::psc_content(unsigned cpu, unsigned level) const
{
    std::vector<Entry> entries;
    for (const Psc& psc : core(cpu).pscs) {
        if (psc.config.level != level) continue;
        for (const Array& array : psc.home != nullptr ? psc.home->arrays : psc.own) {
            for (const Entry& entry : array.content()) {
                if (entry.kind == EntryKind::pde) entries.push_back(entry);
            }
        }
    }
    return entries;
}

}  // namespace model
