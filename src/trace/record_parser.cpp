// SPDX-License-Identifier: Apache-2.0
//
// The one source that simdjson is compiled in (through record_fields.hpp).
#include "trace/record_parser.hpp"

#include <algorithm>
#include <bit>
#include <bitset>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <mmusim/p2m/p2m_type.hpp>

#include "trace/json_tree.hpp"
#include "trace/numbers.hpp"
#include "trace/record_fields.hpp"
#include "trace/record_keys.hpp"
#include "trace/record_shapes.hpp"
#include "trace/record_text.hpp"
#include "trace/spare_storage.hpp"
#include "trace/text_buffer.hpp"

namespace mmusim::trace {

namespace {

/// The values that accesses have to keep until their size is known.
struct PendingContent {
    std::uint64_t value = 0;
    const char* bytes = nullptr;  // the first hex digit
    std::size_t digits = 0;
};

}  // namespace

class RecordParser::Impl {
public:
    explicit Impl(const TraceHeader& header) : vcpus_{header.vcpus} {}

    void parse(std::string_view text, std::uint64_t records, Record& record);

private:
    [[nodiscard]] Op op_of(const Field& field) const;
    [[nodiscard]] Op find_op(ondemand::object object) const;
    void read(Op op, Fields& fields, std::uint64_t records, Record& record);

    void read_access(Op op, Fields& fields, AccessRecord& access);
    void read_instruction(Fields& fields, InstructionRecord& instruction);
    void read_operand(ondemand::value value, AccessRecord& operand);
    void read_set(Fields& fields, SetRecord& set);
    void read_segments(const Field& field, std::vector<SegmentUpdate>& segments);
    void read_register_write(Op op, Fields& fields, RegisterWriteRecord& write);
    void read_invlpg(Fields& fields, InvlpgRecord& invlpg);
    void read_invpcid(Fields& fields, InvpcidRecord& invpcid);
    void read_page(Fields& fields, PageRecord& page);
    [[nodiscard]] std::pair<std::uint32_t, std::uint64_t> read_entry(const Field& entries,
                                                                     ondemand::value value);
    void read_memory(Fields& fields, GuestPhysical& gpa, unsigned& bytes, std::uint64_t& value,
                     std::uint64_t& ignore);
    void read_frames(const Fields& fields, const Field& field, std::vector<Gfn>& frames);
    void read_p2m_set(Fields& fields, P2mSetRecord& set);
    void read_p2m_clear(Fields& fields, P2mClearRecord& clear);
    void read_log_dirty(Fields& fields, LogDirtyRecord& log);
    void read_mem_access(Fields& fields, MemAccessRecord& rights);
    void read_secure_frames(Fields& fields, SecureFramesRecord& secure);
    void read_secure_mode(Fields& fields, SecureModeRecord& mode);
    [[nodiscard]] std::string read_name(Fields& fields);
    void read_end(Fields& fields, std::uint64_t records, EndRecord& end);

    void read_access_field(Field& field, AccessRecord& access, PendingContent& content);
    void finish_access(const Fields& fields, const PendingContent& pending, AccessRecord& access);
    void check_expectations(const Fields& fields, const AccessRecord& access) const;
    void set_content(const Fields& fields, const PendingContent& pending, AccessRecord& access);

    [[nodiscard]] std::uint16_t vcpu(Field& field) const
    {
        return static_cast<std::uint16_t>(field.integer(0, vcpus_ - 1));
    }
    [[nodiscard]] ExpectedFault fault(Field& field) const;
    [[nodiscard]] ExpectedFault general_protection(Field& field) const;
    [[nodiscard]] Segment segment(Field& field) const;
    [[nodiscard]] MemAccessEventExpectation event(const Field& field) const;
    [[nodiscard]] std::optional<MemAccess> mem_access(Field& field) const;
    void check_frames(const Fields& fields, Gfn first, std::uint64_t count) const;
    template <class Container>
    [[nodiscard]] Container opened(ondemand::value& value, const char* at, char bracket,
                                   std::string_view what, std::string_view key) const;

