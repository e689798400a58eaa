// SPDX-License-Identifier: Apache-2.0
//
// The nested walk against closed forms (reference/hardware.md section 5; docs/nested.md). A walk of n entries
// of the guest's tables, where one of the second level has m, reads n * (m + 1) + m entries: 24 (4 on 4), 35
// (5 on 5), 14 (PAE on 4, whose PDPTEs are registers).
#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::array<Paging, 4> kPagings{Paging::two_level, Paging::pae, Paging::four_level,
                                         Paging::five_level};
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

/// The second level of a guest: its format, its levels and the level of its pages.
struct Host {
    P2mFormat format = P2mFormat::ept;
    int levels = 4;
    int page = 1;
    bool ad_bits = false;

    [[nodiscard]] std::string name() const
    {
        return fmt::format("{} of {} levels, pages of level {}, A/D {}",
                           format == P2mFormat::ept ? "EPT" : "NPT", levels, page, ad_bits);
    }
    /// Entries that a walk reads.
    [[nodiscard]] std::uint64_t reads() const { return static_cast<std::uint64_t>(levels - page + 1); }
    [[nodiscard]] unsigned page_shift() const { return 12 + 9 * (static_cast<unsigned>(page) - 1); }
};

std::vector<Host> all_hosts()
{
    std::vector<Host> hosts;
    for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
        for (const int levels : {4, 5}) {
            for (const int page : {1, 2, 3}) {
                hosts.push_back({format, levels, page, false});
                if (format == P2mFormat::ept) hosts.push_back({format, levels, page, true});
            }
        }
    }
    return hosts;
}

/// 16 GiB of RAM, in a row in machine memory and as aligned: all pages of the P2M are as large as they may
/// be.
MachineConfig config_for(const Host& host, unsigned tlb_entries, const std::string& cpu)
{
    Options options;
    options.mode = TranslationMode::nested;
    options.layout = "offset:0x400000";
    MachineConfig config = config_of(options);
    config.ram = {{Gfn{0}, 16 * kGiB >> 12}};
    config.p2m_format = host.format;
    config.p2m_levels = host.levels;
    config.largest_p2m_page = host.page;
    config.second_level = {host.ad_bits, tlb_entries};
    if (!cpu.empty()) config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(cpu));
    return config;
}

/// Entries of the guest's tables on the way to a leaf.
std::uint64_t reads_of(Paging paging, int leaf)
{
    const int top = paging == Paging::two_level || paging == Paging::pae ? 2
                    : paging == Paging::four_level                       ? 4
                                                                         : 5;
    return static_cast<std::uint64_t>(top - leaf + 1);
}

std::vector<int> leaves_of(Paging paging)
{
    if (paging == Paging::two_level || paging == Paging::pae) return {1, 2};
    return {1, 2, 3};
}

constexpr std::uint64_t kLinear = 0x4000'0000;  // of 1 GiB, as are the frames
constexpr std::uint64_t kPage = 2 * kGiB;

std::uint64_t references(const Machine& machine)
{
    return machine.counters().memory_references;
}

}  // namespace

TEST_CASE("nested walks read as many entries as the closed forms say", "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        for (const Paging paging : kPagings) {
            for (const int leaf : leaves_of(paging)) {
                INFO(host.name() << ", guest " << name_of(paging) << ", leaf of level " << leaf);
                Guest guest{paging, config_for(host, 0, "")};
                guest.map(kLinear, kPage, kAll, leaf);
                const std::uint64_t n = reads_of(paging, leaf);
                const std::uint64_t m = host.reads();
                // Nothing is cached: each access is as the first.
                for (int i = 0; i < 2; ++i) {
                    const std::uint64_t before = references(guest.machine);
                    const Seen seen = guest.read(kLinear + 0x123 * 8);
                    REQUIRE(seen.ok());
                    CHECK(seen.at() == kPage + 0x123 * 8);
                    CHECK(references(guest.machine) - before == (n + 1) * (m + 1) - 1);
                }
                const SecondLevelCounters counters = guest.machine.counters().second_level;
                CHECK(counters.lookups == 0);
                CHECK(counters.walks == 2 * (n + 1));
                CHECK(counters.memory_references == 2 * (n + 1) * m);
                CHECK(guest.machine.counters().walks == 2);
                CHECK(counters.violations() == 0);
            }
        }
    }
}

TEST_CASE("the worst cases of nested walks: 24, 35 and 14 references", "[cpu][nested]")
{
    struct Case {
        Paging paging;
        int levels;
        std::uint64_t expected;
    };
    for (const Case& one : {Case{Paging::four_level, 4, 24}, Case{Paging::five_level, 5, 35},
                            Case{Paging::pae, 4, 14}, Case{Paging::two_level, 4, 14}}) {
        for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
            Guest guest{one.paging, config_for({format, one.levels, 1, false}, 0, "")};
            guest.map(kLinear, kPage);
            REQUIRE(guest.write(kLinear).ok());
            INFO(name_of(one.paging));
            CHECK(references(guest.machine) == one.expected);
        }
    }
}

