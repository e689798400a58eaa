// SPDX-License-Identifier: Apache-2.0
//
// From a profile's JSON to the specs. docs/cpu-profiles.md is the description of the format; the defaults
// are those of the spec structs.
#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/words/number.hpp>

#include "cpu/profile_json.hpp"

namespace mmusim {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMostEntries = 1 << 20;  // of a TLB array
constexpr std::uint64_t kMostLines = 1 << 22;    // of a data cache
constexpr std::uint64_t kMostLevels = 8;         // of TLBs, of data caches
constexpr std::uint64_t kMostElements = 16;      // of a list of TLBs, arrays, views
constexpr std::uint64_t kMostSlots = 1024;       // of walkers, misses in flight, issue
constexpr std::uint64_t kPcids = 4096;
constexpr std::uint64_t kMostCycles = 1'000'000;
constexpr Bounds kCycles{0, kMostCycles};
constexpr Bounds kLatency{1, kMostCycles};

/// Indexed by the level of the table entries.
constexpr std::array<const char*, 6> kLevelNames{"", "pte", "pde", "pdpte", "pml4e", "pml5e"};

// ---- values

std::string name_like(const Json& value, const std::string& path)
{
    std::string name = string_of(value, path);
    const auto good = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
               c == '-' || c == '.';
    };
    if (name.empty() || name.size() > 64 || !std::all_of(name.begin(), name.end(), good)) {
        refuse_key(path, fmt::format("{} is not a name: letters, digits, '_', '-' and '.'", shown(value)));
    }
    return name;
}

const Json& list_of(const Json& value, const std::string& path, std::uint64_t most = kMostElements)
{
    if (!value.is_array()) refuse_key(path, fmt::format("must be an array, but is {}", shown(value)));
    if (value.size() > most) {
        refuse_key(path, fmt::format("has {} elements; {} are the most", value.size(), most));
    }
    return value;
}

std::optional<EntryKind> parse_entry_kind(std::string_view name)
{
    for (unsigned kind = 0; kind < kEntryKinds; ++kind) {
        if (name == name_of(static_cast<EntryKind>(kind))) return static_cast<EntryKind>(kind);
    }
    return std::nullopt;
}

// ---- storage

/// Whether each of the 2^n sets has numbers that map to it: no mask is the sum of others.
bool reaches_every_set(std::vector<std::uint64_t> masks)
{
    for (std::size_t i = 0; i < masks.size(); ++i) {
        if (masks[i] == 0) return false;
        const std::uint64_t lowest = masks[i] & -masks[i];
        for (std::size_t j = i + 1; j < masks.size(); ++j) {
            if ((masks[j] & lowest) != 0) masks[j] ^= masks[i];
        }
    }
    return true;
}

IndexSpec read_index(Members& storage)
{
    const Json* const value = storage.find("index");
    if (value == nullptr) return {};
    const std::string path = storage.path_of("index");
    constexpr std::uint64_t kMostBits = 20;
    if (value->is_object()) {
        Members members{*value, path};
        const std::string masks_path = members.path_of("xor");
        IndexSpec spec;
        for (const Json& element : list_of(members.need("xor"), masks_path, kMostBits)) {
            const auto at = fmt::format("{}[{}]", masks_path, spec.xor_masks.size());
            const auto mask = parse_number(string_of(element, at));
            if (!mask) refuse_key(at, fmt::format("{} is not a mask like \"0x81\"", shown(element)));
            spec.xor_masks.push_back(*mask);
        }
        members.finish();
        if (spec.xor_masks.empty()) refuse_key(masks_path, "needs a mask for each bit of the set");
        if (!reaches_every_set(spec.xor_masks)) {
            refuse_key(masks_path, "leaves sets unused: a mask is 0 or the sum of others");
        }
        return spec;
    }
    const std::string name = string_of(*value, path);
    if (name == "linear") return {};
    if (name.starts_with("xor-")) {
        const auto bits = parse_number(std::string_view{name}.substr(4));
        if (bits && *bits >= 1 && *bits <= kMostBits) return xor_index(static_cast<unsigned>(*bits));
    }
    refuse_key(path, fmt::format("{} is not one of linear, xor-1 to xor-{}, {{\"xor\": masks}}",
                                 shown(*value), kMostBits));
}