    unsigned vcpus_;
    ondemand::parser parser_;
    SpareStorage spare_;
    Text text_;
    std::vector<std::uint32_t> entry_places_;  // of the entries of a page
    std::vector<Gfn> sorted_;                  // a list of frames
};

// ---- values of more than one record

ExpectedFault RecordParser::Impl::fault(Field& field) const
{
    if (field.is_string()) {
        const std::string name = field.string("a string");
        if (name == "gp") return {Vector::general_protection, 0, std::nullopt};
        if (name == "ss") return {Vector::stack_fault, 0, std::nullopt};
        if (!name.starts_with("0x")) field.refuse_value("is no error code, \"gp\" or \"ss\"");
    }
    return {Vector::page_fault, field.number32(), std::nullopt};
}

/// All that a record which writes a register may expect.
ExpectedFault RecordParser::Impl::general_protection(Field& field) const
{
    if (field.string("\"gp\"") != "gp") field.refuse_value("is not \"gp\"");
    return {Vector::general_protection, 0, std::nullopt};
}

Segment RecordParser::Impl::segment(Field& field) const
{
    constexpr std::string_view kAny = "a segment (cs, ss, ds, es, fs, gs)";
    const std::string name = field.string(kAny);
    const auto* const found = std::find(kSegmentNames.begin(), kSegmentNames.end(), name);
    if (found == kSegmentNames.end()) field.refuse_value(fmt::format("is not {}", kAny));
    return static_cast<Segment>(found - kSegmentNames.begin());
}

namespace {

/// The frames of 52 address bits.
constexpr std::uint64_t kFrames = std::uint64_t{1} << (kMaxPhysicalAddressBits - kPageShift);

}  // namespace

MemAccessEventExpectation RecordParser::Impl::event(const Field& field) const
{
    MemAccessEventExpectation event;
    ondemand::value value = field.value;
    Fields parts{text_, opened<ondemand::object>(value, field.at, '{', "an object", field.name())};
    parts.expect(keys({Key::kind, Key::gfn, Key::rights}), "an \"event\"");
    for (Field part; parts.next(part);) {
        switch (part.key) {
        case Key::kind:
            if (part.string("\"mem_access\"") != "mem_access") part.refuse_value("is not \"mem_access\"");
            break;
        case Key::gfn: event.gfn = Gfn{part.number(kFrames - 1)}; break;
        case Key::rights: {
            constexpr std::string_view kAny = "one or more of r, w and x, each once";
            for (const char letter : part.string(kAny)) {
                bool none = false;
                bool& right = letter == 'r'   ? event.rights.read
                              : letter == 'w' ? event.rights.write
                              : letter == 'x' ? event.rights.execute
                                              : none;
                if (&right == &none || right) part.refuse_value(fmt::format("is not {}", kAny));
                right = true;
            }
            if (event.rights == FrameRights{}) part.refuse_value(fmt::format("is not {}", kAny));
            break;
        }
        default: break;
        }
    }
    parts.require(keys({Key::kind, Key::gfn, Key::rights}), field.at);
    return event;
}

/// An access type by its name; none: the one that is the default.
std::optional<MemAccess> RecordParser::Impl::mem_access(Field& field) const
{
    const std::string name = field.string("an access type (rwx, rx, ...)");
    if (name == "default") return std::nullopt;
    const auto access = parse_mem_access(name);
    if (!access) field.refuse_value("is no access type (rwx, rx, ...)");
    return access;
}

void RecordParser::Impl::check_frames(const Fields& fields, Gfn first, std::uint64_t count) const
{
    if (count > kFrames - first.number()) {
        fields.refuse(Key::count,
                      fmt::format("{} frames from {} on end beyond 52 address bits", count, first));
    }
}

/// An object or an array, by its opening bracket.
template <class Container>
Container RecordParser::Impl::opened(ondemand::value& value, const char* at, char bracket,
                                     std::string_view what, std::string_view key) const
{
    if (*at != bracket) text_.refuse(at, fmt::format("must be {}", what), key);
    Container container;
    if (const auto error = value.get(container)) refuse_malformed(text_, at, error);
    return container;
}

// ---- accesses

namespace {

void clear(AccessRecord& access)
{
    access.kind = AccessKind::read;
    access.rmw = false;
    access.implicit = false;
    access.segment.reset();
    access.cpl.reset();
    access.vcpu = 0;
    access.bytes = 1;
    access.address = 0;
    access.gap = 0;
    access.content.clear();
    access.gpa.reset();
    access.gpa2.reset();
    access.fault.reset();
    access.event.reset();
}

}  // namespace

inline void RecordParser::Impl::read_access_field(Field& field, AccessRecord& access, PendingContent& content)
{
    switch (field.key) {
    case Key::la:
    case Key::va: access.address = field.number(); break;
    case Key::seg: access.segment = segment(field); break;
    case Key::size: access.bytes = static_cast<std::uint32_t>(field.integer(1, kMaxAccessBytes)); break;
    case Key::value: content.value = field.number(); break;
    case Key::bytes:
        field.consume_string("a string of hex digits");
        content.bytes = field.at + 1;
        while (hex_digit(content.bytes[content.digits]) != kNoHexDigit) ++content.digits;
        if (content.bytes[content.digits] != '"') {
            field.refuse_value("is not a string of hex digits");
        }
        break;
    case Key::rmw: access.rmw = field.boolean(); break;
    case Key::implicit: access.implicit = field.boolean(); break;
    case Key::cpl: access.cpl = static_cast<std::uint8_t>(field.integer(0, 3)); break;
    case Key::vcpu: access.vcpu = vcpu(field); break;
    case Key::gap: access.gap = field.integer(); break;
    case Key::gpa: access.gpa = field.number(); break;
    case Key::gpa2: access.gpa2 = field.number(); break;
    case Key::fault: {
        const auto cr2 = access.fault ? access.fault->cr2 : std::nullopt;
        access.fault = fault(field);
        access.fault->cr2 = cr2;
        break;
    }
    case Key::cr2:
        if (!access.fault) access.fault.emplace();
        access.fault->cr2 = field.number();
        break;
    case Key::event: access.event = event(field); break;
    default: break;
    }
}

void RecordParser::Impl::set_content(const Fields& fields, const PendingContent& pending,
                                     AccessRecord& access)
{
    const bool as_bytes = fields.has(Key::bytes);
    if (!as_bytes && !fields.has(Key::value)) return;
    const Key key = as_bytes ? Key::bytes : Key::value;
    if (access.kind == AccessKind::fetch) fields.refuse(key, "has no meaning on a fetch");
    if (as_bytes && fields.has(Key::value)) fields.refuse(key, "stands beside \"value\"");
    if (as_bytes) {
        if (pending.digits != 2 * std::size_t{access.bytes}) {
            fields.refuse(key, fmt::format("has {} hex digits, size {} needs {}", pending.digits,
                                           access.bytes, 2 * access.bytes));
        }
        spare_.resize(access.content, access.bytes);
        for (std::size_t i = 0; i < access.bytes; ++i) {
            access.content[i] = static_cast<std::byte>(hex_digit(pending.bytes[2 * i]) << 4 |
                                                       hex_digit(pending.bytes[2 * i + 1]));
        }
        return;
    }
    if (access.bytes > 8)
        fields.refuse(key, fmt::format("needs a size of at most 8, here it is {}", access.bytes));
    if (access.bytes < 8 && (pending.value >> (8 * access.bytes)) != 0) {
        fields.refuse(key, fmt::format("{:#x} does not fit {} bytes", pending.value, access.bytes));
    }
    access.content.resize(access.bytes, boost::container::default_init);
    std::memcpy(access.content.data(), &pending.value, access.bytes);
}

void RecordParser::Impl::check_expectations(const Fields& fields, const AccessRecord& access) const
{
    if (fields.has(Key::cr2)) {
        if (!fields.has(Key::fault)) fields.refuse(Key::cr2, "stands without \"fault\"");
        if (access.fault->vector != Vector::page_fault) {
            fields.refuse(Key::cr2, "stands beside a fault that is no page fault");
        }
    }
    if (access.fault) {
        for (const Key key : {Key::gpa, Key::gpa2}) {
            if (fields.has(key)) fields.refuse(key, "stands beside \"fault\": there is no translation");
        }
        if (access.kind == AccessKind::read && !access.content.empty()) {
            fields.refuse(fields.has(Key::value) ? Key::value : Key::bytes,
                          "stands beside \"fault\": nothing is read");
        }
    }
    // Where a segment's base comes in, only the replay knows.
    if (access.gpa2 && !access.segment && (access.address & kPageOffsetMask) + access.bytes <= kPageBytes) {
        fields.refuse(Key::gpa2, "stands on an access within one page");
    }
}

/// What depends on more than one key. Most accesses have no key for which there is anything to check.
inline void RecordParser::Impl::finish_access(const Fields& fields, const PendingContent& pending,
                                              AccessRecord& access)
{
    constexpr KeySet kPlain = keys({Key::op, Key::la, Key::size, Key::implicit, Key::cpl, Key::vcpu, Key::gap,
                                    Key::gpa, Key::event, Key::mem});
    if (fields.has(Key::la) && (fields.seen() & ~kPlain) == 0) [[likely]]
        return;

    if (fields.has(Key::va)) {
        if (fields.has(Key::la)) fields.refuse(Key::va, "stands beside \"la\"");
        if (!access.segment) access.segment = Segment::ds;
    } else {
        fields.require(bit(Key::la), text_.whole().data());
        if (fields.has(Key::seg)) fields.refuse(Key::seg, "stands without \"va\"");
    }
    if (access.rmw && access.kind == AccessKind::fetch) fields.refuse(Key::rmw, "has no meaning on a fetch");
    set_content(fields, pending, access);
    check_expectations(fields, access);
}

void RecordParser::Impl::read_access(Op op, Fields& fields, AccessRecord& access)
{
    clear(access);
    access.kind = op == Op::read ? AccessKind::read : op == Op::write ? AccessKind::write : AccessKind::fetch;
    PendingContent content;
    for (Field field; fields.next(field);) read_access_field(field, access, content);
    finish_access(fields, content, access);
}

void RecordParser::Impl::read_operand(ondemand::value value, AccessRecord& operand)
{
    const char* const at = value.raw_json_token().data();
    auto object = opened<ondemand::object>(value, at, '{', "an object: a read or a write", "mem");
    Fields fields{text_, object};
    fields.expect(kOperand, "an operand of an \"insn\"");
    clear(operand);
    PendingContent content;
    for (Field field; fields.next(field);) {
        if (field.key == Key::op) {
            const Op op = op_of(field);
            if (op != Op::read && op != Op::write) {
                field.refuse_value("is not an operand (read or write)");
            }
            field.consume_string("a string");
            operand.kind = op == Op::read ? AccessKind::read : AccessKind::write;
        } else {
            read_access_field(field, operand, content);
        }
    }
    fields.require(bit(Key::op), at);
    if (!fields.has(Key::va)) fields.require(bit(Key::la), at);
    finish_access(fields, content, operand);
}

void RecordParser::Impl::read_instruction(Fields& fields, InstructionRecord& instruction)
{
    AccessRecord& fetch = instruction.fetch;
    clear(fetch);
    fetch.kind = AccessKind::fetch;
    PendingContent none;
    std::size_t count = 0;
    const char* second_fault = nullptr;
    std::size_t faults = 0;
    for (Field field; fields.next(field);) {
        if (field.key != Key::mem) {
            read_access_field(field, fetch, none);
            if (field.key == Key::fault && ++faults == 2) second_fault = field.at;
            continue;
        }
        auto list =
            opened<ondemand::array>(field.value, field.at, '[', "an array of reads and writes", "mem");
        for (auto element : list) {
            if (const auto error = element.error()) refuse_malformed(text_, field.at, error);
            ondemand::value value = element.value_unsafe();
            const char* const at = value.raw_json_token().data();
            AccessRecord& operand = spare_.append(instruction.operands, count);
            ++count;
            read_operand(value, operand);
            if (operand.fault && ++faults == 2) second_fault = at;
        }
    }
    spare_.shrink(instruction.operands, count);
    finish_access(fields, none, fetch);
    if (second_fault != nullptr) {
        text_.refuse(second_fault, "an instruction has one fault at most", name_of(Key::fault));
    }
    // The instruction's vCPU and privilege are its operands' too.
    for (AccessRecord& operand : instruction.operands) {
        operand.vcpu = fetch.vcpu;
        if (!operand.cpl) operand.cpl = fetch.cpl;
    }
}

// ---- registers and TLB management

void RecordParser::Impl::read_segments(const Field& field, std::vector<SegmentUpdate>& segments)
{
    ondemand::value value = field.value;
    Fields registers{text_, opened<ondemand::object>(value, field.at, '{', "an object", field.name())};
    registers.expect(kSegments, "\"segments\"");
    for (Field one; registers.next(one);) {
        SegmentUpdate& update = segments.emplace_back();
        update.segment =
            static_cast<Segment>(static_cast<unsigned>(one.key) - static_cast<unsigned>(Key::cs));
        Fields parts{text_, opened<ondemand::object>(one.value, one.at, '{', "an object", one.name())};
        parts.expect(keys({Key::base, Key::limit, Key::null, Key::expand_down, Key::big}), "a segment");
        for (Field part; parts.next(part);) {
            switch (part.key) {
            case Key::base: update.base = part.number(); break;
            case Key::limit: update.limit = part.number32(); break;
            case Key::null: update.null = part.boolean(); break;
            case Key::expand_down: update.expand_down = part.boolean(); break;
            case Key::big: update.big = part.boolean(); break;
            default: break;
            }
        }
    }
}

void RecordParser::Impl::read_set(Fields& fields, SetRecord& set)
{
    auto segments = std::move(set.segments);
    segments.clear();
    set = SetRecord{};
    set.segments = std::move(segments);
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::vcpu: set.vcpu = vcpu(field); break;
        case Key::cr0: set.cr0 = field.number(); break;
        case Key::cr3: set.cr3 = field.number(); break;
        case Key::cr4: set.cr4 = field.number(); break;
        case Key::efer: set.efer = field.number(); break;
        case Key::pkru: set.pkru = field.number32(); break;
        case Key::pkrs: set.pkrs = field.number32(); break;
        case Key::cpl: set.cpl = static_cast<std::uint8_t>(field.number(3)); break;
        case Key::ac: set.ac = field.flag(); break;
        case Key::segments: read_segments(field, set.segments); break;
        default: break;
        }
    }
}

