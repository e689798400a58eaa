// SPDX-License-Identifier: Apache-2.0
//
// Records and headers as lines of JSON: the counterpart of record_parser.cpp and header_parser.cpp.
#include <array>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <variant>

#include <fmt/format.h>

#include <mmusim/trace/trace_writer.hpp>

#include "trace/json_tree.hpp"

namespace mmusim {

namespace {

/// One JSON object in the making: members in the order in which they are added.
class Object {
public:
    Object() { text_ += '{'; }

    Object& text(std::string_view key, std::string_view value)
    {
        return json(key, trace::json_quoted(value));
    }
    /// A name of ours, which needs no escapes.
    Object& word(std::string_view key, std::string_view value) { return append(key, "\"{}\"", value); }
    Object& hex(std::string_view key, std::uint64_t value) { return append(key, "\"{:#x}\"", value); }
    Object& integer(std::string_view key, std::uint64_t value) { return append(key, "{}", value); }
    Object& boolean(std::string_view key, bool value) { return append(key, "{}", value); }
    /// A value that is JSON already.
    Object& json(std::string_view key, std::string_view value) { return append(key, "{}", value); }

    template <class T>
    Object& hex_if(std::string_view key, const std::optional<T>& value)
    {
        return value ? hex(key, *value) : *this;
    }
    Object& integer_unless(std::string_view key, std::uint64_t value, std::uint64_t usual)
    {
        return value != usual ? integer(key, value) : *this;
    }
    Object& boolean_if(std::string_view key, const std::optional<bool>& value)
    {
        return value ? boolean(key, *value) : *this;
    }

    [[nodiscard]] std::string take()
    {
        text_ += '}';
        return std::move(text_);
    }

private:
    template <class T>
    Object& append(std::string_view key, fmt::format_string<const T&> form, const T& value)
    {
        if (text_.size() > 1) text_ += ',';
        text_ += '"';
        text_ += key;
        text_ += "\":";
        fmt::format_to(std::back_inserter(text_), form, value);
        return *this;
    }

    std::string text_;
};

/// A JSON array of what `element` makes of each item.
template <class Items, class Element>
std::string array_of(const Items& items, Element element)
{
    std::string text = "[";
    for (const auto& item : items) {
        if (text.size() > 1) text += ',';
        text += element(item);
    }
    return text + "]";
}

void add_fault(Object& object, const std::optional<ExpectedFault>& fault)
{
    if (!fault) return;
    switch (fault->vector) {
    case Vector::general_protection: object.word("fault", "gp"); break;
    case Vector::stack_fault: object.word("fault", "ss"); break;
    default: object.integer("fault", fault->error_code); break;
    }
    object.hex_if("cr2", fault->cr2);
}

void add_content(Object& object, const Content& content)
{
    if (content.empty()) return;
    if (content.size() <= sizeof(std::uint64_t)) {
        std::uint64_t value = 0;
        std::memcpy(&value, content.data(), content.size());
        object.hex("value", value);
        return;
    }
    std::string digits;
    digits.reserve(2 * content.size());
    for (const std::byte byte : content) {
        fmt::format_to(std::back_inserter(digits), "{:02x}", std::to_integer<unsigned>(byte));
    }
    object.word("bytes", digits);
}

std::string letters_of(FrameRights rights)
{
    std::string letters;
    if (rights.read) letters += 'r';
    if (rights.write) letters += 'w';
    if (rights.execute) letters += 'x';
    return letters;
}

std::string list_of(const std::vector<Gfn>& gfns)
{
    return array_of(gfns, [](Gfn gfn) { return fmt::format("\"{:#x}\"", gfn.number()); });
}

/// The members of an access after its op. `within`: the fetch of the instruction whose operand it is; what
/// an operand takes over from there is not repeated.
void add_access(Object& object, const AccessRecord& access, const AccessRecord* within = nullptr)
{
    if (access.segment) {
        object.hex("va", access.address);
        if (*access.segment != Segment::ds) {
            object.word("seg", kSegmentNames[static_cast<std::size_t>(*access.segment)]);
        }
    } else {
        object.hex("la", access.address);
    }
    object.integer_unless("size", access.bytes, 1);
    add_content(object, access.content);
    if (access.rmw) object.boolean("rmw", true);
    if (access.implicit) object.boolean("implicit", true);
    if (access.cpl && (within == nullptr || access.cpl != within->cpl)) object.integer("cpl", *access.cpl);
    if (within == nullptr) object.integer_unless("vcpu", access.vcpu, 0).integer_unless("gap", access.gap, 0);
    object.hex_if("gpa", access.gpa).hex_if("gpa2", access.gpa2);
    add_fault(object, access.fault);
    if (access.event) {
        Object event;
        event.word("kind", "mem_access").hex("gfn", access.event->gfn.number());
        object.json("event", event.word("rights", letters_of(access.event->rights)).take());
    }
}

std::string_view op_of(RegisterWriteRecord::Target target)
{
    using Target = RegisterWriteRecord::Target;
    switch (target) {
    case Target::cr0: return "mov_cr0";
    case Target::cr3: return "mov_cr3";
    case Target::cr4: return "mov_cr4";
    case Target::msr: return "wrmsr";
    case Target::pkru: return "wrpkru";
    case Target::cpl: return "cpl";
    case Target::ac: return "ac";
    }
    return "?";
}

struct LineOf {
    std::string operator()(const AccessRecord& access) const
    {
        Object object;
        object.word("op", name_of(access.kind));
        add_access(object, access);
        return object.take();
    }

