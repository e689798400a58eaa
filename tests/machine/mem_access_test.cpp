// SPDX-License-Identifier: Apache-2.0
//
// mem_access under shadow paging, exhaustively: each right, each kind of access, each shadow mode, whatever
// was mapped before, under policies that differ in how they keep shadows. What has to happen is a table here,
// written from reference/xen.md C5.
#include <array>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "support/random.hpp"

using namespace guest;

namespace {

/// What becomes of an access.
enum class Fate : std::uint8_t {
    ok,         ///< done, no event
    violation,  ///< one event; done only if the listener says so
    to_rw,      ///< done, no event, the frame is rw from then on
    to_rwx,     ///< done, one event that pauses nobody, the frame is rwx from then on
};
constexpr Fate V = Fate::violation, C = Fate::to_rw, E = Fate::to_rwx, K = Fate::ok;

struct Row {
    MemAccess access;
    Fate read, write, fetch;
    Fate walk_reads;   ///< of a walk, in a table's frame, that sets no bit
    Fate walk_writes;  ///< ... that sets accessed or dirty bits
};
constexpr std::array<Row, kMemAccessTypes> kTable{{
    {MemAccess::n, V, V, V, V, V},
    {MemAccess::r, K, V, V, K, V},
    {MemAccess::w, V, K, V, V, V},
    {MemAccess::rw, K, K, V, K, K},
    {MemAccess::x, V, V, K, V, V},
    {MemAccess::rx, K, V, K, K, V},
    {MemAccess::wx, V, K, K, V, V},
    {MemAccess::rwx, K, K, K, K, K},
    {MemAccess::rx2rw, K, C, K, K, C},
    {MemAccess::n2rwx, E, E, E, E, E},
    {MemAccess::r_pw, K, V, V, K, K},
}};

constexpr std::array<Paging, 3> kModes{Paging::two_level, Paging::pae, Paging::four_level};
constexpr std::array<const char*, 8> kPolicies{"xen",           "xen-2006", "kvm",       "tlb-like",
                                               "write-protect", "xen-2005", "vtlb-nova", "vtlb-stale"};
constexpr std::array<AccessKind, 3> kKinds{AccessKind::read, AccessKind::write, AccessKind::fetch};

constexpr std::uint64_t kPage = 0x40'0000;    // maps the frame 0x101
constexpr std::uint64_t kOther = 0x40'1000;   // maps the frame 0x102, by the same table
constexpr std::uint64_t kLarge = 0x80'0000;   // a large page from frame 0 on
constexpr std::uint64_t kWindow = 0xc0'0000;  // maps the level-1 table of kPage
constexpr Gfn kFrame{0x101};

/// Notes each event and answers all alike.
struct Listener : EventListener {
    std::vector<MemAccessEvent> events;
    EventResponse response;

    EventResponse on_event(const MemAccessEvent& event) override
    {
        events.push_back(event);
        return response;
    }
};

struct Watched : Guest {
    Listener listener;

