// SPDX-License-Identifier: Apache-2.0
//
// Guest-physical memory as the hypervisor reaches it: each access goes through the P2M to a machine
// frame. What lies outside the guest's RAM reads as 0 and takes no store. It is the TableMemory with
// which a guest's own tables are walked in software. What a frame held that is paged out is kept in another
// frame, where the hypervisor finds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/p2m/p2m.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>

namespace mmusim {

class GuestMemory {
public:
    using Space = space::GuestPhysical;

    GuestMemory(SparseMemory& machine, const P2m& p2m) : machine_{&machine}, p2m_{&p2m} {}

    template <class Word>
    [[nodiscard]] Word load(Gfn frame, unsigned offset) const
    {
        const auto mfn = frame_of(frame);
        return mfn ? machine_->load<Word>(mfn->number(), offset) : Word{0};
    }

    template <class Word>
    [[nodiscard]] bool exchange(Gfn frame, unsigned offset, Word expected, Word desired)
    {
        const auto mfn = frame_of(frame);
        if (!mfn || machine_->load<Word>(mfn->number(), offset) != expected) return false;
        machine_->store(mfn->number(), offset, desired);
        return true;
    }

    /// Whether there is memory behind the frame.
    [[nodiscard]] bool has(Gfn frame) const { return frame_of(frame).has_value(); }
    /// The machine frame that has its content.
    [[nodiscard]] std::optional<Mfn> frame_of(Gfn frame) const
    {
        const auto mfn = p2m_->mfn_of(frame);
        return mfn || aside_.empty() ? mfn : kept_of(frame);
    }
    /// Of a frame without a machine frame of its own: one that keeps its content; or it has none any more.
    void keep(Gfn frame, std::optional<Mfn> mfn);
    [[nodiscard]] std::optional<Mfn> kept_of(Gfn frame) const;
    void forget_kept() { aside_.clear(); }
    /// Bytes within one frame.
    void read(GuestPhysical at, std::span<std::byte> bytes) const;
    void write(GuestPhysical at, std::span<const std::byte> bytes);
    /// Makes a frame all zeros.
    void clear(Gfn frame);

private:
    SparseMemory* machine_;
    const P2m* p2m_;
    boost::unordered_flat_map<std::uint64_t, Mfn> aside_;  ///< by guest frame
};

}  // namespace mmusim
