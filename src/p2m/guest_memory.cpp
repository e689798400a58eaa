// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/guest_memory.hpp>

#include <algorithm>

namespace mmusim {

void GuestMemory::read(GuestPhysical at, std::span<std::byte> bytes) const
{
    if (const auto mfn = frame_of(Gfn::of(at))) {
        machine_->read(mfn->number(), at.offset_in_page(), bytes);
    } else {
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
    }
}

void GuestMemory::write(GuestPhysical at, std::span<const std::byte> bytes)
{
    if (const auto mfn = frame_of(Gfn::of(at))) machine_->write(mfn->number(), at.offset_in_page(), bytes);
}

void GuestMemory::clear(Gfn frame)
{
    if (const auto mfn = frame_of(frame)) machine_->discard(mfn->number());
}

void GuestMemory::keep(Gfn frame, std::optional<Mfn> mfn)
{
    if (mfn) {
        aside_[frame.number()] = *mfn;
    } else {
        aside_.erase(frame.number());
    }
}

std::optional<Mfn> GuestMemory::kept_of(Gfn frame) const
{
    const auto found = aside_.find(frame.number());
    return found == aside_.end() ? std::nullopt : std::optional{found->second};
}

}  // namespace mmusim
