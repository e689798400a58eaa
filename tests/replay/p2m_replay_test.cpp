// SPDX-License-Identifier: Apache-2.0
//
// The records `p2m_set` and `p2m_clear`: what the guest sees of a P2M that changes under it, in every shadow
// mode and under every kind of policy, and in nested mode; and what the change costs (reference/xen.md C3, H2
// S10).
#include <algorithm>
#include <string>
#include <vector>

#include "replay/replay_run.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

/// Machine frames of nobody's in any of the layouts, from here on.
constexpr std::uint64_t kSpare = 0x5000;

std::vector<ReplayConfig> setups()
{
    std::vector<ReplayConfig> setups;
    for (const char* const policy : {"xen", "xen-2006", "kvm", "tlb-like", "vtlb-nova", "vtlb-stale"}) {
        for (const char* const layout : {"identity", "offset:0x123456", "shuffled:7"}) {
            for (const char* const cpu : {"none", "skylake"}) {
                ReplayConfig config = checking();
                config.policy = policy;
                config.p2m = parse_p2m_layout(layout);
                config.cpu = cpu;
                config.check_coherence = true;
                config.audit = 1;
                setups.push_back(config);
            }
        }
    }
    return setups;
}

/// The same, and nested ones.
std::vector<ReplayConfig> setups_with_p2m()
{
    std::vector<ReplayConfig> all = setups();
    for (ReplayConfig config : nested_setups()) {
        config.check_coherence = true;
        config.audit = 1;
        all.push_back(config);
        config.cpu = "skylake";
        all.push_back(config);
    }
    return all;
}

