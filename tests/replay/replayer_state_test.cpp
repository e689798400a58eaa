// SPDX-License-Identifier: Apache-2.0
//
// What the records do that are no accesses (docs/trace-format.md, "Registers and TLB management" and
// "Memory"): registers loaded and refused, invalidations, memory changed from outside, resets, several
// vCPUs, shadows blown. As in replayer_test.cpp, natively and under every policy, step and layout.
#include <array>
#include <string>
#include <vector>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// A trace whose last record is refused with a message that has these words.
void refuse_everywhere(const std::string& text, const std::string& words)
{
    std::string problems;
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome = replay_text(text, config);
        if (outcome.error.find(words) != std::string::npos) continue;
        problems += fmt::format("{}: error '{}'\n", describe(config), outcome.error);
    }
    INFO("error '" << words << "' expected of\n" << text);
    CHECK(problems == "");
}

const std::string kLong = Header{}.line() + four_level_guest();
const std::string kPae32 = Header{}.line() + pae_guest();

}  // namespace

// ---- set

TEST_CASE("set keeps what it does not name", "[replay][replayer]")
{
    replay_everywhere(kLong + lines({R"({"op":"set","cpl":3})", R"({"op":"read","la":"0x14000","fault":5})",
                                     R"({"op":"set"})", R"({"op":"read","la":"0x14000","fault":5})",
                                     R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                                     R"({"op":"set","cpl":0,"cr3":"0x1008"})",
                                     R"({"op":"read","la":"0x14000","gpa":"0x34000"})"}),
                      4);
}

TEST_CASE("after the header the machine is at reset", "[replay][replayer]")
{
    replay_everywhere(
        Header{}.line() + lines({R"({"op":"read","la":"0x1234","gpa":"0x1234","size":8,"value":0})",
                                 R"({"op":"write","la":"0xffffffff","cpl":3,"gpa":"0xffffffff"})",
                                 R"({"op":"fetch","va":"0xfff0","seg":"cs","gpa":"0xfff0"})",
                                 R"({"op":"mov_cr3","value":"0x0"})"}),
        4);
}

TEST_CASE("set loads the PDPTEs from memory, nothing else does unasked", "[replay][replayer]")
{
    const std::string second_table = R"({"op":"page","gfn":8,"width":8,"entries":[[0,"0x9007"]]})"
                                     "\n"
                                     R"({"op":"page","gfn":9,"width":8,"entries":[[16,"0x40007"]]})"
                                     "\n";
    const std::string change = R"({"op":"poke","gpa":"0x1000","size":8,"value":"0x8001"})";
    const std::string before = R"({"op":"read","la":"0x10000","gpa":"0x20000"})";
    const std::string after = R"({"op":"read","la":"0x10000","gpa":"0x40000"})";
    const std::vector<std::string> reloads{R"({"op":"set"})",
                                           R"({"op":"set","cpl":0})",
                                           R"({"op":"mov_cr3","value":"0x1000"})",
                                           R"({"op":"mov_cr0","value":"0xe0010011"})",
                                           R"({"op":"mov_cr0","value":"0xc0010011"})",
                                           R"({"op":"mov_cr4","value":"0xa0"})",
                                           R"({"op":"mov_cr4","value":"0x30"})",
                                           R"({"op":"mov_cr4","value":"0x100020"})"};
    const std::vector<std::string> others{R"({"op":"invlpg","la":"0x10000"})",
                                          R"({"op":"invpcid","type":2})",
                                          R"({"op":"mov_cr0","value":"0x80000011"})",
                                          R"({"op":"mov_cr4","value":"0x200020"})",
                                          R"({"op":"wrmsr","msr":"0xc0000080","value":"0x801"})",
                                          R"({"op":"cpl","value":0})",
                                          R"({"op":"shadow_blow"})",
                                          R"({"op":"set","vcpu":1})"};
    Header header;
    header.vcpus = 2;
    const std::string start = header.line() + pae_guest() + second_table;
    for (const std::string& reload : reloads) {
        replay_everywhere(start + lines({before, change, before, reload, after}), 3);
    }
    // SMAP in CR4 would stop the read, which is a supervisor's: AC lets it pass.
    for (const std::string& other : others) {
        replay_everywhere(start + lines({R"({"op":"ac","value":1})", before, change, before, other, before,
                                         reloads[0], after}),
                          4);
    }
}

TEST_CASE("set loads its own vCPU's PDPTEs alone", "[replay][replayer]")
{
    Header header;
    header.vcpus = 2;
    replay_everywhere(
        header.line() + pae_guest() +
            lines({R"({"op":"set","vcpu":1,"cr0":"0x80010011","cr3":"0x1000","cr4":"0x20"})",
                   R"({"op":"page","gfn":8,"width":8,"entries":[[0,"0x9007"]]})",
                   R"({"op":"page","gfn":9,"width":8,"entries":[[16,"0x40007"]]})",
                   R"({"op":"poke","gpa":"0x1000","size":8,"value":"0x8001"})", R"({"op":"set","vcpu":1})",
                   R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                   R"({"op":"read","la":"0x10000","vcpu":1,"gpa":"0x40000"})",
                   R"({"op":"mov_cr3","value":"0x1000"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x40000"})"}),
        3);
}

