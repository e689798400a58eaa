// SPDX-License-Identifier: Apache-2.0
//
// Every rule on the form of a record: what is accepted, and what is refused with which key and where.
#include "trace/record_parser.hpp"

#include <memory>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "trace/text_buffer.hpp"

using namespace mmusim;
using trace::Fault;

namespace {

/// A parser with two vCPUs and 256 frames of RAM, and text with the padding that it needs.
class Parsing {
public:
    Parsing()
    {
        TraceHeader header;
        header.vcpus = 2;
        header.ram = {{Gfn{0}, 0x100}};
        parser_ = std::make_unique<trace::RecordParser>(header);
    }

    const Record& operator()(const std::string& text, std::uint64_t records = 0)
    {
        padded_ = text + std::string(trace::kTextPadding, '#');
        parser_->parse(std::string_view{padded_}.substr(0, text.size()), records, record_);
        return record_;
    }

private:
    std::unique_ptr<trace::RecordParser> parser_;
    std::string padded_;
    Record record_;
};

template <class T>
T parsed(const std::string& text)
{
    Parsing parse;
    INFO(text);
    try {
        const Record& record = parse(text);
        REQUIRE(std::holds_alternative<T>(record));
        return std::get<T>(record);
    } catch (const Fault& fault) {
        FAIL(fault.key << ": " << fault.message);
    }
    return {};
}

struct Refused {
    std::string text;  // the fault's place is marked by ^, which is taken out
    std::string key;
    std::string message;  // part of it
};

void check_refused(const std::vector<Refused>& cases)
{
    for (const Refused& refused : cases) {
        INFO(refused.text);
        std::string text = refused.text;
        const std::size_t place = text.find('^');
        REQUIRE(place != std::string::npos);
        text.erase(place, 1);
        Parsing parse;
        bool thrown = false;
        try {
            parse(text);
        } catch (const Fault& fault) {
            thrown = true;
            CHECK(fault.key == refused.key);
            CHECK(fault.offset == place);
            INFO("message: " << fault.message);
            CHECK(fault.message.find(refused.message) != std::string::npos);
            CHECK(fault.message.find('\n') == std::string::npos);
        }
        CHECK(thrown);
    }
}

std::vector<unsigned> bytes_of(const Content& content)
{
    std::vector<unsigned> bytes;
    for (const std::byte byte : content) bytes.push_back(std::to_integer<unsigned>(byte));
    return bytes;
}

}  // namespace

TEST_CASE("an access has its defaults", "[trace][record]")
{
    const auto access = parsed<AccessRecord>(R"({"op":"read","la":"0x7ffc1040"})");
    AccessRecord expected;
    expected.address = 0x7ffc1040;
    CHECK(access == expected);
}

TEST_CASE("an access takes every key", "[trace][record]")
{
    const auto access = parsed<AccessRecord>(
        R"({"op":"write","va":"0x10","seg":"gs","size":4,"value":"0xAbCdEf01","rmw":true,"implicit":true,)"
        R"("cpl":3,"vcpu":1,"gap":7,"gpa":"0x1000","gpa2":8192})");
    CHECK(access.kind == AccessKind::write);
    CHECK(access.segment == Segment::gs);
    CHECK(access.address == 0x10);
    CHECK(access.bytes == 4);
    CHECK(bytes_of(access.content) == std::vector<unsigned>{0x01, 0xef, 0xcd, 0xab});
    CHECK(access.rmw);
    CHECK(access.implicit);
    CHECK(access.cpl == 3);
    CHECK(access.vcpu == 1);
    CHECK(access.gap == 7);
    CHECK(access.gpa == 0x1000);
    CHECK(access.gpa2 == 8192);
    CHECK(!access.fault);
}

TEST_CASE("nothing of the record before is left in the next", "[trace][record]")
{
    Parsing parse;
    parse(R"({"op":"write","va":"0x10","seg":"gs","size":4,"value":1,"rmw":true,"implicit":true,"cpl":3,)"
          R"("vcpu":1,"gap":7,"fault":2,"cr2":5})");
    AccessRecord expected;
    expected.kind = AccessKind::fetch;
    expected.address = 1;
    CHECK(std::get<AccessRecord>(parse(R"({"op":"fetch","la":1})")) == expected);

    parse(R"({"op":"set","cr0":1,"ac":1,"segments":{"fs":{"base":1}}})");
    CHECK(std::get<SetRecord>(parse(R"({"op":"set"})")) == SetRecord{});
    parse(R"({"op":"reset","name":"a"})");
    CHECK(std::get<ResetRecord>(parse(R"({"op":"reset"})")) == ResetRecord{});
    parse(R"({"op":"mov_cr3","value":1,"gap":1,"vcpu":1,"fault":"gp"})");
    CHECK(std::get<RegisterWriteRecord>(parse(R"({"op":"mov_cr3","value":0})")) == RegisterWriteRecord{});
    parse(R"({"op":"page","gfn":1,"width":4,"entries":[[0,1]]})");
    CHECK(std::get<PageRecord>(parse(R"({"op":"page","gfn":0,"width":8,"entries":[]})")) == PageRecord{});
    parse(R"({"op":"expect_memory","gpa":8,"size":4,"value":1,"ignore":1})");
    CHECK(std::get<ExpectMemoryRecord>(parse(R"({"op":"expect_memory","gpa":0,"size":8,"value":0})")) ==
          ExpectMemoryRecord{});
}

TEST_CASE("the op may stand anywhere, and a name may have escapes", "[trace][record]")
{
    CHECK(parsed<AccessRecord>(R"({"la":"0x10","size":2,"op":"fetch"})").kind == AccessKind::fetch);
    CHECK(parsed<AccessRecord>(R"({"\u006fp":"\u0077rite","l\u0061":"0x10"})").kind == AccessKind::write);
    CHECK(parsed<AccessRecord>(R"({"la":"0x10","\u006fp":"fetch"})").kind == AccessKind::fetch);
}

