// SPDX-License-Identifier: Apache-2.0
//
// The header: defaults, and every rule with the key and the place that its message names.
#include "trace/header_parser.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace mmusim;
using trace::Fault;
using trace::parse_header;

namespace {

/// A header around the guest's members.
std::string with_guest(const std::string& guest)
{
    return R"({"format":"mmusim-trace","version":1,"name":"n","guest":{"kind":"hvm",)" + guest + "}}";
}

const std::string kRam = R"("ram":[{"first_gfn":"0x0","count":"0x100"}])";

std::string with_p2m(const std::string& p2m)
{
    return with_guest(R"("physical_address_bits":40,)" + kRam + R"(,"p2m":)" + p2m);
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
        bool thrown = false;
        try {
            static_cast<void>(parse_header(text));
        } catch (const Fault& fault) {
            thrown = true;
            INFO("message: " << fault.message);
            CHECK(fault.key == refused.key);
            CHECK(fault.offset == place);
            CHECK(fault.message.find(refused.message) != std::string::npos);
        }
        CHECK(thrown);
    }
}

}  // namespace

TEST_CASE("a header takes every key", "[trace][header]")
{
    const TraceHeader header = parse_header(
        R"({"format": "mmusim-trace", "version": 1, "name": "linux \u00e4", "fetch": "block",
            "guest": {"kind": "hvm", "vcpus": 1024, "vendor": "amd", "physical_address_bits": 52,
                      "features": ["nx", "pse", "pse36", "pge", "pcid", "invpcid", "smep", "smap", "pku", "pks",
                                   "page1gb", "la57"],
                      "ram": [{"first_gfn": "0x100", "count": 16}, {"first_gfn": 0, "count": "0x10"}],
                      "p2m": {"layout": "offset", "offset": "0x1000"}},
            "meta": {"recorder": "a \"b\"", "nested": {"n": [1, 2.5e3, null, true]}}})");
    CHECK(header.name == "linux \xc3\xa4");
    CHECK(header.fetch == TraceHeader::Fetch::block);
    CHECK(header.vcpus == 1024);
    CHECK(header.cpuid.vendor == Vendor::amd);
    CHECK(header.cpuid.physical_address_bits == 52);
    for (const auto& feature : kFeatureNames) CHECK(header.cpuid.*feature.second);
    CHECK(header.ram == std::vector<GfnRange>{{Gfn{0x100}, 16}, {Gfn{0}, 16}});
    CHECK(header.p2m.kind == P2mLayout::Kind::offset);
    CHECK(header.p2m.offset == 0x1000);
    CHECK(header.meta == R"({"recorder": "a \"b\"", "nested": {"n": [1, 2.5e3, null, true]}})");
}

TEST_CASE("a header has its defaults", "[trace][header]")
{
    const TraceHeader header = parse_header(with_guest(R"("physical_address_bits":32,)" + kRam));
    TraceHeader expected;
    expected.name = "n";
    expected.cpuid.physical_address_bits = 32;
    expected.ram = {{Gfn{0}, 0x100}};
    CHECK(header == expected);
}

TEST_CASE("RAM may fill the physical address space", "[trace][header]")
{
    const TraceHeader header = parse_header(
        with_guest(R"("physical_address_bits":52,"ram":[{"first_gfn":0,"count":"0x10000000000"}])"));
    CHECK(header.ram.front().count == std::uint64_t{1} << 40);
}

