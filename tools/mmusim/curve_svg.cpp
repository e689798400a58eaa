// SPDX-License-Identifier: Apache-2.0
#include "curve_svg.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "text.hpp"

namespace mmusim::tool {

namespace {

constexpr double kWidth = 860, kHeight = 420;
constexpr double kLeft = 60, kRight = 20, kTop = 40, kBottom = 50;
constexpr const char* kMeasuredColour = "#c2410c";
constexpr const char* kModelColour = "#1d4ed8";

std::string escaped(const std::string& text)
{
    std::string safe;
    for (const char c : text) {
        if (c == '<') {
            safe += "&lt;";
        } else if (c == '&') {
            safe += "&amp;";
        } else {
            safe += c;
        }
    }
    return safe;
}

/// From the data to the drawing.
class Frame {
public:
    explicit Frame(std::span<const microbench::ComparedPoint> points)
        : first_{std::log2(static_cast<double>(points.front().pages))}
        , last_{std::max(std::log2(static_cast<double>(points.back().pages)), first_ + 1)}
    {
        for (const auto& point : points) top_ = std::max({top_, point.measured, point.model});
        step_ = std::exp2(std::ceil(std::log2(top_ / 8)));  // 4 to 8 lines
        top_ = std::ceil(top_ / step_) * step_;
    }
    [[nodiscard]] double x(double log_pages) const
    {
        return kLeft + (log_pages - first_) / (last_ - first_) * (kWidth - kLeft - kRight);
    }
    [[nodiscard]] double y(double cycles) const
    {
        return kHeight - kBottom - cycles / top_ * (kHeight - kTop - kBottom);
    }
    [[nodiscard]] std::string grid() const
    {
        std::string lines;
        for (double cycles = 0; cycles <= top_; cycles += step_) {
            lines += fmt::format(
                "<path d=\"M{:.1f} {:.1f}H{:.1f}\" stroke=\"#ddd\"/>\n"
                "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
                kLeft, y(cycles), kWidth - kRight, kLeft - 6, y(cycles) + 4, cycles);
        }
        const double between = last_ - first_ > 10 ? 2 : 1;
        for (double log = std::ceil(first_); log <= last_; log += between) {
            lines += fmt::format(
                "<path d=\"M{:.1f} {:.1f}V{:.1f}\" stroke=\"#ddd\"/>\n"
                "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                x(log), kTop, kHeight - kBottom, x(log), kHeight - kBottom + 16,
                grouped(static_cast<std::uint64_t>(std::exp2(log))));
        }
        return lines;
    }

private:
    double first_;
    double last_;
    double top_ = 1;
    double step_ = 1;
};

}  // namespace

std::string curve_svg(std::span<const microbench::ComparedPoint> points, const std::string& title,
                      const std::string& measured_name, const std::string& model_name)
{
    if (points.empty()) return {};
    const Frame frame{points};
    std::string line;
    std::string dots;
    for (const auto& point : points) {
        const double x = frame.x(std::log2(static_cast<double>(point.pages)));
        line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", x, frame.y(point.model));
        dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\"/>\n", x, frame.y(point.measured));
    }
    const double legend = kTop + 16;
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n"
        "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
        "<text x=\"{2}\" y=\"22\" font-size=\"15\">{3}</text>\n{4}"
        "<text x=\"{5:.1f}\" y=\"{6:.1f}\" text-anchor=\"middle\">pages</text>\n"
        "<text transform=\"translate(16 {7:.1f}) rotate(-90)\" text-anchor=\"middle\">cycles an "
        "access</text>\n"
        "<path d=\"{8}\" fill=\"none\" stroke=\"{9}\" stroke-width=\"1.8\"/>\n"
        "<g fill=\"{10}\">\n{11}<circle cx=\"{12}\" cy=\"{13:.1f}\" r=\"2.6\"/>\n</g>\n"
        "<text x=\"{14}\" y=\"{15:.1f}\">{16}</text>\n"
        "<path d=\"M{17} {18:.1f}h18\" stroke=\"{9}\" stroke-width=\"1.8\"/>\n"
        "<text x=\"{14}\" y=\"{19:.1f}\">{20}</text>\n</svg>\n",
        kWidth, kHeight, kLeft, escaped(title), frame.grid(), (kLeft + kWidth - kRight) / 2, kHeight - 12,
        (kTop + kHeight - kBottom) / 2, line, kModelColour, kMeasuredColour, dots, kLeft + 21, legend - 4,
        kLeft + 36, legend, escaped(measured_name), kLeft + 12, legend + 14, legend + 18,
        escaped(model_name));
}

}  // namespace mmusim::tool
