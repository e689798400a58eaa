// SPDX-License-Identifier: Apache-2.0
//
// docs/timing.md, "What is dropped", row by row: what must be gone after an event, and what must still be
// there. Each pair of an event and a cached item gets a guest of its own: everything is cached, the tables
// change in memory alone, the event happens, and one access shows whether the old entry or the new one was
// used, and the counters where it was found. What an event drops is written here once more, as conditions on
// an item.
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "tlb/small_profiles.hpp"

using namespace guest;

namespace {

// --- a guest with everything cached
// -------------------------------------------------------------------------

constexpr unsigned kHere = 1, kElsewhere = 2, kNew = 3;  // PCIDs: the current one, another, one not used yet
constexpr std::uint64_t kReadOnly = 0x2000;       // where in some areas a page is that may not be written
constexpr std::uint64_t kKernel = P | W | A | D;  // no SMAP or SMEP stops a supervisor

/// What may be cached: a page, or an entry of a table that leads to `address`.
struct Item {
    std::string name;
    bool table = false;
    int level = 1;  ///< of the leaf, or of the table's entry
    unsigned pcid = kHere;
    bool global = false;
    std::uint64_t address = 0;
};

struct Setting {
    Paging paging = Paging::four_level;
    Vendor vendor = Vendor::intel;
    bool tce = false;
    bool pcide = true;
    bool pdes_in_l2 = false;
    bool profile_has_pcids = true;

    [[nodiscard]] bool long_mode() const
    {
        return paging == Paging::four_level || paging == Paging::five_level;
    }
    [[nodiscard]] std::string name() const
    {
        return fmt::format("{}, {}{}{}{}{}", mmusim::name_of(paging),
                           vendor == Vendor::intel ? "Intel" : "AMD", tce ? ", TCE" : "",
                           pcide ? ", PCIDE" : "", pdes_in_l2 ? ", PDEs in the L2" : "",
                           profile_has_pcids ? "" : ", a CPU without PCIDs");
    }
};

class World {
public:
    const Setting setting;
    Guest guest;

    explicit World(const Setting& wanted) : setting{wanted}, guest{wanted.paging, config_for(wanted)}
    {
        roots_[kHere] = guest.root();
        roots_[kElsewhere] = guest.new_table();
        roots_[kNew] = guest.new_table();
        make_items();
        if (setting.tce) {
            const std::uint64_t old = guest.machine.registers(0).efer;
            REQUIRE_FALSE(guest.machine.wrmsr(0, efer::kMsr, old | efer::kTce));
        }
        REQUIRE(guest.set_cr4(cr4::kPge, true));
        if (setting.pcide) REQUIRE(guest.set_cr4(cr4::kPcide, true));
        if (setting.pcide && setting.profile_has_pcids) cache_all_of(kElsewhere);
        cache_all_of(kHere);
    }

    [[nodiscard]] const std::vector<Item>& items() const { return items_; }
    [[nodiscard]] std::uint64_t area(unsigned number) const
    {
        // Areas have no table entry in common but those of PAE's registers.
        return std::uint64_t{number} << guest.shift(setting.paging == Paging::pae ? 2 : guest.levels());
    }
    [[nodiscard]] std::uint64_t root(unsigned pcid) const { return roots_[pcid].address().value(); }
    bool load_cr3(unsigned pcid, bool flush)
    {
        const std::uint64_t bits = setting.pcide ? pcid | (flush ? 0 : cr3::kNoFlush) : 0;
        return !guest.machine.mov_cr3(0, root(pcid) | bits);
    }

    /// The tables change in memory; nobody is told.
    void change(const Item& item)
    {
        const Gfn table_root = roots_[item.pcid];
        const std::uint64_t where = guest.entry_at(table_root, item.address, item.level);
        const std::uint64_t old = guest.word(where, guest.entry_bytes());
        if (!item.table) {
            guest.poke(where, old + kNewFrames, guest.entry_bytes());
            return;
        }
        // Another table in its place, that leads the probe elsewhere.
        const std::uint64_t flags = old & 0xfff;
        std::uint64_t table = guest.new_table().address().value();
        guest.poke(where, table | flags, guest.entry_bytes());
        for (int level = item.level - 1; level >= 1; --level) {
            const std::uint64_t index =
                probe_of(item) >> guest.shift(level) & (guest.entry_bytes() == 4 ? 1023 : 511);
            const std::uint64_t next = level > 1 ? guest.new_table().address().value() : kNewFrames + kOld;
            guest.poke(table + index * guest.entry_bytes(), next | kKernel, guest.entry_bytes());
            table = next;
        }
    }
    /// The address that shows whether the item is cached.
    [[nodiscard]] std::uint64_t probe_of(const Item& item) const
    {
        if (!item.table) return item.address;
        return item.address + 5 * (std::uint64_t{1} << guest.shift(item.level - 1));
    }

private:
    static constexpr std::uint64_t kOld = 0x4000'0000;        // where everything is
    static constexpr std::uint64_t kNewFrames = 0x4000'0000;  // how far it moves

