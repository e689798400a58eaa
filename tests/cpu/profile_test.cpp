// SPDX-License-Identifier: Apache-2.0
//
// CPU profiles: what the bundled ones say, against figures typed in from the collection that they were made
// of; that each figure says where it is from; and that what is wrong with a file is told by the key's path.
#include <mmusim/cpu/cpu_profile.hpp>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace mmusim;
using mmusim::test::content_of;
using mmusim::test::ScratchFile;
using mmusim::test::ScratchPath;

namespace {

using Json = nlohmann::ordered_json;

const std::vector<std::string> kBundled{"nehalem",  "sandy_bridge", "haswell",    "skylake", "skylake_sp",
                                        "ice_lake", "golden_cove",  "zen1",       "zen2",    "zen3",
                                        "zen4",     "zen5",         "drcachesim", "none"};

const std::set<std::string> kConfidences{
    "measured",   "measured-inferred", "measured-fit",      "measured-unresolved",
    "cpuid_dump", "published",         "published-derived", "published-simulator-default",
    "memory",     "assumption"};

/// A small profile with every key in it.
constexpr const char* kGood = R"({
  "schema": "mmusim-cpu-profile", "version": 1, "name": "mine", "description": "a CPU of mine", "vendor": "me",
  "tlbs": [
    {"name": "l1i", "level": 1, "fetches": true, "loads": false, "stores": false, "lookup_cycles": 1,
     "pcids_kept_flush": 0, "pcids_kept_noflush": 2,
     "arrays": [{"pages": ["4K"], "entries": 8, "ways": "full", "replacement": "fifo"}]},
    {"name": "l1d", "level": 1, "loads": true, "stores": true,
     "arrays": [{"pages": ["4K"], "entries": 64, "ways": 4, "index": "linear", "replacement": "tree-plru"},
                {"pages": ["2M", "1G"], "entries": 8, "ways": 8, "replacement": {"policy": "random", "seed": 7}}]},
    {"name": "l2", "level": 2, "fetches": true, "loads": true, "stores": true, "lookup_cycles": 7,
     "inclusion": "exclusive", "refills": false, "takes_evictions": true, "touched_by_earlier_hits": true,
     "splinters": true, "pcids_kept_flush": 3, "pcids_kept_noflush": 4,
     "arrays": [{"entries": 96, "ways": 12, "index": {"xor": ["0x9", "0x12", "36"]},
                 "replacement": {"policy": "mru-groups", "groups": 3},
                 "views": [{"pages": ["4K"]}, {"pages": ["2M"], "ways": 4, "first_way": 0},
                           {"pages": ["1G"], "first_way": 8}]},
                {"entries": 24, "ways": 3, "replacement": "lru",
                 "views": [{"pages": ["4M"], "ways": 3}, {"pages": ["pde"], "ways": 1, "first_way": 1, "stride": 2}]}]}
  ],
  "paging_structure_caches": {
    "pde": {"stored_in": "l2"},
    "pdpte": {"entries": 8, "ways": 4, "index": "xor-1", "replacement": "bit-plru"},
    "pml4e": {"entries": 4, "ways": "full"},
    "pml5e": {"entries": 2, "ways": 2, "replacement": "srrip"}
  },
  "pcid": false,
  "data_caches": [
    {"name": "l1d", "sets": 64, "ways": 12, "line_bytes": 64, "latency": 5, "misses_in_flight": 16, "index": "linear",
     "replacement": "tree-plru"},
    {"name": "l2", "sets": 128, "ways": 20, "line_bytes": 128, "latency": 16, "index": "xor-7"}
  ],
  "memory_latency": 333,
  "walker": {"count": 4, "start_cycles": 3, "assist_cycles": 800,
             "load_cycles": {"pte": 11, "pde": 12, "pdpte": 13, "pml4e": 14, "pml5e": 15}},
  "front_end": {"issue_width": 6, "fetch_cycles": 2},
  "instructions": {"mov_cr": 21, "mov_cr3": 22, "invlpg": 23, "invpcid": 24, "page_fault": 25},
  "hypervisor": {"exit": 31, "entry": 32, "fault_handler": 33, "guest_walk_load": 34, "shadow_page": 35,
                 "propagate": 36, "emulate": 37, "load_root": 38, "flush": 39, "ipi": 46, "access_event": 47,
                 "prefetch": 45, "hash_step": 40, "guess": 41, "search_entry": 42, "snapshot": 43, "compare_entry": 44}
})";

Json good()
{
    return Json::parse(kGood);
}
CpuProfile parsed(const Json& document)
{
    return parse_cpu_profile(document.dump(), "mine.json");
}

std::string refusal_of(const std::string& text)
{
    try {
        static_cast<void>(parse_cpu_profile(text, "mine.json"));
    } catch (const CpuProfileError& error) {
        return error.what();
    }
    return "accepted";
}

// ---- a profile as text, with every member of the specs

std::string text_of(const IndexSpec& index)
{
    return fmt::format("xor({:#x})", fmt::join(index.xor_masks, " "));
}

std::string text_of(const ReplacementSpec& replacement)
{
    return fmt::format("{}/{}/{}", name_of(replacement.kind), replacement.groups, replacement.seed);
}

std::string text_of(const TlbArraySpec& array)
{
    std::string text = fmt::format("{} entries {} ways {} {}:", array.entries, array.ways,
                                   text_of(array.index), text_of(array.replacement));
    for (const EntryView& view : array.views) {
        text += fmt::format(" {}={}+{}*{}", name_of(view.kind), view.ways, view.first_way, view.stride);
    }
    return text;
}