void RecordParser::Impl::read_register_write(Op op, Fields& fields, RegisterWriteRecord& write)
{
    using Target = RegisterWriteRecord::Target;
    write = RegisterWriteRecord{};
    switch (op) {
    case Op::mov_cr0: write.target = Target::cr0; break;
    case Op::mov_cr3: write.target = Target::cr3; break;
    case Op::mov_cr4: write.target = Target::cr4; break;
    case Op::wrmsr: write.target = Target::msr; break;
    case Op::wrpkru: write.target = Target::pkru; break;
    case Op::cpl: write.target = Target::cpl; break;
    default: write.target = Target::ac; break;
    }
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::vcpu: write.vcpu = vcpu(field); break;
        case Key::gap: write.gap = field.integer(); break;
        case Key::msr: write.msr = field.number32(); break;
        case Key::fault: write.fault = general_protection(field); break;
        case Key::value:
            switch (write.target) {
            case Target::pkru: write.value = field.number32(); break;
            case Target::cpl: write.value = field.number(3); break;
            case Target::ac: write.value = field.flag() ? 1 : 0; break;
            default: write.value = field.number(); break;
            }
            break;
        default: break;
        }
    }
}

void RecordParser::Impl::read_invlpg(Fields& fields, InvlpgRecord& invlpg)
{
    invlpg = InvlpgRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::vcpu: invlpg.vcpu = vcpu(field); break;
        case Key::gap: invlpg.gap = field.integer(); break;
        case Key::la: invlpg.address = field.number(); break;
        case Key::fault: invlpg.fault = general_protection(field); break;
        default: break;
        }
    }
}

