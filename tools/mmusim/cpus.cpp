// SPDX-License-Identifier: Apache-2.0
//
// `mmusim cpus`: the CPU profiles, and what one says, for people. A figure's source is told once, by number.
#include <mmusim/cpu/cpu_profile.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "verbs.hpp"

namespace mmusim::tool {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kWidth = 110;
constexpr std::size_t kValueColumn = 34;
constexpr std::size_t kConfidenceColumn = 60;

constexpr std::array<const char*, 3> kServed{"fetches", "loads", "stores"};

struct Unit {
    std::string_view one = {};
    std::string_view many = {};
};
constexpr Unit kCycles{"cycle", "cycles"};

struct KeyUnit {
    std::string_view key;
    Unit unit;
};
constexpr std::array<KeyUnit, 16> kUnits{{{"entries", {"entry", "entries"}},
                                          {"ways", {"way", "ways"}},
                                          {"sets", {"set", "sets"}},
                                          {"stride", {"entry", "entries"}},
                                          {"line_bytes", {"byte", "bytes"}},
                                          {"pcids_kept_flush", {"PCID", "PCIDs"}},
                                          {"pcids_kept_noflush", {"PCID", "PCIDs"}},
                                          {"lookup_cycles", kCycles},
                                          {"latency", kCycles},
                                          {"memory_latency", kCycles},
                                          {"start_cycles", kCycles},
                                          {"assist_cycles", kCycles},
                                          {"fetch_cycles", {"cycle for 16 bytes", "cycles for 16 bytes"}},
                                          {"count", {"walk in flight", "walks in flight"}},
                                          {"misses_in_flight", {"line in flight", "lines in flight"}},
                                          {"issue_width", {"in a cycle", "in a cycle"}}}};

Unit unit_of(std::string_view key, std::string_view parent)
{
    if (parent == "load_cycles" || parent == "instructions" || parent == "hypervisor") return kCycles;
    for (const KeyUnit& known : kUnits) {
        if (known.key == key) return known.unit;
    }
    return {};
}

bool is_figure(const Json& value)
{
    if (value.is_object()) return value.contains("value") || value.empty();
    return !value.is_array() || value.empty() || !value.front().is_object();
}

std::string text_of(const Json& value, const Unit& unit)
{
    if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
    if (value.is_string()) return value.get<std::string>();
    if (value.empty()) return "none";
    if (value.is_array()) {
        std::string text;
        for (const Json& element : value)
            text += fmt::format("{}{}", text.empty() ? "" : " ", text_of(element, {}));
        return text;
    }
    std::string number = value.dump();
    if (unit.many.empty()) return number;
    return fmt::format("{} {}", number, number == "1" ? unit.one : unit.many);
}

/// A figure's text, without what may be around it.
std::string plain(const Json& figure)
{
    return text_of(figure.is_object() ? figure["value"] : figure, {});
}

/// "level 1, fetches": which TLB this is.
std::string place_of(const Json& tlb)
{
    std::string place = fmt::format("level {}", plain(tlb["level"]));
    for (const char* const kind : kServed) {
        if (tlb.contains(kind) && plain(tlb[kind]) == "yes") place += fmt::format(", {}", kind);
    }
    return place;
}

/// The page sizes that an array or a view is for.
std::string pages_of(const Json& storage)
{
    const auto one = [](const Json& holder) {
        return holder.contains("pages") ? plain(holder["pages"]) : std::string{};
    };
    if (!storage.contains("views")) return one(storage);
    std::string all;
    const Json& views = storage["views"];
    for (const Json& view : views.is_object() ? views["value"] : views) {
        all += fmt::format("{}{}", all.empty() ? "" : " ", one(view));
    }
    return all;
}

/// Prints words, broken between `indent` and kWidth.
void print_wrapped(std::size_t indent, const std::string& first, const std::string& text)
{
    std::string line = std::string(indent, ' ') + first;
    const std::size_t hang = line.size();
    bool fresh = true;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(' ', at), text.size());
        if (!fresh && line.size() + 1 + end - at > kWidth) {
            fmt::print("{}\n", line);
            line.assign(hang, ' ');
            fresh = true;
        }
        if (!fresh) line += ' ';
        line.append(text, at, end - at);
        fresh = false;
        at = end + 1;
    }
    fmt::print("{}\n", line);
}

class ProfilePrinter {
public:
    void print(const Json& profile)
    {
        fmt::print("{}", plain(profile["name"]));
        if (profile.contains("description")) fmt::print(": {}", plain(profile["description"]));
        if (profile.contains("vendor")) fmt::print(" ({})", plain(profile["vendor"]));
        fmt::print("\n");
        print_note(profile, 0);
        const Attribution none;
        const Attribution all = attribution_of(profile, none);
        for (const auto& [key, value] : profile.items()) {
            if (key == "schema" || key == "version" || key == "description" || key == "vendor") continue;
            if (is_member(key)) print_member(key, value, {}, 0, all);
        }
        print_sources();
    }

private:
    struct Attribution {
        std::string source;
        std::string confidence;
    };

