// SPDX-License-Identifier: Apache-2.0
//
// The hint that an address space is being torn down (reference/xen.md B9: "Pagetable-dying hypercall", "Early
// unshadow", step 14; B11: the flag of the vCPU).
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;
constexpr std::uint64_t kWindow = 0x4000'0000;  ///< maps tables; under other tables than kLinear

Guest guest_of(Paging paging, unsigned vcpus = 1, const std::string& policy = "xen")
{
    Options options = under(policy);
    options.vcpus = vcpus;
    return Guest{paging, options};
}

void die(Guest& guest, Gfn root, unsigned vcpu = 0)
{
    guest.machine.pagetable_dying(vcpu, root.address());
}

/// Whether the root's shadow has the entry for the address.
bool hooked(const Guest& guest, Gfn root, unsigned index)
{
    for (const ShadowId id : guest.shadows().of_frame(root)) {
        if (guest.shadows()[id].key.type.top())
            return (guest.shadows().entry({id, static_cast<std::uint16_t>(index)}) & P) != 0;
    }
    return false;
}

/// A page in a second L2 table, whose entries are at kWindow.
struct Torn {
    Guest guest;
    std::uint64_t table;

    explicit Torn(unsigned vcpus = 1, const std::string& policy = "xen")
        : guest{guest_of(Paging::four_level, vcpus, policy)}
    {
        guest.map(kLinear, 0x101'000);
        table = guest.entry_at(kLinear, 2) & ~std::uint64_t{0xfff};
        guest.map(kWindow, table);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.read(kWindow).ok());
    }
    /// A zero to the next entry of the table; the tables given up early.
    std::uint64_t zero(unsigned vcpu = 0)
    {
        const std::uint64_t before = guest.counters().early_unshadow;
        CHECK(guest.store(kWindow + 0x800 + 8 * next_++, 0, 8, vcpu).ok());
        return guest.counters().early_unshadow - before;
    }

private:
    std::uint64_t next_ = 0;
};

}  // namespace