void RecordParser::Impl::read_invpcid(Fields& fields, InvpcidRecord& invpcid)
{
    invpcid = InvpcidRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::vcpu: invpcid.vcpu = vcpu(field); break;
        case Key::gap: invpcid.gap = field.integer(); break;
        case Key::type: invpcid.type = field.number(); break;
        case Key::pcid: invpcid.pcid = field.number(); break;
        case Key::la: invpcid.address = field.number(); break;
        case Key::fault: invpcid.fault = general_protection(field); break;
        default: break;
        }
    }
    fields.require(bit(Key::type), text_.whole().data());
    // Type 0 names a page of a PCID, type 1 a PCID, the others nothing.
    if (invpcid.type <= 1) fields.require(bit(Key::pcid), text_.whole().data());
    if (invpcid.type == 0) fields.require(bit(Key::la), text_.whole().data());
}

// ---- memory

/// An [index, value] of `entries`. Notes its place: what there is to check waits for the width.
std::pair<std::uint32_t, std::uint64_t> RecordParser::Impl::read_entry(const Field& entries,
                                                                       ondemand::value value)
{
    const char* const at = value.raw_json_token().data();
    auto list = opened<ondemand::array>(value, at, '[', "a list of [index, value]", entries.name());
    std::array<std::uint64_t, 2> parts{};
    std::size_t count = 0;
    for (auto element : list) {
        if (const auto error = element.error()) refuse_malformed(text_, at, error);
        if (count == 2) text_.refuse(at, "an entry is [index, value]", entries.name());
        Field part{entries.key, nullptr, &text_, element.value_unsafe()};
        part.at = part.value.raw_json_token().data();
        parts[count] = count == 0 ? part.integer(0, kPageBytes / 4 - 1) : part.number();
        ++count;
    }
    if (count != 2) text_.refuse(at, "an entry is [index, value]", entries.name());
    entry_places_.push_back(static_cast<std::uint32_t>(text_.offset(at)));
    return {static_cast<std::uint32_t>(parts[0]), parts[1]};
}

