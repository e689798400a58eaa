// SPDX-License-Identifier: Apache-2.0
//
// Nested mode: what a frame of each P2M type does to reads, writes and fetches under EPT and NPT. The table
// is that of reference/xen.md C1 ("HAP/EPT rights", "NPT rights", "on fault (HAP)"), written down again here.
#include <array>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

enum class Outcome {
    done,      ///< by the hardware, without an exit
    repaired,  ///< by the hardware, after an exit in which the frame became plain RAM
    emulated,  ///< by the hypervisor
    crash,     ///< the hypervisor ends the domain
};

struct TypeCase {
    P2mType type;
    std::array<Outcome, 3> outcomes;  ///< read, write, fetch
    bool keeps_content = true;
    bool discards = false;
};

using O = Outcome;
constexpr std::array<TypeCase, kP2mTypes> kCases{{
    {P2mType::ram_rw, {O::done, O::done, O::done}},
    {P2mType::invalid, {O::crash, O::crash, O::crash}},
    {P2mType::ram_logdirty, {O::done, O::repaired, O::done}},
    {P2mType::ram_ro, {O::done, O::emulated, O::done}, true, true},
    {P2mType::mmio_dm, {O::emulated, O::emulated, O::emulated}, false, true},
    {P2mType::mmio_direct, {O::done, O::done, O::done}},
    {P2mType::populate_on_demand, {O::repaired, O::repaired, O::repaired}, false},
    {P2mType::grant_map_rw, {O::done, O::done, O::crash}},
    {P2mType::grant_map_ro, {O::done, O::emulated, O::crash}, true, true},
    {P2mType::ram_paging_out, {O::repaired, O::repaired, O::repaired}},
    {P2mType::ram_paged, {O::repaired, O::repaired, O::repaired}},
    {P2mType::ram_paging_in, {O::repaired, O::repaired, O::repaired}},
    {P2mType::ram_shared, {O::done, O::repaired, O::done}},
    {P2mType::ram_broken, {O::crash, O::crash, O::crash}},
    {P2mType::map_foreign, {O::done, O::done, O::crash}},
    {P2mType::ioreq_server, {O::done, O::done, O::crash}},
}};

constexpr std::uint64_t kLinear = 0x4000'0000;
constexpr Gfn kFrame{0x200};
constexpr std::uint64_t kContent = 0x0123'4567'89ab'cdef;

struct Host {
    P2mFormat format;
    int page;
    bool ad_bits;
    const char* cpu;

    [[nodiscard]] std::string name() const
    {
        return fmt::format("{}, pages of level {}, A/D {}, cpu {}", format == P2mFormat::ept ? "EPT" : "NPT",
                           page, ad_bits, cpu);
    }
};

std::vector<Host> hosts()
{
    std::vector<Host> all;
    for (const char* const cpu : {"none", "golden_cove", "zen3"}) {
        for (const int page : {1, 2, 3}) {
            all.push_back({P2mFormat::ept, page, false, cpu});
            all.push_back({P2mFormat::ept, page, true, cpu});
            all.push_back({P2mFormat::npt, page, false, cpu});
        }
    }
    return all;
}

MachineConfig config_for(const Host& host)
{
    Options options;
    options.mode = TranslationMode::nested;
    options.layout = "offset:0x400000";
    MachineConfig config = config_of(options);
    config.ram = {{Gfn{0}, 0x40000}};
    config.p2m_format = host.format;
    config.largest_p2m_page = host.page;
    config.second_level.ad_bits = host.ad_bits;
    if (host.cpu != std::string{"none"})
        config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(host.cpu));
    return config;
}

Guest guest_for(const Host& host)
{
    Guest guest{Paging::four_level, config_for(host)};
    guest.map(kLinear, kFrame.address().value());
    guest.poke(kFrame.address().value(), kContent);
    return guest;
}

void set(Guest& guest, Gfn frame, P2mType type, std::uint64_t count = 1, MemAccess access = MemAccess::rwx)
{
    const auto refused = guest.machine.set_p2m(frame, count, type, access, std::nullopt);
    INFO(name_of(type) << ": " << (refused ? std::string{refused->why} : std::string{}));
    REQUIRE_FALSE(refused.has_value());
}

