// SPDX-License-Identifier: Apache-2.0
//
// The P2M's entries and where it keeps them: what the types and access types permit (the tables of
// reference/xen.md C1 and C5, written out here again), the bits of EPT and NPT entries, splitting and
// merging, and the tables against a plain list, by random changes.
#include <array>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <mmusim/p2m/p2m.hpp>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

constexpr Mfn kLastTable{0x3f'ffff};

std::string letters(FrameRights rights)
{
    return std::string{rights.read ? "r" : "-"} + (rights.write ? "w" : "-") + (rights.execute ? "x" : "-");
}

/// As the hardware reads an entry.
FrameRights rights_in(P2mFormat format, std::uint64_t raw)
{
    if (format == P2mFormat::ept) return {(raw & 1) != 0, (raw & 2) != 0, (raw & 4) != 0};
    if ((raw & 1) == 0) return {};
    return {true, (raw & 2) != 0, raw >> 63 == 0};
}

P2mEntry ram(std::uint64_t mfn, P2mType type = P2mType::ram_rw)
{
    return {Mfn{mfn}, type, MemAccess::rwx};
}

struct Tables {
    explicit Tables(P2mFormat format, int levels = 4) : tables{memory, format, levels, kLastTable} {}

    SparseMemory memory;
    P2mTables tables;
};

std::vector<std::string> violations_of(const P2mStore& store)
{
    std::vector<std::string> violations;
    store.audit(violations);
    return violations;
}

std::vector<std::string> violations_of(const P2m& p2m)
{
    std::vector<std::string> violations;
    p2m.audit(violations);
    return violations;
}

/// Words of the table, as a walker finds them.
std::uint64_t entry_in(const SparseMemory& memory, std::uint64_t table, unsigned i)
{
    return memory.load<std::uint64_t>(table, i * 8);
}

}  // namespace

TEST_CASE("p2m: names and rights of the types are those of the table", "[p2m]")
{
    struct Row {
        const char* name;
        const char* rights;
        bool frame;
    };
    constexpr std::array<Row, 16> kTable{{{"ram_rw", "rwx", true},
                                          {"invalid", "---", false},
                                          {"ram_logdirty", "r-x", true},
                                          {"ram_ro", "r-x", true},
                                          {"mmio_dm", "---", false},
                                          {"mmio_direct", "rwx", true},
                                          {"populate_on_demand", "---", false},
                                          {"grant_map_rw", "rw-", true},
                                          {"grant_map_ro", "r--", true},
                                          {"ram_paging_out", "---", true},
                                          {"ram_paged", "---", false},
                                          {"ram_paging_in", "---", false},
                                          {"ram_shared", "r-x", true},
                                          {"ram_broken", "---", false},
                                          {"map_foreign", "rw-", true},
                                          {"ioreq_server", "rw-", true}}};
    const std::set<std::string> read_only{"ram_logdirty", "ram_ro", "grant_map_ro", "ram_shared"};
    const std::set<std::string> special{"grant_map_rw", "grant_map_ro", "map_foreign", "mmio_direct"};
    const std::set<std::string> in_bulk{"ram_rw", "ram_logdirty", "ioreq_server"};
    for (unsigned code = 0; code < kTable.size(); ++code) {
        const auto type = static_cast<P2mType>(code);
        const Row& row = kTable[code];
        INFO(row.name);
        CHECK(name_of(type) == row.name);
        CHECK(parse_p2m_type(row.name) == type);
        CHECK(letters(rights_of(type)) == row.rights);
        CHECK(has_frame(type) == row.frame);
        CHECK(is_read_only(type) == read_only.contains(row.name));
        CHECK(discards_writes(type) ==
              (row.name == std::string{"ram_ro"} || row.name == std::string{"grant_map_ro"}));
        CHECK(is_special(type) == special.contains(row.name));
        CHECK(changes_in_bulk(type) == in_bulk.contains(row.name));
    }
    CHECK_FALSE(parse_p2m_type("ram"));
    CHECK_FALSE(parse_p2m_type(""));
}

