// SPDX-License-Identifier: Apache-2.0
//
// The second level by itself: which entries permit what, and which are none that the hardware knows (SDM vol.
// 3C 28.3.2 and 28.3.3; AMD APM vol. 2, 15.25.5 and 15.25.6). Entries are written into the P2M's tables bit
// by bit.
#include <array>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <mmusim/cpu/second_level.hpp>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

constexpr GuestPhysical kAddress{0x1234'5678};
constexpr std::array<AccessKind, 3> kKinds{AccessKind::read, AccessKind::write, AccessKind::fetch};

/// 4 GiB of RAM at the same place in the machine, in pages of 4 KiB.
struct Tables {
    SparseMemory memory;
    P2m p2m;
    SecondLevel second_level;
    NoSecondLevelTime time;

    Tables(P2mFormat format, SecondLevelSpec spec, int levels = 4)
        : p2m{FrameLayout{GuestRam{{{Gfn{0}, 0x100000}}}, P2mLayout{}},
              std::make_unique<P2mTables>(memory, format, levels, Mfn{0x800'0000}), 1}
        , second_level{memory, p2m, spec}
    {
        p2m.populate(Gfn::of(kAddress));
    }
    [[nodiscard]] std::pair<Mfn, unsigned> place_of(int level) const
    {
        Mfn table = p2m.tables()->root();
        for (int at = p2m.tables()->levels();; --at) {
            const auto offset = static_cast<unsigned>(kAddress.value() >> (12 + 9 * (at - 1)) & 511) * 8;
            if (at == level) return {table, offset};
            table = Mfn{(memory.load<std::uint64_t>(table.number(), offset) & pte::kFrame) >> 12};
        }
    }
    [[nodiscard]] std::uint64_t entry(int level) const
    {
        const auto [table, offset] = place_of(level);
        return memory.load<std::uint64_t>(table.number(), offset);
    }
    void set_entry(int level, std::uint64_t raw)
    {
        const auto [table, offset] = place_of(level);
        memory.store(table.number(), offset, raw);
    }
    [[nodiscard]] std::optional<SecondLevelPage> translate(AccessKind kind, bool of_table = false)
    {
        return second_level.translate({kAddress, kind, of_table}, time);
    }
};

}  // namespace

TEST_CASE("EPT: rights are those of all levels together", "[cpu][nested]")
{
    for (const int level : {1, 2, 3, 4}) {
        for (const std::uint64_t rights : {0u, 1u, 3u, 4u, 5u, 7u}) {
            Tables tables{P2mFormat::ept, {false, 0}};
            tables.set_entry(level, (tables.entry(level) & ~std::uint64_t{7}) | rights);
            for (const AccessKind kind : kKinds) {
                INFO("level " << level << ", rights " << rights << ", " << name_of(kind));
                const unsigned needs = kind == AccessKind::read ? 1 : kind == AccessKind::write ? 2 : 4;
                const auto page = tables.translate(kind);
                REQUIRE(page.has_value() == ((rights & needs) != 0));
                if (page) {
                    CHECK(page->address.value() == kAddress.value());
                    CHECK(page->rights ==
                          FrameRights{(rights & 1) != 0, (rights & 2) != 0, (rights & 4) != 0});
                } else {
                    const SecondLevelViolation& violation = tables.second_level.violation();
                    CHECK(violation.access.address == kAddress);
                    CHECK(violation.access.kind == kind);
                    CHECK_FALSE(violation.misconfigured);
                    CHECK(violation.permitted ==
                          FrameRights{(rights & 1) != 0, (rights & 2) != 0, (rights & 4) != 0});
                }
            }
        }
    }
}

TEST_CASE("EPT: misconfigured entries", "[cpu][nested]")
{
    struct Case {
        int level;
        std::uint64_t raw;
        const char* why;
    };
    const std::uint64_t frame = kAddress.value() & ~std::uint64_t{0x3fff'ffff};
    for (const Case& one :
         {Case{1, frame | 2 | 6 << 3, "write without read"},
          Case{1, frame | 6 | 6 << 3, "write and execute without read"},
          Case{3, frame | 2, "write without read, of a table"}, Case{1, frame | 7 | 2 << 3, "memory type 2"},
          Case{1, frame | 7 | 3 << 3, "memory type 3"}, Case{1, frame | 7 | 7 << 3, "memory type 7"},
          Case{2, frame | 7 | 6 << 3 | 0x80 | 1 << 12, "an address bit inside a 2 MiB page"},
          Case{3, frame | 7 | 6 << 3 | 0x80 | 1 << 21, "an address bit inside a 1 GiB page"},
          Case{4, frame | 7 | 0x80, "a page of level 4"}, Case{2, frame | 7 | 8, "bit 3 of a table's entry"},
          Case{4, frame | 7 | 0x40, "bit 6 of a table's entry"}}) {
        for (const AccessKind kind : kKinds) {
            INFO(one.why << ", " << name_of(kind));
            Tables tables{P2mFormat::ept, {false, 32}};
            tables.set_entry(one.level, one.raw);
            CHECK_FALSE(tables.translate(kind).has_value());
            CHECK(tables.second_level.violation().misconfigured);
            tables.second_level.count_violation();
            CHECK(tables.second_level.counters().misconfigurations == 1);
        }
    }
}

TEST_CASE("NPT: rights are those of a user's access", "[cpu][nested]")
{
    for (const int level : {1, 2, 3, 4}) {
        for (std::uint64_t bits = 0; bits < 8; ++bits) {
            for (const bool nx : {false, true}) {
                Tables tables{P2mFormat::npt, {false, 0}};
                tables.set_entry(
                    level, (tables.entry(level) & ~std::uint64_t{7}) | bits | (nx ? pte::kNoExecute : 0));
                for (const AccessKind kind : kKinds) {
                    INFO("level " << level << ", bits " << bits << ", NX " << nx << ", " << name_of(kind));
                    bool permitted = (bits & 5) == 5;
                    if (kind == AccessKind::write) permitted &= (bits & 2) != 0;
                    if (kind == AccessKind::fetch) permitted &= !nx;
                    CHECK(tables.translate(kind).has_value() == permitted);
                }
                // An access to the guest's tables is a write, whatever it is.
                CHECK(tables.translate(AccessKind::read, true).has_value() == (bits == 7));
            }
        }
    }
}

TEST_CASE("EPT: accesses to the guest's tables are writes only where A and D are in use", "[cpu][nested]")
{
    for (const bool ad_bits : {false, true}) {
        Tables tables{P2mFormat::ept, {ad_bits, 0}};
        tables.set_entry(1, tables.entry(1) & ~std::uint64_t{2});
        CHECK(tables.translate(AccessKind::read).has_value());
        CHECK(tables.translate(AccessKind::read, true).has_value() == !ad_bits);
        if (!ad_bits) continue;
        CHECK(tables.second_level.violation().access.kind == AccessKind::write);
        CHECK(tables.second_level.violation().access.of_table);
        tables.second_level.count_violation();
        CHECK(tables.second_level.counters().of_tables == 1);
    }
}

TEST_CASE("addresses beyond the levels of the tables are violations without a load", "[cpu][nested]")
{
    for (const int levels : {4, 5}) {
        Tables tables{P2mFormat::ept, {false, 0}, levels};
        const GuestPhysical beyond{std::uint64_t{1} << 48};
        CHECK_FALSE(
            tables.second_level.translate({beyond, AccessKind::read, false}, tables.time).has_value());
        CHECK(tables.second_level.counters().memory_references == (levels == 4 ? 0u : 1u));
    }
}

TEST_CASE("the nested TLB keeps what is permitted, and a write walks until D is set", "[cpu][nested]")
{
    for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
        for (const bool ad_bits : {false, true}) {
            Tables tables{format, {ad_bits, 4}};
            const auto walks_of = [&](AccessKind kind) {
                const std::uint64_t before = tables.second_level.counters().walks;
                CHECK(tables.translate(kind).has_value());
                return tables.second_level.counters().walks - before;
            };
            INFO((format == P2mFormat::ept ? "EPT" : "NPT") << ", A/D " << ad_bits);
            CHECK(walks_of(AccessKind::read) == 1);
            CHECK(walks_of(AccessKind::read) == 0);
            const bool tracked = ad_bits || format == P2mFormat::npt;
            CHECK(walks_of(AccessKind::write) == (tracked ? 1u : 0u));
            CHECK(walks_of(AccessKind::write) == 0);
            CHECK(walks_of(AccessKind::fetch) == 0);
            tables.second_level.drop_all();
            CHECK(walks_of(AccessKind::read) == 1);
            std::vector<std::string> violations;
            tables.second_level.audit(violations);
            CHECK(violations.empty());
            // What is cached, and no longer so in the P2M, is found.
            tables.p2m.set(Gfn::of(kAddress), 1, {Mfn{0x900'0000}, P2mType::ram_rw, MemAccess::rwx});
            tables.second_level.audit(violations);
            CHECK(violations.size() == 1);
        }
    }
}