std::string text_of(const CpuProfile& profile)
{
    std::string text = fmt::format("{}, {}, pcid {}\n", profile.name, profile.description, profile.tlbs.pcid);
    for (const TlbSpec& tlb : profile.tlbs.tlbs) {
        text += fmt::format("{} {} {}{}{} {} {} {}{}{}{} {} {}\n", tlb.name, tlb.level, tlb.fetches,
                            tlb.loads, tlb.stores, tlb.lookup_cycles, static_cast<int>(tlb.inclusion),
                            tlb.refills, tlb.takes_evictions, tlb.touched_by_earlier_hits, tlb.splinters,
                            tlb.pcids_kept_flush, tlb.pcids_kept_noflush);
        for (const TlbArraySpec& array : tlb.arrays) text += fmt::format("  {}\n", text_of(array));
    }
    for (const PagingStructureCacheSpec& cache : profile.tlbs.paging_structure_caches) {
        text += fmt::format("{} '{}' {}\n", cache.level, cache.stored_in, text_of(cache.array));
    }
    const TimingSpec& timing = profile.timing;
    for (const CacheSpec& cache : timing.data_caches) {
        text += fmt::format("{} {} {} {} {} {} {} {}\n", cache.name, cache.sets, cache.ways, cache.line_bytes,
                            cache.latency, cache.misses_in_flight, text_of(cache.index),
                            text_of(cache.replacement));
    }
    const InstructionSpec& i = timing.instructions;
    const PriceList& h = timing.hypervisor;
    text += fmt::format("memory {} walker {} {} {} {} front end {} {}\n", timing.memory_latency,
                        timing.walker.count, timing.walker.start_cycles,
                        fmt::join(timing.walker.load_cycles, " "), timing.walker.assist_cycles,
                        timing.front_end.issue_width, timing.front_end.fetch_cycles);
    text += fmt::format("{} {} {} {} {}\n", i.mov_cr, i.mov_cr3, i.invlpg, i.invpcid, i.page_fault);
    text += fmt::format("{} {} {} {} {} {} {} {}\n", h.hash_step, h.guess, h.search_entry, h.snapshot,
                        h.compare_entry, h.prefetch, h.ipi, h.access_event);
    text += fmt::format("{} {} {} {} {} {} {} {} {}\n", h.exit, h.entry, h.fault_handler, h.guest_walk_load,
                        h.shadow_page, h.propagate, h.emulate, h.load_root, h.flush);
    return text;
}

// ---- looking into a profile

const TlbSpec* find_tlb(const CpuProfile& profile, const std::string& name)
{
    for (const TlbSpec& tlb : profile.tlbs.tlbs) {
        if (tlb.name == name) return &tlb;
    }
    return nullptr;
}

struct Held {
    const TlbArraySpec* array;
    EntryView view;
};

std::optional<Held> held(const CpuProfile& profile, const std::string& tlb, EntryKind kind)
{
    const TlbSpec* const found = find_tlb(profile, tlb);
    if (found == nullptr) return std::nullopt;
    for (const TlbArraySpec& array : found->arrays) {
        for (const EntryView& view : array.views) {
            if (view.kind == kind) return Held{&array, view};
        }
    }
    return std::nullopt;
}

const PagingStructureCacheSpec* cache_of(const CpuProfile& profile, int level)
{
    for (const PagingStructureCacheSpec& cache : profile.tlbs.paging_structure_caches) {
        if (cache.level == level) return &cache;
    }
    return nullptr;
}

/// What a figure inherits.
struct Attribution {
    bool source = false;
    bool confidence = false;
};

bool is_about(const std::string& key)
{
    return key == "source" || key == "confidence" || key == "note";
}

/// Complains about each figure below `value` that does not say where it is from.
void check_figures(const Json& value, const std::string& path, Attribution outer, std::size_t& figures)
{
    if (value.is_array() && !value.empty() && value.front().is_object()) {
        for (std::size_t i = 0; i < value.size(); ++i) {
            check_figures(value[i], fmt::format("{}[{}]", path, i), outer, figures);
        }
        return;
    }
    if (!value.is_object()) {
        INFO(path);
        CHECK(outer.source);
        CHECK(outer.confidence);
        ++figures;
        return;
    }
    Attribution here = outer;
    if (value.contains("source") || value.contains("confidence")) {
        here = {value.contains("source") && value["source"].get<std::string>().size() >= 8,
                value.contains("confidence") && kConfidences.count(value["confidence"]) == 1};
    }
    for (const auto& [key, member] : value.items()) {
        if (!is_about(key) && key != "name") check_figures(member, path + "." + key, here, figures);
    }
}

/// Each figure as {"value": …} with everything around it.
Json dressed(const Json& value)
{
    if (value.is_array() && !value.empty() && value.front().is_object()) {
        Json list = Json::array();
        for (const Json& element : value) list.push_back(dressed(element));
        return list;
    }
    if (!value.is_object()) {
        return {{"value", value}, {"source", "a book"}, {"confidence", "published"}, {"note", "p. 7"}};
    }
    Json object = Json::object();
    for (const auto& [key, member] : value.items()) object[key] = dressed(member);
    return object;
}

/// Each figure plain, and nothing said about any.
Json undressed(const Json& value)
{
    if (value.is_array()) {
        Json list = Json::array();
        for (const Json& element : value) list.push_back(undressed(element));
        return list;
    }
    if (!value.is_object()) return value;
    if (value.contains("value")) return undressed(value["value"]);
    Json object = Json::object();
    for (const auto& [key, member] : value.items()) {
        if (!is_about(key)) object[key] = undressed(member);
    }
    return object;
}

}  // namespace

// ---- the bundled ones

TEST_CASE("the bundled CPU profiles are the files in profiles/", "[cpu]")
{
    std::vector<std::string> names;
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        names.emplace_back(bundled.name);
        CHECK(bundled.text ==
              content_of(fmt::format("{}/profiles/{}.json", MMUSIM_SOURCE_DIR, bundled.name)));
    }
    CHECK(names == kBundled);
    std::size_t files = 0;
    for (const auto& file : std::filesystem::directory_iterator{MMUSIM_SOURCE_DIR "/profiles"}) {
        INFO(file.path());
        CHECK(std::count(names.begin(), names.end(), file.path().stem().string()) == 1);
        ++files;
    }
    CHECK(files == names.size());
    CHECK(std::count(names.begin(), names.end(), std::string{kDefaultCpuProfile}) == 1);
}

TEST_CASE("every bundled CPU profile is read", "[cpu]")
{
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        INFO(bundled.name);
        const CpuProfile profile = parse_cpu_profile(bundled.text, bundled.name);
        CHECK(profile.name == bundled.name);
        CHECK(!profile.description.empty());
        CHECK(text_of(profile) == text_of(find_cpu_profile(profile.name)));
    }
}

TEST_CASE("every figure of a bundled CPU profile has a source and a confidence", "[cpu]")
{
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        INFO(bundled.name);
        Json document = Json::parse(bundled.text);
        CHECK(!document.contains("source"));  // one for all would say nothing
        CHECK(!document.contains("confidence"));
        for (const char* const key : {"schema", "version", "name", "description", "vendor", "note"})
            document.erase(key);
        // Lists and objects that are empty hold no figure.
        for (const char* const key : {"tlbs", "paging_structure_caches", "data_caches"}) {
            if (document[key].empty()) document.erase(key);
        }
        std::size_t figures = 0;
        check_figures(document, std::string{bundled.name}, {}, figures);
        CHECK(figures >= 25);
    }
}

TEST_CASE("no source of a bundled CPU profile names a path of a machine or a host of a registry", "[cpu]")
{
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        for (const char* const word :
             {"/work", "/tmp", "/proc", "/home", "here 2026", ".csv", "http", "gitea"}) {
            INFO(bundled.name << " " << word);
            CHECK(bundled.text.find(word) == std::string_view::npos);
        }
    }
}

