// SPDX-License-Identifier: Apache-2.0
//
// Replacement policies and index functions once more, as docs/timing.md words them ("Replacement", "TLBs")
// and as plainly as possible: lists and maps, no packed words, no stamps. Shares no code with the library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace naive {

/// What one set remembers. Ways are asked for in ascending order; all candidates are in use.
class Policy {
public:
    virtual ~Policy() = default;
    virtual unsigned victim(const std::vector<unsigned>& candidates) = 0;
    virtual void hit(unsigned way) = 0;
    virtual void filled(unsigned way) = 0;
};

/// Ways in the order of their last use, or of their last fill.
class Queue final : public Policy {
public:
    explicit Queue(bool hits_count) : hits_count_{hits_count} {}
    unsigned victim(const std::vector<unsigned>& candidates) override
    {
        for (const unsigned way : order_) {
            if (std::find(candidates.begin(), candidates.end(), way) != candidates.end()) return way;
        }
        return candidates.front();
    }
    void hit(unsigned way) override
    {
        if (hits_count_) filled(way);
    }
    void filled(unsigned way) override
    {
        order_.remove(way);
        order_.push_back(way);
    }

private:
    bool hits_count_;
    std::list<unsigned> order_;
};

/// One generator for all sets of an array.
struct SplitMix {
    std::uint64_t state;

    std::uint64_t next()
    {
        state = state + 0x9e3779b97f4a7c15u;
        std::uint64_t z = state;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
};

class Random final : public Policy {
public:
    explicit Random(std::shared_ptr<SplitMix> source) : source_{std::move(source)} {}
    unsigned victim(const std::vector<unsigned>& candidates) override
    {
        return candidates[static_cast<std::size_t>(source_->next() % candidates.size())];
    }
    void hit(unsigned) override {}
    void filled(unsigned) override {}

private:
    std::shared_ptr<SplitMix> source_;
};

/// A binary tree over the ways from `first` on; `size` of them, rounded up to a power of two.
class Tree {
public:
    Tree(unsigned first, unsigned size) : first_{first}
    {
        while (leaves_ < size) leaves_ *= 2;
    }
    unsigned victim(const std::vector<unsigned>& candidates) { return descend(first_, leaves_, candidates); }
    void used(unsigned way)
    {
        unsigned low = first_;
        for (unsigned size = leaves_; size > 1; size /= 2) {
            const bool in_high = way >= low + size / 2;
            names_high_[{low, size}] = !in_high;
            if (in_high) low += size / 2;
        }
    }

private:
    static bool any(unsigned low, unsigned size, const std::vector<unsigned>& candidates)
    {
        return std::any_of(candidates.begin(), candidates.end(),
                           [&](unsigned way) { return way >= low && way < low + size; });
    }
    unsigned descend(unsigned low, unsigned size, const std::vector<unsigned>& candidates)
    {
        if (size == 1) return low;
        const unsigned half = size / 2;
        bool high = names_high_[{low, size}];
        if (!any(high ? low + half : low, half, candidates)) high = !high;
        return descend(high ? low + half : low, half, candidates);
    }

    unsigned first_;
    unsigned leaves_ = 1;
    std::map<std::pair<unsigned, unsigned>, bool> names_high_;
};

class TreePlru final : public Policy {
public:
    explicit TreePlru(unsigned ways) : tree_{0, ways} {}
    unsigned victim(const std::vector<unsigned>& candidates) override { return tree_.victim(candidates); }
    void hit(unsigned way) override { tree_.used(way); }
    void filled(unsigned way) override { tree_.used(way); }

private:
    Tree tree_;
};

class BitPlru final : public Policy {
public:
    explicit BitPlru(unsigned ways) : bits_(ways, false) {}
    unsigned victim(const std::vector<unsigned>& candidates) override
    {
        for (const unsigned way : candidates) {
            if (!bits_[way]) return way;
        }
        return candidates.front();
    }
    void hit(unsigned way) override
    {
        bits_[way] = true;
        if (std::find(bits_.begin(), bits_.end(), false) != bits_.end()) return;
        bits_.assign(bits_.size(), false);
        bits_[way] = true;
    }
    void filled(unsigned way) override { hit(way); }

private:
    std::vector<bool> bits_;
};

class Srrip final : public Policy {
public:
    explicit Srrip(unsigned ways) : counters_(ways, 0) {}
    unsigned victim(const std::vector<unsigned>& candidates) override
    {
        for (;;) {
            for (const unsigned way : candidates) {
                if (counters_[way] == 3) return way;
            }
            for (const unsigned way : candidates) ++counters_[way];
        }
    }
    void hit(unsigned way) override { counters_[way] = 0; }
    void filled(unsigned way) override { counters_[way] = 2; }

private:
    std::vector<unsigned> counters_;
};

class MruGroups final : public Policy {
public:
    MruGroups(unsigned ways, unsigned groups) : size_{ways / groups}
    {
        for (unsigned group = 0; group < groups; ++group) trees_.emplace_back(group * size_, size_);
    }
    unsigned victim(const std::vector<unsigned>& candidates) override
    {
        const auto groups = static_cast<unsigned>(trees_.size());
        for (unsigned step = 1; step <= groups; ++step) {
            const unsigned group = (last_ + step) % groups;
            std::vector<unsigned> inside;
            for (const unsigned way : candidates) {
                if (way / size_ == group) inside.push_back(way);
            }
            if (!inside.empty()) return trees_[group].victim(inside);
        }
        return candidates.front();
    }
    void hit(unsigned way) override
    {
        last_ = way / size_;
        trees_[last_].used(way);
    }
    void filled(unsigned way) override { hit(way); }

private:
    unsigned size_;
    std::vector<Tree> trees_;
    unsigned last_ = 0;
};

/// By the names of docs/cpu-profiles.md. `source`: of `random`, shared by the sets of an array.
inline std::unique_ptr<Policy> make_policy(const std::string& name, unsigned ways, unsigned groups,
                                           const std::shared_ptr<SplitMix>& source)
{
    if (name == "lru") return std::make_unique<Queue>(true);
    if (name == "fifo") return std::make_unique<Queue>(false);
    if (name == "random") return std::make_unique<Random>(source);
    if (name == "tree-plru") return std::make_unique<TreePlru>(ways);
    if (name == "bit-plru") return std::make_unique<BitPlru>(ways);
    if (name == "srrip") return std::make_unique<Srrip>(ways);
    return std::make_unique<MruGroups>(ways, groups);
}

/// No masks: the number modulo the sets.
inline std::uint64_t set_of(std::uint64_t number, const std::vector<std::uint64_t>& masks, std::uint64_t sets)
{
    if (masks.empty()) return number % sets;
    std::uint64_t set = 0;
    for (std::size_t bit = 0; bit < masks.size(); ++bit) {
        std::uint64_t ones = 0;
        for (unsigned i = 0; i < 64; ++i) ones += (number & masks[bit]) >> i & 1;
        set += (ones % 2) << bit;
    }
    return set;
}

}  // namespace naive
