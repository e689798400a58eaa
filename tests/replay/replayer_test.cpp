// SPDX-License-Identifier: Apache-2.0
//
// What an access record means (docs/trace-format.md, "Accesses"), rule by rule, on small guests written by
// hand. Where nothing else is said a trace is replayed natively and under every shadow policy, step and P2M
// layout: what the guest sees is the same everywhere, and so is what is counted as checked.
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// A trace that makes no sense at its last record.
void refuse_everywhere(const std::string& text, const std::string& message, const std::string& key)
{
    std::string problems;
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(text, config);
        if (outcome.error.find(message) != std::string::npos && outcome.key == key) continue;
        problems += fmt::format("{}: key '{}', error '{}'\n", describe(config), outcome.key, outcome.error);
    }
    INFO("key '" << key << "', error '" << message << "' expected of\n" << text);
    CHECK(problems == "");
}

const std::string kLong = Header{}.line() + four_level_guest();

}  // namespace

// ---- expectations

TEST_CASE("each expectation is counted once, met or not", "[replay][replayer]")
{
    struct Case {
        const char* record;
        std::uint64_t checked;
        std::uint64_t mismatched;
    };
    // Page 0x10 is mapped, 0x12 is not; memory there is 0.
    const std::vector<Case> cases{
        {R"({"op":"read","la":"0x10000"})", 0, 0},
        {R"({"op":"read","la":"0x12000"})", 0, 0},
        {R"({"op":"read","la":"0x10000","gpa":"0x20000"})", 1, 0},
        {R"({"op":"read","la":"0x10000","gpa":"0x21000"})", 1, 1},
        {R"({"op":"write","la":"0x10008","gpa":"0x20008"})", 1, 0},
        {R"({"op":"write","la":"0x10008","gpa":"0x20000"})", 1, 1},
        {R"({"op":"fetch","la":"0x10000","gpa":"0x20000"})", 1, 0},
        {R"({"op":"fetch","la":"0x10000","gpa":0})", 1, 1},
        {R"({"op":"read","la":"0x12000","gpa":"0x20000"})", 1, 1},
        {R"({"op":"read","la":"0x10ffc","size":8,"gpa":"0x20ffc","gpa2":"0x31000"})", 2, 0},
        {R"({"op":"read","la":"0x10ffc","size":8,"gpa":"0x20ffc","gpa2":"0x21000"})", 2, 1},
        {R"({"op":"read","la":"0x10ffc","size":8,"gpa2":"0x31000"})", 1, 0},
        {R"({"op":"read","la":"0x11ffc","size":8,"gpa":"0x31ffc","gpa2":"0x31000"})", 2, 2},
        {R"({"op":"read","va":"0x10000","size":8,"gpa2":"0x31000"})", 1, 1},
        {R"({"op":"read","la":"0x12000","fault":0})", 1, 0},
        {R"({"op":"read","la":"0x12000","fault":"0x0"})", 1, 0},
        {R"({"op":"read","la":"0x12000","cpl":3,"fault":4})", 1, 0},
        {R"({"op":"read","la":"0x12000","cpl":3,"fault":5})", 1, 1},
        {R"({"op":"read","la":"0x12000","fault":"gp"})", 1, 1},
        {R"({"op":"read","la":"0x10000","fault":0})", 1, 1},
        {R"({"op":"read","la":"0x12fff","size":2,"fault":0,"cr2":"0x12fff"})", 2, 0},
        {R"({"op":"read","la":"0x12ffe","size":2,"fault":0,"cr2":"0x12fff"})", 2, 1},
        {R"({"op":"read","la":"0x10000","fault":0,"cr2":"0x10000"})", 2, 2},
        {R"({"op":"read","la":"0x800000000000","fault":"gp"})", 1, 0},
        {R"({"op":"read","la":"0x800000000000","fault":"ss"})", 1, 1},
        {R"({"op":"read","la":"0x800000000000","fault":13})", 1, 1},
        {R"({"op":"read","la":"0x800000000000","gpa":"0x0"})", 1, 1},
        {R"({"op":"read","va":"0x800000000000","seg":"ss","fault":"ss"})", 1, 0},
        {R"({"op":"read","va":"0x800000000000","seg":"ss","fault":"gp"})", 1, 1},
        {R"({"op":"read","la":"0x10000","size":8,"value":0})", 1, 0},
        {R"({"op":"read","la":"0x10000","size":8,"value":1})", 1, 1},
        {R"({"op":"read","la":"0x10000","size":3,"bytes":"000000"})", 1, 0},
        {R"({"op":"read","la":"0x10000","size":3,"bytes":"000001"})", 1, 1},
        {R"({"op":"read","la":"0x12000","size":3,"bytes":"000000"})", 1, 1},
        {R"({"op":"read","la":"0x12000","size":8,"gpa":0,"value":0})", 2, 2},
        {R"({"op":"read","la":"0x10000","size":8,"gpa":"0x20000","value":0})", 2, 0},
        {R"({"op":"write","la":"0x10000","size":8,"value":7})", 0, 0},
        {R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":0})", 1, 0},
        {R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":1})", 1, 1},
        {R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":1,"ignore":1})", 1, 0},
        {R"({"op":"mov_cr3","value":"0x1000"})", 0, 0},
        {R"({"op":"mov_cr3","value":"0x1000","fault":"gp"})", 1, 1},
        {R"({"op":"mov_cr3","value":"0x10000000000","fault":"gp"})", 1, 0},
        {R"({"op":"mov_cr3","value":"0x10000000000"})", 1, 1},
        {R"({"op":"mov_cr0","value":"0x80000000"})", 1, 1},
        {R"({"op":"mov_cr4","value":"0x0"})", 1, 1},
        {R"({"op":"wrmsr","msr":"0xc0000080","value":"0x0"})", 1, 1},
        {R"({"op":"wrmsr","msr":"0x10","value":"0x0"})", 1, 1},
        {R"({"op":"invpcid","type":4})", 1, 1},
        {R"({"op":"invpcid","type":4,"fault":"gp"})", 1, 0},
        {R"({"op":"invlpg","la":"0x10000"})", 0, 0},
        {R"({"op":"invlpg","la":"0x10000","fault":"gp"})", 1, 1},
        {R"({"op":"wrpkru","value":0,"fault":"gp"})", 1, 1},
        {R"({"op":"insn","la":"0x10000","gpa":"0x20000","mem":[{"op":"read","la":"0x11000","gpa":"0x31000"}]})",
         2, 0},
        {R"({"op":"insn","la":"0x10000","gpa":"0x20000","mem":[{"op":"read","la":"0x11000","gpa":"0x20000"}]})",
         2, 1},
    };
    for (const Case& one : cases) {
        replay_everywhere(kLong + one.record + '\n', one.checked, one.mismatched);
    }
}

