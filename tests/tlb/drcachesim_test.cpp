// SPDX-License-Identifier: Apache-2.0
//
// mmusim's TLBs against those of another simulator, DynamoRIO's drcachesim: for each geometry and stream of
// references the same hits and misses on each level, to the last one (drcachesim_table.hpp).
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/trace/trace_reader.hpp>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"
#include "tlb/drcachesim_table.hpp"

using namespace guest;

namespace {

TlbSpec level(const std::string& name, unsigned number, const drcachesim::Size& size)
{
    TlbSpec tlb;
    tlb.name = name;
    tlb.level = number;
    TlbArraySpec array;
    array.entries = size.entries;
    array.ways = size.ways;
    array.views = {{.kind = EntryKind::page_4k, .ways = size.ways, .first_way = 0, .stride = size.ways}};
    tlb.arrays = {array};
    return tlb;
}

std::shared_ptr<const CpuProfile> profile_of(const drcachesim::Geometry& geometry)
{
    auto profile = std::make_shared<CpuProfile>();
    TlbSpec code = level("l1i", 1, geometry.l1i);
    code.fetches = true;
    TlbSpec data = level("l1d", 1, geometry.l1d);
    data.loads = data.stores = true;
    TlbSpec second = level("l2", 2, geometry.l2);
    second.fetches = second.loads = second.stores = true;
    profile->tlbs.tlbs = {code, data, second};
    return profile;
}

using Pages = std::set<std::uint64_t>;

/// A native guest whose pages all have A and D set.
Guest mapped(std::shared_ptr<const CpuProfile> cpu, const Pages& pages)
{
    MachineConfig config = config_of(native());
    config.ram = {{Gfn{0}, 0x4000}};
    config.cpu = std::move(cpu);
    Guest guest{Paging::four_level, std::move(config)};
    for (const std::uint64_t page : pages) guest.map(page << 12, 0x3f'f000);
    return guest;
}

Pages pages_of_streams()
{
    Pages pages;
    for (const std::uint64_t region : {drcachesim::kLowRegion, drcachesim::kHighRegion}) {
        for (std::uint64_t page = 0; page < drcachesim::kRegionPages; ++page) {
            pages.insert((region >> 12) + page);
        }
    }
    return pages;
}

AccessKind kind_of(drcachesim::Kind kind)
{
    switch (kind) {
    case drcachesim::Kind::fetch: return AccessKind::fetch;
    case drcachesim::Kind::read: return AccessKind::read;
    case drcachesim::Kind::write: break;
    }
    return AccessKind::write;
}

std::vector<StreamAccess> accesses_of(drcachesim::Stream stream)
{
    drcachesim::Generator generator{stream};
    std::vector<StreamAccess> accesses(drcachesim::kReferences);
    for (StreamAccess& access : accesses) {
        const drcachesim::Reference reference = generator.next();
        access.address = LinearAddress{reference.address};
        access.bytes = static_cast<std::uint16_t>(reference.size);
        access.kind = kind_of(reference.kind);
    }
    return accesses;
}

struct Levels {
    drcachesim::Counts l1i;
    drcachesim::Counts l1d;
    drcachesim::Counts l2;

    friend bool operator==(const Levels&, const Levels&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Levels& levels)
    {
        for (const drcachesim::Counts& counts : {levels.l1i, levels.l1d, levels.l2}) {
            out << '{' << counts.hits << ", " << counts.misses << '}';
        }
        return out;
    }
};

Levels run(std::shared_ptr<const CpuProfile> cpu, const Pages& pages,
           const std::vector<StreamAccess>& accesses)
{
    Guest guest = mapped(std::move(cpu), pages);
    CHECK(guest.machine.run(0, accesses) == 0);
    const MachineCounters counters = guest.machine.counters();
    const auto of = [&](std::size_t tlb) {
        const TlbCounters& one = counters.tlbs.at(tlb);
        CHECK(one.denied + one.dirty_walks == 0);
        return drcachesim::Counts{one.hits, one.lookups - one.hits};
    };
    const Levels levels{of(0), of(1), of(2)};
    CHECK(counters.walks == levels.l2.misses);
    CHECK(counters.memory_references == 4 * levels.l2.misses);
    return levels;
}

std::string name_of(drcachesim::Stream stream)
{
    return std::string{drcachesim::kStreamNames[static_cast<std::size_t>(stream)]};
}

void check_rows(drcachesim::Stream stream, const std::vector<unsigned>& geometries)
{
    const Pages pages = pages_of_streams();
    const std::vector<StreamAccess> accesses = accesses_of(stream);
    std::size_t compared = 0;
    for (const drcachesim::Row& row : drcachesim::kRows) {
        if (row.stream != stream) continue;
        if (std::find(geometries.begin(), geometries.end(), row.geometry) == geometries.end()) continue;
        const drcachesim::Geometry& geometry = drcachesim::kGeometries[row.geometry];
        INFO(name_of(stream) << ", " << geometry.name);
        CHECK(run(profile_of(geometry), pages, accesses) == Levels{row.l1i, row.l1d, row.l2});
        ++compared;
    }
    CHECK(compared == geometries.size());
}

/// The accesses of the window, and the pages that they touch.
std::pair<std::vector<StreamAccess>, Pages> window_of(const drcachesim::Recorded& recorded)
{
    TraceReader reader{fmt::format("{}/traces/{}", MMUSIM_SOURCE_DIR, recorded.trace)};
    std::vector<StreamAccess> accesses;
    Pages pages;
    std::uint64_t passed = 0;
    for (Record record; accesses.size() < drcachesim::kRecordedReferences && reader.next(record);) {
        const auto* const access = std::get_if<AccessRecord>(&record);
        if (access == nullptr || passed++ < recorded.before) continue;
        REQUIRE_FALSE(access->segment);
        accesses.push_back({.address = LinearAddress{access->address},
                            .bytes = static_cast<std::uint16_t>(access->bytes),
                            .kind = access->rmw ? AccessKind::write : access->kind});
        pages.insert(access->address >> 12);
        pages.insert((access->address + access->bytes - 1) >> 12);
    }
    REQUIRE(accesses.size() == drcachesim::kRecordedReferences);
    return {std::move(accesses), std::move(pages)};
}

void check_recorded(unsigned recorded)
{
    const auto [accesses, pages] = window_of(drcachesim::kRecorded.at(recorded));
    std::size_t compared = 0;
    for (const drcachesim::RecordedRow& row : drcachesim::kRecordedRows) {
        if (row.recorded != recorded) continue;
        const drcachesim::Geometry& geometry = drcachesim::kGeometries[row.geometry];
        INFO(drcachesim::kRecorded[recorded].trace << ", " << geometry.name);
        CHECK(run(profile_of(geometry), pages, accesses) == Levels{row.l1i, row.l1d, row.l2});
        ++compared;
    }
    CHECK(compared == drcachesim::kGeometries.size());
}

}  // namespace

TEST_CASE("drcachesim: some rows", "[tlb]")
{
    check_rows(drcachesim::Stream::mixed, {0, 6});
    check_rows(drcachesim::Stream::loops, {9});
    check_rows(drcachesim::Stream::shared, {8});
}

TEST_CASE("drcachesim: all rows", "[tlb][slow]")
{
    for (std::size_t stream = 0; stream < drcachesim::kStreamNames.size(); ++stream) {
        check_rows(static_cast<drcachesim::Stream>(stream), {0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
    }
}

TEST_CASE("drcachesim: the bundled profile is its default", "[tlb]")
{
    const auto profile = std::make_shared<const CpuProfile>(find_cpu_profile("drcachesim"));
    const Pages pages = pages_of_streams();
    for (const drcachesim::Row& row : drcachesim::kRows) {
        const bool some =
            row.stream == drcachesim::Stream::strided || row.stream == drcachesim::Stream::chase;
        if (row.geometry != 0 || !some) continue;
        INFO(name_of(row.stream));
        CHECK(run(profile, pages, accesses_of(row.stream)) == Levels{row.l1i, row.l1d, row.l2});
    }
}

TEST_CASE("drcachesim: a window of a recorded kernel", "[tlb]")
{
    check_recorded(0);
}

TEST_CASE("drcachesim: windows further on", "[tlb][slow]")
{
    check_recorded(1);
    check_recorded(2);
}