TEST_CASE("register values that no CPU holds make set a bad trace, with the reason", "[replay][replayer]")
{
    struct Case {
        const char* set;
        const char* words;
    };
    const std::vector<Case> cases{
        {R"("cr0":"0x100000011")", "CR0"},
        {R"("cr0":"0x80000000")", "CR0.PG needs CR0.PE"},
        {R"("cr0":"0x20000011")", "CR0.NW needs CR0.CD"},
        {R"("cr3":"0x10000000000","cr0":"0x80000011","cr4":"0x20","efer":"0x100")", "CR3"},
        {R"("cr3":"0x100000000")", "CR3"},
        {R"("cr4":"0x8000")", "CR4"},
        {R"("cr4":"0x10000000000")", "CR4"},
        {R"("cr4":"0x20020")", "PCIDE"},
        {R"("cr0":"0x80000011","efer":"0x100")", "PAE"},
        {R"("efer":"0x2")", "EFER"},
        {R"("efer":"0x4000")", "EFER"},
    };
    for (const Case& one : cases) {
        refuse_everywhere(Header{}.line() + R"({"op":"set",)" + one.set + "}\n", one.words);
    }
    // Accepted, for contrast.
    for (const char* const set :
         {R"("cr4":"0x64f")", R"("cr4":"0x20","efer":"0x500")", R"("cr0":"0x60000010")",
          R"("cr3":"0xffffffff")", R"("pkru":"0xffffffff","pkrs":1,"ac":true)"}) {
        replay_everywhere(Header{}.line() + R"({"op":"set",)" + set + "}\n", 0);
    }
}

