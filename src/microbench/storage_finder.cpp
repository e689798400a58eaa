// SPDX-License-Identifier: Apache-2.0
//
//   1. Numbers at the largest power-of-two distance of which too many share a set.
//   2. Of these, as few as do not fit together: one more than a set has ways. Without one, `full_`, they
//      fill a set; that one, `base_`, is known to belong to it.
//   3. Whether another number belongs to the set: it drives one of `full_` out.
//   4. A hypothesis for what the set depends on: nothing, the number modulo the first distance that comes
//      back to the set, or for each bit the earlier bits whose flips make up for a flip of it.
//   5. The hypothesis is tried on numbers all over, and on other sets. If it fails, all again elsewhere.
#include "microbench/storage_finder.hpp"

#include <algorithm>
#include <bit>

namespace mmusim::microbench {

namespace {

constexpr unsigned kAttempts = 8;
constexpr std::uint64_t kLargestPool = 1 << 15;
constexpr unsigned kSmallestPoolBits = 6;
constexpr std::uint64_t kMostSets = 1 << 13;  ///< of a linear index
constexpr unsigned kMostIndexBits = 12;       ///< of an XOR index
constexpr unsigned kTrials = 24;              ///< of a hypothesis, each way
constexpr unsigned kOtherSets = 12;
constexpr unsigned kRepeats = 4;

class ShapeFinder {
public:
    ShapeFinder(Storage& storage, Random& random)
        : storage_{storage}, random_{random}, count_{std::uint64_t{1} << storage.bits()}
    {
    }

    std::optional<StorageShape> find()
    {
        storage_.release();
        if (!fill_a_set() || !storage_.fix(full_)) return std::nullopt;
        std::optional<StorageShape> shape = fully_associative();
        if (!shape) shape = linear();
        if (!shape) shape = exclusive_or();
        storage_.release();
        if (!shape || !other_sets_agree(*shape)) return std::nullopt;
        return shape;
    }

private:
    enum class Belongs : std::uint8_t { no, yes, unclear };

    /// Whether the number leaves the full set alone.
    [[nodiscard]] bool passes(std::uint64_t number) { return storage_.holds(full_, {&number, 1}); }

    bool fill_a_set()
    {
        std::vector<std::uint64_t> pool;
        for (unsigned shift = storage_.bits() - std::min(storage_.bits(), kSmallestPoolBits) + 1;
             shift-- > 0;) {
            pool.resize(std::min(count_ >> shift, kLargestPool));
            const std::uint64_t first = random_.below(std::uint64_t{1} << shift);
            for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = first + (i << shift);
            if (!storage_.holds(pool)) return reduce(pool);
        }
        return false;
    }

    /// Keeps of the pool what is needed for it not to fit.
    bool reduce(std::vector<std::uint64_t> pool)
    {
        std::vector<std::uint64_t> needed;
        for (;;) {
            // The shortest beginning of the pool that does not fit together with what is needed.
            std::size_t fits = 0;
            std::size_t not_fits = pool.size();
            if (!storage_.holds(needed)) break;
            while (not_fits - fits > 1) {
                const std::size_t middle = fits + (not_fits - fits) / 2;
                std::vector<std::uint64_t> numbers = needed;
                numbers.insert(numbers.end(), pool.begin(),
                               pool.begin() + static_cast<std::ptrdiff_t>(middle));
                (storage_.holds(numbers) ? fits : not_fits) = middle;
            }
            if (not_fits == 0) return false;
            needed.push_back(pool[not_fits - 1]);
            pool.resize(not_fits - 1);
        }
        if (needed.size() < 2) return false;
        const auto lowest = std::min_element(needed.begin(), needed.end());
        base_ = *lowest;
        needed.erase(lowest);
        full_ = std::move(needed);
        return true;
    }

    [[nodiscard]] Belongs belongs(std::uint64_t number)
    {
        if (std::find(full_.begin(), full_.end(), number) != full_.end()) return Belongs::yes;
        if (passes(number)) return Belongs::no;
        const std::vector<std::uint64_t> neighbours = storage_.neighbours(number);
        const bool tables_in_the_way =
            !neighbours.empty() && std::none_of(neighbours.begin(), neighbours.end(),
                                                [&](std::uint64_t other) { return passes(other); });
        return tables_in_the_way ? Belongs::unclear : Belongs::yes;
    }

    [[nodiscard]] unsigned ways() const { return static_cast<unsigned>(full_.size()); }

    std::optional<StorageShape> fully_associative()
    {
        for (unsigned i = 0; i < kTrials; ++i) {
            const std::uint64_t number = random_.below(count_);
            const bool known = std::find(full_.begin(), full_.end(), number) != full_.end();
            if (!known && passes(number)) return std::nullopt;
        }
        return StorageShape{1, ways()};
    }

