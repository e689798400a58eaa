// SPDX-License-Identifier: Apache-2.0
//
// The machine as a whole: how many faults a cold access takes, accesses and tables outside RAM, modes that
// exclude the guest's paging, reset, blowing the shadows, CR3 in each mode, names.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;

constexpr Paging kPagings[] = {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level};

Options in_mode(TranslationMode mode)
{
    Options options;
    options.mode = mode;
    return options;
}

}  // namespace

TEST_CASE("machine: faults of a cold access", "[machine]")
{
    struct Case {
        Paging paging;
        int level;
        std::uint64_t steps;
    };
    const Case cases[] = {{Paging::two_level, 1, 2},  {Paging::two_level, 2, 2},  {Paging::pae, 1, 2},
                          {Paging::pae, 2, 2},        {Paging::four_level, 1, 4}, {Paging::four_level, 2, 4},
                          {Paging::four_level, 3, 4}, {Paging::five_level, 1, 5}, {Paging::five_level, 3, 5}};
    for (const char* policy : {"write-protect", "tlb-like"}) {
        for (const auto& [paging, level, steps] : cases) {
            INFO(policy << ", " << name_of(paging) << ", a page of level " << level);
            for (const Populate populate : {Populate::leaf, Populate::step}) {
                Guest guest{paging, under(policy, populate)};
                guest.map(0x4000'0000, 0x4000'0000, kAll, level);
                CHECK(guest.write(0x4000'0000).at() == 0x4000'0000);
                const bool leaf = populate == Populate::leaf;
                CHECK(guest.counters().fault == (leaf ? 1 : steps));
                CHECK(guest.counters().fault_linked == (leaf ? 0 : steps - 1));
                CHECK(guest.counters().fault_fixed == 1);
                CHECK(guest.counters().guest_walk == guest.counters().fault);
                CHECK(guest.machine.counters().walks == guest.counters().fault + 1);
                // Warm, and its neighbour.
                CHECK(guest.write(0x4000'0008).ok());
                CHECK(guest.counters().fault == (leaf ? 1 : steps));
                guest.map(0x4000'1000, 0x4000'1000, kAll, level);  // poked: the table is dropped
                CHECK(guest.machine.audit().empty());
            }
        }
    }
}

TEST_CASE("machine: memory references of a warm access", "[machine]")
{
    for (const auto& [paging, native_references, shadow_references] :
         {std::tuple{Paging::two_level, 2u, 2u}, std::tuple{Paging::pae, 2u, 2u},
          std::tuple{Paging::four_level, 4u, 4u}, std::tuple{Paging::five_level, 5u, 5u}}) {
        for (const bool is_native : {true, false}) {
            Guest guest{paging, is_native ? native() : under("write-protect")};
            guest.map(kLinear, 0x101'000);
            CHECK(guest.write(kLinear).ok());
            const MachineCounters before = guest.machine.counters();
            CHECK(guest.write(kLinear).ok());
            CHECK(guest.machine.counters().walks == before.walks + 1);
            CHECK(guest.machine.counters().memory_references ==
                  before.memory_references + (is_native ? native_references : shadow_references));
        }
    }
}

TEST_CASE("machine: a page outside RAM is a plain answer", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : kPagings) {
            Guest guest{paging, options};
            guest.map(kLinear, 0xfee0'0000, P | W);
            const Seen seen = guest.store(kLinear | 0x30, 0x1234);
            REQUIRE(seen.ok());
            CHECK(seen.at() == 0xfee0'0030);
            CHECK(guest.load_word(kLinear | 0x30) == 0);
            CHECK((guest.entry(kLinear, 1) & (A | D)) == (A | D));
            if (options.mode != TranslationMode::native) {
                CHECK(seen.emulated());
                CHECK(guest.counters().fault_mmio + guest.counters().fault_fast_mmio == 2);
            }
            // Rights are as for any page.
            CHECK(guest.access(Guest::operand(AccessKind::read, kLinear, 8, true))
                      .page_fault(pf::kPresent | pf::kUser, kLinear));
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("machine: a table outside RAM has nothing present", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : kPagings) {
            Guest guest{paging, options};
            guest.map(kLinear, 0x101'000);
            CHECK(guest.read(kLinear).ok());
            guest.set_entry(kLinear, 2, 0xfee0'0000 | P | W | U | A);
            CHECK(guest.read(kLinear).page_fault(0, kLinear));
            CHECK(guest.mov_cr3(Gfn{0x90000}));
            CHECK(guest.read(kLinear).page_fault(0, kLinear));
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("machine: a fixed mode refuses accesses under other paging", "[machine]")
{
    const std::pair<TranslationMode, Paging> fixed[] = {{TranslationMode::shadow_2_on_3, Paging::two_level},
                                                        {TranslationMode::shadow_3_on_3, Paging::pae},
                                                        {TranslationMode::shadow_4_on_4, Paging::four_level},
                                                        {TranslationMode::shadow_5_on_5, Paging::five_level}};
    for (const auto& [mode, own] : fixed) {
        for (const Paging paging : kPagings) {
            Guest guest{paging, in_mode(mode)};
            guest.map(kLinear, 0x101'000);
            INFO(name_of(mode) << " and " << name_of(paging));
            if (paging == own) {
                CHECK(guest.read(kLinear).ok());
            } else {
                CHECK_THROWS_AS(guest.read(kLinear), ModeMismatch);
                Execution result;
                const Operand operand = Guest::operand(AccessKind::read, kLinear);
                CHECK_THROWS_AS(guest.machine.execute(0, {&operand, 1}, Restart::instruction, result),
                                ModeMismatch);
            }
        }
        // Paging off runs 2-on-3.
        MachineConfig config = config_of(in_mode(mode));
        Machine machine{config};
        const Operand operand = Guest::operand(AccessKind::read, 0x1000);
        if (mode == TranslationMode::shadow_2_on_3) {
            CHECK(machine.access(0, operand).ok());
        } else {
            CHECK_THROWS_AS(machine.access(0, operand), ModeMismatch);
        }
    }
}

TEST_CASE("machine: a refused access leaves the machine usable", "[machine]")
{
    Guest guest{Paging::four_level, in_mode(TranslationMode::shadow_4_on_4)};
    guest.map(kLinear, 0x101'000);
    REQUIRE(guest.set_cr0(cr0::kPg, false));
    CHECK_THROWS_AS(guest.read(kLinear), ModeMismatch);
    REQUIRE(guest.set_cr0(cr0::kPg, true));
    CHECK(guest.read(kLinear).ok());
}

TEST_CASE("machine: names of the modes", "[machine]")
{
    for (const char* name : {"shadow", "2-on-3", "3-on-3", "4-on-4", "5-on-5", "native"}) {
        const auto mode = parse_translation_mode(name);
        REQUIRE(mode);
        CHECK(name_of(*mode) == name);
    }
    CHECK_FALSE(parse_translation_mode("4-on-3"));
    CHECK_FALSE(parse_translation_mode(""));
}

TEST_CASE("machine: reset is the state after construction", "[machine]")
{
    for (Options options : everywhere()) {
        options.vcpus = 2;
        for (const Paging paging : kPagings) {
            Guest guest{paging, options};
            guest.map(kLinear, 0x101'000);
            guest.map(kLinear + 0x1000, 0x101'000, kAll, 1);
            CHECK(guest.store(kLinear, 1234).ok());
            guest.machine.set_cpl(1, 3);
            guest.machine.set_ac(1, true);
            guest.machine.reset();

            Machine fresh{config_of(options)};
            for (unsigned vcpu = 0; vcpu < 2; ++vcpu) {
                CHECK(guest.machine.registers(vcpu) == fresh.registers(vcpu));
                CHECK(guest.machine.registers(vcpu) == Registers{});
                CHECK(guest.machine.pdptes(vcpu) == fresh.pdptes(vcpu));
            }
            CHECK(guest.machine.counters() == fresh.counters());
            if (guest.machine.shadow() != nullptr) CHECK(guest.counters() == fresh.shadow()->counters());
            for (std::uint64_t at = 0; at < 0x400'000; at += 0x800) REQUIRE(guest.word(at) == 0);
            CHECK(guest.word(0x101'000) == 0);
            CHECK(guest.machine.audit().empty());
            // Paging is off, and all is as the first time.
            CHECK(guest.read(0x101'000).at() == 0x101'000);
            REQUIRE(fresh.access(0, Guest::operand(AccessKind::read, 0x101'000)).ok());
            CHECK(guest.machine.counters() == fresh.counters());
            if (guest.machine.shadow() != nullptr) CHECK(guest.counters() == fresh.shadow()->counters());
        }
    }
}

TEST_CASE("machine: blowing the shadows changes nothing for the guest", "[machine]")
{
    for (const Options& options : everywhere()) {
        for (const Paging paging : kPagings) {
            Guest guest{paging, options};
            guest.map(kLinear, 0x101'000);
            CHECK(guest.read(kLinear).ok());
            guest.machine.blow_shadows();
            CHECK(guest.machine.audit().empty());
            if (guest.machine.shadow() != nullptr) {
                CHECK(guest.counters().alloc_count == 0);
                CHECK(guest.counters().alloc == guest.counters().free);
                CHECK(guest.shadows().all().empty());
            }
            CHECK(guest.read(kLinear).at() == 0x101'000);
            guest.machine.blow_shadows();
            CHECK(guest.mov_cr3(guest.root()));
            CHECK(guest.write(kLinear).at() == 0x101'000);
            CHECK(guest.machine.audit().empty());
        }
    }
}

TEST_CASE("machine: changes from outside", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(kLinear, 0x101'000);
        CHECK(guest.read(kLinear).ok());
        // The hypervisor knows: it drops what it shadowed there, at once.
        guest.set_entry(kLinear, 1, 0x102'000 | kAll);
        CHECK(guest.read(kLinear).at() == 0x102'000);
        guest.machine.clear_frame(Gfn::of(GuestPhysical{guest.entry_at(kLinear, 1)}));
        CHECK(guest.read(kLinear).page_fault(0, kLinear));
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("machine: CR3 has 32 bits outside long mode", "[machine]")
{
    // Long mode leaves bits above 31 in CR3; 2-level and PAE paging ignore them (SDM tables 4-3, 4-7).
    for (const Options& options : everywhere()) {
        Guest guest{Paging::two_level, options};
        guest.map(kLinear, 0x101'000);
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        REQUIRE(!guest.machine.wrmsr(0, efer::kMsr, efer::kLme));
        REQUIRE(guest.set_cr4(cr4::kPae, true));
        REQUIRE(guest.set_cr0(cr0::kPg, true));
        REQUIRE(guest.machine.registers(0).paging() == Paging::four_level);
        REQUIRE(!guest.machine.mov_cr3(0, 0x1'0000'0000 | guest.root().address().value()));
        REQUIRE(guest.set_cr0(cr0::kPg, false));
        REQUIRE(guest.set_cr4(cr4::kPae, false));
        REQUIRE(!guest.machine.wrmsr(0, efer::kMsr, 0));
        REQUIRE(guest.set_cr0(cr0::kPg, true));
        REQUIRE(guest.machine.registers(0).paging() == Paging::two_level);
        CHECK(guest.read(kLinear).ok());
    }
}

TEST_CASE("machine: from paging off through all modes and back", "[machine]")
{
    for (const Options& options : everywhere()) {
        Machine machine{config_of(options)};
        const auto put = [&](std::uint64_t at, std::uint64_t value) {
            machine.poke(GuestPhysical{at}, std::as_bytes(std::span{&value, 1}));
        };
        const auto at = [&](std::uint64_t linear) {
            const auto placed = machine.access(0, Guest::operand(AccessKind::write, linear));
            REQUIRE(placed.ok());
            return placed->parts[0].address.value();
        };
        // 2-level at 0x10000, PAE at 0x20000, 4-level at 0x30000, 5-level at 0x40000: 0 to 4M, or 2M.
        put(0x10000, P | W | U | PS);
        put(0x20000, 0x21000 | P);
        put(0x21000, 0x20'0000 | P | W | U | PS);
        put(0x30000, 0x31000 | P | W | U);
        put(0x31000, 0x32000 | P | W | U);
        put(0x32000, P | W | U | PS);
        put(0x40000, 0x30000 | P | W | U);

        CHECK(at(0x5000) == 0x5000);
        REQUIRE(!machine.mov_cr3(0, 0x10000));
        REQUIRE(!machine.mov_cr4(0, cr4::kPse));
        REQUIRE(!machine.mov_cr0(0, cr0::kPg | cr0::kPe));
        CHECK(at(0x5000) == 0x5000);
        REQUIRE(!machine.mov_cr3(0, 0x20000));
        REQUIRE(!machine.mov_cr4(0, cr4::kPae));  // loads the PDPTEs
        CHECK(machine.registers(0).paging() == Paging::pae);
        CHECK(at(0x5000) == 0x20'5000);
        REQUIRE(!machine.mov_cr0(0, cr0::kPe));
        CHECK(at(0x6000) == 0x6000);
        REQUIRE(!machine.wrmsr(0, efer::kMsr, efer::kLme));
        REQUIRE(!machine.mov_cr3(0, 0x30000));
        REQUIRE(!machine.mov_cr0(0, cr0::kPg | cr0::kPe));
        CHECK(machine.registers(0).paging() == Paging::four_level);
        CHECK(at(0x5000) == 0x5000);
        CHECK(machine.mov_cr4(0, cr4::kPae | cr4::kLa57));  // not in long mode
        REQUIRE(!machine.mov_cr0(0, cr0::kPe));
        REQUIRE(!machine.mov_cr4(0, cr4::kPae | cr4::kLa57));
        REQUIRE(!machine.mov_cr3(0, 0x40000));
        REQUIRE(!machine.mov_cr0(0, cr0::kPg | cr0::kPe));
        CHECK(machine.registers(0).paging() == Paging::five_level);
        CHECK(at(0x5000) == 0x5000);
        REQUIRE(!machine.mov_cr0(0, cr0::kPe));
        CHECK(at(0x7000) == 0x7000);
        CHECK(machine.audit().empty());
    }
}

TEST_CASE("machine: RAM up to the last machine frame", "[machine]")
{
    // The guest's RAM is all that 52 bits address: shadows find room nevertheless.
    MachineConfig config = config_of(under("write-protect"));
    config.cpuid.physical_address_bits = 52;
    config.ram = {{Gfn{0}, std::uint64_t{1} << 40}};
    config.p2m = {};
    Guest guest{Paging::four_level, config};
    guest.map(kLinear, 0x000f'ffff'ffff'f000);
    CHECK(guest.store(kLinear, 99).at() == 0x000f'ffff'ffff'f000);
    CHECK(guest.word(0x000f'ffff'ffff'f000) == 99);
    guest.map(0x80'0000'0000, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.store(0x80'0000'0000 | (guest.entry_at(kLinear, 1) & 0xfff), 0x101'000 | kAll).emulated());
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.machine.audit().empty());
    guest.machine.reset();
    CHECK(guest.word(0x101'000) == 0);
    CHECK(guest.machine.audit().empty());
}
