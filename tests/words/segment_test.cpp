// SPDX-License-Identifier: Apache-2.0
//
// The segmentation unit against a byte-by-byte reading of the manual (SDM vol. 3A 5.3): an access is inside
// a segment if each of its bytes is. Expand-up: 0 to the limit. Expand-down: above the limit, up to 2^16 - 1
// or 2^32 - 1 by the B bit. A 4 GiB expand-up segment has no end: the access wraps. Outside 64-bit mode the
// linear address is base plus offset modulo 2^32; in 64-bit mode limits, null selectors and all bases but
// those of FS and GS count for nothing (vol. 3A 3.4.4). A violation through SS is #SS, through another
// segment #GP.
#include <mmusim/words/segment.hpp>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

constexpr Segment kAll[] = {Segment::cs, Segment::ss, Segment::ds, Segment::es, Segment::fs, Segment::gs};

bool byte_inside(const SegmentRegister& segment, std::uint64_t offset)
{
    if (!segment.expand_down) return offset <= segment.limit;
    return offset > segment.limit && offset <= (segment.big ? 0xffff'ffffu : 0xffffu);
}

bool access_inside(const SegmentRegister& segment, std::uint64_t offset, std::uint32_t bytes)
{
    if (segment.null) return false;
    if (!segment.expand_down && segment.limit == 0xffff'ffff) return true;
    for (std::uint32_t i = 0; i < bytes; ++i)
        if (!byte_inside(segment, offset + i)) return false;
    return true;
}

Vector violation_through(Segment segment)
{
    return segment == Segment::ss ? Vector::stack_fault : Vector::general_protection;
}

/// Empty if the unit answers as the oracle, else a description.
std::string difference(const SegmentRegister& descriptor, Segment segment, std::uint64_t offset,
                       std::uint32_t bytes)
{
    SegmentRegisters segments;
    segments[segment] = descriptor;
    const auto got = linear_address(segments, segment, VirtualAddress{offset}, bytes, false);
    const bool inside = access_inside(descriptor, offset, bytes);
    const std::uint64_t linear = (descriptor.base + offset) % 0x1'0000'0000;
    if (inside ? got.ok() && got->value() == linear
               : !got.ok() && got.error().vector == violation_through(segment) && got.error().error_code == 0)
        return {};
    return fmt::format("{} base {:#x} limit {:#x} null {} down {} big {}, offset {:#x} bytes {}: expected {}",
                       kSegmentNames[static_cast<std::size_t>(segment)], descriptor.base, descriptor.limit,
                       descriptor.null, descriptor.expand_down, descriptor.big, offset, bytes,
                       inside ? fmt::format("{:#x}", linear) : std::string{"a violation"});
}

}  // namespace

TEST_CASE("segment: limits, expand-down, null and wrap, outside 64-bit mode", "[words]")
{
    const std::vector<std::uint32_t> limits{0,           1,           7,           0xffe,      0xfff,
                                            0x1000,      0xfffe,      0xffff,      0x1'0000,   0x7fff'ffff,
                                            0xffff'efff, 0xffff'f000, 0xffff'fffe, 0xffff'ffff};
    const std::vector<std::uint32_t> sizes{1, 2, 4, 8, 16, 4096};
    std::vector<std::string> wrong;
    unsigned long cases = 0;
    for (const Segment segment : kAll) {
        for (unsigned shape = 0; shape < 8; ++shape) {
            for (const std::uint32_t limit : limits) {
                for (const std::uint64_t base : {0x0ull, 0x1000ull, 0x8000'0001ull, 0xffff'ffffull}) {
                    const SegmentRegister descriptor{base, limit, (shape & 1) != 0, (shape & 2) != 0,
                                                     (shape & 4) != 0};
                    for (const std::uint64_t near :
                         {0ull, static_cast<unsigned long long>(limit), 0xffffull, 0xffff'ffffull}) {
                        for (const int away : {-4096, -8, -2, -1, 0, 1, 2, 7}) {
                            const std::uint64_t offset =
                                (near + static_cast<std::uint64_t>(static_cast<std::int64_t>(away))) &
                                0xffff'ffff;
                            // All sizes where only one segment is tried, else the telling ones.
                            for (const std::uint32_t bytes : sizes) {
                                if (segment != Segment::ds && bytes != 1 && bytes != 8) continue;
                                ++cases;
                                if (auto text = difference(descriptor, segment, offset, bytes); !text.empty())
                                    wrong.push_back(std::move(text));
                            }
                        }
                    }
                }
            }
        }
    }
    INFO((wrong.empty() ? std::string{} : wrong.front()));
    CHECK(wrong.empty());
    CHECK(cases > 100'000);
}

TEST_CASE("segment: cases by hand", "[words]")
{
    SegmentRegisters segments;
    const auto at = [&](Segment segment, std::uint64_t offset, std::uint32_t bytes) {
        return linear_address(segments, segment, VirtualAddress{offset}, bytes, false);
    };
    // Flat: the last bytes of the address space, and over its end.
    CHECK(at(Segment::ds, 0xffff'fffc, 4)->value() == 0xffff'fffc);
    CHECK(at(Segment::ds, 0xffff'fffc, 8)->value() == 0xffff'fffc);
    // The base wraps too.
    segments[Segment::fs].base = 0xffff'f000;
    CHECK(at(Segment::fs, 0x1010, 4)->value() == 0x10);
    // 64 KiB: the last byte decides.
    segments[Segment::es].limit = 0xffff;
    CHECK(at(Segment::es, 0xfffc, 4).ok());
    REQUIRE_FALSE(at(Segment::es, 0xfffd, 4).ok());
    CHECK(at(Segment::es, 0xfffd, 4).error().vector == Vector::general_protection);
    // A stack that grows down: limit 0xfff, valid from 0x1000.
    segments[Segment::ss] = {.base = 0, .limit = 0xfff, .expand_down = true, .big = false};
    CHECK(at(Segment::ss, 0x1000, 4).ok());
    CHECK(at(Segment::ss, 0xfffc, 4).ok());
    REQUIRE_FALSE(at(Segment::ss, 0xfff, 1).ok());
    CHECK(at(Segment::ss, 0xfff, 1).error().vector == Vector::stack_fault);
    CHECK_FALSE(at(Segment::ss, 0xfffd, 4).ok());
    segments[Segment::ss].big = true;
    CHECK(at(Segment::ss, 0xfffd, 4).ok());
    CHECK(at(Segment::ss, 0xffff'fffc, 4).ok());
    CHECK_FALSE(at(Segment::ss, 0xffff'fffd, 4).ok());  // expand-down has an end
    segments[Segment::gs].null = true;
    CHECK_FALSE(at(Segment::gs, 0, 1).ok());
}

TEST_CASE("segment: 64-bit mode is flat but for FS and GS", "[words]")
{
    const std::uint64_t seed = 0x5e67;
    INFO("seed " << seed);
    std::mt19937_64 random{seed};
    for (int round = 0; round < 500; ++round) {
        SegmentRegisters segments;
        for (const Segment segment : kAll) {
            segments[segment] = {random(), static_cast<std::uint32_t>(random()), random() % 2 == 0,
                                 random() % 2 == 0, random() % 2 == 0};
        }
        const std::uint64_t offset = random();
        for (const Segment segment : kAll) {
            const auto got = linear_address(segments, segment, VirtualAddress{offset}, 8, true);
            const bool based = segment == Segment::fs || segment == Segment::gs;
            REQUIRE(got.ok());
            CHECK(got->value() == (based ? offset + segments[segment].base : offset));
        }
    }
}

TEST_CASE("segment: names in the order of the enumeration", "[words]")
{
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::cs)] == "cs");
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::ss)] == "ss");
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::ds)] == "ds");
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::es)] == "es");
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::fs)] == "fs");
    CHECK(kSegmentNames[static_cast<std::size_t>(Segment::gs)] == "gs");
}