void check_index(const IndexSpec& index, unsigned sets, const std::string& path, std::string_view whose)
{
    if (index.xor_masks.empty() || sets == 1u << index.xor_masks.size()) return;
    refuse_key(path, fmt::format("is for {} sets, but {} {} {}", 1u << index.xor_masks.size(), whose,
                                 whose.ends_with('s') ? "have" : "has", sets));
}

ReplacementSpec read_replacement(Members& storage)
{
    ReplacementSpec spec;
    const Json* const value = storage.find("replacement");
    if (value == nullptr) return spec;
    std::string path = storage.path_of("replacement");
    const auto kind = [&](const Json& name, const std::string& at) {
        const auto known = parse_replacement(string_of(name, at));
        if (!known) {
            refuse_key(at, fmt::format("{} is not one of lru, tree-plru, bit-plru, fifo, random, srrip, "
                                       "mru-groups",
                                       shown(name)));
        }
        return *known;
    };
    if (!value->is_object()) {
        spec.kind = kind(*value, path);
        if (spec.kind == ReplacementKind::mru_groups) {
            refuse_key(path, "mru-groups needs {\"policy\": \"mru-groups\", \"groups\": N}");
        }
        return spec;
    }
    Members members{*value, path};
    spec.kind = kind(members.need("policy"), members.path_of("policy"));
    if (spec.kind == ReplacementKind::mru_groups) {
        spec.groups =
            static_cast<unsigned>(number_of(members.need("groups"), members.path_of("groups"), {1, 64}));
    }
    if (spec.kind == ReplacementKind::random) members.number("seed", spec.seed, {0, ~std::uint64_t{0}});
    members.finish();
    return spec;
}

void check_replacement(const ReplacementSpec& replacement, unsigned ways, const std::string& path)
{
    const std::string_view refusal = replacement.refusal(ways);
    if (!refusal.empty()) refuse_key(path, fmt::format("{}; there are {} ways", refusal, ways));
}

/// What a TLB array and a paging-structure cache have in common.
TlbArraySpec read_storage(Members& members)
{
    TlbArraySpec array;
    const std::string ways = members.path_of("ways");
    array.entries = static_cast<unsigned>(
        number_of(members.need("entries"), members.path_of("entries"), {1, kMostEntries}));
    const Json& value = members.need("ways");
    if (value.is_string()) {
        if (value != "full") refuse_key(ways, fmt::format("{} is not \"full\" or a number", shown(value)));
        array.ways = array.entries;
    } else {
        array.ways = static_cast<unsigned>(number_of(value, ways, {1, array.entries}));
    }
    if (array.entries % array.ways != 0) {
        refuse_key(ways, fmt::format("{} entries are not a multiple of {} ways", array.entries, array.ways));
    }
    array.index = read_index(members);
    array.replacement = read_replacement(members);
    check_replacement(array.replacement, array.ways, members.path_of("replacement"));
    return array;
}

// ---- TLBs

void read_pages(Members& members, const EntryView& like, std::vector<EntryView>& views)
{
    const std::string path = members.path_of("pages");
    const Json& pages = list_of(members.need("pages"), path);
    if (pages.empty()) refuse_key(path, "names no page size");
    std::size_t i = 0;
    for (const Json& page : pages) {
        const auto at = fmt::format("{}[{}]", path, i++);
        const auto kind = parse_entry_kind(string_of(page, at));
        if (!kind) refuse_key(at, fmt::format("{} is not one of 4K, 2M, 4M, 1G, pde", shown(page)));
        views.push_back(like);
        views.back().kind = *kind;
    }
}

