// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/geometry.hpp>

#include <algorithm>
#include <array>
#include <deque>

#include <fmt/format.h>

#include "microbench/random.hpp"
#include "microbench/storage_finder.hpp"

namespace mmusim::microbench {

namespace {

constexpr std::array<PageSize, 3> kSizes{PageSize::k4k, PageSize::k2m, PageSize::k1g};
constexpr std::array<AccessKind, 3> kKinds{AccessKind::read, AccessKind::write, AccessKind::fetch};

/// Of the root's entries: the lower ones are for the pages under test, the others for pages of each size
/// that push those out.
constexpr unsigned kRootBits = 7;
constexpr unsigned kTested = 1u << kRootBits;
constexpr unsigned kOthers = 32;

constexpr unsigned kTrials = 24;       ///< of whether some way to empty level 1 works
constexpr unsigned kFewTrials = 8;     ///< of what comes out the same each time
constexpr unsigned kPushes = 24;       ///< ways to empty level 1 before a no is believed
constexpr unsigned kChoices = 6;       ///< of pages below an upper entry, likewise
constexpr std::array<unsigned, 7> kPushFactors{1, 2, 3, 4, 6, 8, 16};

unsigned tested_bits(const Testbed& bed)
{
    return kFiveLevel.shift(bed.levels()) + kRootBits;
}

/// The tested part in pages of one size, and beside it some of every size.
struct Laboratory {
    Testbed bed;
    PageSize size;
    Random random;

    Laboratory(const std::shared_ptr<const CpuProfile>& cpu, PageSize tested, std::uint64_t seed,
               Paging paging = Paging::four_level)
        : bed{cpu, {.paging = paging}}, size{tested}, random{seed}
    {
        bed.map_folded(0, kTested, tested);
        for (const PageSize other : kSizes) bed.map_folded(first_of(other), kOthers, other);
    }
    static unsigned first_of(PageSize other) { return kTested + (static_cast<unsigned>(other) - 1) * kOthers; }

    [[nodiscard]] unsigned bits() const { return tested_bits(bed) - shift_of(size); }
    [[nodiscard]] LinearAddress page(std::uint64_t number) const
    {
        return LinearAddress{number << shift_of(size)};
    }
    [[nodiscard]] std::uint64_t any_page() { return random.below(std::uint64_t{1} << bits()); }
    Cycles access(AccessKind kind, std::uint64_t number) { return bed.access(kind, page(number)); }
};

/// What is known of a kind of access before anything is measured about entries.
struct Latencies {
    Cycles repeated = 0;  ///< of an access to the page that was accessed last
    Cycles walk = 0;      ///< of the fastest walk

    /// A TLB has answered.
    [[nodiscard]] bool hit(Cycles latency) const { return latency < walk; }
};

Latencies calibrate(Laboratory& lab, AccessKind kind)
{
    Latencies found{~Cycles{0}, ~Cycles{0}};
    for (unsigned i = 0; i < kFewTrials; ++i) {
        const std::uint64_t number = lab.any_page() & ~std::uint64_t{1};
        lab.bed.flush();
        lab.access(kind, number);
        found.repeated = std::min(found.repeated, lab.access(kind, number));
        found.walk = std::min(found.walk, lab.access(kind, number + 1));
    }
    return found;
}

// --- level 1 -------------------------------------------------------------------------------------------

class FirstLevel final : public Storage {
public:
    FirstLevel(Laboratory& lab, AccessKind kind, const Latencies& latencies)
        : lab_{lab}, kind_{kind}, latencies_{latencies}
    {
    }
    [[nodiscard]] unsigned bits() const override { return lab_.bits(); }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override
    {
        lab_.bed.flush();
        for (const std::uint64_t number : numbers) lab_.access(kind_, number);
        for (const std::uint64_t number : more) lab_.access(kind_, number);
        return std::all_of(numbers.begin(), numbers.end(), [&](std::uint64_t number) {
            return lab_.access(kind_, number) == latencies_.repeated;
        });
    }

private:
    Laboratory& lab_;
    AccessKind kind_;
    const Latencies& latencies_;
};

// --- level 2 -------------------------------------------------------------------------------------------

/// How pages get into level 2 without being in level 1: brought in by a kind of access with another level 1,
/// or pushed out by `pushers` other pages.
struct Approach {
    AccessKind bring = AccessKind::read;
    PageSize pusher = PageSize::k4k;
    unsigned pushers = 0;
    std::uint64_t sets = 1;  ///< of level 1, for the pushers
};

class SecondLevel final : public Storage {
public:
    SecondLevel(Laboratory& lab, AccessKind kind, const Latencies& latencies)
        : lab_{lab}, kind_{kind}, latencies_{latencies}
    {
    }

