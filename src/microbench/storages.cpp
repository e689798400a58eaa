// SPDX-License-Identifier: Apache-2.0
#include "microbench/storages.hpp"

#include <algorithm>
#include <utility>

namespace mmusim::microbench {

namespace {

constexpr unsigned kTrials = 64;       ///< of an approach to level 2
constexpr unsigned kNeeded = 8;        ///< of these
constexpr unsigned kPushes = 24;       ///< with other pages each time, before a no is believed
constexpr unsigned kLooks = 200;       ///< at the same pages, until level 1 has none of them
constexpr unsigned kChoices = 6;       ///< of pages below upper entries, likewise
constexpr unsigned kCalibrations = 8;  ///< of what comes out the same each time
/// How many times as many pushers as level 1 has entries: the more, the surer that they push all out of it,
/// but the likelier that they push something out of level 2.
constexpr std::array<unsigned, 7> kPushFactors{1, 2, 3, 4, 6, 8, 16};
constexpr std::uint64_t kPusherRoom = 8;  ///< pushers are chosen among so many times as many

}  // namespace

bool FirstLevel::holds(Numbers numbers, Numbers more)
{
    lab_.bed.flush();
    for (const std::uint64_t number : numbers) lab_.access(kind_, number);
    for (const std::uint64_t number : more) lab_.access(kind_, number);
    return std::all_of(numbers.begin(), numbers.end(), [&](std::uint64_t number) {
        return lab_.access(kind_, number) == latencies_.repeated;
    });
}

// --- level 2 -------------------------------------------------------------------------------------------

bool SecondLevel::find_approach(const std::array<StorageShape, kSizes.size()>& first)
{
    std::vector<std::pair<unsigned, Approach>> candidates;
    for (const AccessKind other : kKinds) {
        if (other != kind_ && try_out({.bring = other}) == kTrials) return true;
    }
    for (std::size_t i = 0; i < kSizes.size(); ++i) {
        for (const unsigned factor : kPushFactors) {
            const Approach approach{kind_, kSizes[i], factor * first[i].entries(), first[i].sets};
            if (approach.pushers == 0) break;
            const unsigned hits = try_out(approach);
            if (hits >= kNeeded) candidates.emplace_back(hits, approach);
            if (pushes_all_) break;
        }
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const auto& one, const auto& other) { return one.first < other.first; });
    for (const auto& [hits, approach] : candidates) approaches_.push_back(approach);
    return next_approach();
}

bool SecondLevel::next_approach()
{
    if (approaches_.empty()) return false;
    const unsigned hits = try_out(approaches_.back());
    approaches_.pop_back();
    return hits > 0 || next_approach();
}

/// The trials in which level 2 had the page, and level 1 had not.
unsigned SecondLevel::try_out(const Approach& approach)
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

/// Rows of neighbouring pages, one page for each set of level 1; which rows is left to chance.
std::vector<LinearAddress> SecondLevel::choose_pushers()
{
    std::vector<LinearAddress> chosen;
    if (approach_.pushers == 0) return chosen;
    std::vector<std::uint64_t> rows(kPusherRoom * (approach_.pushers / approach_.sets));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = i;
    lab_.random.shuffle(rows);
    const std::uint64_t pages = lab_.others(approach_.pusher);
    const std::uint64_t start = lab_.random.below(pages);
    for (std::uint64_t i = 0; i < approach_.pushers; ++i) {
        const std::uint64_t row = rows[i / approach_.sets];
        const std::uint64_t number = (start + row * approach_.sets + i % approach_.sets) % pages;
        chosen.push_back(lab_.first_other(approach_.pusher) + (number << shift_of(approach_.pusher)));
    }
    return chosen;
}

Cycles SecondLevel::probe(std::uint64_t number, AccessKind kind, LinearAddress probed)
{
    const std::vector<LinearAddress> pushers = choose_pushers();
    lab_.bed.flush();
    lab_.access(approach_.bring, number);
    for (const LinearAddress address : pushers) lab_.bed.access(kind_, address);
    return lab_.bed.access(kind, probed);
}

bool SecondLevel::holds(Numbers numbers, Numbers more)
{
    if (approach_.pushers == 0) return look(numbers, more, {}) == Seen::all;
    if (numbers.size() > 2 * approach_.pushers) {  // so many push each other out
        const Seen seen = look(numbers, more, {});
        if (seen != Seen::hidden) return seen == Seen::all;
    }
    if (fixed_) {
        Seen seen = Seen::hidden;
        for (unsigned i = 0; i < kLooks && seen == Seen::hidden; ++i) seen = look(numbers, more, pushers_);
        return seen == Seen::all;
    }
    for (unsigned i = 0; i < kPushes; ++i) {
        if (look(numbers, more, pushers_) == Seen::all) return true;
        pushers_ = choose_pushers();
    }
    return false;
}

bool SecondLevel::fix(Numbers numbers)
{
    fixed_ = false;
    // Pushers that leave a full set alone have no part in it.
    fixed_ = holds(numbers, {});
    return fixed_;
}

SecondLevel::Seen SecondLevel::look(Numbers numbers, Numbers more, const std::vector<LinearAddress>& pushers)
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

// --- paging-structure caches ---------------------------------------------------------------------------

UpperEntries::UpperEntries(Laboratory& lab, int level) : lab_{lab}, level_{level}, walk_cycles_{~Cycles{0}}
{
    for (unsigned i = 0; i < kCalibrations; ++i) {
        const std::uint64_t number = lab_.random.below(std::uint64_t{1} << bits());
        lab_.bed.flush();
        lab_.bed.access(AccessKind::read, below(number, 0));
        walk_cycles_ = std::min(walk_cycles_, lab_.bed.access(AccessKind::read, below(number, 1)));
    }
}

bool UpperEntries::holds(Numbers numbers, Numbers more)
{
    constexpr std::uint64_t kChildren = 512;
    for (unsigned i = 0; i < kChoices; ++i) {
        const std::uint64_t brought = lab_.random.below(kChildren);
        const std::uint64_t fresh = brought ^ (1 + lab_.random.below(kChildren - 1));
        lab_.bed.flush();
        for (const std::uint64_t number : numbers) lab_.bed.access(AccessKind::read, below(number, brought));
        for (const std::uint64_t number : more) lab_.bed.access(AccessKind::read, below(number, brought));
        const bool all = std::all_of(numbers.begin(), numbers.end(), [&](std::uint64_t number) {
            return lab_.bed.access(AccessKind::read, below(number, fresh)) == walk_cycles_;
        });
        if (all) return true;
    }
    return false;
}

}  // namespace mmusim::microbench
