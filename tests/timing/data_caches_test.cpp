// SPDX-License-Identifier: Apache-2.0
//
// "A load through the data caches" (docs/timing.md): by hand, and random loads against a plain list of lines.
#include <mmusim/timing/data_caches.hpp>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "storage/naive_replacement.hpp"
#include "support/catch.hpp"

using namespace mmusim;

namespace {

CacheSpec cache(unsigned sets, unsigned ways, Cycles latency, unsigned misses)
{
    CacheSpec spec;
    spec.sets = sets;
    spec.ways = ways;
    spec.latency = latency;
    spec.misses_in_flight = misses;
    return spec;
}

/// When, and by whom.
using Answer = std::pair<Cycles, unsigned>;

Answer load(DataCaches& caches, std::uint64_t address, Cycles now)
{
    const DataCaches::Load done = caches.load(address, now);
    return {done.ready_at, done.answered_by};
}

}  // namespace

TEST_CASE("data caches: none", "[timing]")
{
    DataCaches caches{{}, 77};
    CHECK(load(caches, 0, 5) == Answer{82, 0});
    CHECK(load(caches, 0, 6) == Answer{83, 0});
    CHECK(caches.nearest_latency() == 0);
}

TEST_CASE("data caches: by hand", "[timing]")
{
    DataCaches caches{{cache(1, 1, 4, 1), cache(1, 2, 10, 2)}, 100};
    CHECK(load(caches, 0x00, 0) == Answer{100, 2});
    // On its way: the nearer cache has it already, and it is ready when it is ready.
    CHECK(load(caches, 0x3f, 1) == Answer{100, 0});
    CHECK(load(caches, 0x3f, 98) == Answer{102, 0});
    // The one miss slot of cache 1 is held until 100; the second cache's slots are free by then.
    CHECK(load(caches, 0x40, 2) == Answer{200, 2});
    // Line 0 has left cache 1, and cache 2 has it: a hit there waits for a slot of cache 1 alone.
    CHECK(load(caches, 0x00, 3) == Answer{210, 1});
    CHECK(load(caches, 0x40, 300) == Answer{310, 1});
    // Cache 2 has 0 and 1, of which 1 was used last: 2 makes 0 go.
    CHECK(load(caches, 0x80, 400) == Answer{500, 2});
    CHECK(load(caches, 0x40, 600) == Answer{610, 1});
    CHECK(load(caches, 0x00, 700) == Answer{800, 2});
}

TEST_CASE("data caches: a request passes the caches' miss slots in turn", "[timing]")
{
    // Cache 1 has two slots, cache 2 one: the second request waits in front of cache 2 and so holds its slot
    // of cache 1 until it is through.
    DataCaches caches{{cache(8, 2, 4, 2), cache(8, 2, 10, 1)}, 100};
    CHECK(load(caches, 0x000, 0) == Answer{100, 2});
    CHECK(load(caches, 0x040, 0) == Answer{200, 2});
    CHECK(load(caches, 0x080, 0) == Answer{300, 2});  // slot 0 of cache 1 at 100, cache 2 at 200
    CHECK(load(caches, 0x000, 0) == Answer{100, 0});
}

TEST_CASE("data caches: a line that cache 2 waits for", "[timing]")
{
    // Evicted from cache 1 while on its way: a hit in cache 2 on a line that is not there yet.
    DataCaches caches{{cache(1, 1, 4, 8), cache(4, 4, 10, 8)}, 100};
    CHECK(load(caches, 0x000, 0) == Answer{100, 2});
    CHECK(load(caches, 0x040, 0) == Answer{100, 2});
    CHECK(load(caches, 0x000, 1) == Answer{100, 1});
    CHECK(load(caches, 0x000, 2) == Answer{100, 0});
}