TEST_CASE("numbers go up to 2^64 - 1, as integers and as strings", "[trace][record]")
{
    constexpr std::uint64_t kAll = ~std::uint64_t{0};
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":18446744073709551615})").address == kAll);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":"0xffffffffffffffff"})").address == kAll);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":"0xFFFFFFFFFFFFFFFF"})").address == kAll);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":"0x0000000000000000000010"})").address == 16);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":"0\u0078\u0031f"})").address == 31);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":0})").address == 0);
    CHECK(parsed<AccessRecord>(R"({ "op" : "read" , "la" : 9223372036854775808 } )").address ==
          std::uint64_t{1} << 63);
    const std::string text = R"(is not "0x" and hex digits)";
    check_refused({
        {R"({"op":"read","la":^18446744073709551616})", "la", "does not fit 64 bits"},
        {R"({"op":"read","la":^99999999999999999999999})", "la", "does not fit 64 bits"},
        {R"({"op":"read","la":^"0x10000000000000000"})", "la", "does not fit 64 bits"},
        {R"({"op":"read","la":^-1})", "la", "-1 is not a non-negative integer"},
        {R"({"op":"read","la":^-0})", "la", "is not a non-negative integer"},
        {R"({"op":"read","la":^1.0})", "la", "1.0 is not a non-negative integer"},
        {R"({"op":"read","la":^1e3})", "la", "is not a non-negative integer"},
        {R"({"op":"read","la":^"0x"})", "la", text},
        {R"({"op":"read","la":^""})", "la", text},
        {R"({"op":"read","la":^"1000"})", "la", text},
        {R"({"op":"read","la":^"0X10"})", "la", text},
        {R"({"op":"read","la":^"-0x10"})", "la", text},
        {R"({"op":"read","la":^"+0x10"})", "la", text},
        {R"({"op":"read","la":^" 0x10"})", "la", text},
        {R"({"op":"read","la":^"0x10 "})", "la", text},
        {R"({"op":"read","la":^"0x1g"})", "la", text},
        {R"({"op":"read","la":^null})", "la", "must be an integer or a \"0x...\" string"},
        {R"({"op":"read","la":^true})", "la", "must be an integer or a \"0x...\" string"},
        {R"({"op":"read","la":^[1]})", "la", "must be an integer or a \"0x...\" string"},
        {R"({"op":"read","la":^{"a":1}})", "la", "must be an integer or a \"0x...\" string"},
        {R"({"op":"read","la":1,"gap":^"0x1"})", "gap", "is not a non-negative integer"},
    });
}

TEST_CASE("the size of an access", "[trace][record]")
{
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":1,"size":1})").bytes == 1);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":1,"size":4096})").bytes == 4096);
    check_refused({
        {R"({"op":"read","la":1,"size":^0})", "size", "0 is out of range (1 to 4096)"},
        {R"({"op":"read","la":1,"size":^4097})", "size", "4097 is out of range (1 to 4096)"},
        {R"({"op":"read","la":1,"size":^-8})", "size", "-8 is not a non-negative integer"},
        {R"({"op":"read","la":1,"size":^"0x8"})", "size", "\"0x8\" is not a non-negative integer"},
        {R"({"op":"read","la":1,"size":^18446744073709551616})", "size", "does not fit 64 bits"},
    });
}

TEST_CASE("privilege and vCPU of an access", "[trace][record]")
{
    check_refused({
        {R"({"op":"read","la":1,"cpl":^4})", "cpl", "out of range (0 to 3)"},
        {R"({"op":"read","la":1,"cpl":^"0x1"})", "cpl", "is not a non-negative integer"},
        {R"({"op":"read","la":1,"vcpu":^2})", "vcpu", "out of range (0 to 1)"},
        {R"({"op":"set","vcpu":^2})", "vcpu", "out of range (0 to 1)"},
        {R"({"op":"invlpg","la":1,"vcpu":^65536})", "vcpu", "out of range (0 to 1)"},
        {R"({"op":"read","la":1,"rmw":^1})", "rmw", "is neither true nor false"},
        {R"({"op":"read","la":1,"implicit":^"true"})", "implicit", "is neither true nor false"},
        {R"({"op":"fetch","la":1,^"rmw":true})", "rmw", "has no meaning on a fetch"},
    });
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":1,"rmw":true})").rmw);
    CHECK(!parsed<AccessRecord>(R"({"op":"fetch","la":1,"rmw":false})").rmw);
}

TEST_CASE("an address is linear or in a segment", "[trace][record]")
{
    CHECK(parsed<AccessRecord>(R"({"op":"read","va":1})").segment == Segment::ds);
    for (std::size_t i = 0; i < kSegmentNames.size(); ++i) {
        const auto text = R"({"op":"read","va":1,"seg":")" + std::string{kSegmentNames[i]} + "\"}";
        CHECK(parsed<AccessRecord>(text).segment == static_cast<Segment>(i));
    }
    check_refused({
        {R"(^{"op":"read"})", "la", "missing in the record \"read\""},
        {R"(^{"op":"read","size":8})", "la", "missing"},
        {R"({"op":"read","la":1,^"va":1})", "va", "stands beside \"la\""},
        {R"({"op":"read",^"va":1,"la":1})", "va", "stands beside \"la\""},
        {R"({"op":"read","la":1,^"seg":"ds"})", "seg", "stands without \"va\""},
        {R"({"op":"read","va":1,"seg":^"hs"})", "seg", "is not a segment"},
        {R"({"op":"read","va":1,"seg":^3})", "seg", "is not a segment"},
    });
}

TEST_CASE("what an access stores or expects to read", "[trace][record]")
{
    CHECK(bytes_of(parsed<AccessRecord>(R"({"op":"read","la":1,"size":2,"value":258})").content) ==
          std::vector<unsigned>{2, 1});
    CHECK(bytes_of(parsed<AccessRecord>(R"({"op":"write","value":"0xffffffffffffffff","la":1,"size":8})")
                       .content) == std::vector<unsigned>(8, 0xff));
    const auto wide =
        parsed<AccessRecord>(R"({"op":"write","bytes":"000102030405060708090A0b","la":1,"size":12})");
    CHECK(bytes_of(wide.content) == std::vector<unsigned>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    const auto page = parsed<AccessRecord>(R"({"op":"write","la":1,"size":4096,"bytes":")" +
                                           std::string(8192, 'e') + "\"}");
    CHECK(page.content.size() == 4096);
    check_refused({
        {R"({"op":"write","la":1,"size":1,^"value":256})", "value", "0x100 does not fit 1 bytes"},
        {R"({"op":"write","la":1,"size":7,^"value":"0x100000000000000"})", "value", "does not fit 7 bytes"},
        {R"({"op":"write","la":1,"size":9,^"value":1})", "value", "needs a size of at most 8, here it is 9"},
        {R"({"op":"write","la":1,"size":2,^"bytes":"00"})", "bytes", "has 2 hex digits, size 2 needs 4"},
        {R"({"op":"write","la":1,"size":2,^"bytes":"00000"})", "bytes", "has 5 hex digits"},
        {R"({"op":"write","la":1,^"bytes":""})", "bytes", "has 0 hex digits"},
        {R"({"op":"write","la":1,"bytes":^"0g"})", "bytes", "is not a string of hex digits"},
        {R"({"op":"write","la":1,"bytes":^10})", "bytes", "is not a string of hex digits"},
        {R"({"op":"write","la":1,"value":1,^"bytes":"01"})", "bytes", "stands beside \"value\""},
        {R"({"op":"write","la":1,^"bytes":"01","value":1})", "bytes", "stands beside \"value\""},
        {R"({"op":"fetch","la":1,^"value":1})", "value", "has no meaning on a fetch"},
        {R"({"op":"fetch","la":1,^"bytes":"01"})", "bytes", "has no meaning on a fetch"},
        {R"({"op":"read","la":1,^"value":1,"fault":0})", "value", "stands beside \"fault\""},
    });
}

