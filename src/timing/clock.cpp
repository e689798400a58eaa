// SPDX-License-Identifier: Apache-2.0
#include <mmusim/timing/clock.hpp>

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace mmusim {

std::string CycleLabels::name(Label label) const
{
    constexpr std::array<std::string_view, kFixed> kNames{
        "instructions",
        "fetch",
        "walk.wait",
        "walk.start",
        "walk.assist",
        "guest_fault",
        "system.mov_cr",
        "system.mov_cr3",
        "system.invlpg",
        "system.invpcid",
        "hypervisor.exit",
        "hypervisor.entry",
        "hypervisor.fault_handler",
        "hypervisor.guest_walk",
        "hypervisor.shadow_page",
        "hypervisor.propagate",
        "hypervisor.emulate",
        "hypervisor.load_root",
        "hypervisor.hash",
        "hypervisor.guess",
        "hypervisor.search",
        "hypervisor.snapshot",
        "hypervisor.compare",
        "hypervisor.flush",
        "hypervisor.prefetch",
        "hypervisor.ipi",
        "hypervisor.access_event",
    };
    if (label < kFixed) return std::string{kNames[label]};
    std::size_t rest = label - std::size_t{kFixed};
    if (rest < tlbs_.size()) return fmt::format("tlb.{}", tlbs_[rest]);
    rest -= tlbs_.size();
    constexpr std::array<std::string_view, kLevels> kEntries{"pte", "pde", "pdpte", "pml4e", "pml5e"};
    const std::string& cache = caches_[rest % caches_.size()];
    const std::size_t level = rest / caches_.size();
    if (level < kEntries.size()) return fmt::format("walk.{}.{}", kEntries[level], cache);
    if (label >= second_level(1, 0)) {
        const std::size_t first = static_cast<std::size_t>(rows_before_second_level());
        return fmt::format("walk.second.{}.{}", kEntries[level - first], cache);
    }
    return fmt::format("{}data.{}", level == kLevels ? "" : "hypervisor.", cache);
}

Clock::Clock(ClockKind kind, unsigned window, unsigned issue_width, std::size_t labels)
    : kind_{kind}, width_{issue_width}, by_(labels, 0), retirements_(window, 0)
{
}

void Clock::pass(std::uint64_t instructions)
{
    if (instructions == 0) return;
    if (kind_ != ClockKind::window) {
        advance(CycleLabels::kInstructions, retired_ + cycles_of(instructions));
        return;
    }
    slot_ += instructions;
    passed_ = cycles_of(slot_);
}

Cycles Clock::issue()
{
    if (kind_ != ClockKind::window) return retired_;
    slot_ = std::max(slot_, retirements_[oldest_] * width_);
    return slot_++ / width_;
}

void Clock::retire(Cycles issued, const Passage& passage)
{
    advance(CycleLabels::kInstructions, issued);
    for (const Passage::Stage& stage : passage) advance(stage.label, stage.until);
    if (kind_ != ClockKind::window) return;
    retirements_[oldest_] = retired_;
    if (++oldest_ == retirements_.size()) oldest_ = 0;
}

void Clock::serialize(Label label, Cycles cycles)
{
    advance(CycleLabels::kInstructions, passed_);
    advance(label, retired_ + cycles);
    slot_ = retired_ * width_;
}

}  // namespace mmusim