    explicit Watched(Paging paging, const std::string& policy, const char* cpu = "", unsigned vcpus = 1)
        : Guest{paging, config(policy, cpu, vcpus)}
    {
        map(kPage, 0x101'000);
        map(kOther, 0x102'000);
        map(kLarge, 0, kAll, 2);
        map(kWindow, table_of(kPage).address().value());
        REQUIRE(machine.attach_listener(listener));
    }
    static MachineConfig config(const std::string& policy, const char* cpu, unsigned vcpus)
    {
        Options options = under(policy);
        options.vcpus = vcpus;
        MachineConfig config = config_of(options);
        config.event_ring_pages = 1;
        config.check_coherence = true;
        if (*cpu != 0) config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(cpu));
        return config;
    }
    [[nodiscard]] Gfn table_of(std::uint64_t linear) const
    {
        return Gfn::of(GuestPhysical{entry_at(linear, 1)});
    }
    void give(Gfn frame, MemAccess access) { REQUIRE_FALSE(machine.set_mem_access(frame, 1, access)); }
    [[nodiscard]] MemAccess right_to(Gfn frame) const { return machine.access_monitor().rights().of(frame); }
    Seen touch(AccessKind kind, std::uint64_t linear) { return access(operand(kind, linear, 4)); }
    void check_books()
    {
        const auto violations = machine.audit();
        INFO((violations.empty() ? "" : violations.front()));
        CHECK(violations.empty());
        const auto incoherent = machine.take_violations();
        INFO((incoherent.empty() ? "" : incoherent.front()));
        CHECK(incoherent.empty());
    }
};

FrameRights reported(AccessKind kind)
{
    return {kind != AccessKind::fetch, kind == AccessKind::write, kind == AccessKind::fetch};
}

/// An access ends as it should, and so does the same once more.
void check_fate(Watched& guest, Fate fate, AccessKind kind, std::uint64_t linear, Gfn restricted,
                std::uint64_t leads_to, const MemAccessEvent& expected)
{
    const MemAccess before = guest.right_to(restricted);
    for (int time = 0; time < 2; ++time) {
        INFO("time " << time);
        guest.listener.events.clear();
        const Seen seen = guest.touch(kind, linear);
        guest.machine.deliver_events();
        const bool first = time == 0;
        if (fate == Fate::violation) {
            CHECK(seen.raised(Vector::mem_access));
            CHECK(guest.right_to(restricted) == before);
        } else {
            REQUIRE(seen.ok());
            CHECK(seen.at() == leads_to);
            CHECK(guest.right_to(restricted) == (fate == Fate::to_rw    ? MemAccess::rw
                                                 : fate == Fate::to_rwx ? MemAccess::rwx
                                                                        : before));
        }
        const bool raises = fate == Fate::violation || (fate == Fate::to_rwx && first);
        REQUIRE(guest.listener.events.size() == (raises ? 1 : 0));
        if (raises) {
            MemAccessEvent event = expected;
            event.paused = fate == Fate::violation;
            CHECK(guest.listener.events[0] == event);
        }
        guest.check_books();
    }
}

/// Calls `check` for all of them.
template <class Check>
void in_each_way(Check check)
{
    for (const Paging paging : kModes) {
        for (const char* const policy : kPolicies) {
            for (const char* const cpu : {"", "golden_cove"}) {
                if (*cpu != 0 && policy != std::string_view{"xen"} && policy != std::string_view{"kvm"})
                    continue;
                for (const Row& row : kTable) {
                    INFO(policy << " " << cpu << " levels " << static_cast<int>(paging) << " "
                                << name_of(row.access));
                    check(paging, policy, cpu, row);
                }
            }
        }
    }
}

Fate fate_of(const Row& row, AccessKind kind)
{
    return kind == AccessKind::read ? row.read : kind == AccessKind::write ? row.write : row.fetch;
}

}  // namespace

TEST_CASE("mem_access: the matrix, data", "[machine][mem_access]")
{
    enum class Before : std::uint8_t { untouched, mapped, splintered };
    in_each_way([](Paging paging, const char* policy, const char* cpu, const Row& row) {
        for (const Before before : {Before::untouched, Before::mapped, Before::splintered}) {
            for (const AccessKind kind : kKinds) {
                INFO("case " << static_cast<int>(before) << " " << name_of(kind));
                Watched guest{paging, policy, cpu};
                const bool large = before == Before::splintered;
                const std::uint64_t linear = (large ? kLarge + 0x101'000 : kPage) + 0x10;
                if (before != Before::untouched) {
                    for (const AccessKind each : kKinds) REQUIRE(guest.touch(each, linear).ok());
                }
                guest.give(kFrame, row.access);
                check_fate(guest, fate_of(row, kind), kind, linear, kFrame, 0x101'010,
                           {.gfn = kFrame,
                            .offset = 0x10,
                            .linear_address = LinearAddress{linear},
                            .rights = reported(kind)});
                // The frame beside it is as it was.
                guest.listener.events.clear();
                CHECK(guest.touch(kind, large ? kLarge + 0x102'010 : kOther + 0x10).at() == 0x102'010);
                CHECK(guest.listener.events.empty());
            }
        }
    });
}

TEST_CASE("mem_access: the matrix, a table's frame as data", "[machine][mem_access]")
{
    in_each_way([](Paging paging, const char* policy, const char* cpu, const Row& row) {
        for (const AccessKind kind : kKinds) {
            INFO(name_of(kind));
            Watched guest{paging, policy, cpu};
            REQUIRE(guest.touch(AccessKind::write, kPage).ok());  // now it is shadowed
            const Gfn table = guest.table_of(kPage);
            guest.give(table, row.access);
            const std::uint64_t linear = kWindow + 0x800;
            check_fate(guest, fate_of(row, kind), kind, linear, table, table.address().value() + 0x800,
                       {.gfn = table,
                        .offset = 0x800,
                        .linear_address = LinearAddress{linear},
                        .rights = reported(kind)});
        }
    });
}

TEST_CASE("mem_access: the matrix, walks of the guest's tables", "[machine][mem_access]")
{
    in_each_way([](Paging paging, const char* policy, const char* cpu, const Row& row) {
        for (const bool sets_bits : {false, true}) {
            for (const bool touched : {false, true}) {
                for (const AccessKind kind : kKinds) {
                    INFO("sets bits " << sets_bits << ", touched " << touched << " " << name_of(kind));
                    Watched guest{paging, policy, cpu};
                    if (touched) REQUIRE(guest.touch(AccessKind::read, kOther).ok());
                    if (sets_bits) guest.set_entry(kPage, 1, guest.entry(kPage, 1) & ~(A | D));
                    const Gfn table = guest.table_of(kPage);
                    guest.give(table, row.access);
                    // What may not be read raises an event before it could be written.
                    const bool reads = row.walk_reads != Fate::ok;
                    const Fate fate = reads || !sets_bits ? row.walk_reads : row.walk_writes;
                    const auto offset = static_cast<unsigned>(guest.entry_at(kPage, 1) % kPageBytes);
                    check_fate(guest, fate, kind, kPage + 0x10, table, 0x101'010,
                               {.gfn = table,
                                .offset = offset,
                                .linear_address = LinearAddress{kPage + 0x10},
                                .rights = reported(reads ? AccessKind::read : AccessKind::write),
                                .in_guest_tables = true});
                    const bool done = fate != Fate::violation;
                    const std::uint64_t entry = guest.entry(kPage, 1);
                    if (sets_bits) CHECK(((entry & A) != 0) == done);
                    if (sets_bits) CHECK(((entry & D) != 0) == (done && kind == AccessKind::write));
                }
            }
        }
    });
}

TEST_CASE("mem_access: a walk that may not read the root, or no table", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy};
        REQUIRE(guest.touch(AccessKind::read, kPage).ok());
        guest.give(guest.root(), MemAccess::x);
        CHECK(guest.touch(AccessKind::read, kPage).raised(Vector::mem_access));
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.touch(AccessKind::fetch, kOther).raised(Vector::mem_access));
        CHECK(guest.listener.events.size() == 2);
        CHECK(guest.listener.events.back().gfn == guest.root());
        // A table whose entry is not present below one that may not be read cannot tell.
        guest.set_entry(kPage, 1, 0);
        CHECK(guest.touch(AccessKind::read, kPage).raised(Vector::mem_access));
        // Readable again, the guest's own fault comes first, whatever the frame's right.
        guest.give(guest.root(), MemAccess::r_pw);
        guest.give(kFrame, MemAccess::n);
        guest.listener.events.clear();
        CHECK(guest.read(kPage).page_fault(0, kPage));
        CHECK(guest.listener.events.empty());
        guest.check_books();
    }
}

