// SPDX-License-Identifier: Apache-2.0
#include "support/stress.hpp"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include "support/random.hpp"
#include "support/shrink.hpp"

namespace stress {

using namespace mmusim;
using P = reference::Paging;

CustomShadowPolicy without_switch(unsigned number)
{
    CustomShadowPolicy parts;
    constexpr std::array<bool ShadowSwitches::*, kSwitches - 1> kOthers{
        &ShadowSwitches::writable_heuristic, &ShadowSwitches::early_unshadow,
        &ShadowSwitches::fast_fault_path,    &ShadowSwitches::prefetch,
        &ShadowSwitches::linux_l3_toplevel,  &ShadowSwitches::skip_verify,
        &ShadowSwitches::virtual_tlb,        &ShadowSwitches::fast_emulation};
    if (number == 0) {
        parts.out_of_sync = false;
    } else {
        parts.switches.*kOthers[number - 1] = false;
    }
    return parts;
}

std::vector<Contestant> contestants()
{
    std::vector<Contestant> all{{"native", [](std::uint64_t) { return native_setup(); }},
                                {"nested", [](std::uint64_t) { return nested_setup(); }}};
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const ShadowPolicyCatalog::Entry& entry : catalog.entries()) {
        if (entry.name == "custom") {
            all.push_back({"custom", [](std::uint64_t seed) {
                               return custom_setup(without_switch(static_cast<unsigned>(seed % kSwitches)));
                           }});
        } else {
            all.push_back({entry.name,
                           [name = entry.name, catalog](std::uint64_t) { return setup_for(name, catalog); }});
        }
    }
    return all;
}

std::uint64_t smallest_pool(P home, bool settled, unsigned vcpus, const PolicyDeclaration& declared)
{
    // The roots of all vCPUs stay. Besides them there is room for what is made at once: the rest of a path,
    // or a root beside the one that it replaces. A root takes four pages outside long mode, as one table
    // (also of a vCPU with paging off) or as four.
    const std::uint64_t n = vcpus;
    if (declared.sizes.previous_roots != 0) return 64;
    if (!settled || home == P::two_level) return 4 * n + 4;
    if (home == P::pae) return 4 * n + 1;
    return n + (home == P::four_level ? 3 : 4);
}

namespace {

constexpr std::array<const char*, 3> kLayouts{"identity", "offset:0x300000", "shuffled:7"};

void vary_nested(Setup& setup, support::Random64& random)
{
    NestedConfig& nested = setup.config.nested;
    setup.config.p2m = parse_p2m_layout(random.one_of(kLayouts)).value();
    nested.format = random.percent(50) ? P2mFormat::ept : P2mFormat::npt;
    nested.levels = random.percent(70) ? 4 : 5;
    nested.largest_page = random.one_of(std::array<int, 3>{1, 2, 3});
    nested.tlb_entries = random.one_of(std::array<unsigned, 3>{0, 2, 32});
    nested.ad_bits = random.percent(50);
}

}  // namespace

void vary(Setup& setup, P home, std::uint64_t seed, unsigned variant, unsigned vcpus)
{
    // Natively a TLB's stale walks set bits that the reference does not know of: tests/model has them.
    if (setup.config.mode == TranslationMode::native) return;
    support::Random64 random{seed * 64 + variant};
    if (setup.config.mode == TranslationMode::nested) return vary_nested(setup, random);
    if (random.percent(10)) setup.config.cpu = "golden_cove";
    setup.config.p2m = parse_p2m_layout(random.one_of(kLayouts)).value();
    setup.config.populate = random.percent(70) ? Populate::leaf : Populate::step;
    if (random.percent(30))
        setup.config.shadow_pool_pages =
            smallest_pool(home, seed % 2 == 0, vcpus, setup.policy()->declared());
    // Only coherent policies stay right where MOV CR3 is not seen; with PAE none does.
    if (setup.policy()->declared().coherent() && random.percent(25)) {
        setup.config.cr3_targets = {0, 0x1000, 0x2000, 0x3000};
        setup.config.shadow_pool_pages.reset();
    }
    if (seed % 2 != 0 || random.percent(50)) return;
    setup.config.mode = home == P::two_level    ? TranslationMode::shadow_2_on_3
                        : home == P::pae        ? TranslationMode::shadow_3_on_3
                        : home == P::four_level ? TranslationMode::shadow_4_on_4
                                                : TranslationMode::shadow_5_on_5;
}

std::string name_of(P home)
{
    switch (home) {
    case P::two_level: return "2-level";
    case P::pae: return "PAE";
    case P::four_level: return "4-level";
    case P::five_level: return "5-level";
    case P::off: break;
    }
    return "off";
}

std::optional<Found> run(const Plan& plan, const std::vector<Contestant>& contestants,
                         std::vector<Coverage>& coverage)
{
    coverage.resize(contestants.size());
    for (std::uint64_t seed = plan.first_seed; seed < plan.first_seed + plan.programs; ++seed) {
        GuestProgram program = random_program(plan.home, seed, plan.steps);
        for (std::size_t i = 0; i < contestants.size(); ++i) {
            Setup setup = contestants[i].make(seed);
            vary(setup, plan.home, seed, static_cast<unsigned>(i), program.header.vcpus);
            // The pool gives pages to the set of dirty frames only above a floor.
            if (plan.checks.dirty_every != 0 && setup.config.shadow_pool_pages)
                *setup.config.shadow_pool_pages += 128 * program.header.vcpus + DirtySet::kLevels * 4;
            Lockstep lockstep{program.header, setup};
            if (auto failure = lockstep.run(program.steps, plan.checks))
                return Found{seed, std::move(setup), std::move(program), *std::move(failure)};
            coverage[i].add(lockstep.coverage());
        }
    }
    return std::nullopt;
}

std::string report(const Found& found, P home)
{
    const Shrunk shrunk = shrink(found.program, found.setup, found.failure);
    const char* folder = std::getenv("MMUSIM_TRACES");
    const std::filesystem::path path =
        (folder != nullptr ? std::filesystem::path{folder} : std::filesystem::temp_directory_path()) /
        fmt::format("mmusim-{}-{}-{}.jsonl", name_of(home),
                    has_shadows(found.setup.config) ? found.setup.config.policy
                                                    : std::string{name_of(found.setup.config.mode)},
                    found.seed);
    write_trace(path.string(), shrunk.program, found.setup, fmt::format("seed {}", found.seed));
    return fmt::format("{} programs, seed {}, {} steps, {} vCPUs, step {}: {}\nshrunk to {} steps: {}\n{}\n",
                       name_of(home), found.seed, found.program.steps.size(), found.program.header.vcpus,
                       found.failure.step + 1, found.failure.what, shrunk.program.steps.size(),
                       shrunk.failure.what, replay_command(path.string(), found.setup, shrunk.failure));
}

}  // namespace stress
