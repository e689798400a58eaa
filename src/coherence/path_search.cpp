// SPDX-License-Identifier: Apache-2.0
#include "coherence/path_search.hpp"

#include <algorithm>

namespace mmusim::coherence {

namespace {

std::uint64_t page_address(PagingMode mode, std::uint64_t raw, int level)
{
    // PAE's pages are long mode's.
    return mode.entry_bytes == 4 ? Pte<kTwoLevel>{raw}.page_address(level)
                                 : Pte<kFiveLevel>{raw}.page_address(level);
}

std::uint64_t table_address(PagingMode mode, std::uint64_t raw)
{
    return mode.entry_bytes == 4 ? Pte<kTwoLevel>{raw}.table_address() : Pte<kFiveLevel>{raw}.table_address();
}

}  // namespace

std::optional<Path> PathSearch::cached()
{
    search(Which::own);
    if (!found_ && history_->globals()) search(Which::global);
    return found_;
}

std::optional<Path> PathSearch::ever()
{
    search(Which::own_once);
    if (!found_) search(Which::other_once);
    return found_;
}

void PathSearch::search(Which which)
{
    which_ = which;
    found_.reset();
    const std::uint64_t pcid = history_->pcid();
    floor_ = 0;
    // Of the page sizes the smallest has the oldest flush.
    if (which == Which::own) floor_ = history_->last_flush(pcid, answer_->access.address, kPageShift).time;
    if (which == Which::global) floor_ = history_->empty_since();
    // What was right last is found first, and what was not as long is not looked at.
    const auto& spaces = history_->spaces();
    const auto own = spaces.find(pcid);
    if (own != spaces.end()) search_space(pcid, own->second);
    if (which == Which::own || which == Which::own_once) return;
    for (const auto& [other, space] : spaces) {
        if (other != pcid) search_space(other, space);
    }
}

void PathSearch::search_space(std::uint64_t pcid, const AddressSpace& space)
{
    space_ = &space;
    for (const auto& [root, times] : space.roots()) {
        if (times.end() <= std::max(floor_, best())) return;  // those that follow ended earlier still
        root_times_ = &times;
        mode_ = mode_of(root.paging);
        path_ = {root, pcid, false, {}, times.end(), 0};
        newest_start_ = 0;
        first_end_ = times.end();
        Gfn table = root.frame;
        if (mode_.top_in_registers) {
            const std::uint64_t pdpte = root.pdptes[mode_.index(answer_->access.address, mode_.levels)];
            if ((pdpte & pte::kPresent) == 0) continue;
            table = Gfn{(pdpte & pte::kFrame) >> kPageShift};
        }
        descend(mode_.root_level(), table, Rights{});
    }
}

void PathSearch::descend(int level, Gfn table, Rights rights)
{
    const unsigned offset = mode_.index(answer_->access.address, level) * mode_.entry_bytes;
    journal_->visit(table, offset, mode_.entry_bytes, [&](const TableJournal::Version& version) {
        // Older versions ended earlier still. What was cached above is at least as old as this.
        if (version.end <= std::max({floor_, best(), newest_start_})) return false;
        constexpr std::uint64_t kUsed = pte::kPresent | pte::kAccessed;
        if ((version.raw & kUsed) != kUsed) return true;
        if (path_.steps.empty() && first_readable(*root_times_, version.start) >= version.end) return true;
        for (const bool leaf : {true, false}) {
            if (may_be_read_as(version.raw, level, leaf)) {
                take(level, {level, table, offset, leaf, version}, rights);
            }
        }
        return true;
    });
}

void PathSearch::take(int level, const Path::Step& step, const Rights& above)
{
    const std::uint64_t raw = step.version.raw;
    Rights rights = above;
    rights.user &= (raw & pte::kUser) != 0;
    rights.writable &= (raw & pte::kWritable) != 0;
    rights.no_execute |= mode_.has_nx && (raw & pte::kNoExecute) != 0;

    const Time newest_start = newest_start_;
    const Time first_end = first_end_;
    newest_start_ = std::max(newest_start_, step.version.start);
    first_end_ = std::min(first_end_, step.version.end);
    path_.steps.push_back(step);
    if (step.leaf) {
        if (mode_.has_keys) rights.key = static_cast<std::uint8_t>((raw & pte::kKey) >> pte::kKeyShift);
        judge(rights);
    } else {
        descend(level - 1, Gfn{table_address(mode_, raw) >> kPageShift}, rights);
    }
    path_.steps.pop_back();
    newest_start_ = newest_start;
    first_end_ = first_end;
}

void PathSearch::judge(const Rights& rights)
{
    const Path::Step& leaf = path_.steps.back();
    const Access& access = answer_->access;
    const std::uint64_t in_page =
        access.address.value() & ((std::uint64_t{1} << mode_.shift(leaf.level)) - 1);
    if ((page_address(mode_, leaf.version.raw, leaf.level) | in_page) != answer_->at.value()) return;
    // A write by a translation whose dirty bit is clear makes the CPU walk again.
    if (access.kind == AccessKind::write && (leaf.version.raw & pte::kDirty) == 0) return;
    if (denied(rights, answer_->control, access) != 0) return;
    const bool global = history_->globals() && (leaf.version.raw & pte::kGlobal) != 0;
    if (!may_be_cached(global)) return;
    if (first_end_ <= best()) return;
    path_.global = global;
    path_.right_until = first_end_;
    found_ = path_;
}

bool PathSearch::may_be_read_as(std::uint64_t raw, int level, bool leaf) const
{
    if (level == 1 && !leaf) return false;
    return std::any_of(history_->formats().begin(), history_->formats().end(), [&](const Format& format) {
        const EntryRules& rules = rules_[format.rules];
        return format.paging == mode_.paging && rules.is_leaf(raw, level) == leaf &&
               !rules.reserved_bit_set(raw, level);
    });
}

bool PathSearch::may_be_cached(bool global) const
{
    switch (which_) {
    case Which::own: {
        if (global) return false;
        const unsigned shift = mode_.shift(path_.steps.back().level);
        const Time since = history_->last_flush(path_.pcid, answer_->access.address, shift).time;
        return readable_within({since, kForever}, since);
    }
    case Which::global: return global && global_may_be_cached();
    case Which::own_once:
    case Which::other_once: break;
    }
    return readable_within({0, kForever}, 0);
}

bool PathSearch::global_may_be_cached() const
{
    const unsigned shift = mode_.shift(path_.steps.back().level);
    const Flush last = history_->last_global_flush(answer_->access.address, shift);
    const auto readable_around = [&](Time time) {
        Interval era = space_->era(time);
        // INVLPG drops the upper entries too, but those of its own PCID alone.
        if (last.page && last.pcid == path_.pcid) era.start = std::max(era.start, last.time);
        return readable_within(era, last.time);
    };
    // All reads lie in one era: that in which the last of the versions began, or one that began after it and
    // before any of them ended. Of those the last one with the root will do, for each format.
    if (readable_around(newest_start_)) return true;
    Time first_end = kForever;
    for (const Path::Step& step : path_.steps) first_end = std::min(first_end, step.version.end);
    const auto& formats = history_->formats();
    for (std::size_t i = 0; i < formats.size(); ++i) {
        const Time until = std::min(first_end, i + 1 < formats.size() ? formats[i + 1].start : kForever);
        const Time with_root = stale_for_all_ ? until - 1 : root_times_->last(until);
        if (with_root != kForever && with_root >= newest_start_ && readable_around(with_root)) return true;
    }
    return false;
}

bool PathSearch::readable_within(Interval window, Time leaf_from) const
{
    const auto& formats = history_->formats();
    Time time = window.start;
    for (const Path::Step& step : path_.steps) {
        const Timeline& when = &step == &path_.steps.front() ? *root_times_ : space_->current();
        const Time end = std::min(step.version.end, window.end);
        time = std::max(time, step.version.start);
        if (step.leaf) time = std::max(time, leaf_from);
        // The first moment at which the entry can be read, and is read as what it is on this path.
        for (;;) {
            time = first_readable(when, time);
            if (time >= end) return false;
            const auto next = std::upper_bound(formats.begin(), formats.end(), time,
                                               [](Time t, const Format& format) { return t < format.start; });
            const Format& format = *std::prev(next);
            const EntryRules& rules = rules_[format.rules];
            if (format.paging == mode_.paging && rules.is_leaf(step.version.raw, step.level) == step.leaf &&
                !rules.reserved_bit_set(step.version.raw, step.level)) {
                break;
            }
            if (next == formats.end()) return false;
            time = next->start;
        }
    }
    return true;
}

}  // namespace mmusim::coherence