TEST_CASE("the TLBs of the bundled CPU profiles have the published shapes", "[cpu]")
{
    constexpr auto k4K = EntryKind::page_4k;
    constexpr auto k2M = EntryKind::page_2m;
    constexpr auto k4M = EntryKind::page_4m;
    constexpr auto k1G = EntryKind::page_1g;
    struct Expected {
        const char* profile;
        const char* tlb;
        EntryKind kind;
        unsigned entries;  ///< 0: none of this kind
        unsigned ways;
        unsigned sets;
    };
    const std::vector<Expected> table{
        {"nehalem", "l1i", k4K, 64, 4, 16},
        {"nehalem", "l1i", k4M, 7, 7, 1},
        {"nehalem", "l1d", k4K, 64, 4, 16},
        {"nehalem", "l1d", k2M, 32, 4, 8},
        {"nehalem", "l1d", k1G, 0, 0, 0},
        {"nehalem", "l2", k4K, 512, 4, 128},
        {"nehalem", "l2", k2M, 0, 0, 0},
        {"sandy_bridge", "l1i", k4K, 64, 4, 16},
        {"sandy_bridge", "l1i", k2M, 8, 8, 1},
        {"sandy_bridge", "l1d", k4K, 64, 4, 16},
        {"sandy_bridge", "l1d", k2M, 32, 4, 8},
        {"sandy_bridge", "l1d", k1G, 4, 4, 1},
        {"sandy_bridge", "l2", k4K, 512, 4, 128},
        {"sandy_bridge", "l2", k2M, 0, 0, 0},
        {"haswell", "l1i", k4K, 64, 8, 8},
        {"haswell", "l1i", k2M, 8, 8, 1},
        {"haswell", "l1d", k4K, 64, 4, 16},
        {"haswell", "l1d", k4M, 32, 4, 8},
        {"haswell", "l1d", k1G, 4, 4, 1},
        {"haswell", "l2", k4K, 1024, 8, 128},
        {"haswell", "l2", k2M, 1024, 8, 128},
        {"haswell", "l2", k1G, 0, 0, 0},
        {"skylake", "l1i", k4K, 128, 8, 16},
        {"skylake", "l1i", k2M, 8, 8, 1},
        {"skylake", "l1d", k4K, 64, 4, 16},
        {"skylake", "l1d", k2M, 32, 4, 8},
        {"skylake", "l1d", k1G, 4, 4, 1},
        {"skylake", "l2", k4K, 1536, 12, 128},
        {"skylake", "l2", k2M, 1536, 12, 128},
        {"skylake", "l2", k1G, 16, 4, 4},
        {"skylake_sp", "l1i", k4K, 64, 8, 8},
        {"skylake_sp", "l1d", k4K, 64, 4, 16},
        {"skylake_sp", "l2", k4K, 1536, 12, 128},
        {"skylake_sp", "l2", k1G, 16, 4, 4},
        {"ice_lake", "l1i", k4K, 128, 8, 16},
        {"ice_lake", "l1i", k2M, 16, 8, 2},
        {"ice_lake", "l1d_load", k4K, 64, 4, 16},
        {"ice_lake", "l1d_load", k2M, 32, 4, 8},
        {"ice_lake", "l1d_load", k1G, 8, 8, 1},
        {"ice_lake", "l1d_store", k4K, 16, 16, 1},
        {"ice_lake", "l1d_store", k1G, 16, 16, 1},
        {"ice_lake", "l2", k4K, 2048, 16, 128},
        {"ice_lake", "l2", k2M, 2048, 8, 128},
        {"ice_lake", "l2", k1G, 2048, 8, 128},
        {"golden_cove", "l1i", k4K, 256, 8, 32},
        {"golden_cove", "l1i", k4M, 32, 8, 4},
        {"golden_cove", "l1d_load", k4K, 96, 6, 16},
        {"golden_cove", "l1d_load", k2M, 32, 4, 8},
        {"golden_cove", "l1d_load", k1G, 8, 8, 1},
        {"golden_cove", "l1d_store", k4K, 16, 16, 1},
        {"golden_cove", "l1d_store", k2M, 16, 16, 1},
        {"golden_cove", "l2", k4K, 2048, 16, 128},
        {"golden_cove", "l2", k4M, 2048, 8, 128},
        {"golden_cove", "l2", k1G, 2048, 8, 128},
        {"zen1", "l1i", k4K, 64, 64, 1},
        {"zen1", "l1d", k1G, 64, 64, 1},
        {"zen1", "l2i", k4K, 1024, 8, 128},
        {"zen1", "l2i", k2M, 1024, 8, 128},
        {"zen1", "l2d", k4K, 1536, 8, 192},
        {"zen1", "l2d", k2M, 1536, 2, 768},
        {"zen1", "l2d", k1G, 0, 0, 0},
        {"zen1", "l1d", k4M, 0, 0, 0},
        {"zen2", "l2i", k4K, 1024, 8, 128},
        {"zen2", "l2d", k4K, 2048, 8, 256},
        {"zen2", "l2d", k2M, 2048, 4, 512},
        {"zen2", "l2d", k1G, 0, 0, 0},
        {"zen3", "l1d", k2M, 64, 64, 1},
        {"zen3", "l2i", k4K, 512, 4, 128},
        {"zen3", "l2i", k2M, 512, 2, 256},
        {"zen3", "l2d", k4K, 2048, 8, 256},
        {"zen3", "l2d", k2M, 2048, 4, 512},
        {"zen3", "l2d", k1G, 64, 64, 1},
        {"zen4", "l1d", k4K, 72, 72, 1},
        {"zen4", "l1i", k4K, 64, 64, 1},
        {"zen4", "l2i", k2M, 512, 2, 256},
        {"zen4", "l2d", k4K, 3072, 8, 384},
        {"zen4", "l2d", k2M, 3072, 6, 512},
        {"zen4", "l2d", k1G, 64, 64, 1},
        {"zen5", "l1d", k1G, 96, 96, 1},
        {"zen5", "l2i", k4K, 2048, 4, 512},
        {"zen5", "l2i", k2M, 2048, 2, 1024},
        {"zen5", "l2d", k4K, 4096, 8, 512},
        {"zen5", "l2d", k2M, 4096, 4, 1024},
        {"zen5", "l2d", k1G, 1024, 4, 256},
        {"drcachesim", "l1i", k4K, 32, 32, 1},
        {"drcachesim", "l1d", k4K, 32, 32, 1},
        {"drcachesim", "l2", k4K, 1024, 4, 256},
        {"drcachesim", "l2", k2M, 0, 0, 0},
    };
    for (const Expected& expected : table) {
        INFO(expected.profile << " " << expected.tlb << " " << name_of(expected.kind));
        const CpuProfile profile = find_cpu_profile(expected.profile);
        const auto found = held(profile, expected.tlb, expected.kind);
        REQUIRE(found.has_value() == (expected.entries != 0));
        if (!found) continue;
        CHECK(found->array->entries == expected.entries);
        CHECK(found->view.ways == expected.ways);
        CHECK(found->array->entries / found->view.stride == expected.sets);
    }
}