void read_view(const Json& value, const std::string& path, TlbArraySpec& array)
{
    Members members{value, path};
    EntryView view{EntryKind::page_4k, array.ways, 0, array.ways};
    members.number("stride", view.stride, {1, array.entries});
    if (array.entries % view.stride != 0) {
        refuse_key(members.path_of("stride"),
                   fmt::format("{} entries are not a multiple of {}", array.entries, view.stride));
    }
    members.number("first_way", view.first_way, {0, view.stride - 1});
    view.ways = view.stride - view.first_way;
    members.number("ways", view.ways, {1, view.stride});
    if (view.first_way + view.ways > view.stride) {
        refuse_key(members.path_of("ways"),
                   fmt::format("ways {} to {} are beyond a row of {}", view.first_way,
                               view.first_way + view.ways - 1, view.stride));
    }
    read_pages(members, view, array.views);
    members.finish();
}

TlbArraySpec read_array(const Json& value, const std::string& path)
{
    Members members{value, path};
    TlbArraySpec array = read_storage(members);
    if (const Json* const views = members.find("views")) {
        if (members.find("pages") != nullptr) {
            refuse_key(members.path_of("pages"), "stands beside \"views\", which say it");
        }
        const std::string at = members.path_of("views");
        if (list_of(*views, at).empty()) refuse_key(at, "is empty");
        std::size_t i = 0;
        for (const Json& view : *views) read_view(view, fmt::format("{}[{}]", at, i++), array);
    } else {
        read_pages(members, {EntryKind::page_4k, array.ways, 0, array.ways}, array.views);
    }
    members.finish();
    for (const EntryView& view : array.views) {
        // These policies keep a word for each row of the array; the others look at single entries.
        const ReplacementKind kind = array.replacement.kind;
        if (view.stride != array.ways && kind != ReplacementKind::lru && kind != ReplacementKind::fifo &&
            kind != ReplacementKind::random) {
            refuse_key(members.path_of("replacement"),
                       fmt::format("{} can't serve rows of different lengths; lru, fifo and random can",
                                   name_of(kind)));
        }
        check_index(array.index, array.entries / view.stride, members.path_of("index"),
                    view.kind == EntryKind::pde ? "PDEs" : fmt::format("{} pages", name_of(view.kind)));
    }
    return array;
}

Inclusion read_inclusion(Members& members)
{
    const Json* const value = members.find("inclusion");
    if (value == nullptr || *value == "neither") return Inclusion::neither;
    if (*value == "inclusive") return Inclusion::inclusive;
    if (*value == "exclusive") return Inclusion::exclusive;
    refuse_key(members.path_of("inclusion"),
               fmt::format("{} is not one of neither, inclusive, exclusive", shown(*value)));
}

TlbSpec read_tlb(const Json& value, const std::string& path)
{
    Members members{value, path};
    TlbSpec tlb;
    tlb.name = name_like(members.need("name"), members.path_of("name"));
    tlb.level =
        static_cast<unsigned>(number_of(members.need("level"), members.path_of("level"), {1, kMostLevels}));
    members.flag("fetches", tlb.fetches);
    members.flag("loads", tlb.loads);
    members.flag("stores", tlb.stores);
    if (!tlb.fetches && !tlb.loads && !tlb.stores) {
        refuse_key(path, "serves nothing: one of \"fetches\", \"loads\", \"stores\" must be true");
    }
    members.number("lookup_cycles", tlb.lookup_cycles, kCycles);
    tlb.inclusion = read_inclusion(members);
    members.flag("refills", tlb.refills);
    members.flag("takes_evictions", tlb.takes_evictions);
    members.flag("touched_by_earlier_hits", tlb.touched_by_earlier_hits);
    members.flag("splinters", tlb.splinters);
    members.number("pcids_kept_flush", tlb.pcids_kept_flush, {0, kPcids});
    members.number("pcids_kept_noflush", tlb.pcids_kept_noflush, {0, kPcids});
    const auto refuse_on_first_level = [&](bool stated, std::string_view name) {
        if (tlb.level == 1 && stated) refuse_key(members.path_of(name), "level 1 has no level before it");
    };
    refuse_on_first_level(tlb.inclusion != Inclusion::neither, "inclusion");
    refuse_on_first_level(tlb.takes_evictions, "takes_evictions");
    refuse_on_first_level(tlb.touched_by_earlier_hits, "touched_by_earlier_hits");

    const std::string at = members.path_of("arrays");
    const Json& arrays = list_of(members.need("arrays"), at);
    if (arrays.empty()) refuse_key(at, "is empty");
    std::array<bool, kEntryKinds> held{};
    for (const Json& array : arrays) {
        const auto array_path = fmt::format("{}[{}]", at, tlb.arrays.size());
        tlb.arrays.push_back(read_array(array, array_path));
        for (const EntryView& view : tlb.arrays.back().views) {
            if (std::exchange(held[static_cast<std::size_t>(view.kind)], true)) {
                refuse_key(array_path, fmt::format("the TLB has a place for {} already", name_of(view.kind)));
            }
        }
    }
    if (std::count(held.begin(), held.end(), true) ==
        (held[static_cast<std::size_t>(EntryKind::pde)] ? 1 : 0)) {
        refuse_key(at, "hold no pages");
    }
    members.finish();
    return tlb;
}

