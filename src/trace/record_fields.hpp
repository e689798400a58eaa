// SPDX-License-Identifier: Apache-2.0
//
// The members of a record's objects and their values, as simdjson's On-Demand parser comes to them, front to
// back. It checks what it is asked for and nothing else; here every key is either asked for or refused, so
// nothing goes unchecked. It finds the quotes and brackets with the widest vector instructions of the CPU at
// hand (chosen when the program runs), and the rest is compiled for any x86-64.
// Only record_parser.cpp includes this: simdjson is a heavy header.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <simdjson.h>

#include "trace/json_tree.hpp"
#include "trace/numbers.hpp"
#include "trace/record_keys.hpp"
#include "trace/record_text.hpp"
#include "trace/text_buffer.hpp"

namespace mmusim::trace {

namespace ondemand = simdjson::ondemand;

static_assert(kTextPadding >= simdjson::SIMDJSON_PADDING);

/// simdjson found the text malformed; RecordParser::parse says better where and why.
[[noreturn]] inline void refuse_malformed(const Text& text, const char* at, simdjson::error_code error)
{
    text.refuse(at, fmt::format("malformed JSON: {}", simdjson::error_message(error)));
}

/// A member of an object. Its value must be read, by one of the functions for the forms that the format
/// knows, before the next member is asked for.
struct Field {
    Key key = Key::unknown;
    const char* at = nullptr;  // the value's first character
    const Text* text = nullptr;
    ondemand::value value;

    [[nodiscard]] std::string_view name() const { return name_of(key); }
    [[nodiscard]] bool is_string() const { return *at == '"'; }

    [[noreturn]] void refuse(std::string message) const { text->refuse(at, std::move(message), name()); }
    [[noreturn]] void refuse_value(std::string_view message) const
    {
        text->refuse_value(at, message, name());
    }

    [[nodiscard]] std::uint64_t integer()
    {
        std::uint64_t result = 0;
        if (value.get_uint64().get(result) == simdjson::SUCCESS) [[likely]]
            return result;
        const bool digits = text->token(at).find_first_not_of("0123456789") == std::string_view::npos;
        refuse_value(digits ? "does not fit 64 bits" : "is not a non-negative integer");
    }
    [[nodiscard]] std::uint64_t integer(std::uint64_t lowest, std::uint64_t highest)
    {
        const std::uint64_t result = integer();
        if (result < lowest || result > highest) [[unlikely]] {
            refuse_value(fmt::format("is out of range ({} to {})", lowest, highest));
        }
        return result;
    }

    /// An address, a frame, the value of a register or an entry: an integer, or a string of hex digits.
    [[nodiscard]] std::uint64_t number()
    {
        if (!is_string()) {
            if (*at == '-' || (*at >= '0' && *at <= '9')) return integer();
            refuse("must be an integer or a \"0x...\" string");
        }
        consume_string("a number");
        const char* const quoted = at + 1;
        if (quoted[0] == '0' && quoted[1] == 'x') [[likely]] {
            const HexScan scan = scan_hex(quoted + 2);
            if (scan.fits && scan.digits > 0 && quoted[2 + scan.digits] == '"') [[likely]]
                return scan.value;
        }
        return odd_number();
    }
    [[nodiscard]] std::uint64_t number(std::uint64_t highest)
    {
        const std::uint64_t result = number();
        if (result > highest) [[unlikely]] {
            refuse_value(fmt::format("is out of range (0 to {:#x})", highest));
        }
        return result;
    }
    [[nodiscard]] std::uint32_t number32() { return static_cast<std::uint32_t>(number(~std::uint32_t{0})); }

    [[nodiscard]] bool boolean()
    {
        bool result = false;
        if (value.get_bool().get(result) == simdjson::SUCCESS) return result;
        refuse_value("is neither true nor false");
    }
    /// A bit of a register: 0 and 1, or false and true.
    [[nodiscard]] bool flag() { return *at == 't' || *at == 'f' ? boolean() : number(1) != 0; }

    /// What a string means. `what` it should be goes into the message.
    [[nodiscard]] std::string string(std::string_view what)
    {
        consume_string(what);
        return plain_string();
    }
    void consume_string(std::string_view what)
    {
        ondemand::raw_json_string ignored;
        if (is_string() && value.get_raw_json_string().get(ignored) == simdjson::SUCCESS) return;
        refuse_value(fmt::format("is not {}", what));
    }

private:
    [[nodiscard]] std::string plain_string() const { return json_unquoted(text->token(at)); }

