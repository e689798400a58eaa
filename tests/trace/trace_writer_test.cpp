// SPDX-License-Identifier: Apache-2.0
//
// The writer: exact text, and that what it writes is read back as it was, for records of every kind.
#include <mmusim/trace/trace_writer.hpp>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "support/catch.hpp"
#include "trace/trace_text.hpp"

using namespace mmusim;
using namespace mmusim::test;

namespace {

TraceHeader small_header()
{
    TraceHeader header;
    header.name = "a \"name\"\n\xc3\xa4";
    header.vcpus = 4;
    header.ram = {{Gfn{0x10}, 0x100}};
    return header;
}

/// Random records, within the rules of the format.
class Generator {
public:
    explicit Generator(std::uint64_t seed) : random_{seed} {}

    Record record()
    {
        switch (below(19)) {
        case 0: return instruction();
        case 1: return set();
        case 2: return register_write();
        case 3: {
            InvlpgRecord record;
            record.address = number();
            common(record);
            return record;
        }
        case 4: {
            InvpcidRecord record;
            record.type = below(5);
            record.pcid = number();
            record.address = number();
            common(record);
            return record;
        }
        case 5: return page();
        case 6: {
            const unsigned bytes = 1u << below(4);
            return PokeRecord{cell(bytes), bytes, fitting(bytes)};
        }
        case 7: {
            const unsigned bytes = 1u << below(4);
            return ExpectMemoryRecord{cell(bytes), bytes, fitting(bytes), fitting(bytes)};
        }
        case 8: return ResetRecord{name()};
        case 9: return MarkRecord{name()};
        case 10: return ShadowBlowRecord{};
        case 11: return SecureModeRecord{static_cast<std::uint16_t>(below(4)), chance(2)};
        case 12: {
            SecureFramesRecord record;
            for (std::uint64_t gfn = 0x10 + below(4); gfn < 0x110 && !chance(3); gfn += 1 + below(40))
                record.gfns.push_back(Gfn{gfn});
            return record;
        }
        case 13: {
            P2mSetRecord set{frame(), 1 + below(9), {}, static_cast<P2mType>(below(kP2mTypes)), {}};
            if (has_frame(set.type) && chance(2)) set.mfn = Mfn{frame().number()};
            if (chance(2)) set.access = mem_access();
            return set;
        }
        case 14: return P2mClearRecord{frame(), 1 + below(9)};
        case 15: {
            LogDirtyRecord log;
            log.action = static_cast<LogDirtyRecord::Action>(below(4));
            const bool reads =
                log.action == LogDirtyRecord::Action::peek || log.action == LogDirtyRecord::Action::clean;
            if (!reads || chance(3)) return log;
            log.expect.emplace();
            for (std::uint64_t gfn = below(4); !chance(4); gfn += 1 + below(40))
                log.expect->push_back(Gfn{gfn});
            return log;
        }
        case 16: return mem_access_record();
        default: return access(true);
        }
    }

private:
    /// Some with room for eight more below 52 bits.
    Gfn frame() { return Gfn{(number() & ((1ull << 40) - 1)) & ~15ull}; }
    MemAccess mem_access() { return static_cast<MemAccess>(below(kMemAccessTypes)); }
    MemAccessRecord mem_access_record()
    {
        using Target = MemAccessRecord::Target;
        MemAccessRecord rights;
        rights.target = static_cast<Target>(below(3));
        if (rights.target == Target::frames) {
            rights.gfn = frame();
            rights.count = 1 + below(9);
        }
        if (rights.target == Target::domain_default || (rights.target == Target::frames && chance(2)))
            rights.access = mem_access();
        if (chance(2)) rights.attached = chance(2);
        if (rights.target == Target::none || chance(2)) rights.required = chance(2);
        return rights;
    }

    std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
    bool chance(unsigned one_in) { return below(one_in) == 0; }
    /// Numbers of all lengths, the extremes among them.
    std::uint64_t number()
    {
        if (chance(10)) return ~std::uint64_t{0};
        return random_() >> below(64) >> below(2);
    }
    std::uint64_t fitting(unsigned bytes)
    {
        return bytes >= 8 ? number() : number() & ((1ull << (8 * bytes)) - 1);
    }
    GuestPhysical cell(unsigned bytes)
    {
        return Gfn{0x10 + below(0x100)}.address(below(kPageBytes - bytes + 1));
    }
    std::string name()
    {
        static const std::vector<std::string> kParts{"a",        "roi",  "\"", "\\", "\n",
                                                     "\xc3\xa4", "\x01", " ",  "/"};
        std::string text;
        for (std::uint64_t i = below(6); i > 0; --i) text += kParts[below(kParts.size())];
        return text;
    }
    template <class T>
    void common(T& record)
    {
        record.vcpu = static_cast<std::uint16_t>(below(4));
        if (chance(2)) record.gap = number();
        if (chance(4)) record.fault = ExpectedFault{Vector::general_protection, 0, {}};
    }