/// The TLBs that serve one kind of access are a chain: one of each level, from 1 on.
void check_chain(const std::vector<TlbSpec>& tlbs, bool TlbSpec::*serves, std::string_view what)
{
    const TlbSpec* last = nullptr;
    for (std::size_t i = 0; i < tlbs.size(); ++i) {
        const TlbSpec& tlb = tlbs[i];
        if (!(tlb.*serves)) continue;
        const unsigned expected = last == nullptr ? 1 : last->level + 1;
        const auto path = fmt::format("tlbs[{}].level", i);
        if (last != nullptr && tlb.level == last->level) {
            refuse_key(path, fmt::format("{} and {} are of level {} and both serve {}", last->name, tlb.name,
                                         tlb.level, what));
        }
        if (tlb.level != expected) {
            refuse_key(path,
                       fmt::format("is {}, but no TLB of level {} serves {}", tlb.level, expected, what));
        }
        last = &tlb;
    }
}

std::vector<TlbSpec> read_tlbs(const Json& value)
{
    std::vector<TlbSpec> tlbs;
    for (const Json& element : list_of(value, "tlbs")) {
        const auto path = fmt::format("tlbs[{}]", tlbs.size());
        TlbSpec tlb = read_tlb(element, path);
        for (const TlbSpec& other : tlbs) {
            if (other.name == tlb.name) refuse_key(path + ".name", "is the name of an earlier TLB too");
        }
        if (!tlbs.empty() && tlb.level < tlbs.back().level) {
            refuse_key(path + ".level",
                       fmt::format("is {}, after a TLB of level {}", tlb.level, tlbs.back().level));
        }
        tlbs.push_back(std::move(tlb));
    }
    check_chain(tlbs, &TlbSpec::fetches, "fetches");
    check_chain(tlbs, &TlbSpec::loads, "loads");
    check_chain(tlbs, &TlbSpec::stores, "stores");
    return tlbs;
}

// ---- paging-structure caches

bool holds_pdes(const TlbArraySpec& array)
{
    return std::any_of(array.views.begin(), array.views.end(),
                       [](const EntryView& view) { return view.kind == EntryKind::pde; });
}

void check_stored_in(const PagingStructureCacheSpec& cache, const TlbsSpec& spec, const std::string& path)
{
    if (cache.level != 2) refuse_key(path, "only PDEs can be in a TLB's arrays");
    for (const TlbSpec& tlb : spec.tlbs) {
        if (tlb.name != cache.stored_in) continue;
        if (!std::any_of(tlb.arrays.begin(), tlb.arrays.end(), holds_pdes)) {
            refuse_key(path, fmt::format("the arrays of {} have no view for pde", tlb.name));
        }
        return;
    }
    refuse_key(path, "names no TLB of this profile");
}

PagingStructureCacheSpec read_paging_structure_cache(const Json& value, int level, const TlbsSpec& spec,
                                                     const std::string& path)
{
    Members members{value, path};
    PagingStructureCacheSpec cache;
    cache.level = level;
    if (const Json* const stored_in = members.find("stored_in")) {
        cache.stored_in = name_like(*stored_in, members.path_of("stored_in"));
        check_stored_in(cache, spec, members.path_of("stored_in"));
    } else {
        cache.array = read_storage(members);
        cache.array.views.push_back({EntryKind::pde, cache.array.ways, 0, cache.array.ways});
        check_index(cache.array.index, cache.array.entries / cache.array.ways, members.path_of("index"),
                    "the cache");
    }
    members.finish();
    return cache;
}

