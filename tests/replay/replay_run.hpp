// SPDX-License-Identifier: Apache-2.0
//
// Traces as text and what became of them: for the tests of the replayer and of the command.
//
// The guests here share one set of pages, whatever their paging mode. Page numbers of linear addresses and
// where they lead (kPages); everything that leads there is user and writable, accessed and dirty bits clear:
//   0x00  0x30000                          0x14  0x34000, supervisor
//   0x10  0x20000                          0x15  0x35000, execute-disable where the mode has it
//   0x11  0x31000                          0x16  0x70000000, outside RAM
//   0x12  not present                      0x17  0x36000
//   0x13  0x33000, read-only               0x18  0x4000, the level-1 table itself
// and, in the 32-bit modes, 0xfffff -> 0x3f000.
#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <unistd.h>
#include <zstd.h>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

namespace mmusim::replay_test {

using test::content_of;
using test::packed;
using test::ScratchFile;
using test::ScratchPath;

// ---- files

inline std::string bundled(std::string_view name)
{
    return fmt::format("{}/traces/linux-6.1-{}.jsonl.zst", MMUSIM_SOURCE_DIR, name);
}

// ---- guests

inline constexpr std::string_view kAllFeatures =
    R"("nx","pse","pse36","pge","pcid","invpcid","smep","smap","pku","pks","page1gb","la57")";

/// A header line; 1 MiB of RAM and all features unless told otherwise.
struct Header {
    std::string features{kAllFeatures};
    unsigned vcpus = 1;
    std::string frames = "0x100";
    std::string fetch = "instruction";
    std::string vendor = "intel";
    unsigned physical_address_bits = 40;

    [[nodiscard]] std::string line() const
    {
        return fmt::format(
            R"({{"format":"mmusim-trace","version":1,"name":"hand-written","fetch":"{}",)"
            R"("guest":{{"kind":"hvm","vcpus":{},"vendor":"{}","physical_address_bits":{},"features":[{}],)"
            R"("ram":[{{"first_gfn":"0x0","count":"{}"}}]}}}})"
            "\n",
            fetch, vcpus, vendor, physical_address_bits, features, frames);
    }
};

/// The level-1 entries of all guests.
inline constexpr std::string_view kPages =
    R"([0,"0x30007"],[16,"0x20007"],[17,"0x31007"],[19,"0x33005"],[20,"0x34003"],[22,"0x70000007"],)"
    R"([23,"0x36007"],[24,"0x4007"])";

/// Four-level paging, root in frame 1; NXE and CR0.WP set.
inline std::string four_level_guest()
{
    return fmt::format(R"({{"op":"page","gfn":1,"width":8,"entries":[[0,"0x2007"]]}}
{{"op":"page","gfn":2,"width":8,"entries":[[0,"0x3007"]]}}
{{"op":"page","gfn":3,"width":8,"entries":[[0,"0x4007"]]}}
{{"op":"page","gfn":4,"width":8,"entries":[{},[21,"0x8000000000035007"]]}}
{{"op":"set","cr0":"0x80010011","cr3":"0x1000","cr4":"0x20","efer":"0x900"}}
)",
                       kPages);
}

/// The same tables below a level-5 table in frame 7.
inline std::string five_level_guest()
{
    return four_level_guest() + R"({"op":"page","gfn":7,"width":8,"entries":[[0,"0x1007"]]}
{"op":"set","cr3":"0x7000","cr4":"0x1020"}
)";
}

inline std::string pae_guest()
{
    return fmt::format(R"({{"op":"page","gfn":1,"width":8,"entries":[[0,"0x2001"],[3,"0x5001"]]}}
{{"op":"page","gfn":2,"width":8,"entries":[[0,"0x4007"]]}}
{{"op":"page","gfn":4,"width":8,"entries":[{},[21,"0x8000000000035007"]]}}
{{"op":"page","gfn":5,"width":8,"entries":[[511,"0x6007"]]}}
{{"op":"page","gfn":6,"width":8,"entries":[[511,"0x3f007"]]}}
{{"op":"set","cr0":"0x80010011","cr3":"0x1000","cr4":"0x20","efer":"0x800"}}
)",
                       kPages);
}

inline std::string two_level_guest()
{
    return fmt::format(R"({{"op":"page","gfn":1,"width":4,"entries":[[0,"0x4007"],[1023,"0x6007"]]}}
{{"op":"page","gfn":4,"width":4,"entries":[{},[21,"0x35007"]]}}
{{"op":"page","gfn":6,"width":4,"entries":[[1023,"0x3f007"]]}}
{{"op":"set","cr0":"0x80010011","cr3":"0x1000","cr4":"0x0","efer":"0x0"}}
)",
                       kPages);
}

struct NamedGuest {
    std::string name;
    std::string records;
    bool long_mode = false;
    bool has_nx = false;
};

inline std::vector<NamedGuest> paging_guests()
{
    return {{"2-level", two_level_guest(), false, false},
            {"PAE", pae_guest(), false, true},
            {"4-level", four_level_guest(), true, true},
            {"5-level", five_level_guest(), true, true}};
}