void RecordParser::Impl::read_page(Fields& fields, PageRecord& page)
{
    page.gfn = Gfn{};
    page.width = 8;
    page.entries.clear();
    entry_places_.clear();
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::gfn: page.gfn = Gfn{field.number()}; break;
        case Key::width: {
            const std::uint64_t width = field.integer();
            if (width != 4 && width != 8) field.refuse_value("is neither 4 nor 8");
            page.width = static_cast<unsigned>(width);
            break;
        }
        case Key::entries: {
            auto list = opened<ondemand::array>(field.value, field.at, '[', "an array", field.name());
            for (auto element : list) {
                if (const auto error = element.error()) refuse_malformed(text_, field.at, error);
                page.entries.push_back(read_entry(field, element.value_unsafe()));
            }
            break;
        }
        default: break;
        }
    }
    fields.require(kShapes[static_cast<std::size_t>(Op::page)].required, text_.whole().data());

    std::bitset<kPageBytes / 4> listed;
    const std::uint64_t slots = kPageBytes / page.width;
    for (std::size_t i = 0; i < page.entries.size(); ++i) {
        const auto [index, value] = page.entries[i];
        const auto refuse = [&](std::string message) {
            text_.refuse(text_.whole().data() + entry_places_[i], std::move(message), name_of(Key::entries));
        };
        if (index >= slots) refuse(fmt::format("index {} is out of range (0 to {})", index, slots - 1));
        if (page.width == 4 && value >> 32 != 0) refuse(fmt::format("{:#x} does not fit 4 bytes", value));
        if (listed.test(index)) refuse(fmt::format("index {} is listed twice", index));
        listed.set(index);
    }
}

