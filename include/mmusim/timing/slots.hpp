// SPDX-License-Identifier: Apache-2.0
//
// A resource with several equal places (walkers, misses in flight), as the times at which each is free.
// Requests are served in program order: one takes the place that is free first, at the later of that time
// and its own, and says afterwards until when it has held it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <mmusim/words/cycles.hpp>

namespace mmusim {

class Slots {
public:
    explicit Slots(unsigned count) : free_at_(count, 0) {}

    struct Held {
        std::size_t slot;
        Cycles from;
    };
    [[nodiscard]] Held take(Cycles now) const
    {
        const auto first = std::min_element(free_at_.begin(), free_at_.end());
        return {static_cast<std::size_t>(first - free_at_.begin()), std::max(now, *first)};
    }
    void release(std::size_t slot, Cycles at) { free_at_[slot] = at; }
    void reset() { std::fill(free_at_.begin(), free_at_.end(), 0); }

private:
    std::vector<Cycles> free_at_;
};

}  // namespace mmusim