TEST_CASE("what an access expects", "[trace][record]")
{
    const auto fault = parsed<AccessRecord>(R"({"op":"read","la":1,"cr2":"0x5","fault":"0x1d"})").fault;
    REQUIRE(fault);
    CHECK(fault->vector == Vector::page_fault);
    CHECK(fault->error_code == 0x1d);
    CHECK(fault->cr2 == 5);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":1,"fault":0})").fault == ExpectedFault{});
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":1,"fault":"gp"})").fault->vector ==
          Vector::general_protection);
    CHECK(parsed<AccessRecord>(R"({"op":"write","la":1,"value":1,"fault":"ss"})").fault->vector ==
          Vector::stack_fault);
    CHECK(parsed<AccessRecord>(R"({"op":"read","la":"0xfff","size":2,"gpa":1,"gpa2":2})").gpa2 == 2);
    CHECK(parsed<AccessRecord>(R"({"op":"read","va":"0xff0","size":2,"gpa2":2})").gpa2 == 2);
    check_refused({
        {R"({"op":"read","la":1,"fault":^"pf"})", "fault", "is no error code, \"gp\" or \"ss\""},
        {R"({"op":"read","la":1,"fault":^"gpx"})", "fault", "is no error code"},
        {R"({"op":"read","la":1,"fault":^""})", "fault", "is no error code"},
        {R"({"op":"read","la":1,"fault":^"0x100000000"})", "fault", "out of range"},
        {R"({"op":"read","la":1,"fault":^4294967296})", "fault", "out of range"},
        {R"({"op":"read","la":1,"fault":^null})", "fault", "must be an integer"},
        {R"({"op":"read","la":1,^"cr2":1})", "cr2", "stands without \"fault\""},
        {R"({"op":"read","la":1,"fault":"gp",^"cr2":1})", "cr2", "no page fault"},
        {R"({"op":"read","la":1,^"gpa":1,"fault":0})", "gpa", "stands beside \"fault\""},
        {R"({"op":"read","la":"0xfff","size":2,"fault":0,^"gpa2":1})", "gpa2", "stands beside \"fault\""},
        {R"({"op":"read","la":"0xffe","size":2,^"gpa2":1})", "gpa2", "within one page"},
    });
}

TEST_CASE("an access expects an event", "[trace][record]")
{
    const auto access = parsed<AccessRecord>(
        R"({"op":"write","la":1,"event":{"kind":"mem_access","gfn":"0x30","rights":"rw"},"gpa":1})");
    CHECK(access.event == MemAccessEventExpectation{Gfn{0x30}, {true, true, false}});
    CHECK(access.gpa == 1);
    CHECK(parsed<AccessRecord>(
              R"({"op":"fetch","la":1,"event":{"rights":"x","gfn":7,"kind":"mem_access"},"fault":20})")
              .event == MemAccessEventExpectation{Gfn{7}, {false, false, true}});
    const auto instruction = parsed<InstructionRecord>(
        R"({"op":"insn","la":1,"event":{"kind":"mem_access","gfn":1,"rights":"xr"},)"
        R"("mem":[{"op":"read","la":1},{"op":"write","la":2,)"
        R"("event":{"kind":"mem_access","gfn":2,"rights":"w"}}]})");
    CHECK(instruction.fetch.event == MemAccessEventExpectation{Gfn{1}, {true, false, true}});
    CHECK(!instruction.operands[0].event);
    CHECK(instruction.operands[1].event == MemAccessEventExpectation{Gfn{2}, {false, true, false}});
    Parsing parse;
    parse(R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":"r"}})");
    CHECK(!std::get<AccessRecord>(parse(R"({"op":"read","la":1})")).event);
    check_refused({
        {R"({"op":"read","la":1,"event":^5})", "event", "must be an object"},
        {R"({"op":"read","la":1,"event":^{}})", "gfn", "missing in an \"event\""},
        {R"({"op":"read","la":1,"event":^{"gfn":1,"rights":"w"}})", "kind", "missing in an \"event\""},
        {R"({"op":"read","la":1,"event":^{"kind":"mem_access","gfn":1}})", "rights", "missing"},
        {R"({"op":"read","la":1,"event":{"kind":^"paging","gfn":1,"rights":"w"}})", "kind",
         "is not \"mem_access\""},
        {R"({"op":"read","la":1,"event":{"kind":^1,"gfn":1,"rights":"w"}})", "kind", "is not \"mem_access\""},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":^""}})", "rights",
         "is not one or more of r, w and x"},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":^"rwr"}})", "rights",
         "is not one or more of r, w and x"},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":^"rwz"}})", "rights",
         "is not one or more of r, w and x"},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":^7}})", "rights",
         "is not one or more of r, w and x"},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":^"0x10000000000","rights":"w"}})", "gfn",
         "is out of range"},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access",^"la":1,"gfn":1,"rights":"w"}})", "la",
         "is not a key of an \"event\""},
        {R"({"op":"read","la":1,"event":{"kind":"mem_access","gfn":1,"rights":"w",^"gfn":1}})", "gfn",
         "stands twice"},
        {R"({"op":"mov_cr3","value":1,^"event":{}})", "event", "is not a key of the record"},
    });
}