    static MachineConfig config_for(const Setting& setting)
    {
        CpuProfile profile = small::large(setting.pdes_in_l2);
        profile.tlbs.pcid = setting.profile_has_pcids;
        MachineConfig config = small::config(profile);
        config.cpuid.vendor = setting.vendor;
        return config;
    }
    void make_items()
    {
        const auto page = [&](const std::string& name, unsigned pcid, std::uint64_t address, int level,
                              std::uint64_t more = 0, std::uint64_t flags = kKernel) {
            guest.map_in(roots_[pcid], address, kOld, flags | more, level);
            items_.push_back({name, false, level, pcid, (more & G) != 0, address});
        };
        const auto tables = [&](const std::string& name, unsigned pcid, std::uint64_t address) {
            const int top = setting.paging == Paging::pae ? 2 : guest.levels();
            for (int level = 2; level <= top; ++level) {
                Item item{fmt::format("{}, level {}", name, level), true, level, pcid, false, address};
                guest.map_in(roots_[pcid], probe_of(item), kOld, kKernel);
                items_.push_back(item);
            }
        };
        page("4K page", kHere, area(1), 1);
        page("its neighbour", kHere, area(1) + 0x1000, 1);
        page("read-only page", kHere, area(1) + kReadOnly, 1, 0, kKernel & ~W);
        page("4K page elsewhere", kHere, area(2), 1);
        page("large page", kHere, area(3), 2);
        page("global 4K page", kHere, area(4), 1, G);
        page("global read-only page", kHere, area(4) + kReadOnly, 1, G, kKernel & ~W);
        page("global large page", kHere, area(5), 2, G);
        if (setting.long_mode()) page("1G page", kHere, area(6), 3);
        tables("table entry", kHere, area(1));
        tables("table entry elsewhere", kHere, area(2));
        if (!setting.pcide || !setting.profile_has_pcids) return;
        page("4K page of another PCID", kElsewhere, area(1), 1);
        page("other 4K page of another PCID", kElsewhere, area(2), 1);
        page("large page of another PCID", kElsewhere, area(3), 2);
        tables("table entry of another PCID", kElsewhere, area(1));
        tables("other table entry of another PCID", kElsewhere, area(2));
    }
    void cache_all_of(unsigned pcid)
    {
        REQUIRE(load_cr3(pcid, false));
        for (const Item& item : items_) {
            if (!item.table && item.pcid == pcid) REQUIRE(guest.read(item.address).ok());
        }
    }

