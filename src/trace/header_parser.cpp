// SPDX-License-Identifier: Apache-2.0
#include "trace/header_parser.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "trace/json_tree.hpp"
#include "trace/numbers.hpp"

namespace mmusim::trace {

namespace {

constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kMaxFrames = std::uint64_t{1} << (kMaxPhysicalAddressBits - kPageShift);

using Kind = JsonTree::Kind;
using Node = JsonTree::Node;

/// One value of the header with the path to it. Each question refuses what is not of its form.
class Value {
public:
    Value(const JsonTree& tree, const Node& node, std::string path)
        : tree_{&tree}, node_{&node}, path_{std::move(path)}
    {
    }

    [[noreturn]] void refuse(std::string message) const
    {
        throw Fault{node_->begin, std::move(message), path_};
    }
    /// The same, for a fault of the key itself.
    [[noreturn]] void refuse_key(std::string message) const
    {
        throw Fault{node_->key_begin, std::move(message), path_};
    }

    /// The member `name`, if it is there.
    [[nodiscard]] std::optional<Value> member(std::string_view name) const
    {
        require(Kind::object, "an object");
        for (const Node* child = tree_->first_child(*node_); child != nullptr; child = tree_->next(*child)) {
            if (tree_->key(*child) == name) return Value{*tree_, *child, joined(name)};
        }
        return std::nullopt;
    }
    [[nodiscard]] Value required(std::string_view name) const
    {
        auto value = member(name);
        if (!value) throw Fault{node_->begin, "missing in the header", joined(name)};
        return *std::move(value);
    }
    /// Refuses members that are not in `known`; `later` names those of later versions.
    void allow(std::initializer_list<std::string_view> known,
               std::initializer_list<std::string_view> later = {}) const
    {
        require(Kind::object, "an object");
        for (const Node* child = tree_->first_child(*node_); child != nullptr; child = tree_->next(*child)) {
            const std::string name = tree_->key(*child);
            const Value value{*tree_, *child, joined(shown(name))};
            if (std::find(later.begin(), later.end(), name) != later.end()) {
                value.refuse_key("is not supported by this version");
            }
            if (std::find(known.begin(), known.end(), name) == known.end()) {
                value.refuse_key("is not a key of the header");
            }
        }
    }

    [[nodiscard]] std::vector<Value> elements() const
    {
        require(Kind::array, "an array");
        std::vector<Value> values;
        for (const Node* child = tree_->first_child(*node_); child != nullptr; child = tree_->next(*child)) {
            values.emplace_back(*tree_, *child, path_);
        }
        return values;
    }

    [[nodiscard]] std::string string() const
    {
        require(Kind::string, "a string");
        return tree_->string(*node_);
    }

    /// Position of a string in `names`.
    [[nodiscard]] std::size_t one_of(std::span<const std::string_view> names) const
    {
        const std::string name = string();
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) {
            refuse(fmt::format("\"{}\" is not one of {}", shown(name), fmt::join(names, ", ")));
        }
        return static_cast<std::size_t>(found - names.begin());
    }

    [[nodiscard]] std::uint64_t integer() const
    {
        const std::string_view text = tree_->text(*node_);
        std::uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error == std::errc::result_out_of_range) refuse(text_and("does not fit 64 bits"));
        if (node_->kind != Kind::number || error != std::errc{} || end != text.data() + text.size()) {
            refuse(text_and("is not a non-negative integer"));
        }
        return value;
    }
    [[nodiscard]] std::uint64_t integer(std::uint64_t lowest, std::uint64_t highest) const
    {
        return within(integer(), lowest, highest);
    }

