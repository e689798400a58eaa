// SPDX-License-Identifier: Apache-2.0
//
// The JSON text of one record, carried through its parse.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "trace/fault.hpp"

namespace mmusim::trace {

/// Carried through a parse: turns pointers into the text into offsets, and refuses.
class Text {
public:
    Text() = default;
    explicit Text(std::string_view text) : text_{text} {}

    [[nodiscard]] std::string_view whole() const { return text_; }
    [[nodiscard]] std::size_t offset(const char* at) const
    {
        return at < text_.data() ? 0 : static_cast<std::size_t>(at - text_.data());
    }
    /// The scalar that starts at `at`, as it is written.
    [[nodiscard]] std::string_view token(const char* at) const
    {
        const std::string_view rest = text_.substr(std::min(offset(at), text_.size()));
        if (rest.empty() || rest[0] != '"') return rest.substr(0, rest.find_first_of(" \t\r\n,]}"));
        std::size_t end = 1;
        while (end < rest.size() && rest[end] != '"') end += rest[end] == '\\' ? 2 : 1;
        return rest.substr(0, std::min(end + 1, rest.size()));
    }

    [[noreturn]] void refuse(const char* at, std::string message, std::string_view key = {}) const
    {
        throw Fault{offset(at), std::move(message), std::string{key}};
    }
    [[noreturn]] void refuse_value(const char* at, std::string_view message, std::string_view key) const
    {
        refuse(at, fmt::format("{} {}", shown(token(at)), message), key);
    }

private:
    std::string_view text_;
};

}  // namespace mmusim::trace