void read_paging_structure_caches(Members& profile, TlbsSpec& spec)
{
    const std::string path = profile.path_of("paging_structure_caches");
    std::string pdes_in;
    if (const Json* const value = profile.find("paging_structure_caches")) {
        Members members{*value, path};
        for (int level = 2; level <= 5; ++level) {
            const char* const name = kLevelNames[static_cast<std::size_t>(level)];
            const Json* const cache = members.find(name);
            if (cache == nullptr) continue;
            spec.paging_structure_caches.push_back(
                read_paging_structure_cache(*cache, level, spec, members.path_of(name)));
            if (level == 2) pdes_in = spec.paging_structure_caches.back().stored_in;
        }
        members.finish();
    }
    for (std::size_t i = 0; i < spec.tlbs.size(); ++i) {
        for (std::size_t j = 0; j < spec.tlbs[i].arrays.size(); ++j) {
            if (!holds_pdes(spec.tlbs[i].arrays[j]) || spec.tlbs[i].name == pdes_in) continue;
            refuse_key(
                fmt::format("tlbs[{}].arrays[{}]", i, j),
                fmt::format("has a place for PDEs, but {}.pde is not stored in {}", path, spec.tlbs[i].name));
        }
    }
}

// ---- timing

CacheSpec read_data_cache(const Json& value, const std::string& path)
{
    Members members{value, path};
    CacheSpec cache;
    const std::string sets = members.path_of("sets");
    cache.name = name_like(members.need("name"), members.path_of("name"));
    if (cache.name == "memory") refuse_key(members.path_of("name"), "\"memory\" is behind the caches");
    cache.sets = static_cast<unsigned>(number_of(members.need("sets"), sets, {1, kMostLines}));
    cache.ways =
        static_cast<unsigned>(number_of(members.need("ways"), members.path_of("ways"), {1, kMostSlots}));
    if (std::uint64_t{cache.sets} * cache.ways > kMostLines) {
        refuse_key(sets, fmt::format("the cache has {} lines; {} are the most",
                                     std::uint64_t{cache.sets} * cache.ways, kMostLines));
    }
    members.number("line_bytes", cache.line_bytes, {8, 4096});
    if (!std::has_single_bit(cache.line_bytes)) {
        refuse_key(members.path_of("line_bytes"),
                   fmt::format("must be a power of two, but is {}", cache.line_bytes));
    }
    cache.latency = number_of(members.need("latency"), members.path_of("latency"), kLatency);
    members.number("misses_in_flight", cache.misses_in_flight, {1, kMostSlots});
    cache.index = read_index(members);
    check_index(cache.index, cache.sets, members.path_of("index"), "the cache");
    cache.replacement = read_replacement(members);
    check_replacement(cache.replacement, cache.ways, members.path_of("replacement"));
    members.finish();
    return cache;
}

void read_data_caches(Members& profile, std::vector<CacheSpec>& caches)
{
    const Json* const value = profile.find("data_caches");
    if (value == nullptr) return;
    for (const Json& element : list_of(*value, "data_caches", kMostLevels)) {
        const auto path = fmt::format("data_caches[{}]", caches.size());
        CacheSpec cache = read_data_cache(element, path);
        for (const CacheSpec& other : caches) {
            if (other.name == cache.name) refuse_key(path + ".name", "is the name of an earlier cache too");
        }
        caches.push_back(std::move(cache));
    }
}

/// Reads an object whose members are numbers of cycles.
template <class Struct, std::size_t kCount>
void read_cycles(Members& profile, std::string_view name, Struct& out,
                 const std::array<std::pair<const char*, Cycles Struct::*>, kCount>& keys)
{
    const Json* const value = profile.find(name);
    if (value == nullptr) return;
    Members members{*value, profile.path_of(name)};
    for (const auto& [key, member] : keys) members.number(key, out.*member, kCycles);
    members.finish();
}

