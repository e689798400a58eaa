// SPDX-License-Identifier: Apache-2.0
//
// A JSON text as a tree that knows where each value stands, for the header and for what is wrong with a
// malformed record. The values stay in the text: a node is a span of it. Strict: a key that stands twice
// in one object is refused at any depth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trace/fault.hpp"

namespace mmusim::trace {

class JsonTree {
public:
    enum class Kind : std::uint8_t { null, boolean, number, string, array, object };

    struct Node {
        Kind kind = Kind::null;
        std::uint32_t begin = 0;  // of the value's text
        std::uint32_t end = 0;
        std::uint32_t key_begin = 0;  // of the key, with its quotes; both 0 for an element of an array
        std::uint32_t key_end = 0;
        std::uint32_t first_child = 0;  // 0: none
        std::uint32_t next = 0;         // the next sibling; 0: none
    };

    /// `text` must outlive the tree. Throws Fault.
    explicit JsonTree(std::string_view text);

    [[nodiscard]] const Node& root() const { return nodes_.front(); }
    [[nodiscard]] const Node* first_child(const Node& node) const { return at(node.first_child); }
    [[nodiscard]] const Node* next(const Node& node) const { return at(node.next); }

    /// The value as it is written.
    [[nodiscard]] std::string_view text(const Node& node) const
    {
        return text_.substr(node.begin, node.end - node.begin);
    }
    /// What a string node means, and what a member's key does.
    [[nodiscard]] std::string string(const Node& node) const;
    [[nodiscard]] std::string key(const Node& node) const;

private:
    [[nodiscard]] const Node* at(std::uint32_t index) const { return index == 0 ? nullptr : &nodes_[index]; }

    std::string_view text_;
    std::vector<Node> nodes_;
};

/// What is wrong with `text` as JSON, if anything is.
[[nodiscard]] std::optional<Fault> json_fault(std::string_view text);

/// `text` as a JSON string, with its quotes. What is not UTF-8 is replaced.
[[nodiscard]] std::string json_quoted(std::string_view text);
/// What a JSON string, given with its quotes, means. Throws Fault.
[[nodiscard]] std::string json_unquoted(std::string_view quoted);

}  // namespace mmusim::trace