    std::array<Gfn, 4> roots_;
    std::vector<Item> items_;

public:
    /// Whether an access uses the item. Through the second level, a fetch: only reads have filled.
    [[nodiscard]] bool uses_old(const Item& item, AccessKind kind)
    {
        if (guest.machine.registers(0).has_cr4(cr4::kPcide) && setting.pcide) {
            const std::uint64_t current = guest.machine.registers(0).cr3 & cr3::kPcid;
            if (current != item.pcid) REQUIRE(load_cr3(item.pcid, false));
        }
        const MachineCounters before = guest.machine.counters();
        const Seen seen = guest.access(Guest::operand(kind, probe_of(item), 1));
        REQUIRE(seen.ok());
        const MachineCounters after = guest.machine.counters();
        const bool old = seen.at() == kOld;
        CHECK(seen.at() == (old ? kOld : kOld + kNewFrames));
        const auto hits = [&](std::size_t which) { return after.tlbs[which].hits - before.tlbs[which].hits; };
        if (item.table) {
            const auto level = static_cast<std::size_t>(item.level);
            CHECK(after.paging_structure_caches[level].hits ==
                  before.paging_structure_caches[level].hits + (old ? 1 : 0));
            CHECK(after.walks == before.walks + 1);
        } else if (kind == AccessKind::read) {
            CHECK(hits(small::kL1d) == (old ? 1 : 0));
            CHECK(after.walks == before.walks + (old ? 0 : 1));
        } else {
            CHECK(hits(small::kL1i) == 0);
            CHECK(hits(small::kL2) == (old ? 1 : 0));
            CHECK(after.walks == before.walks + (old ? 0 : 1));
        }
        return old;
    }
};

// --- what an event drops --------------------------------------------------------------------------------

using Condition = std::function<bool(const World&, const Item&)>;

struct Event {
    std::string name;
    std::function<void(World&)> happen;
    Condition drops;
};

bool same_page(const World& world, const Item& item, std::uint64_t address)
{
    const unsigned shift = world.guest.shift(item.level);
    return address >> shift == item.address >> shift;
}

bool nothing(const World&, const Item&)
{
    return false;
}
bool everything(const World&, const Item&)
{
    return true;
}
bool all_but_global(const World&, const Item& item)
{
    return item.table || !item.global;
}
Condition of_pcid(unsigned pcid)
{
    return
        [pcid](const World&, const Item& item) { return item.pcid == pcid && (item.table || !item.global); };
}

Event invlpg(const std::string& what, unsigned area, std::uint64_t offset)
{
    return {"INVLPG of " + what,
            [=](World& world) { REQUIRE(world.guest.invlpg(world.area(area) + offset)); },
            [=](const World& world, const Item& item) {
                const std::uint64_t address = world.area(area) + offset;
                if (!item.table)
                    return same_page(world, item, address) && (item.global || item.pcid == kHere);
                if (world.setting.vendor == Vendor::intel) return item.pcid == kHere;
                if (!world.setting.tce) return true;
                return item.pcid == kHere && same_page(world, item, address);
            }};
}

Event invpcid_address(unsigned pcid, unsigned area)
{
    return {fmt::format("INVPCID 0 of PCID {}, area {}", pcid, area),
            [=](World& world) {
                const LinearAddress address{world.area(area) + 0x234};
                REQUIRE_FALSE(world.guest.machine.invpcid(0, 0, world.setting.pcide ? pcid : 0, address));
            },
            [=](const World& world, const Item& item) {
                const bool hit = same_page(world, item, world.area(area)) && item.pcid == pcid;
                if (!item.table) return hit && !item.global;
                return hit || (world.setting.vendor == Vendor::amd && !world.setting.tce);
            }};
}

Event invpcid(unsigned type, unsigned pcid, Condition drops)
{
    return {fmt::format("INVPCID {} of PCID {}", type, pcid),
            [=](World& world) {
                const unsigned number = world.setting.pcide && type == 1 ? pcid : 0;
                REQUIRE_FALSE(world.guest.machine.invpcid(0, type, number, LinearAddress{}));
            },
            std::move(drops)};
}

Event toggled(const std::string& name, std::uint64_t cr4_bit, Condition drops)
{
    return {"a change of CR4." + name,
            [=](World& world) {
                const bool is_set = world.guest.machine.registers(0).has_cr4(cr4_bit);
                REQUIRE(world.guest.set_cr4(cr4_bit, !is_set));
            },
            std::move(drops)};
}

Event toggled_cr0(const std::string& name, std::uint64_t bit, Condition drops)
{
    return {"a change of CR0." + name,
            [=](World& world) {
                const bool is_set = world.guest.machine.registers(0).has_cr0(bit);
                REQUIRE(world.guest.set_cr0(bit, !is_set));
            },
            std::move(drops)};
}

Event toggled_efer(const std::string& name, std::uint64_t bit, Condition drops)
{
    return {"a change of EFER." + name,
            [=](World& world) {
                const std::uint64_t old = world.guest.machine.registers(0).efer;
                REQUIRE_FALSE(world.guest.machine.wrmsr(0, efer::kMsr, old ^ bit));
            },
            std::move(drops)};
}

/// #PF at a page of an area: it is not there, or may not be written.
Event page_fault(const std::string& what, AccessKind kind, unsigned area, std::uint64_t offset)
{
    return {fmt::format("#PF at {}", what),
            [=](World& world) {
                const Seen seen = world.guest.access(Guest::operand(kind, world.area(area) + offset, 1));
                REQUIRE(seen.raised(Vector::page_fault));
            },
            [=](const World& world, const Item& item) {
                const bool hit = same_page(world, item, world.area(area) + offset);
                if (item.table) return hit && item.pcid == kHere;
                return hit && (item.global || item.pcid == kHere);
            }};
}

void check(const Setting& setting, const std::vector<Event>& events)
{
    const std::vector<Item> items = World{setting}.items();
    for (const Event& event : events) {
        for (const Item& item : items) {
            for (const AccessKind kind : {AccessKind::read, AccessKind::fetch}) {
                World world{setting};
                INFO(setting.name() << "; " << event.name << "; " << item.name << ", by a "
                                    << mmusim::name_of(kind));
                world.change(item);
                event.happen(world);
                // Entries of other PCIDs are out of reach once CR4.PCIDE is clear.
                const bool pcide = world.guest.machine.registers(0).has_cr4(cr4::kPcide);
                if (!pcide && item.pcid != kHere) continue;
                CHECK(world.uses_old(item, kind) == !event.drops(world, item));
            }
        }
    }
}

/// All settings in which that paging is possible and worth a look.
std::vector<Setting> settings(Paging paging)
{
    std::vector<Setting> list;
    const bool long_mode = paging == Paging::four_level || paging == Paging::five_level;
    for (const bool pcide : {false, true}) {
        if (pcide && !long_mode) continue;
        for (const bool pdes_in_l2 : {false, true}) {
            const Setting intel{paging, Vendor::intel, false, pcide, pdes_in_l2, true};
            Setting amd = intel;
            amd.vendor = Vendor::amd;
            Setting amd_tce = amd;
            amd_tce.tce = true;
            list.insert(list.end(), {intel, amd, amd_tce});
        }
    }
    return list;
}

constexpr std::array<Paging, 4> kPagings{Paging::two_level, Paging::pae, Paging::four_level,
                                         Paging::five_level};

std::vector<Setting> all_settings()
{
    std::vector<Setting> list;
    for (const Paging paging : kPagings) {
        const std::vector<Setting> more = settings(paging);
        list.insert(list.end(), more.begin(), more.end());
    }
    return list;
}

}  // namespace

