// SPDX-License-Identifier: Apache-2.0
//
// `mmusim microbench`: tables, CSV, a real curve laid over, and what it refuses.
#include <string>
#include <vector>

#include "command/command_run.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

using namespace mmusim::command_test;
using mmusim::test::content_of;
using mmusim::test::ScratchFile;
using mmusim::test::ScratchPath;

TEST_CASE("microbench shows the geometry beside the profile", "[command][microbench]")
{
    const Run shown = run({"microbench"});
    CHECK(shown.code == 0);
    CHECK(shown.error.empty());
    CHECK(shown.out.starts_with("golden_cove: "));
    CHECK(has(shown.out, "96 = 16 sets x 6 ways, linear"));
    CHECK(has(shown.out, "2048 = 128 sets x 16 ways, xor-7"));
    CHECK(lines_of(shown.out).back() == "22 of 22 as the profile says");

    const Run csv = run({"microbench", "geometry", "--cpu", "skylake", "--csv", "-"});
    CHECK(csv.code == 0);
    const auto lines = lines_of(csv.out);
    REQUIRE(lines.size() == 23);
    CHECK(lines[0] == "storage,page,kind,shared_with,found,entries,sets,ways,index,cycles,profile");
    CHECK(lines[1] == R"(level 1,4K,reads,,"64 = 16 sets x 4 ways, linear",64,16,4,linear,4,says the same)");
    CHECK(lines[4] == R"(level 2,4K,reads,,"1536 = 128 sets x 12 ways, xor-7",1536,128,12,)"
                      R"(0x2040 0x1020 0x810 0x408 0x204 0x102 0x81,13,says the same)");
}

TEST_CASE("microbench writes curves as CSV", "[command][microbench]")
{
    const Run curve =
        run({"microbench", "curve", "--cpu", "drcachesim", "--points", "1,16,2048", "--csv", "-"});
    CHECK(curve.code == 0);
    CHECK(curve.out == "pages,cycles\n1,102.00\n16,102.00\n2048,509.00\n");

    const ScratchPath file{".csv"};
    const Run table =
        run({"microbench", "strides", "--cpu", "golden_cove", "--points", "1,16384", "--csv", file.path()});
    CHECK(table.code == 0);
    CHECK(has(table.out, "stride, pages"));
    CHECK(content_of(file.path()) == "stride,level_1,level_2\n1,96,2048\n16384,6,16\n");

    CHECK(lines_of(run({"microbench", "sets", "--cpu", "drcachesim", "--pages", "3", "--trials", "2", "--csv",
                        "-"})
                       .out) == std::vector<std::string>{"pages,mean,least,most", "1,102.00,102.00,102.00",
                                                         "2,102.00,102.00,102.00", "3,102.00,102.00,102.00"});
    CHECK(
        run({"microbench", "reach", "--cpu", "none", "--points", "1,2", "--pages", "64", "--csv", "-"}).out ==
        "entries,pages,cycles\n1,64,502.00\n2,64,502.00\n");
    CHECK(run({"microbench", "parallel", "--cpu", "none", "--points", "1,2", "--pages", "64", "--csv", "-"})
              .out == "chains,cycles\n1,500.00\n2,400.00\n");
}

TEST_CASE("microbench lays a measured curve over the model", "[command][microbench]")
{
    const ScratchFile measured{"pages,mine\n1,100\n16,102\n2048,1018\n1000000,5\n", ".csv"};
    const ScratchPath drawing{".svg"};
    const Run shown = run({"microbench", "curve", "--cpu", "drcachesim", "--measured", measured.path(),
                           "--column", "mine", "--from", "1", "--from", "16", "--svg", drawing.path()});
    CHECK(shown.error.empty());
    CHECK(shown.code == 0);
    const auto lines = lines_of(shown.out);
    REQUIRE(lines.size() == 7);
    CHECK(has(lines[2], "100.00"));
    CHECK(has(lines[2], "+2.0"));
    CHECK(has(lines[4], "-50.0"));
    CHECK(lines[5] == "mean error from 1 to 2048 pages: 17.33 % (3 points)");
    CHECK(lines[6] == "mean error from 16 to 2048 pages: 25.00 % (2 points)");
    const std::string svg = content_of(drawing.path());
    CHECK(svg.starts_with("<svg "));
    CHECK(svg.ends_with("</svg>\n"));
    CHECK(has(svg, "mmusim, drcachesim"));
}

TEST_CASE("microbench refuses in a line what makes no experiment", "[command][microbench]")
{
    const ScratchFile other{"pages,b\n1,2\n", ".csv"};
    const std::vector<std::vector<std::string>> bad{
        {"curves"},
        {"--cpu", "no_such_cpu"},
        {"curve", "--points", "1,,2"},
        {"curve", "--points", "0"},
        {"curve", "--points", "-1"},
        {"curve", "--pages", "0"},
        {"curve", "--pages", "18446744073709551615"},
        {"curve", "--page", "4M"},
        {"curve", "--mapping", "none"},
        {"curve", "--spacing", "2"},
        {"curve", "--stride", "0", "--points", "2"},
        {"curve", "--rounds", "0", "--points", "2"},
        {"curve", "--svg", "x.svg"},
        {"curve", "--from", "3"},
        {"curve", "--measured", "/nowhere.csv"},
        {"curve", "--measured", other.path()},
        {"curve", "--measured", other.path(), "--column", "b", "--from", "2"},
        {"curve", "--points", "1", "--csv", "/nowhere/x.csv"},
        {"geometry", "--points", "1"},
        {"reach", "--entries", "pte"},
        {"reach", "--page", "2M"},
        {"reach", "--spacing", "0"},
        {"reach", "--entries", "pml4e", "--points", "1000"},
        {"sets", "--cpu", "none"},
        {"sets", "--trials", "0", "--pages", "2"},
        {"parallel", "--points", "99999999"},
    };
    for (std::vector<std::string> arguments : bad) {
        arguments.insert(arguments.begin(), "microbench");
        std::string line;
        for (const std::string& word : arguments) line += word + " ";
        INFO(line);
        const Run refused = run(arguments);
        INFO(refused.error);
        CHECK(refused.code == 2);
        CHECK(is_one_plain_line(refused.error));
        CHECK(refused.error.starts_with("mmusim: "));
    }
    CHECK(run({"microbench", "--kind", "jump"}).code == 2);
    const Run help = run({"microbench", "--help"});
    CHECK(help.code == 0);
    CHECK(has(help.out, "Experiments:"));
}
