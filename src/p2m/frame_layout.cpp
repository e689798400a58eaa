// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/frame_layout.hpp>

#include <algorithm>
#include <array>
#include <cassert>

#include <fmt/format.h>

#include <mmusim/words/number.hpp>

namespace mmusim {

namespace {

constexpr std::uint64_t kMachineFrames = std::uint64_t{1} << (52 - kPageShift);
constexpr unsigned kRounds = 4;

/// A well-mixing function of 64 bits (the finaliser of SplitMix64, public domain).
std::uint64_t mixed(std::uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9;
    x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11eb;
    return x ^ (x >> 31);
}

struct Halves {
    std::uint64_t left;
    std::uint64_t right;
};

/// A balanced Feistel network: one-to-one on 2 * half_bits bits, whatever its round function.
std::uint64_t feistel(std::uint64_t index, unsigned half_bits, std::uint64_t seed, bool backwards)
{
    const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
    Halves h{index >> half_bits, index & mask};
    for (unsigned i = 0; i < kRounds; ++i) {
        const unsigned round = backwards ? kRounds - 1 - i : i;
        const std::uint64_t key = seed * kRounds + round + 1;
        if (backwards) {
            h = {h.right ^ (mixed(h.left + 0x9e37'79b9'7f4a'7c15 * key) & mask), h.left};
        } else {
            h = {h.right, h.left ^ (mixed(h.right + 0x9e37'79b9'7f4a'7c15 * key) & mask)};
        }
    }
    return h.left << half_bits | h.right;
}

/// A permutation of 0..count-1: the network, repeated until it lands inside.
std::uint64_t permuted(std::uint64_t index, std::uint64_t count, unsigned half_bits, std::uint64_t seed,
                       bool backwards)
{
    do {
        index = feistel(index, half_bits, seed, backwards);
    } while (index >= count);
    return index;
}

/// Checks a list sorted by `start` for overlaps; `what` names its space.
template <class Start>
void refuse_overlaps(const std::vector<P2mLayout::Entry>& entries, Start start, std::string_view what)
{
    for (std::size_t i = 1; i < entries.size(); ++i) {
        if (start(entries[i - 1]) + entries[i - 1].count > start(entries[i])) {
            throw LayoutError(fmt::format("p2m.entries: {} {:#x} is listed twice", what, start(entries[i])));
        }
    }
}

}  // namespace

std::optional<P2mLayout> parse_p2m_layout(std::string_view text)
{
    if (text == "identity") return P2mLayout{};
    const auto colon = text.find(':');
    if (colon == std::string_view::npos) return std::nullopt;
    const auto number = parse_number(text.substr(colon + 1));
    if (!number) return std::nullopt;
    P2mLayout layout;
    if (text.substr(0, colon) == "offset") {
        layout.kind = P2mLayout::Kind::offset;
        layout.offset = *number;
        return layout;
    }
    if (text.substr(0, colon) == "shuffled") {
        layout.kind = P2mLayout::Kind::shuffled;
        layout.seed = *number;
        return layout;
    }
    return std::nullopt;
}

std::string to_string(const P2mLayout& layout)
{
    switch (layout.kind) {
    case P2mLayout::Kind::identity: return "identity";
    case P2mLayout::Kind::offset: return fmt::format("offset:{:#x}", layout.offset);
    case P2mLayout::Kind::shuffled: return fmt::format("shuffled:{}", layout.seed);
    case P2mLayout::Kind::listed: return "listed";
    }
    return "?";
}

FrameLayout::FrameLayout(GuestRam ram, P2mLayout layout) : ram_{std::move(ram)}, layout_{std::move(layout)}
{
    if (ram_.end().number() > kMachineFrames) throw LayoutError("RAM lies beyond 52 address bits");
    if (layout_.kind != P2mLayout::Kind::offset) layout_.offset = 0;
    switch (layout_.kind) {
    case P2mLayout::Kind::identity: break;
    case P2mLayout::Kind::offset:
        if (layout_.offset > kMachineFrames || ram_.end().number() + layout_.offset > kMachineFrames) {
            throw LayoutError("p2m.offset moves RAM beyond 52 address bits");
        }
        break;
    case P2mLayout::Kind::shuffled:
        while ((std::uint64_t{1} << (2 * half_bits_)) < ram_.frames()) ++half_bits_;
        break;
    case P2mLayout::Kind::listed: {
        const auto by_gfn = [](const P2mLayout::Entry& entry) { return entry.gfn.number(); };
        const auto by_mfn = [](const P2mLayout::Entry& entry) { return entry.mfn.number(); };
        std::uint64_t listed = 0;
        for (const P2mLayout::Entry& entry : layout_.entries) {
            if (entry.count == 0) throw LayoutError("p2m.entries: a count is 0");
            if (entry.count > kMachineFrames || entry.mfn.number() > kMachineFrames - entry.count) {
                throw LayoutError(fmt::format("p2m.entries: mfn {} is beyond 52 address bits", entry.mfn));
            }
            const auto first = ram_.index_of(entry.gfn);
            const auto last = ram_.index_of(entry.gfn + (entry.count - 1));
            if (!first || !last || *last - *first != entry.count - 1) {
                throw LayoutError(fmt::format("p2m.entries: gfn {} lies outside the RAM", entry.gfn));
            }
            listed += entry.count;
        }
        by_gfn_ = by_mfn_ = layout_.entries;
        std::sort(by_gfn_.begin(), by_gfn_.end(),
                  [&](const auto& a, const auto& b) { return by_gfn(a) < by_gfn(b); });
        std::sort(by_mfn_.begin(), by_mfn_.end(),
                  [&](const auto& a, const auto& b) { return by_mfn(a) < by_mfn(b); });
        refuse_overlaps(by_gfn_, by_gfn, "gfn");
        refuse_overlaps(by_mfn_, by_mfn, "mfn");
        if (listed != ram_.frames()) {
            throw LayoutError(
                fmt::format("p2m.entries lists {} frames, the RAM has {}", listed, ram_.frames()));
        }
        break;
    }
    }

    const auto longer = [](const auto& a, const auto& b) { return a.count < b.count; };
    if (layout_.kind == P2mLayout::Kind::listed) {
        const auto run = std::max_element(by_gfn_.begin(), by_gfn_.end(), longer);
        if (run != by_gfn_.end()) longest_ = *run;
    } else if (layout_.kind != P2mLayout::Kind::shuffled) {
        const auto ranges = ram_.ranges();
        const auto run = std::max_element(ranges.begin(), ranges.end(), longer);
        if (run != ranges.end())
            longest_ = {run->first, Mfn{run->first.number() + layout_.offset}, run->count};
    }
}

std::optional<Mfn> FrameLayout::look_up(Gfn gfn) const
{
    const auto index = ram_.index_of(gfn);
    if (!index) return std::nullopt;
    switch (layout_.kind) {
    case P2mLayout::Kind::identity: return Mfn{gfn.number()};
    case P2mLayout::Kind::offset: return Mfn{gfn.number() + layout_.offset};
    case P2mLayout::Kind::shuffled:
        return Mfn{ram_.frame_at(permuted(*index, ram_.frames(), half_bits_, layout_.seed, false)).number()};
    case P2mLayout::Kind::listed: {
        const auto after =
            std::upper_bound(by_gfn_.begin(), by_gfn_.end(), gfn,
                             [](Gfn frame, const P2mLayout::Entry& entry) { return frame < entry.gfn; });
        assert(after != by_gfn_.begin());  // every RAM frame is listed
        const P2mLayout::Entry& entry = *std::prev(after);
        return entry.mfn + (gfn.number() - entry.gfn.number());
    }
    }
    return std::nullopt;
}

std::optional<Mfn> FrameLayout::run(Gfn first, std::uint64_t count) const
{
    const auto holds = [&](Gfn start, std::uint64_t frames) {
        const std::uint64_t into = first.number() - start.number();
        return into < frames && frames - into >= count;
    };
    if (holds(longest_.gfn, longest_.count)) return mfn_of(first);
    if (layout_.kind == P2mLayout::Kind::shuffled) return std::nullopt;
    if (layout_.kind == P2mLayout::Kind::listed) {
        for (const P2mLayout::Entry& entry : by_gfn_) {
            if (holds(entry.gfn, entry.count)) return mfn_of(first);
        }
        return std::nullopt;
    }
    for (const GfnRange& range : ram_.ranges()) {
        if (holds(range.first, range.count)) return mfn_of(first);
    }
    return std::nullopt;
}

std::optional<Gfn> FrameLayout::gfn_of(Mfn mfn) const
{
    switch (layout_.kind) {
    case P2mLayout::Kind::identity:
    case P2mLayout::Kind::offset: {
        const Gfn gfn{mfn.number() - layout_.offset};
        return ram_.contains(gfn) ? std::optional{gfn} : std::nullopt;
    }
    case P2mLayout::Kind::shuffled: {
        const auto index = ram_.index_of(Gfn{mfn.number()});
        if (!index) return std::nullopt;
        return ram_.frame_at(permuted(*index, ram_.frames(), half_bits_, layout_.seed, true));
    }
    case P2mLayout::Kind::listed: {
        const auto after =
            std::upper_bound(by_mfn_.begin(), by_mfn_.end(), mfn,
                             [](Mfn frame, const P2mLayout::Entry& entry) { return frame < entry.mfn; });
        if (after == by_mfn_.begin()) return std::nullopt;
        const P2mLayout::Entry& entry = *std::prev(after);
        const std::uint64_t into = mfn.number() - entry.mfn.number();
        return into < entry.count ? std::optional{entry.gfn + into} : std::nullopt;
    }
    }
    return std::nullopt;
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> FrameLayout::used() const
{
    std::vector<std::pair<std::uint64_t, std::uint64_t>> runs;
    if (layout_.kind == P2mLayout::Kind::listed) {
        for (const auto& entry : by_mfn_) runs.emplace_back(entry.mfn.number(), entry.count);
    } else {
        for (const GfnRange& range : ram_.ranges()) {
            runs.emplace_back(range.first.number() + layout_.offset, range.count);
        }
    }
    return runs;
}

Mfn FrameLayout::end() const
{
    const auto runs = used();
    return runs.empty() ? Mfn{} : Mfn{runs.back().first + runs.back().second};
}

std::optional<Mfn> FrameLayout::free_run(Mfn from, std::uint64_t count) const
{
    const auto runs = used();
    const auto first_free = [&](std::uint64_t at) -> std::optional<Mfn> {
        for (const auto& [first, frames] : runs) {
            if (first + frames <= at) continue;
            if (first >= at && first - at >= count) break;
            at = first + frames;
        }
        const bool ends_in_time = count <= kMachineFrames && at <= kMachineFrames - count;
        return ends_in_time ? std::optional{Mfn{at}} : std::nullopt;
    };
    if (const auto found = first_free(from.number())) return found;
    return first_free(0);
}

}  // namespace mmusim