    AccessRecord access(bool may_fault)
    {
        AccessRecord access;
        access.kind = static_cast<AccessKind>(below(3));
        access.address = number();
        if (chance(3)) access.segment = static_cast<Segment>(below(6));
        access.bytes = static_cast<std::uint32_t>(chance(4) ? 1 + below(4096) : 1 + below(16));
        access.rmw = access.kind != AccessKind::fetch && chance(5);
        access.implicit = chance(5);
        if (chance(3)) access.cpl = static_cast<std::uint8_t>(below(4));
        access.vcpu = static_cast<std::uint16_t>(below(4));
        if (chance(3)) access.gap = number();
        if (access.kind != AccessKind::fetch && chance(2)) {
            access.content.resize(access.bytes);
            for (std::byte& byte : access.content) byte = static_cast<std::byte>(below(256));
        }
        if (may_fault && chance(4) && (access.kind == AccessKind::write || access.content.empty())) {
            static constexpr Vector kVectors[]{Vector::page_fault, Vector::general_protection,
                                               Vector::stack_fault};
            access.fault.emplace();
            access.fault->vector = kVectors[below(3)];
            if (access.fault->vector == Vector::page_fault) {
                access.fault->error_code = static_cast<std::uint32_t>(number());
                if (chance(2)) access.fault->cr2 = number();
            }
        } else {
            if (chance(2)) access.gpa = number();
            const bool crosses = (access.address & kPageOffsetMask) + access.bytes > kPageBytes;
            if (crosses && chance(2)) access.gpa2 = number();
        }
        if (chance(5)) {
            const std::uint64_t rights = 1 + below(7);
            access.event = {frame(), {(rights & 1) != 0, (rights & 2) != 0, (rights & 4) != 0}};
        }
        return access;
    }

    InstructionRecord instruction()
    {
        InstructionRecord instruction;
        instruction.fetch = access(chance(2));
        instruction.fetch.kind = AccessKind::fetch;
        instruction.fetch.rmw = false;
        instruction.fetch.content.clear();
        bool faulted = instruction.fetch.fault.has_value();
        for (std::uint64_t i = below(5); i > 0; --i) {
            AccessRecord operand = access(!faulted);
            if (operand.kind == AccessKind::fetch) operand.kind = AccessKind::read;
            faulted = faulted || operand.fault;
            operand.gap = 0;
            operand.vcpu = instruction.fetch.vcpu;
            if (!operand.cpl) operand.cpl = instruction.fetch.cpl;
            instruction.operands.push_back(operand);
        }
        return instruction;
    }

    SetRecord set()
    {
        SetRecord set;
        set.vcpu = static_cast<std::uint16_t>(below(4));
        for (auto member : {&SetRecord::cr0, &SetRecord::cr3, &SetRecord::cr4, &SetRecord::efer}) {
            if (chance(2)) set.*member = number();
        }
        for (auto member : {&SetRecord::pkru, &SetRecord::pkrs}) {
            if (chance(2)) set.*member = static_cast<std::uint32_t>(number());
        }
        if (chance(2)) set.cpl = static_cast<std::uint8_t>(below(4));
        if (chance(2)) set.ac = chance(2);
        for (unsigned i = 0; i < 6; ++i) {
            if (!chance(4)) continue;
            SegmentUpdate update;
            update.segment = static_cast<Segment>(i);
            if (chance(2)) update.base = number();
            if (chance(2)) update.limit = static_cast<std::uint32_t>(number());
            for (auto member : {&SegmentUpdate::null, &SegmentUpdate::expand_down, &SegmentUpdate::big}) {
                if (chance(2)) update.*member = chance(2);
            }
            set.segments.push_back(update);
        }
        return set;
    }