    /// Looks for an approach; `first`: what level 1 holds, by page size. False: nothing answers between level
    /// 1 and a walk.
    bool find_approach(const std::array<StorageShape, 3>& first)
    {
        for (const AccessKind other : kKinds) {
            if (other != kind_ && try_out({.bring = other}) == kTrials) return true;
        }
        Approach best;
        unsigned most = 0;
        for (const PageSize size : kSizes) {
            const StorageShape& shape = first[static_cast<std::size_t>(size) - 1];
            for (const unsigned factor : kPushFactors) {
                const Approach approach{kind_, size, static_cast<unsigned>(factor * shape.entries()),
                                        shape.sets};
                if (approach.pushers == 0) break;
                const unsigned hits = try_out(approach);
                if (hits > most) {
                    most = hits;
                    best = approach;
                }
                if (pushes_all_) break;
            }
        }
        if (most < kTrials / 6) return false;
        try_out(best);
        return true;
    }
    [[nodiscard]] Cycles hit_cycles() const { return hit_cycles_; }
    [[nodiscard]] const Approach& approach() const { return approach_; }

    [[nodiscard]] unsigned bits() const override { return lab_.bits(); }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override
    {
        if (approach_.pushers == 0) return look(numbers, more, {}) == Seen::all;
        // So many pages push each other out.
        if (numbers.size() > 2 * approach_.pushers && look(numbers, more, {}) == Seen::all) return true;
        for (unsigned i = 0; i < kPushes; ++i) {
            const Seen seen = look(numbers, more, pushers_);
            if (seen == Seen::all) return true;
            if (!fixed_) pushers_ = choose_pushers();
            if (fixed_ && seen == Seen::not_all) return false;
        }
        return false;
    }
    [[nodiscard]] bool fix(Numbers numbers) override
    {
        fixed_ = false;
        // Pages that leave a full set alone have no part in it.
        fixed_ = holds(numbers);
        return fixed_;
    }
    void release() override { fixed_ = false; }
    [[nodiscard]] std::vector<std::uint64_t> neighbours(std::uint64_t number) const override
    {
        return {number ^ 1, number ^ 2, number ^ 5};
    }

