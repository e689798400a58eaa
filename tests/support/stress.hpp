// SPDX-License-Identifier: Apache-2.0
//
// Many random programs under many setups. Each program is made once, and run under all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "support/lockstep.hpp"

namespace stress {

/// A policy with parameters that a seed may choose.
struct Contestant {
    std::string name;
    std::function<Setup(std::uint64_t seed)> make;
};

/// Native, nested, each policy of the catalog, and as `custom` Xen's mechanism with one of its nine switches
/// off, a different one for each seed.
[[nodiscard]] std::vector<Contestant> contestants();
/// The custom policy's parts, with one switch off: which are there, and how many.
inline constexpr unsigned kSwitches = 9;
[[nodiscard]] mmusim::CustomShadowPolicy without_switch(unsigned number);

/// A CPU that caches nothing or one that does, machine memory laid out in one of three ways, shadows
/// populated in one of two, a pool as small as can be or a large one, and in a program that keeps to a mode
/// sometimes the fixed one: as the seed and `variant` say.
void vary(Setup& setup, reference::Paging home, std::uint64_t seed, unsigned variant, unsigned vcpus);

/// The smallest pool, in pages, with which every guest of this mode runs.
[[nodiscard]] std::uint64_t smallest_pool(reference::Paging home, bool settled, unsigned vcpus,
                                          const mmusim::PolicyDeclaration& declared);

struct Plan {
    reference::Paging home = reference::Paging::four_level;
    std::uint64_t first_seed = 1;
    std::uint64_t programs = 1;
    unsigned steps = 1000;
    Checks checks;
};

/// The first program that failed.
struct Found {
    std::uint64_t seed = 0;
    Setup setup;
    GuestProgram program;
    Failure failure;
};

/// Runs the programs. Adds to `coverage`, by contestant.
[[nodiscard]] std::optional<Found> run(const Plan& plan, const std::vector<Contestant>& contestants,
                                       std::vector<Coverage>& coverage);

/// Shrinks it, writes the trace to the folder that MMUSIM_TRACES names (else the system's for temporary
/// files) and says in a few lines what failed and how to see it.
[[nodiscard]] std::string report(const Found& found, reference::Paging home);

[[nodiscard]] std::string name_of(reference::Paging home);

}  // namespace stress
