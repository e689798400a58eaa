// SPDX-License-Identifier: Apache-2.0
//
// What the policies other than today's Xen do (reference/other_policies.md): each statement of the tables
// there that the engine models.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kWindow = 0x80'0000;  ///< maps tables

std::uint64_t exits(const Guest& guest)
{
    return guest.machine.counters().exits;
}

Guest guest_of(const std::string& policy, Paging paging = Paging::four_level, unsigned vcpus = 1,
               std::uint64_t pool_pages = 0)
{
    Options options = under(policy);
    options.vcpus = vcpus;
    MachineConfig config = config_of(options);
    config.shadow_pool_pages = pool_pages;
    return Guest{paging, std::move(config)};
}

/// Maps the table of `level` that translates `linear` at `at`; the entry's address there.
std::uint64_t window_to(Guest& guest, std::uint64_t linear, int level, std::uint64_t at = kWindow)
{
    const std::uint64_t entry = guest.entry_at(linear, level);
    guest.map(at, entry & ~std::uint64_t{0xfff});
    return at | (entry & 0xfff);
}

/// Exits that one more read or write costs.
std::uint64_t cost_of_read(Guest& guest, std::uint64_t linear)
{
    const std::uint64_t before = exits(guest);
    REQUIRE(guest.read(linear).ok());
    return exits(guest) - before;
}

}  // namespace