    std::string operator()(const InstructionRecord& instruction) const
    {
        Object object;
        object.word("op", "insn");
        add_access(object, instruction.fetch);
        object.json("mem", array_of(instruction.operands, [&](const AccessRecord& operand) {
                        Object part;
                        part.word("op", name_of(operand.kind));
                        add_access(part, operand, &instruction.fetch);
                        return part.take();
                    }));
        return object.take();
    }

    std::string operator()(const SetRecord& set) const
    {
        Object object;
        object.word("op", "set").integer_unless("vcpu", set.vcpu, 0);
        object.hex_if("cr0", set.cr0).hex_if("cr3", set.cr3).hex_if("cr4", set.cr4).hex_if("efer", set.efer);
        if (set.cpl) object.integer("cpl", *set.cpl);
        if (set.ac) object.integer("ac", *set.ac ? 1 : 0);
        object.hex_if("pkru", set.pkru).hex_if("pkrs", set.pkrs);
        if (!set.segments.empty()) {
            Object segments;
            for (const SegmentUpdate& update : set.segments) {
                Object parts;
                parts.hex_if("base", update.base)
                    .hex_if("limit", update.limit)
                    .boolean_if("null", update.null);
                parts.boolean_if("expand_down", update.expand_down).boolean_if("big", update.big);
                segments.json(kSegmentNames[static_cast<std::size_t>(update.segment)], parts.take());
            }
            object.json("segments", segments.take());
        }
        return object.take();
    }

    std::string operator()(const RegisterWriteRecord& write) const
    {
        using Target = RegisterWriteRecord::Target;
        Object object;
        object.word("op", op_of(write.target));
        if (write.target == Target::msr) object.hex("msr", write.msr);
        if (write.target == Target::cpl || write.target == Target::ac) {
            object.integer("value", write.value);
        } else {
            object.hex("value", write.value);
        }
        add_common(object, write);
        return object.take();
    }

    std::string operator()(const InvlpgRecord& invlpg) const
    {
        Object object;
        object.word("op", "invlpg").hex("la", invlpg.address);
        add_common(object, invlpg);
        return object.take();
    }

    std::string operator()(const InvpcidRecord& invpcid) const
    {
        Object object;
        object.word("op", "invpcid").integer("type", invpcid.type);
        object.hex("pcid", invpcid.pcid).hex("la", invpcid.address);
        add_common(object, invpcid);
        return object.take();
    }

    std::string operator()(const PageRecord& page) const
    {
        Object object;
        object.word("op", "page").hex("gfn", page.gfn.number()).integer("width", page.width);
        object.json("entries", array_of(page.entries, [](const auto& entry) {
                        return fmt::format("[{},\"{:#x}\"]", entry.first, entry.second);
                    }));
        return object.take();
    }

    std::string operator()(const PokeRecord& poke) const
    {
        Object object;
        object.word("op", "poke").hex("gpa", poke.gpa.value()).integer("size", poke.bytes);
        object.hex("value", poke.value);
        return object.take();
    }

    std::string operator()(const ExpectMemoryRecord& expect) const
    {
        Object object;
        object.word("op", "expect_memory").hex("gpa", expect.gpa.value()).integer("size", expect.bytes);
        object.hex("value", expect.value);
        if (expect.ignore != 0) object.hex("ignore", expect.ignore);
        return object.take();
    }

    std::string operator()(const ResetRecord& reset) const
    {
        Object object;
        object.word("op", "reset");
        if (!reset.name.empty()) object.text("name", reset.name);
        return object.take();
    }

    std::string operator()(const MarkRecord& mark) const
    {
        Object object;
        object.word("op", "mark").text("name", mark.name);
        return object.take();
    }

