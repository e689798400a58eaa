// SPDX-License-Identifier: Apache-2.0
//
// Damaged traces: whatever the damage, the reader comes to an end, with records or with one TraceError.
// And what it accepts can be written and read again.
#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/trace/trace_writer.hpp>

#include "support/catch.hpp"
#include "trace/json_tree.hpp"
#include "trace/record_parser.hpp"
#include "trace/text_buffer.hpp"
#include "trace/trace_text.hpp"

using namespace mmusim;
using namespace mmusim::test;

namespace {

const std::vector<std::string> kRecords{
    R"({"op":"read","la":"0x7ffc1040","size":8,"gpa":"0x1040","value":"0x1122334455667788"})",
    R"({"op":"write","va":"0xfff","seg":"fs","size":12,"bytes":"000102030405060708090a0b","rmw":true,"cpl":3})",
    R"({"op":"fetch","la":18446744073709551615,"vcpu":1,"gap":5,"fault":"0x14","cr2":"0x1000"})",
    R"({"op":"insn","la":"0x401000","size":2,"mem":[{"op":"read","la":1,"size":8},{"op":"write","la":2,"value":3}]})",
    R"({"op":"set","cr0":"0x80010011","cr3":"0x1000","ac":1,"segments":{"fs":{"base":"0x10","null":false}}})",
    R"({"op":"mov_cr3","value":"0x2000","fault":"gp"})",
    R"({"op":"wrmsr","msr":"0xc0000080","value":"0x500"})",
    R"({"op":"invpcid","type":0,"pcid":5,"la":"0x1000"})",
    R"({"op":"page","gfn":"0x10","width":8,"entries":[[0,"0x67"],[511,"0x8000000000000063"]]})",
    R"({"op":"expect_memory","gpa":"0x10","size":4,"value":"0x67","ignore":"0x20"})",
    R"({"op":"p2m_set","gfn":"0x10","mfn":"0x20","count":2,"type":"ram_ro","access":"rx"})",
    R"({"op":"log_dirty","action":"clean","expect":["0x10",17]})",
    R"({"op":"mem_access","gfn":"0x10","count":2,"access":"n2rwx","listener":"attached","required":false})",
    R"({"op":"write","la":1,"event":{"kind":"mem_access","gfn":"0x10","rights":"rw"}})",
    R"({"op":"mark","name":"a\"\u00e4\\"})",
};

std::string lines()
{
    std::string text = kHeaderLine;
    for (const std::string& record : kRecords) text += record + "\n";
    return text + "{\"op\":\"end\",\"records\":15}\n";
}

std::string document()
{
    std::string text = R"({"header": )" + kHeaderLine + R"(, "records": [)";
    for (std::size_t i = 0; i < kRecords.size(); ++i) text += (i == 0 ? "\n" : ",\n") + kRecords[i];
    return text + "]}";
}

/// Changes a few places: characters replaced, taken out, put in, pieces moved.
std::string damaged(std::string text, std::mt19937_64& random)
{
    static constexpr std::string_view kLikely = "{}[]\",:0123456789abcdefx-+.eE \\\n\ttrufalsnopg";
    const auto below = [&](std::size_t limit) { return static_cast<std::size_t>(random() % limit); };
    const auto character = [&] {
        return below(4) == 0 ? static_cast<char>(random()) : kLikely[below(kLikely.size())];
    };
    for (std::size_t changes = 1 + below(3); changes > 0 && !text.empty(); --changes) {
        const std::size_t at = below(text.size());
        switch (below(5)) {
        case 0: text[at] = character(); break;
        case 1: text.erase(at, 1 + below(4)); break;
        case 2: text.insert(at, 1, character()); break;
        case 3: text.insert(below(text.size()), text.substr(at, below(40))); break;
        default: text[at] = static_cast<char>(text[at] ^ (1 << below(8))); break;
        }
    }
    return text;
}

/// Reads a text that may be damaged; true if nothing was found wrong.
bool survives(const std::string& text)
{
    const Reading reading = read_text(text);
    if (reading.error) {
        CHECK(reading.what.find('\n') == std::string::npos);
        CHECK(reading.what.size() < 1000);
        return false;
    }
    std::string again = to_json_line(*reading.header) + "\n";
    for (const Record& record : reading.records) again += to_json_line(record) + "\n";
    const Reading second = read_text(again);
    CHECK(second.what.empty());
    CHECK((second.header == reading.header));
    CHECK((second.records == reading.records));
    return true;
}

void fuzz(const std::string& text, bool compressed, int rounds)
{
    const std::uint64_t seed = std::random_device{}();
    std::mt19937_64 random{seed};
    int accepted = 0;
    for (int round = 0; round < rounds; ++round) {
        const std::string bad = damaged(compressed ? packed(text) : text, random);
        INFO("seed " << seed << ", round " << round << ":\n" << bad);
        accepted += survives(bad) ? 1 : 0;
    }
    INFO("seed " << seed);
    CHECK(accepted < rounds);
}

}  // namespace

TEST_CASE("damaged lines", "[trace][fuzz]")
{
    CHECK(survives(lines()));
    fuzz(lines(), false, 3000);
}

TEST_CASE("damaged documents", "[trace][fuzz]")
{
    CHECK(survives(document()));
    fuzz(document(), false, 3000);
}

TEST_CASE("damaged zstd frames", "[trace][fuzz]")
{
    fuzz(lines(), true, 1000);
}

TEST_CASE("what is accepted as a record is JSON", "[trace][fuzz]")
{
    // simdjson reads only what it is asked for; nlohmann's parser reads everything.
    const std::uint64_t seed = std::random_device{}();
    std::mt19937_64 random{seed};
    TraceHeader header;
    header.vcpus = 2;
    header.ram = {{Gfn{0}, 0x100}};
    trace::RecordParser parser{header};
    Record record;
    int accepted = 0;
    for (int round = 0; round < 50000; ++round) {
        const std::string text = damaged(kRecords[static_cast<std::size_t>(round) % kRecords.size()], random);
        const std::string padded = text + std::string(trace::kTextPadding, '"');
        const bool valid = !trace::json_fault(text);
        try {
            parser.parse(std::string_view{padded}.substr(0, text.size()), 0, record);
            ++accepted;
            INFO("seed " << seed << ", round " << round << ": " << text);
            REQUIRE(valid);
        } catch (const trace::Fault& fault) {
            INFO("seed " << seed << ", round " << round << ": " << text);
            REQUIRE(fault.offset <= text.size());
            if (fault.message.starts_with("malformed JSON")) REQUIRE(!valid);
        }
    }
    CHECK(accepted > 100);
}

TEST_CASE("lines cut anywhere", "[trace][fuzz]")
{
    // A cut at a line's end is found only by `end`, or rather by its absence.
    const std::string text = lines();
    for (std::size_t size = 0; size < text.size(); ++size) {
        if (size == 0 || text[size - 1] != '\n') CHECK(read_text(text.substr(0, size)).error);
    }
}
