// SPDX-License-Identifier: Apache-2.0
//
// `mmusim microbench`: the experiments, as tables for people and as CSV.
#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/microbench/chase.hpp>
#include <mmusim/microbench/geometry.hpp>
#include <mmusim/microbench/measured.hpp>
#include <mmusim/words/number.hpp>

#include "curve_svg.hpp"
#include "text.hpp"
#include "verbs.hpp"

namespace mmusim::tool {

namespace {

using namespace mmusim::microbench;

constexpr std::uint64_t kMostCurvePages = 65536;

[[noreturn]] void refuse(const std::string& why)
{
    throw std::runtime_error(fmt::format("microbench: {}", why));
}

// --- tables --------------------------------------------------------------------------------------------

/// Columns of text; for people with spaces between them, the numbers to the right.
class Table {
public:
    struct Column {
        std::string name;    ///< in CSV
        std::string header;  ///< for people, with the unit; empty: not for them
        bool number = true;
    };
    explicit Table(std::vector<Column> columns) : columns_{std::move(columns)} {}

    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

    [[nodiscard]] std::string csv() const
    {
        std::string text;
        for (const Column& column : columns_)
            text += fmt::format("{}{}", text.empty() ? "" : ",", column.name);
        for (const auto& row : rows_) {
            text += '\n';
            for (std::size_t i = 0; i < row.size(); ++i)
                text += fmt::format("{}{}", i == 0 ? "" : ",", cell(row[i]));
        }
        return text + '\n';
    }
    void print() const
    {
        std::vector<std::size_t> widths;
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            widths.push_back(columns_[i].header.size());
            for (const auto& row : rows_) widths[i] = std::max(widths[i], row[i].size());
        }
        const auto print_line = [&](auto cell) {
            std::string line;
            for (std::size_t i = 0; i < columns_.size(); ++i) {
                if (columns_[i].header.empty()) continue;
                line += columns_[i].number ? fmt::format("  {:>{}}", cell(i), widths[i])
                                           : fmt::format("  {:<{}}", cell(i), widths[i]);
            }
            line.erase(line.find_last_not_of(' ') + 1);
            fmt::print("{}\n", line);
        };
        print_line([&](std::size_t i) { return columns_[i].header; });
        for (const auto& row : rows_) {
            print_line([&](std::size_t i) { return row[i]; });
        }
    }

private:
    static std::string cell(const std::string& text)
    {
        return text.find(',') == std::string::npos ? text : fmt::format("\"{}\"", text);
    }