TEST_CASE("with paging off the second level alone translates", "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        INFO(host.name());
        Guest guest{Paging::four_level, config_for(host, 0, "")};
        guest.map(0, 0);
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        const Seen seen = guest.write(0x1234'5678);
        REQUIRE(seen.ok());
        CHECK(seen.at() == 0x1234'5678);
        CHECK(references(guest.machine) == host.reads());
    }
}

TEST_CASE("with a warm nested TLB a walk reads the guest's entries alone", "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        for (const Paging paging : kPagings) {
            INFO(host.name() << ", guest " << name_of(paging));
            Guest guest{paging, config_for(host, 32, "golden_cove")};
            guest.map(kLinear, kPage);
            guest.map(kLinear + 0x1000, kPage);
            REQUIRE(guest.write(kLinear).ok());
            const std::uint64_t n = reads_of(paging, 1);
            REQUIRE(guest.mov_cr3(guest.root()));
            std::uint64_t before = references(guest.machine);
            const SecondLevelCounters old = guest.machine.counters().second_level;
            REQUIRE(guest.write(kLinear).ok());
            CHECK(references(guest.machine) - before == n);
            CHECK(guest.machine.counters().second_level.hits - old.hits == n + 1);
            CHECK(guest.machine.counters().second_level.walks == old.walks);
            // A page beside it: the PDE is cached, and where its table is.
            before = references(guest.machine);
            REQUIRE(guest.write(kLinear + 0x1000).ok());
            CHECK(references(guest.machine) - before == 1);
            // And again: the TLB has it.
            before = references(guest.machine);
            REQUIRE(guest.write(kLinear + 0x1000).ok());
            CHECK(references(guest.machine) == before);
        }
    }
}

TEST_CASE("a nested TLB of two entries forgets", "[cpu][nested]")
{
    // Four tables and a page, all in different pages of the P2M: each walk finds none of them.
    Guest guest{Paging::four_level, config_for({P2mFormat::ept, 4, 1, false}, 2, "")};
    guest.map(kLinear, kPage);
    for (int i = 0; i < 3; ++i) {
        const std::uint64_t before = references(guest.machine);
        REQUIRE(guest.read(kLinear).ok());
        CHECK(references(guest.machine) - before == 24);
    }
    CHECK(guest.machine.counters().second_level.hits == 0);
    CHECK(guest.machine.counters().second_level.lookups == 15);
}

// reference/hardware.md section 0: TLB page size = min(guest, host).
TEST_CASE("a TLB entry is as large as the smaller of the two pages", "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        for (const Paging paging : kPagings) {
            for (const int leaf : leaves_of(paging)) {
                INFO(host.name() << ", guest " << name_of(paging) << ", leaf of level " << leaf);
                Guest guest{paging, config_for(host, 32, "golden_cove")};
                guest.map(kLinear, kPage, kAll, leaf);
                REQUIRE(guest.read(kLinear + 0x678).ok());
                const unsigned guest_shift = guest.shift(leaf);
                const unsigned merged = std::min(guest_shift, host.page_shift());
                unsigned entries = 0;
                unsigned largest = 0;
                guest.machine.mmu(0).for_each_translation(
                    [&](const TlbSpec&, TlbTag, const TlbContent& content) {
                        ++entries;
                        CHECK(content.attributes.page_shift() == merged);
                        CHECK(content.attributes.whole_shift() == guest_shift);
                        CHECK(content.attributes.entry_shift() <= merged);
                        largest = std::max(largest, content.attributes.entry_shift());
                        CHECK(content.frame - content.origin == 0x400000ull << 12);
                    });
                CHECK(entries > 0);
                if (merged != 22) CHECK(largest == merged);
                CHECK(guest.machine.audit().empty());
            }
        }
    }
}

TEST_CASE("a 2 MiB page on 4 KiB pages of the P2M is 512 entries, and INVLPG drops them all", "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        INFO(host.name());
        Guest guest{Paging::four_level, config_for(host, 32, "golden_cove")};
        guest.map(kLinear, kPage, kAll, 2);
        const auto walks_of_all = [&] {
            const std::uint64_t before = guest.machine.counters().walks;
            for (std::uint64_t i = 0; i < 512; ++i) REQUIRE(guest.read(kLinear + i * 0x1000).ok());
            return guest.machine.counters().walks - before;
        };
        const std::uint64_t pages = host.page == 1 ? 512 : 1;
        CHECK(walks_of_all() == pages);
        CHECK(walks_of_all() == 0);
        REQUIRE(guest.invlpg(kLinear + 0x7000));
        CHECK(walks_of_all() == pages);
        guest.machine.mmu(0).for_each_translation([&](const TlbSpec&, TlbTag, const TlbContent& content) {
            CHECK(content.attributes.entry_shift() == (host.page == 1 ? 12u : 21u));
        });
    }
}

