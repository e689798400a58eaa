// SPDX-License-Identifier: Apache-2.0
//
// The simulated clock: when the next access is issued, when it retires, and what each cycle went to
// (docs/timing.md, "Time" and "Cycles add up"). There is no loop over cycles: an access comes with the
// times at which it got from one stage to the next, and cycles belong to the oldest access in flight.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <string>
#include <vector>

#include <mmusim/timing/timing_spec.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim {

/// What a cycle was spent on: a place in `CycleLabels`.
using Label = std::uint16_t;

/// The labels of `cycles.by`: those named here, then a TLB each, then table level × cache, then the caches,
/// and where there are data caches, once more for the hypervisor's accesses; with a second level, then level
/// × cache of its tables.
class CycleLabels {
public:
    static constexpr Label kInstructions = 0;
    static constexpr Label kFetch = 1;
    static constexpr Label kWalkWait = 2;
    static constexpr Label kWalkStart = 3;
    static constexpr Label kWalkAssist = 4;
    static constexpr Label kGuestFault = 5;
    static constexpr Label kMovCr = 6;
    static constexpr Label kMovCr3 = 7;
    static constexpr Label kInvlpg = 8;
    static constexpr Label kInvpcid = 9;
    static constexpr Label kExit = 10;
    static constexpr Label kEntry = 11;
    static constexpr Label kFaultHandler = 12;
    static constexpr Label kGuestWalk = 13;
    static constexpr Label kShadowPage = 14;
    static constexpr Label kPropagate = 15;
    static constexpr Label kEmulate = 16;
    static constexpr Label kLoadRoot = 17;
    static constexpr Label kHash = 18;
    static constexpr Label kGuess = 19;
    static constexpr Label kSearch = 20;
    static constexpr Label kSnapshot = 21;
    static constexpr Label kCompare = 22;
    static constexpr Label kFlush = 23;
    static constexpr Label kPrefetch = 24;
    static constexpr Label kIpi = 25;
    static constexpr Label kAccessEvent = 26;
    static constexpr Label kFixed = 27;

    CycleLabels() : CycleLabels{{}, {}} {}
    /// Names of the profile's TLBs and data caches.
    CycleLabels(std::vector<std::string> tlbs, std::vector<std::string> caches, bool second_level = false)
        : tlbs_{std::move(tlbs)}, caches_{std::move(caches)}, second_level_{second_level}
    {
        caches_.emplace_back("memory");
    }

    [[nodiscard]] Label tlb(std::size_t index) const { return static_cast<Label>(kFixed + index); }
    /// The load of an entry of `level`, answered by a cache (their number: memory).
    [[nodiscard]] Label walk(int level, unsigned cache) const
    {
        return static_cast<Label>(kFixed + tlbs_.size() +
                                  (static_cast<std::size_t>(level) - 1) * caches_.size() + cache);
    }
    [[nodiscard]] Label data(unsigned cache) const { return walk(kLevels + 1, cache); }
    /// The hypervisor's own loads and stores. Only where there are data caches.
    [[nodiscard]] Label hypervisor_data(unsigned cache) const { return walk(kLevels + 2, cache); }
    /// The load of an entry of the second level's tables. Only where there is one.
    [[nodiscard]] Label second_level(int level, unsigned cache) const
    {
        return walk(rows_before_second_level() + level, cache);
    }
    [[nodiscard]] std::size_t size() const
    {
        const int rows = rows_before_second_level() + (second_level_ ? kLevels : 0);
        return kFixed + tlbs_.size() + static_cast<std::size_t>(rows) * caches_.size();
    }
    /// "walk.pde.l1d".
    [[nodiscard]] std::string name(Label label) const;
    /// Whether only a hypervisor's work has it.
    [[nodiscard]] bool of_hypervisor(Label label) const
    {
        return (label >= kExit && label < kFixed) ||
               (label >= hypervisor_data(0) && label < second_level(1, 0));
    }

private:
    static constexpr int kLevels = 5;
    [[nodiscard]] int rows_before_second_level() const
    {
        return caches_.size() > 1 ? kLevels + 2 : kLevels + 1;
    }
    std::vector<std::string> tlbs_;
    std::vector<std::string> caches_;
    bool second_level_ = false;
};

/// The way of one access through the stages: each ends at a time.
class Passage {
public:
    struct Stage {
        Label label;
        Cycles until;
    };

    explicit Passage(Cycles issued = 0) : now_{issued} {}
    Passage(const Passage& other) { *this = other; }
    /// Of the stages, those that there are: they are few of many.
    Passage& operator=(const Passage& other)
    {
        now_ = other.now_;
        count_ = other.count_;
        std::copy_n(other.stages_.begin(), count_, stages_.begin());
        return *this;
    }

    /// The stage that ends at `until`, not before the one before it did.
    void spend(Label label, Cycles until)
    {
        assert(until >= now_ && count_ < stages_.size());
        if (until == now_) return;
        stages_[count_++] = {label, until};
        now_ = until;
    }
    [[nodiscard]] Cycles now() const { return now_; }
    [[nodiscard]] const Stage* begin() const { return stages_.data(); }
    [[nodiscard]] const Stage* end() const { return stages_.data() + count_; }

private:
    Cycles now_;
    std::size_t count_ = 0;
    std::array<Stage, 256> stages_;  ///< a nested walk that is repeated has 100
};

enum class ClockKind : std::uint8_t { off, blocking, window };

class Clock {
public:
    /// `window`: the accesses that may be in flight.
    Clock(ClockKind kind, unsigned window, unsigned issue_width, std::size_t labels);

    /// So many instructions pass.
    void pass(std::uint64_t instructions);
    /// The time at which the next access is issued.
    [[nodiscard]] Cycles issue();
    /// The access that was issued last has gone this way and retires.
    void retire(Cycles issued, const Passage& passage);
    /// Something that is no access: takes `cycles` after everything before it, and holds up everything after.
    void serialize(Label label, Cycles cycles);

    /// When the last thing retired.
    [[nodiscard]] Cycles now() const { return retired_; }
    /// Cycles by label. They add up to `now`.
    [[nodiscard]] const std::vector<Cycles>& by() const { return by_; }

private:
    [[nodiscard]] Cycles cycles_of(std::uint64_t slots) const { return (slots + width_ - 1) / width_; }
    void advance(Label label, Cycles until)
    {
        if (until <= retired_) return;
        by_[label] += until - retired_;
        retired_ = until;
    }

    ClockKind kind_;
    Cycles width_;
    Cycles retired_ = 0;
    std::vector<Cycles> by_;
    std::uint64_t slot_ = 0;           ///< window: the next free issue slot, counted from time 0
    Cycles passed_ = 0;                ///< window: when the instructions that passed last are over
    std::vector<Cycles> retirements_;  ///< window: of the last accesses, a ring
    std::size_t oldest_ = 0;
};

}  // namespace mmusim
