// SPDX-License-Identifier: Apache-2.0
//
// Processes as a build has them: a shell that forks pipelines of one or two programs, some of which fork
// others before they exec; they run in turns, and exit. All choices come from the seed.
#pragma once

#include <cstdint>
#include <vector>

#include "guest_kernel.hpp"

namespace process_workload {

/// splitmix64: the same numbers everywhere for a seed.
class Choices {
public:
    explicit Choices(std::uint64_t seed) : state_{seed} {}

    std::uint64_t word();
    unsigned below(unsigned limit) { return static_cast<unsigned>(word() % limit); }
    /// first..last, inclusive.
    unsigned from_to(unsigned first, unsigned last) { return first + below(last - first + 1); }
    bool percent(unsigned chance) { return below(100) < chance; }

private:
    std::uint64_t state_;
};

class BuildJob {
public:
    /// Boots the guest.
    BuildJob(Recorder& recorder, Paging paging, std::uint64_t seed);

    /// The shell forks, in pipelines, until so many processes have been and gone.
    void run(unsigned processes);

private:
    Program program();
    /// The running process `parent` forks one or two, lets them run, and waits for them.
    void pipeline(ProcessId parent, unsigned depth);
    /// The running process does something: fetches, reads and writes.
    void work(unsigned steps);
    /// Word of the area that the process uses next: mostly in the page where it was last.
    std::uint64_t word_in(AreaName name);
    void system_call();

    Choices choices_;
    Recorder& recorder_;
    GuestKernel kernel_;
    std::vector<Program> programs_;
    std::array<unsigned, kAreas> last_pages_{};
    unsigned left_ = 0;  ///< processes to be forked
};

}  // namespace process_workload
