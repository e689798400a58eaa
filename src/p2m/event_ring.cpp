// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/event_ring.hpp>

#include <array>
#include <bit>
#include <cassert>

namespace mmusim {

std::string_view name_of(FrameRights rights)
{
    constexpr std::array<std::string_view, 8> kNames{"-", "r", "w", "rw", "x", "rx", "wx", "rwx"};
    return kNames[(rights.read ? 1u : 0u) | (rights.write ? 2u : 0u) | (rights.execute ? 4u : 0u)];
}

std::string_view name_of(EventAction action)
{
    constexpr std::array<std::string_view, kEventActions> kNames{"resume", "emulate", "emulate_nowrite",
                                                                 "single_step"};
    return kNames[static_cast<std::size_t>(action)];
}

EventRing::EventRing(Mfn first, unsigned pages)
    : first_{first}
    , pages_{pages}
    , capacity_{std::bit_floor((std::size_t{pages} * kPageBytes - kHeaderBytes) / kRequestBytes)}
{
    assert(pages != 0);
}

void EventRing::put(const MemAccessEvent& event)
{
    assert(!full());
    queue_.push_back(event);
}

MemAccessEvent EventRing::take()
{
    assert(!empty());
    const MemAccessEvent event = queue_.front();
    queue_.pop_front();
    return event;
}

}  // namespace mmusim