    /// An address, a frame or a count of frames: also a string of hex digits.
    [[nodiscard]] std::uint64_t number() const
    {
        if (node_->kind != Kind::string) {
            if (node_->kind != Kind::number) refuse(text_and("is neither an integer nor a \"0x...\" string"));
            return integer();
        }
        const std::string text = tree_->string(*node_);
        const HexScan scan = text.starts_with("0x") ? scan_hex(text.c_str() + 2) : HexScan{};
        if (scan.digits == 0 || scan.digits + 2 != text.size()) {
            refuse(text_and("is not \"0x\" and hex digits"));
        }
        if (!scan.fits) refuse(text_and("does not fit 64 bits"));
        return scan.value;
    }
    [[nodiscard]] std::uint64_t number(std::uint64_t lowest, std::uint64_t highest) const
    {
        return within(number(), lowest, highest);
    }

    /// An object as its JSON text, in one line.
    [[nodiscard]] std::string object_text() const
    {
        require(Kind::object, "an object");
        std::string text{tree_->text(*node_)};
        std::erase_if(text, [](char c) { return c == '\n' || c == '\r'; });  // they are in no string
        return text;
    }

private:
    void require(Kind kind, std::string_view what) const
    {
        if (node_->kind != kind) refuse(text_and(fmt::format("is not {}", what)));
    }
    [[nodiscard]] std::string text_and(std::string_view message) const
    {
        return fmt::format("{} {}", shown(tree_->text(*node_)), message);
    }
    [[nodiscard]] std::uint64_t within(std::uint64_t value, std::uint64_t lowest, std::uint64_t highest) const
    {
        if (value < lowest || value > highest) {
            refuse(text_and(fmt::format("is out of range ({} to {})", lowest, highest)));
        }
        return value;
    }
    [[nodiscard]] std::string joined(std::string_view name) const
    {
        return path_.empty() ? std::string{name} : fmt::format("{}.{}", path_, name);
    }

    const JsonTree* tree_;
    const Node* node_;
    std::string path_;
};

void read_features(const Value& value, Cpuid& cpuid)
{
    for (const Value& element : value.elements()) {
        const std::string name = element.string();
        const auto* const found = std::find_if(kFeatureNames.begin(), kFeatureNames.end(),
                                               [&](const auto& feature) { return feature.first == name; });
        if (found == kFeatureNames.end()) element.refuse(fmt::format("unknown feature \"{}\"", shown(name)));
        if (std::exchange(cpuid.*found->second, true)) {
            element.refuse(fmt::format("\"{}\" is listed twice", name));
        }
    }
}

std::vector<GfnRange> read_ram(const Value& value, unsigned physical_address_bits)
{
    struct Listed {
        GfnRange range;
        std::size_t position;
    };
    const std::vector<Value> elements = value.elements();
    if (elements.empty()) value.refuse("lists no range");
    const std::uint64_t frames = std::uint64_t{1} << (physical_address_bits - kPageShift);
    std::vector<GfnRange> ranges;
    std::vector<Listed> sorted;
    for (const Value& element : elements) {
        element.allow({"first_gfn", "count"});
        const std::uint64_t first = element.required("first_gfn").number();
        const Value count_value = element.required("count");
        const std::uint64_t count = count_value.number();
        if (count == 0) count_value.refuse("the range is empty");
        if (first >= frames || count > frames - first) {
            element.refuse(
                fmt::format("the range ends beyond physical_address_bits ({})", physical_address_bits));
        }
        sorted.push_back({{Gfn{first}, count}, ranges.size()});
        ranges.push_back({Gfn{first}, count});
    }
    std::sort(sorted.begin(), sorted.end(),
              [](const Listed& a, const Listed& b) { return a.range.first < b.range.first; });
    for (std::size_t i = 1; i < sorted.size(); ++i) {
        if (sorted[i - 1].range.end() > sorted[i].range.first) {
            elements[std::max(sorted[i - 1].position, sorted[i].position)].refuse(
                fmt::format("gfn {} is in two ranges", sorted[i].range.first));
        }
    }
    return ranges;
}