/// `poke` and `expect_memory`: one to eight bytes within a frame.
void RecordParser::Impl::read_memory(Fields& fields, GuestPhysical& gpa, unsigned& bytes,
                                     std::uint64_t& value, std::uint64_t& ignore)
{
    gpa = GuestPhysical{};
    bytes = 8;
    value = ignore = 0;
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::gpa: gpa = GuestPhysical{field.number()}; break;
        case Key::size: {
            const std::uint64_t size = field.integer();
            if (size > 8 || !std::has_single_bit(size)) {
                field.refuse_value("is not 1, 2, 4 or 8");
            }
            bytes = static_cast<unsigned>(size);
            break;
        }
        case Key::value: value = field.number(); break;
        case Key::ignore: ignore = field.number(); break;
        default: break;
        }
    }
    fields.require(keys({Key::gpa, Key::size, Key::value}), text_.whole().data());
    if (bytes < 8) {
        for (const auto& [key, bits] : {std::pair{Key::value, value}, std::pair{Key::ignore, ignore}}) {
            if (bits >> (8 * bytes) != 0) {
                fields.refuse(key, fmt::format("{:#x} does not fit {} bytes", bits, bytes));
            }
        }
    }
    if (gpa.offset_in_page() + bytes > kPageBytes) {
        fields.refuse(Key::gpa, fmt::format("{} bytes at {} cross the end of a frame", bytes, gpa));
    }
}

/// A list of frames, each of which stands once.
void RecordParser::Impl::read_frames(const Fields& fields, const Field& field, std::vector<Gfn>& frames)
{
    ondemand::value value = field.value;
    auto list = opened<ondemand::array>(value, field.at, '[', "a list of frames", field.name());
    for (auto element : list) {
        if (const auto error = element.error()) refuse_malformed(text_, field.at, error);
        Field part{field.key, nullptr, &text_, element.value_unsafe()};
        part.at = part.value.raw_json_token().data();
        frames.emplace_back(part.number(kFrames - 1));
    }
    sorted_ = frames;
    std::sort(sorted_.begin(), sorted_.end());
    const auto twice = std::adjacent_find(sorted_.begin(), sorted_.end());
    if (twice != sorted_.end()) fields.refuse(field.key, fmt::format("frame {} is listed twice", *twice));
}

void RecordParser::Impl::read_p2m_set(Fields& fields, P2mSetRecord& set)
{
    set = P2mSetRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::gfn: set.gfn = Gfn{field.number(kFrames - 1)}; break;
        case Key::mfn: set.mfn = Mfn{field.number(kFrames - 1)}; break;
        case Key::count: set.count = field.integer(1, kFrames); break;
        case Key::type: {
            const auto type = parse_p2m_type(field.string("a P2M type (ram_rw, mmio_dm, ...)"));
            if (!type) field.refuse_value("is no P2M type (ram_rw, mmio_dm, ...)");
            set.type = *type;
            break;
        }
        case Key::access: set.access = mem_access(field); break;
        default: break;
        }
    }
    check_frames(fields, set.gfn, set.count);
    if (!set.mfn) return;
    check_frames(fields, Gfn{set.mfn->number()}, set.count);
    if (!has_frame(set.type)) {
        fields.refuse(Key::mfn, fmt::format("stands beside type \"{}\", which has no machine frame",
                                            name_of(set.type)));
    }
}

void RecordParser::Impl::read_p2m_clear(Fields& fields, P2mClearRecord& clear)
{
    clear = P2mClearRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::gfn: clear.gfn = Gfn{field.number(kFrames - 1)}; break;
        case Key::count: clear.count = field.integer(1, kFrames); break;
        default: break;
        }
    }
    check_frames(fields, clear.gfn, clear.count);
}

void RecordParser::Impl::read_log_dirty(Fields& fields, LogDirtyRecord& log)
{
    using Action = LogDirtyRecord::Action;
    if (log.expect) spare_.keep(std::move(*log.expect));
    log = LogDirtyRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::action: {
            constexpr std::string_view kAny = "an action (enable, peek, clean, disable)";
            const std::string name = field.string(kAny);
            const auto* const found =
                std::find(kLogDirtyActionNames.begin(), kLogDirtyActionNames.end(), name);
            if (found == kLogDirtyActionNames.end()) field.refuse_value(fmt::format("is not {}", kAny));
            log.action = static_cast<Action>(found - kLogDirtyActionNames.begin());
            break;
        }
        case Key::expect: read_frames(fields, field, log.expect.emplace(spare_.frames())); break;
        default: break;
        }
    }
    if (log.expect && log.action != Action::peek && log.action != Action::clean) {
        fields.refuse(Key::expect, "stands beside an action that reads nothing (only peek and clean do)");
    }
}