    /// How long an access of `kind` to `probed` takes once `number` was brought in.
    Cycles probe(std::uint64_t number, AccessKind kind, LinearAddress probed)
    {
        const std::vector<LinearAddress> pushers = choose_pushers();
        lab_.bed.flush();
        lab_.access(approach_.bring, number);
        for (const LinearAddress address : pushers) lab_.bed.access(kind_, address);
        return lab_.bed.access(kind, probed);
    }

private:
    /// The trials of an approach in which level 2 alone had the page.
    unsigned try_out(const Approach& approach)
    {
        approach_ = approach;
        unsigned hits = 0;
        pushes_all_ = true;
        hit_cycles_ = latencies_.walk;
        for (unsigned i = 0; i < kTrials; ++i) {
            const std::uint64_t number = lab_.any_page();
            const Cycles latency = probe(number, kind_, lab_.page(number));
            pushes_all_ &= latency != latencies_.repeated;
            if (!latencies_.hit(latency) || latency == latencies_.repeated) continue;
            ++hits;
            hit_cycles_ = std::min(hit_cycles_, latency);
        }
        pushers_ = choose_pushers();
        return hits;
    }
    /// Rows of neighbouring pages, one for each set of level 1; which rows is left to chance.
    [[nodiscard]] std::vector<LinearAddress> choose_pushers()
    {
        std::vector<LinearAddress> chosen;
        if (approach_.pushers == 0) return chosen;
        constexpr unsigned kRoom = 8;
        const std::uint64_t sets = approach_.sets;
        std::vector<std::uint64_t> rows(kRoom * (approach_.pushers / sets));
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = i;
        lab_.random.shuffle(rows);
        const unsigned shift = shift_of(approach_.pusher);
        const unsigned root_shift = kFiveLevel.shift(lab_.bed.levels());
        const std::uint64_t pages = std::uint64_t{kOthers} << (root_shift - shift);
        const std::uint64_t start = lab_.random.below(pages);
        for (std::uint64_t i = 0; i < approach_.pushers; ++i) {
            const std::uint64_t number = (start + rows[i / sets] * sets + i % sets) % pages;
            const std::uint64_t first = std::uint64_t{Laboratory::first_of(approach_.pusher)} << root_shift;
            chosen.emplace_back(first + (number << shift));
        }
        return chosen;
    }
    enum class Seen : std::uint8_t { all, not_all, hidden };  ///< hidden: level 1 had one of them

    Seen look(Numbers numbers, Numbers more, const std::vector<LinearAddress>& pushers)
    {
        lab_.bed.flush();
        for (const std::uint64_t number : numbers) lab_.access(approach_.bring, number);
        for (const std::uint64_t number : more) lab_.access(approach_.bring, number);
        for (const LinearAddress address : pushers) lab_.bed.access(kind_, address);
        for (const std::uint64_t number : numbers) {
            const Cycles latency = lab_.access(kind_, number);
            if (latency == latencies_.repeated) return Seen::hidden;
            if (latency != hit_cycles_) return Seen::not_all;
        }
        return Seen::all;
    }

    Laboratory& lab_;
    AccessKind kind_;
    const Latencies& latencies_;
    Approach approach_;
    Cycles hit_cycles_ = 0;
    bool pushes_all_ = true;  ///< in the last trials level 1 never had the page
    std::vector<LinearAddress> pushers_;
    bool fixed_ = false;
};

// --- both ----------------------------------------------------------------------------------------------

/// log2 of the bytes around a page's first one that are held with it: `held(offset)` says whether the byte at
/// an offset is.
template <class Held>
unsigned held_shift(PageSize size, Held held)
{
    unsigned shift = kPageShift;
    while (shift < shift_of(size) && held(std::uint64_t{1} << shift)) ++shift;
    return shift;
}

class TlbExperiments {
public:
    TlbExperiments(const std::shared_ptr<const CpuProfile>& cpu, PageSize size, std::uint64_t seed)
        : lab_{cpu, size, seed}
    {
        for (const AccessKind kind : kKinds) latencies_[index(kind)] = calibrate(lab_, kind);
    }

    /// Level 1 of this size, by kind.
    std::array<TlbGeometry, 3> first_level()
    {
        std::array<TlbGeometry, 3> found;
        for (const AccessKind kind : kKinds) {
            TlbGeometry& one = found[index(kind)];
            one = {.level = 1, .kind = kind, .page = lab_.size};
            const Latencies& latencies = latencies_[index(kind)];
            if (!latencies.hit(latencies.repeated)) continue;
            one.hit_cycles = latencies.repeated;
            const bool shared = copy_shared(found, one, [&](AccessKind other, std::uint64_t number) {
                lab_.bed.flush();
                lab_.access(other, number);
                return lab_.access(kind, number) == latencies.repeated;
            });
            if (shared) continue;
            const std::uint64_t number = lab_.any_page();
            settle_pieces(one, held_shift(lab_.size, [&](std::uint64_t offset) {
                              warm_line(offset);
                              lab_.bed.flush();
                              lab_.access(kind, number);
                              return lab_.bed.access(kind, lab_.page(number) + offset) == latencies.repeated;
                          }));
            if (one.presence == Presence::pieces) continue;
            FirstLevel storage{lab_, kind, latencies};
            settle_shape(one, storage);
        }
        return found;
    }