TEST_CASE("the other figures of the bundled CPU profiles are the published ones", "[cpu]")
{
    struct Expected {
        const char* profile;
        Cycles last_lookup;  ///< of the TLB of level 2 that serves loads
        unsigned walkers;
        bool pcid;
        unsigned pdpte_entries;
    };
    const std::vector<Expected> table{
        {"nehalem", 7, 1, false, 4},    {"sandy_bridge", 7, 1, true, 4}, {"haswell", 8, 1, true, 8},
        {"skylake", 9, 2, true, 8},     {"skylake_sp", 9, 2, true, 8},   {"ice_lake", 7, 2, true, 8},
        {"golden_cove", 7, 4, true, 8}, {"zen1", 8, 2, false, 32},       {"zen2", 6, 2, false, 32},
        {"zen3", 5, 6, true, 32},       {"zen4", 3, 6, true, 32},        {"zen5", 7, 6, true, 32},
    };
    for (const Expected& expected : table) {
        INFO(expected.profile);
        const CpuProfile profile = find_cpu_profile(expected.profile);
        const TlbSpec& last = profile.tlbs.tlbs.back();
        CHECK(last.level == 2);
        CHECK(last.loads);
        CHECK(last.lookup_cycles == expected.last_lookup);
        for (const TlbSpec& tlb : profile.tlbs.tlbs) {
            if (tlb.level == 1) CHECK(tlb.lookup_cycles == 0);
            CHECK(tlb.inclusion == Inclusion::neither);
            CHECK(tlb.refills);
        }
        CHECK(profile.timing.walker.count == expected.walkers);
        CHECK(profile.tlbs.pcid == expected.pcid);
        REQUIRE(cache_of(profile, 3) != nullptr);
        CHECK(cache_of(profile, 3)->array.entries == expected.pdpte_entries);
        CHECK(profile.timing.data_caches.size() == 3);
        CHECK(profile.timing.instructions.page_fault == 1050);
        CHECK(profile.timing.hypervisor.exit + profile.timing.hypervisor.entry >= 1344);
        CHECK(profile.timing.hypervisor.exit + profile.timing.hypervisor.entry <= 1376);
    }
}

TEST_CASE("golden_cove has its halves, its index and the fitted walk", "[cpu]")
{
    const CpuProfile profile = find_cpu_profile("golden_cove");
    const auto l2 = held(profile, "l2", EntryKind::page_4k);
    REQUIRE(l2);
    CHECK(text_of(*l2->array) ==
          "2048 entries 16 ways xor(0x81 0x102 0x204 0x408 0x810 0x1020 0x2040) bit-plru/1/1: "
          "4K=16+0*16 2M=8+0*16 4M=8+0*16 1G=8+8*16");
    CHECK(text_of(*held(profile, "l1d_load", EntryKind::page_4k)->array) ==
          "96 entries 6 ways xor() mru-groups/3/1: 4K=6+0*6");
    CHECK(find_tlb(profile, "l1d_load")->loads);
    CHECK(!find_tlb(profile, "l1d_load")->stores);
    CHECK(find_tlb(profile, "l1d_store")->stores);
    CHECK(!find_tlb(profile, "l1d_store")->loads);
    const auto* pde = cache_of(profile, 2);
    REQUIRE(pde != nullptr);
    CHECK(pde->array.entries == 32);
    CHECK(pde->array.ways == 8);
    CHECK(pde->array.index.xor_masks == std::vector<std::uint64_t>{2, 4});
    CHECK(cache_of(profile, 3)->array.ways == 4);
    CHECK(cache_of(profile, 4)->array.entries == 4);
    CHECK(cache_of(profile, 4)->array.ways == 4);
    CHECK(cache_of(profile, 5)->array.entries == 2);
    const WalkerSpec& walker = profile.timing.walker;
    CHECK(walker.start_cycles == 0);
    CHECK(walker.load_cycles == std::array<Cycles, 6>{0, 17, 15, 15, 15, 15});
    CHECK(walker.assist_cycles == 800);
    const auto& caches = profile.timing.data_caches;
    CHECK(caches[0].sets == 64);
    CHECK(caches[0].ways == 12);
    CHECK(caches[0].latency == 5);
    CHECK(caches[1].sets == 2048);
    CHECK(caches[1].ways == 16);
    CHECK(caches[1].latency == 16);
    CHECK(caches[2].ways == 20);
}

TEST_CASE("skylake has XOR-7, three groups and the PCIDs that TLB;DR found", "[cpu]")
{
    for (const char* const name : {"skylake", "skylake_sp"}) {
        const CpuProfile profile = find_cpu_profile(name);
        const auto l2 = held(profile, "l2", EntryKind::page_2m);
        REQUIRE(l2);
        CHECK(l2->array->index == xor_index(7));
        CHECK(text_of(l2->array->replacement) == "mru-groups/3/1");
        CHECK(held(profile, "l1d", EntryKind::page_4k)->array->replacement.kind ==
              ReplacementKind::tree_plru);
        const TlbSpec& stlb = *find_tlb(profile, "l2");
        CHECK(!stlb.takes_evictions);
        CHECK(!stlb.touched_by_earlier_hits);
        CHECK(stlb.pcids_kept_flush == 4);
        CHECK(stlb.pcids_kept_noflush == 4);
        CHECK(find_tlb(profile, "l1d")->pcids_kept_flush == 0);
        CHECK(find_tlb(profile, "l1d")->pcids_kept_noflush == 0);
        CHECK(find_tlb(profile, "l1i")->pcids_kept_flush == 1);
        CHECK(find_tlb(profile, "l1i")->pcids_kept_noflush == 3);
    }
}

TEST_CASE("the profiles of AMD keep PDEs among the pages of the L2 data TLB", "[cpu]")
{
    for (const char* const name : {"zen1", "zen2", "zen3", "zen4", "zen5"}) {
        INFO(name);
        const CpuProfile profile = find_cpu_profile(name);
        REQUIRE(cache_of(profile, 2) != nullptr);
        CHECK(cache_of(profile, 2)->stored_in == "l2d");
        const auto pde = held(profile, "l2d", EntryKind::pde);
        const auto page = held(profile, "l2d", EntryKind::page_2m);
        REQUIRE(pde);
        REQUIRE(page);
        CHECK(pde->array == page->array);
        CHECK(pde->view.ways == page->view.ways);
        CHECK(pde->view.stride == page->view.stride);
        CHECK(find_tlb(profile, "l2d")->splinters);
        CHECK(find_tlb(profile, "l2i")->fetches);
        CHECK(!find_tlb(profile, "l2i")->loads);
    }
}