std::string set(std::string_view gfn, std::uint64_t mfn, std::string_view more = "")
{
    return fmt::format(R"({{"op":"p2m_set","gfn":"{}","mfn":"{:#x}"{}}})", gfn, kSpare + mfn, more);
}
std::string clear(std::string_view gfn)
{
    return fmt::format(R"({{"op":"p2m_clear","gfn":"{}"}})", gfn);
}
std::string read(std::string_view la, std::string_view expected)
{
    return fmt::format(R"({{"op":"read","la":"{}","cpl":3,"size":4,{}}})", la, expected);
}
std::string write(std::string_view la, std::uint64_t value, std::string_view expected)
{
    return fmt::format(R"({{"op":"write","la":"{}","cpl":3,"size":4,"value":{},{}}})", la, value, expected);
}

/// So many expectations, all of which hold, in each guest mode.
void replay_in(const std::vector<ReplayConfig>& configs, const std::vector<std::string>& records,
               std::uint64_t checked)
{
    std::string problems;
    for (const NamedGuest& guest : paging_guests()) {
        for (const ReplayConfig& config : configs) {
            const std::string text = Header{}.line() + guest.records + lines(records);
            const auto problem = [&](std::string_view what) {
                problems += fmt::format("{} {} {}: {}\n", guest.name, describe(config), config.cpu, what);
            };
            try {
                const Outcome outcome = replay_text(text, config);
                const Statistics::Checks checks = outcome.total.checks;
                if (!outcome.error.empty()) problem(outcome.error);
                if (checks.checked != checked || checks.mismatched != 0) {
                    problem(fmt::format("{} checked, {} mismatched; {}", checks.checked, checks.mismatched,
                                        describe(outcome.mismatches)));
                }
                if (outcome.total.hardware.coherence.violations != 0) problem("a coherence violation");
            } catch (const AuditFailure& failure) {
                problem(failure.what());
            }
        }
    }
    INFO(lines(records));
    CHECK(problems == "");
}
void replay_everywhere_with_p2m(const std::vector<std::string>& records, std::uint64_t checked)
{
    replay_in(setups_with_p2m(), records, checked);
}

}  // namespace

TEST_CASE("another machine frame behind a mapped page", "[replay][p2m]")
{
    replay_everywhere_with_p2m(
        {
            write("0x10000", 0x11, R"("gpa":"0x20000")"),
            set("0x20", 0),
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x10000", 0x22, R"("gpa":"0x20000")"),
            set("0x20", 1),
            read("0x10000", R"("value":0)"),
            write("0x10004", 0x33, R"("gpa":"0x20004")"),
            set("0x20", 0),
            read("0x10000", R"("value":"0x22")"),
            read("0x10004", R"("value":0)"),
            R"({"op":"expect_memory","gpa":"0x20000","size":8,"value":"0x22"})",
            R"({"op":"poke","gpa":"0x20000","size":4,"value":"0x44"})",
            read("0x10000", R"("value":"0x44")"),
            // Memory stays where it is.
            set("0x20", 1),
            read("0x10004", R"("value":"0x33")"),
        },
        11);
}

TEST_CASE("a frame is taken from the guest and given back", "[replay][p2m]")
{
    replay_everywhere_with_p2m(
        {
            set("0x20", 0),
            write("0x10000", 0x11, R"("gpa":"0x20000")"),
            clear("0x20"),
            // A device's page now: reads as 0, takes no store.
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x10000", 0x22, R"("gpa":"0x20000")"),
            read("0x10000", R"("value":0)"),
            set("0x20", 0),
            read("0x10000", R"("gpa":"0x20000","value":"0x11")"),
            write("0x10000", 0x33, R"("gpa":"0x20000")"),
            R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":"0x33"})",
            // Twice is as once.
            clear("0x20"),
            clear("0x20"),
            R"({"op":"p2m_clear","gfn":"0x20","count":32})",
            read("0x10000", R"("value":0)"),
            read("0x11000", R"("gpa":"0x31000")"),
            // Frames of which some had nothing.
            R"({"op":"p2m_set","gfn":"0x1e","mfn":"0x5010","count":20})",
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x11000", 0x44, R"("gpa":"0x31000")"),
            R"({"op":"expect_memory","gpa":"0x31000","size":4,"value":"0x44"})",
            R"({"op":"reset"})",
        },
        15);
}

TEST_CASE("no TLB holds a machine frame that was taken away", "[replay][p2m]")
{
    // The guest takes the entry away and flushes nothing: no shadow maps the frame when it goes, but a TLB
    // may. The audit looks into TLBs.
    for (const char* const change :
         {R"({"op":"p2m_clear","gfn":"0x20"})", R"({"op":"p2m_set","gfn":"0x20","mfn":"0x5000"})",
          R"({"op":"p2m_set","gfn":"0x20","type":"ram_ro"})"}) {
        replay_everywhere_with_p2m(
            {
                write("0x10000", 0x11, R"("gpa":"0x20000")"),
                R"({"op":"write","la":"0x18080","size":4,"value":0,"gpa":"0x4080"})",
                R"({"op":"write","la":"0x18040","size":4,"value":0,"gpa":"0x4040"})",
                change,
                read("0x11000", R"("gpa":"0x31000")"),
                R"({"op":"invlpg","la":"0x10000"})",
                read("0x10000", R"("fault":4)"),
            },
            5);
    }
}

TEST_CASE("a machine frame is one guest frame's", "[replay][p2m]")
{
    replay_everywhere_with_p2m(
        {
            set("0x20", 0),
            write("0x10000", 0x11, R"("gpa":"0x20000")"),
            write("0x11000", 0x22, R"("gpa":"0x31000")"),
            set("0x31", 0),
            read("0x11000", R"("gpa":"0x31000","value":"0x11")"),
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x10000", 0x33, R"("gpa":"0x20000")"),
            read("0x11000", R"("value":"0x11")"),
        },
        8);
}

TEST_CASE("frames that change places within one record", "[replay][p2m]")
{
    // Up, down, and around.
    for (const char* const second : {R"("gfn":"0x31","mfn":"0x5000")", R"("gfn":"0x2f","mfn":"0x5000")"}) {
        const bool up = std::string_view{second}.find("0x31") != std::string_view::npos;
        const auto at = [&](unsigned was) {
            return fmt::format(R"({{"op":"expect_memory","gpa":"{:#x}","size":4,"value":{}}})",
                               (0x30 + was + (up ? 1u : ~0u)) * 0x1000 & 0xfffff, was + 1);
        };
        replay_everywhere_with_p2m(
            {
                R"({"op":"p2m_set","gfn":"0x30","mfn":"0x5000","count":4})",
                R"({"op":"poke","gpa":"0x30000","size":4,"value":1})",
                R"({"op":"poke","gpa":"0x31000","size":4,"value":2})",
                R"({"op":"poke","gpa":"0x32000","size":4,"value":3})",
                R"({"op":"poke","gpa":"0x33000","size":4,"value":4})",
                write("0x11000", 2, R"("gpa":"0x31000")"),
                fmt::format(R"({{"op":"p2m_set",{},"count":4}})", second),
                at(0),
                at(1),
                at(2),
                at(3),
                read("0x11000", fmt::format(R"("gpa":"0x31000","value":{})", up ? 1 : 3)),
                read("0x13000", fmt::format(R"("gpa":"0x33000","value":{})", up ? 3 : 0)),
            },
            9);
    }
}

TEST_CASE("a frame that the guest may not write takes no store", "[replay][p2m]")
{
    for (const char* const type : {"ram_ro", "grant_map_ro"}) {
        const std::string as = fmt::format(R"(,"type":"{}")", type);
        replay_everywhere_with_p2m(
            {
                set("0x20", 0),
                write("0x10000", 0x11, R"("gpa":"0x20000")"),
                set("0x20", 0, as),
                read("0x10000", R"("gpa":"0x20000","value":"0x11")"),
                write("0x10000", 0x22, R"("gpa":"0x20000")"),
                read("0x10000", R"("value":"0x11")"),
                R"({"op":"write","la":"0x10ffe","cpl":3,"size":4,"value":"0x33445566","gpa":"0x20ffe","gpa2":"0x31000"})",
                R"({"op":"read","la":"0x10ffe","cpl":3,"size":4,"value":"0x33440000"})",
                R"({"op":"poke","gpa":"0x20000","size":4,"value":"0x77"})",
                read("0x10000", R"("value":"0x77")"),
            },
            9);
    }
}

TEST_CASE("types under which the guest's memory works as ever", "[replay][p2m]")
{
    for (const char* const type :
         {"ram_rw", "ram_logdirty", "mmio_direct", "grant_map_rw", "map_foreign", "ioreq_server"}) {
        const std::string as = fmt::format(R"(,"type":"{}")", type);
        std::vector<std::string> records{
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            set("0x20", 0, as),
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x10000", 0x22, R"("gpa":"0x20000")"),
            write("0x10000", 0x23, R"("gpa":"0x20000")"),
            read("0x10000", R"("gpa":"0x20000","value":"0x23")"),
        };
        replay_everywhere_with_p2m(records, 8);
        // Shadow entries have no bit of the type's against fetches; the second level has (C1).
        records.push_back(R"({"op":"fetch","la":"0x10000","cpl":3,"size":3,"gpa":"0x20000"})");
        replay_in(setups(), records, 9);
    }
}

TEST_CASE("memory that is populated on demand is all zeros", "[replay][p2m]")
{
    const std::string on_demand = R"({"op":"p2m_set","gfn":"0x20","type":"populate_on_demand"})";
    replay_everywhere_with_p2m(
        {
            write("0x10000", 0x11, R"("gpa":"0x20000")"),
            on_demand,
            R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
            read("0x10000", R"("gpa":"0x20000","value":0)"),
            write("0x10000", 0x22, R"("gpa":"0x20000")"),
            read("0x10000", R"("value":"0x22")"),
            on_demand,
            R"({"op":"write","la":"0x10ffe","cpl":3,"size":4,"value":"0x11223344","gpa":"0x20ffe","gpa2":"0x31000"})",
            R"({"op":"expect_memory","gpa":"0x20ffe","size":2,"value":"0x3344"})",
            R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
            on_demand,
            R"({"op":"poke","gpa":"0x20008","size":8,"value":5})",
            R"({"op":"read","la":"0x10008","cpl":3,"size":8,"value":5})",
        },
        11);
    // A table of the guest's.
    replay_everywhere_with_p2m(
        {
            read("0x10000", R"("gpa":"0x20000")"),
            R"({"op":"p2m_set","gfn":"0x4","type":"populate_on_demand"})",
            read("0x10000", R"("fault":4)"),
            R"({"op":"poke","gpa":"0x4080","size":8,"value":"0x20007"})",
            R"({"op":"poke","gpa":"0x4040","size":4,"value":"0x20007"})",
            read("0x10000", R"("gpa":"0x20000")"),
        },
        3);
}

TEST_CASE("a page that is nothing at all is the guest's fault", "[replay][p2m]")
{
    // reference/xen.md B9 step 8. A device's is none.
    replay_in(
        setups(),
        {
            write("0x10000", 0x11, R"("gpa":"0x20000")"),
            R"({"op":"p2m_set","gfn":"0x20","type":"invalid"})",
            read("0x10000", R"("fault":5,"cr2":"0x10000")"),
            write("0x10000", 0x11, R"("fault":7)"),
            R"({"op":"write","la":"0x10ffe","cpl":3,"size":4,"value":1,"fault":7,"cr2":"0x10ffe"})",
            R"({"op":"insn","la":"0x11000","cpl":3,"mem":[{"op":"write","la":"0x14000","cpl":0,"size":4,"value":7},{"op":"read","la":"0x10000","fault":5}]})",
            R"({"op":"expect_memory","gpa":"0x34000","size":4,"value":0})",
            R"({"op":"p2m_set","gfn":"0x20","type":"mmio_dm"})",
            read("0x10000", R"("gpa":"0x20000","value":0)"),
        },
        10);
    for (const ReplayConfig& config : setups()) {
        const Outcome outcome = replay_text(
            Header{}.line() + four_level_guest() +
                lines({R"({"op":"p2m_set","gfn":"0x20","type":"ram_broken"})",
                       read("0x11000", R"("gpa":"0x31000")"), read("0x10000", R"("gpa":"0x20000")")}),
            config);
        INFO(describe(config));
        CHECK(outcome.error.find("frame 0x20, which is broken") != std::string::npos);
        CHECK(outcome.total.checks.checked == 1);
    }
}

TEST_CASE("a table whose frame changes is read anew", "[replay][p2m]")
{
    // Each table, lowest first, so that a new one finds those above it in use. What the guest reads is the
    // machine frame's; the old frame keeps what it held.
    struct Table {
        std::string guest;
        std::string gfn;
        unsigned index;  ///< of the entry on the path to 0x10000
        std::uint64_t entry;
        unsigned width = 8;
    };
    const std::vector<Table> tables{
        {"4-level", "0x4", 16, 0x38007},    {"4-level", "0x3", 0, 0x4007},    {"4-level", "0x2", 0, 0x3007},
        {"4-level", "0x1", 0, 0x2007},      {"5-level", "0x4", 16, 0x38007},  {"5-level", "0x1", 0, 0x2007},
        {"5-level", "0x7", 0, 0x1007},      {"PAE", "0x4", 16, 0x38007},      {"PAE", "0x2", 0, 0x4007},
        {"2-level", "0x4", 16, 0x38007, 4}, {"2-level", "0x1", 0, 0x4007, 4},
    };
    for (const Table& table : tables) {
        const auto guests = paging_guests();
        const auto guest = std::find_if(guests.begin(), guests.end(),
                                        [&](const NamedGuest& one) { return one.name == table.guest; });
        const bool leaf = table.gfn == "0x4";
        const std::string after = leaf ? R"("gpa":"0x38000")" : R"("gpa":"0x20000")";
        const std::string text =
            Header{}.line() + guest->records +
            lines({
                write("0x10000", 1, R"("gpa":"0x20000")"),
                read("0x17000", R"("gpa":"0x36000")"),
                set(table.gfn, 0),
                read("0x10000", R"("fault":4)"),
                fmt::format(R"({{"op":"page","gfn":"{}","width":{},"entries":[[{},"{:#x}"]]}})", table.gfn,
                            table.width, table.index, table.entry),
                read("0x10000", after),
                write("0x10000", 5, after),
                // The machine frame that it had is another's now: entries as they were, but A and D.
                set("0x60", 0),
                read("0x10000", R"("fault":4)"),
                fmt::format(
                    R"({{"op":"expect_memory","gpa":"{:#x}","size":{},"value":"{:#x}","ignore":"0x60"}})",
                    0x60000 + table.index * table.width, table.width, table.entry),
                // And given back.
                set(table.gfn, 0),
                read("0x10000", after),
            });
        for (const ReplayConfig& config : setups_with_p2m()) {
            INFO(table.guest << " table " << table.gfn << " " << describe(config) << " " << config.cpu);
            try {
                const Outcome outcome = replay_text(text, config);
                INFO(outcome.error << describe(outcome.mismatches));
                CHECK(outcome.error.empty());
                CHECK(outcome.total.checks == Statistics::Checks{8, 0, 0});
                CHECK(outcome.total.hardware.coherence.violations == 0);
            } catch (const AuditFailure& failure) {
                FAIL_CHECK(failure.what());
            }
        }
    }
}

TEST_CASE("the PDPTEs stay in their registers when their frame changes", "[replay][p2m]")
{
    for (const ReplayConfig& config : setups_with_p2m()) {
        INFO(describe(config) << " " << config.cpu);
        const Outcome outcome =
            replay_text(Header{}.line() + pae_guest() +
                            lines({
                                read("0x10000", R"("gpa":"0x20000")"),
                                set("0x1", 0),
                                read("0x10000", R"("gpa":"0x20000")"),
                                read("0x11000", R"("gpa":"0x31000")"),
                                R"({"op":"mov_cr3","value":"0x1000"})",
                                read("0x10000", R"("fault":4)"),
                                R"({"op":"page","gfn":1,"width":8,"entries":[[0,"0x2001"]]})",
                                read("0x10000", R"("fault":4)"),
                                R"({"op":"mov_cr3","value":"0x1000"})",
                                read("0x10000", R"("gpa":"0x20000")"),
                            }),
                        config);
        INFO(outcome.error << describe(outcome.mismatches));
        CHECK(outcome.error.empty());
        CHECK(outcome.total.checks == Statistics::Checks{6, 0, 0});
    }
}

TEST_CASE("a reset puts the P2M back", "[replay][p2m]")
{
    for (const ReplayConfig& config : setups_with_p2m()) {
        INFO(describe(config) << " " << config.cpu);
        const Outcome outcome =
            replay_text(Header{}.line() +
                            lines({set("0x20", 0), clear("0x21"),
                                   R"({"op":"p2m_set","gfn":"0x200","mfn":"0x5100","count":8})",
                                   R"({"op":"poke","gpa":"0x200000","size":4,"value":7})",
                                   R"({"op":"read","la":"0x200000","size":4,"value":7})", R"({"op":"reset"})",
                                   R"({"op":"expect_memory","gpa":"0x20000","size":4,"value":0})",
                                   R"({"op":"write","la":"0x21000","size":4,"value":9,"gpa":"0x21000"})",
                                   R"({"op":"expect_memory","gpa":"0x21000","size":4,"value":9})",
                                   R"({"op":"read","la":"0x200000","size":4,"value":0,"gpa":"0x200000"})",
                                   R"({"op":"poke","gpa":"0x200000","size":4,"value":7})"}),
                        config);
        CHECK(outcome.total.checks == Statistics::Checks{6, 0, 0});
        CHECK(outcome.error == "frame 0x200 is not RAM");
        CHECK(outcome.key == "gpa");
    }
}

TEST_CASE("changes of the P2M that are refused", "[replay][p2m]")
{
    struct Case {
        std::string record;
        std::string words;
    };
    const std::vector<Case> cases{
        {R"({"op":"p2m_set","gfn":"0x10000000"})", "beyond the guest's physical addresses"},
        {R"({"op":"p2m_clear","gfn":"0xffffffff"})", "beyond the guest's physical addresses"},
        {R"({"op":"p2m_set","gfn":"0xfffffff","mfn":1,"count":2})", "beyond the guest's physical addresses"},
        {R"({"op":"p2m_set","gfn":"0x200"})", "has no machine frame that it could keep"},
        {R"({"op":"p2m_set","gfn":"0xff","count":2})", "has no machine frame that it could keep"},
        {R"({"op":"p2m_clear","gfn":0,"count":5000000})", "more frames than a change may have"},
        {R"({"op":"p2m_set","gfn":1,"mfn":"0xffffffffff"})", "beyond the machine's physical addresses"},
        {R"({"op":"p2m_set","gfn":1,"mfn":"0x10000000"})", "is the hypervisor's"},
        {R"({"op":"p2m_set","gfn":1,"mfn":"0xfffffff","count":2})", "is the hypervisor's"},
        {R"({"op":"p2m_set","gfn":1,"type":"ram_shared"})", "need nested paging"},
        {R"({"op":"p2m_set","gfn":1,"type":"ram_paged"})", "need nested paging"},
        {R"({"op":"p2m_set","gfn":1,"type":"mmio_direct"})"
         "\n"
         R"({"op":"p2m_clear","gfn":1})",
         "(-EPERM)"},
        {R"({"op":"p2m_set","gfn":1,"mfn":"0x5000","type":"map_foreign"})"
         "\n"
         R"({"op":"p2m_set","gfn":2,"mfn":"0x5000"})",
         "(-EPERM)"},
        {R"({"op":"p2m_clear","gfn":1})"
         "\n"
         R"({"op":"page","gfn":1,"width":8,"entries":[]})",
         "frame 0x1 is not RAM"},
        {R"({"op":"p2m_clear","gfn":1})"
         "\n"
         R"({"op":"poke","gpa":"0x1000","size":1,"value":0})",
         "not RAM"},
        {R"({"op":"p2m_clear","gfn":1})"
         "\n"
         R"({"op":"expect_memory","gpa":"0x1000","size":1,"value":0})",
         "not RAM"},
        {R"({"op":"p2m_clear","gfn":1})"
         "\n"
         R"({"op":"secure_frames","gfns":[1]})",
         "not RAM"},
    };
    for (const Case& one : cases) {
        ReplayConfig config = checking();
        config.audit = 1;
        const Outcome outcome = replay_text(Header{}.line() + one.record + "\n", config);
        INFO(one.record);
        CHECK_THAT(outcome.error, Catch::Contains(one.words));
    }
    ReplayConfig native = checking();
    native.mode = TranslationMode::native;
    for (const char* const record : {R"({"op":"p2m_set","gfn":1})", R"({"op":"p2m_clear","gfn":1})"}) {
        const Outcome outcome = replay_text(Header{}.line() + record + "\n", native);
        CHECK_THAT(outcome.error, Catch::Contains("mode native has none"));
        CHECK(outcome.key == "op");
    }
}

TEST_CASE("what a change of the P2M costs under shadows", "[replay][p2m]")
{
    // reference/xen.md H2 S10, in the counters of B18: what was behind the frame is searched for where
    // something maps it; shadows go all together where one has a device's mark.
    for (const NamedGuest& guest : paging_guests()) {
        for (const bool marked : {false, true}) {
            std::vector<std::string> records{write("0x10000", 1, R"("gpa":"0x20000")"),
                                             read("0x11000", R"("gpa":"0x31000")")};
            if (marked) records.push_back(read("0x16000", R"("gpa":"0x70000000")"));
            records.insert(records.end(), {R"({"op":"mark","name":"mapped"})", set("0x20", 0),
                                           R"({"op":"mark","name":"not mapped"})", set("0x50", 1),
                                           R"({"op":"mark","name":"nothing before"})",
                                           R"({"op":"p2m_set","gfn":"0x1000","mfn":"0x5100","count":3})",
                                           R"({"op":"mark","name":"no change"})", set("0x20", 0),
                                           R"({"op":"mark","name":"table"})", set("0x4", 2)});
            ReplayConfig config = checking();
            config.policy = "xen";
            config.audit = 1;
            const Outcome outcome = replay_text(Header{}.line() + guest.records + lines(records), config);
            INFO(guest.name << (marked ? " with a device's mark " : " ") << outcome.error);
            REQUIRE(outcome.phases.size() == 6);
            const auto phase = [&](std::size_t i) { return outcome.phases[i].statistics; };
            CHECK(phase(1).shadow.mappings == 1);
            CHECK(phase(1).shadow.mappings_bf == 1);
            CHECK(phase(1).shadow.unshadow == 0);
            CHECK(phase(1).hardware.flushes == 1);
            CHECK((phase(1).shadow.free > 0) == marked);
            CHECK((phase(1).shadow.alloc_count == 0) == marked);
            CHECK(phase(2).shadow.mappings == 1);
            CHECK(phase(2).shadow.mappings_bf == 0);
            CHECK(phase(2).hardware.flushes == 0);
            CHECK(phase(3).shadow.mappings == 0);
            CHECK(phase(3).hardware.flushes == 0);
            CHECK(phase(4).shadow.mappings == 0);
            CHECK(phase(5).shadow.mappings == 1);
            CHECK(phase(5).shadow.unshadow == (marked ? 0 : 1));
        }
    }
}

TEST_CASE("memory is populated on demand within one exit", "[replay][p2m]")
{
    // reference/xen.md B9 step 8: the handler's own look-up populates, and goes on.
    for (const NamedGuest& guest : paging_guests()) {
        const std::string text = Header{}.line() + guest.records +
                                 lines({
                                     read("0x11000", R"("gpa":"0x31000")"),
                                     R"({"op":"p2m_set","gfn":"0x20","type":"populate_on_demand"})",
                                     R"({"op":"mark","name":"roi"})",
                                     write("0x10000", 1, R"("gpa":"0x20000")"),
                                 });
        const Outcome outcome = replay_text(text);
        INFO(guest.name << " " << outcome.error);
        REQUIRE(outcome.phases.size() == 2);
        const Statistics& roi = outcome.phases[1].statistics;
        CHECK(roi.hardware.exits == 1);
        CHECK(roi.shadow.fault == 1);
        CHECK(roi.shadow.fault_fixed == 1);
        CHECK(roi.shadow.guest_walk == 1);
        CHECK(roi.hardware.flushes == 0);
    }
}