TEST_CASE("mem_access: a new default is for all frames, at the same cost", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy};
        REQUIRE(guest.touch(AccessKind::write, kPage).ok());
        REQUIRE_FALSE(guest.machine.set_mem_access(Gfn{0x100}, 0x100, MemAccess::rx));
        const AccessTracker& rights = guest.machine.access_monitor().rights();
        CHECK(rights.live() == 0x100);
        const std::uint64_t touched = rights.frames_touched();
        REQUIRE_FALSE(guest.machine.set_default_mem_access(MemAccess::rw));
        CHECK(rights.frames_touched() == touched);  // no work for each frame
        CHECK(rights.live() == 0);
        for (const std::uint64_t frame : {0x100u, 0x101u, 0x1ffu, 0x3ffu})
            CHECK(rights.of(Gfn{frame}) == MemAccess::rw);
        CHECK(guest.touch(AccessKind::write, kPage).ok());
        CHECK(guest.listener.events.empty());
        CHECK(guest.touch(AccessKind::fetch, kOther).raised(Vector::mem_access));
        // "default" is what the default is when it is said.
        REQUIRE_FALSE(guest.machine.set_mem_access(kFrame, 1, std::nullopt));
        CHECK(guest.right_to(kFrame) == MemAccess::rw);
        REQUIRE_FALSE(guest.machine.set_default_mem_access(MemAccess::rwx));
        CHECK(guest.touch(AccessKind::fetch, kOther).ok());
        CHECK(guest.listener.events.size() == 1);
        guest.check_books();
    }
}