TEST_CASE("drcachesim and none are what their names say", "[cpu]")
{
    const CpuProfile drcachesim = find_cpu_profile("drcachesim");
    CHECK(drcachesim.tlbs.tlbs.size() == 3);
    CHECK(drcachesim.tlbs.paging_structure_caches.empty());
    for (const TlbSpec& tlb : drcachesim.tlbs.tlbs) {
        REQUIRE(tlb.arrays.size() == 1);
        CHECK(tlb.arrays[0].replacement.kind == ReplacementKind::lru);
        CHECK(tlb.arrays[0].index.xor_masks.empty());
        CHECK(tlb.arrays[0].views.size() == 1);
        CHECK(tlb.inclusion == Inclusion::neither);
        CHECK(!tlb.touched_by_earlier_hits);
        CHECK(!tlb.takes_evictions);
    }
    CHECK(drcachesim.tlbs.tlbs.back().refills);

    const CpuProfile none = find_cpu_profile("none");
    CHECK(none.tlbs.tlbs.empty());
    CHECK(none.tlbs.paging_structure_caches.empty());
    CHECK(none.timing.data_caches.empty());
}

// ---- reading

TEST_CASE("a CPU profile is read key by key", "[cpu]")
{
    CHECK(text_of(parsed(good())) ==
          "mine, a CPU of mine, pcid false\n"
          "l1i 1 truefalsefalse 1 0 truefalsefalsefalse 0 2\n"
          "  8 entries 8 ways xor() fifo/1/1: 4K=8+0*8\n"
          "l1d 1 falsetruetrue 0 0 truefalsefalsefalse 4096 4096\n"
          "  64 entries 4 ways xor() tree-plru/1/1: 4K=4+0*4\n"
          "  8 entries 8 ways xor() random/1/7: 2M=8+0*8 1G=8+0*8\n"
          "l2 2 truetruetrue 7 2 falsetruetruetrue 3 4\n"
          "  96 entries 12 ways xor(0x9 0x12 0x24) mru-groups/3/1: 4K=12+0*12 2M=4+0*12 1G=4+8*12\n"
          "  24 entries 3 ways xor() lru/1/1: 4M=3+0*3 pde=1+1*2\n"
          "2 'l2' 64 entries 4 ways xor() lru/1/1:\n"
          "3 '' 8 entries 4 ways xor(0x3) bit-plru/1/1: pde=4+0*4\n"
          "4 '' 4 entries 4 ways xor() lru/1/1: pde=4+0*4\n"
          "5 '' 2 entries 2 ways xor() srrip/1/1: pde=2+0*2\n"
          "l1d 64 12 64 5 16 xor() tree-plru/1/1\n"
          "l2 128 20 128 16 10 xor(0x81 0x102 0x204 0x408 0x810 0x1020 0x2040) lru/1/1\n"
          "memory 333 walker 4 3 0 11 12 13 14 15 800 front end 6 2\n"
          "21 22 23 24 25\n"
          "40 41 42 43 44 45 46 47\n"
          "31 32 33 34 35 36 37 38 39\n");
}

TEST_CASE("a CPU profile may leave out what has a default", "[cpu]")
{
    const CpuProfile profile = parse_cpu_profile(
        R"({"schema": "mmusim-cpu-profile", "version": 1, "name": "least", "tlbs": []})", "least");
    CpuProfile defaults;
    defaults.name = "least";
    CHECK(text_of(profile) == text_of(defaults));
}

TEST_CASE("a figure of a CPU profile may be written plain or with its source", "[cpu]")
{
    CHECK(text_of(parsed(dressed(good()))) == text_of(parsed(good())));
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        INFO(bundled.name);
        const Json document = Json::parse(bundled.text);
        const std::string expected = text_of(parse_cpu_profile(bundled.text, bundled.name));
        const Json plain = undressed(document);
        CHECK(text_of(parsed(plain)) == expected);
        CHECK(text_of(parsed(dressed(plain))) == expected);
    }
}

TEST_CASE("a CPU profile may have comments", "[cpu]")
{
    const std::string text = std::string{"// mine\n"} + kGood + "/* end */";
    CHECK(text_of(parse_cpu_profile(text, "mine.json")) == text_of(parsed(good())));
}

