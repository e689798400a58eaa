// SPDX-License-Identifier: Apache-2.0
//
// Refinement: whatever translates (the guest's own tables, in one dimension or two, or shadows under any
// policy of the catalog, step and P2M layout, with a pool as small as can be), a guest observes what the
// plain reference model says. Random programs: support/guest_program.hpp; what must hold:
// support/lockstep.hpp. mmusim_stress runs more of them.
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/stress.hpp"

namespace {

using P = reference::Paging;

std::vector<stress::Coverage> check_programs(P home, std::uint64_t first_seed, std::uint64_t programs,
                                             const stress::Checks& checks)
{
    std::vector<stress::Coverage> coverage;
    const auto found =
        stress::run({home, first_seed, programs, 1000, checks}, stress::contestants(), coverage);
    if (found) FAIL(stress::report(*found, home));
    return coverage;
}

/// Each policy has met what it is about. The number of CR3 loads without an exit.
std::uint64_t check_coverage(const std::vector<stress::Coverage>& coverage)
{
    const auto contestants = stress::contestants();
    std::uint64_t unseen = 0;
    for (std::size_t i = 0; i < contestants.size(); ++i) {
        const stress::Coverage& seen = coverage[i];
        INFO(contestants[i].name << ": " << seen.steps << " steps");
        CHECK(seen.placed * 10 > seen.steps);
        CHECK(seen.faults * 10 > seen.steps);
        CHECK(seen.to_tables * 50 > seen.steps);
        if (contestants[i].name == "native") continue;
        if (contestants[i].name == "nested") {
            CHECK(seen.remapped * 100 > seen.steps);
            CHECK(seen.emulated > 0);
            continue;
        }
        unseen += seen.unseen;
        CHECK(seen.emulated * 50 > seen.steps);
        CHECK(seen.secure * 1000 > seen.steps);
        CHECK(seen.withheld * 1000 > seen.steps);
        CHECK(seen.remapped * 100 > seen.steps);
        const auto declared = contestants[i].make(0).policy()->declared();
        if (!declared.coherent()) CHECK(seen.stale > 0);
        if (declared.sizes.out_of_sync != 0 && !declared.coherent()) CHECK(seen.unsynced > 0);
    }
    return unseen;
}

constexpr stress::Checks kOften{16, 64};
constexpr stress::Checks kSeldom{0, 500};

}  // namespace

TEST_CASE("refinement: 2-level programs", "[machine]")
{
    CHECK(check_coverage(check_programs(P::two_level, 1, 20, kOften)) > 10);
}

TEST_CASE("refinement: PAE programs", "[machine]")
{
    (void)check_coverage(check_programs(P::pae, 1, 20, kOften));
}

TEST_CASE("refinement: 4-level programs", "[machine]")
{
    CHECK(check_coverage(check_programs(P::four_level, 1, 20, kOften)) > 10);
}

TEST_CASE("refinement: 5-level programs", "[machine]")
{
    CHECK(check_coverage(check_programs(P::five_level, 1, 20, kOften)) > 10);
}

TEST_CASE("refinement: many 2-level programs", "[machine][slow]")
{
    (void)check_programs(P::two_level, 1'000'000, 10'000, kSeldom);
}

TEST_CASE("refinement: many PAE programs", "[machine][slow]")
{
    (void)check_programs(P::pae, 1'000'000, 10'000, kSeldom);
}

TEST_CASE("refinement: many 4-level programs", "[machine][slow]")
{
    (void)check_programs(P::four_level, 1'000'000, 10'000, kSeldom);
}

TEST_CASE("refinement: many 5-level programs", "[machine][slow]")
{
    (void)check_programs(P::five_level, 1'000'000, 10'000, kSeldom);
}

TEST_CASE("refinement: each switch off", "[machine]")
{
    for (unsigned number = 0; number < stress::kSwitches; ++number) {
        const stress::Setup setup = stress::custom_setup(stress::without_switch(number));
        const stress::Contestant one{"custom", [&](std::uint64_t) { return setup; }};
        for (const P home : {P::two_level, P::pae, P::four_level, P::five_level}) {
            std::vector<stress::Coverage> coverage;
            const auto found = stress::run({home, 5000, 4, 1000, kOften}, {one}, coverage);
            if (found) FAIL(stress::report(*found, home));
        }
    }
    SUCCEED();
}

// The figure that the programs above run with is the least, not merely enough.
TEST_CASE("refinement: with a page less than the smallest pool some guest of a mode does not run",
          "[machine]")
{
    const auto catalog = mmusim::builtin_shadow_policies();
    for (const P home : {P::two_level, P::pae, P::four_level, P::five_level}) {
        bool crashed = false;
        for (std::uint64_t seed = 0; seed < 200 && !crashed; seed += 2) {
            const stress::GuestProgram program = stress::random_program(home, seed, 1000);
            stress::Setup setup = stress::setup_for("write-protect", catalog);
            const std::uint64_t pool =
                stress::smallest_pool(home, true, program.header.vcpus, setup.policy()->declared());
            setup.config.shadow_pool_pages = pool;
            CHECK_FALSE(stress::Lockstep{program.header, setup}.run(program.steps, {}));
            setup.config.shadow_pool_pages = pool - 1;
            const auto failure = stress::Lockstep{program.header, setup}.run(program.steps, {});
            crashed = failure && failure->kind == stress::Failure::Kind::crash;
        }
        INFO(stress::name_of(home));
        CHECK(crashed);
    }
}
