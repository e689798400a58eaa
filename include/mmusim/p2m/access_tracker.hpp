// SPDX-License-Identifier: Apache-2.0
//
// Who may access each frame (reference/xen.md C5): a default for all frames, and rights of single frames. A
// frame's own right counts only if it was set in the current epoch; a new default begins a new one. So a new
// default costs the same however many frames have rights of their own, and none of those outlives it.
//
//   right of a frame = own[frame].epoch == epoch ? own[frame].access : default
//
// A frame here is a number: of a translated guest its gfn, of a paravirtual one the machine frame itself.
#pragma once

#include <cstdint>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/p2m/p2m_type.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

class AccessTracker {
public:
    [[nodiscard]] MemAccess of(Gfn frame) const
    {
        if (own_.empty()) return default_;
        const auto found = own_.find(frame.number());
        return found != own_.end() && found->second.epoch == epoch_ ? found->second.access : default_;
    }
    [[nodiscard]] MemAccess default_access() const { return default_; }
    /// Whether any access could be forbidden.
    [[nodiscard]] bool restricts() const { return default_ != MemAccess::rwx || live_ != 0; }

    /// (What the default is needs no place: it ends with the epoch too.)
    void set(Gfn frame, MemAccess access);
    /// The frame has the default again.
    void clear(Gfn frame);
    /// For all frames, at once; forgets what they had of their own.
    void set_default(MemAccess access)
    {
        default_ = access;
        ++epoch_;
        live_ = 0;
    }

    [[nodiscard]] std::uint64_t epoch() const { return epoch_; }
    /// Frames whose own right counts now.
    [[nodiscard]] std::uint64_t live() const { return live_; }
    /// Single frames' rights written or forgotten so far.
    [[nodiscard]] std::uint64_t frames_touched() const { return touched_; }

private:
    struct Own {
        std::uint64_t epoch = 0;
        MemAccess access = MemAccess::rwx;
    };
    /// Forgets rights of past epochs, where they are the greater part.
    void forget_past();

    MemAccess default_ = MemAccess::rwx;
    std::uint64_t epoch_ = 0;
    std::uint64_t live_ = 0;
    std::uint64_t touched_ = 0;
    boost::unordered_flat_map<std::uint64_t, Own> own_;
};

}  // namespace mmusim
