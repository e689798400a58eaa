// SPDX-License-Identifier: Apache-2.0
//
// The data caches of one vCPU, as the walker's and the program's loads see them: who has a line, and when
// it is there (docs/timing.md, "A load through the data caches"). Left out: contents, write-back,
// coherence, prefetchers, inclusion.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <mmusim/storage/index_function.hpp>
#include <mmusim/storage/replacement.hpp>
#include <mmusim/storage/zeroed_array.hpp>
#include <mmusim/timing/slots.hpp>
#include <mmusim/timing/timing_spec.hpp>
#include <mmusim/words/cycles.hpp>

namespace mmusim {

class DataCaches {
public:
    DataCaches(const std::vector<CacheSpec>& specs, Cycles memory_latency);

    struct Load {
        Cycles ready_at;
        unsigned answered_by;  ///< index of the cache; their number: memory
    };
    /// Loads the line of a machine address.
    Load load(std::uint64_t address, Cycles now);
    /// Empties all, and the clock begins anew. Costs time in proportion to the sets in use.
    void reset();

    [[nodiscard]] unsigned levels() const { return static_cast<unsigned>(caches_.size()); }
    [[nodiscard]] unsigned line_shift() const { return line_shift_; }
    /// What a hit in the nearest takes; without caches 0.
    [[nodiscard]] Cycles nearest_latency() const { return caches_.empty() ? 0 : caches_.front().latency; }

private:
    struct Cache {
        explicit Cache(const CacheSpec& spec);

        static constexpr std::uint32_t kNone = ~std::uint32_t{0};
        [[nodiscard]] std::uint32_t find(std::uint64_t line, unsigned set) const;
        void fill(std::uint64_t line, unsigned set, Cycles ready);

        unsigned line_shift;
        unsigned ways;
        Cycles latency;
        IndexFunction index;
        std::unique_ptr<Replacement> replacement;
        ZeroedArray<std::uint64_t> lines;  ///< line number + 1; 0: free
        ZeroedArray<Cycles> ready_at;
        std::vector<unsigned> used_sets;
        Slots misses;
    };
    Load miss(std::uint64_t address, Cycles now);

    std::vector<Cache> caches_;
    Cycles memory_latency_;
    unsigned line_shift_ = 6;
};

}  // namespace mmusim
