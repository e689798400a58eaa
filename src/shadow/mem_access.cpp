// SPDX-License-Identifier: Apache-2.0
//
// mem_access under shadow paging, as it was proposed to Xen's developers in 2013 (reference/xen.md C5):
// rights that x86 entries cannot say are enforced by absence, each others by the entry of level 1.
#include <mmusim/shadow/shadow_engine.hpp>

#include <fmt/format.h>
#include <boost/unordered/unordered_flat_set.hpp>

namespace mmusim {

std::uint64_t ShadowEngine::permitted(Gfn frame, std::uint64_t flags) const
{
    if (!monitor_->restricts()) return flags;
    const FrameRights rights = monitor_->rights_to(frame);
    if (!rights.read) return 0;
    if (!rights.write) flags &= ~pte::kWritable;
    if (!rights.execute) flags |= pte::kNoExecute;
    return flags;
}

void ShadowEngine::access_changed(std::span<const Gfn> frames)
{
    events_.begin(std::nullopt, Paging::off);
    follow_access(frames);
}

void ShadowEngine::follow_access(std::span<const Gfn> frames)
{
    boost::unordered_flat_set<std::uint64_t> machine_frames;
    for (const Gfn frame : frames) {
        const auto mfn = p2m_->mfn_of(frame);
        if (!mfn) continue;
        ++counters_.mappings;
        machine_frames.insert(mfn->number());
        if (!cache_.is_table(frame) || monitor_->rights_to(frame).read) continue;
        // No walk may go through it any more: nothing stands below it.
        for (const ShadowId id : cache_.of_frame(frame)) {
            if (cache_[id].alive()) cache_.clear_all(id);
        }
    }
    drop_mappings(machine_frames);
    // A TLB may hold what no shadow does: the guest may have taken an entry away and not flushed.
    cache_.flush_due();
    forget_translations();
}

void ShadowEngine::default_access_changed()
{
    blow();
    forget_translations();
}

AccessMonitor::Answer ShadowEngine::answer_violation(unsigned vcpu, LinearAddress address,
                                                     const Violation& violation)
{
    MemAccessEvent event;
    event.vcpu = vcpu;
    event.gfn = violation.frame;
    event.offset = violation.offset;
    event.linear_address = address;
    event.rights = {violation.kind == AccessKind::read, violation.kind == AccessKind::write,
                    violation.kind == AccessKind::fetch};
    event.in_guest_tables = violation.in_guest_tables;
    const AccessMonitor::Answer answer = monitor_->violated(event);
    if (answer.kind == AccessMonitor::Answer::Kind::crash) {
        throw DomainCrashed(fmt::format(
            "the hypervisor ended the domain: {} of frame {}, which mem_access does not permit, has no "
            "listener",
            violation.in_guest_tables ? "a page walk's use" : fmt::format("a {}", name_of(violation.kind)),
            violation.frame));
    }
    if (const auto narrowed = monitor_->take_narrowed(); !narrowed.empty()) follow_access(narrowed);
    if (!answer.event) return answer;
    ++work_.access_events;
    events_.tell(ShadowEventKind::mem_access, [&](ShadowEvent& told) {
        told.frame = violation.frame;
        told.how = answer.kind == AccessMonitor::Answer::Kind::again  ? "again"
                   : answer.kind == AccessMonitor::Answer::Kind::stop ? "stop"
                                                                      : name_of(answer.action);
    });
    return answer;
}

}  // namespace mmusim
