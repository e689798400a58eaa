// SPDX-License-Identifier: Apache-2.0
//
// The curves: closed forms where there are any, capacities to the page, the profile's walkers, and a real
// CPU's curve.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/microbench/chase.hpp>
#include <mmusim/microbench/measured.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace mmusim;
using namespace mmusim::microbench;
using mmusim::test::ScratchFile;

namespace {

std::shared_ptr<const CpuProfile> bundled(const std::string& name)
{
    return std::make_shared<const CpuProfile>(find_cpu_profile(name));
}

double cycles_at(const std::shared_ptr<const CpuProfile>& cpu, std::uint64_t pages,
                 const ChaseOptions& chase = {}, std::uint64_t stride = 1)
{
    CurveOptions options;
    options.chase = chase;
    options.pages = {pages};
    options.stride = stride;
    return latency_curve(cpu, options).front().cycles;
}

const std::string kMeasured = MMUSIM_SOURCE_DIR "/tests/data/measured/translation_latency_4k.csv";

}  // namespace

TEST_CASE("microbench: hits take what their levels take", "[microbench]")
{
    for (const BundledCpuProfile& profile : bundled_cpu_profiles()) {
        INFO(profile.name);
        const auto cpu = bundled(std::string{profile.name});
        if (cpu->tlbs.tlbs.empty()) continue;
        const TimingSpec& timing = cpu->timing;
        Cycles data = timing.data_caches.empty() ? timing.memory_latency : timing.data_caches.front().latency;
        std::vector<const TlbSpec*> chain;
        for (const TlbSpec& tlb : cpu->tlbs.tlbs) {
            if (tlb.loads) chain.push_back(&tlb);
        }
        const Cycles first = 2 + data + chain[0]->lookup_cycles;
        CHECK(cycles_at(cpu, 1) == static_cast<double>(first));
        CHECK(cycles_at(cpu, 16) == static_cast<double>(first));
        CHECK(cycles_at(cpu, 16, {.work = 0}) == static_cast<double>(first - 2));
        CHECK(cycles_at(cpu, 16, {.work = 7}) == static_cast<double>(first + 5));
        // 200 pages overflow each level 1, and no level 2.
        CHECK(cycles_at(cpu, 200) >= static_cast<double>(first));
        CHECK(cycles_at(cpu, 200) <= static_cast<double>(first + chain[1]->lookup_cycles));
    }
    CHECK(cycles_at(bundled("golden_cove"), 64) == 7);
    CHECK(cycles_at(bundled("golden_cove"), 512) == 14);
    CHECK(cycles_at(bundled("golden_cove"), 1024) == 14);
}

TEST_CASE("microbench: walks take what they load", "[microbench]")
{
    // LRU, no caches: everything misses, and each of 4 entries and the data come from memory.
    CHECK(cycles_at(bundled("drcachesim"), 2048) == 2 + 7 + 4 * 100 + 100);
    CHECK(cycles_at(bundled("none"), 3) == 2 + 4 * 100 + 100);
    // A larger page's walk is an entry shorter.
    CHECK(cycles_at(bundled("none"), 3, {.page = PageSize::k2m}) == 2 + 3 * 100 + 100);
    CHECK(cycles_at(bundled("none"), 3, {.page = PageSize::k1g}) == 2 + 2 * 100 + 100);
    // A fetch uses no data cache.
    CHECK(cycles_at(bundled("none"), 3, {.kind = AccessKind::fetch}) == 2 + 4 * 100 + 1);

    // 20 pages, 4 LRU entries: each access walks from the PDE, or without such a cache from the PDPTE.
    const auto with_cache_of = [](const std::string& entries) {
        return std::make_shared<const CpuProfile>(parse_cpu_profile(fmt::format(R"({{
            "schema": "mmusim-cpu-profile", "version": 1, "name": "small",
            "tlbs": [{{"name": "l1", "level": 1, "fetches": true, "loads": true, "stores": true, "lookup_cycles": 1,
                      "arrays": [{{"pages": ["4K"], "entries": 4, "ways": "full"}}]}}],
            "paging_structure_caches": {{"{}": {{"entries": 8, "ways": "full"}}}},
            "data_caches": [{{"name": "l1d", "sets": 64, "ways": 8, "latency": 4}}],
            "walker": {{"start_cycles": 3, "load_cycles": {{"pte": 6, "pde": 7, "pdpte": 8, "pml4e": 9}}}}
        }})",
                                                                                entries),
                                                                    "a test"));
    };
    CHECK(cycles_at(with_cache_of("pde"), 20) == 2 + 1 + 3 + (6 + 4) + 4);
    CHECK(cycles_at(with_cache_of("pdpte"), 20) == 2 + 1 + 3 + (7 + 4) + (6 + 4) + 4);
    CHECK(cycles_at(with_cache_of("pml4e"), 20) == 2 + 1 + 3 + (8 + 4) + (7 + 4) + (6 + 4) + 4);
    CHECK(cycles_at(with_cache_of("pml5e"), 20) == 2 + 1 + 3 + (9 + 4) + (8 + 4) + (7 + 4) + (6 + 4) + 4);
}

