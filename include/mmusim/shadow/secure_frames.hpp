// SPDX-License-Identifier: Apache-2.0
//
// Frames that only a vCPU in secure mode may have mapped (docs/secure-view.md; the mail of Xen's developers
// of November 2010, reference/xen.md G1). Books alone: the engine asks where an entry is propagated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <mmusim/words/address.hpp>

namespace mmusim {

/// In ShadowKey::role: the shadow is one of the secure view, whose entries may map secure frames.
inline constexpr std::uint8_t kSecureRole = 0x80;

/// How secure frames are kept from vCPUs that are not in secure mode.
enum class SecureView : std::uint8_t {
    separate,  ///< a table has a shadow for each view
    shared,    ///< one shadow for all; who propagates an entry looks at the vCPU's mode
};

class SecureFrames {
public:
    explicit SecureFrames(SecureView view) : view_{view} {}

    [[nodiscard]] bool shared() const { return view_ == SecureView::shared; }
    void assign(std::vector<Gfn> frames)
    {
        frames_ = std::move(frames);
        std::sort(frames_.begin(), frames_.end());
    }
    [[nodiscard]] bool any() const { return !frames_.empty(); }
    [[nodiscard]] bool contains(Gfn frame) const
    {
        return std::binary_search(frames_.begin(), frames_.end(), frame);
    }
    /// In ascending order.
    [[nodiscard]] const std::vector<Gfn>& all() const { return frames_; }

private:
    SecureView view_;
    std::vector<Gfn> frames_;
};

}  // namespace mmusim