    RegisterWriteRecord register_write()
    {
        using Target = RegisterWriteRecord::Target;
        RegisterWriteRecord write;
        write.target = static_cast<Target>(below(7));
        switch (write.target) {
        case Target::pkru: write.value = static_cast<std::uint32_t>(number()); break;
        case Target::cpl: write.value = below(4); break;
        case Target::ac: write.value = below(2); break;
        default: write.value = number(); break;
        }
        if (write.target == Target::msr) write.msr = static_cast<std::uint32_t>(number());
        common(write);
        return write;
    }

    PageRecord page()
    {
        PageRecord page;
        page.gfn = Gfn{0x10 + below(0x100)};
        page.width = chance(2) ? 4 : 8;
        std::set<std::uint32_t> indices;
        for (std::uint64_t i = below(20); i > 0; --i) {
            indices.insert(static_cast<std::uint32_t>(below(kPageBytes / page.width)));
        }
        for (const std::uint32_t index : indices) page.entries.emplace_back(index, fitting(page.width));
        return page;
    }

    std::mt19937_64 random_;
};

}  // namespace

TEST_CASE("the text of a record", "[trace][writer]")
{
    AccessRecord access;
    access.address = 0x7ffc1040;
    CHECK(to_json_line(Record{access}) == R"({"op":"read","la":"0x7ffc1040"})");
    access.kind = AccessKind::write;
    access.bytes = 2;
    access.content = {std::byte{0x34}, std::byte{0x12}};
    access.cpl = 3;
    access.gpa = 0x1040;
    CHECK(to_json_line(Record{access}) ==
          R"({"op":"write","la":"0x7ffc1040","size":2,"value":"0x1234","cpl":3,"gpa":"0x1040"})");
    access.segment = Segment::fs;
    access.gpa.reset();
    access.fault = ExpectedFault{Vector::page_fault, 6, 0x10};
    CHECK(
        to_json_line(Record{access}) ==
        R"({"op":"write","va":"0x7ffc1040","seg":"fs","size":2,"value":"0x1234","cpl":3,"fault":6,"cr2":"0x10"})");
    CHECK(to_json_line(Record{PageRecord{Gfn{0x1000}, 8, {{0, 0x67}, {511, 0}}}}) ==
          R"({"op":"page","gfn":"0x1000","width":8,"entries":[[0,"0x67"],[511,"0x0"]]})");
    CHECK(to_json_line(Record{MarkRecord{"a\"b"}}) == R"({"op":"mark","name":"a\"b"})");
    access.fault.reset();
    access.event = {Gfn{0x30}, {true, true, false}};
    CHECK(to_json_line(Record{access}) ==
          R"({"op":"write","va":"0x7ffc1040","seg":"fs","size":2,"value":"0x1234","cpl":3,)"
          R"("event":{"kind":"mem_access","gfn":"0x30","rights":"rw"}})");
    CHECK(to_json_line(Record{P2mSetRecord{Gfn{0x30}, 2, Mfn{0x50}, P2mType::ram_ro, MemAccess::rx}}) ==
          R"({"op":"p2m_set","gfn":"0x30","mfn":"0x50","count":2,"type":"ram_ro","access":"rx"})");
    CHECK(to_json_line(Record{P2mSetRecord{}}) == R"({"op":"p2m_set","gfn":"0x0"})");
    CHECK(to_json_line(Record{P2mClearRecord{Gfn{0x30}, 2}}) ==
          R"({"op":"p2m_clear","gfn":"0x30","count":2})");
    LogDirtyRecord log;
    log.action = LogDirtyRecord::Action::clean;
    CHECK(to_json_line(Record{log}) == R"({"op":"log_dirty","action":"clean"})");
    log.expect = {Gfn{1}, Gfn{0x20}};
    CHECK(to_json_line(Record{log}) == R"({"op":"log_dirty","action":"clean","expect":["0x1","0x20"]})");
    MemAccessRecord rights;
    rights.target = MemAccessRecord::Target::frames;
    rights.count = 3;
    rights.attached = rights.required = true;
    CHECK(
        to_json_line(Record{rights}) ==
        R"({"op":"mem_access","gfn":"0x0","count":3,"access":"default","listener":"attached","required":true})");
    rights = {};
    rights.target = MemAccessRecord::Target::domain_default;
    rights.access = MemAccess::n;
    CHECK(to_json_line(Record{rights}) == R"({"op":"mem_access","default":true,"access":"n"})");
    CHECK(to_json_line(Record{EndRecord{5}}) == R"({"op":"end","records":5})");
}

