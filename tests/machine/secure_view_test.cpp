// SPDX-License-Identifier: Apache-2.0
//
// The secure view (docs/secure-view.md), statement by statement: what a vCPU sees of a secure frame in and
// out of secure mode, at once and whatever was mapped before, under every policy. Random programs are in
// refinement_test.cpp.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kSecret = 0x40'0000;  // maps the frame 0x101
constexpr std::uint64_t kAlias = 0x40'5000;   // maps it too
constexpr std::uint64_t kOther = 0x40'1000;   // maps the frame 0x102
constexpr Gfn kSecretFrame{0x101};
constexpr std::uint32_t kRead = pf::kPresent;
constexpr std::uint32_t kWrite = pf::kPresent | pf::kWrite;

constexpr std::array<Paging, 4> kModes{Paging::two_level, Paging::pae, Paging::four_level,
                                       Paging::five_level};

struct SecretGuest : Guest {
    explicit SecretGuest(Paging paging, MachineConfig config) : Guest{paging, std::move(config)}
    {
        map(kSecret, 0x101'000);
        map(kAlias, 0x101'000);
        map(kOther, 0x102'000);
    }
    explicit SecretGuest(Paging paging, const Options& options) : SecretGuest{paging, config_of(options)} {}
};

/// Calls `check` for every policy, with and without TLBs.
template <class Check>
void under_each_policy(Check check, unsigned vcpus = 1)
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        for (const char* const cpu : {"", "golden_cove"}) {
            INFO(policy.name << " " << cpu);
            Options options = under(policy.name);
            options.vcpus = vcpus;
            MachineConfig config = config_of(options);
            if (*cpu != 0) config.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(cpu));
            check(config);
        }
    }
}

void check_audit(const Guest& guest)
{
    const auto violations = guest.machine.audit();
    INFO((violations.empty() ? "" : violations.front()));
    CHECK(violations.empty());
}

}  // namespace