    /// Level 2, by kind; `first[kind]`: what level 1 holds, by page size.
    std::array<TlbGeometry, 3> second_level(const std::array<std::array<StorageShape, 3>, 3>& first)
    {
        std::array<TlbGeometry, 3> found;
        std::deque<SecondLevel> storages;
        for (const AccessKind kind : kKinds) {
            TlbGeometry& one = found[index(kind)];
            one = {.level = 2, .kind = kind, .page = lab_.size};
            const Latencies& latencies = latencies_[index(kind)];
            SecondLevel& storage = storages.emplace_back(lab_, kind, latencies);
            if (!latencies.hit(latencies.repeated) || !storage.find_approach(first[index(kind)])) continue;
            one.hit_cycles = storage.hit_cycles();
            const bool shared = copy_shared(found, one, [&](AccessKind other, std::uint64_t number) {
                lab_.bed.flush();
                lab_.access(other, number);
                if (lab_.access(kind, number) == one.hit_cycles) return true;
                SecondLevel& before = storages[index(other)];
                return before.approach().bring != kind &&
                       before.probe(number, kind, lab_.page(number)) == one.hit_cycles;
            });
            if (shared) continue;
            std::uint64_t number = lab_.any_page();
            while (storage.probe(number, kind, lab_.page(number)) != one.hit_cycles) number = lab_.any_page();
            settle_pieces(one, held_shift(lab_.size, [&](std::uint64_t offset) {
                              const LinearAddress probed = lab_.page(number) + offset;
                              warm_line(offset);
                              for (unsigned i = 0; i < kPushes; ++i) {
                                  if (storage.probe(number, kind, probed) == one.hit_cycles) return true;
                              }
                              return false;
                          }));
            if (one.presence == Presence::pieces) continue;
            settle_shape(one, storage);
        }
        return found;
    }

private:
    static std::size_t index(AccessKind kind) { return static_cast<std::size_t>(kind); }

    /// If pages that an earlier kind of access has brought in serve this one, what was found there holds.
    template <class Serves>
    bool copy_shared(const std::array<TlbGeometry, 3>& found, TlbGeometry& one, Serves serves)
    {
        for (const AccessKind other : kKinds) {
            if (other == one.kind) break;
            const TlbGeometry& before = found[index(other)];
            if (before.presence == Presence::absent) continue;
            unsigned served = 0;
            for (unsigned i = 0; i < kTrials; ++i) served += serves(other, lab_.any_page()) ? 1 : 0;
            if (served < kTrials / 6) continue;
            one.presence = before.presence;
            one.shape = before.shape;
            one.piece_shift = before.piece_shift;
            one.shared_with = name_of(other);
            return true;
        }
        return false;
    }
    /// All pages are the same memory.
    void warm_line(std::uint64_t offset) { lab_.bed.access(AccessKind::read, lab_.page(0) + offset); }
    void settle_pieces(TlbGeometry& one, unsigned shift) const
    {
        if (shift >= shift_of(lab_.size)) return;
        one.presence = Presence::pieces;
        one.piece_shift = shift;
    }
    void settle_shape(TlbGeometry& one, Storage& storage)
    {
        const auto shape = find_shape(storage, lab_.random);
        one.presence = shape ? Presence::present : Presence::unclear;
        if (shape) one.shape = *shape;
    }

