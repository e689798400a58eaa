// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/guest_memory.hpp>

#include <algorithm>

namespace mmusim {

void GuestMemory::read(GuestPhysical at, std::span<std::byte> bytes) const
{
    if (const auto mfn = p2m_->mfn_of(Gfn::of(at))) {
        machine_->read(mfn->number(), at.offset_in_page(), bytes);
    } else {
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
    }
}

void GuestMemory::write(GuestPhysical at, std::span<const std::byte> bytes)
{
    if (const auto mfn = p2m_->mfn_of(Gfn::of(at)))
        machine_->write(mfn->number(), at.offset_in_page(), bytes);
}

void GuestMemory::clear(Gfn frame)
{
    if (const auto mfn = p2m_->mfn_of(frame)) machine_->discard(mfn->number());
}

}  // namespace mmusim