TEST_CASE("secure view: a frame is there in secure mode alone", "[machine][secure]")
{
    for (const Paging paging : kModes) {
        under_each_policy([&](const MachineConfig& config) {
            SecretGuest guest{paging, config};
            CHECK(guest.write(kSecret).at() == 0x101'000);  // mapped before it was secure
            guest.machine.set_secure_frames({kSecretFrame});
            CHECK(guest.read(kSecret).page_fault(kRead, kSecret));
            CHECK(guest.write(kAlias + 8).page_fault(kWrite, kAlias + 8));
            CHECK(guest.read(kOther).at() == 0x102'000);

            guest.machine.set_secure_mode(0, true);
            CHECK(guest.machine.shadow()->secure_mode(0));
            CHECK(guest.write(kSecret).at() == 0x101'000);
            CHECK(guest.read(kAlias).at() == 0x101'000);
            CHECK(guest.read(kOther).at() == 0x102'000);
            check_audit(guest);

            guest.machine.set_secure_mode(0, false);
            CHECK(guest.read(kAlias).page_fault(kRead, kAlias));
            CHECK(guest.write(kSecret).page_fault(kWrite, kSecret));
            CHECK(guest.read(kOther).at() == 0x102'000);
            check_audit(guest);

            // The list replaces the one before.
            guest.machine.set_secure_frames({Gfn{0x102}});
            CHECK(guest.read(kSecret).at() == 0x101'000);
            CHECK(guest.read(kOther).page_fault(kRead, kOther));
            guest.machine.set_secure_frames({});
            CHECK(guest.read(kOther).at() == 0x102'000);
            check_audit(guest);
        });
    }
}

TEST_CASE("secure view: the error code is that of a page that denies", "[machine][secure]")
{
    SecretGuest guest{Paging::four_level, under("xen")};
    guest.machine.set_secure_frames({kSecretFrame});
    const auto code = [&](AccessKind kind, bool user) {
        const Seen seen = guest.access(Guest::operand(kind, kSecret, 1, user));
        return seen.fault ? seen.fault->error_code : 0;
    };
    CHECK(code(AccessKind::read, true) == (pf::kPresent | pf::kUser));
    CHECK(code(AccessKind::write, true) == (pf::kPresent | pf::kUser | pf::kWrite));
    CHECK(code(AccessKind::fetch, false) == (pf::kPresent | pf::kInstruction));
    // What the guest's own tables refuse stays as it is.
    guest.set_entry(kSecret, 1, 0);
    CHECK(code(AccessKind::read, false) == 0);
}

TEST_CASE("secure view: with paging off too", "[machine][secure]")
{
    under_each_policy([](const MachineConfig& config) {
        Machine machine{config};
        machine.set_secure_frames({kSecretFrame});
        const auto fetch = Guest::operand(AccessKind::fetch, 0x101'000, 1);
        const auto refused = machine.access(0, fetch);
        REQUIRE(!refused);
        CHECK(refused.error().vector == Vector::page_fault);
        CHECK(refused.error().error_code == pf::kPresent);
        CHECK(refused.error().address == LinearAddress{0x101'000});
        machine.set_secure_mode(0, true);
        CHECK(machine.access(0, fetch));
    });
}

TEST_CASE("secure view: a refused access leaves accessed and dirty bits alone", "[machine][secure]")
{
    under_each_policy([](const MachineConfig& config) {
        SecretGuest guest{Paging::four_level, config};
        guest.map(kSecret, 0x101'000, P | W | U);
        guest.set_entry(kSecret, 2, guest.entry(kSecret, 2) & ~A);
        guest.machine.set_secure_frames({kSecretFrame});
        CHECK(guest.write(kSecret).page_fault(kWrite, kSecret));
        CHECK((guest.entry(kSecret, 1) & (A | D)) == 0);
        CHECK((guest.entry(kSecret, 2) & A) == 0);
        guest.machine.set_secure_mode(0, true);
        CHECK(guest.write(kSecret).ok());
        CHECK((guest.entry(kSecret, 1) & (A | D)) == (A | D));
    });
}

TEST_CASE("secure view: an instruction that is refused does nothing", "[machine][secure]")
{
    under_each_policy([](const MachineConfig& config) {
        SecretGuest guest{Paging::four_level, config};
        guest.map(kOther, 0x102'000, P | W | U | A);
        guest.machine.set_secure_frames({kSecretFrame});
        const std::vector<Operand> operands{Guest::operand(AccessKind::write, kOther),
                                            Guest::operand(AccessKind::read, kSecret)};
        Execution execution;
        guest.machine.execute(0, operands, Restart::instruction, execution);
        REQUIRE(execution.fault);
        CHECK(execution.fault->address == LinearAddress{kSecret});
        CHECK(execution.placed.size() == 1);
        CHECK((guest.entry(kOther, 1) & D) == 0);
    });
}

TEST_CASE("secure view: each vCPU has its mode, on the same tables", "[machine][secure]")
{
    under_each_policy(
        [](const MachineConfig& config) {
            SecretGuest guest{Paging::four_level, config};
            guest.machine.set_secure_frames({kSecretFrame});
            guest.machine.set_secure_mode(1, true);
            for (int i = 0; i < 3; ++i) {
                CHECK(guest.read(kSecret, 8, 0).page_fault(kRead, kSecret));
                CHECK(guest.write(kSecret, 8, 1).at() == 0x101'000);
                CHECK(guest.read(kOther, 8, 0).at() == 0x102'000);
                CHECK(guest.read(kOther, 8, 1).at() == 0x102'000);
            }
            check_audit(guest);
        },
        2);
}

TEST_CASE("secure view: tables that both views use have two shadows", "[machine][secure]")
{
    SecretGuest guest{Paging::four_level, under("write-protect")};
    CHECK(guest.read(kOther).ok());
    CHECK(guest.counters().alloc_count == 4);
    guest.machine.set_secure_mode(0, true);
    CHECK(guest.read(kOther).ok());
    CHECK(guest.counters().alloc_count == 8);
    // And find them again: nothing is built anew.
    const std::uint64_t fixed = guest.counters().fault_fixed;
    for (const bool on : {false, true, false}) {
        guest.machine.set_secure_mode(0, on);
        CHECK(guest.read(kOther).ok());
    }
    CHECK(guest.counters().alloc_count == 8);
    CHECK(guest.counters().fault_fixed == fixed);
}

TEST_CASE("secure view: a superpage with a secure frame in it", "[machine][secure]")
{
    constexpr std::uint64_t kLarge = 0x80'0000;
    under_each_policy([](const MachineConfig& config) {
        Guest guest{Paging::four_level, config};
        guest.map(kLarge, 0x20'0000, kAll, 2);
        CHECK(guest.read(kLarge + 0x3000).ok());
        guest.machine.set_secure_frames({Gfn{0x203}});
        CHECK(guest.read(kLarge + 0x2000).at() == 0x202'000);  // a fault may fill the entries after its own
        CHECK(guest.read(kLarge + 0x3000).page_fault(kRead, kLarge + 0x3000));
        CHECK(guest.read(kLarge + 0x4000).at() == 0x204'000);
        // The last bytes before it, and one in it.
        CHECK(guest.read(kLarge + 0x2ffc, 8).page_fault(kRead, kLarge + 0x3000));
        check_audit(guest);
        guest.machine.set_secure_mode(0, true);
        CHECK(guest.read(kLarge + 0x3000).at() == 0x203'000);
        check_audit(guest);
    });
}

TEST_CASE("secure view: entries that the guest writes are propagated by the same rule", "[machine][secure]")
{
    constexpr std::uint64_t kWindow = 0x80'0000'0000;  // on the leaf table
    for (const std::string policy : {"xen", "xen-2006", "write-protect", "tlb-like"}) {
        INFO(policy);
        Options options = under(policy);
        options.vcpus = 2;
        SecretGuest guest{Paging::four_level, options};
        const std::uint64_t entry = guest.entry_at(kOther, 1);
        guest.map(kWindow, entry & ~std::uint64_t{0xfff});
        guest.machine.set_secure_frames({kSecretFrame});
        guest.machine.set_secure_mode(1, true);
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.read(kOther, 8, vcpu).at() == 0x102'000);
        // The ordinary vCPU writes the entry; the flush is due on both.
        CHECK(guest.store(kWindow | (entry & 0xfff), 0x101'000 | kAll, 8, 0).ok());
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.invlpg(kOther, vcpu));
        CHECK(guest.read(kOther, 8, 0).page_fault(kRead, kOther));
        CHECK(guest.read(kOther, 8, 1).at() == 0x101'000);
        check_audit(guest);
        // And back, by the secure one.
        CHECK(guest.store(kWindow | (entry & 0xfff), 0x103'000 | kAll, 8, 1).ok());
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.invlpg(kOther, vcpu));
        for (const unsigned vcpu : {0u, 1u}) CHECK(guest.read(kOther, 8, vcpu).at() == 0x103'000);
        check_audit(guest);
    }
}

TEST_CASE("secure view: a table in a secure frame is walked, but not touched", "[machine][secure]")
{
    constexpr std::uint64_t kWindow = 0x80'0000'0000;
    under_each_policy([](const MachineConfig& config) {
        SecretGuest guest{Paging::four_level, config};
        const std::uint64_t entry = guest.entry_at(kOther, 1);
        guest.map(kWindow, entry & ~std::uint64_t{0xfff});
        CHECK(guest.read(kOther).ok());
        CHECK(guest.store(kWindow | 0x800, 0).ok());  // so that fast emulation has a hint
        guest.machine.set_secure_frames({Gfn::of(GuestPhysical{entry})});
        CHECK(guest.write(kWindow | 0x800).page_fault(kWrite, kWindow | 0x800));
        CHECK(guest.read(kOther).at() == 0x102'000);
        guest.machine.set_secure_mode(0, true);
        CHECK(guest.store(kWindow | 0x800, 0).ok());
        guest.machine.set_secure_mode(0, false);
        CHECK(guest.write(kWindow | 0x800).page_fault(kWrite, kWindow | 0x800));
        check_audit(guest);
    });
}

TEST_CASE("secure view: what is an exit, and what a reset leaves", "[machine][secure]")
{
    SecretGuest guest{Paging::four_level, under("xen")};
    const std::uint64_t before = guest.machine.counters().exits;
    guest.machine.set_secure_frames({kSecretFrame});
    CHECK(guest.machine.counters().exits == before);
    guest.machine.set_secure_mode(0, true);
    CHECK(guest.machine.counters().exits == before + 1);
    guest.machine.set_secure_mode(0, true);
    CHECK(guest.machine.counters().exits == before + 2);
    guest.machine.reset();
    CHECK(!guest.machine.shadow()->secure_mode(0));
    CHECK(guest.read(0x101'000).ok());
}

TEST_CASE("secure view: a page fault in one view holds for the other", "[machine][secure]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        INFO(policy.name);
        Guest guest{Paging::four_level, under(policy.name)};
        guest.map(0x40'0000, 0x101'000);
        const std::uint64_t entry = guest.entry_at(0x40'0000, 1);
        guest.map(0x8000'0000, entry & ~std::uint64_t{0xfff});
        CHECK(guest.read(0x40'0000).ok());
        guest.machine.set_secure_mode(0, true);
        CHECK(guest.store(0x8000'0000 | (entry & 0xfff), 0).ok());
        // Which a CPU need not have seen so far; but after a fault nothing of the page is cached.
        if (guest.read(0x40'0000).ok()) continue;
        guest.machine.set_secure_mode(0, false);
        CHECK_FALSE(guest.read(0x40'0000).ok());
    }
}