TEST_CASE("control bits of a feature that is not listed are refused", "[replay][replayer]")
{
    struct Bit {
        const char* feature;
        std::uint64_t cr4;
    };
    const std::vector<Bit> bits{{"pse", 0x10},     {"pge", 0x80},      {"la57", 0x1000},
                                {"pcid", 0x20000}, {"smep", 0x100000}, {"smap", 0x200000},
                                {"pku", 0x400000}, {"pks", 0x1000000}};
    for (const Bit& bit : bits) {
        std::string others;
        for (const auto& [name, member] : kFeatureNames) {
            if (name != bit.feature) others += fmt::format(R"({}"{}")", others.empty() ? "" : ",", name);
        }
        Header with;
        with.features = fmt::format(R"("nx","{}")", bit.feature);
        Header without;
        without.features = others;
        // PCIDE is for long mode, LA57 can't change there.
        const bool long_mode = bit.cr4 == 0x20000;
        const std::string guest = long_mode ? four_level_guest() : "";
        const std::uint64_t value = bit.cr4 | (long_mode ? 0x20 : 0);
        const std::string mov = fmt::format(R"({{"op":"mov_cr4","value":"{:#x}"}})", value);
        const std::string refused = fmt::format(R"({{"op":"mov_cr4","value":"{:#x}","fault":"gp"}})", value);
        const std::string set = fmt::format(R"({{"op":"set","cr4":"{:#x}"}})", value);
        INFO(bit.feature);
        replay_everywhere(with.line() + guest + mov + "\n", 0);
        replay_everywhere(with.line() + guest + set + "\n", 0);
        replay_everywhere(without.line() + guest + refused + "\n", 1);
        refuse_everywhere(without.line() + guest + set + "\n", "CR4");
    }
    Header no_nx;
    no_nx.features = R"("pse")";
    replay_everywhere(no_nx.line() + R"({"op":"wrmsr","msr":"0xc0000080","value":"0x800","fault":"gp"})"
                                     "\n",
                      1);
    refuse_everywhere(no_nx.line() + R"({"op":"set","efer":"0x800"})"
                                     "\n",
                      "EFER");
    Header amd;
    amd.vendor = "amd";
    replay_everywhere(amd.line() + R"({"op":"wrmsr","msr":"0xc0000080","value":"0xd801"})"
                                   "\n",
                      0);
}

TEST_CASE("CR4 bits that do not concern paging are accepted without effect", "[replay][replayer]")
{
    // VME to DE, MCE, PCE to OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE.
    replay_everywhere(kLong + lines({R"({"op":"mov_cr4","value":"0x50f6f"})",
                                     R"({"op":"read","la":"0x10000","gpa":"0x20000"})"}),
                      1);
}

TEST_CASE("reserved PDPTE bits make set a bad trace", "[replay][replayer]")
{
    for (const char* const pdpte :
         {"0x2003", "0x2005", "0x2021", "0x2101", "0x8000000000002001", "0x10000002001"}) {
        const std::string tables =
            fmt::format(R"({{"op":"page","gfn":1,"width":8,"entries":[[2,"{}"]]}})", pdpte);
        const std::string set = R"({"op":"set","cr0":"0x80000011","cr3":"0x1000","cr4":"0x20"})";
        refuse_everywhere(Header{}.line() + lines({tables, set}), "PDPTE");
    }
    // In an entry that is not present they mean nothing, and PCD, PWT and available bits are free.
    replay_everywhere(
        Header{}.line() +
            lines({R"({"op":"page","gfn":1,"width":8,"entries":[[2,"0xfffffffffffffffe"],[1,"0x2e19"]]})",
                   R"({"op":"set","cr0":"0x80000011","cr3":"0x1000","cr4":"0x20"})"}),
        0);
}

TEST_CASE("a refused set changes nothing", "[replay][replayer]")
{
    // The trace ends there; what was replayed before counts.
    for (const ReplayConfig& config : all_setups()) {
        const Outcome outcome =
            replay_text(kLong + lines({R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                                       R"({"op":"set","cr3":"0x2000","cr4":"0x8000"})",
                                       R"({"op":"read","la":"0x10000","gpa":"0x20000"})"}),
                        config);
        CHECK(!outcome.error.empty());
        CHECK(outcome.total.checks == Statistics::Checks{1, 0});
        CHECK(outcome.records == 7);
    }
}

// ---- registers written by the guest

TEST_CASE("a refused register write changes nothing", "[replay][replayer]")
{
    const std::string read = R"({"op":"read","la":"0x10000","cpl":3,"gpa":"0x20000"})";
    const std::vector<std::string> refused{
        R"({"op":"mov_cr0","value":"0x100010011","fault":"gp"})",
        R"({"op":"mov_cr0","value":"0x80010010","fault":"gp"})",
        R"({"op":"mov_cr0","value":"0xa0010011","fault":"gp"})",
        R"({"op":"mov_cr3","value":"0x10000001000","fault":"gp"})",
        R"({"op":"mov_cr3","value":"0x8000000000002000","fault":"gp"})",
        R"({"op":"mov_cr4","value":"0x0","fault":"gp"})",
        R"({"op":"mov_cr4","value":"0x1020","fault":"gp"})",
        R"({"op":"mov_cr4","value":"0x8020","fault":"gp"})",
        R"({"op":"wrmsr","msr":"0xc0000080","value":"0x800","fault":"gp"})",
        R"({"op":"wrmsr","msr":"0xc0000080","value":"0x902","fault":"gp"})",
        R"({"op":"wrmsr","msr":"0xc0000081","value":"0x0","fault":"gp"})",
        R"({"op":"wrmsr","msr":"0xc0000081","value":"0x901","fault":"gp"})",
        R"({"op":"wrmsr","msr":"0x1b","value":"0x900","fault":"gp"})"};
    for (const std::string& record : refused) {
        replay_everywhere(kLong + lines({read, record, read}), 3);
    }
    // CR3's low bits forbid PCIDE; PCIDE forbids leaving long mode.
    replay_everywhere(
        kLong + lines({R"({"op":"mov_cr3","value":"0x1001"})",
                       R"({"op":"mov_cr4","value":"0x20020","fault":"gp"})",
                       R"({"op":"mov_cr3","value":"0x1000"})", R"({"op":"mov_cr4","value":"0x20020"})",
                       R"({"op":"mov_cr3","value":"0x1005"})",
                       R"({"op":"mov_cr0","value":"0x10011","fault":"gp"})", read}),
        3);
}

TEST_CASE("a refused CR3 in PAE mode leaves the old PDPTEs", "[replay][replayer]")
{
    const std::string read = R"({"op":"read","la":"0x10000","gpa":"0x20000"})";
    replay_everywhere(
        kPae32 + lines({R"({"op":"page","gfn":8,"width":8,"entries":[[0,"0x9001"],[3,"0x2003"]]})", read,
                        R"({"op":"mov_cr3","value":"0x8000","fault":"gp"})", read,
                        // A MOV to CR4 that reloads them is refused too, and CR4 stays.
                        R"({"op":"poke","gpa":"0x1008","size":8,"value":"0x2101"})",
                        R"({"op":"mov_cr4","value":"0x30","fault":"gp"})", read,
                        R"({"op":"mov_cr0","value":"0xc0010011","fault":"gp"})", read,
                        R"({"op":"poke","gpa":"0x1008","size":8,"value":"0x0"})",
                        R"({"op":"mov_cr4","value":"0x30"})", read}),
        8);
    // CR3 has 32 bits outside long mode; its low five are ignored.
    replay_everywhere(kPae32 + lines({R"({"op":"mov_cr3","value":"0x101f"})", read}), 1);
    replay_everywhere(kPae32 + lines({R"({"op":"mov_cr3","value":"0xffffffe8"})",
                                      R"({"op":"read","la":"0x10000","fault":0})"}),
                      1);
}

TEST_CASE("privileged instructions above CPL 0 are refused", "[replay][replayer]")
{
    const std::vector<std::string> privileged{R"({"op":"mov_cr0","value":"0x80010011")",
                                              R"({"op":"mov_cr3","value":"0x1000")",
                                              R"({"op":"mov_cr4","value":"0x20")",
                                              R"({"op":"wrmsr","msr":"0xc0000080","value":"0x900")",
                                              R"({"op":"invlpg","la":"0x10000")",
                                              R"({"op":"invlpg","la":"0x800000000000")",
                                              R"({"op":"invpcid","type":2)"};
    for (const std::string& record : privileged) {
        for (const int cpl : {1, 2, 3}) {
            const std::string at = fmt::format(R"({{"op":"cpl","value":{}}})", cpl);
            replay_everywhere(kLong + lines({at, record + R"(,"fault":"gp"})", record + "}"}), 2, 1);
        }
        replay_everywhere(
            kLong + lines({R"({"op":"cpl","value":3})", R"({"op":"cpl","value":0})", record + "}"}), 0);
    }
    replay_everywhere(
        kLong + lines({R"({"op":"cpl","value":3})", R"({"op":"wrpkru","value":4})",
                       R"({"op":"ac","value":1})", R"({"op":"cpl","value":1})", R"({"op":"cpl","value":0})"}),
        0);
}

TEST_CASE("a guest switches its paging on and off", "[replay][replayer]")
{
    const std::string tables = R"({"op":"page","gfn":1,"width":8,"entries":[[0,"0x2007"]]}
{"op":"page","gfn":2,"width":8,"entries":[[0,"0x3007"]]}
{"op":"page","gfn":3,"width":8,"entries":[[0,"0x4007"]]}
{"op":"page","gfn":4,"width":8,"entries":[[0,"0x30007"],[16,"0x20007"]]}
{"op":"page","gfn":5,"width":8,"entries":[[0,"0x1007"]]}
{"op":"page","gfn":6,"width":8,"entries":[[0,"0x3001"]]}
{"op":"page","gfn":7,"width":4,"entries":[[0,"0x8007"]]}
{"op":"page","gfn":8,"width":4,"entries":[[16,"0x40007"]]}
)";
    replay_everywhere(
        Header{}.line() + tables +
            lines({R"({"op":"read","la":"0x10000","gpa":"0x10000"})",
                   // Two-level.
                   R"({"op":"mov_cr3","value":"0x7000"})", R"({"op":"mov_cr0","value":"0x80000011"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x40000"})", R"({"op":"mov_cr0","value":"0x11"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x10000"})",
                   // PAE.
                   R"({"op":"mov_cr3","value":"0x6000"})", R"({"op":"mov_cr4","value":"0x20"})",
                   R"({"op":"mov_cr0","value":"0x80000011"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                   R"({"op":"wrmsr","msr":"0xc0000080","value":"0x100","fault":"gp"})",
                   R"({"op":"mov_cr0","value":"0x11"})",
                   // Four levels: LMA follows LME and PG by itself.
                   R"({"op":"wrmsr","msr":"0xc0000080","value":"0x100"})",
                   R"({"op":"mov_cr3","value":"0x1000"})", R"({"op":"mov_cr0","value":"0x80000011"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                   R"({"op":"read","la":"0x800000010000","fault":"gp"})",
                   R"({"op":"mov_cr4","value":"0x0","fault":"gp"})",
                   R"({"op":"mov_cr4","value":"0x1020","fault":"gp"})", R"({"op":"mov_cr0","value":"0x11"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x10000"})",
                   // Five.
                   R"({"op":"mov_cr3","value":"0x5000"})", R"({"op":"mov_cr4","value":"0x1020"})",
                   R"({"op":"mov_cr0","value":"0x80000011"})",
                   R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                   R"({"op":"read","la":"0x800000010000","fault":0})", R"({"op":"mov_cr0","value":"0x11"})",
                   // And off for good.
                   R"({"op":"wrmsr","msr":"0xc0000080","value":"0x0"})",
                   R"({"op":"write","la":"0x10000","gpa":"0x10000"})"}),
        13);
}

TEST_CASE("the address space changes with CR3", "[replay][replayer]")
{
    const std::string second = R"({"op":"page","gfn":8,"width":8,"entries":[[0,"0x9007"]]}
{"op":"page","gfn":9,"width":8,"entries":[[0,"0xa007"]]}
{"op":"page","gfn":10,"width":8,"entries":[[0,"0xb007"]]}
{"op":"page","gfn":11,"width":8,"entries":[[16,"0x50007"]]}
)";
    const std::string first_space = R"({"op":"read","la":"0x10000","gpa":"0x20000"})";
    const std::string second_space = R"({"op":"read","la":"0x10000","gpa":"0x50000"})";
    replay_everywhere(
        kLong + second +
            lines({first_space, R"({"op":"mov_cr3","value":"0x8000"})", second_space,
                   R"({"op":"read","la":"0x11000","fault":0})", R"({"op":"mov_cr3","value":"0x1000"})",
                   first_space, R"({"op":"set","cr3":"0x8000"})", second_space}),
        5);
    // With PCIDs, bit 63 asks for no flush; the spaces are apart all the same.
    replay_everywhere(
        kLong + second +
            lines({R"({"op":"mov_cr4","value":"0x20020"})", R"({"op":"mov_cr3","value":"0x1001"})",
                   first_space, R"({"op":"mov_cr3","value":"0x8000000000008002"})", second_space,
                   R"({"op":"mov_cr3","value":"0x8000000000001001"})", first_space,
                   R"({"op":"mov_cr3","value":"0x8000010000001001","fault":"gp"})", first_space}),
        5);
}

TEST_CASE("keys deny by PKRU, which any CPL may write", "[replay][replayer]")
{
    replay_everywhere(
        kLong + lines({R"({"op":"poke","gpa":"0x4080","size":8,"value":"0x0800000000020007"})",
                       R"({"op":"set","cr4":"0x400020"})", R"({"op":"cpl","value":3})",
                       R"({"op":"read","la":"0x10000","gpa":"0x20000"})", R"({"op":"wrpkru","value":"0x4"})",
                       R"({"op":"read","la":"0x10000","fault":"0x25"})",
                       R"({"op":"write","la":"0x10000","fault":"0x27"})",
                       R"({"op":"fetch","la":"0x10000","gpa":"0x20000"})", R"({"op":"wrpkru","value":"0x8"})",
                       R"({"op":"read","la":"0x10000","gpa":"0x20000"})",
                       R"({"op":"write","la":"0x10000","fault":"0x27"})",
                       R"({"op":"write","la":"0x10000","cpl":0,"fault":"0x23"})", R"({"op":"cpl","value":0})",
                       R"({"op":"mov_cr0","value":"0x80000011"})",
                       R"({"op":"write","la":"0x10000","gpa":"0x20000"})", R"({"op":"wrpkru","value":0})",
                       R"({"op":"cpl","value":3})", R"({"op":"write","la":"0x10000","gpa":"0x20000"})"}),
        9);
}

TEST_CASE("after an invalidation nothing stale is used", "[replay][replayer]")
{
    // The guest changes an entry through its mapping of the table and invalidates, in each way there is.
    const std::string change = R"({"op":"write","la":"0x18080","size":8,"value":"0x37007"})";
    const std::string before = R"({"op":"read","la":"0x10008","gpa":"0x20008"})";
    const std::string after = R"({"op":"read","la":"0x10008","gpa":"0x37008"})";
    for (const char* const flush :
         {R"({"op":"invlpg","la":"0x10000"})", R"({"op":"invlpg","la":"0x10fff"})",
          R"({"op":"mov_cr3","value":"0x1000"})", R"({"op":"invpcid","type":0,"pcid":0,"la":"0x10000"})",
          R"({"op":"invpcid","type":1,"pcid":0})", R"({"op":"invpcid","type":2})",
          R"({"op":"invpcid","type":3})", R"({"op":"mov_cr4","value":"0xa0"})", R"({"op":"set"})",
          R"({"op":"shadow_blow"})"}) {
        replay_everywhere(kLong + lines({before, change, flush, after}), 2);
    }
    // Rights taken away.
    replay_everywhere(kLong + lines({R"({"op":"write","la":"0x10008","cpl":3,"gpa":"0x20008"})",
                                     R"({"op":"write","la":"0x18080","size":8,"value":"0x20065"})",
                                     R"({"op":"invlpg","la":"0x10000"})",
                                     R"({"op":"write","la":"0x10008","cpl":3,"fault":7})",
                                     R"({"op":"read","la":"0x10008","cpl":3,"gpa":"0x20008"})"}),
                      3);
}

TEST_CASE("an invalidation left out matters under tlb-like, and nowhere else", "[replay][replayer]")
{
    const std::string stale = kLong + lines({R"({"op":"read","la":"0x10008","gpa":"0x20008"})",
                                             R"({"op":"write","la":"0x18080","size":8,"value":"0x37007"})",
                                             R"({"op":"read","la":"0x10008","gpa":"0x37008"})"});
    for (const ReplayConfig& config : all_setups()) {
        const bool keeps_stale = config.mode != TranslationMode::native && config.policy == "tlb-like";
        const Outcome outcome = replay_text(stale, config);
        INFO(describe(config));
        CHECK(outcome.total.checks == Statistics::Checks{2, keeps_stale ? 1u : 0u});
    }
}

// ---- several vCPUs

TEST_CASE("each vCPU has its own registers", "[replay][replayer]")
{
    Header header;
    header.vcpus = 3;
    replay_everywhere(
        header.line() + four_level_guest() +
            lines(
                {// vCPU 1 has its paging off, vCPU 2 has PAE on other tables, in the same memory.
                 R"({"op":"page","gfn":12,"width":8,"entries":[[0,"0xd001"]]})",
                 R"({"op":"page","gfn":13,"width":8,"entries":[[0,"0xe007"]]})",
                 R"({"op":"page","gfn":14,"width":8,"entries":[[16,"0x60007"]]})",
                 R"({"op":"set","vcpu":2,"cr0":"0x80010011","cr3":"0xc000","cr4":"0x20","cpl":3})",
                 R"({"op":"write","la":"0x10000","gpa":"0x20000","size":1,"value":"0x11"})",
                 R"({"op":"read","la":"0x20000","vcpu":1,"gpa":"0x20000","value":"0x11"})",
                 R"({"op":"write","la":"0x10000","vcpu":2,"gpa":"0x60000"})",
                 R"({"op":"read","la":"0x14000","gpa":"0x34000"})",
                 R"({"op":"mov_cr0","vcpu":2,"value":"0x11","fault":"gp"})",
                 R"({"op":"cpl","vcpu":1,"value":3})", R"({"op":"mov_cr3","vcpu":1,"value":0,"fault":"gp"})",
                 R"({"op":"mov_cr3","value":"0x1000"})", R"({"op":"read","la":"0x14000","gpa":"0x34000"})",
                 // A vCPU joins another's address space; the store of one is the other's.
                 R"({"op":"set","vcpu":2,"cr0":"0x80010011","cr3":"0x1000","cr4":"0x20","efer":"0x900","cpl":0})",
                 R"({"op":"read","la":"0x10000","vcpu":2,"size":1,"value":"0x11","gpa":"0x20000"})",
                 R"({"op":"write","la":"0x18090","vcpu":2,"size":8,"value":"0x37007"})",
                 R"({"op":"read","la":"0x12000","vcpu":0,"gpa":"0x37000"})",
                 R"({"op":"insn","la":"0x10000","vcpu":2,"gpa":"0x20000","mem":[{"op":"read","la":"0x12000","gpa":"0x37000"}]})",
                 R"({"op":"invlpg","la":"0x12000","vcpu":2})", R"({"op":"ac","vcpu":2,"value":1})",
                 R"({"op":"wrpkru","vcpu":2,"value":4})"}),
        13);
}

TEST_CASE("reset is for all vCPUs", "[replay][replayer]")
{
    Header header;
    header.vcpus = 2;
    replay_everywhere(
        header.line() + four_level_guest() +
            lines(
                {R"({"op":"set","vcpu":1,"cr0":"0x80010011","cr3":"0x1000","cr4":"0x20","efer":"0x900","cpl":3})",
                 R"({"op":"read","la":"0x10000","vcpu":1,"gpa":"0x20000"})",
                 R"({"op":"reset","name":"again"})",
                 R"({"op":"read","la":"0x10000","vcpu":0,"gpa":"0x10000"})",
                 R"({"op":"read","la":"0x10000","vcpu":1,"gpa":"0x10000"})",
                 R"({"op":"mov_cr3","vcpu":1,"value":0})",
                 R"({"op":"expect_memory","gpa":"0x1000","size":8,"value":0})",
                 R"({"op":"expect_memory","gpa":"0x4080","size":8,"value":0})"}),
        5);
}

// ---- memory

TEST_CASE("a page's entries are what is listed, the others 0", "[replay][replayer]")
{
    replay_everywhere(
        Header{}.line() +
            lines(
                {R"({"op":"poke","gpa":"0x5ff8","size":8,"value":"0xffffffffffffffff"})",
                 R"({"op":"page","gfn":"0x5","width":8,"entries":[[0,"0x1122334455667788"],[511,7],[2,"0x1"]]})",
                 R"({"op":"expect_memory","gpa":"0x5000","size":8,"value":"0x1122334455667788"})",
                 R"({"op":"expect_memory","gpa":"0x5ff8","size":8,"value":7})",
                 R"({"op":"expect_memory","gpa":"0x5008","size":8,"value":0})",
                 R"({"op":"page","gfn":5,"width":4,"entries":[[1023,"0xfffffffe"],[1,"0x5"]]})",
                 R"({"op":"expect_memory","gpa":"0x5ff8","size":8,"value":"0xfffffffe00000000"})",
                 R"({"op":"expect_memory","gpa":"0x5000","size":8,"value":"0x500000000"})",
                 R"({"op":"page","gfn":5,"width":8,"entries":[]})",
                 R"({"op":"expect_memory","gpa":"0x5ff8","size":8,"value":0})",
                 R"({"op":"page","gfn":"0xff","width":8,"entries":[[511,"0xff"]]})",
                 R"({"op":"expect_memory","gpa":"0xffff8","size":1,"value":"0xff"})"}),
        7);
}

TEST_CASE("memory is poked and compared in 1, 2, 4 or 8 bytes anywhere in a frame", "[replay][replayer]")
{
    std::vector<std::string> records;
    std::uint64_t checked = 0;
    for (const unsigned size : {1u, 2u, 4u, 8u}) {
        const std::uint64_t all = size == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * size)) - 1;
        for (const unsigned offset : {0u, 1u, 3u, 5u, 4096 - size}) {
            const unsigned at = 0x9000 + offset;
            records.push_back(R"({"op":"page","gfn":9,"width":8,"entries":[]})");
            records.push_back(fmt::format(R"({{"op":"poke","gpa":"{:#x}","size":{},"value":"{:#x}"}})", at,
                                          size, all & 0xa1a2a3a4a5a6a7a8));
            records.push_back(
                fmt::format(R"({{"op":"expect_memory","gpa":"{:#x}","size":{},"value":"{:#x}"}})", at, size,
                            all & 0xa1a2a3a4a5a6a7a8));
            records.push_back(fmt::format(
                R"({{"op":"expect_memory","gpa":"{:#x}","size":{},"value":"{:#x}","ignore":"{:#x}"}})", at,
                size, all & 0xa1a2a3a4a5a6a757, all & 0xff));
            checked += 2;
            if (offset > 0) {
                records.push_back(
                    fmt::format(R"({{"op":"expect_memory","gpa":"{:#x}","size":1,"value":0}})", at - 1));
                ++checked;
            }
        }
    }
    replay_everywhere(Header{}.line() + lines(records), checked);
    // `ignore` hides only its own bits.
    replay_everywhere(
        Header{}.line() +
            lines(
                {R"({"op":"poke","gpa":"0x0","size":8,"value":"0x21"})",
                 R"({"op":"expect_memory","gpa":"0x0","size":8,"value":"0x1","ignore":"0x20"})",
                 R"({"op":"expect_memory","gpa":"0x0","size":8,"value":"0x3","ignore":"0x20"})",
                 R"({"op":"expect_memory","gpa":"0x0","size":8,"value":"0x0","ignore":"0xffffffffffffffff"})"}),
        3, 1);
}

TEST_CASE("memory outside RAM is an error of the trace", "[replay][replayer]")
{
    for (const char* const record : {R"({"op":"page","gfn":"0x100","width":8,"entries":[]})",
                                     R"({"op":"poke","gpa":"0x100000","size":1,"value":0})",
                                     R"({"op":"expect_memory","gpa":"0x100000","size":1,"value":0})"}) {
        refuse_everywhere(Header{}.line() + record + "\n", "not RAM");
    }
}

TEST_CASE("a table that is poked from outside is used as it is then", "[replay][replayer]")
{
    // The hypervisor knows, so this holds in every mode without a flush by the guest.
    for (const NamedGuest& guest : paging_guests()) {
        const bool small = guest.name == "2-level";
        const auto poke = [&](unsigned index, std::uint64_t value) {
            return fmt::format(R"({{"op":"poke","gpa":"{:#x}","size":{},"value":"{:#x}"}})",
                               0x4000 + index * (small ? 4 : 8), small ? 4 : 8, value);
        };
        INFO(guest.name);
        replay_everywhere(
            Header{}.line() + guest.records +
                lines({R"({"op":"write","la":"0x10000","cpl":3,"gpa":"0x20000"})", poke(16, 0x38005),
                       R"({"op":"read","la":"0x10000","cpl":3,"gpa":"0x38000"})",
                       R"({"op":"write","la":"0x10000","cpl":3,"fault":7})", poke(16, 0),
                       R"({"op":"read","la":"0x10000","cpl":3,"fault":4})", poke(16, 0x20007),
                       R"({"op":"write","la":"0x10000","cpl":3,"gpa":"0x20000"})",
                       R"({"op":"page","gfn":4,"width":8,"entries":[]})",
                       R"({"op":"write","la":"0x10000","cpl":3,"fault":6})"}),
            6);
    }
}

TEST_CASE("a reset is the state right after the header", "[replay][replayer]")
{
    for (const NamedGuest& guest : paging_guests()) {
        INFO(guest.name);
        std::string text = Header{}.line();
        for (int i = 0; i < 3; ++i) {
            text += R"({"op":"read","la":"0x10000","gpa":"0x10000","size":8,"value":0})"
                    "\n" +
                    guest.records +
                    R"({"op":"write","la":"0x10000","gpa":"0x20000","size":8,"value":"0x1"})"
                    "\n"
                    R"({"op":"cpl","value":3})"
                    "\n"
                    R"({"op":"set","segments":{"ds":{"base":"0x1000","limit":"0xff"}}})"
                    "\n"
                    R"({"op":"reset","name":"next"})"
                    "\n"
                    R"({"op":"read","va":"0x1000","gpa":"0x1000"})"
                    "\n"
                    R"({"op":"mov_cr0","value":"0x11"})"
                    "\n"
                    R"({"op":"reset"})"
                    "\n";
        }
        text += R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":0})"
                "\n";
        replay_everywhere(text, 3 * 4 + 1);
    }
}

TEST_CASE("thirty thousand resets in one file", "[replay][replayer]")
{
    std::string text = Header{}.line();
    const std::string one = R"({"op":"reset","name":"case"})"
                            "\n" +
                            four_level_guest() +
                            R"({"op":"write","la":"0x10000","size":8,"value":"0x5","gpa":"0x20000"})"
                            "\n";
    for (int i = 0; i < 30000; ++i) text += one;
    const ScratchFile file{text};
    for (const TranslationMode mode : {TranslationMode::native, TranslationMode::shadow}) {
        ReplayConfig config = checking();
        config.mode = mode;
        const Outcome outcome = replay_file(file.path(), config);
        CHECK(outcome.error.empty());
        CHECK(outcome.total.records == 7 * 30000);
        CHECK(outcome.total.checks == Statistics::Checks{30000, 0});
        CHECK(outcome.total.accesses == Statistics::Accesses{0, 0, 30000});
        // The counters of before a reset are not lost.
        CHECK(outcome.total.hardware.walks == (mode == TranslationMode::native ? 30000 : 60000));
        if (mode == TranslationMode::shadow) {
            CHECK(outcome.total.shadow.fault == 30000);
            CHECK(outcome.total.shadow.fault_fixed == 30000);
        }
    }
}

TEST_CASE("the memory of 2^28 frames costs nothing until it is used", "[replay][replayer]")
{
    Header header;
    header.frames = "0x10000000";
    replay_everywhere(
        header.line() +
            lines(
                {R"({"op":"page","gfn":"0xfffffff","width":8,"entries":[[0,"0xffffffe007"]]})",
                 R"({"op":"page","gfn":"0xffffffe","width":8,"entries":[[0,"0xffffffd007"]]})",
                 R"({"op":"page","gfn":"0xffffffd","width":8,"entries":[[0,"0xffffffc007"],[1,"0xffffe00087"]]})",
                 R"({"op":"page","gfn":"0xffffffc","width":8,"entries":[[0,"0xfffffff007"],[1,"0x8000000007"],[2,"0x7"]]})",
                 R"({"op":"set","cr0":"0x80010011","cr3":"0xfffffff000","cr4":"0x20","efer":"0x900"})",
                 R"({"op":"read","la":"0x0","size":8,"gpa":"0xfffffff000","value":"0xffffffe027"})",
                 R"({"op":"write","la":"0x1ff8","size":8,"value":"0x1234","gpa":"0x8000000ff8"})",
                 R"({"op":"write","la":"0x2fff","size":1,"value":"0x12","gpa":"0xfff"})",
                 R"({"op":"read","la":"0x3ff008","gpa":"0xfffffff008"})",
                 R"({"op":"expect_memory","gpa":"0x8000000ff8","size":8,"value":"0x1234"})"}),
        6);
}

TEST_CASE("the header's layout of machine memory counts, unless the configuration has one",
          "[replay][replayer]")
{
    struct Case {
        const char* p2m;
        std::uint64_t mfn_of_20;
    };
    for (const Case& one :
         {Case{R"({"layout":"identity"})", 0x20}, Case{R"({"layout":"offset","offset":"0x1000"})", 0x1020},
          Case{R"({"layout":"listed","entries":[["0x0","0x500",32],["0x20","0x200000",1],)"
               R"(["0x21","0x10",223]]})",
               0x200000}}) {
        std::string header = Header{}.line();
        header.replace(header.rfind("}}\n"), 0, std::string{",\"p2m\":"} + one.p2m);
        const std::string text = header + four_level_guest() +
                                 R"({"op":"write","la":"0x10000","size":8,"value":"0x5","gpa":"0x20000"})"
                                 "\n"
                                 R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":"0x5"})"
                                 "\n";
        replay_everywhere(text, 2);
        INFO(one.p2m);
        CHECK(replay_text(text).total.checks == Statistics::Checks{2, 0});
        const ScratchFile file{text};
        TraceReader reader{file.path()};
        Replayer replayer{reader.header(), checking(), builtin_shadow_policies()};
        CHECK(replayer.machine().p2m().mfn_of(Gfn{0x20}) == Mfn{one.mfn_of_20});
        ReplayConfig config = checking();
        config.p2m = parse_p2m_layout("offset:0x77");
        const Replayer other{reader.header(), config, builtin_shadow_policies()};
        CHECK(other.machine().p2m().mfn_of(Gfn{0x20}) == Mfn{0x97});
        config.mode = TranslationMode::native;
        const Replayer native{reader.header(), config, builtin_shadow_policies()};
        CHECK(native.machine().p2m().mfn_of(Gfn{0x20}) == Mfn{0x20});
    }
}

TEST_CASE("a layout that does not fit the RAM is refused", "[replay][replayer]")
{
    TraceHeader header;
    header.ram = {{Gfn{0}, 16}};
    for (const char* const layout : {"offset:0x10000000000", "offset:0xfffffffffffffff8"}) {
        ReplayConfig config;
        config.p2m = parse_p2m_layout(layout);
        REQUIRE(config.p2m.has_value());
        INFO(layout);
        CHECK_THROWS_AS(Replayer(header, config, builtin_shadow_policies()), LayoutError);
    }
}

TEST_CASE("shadows are dropped by shadow_blow, and made again", "[replay][replayer]")
{
    const std::string use = R"({"op":"write","la":"0x10000","gpa":"0x20000"})"
                            "\n"
                            R"({"op":"fetch","la":"0x11000","gpa":"0x31000"})"
                            "\n";
    const std::string text = kLong + use +
                             R"({"op":"mark","name":"blown"})"
                             "\n"
                             R"({"op":"shadow_blow"})"
                             "\n"
                             R"({"op":"mark","name":"again"})"
                             "\n" +
                             use + use;
    replay_everywhere(text, 6);
    for (const ReplayConfig& config : all_setups()) {
        if (config.mode == TranslationMode::native) continue;
        const Outcome outcome = replay_text(text, config);
        INFO(describe(config));
        REQUIRE(outcome.phases.size() == 3);
        const ShadowCounters& made = outcome.phases[0].statistics.shadow;
        const ShadowCounters& blown = outcome.phases[1].statistics.shadow;
        const ShadowCounters& again = outcome.phases[2].statistics.shadow;
        CHECK(made.alloc >= 4);
        CHECK(blown.alloc == 0);
        CHECK(blown.free == made.alloc - made.free);
        CHECK(blown.alloc_count == 0);
        CHECK(again.alloc_count == 4);
        CHECK(again.fault > 0);
        CHECK(outcome.total.shadow.alloc_count == again.alloc_count);
        if (config.populate == Populate::leaf) CHECK(again.fault_fixed == 2);
    }
}

TEST_CASE("a mode that does not fit the guest's paging is an error of the access", "[replay][replayer]")
{
    struct Mode {
        TranslationMode mode;
        std::vector<std::string> fits;
    };
    const std::vector<Mode> modes{{TranslationMode::shadow_2_on_3, {"off", "2-level"}},
                                  {TranslationMode::shadow_3_on_3, {"PAE"}},
                                  {TranslationMode::shadow_4_on_4, {"4-level"}},
                                  {TranslationMode::shadow_5_on_5, {"5-level"}},
                                  {TranslationMode::shadow, {"off", "2-level", "PAE", "4-level", "5-level"}},
                                  {TranslationMode::native, {"off", "2-level", "PAE", "4-level", "5-level"}}};
    std::vector<NamedGuest> guests = paging_guests();
    guests.push_back({"off", "", false, false});
    for (const Mode& one : modes) {
        for (const NamedGuest& guest : guests) {
            const bool fits = std::find(one.fits.begin(), one.fits.end(), guest.name) != one.fits.end();
            for (const char* const access :
                 {R"({"op":"read","la":"0x10000"})", R"({"op":"read","la":"0x10fff","size":2})",
                  R"({"op":"insn","la":"0x10000","mem":[]})"}) {
                ReplayConfig config = checking();
                config.mode = one.mode;
                const Outcome outcome = replay_text(Header{}.line() + guest.records +
                                                        R"({"op":"mov_cr3","value":"0x1000"})"
                                                        "\n" +
                                                        access + "\n",
                                                    config);
                INFO(name_of(one.mode) << " with paging " << guest.name << ": " << outcome.error);
                CHECK(outcome.error.empty() == fits);
                if (!fits) {
                    CHECK(outcome.error.find(name_of(one.mode)) != std::string::npos);
                    CHECK(outcome.total.accesses.total() == 0);
                }
            }
        }
    }
}

TEST_CASE("a refused record is a RecordError, which knows the key and leaves the counts",
          "[replay][replayer]")
{
    TraceHeader header;
    header.ram = {{Gfn{0}, 16}};
    Replayer replayer{header, checking(), builtin_shadow_policies()};
    AccessRecord access;
    access.address = 0x1234;
    access.gpa = 0x1234;
    replayer.replay(access);
    access.address = std::uint64_t{1} << 32;
    try {
        replayer.replay(access);
        FAIL("a linear address of 33 bits was accepted");
    } catch (const RecordError& error) {
        CHECK(error.key == "la");
    }
    SetRecord set;
    set.cr4 = 1u << 15;
    CHECK_THROWS_AS(replayer.replay(set), RecordError);
    replayer.finish();
    CHECK(replayer.total().accesses.total() == 1);
    CHECK(replayer.total().checks == Statistics::Checks{1, 0});
}