TEST_CASE("microbench: pages of their own cost what their data cost", "[microbench]")
{
    const auto cpu = bundled("golden_cove");
    CHECK(cycles_at(cpu, 32, {.mapping = Mapping::own}) == 7);
    // 8,192 lines do not fit the nearest cache, but the next one.
    const double shared = cycles_at(cpu, 8192);
    const double own = cycles_at(cpu, 8192, {.mapping = Mapping::own});
    CHECK(own > shared + 8);
    CHECK(own < shared + 40);
}

TEST_CASE("microbench: a seed is an order", "[microbench]")
{
    const auto cpu = bundled("golden_cove");
    CurveOptions options;
    options.pages = {108, 2435};
    const auto first = latency_curve(cpu, options);
    CHECK(latency_curve(cpu, options) == first);
    options.pages = {2435};  // no point depends on the others
    CHECK(latency_curve(cpu, options).front() == first.back());
    options.chase.seed = 2;
    const auto second = latency_curve(cpu, options);
    CHECK(second.front() != first.back());
    CHECK(second.front().cycles == Approx(first.back().cycles).epsilon(0.05));
}

TEST_CASE("microbench: steps of a curve", "[microbench]")
{
    CHECK(curve_steps(0).empty());
    CHECK(curve_steps(1) == std::vector<std::uint64_t>{1});
    const auto steps = curve_steps(64);
    CHECK(steps.front() == 1);
    CHECK(steps.back() == 64);
    CHECK(std::is_sorted(steps.begin(), steps.end()));
    CHECK(std::adjacent_find(steps.begin(), steps.end()) == steps.end());
}

TEST_CASE("microbench: capacities by stride", "[microbench]")
{
    const auto sweep = [](const char* name, std::vector<std::uint64_t> strides,
                          PageSize page = PageSize::k4k) {
        StrideSweepOptions options;
        options.strides = std::move(strides);
        options.page = page;
        std::string text;
        for (const StridePoint& point : stride_sweep(bundled(name), options)) {
            text += fmt::format("{}: {} {}, ", point.stride, point.first_level, point.second_level);
        }
        return text;
    };
    // What was measured: 96 pages, half as many with each doubling to 16; of 2,048 at distances of 2^12,
    // 2^13, 2^14 pages 64, 32 and 16.
    CHECK(sweep("golden_cove", {1, 2, 4, 8, 16, 64, 4096, 8192, 16384, 32768}) ==
          "1: 96 2048, 2: 48 2048, 4: 24 2048, 8: 12 2048, 16: 6 2048, 64: 6 2048, "
          "4096: 6 64, 8192: 6 32, 16384: 6 16, 32768: 6 16, ");
    CHECK(sweep("skylake", {1, 16, 4096, 8192, 16384}) ==
          "1: 64 1536, 16: 4 1536, 4096: 4 48, 8192: 4 24, 16384: 4 12, ");
    CHECK(sweep("skylake", {1, 2, 4}, PageSize::k1g) == "1: 4 16, 2: 4 8, 4: 4 4, ");
    // Where the sets are no power of two, a stride of one has no advantage over an even one. PDEs live there
    // too.
    CHECK(sweep("zen1", {192, 384}, PageSize::k2m) == "192: 64 8, 384: 64 4, ");
    CHECK(sweep("drcachesim", {1, 2, 3, 256}) == "1: 32 1024, 2: 32 512, 3: 32 1024, 256: 32 4, ");
    CHECK(sweep("none", {1}) == "1: 0 0, ");
}