TEST_CASE("nothing is counted as checked unless it is asked for", "[replay][replayer]")
{
    const std::string text = kLong + lines({R"({"op":"read","la":"0x10000","gpa":"0x0"})",
                                            R"({"op":"mov_cr3","value":"0xffff000000000000"})",
                                            R"({"op":"expect_memory","gpa":"0x0","size":1,"value":1})"});
    const Outcome outcome = replay_text(text, ReplayConfig{});
    CHECK(outcome.total.checks == Statistics::Checks{0, 0});
    CHECK(outcome.mismatches.empty());
    CHECK(outcome.total.accesses.total() == 1);
}

TEST_CASE("the first ten mismatches are kept, with what was expected and what happened", "[replay][replayer]")
{
    std::string text = kLong;
    for (int i = 0; i < 15; ++i)
        text += R"({"op":"read","la":"0x10010","gpa":"0xabc000"})"
                "\n";
    text += R"({"op":"read","la":"0x12000","gpa":"0xabc000"})"
            "\n";
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(text, config);
        CHECK(outcome.total.checks == Statistics::Checks{16, 16});
        REQUIRE(outcome.mismatches.size() == 10);
        for (std::size_t i = 0; i < 10; ++i) {
            CHECK(outcome.mismatches[i].record == 6 + i);  // five records set the guest up
            CHECK(outcome.mismatches[i].expected.find("0xabc000") != std::string::npos);
            CHECK(outcome.mismatches[i].happened.find("0x20010") != std::string::npos);
        }
    }
}

TEST_CASE("a mismatch says which fault came instead", "[replay][replayer]")
{
    const Outcome faulted = replay_text(kLong + R"({"op":"write","la":"0x12345","cpl":3,"gpa":"0x0"})"
                                                "\n");
    REQUIRE(faulted.mismatches.size() == 1);
    CHECK(faulted.mismatches[0].happened.find("#PF") != std::string::npos);
    CHECK(faulted.mismatches[0].happened.find("0x6") != std::string::npos);
    CHECK(faulted.mismatches[0].happened.find("0x12345") != std::string::npos);
    const Outcome passed = replay_text(kLong + R"({"op":"write","la":"0x10000","fault":2})"
                                               "\n");
    REQUIRE(passed.mismatches.size() == 1);
    CHECK(passed.mismatches[0].expected.find("0x2") != std::string::npos);
    CHECK(passed.mismatches[0].happened == "no fault");
    const Outcome refused = replay_text(kLong + R"({"op":"mov_cr0","value":"0x80000000"})"
                                                "\n");
    REQUIRE(refused.mismatches.size() == 1);
    CHECK(refused.mismatches[0].expected == "no fault");
    CHECK(refused.mismatches[0].happened.find("#GP") != std::string::npos);
}

// ---- kinds of access

TEST_CASE("accesses have their rights in every paging mode", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        const std::string fetch_fault = guest.has_nx ? R"("fault":"0x15")" : R"("gpa":"0x35000")";
        const std::string not_present = guest.has_nx ? R"("fault":"0x14")" : R"("fault":"0x4")";
        INFO(guest.name);
        replay_everywhere(Header{}.line() + guest.records +
                              lines({R"({"op":"read","la":"0x10123","cpl":3,"gpa":"0x20123"})",
                                     R"({"op":"write","la":"0x11fff","cpl":3,"gpa":"0x31fff"})",
                                     R"({"op":"write","la":"0x13004","cpl":3,"fault":7})",
                                     R"({"op":"write","la":"0x13004","cpl":0,"fault":3})",
                                     R"({"op":"read","la":"0x14004","cpl":3,"fault":5,"cr2":"0x14004"})",
                                     R"({"op":"read","la":"0x14004","cpl":2,"gpa":"0x34004"})",
                                     R"({"op":"fetch","la":"0x15000","cpl":3,)" + fetch_fault + "}",
                                     R"({"op":"fetch","la":"0x12000","cpl":3,)" + not_present + "}",
                                     R"({"op":"read","la":"0x15000","cpl":3,"gpa":"0x35000"})"}),
                          10);
    }
}

