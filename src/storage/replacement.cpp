// SPDX-License-Identifier: Apache-2.0
#include <mmusim/storage/replacement.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

namespace mmusim {

namespace {

constexpr std::array<std::pair<ReplacementKind, std::string_view>, 7> kNames{{
    {ReplacementKind::lru, "lru"},
    {ReplacementKind::tree_plru, "tree-plru"},
    {ReplacementKind::bit_plru, "bit-plru"},
    {ReplacementKind::fifo, "fifo"},
    {ReplacementKind::random, "random"},
    {ReplacementKind::srrip, "srrip"},
    {ReplacementKind::mru_groups, "mru-groups"},
}};

constexpr unsigned kWordBits = 64;

std::uint64_t ones(unsigned bits)
{
    return bits >= kWordBits ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
}

/// Least recently used, or first in first out: the stamps alone.
class StampReplacement final : public Replacement {
public:
    StampReplacement(unsigned sets, unsigned ways, bool stamps_on_hit) : Replacement{sets, ways}
    {
        touches_.resize(ways);
        stamps_on_hit_ = stamps_on_hit;
        fill_is_touch_ = true;
        victim_rule_ = VictimRule::oldest;
    }
    unsigned victim(unsigned set, WayRange candidates) override { return oldest(set, candidates); }
};

class RandomReplacement final : public Replacement {
public:
    RandomReplacement(unsigned sets, unsigned ways, std::uint64_t seed)
        : Replacement{sets, ways}, seed_{seed}, state_{seed}
    {
        touches_.resize(ways);
        fill_is_touch_ = true;
    }
    unsigned victim(unsigned, WayRange candidates) override
    {
        return candidates.first + static_cast<unsigned>(draw() % candidates.count);
    }
    void reset(unsigned set) override
    {
        Replacement::reset(set);
        state_ = seed_;
    }

private:
    std::uint64_t draw()  // splitmix64
    {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    std::uint64_t seed_;
    std::uint64_t state_;
};

class BitPlru final : public Replacement {
public:
    BitPlru(unsigned sets, unsigned ways) : Replacement{sets, ways}
    {
        fill_is_touch_ = true;
        victim_rule_ = VictimRule::clear_bit;
        for (unsigned way = 0; way < ways; ++way) {
            touches_.push_back({~std::uint64_t{0}, std::uint64_t{1} << way, ones(ways)});
        }
    }
    unsigned victim(unsigned set, WayRange candidates) override { return clear_bit(set, candidates); }
};

/// Two bits a way.
class Srrip final : public Replacement {
public:
    Srrip(unsigned sets, unsigned ways) : Replacement{sets, ways}
    {
        for (unsigned way = 0; way < ways; ++way) touches_.push_back({~(kDistant << (2 * way))});
    }
    unsigned victim(unsigned set, WayRange candidates) override
    {
        for (;;) {
            for (unsigned i = 0; i < candidates.count; ++i) {
                const unsigned way = candidates.first + i;
                if ((words_[set] >> (2 * way) & kDistant) == kDistant) return way;
            }
            for (unsigned i = 0; i < candidates.count; ++i) {
                words_[set] += std::uint64_t{1} << (2 * (candidates.first + i));
            }
        }
    }
    void filled(unsigned set, unsigned way) override
    {
        touch(set, way);
        words_[set] |= std::uint64_t{2} << (2 * way);
    }

private:
    static constexpr std::uint64_t kDistant = 3;
};

/// Groups of neighbouring ways, a tree in each: tree-PLRU has one group.
/// The word: the tree bits of group 0, of group 1, …, then the group used last.
class GroupedPlru final : public Replacement {
public:
    GroupedPlru(unsigned sets, unsigned ways, unsigned groups)
        : Replacement{sets, ways}
        , groups_{groups}
        , group_ways_{ways / groups}
        , leaves_{std::bit_ceil(group_ways_)}
    {
        fill_is_touch_ = true;
        for (unsigned way = 0; way < ways; ++way) {
            const unsigned group = way / group_ways_;
            Touch touch{~(ones(kWordBits) << last_group_at()), std::uint64_t{group} << last_group_at()};
            if (last_group_at() >= kWordBits) touch = {};
            // From the leaf up; a node's bit names the side away from the leaf: 1, the high one, if it is
            // low.
            for (unsigned node = leaves_ + way % group_ways_; node > 1; node /= 2) {
                const std::uint64_t bit = node_bit(group, node / 2);
                touch.keep &= ~bit;
                if (node % 2 == 0) touch.set |= bit;
            }
            touches_.push_back(touch);
        }
    }
    static unsigned bits(unsigned ways, unsigned groups)
    {
        return groups * (std::bit_ceil(ways / groups) - 1) +
               (groups > 1 ? static_cast<unsigned>(std::bit_width(groups - 1)) : 0);
    }

