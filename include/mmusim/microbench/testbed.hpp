// SPDX-License-Identifier: Apache-2.0
//
// What an experiment on a CPU's address translation runs on: a native machine with one vCPU, a clock, and
// tables that the experiment makes itself. It shows how long accesses take, and nothing else: no counter and
// no figure of the profile is asked, but the width of the front end, which a programmer knows too.
//
// Entries of the tables have A and D set, so that no walk is longer for setting them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/machine/machine.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/cycles.hpp>
#include <mmusim/words/paging_mode.hpp>

namespace mmusim::microbench {

/// Pages of 4- and 5-level paging; the value is the level of the entry that maps one.
enum class PageSize : std::uint8_t { k4k = 1, k2m = 2, k1g = 3 };

/// "4K", "2M", "1G".
[[nodiscard]] std::string_view name_of(PageSize size);
/// log2 of the bytes.
[[nodiscard]] constexpr unsigned shift_of(PageSize size)
{
    return kFourLevel.shift(static_cast<int>(size));
}

struct TestbedOptions {
    Paging paging = Paging::four_level;  ///< or five_level
    ClockKind clock = ClockKind::blocking;
    unsigned window = 0;
};

class Testbed {
public:
    using Options = TestbedOptions;

    explicit Testbed(std::shared_ptr<const CpuProfile> cpu, const Options& options = {});

    // --- the tables ------------------------------------------------------------------------------------
    /// Maps one page to `frame` (a multiple of the page's size), with tables of its own where none are yet.
    void map(LinearAddress page, PageSize size, Gfn frame);
    /// Frames for data that nothing else has: a run as long and as aligned as a page of that size.
    [[nodiscard]] Gfn new_page(PageSize size);
    /// Maps every address from `first` on whose entry in the root is one of `count`, in pages of `size`, all
    /// to one page of memory and through one table for each level. So a walk finds its entries in few lines.
    void map_folded(unsigned first, unsigned count, PageSize size);

    // --- what runs -------------------------------------------------------------------------------------
    /// One access of 8 bytes; the cycles from when it could be issued until it was done.
    Cycles access(AccessKind kind, LinearAddress address);
    /// Accesses one after another; the cycles for all of them.
    Cycles run(std::span<const StreamAccess> accesses);
    /// Drops all translations, as MOV CR3 does.
    void flush();

    /// Instructions that take so many cycles to issue.
    [[nodiscard]] std::uint32_t instructions(Cycles cycles) const;
    /// Levels of the tables: 4 or 5.
    [[nodiscard]] int levels() const { return levels_; }

private:
    [[nodiscard]] Gfn new_frame();
    [[nodiscard]] GuestPhysical entry_at(Gfn table, int level, LinearAddress address) const;
    [[nodiscard]] std::uint64_t entry(GuestPhysical at) const;
    void set_entry(GuestPhysical at, std::uint64_t value);

    Machine machine_;
    int levels_;
    std::uint64_t frames_used_ = 0;
    std::uint64_t big_pages_used_ = 0;
    Gfn root_;
};

}  // namespace mmusim::microbench