    std::vector<Column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

std::string cycles_text(double cycles)
{
    return fmt::format("{:.2f}", cycles);
}

void write_file(const std::string& path, const std::string& text)
{
    errno = 0;
    std::ofstream file{path, std::ios::binary};
    file << text;
    file.flush();
    if (!file) throw std::system_error(errno == 0 ? EIO : errno, std::generic_category(), path);
}

/// What an experiment prints: a headline, a table, and lines after it. CSV on standard output leaves only
/// that.
struct Report {
    std::string headline;
    Table table;
    std::vector<std::string> after = {};
};

void show(const MicrobenchOptions& options, const Report& report)
{
    if (!options.csv.empty() && options.csv != "-") write_file(options.csv, report.table.csv());
    if (options.csv == "-") {
        fmt::print("{}", report.table.csv());
        return;
    }
    fmt::print("{}\n", report.headline);
    report.table.print();
    for (const std::string& line : report.after) fmt::print("{}\n", line);
}

// --- options -------------------------------------------------------------------------------------------

std::vector<std::uint64_t> numbers_of(const std::string& option, const std::string& list)
{
    std::vector<std::uint64_t> numbers;
    for (std::size_t at = 0; at <= list.size();) {
        const std::size_t end = std::min(list.find(',', at), list.size());
        const auto number = parse_number(std::string_view{list}.substr(at, end - at));
        if (!number || *number == 0) {
            refuse(fmt::format("{}: '{}' is not a list of numbers above 0, with commas between them", option,
                               list));
        }
        numbers.push_back(*number);
        at = end + 1;
    }
    return numbers;
}

unsigned small_number(const char* option, std::uint64_t value)
{
    constexpr std::uint64_t kMost = 1'000'000;
    if (value > kMost) refuse(fmt::format("{}: {} is more than {}", option, value, kMost));
    return static_cast<unsigned>(value);
}

PageSize page_of(const std::string& name)
{
    for (const PageSize size : {PageSize::k4k, PageSize::k2m, PageSize::k1g}) {
        if (name_of(size) == name) return size;
    }
    refuse(fmt::format("--page: '{}' is not one of 4K, 2M, 1G", name));
}

ChaseOptions chase_of(const MicrobenchOptions& options, Cycles work)
{
    ChaseOptions chase;
    chase.kind = options.kind;
    chase.page = page_of(options.page);
    if (options.mapping != "shared" && options.mapping != "own") {
        refuse(fmt::format("--mapping: '{}' is not one of shared, own", options.mapping));
    }
    chase.mapping = options.mapping == "own" ? Mapping::own : Mapping::shared;
    chase.work = options.work.value_or(work);
    chase.rounds = small_number("--rounds", options.rounds.value_or(chase.rounds));
    chase.warm_up_rounds = small_number("--warm-up", options.warm_up.value_or(chase.warm_up_rounds));
    chase.seed = options.seed.value_or(chase.seed);
    return chase;
}

std::string plural_of(AccessKind kind)
{
    switch (kind) {
    case AccessKind::read: return "reads";
    case AccessKind::write: return "writes";
    case AccessKind::fetch: break;
    }
    return "fetches";
}

std::string what_of(const ChaseOptions& chase)
{
    return fmt::format("{} in {} pages, {}", plural_of(chase.kind), name_of(chase.page),
                       chase.mapping == Mapping::shared ? "all mapped to one page of memory"
                                                        : "each mapped to memory of its own");
}

using Cpu = std::shared_ptr<const CpuProfile>;

// --- the experiments -----------------------------------------------------------------------------------

std::string index_text(const StorageShape& shape)
{
    if (shape.sets == 1) return "full";
    if (shape.xor_masks.empty()) return "linear";
    return masks_text(shape.xor_masks);
}

Report geometry(const MicrobenchOptions& options, const Cpu& cpu)
{
    constexpr std::array<const char*, 6> kEntries{"", "", "PDE", "PDPTE", "PML4E", "PML5E"};
    const Geometry found = find_geometry(cpu, options.seed.value_or(1));
    const Geometry stated = stated_geometry(*cpu);
    Table table{{{"storage", "storage", false},
                 {"page", "pages", false},
                 {"kind", "for", false},
                 {"shared_with", "shared with", false},
                 {"found", "found: entries = sets x ways, index", false},
                 {"entries", ""},
                 {"sets", ""},
                 {"ways", ""},
                 {"index", ""},
                 {"cycles", "cycles of a hit"},
                 {"profile", "the profile", false}}};
    std::size_t exact = 0;
    const auto add = [&](std::vector<std::string> row, const auto& one, const auto& other, Cycles cycles) {
        const bool same = one == other;
        exact += same ? 1 : 0;
        const bool present = one.presence == Presence::present;
        row.push_back(to_string(one));
        row.push_back(present ? fmt::to_string(one.shape.entries()) : "");
        row.push_back(present ? fmt::to_string(one.shape.sets) : "");
        row.push_back(present ? fmt::to_string(one.shape.ways) : "");
        row.push_back(present ? index_text(one.shape) : "");
        row.push_back(cycles == 0 ? "" : fmt::to_string(cycles));
        row.push_back(same ? "says the same" : fmt::format("says: {}", to_string(other)));
        table.add(std::move(row));
    };
    for (std::size_t i = 0; i < found.tlbs.size(); ++i) {
        const TlbGeometry& one = found.tlbs[i];
        add({fmt::format("level {}", one.level), std::string{name_of(one.page)}, plural_of(one.kind),
             one.shared_with ? plural_of(*one.shared_with) : ""},
            one, stated.tlbs[i], one.hit_cycles);
    }
    for (std::size_t i = 0; i < found.paging_structure_caches.size(); ++i) {
        const auto& one = found.paging_structure_caches[i];
        add({kEntries[static_cast<std::size_t>(one.level)], "", "walks", ""}, one,
            stated.paging_structure_caches[i], one.walk_cycles);
    }
    const std::size_t all = found.tlbs.size() + found.paging_structure_caches.size();
    return {fmt::format("{}: TLBs and paging-structure caches, from latencies alone", cpu->name),
            std::move(table),
            {fmt::format("{} of {} as the profile says", exact, all)}};
}

/// The curve beside one that was measured elsewhere.
Report overlay(const MicrobenchOptions& options, const Cpu& cpu, CurveOptions curve)
{
    const std::vector<CurvePoint> measured = read_curve(options.measured, options.column);
    if (options.points.empty()) {
        curve.pages.clear();
        for (const CurvePoint& point : measured) {
            if (point.pages <= options.pages.value_or(kMostCurvePages)) curve.pages.push_back(point.pages);
        }
    }
    const std::vector<ComparedPoint> points = compare(measured, latency_curve(cpu, curve));
    if (points.empty())
        refuse(fmt::format("{}: no point for the curve to be compared with", options.measured));

    Table table{{{"pages", "pages"},
                 {"measured", "measured, cycles an access"},
                 {"model", "model, cycles an access"},
                 {"error_percent", "error, %"}}};
    for (const ComparedPoint& point : points) {
        table.add({fmt::to_string(point.pages), cycles_text(point.measured), cycles_text(point.model),
                   fmt::format("{:+.1f}", 100 * point.error())});
    }
    Report report{fmt::format("{}: latency by number of pages, {}, and {} of {}", cpu->name,
                              what_of(curve.chase), options.column, options.measured),
                  std::move(table)};
    std::vector<std::uint64_t> from = options.from;
    if (from.empty()) from.push_back(points.front().pages);
    for (const std::uint64_t least : from) {
        const MeanError mean = mean_error(points, least);
        if (mean.points == 0) refuse(fmt::format("--from {}: no point from there on", least));
        report.after.push_back(fmt::format("mean error from {} to {} pages: {:.2f} % ({} points)", least,
                                           points.back().pages, 100 * mean.error, mean.points));
    }
    if (!options.svg.empty()) {
        write_file(options.svg, curve_svg(points, "Latency by number of pages", "measured",
                                          fmt::format("mmusim, {}", cpu->name)));
    }
    return report;
}

Report curve(const MicrobenchOptions& options, const Cpu& cpu)
{
    CurveOptions curve;
    curve.chase = chase_of(options, curve.chase.work);
    curve.stride = options.stride.value_or(1);
    if (!options.points.empty()) {
        curve.pages = numbers_of("--points", options.points);
    } else if (options.pages) {
        curve.pages = curve_steps(*options.pages);
    }
    if (!options.measured.empty()) return overlay(options, cpu, std::move(curve));
    Table table{{{"pages", "pages"}, {"cycles", "cycles an access"}}};
    for (const CurvePoint& point : latency_curve(cpu, curve)) {
        table.add({fmt::to_string(point.pages), cycles_text(point.cycles)});
    }
    return {fmt::format("{}: latency by number of pages, {}", cpu->name, what_of(curve.chase)),
            std::move(table)};
}

Report strides(const MicrobenchOptions& options, const Cpu& cpu)
{
    StrideSweepOptions sweep;
    sweep.kind = options.kind;
    sweep.page = page_of(options.page);
    sweep.seed = options.seed.value_or(1);
    sweep.most = options.pages.value_or(sweep.most);
    if (!options.points.empty()) sweep.strides = numbers_of("--points", options.points);
    Table table{{{"stride", "stride, pages"},
                 {"level_1", "pages that level 1 holds"},
                 {"level_2", "pages that level 2 holds"}}};
    for (const StridePoint& point : stride_sweep(cpu, sweep)) {
        table.add({fmt::to_string(point.stride), fmt::to_string(point.first_level),
                   fmt::to_string(point.second_level)});
    }
    return {fmt::format("{}: capacity by stride, {} in {} pages", cpu->name, plural_of(sweep.kind),
                        name_of(sweep.page)),
            std::move(table)};
}

Report sets(const MicrobenchOptions& options, const Cpu& cpu)
{
    SetSweepOptions sweep;
    sweep.chase = chase_of(options, sweep.chase.work);
    sweep.trials = small_number("--trials", options.trials.value_or(sweep.trials));
    const std::uint64_t pages = small_number("--pages", options.pages.value_or(0));
    std::string where = "of one set";
    if (options.stride) {
        const unsigned shift = shift_of(sweep.chase.page);
        sweep.addresses = row_of_pages(pages == 0 ? 32 : pages, *options.stride, sweep.chase.page);
        where = fmt::format("{} apart", grouped(*options.stride << shift));
    } else {
        sweep.addresses = pages_of_one_set(cpu, sweep.chase.kind, sweep.chase.page, pages);
        if (sweep.addresses.empty()) refuse("sets: no level 1 was found for such pages; give a --stride");
    }
    Table table{{{"pages", "pages"},
                 {"mean", "mean, cycles an access"},
                 {"least", "least of the trials"},
                 {"most", "most"}}};
    for (const SetPoint& point : set_sweep(cpu, sweep)) {
        table.add({fmt::to_string(point.pages), cycles_text(point.mean), cycles_text(point.least),
                   cycles_text(point.most)});
    }
    return {fmt::format("{}: cyclic sweeps over pages {}, {}, {} trials", cpu->name, where,
                        what_of(sweep.chase), sweep.trials),
            std::move(table)};
}

Report reach(const MicrobenchOptions& options, const Cpu& cpu)
{
    constexpr std::array<std::pair<const char*, int>, 3> kLevels{{{"pde", 2}, {"pdpte", 3}, {"pml4e", 4}}};
    ReachOptions sweep;
    sweep.chase = chase_of(options, sweep.chase.work);
    if (sweep.chase.page != PageSize::k4k) refuse("--page: reach is about 4K pages");
    sweep.pages = options.pages.value_or(sweep.pages);
    const auto level = std::find_if(kLevels.begin(), kLevels.end(),
                                    [&](const auto& known) { return options.entries == known.first; });
    if (level == kLevels.end()) {
        refuse(fmt::format("--entries: '{}' is not one of pde, pdpte, pml4e", options.entries));
    }
    sweep.level = level->second;
    sweep.spacing = options.spacing == "random" ? 0 : numbers_of("--spacing", options.spacing).front();
    if (!options.points.empty()) sweep.entries = numbers_of("--points", options.points);
    if (options.points.empty() && sweep.level == 4) sweep.entries = curve_steps(64);
    Table table{{{"entries", "entries"}, {"pages", "pages"}, {"cycles", "cycles an access"}}};
    for (const ReachPoint& point : microbench::reach(cpu, sweep)) {
        table.add({fmt::to_string(point.entries), fmt::to_string(point.pages), cycles_text(point.cycles)});
    }
    std::string name = options.entries;
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return static_cast<char>(std::toupper(c)); });
    return {fmt::format("{}: reach of {}s, {}, {}", cpu->name, name,
                        sweep.spacing == 0 ? std::string{"random ones"}
                                           : fmt::format("each {} after the one before", sweep.spacing),
                        what_of(sweep.chase)),
            std::move(table)};
}