    std::string operator()(const ShadowBlowRecord& /*blow*/) const
    {
        Object object;
        object.word("op", "shadow_blow");
        return object.take();
    }

    std::string operator()(const P2mSetRecord& set) const
    {
        Object object;
        object.word("op", "p2m_set").hex("gfn", set.gfn.number());
        if (set.mfn) object.hex("mfn", set.mfn->number());
        object.integer_unless("count", set.count, 1);
        if (set.type != P2mType::ram_rw) object.word("type", name_of(set.type));
        if (set.access) object.word("access", name_of(*set.access));
        return object.take();
    }

    std::string operator()(const P2mClearRecord& clear) const
    {
        Object object;
        object.word("op", "p2m_clear").hex("gfn", clear.gfn.number());
        return object.integer_unless("count", clear.count, 1).take();
    }

    std::string operator()(const LogDirtyRecord& log) const
    {
        Object object;
        object.word("op", "log_dirty")
            .word("action", kLogDirtyActionNames[static_cast<std::size_t>(log.action)]);
        if (log.expect) object.json("expect", list_of(*log.expect));
        return object.take();
    }

    std::string operator()(const MemAccessRecord& rights) const
    {
        using Target = MemAccessRecord::Target;
        Object object;
        object.word("op", "mem_access");
        if (rights.target == Target::frames) {
            object.hex("gfn", rights.gfn.number()).integer_unless("count", rights.count, 1);
        }
        if (rights.target == Target::domain_default) object.boolean("default", true);
        if (rights.target != Target::none)
            object.word("access", rights.access ? name_of(*rights.access) : "default");
        if (rights.attached) object.word("listener", *rights.attached ? "attached" : "detached");
        return object.boolean_if("required", rights.required).take();
    }

    std::string operator()(const SecureFramesRecord& secure) const
    {
        Object object;
        object.word("op", "secure_frames");
        object.json("gfns", list_of(secure.gfns));
        return object.take();
    }

    std::string operator()(const SecureModeRecord& mode) const
    {
        Object object;
        object.word("op", "secure_mode").integer_unless("vcpu", mode.vcpu, 0);
        object.integer("value", mode.on ? 1 : 0);
        return object.take();
    }

    std::string operator()(const EndRecord& end) const
    {
        Object object;
        object.word("op", "end").integer("records", end.records);
        return object.take();
    }

private:
    template <class T>
    static void add_common(Object& object, const T& record)
    {
        object.integer_unless("vcpu", record.vcpu, 0).integer_unless("gap", record.gap, 0);
        add_fault(object, record.fault);
    }
};

std::string json_of(const P2mLayout& layout)
{
    Object object;
    switch (layout.kind) {
    case P2mLayout::Kind::identity: object.word("layout", "identity"); break;
    case P2mLayout::Kind::offset: object.word("layout", "offset").hex("offset", layout.offset); break;
    case P2mLayout::Kind::shuffled: object.word("layout", "shuffled").integer("seed", layout.seed); break;
    case P2mLayout::Kind::listed:
        object.word("layout", "listed");
        object.json("entries", array_of(layout.entries, [](const P2mLayout::Entry& entry) {
                        return fmt::format("[\"{}\",\"{}\",{}]", entry.gfn, entry.mfn, entry.count);
                    }));
        break;
    }
    return object.take();
}

}  // namespace

std::string to_json_line(const TraceHeader& header)
{
    std::string features = "[";
    for (const auto& [name, member] : kFeatureNames) {
        if (header.cpuid.*member) features += fmt::format("{}\"{}\"", features.size() > 1 ? "," : "", name);
    }
    features += ']';

    Object guest;
    guest.word("kind", "hvm").integer("vcpus", header.vcpus);
    guest.word("vendor", header.cpuid.vendor == Vendor::intel ? "intel" : "amd");
    guest.integer("physical_address_bits", header.cpuid.physical_address_bits).json("features", features);
    guest.json("ram", array_of(header.ram, [](const GfnRange& range) {
                   Object object;
                   object.hex("first_gfn", range.first.number()).hex("count", range.count);
                   return object.take();
               }));
    guest.json("p2m", json_of(header.p2m));

    Object object;
    object.word("format", "mmusim-trace").integer("version", 1).text("name", header.name);
    if (header.fetch == TraceHeader::Fetch::block) object.word("fetch", "block");
    object.json("guest", guest.take());
    if (!header.meta.empty()) object.json("meta", header.meta);
    return object.take();
}

std::string to_json_line(const Record& record)
{
    return std::visit(LineOf{}, record);
}

}  // namespace mmusim