TEST_CASE("mem_access: a change of the P2M gives a frame the default right", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy};
        guest.give(kFrame, MemAccess::r);
        CHECK(guest.touch(AccessKind::write, kPage).raised(Vector::mem_access));
        REQUIRE_FALSE(guest.machine.set_p2m(kFrame, 1, P2mType::ram_ro, std::nullopt, std::nullopt));
        CHECK(guest.right_to(kFrame) == MemAccess::rwx);
        CHECK(guest.touch(AccessKind::write, kPage).ok());
        // With a right of its own, that one. The access counts before the type.
        REQUIRE_FALSE(guest.machine.set_p2m(kFrame, 1, P2mType::ram_rw, MemAccess::rx, std::nullopt));
        CHECK(guest.touch(AccessKind::write, kPage).raised(Vector::mem_access));
        CHECK(guest.touch(AccessKind::fetch, kPage).ok());
        // The same entry with the default right; one that another frame's change takes away.
        REQUIRE_FALSE(guest.machine.set_p2m(kFrame, 1, P2mType::ram_rw, std::nullopt, std::nullopt));
        CHECK(guest.right_to(kFrame) == MemAccess::rwx);
        CHECK(guest.touch(AccessKind::write, kPage).ok());
        guest.give(kFrame, MemAccess::n);
        const auto mfn = guest.machine.p2m().mfn_of(kFrame);
        REQUIRE_FALSE(guest.machine.set_p2m(Gfn{0x300}, 1, P2mType::ram_rw, MemAccess::r, mfn));
        CHECK(guest.right_to(kFrame) == MemAccess::rwx);
        CHECK(guest.right_to(Gfn{0x300}) == MemAccess::r);
        guest.check_books();
    }
}