    static bool is_member(std::string_view key)
    {
        return key != "source" && key != "confidence" && key != "note" && key != "name";
    }

    static bool is_place(std::string_view key)
    {
        return key == "level" || std::find(kServed.begin(), kServed.end(), key) != kServed.end();
    }

    static Attribution attribution_of(const Json& object, const Attribution& outer)
    {
        if (!object.contains("source") && !object.contains("confidence")) return outer;
        return {object.value("source", ""), object.value("confidence", "")};
    }

    static void print_note(const Json& object, std::size_t indent)
    {
        if (object.contains("note")) print_wrapped(indent, "note: ", object["note"].get<std::string>());
    }

    void print_member(const std::string& key, const Json& value, const std::string& parent,
                      std::size_t indent, const Attribution& outer)
    {
        if (value.is_object() && value.contains("value") && !is_figure(value["value"])) {
            print_member(key, value["value"], parent, indent, attribution_of(value, outer));
            print_note(value, indent + 2);
        } else if (is_figure(value)) {
            print_figure(key, value, parent, indent, outer);
        } else if (value.is_array()) {
            print_list(key, value, indent, outer);
        } else {
            fmt::print("{:{}}{}\n", "", indent, key);
            print_members(value, key, indent + 2, outer);
        }
    }

    void print_members(const Json& object, const std::string& parent, std::size_t indent,
                       const Attribution& outer)
    {
        print_note(object, indent);
        const Attribution here = attribution_of(object, outer);
        for (const auto& [key, value] : object.items()) {
            if (is_member(key)) print_member(key, value, parent, indent, here);
        }
    }

    void print_list(const std::string& key, const Json& list, std::size_t indent, const Attribution& outer)
    {
        // Lists of named things have a headline; arrays and views are headlines themselves.
        const bool named = list.front().contains("name");
        if (named) fmt::print("{:{}}{}\n", "", indent, key);
        for (const Json& element : list) {
            const std::size_t at = named ? indent + 2 : indent;
            if (named) {
                const std::string place =
                    key == "tlbs" ? fmt::format(": {}", place_of(element)) : std::string{};
                fmt::print("{:{}}{}{}\n", "", at, plain(element["name"]), place);
            } else {
                fmt::print("{:{}}{} for {}\n", "", at, key == "arrays" ? "array" : "rows", pages_of(element));
            }
            print_members(element, key, at + 2, outer);
        }
    }

    void print_figure(const std::string& key, const Json& figure, const std::string& parent,
                      std::size_t indent, const Attribution& outer)
    {
        if (key == "pages" || (parent == "tlbs" && is_place(key))) return;  // the headline says it
        const bool dressed = figure.contains("value");
        const Attribution here = dressed ? attribution_of(figure, outer) : outer;
        const Json& value = dressed ? figure["value"] : figure;
        std::string line = std::string(indent, ' ') + key;
        line.resize(std::max(line.size() + 1, kValueColumn), ' ');
        line += text_of(value, unit_of(key, parent));
        if (!here.source.empty() || !here.confidence.empty()) {
            line.resize(std::max(line.size() + 1, kConfidenceColumn), ' ');
            line += here.confidence;
            if (!here.source.empty()) line += fmt::format(" [{}]", number_of(here.source));
        }
        fmt::print("{}\n", line);
        if (dressed) print_note(figure, indent + 2);
    }

    std::size_t number_of(const std::string& source)
    {
        const auto known = std::find(sources_.begin(), sources_.end(), source);
        const auto index = static_cast<std::size_t>(known - sources_.begin());
        if (known == sources_.end()) sources_.push_back(source);
        return index + 1;
    }

    void print_sources() const
    {
        if (!sources_.empty()) fmt::print("\nsources\n");
        for (std::size_t i = 0; i < sources_.size(); ++i) {
            print_wrapped(0, fmt::format("{:>4} ", fmt::format("[{}]", i + 1)), sources_[i]);
        }
    }

    std::vector<std::string> sources_;
};

void list_profiles()
{
    for (const BundledCpuProfile& bundled : bundled_cpu_profiles()) {
        const CpuProfile profile = parse_cpu_profile(bundled.text, bundled.name);
        fmt::print("{:<14}{}{}\n", bundled.name, profile.description,
                   bundled.name == kDefaultCpuProfile ? " (the default)" : "");
    }
}

}  // namespace

int cpus(const CpusOptions& options)
{
    if (options.profile.empty()) {
        list_profiles();
        return kDone;
    }
    const std::string text = cpu_profile_text(options.profile);
    static_cast<void>(parse_cpu_profile(text, options.profile));  // refuses what is not one
    if (options.json) {
        std::fwrite(text.data(), 1, text.size(), stdout);
    } else {
        ProfilePrinter{}.print(Json::parse(text, nullptr, true, true));
    }
    return kDone;
}

}  // namespace mmusim::tool