// ---- replays

struct Outcome {
    Statistics total;
    std::vector<Phase> phases;
    std::vector<Mismatch> mismatches;
    std::string error;  ///< of a RecordError or a TraceError; empty: replayed to its end
    std::string key;
    std::uint64_t records = 0;  ///< read, with the one that the error is about
};

/// Without TLBs and clock: every access is walked. What those change has tests of its own.
inline ReplayConfig checking()
{
    ReplayConfig config;
    config.cpu = "none";
    config.clock = ClockKind::off;
    config.check = true;
    return config;
}

/// Native, and the shadow mode that fits under each policy, step and P2M layout. All audit each record.
inline std::vector<ReplayConfig> all_setups()
{
    std::vector<ReplayConfig> setups;
    ReplayConfig native = checking();
    native.mode = TranslationMode::native;
    setups.push_back(native);
    for (const char* const policy : {"write-protect", "tlb-like"}) {
        for (const Populate populate : {Populate::leaf, Populate::step}) {
            for (const char* const layout : {"identity", "offset:0x123456", "shuffled:7"}) {
                ReplayConfig config = checking();
                config.policy = policy;
                config.populate = populate;
                config.p2m = parse_p2m_layout(layout);
                config.audit = 1;
                setups.push_back(config);
            }
        }
    }
    return setups;
}

/// Nested, with EPT and NPT, each largest page and P2M layout, and 4 or 5 levels.
inline std::vector<ReplayConfig> nested_setups()
{
    std::vector<ReplayConfig> setups;
    int number = 0;
    for (const char* const layout : {"identity", "offset:0x140000", "shuffled:7"}) {
        for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
            for (const int largest : {1, 2, 3}) {
                ReplayConfig config = checking();
                config.mode = TranslationMode::nested;
                config.p2m = parse_p2m_layout(layout);
                config.nested.format = format;
                config.nested.largest_page = largest;
                config.nested.levels = number % 2 == 0 ? 4 : 5;
                config.nested.tlb_entries = number % 3 == 0 ? 0 : 32;
                config.nested.ad_bits = number % 4 < 2;
                config.nested.vpid = number % 5 != 0;
                ++number;
                setups.push_back(config);
            }
        }
    }
    return setups;
}

inline std::string describe(const ReplayConfig& config)
{
    if (config.mode == TranslationMode::nested) {
        return fmt::format("nested {} of {} levels, pages up to level {}, {} TLB entries, A/D {}, p2m {}",
                           config.nested.format == P2mFormat::npt ? "NPT" : "EPT",
                           config.nested.levels.value_or(4), config.nested.largest_page,
                           config.nested.tlb_entries, config.nested.ad_bits,
                           config.p2m ? to_string(*config.p2m) : "header");
    }
    return fmt::format("{} {} populate {} p2m {}", name_of(config.mode), config.policy,
                       config.populate == Populate::leaf ? "leaf" : "step",
                       config.p2m ? to_string(*config.p2m) : "header");
}

inline std::string describe(const std::vector<Mismatch>& mismatches)
{
    std::string text;
    for (const Mismatch& one : mismatches) {
        text += fmt::format("record {}: expected {}; happened: {}\n", one.record, one.expected, one.happened);
    }
    return text;
}

inline Outcome replay_file(const std::string& path, const ReplayConfig& config)
{
    Outcome outcome;
    TraceReader reader{path};
    Replayer replayer{reader.header(), config, builtin_shadow_policies()};
    try {
        for (Record record; !replayer.finished() && reader.next(record);) replayer.replay(record);
    } catch (const RecordError& error) {
        outcome.error = error.what();
        outcome.key = error.key;
    } catch (const TraceError& error) {
        outcome.error = error.what();
        outcome.key = error.key();
    }
    replayer.finish();
    outcome.total = replayer.total();
    outcome.phases = replayer.phases();
    outcome.mismatches = replayer.mismatches();
    outcome.records = reader.records();
    return outcome;
}

inline Outcome replay_text(const std::string& text, const ReplayConfig& config = checking())
{
    return replay_file(ScratchFile{text}.path(), config);
}

/// Records as lines.
inline std::string lines(const std::vector<std::string>& records)
{
    std::string text;
    for (const std::string& record : records) text += record + '\n';
    return text;
}

/// Replays in all setups: so many expectations, so many of them wrong.
inline void replay_everywhere(const std::string& text, std::uint64_t checked, std::uint64_t mismatched = 0)
{
    std::string problems;
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(text, config);
        const Statistics::Checks checks = outcome.total.checks;
        if (outcome.error.empty() && checks == Statistics::Checks{checked, mismatched}) continue;
        problems += fmt::format("{}: {} checked, {} mismatched {}\n{}", describe(config), checks.checked,
                                checks.mismatched, outcome.error, describe(outcome.mismatches));
    }
    INFO(checked << " expected, " << mismatched << " of them wrong, in\n" << text);
    CHECK(problems == "");
}

}  // namespace mmusim::replay_test
