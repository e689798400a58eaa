// SPDX-License-Identifier: Apache-2.0
//
// Traces as a single document.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "trace/text_buffer.hpp"
#include "trace/trace_text.hpp"

using namespace mmusim;
using namespace mmusim::test;

namespace {

const std::string kHeader = kHeaderLine.substr(0, kHeaderLine.size() - 1);

std::string document(const std::string& records)
{
    return R"({"header":)" + kHeader + R"(,"records":)" + records + "}";
}

/// What a document is refused with. The place is marked by ^, which is taken out; "" if it is as marked.
std::string refusal(std::string text)
{
    const std::size_t place = text.find('^');
    REQUIRE(place != std::string::npos);
    text.erase(place, 1);
    const Reading reading = read_text(text, ".json");
    if (!reading.error) return "accepted";
    const std::string before = text.substr(0, place);
    const auto line = static_cast<std::uint64_t>(1 + std::count(before.begin(), before.end(), '\n'));
    CHECK(reading.error->place().line == line);
    CHECK(reading.error->place().column == before.size() - (before.rfind('\n') + 1) + 1);
    const std::string where = ":" + std::to_string(reading.error->place().line) + ":" +
                              std::to_string(reading.error->place().column) + ": ";
    return reading.what.substr(reading.what.find(where) + where.size());
}

}  // namespace

TEST_CASE("a document holds the same records", "[trace][document]")
{
    CHECK(read_text(document("[]")).what.empty());
    CHECK(read_text(document("[]") + "\n \n").what.empty());
    const Reading reading = read_text(
        document(R"([{"op":"mark","name":"a \"}]{[ \\"},{"op":"insn","la":1,"mem":[{"op":"read","la":2}]},)"
                 R"({"op":"end","records":2}])"));
    CHECK(reading.what.empty());
    REQUIRE(reading.records.size() == 3);
    CHECK(std::get<MarkRecord>(reading.records[0]).name == R"(a "}]{[ \)");
    CHECK(std::get<InstructionRecord>(reading.records[1]).operands.size() == 1);
    CHECK(read_text(packed(document("[]"))).what.empty());
}

TEST_CASE("a document may be pretty-printed", "[trace][document]")
{
    const std::string text = R"(

{
  "header" : {
    "format": "mmusim-trace", "version": 1, "name": "t",
    "guest": {"kind": "hvm", "physical_address_bits": 40, "ram": [{"first_gfn": 0, "count": 1}]},
    "meta": {
      "a": 1
    }
  },
  "records" : [
    {
      "op": "read",
      "la": "0x10"
    }
    ,
    { "op": "fetch", "la": 3 }
  ]
}
)";
    const ScratchFile file{text, ".json"};
    TraceReader reader{file.path()};
    CHECK(reader.place().line == 4);
    CHECK(reader.place().column == 14);
    CHECK(reader.header().meta.find('\n') == std::string::npos);
    Record record;
    REQUIRE(reader.next(record));
    CHECK(reader.place().line == 12);
    CHECK(reader.place().column == 5);
    REQUIRE(reader.next(record));
    CHECK(reader.place().line == 17);
    CHECK(std::get<AccessRecord>(record).kind == AccessKind::fetch);
    CHECK(!reader.next(record));
    CHECK(!reader.next(record));
}

TEST_CASE("what is wrong with a document is told with its place", "[trace][document]")
{
    const std::string read = R"({"op":"read","la":1})";
    CHECK(refusal(R"({^"records":[],"header":)" + kHeader + "}") ==
          "key \"records\": the header must come first");
    CHECK(refusal(R"({"header":)" + kHeader + "^}") == "key \"records\": missing in the document");
    CHECK(refusal(R"({"header":)" + kHeader + R"(,^"foo":1})") ==
          "key \"foo\": \"records\" should stand here");
    CHECK(refusal(R"({"header":)" + kHeader + R"(,^"header":1})") == "key \"header\": stands twice");
    CHECK(refusal(R"({"header":^1,"records":[]})") == "the header, an object should stand here");
    CHECK(refusal(R"({"header" ^"records":[]})") == "'\"' where ':' should stand");
    CHECK(refusal(R"({"header":)" + kHeader + R"( ^"records":[]})") == "'\"' where ',' should stand");
    CHECK(refusal(document("^{}")) == "'{' where the list of records should stand");
    CHECK(refusal(document("[^1]")) == "a record, an object should stand here");
    CHECK(refusal(document("[^]").substr(0, document("[^]").size() - 2)) ==
          "the document ends where a record should stand");
    CHECK(refusal(document("[" + read + ",^]")) == "a record, an object should stand here");
    CHECK(refusal(document("[" + read + " ^" + read + "]")) == "'{' where ',' or ']' should stand");
    CHECK(refusal(document("[" + read + "]") + "^x") == "text after the end of the document");
    CHECK(refusal(document("[" + read + "]") + "\n\n ^{}") == "text after the end of the document");
    CHECK(refusal(document("[" + read + R"(],^"foo":[])")) == "key \"foo\": is not a key of a trace");
    CHECK(refusal(document("[" + read + R"(],^"records":[])")) == "key \"records\": stands twice");
    CHECK(refusal(document("[" + read + ",\n  ^" + R"({"op":"read"}])")) ==
          "key \"la\": missing in the record \"read\"");
    CHECK(refusal(document("[" + read + ",\n\n{\n\n\"op\":\"read\", \"la\":\n  ^-1}]")) ==
          "key \"la\": -1 is not a non-negative integer");
    CHECK(refusal(document("[{\"op\":\"end\",\"records\":0}, ^" + read + "]")) ==
          "text after the \"end\" record");
    CHECK(refusal(R"({"header":{"format":"mmusim-trace",)"
                  "\n ^\"format\":1},\"records\":[]}") == "key \"format\": stands twice in one object");
}

TEST_CASE("a document cut anywhere is an error", "[trace][document]")
{
    const std::string text = document(R"([ {"op":"mark","name":"a\"}"}, {"op":"read","la":1} ] )");
    for (std::size_t size = 0; size < text.size(); ++size) {
        INFO(text.substr(0, size));
        CHECK(read_text(text.substr(0, size)).error);
    }
    CHECK(!read_text(text).error);
}

TEST_CASE("records of a document may be longer than a read", "[trace][document]")
{
    std::string records = "[";
    for (int i = 0; i < 4; ++i) {
        records +=
            R"({"op":"mark","name":")" + std::string(700000, '}') + R"(\"x"},)" + std::string(300000, ' ');
    }
    const Reading reading = read_text(document(records + R"({"op":"shadow_blow"}])"));
    CHECK(reading.what.empty());
    REQUIRE(reading.records.size() == 5);
    CHECK(std::get<MarkRecord>(reading.records[3]).name.size() == 700002);
}

TEST_CASE("a record without end is refused before it fills the memory", "[trace][document]")
{
    const std::string start = document("[").substr(0, document("[").size() - 1);
    for (const std::string& text : {start + "{" + std::string(std::size_t{40} << 20, '['),
                                    start + R"({"op":")" + std::string(std::size_t{40} << 20, 'x')}) {
        const Reading reading = read_text(text);
        CHECK(reading.what.ends_with("a record, an object is longer than 16 MiB"));
    }
}
