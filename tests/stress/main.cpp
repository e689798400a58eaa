// SPDX-License-Identifier: Apache-2.0
//
// Random guest programs in numbers: scripts/stress.sh.
//
//   mmusim_stress HOME PROGRAMS [STEPS [FIRST-SEED [POLICY]]]
//
// HOME: 2-level, PAE, 4-level or 5-level. Prints how far it is; on a failure the shrunk program's trace and
// the command that replays it, and ends with 1.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/stress.hpp"

namespace {

using P = reference::Paging;

std::optional<P> home_of(const std::string& name)
{
    for (const P home : {P::two_level, P::pae, P::four_level, P::five_level}) {
        if (stress::name_of(home) == name) return home;
    }
    return std::nullopt;
}

std::uint64_t number(const char* text)
{
    char* end = nullptr;
    const std::uint64_t value = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0' || value == 0) {
        fmt::print(stderr, "mmusim_stress: '{}' is not a number from 1 on\n", text);
        std::exit(2);
    }
    return value;
}

}  // namespace

int main(int argc, char** argv)
{
    const std::optional<P> home = argc >= 3 && argc <= 6 ? home_of(argv[1]) : std::nullopt;
    if (!home) {
        fmt::print(
            stderr,
            "usage: mmusim_stress 2-level|PAE|4-level|5-level PROGRAMS [STEPS [FIRST-SEED [POLICY]]]\n");
        return 2;
    }
    const std::uint64_t programs = number(argv[2]);
    const std::uint64_t steps = argc > 3 ? number(argv[3]) : 1000;
    const std::uint64_t first = argc > 4 ? number(argv[4]) : 1;
    std::vector<stress::Contestant> contestants = stress::contestants();
    if (argc > 5) {
        std::erase_if(contestants, [&](const stress::Contestant& one) { return one.name != argv[5]; });
        if (contestants.empty()) {
            fmt::print(stderr, "mmusim_stress: there is no policy '{}'\n", argv[5]);
            return 2;
        }
    }

    const auto start = std::chrono::steady_clock::now();
    const auto seconds = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    constexpr std::uint64_t kPortion = 500;
    std::vector<stress::Coverage> coverage;
    const auto all_steps = [&] {
        std::uint64_t count = 0;
        for (const stress::Coverage& one : coverage) count += one.steps;
        return count;
    };
    for (std::uint64_t done = 0; done < programs; done += kPortion) {
        const std::uint64_t portion = std::min(kPortion, programs - done);
        stress::Plan plan{*home, first + done, portion, static_cast<unsigned>(steps), {}};
        if (const auto found = stress::run(plan, contestants, coverage)) {
            fmt::print("{}", stress::report(*found, *home));
            return 1;
        }
        fmt::print("{}: seeds {} to {} passed: {} million steps in {:.0f} s, {:.2f} million a second\n",
                   stress::name_of(*home), first, first + done + portion - 1, all_steps() / 1'000'000,
                   seconds(), static_cast<double>(all_steps()) / 1e6 / seconds());
        std::fflush(stdout);
    }
    for (std::size_t i = 0; i < contestants.size(); ++i) {
        const stress::Coverage& seen = coverage[i];
        fmt::print(
            "  {:<16}{} steps, {} pages translated, {} faults, {} stale, {} emulated, {} tables out of "
            "sync, {} times short of pages\n",
            contestants[i].name, seen.steps, seen.placed, seen.faults, seen.stale, seen.emulated,
            seen.unsynced, seen.no_room);
    }
    return 0;
}