std::uint64_t load(Guest& guest, const Seen& seen)
{
    std::uint64_t value = 0;
    guest.machine.load(seen.placed, std::as_writable_bytes(std::span{&value, 1}));
    return value;
}

}  // namespace

TEST_CASE("each P2M type has its effect on reads, writes and fetches in nested mode", "[machine][nested]")
{
    for (const Host& host : hosts()) {
        for (const TypeCase& one : kCases) {
            for (const AccessKind kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
                for (const bool warm : {false, true}) {
                    INFO(host.name() << ", " << name_of(one.type) << ", " << name_of(kind)
                                     << (warm ? ", warm" : ""));
                    Guest guest = guest_for(host);
                    if (warm) REQUIRE(guest.write(kLinear).ok());
                    set(guest, kFrame, one.type);
                    const std::uint64_t exits = guest.machine.counters().exits;
                    const Outcome expected = one.outcomes[static_cast<std::size_t>(kind)];
                    const Operand operand = Guest::operand(kind, kLinear);
                    if (expected == Outcome::crash) {
                        CHECK_THROWS_AS(guest.access(operand), DomainCrashed);
                        continue;
                    }
                    const Seen seen = guest.access(operand);
                    REQUIRE(seen.ok());
                    CHECK(seen.at() == kFrame.address().value());
                    CHECK(seen.emulated() == (expected == Outcome::emulated));
                    CHECK(guest.machine.counters().exits - exits == (expected == Outcome::done ? 0u : 1u));
                    CHECK(guest.machine.p2m().entry(kFrame).type ==
                          (expected == Outcome::repaired ? P2mType::ram_rw : one.type));
                    CHECK(load(guest, seen) == (one.keeps_content ? kContent : 0));
                    if (kind == AccessKind::write) {
                        const std::uint64_t other = ~kContent;
                        guest.machine.store(seen.placed, std::as_bytes(std::span{&other, 1}));
                        const std::uint64_t kept = one.keeps_content ? kContent : 0;
                        CHECK(guest.word(kFrame.address().value()) == (one.discards ? kept : other));
                    }
                    CHECK(guest.machine.audit() == std::vector<std::string>{});
                }
            }
        }
    }
}

TEST_CASE("access rights that nobody listens to are lifted; what the tables cannot say is emulated",
          "[machine][nested]")
{
    struct AccessCase {
        MemAccess access;
        const char* permitted;
    };
    constexpr std::array<AccessCase, kMemAccessTypes> kAccessCases{{{MemAccess::n, ""},
                                                                    {MemAccess::r, "r"},
                                                                    {MemAccess::w, "w"},
                                                                    {MemAccess::rw, "rw"},
                                                                    {MemAccess::x, "x"},
                                                                    {MemAccess::rx, "rx"},
                                                                    {MemAccess::wx, "wx"},
                                                                    {MemAccess::rwx, "rwx"},
                                                                    {MemAccess::rx2rw, "rx"},
                                                                    {MemAccess::n2rwx, ""},
                                                                    {MemAccess::r_pw, "r"}}};
    for (const Host& host : hosts()) {
        for (const AccessCase& one : kAccessCases) {
            for (const AccessKind kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
                INFO(host.name() << ", " << name_of(one.access) << ", " << name_of(kind));
                Guest guest = guest_for(host);
                set(guest, kFrame, P2mType::ram_rw, 1, one.access);
                const std::string permitted = one.permitted;
                const bool has_read = permitted.find('r') != std::string::npos;
                const bool has_write = permitted.find('w') != std::string::npos;
                const bool is_permitted =
                    permitted.find("rwx"[static_cast<std::size_t>(kind)]) != std::string::npos;
                const bool can_be_said = has_read || (host.format == P2mFormat::ept && !has_write);
                const std::uint64_t exits = guest.machine.counters().exits;
                const Seen seen = guest.access(Guest::operand(kind, kLinear));
                REQUIRE(seen.ok());
                CHECK(load(guest, seen) == kContent);
                CHECK(seen.emulated() == (is_permitted && !can_be_said));
                CHECK(guest.machine.counters().exits - exits == (is_permitted && can_be_said ? 0u : 1u));
                const bool converts = one.access == MemAccess::rx2rw && kind == AccessKind::write;
                const MemAccess after = is_permitted ? one.access : converts ? MemAccess::rw : MemAccess::rwx;
                CHECK(guest.machine.p2m().entry(kFrame).access == after);
                CHECK(guest.machine.audit() == std::vector<std::string>{});
            }
        }
    }
}