TEST_CASE("what is dropped: nothing by nothing", "[tlb]")
{
    for (const Setting& setting : all_settings()) check(setting, {{"nothing", [](World&) {}, nothing}});
}

TEST_CASE("what is dropped: INVLPG", "[tlb]")
{
    for (const Setting& setting : all_settings()) {
        check(setting, {invlpg("a 4K page", 1, 0xfff), invlpg("its neighbour", 1, 0x1000),
                        invlpg("a page that is not cached", 1, 0x3000), invlpg("a large page", 3, 0x1f'f000),
                        invlpg("a global page", 4, 0), invlpg("a large global page", 5, 0x12'3456),
                        invlpg("an area that is not mapped", 9, 0)});
        if (!setting.long_mode()) continue;
        check(setting,
              {invlpg("a 1G page", 6, 0x3fff'ffff),
               {"INVLPG of no canonical address",
                [](World& world) { REQUIRE(world.guest.invlpg(world.area(1) | std::uint64_t{1} << 63)); },
                nothing}});
    }
}

TEST_CASE("what is dropped: INVPCID", "[tlb]")
{
    for (const Setting& setting : all_settings()) {
        std::vector<Event> events;
        for (const unsigned area : {1u, 2u, 3u, 4u, 5u, 9u}) {
            events.push_back(invpcid_address(kHere, area));
            if (setting.pcide) events.push_back(invpcid_address(kElsewhere, area));
            if (setting.pcide) events.push_back(invpcid_address(kNew, area));
        }
        events.push_back(invpcid(1, kHere, of_pcid(kHere)));
        if (setting.pcide) events.push_back(invpcid(1, kElsewhere, of_pcid(kElsewhere)));
        if (setting.pcide) events.push_back(invpcid(1, kNew, nothing));
        events.push_back(invpcid(2, 0, everything));
        events.push_back(invpcid(3, 0, all_but_global));
        check(setting, events);
    }
}

TEST_CASE("what is dropped: MOV CR3", "[tlb]")
{
    const auto load = [](unsigned pcid, bool flush, Condition drops) {
        return Event{fmt::format("MOV CR3 to PCID {}, {}", pcid, flush ? "flushing" : "with bit 63"),
                     [=](World& world) { REQUIRE(world.load_cr3(pcid, flush)); }, std::move(drops)};
    };
    for (const Setting& setting : all_settings()) {
        if (!setting.pcide) {
            check(setting, {load(kHere, true, all_but_global)});
            continue;
        }
        check(setting, {load(kHere, true, of_pcid(kHere)), load(kHere, false, nothing),
                        load(kElsewhere, true, of_pcid(kElsewhere)), load(kElsewhere, false, nothing),
                        load(kNew, true, nothing), load(kNew, false, nothing)});
    }
}

TEST_CASE("what is dropped: everything", "[tlb]")
{
    const Event set{"set",
                    [](World& world) {
                        Machine& machine = world.guest.machine;
                        REQUIRE_FALSE(machine.set_registers(0, machine.registers(0)));
                    },
                    everything};
    const Event paging{"paging off and on",
                       [](World& world) {
                           REQUIRE(world.guest.set_cr0(cr0::kPg, false));
                           REQUIRE(world.guest.set_cr0(cr0::kPg, true));
                       },
                       everything};
    const Event paging_with_access{"paging off, an access, and on",
                                   [](World& world) {
                                       REQUIRE(world.guest.set_cr0(cr0::kPg, false));
                                       const std::uint64_t at = world.area(1) & 0xffff'ffff;
                                       CHECK(world.guest.read(at, 1).at() == at);
                                       REQUIRE(world.guest.set_cr0(cr0::kPg, true));
                                   },
                                   everything};
    const Event twice{"CR4.PGE off and on",
                      [](World& world) {
                          REQUIRE(world.guest.set_cr4(cr4::kPge, false));
                          REQUIRE(world.guest.set_cr4(cr4::kPge, true));
                      },
                      everything};
    for (const Setting& setting : all_settings()) {
        check(setting, {set, twice, toggled("PGE", cr4::kPge, everything)});
        if (!setting.pcide) check(setting, {paging, paging_with_access});
        // In two-level paging CR4.PSE says whether large pages are pages.
        check(setting, {{"CR4.PSE changed twice",
                         [](World& world) {
                             const bool pse = world.guest.machine.registers(0).has_cr4(cr4::kPse);
                             REQUIRE(world.guest.set_cr4(cr4::kPse, !pse));
                             REQUIRE(world.guest.set_cr4(cr4::kPse, pse));
                         },
                         everything}});
        if (setting.paging != Paging::two_level) check(setting, {toggled("PSE", cr4::kPse, everything)});
        check(setting, {toggled_efer("NXE", efer::kNxe, everything)});
        if (setting.pcide) check(setting, {toggled("PCIDE", cr4::kPcide, everything)});
        check(setting, {toggled("SMEP", cr4::kSmep, everything)});
    }
}

TEST_CASE("what is dropped: everything, by a load of the PDPTEs", "[tlb]")
{
    for (const Setting& setting : settings(Paging::pae)) {
        check(setting, {toggled_cr0("CD", cr0::kCd, everything)});
        check(setting,
              {{"a change of CR0.CD and NW",
                [](World& world) { REQUIRE(world.guest.set_cr0(cr0::kCd | cr0::kNw, true)); }, everything}});
    }
}

TEST_CASE("what is dropped: nothing by rights", "[tlb]")
{
    const std::vector<Event> events{
        toggled_cr0("WP", cr0::kWp, nothing),
        toggled("SMAP", cr4::kSmap, nothing),
        toggled("PKE", cr4::kPke, nothing),
        toggled("PKS", cr4::kPks, nothing),
        {"EFLAGS.AC", [](World& world) { world.guest.machine.set_ac(0, true); }, nothing},
        {"PKRU", [](World& world) { REQUIRE_FALSE(world.guest.machine.wrpkru(0, 0xfffc)); }, nothing},
        {"PKRS", [](World& world) { REQUIRE_FALSE(world.guest.machine.wrmsr(0, kPkrsMsr, 0xfffc)); },
         nothing},
        {"CPL",
         [](World& world) {
             world.guest.machine.set_cpl(0, 3);
             world.guest.machine.set_cpl(0, 0);
         },
         nothing},
        {"an access at CPL 3 that is not denied",
         [](World& world) {
             Operand operand = Guest::operand(AccessKind::read, world.area(1));
             operand.implicit = true;
             CHECK(world.guest.access(operand).ok());
         },
         nothing},
    };
    for (const Setting& setting : all_settings()) {
        check(setting, events);
        if (setting.paging != Paging::pae) check(setting, {toggled_cr0("CD", cr0::kCd, nothing)});
        // Outside long mode it does not change the paging mode.
        if (!setting.long_mode()) check(setting, {toggled("LA57", cr4::kLa57, nothing)});
        if (!setting.pcide && setting.long_mode()) {
            // Entries of PCID 0 stay those of PCID 0.
            check(setting,
                  {{"CR4.PCIDE set", [](World& world) { REQUIRE(world.guest.set_cr4(cr4::kPcide, true)); },
                    nothing}});
        }
    }
}

namespace {

void check_smep_cleared(const Setting& setting, bool drops)
{
    const std::vector<Item> items = World{setting}.items();
    for (const Item& item : items) {
        if (item.pcid != kHere) continue;  // gone with the first change
        World world{setting};
        INFO(setting.name() << "; " << item.name);
        REQUIRE(world.guest.set_cr4(cr4::kSmep, true));
        // Cached again after that.
        for (const Item& page : items) {
            if (!page.table && page.pcid == kHere) REQUIRE(world.guest.read(page.address).ok());
        }
        world.change(item);
        REQUIRE(world.guest.set_cr4(cr4::kSmep, false));
        CHECK(world.uses_old(item, AccessKind::read) == !drops);
    }
}

}  // namespace

TEST_CASE("what is dropped: nothing by CR4.SMEP cleared", "[tlb]")
{
    for (const Setting& setting : all_settings()) {
        if (setting.paging != Paging::pae) check_smep_cleared(setting, false);
    }
}

TEST_CASE("what is dropped: everything by CR4.SMEP cleared under PAE, which loads the PDPTEs", "[tlb]")
{
    for (const Setting& setting : settings(Paging::pae)) check_smep_cleared(setting, true);
}

TEST_CASE("what is dropped: a page that faults", "[tlb]")
{
    for (const Setting& setting : all_settings()) {
        check(setting,
              {page_fault("a page that is not there", AccessKind::read, 1, 0x3000),
               page_fault("one of another area", AccessKind::write, 2, 0x3000),
               page_fault("a page whose entries deny the access", AccessKind::write, 1, kReadOnly),
               page_fault("a global page whose entries deny the access", AccessKind::write, 4, kReadOnly)});
    }
}

TEST_CASE("what is dropped: everything by CR4.PAE", "[tlb]")
{
    // One frame is a page directory of 4-byte entries, and from its start on the four PDPTEs of PAE.
    Guest guest{Paging::two_level, small::config(small::large())};
    constexpr std::uint64_t kLinear = 0x0280'0000, kGlobal = 0x0280'1000;
    guest.map(kLinear, 0x101'000, kKernel);
    guest.map(kGlobal, 0x102'000, kKernel | G);
    const std::uint64_t directory = guest.new_table().address().value();
    const std::uint64_t table = guest.new_table().address().value();
    guest.poke(guest.root().address().value(), directory | P);
    guest.poke(directory + (kLinear >> 21) * 8, table | kKernel);
    guest.poke(table, 0x103'000 | kKernel);
    guest.poke(table + 8, 0x104'000 | kKernel | G);
    REQUIRE(guest.set_cr4(cr4::kPge, true));
    for (unsigned round = 0; round < 3; ++round) {
        const bool pae = round % 2 == 1;
        REQUIRE(guest.set_cr4(cr4::kPae, pae));
        for (unsigned again = 0; again < 2; ++again) {
            CHECK(guest.read(kLinear).at() == (pae ? 0x103'000u : 0x101'000u));
            CHECK(guest.read(kGlobal).at() == (pae ? 0x104'000u : 0x102'000u));
        }
    }
    CHECK(guest.machine.counters().walks == 6);
}

TEST_CASE("what is dropped: a profile without PCIDs takes each for 0", "[tlb]")
{
    for (const Paging paging : {Paging::four_level, Paging::five_level}) {
        for (const bool pdes_in_l2 : {false, true}) {
            Setting setting{paging, Vendor::intel, false, true, pdes_in_l2, false};
            const auto load = [](unsigned pcid, bool flush) {
                return Event{fmt::format("MOV CR3 to PCID {} and back", pcid),
                             [=](World& world) {
                                 REQUIRE(world.load_cr3(pcid, flush));
                                 REQUIRE(world.load_cr3(kHere, false));
                             },
                             all_but_global};
            };
            check(setting,
                  {load(kHere, true), load(kHere, false), load(kElsewhere, true), load(kElsewhere, false)});
            check(setting, {invlpg("a 4K page", 1, 0), invlpg("a global page", 4, 0)});
            // Whatever PCID is named.
            for (const unsigned pcid : {kHere, kElsewhere}) {
                check(setting, {invpcid(1, pcid, of_pcid(kHere))});
                Event event = invpcid_address(pcid, 1);
                event.drops = invpcid_address(kHere, 1).drops;
                check(setting, {event});
            }
        }
    }
}

// --- splintered pages
// ---------------------------------------------------------------------------------------

namespace {

/// Fragments of 4K alone, on both levels.
struct SplinteredGuest : Guest {
    static constexpr std::uint64_t k2M = 0x4000'0000, kOther2M = 0x4020'0000, k1G = 0x8000'0000,
                                   kGlobal2M = 0xc000'0000;
    static constexpr std::array<std::uint64_t, 4> kOffsets{0, 0x1000, 0x7'8000, 0x1f'f000};

    explicit SplinteredGuest(Paging paging) : Guest{paging, config()}
    {
        const std::uint64_t flags = P | W | A | D;
        map(k2M, 0x4000'0000, flags, 2);
        map(kOther2M, 0x4000'0000, flags, 2);
        if (paging == Paging::four_level) map(k1G, 0x4000'0000, flags, 3);
        map(kGlobal2M, 0x4000'0000, flags | G, 2);
        REQUIRE(set_cr4(cr4::kPge, true));
        for (const std::uint64_t page : pages()) {
            for (const std::uint64_t offset : kOffsets) CHECK(read(page + offset).ok());
        }
        if (has_1g()) CHECK(read(k1G + 0x3fff'f000).ok());
    }
    [[nodiscard]] bool has_1g() const { return levels() == 4; }
    [[nodiscard]] std::vector<std::uint64_t> pages() const
    {
        return has_1g() ? std::vector{k2M, kOther2M, k1G, kGlobal2M} : std::vector{k2M, kOther2M, kGlobal2M};
    }
    /// Whether an access hits on level 1.
    bool cached(std::uint64_t address)
    {
        const std::uint64_t before = machine.counters().tlbs[0].hits;
        CHECK(read(address).ok());
        return machine.counters().tlbs[0].hits == before + 1;
    }
    /// Whether the fragments of each page are cached, or none is.
    void check_dropped(const std::vector<std::uint64_t>& dropped)
    {
        for (const std::uint64_t page : pages()) {
            const bool gone = std::find(dropped.begin(), dropped.end(), page) != dropped.end();
            for (const std::uint64_t offset : kOffsets) {
                INFO(fmt::format("{:#x}", page + offset));
                CHECK(cached(page + offset) == !gone);
            }
            if (page == k1G) CHECK(cached(k1G + 0x3fff'f000) == !gone);
        }
    }

private:
    static MachineConfig config()
    {
        TlbSpec second = small::tlb("l2", 2, "fls", {small::fully_associative(128, {EntryKind::page_4k})});
        second.splinters = true;
        CpuProfile profile = small::profile(
            {small::tlb("l1", 1, "fls", {small::fully_associative(64, {EntryKind::page_4k})}), second});
        small::add_structure_caches(profile, 32);
        return small::config(profile);
    }
};

}  // namespace

TEST_CASE("what is dropped: all fragments of a page", "[tlb]")
{
    for (const Paging paging : {Paging::pae, Paging::four_level}) {
        INFO(mmusim::name_of(paging));
        {
            SplinteredGuest guest{paging};
            guest.check_dropped({});
        }
        for (const bool by_invpcid : {false, true}) {
            const auto drop = [&](SplinteredGuest& guest, std::uint64_t address) {
                if (by_invpcid) {
                    REQUIRE_FALSE(guest.machine.invpcid(0, 0, 0, LinearAddress{address}));
                } else {
                    REQUIRE(guest.invlpg(address));
                }
            };
            // At a fragment, and where none is.
            for (const std::uint64_t offset : {0x1000u, 0x10'0123u}) {
                SplinteredGuest guest{paging};
                drop(guest, SplinteredGuest::k2M + offset);
                guest.check_dropped({SplinteredGuest::k2M});
            }
            {
                SplinteredGuest guest{paging};
                drop(guest, SplinteredGuest::kGlobal2M + 0x5000);
                guest.check_dropped(by_invpcid ? std::vector<std::uint64_t>{}
                                               : std::vector{SplinteredGuest::kGlobal2M});
            }
            if (paging == Paging::pae) continue;
            SplinteredGuest guest{paging};
            drop(guest, SplinteredGuest::k1G + 0x1234'5678);
            guest.check_dropped({SplinteredGuest::k1G});
        }
    }
}

TEST_CASE("what is dropped: all fragments of a page that faults", "[tlb]")
{
    SplinteredGuest guest{Paging::four_level};
    guest.set_entry(SplinteredGuest::k2M, 2, 0);
    CHECK(guest.cached(SplinteredGuest::k2M));
    CHECK(guest.read(SplinteredGuest::k2M + 0x3000).page_fault(0, SplinteredGuest::k2M + 0x3000));
    guest.set_entry(SplinteredGuest::k2M, 2, 0x4000'0000 | kKernel | PS);
    guest.check_dropped({SplinteredGuest::k2M});
}

TEST_CASE("what is dropped: fragments on level 1 of a whole page on level 2", "[tlb]")
{
    CpuProfile profile = small::profile(
        {small::tlb("l1", 1, "fls", {small::fully_associative(64, {EntryKind::page_4k})}),
         small::tlb("l2", 2, "fls",
                    {small::fully_associative(64, {EntryKind::page_4k, EntryKind::page_2m})})});
    Guest guest{Paging::four_level, small::config(profile)};
    guest.map(0x20'0000, 0x4000'0000, kKernel, 2);
    CHECK(guest.read(0x20'1000).at() == 0x4000'1000);
    CHECK(guest.read(0x20'2000).at() == 0x4000'2000);
    CHECK(guest.machine.counters().walks == 1);
    guest.set_entry(0x20'0000, 2, 0x6000'0000 | kKernel | PS);
    CHECK(guest.read(0x20'3000).at() == 0x4000'3000);
    REQUIRE(guest.invlpg(0x3f'f000));
    for (const std::uint64_t offset : {0x1000u, 0x2000u, 0x3000u}) {
        CHECK(guest.read(0x20'0000 + offset).at() == 0x6000'0000 + offset);
    }
    CHECK(guest.machine.counters().walks == 2);
}

// --- how many PCIDs a level keeps
// ---------------------------------------------------------------------------

namespace {

/// Each PCID has one page on each level; which of them are still there?
class KeptPcids {
public:
    static constexpr unsigned kPcids = 7;
    static constexpr std::uint64_t kPage = 0x40'0000, kGlobalPage = 0x60'0000;

    KeptPcids(unsigned flush, unsigned noflush) : guest_{Paging::four_level, config(flush, noflush)}
    {
        guest_.map(kPage, 0x101'000, kKernel);
        guest_.map(kGlobalPage, 0x102'000, kKernel | G);
        REQUIRE(guest_.set_cr4(cr4::kPge, true));
        REQUIRE(guest_.set_cr4(cr4::kPcide, true));
        CHECK(guest_.read(kGlobalPage).ok());
    }
    void load(unsigned pcid, bool flush)
    {
        const std::uint64_t root = guest_.root().address().value();
        REQUIRE_FALSE(guest_.machine.mov_cr3(0, root | pcid | (flush ? 0 : cr3::kNoFlush)));
    }
    bool invpcid(unsigned type, unsigned pcid)
    {
        return !guest_.machine.invpcid(0, type, pcid, LinearAddress{});
    }
    /// Whether the page of the current PCID hits on level 1, which has the limits, or on level 2, which has
    /// none.
    unsigned level_of_hit() { return level_of_hit(kPage); }
    unsigned level_of_global_hit() { return level_of_hit(kGlobalPage); }

private:
    static MachineConfig config(unsigned flush, unsigned noflush)
    {
        CpuProfile profile = small::large();
        profile.tlbs.tlbs[small::kL1d].pcids_kept_flush = flush;
        profile.tlbs.tlbs[small::kL1d].pcids_kept_noflush = noflush;
        return small::config(profile);
    }
    unsigned level_of_hit(std::uint64_t address)
    {
        const MachineCounters before = guest_.machine.counters();
        CHECK(guest_.read(address).ok());
        const MachineCounters after = guest_.machine.counters();
        for (const std::size_t level : {small::kL1d, small::kL2}) {
            if (after.tlbs[level].hits > before.tlbs[level].hits) return static_cast<unsigned>(level);
        }
        CHECK(after.walks == before.walks + 1);
        return 0;
    }
    Guest guest_;
};

constexpr unsigned kLevel1 = small::kL1d, kLevel2 = small::kL2, kWalk = 0;

}  // namespace

TEST_CASE("PCIDs kept: by hand", "[tlb]")
{
    {
        KeptPcids none{0, 0};
        CHECK(none.level_of_hit() == kWalk);
        CHECK(none.level_of_hit() == kLevel1);
        none.load(0, false);  // the current PCID too
        CHECK(none.level_of_hit() == kLevel2);
        CHECK(none.level_of_hit() == kLevel1);
        none.load(1, false);
        none.load(0, false);
        CHECK(none.level_of_hit() == kLevel2);
        CHECK(none.level_of_global_hit() == kLevel1);
    }
    {
        KeptPcids one{0, 1};
        CHECK(one.level_of_hit() == kWalk);
        one.load(0, false);
        CHECK(one.level_of_hit() == kLevel1);
        one.load(1, false);
        CHECK(one.level_of_hit() == kWalk);
        one.load(0, false);
        CHECK(one.level_of_hit() == kLevel2);
        one.load(0, true);  // flushed on all levels
        CHECK(one.level_of_hit() == kWalk);
    }
    {
        KeptPcids four{1, 4};
        for (const unsigned pcid : {0u, 1u, 2u, 3u}) {
            four.load(pcid, false);
            CHECK(four.level_of_hit() == kWalk);
        }
        four.load(0, false);
        CHECK(four.level_of_hit() == kLevel1);
        four.load(4, false);  // the fifth: 1 was current longest ago
        CHECK(four.level_of_hit() == kWalk);
        for (const unsigned pcid : {0u, 3u, 2u}) {
            four.load(pcid, false);
            CHECK(four.level_of_hit() == kLevel1);
        }
        four.load(1, false);  // 4 goes
        CHECK(four.level_of_hit() == kLevel2);
        four.load(2, true);  // only 2 stays, and that is flushed
        CHECK(four.level_of_hit() == kWalk);
        four.load(3, false);
        CHECK(four.level_of_hit() == kLevel2);
        four.load(2, false);
        CHECK(four.level_of_hit() == kLevel1);
        CHECK(four.level_of_global_hit() == kLevel1);
    }
}

TEST_CASE("PCIDs kept: random loads", "[tlb]")
{
    constexpr unsigned kSeed = 4242;
    std::mt19937 random{kSeed};
    INFO("seed " << kSeed);
    const auto below = [&](unsigned end) { return static_cast<unsigned>(random() % end); };
    constexpr std::array<std::pair<unsigned, unsigned>, 10> kLimits{
        {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 3}, {3, 1}, {4, 4}, {2, 4096}, {4096, 2}, {4096, 4096}}};
    for (const auto& [flush_keeps, noflush_keeps] : kLimits) {
        INFO("limits " << flush_keeps << " and " << noflush_keeps);
        KeptPcids guest{flush_keeps, noflush_keeps};
        std::vector<unsigned> recent{0};                     // the current one first, each once
        std::array<unsigned, KeptPcids::kPcids> level_of{};  // where the page would be found
        for (unsigned step = 0; step < 600; ++step) {
            INFO("step " << step);
            const unsigned dice = below(16);
            const unsigned pcid = below(KeptPcids::kPcids);
            if (dice == 0) {
                REQUIRE(guest.invpcid(1, pcid));
                level_of[pcid] = kWalk;
            } else if (dice == 1 && below(4) == 0) {
                REQUIRE(guest.invpcid(3, 0));
                level_of.fill(kWalk);
            } else if (dice < 9) {
                CHECK(guest.level_of_hit() == level_of[recent.front()]);
                level_of[recent.front()] = kLevel1;
            } else {
                const bool flush = below(2) == 0;
                guest.load(pcid, flush);
                std::erase(recent, pcid);
                recent.insert(recent.begin(), pcid);
                if (flush) level_of[pcid] = kWalk;
                const unsigned kept = flush ? flush_keeps : noflush_keeps;
                for (std::size_t i = kept; i < recent.size(); ++i) {
                    if (level_of[recent[i]] == kLevel1) level_of[recent[i]] = kLevel2;
                }
            }
        }
        CHECK(guest.level_of_global_hit() == kLevel1);
    }
}
