// SPDX-License-Identifier: Apache-2.0
//
// Which machine frame stands behind each frame of guest RAM when the domain is made (the trace header's
// `p2m.layout`), and back; frames outside guest RAM have none. Every layout is one-to-one, a closed form: it
// costs nothing, however large the RAM is.
//   identity          mfn = gfn
//   offset N          mfn = gfn + N
//   shuffled S        a pseudo-random permutation of the RAM frames, fixed by the seed S: a four-round
//                     Feistel network over the smallest power of four that holds them, walked until the
//                     result is a RAM index. It needs no table, however large the RAM is.
//   listed            ranges given one by one
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mmusim/p2m/guest_ram.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

struct P2mLayout {
    enum class Kind : std::uint8_t { identity, offset, shuffled, listed };
    struct Entry {
        Gfn gfn;
        Mfn mfn;
        std::uint64_t count = 1;  ///< frames

        friend bool operator==(const Entry&, const Entry&) = default;
    };

    Kind kind = Kind::identity;
    std::uint64_t offset = 0;  ///< frames
    std::uint64_t seed = 0;
    std::vector<Entry> entries;

    friend bool operator==(const P2mLayout&, const P2mLayout&) = default;
};

/// A layout that does not fit the guest's RAM or the machine.
struct LayoutError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// "identity", "offset:0x100000", "shuffled:7" (the command line's spelling).
[[nodiscard]] std::optional<P2mLayout> parse_p2m_layout(std::string_view text);
[[nodiscard]] std::string to_string(const P2mLayout& layout);

class FrameLayout {
public:
    /// Throws LayoutError: frames beyond 52 address bits, list entries that overlap, lie outside the RAM
    /// or leave a RAM frame without a machine frame.
    FrameLayout(GuestRam ram, P2mLayout layout);

    [[nodiscard]] const GuestRam& ram() const { return ram_; }
    [[nodiscard]] const P2mLayout& layout() const { return layout_; }

    [[nodiscard]] std::optional<Mfn> mfn_of(Gfn gfn) const
    {
        const std::uint64_t into = gfn.number() - longest_.gfn.number();
        if (into < longest_.count) [[likely]]
            return longest_.mfn + into;
        return look_up(gfn);
    }
    [[nodiscard]] std::optional<Gfn> gfn_of(Mfn mfn) const;
    /// The first machine frame, where `count` frames are a row of machine frames too. Of rows that the layout
    /// promises: not those that a permutation has by chance.
    [[nodiscard]] std::optional<Mfn> run(Gfn first, std::uint64_t count) const;

    /// The machine frame after the last one that a guest frame uses.
    [[nodiscard]] Mfn end() const;
    /// First machine frame of a run of `count` that no guest frame uses: at or above `from` if there is
    /// one, else the lowest; none if no such run ends within 52 address bits.
    [[nodiscard]] std::optional<Mfn> free_run(Mfn from, std::uint64_t count) const;

private:
    [[nodiscard]] std::optional<Mfn> look_up(Gfn gfn) const;
    /// The machine frames in use: first frame and length of runs, in order.
    [[nodiscard]] std::vector<std::pair<std::uint64_t, std::uint64_t>> used() const;

    GuestRam ram_;
    P2mLayout layout_;
    std::vector<P2mLayout::Entry> by_gfn_;  ///< listed: sorted
    std::vector<P2mLayout::Entry> by_mfn_;
    P2mLayout::Entry longest_{.gfn = {}, .mfn = {}, .count = 0};  ///< run whose frames keep their distance
    unsigned half_bits_ = 0;                                      ///< shuffled: bits of half an index
};

}  // namespace mmusim
