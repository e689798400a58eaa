// SPDX-License-Identifier: Apache-2.0
//
// Policies: the catalog, what write-protect keeps over a CR3 write and tlb-like drops, and a policy that
// is not the library's, made and put in a catalog here.
#include "support/catch.hpp"
#include "support/guest_builder.hpp"

using namespace guest;

namespace {

constexpr std::uint64_t kLinear = 0x40'0000;

/// Coherent as write-protect is, but each MOV CR3 drops everything; and it counts what it is asked.
class Forgetful final : public ShadowPolicy {
public:
    struct Asked {
        unsigned declared = 0;
        std::vector<GuestFlush> flushes;
    };
    explicit Forgetful(Asked& asked) : asked_{&asked} {}

    [[nodiscard]] PolicyDeclaration declared() const override
    {
        ++asked_->declared;
        return {.sizes = {.out_of_sync = 0}};
    }
    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush flush) override
    {
        asked_->flushes.push_back(flush);
        return flush == GuestFlush::load_cr3 ? FlushAnswer::drop_tree : FlushAnswer::nothing;
    }

private:
    Asked* asked_;
};

}  // namespace

TEST_CASE("policy: declarations whose parts do not go together are refused", "[shadow]")
{
    const auto refused = [](const PolicyDeclaration& declared) {
        CHECK_THROWS_AS(require_sound(declared), BadPolicy);
    };
    CHECK_NOTHROW(require_sound({}));
    refused({.keyed_by = ShadowKeying::position});
    refused({.keyed_by = ShadowKeying::vcpu});
    refused({.stale_levels = 0b110});
    refused({.repair = Repair::drop});
    refused({.stale_levels = 0b110, .out_of_sync = OutOfSyncList::per_domain, .repair = Repair::rederive});
    refused({.keyed_by = ShadowKeying::frame_and_access});
    refused({.sizes = {.prefetch_window = 0}});
    refused({.sizes = {.prefetch_window = 24}, .prefetch_aligned = true});
    refused({.switches = kAllShadowSwitches, .sizes = {.virtual_tlb = 0}});
}

TEST_CASE("policy catalog: names", "[shadow]")
{
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    REQUIRE(catalog.entries().size() == 11);
    for (const auto& entry : catalog.entries()) {
        CHECK_NOTHROW(require_sound(entry.make()->declared()));
        CHECK_FALSE(entry.description.empty());
        CHECK(entry.make() != nullptr);
        CHECK(catalog.find(entry.name)() != nullptr);
    }
    CHECK(catalog.find("write-protect")()->declared().coherent());
    CHECK(catalog.find("xen-2006")()->declared().coherent());
    CHECK(catalog.find(kDefaultShadowPolicy)()->declared().stale_levels == 0b10);
    CHECK_FALSE(catalog.find("tlb-like")()->declared().coherent());
    CHECK_FALSE(catalog.find("tlb-like")()->declared().protects_tables);
    try {
        (void)catalog.find("nope");
        FAIL("found");
    } catch (const UnknownPolicy& unknown) {
        const std::string what = unknown.what();
        CHECK(what.find("nope") != std::string::npos);
        CHECK(what.find("write-protect") != std::string::npos);
        CHECK(what.find("tlb-like") != std::string::npos);
    }
}

