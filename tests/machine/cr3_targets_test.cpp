// SPDX-License-Identifier: Apache-2.0
//
// What the mail of 2010 warns of (docs/secure-view.md): CR3 values that need no exit, and shadows that a
// secure and an ordinary address space share. Each hazard is found where it matters, and not without its
// cause.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kPage = 0x40'0000;
constexpr std::uint64_t kNeighbour = 0x40'1000;
constexpr std::uint64_t kWindow = 0x80'0000'0000;  // on the root's own leaf table

/// Two address spaces, `first` (running) and `second`, with the same addresses and different frames.
struct TwoSpaces : Guest {
    Gfn first, second;

    explicit TwoSpaces(MachineConfig config)
        : Guest{Paging::four_level, std::move(config)}, first{root()}, second{new_table()}
    {
        map_in(first, kPage, 0x101'000);
        map_in(second, kPage, 0x201'000);
        map_in(first, kNeighbour, 0x102'000);
        map_in(second, kNeighbour, 0x202'000);
        for (const Gfn space : {first, second}) map_in(space, kWindow, table_of(space).address().value());
    }
    [[nodiscard]] Gfn table_of(Gfn space) const { return Gfn::of(GuestPhysical{entry_at(space, kPage, 1)}); }
    [[nodiscard]] const HazardCounts& hazards() const { return machine.shadow()->hazards(); }
    [[nodiscard]] std::uint64_t exits() const { return machine.counters().exits; }
};

/// The roots of TwoSpaces are the frames 0x10 and 0x11.
MachineConfig listed(const std::string& policy, std::vector<std::uint64_t> targets = {0x10'000, 0x11'000})
{
    MachineConfig config = config_of(under(policy));
    config.cr3_targets = std::move(targets);
    return config;
}

void check_audit(const Guest& guest)
{
    const auto violations = guest.machine.audit();
    INFO((violations.empty() ? "" : violations.front()));
    CHECK(violations.empty());
}

bool says(const std::vector<std::string>& texts, const std::string& words)
{
    for (const std::string& text : texts) {
        if (text.find(words) != std::string::npos) return true;
    }
    return false;
}

}  // namespace

TEST_CASE("cr3 targets: no exit once the root is prepared", "[machine][secure]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        INFO(policy.name);
        TwoSpaces guest{listed(policy.name)};
        // With one tree for all roots there is no other to go to.
        const bool one_tree = guest.machine.shadow()->policy().keyed_by == ShadowKeying::vcpu;
        const bool drops = !guest.machine.shadow()->policy().protects_tables;
        REQUIRE(guest.first == Gfn{0x10});
        REQUIRE(guest.second == Gfn{0x11});
        CHECK(guest.read(kPage).at() == 0x101'000);
        std::uint64_t before = guest.exits();
        CHECK(guest.mov_cr3(guest.second));  // is prepared by this one
        CHECK(guest.exits() == before + 1);
        CHECK(guest.read(kPage).at() == 0x201'000);
        before = guest.exits();
        for (unsigned i = 1; i <= 5; ++i) {
            CHECK(guest.mov_cr3(guest.first));
            CHECK(guest.read(kPage).at() == 0x101'000);
            CHECK(guest.mov_cr3(guest.second));
            CHECK(guest.read(kPage).at() == 0x201'000);
            CHECK(guest.machine.counters().unseen_switches == (one_tree ? 0 : 2 * i));
        }
        // tlb-like drops the other root's shadows as soon as it finds out.
        CHECK((guest.exits() == before) == !drops);
        check_audit(guest);
        CHECK(guest.hazards() == HazardCounts{});
        // The next exit finds out, and goes on from there.
        CHECK(guest.read(kNeighbour).at() == 0x202'000);
        CHECK(guest.mov_cr3(guest.first));
        CHECK(guest.read(kNeighbour).at() == 0x102'000);
        check_audit(guest);
    }
}

TEST_CASE("cr3 targets: what is not prepared exits", "[machine][secure]")
{
    const auto exits_of_switch = [](TwoSpaces& guest, Gfn to) {
        const std::uint64_t before = guest.exits();
        CHECK(guest.mov_cr3(to));
        return guest.exits() - before;
    };
    TwoSpaces guest{listed("xen", {0x11'000})};
    CHECK(exits_of_switch(guest, guest.second) == 1);  // for the first time
    CHECK(exits_of_switch(guest, guest.second) == 0);
    CHECK(exits_of_switch(guest, guest.first) == 1);  // not in the list
    CHECK(exits_of_switch(guest, guest.second) == 0);
    // Other control bits: other shadows.
    CHECK(guest.set_cr4(cr4::kPge, true));
    CHECK(exits_of_switch(guest, guest.first) == 1);
    CHECK(exits_of_switch(guest, guest.second) == 0);  // it was the running one
    CHECK(exits_of_switch(guest, guest.first) == 1);
    CHECK(guest.set_cr4(cr4::kPge, false));
    CHECK(exits_of_switch(guest, guest.second) == 1);
    CHECK(exits_of_switch(guest, guest.first) == 1);
    guest.machine.blow_shadows();
    CHECK(exits_of_switch(guest, guest.second) == 1);
    check_audit(guest);
    // A value that the CPU refuses is refused first.
    guest.machine.set_cpl(0, 3);
    CHECK(!guest.mov_cr3(guest.second));
}

TEST_CASE("cr3 targets: a switch costs what the instruction costs", "[machine][secure]")
{
    const auto cycles_of = [](std::vector<std::uint64_t> targets) {
        MachineConfig config = listed("xen-2006", std::move(targets));
        config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile("golden_cove"));
        config.clock = ClockKind::blocking;
        TwoSpaces guest{config};
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.mov_cr3(guest.first));
        const Cycles before = guest.machine.clock()->now();
        CHECK(guest.mov_cr3(guest.second));
        return guest.machine.clock()->now() - before;
    };
    const TimingSpec& timing = find_cpu_profile("golden_cove").timing;
    CHECK(cycles_of({0x10'000, 0x11'000}) == timing.instructions.mov_cr3);
    CHECK(cycles_of({}) >= timing.hypervisor.exit + timing.hypervisor.entry + timing.hypervisor.load_root);
}

TEST_CASE("cr3 targets: the mode is that of the root", "[machine][secure]")
{
    for (const char* const policy : {"xen", "write-protect", "tlb-like"}) {
        INFO(policy);
        TwoSpaces guest{listed(policy)};
        guest.machine.set_secure_frames({Gfn{0x201}});
        guest.map_in(guest.first, kNeighbour, 0x201'000);
        CHECK(guest.mov_cr3(guest.second));
        guest.machine.set_secure_mode(0, true);  // the second root is now prepared as a secure one
        CHECK(guest.read(kPage).at() == 0x201'000);
        for (int i = 0; i < 3; ++i) {
            CHECK(guest.mov_cr3(guest.first));
            CHECK(!guest.machine.shadow()->secure_mode(0));
            CHECK(guest.read(kNeighbour).page_fault(pf::kPresent, kNeighbour));
            CHECK(guest.mov_cr3(guest.second));
            CHECK(guest.machine.shadow()->secure_mode(0));
            CHECK(guest.read(kPage).at() == 0x201'000);
            check_audit(guest);
        }
        CHECK(guest.machine.counters().unseen_switches == 6);
        CHECK(guest.hazards().shared_tables == 0);
    }
}

TEST_CASE("cr3 targets: out-of-sync tables stay stale", "[machine][secure]")
{
    const auto run = [](const std::string& policy, bool list) {
        MachineConfig config = listed(policy);
        if (!list) config.cr3_targets.clear();
        config.check_coherence = true;
        TwoSpaces guest{config};
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.read(kPage).at() == 0x201'000);
        const std::uint64_t entry = guest.entry_at(guest.second, kPage, 1);
        CHECK(guest.store(kWindow | 0x800, 0).ok());  // the table goes out of sync
        CHECK(guest.store(kWindow | (entry & 0xfff), 0x203'000 | kAll).ok());
        CHECK(guest.mov_cr3(guest.second));  // flushes
        const std::uint64_t found = guest.read(kPage).at();
        const auto texts = guest.machine.take_hazards();
        CHECK(guest.hazards().stale_shadows == texts.size());
        CHECK(guest.machine.take_violations().size() == texts.size());
        CHECK(found == (texts.empty() ? 0x203'000 : 0x201'000));
        if (!texts.empty()) {
            CHECK(says(texts,
                       fmt::format("MOV CR3 to root 0x11 was not seen, so nothing was brought up to date: "
                                   "l1_64 of frame {}, entry 0",
                                   guest.table_of(guest.second))));
        }
        return texts.size();
    };
    CHECK(run("xen", true) == 1);
    CHECK(run("xen", false) == 0);
    CHECK(run("xen-2006", true) == 0);  // nothing is out of sync
    CHECK(run("tlb-like", true) == 1);  // what MOV CR3 should have dropped
    CHECK(run("tlb-like", false) == 0);
}

TEST_CASE("cr3 targets: fast emulation would write to the other space's table", "[machine][secure]")
{
    for (const bool list : {true, false}) {
        MachineConfig config = listed("xen-2006");
        if (!list) config.cr3_targets.clear();
        TwoSpaces guest{config};
        for (const Gfn space : {guest.second, guest.first}) {
            CHECK(guest.mov_cr3(space));
            CHECK(guest.read(kPage).ok());  // its table is shadowed
            CHECK(guest.store(kWindow | 0x800, 0x1000).ok());
        }
        CHECK(guest.counters().fault_emulate_write == 2);
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.store(kWindow | 0x808, 0x5000).ok());
        // Right all the same.
        CHECK(guest.word(guest.table_of(guest.second).address(0x808).value()) == 0x5000);
        CHECK(guest.word(guest.table_of(guest.first).address(0x808).value()) == 0);
        CHECK(guest.hazards().fast_emulation == (list ? 1 : 0));
        const auto texts = guest.machine.take_hazards();
        CHECK(says(texts,
                   fmt::format("a write to 0x8000000808 would go to frame {}, as under another root; under "
                               "root 0x11 it is frame {}",
                               guest.table_of(guest.first), guest.table_of(guest.second))) == list);
        // Once told, the hint has gone.
        CHECK(guest.store(kWindow | 0x810, 0x5000).ok());
        CHECK(guest.hazards().fast_emulation == (list ? 1 : 0));
    }
}

TEST_CASE("cr3 targets: the virtual TLB would lead to the other space's page", "[machine][secure]")
{
    for (const bool list : {true, false}) {
        MachineConfig config = listed("xen-2006");
        if (!list) config.cr3_targets.clear();
        TwoSpaces guest{config};
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.read(kPage).ok());
        CHECK(guest.mov_cr3(guest.first));
        CHECK(guest.read(kPage).ok());  // remembered: kPage is in frame 0x101
        CHECK(guest.mov_cr3(guest.second));
        // Emulated for its first operand's sake.
        const std::vector<Operand> operands{Guest::operand(AccessKind::write, kWindow | 0x800),
                                            Guest::operand(AccessKind::read, kPage)};
        Execution execution;
        guest.machine.execute(0, operands, Restart::instruction, execution);
        REQUIRE(execution.placed.size() == 2);
        CHECK(execution.placed[1].parts[0].address.value() == 0x201'000);
        CHECK(guest.hazards().virtual_tlb == (list ? 1 : 0));
        CHECK(says(guest.machine.take_hazards(),
                   "the virtual TLB still leads 0x400000 to frame 0x101, as another root does; under root "
                   "0x11 it "
                   "is frame 0x201") == list);
        // INVLPG is seen, and empties it.
        CHECK(guest.mov_cr3(guest.first));
        CHECK(guest.invlpg(kPage));
        CHECK(guest.hazards().virtual_tlb == (list ? 1 : 0));
    }
}

TEST_CASE("cr3 targets: nobody refers to the running root", "[machine][secure]")
{
    for (const bool list : {true, false}) {
        MachineConfig config = listed("xen");
        if (!list) config.cr3_targets.clear();
        TwoSpaces guest{config};
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.read(kPage).ok());
        CHECK(guest.mov_cr3(guest.first));
        CHECK(guest.mov_cr3(guest.second));
        guest.machine.blow_shadows();
        CHECK(guest.hazards().root_references == (list ? 1 : 0));
        CHECK(says(guest.machine.take_hazards(), "nothing refers to the shadow of root 0x11") == list);
        CHECK(guest.read(kPage).at() == 0x201'000);
        check_audit(guest);
    }
}

TEST_CASE("cr3 targets: a fault without room would free the root under its vCPU", "[machine][secure]")
{
    for (const bool list : {true, false}) {
        MachineConfig config = listed("xen");
        if (!list) config.cr3_targets.clear();
        config.shadow_pool_pages = 16;
        TwoSpaces guest{config};
        for (const std::uint64_t far : {2u, 3u, 4u, 5u, 6u}) guest.map_in(guest.second, far << 39, 0x201'000);
        CHECK(guest.mov_cr3(guest.second));
        for (const std::uint64_t far : {2u, 3u, 4u, 5u}) CHECK(guest.read(far << 39).ok());
        CHECK(guest.mov_cr3(guest.first));
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.counters().prealloc_1 == 0);
        CHECK(guest.read(std::uint64_t{6} << 39).at() == 0x201'000);
        CHECK(guest.counters().prealloc_1 == 1);
        CHECK(guest.hazards().root_references == (list ? 1 : 0));
        check_audit(guest);
    }
}

TEST_CASE("shared view: a table that both spaces use is told, and leaks", "[machine][secure]")
{
    const auto run = [](SecureView view, bool share) {
        MachineConfig config = config_of(under("write-protect"));
        config.secure_view = view;
        TwoSpaces guest{config};
        if (share)
            guest.poke(guest.entry_at(guest.first, kPage, 2),
                       guest.word(guest.entry_at(guest.second, kPage, 2)));
        guest.machine.set_secure_frames({Gfn{0x201}});
        CHECK(guest.read(kNeighbour).at() == (share ? 0x202'000 : 0x102'000));
        guest.machine.set_secure_mode(0, true);
        CHECK(guest.mov_cr3(guest.second));
        CHECK(guest.read(kPage).at() == 0x201'000);
        guest.machine.set_secure_mode(0, false);
        CHECK(guest.mov_cr3(guest.first));
        check_audit(guest);
        const Seen seen = guest.read(kPage);
        const auto texts = guest.machine.take_hazards();
        CHECK(guest.hazards().shared_tables == texts.size());
        if (view == SecureView::shared && share) {
            CHECK(seen.ok());  // the mapping that a vCPU in secure mode has made
            CHECK(says(texts,
                       fmt::format("table page {} is reachable from secure root 0x11 and ordinary root 0x10: "
                                   "they share its shadow, whose entry 0x0 maps secure frame 0x201",
                                   guest.table_of(guest.second))));
        } else if (share) {
            CHECK(seen.page_fault(pf::kPresent, kPage));
            CHECK(texts.empty());
        } else {
            CHECK(seen.at() == 0x101'000);
        }
        return texts;
    };
    CHECK(!run(SecureView::shared, true).empty());
    CHECK(run(SecureView::separate, true).empty());
    CHECK(run(SecureView::separate, false).empty());
    run(SecureView::shared, false);
}

TEST_CASE("shared view: what the mail asks for, unshared tables, keeps the frames", "[machine][secure]")
{
    for (const char* const policy : {"xen", "xen-2006", "write-protect"}) {
        INFO(policy);
        MachineConfig config = config_of(under(policy));
        config.secure_view = SecureView::shared;
        TwoSpaces guest{config};
        guest.map_in(guest.first, kNeighbour, 0x201'000);  // an alias in the ordinary space
        guest.machine.set_secure_frames({Gfn{0x201}});
        CHECK(guest.read(kNeighbour).page_fault(pf::kPresent, kNeighbour));
        CHECK(guest.mov_cr3(guest.second));
        guest.machine.set_secure_mode(0, true);
        for (int i = 0; i < 3; ++i) {
            CHECK(guest.read(kPage).at() == 0x201'000);
            CHECK(guest.mov_cr3(guest.first));
            guest.machine.set_secure_mode(0, false);
            CHECK(guest.read(kNeighbour).page_fault(pf::kPresent, kNeighbour));
            CHECK(guest.read(kPage).at() == 0x101'000);
            guest.machine.set_secure_mode(0, true);
            CHECK(guest.mov_cr3(guest.second));
        }
    }
}
