// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/access_monitor.hpp>

namespace mmusim {

namespace {

/// Whether the access goes on with this right, perhaps by a conversion.
bool lets_pass(MemAccess access, const MemAccessEvent& event, FrameRights asked)
{
    if (access == MemAccess::n2rwx || (access == MemAccess::rx2rw && asked.write)) return true;
    if (event.in_guest_tables && asked.write) return permits_walk_writes(access);
    return (rights_of(access) & asked) == asked;
}

}  // namespace

bool AccessMonitor::attach(EventListener& listener)
{
    if (!ring_) return false;
    listener_ = &listener;
    return true;
}

void AccessMonitor::detach()
{
    deliver();
    listener_ = nullptr;
}

bool AccessMonitor::may_stop(Gfn frame, AccessKind kind) const
{
    const MemAccess access = rights_.of(frame);
    if (access == MemAccess::n2rwx || (access == MemAccess::rx2rw && kind == AccessKind::write)) return false;
    return listening();
}

void AccessMonitor::change(Gfn frame, MemAccess access)
{
    const FrameRights before = rights_to(frame);
    rights_.set(frame, access);
    if ((rights_of(access) & before) != before) narrowed_.push_back(frame);
}

EventResponse AccessMonitor::deliver_one()
{
    const MemAccessEvent event = ring_->take();
    const EventResponse response = listener_->on_event(event);
    if (response.access) change(event.gfn, *response.access);
    return response;
}

void AccessMonitor::deliver()
{
    while (listening() && !ring_->empty()) (void)deliver_one();
}

AccessMonitor::Answer AccessMonitor::violated(MemAccessEvent event)
{
    const MemAccess before = rights_.of(event.gfn);
    const FrameRights asked = event.rights;
    if (asked.write) event.rights.read = true;  // hardware is not consistent here; Xen always says both
    ++counts_.violations;
    if (before == MemAccess::rx2rw && asked.write) {
        ++counts_.converted;
        change(event.gfn, MemAccess::rw);
        return {};
    }
    if (before == MemAccess::n2rwx) {
        ++counts_.converted;
        change(event.gfn, MemAccess::rwx);
    }
    if (!listening()) {
        if (required_) return {Answer::Kind::crash};
        if (before != MemAccess::n2rwx) {
            ++counts_.unheard;
            change(event.gfn, MemAccess::rwx);
        }
        return {};
    }
    event.paused = before != MemAccess::n2rwx;
    if (ring_->full()) {
        ++counts_.ring_full;
        deliver();
    }
    ++counts_.events;
    if (event.in_guest_tables) ++counts_.in_guest_tables;
    ring_->put(event);
    events_.push_back(event);
    if (!event.paused) {
        ++counts_.not_paused;
        return {.event = true};
    }
    EventResponse response;
    while (!ring_->empty()) response = deliver_one();
    switch (response.action) {
    case EventAction::resume:
        if (lets_pass(rights_.of(event.gfn), event, asked)) return {.event = true};
        ++counts_.stopped;
        return {Answer::Kind::stop, response.action, true};
    case EventAction::emulate: ++counts_.emulated; break;
    case EventAction::emulate_nowrite: ++counts_.emulated_nowrite; break;
    case EventAction::single_step: ++counts_.single_steps; break;
    }
    return {Answer::Kind::grant, response.action, true};
}

}  // namespace mmusim