TEST_CASE("policy catalog: a policy from outside the library", "[shadow]")
{
    Forgetful::Asked asked;
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    catalog.add("forgetful", "drops everything on MOV CR3",
                [&] { return std::make_unique<Forgetful>(asked); });
    MachineConfig config = config_of(under("write-protect"));
    config.policy = catalog.find("forgetful");
    Guest guest{Paging::four_level, config};
    CHECK(asked.declared >= 1);
    asked.flushes.clear();

    guest.map(kLinear, 0x101'000);
    guest.map(0x80'0000'0000, guest.entry_at(kLinear, 1) & ~std::uint64_t{0xfff});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.store(0x80'0000'0000 | (guest.entry_at(kLinear, 1) & 0xfff), 0x102'000 | kAll).emulated());
    CHECK(guest.read(kLinear).at() == 0x102'000);
    CHECK(asked.flushes.empty());

    CHECK(guest.invlpg(kLinear));
    CHECK(guest.read(0x50'0000).page_fault(0, 0x50'0000));
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().fault == faults);
    CHECK(guest.mov_cr3(guest.root()));
    CHECK(asked.flushes ==
          std::vector<GuestFlush>{GuestFlush::address, GuestFlush::page_fault, GuestFlush::load_cr3});
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().fault == faults + 1);
    CHECK(guest.set_cr4(cr4::kPge, true));
    CHECK(asked.flushes.back() == GuestFlush::everything);
    CHECK(guest.machine.audit().empty());

    // A name that is there already is replaced.
    catalog.add("forgetful", "now the other", catalog.find("tlb-like"));
    CHECK(catalog.entries().size() == 12);
    CHECK_FALSE(catalog.find("forgetful")()->declared().protects_tables);
}

TEST_CASE("policies: write-protect finds a root again", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        Guest guest{paging, under("write-protect")};
        const Gfn other = guest.new_table();
        guest.map(kLinear, 0x101'000);
        guest.map_in(other, kLinear, 0x102'000);
        CHECK(guest.mov_cr3(guest.root()));
        CHECK(guest.read(kLinear).at() == 0x101'000);
        CHECK(guest.mov_cr3(other));
        CHECK(guest.read(kLinear).at() == 0x102'000);
        const ShadowCounters before = guest.counters();
        for (int i = 0; i < 5; ++i) {
            CHECK(guest.mov_cr3(guest.root()));
            CHECK(guest.read(kLinear).at() == 0x101'000);
            CHECK(guest.mov_cr3(other));
            CHECK(guest.read(kLinear).at() == 0x102'000);
        }
        CHECK(guest.counters().alloc == before.alloc);
        CHECK(guest.counters().free == before.free);
        CHECK(guest.counters().fault == before.fault);
        CHECK(guest.counters().hash_lookups == before.hash_lookups + 10);
        CHECK(guest.counters().hash_lookup_miss == before.hash_lookup_miss);
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("policies: tlb-like drops all but the root on a CR3 write", "[shadow]")
{
    for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
        Guest guest{paging, under("tlb-like")};
        guest.map(kLinear, 0x101'000);
        CHECK(guest.mov_cr3(guest.root()));
        const std::uint64_t roots = guest.counters().alloc_count;
        CHECK(roots == (paging == Paging::two_level ? 4 : 1));
        CHECK(guest.read(kLinear).ok());
        CHECK(guest.counters().alloc_count > roots);
        const std::uint64_t fixed = guest.counters().fault_fixed;
        for (std::uint64_t i = 1; i <= 3; ++i) {
            CHECK(guest.mov_cr3(guest.root()));
            CHECK(guest.counters().alloc_count == roots);
            CHECK(guest.counters().alloc - guest.counters().free == 1);
            CHECK(guest.read(kLinear).ok());
            CHECK(guest.counters().fault_fixed == fixed + i);
        }
        CHECK(guest.machine.audit().empty());
    }
}

TEST_CASE("policies: tlb-like INVLPG drops one entry", "[shadow]")
{
    Guest guest{Paging::four_level, under("tlb-like")};
    guest.map(kLinear, 0x101'000);
    guest.map(kLinear + 0x1000, 0x102'000);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(kLinear + 0x1000).ok());
    const ShadowCounters before = guest.counters();
    CHECK(guest.invlpg(kLinear));
    CHECK(guest.counters().alloc_count == before.alloc_count);
    CHECK(guest.read(kLinear + 0x1000).ok());
    CHECK(guest.counters().fault == before.fault);
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().fault == before.fault + 1);
}

TEST_CASE("policies: write-protect INVLPG drops nothing", "[shadow]")
{
    Guest guest{Paging::four_level, under("write-protect")};
    guest.map(kLinear, 0x101'000);
    CHECK(guest.read(kLinear).ok());
    const std::uint64_t faults = guest.counters().fault;
    CHECK(guest.invlpg(kLinear));
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.counters().fault == faults);
    CHECK(guest.counters().invlpg == 1);
}

TEST_CASE("policies: a fault after a blow has room for the root and the path", "[shadow]")
{
    // Two roots of four pages, and level-1 tables of two.
    MachineConfig config = config_of(under("write-protect"));
    config.vcpus = 2;
    config.shadow_pool_pages = 12;
    Guest guest{Paging::two_level, config};
    guest.load(1, guest.new_table());
    guest.map(kLinear, 0x101'000);
    guest.map(kLinear + 0x40'0000, 0x102'000);
    guest.map_in(Gfn{0x11}, kLinear, 0x103'000);
    guest.machine.blow_shadows();
    CHECK(guest.read(kLinear).ok());
    CHECK(guest.read(kLinear + 0x40'0000).ok());
    CHECK(guest.shadows().free_pages() == 4);
    CHECK(guest.read(kLinear, 8, 1).at() == 0x103'000);
    CHECK(guest.machine.audit().empty());
}

TEST_CASE("policies: populating step by step gets on where the pool is short", "[shadow]")
{
    // The first vCPU's entries give way first: also while it is the one that needs room.
    MachineConfig config = config_of(under("write-protect", Populate::step));
    config.vcpus = 2;
    config.shadow_pool_pages = 12;
    Guest guest{Paging::two_level, config};
    guest.load(1, guest.new_table());
    guest.map(kLinear, 0x101'000);
    guest.map_in(Gfn{0x11}, kLinear, 0x103'000);
    CHECK(guest.read(kLinear, 8, 1).at() == 0x103'000);
    CHECK(guest.read(kLinear).at() == 0x101'000);
    CHECK(guest.read(kLinear).at() == 0x101'000);
}