    Laboratory lab_;
    std::array<Latencies, 3> latencies_;
};

// --- paging-structure caches ---------------------------------------------------------------------------

/// The cache of entries of a level. Numbers are those of what an entry maps. An entry is there if a fresh page
/// below it, with which it shares no lower entry, takes a walk as short as that.
class UpperEntries final : public Storage {
public:
    UpperEntries(Laboratory& lab, int level) : lab_{lab}, level_{level} {}

    [[nodiscard]] Cycles calibrate()
    {
        walk_cycles_ = ~Cycles{0};
        for (unsigned i = 0; i < kFewTrials; ++i) {
            const std::uint64_t number = lab_.random.below(std::uint64_t{1} << bits());
            lab_.bed.flush();
            lab_.bed.access(AccessKind::read, below(number, 0));
            walk_cycles_ = std::min(walk_cycles_, lab_.bed.access(AccessKind::read, below(number, 1)));
        }
        return walk_cycles_;
    }
    [[nodiscard]] unsigned bits() const override
    {
        return tested_bits(lab_.bed) - kFiveLevel.shift(level_);
    }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override
    {
        for (unsigned i = 0; i < kChoices; ++i) {
            const std::uint64_t brought = lab_.random.below(kBelow);
            const std::uint64_t fresh = brought ^ (1 + lab_.random.below(kBelow - 1));
            lab_.bed.flush();
            for (const std::uint64_t number : numbers) {
                lab_.bed.access(AccessKind::read, below(number, brought));
            }
            for (const std::uint64_t number : more) lab_.bed.access(AccessKind::read, below(number, brought));
            const bool all = std::all_of(numbers.begin(), numbers.end(), [&](std::uint64_t number) {
                return lab_.bed.access(AccessKind::read, below(number, fresh)) == walk_cycles_;
            });
            if (all) return true;
        }
        return false;
    }

private:
    static constexpr std::uint64_t kBelow = 512;

    [[nodiscard]] LinearAddress below(std::uint64_t number, std::uint64_t child) const
    {
        return LinearAddress{number << kFiveLevel.shift(level_) | child << kFiveLevel.shift(level_ - 1)};
    }