TEST_CASE("a write to a shared frame goes to a copy", "[machine][nested]")
{
    for (const Host& host : hosts()) {
        INFO(host.name());
        Guest guest = guest_for(host);
        set(guest, kFrame, P2mType::ram_shared);
        const Mfn shared = *guest.machine.p2m().mfn_of(kFrame);
        REQUIRE(guest.read(kLinear).ok());
        REQUIRE(guest.store(kLinear + 8, 1).ok());
        CHECK(guest.machine.p2m().mfn_of(kFrame) != shared);
        CHECK(guest.load_word(kLinear) == kContent);
        CHECK(guest.load_word(kLinear + 8) == 1);
        CHECK(guest.machine.audit() == std::vector<std::string>{});
    }
}

TEST_CASE("what is written from outside reaches frames of every kind that is RAM", "[machine][nested]")
{
    for (const P2mType type : {P2mType::populate_on_demand, P2mType::ram_paged, P2mType::ram_paging_in,
                               P2mType::ram_shared, P2mType::ram_ro}) {
        INFO(name_of(type));
        Guest guest = guest_for({P2mFormat::ept, 2, false, "golden_cove"});
        set(guest, kFrame, type);
        guest.poke(kFrame.address().value() + 8, 5);
        CHECK(guest.word(kFrame.address().value() + 8) == 5);
        CHECK(guest.load_word(kLinear + 8) == 5);
        CHECK(guest.load_word(kLinear) == (type == P2mType::populate_on_demand ? 0 : kContent));
        CHECK(guest.machine.audit() == std::vector<std::string>{});
    }
}

TEST_CASE("the guest's tables may be in frames of other types", "[machine][nested]")
{
    for (const Host& host : hosts()) {
        for (const P2mType type : {P2mType::ram_logdirty, P2mType::ram_ro, P2mType::ram_paging_out,
                                   P2mType::ram_paged, P2mType::ram_paging_in, P2mType::ram_shared}) {
            for (const bool bits_to_set : {false, true}) {
                INFO(host.name() << ", " << name_of(type) << ", bits to set " << bits_to_set);
                Guest guest = guest_for(host);
                if (bits_to_set) guest.map(kLinear, kFrame.address().value(), P | W | U);
                const std::uint64_t leaf = guest.entry_at(kLinear, 1);
                set(guest, Gfn::of(GuestPhysical{leaf}), type);
                const Seen seen = guest.write(kLinear);
                REQUIRE(seen.ok());
                CHECK(seen.at() == kFrame.address().value());
                // In read-only frames the hypervisor sets the walk's bits, and completes the access.
                const bool writes = bits_to_set || host.format == P2mFormat::npt || host.ad_bits;
                CHECK(seen.emulated() == (type == P2mType::ram_ro && writes));
                const bool set_there = (guest.word(leaf) & (A | D)) == (A | D);
                CHECK(set_there);
                CHECK(guest.machine.audit() == std::vector<std::string>{});
            }
        }
        // A table in a hole, or not populated yet, has no entries.
        for (const P2mType type : {P2mType::mmio_dm, P2mType::populate_on_demand}) {
            INFO(host.name() << ", " << name_of(type));
            Guest guest = guest_for(host);
            set(guest, Gfn::of(GuestPhysical{guest.entry_at(kLinear, 1)}), type);
            CHECK(guest.write(kLinear).page_fault(pf::kWrite, kLinear));
        }
        // The hypervisor ends the domain over a table in a broken frame.
        Guest guest = guest_for(host);
        set(guest, Gfn::of(GuestPhysical{guest.entry_at(kLinear, 1)}), P2mType::ram_broken);
        CHECK_THROWS_WITH(guest.read(kLinear), Catch::Matchers::Contains("walk of the guest's tables") &&
                                                   Catch::Matchers::Contains("ram_broken"));
    }
}