TEST_CASE("an instruction has its operands", "[trace][record]")
{
    const auto none = parsed<InstructionRecord>(R"({"op":"insn","la":"0x401000","size":2,"mem":[]})");
    CHECK(none.operands.empty());
    CHECK(none.fetch.kind == AccessKind::fetch);
    CHECK(none.fetch.bytes == 2);

    const auto instruction = parsed<InstructionRecord>(
        R"({"op":"insn","mem":[{"op":"read","la":1,"size":8},{"va":2,"op":"write","value":7,"cpl":0}],)"
        R"("la":"0x401000","vcpu":1,"cpl":3,"gap":4})");
    CHECK(instruction.fetch.gap == 4);
    REQUIRE(instruction.operands.size() == 2);
    CHECK(instruction.operands[0].kind == AccessKind::read);
    CHECK(instruction.operands[0].vcpu == 1);
    CHECK(instruction.operands[0].cpl == 3);
    CHECK(instruction.operands[1].kind == AccessKind::write);
    CHECK(instruction.operands[1].cpl == 0);
    CHECK(instruction.operands[1].segment == Segment::ds);
    CHECK(bytes_of(instruction.operands[1].content) == std::vector<unsigned>{7});

    check_refused({
        {R"(^{"op":"insn","la":1})", "mem", "missing in the record \"insn\""},
        {R"(^{"op":"insn","mem":[]})", "la", "missing"},
        {R"({"op":"insn","la":1,"mem":^{}})", "mem", "must be an array"},
        {R"({"op":"insn","la":1,"mem":[^1]})", "mem", "must be an object"},
        {R"({"op":"insn","la":1,"mem":[^{"op":"read"}]})", "la", "missing in an operand"},
        {R"({"op":"insn","la":1,"mem":[^{"la":1}]})", "op", "missing in an operand"},
        {R"({"op":"insn","la":1,"mem":[{"op":^"fetch","la":1}]})", "op", "is not an operand"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1,^"vcpu":1}]})", "vcpu",
         "is not a key of an operand"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1,^"gap":1}]})", "gap",
         "is not a key of an operand"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1,"size":^0}]})", "size", "out of range"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1,^"la":1}]})", "la", "stands twice in one object"},
        {R"({"op":"insn","la":1,^"value":1,"mem":[]})", "value", "is not a key of the record \"insn\""},
        {R"({"op":"insn","la":1,^"rmw":true,"mem":[]})", "rmw", "is not a key of the record \"insn\""},
        {R"({"op":"insn","la":1,"fault":0,"mem":[^{"op":"read","la":1,"fault":2}]})", "fault",
         "one fault at most"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1,"fault":0},^{"op":"read","la":2,"fault":2}]})",
         "fault", "one fault at most"},
    });
}

TEST_CASE("registers that are set silently", "[trace][record]")
{
    CHECK(parsed<SetRecord>(R"({"op":"set"})") == SetRecord{});
    const auto set = parsed<SetRecord>(
        R"({"op":"set","vcpu":1,"cr0":"0x80010011","cr3":"0x1000","cr4":32,"efer":"0x500","cpl":3,"ac":1,)"
        R"("pkru":"0xffffffff","pkrs":2,"segments":{"fs":{"base":"0x10","limit":"0xffff","null":false,)"
        R"("expand_down":true,"big":false},"cs":{}}})");
    CHECK(set.vcpu == 1);
    CHECK(set.cr0 == 0x80010011);
    CHECK(set.cr3 == 0x1000);
    CHECK(set.cr4 == 32);
    CHECK(set.efer == 0x500);
    CHECK(set.cpl == 3);
    CHECK(set.ac == true);
    CHECK(set.pkru == 0xffffffff);
    CHECK(set.pkrs == 2);
    REQUIRE(set.segments.size() == 2);
    CHECK(set.segments[0] == SegmentUpdate{Segment::fs, 0x10, 0xffff, false, true, false});
    CHECK(set.segments[1] == SegmentUpdate{Segment::cs, {}, {}, {}, {}, {}});
    CHECK(parsed<SetRecord>(R"({"op":"set","ac":false})").ac == false);
    check_refused({
        {R"({"op":"set",^"gap":1})", "gap", "is not a key of the record \"set\""},
        {R"({"op":"set","ac":^2})", "ac", "out of range"},
        {R"({"op":"set","cpl":^4})", "cpl", "out of range"},
        {R"({"op":"set","pkru":^"0x100000000"})", "pkru", "out of range"},
        {R"({"op":"set","cr0":^true})", "cr0", "must be an integer"},
        {R"({"op":"set","segments":^[]})", "segments", "must be an object"},
        {R"({"op":"set","segments":{^"hs":{}}})", "hs", "is not a key of \"segments\""},
        {R"({"op":"set","segments":{"fs":^1}})", "fs", "must be an object"},
        {R"({"op":"set","segments":{"fs":{^"selector":1}}})", "selector", "is not a key of a segment"},
        {R"({"op":"set","segments":{"fs":{},^"fs":{}}})", "fs", "stands twice in one object"},
        {R"({"op":"set","segments":{"fs":{"base":1,^"base":1}}})", "base", "stands twice in one object"},
        {R"({"op":"set","segments":{"fs":{"limit":^"0x100000000"}}})", "limit", "out of range"},
        {R"({"op":"set","segments":{"fs":{"big":^1}}})", "big", "is neither true nor false"},
    });
}

TEST_CASE("registers that the guest writes", "[trace][record]")
{
    using Target = RegisterWriteRecord::Target;
    const std::vector<std::pair<std::string, Target>> ops{
        {"mov_cr0", Target::cr0}, {"mov_cr3", Target::cr3}, {"mov_cr4", Target::cr4},
        {"wrpkru", Target::pkru}, {"cpl", Target::cpl},     {"ac", Target::ac},
    };
    for (const auto& [op, target] : ops) {
        const std::string start = R"({"op":")" + op + "\"";
        const auto write =
            parsed<RegisterWriteRecord>(start + R"(,"value":1,"vcpu":1,"gap":9,"fault":"gp"})");
        CHECK(write.target == target);
        CHECK(write.value == 1);
        CHECK(write.vcpu == 1);
        CHECK(write.gap == 9);
        REQUIRE(write.fault);
        CHECK(write.fault->vector == Vector::general_protection);
        check_refused({
            {"^" + start + "}", "value", "missing in the record \"" + op + "\""},
            {start + R"(,"value":1,"fault":^0})", "fault", "is not \"gp\""},
            {start + R"(,"value":1,"fault":^"ss"})", "fault", "is not \"gp\""},
            {start + R"(,"value":1,^"msr":1})", "msr", "is not a key of"},
            {start + R"(,"value":1,^"cr2":1})", "cr2", "is not a key of"},
        });
    }
    const auto wrmsr = parsed<RegisterWriteRecord>(R"({"op":"wrmsr","msr":"0xc0000080","value":"0x500"})");
    CHECK(wrmsr.target == Target::msr);
    CHECK(wrmsr.msr == 0xc0000080);
    CHECK(wrmsr.value == 0x500);
    CHECK(parsed<RegisterWriteRecord>(R"({"op":"ac","value":true})").value == 1);
    CHECK(parsed<RegisterWriteRecord>(R"({"op":"mov_cr3","value":"0x8000000000000000"})").value ==
          std::uint64_t{1} << 63);
    check_refused({
        {R"(^{"op":"wrmsr","value":1})", "msr", "missing"},
        {R"(^{"op":"wrmsr","msr":1})", "value", "missing"},
        {R"({"op":"wrmsr","value":1,"msr":^"0x100000000"})", "msr", "out of range"},
        {R"({"op":"wrpkru","value":^"0x100000000"})", "value", "out of range"},
        {R"({"op":"cpl","value":^4})", "value", "out of range"},
        {R"({"op":"ac","value":^2})", "value", "out of range"},
    });
}

