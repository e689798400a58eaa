// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/chase.hpp>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <mmusim/microbench/geometry.hpp>

#include "microbench/laboratory.hpp"
#include "microbench/random.hpp"
#include "microbench/storages.hpp"

namespace mmusim::microbench {

namespace {

constexpr std::uint64_t kLineBytes = 64;
constexpr std::uint64_t kLinesInPage = kPageBytes / kLineBytes;
constexpr std::uint16_t kAccessBytes = 8;
constexpr std::uint64_t kFewestAccesses = 8192;  ///< warming up, and again measured
constexpr std::uint64_t kFirstAddress = std::uint64_t{1} << 40;
constexpr std::uint64_t kEndOfAddresses = std::uint64_t{1} << 47;
constexpr std::uint64_t kFirstOther = 0xffff'8000'0000'0000;
constexpr std::uint64_t kOtherPages = 4096;
constexpr std::uint64_t kMostPages = std::uint64_t{1} << 21;
constexpr unsigned kMostRounds = 1'000'000;
constexpr Cycles kMostWork = 1'000'000;
constexpr unsigned kMostTrials = 10'000;
constexpr unsigned kMostChains = 65536;
constexpr std::size_t kBeyondWays = 8;
constexpr unsigned kStepsInDoubling = 8;
constexpr std::uint64_t kRandomEntries = 1 << 15;  ///< random ones lie among so many
constexpr double kSaturated = 1.02;                ///< more chains gain less than that

void check(const ChaseOptions& options)
{
    if (options.rounds == 0 || options.rounds > kMostRounds || options.warm_up_rounds > kMostRounds) {
        throw ExperimentError(fmt::format("rounds can be 1 to {}", kMostRounds));
    }
    if (options.work > kMostWork) {
        throw ExperimentError(
            fmt::format("{} cycles of work between accesses: at most {}", options.work, kMostWork));
    }
}

void check_row(std::uint64_t pages, std::uint64_t stride, PageSize size)
{
    if (pages == 0 || pages > kMostPages) {
        throw ExperimentError(fmt::format("{} pages: 1 to {} can be chased through", pages, kMostPages));
    }
    if (stride == 0) throw ExperimentError("a stride of 0 pages: there would be one page only");
    if (stride > (kEndOfAddresses - kFirstAddress) / pages >> shift_of(size)) {
        throw ExperimentError(
            fmt::format("{} pages of {} at a stride of {} pages do not fit into 47 address bits", pages,
                        name_of(size), stride));
    }
}

/// Pages to chase through, mapped when they are added.
class Course {
public:
    Course(Testbed& bed, const ChaseOptions& options)
        : bed_{bed}, options_{options}, random_{options.seed}, shared_{bed.new_page(options.page)}
    {
        check(options);
    }
    void add(LinearAddress page)
    {
        const Gfn frame = options_.mapping == Mapping::shared ? shared_ : bed_.new_page(options_.page);
        bed_.map(page, options_.page, frame);
        // The data's lines are spread over the sets of a cache.
        const LinearAddress line = page + accesses_.size() % kLinesInPage * kLineBytes;
        accesses_.push_back({.address = line,
                             .gap = bed_.instructions(options_.work),
                             .bytes = kAccessBytes,
                             .kind = options_.kind});
    }
    void shuffle() { random_.shuffle(accesses_); }

    /// Cycles of an access, once it goes round.
    double chase()
    {
        do_other_things();
        run(options_.warm_up_rounds);
        return run(options_.rounds);
    }

private:
    /// Other pages in no order, so that the replacement policies begin anywhere, as on a machine that has
    /// done other things before.
    void do_other_things()
    {
        std::vector<LinearAddress> others;
        for (std::uint64_t i = 0; i < kOtherPages; ++i) {
            others.emplace_back(kFirstOther + (i << shift_of(options_.page)));
            bed_.map(others.back(), options_.page, shared_);
        }
        for (std::uint64_t left = random_.below(2 * kOtherPages); left > 0; --left) {
            bed_.access(options_.kind, others[random_.below(kOtherPages)]);
        }
    }

    double run(unsigned least_rounds)
    {
        const std::uint64_t rounds =
            std::max<std::uint64_t>(least_rounds, kFewestAccesses / accesses_.size());
        Cycles cycles = 0;
        for (std::uint64_t i = 0; i < rounds; ++i) cycles += bed_.run(accesses_);
        return static_cast<double>(cycles) / static_cast<double>(rounds * accesses_.size());
    }

