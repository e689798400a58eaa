// SPDX-License-Identifier: Apache-2.0
//
// Room in the pool, and shadows that go: for want of it, because their guest table is none any more, or
// because a write says so (reference/xen.md B4, B6; reference/other_policies.md 1.2, 1.3).
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

namespace mmusim {

bool ShadowEngine::make_room(std::uint64_t pages)
{
    // reference/other_policies.md 1.2
    constexpr std::uint64_t kFewest = 5, kRefill = 25;
    bool had_room = true;
    if (declared_.reclaim == Reclaim::oldest_shadow && cache_.free_pages() < std::max(pages, kFewest)) {
        ++counters_.prealloc_1;
        const std::uint64_t wanted = std::max(pages, std::min(kRefill, cache_.pool_pages() / 2));
        const auto in_use = [&](ShadowId id) { return holders_of(id) != 0; };
        const std::vector<ShadowId> by_age = cache_.pinned();
        for (const ShadowId id : by_age) {
            if (cache_.free_pages() >= wanted) break;
            if (!cache_[id].alive() || !cache_[id].pinned || in_use(id)) continue;
            tell_of_shadow(ShadowEventKind::prealloc_unpin, id);
            zap(id);
            had_room = false;
        }
    }
    if (cache_.free_pages() >= pages) return had_room;
    ++counters_.prealloc_1;
    while (!cache_.pinned().empty()) {
        const ShadowId oldest = cache_.pinned().front();
        tell_of_shadow(ShadowEventKind::prealloc_unpin, oldest);
        cache_.unpin(oldest);
        if (cache_.free_pages() >= pages) return false;
    }
    // A list of CR3 values is shorter for it.
    for (unsigned vcpu = 0; vcpu < vcpus_.size(); ++vcpu) forget_prepared(vcpu);
    if (cache_.free_pages() >= pages) return false;
    ++counters_.prealloc_2;
    for (const Vcpu& vcpu : vcpus_) {
        for (const ShadowId root : running(vcpu).ids) {
            if (root == kNoShadow) continue;
            events_.flag(PathFlag::prealloc_unhook);
            tell_of_shadow(ShadowEventKind::prealloc_unhook, root);
            cache_.clear_all(root);
            if (cache_.free_pages() >= pages) return false;
        }
    }
    events_.tell(ShadowEventKind::domf_dying, [](ShadowEvent&) {});
    throw DomainCrashed(fmt::format(
        "the hypervisor ended the domain: shadow pool exhausted: {} of {} pages are free, {} are needed",
        cache_.free_pages(), cache_.pool_pages(), pages));
}

void ShadowEngine::made(ShadowId id)
{
    if (declared_.reclaim == Reclaim::oldest_shadow) cache_.pin(id);
}

std::uint32_t ShadowEngine::holders_of(ShadowId id) const
{
    std::uint32_t count = 0;
    for (const Vcpu& vcpu : vcpus_) {
        count += static_cast<std::uint32_t>(
            std::count(vcpu.roots.ids.begin(), vcpu.roots.ids.end(), id) +
            std::count(vcpu.previous_roots.begin(), vcpu.previous_roots.end(), id));
        for (const Vcpu::Prepared& one : vcpu.prepared)
            count += static_cast<std::uint32_t>(std::count(one.roots.ids.begin(), one.roots.ids.end(), id));
    }
    return count;
}

void ShadowEngine::zap(ShadowId id)
{
    if (declared_.protects_tables) {
        for (const Gfn frame : out_of_sync_.all()) {
            for (const ShadowId below : cache_.of_frame(frame)) {
                if (below != id && cache_[below].alive() && is_below(below, id)) zap(below);
            }
        }
    }
    if (!cache_[id].alive()) return;
    // A reference of our own: what is below may hold the last one.
    cache_.retain(id);
    cache_.clear_all(id);
    while (!cache_[id].parents.empty()) cache_.clear(cache_[id].parents.front());
    cache_.unpin(id);
    cache_.flush_due();
    cache_.release(id);
}

void ShadowEngine::forget_hints(ShadowId destroyed)
{
    const ShadowKey key = cache_[destroyed].key;
    const bool table = !key.type.splinter;
    for (Vcpu& vcpu : vcpus_) {
        if (vcpu.last_writable == destroyed) vcpu.last_writable = kNoShadow;
        vcpu.fast_emulation.reset();
        if (vcpu.unflushed) vcpu.unflushed->fast_emulation.reset();
    }
    if (destroyed < run_in_.size()) run_in_[destroyed] = 0;
    if (table && !cache_.is_table(key.frame)) {
        out_of_sync_.remove(key.frame);
        dying_.erase(key.frame.number());
    }
}

void ShadowEngine::l4_made()
{
    if (!cache_.l3_may_be_pinned()) return;
    const auto is = [&](ShadowId id, unsigned level) {
        const ShadowType type = cache_[id].key.type;
        return type.format == TableFormat::bits64 && type.level == level;
    };
    const auto& pinned = cache_.pinned();
    const auto roots = std::count_if(pinned.begin(), pinned.end(), [&](ShadowId id) { return is(id, 4); });
    if (static_cast<std::size_t>(roots) <= 2 * vcpus_.size()) return;
    cache_.let_l3_be_pinned(false);
    std::vector<ShadowId> l3;
    std::copy_if(pinned.begin(), pinned.end(), std::back_inserter(l3),
                 [&](ShadowId id) { return is(id, 3); });
    for (const ShadowId id : l3) cache_.unpin(id);
}

bool ShadowEngine::unshadow(Gfn frame, bool fast)
{
    if (!cache_.is_table(frame)) return true;
    ++counters_.unshadow;
    tell_of_table(ShadowEventKind::unshadow, frame);
    // Xen's order of types.
    auto ids = cache_.of_frame(frame);
    const auto rank = [&](ShadowId id) {
        const ShadowType type = cache_[id].key.type;
        const int level = type.level;
        if (type.format == TableFormat::bits32) return level == 2 ? 0 : 1;
        if (type.format == TableFormat::pae) return level == 2 ? 2 : 3;
        return 10 - level;
    };
    std::stable_sort(ids.begin(), ids.end(), [&](ShadowId a, ShadowId b) { return rank(a) < rank(b); });
    for (const ShadowId id : ids) {
        if (!cache_[id].alive()) continue;
        ++counters_.hash_lookups;
        if (cache_.first_of_bucket(id)) ++counters_.hash_lookup_head;
        if (cache_[id].pinned) {
            cache_.unpin(id);
        } else if (cache_[id].up.shadow != kNoShadow) {
            ++(cache_[id].references == 1 ? counters_.up_pointer : counters_.unshadow_bf);
            cache_.clear(cache_[id].up);
        }
        while (!fast && cache_[id].alive() && !cache_[id].parents.empty()) {
            cache_.clear(cache_[id].parents.front());
        }
    }
    cache_.flush_due();
    return !cache_.is_table(frame);
}

}  // namespace mmusim
