// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/event_line.hpp>

#include <cstring>
#include <iterator>

#include <fmt/format.h>

namespace mmusim {

namespace {

/// One JSON object in the making. Its words are ours and need no escapes.
class Line {
public:
    void word(std::string_view key, std::string_view value) { member(key, "\"{}\"", value); }
    void integer(std::string_view key, std::uint64_t value) { member(key, "{}", value); }
    void hex(std::string_view key, std::uint64_t value) { member(key, "\"{:#x}\"", value); }
    template <class T>
    void json(std::string_view key, const T& value)
    {
        member(key, "{}", value);
    }
    [[nodiscard]] std::string take() { return text_ + '}'; }

private:
    template <class T>
    void member(std::string_view key, fmt::format_string<const T&> form, const T& value)
    {
        fmt::format_to(std::back_inserter(text_), "{}\"{}\":", text_.size() > 1 ? "," : "", key);
        fmt::format_to(std::back_inserter(text_), form, value);
    }

    std::string text_ = "{";
};

void add_write(Line& line, const ShadowEvent::Write& write)
{
    line.hex("gpa", write.at.value());
    if (write.second) line.hex("gpa2", write.second->value());
    line.integer("size", write.bytes.size());
    std::uint64_t value = 0;
    if (write.bytes.size() <= sizeof value) {
        std::memcpy(&value, write.bytes.data(), write.bytes.size());
        line.hex("value", value);
        return;
    }
    std::string bytes;
    for (const std::byte byte : write.bytes)
        fmt::format_to(std::back_inserter(bytes), "{:02x}", std::to_integer<unsigned>(byte));
    line.word("bytes", bytes);
}

std::string flags_of(const ShadowEvent& event)
{
    std::string text = "[";
    for (std::size_t i = 0; i < kPathFlags; ++i) {
        const auto flag = static_cast<PathFlag>(i);
        if (event.has(flag))
            fmt::format_to(std::back_inserter(text), "{}\"{}\"", text.size() > 1 ? "," : "", name_of(flag));
    }
    return text + ']';
}

}  // namespace

std::string to_json_line(const ShadowEvent& event, std::uint64_t record, std::optional<Cycles> cycle)
{
    Line line;
    line.word("event", name_of(event.kind));
    line.integer("record", record);
    if (cycle) line.integer("cycle", *cycle);
    if (event.vcpu) line.integer("vcpu", *event.vcpu);
    if (event.guest_levels) line.integer("guest_levels", *event.guest_levels);
    if (event.address) line.hex("la", event.address->value());
    if (event.error_code) line.hex("error_code", *event.error_code);
    if (event.guest_error_code) line.hex("guest_error_code", *event.guest_error_code);
    if (!event.how.empty()) line.word("how", event.how);
    if (event.frame) line.hex("gfn", event.frame->number());
    if (event.type) line.word("shadow", to_string(*event.type));
    if (event.level) line.integer("level", static_cast<std::uint64_t>(*event.level));
    if (!event.tables.empty()) {
        std::string text;
        for (const Gfn table : event.tables) text += fmt::format("{}\"{}\"", text.empty() ? "" : ",", table);
        line.json("tables", fmt::format("[{}]", text));
    }
    if (event.guest_entry) line.hex("guest_entry", *event.guest_entry);
    if (event.entry) {
        Line entry;
        entry.word("shadow", to_string(event.entry->type));
        entry.hex("gfn", event.entry->frame.number());
        entry.integer("index", event.entry->index);
        entry.hex("value", event.entry->value);
        line.json("shadow_entry", entry.take());
    }
    if (event.prefetched) line.integer("prefetched", *event.prefetched);
    if (event.write) add_write(line, *event.write);
    line.json("flags", flags_of(event));
    return line.take();
}

}  // namespace mmusim
