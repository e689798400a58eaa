// SPDX-License-Identifier: Apache-2.0
//
// Which guest frames are RAM: a sorted list of ranges of frames, as large as the physical address
// space if one likes; declaring RAM costs nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <mmusim/words/address.hpp>

namespace mmusim {

struct GfnRange {
    Gfn first;
    std::uint64_t count = 0;  ///< frames

    [[nodiscard]] bool contains(Gfn gfn) const { return gfn.number() - first.number() < count; }
    [[nodiscard]] Gfn end() const { return first + count; }

    friend bool operator==(const GfnRange&, const GfnRange&) = default;
};

class GuestRam {
public:
    GuestRam() = default;
    /// Ranges must not be empty and must not overlap; any order.
    explicit GuestRam(std::vector<GfnRange> ranges);

    [[nodiscard]] bool contains(Gfn gfn) const { return range_of(gfn) != nullptr; }
    /// Whether one of `count` frames from `first` is RAM.
    [[nodiscard]] bool any(Gfn first, std::uint64_t count) const;
    [[nodiscard]] std::span<const GfnRange> ranges() const { return ranges_; }
    [[nodiscard]] std::uint64_t frames() const { return frames_; }
    /// One past the last RAM frame.
    [[nodiscard]] Gfn end() const { return ranges_.empty() ? Gfn{} : ranges_.back().end(); }

    /// Position of a RAM frame in the list of all of them, and back.
    [[nodiscard]] std::optional<std::uint64_t> index_of(Gfn gfn) const;
    [[nodiscard]] Gfn frame_at(std::uint64_t index) const;

private:
    [[nodiscard]] const GfnRange* range_of(Gfn gfn) const;

    std::vector<GfnRange> ranges_;
    std::vector<std::uint64_t> starts_;  ///< index of each range's first frame
    std::uint64_t frames_ = 0;
};

}  // namespace mmusim