TEST_CASE("policies: the exits of mapping one new page (part 3.6)", "[shadow]")
{
    // The first time in a period, and later in it.
    const std::map<std::string, std::vector<std::uint64_t>> expected{
        {"tlb-like", {2, 2, 2}},     {"vtlb-nova", {2, 2, 2}}, {"xen-2005", {3, 3, 3}},
        {"xen-2006", {2, 2, 2}},     {"xen", {3, 2, 2}},       {"kvm", {3, 2, 2}},
        {"write-protect", {2, 2, 2}}};
    for (const Paging paging : {Paging::pae, Paging::four_level}) {
        for (const auto& [policy, counts] : expected) {
            Guest guest = guest_of(policy, paging);
            guest.map(kLinear, 0x101'000);
            const std::uint64_t entries = window_to(guest, kLinear, 1);
            REQUIRE(guest.read(kLinear).ok());
            REQUIRE(guest.store(entries, 0x101'000 | kAll).ok());  // the window's own entry is there, and D
            REQUIRE(guest.mov_cr3(guest.root()));
            REQUIRE(guest.read(kLinear).ok());
            REQUIRE(guest.read(entries).ok());
            for (std::size_t i = 0; i < counts.size(); ++i) {
                INFO(name_of(paging) << ", " << policy << ", page " << i);
                const std::uint64_t page = 64 * (i + 1);  // beyond what prefetch fills
                const std::uint64_t before = exits(guest);
                CHECK(guest.read(kLinear + page * 0x1000).page_fault(0, kLinear + page * 0x1000));
                REQUIRE(guest.store(entries + page * 8, (0x102'000 + i * 0x1000) | kAll).ok());
                CHECK(guest.read(kLinear + page * 0x1000).at() == 0x102'000 + i * 0x1000);
                CHECK(exits(guest) - before == counts[i]);
            }
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("kvm: one table reached with two rights has two shadows", "[shadow]")
{
    for (const std::string policy : {"kvm", "xen"}) {
        Guest guest = guest_of(policy);
        guest.map(kLinear, 0x101'000);
        // The same level-1 table, read-only, in the next 2 MiB.
        guest.set_entry(kLinear + 0x20'0000, 2, guest.entry(kLinear, 2) & ~W);
        REQUIRE(guest.read(kLinear).ok());
        const std::uint64_t one = guest.shadows().peak_pages();
        REQUIRE(guest.read(kLinear + 0x20'0000).ok());
        CHECK(guest.shadows().peak_pages() - one == (policy == "kvm" ? 1 : 0));
        CHECK(guest.write(kLinear).ok());
        CHECK(guest.write(kLinear + 0x20'0000).page_fault(pf::kPresent | pf::kWrite, kLinear + 0x20'0000));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("kvm: an emulated write drops its entry, the third in a row the shadow", "[shadow]")
{
    Guest guest = guest_of("kvm");
    for (std::uint64_t i = 0; i < 5; ++i) guest.map(kLinear + i * 0x20'0000, 0x101'000);
    const std::uint64_t entries = window_to(guest, kLinear, 2, 0x4000'0000);
    const Gfn table = Gfn::of(GuestPhysical{guest.entry_at(kLinear, 2)});
    for (std::uint64_t i = 0; i < 5; ++i) REQUIRE(guest.read(kLinear + i * 0x20'0000).ok());
    REQUIRE(guest.read(entries).ok());
    REQUIRE(guest.shadows().is_table(table));

    const auto rewrite = [&](std::uint64_t i) {
        const std::uint64_t value = guest.entry(kLinear + i * 0x20'0000, 2);
        CHECK(guest.store(entries + 8 * i, value).emulated());
    };
    rewrite(0);
    CHECK(cost_of_read(guest, kLinear) == 1);  // the new value was not propagated
    // The fault has walked the table: the count begins anew.
    rewrite(0);
    rewrite(1);
    CHECK(guest.shadows().is_table(table));
    CHECK(cost_of_read(guest, kLinear + 2 * 0x20'0000) == 0);
    CHECK(guest.counters().unshadow == 0);
    rewrite(2);
    CHECK_FALSE(guest.shadows().is_table(table));
    CHECK(cost_of_read(guest, kLinear + 4 * 0x20'0000) == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("kvm: writes to level-1 tables never end a shadow, and leave any number out of sync", "[shadow]")
{
    Guest guest = guest_of("kvm");
    std::vector<std::uint64_t> windows;
    for (std::uint64_t i = 0; i < 12; ++i) {
        const std::uint64_t linear = kLinear + i * 0x20'0000;
        guest.map(linear, 0x101'000);
        windows.push_back(window_to(guest, linear, 1, 0x4000'0000 + i * 0x1000));
    }
    for (std::uint64_t i = 0; i < 12; ++i) REQUIRE(guest.read(kLinear + i * 0x20'0000).ok());
    for (const std::uint64_t window : windows) {
        for (int k = 0; k < 5; ++k) CHECK_FALSE(guest.store(window + 8, 0).emulated());
    }
    CHECK(guest.counters().unsync == 12);
    CHECK(guest.counters().unsync_evict == 0);
    // INVLPG makes an entry right; its table stays as it is.
    REQUIRE(guest.store(windows[3], 0x102'000 | kAll).ok());
    REQUIRE(guest.invlpg(kLinear + 3 * 0x20'0000));
    CHECK(guest.read(kLinear + 3 * 0x20'0000).at() == 0x102'000);
    CHECK(guest.counters().resync == 0);
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(guest.counters().resync == 12);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("kvm: a load of CR3 resyncs what is under the new root; with bit 63 it is free for a root at hand",
          "[shadow]")
{
    Guest guest = guest_of("kvm");
    REQUIRE(guest.set_cr4(cr4::kPcide, true));
    const Gfn other = guest.new_table();
    guest.map(kLinear, 0x101'000);
    guest.map_in(other, kLinear, 0x103'000);
    const std::uint64_t entry = window_to(guest, kLinear, 1);
    guest.map_in(other, kWindow, entry & ~std::uint64_t{0xfff} & 0);  // something else there
    const auto load = [&](Gfn root, unsigned pcid, bool keep) {
        const std::uint64_t value = root.address().value() | pcid | (keep ? cr3::kNoFlush : 0);
        REQUIRE_FALSE(guest.machine.mov_cr3(0, value));
    };
    load(guest.root(), 1, false);
    REQUIRE(guest.read(kLinear).ok());
    REQUIRE(guest.store(entry, 0x102'000 | kAll).ok());
    CHECK(guest.counters().unsync == 1);
    load(other, 2, false);
    CHECK(guest.counters().resync == 0);  // not under this root
    load(guest.root(), 1, true);
    CHECK(guest.counters().resync == 0);
    CHECK(guest.read(kLinear).at() == 0x101'000);  // nothing was flushed
    load(guest.root(), 1, false);
    CHECK(guest.counters().resync == 1);
    CHECK(guest.read(kLinear).at() == 0x102'000);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("kvm: what another PCID's walk put into a shared table is declared staleness", "[shadow]")
{
    for (const bool known : {true, false}) {
        MachineConfig config = config_of(under("kvm"));
        config.check_coherence = true;
        if (!known) {
            // The same behaviour without the declaration.
            class Undeclared final : public ShadowPolicy {
            public:
                [[nodiscard]] PolicyDeclaration declared() const override
                {
                    PolicyDeclaration declared = kvm_->declared();
                    declared.stale_for_all = false;
                    return declared;
                }
                [[nodiscard]] FlushAnswer on_flush(unsigned vcpu, GuestFlush flush) override
                {
                    return kvm_->on_flush(vcpu, flush);
                }
                [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite& write) override
                {
                    return kvm_->on_table_write(write);
                }

            private:
                std::unique_ptr<ShadowPolicy> kvm_ = builtin_shadow_policies().find("kvm")();
            };
            config.policy = [] { return std::make_unique<Undeclared>(); };
        }
        Guest guest{Paging::four_level, std::move(config)};
        REQUIRE(guest.set_cr4(cr4::kPcide, true));
        // Two roots with the same level-1 table.
        const Gfn other = guest.new_table();
        guest.map(kLinear, 0x101'000);
        const std::uint64_t entry = window_to(guest, kLinear, 1);
        guest.poke(other.address().value(), guest.entry(kLinear, 4));
        const auto load = [&](Gfn root, unsigned pcid) {
            const std::uint64_t value = root.address().value() | pcid | cr3::kNoFlush;
            REQUIRE_FALSE(guest.machine.mov_cr3(0, value));
        };
        load(guest.root(), 1);
        REQUIRE(guest.read(kLinear).ok());
        load(other, 2);
        REQUIRE(guest.read(kLinear).ok());
        REQUIRE(guest.store(entry, 0x102'000 | kAll).ok());
        guest.invlpg(kLinear);
        REQUIRE(guest.read(kLinear).at() == 0x102'000);
        REQUIRE(guest.store(entry, 0x103'000 | kAll).ok());
        CHECK(guest.machine.take_violations().empty());
        // PCID 1 was not there while the entry held 0x102.
        load(guest.root(), 1);
        CHECK(guest.read(kLinear).at() == 0x102'000);
        CHECK(guest.machine.take_violations().size() == (known ? 0 : 1));
        guest.invlpg(kLinear);
        CHECK(guest.read(kLinear).at() == 0x103'000);
        CHECK(guest.machine.take_violations().empty());
    }
}

TEST_CASE("kvm: a full pool gives up the shadows made first, and what they referred to stays", "[shadow]")
{
    Guest guest = guest_of("kvm", Paging::four_level, 1, 40);
    for (std::uint64_t i = 0; i < 60; ++i) {
        const std::uint64_t linear = kLinear + i * 0x20'0000;
        guest.map(linear, 0x101'000);
        CHECK(guest.read(linear).ok());
        CHECK(guest.shadows().pool_pages() >= guest.counters().alloc_count);
    }
    CHECK(guest.counters().prealloc_1 > 0);
    CHECK(guest.counters().prealloc_2 == 0);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("xen-2005: tables of any level go out of sync, and nothing is emulated", "[shadow]")
{
    for (const std::string policy : {"xen-2005", "xen-2005-always"}) {
        Guest guest = guest_of(policy);
        guest.map(kLinear, 0x101'000);
        guest.map(0x8000'0000, 0x105'000);
        const std::uint64_t entry = window_to(guest, kLinear, 2, 0x4000'0000);
        REQUIRE(guest.read(kLinear).ok());
        REQUIRE(guest.read(entry).ok());
        CHECK_FALSE(guest.store(entry + 8, 0).emulated());
        CHECK(guest.counters().unsync == 1);
        // Elsewhere: the entries on the way there are as they were.
        REQUIRE(guest.read(0x8000'0000).ok());
        CHECK(guest.counters().resync == (policy == "xen-2005" ? 0 : 1));
        REQUIRE(guest.store(entry + 16, guest.entry(kLinear, 2)).ok());
        REQUIRE(guest.read(kLinear + 2 * 0x20'0000).ok());  // on the changed entry
        CHECK(guest.counters().resync == (policy == "xen-2005" ? 1 : 2));
        CHECK(guest.counters().fault_emulate_write == 0);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("xen-2005: each load of CR3 resyncs everything", "[shadow]")
{
    Guest guest = guest_of("xen-2005");
    std::vector<std::uint64_t> windows;
    for (std::uint64_t i = 0; i < 5; ++i) {
        guest.map(kLinear + i * 0x20'0000, 0x101'000);
        windows.push_back(window_to(guest, kLinear + i * 0x20'0000, 1, 0x4000'0000 + i * 0x1000));
    }
    for (std::uint64_t i = 0; i < 5; ++i) {
        REQUIRE(guest.read(kLinear + i * 0x20'0000).ok());
        REQUIRE(guest.read(windows[i]).ok());
    }
    for (const std::uint64_t window : windows) REQUIRE(guest.store(window, 0x102'000 | kAll).ok());
    CHECK(guest.counters().unsync == 5);
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(guest.counters().resync == 5);
    for (std::uint64_t i = 0; i < 5; ++i) {
        const std::uint64_t before = exits(guest);
        CHECK(guest.read(kLinear + i * 0x20'0000).at() == 0x102'000);
        CHECK(exits(guest) == before);  // compared and propagated, not dropped
    }
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("vtlb-stale: a flush drops what stale tables had, and nothing else", "[shadow]")
{
    Guest guest = guest_of("vtlb-stale");
    guest.map(kLinear, 0x101'000);
    guest.map(kLinear + 0x20'0000, 0x103'000);
    const std::uint64_t entry = window_to(guest, kLinear, 1, 0x4000'0000);
    REQUIRE(guest.read(kLinear).ok());
    REQUIRE(guest.read(kLinear + 0x20'0000).ok());
    REQUIRE(guest.store(entry, 0x102'000 | kAll).ok());
    CHECK(guest.counters().unsync == 1);
    const std::uint64_t written = exits(guest);
    REQUIRE(guest.store(entry, 0x102'000 | kAll).ok());
    CHECK(exits(guest) == written);
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(cost_of_read(guest, kLinear + 0x20'0000) == 0);
    CHECK(cost_of_read(guest, kLinear) == 1);
    CHECK(guest.read(kLinear).at() == 0x102'000);
    // Protected again.
    const std::uint64_t before = exits(guest);
    REQUIRE(guest.store(entry, 0x101'000 | kAll).ok());
    CHECK(exits(guest) - before == 1);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("vtlb-nova: global pages outlive a load of CR3, others are filled again", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level}) {
        INFO(name_of(paging));
        Guest guest = guest_of("vtlb-nova", paging);
        REQUIRE(guest.set_cr4(cr4::kPge, true));
        // Alone under its entry of the top table.
        const std::uint64_t kGlobal = paging == Paging::four_level ? 0xffff'8000'0000'0000 : 0x8000'0000;
        constexpr std::uint64_t kMixed = 0x9000'0000;
        guest.map(kLinear, 0x101'000);
        guest.map(kGlobal, 0x102'000, kAll | G);
        guest.map(kMixed, 0x103'000, kAll | G);
        guest.map(kMixed + 0x1000, 0x104'000);
        for (const std::uint64_t linear : {kLinear, kGlobal, kMixed, kMixed + 0x1000})
            REQUIRE(guest.read(linear).ok());
        REQUIRE(guest.mov_cr3(guest.root()));
        CHECK(cost_of_read(guest, kLinear) == 1);
        CHECK(cost_of_read(guest, kGlobal) == 0);
        CHECK(cost_of_read(guest, kMixed + 0x1000) == 1);
        CHECK(cost_of_read(guest, kMixed) == 0);
        REQUIRE(guest.set_cr4(cr4::kPge, false));
        CHECK(cost_of_read(guest, kGlobal) == 1);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("vtlb-nova: the tree belongs to the vCPU, not to the root", "[shadow]")
{
    Guest guest = guest_of("vtlb-nova");
    const Gfn other = guest.new_table();
    guest.map(kLinear, 0x101'000);
    guest.map_in(other, kLinear, 0x103'000);
    REQUIRE(guest.read(kLinear).ok());
    const std::uint64_t made = guest.counters().alloc;
    for (int i = 0; i < 4; ++i) {
        REQUIRE(guest.mov_cr3(i % 2 == 0 ? other : guest.root()));
        CHECK(guest.read(kLinear).at() == (i % 2 == 0 ? 0x103'000 : 0x101'000));
    }
    CHECK(guest.counters().alloc == made);  // the same pages, used again
    CHECK(guest.machine.audit().empty());
}
