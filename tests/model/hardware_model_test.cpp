// SPDX-License-Identifier: Apache-2.0
//
// The second simulator against docs/timing.md, worked out by hand: each policy, each rule of TLBs and
// paging-structure caches, each row of the table of what is dropped, each closed form.
#include "model/hardware_model.hpp"

#include <algorithm>
#include <set>
#include <sstream>

#include "model/from_profile.hpp"
#include "model/guest_tables.hpp"
#include "model/random_profile.hpp"
#include "model/random_program.hpp"
#include "support/catch.hpp"

namespace {

using namespace model;
using reference::Paging;
using Set = std::set<std::string>;
using Cycles = std::map<std::string, u64>;

constexpr auto kRead = reference::Kind::read;
constexpr auto kWrite = reference::Kind::write;
constexpr auto kFetch = reference::Kind::fetch;
constexpr u64 kBit63 = u64{1} << 63;

// --- configurations ---------------------------------------------------------------------------------------

ArrayConfig array(unsigned sets, unsigned ways, const std::vector<EntryKind>& kinds,
                  Policy policy = Policy::lru)
{
    ArrayConfig made;
    made.entries = sets * ways;
    made.ways = ways;
    for (const EntryKind kind : kinds) made.views.push_back({kind, ways, 0, ways});
    made.replacement.policy = policy;
    return made;
}

TlbConfig tlb(const std::string& name, unsigned level, const std::string& serves,
              const std::vector<ArrayConfig>& arrays, u64 cycles)
{
    TlbConfig made;
    made.name = name;
    made.level = level;
    made.fetches = serves.find('f') != std::string::npos;
    made.loads = serves.find('l') != std::string::npos;
    made.stores = serves.find('s') != std::string::npos;
    made.arrays = arrays;
    made.lookup_cycles = cycles;
    return made;
}

PscConfig psc(unsigned level, unsigned entries = 16)
{
    return {level, array(1, entries, {EntryKind::pde}), ""};
}

constexpr auto k4k = EntryKind::page_4k;
constexpr auto k2m = EntryKind::page_2m;
constexpr auto k4m = EntryKind::page_4m;
constexpr auto k1g = EntryKind::page_1g;

/// Two levels of TLBs, no paging-structure caches, two large data caches.
Config plain()
{
    Config config;
    config.tlbs = {tlb("l1i", 1, "f", {array(1, 4, {k4k})}, 1),
                   tlb("l1d", 1, "ls", {array(1, 4, {k4k}), array(1, 2, {k2m})}, 1),
                   tlb("l2", 2, "fls", {array(4, 4, {k4k, k2m})}, 7)};
    config.data_caches = {{"l1d", 64, 16, 64, 4, 2, {}, {}}, {"l2", 256, 8, 64, 14, 4, {}, {}}};
    config.memory_latency = 100;
    config.walk_start = 2;
    config.walk_load = {0, 1, 2, 3, 4, 5};
    config.walk_assist = 50;
    config.issue_width = 1;
    config.fetch_cycles = 3;
    config.mov_cr = 20;
    config.mov_cr3 = 30;
    config.invlpg = 40;
    config.invpcid = 60;
    config.page_fault = 200;
    return config;
}

constexpr FrontEnd kBlocking{FrontEnd::Kind::blocking, 1};

FrontEnd window(unsigned accesses)
{
    return {FrontEnd::Kind::window, accesses};
}

// --- a guest
// ------------------------------------------------------------------------------------------------

reference::Machine machine_in(Paging paging, unsigned cpus, bool amd)
{
    reference::Machine machine;
    machine.features.amd = amd;
    machine.memory.ram = {{0, 0x400}, {0x40000, 0x10}};
    machine.cpus.resize(cpus);
    for (unsigned cpu = 0; cpu < cpus; ++cpu) {
        if (!machine.set_registers(cpu, registers_for(paging, 0x10'0000))) throw std::logic_error("refused");
    }
    return machine;
}

class Guest {
public:
    static constexpr u64 kRoot = 0x10'0000;
    reference::Machine machine;
    GuestTables tables;
    Hardware hardware;

    explicit Guest(const Config& config, Paging paging = Paging::four_level, FrontEnd front_end = kBlocking,
                   unsigned cpus = 1, bool amd = false)
        : machine{machine_in(paging, cpus, amd)}
        , tables{machine.memory, paging, 0x101}
        , hardware{config, machine, cpus, front_end}
    {
    }

    void map(u64 linear, u64 physical, u64 flags = kAll, unsigned level = 1)
    {
        tables.map(kRoot, linear, physical, flags, level);
        if (machine.cpus[0].paging() == Paging::pae) hardware.set_registers(0, machine.cpus[0]);
    }
    void set_entry(u64 linear, unsigned level, u64 value)
    {
        machine.memory.write(tables.entry_at(kRoot, linear, level), tables.entry_bytes(), value);
    }
    u64 entry(u64 linear, unsigned level = 1)
    {
        return machine.memory.read(tables.entry_at(kRoot, linear, level), tables.entry_bytes());
    }

    Outcome access(reference::Kind kind, u64 linear, unsigned bytes = 8, bool user = false)
    {
        return hardware.access(0, {linear, bytes, kind, user, false, false});
    }
    /// What each access takes until it is ready, and that it is no fault.
    u64 read(u64 linear, unsigned bytes = 8) { return taken(kRead, linear, bytes); }
    u64 write(u64 linear, unsigned bytes = 8) { return taken(kWrite, linear, bytes); }
    u64 fetch(u64 linear, unsigned bytes = 1) { return taken(kFetch, linear, bytes); }
    void flush() { REQUIRE_FALSE(hardware.mov_cr3(0, kRoot)); }
    void set_pcids(bool on)
    {
        const u64 pcide = u64{1} << reference::kPcide;
        const u64 old = machine.cpus[0].cr4;
        REQUIRE_FALSE(hardware.mov_cr4(0, on ? old | pcide : old & ~pcide));
    }

    TlbCounters counters(const std::string& tlb) const { return hardware.counters(0).tlbs.at(tlb); }
    LookupCounters psc_counters(unsigned level) const { return hardware.counters(0).pscs.at(level); }
    u64 walks() const { return hardware.counters(0).walks; }
    u64 references() const { return hardware.counters(0).memory_references; }
    u64 label(const std::string& name) const
    {
        const auto found = hardware.cycles_by().find(name);
        return found == hardware.cycles_by().end() ? 0 : found->second;
    }
    /// Entries as "page number in hex/pcid", with a "g" if global.
    Set tlb(const std::string& name) const { return described(hardware.tlb_content(0, name)); }
    Set psc(unsigned level) const { return described(hardware.psc_content(0, level)); }

private:
    u64 taken(reference::Kind kind, u64 linear, unsigned bytes)
    {
        const u64 before = hardware.cycles();
        const Outcome outcome = access(kind, linear, bytes);
        REQUIRE_FALSE(outcome.fault);
        return outcome.ready_at - before;
    }
    static Set described(const std::vector<Entry>& entries)
    {
        Set texts;
        for (const Entry& entry : entries) {
            std::ostringstream text;
            text << std::hex << entry.number << '/' << entry.pcid << (entry.global ? "g" : "");
            texts.insert(text.str());
        }
        return texts;
    }
};

u64 sum_of(const Cycles& by)
{
    u64 sum = 0;
    for (const auto& [label, cycles] : by) sum += cycles;
    return sum;
}

using Entries = std::vector<std::size_t>;

std::unique_ptr<Replacement> filled(Policy policy, std::size_t entries, unsigned ways, unsigned groups = 1,
                                    u64 seed = 1)
{
    auto made = make_replacement({policy, groups, seed}, entries, ways);
    for (std::size_t i = 0; i < entries; ++i) made->filled(i);
    return made;
}

}  // namespace

// --- replacement
// --------------------------------------------------------------------------------------------

TEST_CASE("model: lru", "[model]")
{
    const auto lru = filled(Policy::lru, 4, 4);
    CHECK(lru->victim({0, 1, 2, 3}) == 0);
    lru->hit(0);
    CHECK(lru->victim({0, 1, 2, 3}) == 1);
    CHECK(lru->victim({2, 3}) == 2);
    lru->filled(1);
    lru->hit(2);
    CHECK(lru->victim({0, 1, 2, 3}) == 3);
}

TEST_CASE("model: fifo", "[model]")
{
    const auto fifo = filled(Policy::fifo, 4, 4);
    fifo->hit(0);
    CHECK(fifo->victim({0, 1, 2, 3}) == 0);
    fifo->filled(0);
    CHECK(fifo->victim({0, 1, 2, 3}) == 1);
    CHECK(fifo->victim({0, 3}) == 3);
}

TEST_CASE("model: random is splitmix64", "[model]")
{
    // The first outputs for this seed: 6457827717110365317, 3203168211198807973, 9817491932198370423,
    // 4593380528125082431, 16408922859458223821.
    const auto random = filled(Policy::random, 10, 10, 1, 1234567);
    const Entries all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    CHECK(random->victim(all) == 7);
    random->hit(3);
    CHECK(random->victim(all) == 3);
    CHECK(random->victim({4, 5, 6, 7}) == 7);
    CHECK(random->victim({4, 5, 6, 7}) == 7);
    CHECK(random->victim({8, 9}) == 9);
}

TEST_CASE("model: tree-plru", "[model]")
{
    const auto tree = filled(Policy::tree_plru, 4, 4);  // root: low; low node: low; high node: low
    CHECK(tree->victim({0, 1, 2, 3}) == 0);
    tree->hit(0);  // root: high; low node: high
    CHECK(tree->victim({0, 1, 2, 3}) == 2);
    CHECK(tree->victim({0, 1}) == 1);
    CHECK(tree->victim({0}) == 0);
    tree->hit(2);  // root: low; high node: high
    CHECK(tree->victim({0, 1, 2, 3}) == 1);
    CHECK(tree->victim({2, 3}) == 3);

    const auto three = filled(Policy::tree_plru, 3, 3);  // root: low; low node: low; high node: high
    CHECK(three->victim({0, 1, 2}) == 0);
    three->hit(0);  // root: high; the high node names a way that is not there
    CHECK(three->victim({0, 1, 2}) == 2);

    const auto rows = filled(Policy::tree_plru, 4, 2);  // two rows
    rows->hit(0);
    CHECK(rows->victim({0, 1}) == 1);
    CHECK(rows->victim({2, 3}) == 2);
}

TEST_CASE("model: bit-plru", "[model]")
{
    const auto bits = filled(Policy::bit_plru, 4, 4);  // the fourth fill left bit 3 alone
    CHECK(bits->victim({0, 1, 2, 3}) == 0);
    CHECK(bits->victim({2, 3}) == 2);
    bits->hit(0);
    bits->hit(1);
    CHECK(bits->victim({0, 1, 2, 3}) == 2);
    CHECK(bits->victim({0, 1}) == 0);  // both bits are set
    bits->hit(2);                      // all: bit 2 stays
    CHECK(bits->victim({0, 1, 2, 3}) == 0);
    CHECK(bits->victim({2, 3}) == 3);
}

TEST_CASE("model: srrip", "[model]")
{
    const auto srrip = filled(Policy::srrip, 3, 3);  // 2 2 2
    srrip->hit(0);                                   // 0 2 2
    CHECK(srrip->victim({0, 1, 2}) == 1);            // 1 3 3
    srrip->filled(1);                                // 1 2 3
    CHECK(srrip->victim({0, 1, 2}) == 2);
    srrip->filled(2);                   // 1 2 2
    CHECK(srrip->victim({0, 2}) == 2);  // 2 2 3: way 1 is no candidate
    srrip->hit(2);                      // 2 2 0
    CHECK(srrip->victim({1, 2}) == 1);  // 2 3 1
    srrip->hit(1);                      // 2 0 1
    CHECK(srrip->victim({0, 1, 2}) == 0);
}

TEST_CASE("model: mru-groups", "[model]")
{
    const auto groups = filled(Policy::mru_groups, 4, 4, 2);  // group 1 was last; both trees name low
    CHECK(groups->victim({0, 1, 2, 3}) == 0);
    groups->filled(0);  // group 0; its tree names high
    CHECK(groups->victim({0, 1, 2, 3}) == 2);
    CHECK(groups->victim({0, 1}) == 1);  // its own group, where no other has a candidate
    groups->hit(2);
    CHECK(groups->victim({0, 1, 2, 3}) == 1);
    CHECK(groups->victim({2, 3}) == 3);

    const auto three = filled(Policy::mru_groups, 6, 6, 3);
    three->hit(0);
    CHECK(three->victim({0, 1, 4, 5}) == 4);  // group 1 has no candidate
    three->hit(4);
    CHECK(three->victim({0, 1, 2, 3, 4, 5}) == 1);
}

TEST_CASE("model: index functions", "[model]")
{
    const Index linear;
    CHECK(linear.set_of(23, 5) == 3);
    const Index xor_two{{0b0101, 0b1010}};
    CHECK(xor_two.set_of(0b0001, 4) == 1);
    CHECK(xor_two.set_of(0b0101, 4) == 0);
    CHECK(xor_two.set_of(0b1101, 4) == 2);
    CHECK(xor_two.set_of(0b0110, 4) == 3);
}

TEST_CASE("model: an array's views", "[model]")
{
    // Sixteen entries. 4K: four sets of three ways. 2M: the fourth way of each. 1G: two sets of two ways in
    // rows of their own.
    ArrayConfig config;
    config.entries = 16;
    config.ways = 4;
    config.views = {{k4k, 3, 0, 4}, {k2m, 1, 3, 4}, {k1g, 2, 1, 8}};
    Array made{config};
    const auto page = [](EntryKind kind, u64 number) {
        Entry entry;
        entry.kind = kind;
        entry.number = number;
        return entry;
    };
    for (const u64 number : {1u, 5u, 9u}) CHECK_FALSE(made.fill(page(k4k, number)));
    CHECK(made.find(k4k, 5, 0) == 5);
    CHECK(made.find(k4k, 9, 0) == 6);
    CHECK(made.fill(page(k4k, 13))->number == 1);  // the least recently filled
    CHECK(made.find(k4k, 13, 0) == 4);
    CHECK_FALSE(made.fill(page(k2m, 1)));
    CHECK(made.find(k2m, 1, 0) == 7);
    CHECK_FALSE(made.fill(page(k1g, 1)));  // set 1 is the entries 9 and 10
    CHECK(made.find(k1g, 1, 0) == 9);
    CHECK_FALSE(made.fill(page(k4k, 2)));  // 8: free
    CHECK_FALSE(made.fill(page(k4k, 6)));  // 10: free
    CHECK(made.fill(page(k4k, 10))->kind == k1g);
    CHECK_FALSE(made.find(k1g, 1, 0));
    CHECK_FALSE(made.find(k2m, 5, 0));
}

// --- TLBs
// -----------------------------------------------------------------------------------------------------

TEST_CASE("model: a walk fills all levels, a hit in the second refills the first", "[model]")
{
    Guest guest{plain()};
    for (u64 page = 0; page < 6; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    for (u64 page = 0; page < 5; ++page) guest.read(0x40'0000 + (page << 12));
    CHECK(guest.counters("l1d") == TlbCounters{5, 0, 0, 0, 5, 1});
    CHECK(guest.counters("l2") == TlbCounters{5, 0, 0, 0, 5, 0});
    CHECK(guest.counters("l1i") == TlbCounters{});
    CHECK(guest.tlb("l1d") == Set{"401/0", "402/0", "403/0", "404/0"});
    CHECK(guest.tlb("l2") == Set{"400/0", "401/0", "402/0", "403/0", "404/0"});
    CHECK(guest.walks() == 5);
    CHECK(guest.references() == 20);

    guest.read(0x40'0000);
    CHECK(guest.counters("l1d") == TlbCounters{6, 0, 0, 0, 6, 2});
    CHECK(guest.counters("l2") == TlbCounters{6, 1, 0, 0, 5, 0});
    CHECK(guest.tlb("l1d") == Set{"400/0", "402/0", "403/0", "404/0"});
    guest.read(0x40'0000);
    CHECK(guest.counters("l1d") == TlbCounters{7, 1, 0, 0, 6, 2});
    CHECK(guest.counters("l2").lookups == 6);
    // A fetch asks its own first level, and the same second.
    guest.fetch(0x40'0000);
    CHECK(guest.counters("l1i") == TlbCounters{1, 0, 0, 0, 1, 0});
    CHECK(guest.counters("l2").hits == 2);
    CHECK(guest.walks() == 5);
}

TEST_CASE("model: the replacement policy is told of hits", "[model]")
{
    Config config = plain();
    config.tlbs = {tlb("l1", 1, "ls", {array(1, 2, {k4k})}, 1)};
    Guest guest{config};
    for (u64 page = 0; page < 3; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    for (const u64 page : {0u, 1u, 0u, 2u}) guest.read(0x40'0000 + (page << 12));
    CHECK(guest.tlb("l1") == Set{"400/0", "402/0"});

    config.tlbs.clear();
    config.pscs = {psc(2, 2)};
    Guest walker{config};
    for (u64 page = 0; page < 3; ++page) walker.map(0x40'0000 + (page << 21), 0x1'0000);
    for (const u64 page : {0u, 1u, 0u, 2u}) walker.read(0x40'0000 + (page << 21));
    CHECK(walker.psc(2) == Set{"2/0", "4/0"});

    // Each read loads a table entry, whose line is used again, and another line of data.
    config.pscs = {psc(2), psc(3), psc(4)};
    config.data_caches = {{"l1d", 1, 2, 64, 4, 2, {}, {}}};
    Guest loader{config};
    loader.map(0x40'0000, 0x1'0000);
    for (u64 line = 0; line < 4; ++line) loader.read(0x40'0000 + (line << 6));
    CHECK(loader.hardware.counters(0).data_caches.at("l1d") == LookupCounters{4 + 1 + 3 * 2, 3});
}

TEST_CASE("model: a level that does not refill", "[model]")
{
    Config config = plain();
    config.tlbs[2].refills = false;
    Guest guest{config};
    for (u64 page = 0; page < 5; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    for (u64 page = 0; page < 5; ++page) guest.read(0x40'0000 + (page << 12));
    guest.read(0x40'0000);
    guest.read(0x40'0000);
    CHECK(guest.counters("l1d") == TlbCounters{7, 0, 0, 0, 5, 1});
    CHECK(guest.counters("l2").hits == 2);
}

TEST_CASE("model: an exclusive level", "[model]")
{
    Config config = plain();
    config.tlbs[1].arrays = {array(1, 2, {k4k})};
    config.tlbs[2].inclusion = Inclusion::exclusive;
    Guest guest{config};
    for (u64 page = 0; page < 3; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    for (u64 page = 0; page < 2; ++page) guest.read(0x40'0000 + (page << 12));
    CHECK(guest.tlb("l2").empty());
    guest.read(0x40'2000);
    CHECK(guest.tlb("l1d") == Set{"401/0", "402/0"});
    CHECK(guest.tlb("l2") == Set{"400/0"});
    CHECK(guest.counters("l2") == TlbCounters{3, 0, 0, 0, 1, 0});
    // The hit moves the entry; what makes room for it goes the other way.
    guest.read(0x40'0000);
    CHECK(guest.tlb("l1d") == Set{"400/0", "402/0"});
    CHECK(guest.tlb("l2") == Set{"401/0"});
    CHECK(guest.counters("l2") == TlbCounters{4, 1, 0, 0, 2, 0});
    CHECK(guest.walks() == 3);
}

TEST_CASE("model: a level that takes evictions", "[model]")
{
    Config config = plain();
    config.tlbs[1].arrays = {array(1, 1, {k4k})};
    config.tlbs[2].arrays = {array(1, 2, {k4k})};
    config.tlbs[2].takes_evictions = true;
    Guest guest{config};
    for (u64 page = 0; page < 3; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    guest.read(0x40'0000);
    guest.read(0x40'1000);
    // l2 is filled with 401, then with the evicted 400, which is there and is overwritten.
    CHECK(guest.counters("l2") == TlbCounters{2, 0, 0, 0, 3, 0});
    // 402 replaces 401, the older one in l2; then 401, which l1d evicts, replaces 400.
    guest.read(0x40'2000);
    CHECK(guest.tlb("l1d") == Set{"402/0"});
    CHECK(guest.tlb("l2") == Set{"401/0", "402/0"});
    CHECK(guest.counters("l2") == TlbCounters{3, 0, 0, 0, 5, 2});
}

TEST_CASE("model: an inclusive level", "[model]")
{
    Config config = plain();
    config.tlbs[2].arrays = {array(1, 2, {k4k})};
    config.tlbs[2].inclusion = Inclusion::inclusive;
    Guest guest{config};
    for (u64 page = 0; page < 3; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    guest.fetch(0x40'0000);
    guest.read(0x40'0000);
    guest.read(0x40'1000);
    CHECK(guest.tlb("l1d") == Set{"400/0", "401/0"});
    guest.read(0x40'2000);  // l2 evicts 400: from l1i too
    CHECK(guest.tlb("l2") == Set{"401/0", "402/0"});
    CHECK(guest.tlb("l1d") == Set{"401/0", "402/0"});
    CHECK(guest.tlb("l1i").empty());
    CHECK(guest.counters("l1d").evictions == 0);
}

TEST_CASE("model: an inclusive level evicts a fragment of what a lower level holds whole", "[model]")
{
    Config config = plain();
    config.tlbs[2].arrays = {array(1, 1, {k4k})};
    config.tlbs[2].inclusion = Inclusion::inclusive;
    config.tlbs[2].splinters = true;
    Guest guest{config};
    guest.map(0x20'0000, 0x20'0000, kAll, 2);
    guest.map(0x1000, 0x2000);
    guest.read(0x21'0000);
    guest.fetch(0x21'0000);
    CHECK(guest.tlb("l1d") == Set{"1/0"});
    CHECK(guest.tlb("l1i") == Set{"210/0"});
    guest.read(0x1000);
    CHECK(guest.tlb("l2") == Set{"1/0"});
    CHECK(guest.tlb("l1d") == Set{"1/0"});  // of these, "1" is the 4K page
    CHECK(guest.access(kRead, 0x1000).physical == std::vector<u64>{0x2000});
    CHECK(guest.tlb("l1i").empty());
}

TEST_CASE("model: what moves between levels is the whole page", "[model]")
{
    Config config = plain();
    config.tlbs[1].arrays = {array(1, 1, {k4k})};
    config.tlbs[2].arrays = {array(1, 4, {k2m})};
    config.tlbs[2].inclusion = Inclusion::exclusive;
    Guest guest{config};
    guest.map(0x20'0000, 0x20'0000, kAll, 2);
    guest.map(0x60'0000, 0x40'0000, kAll, 2);
    guest.read(0x21'0000);
    CHECK(guest.tlb("l1d") == Set{"210/0"});
    // The fragment is evicted, and l2 has all of its page.
    guest.read(0x60'3000);
    CHECK(guest.tlb("l1d") == Set{"603/0"});
    CHECK(guest.tlb("l2") == Set{"1/0"});
    const u64 walks = guest.walks();
    CHECK(guest.access(kRead, 0x23'4567).physical == std::vector<u64>{0x23'4567});
    CHECK(guest.walks() == walks);
    CHECK(guest.tlb("l1d") == Set{"234/0"});
    CHECK(guest.tlb("l2") == Set{"3/0"});
}

TEST_CASE("model: a page that makes room for a PDE goes nowhere", "[model]")
{
    Config config = plain();
    config.tlbs[2].arrays = {array(1, 2, {k4k, EntryKind::pde})};
    config.tlbs[2].inclusion = Inclusion::inclusive;
    config.tlbs.push_back(tlb("l3", 3, "fls", {array(1, 8, {k4k})}, 9));
    config.tlbs[3].inclusion = Inclusion::exclusive;
    config.pscs = {{2, {}, "l2"}};
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.map(0x20'1000, 0x3000);
    guest.map(0x40'1000, 0x3000);
    guest.read(0x1000);
    // The PDE replaces the PDE, and the page the page, which goes to l3.
    guest.read(0x20'1000);
    CHECK(guest.tlb("l2") == Set{"201/0"});
    CHECK(guest.counters("l2").evictions == 2);
    CHECK(guest.tlb("l3") == Set{"1/0"});
    // Page 1 comes back from there, and the PDE makes room for it: it goes nowhere.
    guest.read(0x1000);
    CHECK(guest.tlb("l2") == Set{"1/0", "201/0"});
    CHECK(guest.tlb("l3").empty());
    CHECK(guest.tlb("l1d") == Set{"1/0", "201/0"});
    // The PDE of 40'1000 replaces page 201, then page 401 page 1, which alone goes to l3.
    guest.read(0x40'1000);
    CHECK(guest.tlb("l2") == Set{"401/0"});
    CHECK(guest.psc(2) == Set{"2/0"});
    CHECK(guest.counters("l2").evictions == 5);
    CHECK(guest.tlb("l3") == Set{"1/0"});
    CHECK(guest.tlb("l1d") == Set{"401/0"});
}

TEST_CASE("model: a global page and another of the same number are two", "[model]")
{
    Config config = plain();
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    REQUIRE_FALSE(guest.hardware.mov_cr4(0, guest.machine.cpus[0].cr4 | u64{1} << reference::kPge));
    guest.read(0x1000);
    // The entry has D clear, its PTE is global by now: the dirty walk fills another entry.
    guest.set_entry(0x1000, 1, 0x2000 | (kAll & ~kD));
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x1000));
    guest.read(0x1000);
    guest.set_entry(0x1000, 1, 0x2000 | kAll | kG);
    guest.write(0x1000);
    CHECK(guest.tlb("l1d") == Set{"1/0", "1/0g"});
}

TEST_CASE("model: a hit in the third level refills an exclusive second", "[model]")
{
    Config config = plain();
    config.tlbs[1].arrays = {array(1, 1, {k4k})};
    config.tlbs[2].inclusion = Inclusion::exclusive;
    config.tlbs.push_back(tlb("l3", 3, "fls", {array(1, 8, {k4k})}, 9));
    Guest guest{config};
    for (u64 page = 0; page < 2; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
    guest.fetch(0x40'0000);
    CHECK(guest.tlb("l2").empty());
    CHECK(guest.tlb("l3") == Set{"400/0"});
    guest.read(0x40'0000);
    CHECK(guest.counters("l3") == TlbCounters{2, 1, 0, 0, 1, 0});
    CHECK(guest.tlb("l2") == Set{"400/0"});
    CHECK(guest.tlb("l1d") == Set{"400/0"});
}

TEST_CASE("model: hits in the first level count as use in a later one", "[model]")
{
    for (const bool touched : {false, true}) {
        Config config = plain();
        config.tlbs[2].arrays = {array(1, 2, {k4k})};
        config.tlbs[2].touched_by_earlier_hits = touched;
        Guest guest{config};
        for (u64 page = 0; page < 3; ++page) guest.map(0x40'0000 + (page << 12), 0x1'0000);
        guest.read(0x40'0000);
        guest.read(0x40'1000);
        guest.read(0x40'0000);
        guest.read(0x40'2000);
        CHECK(guest.tlb("l2") == (touched ? Set{"400/0", "402/0"} : Set{"401/0", "402/0"}));
        CHECK(guest.counters("l2") == TlbCounters{3, 0, 0, 0, 3, 1});
    }
}

TEST_CASE("model: larger pages and their fragments", "[model]")
{
    Config config = plain();
    config.tlbs[2].arrays = {array(1, 4, {k2m})};
    Guest guest{config};
    guest.map(0x20'0000, 0x20'0000, kAll, 2);
    guest.map(0x8000'0000, 0x4000'0000, kAll, 3);
    guest.map(0x1000, 0x2000);
    CHECK(guest.access(kRead, 0x21'2345).physical == std::vector<u64>{0x21'2345});
    CHECK(guest.access(kRead, 0x9123'4567).physical == std::vector<u64>{0x5123'4567});
    CHECK(guest.tlb("l1d") == Set{"1/0", "489/0"});  // on level 1 always: the 2M fragment of the 1G page
    CHECK(guest.tlb("l2") == Set{"1/0"});            // this one does not splinter
    CHECK(guest.access(kRead, 0x9123'4567).physical == std::vector<u64>{0x5123'4567});
    CHECK(guest.counters("l1d").hits == 1);
    guest.access(kFetch, 0x21'2345);  // l1i has 4K alone
    CHECK(guest.tlb("l1i") == Set{"212/0"});
    CHECK(guest.access(kFetch, 0x21'2345).physical == std::vector<u64>{0x21'2345});
    guest.access(kFetch, 0x21'3345);
    CHECK(guest.tlb("l1i") == Set{"212/0", "213/0"});
    guest.read(0x1000);  // l2 has nothing for 4K pages
    CHECK(guest.counters("l2").fills == 1);

    // INVLPG of one address of a page: all its fragments.
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x3f'0000));
    CHECK(guest.tlb("l1i").empty());
    CHECK(guest.tlb("l2").empty());
    CHECK(guest.tlb("l1d") == Set{"1/0", "489/0"});  // of these, "1" is the 4K page
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x8000'0000));
    CHECK(guest.tlb("l1d") == Set{"1/0"});

    config.tlbs[2].splinters = true;
    Guest other{config};
    other.map(0x8000'0000, 0x4000'0000, kAll, 3);
    other.read(0x9123'4567);
    CHECK(other.tlb("l2") == Set{"489/0"});
    // A refill from a fragment is at most that fragment.
    other.fetch(0x9123'4567);
    CHECK(other.counters("l2").hits == 1);
    CHECK(other.tlb("l1i") == Set{"91234/0"});
}

TEST_CASE("model: 4M pages in two-level paging", "[model]")
{
    Config config = plain();
    config.tlbs[2].arrays = {array(1, 4, {k4m})};
    Guest guest{config, Paging::two_level};
    guest.map(0x80'0000, 0x40'0000, kAll, 2);
    CHECK(guest.access(kRead, 0xa3'4567).physical == std::vector<u64>{0x63'4567});
    CHECK(guest.tlb("l1d") == Set{"5/0"});
    CHECK(guest.tlb("l2") == Set{"2/0"});
    CHECK(guest.access(kRead, 0x83'4567).physical == std::vector<u64>{0x43'4567});
    CHECK(guest.counters("l2").hits == 1);
}

TEST_CASE("model: a write to an entry without D", "[model]")
{
    Guest guest{plain()};
    guest.map(0x1000, 0x2000, kAll & ~kD);
    guest.read(0x1000);
    CHECK((guest.entry(0x1000) & kD) == 0);
    guest.write(0x1000);
    CHECK((guest.entry(0x1000) & kD) != 0);
    // l2 was not asked; both levels were filled again.
    CHECK(guest.counters("l1d") == TlbCounters{2, 1, 1, 0, 2, 0});
    CHECK(guest.counters("l2") == TlbCounters{1, 0, 0, 0, 2, 0});
    CHECK(guest.walks() == 2);
    guest.write(0x1000);
    CHECK(guest.counters("l1d") == TlbCounters{3, 2, 1, 0, 2, 0});
}

TEST_CASE("model: a denied match is dropped everywhere, and walked afresh", "[model]")
{
    Config config = plain();
    config.pscs = {psc(2), psc(3)};
    Guest guest{config};
    guest.map(0x1000, 0x2000, kAll & ~kW);
    guest.map(0x2000, 0x3000);
    guest.read(0x1000);
    guest.read(0x2000);
    guest.fetch(0x1000);
    // The entry in memory permits it now: no fault, although nobody was told.
    guest.set_entry(0x1000, 1, 0x2000 | kAll);
    CHECK_FALSE(guest.access(kWrite, 0x1000).fault);
    CHECK(guest.counters("l1d") == TlbCounters{3, 0, 0, 1, 3, 0});
    CHECK(guest.counters("l2") == TlbCounters{3, 1, 0, 0, 3, 0});
    CHECK(guest.tlb("l1i").empty());
    CHECK(guest.tlb("l1d") == Set{"1/0", "2/0"});
    // That walk asked no paging-structure cache.
    CHECK(guest.psc_counters(2) == LookupCounters{2, 1});
    CHECK(guest.psc_counters(3) == LookupCounters{1, 0});

    // It still denies: the fault, after one walk.
    guest.set_entry(0x1000, 1, 0x2000 | (kAll & ~kW));
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x1000));
    guest.read(0x1000);
    const u64 walks = guest.walks();
    const Outcome outcome = guest.access(kWrite, 0x1000);
    REQUIRE(outcome.fault);
    CHECK(*outcome.fault == reference::Fault{14, 3, 0x1000});
    CHECK(guest.walks() == walks + 1);
    CHECK(guest.tlb("l1d") == Set{"2/0"});
    // Rights are judged with the registers as they are: without WP it may.
    guest.read(0x1000);
    REQUIRE_FALSE(guest.hardware.mov_cr0(0, guest.machine.cpus[0].cr0 & ~(u64{1} << 16)));
    CHECK_FALSE(guest.access(kWrite, 0x1000).fault);
}

TEST_CASE("model: a stale entry is used until it is dropped", "[model]")
{
    Guest guest{plain()};
    guest.map(0x1000, 0x2000);
    guest.read(0x1000);
    guest.set_entry(0x1000, 1, 0x3000 | kAll);
    CHECK(guest.access(kRead, 0x1008).physical == std::vector<u64>{0x2008});
    CHECK(guest.access(kFetch, 0x1008).physical == std::vector<u64>{0x2008});  // from l2
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x1ff8));
    CHECK(guest.access(kRead, 0x1008).physical == std::vector<u64>{0x3008});
}

// --- paging-structure caches
// ------------------------------------------------------------------------------------

TEST_CASE("model: paging-structure caches", "[model]")
{
    Config config = plain();
    config.tlbs.clear();
    config.pscs = {psc(2), psc(3), psc(4), psc(5)};
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.map(0x20'1000, 0x3000);
    guest.map(0x4000'1000, 0x4000);
    guest.map(0x80'0000'1000, 0x5000);
    guest.map(0x40'0000, 0, kAll, 2);
    guest.read(0x1000);
    CHECK(guest.references() == 4);
    CHECK(guest.psc_counters(2) == LookupCounters{1, 0});
    CHECK(guest.psc_counters(4) == LookupCounters{1, 0});
    CHECK(guest.psc_counters(5) == LookupCounters{0, 0});
    CHECK(guest.psc(2) == Set{"0/0"});
    CHECK(guest.psc(3) == Set{"0/0"});
    CHECK(guest.psc(4) == Set{"0/0"});
    guest.read(0x1000);
    CHECK(guest.references() == 5);
    CHECK(guest.psc_counters(2) == LookupCounters{2, 1});
    CHECK(guest.psc_counters(3) == LookupCounters{1, 0});
    guest.read(0x20'1000);  // a PDPTE hit
    CHECK(guest.references() == 7);
    CHECK(guest.psc(2) == Set{"0/0", "1/0"});
    guest.read(0x4000'1000);  // a PML4E hit
    CHECK(guest.references() == 10);
    guest.read(0x80'0000'1000);
    CHECK(guest.references() == 14);
    CHECK(guest.psc(4) == Set{"0/0", "1/0"});
    guest.read(0x40'0000);  // a 2M leaf is no PDE of a table
    CHECK(guest.references() == 15);
    CHECK(guest.psc(2) == Set{"0/0", "1/0", "200/0", "40000/0"});
}

TEST_CASE("model: a walk from a stale structure entry", "[model]")
{
    Config config = plain();
    config.tlbs.clear();
    config.pscs = {psc(2), psc(3)};
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.map(0x20'1000, 0x3000);
    guest.map(0x20'2000, 0x4000);
    guest.read(0x1000);
    // The PDE names the other table now. The stale one succeeds: it is used.
    guest.set_entry(0x1000, 2, guest.entry(0x20'1000, 2));
    CHECK(guest.access(kRead, 0x1000).physical == std::vector<u64>{0x2000});
    // It has no entry for this page: again from the root, and what that reads replaces it.
    CHECK(guest.access(kRead, 0x2000).physical == std::vector<u64>{0x4000});
    CHECK(guest.references() == 4 + 1 + 1 + 4);
    CHECK(guest.walks() == 3);
    CHECK(guest.access(kRead, 0x1000).physical == std::vector<u64>{0x3000});
    CHECK(guest.references() == 11);

    // The path's rights are cached with it.
    guest.set_entry(0x1000, 2, guest.entry(0x20'1000, 2) & ~kW);
    CHECK_FALSE(guest.access(kWrite, 0x1000).fault);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0));
    CHECK(guest.access(kWrite, 0x1000).fault);
    // A walk that fails fills nothing, and drops what is cached of the address.
    CHECK(guest.psc(2).empty());
    CHECK(guest.psc(3).empty());
    guest.read(0x1000);
    CHECK(guest.psc(2) == Set{"0/0"});
    guest.set_entry(0x1000, 2, guest.entry(0x20'1000, 2));
    CHECK_FALSE(guest.access(kWrite, 0x1000).fault);  // the stale R/W = 0 would deny: from the root
    CHECK_FALSE(guest.access(kWrite, 0x1000).fault);
}

TEST_CASE("model: rights of the whole path come with a structure entry", "[model]")
{
    for (const u64 right : {kU, kW}) {
        Config config = plain();
        config.tlbs.clear();
        config.pscs = {psc(3)};
        Guest guest{config};
        guest.map(0x1000, 0x2000);
        guest.set_entry(0x1000, 3, guest.entry(0x1000, 3) & ~right);
        guest.read(0x1000);
        CHECK(guest.psc(3) == Set{"0/0"});
        CHECK(guest.access(right == kU ? kRead : kWrite, 0x1000, 8, true).fault);
    }
}

TEST_CASE("model: accessed bits are set in what a walk reads", "[model]")
{
    Config config = plain();
    config.tlbs.clear();
    config.pscs = {psc(2)};
    Guest guest{config};
    guest.map(0x1000, 0x2000, kAll & ~kA);
    guest.read(0x1000);
    CHECK((guest.entry(0x1000) & kA) != 0);
    guest.set_entry(0x1000, 1, 0x2000 | (kAll & ~kA));
    guest.set_entry(0x1000, 2, guest.entry(0x1000, 2) & ~kA);
    guest.read(0x1000);
    CHECK((guest.entry(0x1000) & kA) != 0);
    CHECK((guest.entry(0x1000, 2) & kA) == 0);  // was not read
    // A walk that faults sets none.
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0));
    guest.set_entry(0x1000, 1, 0x2000 | (kAll & ~kA & ~kW));
    CHECK(guest.access(kWrite, 0x1000).fault);
    CHECK((guest.entry(0x1000, 2) & kA) == 0);
    CHECK((guest.entry(0x1000) & kA) == 0);
}

TEST_CASE("model: PDEs in a TLB's array", "[model]")
{
    Config config = plain();
    config.tlbs[1].arrays = {array(1, 1, {k4k})};
    config.tlbs[2].arrays = {array(1, 3, {k4k, EntryKind::pde})};
    config.pscs = {{2, {}, "l2"}};
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.map(0x2000, 0x2000);
    guest.map(0x20'1000, 0x3000);
    guest.read(0x1000);
    CHECK(guest.tlb("l2") == Set{"1/0"});
    CHECK(guest.psc(2) == Set{"0/0"});
    CHECK(guest.counters("l2") == TlbCounters{1, 0, 0, 0, 1, 0});
    guest.read(0x2000);  // by the PDE, which is used by that
    CHECK(guest.references() == 5);
    CHECK(guest.psc_counters(2) == LookupCounters{2, 1});
    CHECK(guest.tlb("l2") == Set{"1/0", "2/0"});
    // The array is full. The new PDE replaces page 1, then the new page the old PDE: pages and PDEs are
    // alike.
    guest.read(0x20'1000);
    CHECK(guest.tlb("l2") == Set{"2/0", "201/0"});
    CHECK(guest.psc(2) == Set{"1/0"});
    CHECK(guest.counters("l2") == TlbCounters{3, 0, 0, 0, 3, 2});
    // INVLPG, Intel's: all of the current PCID. Of the pages, the one.
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x2000));
    CHECK(guest.tlb("l2") == Set{"201/0"});
    CHECK(guest.psc(2).empty());
}

// --- what is dropped
// --------------------------------------------------------------------------------------------

namespace {

constexpr u64 kA1 = 0x1000'0000, kB1 = 0x1000'1000, kGlobalPage = 0x4000'0000;

Config wide()
{
    Config config = plain();
    config.tlbs = {tlb("l1", 1, "fls", {array(1, 64, {k4k, k2m})}, 1)};
    config.pscs = {psc(2), psc(3)};
    return config;
}

/// Current is PCID 2. Entries: pages 10000 of PCIDs 1 and 2, 10001 of PCID 2, the global 40000 of PCID 1;
/// what led to them.
class PcidGuest : public Guest {
public:
    explicit PcidGuest(bool amd = false, bool tce = false)
        : Guest{wide(), Paging::four_level, kBlocking, 1, amd}
    {
        map(kA1, 0x2000);
        map(kB1, 0x3000, kAll & ~kW);
        map(kGlobalPage, 0x4000, kAll | kG);
        const reference::Cpu& cpu = machine.cpus[0];
        REQUIRE_FALSE(hardware.mov_cr4(0, cpu.cr4 | u64{1} << reference::kPge));
        if (tce) REQUIRE_FALSE(hardware.wrmsr(0, 0xc000'0080, cpu.efer | u64{1} << 15));
        set_pcids(true);
        REQUIRE_FALSE(hardware.mov_cr3(0, kRoot | 1));
        read(kA1);
        read(kGlobalPage);
        REQUIRE_FALSE(hardware.mov_cr3(0, kRoot | 2));
        read(kA1);
        read(kB1);
        read(kGlobalPage);
        REQUIRE(tlb("l1") == Set{"10000/1", "40000/1g", "10000/2", "10001/2"});
        REQUIRE(psc(2) == Set{"80/1", "200/1", "80/2"});
        REQUIRE(psc(3) == Set{"0/1", "1/1", "0/2"});
    }
};

const Set kAllPages{"10000/1", "40000/1g", "10000/2", "10001/2"};
const Set kAllPdes{"80/1", "200/1", "80/2"};
const Set kAllPdptes{"0/1", "1/1", "0/2"};

}  // namespace

TEST_CASE("model: INVLPG", "[model]")
{
    SECTION("Intel")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invlpg(0, kA1 + 0x123));
        CHECK(guest.tlb("l1") == Set{"10000/1", "40000/1g", "10001/2"});
        CHECK(guest.psc(2) == Set{"80/1", "200/1"});
        CHECK(guest.psc(3) == Set{"0/1", "1/1"});
    }
    SECTION("of a global page")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invlpg(0, kGlobalPage));
        CHECK(guest.tlb("l1") == Set{"10000/1", "10000/2", "10001/2"});
    }
    SECTION("AMD")
    {
        PcidGuest guest{true};
        REQUIRE_FALSE(guest.hardware.invlpg(0, kA1));
        CHECK(guest.tlb("l1") == Set{"10000/1", "40000/1g", "10001/2"});
        CHECK(guest.psc(2).empty());
        CHECK(guest.psc(3).empty());
    }
    SECTION("AMD with TCE")
    {
        PcidGuest guest{true, true};
        REQUIRE_FALSE(guest.hardware.invlpg(0, kA1 + 0x20'0000));
        CHECK(guest.tlb("l1") == kAllPages);
        CHECK(guest.psc(2) == kAllPdes);
        CHECK(guest.psc(3) == Set{"0/1", "1/1"});
        REQUIRE_FALSE(guest.hardware.invlpg(0, kA1));
        CHECK(guest.tlb("l1") == Set{"10000/1", "40000/1g", "10001/2"});
        CHECK(guest.psc(2) == Set{"80/1", "200/1"});
    }
    SECTION("not canonical, or not at CPL 0")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invlpg(0, kA1 | u64{1} << 60));
        guest.hardware.set_cpl(0, 3);
        CHECK(guest.hardware.invlpg(0, kA1) == 13u);
        CHECK(guest.tlb("l1") == kAllPages);
        CHECK(guest.psc(2) == kAllPdes);
    }
}

TEST_CASE("model: INVPCID", "[model]")
{
    SECTION("type 0")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invpcid(0, 0, 1, kA1));
        CHECK(guest.tlb("l1") == Set{"40000/1g", "10000/2", "10001/2"});
        CHECK(guest.psc(2) == Set{"200/1", "80/2"});
        CHECK(guest.psc(3) == Set{"1/1", "0/2"});
        REQUIRE_FALSE(guest.hardware.invpcid(0, 0, 1, kGlobalPage));
        CHECK(guest.tlb("l1") == Set{"40000/1g", "10000/2", "10001/2"});
        CHECK(guest.psc(2) == Set{"80/2"});
    }
    SECTION("type 0, AMD")
    {
        PcidGuest guest{true};
        REQUIRE_FALSE(guest.hardware.invpcid(0, 0, 1, kA1));
        CHECK(guest.tlb("l1") == Set{"40000/1g", "10000/2", "10001/2"});
        CHECK(guest.psc(2).empty());
        CHECK(guest.psc(3).empty());
    }
    SECTION("type 0, AMD with TCE")
    {
        PcidGuest guest{true, true};
        REQUIRE_FALSE(guest.hardware.invpcid(0, 0, 1, kA1));
        CHECK(guest.psc(2) == Set{"200/1", "80/2"});
    }
    SECTION("type 1")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invpcid(0, 1, 1, 0));
        CHECK(guest.tlb("l1") == Set{"40000/1g", "10000/2", "10001/2"});
        CHECK(guest.psc(2) == Set{"80/2"});
        CHECK(guest.psc(3) == Set{"0/2"});
    }
    SECTION("type 2")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invpcid(0, 2, 0, 0));
        CHECK(guest.tlb("l1").empty());
        CHECK(guest.psc(2).empty());
    }
    SECTION("type 3")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.invpcid(0, 3, 0, 0));
        CHECK(guest.tlb("l1") == Set{"40000/1g"});
        CHECK(guest.psc(2).empty());
        CHECK(guest.psc(3).empty());
    }
    SECTION("refused")
    {
        PcidGuest guest;
        CHECK(guest.hardware.invpcid(0, 4, 0, 0) == 13u);
        CHECK(guest.tlb("l1") == kAllPages);
    }
}

TEST_CASE("model: MOV CR3", "[model]")
{
    SECTION("with PCIDs")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot | 1));
        CHECK(guest.tlb("l1") == Set{"40000/1g", "10000/2", "10001/2"});
        CHECK(guest.psc(2) == Set{"80/2"});
        CHECK(guest.psc(3) == Set{"0/2"});
    }
    SECTION("with PCIDs and bit 63")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot | 1 | kBit63));
        CHECK(guest.tlb("l1") == kAllPages);
        CHECK(guest.psc(2) == kAllPdes);
        const u64 walks = guest.walks();
        guest.read(kA1);
        CHECK(guest.walks() == walks);
    }
    SECTION("without PCIDs")
    {
        Guest guest{wide()};
        guest.map(kA1, 0x2000);
        guest.map(kGlobalPage, 0x4000, kAll | kG);
        REQUIRE_FALSE(guest.hardware.mov_cr4(0, guest.machine.cpus[0].cr4 | u64{1} << reference::kPge));
        guest.read(kA1);
        guest.read(kGlobalPage);
        CHECK(guest.tlb("l1") == Set{"10000/0", "40000/0g"});
        guest.flush();
        CHECK(guest.tlb("l1") == Set{"40000/0g"});
        CHECK(guest.psc(2).empty());
        CHECK(guest.psc(3).empty());
    }
    SECTION("on a CPU without PCIDs")
    {
        Config config = wide();
        config.pcid = false;
        Guest guest{config};
        guest.map(kA1, 0x2000);
        guest.set_pcids(true);
        guest.read(kA1);
        REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot | 1 | kBit63));
        CHECK(guest.tlb("l1").empty());
        CHECK(guest.psc(2).empty());
        guest.read(kA1);
        CHECK(guest.tlb("l1") == Set{"10000/0"});  // every PCID is 0
        REQUIRE_FALSE(guest.hardware.invpcid(0, 1, 7, 0));
        CHECK(guest.tlb("l1").empty());
        CHECK(guest.psc(2).empty());
    }
}

TEST_CASE("model: how many PCIDs a level keeps", "[model]")
{
    Config config = plain();
    config.tlbs = {tlb("l1", 1, "ls", {array(1, 16, {k4k})}, 1),
                   tlb("l2", 2, "ls", {array(1, 16, {k4k, EntryKind::pde})}, 1)};
    config.pscs = {{2, {}, "l2"}, psc(3)};
    config.tlbs[0].pcids_kept_flush = 0;
    config.tlbs[0].pcids_kept_noflush = 1;
    config.tlbs[1].pcids_kept_flush = 2;
    config.tlbs[1].pcids_kept_noflush = 3;
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.set_pcids(true);
    const auto move = [&](u64 pcid, u64 bit63) {
        REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot | pcid | bit63));
    };
    guest.read(0x1000);  // PCID 0 has been current too
    move(1, kBit63);
    CHECK(guest.tlb("l1").empty());
    CHECK(guest.tlb("l2") == Set{"1/0"});
    guest.read(0x1000);
    move(2, kBit63);
    guest.read(0x1000);
    CHECK(guest.tlb("l1") == Set{"1/2"});
    CHECK(guest.tlb("l2") == Set{"1/0", "1/1", "1/2"});
    CHECK(guest.psc(2) == Set{"0/0", "0/1", "0/2"});
    move(1, kBit63);  // recent: 1, 2, 0
    CHECK(guest.tlb("l1").empty());
    CHECK(guest.tlb("l2") == Set{"1/0", "1/1", "1/2"});
    guest.read(0x1000);
    move(3, kBit63);  // recent: 3, 1, 2
    CHECK(guest.tlb("l2") == Set{"1/1", "1/2"});
    CHECK(guest.psc(2) == Set{"0/0", "0/1", "0/2"});
    CHECK(guest.psc(3) == Set{"0/0", "0/1", "0/2"});
    move(2, 0);  // recent: 2, 3
    CHECK(guest.tlb("l2").empty());
    CHECK(guest.psc(2) == Set{"0/0", "0/1"});
}

TEST_CASE("model: changes of registers", "[model]")
{
    const auto toggle = [](Guest& guest, unsigned bit) {
        REQUIRE_FALSE(guest.hardware.mov_cr4(0, guest.machine.cpus[0].cr4 ^ u64{1} << bit));
    };
    const auto nothing_is_left = [](const Guest& guest) {
        CHECK(guest.tlb("l1").empty());
        CHECK(guest.psc(2).empty());
        CHECK(guest.psc(3).empty());
    };
    SECTION("CR4.PGE")
    {
        PcidGuest guest;
        toggle(guest, reference::kPge);
        nothing_is_left(guest);
    }
    SECTION("CR4.PSE")
    {
        PcidGuest guest;
        toggle(guest, reference::kPse);
        nothing_is_left(guest);
    }
    SECTION("CR4.PCIDE 1 to 0")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot | kBit63));
        CHECK(guest.tlb("l1") == kAllPages);
        guest.set_pcids(false);
        nothing_is_left(guest);
    }
    SECTION("EFER.NXE")
    {
        PcidGuest guest;
        REQUIRE_FALSE(guest.hardware.wrmsr(0, 0xc000'0080, guest.machine.cpus[0].efer ^ u64{1} << 11));
        nothing_is_left(guest);
    }
    SECTION("set")
    {
        PcidGuest guest;
        REQUIRE(guest.hardware.set_registers(0, guest.machine.cpus[0]));
        nothing_is_left(guest);
    }
    SECTION("CR0.PG")
    {
        Guest guest{wide()};
        guest.map(kA1, 0x2000);
        guest.read(kA1);
        REQUIRE_FALSE(guest.hardware.mov_cr0(0, guest.machine.cpus[0].cr0 & 0x7fff'ffff));
        nothing_is_left(guest);
    }
    SECTION("CR4.PAE")
    {
        Guest guest{wide(), Paging::two_level};
        guest.map(kA1, 0x2000);
        guest.read(kA1);
        CHECK(guest.tlb("l1") == Set{"10000/0"});
        toggle(guest, reference::kPae);
        CHECK(guest.machine.cpus[0].paging() == Paging::pae);
        nothing_is_left(guest);
    }
    SECTION("a load of the PDPTEs by MOV CR0")
    {
        Guest guest{wide(), Paging::pae};
        guest.map(kA1, 0x2000);
        guest.map(kB1, 0x2000, kAll | kG);
        toggle(guest, reference::kPge);
        guest.read(kA1);
        guest.read(kB1);
        CHECK(guest.psc(2) == Set{"80/0"});
        const u64 cr0 = guest.machine.cpus[0].cr0;
        REQUIRE_FALSE(guest.hardware.mov_cr0(0, cr0 ^ u64{1} << 16));
        CHECK(guest.tlb("l1") == Set{"10000/0", "10001/0g"});
        REQUIRE_FALSE(guest.hardware.mov_cr0(0, cr0 | u64{1} << 30));
        nothing_is_left(guest);
    }
    SECTION("a load of the PDPTEs by MOV CR4")
    {
        Guest guest{wide(), Paging::pae};
        guest.map(kA1, 0x2000);
        toggle(guest, reference::kSmep);
        guest.read(kA1);
        toggle(guest, reference::kSmap);
        CHECK(guest.tlb("l1") == Set{"10000/0"});
        toggle(guest, reference::kSmep);
        nothing_is_left(guest);
    }
    SECTION("CR4.SMEP 0 to 1")
    {
        PcidGuest guest;
        toggle(guest, reference::kSmep);
        nothing_is_left(guest);
    }
    SECTION("what drops nothing")
    {
        PcidGuest guest;
        reference::Cpu& cpu = guest.machine.cpus[0];
        REQUIRE_FALSE(guest.hardware.mov_cr0(0, cpu.cr0 ^ u64{1} << 16));
        for (const unsigned bit : {reference::kSmap, reference::kPke, reference::kPks}) toggle(guest, bit);
        REQUIRE_FALSE(guest.hardware.wrpkru(0, 0xff));
        REQUIRE_FALSE(guest.hardware.wrmsr(0, 0x6e1, 0xf0));
        guest.hardware.set_ac(0, true);
        guest.hardware.set_cpl(0, 3);
        CHECK(guest.hardware.mov_cr4(0, 0) == 13u);
        CHECK(guest.tlb("l1") == kAllPages);
        CHECK(guest.psc(2) == kAllPdes);
        CHECK(guest.psc(3) == kAllPdptes);
    }
    SECTION("CR4.SMEP 1 to 0")
    {
        PcidGuest guest;
        toggle(guest, reference::kSmep);
        guest.read(kA1);
        toggle(guest, reference::kSmep);
        CHECK(guest.tlb("l1") == Set{"10000/2"});
    }
}

TEST_CASE("model: a page fault drops its page", "[model]")
{
    PcidGuest guest;
    const Outcome outcome = guest.access(kWrite, kB1 + 8);
    REQUIRE(outcome.fault);
    CHECK(*outcome.fault == reference::Fault{14, 3, kB1 + 8});
    CHECK(guest.tlb("l1") == Set{"10000/1", "40000/1g", "10000/2"});
    CHECK(guest.psc(2) == Set{"80/1", "200/1"});
    CHECK(guest.psc(3) == Set{"0/1", "1/1"});
    // Fragments too: those of a 2M page, when its other half faults as a write.
    Config config = plain();
    config.tlbs = {tlb("l1", 1, "ls", {array(1, 16, {k4k})}, 1)};
    Guest other{config};
    other.map(0x20'0000, 0x20'0000, kAll & ~kW, 2);
    other.read(0x20'1000);
    other.read(0x20'2000);
    CHECK(other.tlb("l1") == Set{"201/0", "202/0"});
    CHECK(other.access(kWrite, 0x20'5000).fault);
    CHECK(other.tlb("l1").empty());
}

// --- accesses over two pages
// --------------------------------------------------------------------------------------

TEST_CASE("model: an access over two pages", "[model]")
{
    Guest guest{plain()};
    guest.map(0x1000, 0x2000, kAll & ~kD);
    guest.map(0x2000, 0x8000, kAll & ~kD & ~kW);
    // The second page will fault: the first is translated, as a read, and D stays clear.
    const Outcome outcome = guest.access(kWrite, 0x1ffc);
    REQUIRE(outcome.fault);
    CHECK(*outcome.fault == reference::Fault{14, 3, 0x2000});
    CHECK((guest.entry(0x1000) & kD) == 0);
    CHECK(guest.tlb("l1d") == Set{"1/0"});
    CHECK(guest.label("data.memory") == 0);
    // A stale entry of the second page does not let it pass.
    guest.set_entry(0x2000, 1, 0x8000 | kAll);
    CHECK(guest.access(kWrite, 0x1ffc).physical == std::vector<u64>{0x2ffc, 0x8000});
    guest.set_entry(0x2000, 1, 0x8000 | (kAll & ~kW));
    CHECK_FALSE(guest.access(kWrite, 0x2000).fault);
    CHECK(guest.access(kWrite, 0x1ffc).fault);
    CHECK(guest.access(kWrite, 0x2000).fault);
    // The first page faults: the second is not asked for.
    guest.set_entry(0x1000, 1, 0);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x1000));
    const u64 lookups = guest.counters("l1d").lookups;
    CHECK(guest.access(kRead, 0x1ffc).fault->cr2 == 0x1ffc);
    CHECK(guest.counters("l1d").lookups == lookups + 1);
}

TEST_CASE("model: several operands", "[model]")
{
    Guest guest{plain()};
    guest.map(0x1000, 0x2000, kAll & ~kD);
    guest.map(0x2000, 0x3000, kAll & ~kD);
    const std::vector<Operand> both{{0x1000, 8, kWrite, false, false, false},
                                    {0x2000, 8, kRead, false, false, false}};
    Execution execution = guest.hardware.execute(0, both);
    REQUIRE(execution.operands.size() == 2);
    CHECK_FALSE(execution.fault);
    CHECK((guest.entry(0x1000) & kD) != 0);

    guest.set_entry(0x1000, 1, 0x2000 | (kAll & ~kD));
    guest.set_entry(0x2000, 1, 0);
    guest.flush();
    const u64 loads_before = guest.hardware.counters(0).data_caches.at("l1d").lookups;
    execution = guest.hardware.execute(0, both);
    CHECK(execution.operands.size() == 2);
    REQUIRE(execution.fault);
    CHECK(execution.fault->cr2 == 0x2000);
    CHECK((guest.entry(0x1000) & kD) == 0);
    // The write that is held back has touched its data: 4 loads of each walk, and 1.
    CHECK(guest.hardware.counters(0).data_caches.at("l1d").lookups == loads_before + 9);

    execution = guest.hardware.execute(0, {both[0], {u64{1} << 60, 8, kRead, false, false, true}});
    CHECK(execution.operands.size() == 1);
    REQUIRE(execution.fault);
    CHECK(execution.fault->vector == reference::kStackFault);
    CHECK((guest.entry(0x1000) & kD) == 0);
}

// --- time: the closed forms
// ---------------------------------------------------------------------------------------

namespace {

constexpr u64 kT = 8, kS = 2, kD1 = 4;  // both TLBs; the start; data in cache 1
/// The loads of levels from..1, all in cache 1.
u64 loads(unsigned from, unsigned to = 1, u64 latency = 4)
{
    u64 cycles = 0;
    for (unsigned level = to; level <= from; ++level) cycles += level + latency;
    return cycles;
}

}  // namespace

TEST_CASE("model: closed forms of hits", "[model]")
{
    Guest guest{plain()};
    for (u64 page = 0; page < 5; ++page) guest.map(0x1000 + (page << 12), 0x2000);
    for (u64 page = 0; page < 5; ++page) guest.read(0x1000 + (page << 12));
    CHECK(guest.read(0x5000) == 1 + kD1);
    CHECK(guest.read(0x1000) == kT + kD1);
    CHECK(guest.fetch(0x1000) == kT + 3);
    CHECK(guest.fetch(0x100f, 2) == 1 + 2 * 3);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: closed forms of walks", "[model]")
{
    const auto measured = [](Paging paging, unsigned level) {
        Guest guest{plain(), paging};
        const u64 linear = u64{1} << 30;
        guest.map(linear, level == 3 ? 0x4000'0000 : 0, kAll, level);
        guest.read(linear);
        guest.flush();
        return guest.read(linear);
    };
    CHECK(measured(Paging::two_level, 1) == kT + kS + loads(2) + kD1);
    CHECK(measured(Paging::pae, 1) == kT + kS + loads(2) + kD1);
    CHECK(measured(Paging::four_level, 1) == kT + kS + loads(4) + kD1);
    CHECK(measured(Paging::five_level, 1) == kT + kS + loads(5) + kD1);
    CHECK(measured(Paging::two_level, 2) == kT + kS + loads(2, 2) + kD1);
    CHECK(measured(Paging::pae, 2) == kT + kS + loads(2, 2) + kD1);
    CHECK(measured(Paging::four_level, 2) == kT + kS + loads(4, 2) + kD1);
    CHECK(measured(Paging::five_level, 2) == kT + kS + loads(5, 2) + kD1);
    CHECK(measured(Paging::four_level, 3) == kT + kS + loads(4, 3) + kD1);
    CHECK(measured(Paging::five_level, 3) == kT + kS + loads(5, 3) + kD1);
}

TEST_CASE("model: closed forms of walks from a paging-structure cache", "[model]")
{
    for (unsigned level = 2; level <= 5; ++level) {
        Config config = plain();
        config.pscs = {psc(level)};
        Guest guest{config, Paging::five_level};
        // Two pages that have the entry of that level in common, and none below.
        const u64 one = 0, other = u64{1} << guest.tables.shift(level - 1);
        guest.map(one, 0x2000);
        guest.map(other, 0x2000);
        guest.read(one);
        guest.read(other);
        guest.flush();
        CHECK(guest.read(one) == kT + kS + loads(5) + kD1);
        CHECK(guest.read(other) == kT + kS + loads(level - 1) + kD1);
    }
}

TEST_CASE("model: closed forms of table entries further away", "[model]")
{
    Config config = plain();
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    CHECK(guest.read(0x1000) == kT + kS + loads(4, 1, 100) + 100);
    CHECK(guest.label("walk.pml4e.memory") == 104);
    CHECK(guest.label("walk.pte.memory") == 101);
    CHECK(guest.label("data.memory") == 100);
    CHECK(guest.label("walk.start") == 2);
    CHECK(guest.label("tlb.l1d") == 1);
    CHECK(guest.label("tlb.l2") == 7);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));

    config.data_caches[0].sets = config.data_caches[0].ways = 1;
    Guest second{config};
    second.map(0x1000, 0x2000);
    second.read(0x1000);
    second.flush();
    CHECK(second.read(0x1000) == kT + kS + loads(4, 1, 14) + 14);
    CHECK(second.label("walk.pde.l2") == 16);

    config.data_caches.clear();
    Guest none{config};
    none.map(0x1000, 0x2000);
    CHECK(none.read(0x1000) == kT + kS + loads(4, 1, 100) + 100);
    config.program_data = false;
    Guest nothing{config};
    nothing.map(0x1000, 0x2000);
    CHECK(nothing.read(0x1000) == kT + kS + loads(4, 1, 100));
    config = plain();
    config.program_data = false;
    Guest flat{config};
    flat.map(0x1000, 0x2000);
    CHECK(flat.read(0x1000) == kT + kS + loads(4, 1, 100) + 4);
    CHECK(flat.label("data.l1d") == 4);
}

TEST_CASE("model: closed forms of assists and dirty walks", "[model]")
{
    Guest guest{plain()};
    for (u64 page = 0; page < 5; ++page) guest.map(0x1000 + (page << 12), 0x2000, kAll & ~kD);
    for (u64 page = 0; page < 5; ++page) guest.read(0x1000 + (page << 12));
    CHECK(guest.write(0x5000) == 1 + kS + loads(4) + 50 + kD1);
    CHECK(guest.write(0x1000) == kT + kS + loads(4) + 50 + kD1);
    CHECK(guest.label("walk.assist") == 100);
    guest.set_entry(0x2000, 1, 0x2000 | (kAll & ~kA));
    guest.flush();
    CHECK(guest.read(0x2000) == kT + kS + loads(4) + 50 + kD1);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: closed form of walks at once", "[model]")
{
    for (const unsigned walkers : {1u, 2u, 3u}) {
        Config config = plain();
        config.walkers = walkers;
        config.issue_width = 8;
        Guest guest{config, Paging::four_level, window(8)};
        for (u64 page = 0; page < 5; ++page) guest.map(0x1000 + (page << 12), 0x2000);
        for (u64 page = 0; page < 5; ++page) guest.access(kRead, 0x1000 + (page << 12));
        guest.flush();
        const u64 start = guest.hardware.cycles();
        const u64 walk = kS + loads(4);
        for (u64 i = 0; i < 5; ++i) {
            const Outcome outcome = guest.access(kRead, 0x1000 + (i << 12));
            CHECK(outcome.ready_at - start == kT + (i / walkers + 1) * walk + kD1);
        }
        CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
    }
}

TEST_CASE("model: closed form of a merged access", "[model]")
{
    Guest guest{plain(), Paging::four_level, window(8)};
    guest.map(0x1000, 0x2000);
    guest.access(kRead, 0x1000);
    guest.flush();
    const u64 start = guest.hardware.cycles();
    const u64 end = kT + kS + loads(4);
    CHECK(guest.access(kRead, 0x1000).ready_at == start + end + kD1);
    CHECK(guest.access(kRead, 0x1000).ready_at == start + end + kD1);  // issued at 1
    // Of the second access, what is not the first's: nothing.
    for (unsigned i = 0; i < 50; ++i) guest.hardware.gap(1);
    CHECK(guest.access(kRead, 0x1000).ready_at == start + 52 + 1 + kD1);
    CHECK(guest.counters("l1d").hits == 2);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: an entry from a later level is ready when that level has answered", "[model]")
{
    Guest guest{plain(), Paging::four_level, window(8)};
    guest.map(0x1000, 0x2000);
    guest.access(kRead, 0x1000);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x5000));
    const u64 start = guest.hardware.cycles();
    CHECK(guest.access(kFetch, 0x1000).ready_at == start + kT + 3);
    CHECK(guest.access(kFetch, 0x1000).ready_at == start + kT + 3);  // issued at 1, a hit in l1i
}

TEST_CASE("model: closed form of an access over two pages", "[model]")
{
    for (const unsigned walkers : {1u, 2u}) {
        Config config = plain();
        config.walkers = walkers;
        Guest guest{config};
        guest.map(0x1000, 0x2000);
        guest.map(0x2000, 0x3000);
        guest.read(0x1ffc);
        guest.flush();
        const u64 walk = kS + loads(4);
        CHECK(guest.read(0x1ffc) == kT + (walkers == 1 ? 2 : 1) * walk + kD1);
        CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
        // One walker: what is charged is the second page's.
        CHECK(guest.label("walk.wait") == (walkers == 1 ? 2 + loads(4, 1, 100) + walk : 0));
    }
}

// --- time: the rest
// -----------------------------------------------------------------------------------------------

TEST_CASE("model: waiting for a paging-structure entry", "[model]")
{
    Config config = plain();
    config.pscs = {psc(2)};
    config.walkers = 2;
    Guest guest{config, Paging::four_level, window(8)};
    guest.map(0x1000, 0x2000);
    guest.map(0x2000, 0x2000);
    guest.access(kRead, 0x1000);
    guest.access(kRead, 0x2000);
    guest.flush();
    const u64 start = guest.hardware.cycles();
    guest.access(kRead, 0x1000);
    // Issued one cycle later; the PDE is there when the first walk has loaded it, at 8 + 2 + 8 + 7 + 6 = 31.
    CHECK(guest.access(kRead, 0x2000).ready_at == start + 31 + 5 + kD1);
}

TEST_CASE("model: a walk that fails, and the fault", "[model]")
{
    Config config = plain();
    config.pscs = {psc(2)};
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.map(0x2000, 0x2000, kAll & ~kP);
    guest.read(0x1000);
    const u64 before = guest.hardware.cycles();
    const Outcome outcome = guest.access(kRead, 0x2000);
    REQUIRE(outcome.fault);
    // From the PDE, then all four again.
    CHECK(outcome.ready_at == before + kT + kS + loads(1) + loads(4));
    CHECK(guest.hardware.cycles() == outcome.ready_at + 200);
    CHECK(guest.label("guest_fault") == 200);
    CHECK(guest.label("walk.start") == 4);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: blocking", "[model]")
{
    Config config = plain();
    config.issue_width = 4;
    Guest guest{config};
    guest.map(0x1000, 0x2000);
    guest.read(0x1000);
    const u64 start = guest.hardware.cycles();
    guest.hardware.gap(9);
    CHECK(guest.access(kRead, 0x1000).ready_at == start + 3 + 5);
    CHECK(guest.label("instructions") == 3);
    guest.hardware.gap(1);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0));
    CHECK(guest.hardware.cycles() == start + 8 + 1 + 40);
    CHECK(guest.label("system.invlpg") == 40);
    CHECK(guest.label("instructions") == 4);
    REQUIRE_FALSE(guest.hardware.mov_cr3(0, Guest::kRoot));
    REQUIRE_FALSE(guest.hardware.mov_cr0(0, guest.machine.cpus[0].cr0));
    REQUIRE_FALSE(guest.hardware.invpcid(0, 2, 0, 0));
    CHECK(guest.label("system.mov_cr3") == 30);
    CHECK(guest.label("system.mov_cr") == 20);
    CHECK(guest.label("system.invpcid") == 60);
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: a window of two accesses", "[model]")
{
    Config config = plain();
    config.issue_width = 2;
    Guest guest{config, Paging::four_level, window(2)};
    guest.map(0x1000, 0x2000);
    guest.access(kRead, 0x1000);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x5000));
    const u64 start = guest.hardware.cycles();
    const Cycles before = guest.hardware.cycles_by();
    const auto ready = [&] { return guest.access(kRead, 0x1000).ready_at - start; };
    CHECK(ready() == 0 + 5);
    CHECK(ready() == 0 + 5);
    CHECK(ready() == 5 + 5);  // when the first has retired
    CHECK(ready() == 5 + 5);
    guest.hardware.gap(3);     // two in cycle 6, one in cycle 7
    CHECK(ready() == 10 + 5);  // when the third has retired
    CHECK(ready() == 10 + 5);
    guest.hardware.gap(21);  // cycles 11 to 21, the last one half
    CHECK(ready() == 21 + 5);
    guest.hardware.gap(13);  // cycles 22 to 28
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x5000));
    CHECK(guest.hardware.cycles() - start == 29 + 40);
    CHECK(ready() == 69 + 5);
    Cycles by = guest.hardware.cycles_by();
    for (const auto& [label, cycles] : before) by[label] -= cycles;
    std::erase_if(by, [](const auto& one) { return one.second == 0; });
    // Idle: 15 to 21 and 26 to 29.
    CHECK(by == Cycles{{"tlb.l1d", 5}, {"data.l1d", 20}, {"instructions", 9}, {"system.invlpg", 40}});
}

TEST_CASE("model: miss slots of the data caches", "[model]")
{
    Config config = plain();
    config.tlbs[1].lookup_cycles = 0;
    config.data_caches[0].misses_in_flight = 2;
    config.data_caches[1].misses_in_flight = 1;
    Guest guest{config, Paging::four_level, window(16)};
    guest.map(0x1000, 0x20'0000);
    guest.map(0x2000, 0x3000);
    guest.access(kRead, 0x1000);
    REQUIRE_FALSE(guest.hardware.invlpg(0, 0x5000));
    const u64 start = guest.hardware.cycles();
    const auto ready = [&](u64 offset, unsigned bytes = 8) {
        return guest.access(kRead, 0x1000 + offset, bytes).ready_at - start;
    };
    CHECK(ready(0x40) == 100);        // at 0
    CHECK(ready(0x80) == 200);        // at 1; l2 has one slot, free at 100
    CHECK(ready(0x48) == 100);        // at 2; the line is on its way
    CHECK(ready(0xc0) == 300);        // at 3; l1d's slots are free at 100 and 200, l2's at 200
    CHECK(ready(0x00) == 4 + 4);      // at 4
    CHECK(ready(0x100, 128) == 500);  // at 5; two lines: l1d's slots 200 and 300, l2's 300, then 400
    CHECK(guest.hardware.cycles() == sum_of(guest.hardware.cycles_by()));
}

TEST_CASE("model: an access touches lines of the nearest cache", "[model]")
{
    for (const unsigned line : {32u, 128u}) {
        Config config = plain();
        config.data_caches[0].line_bytes = line;
        Guest guest{config};
        guest.map(0x1000, 0x20'0000);
        const u64 walk = 4;
        guest.read(0x1000, 256);
        CHECK(guest.hardware.counters(0).data_caches.at("l1d").lookups == walk + 256 / line);
        guest.read(0x1000 + line - 1, 2);
        CHECK(guest.hardware.counters(0).data_caches.at("l1d").lookups == walk + 256 / line + 2);
    }
}

TEST_CASE("model: without a clock", "[model]")
{
    Guest guest{plain(), Paging::four_level, FrontEnd{FrontEnd::Kind::off, 1}};
    guest.map(0x1000, 0x2000);
    CHECK(guest.access(kRead, 0x1000).ready_at == 0);
    guest.flush();
    CHECK(guest.hardware.cycles() == 0);
    CHECK(guest.hardware.cycles_by().empty());
}

TEST_CASE("model: vCPUs take turns on one clock, with hardware of their own", "[model]")
{
    Guest guest{plain(), Paging::four_level, kBlocking, 2};
    guest.map(0x1000, 0x2000);
    const Operand operand{0x1000, 8, kRead, false, false, false};
    const u64 first = guest.hardware.access(0, operand).ready_at;
    CHECK(guest.hardware.access(1, operand).ready_at == 2 * first);
    CHECK(guest.hardware.counters(1).walks == 1);
    REQUIRE_FALSE(guest.hardware.invlpg(1, 0x1000));
    CHECK(guest.tlb("l1d") == Set{"1/0"});
}

// --- random programs
// ------------------------------------------------------------------------------------------------

TEST_CASE("model: without TLBs each access is a fresh walk", "[model]")
{
    for (u64 seed = 1; seed <= 30; ++seed) {
        const Program program = random_program(seed, {2000, 3, true});
        Config config = from_profile(random_profile(seed));
        config.tlbs.clear();
        config.pscs.clear();
        reference::Machine machine = machine_for(program);
        Hardware hardware{config, machine, program.cpus, kBlocking};
        for (const Event& event : program.events) {
            const reference::Machine before = machine;
            const Played played = play(hardware, machine, program, event);
            if (event.kind != Event::Kind::access) continue;
            const u64 first = before.linear_of(event.cpu, event.address);
            if (first % 4096 + event.bytes > 4096) continue;
            const unsigned width = before.cpus[event.cpu].linear_bits();
            if (before.cpus[event.cpu].long_mode() && !reference::canonical(first, width)) {
                REQUIRE(played.outcome.fault == reference::Fault{13, 0, 0});
                continue;
            }
            const bool user = event.user && !event.implicit;
            reference::Machine expected = before;
            const reference::Walk walk =
                expected.walk(event.cpu, {first, event.access, user, event.implicit});
            REQUIRE(played.outcome.fault == walk.fault);
            if (walk.fault) {
                REQUIRE(machine.memory.words == expected.memory.words);
                continue;
            }
            const u64 inside = first & ((u64{1} << walk.page.shift) - 1);
            REQUIRE(played.outcome.physical == std::vector<u64>{walk.page.physical + inside});
            if (event.stores) continue;
            expected.set_bits(walk, event.access == kWrite);
            REQUIRE(machine.memory.words == expected.memory.words);
        }
    }
}

namespace {

/// What a program comes to under a front end.
struct Played1 {
    std::vector<Counters> counters;
    u64 cycles = 0;
    u64 faults = 0;
    reference::Words memory;
};

Played1 run(const Program& program, const Config& config, FrontEnd front_end)
{
    reference::Machine machine = machine_for(program);
    Hardware hardware{config, machine, program.cpus, front_end};
    Played1 result;
    for (const Event& event : program.events) {
        const Played played = play(hardware, machine, program, event);
        if (played.outcome.fault || played.execution.fault) ++result.faults;
    }
    for (unsigned cpu = 0; cpu < program.cpus; ++cpu) result.counters.push_back(hardware.counters(cpu));
    result.cycles = hardware.cycles();
    result.memory = machine.memory.words;
    REQUIRE(sum_of(hardware.cycles_by()) == hardware.cycles());
    return result;
}

void check_front_ends(u64 seed, unsigned events)
{
    const Program program = random_program(seed, {events, 3, true});
    const Config config = from_profile(random_profile(seed));
    const Played1 off = run(program, config, {FrontEnd::Kind::off, 1});
    const Played1 blocking = run(program, config, kBlocking);
    const Played1 one = run(program, config, window(1));
    const Played1 many = run(program, config, window(20));
    REQUIRE(off.cycles == 0);
    REQUIRE(off.counters == blocking.counters);
    REQUIRE(off.counters == one.counters);
    REQUIRE(off.counters == many.counters);
    REQUIRE(off.memory == blocking.memory);
    REQUIRE(off.memory == many.memory);
    REQUIRE(many.cycles <= one.cycles);
}

}  // namespace

TEST_CASE("model: time changes no hit, no miss and no eviction", "[model]")
{
    for (u64 seed = 1; seed <= 25; ++seed) check_front_ends(seed, 1500);
}

TEST_CASE("model: time changes nothing in many programs", "[model][slow]")
{
    for (u64 seed = 1000; seed < 1100; ++seed) check_front_ends(seed, 10'000);
}

TEST_CASE("model: programs come across everything", "[model]")
{
    TlbCounters sum;
    LookupCounters tables;
    u64 faults = 0, accesses = 0;
    std::set<Policy> policies;
    for (u64 seed = 1; seed <= 40; ++seed) {
        const Program program = random_program(seed, {2500, 3, true});
        const Config config = from_profile(random_profile(seed));
        for (const TlbConfig& one : config.tlbs) {
            for (const ArrayConfig& of : one.arrays) policies.insert(of.replacement.policy);
        }
        const Played1 played = run(program, config, kBlocking);
        faults += played.faults;
        accesses += program.events.size();
        for (const Counters& cpu : played.counters) {
            for (const auto& [name, one] : cpu.tlbs) {
                sum.hits += one.hits;
                sum.lookups += one.lookups;
                sum.dirty_walks += one.dirty_walks;
                sum.denied += one.denied;
                sum.evictions += one.evictions;
            }
            for (const auto& [level, one] : cpu.pscs) {
                tables.lookups += one.lookups;
                tables.hits += one.hits;
            }
        }
    }
    CHECK(policies.size() == 7);
    CHECK(sum.hits > accesses / 5);
    CHECK(sum.evictions > accesses / 10);
    CHECK(sum.dirty_walks > 100);
    CHECK(sum.denied > 1000);
    CHECK(tables.hits > accesses / 10);
    CHECK(faults > accesses / 50);
    CHECK(faults < accesses / 4);
}