    /// A string that is no hex number as it stands: it may have escapes.
    [[nodiscard]] std::uint64_t odd_number() const
    {
        const std::string plain = plain_string();
        const HexScan scan = plain.starts_with("0x") ? scan_hex(plain.c_str() + 2) : HexScan{};
        if (scan.digits == 0 || scan.digits + 2 != plain.size()) {
            refuse_value("is not \"0x\" and hex digits");
        }
        if (!scan.fits) refuse_value("does not fit 64 bits");
        return scan.value;
    }
};

/// The members of one object, one after the other: each must be allowed, and stand once.
class Fields {
public:
    Fields(const Text& text, ondemand::object object) : text_{&text}
    {
        if (const auto error = object.begin().get(at_)) refuse_malformed(text, text.whole().data(), error);
        if (const auto error = object.end().get(end_)) refuse_malformed(text, text.whole().data(), error);
    }

    /// What the object is, for messages, and which keys may stand in it.
    void expect(KeySet allowed, std::string_view what)
    {
        open_ = allowed & ~seen();
        allowed_ = allowed;
        what_ = what;
    }
    void expect(KeySet allowed, Op op)
    {
        expect(allowed, name_of(op));
        is_op_ = true;
    }

    [[nodiscard]] KeySet seen() const { return allowed_ & ~open_; }
    [[nodiscard]] bool has(Key key) const { return (seen() & bit(key)) != 0; }
    /// Where the key stands; only if it does.
    [[nodiscard]] const char* place(Key key) const
    {
        return text_->whole().data() + places_[static_cast<std::size_t>(key)];
    }

    /// The next member; false after the last.
    bool next(Field& field)
    {
        if (started_) ++at_;
        started_ = true;
        if (!(at_ != end_)) return false;
        auto member = *at_;
        if (const auto error = member.error()) [[unlikely]]
            refuse_malformed(*text_, text_->whole().data(), error);
        const char* const name = member.key().value_unsafe().raw();
        field.value = std::move(member).value().value_unsafe();
        field.at = field.value.raw_json_token().data();
        field.text = text_;
        field.key = key_at(name);
        if (field.key == Key::unknown) [[unlikely]]
            field.key = escaped_key(name);
        const KeySet key = field.key == Key::unknown ? 0 : bit(field.key);
        if ((open_ & key) == 0) [[unlikely]]
            refuse_key(name - 1, field.key);
        open_ &= ~key;
        places_[static_cast<std::size_t>(field.key)] = static_cast<std::uint32_t>(text_->offset(name - 1));
        return true;
    }

    void require(KeySet required, const char* object) const
    {
        const KeySet missing = required & ~seen();
        if (missing == 0) [[likely]]
            return;
        const auto key = static_cast<Key>(std::countr_zero(missing));
        text_->refuse(object, fmt::format("missing in {}", what()), name_of(key));
    }

    [[noreturn]] void refuse(Key key, std::string message) const
    {
        text_->refuse(place(key), std::move(message), name_of(key));
    }

private:
    /// A key may be written with escapes, if somebody likes.
    [[nodiscard]] Key escaped_key(const char* name) const
    {
        const std::string_view quoted = text_->token(name - 1);
        if (quoted.find('\\') == std::string_view::npos) return Key::unknown;
        std::string plain = json_unquoted(quoted) + '"';
        plain.resize(std::max(plain.size(), kTextPadding));
        return key_at(plain.data());
    }

    [[nodiscard]] std::string what() const
    {
        return is_op_ ? fmt::format("the record \"{}\"", what_) : std::string{what_};
    }

    [[noreturn]] void refuse_key(const char* at, Key key) const
    {
        const std::string_view quoted = text_->token(at);
        const std::string name = shown(quoted.substr(1, quoted.size() < 2 ? 0 : quoted.size() - 2));
        if (key != Key::unknown && (allowed_ & bit(key)) != 0) {
            text_->refuse(at, "stands twice in one object", name);
        }
        text_->refuse(at, fmt::format("is not a key of {}", what()), name);
    }

    const Text* text_;
    ondemand::object_iterator at_;
    ondemand::object_iterator end_;
    bool started_ = false;
    KeySet allowed_ = ~KeySet{0};
    KeySet open_ = ~KeySet{0};
    std::string_view what_ = "a record";
    bool is_op_ = false;
    std::array<std::uint32_t, kKeys> places_;  // of those seen
};

}  // namespace mmusim::trace
