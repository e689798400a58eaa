// SPDX-License-Identifier: Apache-2.0
//
// Random guest programs in nested mode on CPUs that cache, while the P2M changes: what TLBs and nested TLBs
// hold agrees with the P2M after each few records, and each translation is one that the manual permits, as
// the coherence oracle judges. (On CPUs that cache nothing these programs run in
// tests/machine/refinement_test.cpp.)
#include <array>
#include <string>

#include <fmt/format.h>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"
#include "support/guest_program.hpp"
#include "support/random.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

using P = reference::Paging;

ReplayConfig config_for(support::Random64& random)
{
    ReplayConfig config;
    config.mode = TranslationMode::nested;
    config.p2m = parse_p2m_layout(
        random.one_of(std::array<const char*, 3>{"identity", "offset:0x300000", "shuffled:7"}));
    config.cpu = random.one_of(std::array<const char*, 4>{"golden_cove", "zen3", "skylake", "nehalem"});
    config.clock = random.percent(50) ? ClockKind::off : ClockKind::window;
    config.window = config.clock == ClockKind::window ? 4 : 0;
    config.check_coherence = true;
    config.nested.format = random.percent(50) ? P2mFormat::ept : P2mFormat::npt;
    config.nested.levels = random.percent(70) ? 4 : 5;
    config.nested.largest_page = random.one_of(std::array<int, 3>{1, 2, 3});
    config.nested.tlb_entries = random.one_of(std::array<unsigned, 3>{0, 2, 32});
    config.nested.ad_bits = random.percent(50);
    config.nested.vpid = random.percent(70);
    return config;
}

}  // namespace

TEST_CASE("random programs in nested mode: what is cached agrees with the P2M", "[replay][nested]")
{
    std::uint64_t hits = 0;
    std::uint64_t violations = 0;
    std::uint64_t flushes = 0;
    for (const P home : {P::two_level, P::pae, P::four_level, P::five_level}) {
        for (std::uint64_t seed = 1; seed <= 24; ++seed) {
            support::Random64 random{seed};
            const ReplayConfig config = config_for(random);
            INFO("seed " << seed << ", " << config.cpu << ", " << describe(config));
            const stress::GuestProgram program = stress::random_program(home, seed, 1000);
            Replayer replayer{program.header, config, builtin_shadow_policies()};
            std::size_t done = 0;
            for (const Record& record : program.steps) {
                try {
                    replayer.replay(record);
                } catch (const RecordError&) {
                    continue;  // not every program says what this mode, or its P2M, can do
                }
                if (++done % 8 != 0) continue;
                const auto wrong = replayer.machine().audit();
                INFO("record " << done << ": " << (wrong.empty() ? std::string{} : wrong.front()));
                REQUIRE(wrong.empty());
            }
            replayer.finish();
            INFO((replayer.violations().empty() ? std::string{} : replayer.violations().front().text));
            CHECK(replayer.violations().empty());
            CHECK(done > program.steps.size() / 2);
            const MachineCounters counters = replayer.machine().counters();
            for (const TlbCounters& tlb : counters.tlbs) hits += tlb.hits;
            violations += counters.second_level.violations();
            flushes += counters.flushes;
        }
    }
    CHECK(hits > 1000);
    CHECK(violations > 1000);
    CHECK(flushes > 100);
}
