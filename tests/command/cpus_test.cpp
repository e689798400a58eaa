// SPDX-License-Identifier: Apache-2.0
//
// `mmusim cpus`: the list, a profile for people, and its file.
#include <string>

#include <mmusim/cpu/cpu_profile.hpp>

#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using mmusim::test::content_of;
using mmusim::test::ScratchFile;

TEST_CASE("cpus lists the bundled profiles, a line each", "[command][cpu]")
{
    const Run list = run({"cpus"});
    CHECK(list.code == 0);
    CHECK(list.error.empty());
    const auto lines = lines_of(list.out);
    REQUIRE(lines.size() == bundled_cpu_profiles().size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
        const BundledCpuProfile& bundled = bundled_cpu_profiles()[i];
        INFO(lines[i]);
        CHECK(lines[i].starts_with(std::string{bundled.name} + " "));
        CHECK(has(lines[i], parse_cpu_profile(bundled.text, bundled.name).description));
        CHECK(lines[i].ends_with("(the default)") == (bundled.name == kDefaultCpuProfile));
    }
}

TEST_CASE("cpus shows a profile with units, confidences and sources", "[command][cpu]")
{
    const Run shown = run({"cpus", "golden_cove"});
    CHECK(shown.code == 0);
    CHECK(shown.error.empty());
    CHECK(!has(shown.out, "{"));
    for (const char* const line :
         {"golden_cove: Intel Golden Cove", "\n  l1d_load: level 1, loads\n", "\n    array for 4K 2M 4M 1G\n",
          "\n      rows for 1G\n", "\nsources\n [1] "}) {
        INFO(line);
        CHECK(has(shown.out, line));
    }
    const auto line_of = [&](const std::string& start) {
        for (const std::string& line : lines_of(shown.out)) {
            if (line.find(start) != std::string::npos) return line;
        }
        return std::string{};
    };
    CHECK(has(line_of(" pte  "), "17 cycles"));
    CHECK(has(line_of(" pte  "), "measured-fit ["));
    CHECK(has(line_of("memory_latency "), "400 cycles"));
    CHECK(has(line_of("fetch_cycles "), "1 cycle for 16 bytes"));
    CHECK(has(line_of("line_bytes "), "64 bytes"));

    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        const Run each = run({"cpus", std::string{bundled.name}});
        INFO(bundled.name);
        CHECK(each.code == 0);
        for (const std::string& line : lines_of(each.out)) {
            INFO(line);
            CHECK(line.size() <= 120);
        }
    }
}

TEST_CASE("cpus prints a profile's file, which is a profile", "[command][cpu]")
{
    const Run text = run({"cpus", "zen2", "--json"});
    CHECK(text.code == 0);
    CHECK(text.out == content_of(MMUSIM_SOURCE_DIR "/profiles/zen2.json"));
    const ScratchFile mine{text.out, ".json"};
    CHECK(run({"cpus", mine.path(), "--json"}).out == text.out);
    CHECK(run({"cpus", mine.path()}).out == run({"cpus", "zen2"}).out);
}

TEST_CASE("cpus shows a plain profile of one's own", "[command][cpu]")
{
    const ScratchFile mine{R"({"schema": "mmusim-cpu-profile", "version": 1, "name": "mine",
        "tlbs": [{"name": "l1", "level": 1, "loads": true, "arrays": [{"pages": ["4K"], "entries": 1, "ways": 1,
                  "index": "linear", "replacement": {"policy": "random", "seed": 5}}]}], // mine
        "data_caches": {"value": [{"name": "l1d", "sets": 1, "ways": 2, "latency": 3, "index": {"xor": ["0x1"]}}]}
    })",
                           ".json"};
    CHECK(has(run({"cpus", mine.path()}).error, "data_caches[0].index"));  // one set, but a mask

    const ScratchFile fixed{R"({"schema": "mmusim-cpu-profile", "version": 1, "name": "mine",
        "tlbs": [{"name": "l1", "level": 1, "loads": true, "arrays": [{"pages": ["4K"], "entries": 1, "ways": 1,
                  "replacement": {"policy": "random", "seed": 5}}]}], // mine
        "data_caches": {"value": [{"name": "l1d", "sets": 2, "ways": 2, "latency": 3, "index": {"xor": ["0x1"]}}]}
    })",
                            ".json"};
    CHECK(run({"cpus", fixed.path()}).out ==
          "mine\n"
          "tlbs\n"
          "  l1: level 1, loads\n"
          "    array for 4K\n"
          "      entries                     1 entry\n"
          "      ways                        1 way\n"
          "      replacement\n"
          "        policy                    random\n"
          "        seed                      5\n"
          "data_caches\n"
          "  l1d\n"
          "    sets                          2 sets\n"
          "    ways                          2 ways\n"
          "    latency                       3 cycles\n"
          "    index\n"
          "      xor                         0x1\n");
}

TEST_CASE("cpus refuses what is no profile", "[command][cpu]")
{
    const Run unknown = run({"cpus", "golden_grove"});
    CHECK(unknown.code == 2);
    CHECK(unknown.out.empty());
    CHECK(is_one_plain_line(unknown.error));
    CHECK(has(unknown.error, "golden_cove"));
    const ScratchFile bad{
        R"({"schema": "mmusim-cpu-profile", "version": 1, "name": "x", "tlbs": [], "nap": 1})"};
    for (const Run& refused : {run({"cpus", bad.path()}), run({"cpus", bad.path(), "--json"})}) {
        CHECK(refused.code == 2);
        CHECK(refused.out.empty());
        CHECK(is_one_plain_line(refused.error));
        CHECK(has(refused.error, bad.path() + ": key \"nap\": is not known"));
    }
    CHECK(run({"cpus", "."}).code == 2);
    CHECK(run({"cpus", "--json"}).code == 2);
    CHECK(has(run({"cpus", "--json"}).error, "--help"));
}
