// SPDX-License-Identifier: Apache-2.0
//
// The command line: verbs and options with their help. Exit codes: 0 done, 1 an expectation in the
// trace did not hold, 2 bad usage, configuration or input.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <new>
#include <string>
#include <system_error>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <mmusim/words/number.hpp>

#include "verbs.hpp"

namespace {

namespace tool = mmusim::tool;

/// An option that is a number. CLI11's own conversion takes "-1" for the largest one, and "010" for 8.
CLI::Option* add_number(CLI::App& verb, const char* name, std::optional<std::uint64_t>& value,
                        const char* help)
{
    const auto convert = [&value, name](const std::string& text) {
        value = mmusim::parse_number(text);
        if (!value) {
            throw CLI::ValidationError(name,
                                       fmt::format("'{}' is not a whole number from 0 to 2^64 - 1", text));
        }
    };
    return verb.add_option_function<std::string>(name, convert, help)->type_name("N");
}

void add_config_options(CLI::App& verb, tool::ConfigOptions& options)
{
    verb.add_option("--mode", options.mode,
                    "shadow (default), 2-on-3, 3-on-3, 4-on-4, 5-on-5, native or nested")
        ->type_name("MODE");
    verb.add_option("--p2m", options.p2m,
                    "instead of the header's layout: identity, offset:FRAMES or shuffled:SEED")
        ->type_name("LAYOUT");
    verb.add_option("--policy", options.policy, "shadow policy; `mmusim policies` lists them")
        ->type_name("NAME");
    verb.add_option("--cpu", options.cpu,
                    "CPU profile: a name that `mmusim cpus` lists, or a file (default: golden_cove)")
        ->type_name("NAME|FILE");
    verb.add_option("--clock", options.clock,
                    "blocking (default: one access at a time), window:N (up to N in flight) or off")
        ->type_name("CLOCK");
    verb.add_option("--set", options.settings, "any key of the configuration; repeatable")
        ->type_name("KEY.PATH=VALUE")
        ->expected(1)
        ->take_all();
    verb.add_option("--config", options.file, "configuration file (JSON); options on the command line win")
        ->type_name("FILE");
}

void add_replay_options(CLI::App& verb, tool::ConfigOptions& options)
{
    verb.add_flag("--check", options.check, "verify every expectation; print the first ten that do not hold");
    verb.add_flag("--check-coherence", options.check_coherence,
                  "compare each translation with a fresh walk: permitted staleness is counted, anything else "
                  "reported");
    add_number(verb, "--audit", options.audit, "check all invariants every N records");
    add_number(verb, "--limit", options.limit, "replay N records (beyond those skipped)");
    add_number(verb, "--skip", options.skip, "replay the first N records without counting or checking them");
}

void add_microbench_options(CLI::App& verb, tool::MicrobenchOptions& options,
                            const std::map<std::string, mmusim::AccessKind>& kinds)
{
    verb.add_option("experiment", options.experiment,
                    "geometry (default), curve, strides, sets, reach or parallel: see below")
        ->type_name("EXPERIMENT");
    verb.add_option("--cpu", options.cpu,
                    "CPU profile: a name that `mmusim cpus` lists, or a file (default: golden_cove)")
        ->type_name("NAME|FILE");
    verb.add_option("--kind", options.kind, "of the accesses: read (default), write or fetch")
        ->transform(CLI::CheckedTransformer(kinds))
        ->type_name("KIND")
        ->option_text("KIND");
    verb.add_option("--page", options.page, "page size: 4K (default), 2M or 1G")->type_name("SIZE");
    verb.add_option("--mapping", options.mapping,
                    "shared (default): all pages are one page of memory, so that data are always near; own")
        ->type_name("MAPPING");
    add_number(verb, "--pages", options.pages, "at most, or in all, N pages");
    add_number(verb, "--stride", options.stride,
               "curve, sets: from one page to the next, in pages (default: 1)");
    verb.add_option(
            "--points", options.points,
            "instead of the default ones. curve: pages; strides: strides; reach: entries; parallel: chains")
        ->type_name("N,N,...");
    verb.add_option("--entries", options.entries, "reach: pde (default), pdpte or pml4e")->type_name("NAME");
    verb.add_option("--spacing", options.spacing,
                    "reach: entries from one to the next (default: 1), or random")
        ->type_name("N");
    add_number(verb, "--work", options.work, "cycles between accesses (default: 2; parallel: 0)");
    add_number(verb, "--rounds", options.rounds,
               "measured rounds over the pages (default: 4; more if few pages)");
    add_number(verb, "--warm-up", options.warm_up, "rounds before them (default: 2; more if few pages)");
    add_number(verb, "--trials", options.trials, "sets: sweeps for each point (default: 16)");
    add_number(verb, "--seed", options.seed, "of everything that is random (default: 1)");
    verb.add_option("--csv", options.csv, "write the table as CSV (-: to standard output, instead of it)")
        ->type_name("FILE");
    verb.add_option("--measured", options.measured, "curve: compare with the curve in this CSV file")
        ->type_name("FILE");
    verb.add_option("--column", options.column, "of that file; beside `pages` (default: cycles)")
        ->type_name("NAME");
    verb.add_option("--from", options.from, "mean error from so many pages on; repeatable")
        ->type_name("N")
        ->expected(1)
        ->take_all();
    verb.add_option("--svg", options.svg, "draw both curves")->type_name("FILE");
    verb.footer(
        "Experiments:\n"
        "  geometry  sets, ways and index functions of TLBs and paging-structure caches, found from outside\n"
        "  curve     latency by number of pages, in a random order; beside a real CPU's with --measured\n"
        "  strides   how many pages at a stride each level holds\n"
        "  sets      latency of cyclic sweeps over pages of one set, from one page on\n"
        "  reach     latency by number of page-directory entries (or upper ones) that pages are below\n"
        "  parallel  several chases at a time: how many walks are in flight\n"
        "Examples:\n"
        "  mmusim microbench --cpu zen3\n"
        "  mmusim microbench curve --cpu skylake --page 2M --pages 4096\n"
        "  mmusim microbench strides --points 1,2,4,8,16,4096,8192 --csv -\n"
        "  mmusim microbench reach --entries pde --spacing 512 --points 4,8,16,32,64\n"
        "  mmusim microbench curve --measured tests/data/measured/translation_latency_4k.csv "
        "--column median_of_run_minima --from 83 --from 1300");
}

/// The exit code, once everything that was printed has arrived.
int finished(int code)
{
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
        throw std::system_error(errno, std::generic_category(), "standard output");
    }
    return code;
}