TEST_CASE("INVLPG and INVPCID", "[trace][record]")
{
    const auto invlpg = parsed<InvlpgRecord>(R"({"op":"invlpg","la":"0x1000","vcpu":1,"gap":2})");
    CHECK(invlpg.address == 0x1000);
    CHECK(invlpg.vcpu == 1);
    CHECK(invlpg.gap == 2);
    const auto invpcid =
        parsed<InvpcidRecord>(R"({"op":"invpcid","type":0,"pcid":5,"la":"0x1000","fault":"gp"})");
    CHECK(invpcid.type == 0);
    CHECK(invpcid.pcid == 5);
    CHECK(invpcid.address == 0x1000);
    CHECK(invpcid.fault);
    CHECK(parsed<InvpcidRecord>(R"({"op":"invpcid","type":1,"pcid":4096})").pcid == 4096);
    CHECK(parsed<InvpcidRecord>(R"({"op":"invpcid","type":2})").type == 2);
    CHECK(parsed<InvpcidRecord>(R"({"op":"invpcid","type":"0xff"})").type == 255);
    check_refused({
        {R"(^{"op":"invlpg"})", "la", "missing"},
        {R"({"op":"invlpg",^"va":1})", "va", "is not a key of"},
        {R"({"op":"invlpg","la":1,"fault":^14})", "fault", "is not \"gp\""},
        {R"(^{"op":"invpcid"})", "type", "missing"},
        {R"(^{"op":"invpcid","type":1})", "pcid", "missing"},
        {R"(^{"op":"invpcid","type":0,"pcid":1})", "la", "missing"},
    });
}

TEST_CASE("the content of a page", "[trace][record]")
{
    const auto page = parsed<PageRecord>(
        R"({"op":"page","gfn":"0xff","width":4,"entries":[[0,"0xffffffff"],[1023,5],[7,0]]})");
    CHECK(page.gfn == Gfn{0xff});
    CHECK(page.width == 4);
    using Entries = decltype(page.entries);
    CHECK(page.entries == Entries{{0, 0xffffffff}, {1023, 5}, {7, 0}});
    CHECK(parsed<PageRecord>(R"({"entries":[[511,"0xffffffffffffffff"]],"width":8,"gfn":0,"op":"page"})")
              .entries == Entries{{511, ~std::uint64_t{0}}});
    check_refused({
        {R"(^{"op":"page","width":8,"entries":[]})", "gfn", "missing"},
        {R"(^{"op":"page","gfn":1,"entries":[]})", "width", "missing"},
        {R"(^{"op":"page","gfn":1,"width":8})", "entries", "missing"},
        {R"({"op":"page","gfn":1,"width":^2,"entries":[]})", "width", "is neither 4 nor 8"},
        {R"({"op":"page","gfn":1,"width":^4294967304,"entries":[]})", "width", "is neither 4 nor 8"},
        {R"({"op":"page","gfn":1,"width":^"0x8","entries":[]})", "width", "is not a non-negative integer"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[^[512,1]]})", "entries",
         "index 512 is out of range (0 to 511)"},
        {R"({"op":"page","gfn":1,"width":4,"entries":[[^1024,1]]})", "entries", "out of range (0 to 1023)"},
        {R"({"op":"page","gfn":1,"width":4,"entries":[[1,1],^[2,"0x100000000"]]})", "entries",
         "does not fit 4 bytes"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[[1,1],[2,1],^[1,1]]})", "entries",
         "index 1 is listed twice"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[^[1]]})", "entries", "an entry is [index, value]"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[^[]]})", "entries", "an entry is [index, value]"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[^[1,2,3]]})", "entries", "an entry is [index, value]"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[^5]})", "entries", "must be a list of [index, value]"},
        {R"({"op":"page","gfn":1,"width":8,"entries":^"0x5"})", "entries", "must be an array"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[[^"0x1",2]]})", "entries",
         "is not a non-negative integer"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[[1,^"2"]]})", "entries",
         "is not \"0x\" and hex digits"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[],^"vcpu":0})", "vcpu", "is not a key of"},
    });
}

TEST_CASE("memory changed or compared from outside", "[trace][record]")
{
    const auto poke = parsed<PokeRecord>(R"({"op":"poke","gpa":"0xfffff","size":1,"value":255})");
    CHECK(poke.gpa == GuestPhysical{0xfffff});
    CHECK(poke.bytes == 1);
    CHECK(poke.value == 255);
    const auto expect = parsed<ExpectMemoryRecord>(
        R"({"op":"expect_memory","gpa":3,"size":8,"value":"0x1","ignore":"0x60"})");
    CHECK(expect.gpa == GuestPhysical{3});
    CHECK(expect.value == 1);
    CHECK(expect.ignore == 0x60);
    check_refused({
        {R"(^{"op":"poke","size":1,"value":1})", "gpa", "missing"},
        {R"(^{"op":"poke","gpa":1,"value":1})", "size", "missing"},
        {R"(^{"op":"poke","gpa":1,"size":1})", "value", "missing"},
        {R"({"op":"poke","gpa":1,"size":1,"value":1,^"ignore":1})", "ignore", "is not a key of"},
        {R"({"op":"poke","gpa":1,"size":^3,"value":1})", "size", "is not 1, 2, 4 or 8"},
        {R"({"op":"poke","gpa":1,"size":^0,"value":1})", "size", "is not 1, 2, 4 or 8"},
        {R"({"op":"poke","gpa":1,"size":^16,"value":1})", "size", "is not 1, 2, 4 or 8"},
        {R"({"op":"poke","gpa":1,"size":1,^"value":256})", "value", "does not fit 1 bytes"},
        {R"({"op":"expect_memory","gpa":1,"size":4,"value":1,^"ignore":"0x100000000"})", "ignore",
         "does not fit"},
        {R"({"op":"poke",^"gpa":"0xff9","size":8,"value":1})", "gpa", "cross the end of a frame"},
    });
}

TEST_CASE("cases, phases and the end", "[trace][record]")
{
    CHECK(parsed<ResetRecord>(R"({"op":"reset"})").name.empty());
    CHECK(parsed<ResetRecord>(R"({"op":"reset","name":"v\u00e4\"\n"})").name == "v\xc3\xa4\"\n");
    CHECK(parsed<MarkRecord>(R"({"name":"roi","op":"mark"})").name == "roi");
    parsed<ShadowBlowRecord>(R"({"op":"shadow_blow"})");
    Parsing parse;
    CHECK(std::get<EndRecord>(parse(R"({"op":"end","records":7})", 7)).records == 7);
    CHECK(std::get<EndRecord>(parse(R"({"records":7,"op":"end"})", 7)).records == 7);
    check_refused({
        {R"(^{"op":"mark"})", "name", "missing in the record \"mark\""},
        {R"({"op":"mark","name":^5})", "name", "5 is not a string"},
        {R"({"op":"reset","name":^null})", "name", "null is not a string"},
        {R"({"op":"shadow_blow",^"vcpu":0})", "vcpu", "is not a key of"},
        {R"(^{"op":"end"})", "records", "missing"},
        {R"({"op":"end","records":^7})", "records", "says 7, but 0 records came before"},
        {R"({"op":"end","records":^"0x0"})", "records", "is not a non-negative integer"},
    });
}

