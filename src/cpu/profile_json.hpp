// SPDX-License-Identifier: Apache-2.0
//
// Strict reading of a CPU profile's JSON. What is wrong is a CpuProfileError that names the key by its path:
// a key that is not known, is missing or stands twice, a value of the wrong type or out of range.
//
// Every figure may be written plain, or as {"value": …} with `source`, `confidence` and `note`; the reader
// sees no difference. Every object may have these three too, for what is in it.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace mmusim {

/// JSON with comments. A key that stands twice is an error.
[[nodiscard]] nlohmann::ordered_json parsed_profile(std::string_view text);

[[noreturn]] void refuse_key(std::string_view path, std::string_view what);

/// A value as an error message shows it.
[[nodiscard]] std::string shown(const nlohmann::ordered_json& value);

struct Bounds {
    std::uint64_t least;
    std::uint64_t most;
};
[[nodiscard]] std::uint64_t number_of(const nlohmann::ordered_json& value, const std::string& path,
                                      Bounds bounds);
[[nodiscard]] std::string string_of(const nlohmann::ordered_json& value, const std::string& path);
/// A string that may be printed as it is: no control characters.
[[nodiscard]] std::string line_of(const nlohmann::ordered_json& value, const std::string& path);

/// The members of one object. `finish` refuses those that nobody has asked for.
class Members {
public:
    Members(const nlohmann::ordered_json& object, std::string path);

    [[nodiscard]] std::string path_of(std::string_view name) const;
    /// The value, without what may be around it; null if there is no such member.
    [[nodiscard]] const nlohmann::ordered_json* find(std::string_view name);
    [[nodiscard]] const nlohmann::ordered_json& need(std::string_view name);

    /// Reads a member if it is there.
    template <class Number>
    void number(std::string_view name, Number& out, Bounds bounds)
    {
        if (const auto* value = find(name))
            out = static_cast<Number>(number_of(*value, path_of(name), bounds));
    }
    void flag(std::string_view name, bool& out);

    void finish() const;

private:
    const nlohmann::ordered_json* object_;
    std::string path_;
    std::set<std::string, std::less<>> known_;
};

}  // namespace mmusim
