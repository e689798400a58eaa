// SPDX-License-Identifier: Apache-2.0
//
// Log-dirty under shadows (reference/xen.md B15; B7, step 14): frames that are not marked are read-only in
// all shadows, so the first write to one faults.
#include <mmusim/shadow/shadow_engine.hpp>

namespace mmusim {

namespace {

/// Whether there is memory behind it, of the kind that migrates.
constexpr bool is_logged(P2mType type)
{
    return has_frame(type) && type != P2mType::mmio_direct;
}

}  // namespace

LogDirtyAnswer ShadowEngine::log_dirty(LogDirtyAction action)
{
    LogDirtyAnswer answer;
    const bool enables = action == LogDirtyAction::enable;
    if (enables == log_dirty_.on) {
        answer.rc = LogDirtyAnswer::kInvalid;
        return answer;
    }
    if (enables) {
        blow();
        log_dirty_ = {true};
        ++log_dirty_counters_.enables;
        return answer;
    }
    answer.fault_count = log_dirty_.fault_count;
    answer.dirty_count = log_dirty_.dirty_count;
    if (action == LogDirtyAction::disable) {
        for (const Mfn page : dirty_.release()) cache_.give_other_page(page);
        log_dirty_ = {};
        return answer;
    }
    if (log_dirty_.incomplete) return {LogDirtyAnswer::kNoMemory, 0, 0, {}};
    answer.frames = dirty_.frames();
    if (action == LogDirtyAction::peek) {
        ++log_dirty_counters_.peeks;
        return answer;
    }
    ++log_dirty_counters_.cleans;
    dirty_.clear();
    log_dirty_ = {true};
    blow();
    return answer;
}

void ShadowEngine::mark_dirty(Gfn frame)
{
    if (!log_dirty_.on || !is_logged(p2m_->entry(frame).type)) return;
    switch (dirty_.mark(frame)) {
    case DirtySet::Mark::known: break;
    case DirtySet::Mark::added:
        ++log_dirty_.dirty_count;
        ++log_dirty_counters_.dirty_count;
        break;
    case DirtySet::Mark::no_page:
        // The guest goes on; whoever reads the set next is told that it has holes.
        log_dirty_.incomplete = true;
        ++log_dirty_counters_.failed_allocations;
        break;
    }
}

void ShadowEngine::log_write(Gfn frame)
{
    if (log_dirty_.on && !discards_writes(p2m_->entry(frame).type)) mark_dirty(frame);
}

bool ShadowEngine::unlogged(Gfn frame) const
{
    if (!log_dirty_.on || log_dirty_.incomplete) return false;
    return is_logged(p2m_->entry(frame).type) && !dirty_.contains(frame);
}

void ShadowEngine::count_logged_fault()
{
    if (!log_dirty_.on) return;
    ++log_dirty_.fault_count;
    ++log_dirty_counters_.fault_count;
}

std::optional<Mfn> ShadowEngine::take_trie_page()
{
    // What the set has taken is the pool's no more; below its floor the pool gives nothing away
    // (reference/xen.md B4).
    constexpr std::uint64_t kPerVcpu = 128;
    if (cache_.pool_pages() - dirty_.pages().size() < kPerVcpu * vcpus_.size() + 1) return std::nullopt;
    (void)make_room(1);
    return cache_.take_other_page();
}

LogDirtyCounters ShadowEngine::log_dirty_counters() const
{
    LogDirtyCounters counters = log_dirty_counters_;
    counters.pages_of_trie = dirty_.pages().size();
    return counters;
}

}  // namespace mmusim