    unsigned victim(unsigned set, WayRange candidates) override
    {
        const std::uint64_t word = words_[set];
        const auto last = groups_ > 1 ? static_cast<unsigned>(word >> last_group_at()) : 0u;
        if (candidates.count == ways_ && leaves_ == group_ways_) {
            const unsigned next = last + 1 == groups_ ? 0 : last + 1;
            unsigned node = 1;
            while (node < leaves_) node = 2 * node + ((word & node_bit(next, node)) != 0 ? 1 : 0);
            return next * group_ways_ + node - leaves_;
        }
        for (unsigned i = 1;; ++i) {
            const unsigned group = (last + i) % groups_;
            if (any(candidates, group * group_ways_, group_ways_)) return in_group(word, group, candidates);
        }
    }

private:
    [[nodiscard]] unsigned last_group_at() const { return groups_ * (leaves_ - 1); }
    /// Nodes are numbered as in a heap: 1 is the root, the leaves begin at `leaves_`.
    [[nodiscard]] std::uint64_t node_bit(unsigned group, unsigned node) const
    {
        return std::uint64_t{1} << (group * (leaves_ - 1) + node - 1);
    }
    [[nodiscard]] static bool any(WayRange candidates, unsigned first, unsigned count)
    {
        return first < candidates.first + candidates.count && candidates.first < first + count;
    }
    [[nodiscard]] unsigned in_group(std::uint64_t word, unsigned group, WayRange candidates) const
    {
        const unsigned end = (group + 1) * group_ways_;  // leaves beyond it have no way
        unsigned node = 1;
        unsigned first = group * group_ways_;
        for (unsigned count = leaves_; count > 1;) {
            count /= 2;
            bool high = (word & node_bit(group, node)) != 0;
            const unsigned start = high ? first + count : first;
            if (start >= end || !any(candidates, start, std::min(count, end - start))) high = !high;
            if (high) first += count;
            node = 2 * node + (high ? 1 : 0);
        }
        return first;
    }

    unsigned groups_;
    unsigned group_ways_;
    unsigned leaves_;
};

}  // namespace

std::string_view name_of(ReplacementKind kind)
{
    for (const auto& [value, name] : kNames) {
        if (value == kind) return name;
    }
    return "?";
}

std::optional<ReplacementKind> parse_replacement(std::string_view name)
{
    for (const auto& [value, known] : kNames) {
        if (known == name) return value;
    }
    return std::nullopt;
}

void Replacement::reset(unsigned set)
{
    words_[set] = 0;
    for (unsigned way = 0; way < ways_; ++way) stamps_[std::size_t{set} * ways_ + way] = 0;
}

std::string_view ReplacementSpec::refusal(unsigned ways) const
{
    if (custom) return {};
    switch (kind) {
    case ReplacementKind::lru:
    case ReplacementKind::fifo:
    case ReplacementKind::random: return {};
    case ReplacementKind::tree_plru: return ways > kWordBits ? "tree-plru needs 64 ways or fewer" : "";
    case ReplacementKind::bit_plru: return ways > kWordBits ? "bit-plru needs 64 ways or fewer" : "";
    case ReplacementKind::srrip: return ways > kWordBits / 2 ? "srrip needs 32 ways or fewer" : "";
    case ReplacementKind::mru_groups:
        if (groups == 0 || ways % groups != 0)
            return "mru-groups needs a number of groups that divides the ways";
        return GroupedPlru::bits(ways, groups) > kWordBits ? "mru-groups: too many ways" : "";
    }
    return "there is no such policy";
}

std::unique_ptr<Replacement> ReplacementSpec::make(unsigned sets, unsigned ways) const
{
    if (custom) return custom(sets, ways);
    switch (kind) {
    case ReplacementKind::lru: return std::make_unique<StampReplacement>(sets, ways, true);
    case ReplacementKind::fifo: return std::make_unique<StampReplacement>(sets, ways, false);
    case ReplacementKind::random: return std::make_unique<RandomReplacement>(sets, ways, seed);
    case ReplacementKind::tree_plru: return std::make_unique<GroupedPlru>(sets, ways, 1);
    case ReplacementKind::bit_plru: return std::make_unique<BitPlru>(sets, ways);
    case ReplacementKind::srrip: return std::make_unique<Srrip>(sets, ways);
    case ReplacementKind::mru_groups: return std::make_unique<GroupedPlru>(sets, ways, groups);
    }
    return nullptr;
}

}  // namespace mmusim