TEST_CASE("an access counts as its kind", "[replay][replayer]")
{
    const std::string text =
        kLong + lines({R"({"op":"read","la":"0x10000"})", R"({"op":"read","la":"0x10000","rmw":true})",
                       R"({"op":"write","la":"0x10000"})", R"({"op":"write","la":"0x12000"})",
                       R"({"op":"fetch","la":"0x10000"})", R"({"op":"fetch","la":"0x12000"})",
                       R"({"op":"fetch","la":"0x800000000000"})",
                       R"({"op":"insn","la":"0x10000","mem":[{"op":"read","la":"0x11000"}]})"});
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(text, config);
        INFO(describe(config));
        CHECK(outcome.total.accesses == Statistics::Accesses{4, 3, 2});
        CHECK(outcome.total.accesses.total() == 9);
        CHECK(outcome.total.guest_faults == 2);  // #GP is no page fault
        CHECK(outcome.total.records == 13);
    }
}

TEST_CASE("a read-modify-write is checked as a write", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        INFO(guest.name);
        const char* const size = guest.name == "2-level" ? "4" : "8";
        const char* const at = guest.name == "2-level" ? "0x4040" : "0x4080";
        replay_everywhere(
            Header{}.line() + guest.records +
                lines({R"({"op":"read","la":"0x13000","rmw":true,"cpl":3,"fault":7})",
                       R"({"op":"read","la":"0x12000","rmw":true,"fault":2})",
                       R"({"op":"read","la":"0x10000"})",
                       fmt::format(R"({{"op":"expect_memory","gpa":"{}","size":{},"value":"0x20027"}})", at,
                                   size),
                       R"({"op":"read","la":"0x10000","rmw":true,"size":2,"value":0,"gpa":"0x20000"})",
                       fmt::format(R"({{"op":"expect_memory","gpa":"{}","size":{},"value":"0x20067"}})", at,
                                   size),
                       R"({"op":"write","la":"0x13000","rmw":true,"cpl":3,"fault":7})"}),
            7);
    }
}

TEST_CASE("an implicit access is a supervisor's at any CPL, and AC does not help it", "[replay][replayer]")
{
    const std::string smap = R"({"op":"set","cr4":"0x200020"})";
    replay_everywhere(
        kLong + lines({R"({"op":"cpl","value":3})", R"({"op":"read","la":"0x14000","fault":5})",
                       R"({"op":"read","la":"0x14000","implicit":true,"gpa":"0x34000"})",
                       R"({"op":"write","la":"0x14000","implicit":true,"cpl":3,"gpa":"0x34000"})",
                       R"({"op":"read","la":"0x12000","implicit":true,"fault":0})",
                       R"({"op":"read","la":"0x10000","implicit":true,"gpa":"0x20000"})",
                       R"({"op":"set","cpl":0,"cr4":"0x200020","ac":1})",
                       R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                       R"({"op":"read","la":"0x10000","implicit":true,"fault":1})",
                       R"({"op":"ac","value":0})", R"({"op":"read","la":"0x10000","fault":1})",
                       R"({"op":"read","la":"0x10000","cpl":3,"gpa":"0x20000"})",
                       R"({"op":"read","la":"0x10000","cpl":3,"implicit":true,"fault":1})"}),
        10);
}

TEST_CASE("an access's own CPL is for this access alone", "[replay][replayer]")
{
    replay_everywhere(
        kLong +
            lines(
                {R"({"op":"read","la":"0x14000","cpl":3,"fault":5})",
                 R"({"op":"read","la":"0x14000","gpa":"0x34000"})", R"({"op":"cpl","value":3})",
                 R"({"op":"read","la":"0x14000","fault":5})",
                 R"({"op":"read","la":"0x14000","cpl":0,"gpa":"0x34000"})",
                 R"({"op":"read","la":"0x14000","cpl":1,"gpa":"0x34000"})",
                 R"({"op":"read","la":"0x14000","fault":5})",
                 R"({"op":"insn","la":"0x14000","cpl":0,"gpa":"0x34000","mem":[)"
                 R"({"op":"read","la":"0x14008","gpa":"0x34008"},{"op":"write","la":"0x14010"}]})",
                 R"({"op":"insn","la":"0x10000","mem":[{"op":"read","la":"0x14000","cpl":0,"gpa":"0x34000"},)"
                 R"({"op":"read","la":"0x14000","fault":5}]})"}),
        10);
}

// ---- content

TEST_CASE("a write stores its value or its bytes, and a write without either touches", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        const char* const size = guest.name == "2-level" ? "4" : "8";
        const char* const entry = guest.name == "2-level" ? "0x4040" : "0x4080";
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines({R"({"op":"poke","gpa":"0x20000","size":8,"value":"0x1122334455667788"})",
                       R"({"op":"write","la":"0x10000","size":8})",
                       R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":"0x1122334455667788"})",
                       fmt::format(R"({{"op":"expect_memory","gpa":"{}","size":{},"value":"0x20067"}})",
                                   entry, size),
                       R"({"op":"write","la":"0x10002","size":2,"value":"0xbeef"})",
                       R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":"0x11223344beef7788"})",
                       R"({"op":"write","la":"0x10007","size":1,"value":0})",
                       R"({"op":"read","la":"0x10000","size":8,"value":"0x223344beef7788"})",
                       R"({"op":"write","la":"0x10010","size":5,"value":"0x0504030201"})",
                       R"({"op":"read","la":"0x1000f","size":7,"bytes":"00010203040500"})",
                       R"({"op":"write","la":"0x10100","size":12,"bytes":"000102030405060708090A0b"})",
                       R"({"op":"read","la":"0x10108","size":4,"value":"0x0b0a0908"})",
                       R"({"op":"expect_memory","gpa":"0x20101","size":8,"value":"0x0807060504030201"})"}),
            7);
    }
}