namespace {

/// Caches whose sets are lists.
class PlainCaches {
public:
    PlainCaches(std::vector<CacheSpec> specs, const std::vector<std::string>& policies, Cycles memory)
        : specs_{std::move(specs)}, memory_{memory}
    {
        for (std::size_t i = 0; i < specs_.size(); ++i) {
            const CacheSpec& spec = specs_[i];
            Cache cache;
            cache.lines.resize(spec.sets, std::vector<std::optional<Line>>(spec.ways));
            const auto source = std::make_shared<naive::SplitMix>(naive::SplitMix{spec.replacement.seed});
            for (unsigned set = 0; set < spec.sets; ++set) {
                cache.policies.push_back(
                    naive::make_policy(policies[i], spec.ways, spec.replacement.groups, source));
            }
            cache.slots.resize(spec.misses_in_flight, 0);
            caches_.push_back(std::move(cache));
        }
    }
    Answer load(std::uint64_t address, Cycles now)
    {
        std::size_t level = 0;
        Cycles line_ready = 0;
        for (; level < caches_.size(); ++level) {
            const auto [set, way] = find(level, address);
            if (!way) continue;
            caches_[level].policies[set]->hit(*way);
            line_ready = caches_[level].lines[set][*way]->ready;
            break;
        }
        std::vector<Cycles*> held;
        for (std::size_t i = 0; i < level; ++i) {
            auto& slots = caches_[i].slots;
            held.push_back(&*std::min_element(slots.begin(), slots.end()));
            now = std::max(now, *held.back());
        }
        const Cycles latency = level < caches_.size() ? specs_[level].latency : memory_;
        const Cycles ready = std::max(now + latency, line_ready);
        for (Cycles* const slot : held) *slot = ready;
        for (std::size_t i = 0; i < level; ++i) fill(i, address, ready);
        return {ready, static_cast<unsigned>(level)};
    }

private:
    struct Line {
        std::uint64_t number;
        Cycles ready;
    };
    struct Cache {
        std::vector<std::vector<std::optional<Line>>> lines;
        std::vector<std::unique_ptr<naive::Policy>> policies;
        std::vector<Cycles> slots;
    };
    [[nodiscard]] std::uint64_t number(std::size_t i, std::uint64_t address) const
    {
        return address / specs_[i].line_bytes;
    }
    [[nodiscard]] std::pair<std::size_t, std::optional<unsigned>> find(std::size_t i,
                                                                       std::uint64_t address) const
    {
        const std::size_t set = naive::set_of(number(i, address), specs_[i].index.xor_masks, specs_[i].sets);
        for (unsigned way = 0; way < specs_[i].ways; ++way) {
            const auto& line = caches_[i].lines[set][way];
            if (line && line->number == number(i, address)) return {set, way};
        }
        return {set, std::nullopt};
    }
    void fill(std::size_t i, std::uint64_t address, Cycles ready)
    {
        const std::size_t set = find(i, address).first;
        auto& lines = caches_[i].lines[set];
        std::vector<unsigned> ways;
        std::optional<unsigned> place;
        for (unsigned way = 0; way < lines.size(); ++way) {
            ways.push_back(way);
            if (!place && !lines[way]) place = way;
        }
        if (!place) place = caches_[i].policies[set]->victim(ways);
        lines[*place] = Line{number(i, address), ready};
        caches_[i].policies[set]->filled(*place);
    }

    std::vector<CacheSpec> specs_;
    Cycles memory_;
    std::vector<Cache> caches_;
};

}  // namespace

TEST_CASE("data caches: random loads against plain ones", "[timing]")
{
    constexpr unsigned kSeed = 808;
    std::mt19937_64 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](std::uint64_t end) { return static_cast<unsigned>(random() % end); };
    constexpr std::array<const char*, 7> kPolicies{"lru",    "fifo",  "tree-plru", "bit-plru",
                                                   "random", "srrip", "mru-groups"};
    for (unsigned round = 0; round < 120; ++round) {
        INFO("round " << round);
        std::vector<CacheSpec> specs;
        std::vector<std::string> policies;
        for (unsigned level = 0; level < 1 + round % 4; ++level) {
            constexpr std::array<unsigned, 5> kSets{1, 2, 3, 4, 8};
            CacheSpec spec = cache(kSets[below(5)], 1 + below(8), 1 + below(40), 1 + below(4));
            spec.line_bytes = below(3) == 0 ? 32u << below(3) : 64;
            policies.emplace_back(kPolicies[below(kPolicies.size())]);
            spec.replacement = {.kind = *parse_replacement(policies.back()), .groups = 1, .seed = random()};
            if (spec.ways % 2 == 0) spec.replacement.groups = 2;
            if (spec.sets == 4 && below(2) == 0) spec.index = xor_index(2);
            specs.push_back(spec);
        }
        DataCaches caches{specs, 150};
        PlainCaches plain{specs, policies, 150};
        Cycles now = 0;
        for (unsigned step = 0; step < 1500; ++step) {
            // Requests come in program order, which need not be that of their times.
            const Cycles asked = now > 50 ? now - below(50) : now;
            now += below(30);
            const std::uint64_t address = (below(2) == 0 ? below(12) : below(200)) * 32 + below(32);
            INFO("step " << step);
            const Answer answer = load(caches, address, asked);
            REQUIRE(answer == plain.load(address, asked));
        }
        // After a reset all begins anew.
        caches.reset();
        PlainCaches again{specs, policies, 150};
        for (unsigned step = 0; step < 300; ++step) {
            const std::uint64_t address = below(100) * 32;
            INFO("after the reset, step " << step);
            REQUIRE(load(caches, address, step) == again.load(address, step));
        }
    }
}