TEST_CASE("mem_access: what the listener answers", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy};
        guest.poke(0x101'000, 0x1111);
        guest.give(kFrame, MemAccess::r);
        guest.listener.response = {EventAction::emulate, std::nullopt};
        CHECK(guest.store(kPage, 0x2222).emulated());
        CHECK(guest.word(0x101'000) == 0x2222);
        guest.listener.response = {EventAction::emulate_nowrite, std::nullopt};
        CHECK(guest.store(kPage, 0x3333).ok());
        CHECK(guest.word(0x101'000) == 0x2222);
        guest.listener.response = {EventAction::single_step, std::nullopt};
        CHECK(guest.store(kPage, 0x4444).ok());
        CHECK(guest.word(0x101'000) == 0x4444);
        CHECK(guest.right_to(kFrame) == MemAccess::r);
        CHECK(guest.listener.events.size() == 3);
        // Another right, and on: the access is done where that permits it.
        guest.listener.response = {EventAction::resume, MemAccess::rx};
        CHECK(guest.store(kPage, 0x5555).raised(Vector::mem_access));
        CHECK(guest.listener.events.size() == 4);
        guest.listener.response = {EventAction::resume, MemAccess::rw};
        CHECK(guest.store(kPage, 0x6666).ok());
        CHECK(guest.store(kPage, 0x7777).ok());
        CHECK(guest.listener.events.size() == 5);
        CHECK(guest.word(0x101'000) == 0x7777);
        const MemAccessCounts counts = guest.machine.counters().mem_access;
        CHECK(counts.events == 5);
        CHECK(counts.emulated == 1);
        CHECK(counts.emulated_nowrite == 1);
        CHECK(counts.single_steps == 1);
        CHECK(counts.stopped == 1);
        guest.check_books();
    }
}

TEST_CASE("mem_access: without a listener", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::pae, policy};
        guest.machine.detach_listener();
        guest.give(kFrame, MemAccess::r);
        CHECK(guest.touch(AccessKind::write, kPage).ok());
        CHECK(guest.right_to(kFrame) == MemAccess::rwx);
        CHECK(guest.machine.counters().mem_access.unheard == 1);
        CHECK(guest.machine.counters().mem_access.events == 0);
        guest.give(kFrame, MemAccess::r);
        guest.machine.require_listener(true);
        CHECK(guest.touch(AccessKind::read, kPage).ok());
        CHECK_THROWS_AS(guest.touch(AccessKind::write, kPage), DomainCrashed);
    }
    // No listener without a ring, and no ring for who did not ask.
    Guest plain{Paging::pae, under("xen")};
    Listener listener;
    CHECK_FALSE(plain.machine.attach_listener(listener));
    CHECK(plain.machine.access_monitor().ring() == nullptr);
    plain.machine.open_event_ring(1);
    CHECK(plain.machine.attach_listener(listener));
}

TEST_CASE("mem_access: the ring", "[machine][mem_access]")
{
    CHECK(EventRing{Mfn{0}, 1}.capacity() == 8);  // (4096 - 64) / 384 = 10.5
    CHECK(EventRing{Mfn{0}, 4}.capacity() == 32);

    Watched guest{Paging::four_level, "xen"};
    const EventRing& ring = *guest.machine.access_monitor().ring();
    // Its frame is not the guest's, and cannot become it.
    CHECK_FALSE(guest.machine.p2m().gfn_of(ring.first_frame()));
    CHECK(guest.machine.set_p2m(Gfn{0x300}, 1, P2mType::ram_rw, std::nullopt, ring.first_frame()));

    // Events that pause nobody fill it; then the vCPU waits, and nothing is lost, nor out of order.
    REQUIRE_FALSE(guest.machine.set_mem_access(Gfn{0x110}, 20, MemAccess::n2rwx));
    for (std::uint64_t i = 0; i < 20; ++i)
        REQUIRE(guest.touch(AccessKind::read, kLarge + 0x110'000 + i * 0x1000).ok());
    CHECK(guest.machine.counters().mem_access.events == 20);
    CHECK(guest.machine.counters().mem_access.not_paused == 20);
    CHECK(guest.machine.counters().mem_access.ring_full == 2);  // before the 9th and the 17th
    CHECK(guest.listener.events.size() == 16);
    guest.give(kFrame, MemAccess::n);
    CHECK(guest.touch(AccessKind::read, kPage).raised(Vector::mem_access));
    REQUIRE(guest.listener.events.size() == 21);
    for (std::uint64_t i = 0; i < 20; ++i) CHECK(guest.listener.events[i].gfn == Gfn{0x110 + i});
    CHECK(guest.listener.events[20].gfn == kFrame);
    CHECK(guest.machine.take_access_events() == guest.listener.events);
}

TEST_CASE("mem_access: across pages, and instructions", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy};
        guest.map(kPage, 0x101'000, P | W | U | A);  // not dirty yet
        guest.give(kFrame, MemAccess::n2rwx);
        guest.give(Gfn{0x102}, MemAccess::r);
        // Both pages: the lower first. Not done, it has left no trace.
        CHECK(guest.write(kOther - 4).raised(Vector::mem_access));
        guest.machine.deliver_events();
        REQUIRE(guest.listener.events.size() == 2);
        CHECK(guest.listener.events[0].gfn == kFrame);
        CHECK(guest.listener.events[0].offset == 0xffc);
        CHECK(guest.listener.events[1].gfn == Gfn{0x102});
        CHECK(guest.listener.events[1].offset == 0);

        // An instruction that starts again raises no event twice: its first operand is stopped by nothing,
        // the second one by a fault of the shadows, the third by the right.
        guest.listener.events.clear();
        guest.listener.response = {EventAction::single_step, std::nullopt};
        const std::array<Operand, 3> operands{Guest::operand(AccessKind::write, kPage),
                                              Guest::operand(AccessKind::read, kWindow),
                                              Guest::operand(AccessKind::write, kOther)};
        Execution done;
        guest.machine.execute(0, operands, Restart::instruction, done);
        CHECK_FALSE(done.fault);
        CHECK(done.placed.size() == 3);
        CHECK(guest.listener.events.size() == 1);

        // Stopped, nothing of it is done: the first operand's page stays clean.
        guest.map(kPage, 0x101'000, P | W | U | A);
        guest.listener.events.clear();
        guest.listener.response = {EventAction::resume, std::nullopt};
        guest.machine.execute(0, operands, Restart::instruction, done);
        REQUIRE(done.fault);
        CHECK(done.fault->vector == Vector::mem_access);
        CHECK(done.placed.size() == 2);
        CHECK(guest.listener.events.size() == 1);
        CHECK((guest.entry(kPage, 1) & D) == 0);
        guest.check_books();
    }
}

TEST_CASE("mem_access: a tightened right holds at once on all vCPUs", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy, "golden_cove", 2};
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu) REQUIRE(guest.write(kPage, 8, vcpu).ok());
        guest.give(kFrame, MemAccess::rx);
        CHECK(guest.write(kPage, 8, 1).raised(Vector::mem_access));
        CHECK(guest.write(kPage, 8, 0).raised(Vector::mem_access));
        CHECK(guest.listener.events[0].vcpu == 1);
        // rx2rw takes the right to execute away from both.
        guest.give(kFrame, MemAccess::rx2rw);
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu) REQUIRE(guest.fetch(kPage, 1, vcpu).ok());
        CHECK(guest.write(kPage, 8, 0).ok());
        CHECK(guest.fetch(kPage, 1, 1).raised(Vector::mem_access));
        CHECK(guest.fetch(kPage, 1, 0).raised(Vector::mem_access));
        guest.check_books();
    }
}

TEST_CASE("mem_access: a right taken away reaches TLBs that hold what no shadow does",
          "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        Watched guest{Paging::four_level, policy, "golden_cove"};
        REQUIRE(guest.touch(AccessKind::write, kPage).ok());
        // The guest takes its entry away and does not flush; then the hypervisor forgets its shadow.
        REQUIRE(guest.touch(AccessKind::write, kWindow).ok());
        REQUIRE(guest.store(kWindow + guest.entry_at(kPage, 1) % kPageBytes, 0).ok());
        guest.give(kFrame, MemAccess::n);
        // Whatever is cached, nobody reaches the frame: the guest's own fault.
        CHECK(guest.touch(AccessKind::write, kPage).page_fault(pf::kWrite, kPage));
        CHECK(guest.listener.events.empty());
        guest.check_books();
    }
}

TEST_CASE("mem_access: with paging off", "[machine][mem_access]")
{
    for (const char* const policy : kPolicies) {
        INFO(policy);
        MachineConfig config = Watched::config(policy, "", 1);
        Machine machine{config};
        Listener listener;
        REQUIRE(machine.attach_listener(listener));
        REQUIRE_FALSE(machine.set_mem_access(kFrame, 1, MemAccess::rw));
        CHECK(machine.access(0, Guest::operand(AccessKind::write, 0x101'000)));
        const auto fetched = machine.access(0, Guest::operand(AccessKind::fetch, 0x101'008, 1));
        REQUIRE(!fetched);
        CHECK(fetched.error().vector == Vector::mem_access);
        REQUIRE(listener.events.size() == 1);
        CHECK(listener.events[0].offset == 8);
        // What is no RAM has no right.
        REQUIRE_FALSE(machine.set_default_mem_access(MemAccess::n));
        CHECK(machine.access(0, Guest::operand(AccessKind::read, 0x5000'0000)));
        CHECK_FALSE(machine.access(0, Guest::operand(AccessKind::read, 0x102'000)));
        CHECK(machine.audit().empty());
    }
}

TEST_CASE("mem_access: refused", "[machine][mem_access]")
{
    Watched guest{Paging::four_level, "xen"};
    CHECK(guest.machine.set_mem_access(Gfn{0x3ff}, 2, MemAccess::r));  // the second one is none
    CHECK(guest.right_to(Gfn{0x3ff}) == MemAccess::rwx);
    CHECK(guest.machine.set_mem_access(Gfn{0x3ff}, 0, MemAccess::r));
    Guest plain{Paging::four_level, native()};
    CHECK(plain.machine.set_mem_access(kFrame, 1, MemAccess::r));
    CHECK(plain.machine.set_default_mem_access(MemAccess::r));
}

namespace {

/// What an access comes to by the guest's tables as they are in memory and a table of rights, four levels,
/// supervisor, nothing stale: written down from kTable, with no code of the model's in common.
struct Model {
    std::vector<MemAccess> rights = std::vector<MemAccess>(0x400, MemAccess::rwx);
    std::vector<MemAccessEvent> events;

    enum class End : std::uint8_t { done, fault, stopped };

    const Row& row(Gfn frame) { return kTable[static_cast<std::size_t>(rights[frame.number()])]; }
    /// Whether the access is not done.
    bool stops(Fate fate, Gfn frame, unsigned offset, AccessKind kind, std::uint64_t linear, bool walk)
    {
        if (fate == Fate::ok) return false;
        if (fate == Fate::to_rw) {
            rights[frame.number()] = MemAccess::rw;
            return false;
        }
        if (fate == Fate::to_rwx) rights[frame.number()] = MemAccess::rwx;
        events.push_back({.gfn = frame,
                          .offset = offset,
                          .linear_address = LinearAddress{linear},
                          .rights = reported(kind),
                          .in_guest_tables = walk,
                          .paused = fate == Fate::violation});
        return fate == Fate::violation;
    }
    End access(const Guest& guest, AccessKind kind, std::uint64_t linear)
    {
        const bool write = kind == AccessKind::write;
        Gfn table = guest.root();
        std::vector<std::pair<std::uint64_t, std::uint64_t>> way;  // where, what
        for (int level = 4;; --level) {
            const std::uint64_t where = table.address().value() + (linear >> guest.shift(level) & 511) * 8;
            const auto offset = static_cast<unsigned>(where % kPageBytes);
            if (stops(row(table).walk_reads, table, offset, AccessKind::read, linear, true))
                return End::stopped;
            const std::uint64_t entry = guest.word(where);
            if ((entry & P) == 0) return End::fault;
            way.emplace_back(where, entry);
            table = Gfn::of(GuestPhysical{entry & pte::kFrame});
            if (level == 1) break;
        }
        const std::uint64_t leaf = way.back().second;
        if ((write && (leaf & W) == 0) || (kind == AccessKind::fetch && (leaf & NX) != 0)) return End::fault;
        for (const auto& [where, entry] : way) {
            const bool dirties = write && where == way.back().first && (entry & D) == 0;
            if ((entry & A) != 0 && !dirties) continue;
            const Gfn frame = Gfn::of(GuestPhysical{where});
            const auto offset = static_cast<unsigned>(where % kPageBytes);
            if (stops(row(frame).walk_writes, frame, offset, AccessKind::write, linear, true))
                return End::stopped;
        }
        const auto offset = static_cast<unsigned>(linear % kPageBytes);
        return stops(fate_of(row(table), kind), table, offset, kind, linear, false) ? End::stopped
                                                                                    : End::done;
    }
};

}  // namespace

TEST_CASE("mem_access: random rights, accesses and table writes", "[machine][mem_access]")
{
    constexpr unsigned kSteps = 400;
    constexpr std::uint64_t kPages = 6;
    for (const char* const policy : kPolicies) {
        for (std::uint64_t seed = 1; seed <= 12; ++seed) {
            INFO(policy << " seed " << seed);
            support::Random64 random{seed};
            Watched guest{Paging::four_level, policy, seed % 2 == 0 ? "golden_cove" : "", 1};
            Model model;
            for (std::uint64_t i = 2; i < kPages; ++i) guest.map(kPage + i * 0x1000, 0x101'000 + i * 0x1000);
            const Gfn table = guest.table_of(kPage);
            std::vector<Gfn> frames{table, guest.table_of(kWindow), guest.root(),
                                    Gfn::of(GuestPhysical{guest.entry_at(kPage, 2)})};
            for (std::uint64_t i = 0; i < kPages; ++i) frames.push_back(Gfn{0x101 + i});
            for (unsigned step = 0; step < kSteps; ++step) {
                INFO("step " << step);
                const auto random_right = [&] {
                    return random.percent(40) ? MemAccess::rwx
                                              : static_cast<MemAccess>(random.below(kMemAccessTypes));
                };
                if (random.percent(12)) {
                    const Gfn frame = random.one_of(frames);
                    const MemAccess right = random_right();
                    guest.give(frame, right);
                    model.rights[frame.number()] = right;
                } else if (random.percent(2)) {
                    const MemAccess right = random_right();
                    REQUIRE_FALSE(guest.machine.set_default_mem_access(right));
                    std::fill(model.rights.begin(), model.rights.end(), right);
                } else if (random.percent(5)) {
                    // From outside, so that it is there whatever the rights.
                    constexpr std::array<std::uint64_t, 6> kFlags{0, P, P | W, P | W | A, kAll, kAll | NX};
                    const std::uint64_t linear = kPage + random.below(kPages) * 0x1000;
                    const std::uint64_t frame = guest.entry(linear, 1) & pte::kFrame;
                    guest.set_entry(linear, 1, frame | random.one_of(kFlags));
                    REQUIRE(guest.mov_cr3(guest.root()));
                } else {
                    const bool window = random.percent(20);
                    const auto page = random.below(kPages) * 0x1000;
                    const std::uint64_t linear = (window ? kWindow : kPage + page) + random.below(512) * 8;
                    const AccessKind kind = random.one_of(kKinds);
                    model.events.clear();
                    guest.listener.events.clear();
                    const Model::End expected = model.access(guest, kind, linear);
                    // A write to the table stores what is there.
                    const Seen seen = guest.touch(kind, linear);
                    guest.machine.deliver_events();
                    CHECK(seen.ok() == (expected == Model::End::done));
                    CHECK(seen.raised(Vector::mem_access) == (expected == Model::End::stopped));
                    REQUIRE(guest.listener.events == model.events);
                }
                for (const Gfn frame : frames) REQUIRE(guest.right_to(frame) == model.rights[frame.number()]);
            }
            guest.check_books();
        }
    }
}