P2mLayout read_p2m(const Value& value)
{
    constexpr std::array<std::string_view, 4> kLayouts{"identity", "offset", "shuffled", "listed"};
    value.allow({"layout", "offset", "seed", "entries"});
    P2mLayout layout;
    if (const auto name = value.member("layout")) {
        layout.kind = static_cast<P2mLayout::Kind>(name->one_of(kLayouts));
    }
    // Each layout has at most one parameter, and no other layout has it.
    const auto parameter = [&](std::string_view name, P2mLayout::Kind kind) -> std::optional<Value> {
        if (layout.kind == kind) return value.required(name);
        if (const auto given = value.member(name)) {
            given->refuse_key(fmt::format("has no meaning with layout \"{}\"",
                                          kLayouts[static_cast<std::size_t>(layout.kind)]));
        }
        return std::nullopt;
    };
    if (const auto offset = parameter("offset", P2mLayout::Kind::offset)) layout.offset = offset->number();
    if (const auto seed = parameter("seed", P2mLayout::Kind::shuffled)) layout.seed = seed->number();
    if (const auto entries = parameter("entries", P2mLayout::Kind::listed)) {
        for (const Value& element : entries->elements()) {
            const std::vector<Value> triple = element.elements();
            if (triple.size() != 3) element.refuse("an entry is [gfn, mfn, count]");
            layout.entries.push_back({Gfn{triple[0].number(0, kMaxFrames - 1)},
                                      Mfn{triple[1].number(0, kMaxFrames - 1)},
                                      triple[2].number(1, kMaxFrames)});
        }
    }
    return layout;
}

void read_guest(const Value& guest, TraceHeader& header)
{
    constexpr std::array<std::string_view, 2> kKinds{"hvm", "pv"};
    constexpr std::array<std::string_view, 2> kVendors{"intel", "amd"};
    const Value kind = guest.required("kind");
    if (kind.one_of(kKinds) != 0) kind.refuse("\"pv\" is not supported by this version");
    guest.allow({"kind", "vcpus", "vendor", "physical_address_bits", "features", "ram", "p2m"},
                {"pv", "privileged"});

    if (const auto vcpus = guest.member("vcpus")) {
        header.vcpus = static_cast<unsigned>(vcpus->integer(1, kMaxVcpus));
    }
    if (const auto vendor = guest.member("vendor")) {
        header.cpuid.vendor = static_cast<Vendor>(vendor->one_of(kVendors));
    }
    header.cpuid.physical_address_bits = static_cast<unsigned>(
        guest.required("physical_address_bits").integer(kMinPhysicalAddressBits, kMaxPhysicalAddressBits));
    if (const auto features = guest.member("features")) read_features(*features, header.cpuid);
    header.ram = read_ram(guest.required("ram"), header.cpuid.physical_address_bits);
    if (const auto p2m = guest.member("p2m")) {
        header.p2m = read_p2m(*p2m);
        try {
            const FrameLayout check{GuestRam{header.ram}, header.p2m};
        } catch (const LayoutError& error) {
            p2m->refuse(error.what());
        }
    }
}

}  // namespace

TraceHeader parse_header(std::string_view text)
{
    constexpr std::array<std::string_view, 2> kFetches{"instruction", "block"};
    if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
        throw Fault{0, "an empty line, where the header should stand"};
    }
    const JsonTree tree{text};
    const Value root{tree, tree.root(), ""};
    if (root.member("op")) throw Fault{0, "a record before the header", "op"};
    const Value format = root.required("format");
    if (format.string() != "mmusim-trace") format.refuse("is not \"mmusim-trace\"");
    const Value version = root.required("version");
    if (version.integer() != kVersion) {
        version.refuse(fmt::format("version {} is not supported (this is a reader of version {})",
                                   version.integer(), kVersion));
    }
    root.allow({"format", "version", "name", "fetch", "guest", "meta"}, {"pv", "privileged"});

    TraceHeader header;
    header.name = root.required("name").string();
    if (const auto fetch = root.member("fetch")) {
        header.fetch = static_cast<TraceHeader::Fetch>(fetch->one_of(kFetches));
    }
    read_guest(root.required("guest"), header);
    if (const auto meta = root.member("meta")) header.meta = meta->object_text();
    return header;
}

}  // namespace mmusim::trace
