// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/config.hpp>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <mmusim/words/number.hpp>

namespace mmusim {

namespace {

constexpr std::uint64_t kMaxWindow = 65536;

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(std::string_view key, std::string_view what)
{
    throw ConfigError(fmt::format("configuration key \"{}\": {}", key, what));
}

std::string string_of(const std::string& key, const Json& value)
{
    if (!value.is_string()) refuse(key, fmt::format("must be a string, but is {}", value.type_name()));
    return value.get<std::string>();
}

std::uint64_t count_of(const std::string& key, const Json& value)
{
    if (!value.is_number_unsigned()) {
        refuse(key, fmt::format("must be a whole number of 0 or more, but is {}", value.dump()));
    }
    return value.get<std::uint64_t>();
}

void set_mode(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string name = string_of(key, value);
    const auto mode = parse_translation_mode(name);
    if (!mode) {
        refuse(key, fmt::format("'{}' is not one of shadow, 2-on-3, 3-on-3, 4-on-4, 5-on-5, native, nested",
                                name));
    }
    config.mode = *mode;
}

void set_p2m(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string text = string_of(key, value);
    if (text == "header") {
        config.p2m.reset();
        return;
    }
    const auto layout = parse_p2m_layout(text);
    if (!layout) {
        refuse(key, fmt::format("'{}' is not one of header, identity, offset:FRAMES, shuffled:SEED", text));
    }
    config.p2m = *layout;
}

void set_populate(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string name = string_of(key, value);
    if (name == "leaf") {
        config.populate = Populate::leaf;
    } else if (name == "step") {
        config.populate = Populate::step;
    } else {
        refuse(key, fmt::format("'{}' is not one of leaf, step", name));
    }
}

bool boolean_of(const std::string& key, const Json& value)
{
    if (!value.is_boolean()) refuse(key, fmt::format("must be true or false, but is {}", value.dump()));
    return value.get<bool>();
}

void set_check(ReplayConfig& config, const std::string& key, const Json& value)
{
    config.check = boolean_of(key, value);
}

struct Key {
    const char* path;
    void (*set)(ReplayConfig&, const std::string& key, const Json& value);
};

void set_clock(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string text = string_of(key, value);
    constexpr std::string_view kWindow = "window:";
    if (text == "off" || text == "blocking") {
        config.clock = text == "off" ? ClockKind::off : ClockKind::blocking;
        config.window = 0;
        return;
    }
    const auto size = text.starts_with(kWindow) ? parse_number(text.substr(kWindow.size())) : std::nullopt;
    if (!size || *size == 0 || *size > kMaxWindow) {
        refuse(key, fmt::format("'{}' is not one of blocking, window:N (N accesses in flight, 1 to {}), off",
                                text, kMaxWindow));
    }
    config.clock = ClockKind::window;
    config.window = static_cast<unsigned>(*size);
}

std::string clock_text(const ReplayConfig& config)
{
    switch (config.clock) {
    case ClockKind::off: return "off";
    case ClockKind::blocking: return "blocking";
    case ClockKind::window: break;
    }
    return fmt::format("window:{}", config.window);
}

void set_program_uses_caches(ReplayConfig& config, const std::string& key, const Json& value)
{
    config.program_uses_caches = boolean_of(key, value);
}

void set_check_coherence(ReplayConfig& config, const std::string& key, const Json& value)
{
    config.check_coherence = boolean_of(key, value);
}

constexpr std::uint64_t kLeastPool = 16;
constexpr std::uint64_t kLargestPool = std::uint64_t{1} << 22;

void set_pool(ReplayConfig& config, const std::string& key, const Json& value)
{
    if (value.is_null()) {
        config.shadow_pool_pages.reset();
        return;
    }
    const std::uint64_t pages = count_of(key, value);
    if (pages < kLeastPool || pages >= kLargestPool) {
        refuse(key, fmt::format("{} pages are not from {} to {}", pages, kLeastPool, kLargestPool - 1));
    }
    config.shadow_pool_pages = pages;
}

constexpr std::uint64_t kMostRingPages = 16;

void set_event_ring(ReplayConfig& config, const std::string& key, const Json& value)
{
    if (value.is_null()) {
        config.event_ring_pages.reset();
        return;
    }
    const std::uint64_t pages = count_of(key, value);
    if (pages > kMostRingPages) refuse(key, fmt::format("{} pages are more than {}", pages, kMostRingPages));
    config.event_ring_pages = pages;
}

void set_event_response(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string name = string_of(key, value);
    if (name == "allow") {
        config.event_response.reset();
        return;
    }
    for (std::size_t i = 0; i < kEventActions; ++i) {
        const auto action = static_cast<EventAction>(i);
        if (name != name_of(action)) continue;
        config.event_response = action;
        return;
    }
    refuse(key, fmt::format("'{}' is not one of allow, resume, emulate, emulate_nowrite, single_step", name));
}

void set_secure_view(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string name = string_of(key, value);
    if (name == "separate") {
        config.secure_view = SecureView::separate;
    } else if (name == "shared") {
        config.secure_view = SecureView::shared;
    } else {
        refuse(key, fmt::format("'{}' is not one of separate, shared", name));
    }
}

/// As many as Intel's CPUs have (IA32_VMX_MISC, bits 24:16).
constexpr std::size_t kMostCr3Targets = 4;

void set_cr3_targets(ReplayConfig& config, const std::string& key, const Json& value)
{
    if (!value.is_array() || value.size() > kMostCr3Targets) {
        refuse(key, fmt::format("must be a list of at most {} values of CR3, but is {}", kMostCr3Targets,
                                value.dump()));
    }
    std::vector<std::uint64_t> targets;
    for (const Json& one : value) {
        const auto number = one.is_string()            ? parse_number(one.get<std::string>())
                            : one.is_number_unsigned() ? std::optional{one.get<std::uint64_t>()}
                                                       : std::nullopt;
        if (!number) refuse(key, fmt::format("{} is not a value of CR3", one.dump()));
        if (std::find(targets.begin(), targets.end(), *number) != targets.end())
            refuse(key, fmt::format("{:#x} is listed twice", *number));
        targets.push_back(*number);
    }
    config.cr3_targets = std::move(targets);
}

Json cr3_targets_json(const std::vector<std::uint64_t>& targets)
{
    Json list = Json::array();
    for (const std::uint64_t target : targets) list.push_back(fmt::format("{:#x}", target));
    return list;
}

void set_nested_format(ReplayConfig& config, const std::string& key, const Json& value)
{
    if (value.is_null()) {
        config.nested.format.reset();
        return;
    }
    const std::string name = string_of(key, value);
    if (name == "ept") {
        config.nested.format = P2mFormat::ept;
    } else if (name == "npt") {
        config.nested.format = P2mFormat::npt;
    } else {
        refuse(key, fmt::format("'{}' is not one of ept, npt", name));
    }
}

Json format_json(const std::optional<P2mFormat>& format)
{
    if (!format) return nullptr;
    return *format == P2mFormat::ept ? "ept" : "npt";
}

void set_nested_levels(ReplayConfig& config, const std::string& key, const Json& value)
{
    if (value.is_null()) {
        config.nested.levels.reset();
        return;
    }
    const std::uint64_t levels = count_of(key, value);
    if (levels != 4 && levels != 5) refuse(key, fmt::format("{} is not one of 4, 5", levels));
    config.nested.levels = static_cast<int>(levels);
}

constexpr std::array<const char*, 3> kPageSizes{"4k", "2m", "1g"};

void set_nested_largest_page(ReplayConfig& config, const std::string& key, const Json& value)
{
    const std::string name = string_of(key, value);
    const auto found = std::find(kPageSizes.begin(), kPageSizes.end(), name);
    if (found == kPageSizes.end()) refuse(key, fmt::format("'{}' is not one of 4k, 2m, 1g", name));
    config.nested.largest_page = static_cast<int>(found - kPageSizes.begin()) + 1;
}

void set_nested_tlb_entries(ReplayConfig& config, const std::string& key, const Json& value)
{
    constexpr unsigned kMost = 65536;
    const std::uint64_t entries = count_of(key, value);
    if (entries > kMost) refuse(key, fmt::format("{} is not from 0 to {}", entries, kMost));
    config.nested.tlb_entries = static_cast<unsigned>(entries);
}

template <bool ShadowSwitches::*Switch>
void set_switch(ReplayConfig& config, const std::string& key, const Json& value)
{
    config.custom.switches.*Switch = boolean_of(key, value);
}

template <unsigned ShadowSizes::*Size, unsigned Least>
void set_size(ReplayConfig& config, const std::string& key, const Json& value)
{
    constexpr unsigned kMost = 512;
    const std::uint64_t size = count_of(key, value);
    if (size < Least || size > kMost) refuse(key, fmt::format("{} is not from {} to {}", size, Least, kMost));
    config.custom.sizes.*Size = static_cast<unsigned>(size);
}

constexpr std::array<Key, 36> kKeys{{
    {"mode", set_mode},
    {"p2m", set_p2m},
    {"policy",
     [](auto& config, const auto& key, const auto& value) { config.policy = string_of(key, value); }},
    {"shadow.populate", set_populate},
    {"shadow.pool_pages", set_pool},
    {"shadow.secure_view", set_secure_view},
    {"shadow.cr3_targets", set_cr3_targets},
    {"shadow.custom.writable_heuristic", set_switch<&ShadowSwitches::writable_heuristic>},
    {"shadow.custom.early_unshadow", set_switch<&ShadowSwitches::early_unshadow>},
    {"shadow.custom.fast_fault_path", set_switch<&ShadowSwitches::fast_fault_path>},
    {"shadow.custom.prefetch", set_switch<&ShadowSwitches::prefetch>},
    {"shadow.custom.linux_l3_toplevel", set_switch<&ShadowSwitches::linux_l3_toplevel>},
    {"shadow.custom.skip_verify", set_switch<&ShadowSwitches::skip_verify>},
    {"shadow.custom.virtual_tlb", set_switch<&ShadowSwitches::virtual_tlb>},
    {"shadow.custom.fast_emulation", set_switch<&ShadowSwitches::fast_emulation>},
    {"shadow.custom.out_of_sync",
     [](auto& config, const auto& key, const auto& value) {
         config.custom.out_of_sync = boolean_of(key, value);
     }},
    {"shadow.custom.out_of_sync_tables", set_size<&ShadowSizes::out_of_sync, 1>},
    {"shadow.custom.fixups", set_size<&ShadowSizes::fixups, 0>},
    {"shadow.custom.prefetch_window", set_size<&ShadowSizes::prefetch_window, 1>},
    {"shadow.custom.virtual_tlb_entries", set_size<&ShadowSizes::virtual_tlb, 1>},
    {"nested.format", set_nested_format},
    {"nested.levels", set_nested_levels},
    {"nested.largest_page", set_nested_largest_page},
    {"nested.tlb_entries", set_nested_tlb_entries},
    {"nested.ad_bits", [](auto& config, const auto& key,
                          const auto& value) { config.nested.ad_bits = boolean_of(key, value); }},
    {"nested.vpid",
     [](auto& config, const auto& key, const auto& value) { config.nested.vpid = boolean_of(key, value); }},
    {"mem_access.ring", set_event_ring},
    {"mem_access.response", set_event_response},
    {"cpu", [](auto& config, const auto& key, const auto& value) { config.cpu = string_of(key, value); }},
    {"clock", set_clock},
    {"data_caches.program", set_program_uses_caches},
    {"check", set_check},
    {"check_coherence", set_check_coherence},
    {"audit", [](auto& config, const auto& key, const auto& value) { config.audit = count_of(key, value); }},
    {"skip", [](auto& config, const auto& key, const auto& value) { config.skip = count_of(key, value); }},
    {"limit",
     [](auto& config, const auto& key, const auto& value) {
         config.limit = value.is_null() ? std::nullopt : std::optional{count_of(key, value)};
     }},
}};

/// JSON with comments. nlohmann keeps the last of two equal keys; here they are an error.
template <class Input>
Json parsed(Input&& input)
{
    std::vector<std::set<std::string>> seen;
    const auto refuse_duplicates = [&](int, Json::parse_event_t event, Json& key) {
        if (event == Json::parse_event_t::object_start) seen.emplace_back();
        if (event == Json::parse_event_t::object_end) seen.pop_back();
        if (event == Json::parse_event_t::key && !seen.back().insert(key.get<std::string>()).second) {
            refuse(key.get<std::string>(), "stands twice in one object");
        }
        return true;
    };
    return Json::parse(std::forward<Input>(input), refuse_duplicates, true, true);
}

void apply_at(ReplayConfig& config, const std::string& path, const Json& value)
{
    for (const Key& key : kKeys) {
        if (path == key.path) return key.set(config, path, value);
    }
    const bool inner = path.empty() || path == "shadow" || path == "shadow.custom" || path == "nested" ||
                       path == "mem_access" || path == "data_caches";
    if (!inner) refuse(path, "is not known; `mmusim config --print` shows all keys");
    if (!value.is_object()) refuse(path, fmt::format("must be an object, but is {}", value.type_name()));
    for (const auto& [name, member] : value.items()) {
        apply_at(config, path.empty() ? name : fmt::format("{}.{}", path, name), member);
    }
}

Json to_json(const CustomShadowPolicy& custom)
{
    const ShadowSwitches& switches = custom.switches;
    return Json{{"writable_heuristic", switches.writable_heuristic},
                {"early_unshadow", switches.early_unshadow},
                {"fast_fault_path", switches.fast_fault_path},
                {"prefetch", switches.prefetch},
                {"linux_l3_toplevel", switches.linux_l3_toplevel},
                {"skip_verify", switches.skip_verify},
                {"virtual_tlb", switches.virtual_tlb},
                {"fast_emulation", switches.fast_emulation},
                {"out_of_sync", custom.out_of_sync},
                {"out_of_sync_tables", custom.sizes.out_of_sync},
                {"fixups", custom.sizes.fixups},
                {"prefetch_window", custom.sizes.prefetch_window},
                {"virtual_tlb_entries", custom.sizes.virtual_tlb}};
}

}  // namespace

bool has_shadows(const ReplayConfig& config)
{
    return config.mode != TranslationMode::native && config.mode != TranslationMode::nested;
}

bool can_have_hazards(const ReplayConfig& config)
{
    return has_shadows(config) && (!config.cr3_targets.empty() || config.secure_view == SecureView::shared);
}

nlohmann::ordered_json to_json(const ReplayConfig& config)
{
    return Json{
        {"mode", name_of(config.mode)},
        {"p2m", config.p2m ? to_string(*config.p2m) : "header"},
        {"policy", config.policy},
        {"shadow",
         {{"populate", config.populate == Populate::leaf ? "leaf" : "step"},
          {"pool_pages", config.shadow_pool_pages ? Json(*config.shadow_pool_pages) : Json(nullptr)},
          {"secure_view", config.secure_view == SecureView::separate ? "separate" : "shared"},
          {"cr3_targets", cr3_targets_json(config.cr3_targets)},
          {"custom", to_json(config.custom)}}},
        {"nested",
         {{"format", format_json(config.nested.format)},
          {"levels",
           config.nested.levels ? Json(static_cast<unsigned>(*config.nested.levels)) : Json(nullptr)},
          {"largest_page", kPageSizes[static_cast<std::size_t>(config.nested.largest_page) - 1]},
          {"tlb_entries", config.nested.tlb_entries},
          {"ad_bits", config.nested.ad_bits},
          {"vpid", config.nested.vpid}}},
        {"mem_access",
         {{"ring", config.event_ring_pages ? Json(*config.event_ring_pages) : Json(nullptr)},
          {"response", config.event_response ? name_of(*config.event_response) : "allow"}}},
        {"cpu", config.cpu},
        {"clock", clock_text(config)},
        {"data_caches", {{"program", config.program_uses_caches}}},
        {"check", config.check},
        {"check_coherence", config.check_coherence},
        {"audit", config.audit},
        {"skip", config.skip},
        {"limit", config.limit ? Json(*config.limit) : Json(nullptr)},
    };
}

void apply_document(ReplayConfig& config, const nlohmann::ordered_json& document)
{
    apply_at(config, {}, document);
}

void apply_setting(ReplayConfig& config, std::string_view setting)
{
    const auto equals = setting.find('=');
    if (equals == std::string_view::npos || equals == 0) {
        throw ConfigError(fmt::format("'{}' is not of the form key.path=value", setting));
    }
    const std::string text{setting.substr(equals + 1)};
    Json value = Json::accept(text) ? parsed(text) : Json(text);
    apply_at(config, std::string{setting.substr(0, equals)}, value);
}

nlohmann::ordered_json read_config_file(const std::string& path)
{
    if (std::filesystem::is_directory(path)) throw ConfigError(fmt::format("{}: is a directory", path));
    std::ifstream file(path, std::ios::binary);
    if (!file) throw ConfigError(fmt::format("{}: can't be read", path));
    try {
        return parsed(file);
    } catch (const nlohmann::json::exception& error) {
        throw ConfigError(fmt::format("{}: {}", path, error.what()));
    } catch (const ConfigError& error) {
        throw ConfigError(fmt::format("{}: {}", path, error.what()));
    }
}

}  // namespace mmusim