TEST_CASE("microbench: sweeps over one set", "[microbench]")
{
    const auto cpu = bundled("golden_cove");
    SetSweepOptions options;
    options.addresses = pages_of_one_set(cpu, AccessKind::read, PageSize::k4k);
    REQUIRE(options.addresses.size() == 24);
    options.trials = 8;
    const auto points = set_sweep(cpu, options);
    REQUIRE(points.size() == 24);
    for (const SetPoint& point : points) {
        INFO(point.pages);
        CHECK(point.least <= point.mean + 1e-9);
        CHECK(point.mean <= point.most + 1e-9);
        if (point.pages <= 6) CHECK(point.most == 7);
        if (point.pages >= 7) CHECK(point.least > 7);
        if (point.pages <= 16) CHECK(point.most <= 14);
        if (point.pages >= 8 && point.pages <= 16) CHECK(point.mean == Approx(14).margin(0.05));
        if (point.pages > 16) CHECK(point.least > 14);
    }
    CHECK(pages_of_one_set(bundled("none"), AccessKind::read, PageSize::k4k).empty());
}

TEST_CASE("microbench: paging-structure caches reach as far as they have entries", "[microbench]")
{
    const auto cpu = bundled("golden_cove");
    ReachOptions options;
    options.entries = {16, 32, 64};
    options.pages = 8192;
    const auto pde = reach(cpu, options);
    REQUIRE(pde.size() == 3);
    CHECK(pde[1].pages == 8192);
    CHECK(pde[2].cycles > pde[1].cycles + 8);
    // Without such caches it makes no difference.
    const auto flat = reach(bundled("none"), options);
    CHECK(flat[0].cycles == 502);
    CHECK(flat[2].cycles == 502);
    // An upper level costs more.
    options.entries = {48};
    options.pages = 4096;
    options.level = 3;
    const double pdpte = reach(cpu, options)[0].cycles;
    options.level = 4;
    CHECK(reach(cpu, options)[0].cycles > pdpte + 15);
}

TEST_CASE("microbench: as many walks at a time as the profile has walkers", "[microbench][slow]")
{
    ParallelOptions options;
    options.pages = 8192;
    options.chains = {1, 2, 32, 48};
    for (const BundledCpuProfile& profile : bundled_cpu_profiles()) {
        INFO(profile.name);
        const auto cpu = bundled(std::string{profile.name});
        const ParallelWalks walks = parallel_walks(cpu, options);
        REQUIRE(walks.points.size() == 4);
        CHECK(walks.points[1].cycles < walks.points[0].cycles);
        CHECK(walks.points[3].cycles == Approx(walks.points[2].cycles).epsilon(0.01));
        CHECK(walks.walkers == (cpu->tlbs.tlbs.empty() ? 0 : cpu->timing.walker.count));
    }
}

TEST_CASE("microbench: too few chains tell no number of walkers", "[microbench]")
{
    ParallelOptions options;
    options.chains = {1, 2};
    CHECK(parallel_walks(bundled("golden_cove"), options).walkers == 0);
}

TEST_CASE("microbench: golden_cove keeps within its bounds of a real CPU", "[microbench][slow]")
{
    const auto measured = read_curve(kMeasured, "median_of_run_minima");
    CurveOptions options;
    options.pages.clear();
    for (const CurvePoint& point : measured) {
        if (point.pages <= 65536) options.pages.push_back(point.pages);
    }
    const auto points = compare(measured, latency_curve(bundled("golden_cove"), options));
    REQUIRE(points.size() == 111);

    const MeanError all = mean_error(points, 83);
    const MeanError walks = mean_error(points, 1300);
    INFO(100 * all.error << " % and " << 100 * walks.error << " %");
    CHECK(all.points == 78);
    CHECK(walks.points == 46);
    CHECK(all.error <= 0.05);
    CHECK(walks.error <= 0.08);
    for (const ComparedPoint& point : points) {
        INFO(point.pages);
        const bool plateau = point.pages <= 83 || (point.pages >= 128 && point.pages <= 1218);
        if (plateau) CHECK(std::abs(point.model - point.measured) <= 0.2);
    }
}

