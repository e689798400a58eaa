// SPDX-License-Identifier: Apache-2.0
//
// examples/process_workload: what its guest saw natively is what any policy shows; the traces are what they
// say they are; and the order of the two policies of the comparison of 2008
// (reference/other_policies.md 2.3).
#ifdef MMUSIM_PROCESS_WORKLOAD

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using namespace mmusim::replay_test;

namespace {

struct Guest {
    const char* name;
    TranslationMode shadow_mode;
};
constexpr Guest kGuests[]{{"2-level", TranslationMode::shadow_2_on_3},
                          {"pae", TranslationMode::shadow_3_on_3},
                          {"4-level", TranslationMode::shadow_4_on_4}};

constexpr unsigned kProcesses = 8;

Run generate(const std::string& guest, const std::string& path, unsigned processes, unsigned seed)
{
    return run_program(MMUSIM_PROCESS_WORKLOAD, {guest, path, "--processes", std::to_string(processes),
                                                 "--seed", std::to_string(seed)});
}

std::vector<Record> records_of(const std::string& path)
{
    TraceReader reader{path};
    std::vector<Record> records;
    for (Record record; reader.next(record);) records.push_back(record);
    return records;
}

Cycles cycles_of(const Outcome& outcome)
{
    Cycles sum = 0;
    for (const Cycles cycles : outcome.total.hardware.cycles) sum += cycles;
    return sum;
}

ReplayConfig as_a_user(TranslationMode mode)
{
    ReplayConfig config;
    config.mode = mode;
    config.cpu = "golden_cove";
    config.clock = ClockKind::blocking;
    config.check = true;
    config.check_coherence = true;
    return config;
}

}  // namespace

TEST_CASE("process_workload: holds everywhere, and xen beats xen-2006", "[command][workload]")
{
    const unsigned seed = 7;
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const Guest& guest : kGuests) {
        const ScratchPath trace{".jsonl.zst"};
        REQUIRE(generate(guest.name, trace.path(), kProcesses, seed).code == 0);
        ReplayConfig config = as_a_user(TranslationMode::native);
        const Outcome native = replay_file(trace.path(), config);
        CHECK(native.total.checks.mismatched == 0);
        CHECK(native.total.checks.checked >= native.total.accesses.total());
        CHECK(native.total.guest_faults > 50 * kProcesses);

        config.mode = guest.shadow_mode;
        std::map<std::string, Cycles> cycles;
        for (const auto& entry : catalog.entries()) {
            config.policy = entry.name;
            const Outcome outcome = replay_file(trace.path(), config);
            INFO(guest.name << ", " << entry.name << ", seed " << seed << '\n'
                            << outcome.error << describe(outcome.mismatches));
            CHECK(outcome.error.empty());
            CHECK(outcome.total.checks == native.total.checks);
            CHECK(outcome.total.guest_faults == native.total.guest_faults);
            CHECK(outcome.total.hardware.coherence.checked > 0);
            CHECK(outcome.total.hardware.coherence.violations == 0);
            cycles[entry.name] = cycles_of(outcome);
            CHECK(cycles[entry.name] > cycles_of(native));
        }
        INFO(guest.name << ", seed " << seed);
        CHECK(cycles["xen"] < cycles["xen-2006"]);
    }
}

TEST_CASE("process_workload: each process is forked, execs, exits and is waited for", "[command][workload]")
{
    for (const Guest& guest : kGuests) {
        const ScratchPath trace{".jsonl"};
        REQUIRE(generate(guest.name, trace.path(), kProcesses, 3).code == 0);
        std::map<std::string, unsigned> phases;
        unsigned cr3_loads = 0;
        for (const Record& record : records_of(trace.path())) {
            if (const auto* mark = std::get_if<MarkRecord>(&record)) ++phases[mark->name];
            const auto* load = std::get_if<RegisterWriteRecord>(&record);
            cr3_loads += load != nullptr && load->target == RegisterWriteRecord::Target::cr3;
        }
        INFO(guest.name);
        CHECK(phases["boot"] == 1);
        CHECK(phases["fork"] == kProcesses);
        CHECK(phases["cow"] == kProcesses);
        CHECK(phases["exec"] == kProcesses);
        CHECK(phases["run"] > 0);
        CHECK(phases["run"] == phases["exit"]);
        CHECK(phases["run"] == phases["wait"]);
        CHECK(phases.size() == 7);
        // fork flushes, exec and exit load another, exit flushes; the child is switched to.
        CHECK(cr3_loads >= 5 * kProcesses);
    }
}