TEST_CASE("p2m: names and rights of the access types are those of the table", "[p2m]")
{
    const std::vector<std::pair<std::string, std::string>> table{
        {"n", "---"},  {"r", "r--"},   {"w", "-w-"},     {"rw", "rw-"},    {"x", "--x"},   {"rx", "r-x"},
        {"wx", "-wx"}, {"rwx", "rwx"}, {"rx2rw", "r-x"}, {"n2rwx", "---"}, {"r_pw", "r--"}};
    for (unsigned code = 0; code < table.size(); ++code) {
        const auto access = static_cast<MemAccess>(code);
        INFO(table[code].first);
        CHECK(name_of(access) == table[code].first);
        CHECK(parse_mem_access(table[code].first) == access);
        CHECK(letters(rights_of(access)) == table[code].second);
    }
    CHECK_FALSE(parse_mem_access("default"));
}

TEST_CASE("p2m: entries in EPT and NPT permit what type and access permit, as far as the format can say it",
          "[p2m]")
{
    for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
        for (unsigned type = 0; type < kP2mTypes; ++type) {
            for (unsigned access = 0; access < kMemAccessTypes; ++access) {
                for (const int level : {1, 2, 3}) {
                    const P2mEntry entry{Mfn{0x12'3456'7000 & ~(p2m_page_frames(level) - 1)},
                                         static_cast<P2mType>(type), static_cast<MemAccess>(access)};
                    const std::uint64_t raw = encode(format, entry, level);
                    INFO(name_of(entry.type) << " " << name_of(entry.access) << " level " << level);
                    const P2mEntry back = decode(raw);
                    CHECK(back.type == entry.type);
                    CHECK((raw == 0 || back.access == entry.access));
                    if (entry.has_frame()) CHECK(back.mfn == entry.mfn);
                    const FrameRights wanted = entry.rights();
                    FrameRights expected = wanted;
                    // Write without read is a misconfiguration in EPT; NPT can say nothing without read.
                    if (format == P2mFormat::ept && wanted.write && !wanted.read) expected = {};
                    if (format == P2mFormat::npt && !wanted.read) expected = {};
                    if (!entry.has_frame()) expected = {};
                    CHECK(letters(rights_in(format, raw)) == letters(expected));
                    if (raw != 0 && level > 1) CHECK_FALSE(is_table_entry(raw, level));
                }
            }
        }
    }
    CHECK(encode(P2mFormat::ept, ram(0x1234), 1) == 0x1c00'0000'0123'4037);
    CHECK(encode(P2mFormat::ept, ram(0x1200), 2) == 0x1c00'0000'0120'00b7);
    CHECK(encode(P2mFormat::npt, ram(0x1234), 1) == 0x1c00'0000'0123'4007);
    CHECK(encode(P2mFormat::npt, ram(0x1200, P2mType::grant_map_ro), 2) == 0x9c80'0000'0120'0085);
    CHECK(table_entry(P2mFormat::ept, Mfn{0x77}) == 0x7'7007);
    // All fields of this one are 0, and yet it is an entry.
    for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
        const P2mEntry zero{Mfn{0}, P2mType::ram_rw, MemAccess::n};
        CHECK(decode(encode(format, zero, 1)) == zero);
        CHECK(letters(rights_in(format, encode(format, zero, 1))) == "---");
    }
}

TEST_CASE("p2m: a page that is split says what it said, and merges again", "[p2m]")
{
    for (const P2mFormat format : {P2mFormat::ept, P2mFormat::npt}) {
        Tables t{format};
        P2mTables& tables = t.tables;
        const Gfn first{std::uint64_t{5} << 18};
        tables.set(first, 3, ram(std::uint64_t{9} << 18));
        CHECK(tables.pages() == 2);  // the root and a table of 1 GiB pages
        CHECK(tables.get(first + 12345).entry == ram((std::uint64_t{9} << 18) + 12345));
        CHECK(tables.get(first + 12345).level == 3);
        // One frame in the middle.
        tables.set(first + 12345, 1, ram(0x77, P2mType::ram_ro));
        CHECK(tables.pages() == 4);
        CHECK(tables.get(first + 12345).entry == ram(0x77, P2mType::ram_ro));
        for (const std::uint64_t i :
             {std::uint64_t{0}, std::uint64_t{12344}, std::uint64_t{12346}, std::uint64_t{262143}})
            CHECK(tables.get(first + i).entry == ram((std::uint64_t{9} << 18) + i));
        CHECK(tables.get(first + 12346).level == 1);
        CHECK(tables.get(first).level == 2);
        CHECK(violations_of(tables).empty());
        CHECK_FALSE(tables.merge(first + 12345, 2));
        tables.set(first + 12345, 1, ram((std::uint64_t{9} << 18) + 12345));
        // The accessed bit that hardware sets is no difference.
        CHECK_FALSE(tables.merge(first + 12345, 3));
        CHECK(tables.merge(first + 12345, 2));
        CHECK(tables.pages() == 3);
        CHECK(tables.merge(first + 12345, 3));
        CHECK(tables.pages() == 2);
        CHECK(tables.get(first + 12345).level == 3);
        CHECK_FALSE(tables.merge(first, 3));
        CHECK_FALSE(tables.merge(Gfn{1}, 2));
        CHECK(violations_of(tables).empty());
        // A table that is replaced by a page is given back.
        tables.set(first + 1, 1, ram(0x55));
        CHECK(tables.pages() == 4);
        tables.set(first, 3, ram(std::uint64_t{3} << 18));
        CHECK(tables.pages() == 2);
        CHECK(violations_of(tables).empty());
        tables.clear();
        CHECK(tables.pages() == 1);
        CHECK(tables.get(first).entry == P2mEntry{});
    }
}

TEST_CASE("p2m: pages that are not in a row, or not aligned, do not merge", "[p2m]")
{
    Tables t{P2mFormat::ept};
    for (std::uint64_t i = 0; i < 512; ++i) t.tables.set(Gfn{i}, 1, ram(0x1001 + i));
    CHECK_FALSE(t.tables.merge(Gfn{}, 2));  // frame 0x1001 is not aligned
    for (std::uint64_t i = 0; i < 512; ++i) t.tables.set(Gfn{i}, 1, ram(0x1000 + (i ^ 1)));
    CHECK_FALSE(t.tables.merge(Gfn{}, 2));
    for (std::uint64_t i = 0; i < 512; ++i) t.tables.set(Gfn{i}, 1, ram(0x1000 + i));
    // Hardware has used one.
    const std::uint64_t l1 = t.memory.load<std::uint64_t>(kLastTable.number() - 2, 0) >> 12 & 0xff'ffff'ffff;
    t.memory.store(l1, 8 * 7, entry_in(t.memory, l1, 7) | ept::kAccessed | ept::kDirty);
    CHECK(t.tables.merge(Gfn{}, 2));
    CHECK(t.tables.get(Gfn{7}).entry == ram(0x1007));
}

TEST_CASE("p2m: five levels reach where four do not", "[p2m]")
{
    Tables four{P2mFormat::ept};
    Tables five{P2mFormat::ept, 5};
    const Gfn far{std::uint64_t{1} << 38};
    CHECK(four.tables.get(far).entry == P2mEntry{});
    five.tables.set(far, 1, ram(0x99));
    CHECK(five.tables.get(far).entry == ram(0x99));
    CHECK(five.tables.get(Gfn{}).entry == P2mEntry{});
    CHECK(five.tables.pages() == 5);
}

namespace {

/// What a P2M should say, as a list and by the plainest means.
struct Plain {
    std::map<std::uint64_t, P2mEntry> entries;

    void set(std::uint64_t first, std::uint64_t count, const P2mEntry& entry)
    {
        for (std::uint64_t i = 0; i < count; ++i) {
            if (entry.has_frame()) {
                for (auto& [gfn, other] : entries) {
                    if (gfn != first + i && other.has_frame() && other.mfn == entry.mfn + i) other = {};
                }
            }
            entries[first + i] = entry.at(i);
        }
    }
    [[nodiscard]] P2mEntry at(std::uint64_t gfn) const
    {
        const auto found = entries.find(gfn);
        return found == entries.end() ? P2mEntry{} : found->second;
    }
};

std::unique_ptr<P2mTables> tables_in(SparseMemory& memory, P2mFormat format)
{
    return std::make_unique<P2mTables>(memory, format, 4, kLastTable);
}

}  // namespace

TEST_CASE("p2m: random changes, in tables and in a list, against a plain map", "[p2m]")
{
    constexpr std::uint64_t kRam = 3 * 512 + 100;
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
        INFO("seed " << seed);
        std::mt19937_64 random{seed};
        P2mLayout layout;
        layout.kind = static_cast<P2mLayout::Kind>(seed % 3);
        layout.offset = 0x1'0000;
        layout.seed = seed;
        SparseMemory memory;
        const FrameLayout frames{GuestRam{{{Gfn{0}, kRam}}}, layout};
        const P2mFormat format = seed % 2 == 0 ? P2mFormat::ept : P2mFormat::npt;
        P2m p2m = seed % 4 == 3 ? P2m{frames}
                                : P2m{frames, tables_in(memory, format), static_cast<int>(1 + seed % 3)};
        Plain plain;
        for (std::uint64_t i = 0; i < kRam; ++i)
            plain.entries[i] = {*frames.mfn_of(Gfn{i}), P2mType::ram_rw, MemAccess::rwx};
        for (int step = 0; step < 60; ++step) {
            const std::uint64_t first = random() % 2048;
            const std::uint64_t count = random() % 3 == 0 ? 512 : 1 + random() % 5;
            const auto type = static_cast<P2mType>(random() % kP2mTypes);
            P2mEntry entry{{}, type, static_cast<MemAccess>(random() % kMemAccessTypes)};
            if (entry.has_frame())
                entry.mfn = Mfn{random() % 2 == 0 ? random() % 4096 : 512 * (random() % 8)};
            if (is_hole(type)) entry = {};
            p2m.set(Gfn{first}, count, entry);
            plain.set(first, count, entry);
            if (random() % 4 == 0) (void)p2m.merge(Gfn{random() % 2048});
            if (random() % 4 == 0) p2m.populate(Gfn{random() % 4096});
        }
        CHECK(violations_of(p2m).empty());
        for (std::uint64_t gfn = 0; gfn < 4096; ++gfn) {
            INFO("frame " << gfn);
            const P2mEntry wanted = plain.at(gfn);
            REQUIRE(p2m.entry(Gfn{gfn}) == wanted);
            REQUIRE(p2m.mfn_of(Gfn{gfn}) == (wanted.has_frame() ? std::optional{wanted.mfn} : std::nullopt));
            if (wanted.has_frame()) REQUIRE(p2m.gfn_of(wanted.mfn) == Gfn{gfn});
        }
        for (std::uint64_t mfn = 0; mfn < 0x1'2000; ++mfn) {
            const auto gfn = p2m.gfn_of(Mfn{mfn});
            if (gfn) REQUIRE(plain.at(gfn->number()).mfn == Mfn{mfn});
        }
        p2m.reset();
        CHECK_FALSE(p2m.changed());
        for (std::uint64_t gfn = 0; gfn < 4096; ++gfn)
            REQUIRE(p2m.mfn_of(Gfn{gfn}) == frames.mfn_of(Gfn{gfn}));
    }
}

TEST_CASE("p2m: tables hold what the layout says, in the largest pages that fit", "[p2m]")
{
    constexpr std::uint64_t kGiB = std::uint64_t{1} << 18;
    SparseMemory memory;
    // 2 GiB and some, in a row from frame 0; the offset keeps 2 MiB aligned, 1 GiB not.
    for (const auto& [offset, largest, level] :
         {std::tuple{std::uint64_t{0}, 3, 3}, std::tuple{std::uint64_t{0}, 2, 2},
          std::tuple{std::uint64_t{0}, 1, 1}, std::tuple{std::uint64_t{512}, 3, 2},
          std::tuple{std::uint64_t{1}, 3, 1}, std::tuple{kGiB, 3, 3}}) {
        INFO("offset " << offset << ", largest " << largest);
        P2mLayout layout{.kind = P2mLayout::Kind::offset, .offset = offset, .seed = 0, .entries = {}};
        P2m p2m{FrameLayout{GuestRam{{{Gfn{0}, 2 * kGiB + 512 + 7}}}, layout},
                tables_in(memory, P2mFormat::ept), largest};
        CHECK(p2m.page_level(Gfn{kGiB + 5}) == level);
        CHECK(p2m.page_level(Gfn{2 * kGiB + 5}) == std::min(level, 2));
        CHECK(p2m.page_level(Gfn{2 * kGiB + 512}) == 1);
        CHECK_FALSE(p2m.changed());
        CHECK(p2m.tables()->get(Gfn{kGiB + 5}).entry.mfn == Mfn{kGiB + 5 + offset});
        CHECK(p2m.tables()->get(Gfn{2 * kGiB + 512 + 6}).entry.mfn == Mfn{2 * kGiB + 512 + 6 + offset});
        CHECK(p2m.tables()->get(Gfn{2 * kGiB + 512 + 7}).entry == P2mEntry{});
        CHECK(violations_of(p2m).empty());
        p2m.reset();
        memory.clear();
    }
}