TEST_CASE("microbench: parameters that make no experiment", "[microbench]")
{
    const auto cpu = bundled("none");
    const auto curve = [&](auto change) {
        CurveOptions options;
        options.pages = {4};
        change(options);
        return latency_curve(cpu, options);
    };
    CHECK_NOTHROW(curve([](CurveOptions&) {}));
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.pages = {0}; }), ExperimentError);
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.pages = {std::uint64_t{1} << 40}; }),
                    ExperimentError);
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.stride = 0; }), ExperimentError);
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.stride = ~std::uint64_t{0}; }),
                    ExperimentError);
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.chase.rounds = 0; }), ExperimentError);
    CHECK_THROWS_AS(curve([](CurveOptions& options) { options.chase.work = ~Cycles{0}; }), ExperimentError);
    CHECK_THROWS_AS(stride_sweep(cpu, {.strides = {0}}), ExperimentError);
    CHECK_THROWS_AS(reach(cpu, {.level = 5}), ExperimentError);
    CHECK_THROWS_AS(reach(cpu, {.level = 4, .entries = {1000}}), ExperimentError);
    CHECK_THROWS_AS(reach(cpu, {.entries = {0}}), ExperimentError);
    CHECK_THROWS_AS(parallel_walks(cpu, {.chains = {0}}), ExperimentError);
    CHECK_THROWS_AS(set_sweep(cpu, {.trials = 0}), ExperimentError);
}

TEST_CASE("microbench: a measured curve is read, or refused with its line", "[microbench]")
{
    const auto read = [](const std::string& text) {
        const ScratchFile file{text, ".csv"};
        return read_curve(file.path(), "cycles");
    };
    const auto refusal = [&](const std::string& text) -> std::string {
        try {
            (void)read(text);
        } catch (const MeasuredCurveError& error) {
            const std::string what = error.what();
            return what.substr(what.find(".csv: ") + 6);
        }
        return "none";
    };
    CHECK(read("pages,cycles\n1,7\n8,7.25\n") == std::vector<CurvePoint>{{1, 7}, {8, 7.25}});
    CHECK(read("note,cycles,pages\r\nx,7,1\r\n") == std::vector<CurvePoint>{{1, 7}});
    CHECK(refusal("pages,latency\n1,7\n") == "line 1: there is no column 'cycles'");
    CHECK(refusal("") == "line 1: there is no column 'pages'");
    CHECK(refusal("pages,cycles\n") == "has no points");
    CHECK(refusal("pages,cycles\n1\n") == "line 2: 1 fields, but 2 columns");
    CHECK(refusal("pages,cycles\n1,7\n\n") == "line 3: 1 fields, but 2 columns");
    CHECK(refusal("pages,cycles\n0,7\n") == "line 2: '0' is no number of pages");
    CHECK(refusal("pages,cycles\n1.5,7\n") == "line 2: '1.5' is no number of pages");
    CHECK(refusal("pages,cycles\n1,7x\n") == "line 2: '7x' is no number of cycles");
    CHECK(refusal("pages,cycles\n1,nan\n") == "line 2: 'nan' is no number of cycles");
    CHECK(refusal("pages,cycles\n2,7\n2,7\n") == "line 3: the pages do not rise");
    CHECK_THROWS_AS(read_curve("/nowhere/curve.csv", "cycles"), MeasuredCurveError);

    const auto curve = read_curve(kMeasured, "median_of_run_minima");
    CHECK(curve.front() == CurvePoint{1, 7});
    CHECK(curve.back() == CurvePoint{2097152, 963.89});
}

TEST_CASE("microbench: errors are means of absolute parts", "[microbench]")
{
    const std::vector<CurvePoint> measured{{1, 10}, {2, 10}, {4, 20}, {8, 5}};
    const std::vector<CurvePoint> model{{1, 10}, {2, 9}, {4, 26}, {16, 1}};
    const auto points = compare(measured, model);
    REQUIRE(points.size() == 3);
    CHECK(points[1].error() == Approx(-0.1));
    CHECK(mean_error(points).error == Approx(0.4 / 3));
    CHECK(mean_error(points, 2).error == Approx(0.2));
    CHECK(mean_error(points, 2, 3).error == Approx(0.1));
    CHECK(mean_error(points, 2, 3).points == 1);
    CHECK(mean_error(points, 5).points == 0);
}