TEST_CASE("changes of the P2M", "[trace][record]")
{
    P2mSetRecord set;
    set.gfn = Gfn{0x30};
    CHECK(parsed<P2mSetRecord>(R"({"op":"p2m_set","gfn":"0x30"})") == set);
    CHECK(parsed<P2mSetRecord>(R"({"op":"p2m_set","gfn":"0x30","type":"ram_rw","access":"default"})") == set);
    set.mfn = Mfn{0x1234};
    set.count = 16;
    set.type = P2mType::ram_ro;
    set.access = MemAccess::rx2rw;
    CHECK(parsed<P2mSetRecord>(
              R"({"access":"rx2rw","type":"ram_ro","mfn":"0x1234","count":16,"gfn":48,"op":"p2m_set"})") ==
          set);
    for (unsigned i = 0; i < kP2mTypes; ++i) {
        const auto type = static_cast<P2mType>(i);
        const std::string text = R"({"op":"p2m_set","gfn":1,"type":")" + std::string{name_of(type)} + "\"}";
        CHECK(parsed<P2mSetRecord>(text).type == type);
    }
    for (unsigned i = 0; i < kMemAccessTypes; ++i) {
        const auto access = static_cast<MemAccess>(i);
        const std::string text =
            R"({"op":"p2m_set","gfn":1,"access":")" + std::string{name_of(access)} + "\"}";
        CHECK(parsed<P2mSetRecord>(text).access == access);
    }
    CHECK(parsed<P2mSetRecord>(R"({"op":"p2m_set","gfn":"0xffffffffff"})").gfn == Gfn{0xffffffffff});
    CHECK(parsed<P2mClearRecord>(R"({"op":"p2m_clear","gfn":5})") == P2mClearRecord{Gfn{5}, 1});
    CHECK(parsed<P2mClearRecord>(R"({"op":"p2m_clear","count":7,"gfn":"0x5"})") == P2mClearRecord{Gfn{5}, 7});
    Parsing parse;
    parse(R"({"op":"p2m_set","gfn":1,"mfn":2,"count":3,"type":"ram_ro","access":"n"})");
    CHECK(std::get<P2mSetRecord>(parse(R"({"op":"p2m_set","gfn":0})")) == P2mSetRecord{});
    check_refused({
        {R"(^{"op":"p2m_set"})", "gfn", "missing in the record \"p2m_set\""},
        {R"({"op":"p2m_set","gfn":^"0x10000000000"})", "gfn", "is out of range"},
        {R"({"op":"p2m_set","gfn":^"abc"})", "gfn", "is not \"0x\" and hex digits"},
        {R"({"op":"p2m_set","gfn":1,"mfn":^"0x10000000000"})", "mfn", "is out of range"},
        {R"({"op":"p2m_set","gfn":1,"mfn":^null})", "mfn", "must be an integer"},
        {R"({"op":"p2m_set","gfn":1,"count":^0})", "count", "is out of range"},
        {R"({"op":"p2m_set","gfn":1,"count":^"0x1"})", "count", "is not a non-negative integer"},
        {R"({"op":"p2m_set","gfn":"0xffffffffff",^"count":2})", "count", "end beyond 52 address bits"},
        {R"({"op":"p2m_set","gfn":1,"mfn":"0xffffffffff",^"count":2})", "count",
         "end beyond 52 address bits"},
        {R"({"op":"p2m_set","gfn":1,"type":^"ram"})", "type", "\"ram\" is no P2M type"},
        {R"({"op":"p2m_set","gfn":1,"type":^0})", "type", "0 is not a P2M type"},
        {R"({"op":"p2m_set","gfn":1,"access":^"wr"})", "access", "\"wr\" is no access type"},
        {R"({"op":"p2m_set","gfn":1,"access":^7})", "access", "7 is not an access type"},
        {R"({"op":"p2m_set","gfn":1,^"mfn":2,"type":"mmio_dm"})", "mfn",
         "stands beside type \"mmio_dm\", which has no machine frame"},
        {R"({"op":"p2m_set","gfn":1,"type":"populate_on_demand",^"mfn":2})", "mfn", "no machine frame"},
        {R"({"op":"p2m_set","gfn":1,^"vcpu":0})", "vcpu", "is not a key of"},
        {R"(^{"op":"p2m_clear","count":1})", "gfn", "missing in the record \"p2m_clear\""},
        {R"({"op":"p2m_clear","gfn":"0xffffffffff",^"count":2})", "count", "end beyond 52 address bits"},
        {R"({"op":"p2m_clear","gfn":1,^"type":"mmio_dm"})", "type", "is not a key of"},
    });
}

TEST_CASE("log-dirty", "[trace][record]")
{
    using Action = LogDirtyRecord::Action;
    CHECK(parsed<LogDirtyRecord>(R"({"op":"log_dirty","action":"enable"})") == LogDirtyRecord{});
    CHECK(parsed<LogDirtyRecord>(R"({"op":"log_dirty","action":"disable"})").action == Action::disable);
    CHECK(!parsed<LogDirtyRecord>(R"({"op":"log_dirty","action":"peek"})").expect);
    const auto peek = parsed<LogDirtyRecord>(R"({"op":"log_dirty","action":"peek","expect":["0x30",7]})");
    CHECK(peek.action == Action::peek);
    CHECK(peek.expect == std::vector{Gfn{0x30}, Gfn{7}});
    const auto clean = parsed<LogDirtyRecord>(R"({"expect":[],"action":"clean","op":"log_dirty"})");
    CHECK(clean.action == Action::clean);
    CHECK(clean.expect == std::vector<Gfn>{});
    Parsing parse;
    parse(R"({"op":"log_dirty","action":"peek","expect":[1]})");
    CHECK(std::get<LogDirtyRecord>(parse(R"({"op":"log_dirty","action":"enable"})")) == LogDirtyRecord{});
    check_refused({
        {R"(^{"op":"log_dirty"})", "action", "missing in the record \"log_dirty\""},
        {R"({"op":"log_dirty","action":^"on"})", "action", "\"on\" is not an action"},
        {R"({"op":"log_dirty","action":^1})", "action", "1 is not an action"},
        {R"({"op":"log_dirty","action":"enable",^"expect":[]})", "expect", "reads nothing"},
        {R"({"op":"log_dirty",^"expect":[],"action":"disable"})", "expect", "reads nothing"},
        {R"({"op":"log_dirty","action":"peek","expect":^7})", "expect", "must be a list of frames"},
        {R"({"op":"log_dirty","action":"peek","expect":[1,^"x"]})", "expect", "is not \"0x\" and hex digits"},
        {R"({"op":"log_dirty","action":"peek",^"expect":[1,2,"0x1"]})", "expect",
         "frame 0x1 is listed twice"},
        {R"({"op":"log_dirty","action":"peek",^"gfn":1})", "gfn", "is not a key of"},
    });
}

