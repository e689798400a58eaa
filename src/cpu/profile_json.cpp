// SPDX-License-Identifier: Apache-2.0
#include "cpu/profile_json.hpp"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <mmusim/cpu/cpu_profile.hpp>

namespace mmusim {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 10> kConfidences{
    "measured",   "measured-inferred", "measured-fit",      "measured-unresolved",
    "cpuid_dump", "published",         "published-derived", "published-simulator-default",
    "memory",     "assumption"};

std::string joined(std::string_view path, std::string_view name)
{
    return path.empty() ? std::string{name} : fmt::format("{}.{}", path, name);
}

bool is_attribution(std::string_view name)
{
    return name == "source" || name == "confidence" || name == "note";
}

void check_attribution(const Json& object, const std::string& path)
{
    for (const auto& [name, value] : object.items()) {
        if (!is_attribution(name)) continue;
        const std::string text = line_of(value, joined(path, name));
        if (name != "confidence") continue;
        if (std::find(kConfidences.begin(), kConfidences.end(), text) == kConfidences.end()) {
            refuse_key(joined(path, name),
                       fmt::format("{} is not one of {}", shown(value), fmt::join(kConfidences, ", ")));
        }
    }
}

[[noreturn]] void refuse_unknown(std::string_view path, const std::string& name)
{
    std::string text = shown(name);
    if (text.size() == name.size() + 2) text = name;  // nothing in it that a quoted string must escape
    refuse_key(joined(path, text), "is not known");
}

/// Where in a document a parser is.
class Place {
public:
    /// An object, an array or a scalar begins.
    void value()
    {
        if (!frames_.empty() && frames_.back().is_array) ++frames_.back().index;
    }
    void open(bool is_array)
    {
        value();
        frames_.push_back({is_array, 0, {}, {}});
    }
    void close() { frames_.pop_back(); }
    /// False if the object has had this key.
    bool key(const std::string& name)
    {
        frames_.back().key = name;
        return frames_.back().seen.insert(name).second;
    }
    [[nodiscard]] std::string path() const
    {
        std::string path;
        for (const Frame& frame : frames_) {
            path = frame.is_array ? fmt::format("{}[{}]", path, frame.index - 1) : joined(path, frame.key);
        }
        return path;
    }

private:
    struct Frame {
        bool is_array;
        std::size_t index;  ///< of an array: elements so far
        std::string key;    ///< of an object: the last
        std::set<std::string> seen;
    };
    std::vector<Frame> frames_;
};

}  // namespace

Json parsed_profile(std::string_view text)
{
    Place place;
    const auto watch = [&](int, Json::parse_event_t event, Json& value) {
        switch (event) {
        case Json::parse_event_t::object_start: place.open(false); break;
        case Json::parse_event_t::array_start: place.open(true); break;
        case Json::parse_event_t::object_end:
        case Json::parse_event_t::array_end: place.close(); break;
        case Json::parse_event_t::value: place.value(); break;
        case Json::parse_event_t::key:
            if (!place.key(value.get<std::string>())) refuse_key(place.path(), "stands twice in one object");
            break;
        }
        return true;
    };
    return Json::parse(text, watch, true, true);
}

void refuse_key(std::string_view path, std::string_view what)
{
    throw CpuProfileError(fmt::format("key \"{}\": {}", path, what));
}

std::string shown(const Json& value)
{
    if (value.is_object()) return "an object";
    if (value.is_array()) return "an array";
    constexpr std::size_t kMost = 60;
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > kMost) text = text.substr(0, kMost) + "...";
    return text;
}

std::uint64_t number_of(const Json& value, const std::string& path, Bounds bounds)
{
    if (value.is_number_unsigned()) {
        const auto number = value.get<std::uint64_t>();
        if (number >= bounds.least && number <= bounds.most) return number;
    }
    refuse_key(path, fmt::format("must be a whole number from {} to {}, but is {}", bounds.least, bounds.most,
                                 shown(value)));
}

std::string string_of(const Json& value, const std::string& path)
{
    if (!value.is_string()) refuse_key(path, fmt::format("must be a string, but is {}", shown(value)));
    return value.get<std::string>();
}

std::string line_of(const Json& value, const std::string& path)
{
    std::string line = string_of(value, path);
    const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
    if (std::any_of(line.begin(), line.end(), is_control)) refuse_key(path, "has control characters");
    return line;
}

Members::Members(const Json& object, std::string path) : object_{&object}, path_{std::move(path)}
{
    if (!object.is_object()) {
        if (path_.empty()) throw CpuProfileError(fmt::format("must be an object, but is {}", shown(object)));
        refuse_key(path_, fmt::format("must be an object, but is {}", shown(object)));
    }
    check_attribution(object, path_);
}

std::string Members::path_of(std::string_view name) const
{
    return joined(path_, name);
}

const Json* Members::find(std::string_view name)
{
    const auto& [at, added] = known_.emplace(name);
    const auto member = object_->find(*at);
    if (member == object_->end()) return nullptr;
    if (!member->is_object() || !member->contains("value")) return &*member;
    check_attribution(*member, path_of(name));
    for (const auto& [inner, value] : member->items()) {
        if (inner != "value" && !is_attribution(inner)) refuse_unknown(path_of(name), inner);
    }
    return &member->at("value");
}

const Json& Members::need(std::string_view name)
{
    const Json* const value = find(name);
    if (value == nullptr) refuse_key(path_of(name), "is missing");
    return *value;
}

void Members::flag(std::string_view name, bool& out)
{
    const Json* const value = find(name);
    if (value == nullptr) return;
    if (!value->is_boolean()) {
        refuse_key(path_of(name), fmt::format("must be true or false, but is {}", shown(*value)));
    }
    out = value->get<bool>();
}

void Members::finish() const
{
    for (const auto& [name, value] : object_->items()) {
        if (!is_attribution(name) && !known_.contains(name)) refuse_unknown(path_, name);
    }
}

}  // namespace mmusim