TEST_CASE("a page is written and read whole, across two", "[replay][replayer]")
{
    std::string bytes;
    for (unsigned i = 0; i < 4096; ++i) bytes += fmt::format("{:02x}", (i * 7 + i / 256) & 0xff);
    replay_everywhere(
        kLong +
            lines({R"({"op":"write","la":"0x10801","size":4096,"bytes":")" + bytes + R"("})",
                   R"({"op":"read","la":"0x10801","size":4096,"gpa":"0x20801","gpa2":"0x31000","bytes":")" +
                       bytes + R"("})",
                   fmt::format(R"({{"op":"expect_memory","gpa":"0x20801","size":2,"value":"0x{}{}"}})",
                               bytes.substr(2, 2), bytes.substr(0, 2)),
                   fmt::format(R"({{"op":"expect_memory","gpa":"0x31800","size":1,"value":"0x{}"}})",
                               bytes.substr(8190, 2)),
                   R"({"op":"expect_memory","gpa":"0x31801","size":1,"value":0})",
                   R"({"op":"expect_memory","gpa":"0x20800","size":1,"value":0})",
                   R"({"op":"write","la":"0x11000","size":4096,"bytes":")" + bytes + R"("})",
                   R"({"op":"read","la":"0x11000","size":4096,"bytes":")" + bytes + R"("})"}),
        8);
}

// ---- two pages

TEST_CASE("an access across two pages needs both", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        const bool small = guest.name == "2-level";
        const auto entry = [&](unsigned index, const char* value, const char* ignore) {
            return fmt::format(
                R"({{"op":"expect_memory","gpa":"{:#x}","size":{},"value":"{}","ignore":"{}"}})",
                0x4000 + index * (small ? 4 : 8), small ? 4 : 8, value, ignore);
        };
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines(
                    {// Second page not present: D in neither, no byte stored.
                     R"({"op":"write","la":"0x11ffc","size":8,"cpl":3,"value":"0x1111111111111111","fault":6,"cr2":"0x12000"})",
                     entry(17, "0x31007", "0x20"), entry(18, "0x0", "0x0"),
                     R"({"op":"expect_memory","gpa":"0x31ff8","size":8,"value":0})",
                     // First page not present.
                     R"({"op":"write","la":"0x12ffc","size":8,"cpl":3,"fault":6,"cr2":"0x12ffc"})",
                     R"({"op":"read","la":"0x12fff","size":2,"cpl":3,"fault":4,"cr2":"0x12fff"})",
                     entry(19, "0x33005", "0x20"),
                     // The lower page's fault wins, also where both fault.
                     R"({"op":"write","la":"0x13fff","size":2,"cpl":3,"value":"0xffff","fault":7,"cr2":"0x13fff"})",
                     entry(20, "0x34003", "0x20"),
                     R"({"op":"write","la":"0x13fff","size":2,"cpl":0,"value":"0xffff","fault":3,"cr2":"0x13fff"})",
                     entry(20, "0x34003", "0x20"),
                     R"({"op":"read","la":"0x13fff","size":2,"cpl":3,"fault":5,"cr2":"0x14000"})",
                     R"({"op":"read","la":"0x13fff","size":2,"cpl":0,"gpa":"0x33fff","gpa2":"0x34000"})",
                     // A read-modify-write is a write.
                     R"({"op":"read","rmw":true,"la":"0x11fff","size":2,"fault":2,"cr2":"0x12000"})",
                     entry(17, "0x31007", "0x20"),
                     // Both there: D in both, bytes in both.
                     R"({"op":"write","la":"0x10ffd","size":8,"value":"0x0807060504030201","gpa":"0x20ffd","gpa2":"0x31000"})",
                     entry(16, "0x20067", "0x0"), entry(17, "0x31067", "0x0"),
                     R"({"op":"expect_memory","gpa":"0x20ff8","size":8,"value":"0x0302010000000000"})",
                     R"({"op":"expect_memory","gpa":"0x31000","size":8,"value":"0x0000000807060504"})",
                     R"({"op":"read","la":"0x10ffd","size":8,"value":"0x0807060504030201"})",
                     R"({"op":"read","la":"0x10ffc","size":10,"bytes":"00010203040506070800"})"}),
            31);
    }
}

TEST_CASE("an access that ends with its page has no second one", "[replay][replayer]")
{
    replay_everywhere(
        kLong + lines({R"({"op":"write","la":"0x11ff8","size":8,"gpa":"0x31ff8"})",
                       R"({"op":"write","la":"0x11000","size":4096,"gpa":"0x31000"})",
                       R"({"op":"write","la":"0x11001","size":4096,"fault":2,"cr2":"0x12000"})"}),
        4);
}

TEST_CASE("past 2^32 a linear address wraps to 0 outside long mode", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        if (guest.long_mode) continue;
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines(
                    {R"({"op":"write","la":"0xfffffffe","size":4,"value":"0x44332211","gpa":"0x3fffe","gpa2":"0x30000"})",
                     R"({"op":"expect_memory","gpa":"0x3fffe","size":2,"value":"0x2211"})",
                     R"({"op":"expect_memory","gpa":"0x30000","size":2,"value":"0x4433"})",
                     R"({"op":"read","la":"0xfffffffe","size":4,"value":"0x44332211"})",
                     R"({"op":"fetch","la":"0xffffffff","size":15,"gpa":"0x3ffff","gpa2":"0x30000"})",
                     R"({"op":"read","la":"0xfffff001","size":4096,"gpa":"0x3f001","gpa2":"0x30000"})",
                     R"({"op":"read","va":"0xfffffffe","size":4,"gpa":"0x3fffe","gpa2":"0x30000"})"}),
            11);
    }
    replay_everywhere(Header{}.line() +
                          R"({"op":"read","la":"0xfffffffe","size":4,"gpa":"0xfffffffe","gpa2":0})"
                          "\n",
                      2);
    // In long mode it does not.
    replay_everywhere(kLong + R"({"op":"read","la":"0xfffffffe","size":4,"fault":0,"cr2":"0xfffffffe"})"
                              "\n",
                      2);
}