TEST_CASE("mem_access", "[trace][record]")
{
    using Target = MemAccessRecord::Target;
    MemAccessRecord rights;
    rights.target = Target::frames;
    rights.gfn = Gfn{0x30};
    rights.access = MemAccess::rx;
    CHECK(parsed<MemAccessRecord>(R"({"op":"mem_access","gfn":"0x30","access":"rx"})") == rights);
    rights.count = 5;
    rights.access.reset();
    rights.attached = true;
    rights.required = false;
    CHECK(parsed<MemAccessRecord>(R"({"op":"mem_access","gfn":"0x30","count":5,"access":"default",)"
                                  R"("listener":"attached","required":false})") == rights);
    MemAccessRecord usual;
    usual.target = Target::domain_default;
    usual.access = MemAccess::n2rwx;
    CHECK(parsed<MemAccessRecord>(R"({"op":"mem_access","default":true,"access":"n2rwx"})") == usual);
    MemAccessRecord settings;
    settings.attached = false;
    CHECK(parsed<MemAccessRecord>(R"({"op":"mem_access","listener":"detached"})") == settings);
    settings = {};
    settings.required = true;
    CHECK(parsed<MemAccessRecord>(R"({"op":"mem_access","required":true})") == settings);
    check_refused({
        {R"(^{"op":"mem_access"})", "op", "carries rights"},
        {R"(^{"op":"mem_access","gfn":1})", "access", "missing in the record \"mem_access\""},
        {R"(^{"op":"mem_access","default":true,"required":true})", "access", "missing"},
        {R"({"op":"mem_access",^"access":"r"})", "access", "stands without \"gfn\" or \"default\""},
        {R"({"op":"mem_access",^"access":"r","required":true})", "access", "stands without"},
        {R"({"op":"mem_access",^"count":2,"access":"r","default":true})", "count", "stands without \"gfn\""},
        {R"({"op":"mem_access",^"count":2,"required":true})", "count", "stands without \"gfn\""},
        {R"({"op":"mem_access","gfn":1,^"default":true,"access":"r"})", "default", "stands beside \"gfn\""},
        {R"({"op":"mem_access","default":^false,"access":"r"})", "default", "can only be true"},
        {R"({"op":"mem_access","default":^1,"access":"r"})", "default", "is neither true nor false"},
        {R"({"op":"mem_access","default":true,^"access":"default"})", "access", "cannot be the default"},
        {R"({"op":"mem_access","gfn":1,"access":^"rwxr"})", "access", "is no access type"},
        {R"({"op":"mem_access","gfn":"0xffffffffff",^"count":2,"access":"r"})", "count", "end beyond"},
        {R"({"op":"mem_access","gfn":1,"count":^0,"access":"r"})", "count", "is out of range"},
        {R"({"op":"mem_access","listener":^true})", "listener", "is not \"attached\" or \"detached\""},
        {R"({"op":"mem_access","listener":^"none"})", "listener", "is not \"attached\" or \"detached\""},
        {R"({"op":"mem_access","required":^1})", "required", "is neither true nor false"},
        {R"({"op":"mem_access","required":true,^"vcpu":0})", "vcpu", "is not a key of"},
    });
}

TEST_CASE("secure frames and secure mode", "[trace][record]")
{
    CHECK(parsed<SecureFramesRecord>(R"({"op":"secure_frames","gfns":["0x30",7,"0xff"]})").gfns ==
          std::vector<Gfn>{Gfn{0x30}, Gfn{7}, Gfn{0xff}});
    CHECK(parsed<SecureFramesRecord>(R"({"gfns":[],"op":"secure_frames"})").gfns.empty());
    CHECK(parsed<SecureModeRecord>(R"({"op":"secure_mode","vcpu":1,"value":1})") ==
          SecureModeRecord{1, true});
    CHECK(parsed<SecureModeRecord>(R"({"op":"secure_mode","value":true})") == SecureModeRecord{0, true});
    CHECK(parsed<SecureModeRecord>(R"({"op":"secure_mode","value":0})") == SecureModeRecord{});
    check_refused({
        {R"(^{"op":"secure_frames"})", "gfns", "missing in the record \"secure_frames\""},
        {R"({"op":"secure_frames","gfns":^5})", "gfns", "must be a list of frames"},
        {R"({"op":"secure_frames","gfns":[1,^"0x10000000000"]})", "gfns", "is out of range"},
        {R"({"op":"secure_frames","gfns":[^"abc"]})", "gfns", "is not \"0x\" and hex digits"},
        {R"({"op":"secure_frames","gfns":[1,^-2]})", "gfns", "is not a non-negative integer"},
        {R"({"op":"secure_frames",^"gfns":[1,2,"0x1"]})", "gfns", "frame 0x1 is listed twice"},
        {R"({"op":"secure_frames","gfns":[],^"vcpu":0})", "vcpu", "is not a key of"},
        {R"(^{"op":"secure_mode"})", "value", "missing in the record \"secure_mode\""},
        {R"({"op":"secure_mode","value":^2})", "value", "is out of range"},
        {R"({"op":"secure_mode","value":^null})", "value", "must be an integer"},
        {R"({"op":"secure_mode","value":1,"vcpu":^2})", "vcpu", "is out of range (0 to 1)"},
        {R"({"op":"secure_mode","value":1,^"gap":2})", "gap", "is not a key of"},
    });
}