TEST_CASE("P2M layouts", "[trace][header]")
{
    CHECK(parse_header(with_p2m("{}")).p2m.kind == P2mLayout::Kind::identity);
    CHECK(parse_header(with_p2m(R"({"layout":"identity"})")).p2m.kind == P2mLayout::Kind::identity);
    CHECK(parse_header(with_p2m(R"({"layout":"shuffled","seed":7})")).p2m.seed == 7);
    const P2mLayout listed =
        parse_header(
            with_p2m(R"({"layout":"listed","entries":[["0x80","0x0",128],["0x0","0x1000","0x80"]]})"))
            .p2m;
    CHECK(listed.entries ==
          std::vector<P2mLayout::Entry>{{Gfn{0x80}, Mfn{0}, 128}, {Gfn{0}, Mfn{0x1000}, 128}});
    check_refused({
        {with_p2m("^[]"), "guest.p2m", "is not an object"},
        {with_p2m(R"({"layout":^"other"})"), "guest.p2m.layout", "is not one of identity, offset"},
        {with_p2m(R"({"layout":"identity",^"offset":1})"), "guest.p2m.offset", "has no meaning with layout"},
        {with_p2m(R"({"layout":"offset","offset":1,^"seed":1})"), "guest.p2m.seed",
         "has no meaning with layout"},
        {with_p2m(R"({^"entries":[],"layout":"shuffled","seed":1})"), "guest.p2m.entries", "has no meaning"},
        {with_p2m(R"(^{"layout":"offset"})"), "guest.p2m.offset", "missing"},
        {with_p2m(R"(^{"layout":"shuffled"})"), "guest.p2m.seed", "missing"},
        {with_p2m(R"(^{"layout":"listed"})"), "guest.p2m.entries", "missing"},
        {with_p2m(R"(^{"layout":"offset","offset":"0x10000000000"})"), "guest.p2m", "beyond 52 address bits"},
        {with_p2m(R"({"layout":"offset","offset":^-1})"), "guest.p2m.offset",
         "is not a non-negative integer"},
        {with_p2m(R"({"layout":"shuffled","seed":^1.5})"), "guest.p2m.seed", "is not a non-negative integer"},
        {with_p2m(R"({"layout":"listed","entries":[^["0x0","0x0"]]})"), "guest.p2m.entries",
         "[gfn, mfn, count]"},
        {with_p2m(R"({"layout":"listed","entries":[["0x0","0x0",^0]]})"), "guest.p2m.entries",
         "out of range"},
        {with_p2m(R"(^{"layout":"listed","entries":[["0x0","0x0",255]]})"), "guest.p2m", "lists 255 frames"},
        {with_p2m(R"(^{"layout":"listed","entries":[[0,0,256],[5,512,1]]})"), "guest.p2m", "listed twice"},
        {with_p2m(R"(^{"layout":"listed","entries":[[0,0,257]]})"), "guest.p2m", "outside the RAM"},
        {with_p2m(R"({^"foo":1})"), "guest.p2m.foo", "is not a key of the header"},
    });
}