void RecordParser::Impl::read_mem_access(Fields& fields, MemAccessRecord& rights)
{
    using Target = MemAccessRecord::Target;
    rights = MemAccessRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::gfn: rights.gfn = Gfn{field.number(kFrames - 1)}; break;
        case Key::count: rights.count = field.integer(1, kFrames); break;
        case Key::default_all:
            if (!field.boolean()) field.refuse_value("can only be true");
            rights.target = Target::domain_default;
            break;
        case Key::access: rights.access = mem_access(field); break;
        case Key::listener: {
            constexpr std::string_view kAny = "\"attached\" or \"detached\"";
            const std::string name = field.string(kAny);
            if (name != "attached" && name != "detached") field.refuse_value(fmt::format("is not {}", kAny));
            rights.attached = name == "attached";
            break;
        }
        case Key::required: rights.required = field.boolean(); break;
        default: break;
        }
    }
    if (fields.has(Key::gfn)) {
        if (fields.has(Key::default_all)) fields.refuse(Key::default_all, "stands beside \"gfn\"");
        rights.target = Target::frames;
        check_frames(fields, rights.gfn, rights.count);
    } else if (fields.has(Key::count)) {
        fields.refuse(Key::count, "stands without \"gfn\"");
    }
    if (rights.target != Target::none) {
        fields.require(bit(Key::access), text_.whole().data());
        if (rights.target == Target::domain_default && !rights.access)
            fields.refuse(Key::access, "\"default\" cannot be the default");
    } else if (fields.has(Key::access)) {
        fields.refuse(Key::access, "stands without \"gfn\" or \"default\"");
    } else if (!rights.attached && !rights.required) {
        text_.refuse(text_.whole().data(),
                     "\"mem_access\" carries rights (\"gfn\" or \"default\", and \"access\") or settings "
                     "(\"listener\", \"required\"), or both",
                     name_of(Key::op));
    }
}

void RecordParser::Impl::read_secure_frames(Fields& fields, SecureFramesRecord& secure)
{
    secure.gfns.clear();
    for (Field field; fields.next(field);) {
        if (field.key == Key::gfns) read_frames(fields, field, secure.gfns);
    }
}

void RecordParser::Impl::read_secure_mode(Fields& fields, SecureModeRecord& mode)
{
    mode = SecureModeRecord{};
    for (Field field; fields.next(field);) {
        switch (field.key) {
        case Key::vcpu: mode.vcpu = vcpu(field); break;
        case Key::value: mode.on = field.flag(); break;
        default: break;
        }
    }
}

std::string RecordParser::Impl::read_name(Fields& fields)
{
    std::string name;
    for (Field field; fields.next(field);) {
        if (field.key != Key::name) continue;
        name = field.string("a string");
    }
    return name;
}

void RecordParser::Impl::read_end(Fields& fields, std::uint64_t records, EndRecord& end)
{
    for (Field field; fields.next(field);) {
        if (field.key != Key::records) continue;
        end.records = field.integer();
        if (end.records != records) {
            field.refuse(fmt::format("says {}, but {} records came before", end.records, records));
        }
    }
}

// ---- a record

Op RecordParser::Impl::op_of(const Field& field) const
{
    if (!field.is_string()) field.refuse_value("is not a string");
    const Op op = op_at(field.at + 1);
    if (op != Op::unknown) [[likely]]
        return op;
    std::string name = json_unquoted(text_.token(field.at));
    if (std::find(kLaterOps.begin(), kLaterOps.end(), name) != kLaterOps.end()) {
        field.refuse(fmt::format("op \"{}\" is not supported by this version", name));
    }
    const auto* const found = std::find(kOpNames.begin(), kOpNames.end(), name);  // it may have had escapes
    if (found == kOpNames.end()) {
        field.refuse(fmt::format("unknown op \"{}\"", shown(name)));
    }
    return static_cast<Op>(found - kOpNames.begin());
}

/// The op of a record that does not start with it; the object is then to be read from its start again.
Op RecordParser::Impl::find_op(ondemand::object object) const
{
    Fields fields{text_, object};
    for (Field field; fields.next(field);) {
        if (field.key == Key::op) return op_of(field);
    }
    text_.refuse(text_.whole().data(), "missing in a record", name_of(Key::op));
}

