// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/access_tracker.hpp>

namespace mmusim {

void AccessTracker::set(Gfn frame, MemAccess access)
{
    if (access == default_) return clear(frame);
    const auto [place, is_new] = own_.try_emplace(frame.number());
    if (is_new || place->second.epoch != epoch_) ++live_;
    place->second = {epoch_, access};
    ++touched_;
    forget_past();
}

void AccessTracker::clear(Gfn frame)
{
    const auto found = own_.find(frame.number());
    if (found == own_.end()) return;
    if (found->second.epoch == epoch_) --live_;
    own_.erase(found);
    ++touched_;
}

void AccessTracker::forget_past()
{
    constexpr std::uint64_t kFew = 1024;
    if (own_.size() <= 2 * live_ + kFew) return;
    touched_ += own_.size() - live_;
    boost::unordered::erase_if(own_, [this](const auto& one) { return one.second.epoch != epoch_; });
}

}  // namespace mmusim