/// Without a verb, or without the second word of one.
int no_verb(const char* command)
{
    fmt::print(stderr, "mmusim: no verb; `{} --help` lists them\n", command);
    return tool::kBadInput;
}

}  // namespace

int main(int argc, char** argv)
try {
    CLI::App app{"mmusim: simulates the x86 MMU, with real pagetables, and shadow paging on top", "mmusim"};
    app.require_subcommand(0, 1);
    app.footer("mmusim VERB --help shows the options of a verb, with examples.");

    tool::ReplayOptions replay;
    CLI::App* replay_verb = app.add_subcommand("replay", "Replay a trace of memory accesses");
    replay_verb
        ->add_option("trace", replay.trace, "trace file (.jsonl, .json, each also .zst; - is standard input)")
        ->required();
    add_config_options(*replay_verb, replay.config);
    add_replay_options(*replay_verb, replay.config);
    replay_verb->add_option("--stats", replay.stats, "write the statistics document (-: standard output)")
        ->type_name("FILE");
    replay_verb
        ->add_option("--events", replay.events,
                     "write what the shadow engine does, a line of JSON each (-: standard output)")
        ->type_name("FILE");
    replay_verb->footer(
        "Examples:\n"
        "  mmusim replay traces/linux-6.1-amd64-4level.jsonl.zst --check\n"
        "  mmusim replay traces/linux-6.1-amd64-4level.jsonl.zst --limit 300 --events -\n"
        "  mmusim replay traces/linux-6.1-686pae-pae.jsonl.zst --mode 3-on-3 --policy tlb-like --p2m "
        "shuffled:7\n"
        "  mmusim replay traces/linux-6.1-686-2level.jsonl.zst --set shadow.populate=step --stats -");

    tool::CompareOptions compare;
    CLI::App* compare_verb =
        app.add_subcommand("compare", "Replay a trace under several policies, modes or CPUs: one table");
    compare_verb->add_option("trace", compare.trace, "trace file")->required();
    const auto add_list = [&](const char* name, std::vector<std::string>& list, const char* help) {
        compare_verb->add_option(name, list, help)
            ->type_name("A,B,...")
            ->delimiter(',')
            ->expected(1)
            ->take_all();
    };
    add_list("--policy", compare.policies, "shadow policies; `mmusim policies` lists them");
    add_list("--mode", compare.modes, "modes, as of replay");
    add_list("--cpu", compare.cpus, "CPU profiles, as of replay");
    compare_verb
        ->add_option("--clock", compare.config.clock,
                     "blocking (default: one access at a time), window:N (up to N in flight) or off")
        ->type_name("CLOCK");
    compare_verb->add_option("--p2m", compare.config.p2m, "instead of the header's layout, as of replay")
        ->type_name("LAYOUT");
    compare_verb->add_option("--set", compare.config.settings, "any key of the configuration; repeatable")
        ->type_name("KEY.PATH=VALUE")
        ->expected(1)
        ->take_all();
    compare_verb->add_option("--config", compare.config.file, "configuration file (JSON)")->type_name("FILE");
    add_replay_options(*compare_verb, compare.config);
    add_number(
        *compare_verb, "--threads", compare.threads,
        "replays at a time (default: as many as the machine has processors); results do not depend on it");
    compare_verb
        ->add_option("--csv", compare.csv, "write the table as CSV (-: to standard output, instead of it)")
        ->type_name("FILE");
    compare_verb
        ->add_option("--json", compare.json,
                     "write the rows as JSON, with every cause of cycles (-: the same)")
        ->type_name("FILE");
    compare_verb->footer(
        "Rows are sorted by cycles, the least first; without a clock by exits.\n"
        "Example:\n"
        "  mmusim compare traces/linux-6.1-amd64-4level.jsonl.zst --policy xen,xen-2006,tlb-like --mode "
        "4-on-4,native");

    tool::MigrateOptions migrate;
    CLI::App* migrate_verb = app.add_subcommand(
        "migrate", "Migrate the guest of a trace by pre-copy: what each round sends and costs");
    migrate_verb->add_option("trace", migrate.trace, "trace file")->required();
    add_number(*migrate_verb, "--rounds", migrate.rounds,
               "rounds while the guest runs, the first sends all memory (default: 5)");
    add_number(
        *migrate_verb, "--bandwidth", migrate.bandwidth,
        "pages sent in a million cycles: a round lasts as long as its pages take (default: each has the "
        "same number of records)")
        ->type_name("PAGES");
    add_config_options(*migrate_verb, migrate.config);
    add_number(*migrate_verb, "--limit", migrate.config.limit,
               "the trace ends N records after migration began");
    add_number(*migrate_verb, "--skip", migrate.config.skip,
               "migration begins at the first access beyond N records (default: 0)");
    migrate_verb
        ->add_option("--csv", migrate.csv, "write the table as CSV (-: to standard output, instead of it)")
        ->type_name("FILE");
    migrate_verb->add_option("--json", migrate.json, "write it as JSON (-: the same)")->type_name("FILE");
    migrate_verb->footer(
        "Examples:\n"
        "  mmusim migrate traces/linux-6.1-amd64-4level.jsonl.zst --rounds 4\n"
        "  mmusim migrate traces/linux-6.1-686-2level.jsonl.zst --bandwidth 2000 --policy write-protect");

    tool::WalkOptions walk;
    const std::map<std::string, mmusim::AccessKind> kinds{{"read", mmusim::AccessKind::read},
                                                          {"write", mmusim::AccessKind::write},
                                                          {"fetch", mmusim::AccessKind::fetch}};
    CLI::App* walk_verb = app.add_subcommand("walk", "Explain one translation, level by level");
    walk_verb->add_option("trace", walk.trace, "trace file")->required();
    add_number(*walk_verb, "--at", walk.record, "the access of this record (1 is the first after the header)")
        ->type_name("RECORD");
    add_number(*walk_verb, "--la", walk.address,
               "a linear address: at the trace's end, or before record --at")
        ->type_name("ADDRESS");
    walk_verb->add_option("--kind", walk.kind, "of the access to --la: read (default), write or fetch")
        ->transform(CLI::CheckedTransformer(kinds))
        ->type_name("KIND")
        ->option_text("KIND");
    walk_verb->add_option("--cpl", walk.cpl, "privilege level of the access to --la (default: the vCPU's)")
        ->check(CLI::Range(0, 3))
        ->type_name("CPL")
        ->option_text("0..3");
    add_number(*walk_verb, "--vcpu", walk.vcpu, "vCPU of the access to --la (default: 0)");
    add_config_options(*walk_verb, walk.config);
    walk_verb->footer(
        "Examples:\n"
        "  mmusim walk traces/linux-6.1-amd64-4level.jsonl.zst --at 170\n"
        "  mmusim walk traces/linux-6.1-amd64-4level.jsonl.zst --la 0xffffffff81000000 --kind write --cpl 3\n"
        "  mmusim walk traces/linux-6.1-686-2level.jsonl.zst --at 50000 --p2m offset:0x100000 --policy "
        "tlb-like");

    std::string trace;
    CLI::App* trace_verb = app.add_subcommand("trace", "Look at a trace without replaying it");
    trace_verb->require_subcommand(0, 1);
    CLI::App* info_verb = trace_verb->add_subcommand("info", "Show the header and count the records");
    info_verb->add_option("trace", trace, "trace file")->required();
    info_verb->footer("Example:\n  mmusim trace info traces/linux-6.1-amd64-4level.jsonl.zst");
    CLI::App* validate_verb = trace_verb->add_subcommand("validate", "Check the form of every record");
    validate_verb->add_option("trace", trace, "trace file")->required();
    validate_verb->footer("Example:\n  mmusim trace validate traces/linux-6.1-686-2level.jsonl.zst");
    trace_verb->footer("Example:\n  mmusim trace info traces/linux-6.1-amd64-4level.jsonl.zst");

    CLI::App* policies_verb = app.add_subcommand("policies", "List the shadow policies");
    policies_verb->footer("Example:\n  mmusim policies");

    tool::CpusOptions cpus;
    CLI::App* cpus_verb = app.add_subcommand("cpus", "List the CPU profiles, or show one");
    CLI::Option* profile = cpus_verb->add_option("profile", cpus.profile, "name of a profile, or a file");
    cpus_verb->add_flag("--json", cpus.json, "print the profile's file, to start one's own from")
        ->needs(profile);
    cpus_verb->footer(
        "Examples:\n"
        "  mmusim cpus\n"
        "  mmusim cpus golden_cove\n"
        "  mmusim cpus golden_cove --json");

    tool::MicrobenchOptions bench;
    CLI::App* bench_verb = app.add_subcommand(
        "microbench", "Experiments that find a CPU's TLBs and walkers by latency, made with the model");
    add_microbench_options(*bench_verb, bench, kinds);

    tool::ConfigOptions config;
    bool print = false;
    CLI::App* config_verb = app.add_subcommand("config", "Show the effective configuration");
    config_verb->add_flag("--print", print, "print it, with defaults, as JSON")->required();
    add_config_options(*config_verb, config);
    add_replay_options(*config_verb, config);
    config_verb->footer("Example:\n  mmusim config --print --mode native --set audit=1000");

    CLI::App* version_verb = app.add_subcommand("version", "Show the version");
    version_verb->footer("Example:\n  mmusim version");

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? tool::kDone : tool::kBadInput;
    }
    if (*replay_verb) return finished(tool::replay(replay));
    if (*compare_verb) return finished(tool::compare(compare));
    if (*migrate_verb) return finished(tool::migrate(migrate));
    if (*walk_verb) return finished(tool::walk(walk));
    if (*info_verb) return finished(tool::trace_info(trace));
    if (*validate_verb) return finished(tool::trace_validate(trace));
    if (*policies_verb) return finished(tool::policies());
    if (*cpus_verb) return finished(tool::cpus(cpus));
    if (*bench_verb) {
        for (const CLI::Option* option : bench_verb->get_options()) {
            if (option->count() > 0) bench.given.push_back(option->get_name());
        }
        return finished(tool::microbench(bench));
    }
    if (*config_verb) return finished(tool::config_print(config));
    if (*version_verb) return finished(tool::version());
    return no_verb(*trace_verb ? "mmusim trace" : "mmusim");
} catch (const std::bad_alloc&) {
    fmt::print(stderr, "mmusim: out of memory\n");
    return mmusim::tool::kBadInput;
} catch (const std::exception& error) {
    fmt::print(stderr, "mmusim: {}\n", error.what());
    return mmusim::tool::kBadInput;
}
