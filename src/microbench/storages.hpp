// SPDX-License-Identifier: Apache-2.0
//
// The storages of translations in a laboratory, as far as accesses and their latencies show them. Each
// experiment begins with everything empty, brings pages in, and looks whether they are there.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <mmusim/microbench/storage_shape.hpp>

#include "microbench/laboratory.hpp"
#include "microbench/storage_finder.hpp"

namespace mmusim::microbench {

/// The first TLB that a kind of access asks. A page is there if its access takes no longer than a repeated
/// one.
class FirstLevel final : public Storage {
public:
    FirstLevel(Laboratory& lab, AccessKind kind, const Latencies& latencies)
        : lab_{lab}, kind_{kind}, latencies_{latencies}
    {
    }
    [[nodiscard]] unsigned bits() const override { return lab_.bits(); }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override;

private:
    Laboratory& lab_;
    AccessKind kind_;
    Latencies latencies_;
};

/// The second one: it answers more slowly than the first, but faster than any walk. To be seen it must have
/// pages that the first has not.
class SecondLevel final : public Storage {
public:
    /// How pages come to be in level 2 and not in level 1: a kind of access with another level 1 brings them
    /// in, or others push them out of it.
    struct Approach {
        AccessKind bring = AccessKind::read;
        PageSize pusher = PageSize::k4k;
        std::uint64_t pushers = 0;
        std::uint64_t sets = 1;  ///< of level 1, for the pushers
    };

    SecondLevel(Laboratory& lab, AccessKind kind, const Latencies& latencies)
        : lab_{lab}, kind_{kind}, latencies_{latencies}
    {
    }

    /// Looks for an approach. `first`: what level 1 holds for this kind of access, by page size, 0 entries if
    /// nothing. False: no answer comes between that of level 1 and a walk's.
    bool find_approach(const std::array<StorageShape, kSizes.size()>& first);
    /// Another one than before, if there is one: what pushes pages out of level 1 may push them out of
    /// level 2.
    [[nodiscard]] bool next_approach();
    [[nodiscard]] const Approach& approach() const { return approach_; }
    [[nodiscard]] Cycles hit_cycles() const { return hit_cycles_; }

    /// How long an access of `kind` to `probed` takes once a page was brought in, and not into level 1.
    Cycles probe(std::uint64_t number, AccessKind kind, LinearAddress probed);

    [[nodiscard]] unsigned bits() const override { return lab_.bits(); }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override;
    [[nodiscard]] bool fix(Numbers numbers) override;
    void release() override { fixed_ = false; }
    [[nodiscard]] std::vector<std::uint64_t> neighbours(std::uint64_t number) const override
    {
        return {number ^ 1, number ^ 2, number ^ 5};
    }

private:
    enum class Seen : std::uint8_t { all, not_all, hidden };  ///< hidden: level 1 had one of them

    [[nodiscard]] unsigned try_out(const Approach& approach);
    [[nodiscard]] std::vector<LinearAddress> choose_pushers();
    [[nodiscard]] Seen look(Numbers numbers, Numbers more, const std::vector<LinearAddress>& pushers);

    Laboratory& lab_;
    AccessKind kind_;
    Latencies latencies_;
    Approach approach_;
    std::vector<Approach> approaches_;  ///< others that work, the best last
    Cycles hit_cycles_ = 0;
    bool pushes_all_ = true;  ///< in the last trials level 1 never had the page
    std::vector<LinearAddress> pushers_;
    bool fixed_ = false;
};

/// The paging-structure cache of entries of a level. Numbers are those of what an entry maps. An entry is
/// there if a fresh page below it, which shares no lower entry with others, takes as short a walk as that
/// allows.
class UpperEntries final : public Storage {
public:
    UpperEntries(Laboratory& lab, int level);

    /// Of such a walk.
    [[nodiscard]] Cycles walk_cycles() const { return walk_cycles_; }

    [[nodiscard]] unsigned bits() const override
    {
        return tested_bits(lab_.bed.levels()) - kFiveLevel.shift(level_);
    }
    [[nodiscard]] bool holds(Numbers numbers, Numbers more) override;

private:
    [[nodiscard]] LinearAddress below(std::uint64_t number, std::uint64_t child) const
    {
        return LinearAddress{number << kFiveLevel.shift(level_) | child << kFiveLevel.shift(level_ - 1)};
    }

    Laboratory& lab_;
    int level_;
    Cycles walk_cycles_;
};

}  // namespace mmusim::microbench
