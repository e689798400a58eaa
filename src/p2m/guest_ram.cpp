// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/guest_ram.hpp>

#include <algorithm>
#include <cassert>

namespace mmusim {

GuestRam::GuestRam(std::vector<GfnRange> ranges) : ranges_{std::move(ranges)}
{
    std::sort(ranges_.begin(), ranges_.end(),
              [](const GfnRange& a, const GfnRange& b) { return a.first < b.first; });
    for (const GfnRange& range : ranges_) {
        assert(range.count > 0);
        starts_.push_back(frames_);
        frames_ += range.count;
    }
}

const GfnRange* GuestRam::range_of(Gfn gfn) const
{
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), gfn,
                                        [](Gfn frame, const GfnRange& range) { return frame < range.first; });
    if (after == ranges_.begin()) return nullptr;
    const GfnRange& range = *std::prev(after);
    return range.contains(gfn) ? &range : nullptr;
}

bool GuestRam::any(Gfn first, std::uint64_t count) const
{
    const auto next = std::lower_bound(ranges_.begin(), ranges_.end(), first,
                                       [](const GfnRange& range, Gfn frame) { return range.end() <= frame; });
    return next != ranges_.end() && next->first < first + count;
}

std::optional<std::uint64_t> GuestRam::index_of(Gfn gfn) const
{
    const GfnRange* range = range_of(gfn);
    if (range == nullptr) return std::nullopt;
    const auto which = static_cast<std::size_t>(range - ranges_.data());
    return starts_[which] + (gfn.number() - range->first.number());
}

Gfn GuestRam::frame_at(std::uint64_t index) const
{
    assert(index < frames_);
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), index);
    const auto which = static_cast<std::size_t>(after - starts_.begin()) - 1;
    return ranges_[which].first + (index - starts_[which]);
}

}  // namespace mmusim