TEST_CASE("what is wrong with a CPU profile is told with the file and the key", "[cpu]")
{
    struct Bad {
        const char* at;     ///< JSON pointer
        const char* value;  ///< put there; empty: taken away
        const char* key;
        const char* what;
    };
    const std::vector<Bad> table{
        // Unknown, missing, of the wrong type.
        {"/colour", "1", "colour", "is not known"},
        {"/tlbs/1/arrays/0/way", "1", "tlbs[1].arrays[0].way", "is not known"},
        {"/tlbs/2/arrays/0/views/1/way", "1", "tlbs[2].arrays[0].views[1].way", "is not known"},
        {"/tlbs/0/sources", "\"x\"", "tlbs[0].sources", "is not known"},
        {"/paging_structure_caches/pte", "{}", "paging_structure_caches.pte", "is not known"},
        {"/paging_structure_caches/pml4e/pages", "[]", "paging_structure_caches.pml4e.pages", "is not known"},
        {"/data_caches/0/size", "1", "data_caches[0].size", "is not known"},
        {"/walker/load_cycles/pml6e", "1", "walker.load_cycles.pml6e", "is not known"},
        {"/walker/cycles", "1", "walker.cycles", "is not known"},
        {"/front_end/width", "1", "front_end.width", "is not known"},
        {"/instructions/cpuid", "1", "instructions.cpuid", "is not known"},
        {"/hypervisor/vmexit", "1", "hypervisor.vmexit", "is not known"},
        {"/memory_latency", R"({"value": 5, "unit": "ns"})", "memory_latency.unit", "is not known"},
        {"/schema", "", "schema", "is missing"},
        {"/version", "", "version", "is missing"},
        {"/name", "", "name", "is missing"},
        {"/tlbs", "", "tlbs", "is missing"},
        {"/tlbs/0/name", "", "tlbs[0].name", "is missing"},
        {"/tlbs/0/level", "", "tlbs[0].level", "is missing"},
        {"/tlbs/0/arrays", "", "tlbs[0].arrays", "is missing"},
        {"/tlbs/0/arrays/0/entries", "", "tlbs[0].arrays[0].entries", "is missing"},
        {"/tlbs/0/arrays/0/ways", "", "tlbs[0].arrays[0].ways", "is missing"},
        {"/tlbs/0/arrays/0/pages", "", "tlbs[0].arrays[0].pages", "is missing"},
        {"/tlbs/2/arrays/0/views/0/pages", "", "tlbs[2].arrays[0].views[0].pages", "is missing"},
        {"/tlbs/2/arrays/0/replacement/groups", "", "tlbs[2].arrays[0].replacement.groups", "is missing"},
        {"/paging_structure_caches/pml4e/ways", "", "paging_structure_caches.pml4e.ways", "is missing"},
        {"/data_caches/1/latency", "", "data_caches[1].latency", "is missing"},
        {"/schema", "\"mmusim-config\"", "schema", "must be \"mmusim-cpu-profile\""},
        {"/version", "2", "version", "must be 1, but is 2"},
        {"/name", "\"a b\"", "name", "is not a name"},
        {"/name", "\"\"", "name", "is not a name"},
        {"/description", "\"two\\nlines\"", "description", "control characters"},
        {"/description", "1", "description", "must be a string"},
        {"/vendor", "1", "vendor", "must be a string"},
        {"/tlbs", "{}", "tlbs", "must be an array"},
        {"/tlbs/0", "7", "tlbs[0]", "must be an object"},
        {"/tlbs/0/loads", "1", "tlbs[0].loads", "must be true or false, but is 1"},
        {"/tlbs/0/lookup_cycles", "1.5", "tlbs[0].lookup_cycles", "must be a whole number"},
        {"/tlbs/0/lookup_cycles", "\"1\"", "tlbs[0].lookup_cycles", "must be a whole number"},
        {"/tlbs/0/lookup_cycles", "[]", "tlbs[0].lookup_cycles", "is an array"},
        {"/tlbs/0/lookup_cycles", R"({"source": "x"})", "tlbs[0].lookup_cycles", "is an object"},
        {"/paging_structure_caches", "[]", "paging_structure_caches", "must be an object"},
        {"/data_caches", "{}", "data_caches", "must be an array"},
        {"/walker", "4", "walker", "must be an object"},
        {"/walker/load_cycles", "[1, 2]", "walker.load_cycles", "must be an object"},
        {"/instructions", "4", "instructions", "must be an object"},
        {"/pcid", "\"yes\"", "pcid", "must be true or false"},
        // Out of range.
        {"/tlbs/0/lookup_cycles", "-1", "tlbs[0].lookup_cycles", "from 0 to 1000000, but is -1"},
        {"/tlbs/0/lookup_cycles", "1000001", "tlbs[0].lookup_cycles", "from 0 to 1000000"},
        {"/tlbs/0/lookup_cycles", "99999999999999999999", "tlbs[0].lookup_cycles", "from 0 to 1000000"},
        {"/tlbs/0/arrays/0/entries", "0", "tlbs[0].arrays[0].entries", "from 1 to 1048576"},
        {"/tlbs/0/arrays/0/entries", "1048577", "tlbs[0].arrays[0].entries", "from 1 to 1048576"},
        {"/tlbs/0/pcids_kept_flush", "4097", "tlbs[0].pcids_kept_flush", "from 0 to 4096"},
        {"/tlbs/0/level", "0", "tlbs[0].level", "from 1 to 8"},
        {"/tlbs/1/arrays/0/ways", "0", "tlbs[1].arrays[0].ways", "from 1 to 64"},
        {"/walker/count", "0", "walker.count", "from 1 to"},
        {"/walker/load_cycles/pde", "1000001", "walker.load_cycles.pde", "from 0 to"},
        {"/front_end/issue_width", "0", "front_end.issue_width", "from 1 to"},
        {"/memory_latency", "0", "memory_latency", "from 1 to"},
        {"/data_caches/0/latency", "0", "data_caches[0].latency", "from 1 to"},
        {"/data_caches/0/misses_in_flight", "0", "data_caches[0].misses_in_flight", "from 1 to"},
        {"/data_caches/0/sets", "0", "data_caches[0].sets", "from 1 to"},
        {"/data_caches/0/ways", "0", "data_caches[0].ways", "from 1 to"},
        {"/data_caches/0/sets", "4194304", "data_caches[0].sets", "lines"},
        {"/instructions/invlpg", "-5", "instructions.invlpg", "from 0 to"},
        {"/hypervisor/exit", "1000001", "hypervisor.exit", "from 0 to"},
        // Shapes that no storage has.
        {"/tlbs/1/arrays/0/ways", "5", "tlbs[1].arrays[0].ways", "64 entries are not a multiple of 5 ways"},
        {"/tlbs/1/arrays/0/ways", "65", "tlbs[1].arrays[0].ways", "from 1 to 64"},
        {"/tlbs/1/arrays/0/ways", "\"all\"", "tlbs[1].arrays[0].ways", "is not \"full\""},
        {"/tlbs/1/arrays/0/pages", "[]", "tlbs[1].arrays[0].pages", "names no page size"},
        {"/tlbs/1/arrays/0/pages", "\"4K\"", "tlbs[1].arrays[0].pages", "must be an array"},
        {"/tlbs/1/arrays/0/pages", "[\"4K\", \"8K\"]", "tlbs[1].arrays[0].pages[1]",
         "is not one of 4K, 2M, 4M, 1G"},
        {"/tlbs/1/arrays/0/pages", "[\"4K\", \"4K\"]", "tlbs[1].arrays[0]", "has a place for 4K already"},
        {"/tlbs/1/arrays/1/pages", "[\"4K\"]", "tlbs[1].arrays[1]", "has a place for 4K already"},
        {"/tlbs/1/arrays", "[]", "tlbs[1].arrays", "is empty"},
        {"/tlbs/2/arrays/0/pages", "[\"4K\"]", "tlbs[2].arrays[0].pages", "beside \"views\""},
        {"/tlbs/2/arrays/0/views", "[]", "tlbs[2].arrays[0].views", "is empty"},
        {"/tlbs/2/arrays/0/views/1/ways", "13", "tlbs[2].arrays[0].views[1].ways", "from 1 to 12"},
        {"/tlbs/2/arrays/0/views/1/first_way", "9", "tlbs[2].arrays[0].views[1].ways", "beyond a row of 12"},
        {"/tlbs/2/arrays/0/views/1/first_way", "12", "tlbs[2].arrays[0].views[1].first_way", "from 0 to 11"},
        {"/tlbs/2/arrays/1/views/1/stride", "5", "tlbs[2].arrays[1].views[1].stride", "not a multiple of 5"},
        {"/tlbs/2/arrays/1/views/1/stride", "0", "tlbs[2].arrays[1].views[1].stride", "from 1 to 24"},
        {"/tlbs/2/arrays/1/replacement", "\"tree-plru\"", "tlbs[2].arrays[1].replacement",
         "rows of different lengths"},
        {"/tlbs/1/arrays/0/index", "\"hash\"", "tlbs[1].arrays[0].index", "is not one of linear, xor-1"},
        {"/tlbs/1/arrays/0/index", "\"xor-0\"", "tlbs[1].arrays[0].index", "is not one of"},
        {"/tlbs/1/arrays/0/index", "\"xor-7\"", "tlbs[1].arrays[0].index",
         "is for 128 sets, but 4K pages have 16"},
        {"/tlbs/2/arrays/1/index", "\"xor-3\"", "tlbs[2].arrays[1].index", "is for 8 sets, but PDEs have 12"},
        {"/tlbs/0/arrays/0/index", "\"xor-1\"", "tlbs[0].arrays[0].index", "4K pages have 1"},
        {"/tlbs/1/arrays/0/index", R"({"xor": []})", "tlbs[1].arrays[0].index.xor", "needs a mask"},
        {"/tlbs/1/arrays/0/index", R"({"xor": [1, 2]})", "tlbs[1].arrays[0].index.xor[0]",
         "must be a string"},
        {"/tlbs/1/arrays/0/index", R"({"xor": ["0x1", "0y2"]})", "tlbs[1].arrays[0].index.xor[1]",
         "is not a mask"},
        {"/tlbs/2/arrays/0/index/xor/2", "\"0x1b\"", "tlbs[2].arrays[0].index.xor", "leaves sets unused"},
        {"/tlbs/2/arrays/0/index/xor/0", "\"0\"", "tlbs[2].arrays[0].index.xor", "leaves sets unused"},
        {"/tlbs/2/arrays/0/index/and", "1", "tlbs[2].arrays[0].index.and", "is not known"},
        {"/tlbs/1/arrays/0/replacement", "\"mru\"", "tlbs[1].arrays[0].replacement",
         "is not one of lru, tree-plru"},
        {"/tlbs/1/arrays/0/replacement", "\"mru-groups\"", "tlbs[1].arrays[0].replacement", "\"groups\": N"},
        {"/tlbs/1/arrays/0/replacement", "{}", "tlbs[1].arrays[0].replacement.policy", "is missing"},
        {"/tlbs/1/arrays/0/replacement", R"({"policy": "lru", "seed": 1})",
         "tlbs[1].arrays[0].replacement.seed", "is not known"},
        {"/tlbs/2/arrays/0/replacement/groups", "5", "tlbs[2].arrays[0].replacement", "there are 12 ways"},
        {"/tlbs/1/arrays/1/entries", "128", "tlbs[1].arrays[1].replacement", "accepted"},
        {"/paging_structure_caches/pml4e", R"({"entries": 96, "ways": "full", "replacement": "bit-plru"})",
         "paging_structure_caches.pml4e.replacement", "there are 96 ways"},
        {"/paging_structure_caches/pdpte/ways", "3", "paging_structure_caches.pdpte.ways",
         "not a multiple of 3 ways"},
        {"/paging_structure_caches/pdpte/index", "\"xor-2\"", "paging_structure_caches.pdpte.index",
         "is for 4 sets, but the cache has 2"},
        {"/data_caches/0/line_bytes", "48", "data_caches[0].line_bytes", "power of two"},
        {"/data_caches/0/line_bytes", "4", "data_caches[0].line_bytes", "from 8 to 4096"},
        {"/data_caches/1/sets", "100", "data_caches[1].index", "is for 128 sets, but the cache has 100"},
        {"/data_caches/0/replacement", "{\"policy\": \"mru-groups\", \"groups\": 5}",
         "data_caches[0].replacement", "there are 12 ways"},
        {"/data_caches/1/name", "\"l1d\"", "data_caches[1].name", "earlier cache"},
        {"/data_caches/1/name", "\"memory\"", "data_caches[1].name", "behind the caches"},
        // Levels and names.
        {"/tlbs/1/name", "\"l1i\"", "tlbs[1].name", "earlier TLB"},
        {"/tlbs/0/fetches", "false", "tlbs[0]", "serves nothing"},
        {"/tlbs/1/loads", "false", "tlbs[2].level", "no TLB of level 1 serves loads"},
        {"/tlbs/0/loads", "true", "tlbs[1].level", "l1i and l1d are of level 1 and both serve loads"},
        {"/tlbs/2/level", "3", "tlbs[2].level", "is 3, but no TLB of level 2 serves fetches"},
        {"/tlbs/0/level", "2", "tlbs[1].level", "is 1, after a TLB of level 2"},
        {"/tlbs/2/level", "1", "tlbs[2].inclusion", "level 1 has no level before it"},
        {"/tlbs/0/takes_evictions", "true", "tlbs[0].takes_evictions", "level 1 has no level before it"},
        {"/tlbs/0/touched_by_earlier_hits", "true", "tlbs[0].touched_by_earlier_hits", "level 1 has no"},
        {"/tlbs/2/inclusion", "\"both\"", "tlbs[2].inclusion", "is not one of neither, inclusive, exclusive"},
        // PDEs among pages.
        {"/paging_structure_caches/pde/stored_in", "\"l3\"", "paging_structure_caches.pde.stored_in",
         "names no TLB"},
        {"/paging_structure_caches/pde/stored_in", "\"l1d\"", "paging_structure_caches.pde.stored_in",
         "the arrays of l1d have no view for pde"},
        {"/paging_structure_caches/pde/entries", "4", "paging_structure_caches.pde.entries", "is not known"},
        {"/paging_structure_caches/pdpte", R"({"stored_in": "l2"})",
         "paging_structure_caches.pdpte.stored_in", "only PDEs"},
        {"/paging_structure_caches/pde", "", "tlbs[2].arrays[1]", "has a place for PDEs"},
        {"/paging_structure_caches", "", "tlbs[2].arrays[1]", "has a place for PDEs"},
        {"/tlbs/0/arrays/0/pages", "[\"pde\"]", "tlbs[0].arrays", "hold no pages"},
        // What is said about figures.
        {"/confidence", "\"certain\"", "confidence", "is not one of measured"},
        {"/tlbs/0/confidence", "\"certain\"", "tlbs[0].confidence", "is not one of measured"},
        {"/tlbs/0/source", "7", "tlbs[0].source", "must be a string"},
        {"/memory_latency", R"({"value": 5, "confidence": "certain"})", "memory_latency.confidence",
         "is not one of"},
        {"/memory_latency", R"({"value": 5, "note": 6})", "memory_latency.note", "must be a string"},
        {"/memory_latency", R"({"value": {"value": 5}})", "memory_latency", "is an object"},
        {"/note", "\"\\u001b[2J\"", "note", "control characters"},
        {"/a\\u001b", "1", "\"a\\u001b\"", "is not known"},
    };
    for (const Bad& bad : table) {
        INFO(bad.at << " = " << bad.value);
        Json document = good();
        const std::string unescaped = Json::parse(fmt::format("\"{}\"", bad.at)).get<std::string>();
        const Json::json_pointer at{unescaped};
        if (*bad.value == '\0') {
            document.at(at.parent_pointer()).erase(at.back());
        } else {
            document[at] = Json::parse(bad.value);
        }
        const std::string refusal = refusal_of(document.dump());
        if (std::string_view{bad.what} == "accepted") {
            CHECK(refusal == "accepted");
            continue;
        }
        INFO(refusal);
        CHECK(refusal.find(fmt::format("mine.json: key \"{}\": ", bad.key)) == 0);
        CHECK(refusal.find(bad.what) != std::string::npos);
        CHECK(std::all_of(refusal.begin(), refusal.end(),
                          [](char c) { return static_cast<unsigned char>(c) >= 0x20; }));
    }
}