    std::optional<StorageShape> linear()
    {
        for (std::uint64_t sets = 2; sets <= kMostSets && base_ + sets < count_; ++sets) {
            if (belongs(base_ + sets) != Belongs::yes) continue;
            const StorageShape shape{sets, ways()};
            return agrees(shape) ? std::optional{shape} : std::nullopt;
        }
        return std::nullopt;
    }

    std::optional<StorageShape> exclusive_or()
    {
        // The basis: bits whose flips lead to sets of which none is made up for by others'.
        std::vector<unsigned> basis;
        std::vector<std::uint64_t> masks;  // mask i: the bits for which basis bit i makes up, and it itself
        for (unsigned bit = 0; bit < storage_.bits(); ++bit) {
            const std::uint64_t flip = std::uint64_t{1} << bit;
            const std::optional<std::uint64_t> answer = made_up_for(flip, basis);
            if (!answer) {
                if (basis.size() == kMostIndexBits) return std::nullopt;
                basis.push_back(bit);
                masks.push_back(flip);
                continue;
            }
            for (std::size_t i = 0; i < basis.size(); ++i) {
                if ((*answer >> i & 1) != 0) masks[i] |= flip;
            }
        }
        if (masks.empty()) return std::nullopt;
        const StorageShape shape =
            shape_of(std::uint64_t{1} << masks.size(), ways(), IndexSpec{masks}, storage_.bits());
        return agrees(shape) ? std::optional{shape} : std::nullopt;
    }

    /// Which of the basis bits have to be flipped besides `flip` to come back to the set; few are tried
    /// first.
    std::optional<std::uint64_t> made_up_for(std::uint64_t flip, const std::vector<unsigned>& basis)
    {
        const std::uint64_t combinations = std::uint64_t{1} << basis.size();
        for (int size = 0; size <= static_cast<int>(basis.size()); ++size) {
            for (std::uint64_t choice = 0; choice < combinations; ++choice) {
                if (std::popcount(choice) != size) continue;
                std::uint64_t flips = flip;
                for (std::size_t i = 0; i < basis.size(); ++i) {
                    flips |= (choice >> i & 1) << basis[i];
                }
                if (belongs(base_ ^ flips) == Belongs::yes) return choice;
            }
        }
        return std::nullopt;
    }

    /// Any number of the same set.
    [[nodiscard]] std::uint64_t companion(const StorageShape& shape, std::uint64_t number)
    {
        if (shape.xor_masks.empty()) {
            const std::uint64_t first = number % shape.sets;
            return first + shape.sets * random_.below((count_ - 1 - first) / shape.sets + 1);
        }
        for (const std::uint64_t vector : kernel_of(shape.xor_masks, storage_.bits())) {
            if (random_.below(2) != 0) number ^= vector;
        }
        return number;
    }

    bool agrees(const StorageShape& shape)
    {
        const std::uint64_t set = shape.set_of(base_);
        unsigned unclear = 0;
        for (unsigned i = 0; i < 2 * kTrials; ++i) {
            const std::uint64_t number = i % 2 == 0 ? companion(shape, base_) : random_.below(count_);
            const Belongs found = belongs(number);
            if (found == Belongs::unclear) {
                ++unclear;
            } else if ((found == Belongs::yes) != (shape.set_of(number) == set)) {
                return false;
            }
        }
        return unclear <= kTrials / 2;
    }

    bool other_sets_agree(const StorageShape& shape)
    {
        for (unsigned i = 0; i < kOtherSets; ++i) {
            const std::uint64_t start = random_.below(count_);
            bool held = false;
            for (unsigned repeat = 0; repeat < kRepeats && !held; ++repeat) {
                std::vector<std::uint64_t> numbers;
                for (unsigned tries = 0; numbers.size() <= shape.ways && tries < 64 * shape.ways; ++tries) {
                    const std::uint64_t number = companion(shape, start);
                    if (std::find(numbers.begin(), numbers.end(), number) == numbers.end()) {
                        numbers.push_back(number);
                    }
                }
                if (numbers.size() <= shape.ways || storage_.holds(numbers)) return false;
                numbers.pop_back();
                held = storage_.holds(numbers);
            }
            if (!held) return false;
        }
        return true;
    }

    Storage& storage_;
    Random& random_;
    std::uint64_t count_;
    std::vector<std::uint64_t> full_;
    std::uint64_t base_ = 0;
};

}  // namespace

std::optional<StorageShape> find_shape(Storage& storage, Random& random)
{
    for (unsigned attempt = 0; attempt < kAttempts; ++attempt) {
        if (auto shape = ShapeFinder{storage, random}.find()) return shape;
    }
    return std::nullopt;
}

}  // namespace mmusim::microbench