TEST_CASE("the text of a header", "[trace][writer]")
{
    TraceHeader header;
    header.name = "n";
    header.cpuid.nx = header.cpuid.la57 = true;
    header.ram = {{Gfn{0}, 0x100}};
    header.meta = R"({"a": 1})";
    CHECK(
        to_json_line(header) ==
        R"({"format":"mmusim-trace","version":1,"name":"n","guest":{"kind":"hvm","vcpus":1,"vendor":"intel",)"
        R"("physical_address_bits":40,"features":["nx","la57"],"ram":[{"first_gfn":"0x0","count":"0x100"}],)"
        R"("p2m":{"layout":"identity"}},"meta":{"a": 1}})");
}

TEST_CASE("headers are read back as they were written", "[trace][writer]")
{
    TraceHeader header = small_header();
    header.fetch = TraceHeader::Fetch::block;
    header.cpuid.vendor = Vendor::amd;
    header.cpuid.physical_address_bits = 52;
    header.cpuid.pcid = header.cpuid.invpcid = true;
    header.ram = {{Gfn{0x100}, 0x10}, {Gfn{0}, 0x10}};
    header.meta = R"({"recorder":"x","n":[1,2.50,{"a":null}]})";
    P2mLayout offset;
    offset.kind = P2mLayout::Kind::offset;
    offset.offset = 0x1000;
    P2mLayout shuffled;
    shuffled.kind = P2mLayout::Kind::shuffled;
    shuffled.seed = ~std::uint64_t{0};
    P2mLayout listed;
    listed.kind = P2mLayout::Kind::listed;
    listed.entries = {{Gfn{0}, Mfn{0x55}, 0x10}, {Gfn{0x100}, Mfn{0}, 0x10}};
    for (const P2mLayout& layout : {P2mLayout{}, offset, shuffled, listed}) {
        header.p2m = layout;
        const Reading reading = read_text(to_json_line(header) + "\n");
        INFO(reading.what);
        REQUIRE(reading.header);
        CHECK((*reading.header == header));
    }
}

TEST_CASE("records of every kind are read back as they were written", "[trace][writer]")
{
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    Generator generator{seed};
    std::vector<Record> records;
    for (int i = 0; i < 20000; ++i) records.push_back(generator.record());
    for (const std::string_view suffix : {".jsonl", ".jsonl.zst"}) {
        const ScratchPath file{suffix};
        TraceWriter writer{file.path(), small_header()};
        for (const Record& record : records) writer.write(record);
        writer.finish();

        Reading reading = read_file(file.path());
        INFO(reading.what);
        REQUIRE(reading.header);
        CHECK((*reading.header == small_header()));
        REQUIRE(reading.records.size() == records.size() + 1);
        CHECK(std::get<EndRecord>(reading.records.back()).records == records.size());
        reading.records.pop_back();
        const auto [ours, theirs] = std::mismatch(records.begin(), records.end(), reading.records.begin());
        if (ours != records.end()) {
            INFO(to_json_line(*ours));
            INFO(to_json_line(*theirs));
            FAIL("differ");
        }
        CHECK((content_of(file.path()).starts_with("\x28\xb5\x2f\xfd") == (suffix == ".jsonl.zst")));
    }
}

TEST_CASE("a trace that was copied ends as the original", "[trace][writer]")
{
    const std::string text = kHeaderLine + "{\"op\":\"shadow_blow\"}\n{\"op\":\"end\",\"records\":1}\n";
    const Reading original = read_text(text);
    const ScratchPath copy{".jsonl"};
    TraceWriter writer{copy.path(), *original.header};
    for (const Record& record : original.records) writer.write(record);
    writer.finish();
    CHECK((read_file(copy.path()).records == original.records));
}

TEST_CASE("a trace that was not finished is recognised", "[trace][writer]")
{
    for (const std::string_view suffix : {".jsonl", ".jsonl.zst"}) {
        for (const int records : {0, 1, 100, 20000}) {
            const ScratchPath file{suffix};
            {
                TraceWriter writer{file.path(), small_header()};
                for (int i = 0; i < records; ++i) writer.write(MarkRecord{"x"});
            }
            CHECK(read_file(file.path()).error);
        }
    }
}

TEST_CASE("a file that can't be written is an error", "[trace][writer]")
{
    CHECK_THROWS_AS(TraceWriter("/nowhere/at/all.jsonl", small_header()), std::system_error);
}
