// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/measured.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include <mmusim/words/number.hpp>

namespace mmusim::microbench {

namespace {

std::vector<std::string_view> fields_of(std::string_view line)
{
    if (line.ends_with('\r')) line.remove_suffix(1);
    std::vector<std::string_view> fields;
    for (;;) {
        const std::size_t comma = line.find(',');
        fields.push_back(line.substr(0, comma));
        if (comma == std::string_view::npos) return fields;
        line.remove_prefix(comma + 1);
    }
}

std::optional<double> decimal(std::string_view text)
{
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value))
        return std::nullopt;
    return value;
}

}  // namespace

std::vector<CurvePoint> read_curve(const std::string& path, const std::string& column)
{
    std::ifstream file{path};
    if (!file) throw MeasuredCurveError(fmt::format("{}: can't be read", path));
    std::string line;
    std::getline(file, line);
    const std::vector<std::string_view> names = fields_of(line);
    const auto place_of = [&](std::string_view name) {
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) {
            throw MeasuredCurveError(fmt::format("{}: line 1: there is no column '{}'", path, name));
        }
        return static_cast<std::size_t>(found - names.begin());
    };
    const std::size_t pages_at = place_of("pages");
    const std::size_t cycles_at = place_of(column);
    const std::size_t columns = names.size();

    std::vector<CurvePoint> curve;
    for (std::size_t number = 2; std::getline(file, line); ++number) {
        const auto refuse = [&](std::string_view what) {
            throw MeasuredCurveError(fmt::format("{}: line {}: {}", path, number, what));
        };
        const std::vector<std::string_view> fields = fields_of(line);
        if (fields.size() != columns) {
            refuse(fmt::format("{} fields, but {} columns", fields.size(), columns));
        }
        const auto pages = parse_number(fields[pages_at]);
        const auto cycles = decimal(fields[cycles_at]);
        if (!pages || *pages == 0) refuse(fmt::format("'{}' is no number of pages", fields[pages_at]));
        if (!cycles || *cycles <= 0) refuse(fmt::format("'{}' is no number of cycles", fields[cycles_at]));
        if (!curve.empty() && curve.back().pages >= *pages) refuse("the pages do not rise");
        curve.push_back({*pages, *cycles});
    }
    if (curve.empty()) throw MeasuredCurveError(fmt::format("{}: has no points", path));
    return curve;
}

std::vector<ComparedPoint> compare(std::span<const CurvePoint> measured, std::span<const CurvePoint> model)
{
    std::vector<ComparedPoint> points;
    for (const CurvePoint& one : measured) {
        const auto same = std::find_if(model.begin(), model.end(),
                                       [&](const CurvePoint& other) { return other.pages == one.pages; });
        if (same != model.end()) points.push_back({one.pages, one.cycles, same->cycles});
    }
    return points;
}

MeanError mean_error(std::span<const ComparedPoint> points, std::uint64_t least, std::uint64_t most)
{
    MeanError mean;
    for (const ComparedPoint& point : points) {
        if (point.pages < least || point.pages > most) continue;
        mean.error += std::abs(point.error());
        ++mean.points;
    }
    if (mean.points > 0) mean.error /= static_cast<double>(mean.points);
    return mean;
}

}  // namespace mmusim::microbench