TEST_CASE("process_workload: without its CR3 loads or its stores to tables a trace does not hold",
          "[command][workload]")
{
    for (const Guest& guest : kGuests) {
        const ScratchPath trace{".jsonl"};
        REQUIRE(generate(guest.name, trace.path(), 2, 3).code == 0);
        const TraceHeader header = TraceReader{trace.path()}.header();
        const std::vector<Record> records = records_of(trace.path());
        for (const bool without_loads : {true, false}) {
            Replayer replayer{header, as_a_user(guest.shadow_mode), builtin_shadow_policies()};
            for (const Record& record : records) {
                const auto* load = std::get_if<RegisterWriteRecord>(&record);
                const auto* store = std::get_if<AccessRecord>(&record);
                const bool cr3 = load != nullptr && load->target == RegisterWriteRecord::Target::cr3;
                const bool content =
                    store != nullptr && store->kind == AccessKind::write && !store->content.empty();
                if (!(without_loads ? cr3 : content)) replayer.replay(record);
            }
            replayer.finish();
            INFO(guest.name << (without_loads ? ", no CR3 loads" : ", no stores"));
            CHECK(replayer.total().checks.mismatched > 100);
        }
    }
}

TEST_CASE("process_workload: halves of PAE entries", "[command][workload]")
{
    const ScratchPath trace{".jsonl"};
    REQUIRE(generate("pae", trace.path(), 2, 3).code == 0);
    const std::vector<Record> records = records_of(trace.path());
    const auto kernel_word = [&](std::size_t i) -> const AccessRecord* {
        const auto* access = i < records.size() ? std::get_if<AccessRecord>(&records[i]) : nullptr;
        const bool is_one = access != nullptr && access->kind == AccessKind::write && !access->rmw &&
                            access->bytes == 4 && access->content.size() == 4 &&
                            access->address >= 0xc000'0000;
        return is_one ? access : nullptr;
    };
    unsigned set = 0;
    unsigned cleared = 0;
    for (std::size_t i = 1; i < records.size(); ++i) {
        const AccessRecord* const low = kernel_word(i);
        if (low == nullptr || low->address % 8 != 0) continue;
        // Present only when the high half is in place; gone before that changes.
        const bool present = (low->content[0] & std::byte{1}) != std::byte{0};
        const AccessRecord* const high = kernel_word(present ? i - 1 : i + 1);
        REQUIRE(high != nullptr);
        CHECK(high->address == low->address + 4);
        ++(present ? set : cleared);
    }
    CHECK(set > 100);
    CHECK(cleared > 100);
}

TEST_CASE("process_workload: the seed decides, and nothing else", "[command][workload]")
{
    const ScratchPath first{".jsonl"};
    const ScratchPath second{".jsonl"};
    REQUIRE(generate("4-level", first.path(), 3, 1).code == 0);
    REQUIRE(generate("4-level", second.path(), 3, 1).code == 0);
    CHECK(content_of(first.path()) == content_of(second.path()));
    REQUIRE(generate("4-level", second.path(), 3, 2).code == 0);
    CHECK(content_of(first.path()) != content_of(second.path()));
}

TEST_CASE("process_workload: what is refused", "[command][workload]")
{
    const auto refused = [](const std::vector<std::string>& arguments, const std::string& why) {
        const Run result = run_program(MMUSIM_PROCESS_WORKLOAD, arguments);
        INFO(result.error);
        CHECK(result.code == 2);
        CHECK(has(result.error, why));
    };
    const ScratchPath out{".jsonl"};
    refused({}, "are needed");
    refused({"5-level", out.path()}, "'5-level' is no paging mode");
    refused({"pae", out.path(), "--seeds", "1"}, "unknown option '--seeds'");
    refused({"pae", out.path(), "--seed"}, "--seed needs a number");
    refused({"pae", out.path(), "--processes", "-1"}, "--processes: '-1'");
    refused({"pae", out.path(), "--processes", ""}, "--processes: ''");
    refused({"pae", "/nonexistent/out.jsonl"}, "/nonexistent/out.jsonl");
}

#endif
