// SPDX-License-Identifier: Apache-2.0
//
// Which entry of a set makes room: replacement policies of set-associative storage (TLBs,
// paging-structure caches, data caches). docs/timing.md, "Replacement", defines each policy to the bit.
//
// Order of calls: a way is `filled` before it is hit. `victim` is asked only when no candidate is free,
// and the way it names is filled next. A hit is reported by `touch` where the policy says that a hit does
// no more than to change a word of the set and to stamp the way (all policies here), and by `hit` where it
// does not: then each hit costs a virtual call, and the caller takes no short cuts.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <mmusim/storage/zeroed_array.hpp>

namespace mmusim {

enum class ReplacementKind : std::uint8_t {
    lru,
    tree_plru,
    bit_plru,  ///< also called NRU
    fifo,
    random,
    srrip,
    mru_groups,  ///< the group after the one used last, a tree-PLRU inside
};

/// "lru", "tree-plru", "bit-plru", "fifo", "random", "srrip", "mru-groups".
[[nodiscard]] std::string_view name_of(ReplacementKind kind);
[[nodiscard]] std::optional<ReplacementKind> parse_replacement(std::string_view name);

/// The ways among which a victim is looked for: [first, first + count) of the set.
struct WayRange {
    unsigned first = 0;
    unsigned count = 0;
};

class Replacement {
public:
    /// What a hit on a way does to its set's word: word = (word & keep) | set; where that makes `full`,
    /// `set`.
    struct Touch {
        std::uint64_t keep = ~std::uint64_t{0};
        std::uint64_t set = 0;
        std::uint64_t full = ~std::uint64_t{0};
    };

    Replacement(unsigned sets, unsigned ways) : ways_{ways}, words_(sets), stamps_(std::size_t{sets} * ways)
    {
    }
    virtual ~Replacement() = default;
    Replacement(const Replacement&) = delete;
    Replacement& operator=(const Replacement&) = delete;

    /// The way of `set` to evict.
    [[nodiscard]] virtual unsigned victim(unsigned set, WayRange candidates) = 0;
    virtual void filled(unsigned /*set*/, unsigned /*way*/) {}
    virtual void hit(unsigned /*set*/, unsigned /*way*/) {}
    /// The set as it was in the beginning.
    virtual void reset(unsigned set);

    /// False: `hit` has to be called for each hit.
    [[nodiscard]] bool touch_is_enough() const { return !touches_.empty(); }
    /// The victim, without a call where the policy's rule is a plain one.
    [[nodiscard]] unsigned find_victim(unsigned set, WayRange candidates)
    {
        switch (victim_rule_) {
        case VictimRule::oldest: return oldest(set, candidates);
        case VictimRule::clear_bit: return clear_bit(set, candidates);
        case VictimRule::asked: break;
        }
        return victim(set, candidates);
    }
    /// A hit, by whichever of the two ways the policy has.
    void on_hit(unsigned set, unsigned way)
    {
        if (touch_is_enough()) [[likely]] {
            touch(set, way);
        } else {
            hit(set, way);
        }
    }
    /// A fill, likewise.
    void on_fill(unsigned set, unsigned way)
    {
        if (fill_is_touch_) [[likely]] {
            apply(touches_[way], words_[set]);
            if (victim_rule_ == VictimRule::oldest) stamp(set, way);
        } else {
            filled(set, way);
        }
    }
    void touch(unsigned set, unsigned way)
    {
        apply(touches_[way], words_[set]);
        if (stamps_on_hit_) stamp(set, way);
    }
    static void apply(const Touch& touch, std::uint64_t& word)
    {
        word = (word & touch.keep) | touch.set;
        if (word == touch.full) word = touch.set;
    }

    // For callers that keep a short cut to an entry: what `touch` works on.
    [[nodiscard]] const Touch* touch_of(unsigned way) const { return &touches_[way]; }
    [[nodiscard]] std::uint64_t* word_of(unsigned set) { return &words_[set]; }
    /// Where a hit puts the next value of the clock; null if hits are not stamped.
    [[nodiscard]] std::uint64_t* stamp_of(unsigned set, unsigned way)
    {
        return stamps_on_hit_ ? &stamps_[std::size_t{set} * ways_ + way] : nullptr;
    }
    /// Stamps are taken from this counter, which others may share, instead of an own one.
    void share_clock(std::uint64_t& clock) { clock_ = &clock; }

protected:
    void stamp(unsigned set, unsigned way) { stamps_[std::size_t{set} * ways_ + way] = ++*clock_; }
    enum class VictimRule : std::uint8_t { asked, oldest, clear_bit };

    /// The candidate stamped longest ago.
    [[nodiscard]] unsigned oldest(unsigned set, WayRange candidates) const
    {
        const std::uint64_t* const stamps = &stamps_[std::size_t{set} * ways_];
        unsigned found = candidates.first;
        std::uint64_t first = stamps[found];
        for (unsigned way = found + 1; way < candidates.first + candidates.count; ++way) {
            const bool older = stamps[way] < first;
            found = older ? way : found;
            first = older ? stamps[way] : first;
        }
        return found;
    }
    /// The lowest candidate whose bit of the word is clear; the lowest of all if none is.
    [[nodiscard]] unsigned clear_bit(unsigned set, WayRange candidates) const
    {
        const std::uint64_t ways =
            candidates.count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << candidates.count) - 1;
        const std::uint64_t clear = ~words_[set] & (ways << candidates.first);
        return clear == 0 ? candidates.first : static_cast<unsigned>(std::countr_zero(clear));
    }

    unsigned ways_;
    ZeroedArray<std::uint64_t> words_;   ///< by set
    ZeroedArray<std::uint64_t> stamps_;  ///< by set and way: when it was last stamped
    std::vector<Touch> touches_;         ///< by way; empty: `hit` must be called
    bool stamps_on_hit_ = false;
    VictimRule victim_rule_ = VictimRule::asked;
    bool fill_is_touch_ = false;  ///< a fill touches, stamps under `oldest`, and needs no call of `filled`

private:
    std::uint64_t own_clock_ = 0;
    std::uint64_t* clock_ = &own_clock_;
};

using ReplacementFactory = std::function<std::unique_ptr<Replacement>(unsigned sets, unsigned ways)>;

struct ReplacementSpec {
    ReplacementKind kind = ReplacementKind::lru;
    unsigned groups = 1;             ///< of mru_groups: must divide the ways
    std::uint64_t seed = 1;          ///< of random
    ReplacementFactory custom = {};  ///< if set, makes the policy instead of `kind`

    /// Why storage of so many ways can't have this policy; empty if it can.
    [[nodiscard]] std::string_view refusal(unsigned ways) const;
    /// Needs `refusal(ways).empty()`.
    [[nodiscard]] std::unique_ptr<Replacement> make(unsigned sets, unsigned ways) const;
};

}  // namespace mmusim
