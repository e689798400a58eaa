// SPDX-License-Identifier: Apache-2.0
//
// Migration over a trace whose writes are known: what each round dirties is the set of frames written in it,
// and the replay without log-dirty is a plain replay.
#include <mmusim/replay/migrate.hpp>

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/files.hpp"
#include "support/random.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;
using mmusim::test::ScratchFile;

namespace {

constexpr std::uint64_t kPages = 32;

/// Paging is off: linear addresses are the frames'. A write in every second record.
struct Written {
    std::string text;
    std::vector<std::uint64_t> frames;  ///< by record
};

Written random_writes(std::uint64_t seed, unsigned records)
{
    support::Random64 random{seed};
    Written written;
    written.text = Header{}.line() + R"({"op":"poke","gpa":"0x1000","size":8,"value":1})" + '\n';
    for (unsigned i = 0; i < records; ++i) {
        const std::uint64_t frame = random.below(kPages);
        written.frames.push_back(frame);
        written.text +=
            fmt::format(R"({{"op":"{}","la":"{:#x}"}})", i % 2 == 0 ? "write" : "read", frame << 12);
        written.text += '\n';
    }
    return written;
}

std::size_t dirtied(const Written& written, std::size_t first, std::size_t last)
{
    std::set<std::uint64_t> frames;
    for (std::size_t i = first; i < last; ++i) {
        if (i % 2 == 0) frames.insert(written.frames[i]);
    }
    return frames.size();
}

ReplayConfig plain(ClockKind clock = ClockKind::blocking)
{
    ReplayConfig config;
    config.clock = clock;
    return config;
}

Migration migrated(const std::string& text, const ReplayConfig& config, const MigrationPlan& plan)
{
    const ScratchFile file{"migrated.jsonl"};
    std::ofstream{file.path()} << text;
    return migrate(file.path(), config, builtin_shadow_policies(), plan);
}

}  // namespace

TEST_CASE("migrate: rounds of equal numbers of records", "[replay][migrate]")
{
    constexpr unsigned kRecords = 103;
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        INFO("seed " << seed);
        const Written written = random_writes(seed, kRecords);
        for (const std::uint64_t rounds : {std::uint64_t{1}, std::uint64_t{4}, std::uint64_t{10}}) {
            const Migration found = migrated(written.text, plain(), {rounds, {}});
            CHECK(found.first_record == 2);
            CHECK(found.timed);
            REQUIRE(found.rounds.size() == rounds);
            std::uint64_t to_send = found.ram_pages;
            std::uint64_t first = 0;
            for (std::uint64_t i = 0; i < rounds; ++i) {
                const MigrationRound& round = found.rounds[i];
                const std::uint64_t last = kRecords * (i + 1) / rounds;
                CHECK(round.records == last - first);
                CHECK(round.pages_sent == to_send);
                CHECK(round.pages_dirtied == dirtied(written, first, last));
                to_send = round.pages_dirtied;
                first = last;
            }
            CHECK(found.downtime_pages == to_send);
            CHECK_FALSE(found.trace_ended);
            // Without log-dirty: as a replay without migration, but for what comes before it.
            const Outcome alone = replay_text(written.text, plain());
            CHECK(found.untracked().faults == alone.total.shadow.fault);
            CHECK(found.untracked().exits == alone.total.hardware.exits);
            CHECK(found.tracked().faults > found.untracked().faults);
            CHECK(found.tracked().cycles > found.untracked().cycles);
        }
    }
}

TEST_CASE("migrate: rounds as long as their pages take", "[replay][migrate]")
{
    const Written written = random_writes(7, 2000);
    const Migration found = migrated(written.text, plain(), {4, 1'000'000});  // a page in a cycle
    REQUIRE_FALSE(found.rounds.empty());
    std::uint64_t first = 0;
    std::uint64_t to_send = found.ram_pages;
    for (const MigrationRound& round : found.rounds) {
        CHECK(round.pages_dirtied == dirtied(written, first, first + round.records));
        CHECK(round.pages_sent == to_send);
        CHECK(round.tracked.cycles >= round.pages_sent);
        to_send = round.pages_dirtied;
        first += round.records;
    }
    CHECK(found.downtime_pages == to_send);

    // Too slow for the trace: what has not been sent yet is sent while the guest stands still.
    const Migration slow = migrated(written.text, plain(), {4, 1});
    REQUIRE(slow.rounds.size() == 1);
    CHECK(slow.trace_ended);
    CHECK(slow.rounds[0].records == 2000);
    CHECK(slow.rounds[0].pages_sent == slow.rounds[0].tracked.cycles / 1'000'000);
    CHECK(slow.downtime_pages == slow.ram_pages - slow.rounds[0].pages_sent + dirtied(written, 0, 2000));
    CHECK(slow.pages_sent() == slow.ram_pages + dirtied(written, 0, 2000));
}

TEST_CASE("migrate: a guest that writes nothing has moved after a round", "[replay][migrate]")
{
    const std::string text = Header{}.line() + R"({"op":"read","la":"0x1000"})" + '\n';
    const Migration found = migrated(text, plain(ClockKind::off), {5, {}});
    CHECK_FALSE(found.timed);
    CHECK(found.rounds.size() == 1);
    CHECK(found.downtime_pages == 0);
    CHECK(found.pages_of_trie == 0);
}

TEST_CASE("migrate: skip and limit", "[replay][migrate]")
{
    const Written written = random_writes(9, 100);
    ReplayConfig config = plain(ClockKind::off);
    config.skip = 41;  // the poke and 40 accesses
    config.limit = 20;
    const Migration found = migrated(written.text, config, {2, {}});
    CHECK(found.first_record == 42);
    REQUIRE(found.rounds.size() == 2);
    CHECK(found.rounds[0].pages_dirtied == dirtied(written, 40, 50));
    CHECK(found.rounds[1].pages_dirtied == dirtied(written, 50, 60));
}

TEST_CASE("migrate: what cannot be", "[replay][migrate]")
{
    const std::string text = random_writes(1, 10).text;
    ReplayConfig native = plain();
    native.mode = TranslationMode::native;
    CHECK_THROWS_AS(migrated(text, native, {}), MigrationError);
    CHECK_THROWS_AS(migrated(text, plain(), {0, {}}), MigrationError);
    CHECK_THROWS_AS(migrated(text, plain(), {1, 0}), MigrationError);
    CHECK_THROWS_AS(migrated(text, plain(ClockKind::off), {1, 1}), MigrationError);
    CHECK_THROWS_AS(migrated(Header{}.line(), plain(), {}), MigrationError);
    ReplayConfig small = plain();
    small.shadow_pool_pages = 64;
    CHECK_THROWS_AS(migrated(text, small, {}), MigrationError);
    for (const char* const record : {R"({"op":"reset"})", R"({"op":"log_dirty","action":"disable"})"})
        CHECK_THROWS_AS(migrated(text + record + '\n', plain(), {}), TraceError);
    CHECK_THROWS_AS(migrated(Header{}.line() + R"({"op":"log_dirty","action":"enable"})" + '\n' +
                                 R"({"op":"read","la":"0x1000"})" + '\n',
                             plain(), {}),
                    TraceError);
}