    Testbed& bed_;
    ChaseOptions options_;
    Random random_;
    Gfn shared_;
    std::vector<StreamAccess> accesses_;
};

/// The most of 1 to `most` for which `holds`, which is so for all below it; 0 if for none.
template <class Holds>
std::uint64_t last_that_holds(std::uint64_t most, Holds holds)
{
    std::uint64_t yes = 0;
    std::uint64_t no = most + 1;
    while (no - yes > 1) {
        const std::uint64_t middle = yes + (no - yes) / 2;
        (holds(middle) ? yes : no) = middle;
    }
    return yes;
}

/// What level 1 holds for a kind of access, by page size.
std::array<StorageShape, kSizes.size()> first_level_shapes(const std::shared_ptr<const CpuProfile>& cpu,
                                                           AccessKind kind, std::uint64_t seed)
{
    std::array<StorageShape, kSizes.size()> shapes{};
    for (std::size_t i = 0; i < kSizes.size(); ++i) {
        Laboratory lab{cpu, kSizes[i], seed};
        const Latencies latencies = calibrate(lab, kind);
        if (!latencies.hit(latencies.repeated)) continue;
        FirstLevel storage{lab, kind, latencies};
        if (const auto shape = find_shape(storage, lab.random)) shapes[i] = *shape;
    }
    return shapes;
}

}  // namespace

std::vector<std::uint64_t> curve_steps(std::uint64_t most)
{
    std::vector<std::uint64_t> steps;
    for (unsigned i = 0; i < 63 * kStepsInDoubling; ++i) {
        const auto step =
            static_cast<std::uint64_t>(std::llround(std::exp2(double{1} * i / kStepsInDoubling)));
        if (step > most) break;
        if (steps.empty() || step != steps.back()) steps.push_back(step);
    }
    return steps;
}

std::vector<CurvePoint> latency_curve(const std::shared_ptr<const CpuProfile>& cpu,
                                      const CurveOptions& options)
{
    std::vector<CurvePoint> curve;
    for (const std::uint64_t pages : options.pages) check_row(pages, options.stride, options.chase.page);
    for (const std::uint64_t pages : options.pages) {
        Testbed bed{cpu};
        Course course{bed, options.chase};
        for (const LinearAddress page : row_of_pages(pages, options.stride, options.chase.page))
            course.add(page);
        course.shuffle();
        curve.push_back({pages, course.chase()});
    }
    return curve;
}

std::vector<StridePoint> stride_sweep(const std::shared_ptr<const CpuProfile>& cpu,
                                      const StrideSweepOptions& options)
{
    Laboratory lab{cpu, options.page, options.seed};
    const Latencies latencies = calibrate(lab, options.kind);
    FirstLevel first{lab, options.kind, latencies};
    SecondLevel second{lab, options.kind, latencies};
    const bool any = latencies.hit(latencies.repeated);
    const bool two = any && second.find_approach(first_level_shapes(cpu, options.kind, options.seed));

    std::vector<StridePoint> points;
    for (const std::uint64_t stride : options.strides) {
        if (stride == 0) throw ExperimentError("a stride of 0 pages: there would be one page only");
        const std::uint64_t room = ((std::uint64_t{1} << lab.bits()) - 1) / stride;
        std::vector<std::uint64_t> numbers(std::min({options.most, room, kMostPages}));
        for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = i * stride;
        const auto most_in = [&](Storage& storage) {
            return last_that_holds(numbers.size(), [&](std::uint64_t pages) {
                return storage.holds(std::span{numbers}.first(pages), {});
            });
        };
        points.push_back({stride, any ? most_in(first) : 0, two ? most_in(second) : 0});
    }
    return points;
}

std::vector<LinearAddress> row_of_pages(std::uint64_t pages, std::uint64_t stride, PageSize size)
{
    check_row(pages, stride, size);
    std::vector<LinearAddress> row;
    for (std::uint64_t i = 0; i < pages; ++i)
        row.emplace_back(kFirstAddress + (i * stride << shift_of(size)));
    return row;
}

std::vector<SetPoint> set_sweep(const std::shared_ptr<const CpuProfile>& cpu, const SetSweepOptions& options)
{
    if (options.trials == 0 || options.trials > kMostTrials) {
        throw ExperimentError(fmt::format("trials can be 1 to {}", kMostTrials));
    }
    std::vector<SetPoint> points;
    for (std::uint64_t pages = std::max<std::uint64_t>(options.first, 1); pages <= options.addresses.size();
         ++pages) {
        SetPoint point{.pages = pages};
        for (unsigned trial = 0; trial < options.trials; ++trial) {
            Testbed bed{cpu};
            ChaseOptions chase = options.chase;
            chase.seed += trial;
            Course course{bed, chase};
            for (std::uint64_t i = 0; i < pages; ++i) course.add(options.addresses[i]);
            const double cycles = course.chase();
            point.least = trial == 0 ? cycles : std::min(point.least, cycles);
            point.most = std::max(point.most, cycles);
            point.mean += cycles / options.trials;
        }
        points.push_back(point);
    }
    return points;
}

std::vector<LinearAddress> pages_of_one_set(const std::shared_ptr<const CpuProfile>& cpu, AccessKind kind,
                                            PageSize page, std::size_t count)
{
    std::vector<StorageShape> shapes;
    for (const TlbGeometry& one : find_geometry(cpu).tlbs) {
        if (one.kind != kind || one.page != page) continue;
        if (one.level == 1 && one.presence != Presence::present) return {};
        if (one.presence == Presence::present) shapes.push_back(one.shape);
    }
    if (shapes.empty()) return {};
    if (count == 0) {
        for (const StorageShape& shape : shapes) count = std::max<std::size_t>(count, shape.ways);
        count += kBeyondWays;
    }
    std::vector<LinearAddress> addresses;
    for (const std::uint64_t number : same_set(shapes, kFirstAddress >> shift_of(page), count)) {
        addresses.emplace_back(number << shift_of(page));
    }
    return addresses;
}

std::vector<ReachPoint> reach(const std::shared_ptr<const CpuProfile>& cpu, const ReachOptions& options)
{
    constexpr std::uint64_t kTableEntries = 512;
    if (options.level < 2 || options.level > 4) throw ExperimentError("entries can be of level 2, 3 or 4");
    const unsigned shift = kFourLevel.shift(options.level);
    const unsigned child_shift = kFourLevel.shift(options.level - 1);
    const std::uint64_t entries_in_reach = std::uint64_t{1} << (tested_bits(kFourLevel.levels) - shift);
    std::vector<ReachPoint> points;
    for (const std::uint64_t entries : options.entries) {
        const std::uint64_t most = options.spacing == 0 ? std::min(entries_in_reach, kRandomEntries)
                                                        : entries_in_reach / options.spacing;
        if (entries == 0 || entries > most) {
            throw ExperimentError(
                fmt::format("{} entries at that spacing: 1 to {} have addresses", entries, most));
        }
        Random random{options.chase.seed};
        Testbed bed{cpu};
        Course course{bed, options.chase};
        const std::uint64_t each = std::clamp<std::uint64_t>(options.pages / entries, 1, kTableEntries);
        std::vector<std::uint64_t> chosen;
        while (chosen.size() < entries) {
            std::uint64_t entry = chosen.size() * options.spacing;
            if (options.spacing == 0) {
                entry = random.below(most);
                if (std::find(chosen.begin(), chosen.end(), entry) != chosen.end()) continue;
            }
            chosen.push_back(entry);
            for (std::uint64_t i = 0; i < each; ++i) {
                std::uint64_t page = entry << shift | i << child_shift;
                // Below the lower entry any page will do; not the same one, for all their entries would be in
                // one set of the data caches.
                if (options.level > 2)
                    page |= random.below(std::uint64_t{1} << (child_shift - kPageShift)) << kPageShift;
                course.add(LinearAddress{page});
            }
        }
        course.shuffle();
        points.push_back({entries, entries * each, course.chase()});
    }
    return points;
}

ParallelWalks parallel_walks(const std::shared_ptr<const CpuProfile>& cpu, const ParallelOptions& options)
{
    const std::vector<LinearAddress> pages = row_of_pages(options.pages, 1, options.chase.page);
    const auto measure = [&](const TestbedOptions& testbed) {
        Testbed bed{cpu, testbed};
        Course course{bed, options.chase};
        for (const LinearAddress page : pages) course.add(page);
        course.shuffle();
        return course.chase();
    };
    ParallelWalks result;
    for (const unsigned chains : options.chains) {
        if (chains == 0 || chains > kMostChains) {
            throw ExperimentError(fmt::format("{} chains: 1 to {} can be in flight", chains, kMostChains));
        }
        result.points.push_back({chains, measure({.clock = ClockKind::window, .window = chains})});
    }

    // Only a TLB that answers says how much of an access is no walk.
    Laboratory lab{cpu, options.chase.page, options.chase.seed};
    const Latencies latencies = calibrate(lab, options.chase.kind);
    if (!latencies.hit(latencies.repeated) || result.points.size() < 2) return result;
    SecondLevel second{lab, options.chase.kind, latencies};
    const auto first = first_level_shapes(cpu, options.chase.kind, options.chase.seed);
    const Cycles hit = second.find_approach(first) ? second.hit_cycles() : latencies.repeated;
    const double alone = measure({}) - static_cast<double>(options.chase.work + hit);
    const double last = result.points.back().cycles;
    const double before = result.points[result.points.size() - 2].cycles;
    if (before > kSaturated * last) return result;
    result.walkers = static_cast<unsigned>(std::lround(alone / last));
    return result;
}

}  // namespace mmusim::microbench