TEST_CASE("a key of a CPU profile that stands twice is an error", "[cpu]")
{
    const auto twice = [](std::string text, const std::string& before, const std::string& added) {
        return refusal_of(text.insert(text.find(before), added));
    };
    CHECK(twice(kGood, "\"name\": \"mine\"", R"("name": "x", )") ==
          "mine.json: key \"name\": stands twice in one object");
    CHECK(twice(kGood, "\"entries\": 24", R"("entries": 8, )") ==
          "mine.json: key \"tlbs[2].arrays[1].entries\": stands twice in one object");
    CHECK(twice(kGood, "\"ways\": 1,", R"("ways": 2, )") ==
          "mine.json: key \"tlbs[2].arrays[1].views[1].ways\": stands twice in one object");
    CHECK(twice(kGood, "\"pml5e\": 15", R"("pml5e": 15, )") ==
          "mine.json: key \"walker.load_cycles.pml5e\": stands twice in one object");
    CHECK(twice(kGood, "333", R"({"value": 1, "value": 2}, "x": )") ==
          "mine.json: key \"memory_latency.value\": stands twice in one object");
}

TEST_CASE("what is not a CPU profile at all is an error too", "[cpu]")
{
    for (const std::string text :
         {"", "x", "{", "[]", "7", "null", "{\"schema\": \"mmusim-cpu-profile\"", "{} {}"}) {
        INFO(text);
        const std::string refusal = refusal_of(text);
        CHECK(refusal.find("mine.json: ") == 0);
    }
    CHECK(refusal_of("[]").find("must be an object") != std::string::npos);
    CHECK(refusal_of(std::string(300'000, '[')).find("mine.json: ") == 0);
    std::string deep = R"({"schema": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
    CHECK(refusal_of(deep).find("mine.json: key \"schema\"") == 0);
    CHECK(refusal_of(std::string{kGood} + "\xff").find("mine.json: ") == 0);
}

TEST_CASE("a CPU profile with too many parts is refused", "[cpu]")
{
    Json document = good();
    Json tlb = document["tlbs"][2];
    for (unsigned i = 0; i < 20; ++i) document["tlbs"].push_back(tlb);
    CHECK(refusal_of(document.dump()).find("\"tlbs\": has 23 elements; 16 are the most") !=
          std::string::npos);
    document = good();
    for (unsigned i = 0; i < 7; ++i) document["data_caches"].push_back(document["data_caches"][0]);
    CHECK(refusal_of(document.dump()).find("\"data_caches\": has 9 elements; 8 are the most") !=
          std::string::npos);
}

TEST_CASE("the example in the documentation is a CPU profile", "[cpu]")
{
    const std::string page = content_of(MMUSIM_SOURCE_DIR "/docs/cpu-profiles.md");
    const std::string fence = "```json\n";
    const std::size_t start = page.find(fence) + fence.size();
    REQUIRE(start > fence.size());
    const CpuProfile small =
        parse_cpu_profile(page.substr(start, page.find("```", start) - start), "example");
    CHECK(small.name == "small");
    CHECK(small.tlbs.tlbs.size() == 2);
    // The page's tables name every profile and level of confidence.
    for (const std::string& name : kBundled) {
        if (!name.starts_with("zen")) CHECK(page.find(fmt::format("| `{}` |", name)) != std::string::npos);
    }
    for (const std::string& level : kConfidences)
        CHECK(page.find(fmt::format("| `{}` |", level)) != std::string::npos);
}

// ---- finding

TEST_CASE("a CPU profile is found by name or in a file", "[cpu]")
{
    const ScratchFile file{kGood, ".json"};
    CHECK(find_cpu_profile(file.path()).name == "mine");
    CHECK(cpu_profile_text(file.path()) == kGood);
    CHECK(find_cpu_profile("zen3").name == "zen3");
    CHECK(find_cpu_profile(MMUSIM_SOURCE_DIR "/profiles/zen3.json").name == "zen3");
    CHECK(cpu_profile_text("haswell") == content_of(MMUSIM_SOURCE_DIR "/profiles/haswell.json"));
}

TEST_CASE("a CPU profile that is not found is an error that helps", "[cpu]")
{
    const auto refusal = [](const std::string& name) {
        try {
            static_cast<void>(find_cpu_profile(name));
        } catch (const CpuProfileError& error) {
            return std::string{error.what()};
        }
        return std::string{"found"};
    };
    for (const std::string name : {"golden_grove", "", "no/such/file.json"}) {
        INFO(name);
        CHECK(refusal(name).find(fmt::format("'{}'", name)) == 0);
        for (const std::string& known : kBundled) CHECK(refusal(name).find(known) != std::string::npos);
    }
    CHECK(refusal("/") == "/: is a directory");
    CHECK(refusal(MMUSIM_SOURCE_DIR).find("is a directory") != std::string::npos);

    const std::string spaces(1 << 20, ' ');
    const ScratchFile large{kGood + spaces, ".json"};
    CHECK(refusal(large.path()) == fmt::format("{}: is larger than 1 MiB", large.path()));
    const ScratchFile full{kGood + spaces.substr(std::string_view{kGood}.size()), ".json"};
    CHECK(refusal(full.path()) == "found");
    CHECK(refusal("/dev/zero") == "/dev/zero: is larger than 1 MiB");

    const ScratchFile bad{"{\"schema\": 1}", ".json"};
    CHECK(refusal(bad.path()).find(fmt::format("{}: key \"schema\": ", bad.path())) == 0);
}
