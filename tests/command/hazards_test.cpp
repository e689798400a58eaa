// SPDX-License-Identifier: Apache-2.0
//
// What `mmusim replay` says of hazards (docs/secure-view.md): counts in the summary, the first ones as
// sentences with their record. They are no failure.
#include "command/command_run.hpp"

using namespace mmusim;
using namespace mmusim::command_test;
using namespace mmusim::replay_test;

TEST_CASE("hazards are told, and are no failure", "[command][secure]")
{
    // Root 0x1 and root 0x5 share the table in frame 0x2, and with it the level-1 table in frame 0x4.
    const ScratchFile trace{
        Header{}.line() + four_level_guest() +
        lines({
            R"({"op":"page","gfn":5,"width":8,"entries":[[0,"0x2007"]]})",
            R"({"op":"secure_frames","gfns":["0x20"]})", R"({"op":"read","la":"0x11000","gpa":"0x31000"})",
            R"({"op":"mov_cr3","value":"0x5000"})", R"({"op":"secure_mode","value":1})",
            R"({"op":"read","la":"0x10000","gpa":"0x20000"})",  // record 11
        })};
    const Run separate = run({"replay", trace.path(), "--check"});
    CHECK(separate.code == 0);
    CHECK(!has(separate.out, "hazard"));
    const Run shared = run({"replay", trace.path(), "--check", "--set", "shadow.secure_view=shared"});
    INFO(shared.out);
    CHECK(shared.code == 0);
    CHECK(has(shared.out, "hazards        1 shared_tables, 0 stale_shadows"));
    CHECK(has(shared.out, "; 0 MOV CR3 without an exit"));
    CHECK(has(
        shared.out,
        "hazard at record 11: table page 0x4 is reachable from secure root 0x5 and ordinary root 0x1: they "
        "share its shadow, whose entry 0x10 maps secure frame 0x20"));
}