TEST_CASE("a write sets the guest's A and D bits, and those of the second level where it has any",
          "[cpu][nested]")
{
    for (const Host& host : all_hosts()) {
        INFO(host.name());
        for (const char* const cpu : {"", "golden_cove"}) {
            Guest guest{Paging::four_level, config_for(host, 32, cpu)};
            guest.map(kLinear, kPage, P | W | U);
            const auto host_bits = [&](std::uint64_t gpa) {
                Mfn table = guest.machine.p2m().tables()->root();
                std::uint64_t raw = 0;
                for (int level = host.levels; level >= host.page; --level) {
                    const auto index = static_cast<unsigned>(gpa >> (12 + 9 * (level - 1)) & 511);
                    raw = guest.machine.table_memory().load<std::uint64_t>(table.number(), index * 8);
                    table = Mfn{(raw & pte::kFrame) >> 12};
                }
                const bool is_ept = host.format == P2mFormat::ept;
                return std::pair{(raw & (is_ept ? ept::kAccessed : pte::kAccessed)) != 0,
                                 (raw & (is_ept ? ept::kDirty : pte::kDirty)) != 0};
            };
            const bool tracked = host.format == P2mFormat::npt || host.ad_bits;
            REQUIRE(guest.read(kLinear).ok());
            CHECK((guest.entry(kLinear, 1) & (A | D)) == A);
            CHECK(host_bits(kPage) == std::pair{tracked, false});
            CHECK(host_bits(guest.entry_at(kLinear, 1)) == std::pair{tracked, tracked});
            REQUIRE(guest.write(kLinear).ok());
            CHECK((guest.entry(kLinear, 1) & (A | D)) == (A | D));
            CHECK(host_bits(kPage) == std::pair{tracked, tracked});
            // From now on it is in the TLB, dirty.
            const std::uint64_t walks = guest.machine.counters().walks;
            REQUIRE(guest.write(kLinear).ok());
            CHECK(guest.machine.counters().walks - walks == (cpu[0] == 0 ? 1u : 0u));
        }
    }
}

// Each load of level l takes its own P_l and memory's M; without TLBs and data caches, and no A or D to set.
TEST_CASE("a nested walk takes the sum of its loads", "[cpu][nested][timing]")
{
    CpuProfile profile;
    profile.timing.memory_latency = 100;
    profile.timing.walker.start_cycles = 7;
    profile.timing.walker.load_cycles = {0, 1, 2, 3, 4, 5};
    for (const Host& host : all_hosts()) {
        if (host.format == P2mFormat::npt || host.ad_bits) continue;
        for (const Paging paging : kPagings) {
            INFO(host.name() << ", guest " << name_of(paging));
            MachineConfig config = config_for(host, 0, "");
            config.cpu = std::make_shared<const CpuProfile>(profile);
            config.clock = ClockKind::blocking;
            Guest guest{paging, config};
            guest.map(kLinear, kPage);
            const Cycles before = guest.machine.clock()->now();
            const std::vector<Cycles> by = guest.machine.clock()->by();
            REQUIRE(guest.read(kLinear).ok());
            Cycles second = 0;
            for (int level = host.levels; level >= host.page; --level)
                second += 100 + static_cast<Cycles>(level);
            Cycles expected = 7 + second + 100;
            for (std::uint64_t level = reads_of(paging, 1); level >= 1; --level)
                expected += second + 100 + level;
            CHECK(guest.machine.clock()->now() - before == expected);
            const CycleLabels& labels = guest.machine.cycle_labels();
            Cycles of_second_level = 0;
            for (std::size_t i = 0; i < by.size(); ++i) {
                if (labels.name(static_cast<Label>(i)).starts_with("walk.second."))
                    of_second_level += guest.machine.clock()->by()[i] - by[i];
            }
            CHECK(of_second_level == (reads_of(paging, 1) + 1) * second);
        }
    }
}

TEST_CASE("labels of the second level's loads have names of their own", "[cpu][nested][timing]")
{
    for (const std::vector<std::string>& caches : {std::vector<std::string>{}, {"l1d", "l2"}}) {
        const CycleLabels labels{{"l1i", "l1d"}, caches, true};
        std::set<std::string> names;
        unsigned second = 0;
        for (std::size_t i = 0; i < labels.size(); ++i) {
            const auto label = static_cast<Label>(i);
            const std::string name = labels.name(label);
            names.insert(name);
            second += name.starts_with("walk.second.") ? 1 : 0;
            CHECK(labels.of_hypervisor(label) == name.starts_with("hypervisor."));
        }
        CHECK(names.size() == labels.size());
        CHECK(second == 5 * (caches.size() + 1));
        CHECK(labels.name(labels.second_level(3, static_cast<unsigned>(caches.size()))) ==
              "walk.second.pdpte.memory");
    }
}