    Laboratory& lab_;
    int level_;
    Cycles walk_cycles_ = 0;
};

/// All table entries that the tested part has, and the page's line, into the data caches.
void warm_tables(Laboratory& lab)
{
    constexpr std::uint64_t kTableEntries = 512;
    for (std::uint64_t i = 0; i < kTableEntries; ++i) {
        std::uint64_t address = (i % kTested) << kFiveLevel.shift(lab.bed.levels());
        for (int level = 1; level < lab.bed.levels(); ++level) address |= i << kFiveLevel.shift(level);
        lab.bed.access(AccessKind::read, LinearAddress{address});
    }
}

/// The fastest walk from the root.
Cycles whole_walk(Laboratory& lab)
{
    Cycles fastest = ~Cycles{0};
    for (unsigned i = 0; i < kFewTrials; ++i) {
        lab.bed.flush();
        fastest = std::min(fastest, lab.access(AccessKind::read, lab.any_page()));
    }
    return fastest;
}

/// The caches of entries of levels `first` to the root's.
std::vector<PagingStructureCacheGeometry> find_upper(Laboratory& lab, int first)
{
    warm_tables(lab);
    std::vector<PagingStructureCacheGeometry> found;
    Cycles longer = whole_walk(lab);
    for (int level = lab.bed.levels(); level >= first; --level) {
        PagingStructureCacheGeometry one{.level = level};
        UpperEntries storage{lab, level};
        const Cycles walk = storage.calibrate();
        if (walk < longer) {
            one.walk_cycles = walk;
            const auto shape = find_shape(storage, lab.random);
            one.presence = shape ? Presence::present : Presence::unclear;
            if (shape) one.shape = *shape;
        }
        longer = std::min(longer, walk);
        found.insert(found.begin(), one);
    }
    return found;
}

// --- what a profile states -----------------------------------------------------------------------------

bool serves(const TlbSpec& tlb, AccessKind kind)
{
    switch (kind) {
    case AccessKind::fetch: return tlb.fetches;
    case AccessKind::read: return tlb.loads;
    case AccessKind::write: return tlb.stores;
    }
    return false;
}

EntryKind entry_of(PageSize size)
{
    switch (size) {
    case PageSize::k4k: return EntryKind::page_4k;
    case PageSize::k2m: return EntryKind::page_2m;
    case PageSize::k1g: break;
    }
    return EntryKind::page_1g;
}

std::optional<StorageShape> shape_in(const TlbArraySpec& array, EntryKind kind, unsigned bits)
{
    for (const EntryView& view : array.views) {
        if (view.kind == kind) return shape_of(array.entries / view.stride, view.ways, array.index, bits);
    }
    return std::nullopt;
}

std::optional<StorageShape> shape_in(const TlbSpec& tlb, EntryKind kind, unsigned bits)
{
    for (const TlbArraySpec& array : tlb.arrays) {
        if (const auto shape = shape_in(array, kind, bits)) return shape;
    }
    return std::nullopt;
}

/// The level-1 TLB for a kind of access first; at most two.
std::vector<const TlbSpec*> chain_of(const CpuProfile& cpu, AccessKind kind)
{
    std::vector<const TlbSpec*> chain;
    for (const TlbSpec& tlb : cpu.tlbs.tlbs) {
        if (serves(tlb, kind)) chain.push_back(&tlb);
    }
    return chain;
}

Cycles data_cycles(const CpuProfile& cpu, AccessKind kind)
{
    if (kind == AccessKind::fetch) return cpu.timing.front_end.fetch_cycles;
    return cpu.timing.data_caches.empty() ? cpu.timing.memory_latency : cpu.timing.data_caches.front().latency;
}

void state(TlbGeometry& one, const TlbSpec& tlb)
{
    constexpr std::array<EntryKind, 4> kPages{EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_4m,
                                              EntryKind::page_1g};
    const unsigned bits = kFourLevel.shift(4) + kRootBits - shift_of(one.page);
    if (const auto shape = shape_in(tlb, entry_of(one.page), bits)) {
        one.presence = Presence::present;
        one.shape = *shape;
        return;
    }
    if (tlb.level > 1 && !tlb.splinters) return;
    for (const EntryKind smaller : kPages) {
        if (shift_of(smaller) < shift_of(one.page) && shape_in(tlb, smaller, bits)) {
            one.presence = Presence::pieces;
            one.piece_shift = shift_of(smaller);
        }
    }
}

TlbGeometry stated_tlb(const CpuProfile& cpu, PageSize size, unsigned level, AccessKind kind)
{
    TlbGeometry one{.level = level, .kind = kind, .page = size};
    const auto chain = chain_of(cpu, kind);
    if (chain.size() < level) return one;
    const TlbSpec* const tlb = chain[level - 1];
    state(one, *tlb);
    if (one.presence == Presence::absent) return one;
    one.hit_cycles = data_cycles(cpu, kind);
    for (unsigned i = 0; i < level; ++i) one.hit_cycles += chain[i]->lookup_cycles;
    for (const AccessKind other : kKinds) {
        if (other == kind) break;
        if (serves(*tlb, other)) {
            one.shared_with = name_of(other);
            break;
        }
    }
    return one;
}

PagingStructureCacheGeometry stated_upper(const CpuProfile& cpu, int level)
{
    PagingStructureCacheGeometry one{.level = level};
    const unsigned bits = kFiveLevel.shift(std::max(level, 4)) + kRootBits - kFiveLevel.shift(level);
    for (const PagingStructureCacheSpec& cache : cpu.tlbs.paging_structure_caches) {
        if (cache.level != level) continue;
        std::optional<StorageShape> shape;
        if (cache.stored_in.empty()) shape = shape_in(cache.array, EntryKind::pde, bits);
        for (const TlbSpec& tlb : cpu.tlbs.tlbs) {
            if (!cache.stored_in.empty() && tlb.name == cache.stored_in) {
                shape = shape_in(tlb, EntryKind::pde, bits);
            }
        }
        if (!shape) continue;
        one.presence = Presence::present;
        one.shape = *shape;
    }
    if (one.presence == Presence::absent) return one;
    const Cycles load = data_cycles(cpu, AccessKind::read);
    one.walk_cycles = load + cpu.timing.walker.start_cycles;
    for (const TlbSpec* const tlb : chain_of(cpu, AccessKind::read)) one.walk_cycles += tlb->lookup_cycles;
    for (int below = 1; below < level; ++below) {
        one.walk_cycles += cpu.timing.walker.load_cycles[static_cast<std::size_t>(below)] + load;
    }
    return one;
}

}  // namespace

Geometry find_geometry(const std::shared_ptr<const CpuProfile>& cpu, std::uint64_t seed)
{
    Geometry found;
    std::vector<std::unique_ptr<TlbExperiments>> experiments;
    std::vector<std::array<TlbGeometry, 3>> levels;
    std::array<std::array<StorageShape, 3>, 3> first{};  // by kind and size
    for (std::size_t size = 0; size < kSizes.size(); ++size) {
        experiments.push_back(std::make_unique<TlbExperiments>(cpu, kSizes[size], seed));
        levels.push_back(experiments.back()->first_level());
        for (const AccessKind kind : kKinds) {
            const auto k = static_cast<std::size_t>(kind);
            if (levels[size][k].presence == Presence::present) first[k][size] = levels[size][k].shape;
        }
    }
    for (std::size_t size = 0; size < kSizes.size(); ++size) {
        const auto second = experiments[size]->second_level(first);
        found.tlbs.insert(found.tlbs.end(), levels[size].begin(), levels[size].end());
        found.tlbs.insert(found.tlbs.end(), second.begin(), second.end());
    }
    experiments.clear();

    Laboratory four{cpu, PageSize::k4k, seed};
    found.paging_structure_caches = find_upper(four, 2);
    Laboratory five{cpu, PageSize::k4k, seed, Paging::five_level};
    for (const auto& one : find_upper(five, 5)) found.paging_structure_caches.push_back(one);
    return found;
}

Geometry stated_geometry(const CpuProfile& cpu)
{
    Geometry stated;
    for (const PageSize size : kSizes) {
        for (unsigned level = 1; level <= 2; ++level) {
            for (const AccessKind kind : kKinds) stated.tlbs.push_back(stated_tlb(cpu, size, level, kind));
        }
    }
    for (int level = 2; level <= 5; ++level) {
        stated.paging_structure_caches.push_back(stated_upper(cpu, level));
    }
    return stated;
}

namespace {

std::string to_string(Presence presence, const StorageShape& shape)
{
    switch (presence) {
    case Presence::present: return to_string(shape);
    case Presence::absent: return "none";
    case Presence::pieces:
    case Presence::unclear: break;
    }
    return "not found";
}

}  // namespace

std::string to_string(const TlbGeometry& geometry)
{
    if (geometry.presence != Presence::pieces) return to_string(geometry.presence, geometry.shape);
    constexpr unsigned kMega = 20;
    return geometry.piece_shift < kMega
               ? fmt::format("held as {}K pieces", 1u << (geometry.piece_shift - 10))
               : fmt::format("held as {}M pieces", 1u << (geometry.piece_shift - kMega));
}

std::string to_string(const PagingStructureCacheGeometry& geometry)
{
    return to_string(geometry.presence, geometry.shape);
}

}  // namespace mmusim::microbench