TEST_CASE("a dying root: its user entries are unhooked, the kernel's stay, and nothing else changes",
          "[shadow]")
{
    for (const char* policy : {"xen", "xen-2006", "write-protect", "tlb-like"}) {
        INFO(policy);
        Guest guest = guest_of(Paging::four_level, 1, policy);
        constexpr std::uint64_t kKernel = 0xffff'8880'0000'0000;
        guest.map(kLinear, 0x101'000);
        guest.map(kKernel, 0x102'000);
        guest.set_entry(kKernel, 4, guest.entry(kKernel, 4) & ~U);
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.read(kKernel).ok());
        CHECK(hooked(guest, guest.root(), 0));
        CHECK(hooked(guest, guest.root(), kKernel >> 39 & 511));
        const MachineCounters before = guest.machine.counters();
        die(guest, guest.root());
        CHECK(guest.machine.counters().exits - before.exits == 1);
        CHECK(guest.machine.counters().flushes - before.flushes == 1);
        CHECK_FALSE(hooked(guest, guest.root(), 0));
        CHECK(hooked(guest, guest.root(), kKernel >> 39 & 511));
        CHECK(guest.machine.audit().empty());
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(guest.read(kKernel).at() == 0x102'000);
        CHECK(guest.machine.audit().empty());
    }
    Guest native{Paging::four_level, guest::native()};
    die(native, native.root());  // no hypervisor with shadows is asked
}

TEST_CASE("a dying root of 2-level and PAE guests", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::five_level}) {
        Guest guest = guest_of(paging);
        guest.map(kLinear, 0x101'000);
        CHECK(guest.read(kLinear).ok());
        const Gfn top =
            paging == Paging::pae ? Gfn{guest.word(guest.root().address().value()) >> 12} : guest.root();
        const unsigned index = paging == Paging::five_level ? 0 : 2;
        CHECK(hooked(guest, top, index));
        if (paging == Paging::two_level) CHECK(hooked(guest, top, index + 1));
        die(guest, guest.root());
        CHECK_FALSE(hooked(guest, top, index));
        if (paging == Paging::two_level) CHECK_FALSE(hooked(guest, top, index + 1));
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("a vCPU that has told of a dying table: one zero gives a table up", "[shadow]")
{
    Torn before;
    CHECK(before.zero() == 0);
    CHECK(before.zero() == 1);
    Torn after;
    die(after.guest, after.guest.root());
    CHECK(after.guest.read(kLinear).ok());
    CHECK(after.guest.read(kWindow).ok());
    CHECK(after.zero() == 1);
    CHECK(after.guest.machine.audit().empty());
}

TEST_CASE("once the domain tells, zeros of another vCPU give nothing up", "[shadow]")
{
    Torn torn{2};
    CHECK(torn.guest.read(kWindow, 8, 1).ok());
    die(torn.guest, Gfn{0x3f0}, 0);  // a root without shadows counts too
    for (unsigned i = 0; i < 4; ++i) CHECK(torn.zero(1) == 0);
    CHECK(torn.zero(0) == 1);
}

TEST_CASE("once the domain tells, zeros give no top-level table up", "[shadow]")
{
    for (const bool tells : {false, true}) {
        Guest guest = guest_of(Paging::four_level);
        const Gfn other = guest.new_table();
        guest.map(kWindow, other.address().value());
        REQUIRE(guest.mov_cr3(other));
        REQUIRE(guest.mov_cr3(guest.root()));
        CHECK(guest.shadows().is_table(other));
        if (tells) die(guest, Gfn{0x3f0});
        CHECK(guest.store(kWindow + 0x100, 0).ok());
        CHECK(guest.store(kWindow + 0x108, 0).ok());
        CHECK(guest.counters().early_unshadow == (tells ? 0 : 1));
        CHECK(guest.shadows().is_table(other) == tells);
    }
}

TEST_CASE("the vCPU's flag falls when a fixup of a table that is not dying is torn down", "[shadow]")
{
    Torn torn;
    Guest& guest = torn.guest;
    die(guest, guest.root());
    guest.map(kWindow + 0x1000, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(kWindow).ok());
    CHECK_FALSE(guest.store(kWindow + 0x1800, 0x1000).emulated());
    CHECK(guest.counters().unsync == 1);
    REQUIRE(guest.mov_cr3(guest.root()));
    CHECK(guest.counters().writeable_h_7 == 1);
    for (unsigned i = 0; i < 4; ++i) CHECK(torn.zero() == 0);
}

TEST_CASE("a write to a dying root gives it up, unless it is running", "[shadow]")
{
    for (const bool running : {false, true}) {
        INFO(running);
        Guest guest = guest_of(Paging::four_level, 2);
        const Gfn other = guest.new_table();
        guest.map(kWindow, other.address().value());
        REQUIRE(guest.mov_cr3(other));
        REQUIRE(guest.mov_cr3(guest.root()));
        if (running) REQUIRE(guest.mov_cr3(other, 1));
        die(guest, other);
        CHECK(guest.counters().unshadow == 0);
        CHECK(guest.store(kWindow + 0x100, 0x1234'5000).emulated());
        CHECK(guest.counters().unshadow == (running ? 0 : 1));
        CHECK(guest.shadows().is_table(other) == running);
        CHECK(guest.load_word(kWindow + 0x100) == 0x1234'5000);
        CHECK(guest.machine.audit().empty());
        if (running) continue;
        // The mark went with the shadow: a new life as a root.
        CHECK(guest.store(kWindow + 0x100, 0).ok());
        REQUIRE(guest.mov_cr3(other));
        REQUIRE(guest.mov_cr3(guest.root()));
        CHECK(guest.store(kWindow + 0x100, 0x1234'5000).emulated());
        CHECK(guest.shadows().is_table(other));
    }
}