void RecordParser::Impl::parse(std::string_view text, std::uint64_t records, Record& record)
{
    text_ = Text{text};
    // A little more than is needed, so that records of growing length don't allocate each time.
    if (parser_.capacity() < text.size()) {
        const std::size_t capacity = std::bit_ceil(std::max(text.size(), std::size_t{1} << 16));
        if (const auto error = parser_.allocate(capacity)) refuse_malformed(text_, text.data(), error);
    }
    ondemand::document document;
    if (const auto error =
            parser_.iterate(text.data(), text.size(), text.size() + kTextPadding).get(document)) {
        if (error == simdjson::EMPTY) text_.refuse(text.data(), "an empty line");
        refuse_malformed(text_, text.data(), error);
    }
    ondemand::object object;
    if (const auto error = document.get_object().get(object)) {
        if (error == simdjson::INCORRECT_TYPE) text_.refuse(text.data(), "a record must be an object");
        refuse_malformed(text_, text.data(), error);
    }

    Fields fields{text_, object};
    Field first;
    if (!fields.next(first)) text_.refuse(text.data(), "missing in a record", name_of(Key::op));
    if (first.key == Key::op) [[likely]] {
        const Op op = op_of(first);
        first.consume_string("a string");
        read(op, fields, records, record);
    } else {
        if (const auto error = object.reset().error()) refuse_malformed(text_, text.data(), error);
        const Op op = find_op(object);
        if (const auto error = object.reset().error()) refuse_malformed(text_, text.data(), error);
        Fields again{text_, object};
        read(op, again, records, record);
    }

    const char* rest = nullptr;
    if (document.current_location().get(rest) != simdjson::OUT_OF_BOUNDS) {
        text_.refuse(rest == nullptr ? text.data() : rest, "text after the end of the record");
    }
}

/// What is left of the fields, or all of them: readers pass over `op`, which is known by now.
void RecordParser::Impl::read(Op op, Fields& fields, std::uint64_t records, Record& record)
{
    const Shape& shape = kShapes[static_cast<std::size_t>(op)];
    fields.expect(shape.allowed, op);
    switch (op) {
    case Op::read:
    case Op::write:
    case Op::fetch: read_access(op, fields, spare_.remake<AccessRecord>(record)); break;
    case Op::insn: read_instruction(fields, spare_.remake<InstructionRecord>(record)); break;
    case Op::set: read_set(fields, spare_.remake<SetRecord>(record)); break;
    case Op::mov_cr0:
    case Op::mov_cr3:
    case Op::mov_cr4:
    case Op::wrmsr:
    case Op::wrpkru:
    case Op::cpl:
    case Op::ac: read_register_write(op, fields, spare_.remake<RegisterWriteRecord>(record)); break;
    case Op::invlpg: read_invlpg(fields, spare_.remake<InvlpgRecord>(record)); break;
    case Op::invpcid: read_invpcid(fields, spare_.remake<InvpcidRecord>(record)); break;
    case Op::page: read_page(fields, spare_.remake<PageRecord>(record)); break;
    case Op::poke: {
        auto& poke = spare_.remake<PokeRecord>(record);
        std::uint64_t no_bits = 0;
        read_memory(fields, poke.gpa, poke.bytes, poke.value, no_bits);
        break;
    }
    case Op::expect_memory: {
        auto& expect = spare_.remake<ExpectMemoryRecord>(record);
        read_memory(fields, expect.gpa, expect.bytes, expect.value, expect.ignore);
        break;
    }
    case Op::reset: spare_.remake<ResetRecord>(record).name = read_name(fields); break;
    case Op::mark: spare_.remake<MarkRecord>(record).name = read_name(fields); break;
    case Op::shadow_blow:
        spare_.remake<ShadowBlowRecord>(record);
        for (Field field; fields.next(field);) {
        }
        break;
    case Op::p2m_set: read_p2m_set(fields, spare_.remake<P2mSetRecord>(record)); break;
    case Op::p2m_clear: read_p2m_clear(fields, spare_.remake<P2mClearRecord>(record)); break;
    case Op::log_dirty: read_log_dirty(fields, spare_.remake<LogDirtyRecord>(record)); break;
    case Op::mem_access: read_mem_access(fields, spare_.remake<MemAccessRecord>(record)); break;
    case Op::secure_frames: read_secure_frames(fields, spare_.remake<SecureFramesRecord>(record)); break;
    case Op::secure_mode: read_secure_mode(fields, spare_.remake<SecureModeRecord>(record)); break;
    case Op::end: read_end(fields, records, spare_.remake<EndRecord>(record)); break;
    case Op::unknown: break;
    }
    fields.require(shape.required, text_.whole().data());
}

RecordParser::RecordParser(const TraceHeader& header) : impl_{std::make_unique<Impl>(header)} {}

RecordParser::~RecordParser() = default;

void RecordParser::parse(std::string_view text, std::uint64_t records, Record& record)
{
    try {
        impl_->parse(text, records, record);
    } catch (const Fault&) {
        if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) throw;
        // Of two faults a syntax error is the one to tell, and nlohmann's parser knows its place.
        if (auto syntax = json_fault(text)) throw *std::move(syntax);
        throw;
    }
}

}  // namespace mmusim::trace