Report parallel(const MicrobenchOptions& options, const Cpu& cpu)
{
    ParallelOptions sweep;
    sweep.chase = chase_of(options, sweep.chase.work);
    sweep.pages = options.pages.value_or(sweep.pages);
    if (!options.points.empty()) {
        sweep.chains.clear();
        for (const std::uint64_t chains : numbers_of("--points", options.points)) {
            sweep.chains.push_back(small_number("--points", chains));
        }
    }
    const ParallelWalks walks = parallel_walks(cpu, sweep);
    Table table{{{"chains", "chains"}, {"cycles", "cycles an access"}}};
    for (const ParallelPoint& point : walks.points) {
        table.add({fmt::to_string(point.chains), cycles_text(point.cycles)});
    }
    const std::string found = walks.walkers == 0 ? std::string{"walks in flight: can't be told from these"}
                                                 : fmt::format("walks in flight: {} (the profile says {})",
                                                               walks.walkers, cpu->timing.walker.count);
    return {fmt::format("{}: chases at a time over {} pages in all, {}", cpu->name, grouped(sweep.pages),
                        what_of(sweep.chase)),
            std::move(table),
            {found}};
}

// --- which options go with which -----------------------------------------------------------------------

struct Experiment {
    std::string_view name;
    Report (*make)(const MicrobenchOptions&, const Cpu&);
    std::string_view options;  ///< that it knows, besides --cpu, --seed and --csv
};
constexpr std::array<Experiment, 6> kExperiments{{
    {"geometry", geometry, ""},
    {"curve", curve,
     " --kind --page --mapping --pages --points --stride --work --rounds --warm-up --measured --column "
     "--from --svg "},
    {"strides", strides, " --kind --page --pages --points "},
    {"sets", sets, " --kind --page --mapping --pages --stride --work --rounds --warm-up --trials "},
    {"reach", reach,
     " --kind --page --mapping --pages --points --entries --spacing --work --rounds --warm-up "},
    {"parallel", parallel, " --kind --page --mapping --pages --points --work --rounds --warm-up "},
}};

}  // namespace

int microbench(const MicrobenchOptions& options)
{
    const auto* const experiment =
        std::find_if(kExperiments.begin(), kExperiments.end(),
                     [&](const Experiment& known) { return known.name == options.experiment; });
    if (experiment == kExperiments.end()) {
        refuse(fmt::format("'{}' is not one of geometry, curve, strides, sets, reach, parallel",
                           options.experiment));
    }
    constexpr std::string_view kForAll = " experiment --cpu --seed --csv ";
    for (const std::string& given : options.given) {
        if (kForAll.find(fmt::format(" {} ", given)) != std::string_view::npos) continue;
        if (experiment->options.find(fmt::format(" {} ", given)) == std::string_view::npos) {
            refuse(fmt::format("{} has no meaning for {}", given, experiment->name));
        }
    }
    if (options.measured.empty() && (!options.svg.empty() || !options.from.empty())) {
        refuse("--svg and --from go with --measured");
    }
    if (options.pages == 0) refuse("--pages: there has to be one");
    const auto cpu = std::make_shared<const CpuProfile>(find_cpu_profile(options.cpu));
    show(options, experiment->make(options, cpu));
    return kDone;
}

}  // namespace mmusim::tool