TEST_CASE("the second page's fault at the top of the address space has CR2 0", "[replay][replayer]")
{
    const std::string no_page_zero = R"({"op":"poke","gpa":"0x4000","size":4,"value":0})";
    for (const NamedGuest& guest : paging_guests()) {
        if (guest.long_mode) continue;
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines(
                    {no_page_zero,
                     R"({"op":"write","la":"0xffffffff","size":2,"value":"0x1111","fault":2,"cr2":0})",
                     R"({"op":"expect_memory","gpa":"0x3ffff","size":1,"value":0})",
                     fmt::format(
                         R"({{"op":"expect_memory","gpa":"{}","size":4,"value":"0x3f007","ignore":"0x20"}})",
                         guest.name == "2-level" ? "0x6ffc" : "0x6ff8")}),
            4);
    }
}

// ---- addresses

TEST_CASE("an address that is not canonical is refused before any walk", "[replay][replayer]")
{
    for (const auto& [guest, bits] :
         {std::pair{four_level_guest(), 48u}, std::pair{five_level_guest(), 57u}}) {
        const std::uint64_t end = std::uint64_t{1} << (bits - 1);
        const auto access = [](std::uint64_t la, unsigned size, const char* expectation) {
            return fmt::format(R"({{"op":"read","la":"{:#x}","size":{},{}}})", la, size, expectation);
        };
        const std::string text =
            Header{}.line() + guest +
            lines({access(end, 1, R"("fault":"gp")"), access(end - 1, 2, R"("fault":"gp")"),
                   access(end - 4096, 4096, R"("fault":0)"), access(end - 1, 1, R"("fault":0)"),
                   access(~end, 1, R"("fault":"gp")"), access(~end, 2, R"("fault":"gp")"),
                   access(~end + 1, 8, R"("fault":0)"), access(~std::uint64_t{0}, 1, R"("fault":0)"),
                   fmt::format(R"({{"op":"write","va":"{:#x}","seg":"ss","fault":"ss"}})", end),
                   fmt::format(R"({{"op":"write","va":"{:#x}","seg":"gs","fault":"gp"}})", end),
                   fmt::format(R"({{"op":"fetch","va":"{:#x}","seg":"cs","fault":"gp"}})", end),
                   fmt::format(R"({{"op":"invlpg","la":"{:#x}"}})", end),
                   fmt::format(R"({{"op":"invpcid","type":0,"pcid":0,"la":"{:#x}","fault":"gp"}})", end)});
        replay_everywhere(text, 12);
        for (const ReplayConfig& config : all_setups()) {
            const Outcome outcome = replay_text(text, config);
            CHECK(outcome.total.guest_faults == 4);
            if (config.mode == TranslationMode::native) CHECK(outcome.total.hardware.walks == 4);
        }
    }
}

TEST_CASE("a linear address with more than 32 bits is a bad trace outside long mode", "[replay][replayer]")
{
    const std::vector<std::string> guests{"", two_level_guest(), pae_guest()};
    for (const std::string& guest : guests) {
        const std::string start = Header{}.line() + guest;
        const std::string message = "0x100000000";
        for (const char* const op : {"read", "write", "fetch"}) {
            refuse_everywhere(start + fmt::format(R"({{"op":"{}","la":"0x100000000"}})", op) + "\n", message,
                              "la");
            refuse_everywhere(start + fmt::format(R"({{"op":"{}","va":"0x100000000"}})", op) + "\n", message,
                              "va");
        }
        refuse_everywhere(start + R"({"op":"invlpg","la":"0x100000000"})"
                                  "\n",
                          message, "la");
        refuse_everywhere(start + R"({"op":"invpcid","type":0,"pcid":0,"la":"0x100000000"})"
                                  "\n",
                          message, "la");
        refuse_everywhere(start + R"({"op":"insn","la":"0x0","mem":[{"op":"read","la":"0x100000000"}]})"
                                  "\n",
                          message, "la");
        refuse_everywhere(start + R"({"op":"insn","la":"0x100000000","mem":[]})"
                                  "\n",
                          message, "la");
    }
    const Outcome outcome = replay_text(kLong + R"({"op":"read","la":"0x100000000","fault":0})"
                                                "\n");
    CHECK(outcome.error.empty());
    CHECK(outcome.total.checks.mismatched == 0);
}

TEST_CASE("segments make linear addresses outside long mode", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        if (guest.long_mode) continue;
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines(
                    {R"({"op":"read","va":"0x10004","gpa":"0x20004"})",
                     R"({"op":"set","segments":{"ds":{"base":"0x10000","limit":"0xfff"},"ss":{"base":"0x11000","limit":"0x7f"},)"
                     R"("es":{"null":true},"fs":{"base":"0x11000","limit":"0x7ff","expand_down":true},)"
                     R"("gs":{"base":"0xfffffff0"}}})",
                     R"({"op":"read","va":"0x4","gpa":"0x20004"})",
                     R"({"op":"read","va":"0x4","seg":"ds","gpa":"0x20004"})",
                     R"({"op":"read","va":"0xffc","size":4,"gpa":"0x20ffc"})",
                     R"({"op":"read","va":"0xffd","size":4,"fault":"gp"})",
                     R"({"op":"read","va":"0x1000","fault":"gp"})",
                     R"({"op":"write","va":"0x7f","seg":"ss","gpa":"0x3107f"})",
                     R"({"op":"write","va":"0x7f","seg":"ss","size":2,"fault":"ss"})",
                     R"({"op":"read","va":"0x0","seg":"es","fault":"gp"})",
                     R"({"op":"read","va":"0x7ff","seg":"fs","fault":"gp"})",
                     R"({"op":"read","va":"0x800","seg":"fs","gpa":"0x31800"})",
                     R"({"op":"read","va":"0xffffffff","seg":"fs","size":1,"gpa":"0x20fff"})",
                     R"({"op":"read","va":"0x10010","seg":"gs","gpa":"0x20000"})",
                     R"({"op":"read","va":"0xe","seg":"gs","size":4,"gpa":"0x3fffe","gpa2":"0x30000"})",
                     R"({"op":"fetch","va":"0x11004","seg":"cs","gpa":"0x31004"})",
                     // la is linear whatever the segments are, and a key not named keeps its value.
                     R"({"op":"read","la":"0x11004","gpa":"0x31004"})",
                     R"({"op":"set","segments":{"ds":{"base":"0x11000"},"ss":{"limit":"0x80"},"es":{"null":false}}})",
                     R"({"op":"read","va":"0x4","gpa":"0x31004"})",
                     R"({"op":"read","va":"0x1000","fault":"gp"})",
                     R"({"op":"write","va":"0x7f","seg":"ss","size":2,"gpa":"0x3107f"})",
                     R"({"op":"read","va":"0x10000","seg":"es","gpa":"0x20000"})"}),
            21);
    }
}

TEST_CASE("in long mode only FS and GS have a base, and no segment has a limit", "[replay][replayer]")
{
    replay_everywhere(
        kLong +
            lines(
                {R"({"op":"set","segments":{"ds":{"base":"0x1000","limit":0},"fs":{"base":"0x1000","limit":0},)"
                 R"("gs":{"base":"0xffffffffffff0000"},"ss":{"null":true,"base":"0x5000"}}})",
                 R"({"op":"read","va":"0x10004","gpa":"0x20004"})",
                 R"({"op":"read","va":"0x10004","seg":"fs","gpa":"0x31004"})",
                 R"({"op":"read","va":"0x20004","seg":"gs","gpa":"0x20004"})",
                 R"({"op":"read","va":"0x10004","seg":"ss","gpa":"0x20004"})",
                 R"({"op":"read","va":"0x7fffffffffff","seg":"fs","fault":"gp"})",
                 R"({"op":"read","va":"0x7fffffffffff","seg":"ss","size":2,"fault":"ss"})"}),
        6);
}

// ---- what is legal, though odd

TEST_CASE("an address outside RAM is an answer, and its memory reads as 0", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        const bool small = guest.name == "2-level";
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines(
                    {R"({"op":"read","la":"0x16010","size":4,"gpa":"0x70000010","value":0})",
                     R"({"op":"write","la":"0x16010","size":4,"value":"0xffffffff","gpa":"0x70000010"})",
                     R"({"op":"read","la":"0x16010","size":4,"gpa":"0x70000010","value":0})",
                     fmt::format(R"({{"op":"expect_memory","gpa":"{}","size":4,"value":"0x70000067"}})",
                                 small ? "0x4058" : "0x40b0"),
                     R"({"op":"fetch","la":"0x16010","gpa":"0x70000010"})",
                     R"({"op":"write","la":"0x15ffe","size":4,"value":"0x44332211","gpa":"0x35ffe","gpa2":"0x70000000"})",
                     R"({"op":"read","la":"0x15ffe","size":4,"value":"0x2211"})",
                     R"({"op":"write","la":"0x16ffe","size":4,"value":"0x44332211","gpa":"0x70000ffe","gpa2":"0x36000"})",
                     R"({"op":"expect_memory","gpa":"0x36000","size":4,"value":"0x4433"})"}),
            13);
    }
    replay_everywhere(
        Header{}.line() +
            lines({R"({"op":"write","la":"0xfee00000","size":4,"value":1,"gpa":"0xfee00000"})",
                   R"({"op":"read","la":"0xfee00000","size":4,"value":0,"gpa":"0xfee00000"})",
                   R"({"op":"read","la":"0xffffe","size":4,"gpa":"0xffffe","gpa2":"0x100000"})"}),
        5);
}

TEST_CASE("a table outside RAM ends a walk as not present", "[replay][replayer]")
{
    replay_everywhere(
        kLong + lines({R"({"op":"poke","gpa":"0x3008","size":8,"value":"0x200007"})",
                       R"({"op":"read","la":"0x200000","cpl":3,"fault":4})",
                       R"({"op":"expect_memory","gpa":"0x3008","size":8,"value":"0x200007","ignore":"0x20"})",
                       R"({"op":"mov_cr3","value":"0x200000"})", R"({"op":"write","la":"0x10000","fault":2})",
                       R"({"op":"mov_cr3","value":"0x1000"})",
                       R"({"op":"write","la":"0x10000","gpa":"0x20000"})"}),
        4);
    replay_everywhere(
        Header{}.line() + pae_guest() +
            lines({R"({"op":"mov_cr3","value":"0xffffffe0"})", R"({"op":"read","la":"0x10000","fault":0})",
                   R"({"op":"poke","gpa":"0x1008","size":8,"value":"0x70000001"})",
                   R"({"op":"mov_cr3","value":"0x1000"})", R"({"op":"read","la":"0x40000000","fault":0})",
                   R"({"op":"read","la":"0x10000","gpa":"0x20000"})"}),
        3);
}

TEST_CASE("a table may reference itself", "[replay][replayer]")
{
    // L4[511] is the L4: the top 512 GiB show the tables.
    replay_everywhere(
        kLong +
            lines({R"({"op":"poke","gpa":"0x1ff8","size":8,"value":"0x1007"})",
                   R"({"op":"read","la":"0xfffffffffffff000","size":8,"gpa":"0x1000","value":"0x2007"})",
                   R"({"op":"read","la":"0xffffff8000000080","size":8,"gpa":"0x4080","value":"0x20007"})",
                   // Map page 0x12 through the table's own mapping, and use it.
                   R"({"op":"read","la":"0x12000","fault":0})",
                   R"({"op":"write","la":"0xffffff8000000090","size":8,"value":"0x37007","gpa":"0x4090"})",
                   R"({"op":"write","la":"0x12000","size":1,"value":"0x5a","gpa":"0x37000"})",
                   R"({"op":"expect_memory","gpa":"0x4090","size":8,"value":"0x37067"})",
                   // And take it away.
                   R"({"op":"write","la":"0xffffff8000000090","size":8,"value":"0x0"})",
                   R"({"op":"invlpg","la":"0x12000"})", R"({"op":"read","la":"0x12000","fault":0})",
                   // The root's own entry, through itself.
                   R"({"op":"write","la":"0xfffffffffffffff0","size":8,"value":"0x2007","gpa":"0x1ff0"})",
                   R"({"op":"read","la":"0xffffff0000010000","gpa":"0x20000"})",
                   R"({"op":"write","la":"0xfffffffffffffff8","size":8,"value":"0x0","gpa":"0x1ff8"})",
                   R"({"op":"mov_cr3","value":"0x1000"})",
                   R"({"op":"read","la":"0xfffffffffffff000","fault":0})"}),
        13);
    // A level-1 table that maps itself, writable: the guest edits it directly.
    for (const NamedGuest& guest : paging_guests()) {
        const bool small = guest.name == "2-level";
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines({R"({"op":"read","la":"0x12000","fault":0})",
                       fmt::format(R"({{"op":"write","la":"{}","size":{},"value":"0x37007"}})",
                                   small ? "0x18048" : "0x18090", small ? 4 : 8),
                       R"({"op":"read","la":"0x12fff","gpa":"0x37fff"})",
                       fmt::format(R"({{"op":"write","la":"{}","size":{},"value":"0x38007"}})",
                                   small ? "0x18048" : "0x18090", small ? 4 : 8),
                       R"({"op":"invlpg","la":"0x12000"})", R"({"op":"read","la":"0x12fff","gpa":"0x38fff"})",
                       fmt::format(R"({{"op":"expect_memory","gpa":"{}","size":{},"value":"0x4067"}})",
                                   small ? "0x4060" : "0x40c0", small ? 4 : 8)}),
            4);
    }
}

// ---- instructions

TEST_CASE("an instruction starts again at its fetch, a block's at the access that trapped",
          "[replay][replayer]")
{
    const std::string insn =
        R"({"op":"insn","la":"0x10000","size":4,"gpa":"0x20000","mem":[{"op":"read","la":"0x11000","gpa":"0x31000"},)"
        R"({"op":"read","la":"0x15000","gpa":"0x35000"}]})"
        "\n";
    for (const bool by_block : {false, true}) {
        Header header;
        header.fetch = by_block ? "block" : "instruction";
        const std::string text = header.line() + four_level_guest() + insn;
        for (const ReplayConfig& config : all_setups()) {
            const Outcome outcome = replay_text(text, config);
            INFO(describe(config) << (by_block ? " block" : " instruction"));
            CHECK(outcome.total.checks == Statistics::Checks{3, 0});
            CHECK(outcome.total.accesses == Statistics::Accesses{1, 2, 0});
            if (config.mode == TranslationMode::native) {
                CHECK(outcome.total.hardware.walks == 3);
            } else if (config.populate == Populate::leaf) {
                // Three pages, three traps: the walks before each trap are done again, or not.
                CHECK(outcome.total.shadow.fault == 3);
                CHECK(outcome.total.hardware.walks == (by_block ? 6 : 9));
            }
        }
        // The next time nothing traps.
        const Outcome twice = replay_text(text + insn);
        CHECK(twice.total.hardware.walks == (by_block ? 6 : 9) + 3);
        CHECK(twice.total.shadow.fault == 3);
    }
}

TEST_CASE("a gather reads all of its operands", "[replay][replayer]")
{
    std::string mem;
    for (unsigned i = 0; i < 16; ++i) {
        const unsigned page = i % 2 == 0 ? 0x10 : 0x17;
        const unsigned to = i % 2 == 0 ? 0x20 : 0x36;
        mem += fmt::format(R"({}{{"op":"read","la":"{:#x}","size":4,"gpa":"{:#x}","value":0}})",
                           i == 0 ? "" : ",", page * 4096 + i * 64, to * 4096 + i * 64);
    }
    replay_everywhere(
        kLong + R"({"op":"insn","la":"0x15000","cpl":0,"mem":[)" + mem + "],\"fault\":\"0x11\"}\n", 1);
    replay_everywhere(kLong + R"({"op":"insn","la":"0x11000","mem":[)" + mem + "]}\n", 32);
}

TEST_CASE("an instruction whose operand faults does nothing, and what follows the operand is not checked",
          "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        const bool small = guest.name == "2-level";
        const auto entry = [&](unsigned index, const char* value, const char* ignore) {
            return fmt::format(
                R"({{"op":"expect_memory","gpa":"{:#x}","size":{},"value":"{}","ignore":"{}"}})",
                0x4000 + index * (small ? 4 : 8), small ? 4 : 8, value, ignore);
        };
        const std::string text =
            Header{}.line() + guest.records +
            lines({R"({"op":"insn","la":"0x17000","size":2,"cpl":3,"gpa":"0x36000","mem":[)"
                   R"({"op":"write","la":"0x10000","size":4,"value":"0x11111111","gpa":"0x20000"},)"
                   R"({"op":"read","la":"0x11000","size":4,"value":0},)"
                   R"({"op":"write","la":"0x12000","size":4,"value":1,"fault":6,"cr2":"0x12000"},)"
                   R"({"op":"write","la":"0x0","size":4,"value":"0x22222222","gpa":"0xbad000"},)"
                   R"({"op":"read","la":"0x14000","size":4,"value":"0xbad"}]})",
                   R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
                   R"({"op":"expect_memory","gpa":"0x30000","size":4,"value":0})",
                   entry(16, "0x20007", "0x20"), entry(0, "0x30007", "0x0"), entry(20, "0x34003", "0x0")});
        INFO(guest.name);
        // Of the instruction: gpa of the fetch and of the first operand, the second's value, fault and CR2.
        replay_everywhere(text, 5 + 5);
        for (const ReplayConfig& config : all_setups()) {
            const Outcome outcome = replay_text(text, config);
            CHECK(outcome.total.accesses == Statistics::Accesses{1, 1, 2});
            CHECK(outcome.total.guest_faults == 1);
        }
    }
}

TEST_CASE("an instruction that can't be fetched touches nothing", "[replay][replayer]")
{
    const std::string operands =
        R"(,"mem":[{"op":"write","la":"0x10000","size":4,"value":"0x11111111","gpa":"0xbad000"}]})";
    const std::string untouched =
        lines({R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
               R"({"op":"expect_memory","gpa":"0x4080","size":8,"value":"0x20007"})"});
    replay_everywhere(kLong + R"({"op":"insn","la":"0x15000","cpl":3,"fault":"0x15","cr2":"0x15000")" +
                          operands + "\n" + untouched,
                      4);
    replay_everywhere(kLong +
                          R"({"op":"insn","la":"0x11fff","size":2,"cpl":3,"fault":"0x14","cr2":"0x12000")" +
                          operands + "\n" + untouched,
                      4);
    replay_everywhere(
        kLong + R"({"op":"insn","la":"0x800000000000","fault":"gp")" + operands + "\n" + untouched, 3);
}

TEST_CASE("a segment violation in an operand stops the instruction", "[replay][replayer]")
{
    replay_everywhere(
        Header{}.line() + pae_guest() +
            lines({R"({"op":"set","segments":{"ss":{"limit":"0xffff"}}})",
                   R"({"op":"insn","la":"0x17000","gpa":"0x36000","mem":[)"
                   R"({"op":"write","la":"0x10000","size":4,"value":"0x11111111","gpa":"0x20000"},)"
                   R"({"op":"write","va":"0x10000","seg":"ss","size":4,"fault":"ss"},)"
                   R"({"op":"read","la":"0x12000","gpa":"0xbad000"}]})",
                   R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
                   R"({"op":"expect_memory","gpa":"0x4080","size":8,"value":"0x20007","ignore":"0x20"})"}),
        5);
}

TEST_CASE("an instruction that should fault and does not, or the other way round, is noticed",
          "[replay][replayer]")
{
    // It completes: its store is done.
    replay_everywhere(
        kLong + lines({R"({"op":"insn","la":"0x17000","mem":[{"op":"write","la":"0x10000","size":1,)"
                       R"("value":"0x7f","fault":2}]})",
                       R"({"op":"expect_memory","gpa":"0x20000","size":1,"value":"0x7f"})"}),
        2, 1);
    // The wrong operand faults: the one that was to be reached is not checked.
    replay_everywhere(
        kLong + R"({"op":"insn","la":"0x17000","mem":[{"op":"read","la":"0x12000","gpa":"0x32000"},)"
                R"({"op":"read","la":"0x13000","gpa":"0x33000"}]})"
                "\n",
        1, 1);
}

TEST_CASE("operands of an instruction take effect together, in their order", "[replay][replayer]")
{
    replay_everywhere(kLong + lines({R"({"op":"insn","la":"0x17000","mem":[)"
                                     R"({"op":"write","la":"0x10000","size":4,"value":"0x01020304"},)"
                                     R"({"op":"write","la":"0x10002","size":4,"value":"0x0a0b0c0d"},)"
                                     R"({"op":"write","la":"0x10ffe","size":4,"value":"0xaabbccdd"}]})",
                                     R"({"op":"read","la":"0x10000","size":6,"bytes":"04030d0c0b0a"})",
                                     R"({"op":"read","la":"0x10ffe","size":4,"value":"0xaabbccdd"})",
                                     R"({"op":"expect_memory","gpa":"0x4080","size":8,"value":"0x20067"})",
                                     R"({"op":"expect_memory","gpa":"0x4088","size":8,"value":"0x31067"})"}),
                      4);
    // A store to a table in the same instruction as an access that the table maps.
    replay_everywhere(
        kLong +
            lines({R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                   R"({"op":"insn","la":"0x17000","mem":[{"op":"read","la":"0x10000","gpa":"0x20000"},)"
                   R"({"op":"write","la":"0x18080","size":8,"value":"0x37007","gpa":"0x4080"}]})",
                   R"({"op":"invlpg","la":"0x10000"})", R"({"op":"read","la":"0x10000","gpa":"0x37000"})"}),
        4);
}
