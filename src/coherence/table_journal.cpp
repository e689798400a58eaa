// SPDX-License-Identifier: Apache-2.0
#include "coherence/table_journal.hpp"

#include <algorithm>
#include <cstring>

#include <mmusim/words/pte.hpp>

namespace mmusim::coherence {

namespace {

constexpr std::uint64_t kHalf = 0xffff'ffff;
constexpr std::uint64_t kShortFrame = 0xffff'f000;
constexpr std::uint64_t kUsed = pte::kPresent | pte::kAccessed;

template <class Visit>
void for_each_role(std::uint8_t roles, Visit visit)
{
    for (unsigned left = roles; left != 0; left &= left - 1) {
        visit(static_cast<std::uint8_t>(left & (~left + 1)));
    }
}

/// Calls `visit(entry)` for each entry in the word.
template <class Visit>
void for_each_entry(std::uint64_t word, std::uint8_t role, Visit visit)
{
    if ((role & role::kLongAny) != 0) {
        visit(word);
    } else {
        visit(word & kHalf);
        visit(word >> 32);
    }
}

/// What the table is that a present entry of a table in this role names; 0 if the entry maps a page. Reserved
/// bits don't count: a table too many is enrolled.
std::uint8_t child_role(std::uint64_t entry, std::uint8_t role)
{
    const bool large = (entry & pte::kPageSize) != 0;
    switch (role) {
    case role::kLong1:
    case role::kShort1: return 0;
    case role::kShort2: return role::kShort1;
    case role::kShort2Large: return large ? 0 : role::kShort1;
    default: return large ? 0 : static_cast<std::uint8_t>(role >> 1);
    }
}

/// Calls `visit(frame, role)` for each table that the word names.
template <class Visit>
void for_each_child(std::uint64_t word, std::uint8_t role, Visit visit)
{
    for_each_entry(word, role, [&](std::uint64_t entry) {
        if ((entry & pte::kPresent) == 0) return;
        const std::uint8_t child = child_role(entry, role);
        if (child == 0) return;
        const std::uint64_t frame = entry & ((role & role::kLongAny) != 0 ? pte::kFrame : kShortFrame);
        visit(Gfn{frame >> kPageShift}, child);
    });
}

/// Whether all that happens is that accessed and dirty bits are set.
bool only_sets_ad(std::uint64_t old, std::uint64_t now, std::uint8_t roles)
{
    std::uint64_t bits = pte::kAccessed | pte::kDirty;
    if ((roles & role::kLongAny) == 0) bits |= bits << 32;
    return (old & ~now) == 0 && ((old ^ now) & ~bits) == 0;
}

/// Whether a walk that sets no bit can have used an entry of the word.
bool usable(std::uint64_t word, std::uint8_t roles)
{
    bool found = false;
    for_each_role(roles, [&](std::uint8_t role) {
        for_each_entry(word, role, [&](std::uint64_t entry) { found |= (entry & kUsed) == kUsed; });
    });
    return found;
}

bool overlaps(std::span<const Interval> intervals, Time start, Time end)
{
    return std::any_of(intervals.begin(), intervals.end(),
                       [&](const Interval& i) { return i.start < end && start < i.end; });
}

}  // namespace

TableJournal::TableJournal(const GuestMemory& memory, detail::FrameFilter& enrolled)
    : memory_{memory}, enrolled_{&enrolled}
{
}

void TableJournal::reset()
{
    tables_.clear();
    changes_ = 0;
    enrolled_->clear();
}

void TableJournal::read(Gfn frame, Words& words) const
{
    memory_.read(frame.address(), std::as_writable_bytes(std::span{words}));
}

// --- what happens ------------------------------------------------------------------------------------

void TableJournal::enroll(Gfn frame, std::uint8_t role, Time now)
{
    std::unique_ptr<Table>& table = tables_.try_emplace(frame.number()).first->second;
    if (!table) table = std::make_unique<Table>();
    if ((table->roles & role) != 0) return;
    if (table->roles == 0) table->since = now;
    table->roles |= role;
    enrolled_->add(frame);
    if (role == role::kLong1 || role == role::kShort1) return;
    Words words;
    read(frame, words);
    for (const std::uint64_t word : words) enroll_child(word, role, now);
}

void TableJournal::enroll_child(std::uint64_t word, std::uint8_t role, Time now)
{
    for_each_child(word, role, [&](Gfn child, std::uint8_t as) { enroll(child, as, now); });
}

void TableJournal::remember(Table& table, unsigned index, std::uint64_t word, Time now)
{
    if (!table.newest) {
        table.newest = std::make_unique<std::array<std::uint32_t, kWords>>();
        table.newest->fill(kNone);
    }
    std::uint32_t& newest = (*table.newest)[index];
    const Time start = table.start_of_present(newest);
    table.changes.push_back({start, now, word, newest, static_cast<std::uint16_t>(index)});
    newest = static_cast<std::uint32_t>(table.changes.size() - 1);
    ++changes_;
}

bool TableJournal::store(GuestPhysical at, std::span<const std::byte> bytes, Time now)
{
    const Gfn frame = Gfn::of(at);
    Table* table = find(frame);
    if (table == nullptr || table->roles == 0 || bytes.empty()) return false;

    bool matters = false;
    changed_.clear();
    const std::size_t begin = at.offset_in_page();
    const std::size_t end = begin + bytes.size();
    for (std::size_t index = begin / 8; index * 8 < end; ++index) {
        const auto old = memory_.load<std::uint64_t>(frame, static_cast<unsigned>(index * 8));
        std::uint64_t word = old;
        const std::size_t from = std::max(begin, index * 8);
        const std::size_t to = std::min(end, index * 8 + 8);
        std::memcpy(reinterpret_cast<std::byte*>(&word) + (from - index * 8), bytes.data() + (from - begin),
                    to - from);
        if (word == old || only_sets_ad(old, word, table->roles)) continue;
        remember(*table, static_cast<unsigned>(index), old, now);
        matters |= usable(old, table->roles);
        changed_.emplace_back(index, word);
    }
    // A table that names itself gets a further role by what is stored; then all of it counts for that too.
    for (std::uint8_t done = 0; done != table->roles;) {
        const auto roles = static_cast<std::uint8_t>(table->roles & ~done);
        done = table->roles;
        for (const auto& [index, word] : changed_) {
            for_each_role(roles, [&, entries = word](std::uint8_t as) { enroll_child(entries, as, now); });
        }
    }
    return matters;
}

std::optional<std::uint64_t> TableJournal::entry_at(Gfn frame, unsigned offset, unsigned bytes,
                                                    Time time) const
{
    std::optional<std::uint64_t> found;
    visit(frame, offset, bytes, [&](const Version& version) {
        if (version.start <= time && time < version.end) found = version.raw;
        return !found && version.end > time;
    });
    return found;
}

// --- sweeping ----------------------------------------------------------------------------------------

void TableJournal::mark(Gfn frame, std::uint8_t role, std::span<const Interval> visible)
{
    Table* table = find(frame);
    if (table == nullptr || (table->roles & role) == 0 || (table->marked & role) != 0) return;
    table->marked |= role;
    if (role == role::kLong1 || role == role::kShort1) return;
    const auto below = [&](std::uint64_t word) {
        for_each_child(word, role, [&](Gfn child, std::uint8_t as) { mark(child, as, visible); });
    };
    Words words;
    read(frame, words);
    for (const std::uint64_t word : words) below(word);
    for (const Change& change : table->changes) {
        if (overlaps(visible, change.start, change.end)) below(change.word);
    }
}

bool TableJournal::reaches_global(Gfn frame, std::uint8_t role)
{
    Table* table = find(frame);
    if (table == nullptr) return false;
    if ((table->global_known & role) == 0) {
        // All of them are asked, so that every answer is known before the sweep takes anything away.
        bool reaches = false;
        if (table->roles != 0) {
            Words words;
            read(frame, words);
            for (const std::uint64_t word : words) reaches |= concerns_global(word, role);
        }
        for (const Change& change : table->changes) reaches |= concerns_global(change.word, role);
        table->global_known |= role;
        if (reaches) table->global |= role;
    }
    return (table->global & role) != 0;
}

bool TableJournal::concerns_global(std::uint64_t word, std::uint8_t roles)
{
    bool concerns = false;
    for_each_role(roles, [&](std::uint8_t role) {
        for_each_entry(word, role, [&](std::uint64_t entry) {
            constexpr std::uint64_t kGlobalPage = pte::kPresent | pte::kGlobal;
            concerns |= (entry & kGlobalPage) == kGlobalPage && child_role(entry, role) == 0;
        });
        for_each_child(word, role,
                       [&](Gfn frame, std::uint8_t as) { concerns |= reaches_global(frame, as); });
    });
    return concerns;
}

void TableJournal::retire(Gfn frame, Table& table, Time now)
{
    Words words;
    read(frame, words);
    for (unsigned i = 0; i < kWords; ++i) {
        if (concerns_global(words[i], table.past_roles)) remember(table, i, words[i], now);
    }
}

void TableJournal::drop_changes(Gfn frame, Table& table, std::span<const Interval> visible,
                                Time globals_since)
{
    if (table.changes.empty()) return;
    Words words;
    read(frame, words);
    const auto useful = [&](const Change& change, bool newest) {
        if (table.roles != 0 && overlaps(visible, change.start, change.end)) return true;
        if (change.end <= globals_since) return false;
        if (concerns_global(change.word, table.past_roles)) return true;
        // The newest one tells since when the word is what it is in memory.
        return newest && table.roles != 0 && concerns_global(words[change.index], table.past_roles);
    };
    std::vector<Change> kept;
    for (std::size_t i = 0; i < table.changes.size(); ++i) {
        const Change& change = table.changes[i];
        if (useful(change, (*table.newest)[change.index] == i)) kept.push_back(change);
    }
    if (kept.size() == table.changes.size()) return;
    table.newest->fill(kNone);
    for (std::size_t i = 0; i < kept.size(); ++i) {
        std::uint32_t& newest = (*table.newest)[kept[i].index];
        kept[i].older = newest;
        newest = static_cast<std::uint32_t>(i);
    }
    table.changes = std::move(kept);
}

void TableJournal::sweep(std::span<const Root> roots, std::span<const Interval> visible, Time globals_since,
                         Time now)
{
    for (const auto& [number, table] : tables_) {
        table->past_roles |= table->roles;
        table->marked = table->global_known = table->global = 0;
    }
    for (const Root& root : roots) mark(root.frame, root.role, visible);
    // Asked once for all before anything goes.
    if (globals_since != kForever) {
        for (const auto& [number, table] : tables_) {
            for_each_role(table->past_roles,
                          [&, frame = Gfn{number}](std::uint8_t role) { (void)reaches_global(frame, role); });
        }
    }
    for (const auto& [number, table] : tables_) {
        const bool was_live = table->roles != 0;
        if (was_live && table->marked == 0 && globals_since != kForever) retire(Gfn{number}, *table, now);
        table->roles = table->marked;
    }
    enrolled_->clear();
    changes_ = 0;
    for (const auto& [number, table] : tables_) {
        drop_changes(Gfn{number}, *table, visible, globals_since);
        changes_ += table->changes.size();
        if (table->roles != 0) enrolled_->add(Gfn{number});
    }
    boost::unordered::erase_if(
        tables_, [](const auto& item) { return item.second->roles == 0 && item.second->changes.empty(); });
}

}  // namespace mmusim::coherence