TEST_CASE("outside the RAM there are holes", "[machine][nested]")
{
    for (const Host& host : hosts()) {
        Guest guest = guest_for(host);
        const std::uint64_t outside = std::uint64_t{1} << 38;
        guest.map(kLinear + 0x1000, outside);
        const Seen seen = guest.read(kLinear + 0x1000);
        REQUIRE(seen.ok());
        CHECK(seen.emulated());
        CHECK(seen.at() == outside);
        CHECK(load(guest, seen) == 0);
    }
}

TEST_CASE("what the P2M takes away is gone from all vCPUs at once", "[machine][nested]")
{
    for (const Host& host : hosts()) {
        INFO(host.name());
        MachineConfig config = config_for(host);
        config.vcpus = 2;
        Guest guest{Paging::four_level, config};
        guest.map(kLinear, kFrame.address().value());
        guest.poke(kFrame.address().value(), kContent);
        for (const unsigned vcpu : {0u, 1u}) REQUIRE(guest.write(kLinear, 8, vcpu).ok());
        const std::uint64_t flushes = guest.machine.counters().flushes;
        set(guest, kFrame, P2mType::ram_ro);
        CHECK(guest.machine.counters().flushes - flushes == 2);
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.write(kLinear, 8, vcpu).emulated());
        // Another frame of machine memory: none has its content.
        const auto refused =
            guest.machine.set_p2m(kFrame, 1, P2mType::ram_rw, MemAccess::rwx, Mfn{0x100'0000});
        REQUIRE_FALSE(refused.has_value());
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.load_word(kLinear, 8, vcpu) == 0);
        CHECK(guest.machine.audit() == std::vector<std::string>{});
    }
}

TEST_CASE("without VPIDs an exit empties the TLBs, but not the nested TLB", "[machine][nested]")
{
    for (const bool vpid : {true, false}) {
        MachineConfig config = config_for({P2mFormat::ept, 1, false, "golden_cove"});
        config.vpid = vpid;
        Guest guest{Paging::four_level, config};
        guest.map(kLinear, kFrame.address().value());
        guest.map(kLinear + 0x1000, std::uint64_t{1} << 38);
        REQUIRE(guest.read(kLinear).ok());
        CHECK(guest.read(kLinear + 0x1000).emulated());
        const MachineCounters before = guest.machine.counters();
        CHECK(before.exits == 1);
        REQUIRE(guest.read(kLinear).ok());
        const MachineCounters after = guest.machine.counters();
        CHECK(after.walks - before.walks == (vpid ? 0u : 1u));
        CHECK(after.second_level.walks == before.second_level.walks);
    }
}

TEST_CASE("nested mode has no exits for what the guest does to its own tables", "[machine][nested]")
{
    Guest guest = guest_for({P2mFormat::ept, 2, false, "golden_cove"});
    REQUIRE(guest.read(kLinear).ok());
    REQUIRE(guest.mov_cr3(guest.root()));
    REQUIRE(guest.invlpg(kLinear));
    REQUIRE(guest.set_cr4(cr4::kPge, true));
    guest.map(kLinear, kFrame.address().value(), 0);
    CHECK(guest.set_cr0(cr0::kPg, true));
    REQUIRE(guest.invlpg(kLinear));
    CHECK(guest.read(kLinear).page_fault(0, kLinear));
    CHECK(guest.machine.counters().exits == 0);
    CHECK(guest.machine.shadow() == nullptr);
}

TEST_CASE("the P2M's tables have an end", "[machine][nested]")
{
    Guest guest = guest_for({P2mFormat::ept, 1, false, "none"});
    const auto refused = guest.machine.set_p2m(Gfn{std::uint64_t{1} << 36}, 1, P2mType::ram_rw,
                                               MemAccess::rwx, Mfn{0x100'0000});
    CHECK(refused.has_value());
}