TEST_CASE("what a header must say", "[trace][header]")
{
    const std::string bits = R"("physical_address_bits":40)";
    check_refused({
        {R"(^{"version":1})", "format", "missing in the header"},
        {R"({"format":^"other"})", "format", "is not \"mmusim-trace\""},
        {R"({"format":^1})", "format", "1 is not a string"},
        {R"(^{"format":"mmusim-trace"})", "version", "missing"},
        {R"({"format":"mmusim-trace","version":^2,"foo":1})", "version", "version 2 is not supported"},
        {R"({"format":"mmusim-trace","version":^"1"})", "version", "is not a non-negative integer"},
        {R"(^{"format":"mmusim-trace","version":1})", "name", "missing"},
        {R"(^{"format":"mmusim-trace","version":1,"name":"n"})", "guest", "missing"},
        {R"({"format":"mmusim-trace","version":1,"name":^5})", "name", "5 is not a string"},
        {R"({"format":"mmusim-trace","version":1,"name":"n",^"foo":5})", "foo", "is not a key of the header"},
        {R"({"format":"mmusim-trace","version":1,"name":"n",^"pv":{}})", "pv",
         "not supported by this version"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","fetch":^"x"})", "fetch",
         "is not one of instruction, block"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":^[]})", "guest", "is not an object"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":^{}})", "guest.kind", "missing"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":{"kind":^"pv"}})", "guest.kind",
         "not supported by this version"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":{"kind":^"vm"}})", "guest.kind",
         "is not one of hvm, pv"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":^{"kind":"hvm"}})",
         "guest.physical_address_bits", "missing"},
        {with_guest(R"(^"pv":{})"), "guest.pv", "not supported by this version"},
        {with_guest(R"(^"privileged":false)"), "guest.privileged", "not supported by this version"},
        {with_guest(R"(^"fetch":"block")"), "guest.fetch", "is not a key of the header"},
        {with_guest(R"("vcpus":^0)"), "guest.vcpus", "out of range (1 to 1024)"},
        {with_guest(R"("vcpus":^1025)"), "guest.vcpus", "out of range (1 to 1024)"},
        {with_guest(R"("vendor":^"via")"), "guest.vendor", "is not one of intel, amd"},
        {with_guest(R"("physical_address_bits":^31)"), "guest.physical_address_bits",
         "out of range (32 to 52)"},
        {with_guest(R"("physical_address_bits":^53)"), "guest.physical_address_bits",
         "out of range (32 to 52)"},
        {with_guest(R"("physical_address_bits":^"0x28")"), "guest.physical_address_bits",
         "is not a non-negative"},
        {with_guest(bits + R"(,"features":^"nx")"), "guest.features", "is not an array"},
        {with_guest(bits + R"(,"features":[^"mpx"])"), "guest.features", "unknown feature \"mpx\""},
        {with_guest(bits + R"(,"features":["nx",^"nx"])"), "guest.features", "is listed twice"},
        {with_guest(bits + R"(,"features":[^1])"), "guest.features", "is not a string"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":^{"kind":"hvm",)" + bits + "}}",
         "guest.ram", "missing"},
        {with_guest(bits + R"(,"ram":^[])"), "guest.ram", "lists no range"},
        {with_guest(bits + R"(,"ram":[^5])"), "guest.ram", "is not an object"},
        {with_guest(bits + R"(,"ram":[^{"count":1}])"), "guest.ram.first_gfn", "missing"},
        {with_guest(bits + R"(,"ram":[{"first_gfn":0,"count":^0}])"), "guest.ram.count", "is empty"},
        {with_guest(bits + R"(,"ram":[{"first_gfn":0,"count":1,^"x":1}])"), "guest.ram.x", "is not a key"},
        {with_guest(bits + R"(,"ram":[^{"first_gfn":1,"count":"0x10000000"}])"), "guest.ram",
         "physical_address_bits (40)"},
        {with_guest(bits + R"(,"ram":[^{"first_gfn":"0xffffffffffffffff","count":1}])"), "guest.ram",
         "physical_address_bits"},
        {with_guest(bits + R"(,"ram":[^{"first_gfn":1,"count":"0xffffffffffffffff"}])"), "guest.ram",
         "physical_address_bits"},
        {with_guest(bits + R"(,"ram":[{"first_gfn":0,"count":16},^{"first_gfn":15,"count":1}])"), "guest.ram",
         "gfn 0xf is in two"},
        {with_guest(bits + R"(,"ram":[{"first_gfn":^"0xg","count":1}])"), "guest.ram.first_gfn",
         "hex digits"},
        {with_guest(bits + R"(,"ram":[{"first_gfn":^18446744073709551616,"count":1}])"),
         "guest.ram.first_gfn", "64 bits"},
        {R"({"format":"mmusim-trace","version":1,"name":"n","guest":{"kind":"hvm",)" + bits + "," + kRam +
             R"(},"meta":^1})",
         "meta", "is not an object"},
    });
}

TEST_CASE("a header is strict JSON", "[trace][header]")
{
    check_refused({
        {"^", "", "an empty line"},
        {"^[]", "", "is not an object"},
        {"^{}", "format", "missing"},
        {R"(^{"op":"read","la":1})", "op", "a record before the header"},
        {R"({"format":"mmusim-trace",^"format":"mmusim-trace"})", "format", "stands twice in one object"},
        {R"({"meta":{"a":[{"b":1,^"\u0062":2}]}})", "b", "stands twice in one object"},
        {R"({"guest":{"kind":"hvm",^"kind":"hvm"}})", "kind", "stands twice in one object"},
        {R"({"format":"mmusim-trace"^)", "", "malformed JSON"},
        {R"({"format":"mmusim-trace",^})", "", "malformed JSON"},
        {R"({} ^{})", "", "malformed JSON"},
        {R"({"a":0^1})", "", "malformed JSON"},
        {"{\"a\":\"^\xff\"}", "", "malformed JSON"},
    });
    std::string deep = R"({"meta":{"a":)";
    for (int i = 0; i < 1000000; ++i) deep += '[';
    CHECK_THROWS_AS(parse_header(deep), Fault);
}