void read_walker(Members& profile, WalkerSpec& walker)
{
    const Json* const value = profile.find("walker");
    if (value == nullptr) return;
    Members members{*value, profile.path_of("walker")};
    members.number("count", walker.count, {1, kMostSlots});
    members.number("start_cycles", walker.start_cycles, kCycles);
    members.number("assist_cycles", walker.assist_cycles, kCycles);
    if (const Json* const cycles = members.find("load_cycles")) {
        Members levels{*cycles, members.path_of("load_cycles")};
        for (std::size_t level = 1; level < kLevelNames.size(); ++level) {
            levels.number(kLevelNames[level], walker.load_cycles[level], kCycles);
        }
        levels.finish();
    }
    members.finish();
}

void read_front_end(Members& profile, FrontEndSpec& front_end)
{
    const Json* const value = profile.find("front_end");
    if (value == nullptr) return;
    Members members{*value, profile.path_of("front_end")};
    members.number("issue_width", front_end.issue_width, {1, kMostSlots});
    members.number("fetch_cycles", front_end.fetch_cycles, kCycles);
    members.finish();
}

constexpr std::array<std::pair<const char*, Cycles InstructionSpec::*>, 5> kInstructionKeys{{
    {"mov_cr", &InstructionSpec::mov_cr},
    {"mov_cr3", &InstructionSpec::mov_cr3},
    {"invlpg", &InstructionSpec::invlpg},
    {"invpcid", &InstructionSpec::invpcid},
    {"page_fault", &InstructionSpec::page_fault},
}};

constexpr std::array<std::pair<const char*, Cycles PriceList::*>, 17> kPriceKeys{{
    {"exit", &PriceList::exit},
    {"entry", &PriceList::entry},
    {"fault_handler", &PriceList::fault_handler},
    {"guest_walk_load", &PriceList::guest_walk_load},
    {"shadow_page", &PriceList::shadow_page},
    {"propagate", &PriceList::propagate},
    {"prefetch", &PriceList::prefetch},
    {"emulate", &PriceList::emulate},
    {"load_root", &PriceList::load_root},
    {"hash_step", &PriceList::hash_step},
    {"guess", &PriceList::guess},
    {"search_entry", &PriceList::search_entry},
    {"snapshot", &PriceList::snapshot},
    {"compare_entry", &PriceList::compare_entry},
    {"flush", &PriceList::flush},
    {"ipi", &PriceList::ipi},
    {"access_event", &PriceList::access_event},
}};

CpuProfile read_profile(const Json& document)
{
    Members members{document, {}};
    constexpr std::string_view kSchema = "mmusim-cpu-profile";
    const Json& schema = members.need("schema");
    if (schema != kSchema) {
        refuse_key("schema", fmt::format("must be \"{}\", but is {}", kSchema, shown(schema)));
    }
    const Json& version = members.need("version");
    if (version != 1) refuse_key("version", fmt::format("must be 1, but is {}", shown(version)));

    CpuProfile profile;
    profile.name = name_like(members.need("name"), "name");
    if (const Json* const text = members.find("description"))
        profile.description = line_of(*text, "description");
    if (const Json* const text = members.find("vendor")) (void)line_of(*text, "vendor");  // for people alone
    profile.tlbs.tlbs = read_tlbs(members.need("tlbs"));
    read_paging_structure_caches(members, profile.tlbs);
    members.flag("pcid", profile.tlbs.pcid);

    TimingSpec& timing = profile.timing;
    read_data_caches(members, timing.data_caches);
    members.number("memory_latency", timing.memory_latency, kLatency);
    read_walker(members, timing.walker);
    read_front_end(members, timing.front_end);
    read_cycles(members, "instructions", timing.instructions, kInstructionKeys);
    read_cycles(members, "hypervisor", timing.hypervisor, kPriceKeys);
    members.finish();
    return profile;
}

}  // namespace

CpuProfile parse_cpu_profile(std::string_view text, std::string_view origin)
{
    try {
        return read_profile(parsed_profile(text));
    } catch (const nlohmann::json::exception& error) {
        throw CpuProfileError(fmt::format("{}: {}", origin, error.what()));
    } catch (const CpuProfileError& error) {
        throw CpuProfileError(fmt::format("{}: {}", origin, error.what()));
    }
}

}  // namespace mmusim
