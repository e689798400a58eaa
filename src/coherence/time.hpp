// SPDX-License-Identifier: Apache-2.0
//
// The oracle's time: events in their order, and the accesses between them. The high bits count the accesses
// that were checked before the event.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mmusim::coherence {

using Time = std::uint64_t;
inline constexpr Time kForever = ~Time{0};
inline constexpr unsigned kEventBits = 20;  // more events between two accesses only make ages inexact

[[nodiscard]] constexpr std::uint64_t accesses_before(Time time)
{
    return time >> kEventBits;
}

/// [start, end)
struct Interval {
    Time start = 0;
    Time end = 0;
};

/// When something held: disjoint intervals in order, the last perhaps still open.
class Timeline {
public:
    void open(Time now)
    {
        if (!intervals_.empty() && intervals_.back().end == now) {
            intervals_.back().end = kForever;
        } else {
            intervals_.push_back({now, kForever});
        }
    }
    void close(Time now) { intervals_.back().end = now; }

    [[nodiscard]] bool empty() const { return intervals_.empty(); }
    /// kForever while it is open; 0: never held.
    [[nodiscard]] Time end() const { return intervals_.empty() ? 0 : intervals_.back().end; }
    /// The first moment from `from` on at which it held; kForever if there is none.
    [[nodiscard]] Time first(Time from) const
    {
        const auto next = std::upper_bound(intervals_.begin(), intervals_.end(), from,
                                           [](Time time, const Interval& i) { return time < i.end; });
        return next == intervals_.end() ? kForever : std::max(from, next->start);
    }
    /// The last moment before `to` at which it held; kForever if there is none.
    [[nodiscard]] Time last(Time to) const
    {
        auto next = std::lower_bound(intervals_.begin(), intervals_.end(), to,
                                     [](const Interval& i, Time time) { return i.start < time; });
        if (next == intervals_.begin()) return kForever;
        --next;
        return std::min(to, next->end) - 1;
    }
    /// Forgets what ended by `time`.
    void forget(Time time)
    {
        const auto kept = std::find_if(intervals_.begin(), intervals_.end(),
                                       [&](const Interval& i) { return i.end > time; });
        intervals_.erase(intervals_.begin(), kept);
    }

private:
    std::vector<Interval> intervals_;
};

}  // namespace mmusim::coherence
