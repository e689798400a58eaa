// SPDX-License-Identifier: Apache-2.0
#include "trace/json_tree.hpp"

#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace mmusim::trace {

namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxDepth = 64;

/// Where and why nlohmann's parser gave up. Its text reads "[...] parse error at line 1, column 5: syntax
/// error while parsing value - invalid literal; last read: '1x'": of use is what comes after the place.
Fault fault_of(std::size_t position, const Json::exception& error)
{
    std::string what = error.what();
    for (const std::string_view prefix : {": syntax error ", ": "}) {
        if (const auto at = what.find(prefix); at != std::string::npos) {
            what.erase(0, at + prefix.size());
            break;
        }
    }
    return {position == 0 ? 0 : position - 1, fmt::format("malformed JSON: {}", shown(what, 160))};
}

/// Follows nlohmann's parser through the text and notes the spans. The parser has accepted a token when it
/// calls, so finding the token's end again is easy.
class TreeBuilder : public nlohmann::json_sax<Json> {
public:
    TreeBuilder(std::string_view text, std::vector<JsonTree::Node>& nodes) : text_{text}, nodes_{&nodes} {}

    bool null() override { return literal(JsonTree::Kind::null, 4); }
    bool boolean(bool value) override { return literal(JsonTree::Kind::boolean, value ? 4 : 5); }
    bool number_integer(number_integer_t /*value*/) override { return number(); }
    bool number_unsigned(number_unsigned_t /*value*/) override { return number(); }
    bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return number(); }
    bool string(string_t& /*value*/) override
    {
        const std::size_t begin = token();
        add(JsonTree::Kind::string, begin, string_end(begin));
        return true;
    }
    bool binary(binary_t& /*value*/) override { return false; }

    bool start_object(std::size_t /*elements*/) override { return open(JsonTree::Kind::object); }
    bool start_array(std::size_t /*elements*/) override { return open(JsonTree::Kind::array); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override
    {
        key_begin_ = token();
        at_ = key_end_ = string_end(key_begin_);
        if (!open_.back().keys.insert(name).second) {
            throw Fault{key_begin_, "stands twice in one object", shown(name)};
        }
        return true;
    }

    bool parse_error(std::size_t position, const std::string& /*token*/,
                     const Json::exception& error) override
    {
        throw fault_of(position, error);
    }

private:
    struct Open {
        std::size_t node;
        std::size_t last_child = 0;
        std::unordered_set<std::string> keys = {};
    };

    /// Start of the token that follows.
    std::size_t token() { return at_ = text_.find_first_not_of(" \t\r\n,:", at_); }
    [[nodiscard]] std::size_t string_end(std::size_t begin) const
    {
        std::size_t at = begin + 1;
        while (text_[at] != '"') at += text_[at] == '\\' ? 2 : 1;
        return at + 1;
    }
    bool literal(JsonTree::Kind kind, std::size_t length)
    {
        const std::size_t begin = token();
        add(kind, begin, begin + length);
        return true;
    }
    bool number()
    {
        const std::size_t begin = token();
        const std::size_t end = text_.find_first_not_of("+-.0123456789Ee", begin);
        add(JsonTree::Kind::number, begin, end == std::string_view::npos ? text_.size() : end);
        return true;
    }

    std::size_t add(JsonTree::Kind kind, std::size_t begin, std::size_t end)
    {
        const std::size_t index = nodes_->size();
        const auto narrow = [](std::size_t offset) { return static_cast<std::uint32_t>(offset); };
        nodes_->push_back({kind, narrow(begin), narrow(end), narrow(key_begin_), narrow(key_end_), 0, 0});
        if (!open_.empty()) {
            Open& parent = open_.back();
            if (parent.last_child == 0) {
                (*nodes_)[parent.node].first_child = narrow(index);
            } else {
                (*nodes_)[parent.last_child].next = narrow(index);
            }
            parent.last_child = index;
        }
        key_begin_ = key_end_ = 0;
        at_ = end;
        return index;
    }
    bool open(JsonTree::Kind kind)
    {
        const std::size_t begin = token();
        if (open_.size() == kMaxDepth) throw Fault{begin, fmt::format("nested deeper than {}", kMaxDepth)};
        open_.push_back({add(kind, begin, begin + 1)});
        return true;
    }
    bool close()
    {
        at_ = token() + 1;
        (*nodes_)[open_.back().node].end = static_cast<std::uint32_t>(at_);
        open_.pop_back();
        return true;
    }

    std::string_view text_;
    std::vector<JsonTree::Node>* nodes_;
    std::vector<Open> open_;
    std::size_t at_ = 0;
    std::size_t key_begin_ = 0;
    std::size_t key_end_ = 0;
};

/// Looks for syntax errors alone, and keeps the string that came last.
class SyntaxChecker : public nlohmann::json_sax<Json> {
public:
    std::optional<Fault> fault;
    std::string last_string;

    bool null() override { return true; }
    bool boolean(bool /*value*/) override { return true; }
    bool number_integer(number_integer_t /*value*/) override { return true; }
    bool number_unsigned(number_unsigned_t /*value*/) override { return true; }
    bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return true; }
    bool string(string_t& value) override
    {
        last_string = std::move(value);
        return true;
    }
    bool binary(binary_t& /*value*/) override { return true; }
    bool start_object(std::size_t /*elements*/) override { return true; }
    bool key(string_t& /*name*/) override { return true; }
    bool end_object() override { return true; }
    bool start_array(std::size_t /*elements*/) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(std::size_t position, const std::string& /*token*/,
                     const Json::exception& error) override
    {
        fault = fault_of(position, error);
        return false;
    }
};

}  // namespace

JsonTree::JsonTree(std::string_view text) : text_{text}
{
    TreeBuilder builder{text, nodes_};
    Json::sax_parse(text.begin(), text.end(), &builder);
}

std::string JsonTree::string(const Node& node) const
{
    return json_unquoted(text(node));
}

std::string JsonTree::key(const Node& node) const
{
    if (node.key_end == 0) return {};
    return json_unquoted(text_.substr(node.key_begin, node.key_end - node.key_begin));
}

std::optional<Fault> json_fault(std::string_view text)
{
    SyntaxChecker checker;
    Json::sax_parse(text.begin(), text.end(), &checker);
    return std::move(checker.fault);
}

std::string json_unquoted(std::string_view quoted)
{
    if (quoted.find('\\') == std::string_view::npos) return std::string{quoted.substr(1, quoted.size() - 2)};
    SyntaxChecker checker;
    Json::sax_parse(quoted.begin(), quoted.end(), &checker);
    if (checker.fault) throw *std::move(checker.fault);
    return std::move(checker.last_string);
}

std::string json_quoted(std::string_view text)
{
    Json string(Json::value_t::string);  // not from the text itself: gcc 12 warns of nlohmann's constructor
    string.get_ref<std::string&>() = text;
    return string.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace mmusim::trace