TEST_CASE("ops that are not there, or not yet", "[trace][record]")
{
    check_refused({
        {R"({"op":^"frob","la":1})", "op", "unknown op \"frob\""},
        {R"({"op":^"Read","la":1})", "op", "unknown op \"Read\""},
        {R"({"op":^"","la":1})", "op", "unknown op \"\""},
        {R"({"op":^5})", "op", "5 is not a string"},
        {R"({"op":^null})", "op", "null is not a string"},
        {R"(^{"la":1})", "op", "missing in a record"},
        {R"(^{})", "op", "missing in a record"},
        {R"({"op":"read","la":1,^"op":"read"})", "op", "stands twice in one object"},
        {R"({"op":"read",^"op":"read","la":1})", "op", "stands twice in one object"},
        {R"({"la":1,"op":"read",^"op":"write"})", "op", "stands twice in one object"},
        {R"({"op":"read","la":1,^"la":1})", "la", "stands twice in one object"},
        {R"({"op":"read","la":1,^"\u006ca":1})", "\\u006ca", "stands twice in one object"},
        {R"({"op":"read","la":1,^"foo":[1,{"a":2}]})", "foo", "is not a key of the record \"read\""},
        {R"({"op":"read","la":1,^"lax":1})", "lax", "is not a key of the record \"read\""},
        {R"({"op":"read","la":1,^"l":1})", "l", "is not a key of the record \"read\""},
        {R"({"op":"read","la":1,^"":1})", "", "is not a key of the record \"read\""},
        {R"({^"foo":1,"op":"read","la":1})", "foo", "is not a key of a record"},
        {R"({"op":"read","la":1,^"cr0":1})", "cr0", "is not a key of the record \"read\""},
        {R"({"op":"read","la":1,^"mem":[]})", "mem", "is not a key of the record \"read\""},
    });
    for (const std::string op : {"frame", "mmu_update", "update_va_mapping", "mmuext", "multicall", "set_gdt",
                                 "set_ldt", "update_descriptor", "guest_mode", "expect_frame"}) {
        check_refused({{R"({"op":^")" + op + R"(","gfn":1})", "op",
                        "op \"" + op + "\" is not supported by this version"}});
    }
}

TEST_CASE("malformed JSON anywhere is found", "[trace][record]")
{
    check_refused({
        {"^", "", "an empty line"},
        {"^  \r", "", "an empty line"},
        {"^[1]", "", "a record must be an object"},
        {"^42", "", "a record must be an object"},
        {R"(^"op")", "", "a record must be an object"},
        {R"({"op":"read","la":1^)", "", "malformed JSON"},
        {R"({"op":"read","la":^})", "", "malformed JSON"},
        {R"({"op":"read" "la^":1})", "", "malformed JSON"},
        {R"({"op":"read","la" ^1})", "", "malformed JSON"},
        {R"({"op":"read","la":1,^})", "", "malformed JSON"},
        {R"({"op":"read","la":1} ^{})", "", "malformed JSON"},
        {R"({"op":"read","la":1}^})", "", "malformed JSON"},
        {R"({"op":"read","la":0^1})", "", "malformed JSON"},
        {R"({"op":"read","la":1,"rmw":tru^x})", "", "malformed JSON"},
        {R"({"op":"read",^la:1})", "", "malformed JSON"},
        {R"({"op":"insn","la":1,"mem":[{"op":"read","la":1} ^{"op":"read","la":1}]})", "", "malformed JSON"},
        {R"({"op":"insn","la":1,"mem":[^}]})", "", "malformed JSON"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[[1,2],^]})", "", "malformed JSON"},
        {R"({"op":"page","gfn":1,"width":8,"entries":[[1 ^2]]})", "", "malformed JSON"},
        {R"({"op":"mark","name":"a\^q"})", "", "malformed JSON"},
        {R"({"op":"mark","name":"\ud800^"})", "", "malformed JSON"},
        {"{\"op\":\"mark\",\"name\":\"a^\tb\"}", "", "malformed JSON"},
        {"{\"op\":\"mark\",\"name\":\"a^\xff\"}", "", "malformed JSON"},
        {std::string{"{\"op\":\"mark\",\"name\":\"a^\0\"}", 26}, "", "malformed JSON"},
        {R"({"op":"mark","name":"a^)", "", "malformed JSON"},
    });
    // Deep nesting ends in an error like any other.
    for (const std::string bracket : {"[", "{\"a\":"}) {
        std::string deep = R"({"op":"read","la":)";
        for (int i = 0; i < 100000; ++i) deep += bracket;
        Parsing parse;
        CHECK_THROWS_AS(parse(deep), Fault);
        CHECK_THROWS_AS(parse(R"({"x":)" + deep.substr(18)), Fault);
    }
}

TEST_CASE("long text is cut short in a message", "[trace][record]")
{
    Parsing parse;
    try {
        parse(R"({"op":"read",")" + std::string(100000, 'k') + R"(":1})");
        FAIL("accepted");
    } catch (const Fault& fault) {
        CHECK(fault.key.size() < 100);
        CHECK(fault.message.size() < 200);
    }
}

TEST_CASE("storage is used again from record to record", "[trace][record]")
{
    TraceHeader header;
    header.ram = {{Gfn{0}, 0x100}};
    trace::RecordParser parser{header};
    Record record;
    const auto parse = [&](std::string text) {
        const std::size_t size = text.size();
        text.append(trace::kTextPadding, ' ');
        parser.parse(std::string_view{text}.substr(0, size), 0, record);
    };
    const std::string operands =
        R"({"op":"insn","la":1,"mem":[{"op":"read","la":1},{"op":"read","la":2},{"op":"read","la":3}]})";
    const std::string access = R"({"op":"read","la":1})";
    const std::string wide = R"({"op":"write","la":1,"size":100,"bytes":")" + std::string(200, 'a') + "\"}";
    const std::string page = R"({"op":"page","gfn":1,"width":8,"entries":[[1,2],[2,3]]})";
    const std::string dirty = R"({"op":"log_dirty","action":"peek","expect":[1,2,3]})";
    const std::string secure = R"({"op":"secure_frames","gfns":[3,2]})";

    parse(operands);
    const void* const operand_storage = std::get<InstructionRecord>(record).operands.data();
    parse(wide);
    const void* const content_storage = std::get<AccessRecord>(record).content.data();
    parse(page);
    const void* const entry_storage = std::get<PageRecord>(record).entries.data();
    parse(dirty);
    const void* const frame_storage = std::get<LogDirtyRecord>(record).expect->data();
    for (int i = 0; i < 3; ++i) {
        parse(operands);
        CHECK(std::get<InstructionRecord>(record).operands.data() == operand_storage);
        parse(access);
        parse(R"({"op":"shadow_blow"})");
        parse(wide);
        CHECK(std::get<AccessRecord>(record).content.data() == content_storage);
        parse(access);
        parse(wide);
        CHECK(std::get<AccessRecord>(record).content.data() == content_storage);
        parse(page);
        CHECK(std::get<PageRecord>(record).entries.data() == entry_storage);
        parse(dirty);
        CHECK(std::get<LogDirtyRecord>(record).expect->data() == frame_storage);
        parse(R"({"op":"log_dirty","action":"peek"})");
        parse(secure);
        CHECK(std::get<SecureFramesRecord>(record).gfns.data() == frame_storage);
    }
}
