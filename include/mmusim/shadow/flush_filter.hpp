// SPDX-License-Identifier: Apache-2.0
//
// Which CPUs must flush their TLBs before a page is used for something else (reference/xen.md B14): one
// clock of 32 bits ticks at each full flush, every CPU remembers when it flushed last, a page when it was
// freed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mmusim {

/// Whether a CPU that flushed at `cpu` may still cache what was freed at `stamp`. `now` = 0: the clock has
/// just wrapped; a stamp beyond `now` is from before that, when all flushed.
[[nodiscard]] constexpr bool flush_needed(std::uint32_t now, std::uint32_t cpu, std::uint32_t stamp)
{
    return now == 0 || (cpu <= stamp && stamp <= now);
}

class FlushFilter {
public:
    explicit FlushFilter(unsigned cpus) : last_(cpus, 0) {}

    [[nodiscard]] std::uint32_t now() const { return now_; }
    /// A CPU has flushed everything. True: the clock has wrapped, and all others have to as well.
    [[nodiscard]] bool flushed(unsigned cpu)
    {
        const bool wrapped = ++now_ == 0;
        if (wrapped) {
            now_ = 1;
            std::fill(last_.begin(), last_.end(), 1u);
        }
        last_[cpu] = now_;
        return wrapped;
    }
    [[nodiscard]] bool needed(std::uint32_t stamp) const
    {
        return std::any_of(last_.begin(), last_.end(),
                           [&](std::uint32_t cpu) { return flush_needed(now_, cpu, stamp); });
    }

private:
    std::uint32_t now_ = 1;
    std::vector<std::uint32_t> last_;
};

}  // namespace mmusim
