// SPDX-License-Identifier: Apache-2.0
//
// The layouts of the P2M. Each is one-to-one, and gfn_of undoes mfn_of; a frame outside the RAM has no
// machine frame and no machine frame outside the image has a guest frame. `shuffled` is a permutation of the
// RAM: shown frame by frame for all small sizes and many others, sampled for 2^28 and 2^40 frames. A layout
// that does not fit is refused when it is made. free_run never touches a frame in use: shown by brute force.
#include <mmusim/p2m/frame_layout.hpp>

#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

using Entry = P2mLayout::Entry;

constexpr std::uint64_t kAllFrames = std::uint64_t{1} << 40;  // 52 address bits

P2mLayout offset_by(std::uint64_t frames)
{
    P2mLayout layout;
    layout.kind = P2mLayout::Kind::offset;
    layout.offset = frames;
    return layout;
}

P2mLayout shuffled_with(std::uint64_t seed)
{
    P2mLayout layout;
    layout.kind = P2mLayout::Kind::shuffled;
    layout.seed = seed;
    return layout;
}

P2mLayout listed(std::vector<Entry> entries)
{
    P2mLayout layout;
    layout.kind = P2mLayout::Kind::listed;
    layout.entries = std::move(entries);
    return layout;
}

GuestRam ram_of(std::uint64_t frames)
{
    return GuestRam{{{Gfn{0}, frames}}};
}

/// `frames` frames in three ranges with holes, the first not at 0.
GuestRam ram_in_pieces(std::uint64_t frames)
{
    const std::uint64_t a = frames / 2;
    const std::uint64_t b = frames / 3;
    std::vector<GfnRange> ranges;
    std::uint64_t at = 5;
    for (const std::uint64_t count : {a, b, frames - a - b}) {
        if (count != 0) ranges.push_back({Gfn{at}, count});
        at += count + 11;
    }
    return GuestRam{ranges};
}

std::vector<std::uint64_t> frames_of(const GuestRam& ram)
{
    std::vector<std::uint64_t> frames;
    for (const GfnRange& range : ram.ranges())
        for (std::uint64_t i = 0; i < range.count; ++i) frames.push_back(range.first.number() + i);
    return frames;
}

/// One-to-one, inverse, nothing outside; returns the image. Looks at every frame up to `beyond` frames past
/// the highest in use on either side.
std::set<std::uint64_t> checked_image(const FrameLayout& p2m, std::uint64_t beyond = 20)
{
    const auto frames = frames_of(p2m.ram());
    std::map<std::uint64_t, std::uint64_t> back;
    std::set<std::uint64_t> image;
    for (const std::uint64_t gfn : frames) {
        const auto mfn = p2m.mfn_of(Gfn{gfn});
        REQUIRE(mfn.has_value());
        REQUIRE(mfn->number() < kAllFrames);
        REQUIRE(image.insert(mfn->number()).second);
        back[mfn->number()] = gfn;
    }
    const std::set<std::uint64_t> ram(frames.begin(), frames.end());
    for (std::uint64_t gfn = 0; gfn < *ram.rbegin() + beyond; ++gfn)
        if (ram.count(gfn) == 0) REQUIRE_FALSE(p2m.mfn_of(Gfn{gfn}).has_value());
    REQUIRE_FALSE(p2m.mfn_of(Gfn{kAllFrames}).has_value());
    REQUIRE_FALSE(p2m.mfn_of(Gfn{~std::uint64_t{0}}).has_value());
    const std::uint64_t lowest = *image.begin() > beyond ? *image.begin() - beyond : 0;
    for (std::uint64_t mfn = lowest; mfn < *image.rbegin() + beyond; ++mfn) {
        const auto gfn = p2m.gfn_of(Mfn{mfn});
        REQUIRE(gfn.has_value() == (back.count(mfn) != 0));
        if (gfn) REQUIRE(gfn->number() == back[mfn]);
    }
    REQUIRE_FALSE(p2m.gfn_of(Mfn{~std::uint64_t{0}}).has_value());
    return image;
}

}  // namespace

TEST_CASE("p2m: identity", "[p2m]")
{
    const FrameLayout p2m{ram_in_pieces(60), {}};
    for (const std::uint64_t gfn : frames_of(p2m.ram())) CHECK(p2m.mfn_of(Gfn{gfn}) == Mfn{gfn});
    checked_image(p2m);
}

TEST_CASE("p2m: offset", "[p2m]")
{
    for (const std::uint64_t offset : {0ull, 1ull, 17ull, 0x10'0000ull, 1ull << 39}) {
        const FrameLayout p2m{ram_in_pieces(60), offset_by(offset)};
        for (const std::uint64_t gfn : frames_of(p2m.ram())) CHECK(p2m.mfn_of(Gfn{gfn}) == Mfn{gfn + offset});
        checked_image(p2m);
        // Machine frames below the offset belong to nobody.
        if (offset > 0) CHECK_FALSE(p2m.gfn_of(Mfn{offset - 1}).has_value());
        CHECK_FALSE(p2m.gfn_of(Mfn{0}).has_value());
    }
}

TEST_CASE("p2m: shuffled is a permutation of the RAM, every small size", "[p2m]")
{
    std::vector<std::uint64_t> sizes;
    for (std::uint64_t n = 1; n <= 70; ++n) sizes.push_back(n);
    for (const std::uint64_t n : {100u, 127u, 128u, 129u, 255u, 256u, 257u, 1000u, 1023u, 1024u, 1025u})
        sizes.push_back(n);
    for (const std::uint64_t seed : {0ull, 1ull, 7ull, 0x1234'5678'9abc'def0ull, ~0ull}) {
        for (const std::uint64_t size : sizes) {
            INFO(size << " frames, seed " << seed);
            for (const GuestRam& ram : {ram_of(size), ram_in_pieces(size)}) {
                const auto frames = frames_of(ram);
                const auto image = checked_image(FrameLayout{ram, shuffled_with(seed)}, 12);
                REQUIRE(image == std::set<std::uint64_t>(frames.begin(), frames.end()));
            }
        }
    }
}

TEST_CASE("p2m: shuffled is a permutation of the RAM, larger sizes", "[p2m]")
{
    for (const std::uint64_t size : {4095u, 4096u, 4097u, 16'385u, 50'000u}) {
        INFO(size << " frames");
        std::vector<bool> seen(size, false);
        const FrameLayout p2m{ram_of(size), shuffled_with(size)};
        for (std::uint64_t gfn = 0; gfn < size; ++gfn) {
            const auto mfn = p2m.mfn_of(Gfn{gfn});
            if (!mfn || mfn->number() >= size || seen[mfn->number()]) FAIL("gfn " << gfn);
            seen[mfn->number()] = true;
            if (p2m.gfn_of(*mfn) != Gfn{gfn}) FAIL("no way back to gfn " << gfn);
        }
    }
}

TEST_CASE("p2m: shuffled RAM as large as the address space, sampled", "[p2m]")
{
    const std::uint64_t seed = 0x9a9e;
    INFO("seed " << seed);
    std::mt19937_64 random{seed};
    const std::uint64_t big = std::uint64_t{1} << 28;
    const std::vector<GuestRam> rams{
        ram_of(big),
        ram_of(big + 12'345),
        GuestRam{{{Gfn{0}, 0xc'0000}, {Gfn{0x10'0000}, big}}},  // with the hole below 4 GiB
        ram_of(kAllFrames),
        ram_of(kAllFrames - 99),
    };
    for (const GuestRam& ram : rams) {
        INFO(ram.frames() << " frames");
        for (const std::uint64_t layout_seed : {1ull, 2ull}) {
            const FrameLayout p2m{ram, shuffled_with(layout_seed)};
            std::map<std::uint64_t, std::uint64_t> seen;  // mfn -> gfn
            for (int n = 0; n < 5000; ++n) {
                // Runs, too: neighbours must not fall together.
                const std::uint64_t index =
                    n % 2 == 0 ? static_cast<std::uint64_t>(n) : random() % ram.frames();
                const Gfn gfn = ram.frame_at(index);
                const auto mfn = p2m.mfn_of(gfn);
                REQUIRE(mfn.has_value());
                REQUIRE(ram.contains(Gfn{mfn->number()}));
                REQUIRE(p2m.gfn_of(*mfn) == gfn);
                const auto [place, fresh] = seen.try_emplace(mfn->number(), gfn.number());
                REQUIRE((fresh || place->second == gfn.number()));
                const auto gfn_here = p2m.gfn_of(Mfn{gfn.number()});
                REQUIRE(gfn_here.has_value());
                REQUIRE(p2m.mfn_of(*gfn_here) == Mfn{gfn.number()});
            }
            CHECK_FALSE(p2m.mfn_of(ram.end()).has_value());
            CHECK_FALSE(p2m.gfn_of(Mfn{ram.end().number()}).has_value());
        }
    }
}

TEST_CASE("p2m: shuffled is fixed by its seed, and far from identity", "[p2m]")
{
    const GuestRam ram = ram_of(4096);
    const FrameLayout one{ram, shuffled_with(1)};
    const FrameLayout again{ram, shuffled_with(1)};
    const FrameLayout two{ram, shuffled_with(2)};
    unsigned same_place = 0;
    unsigned same_in_both = 0;
    unsigned neighbours = 0;
    for (std::uint64_t gfn = 0; gfn < 4096; ++gfn) {
        CHECK(one.mfn_of(Gfn{gfn}) == again.mfn_of(Gfn{gfn}));
        if (one.mfn_of(Gfn{gfn}) == Mfn{gfn}) ++same_place;
        if (one.mfn_of(Gfn{gfn}) == two.mfn_of(Gfn{gfn})) ++same_in_both;
        if (gfn > 0 && one.mfn_of(Gfn{gfn})->number() == one.mfn_of(Gfn{gfn - 1})->number() + 1) ++neighbours;
    }
    // Of a random permutation one expects one of each; 20 has a probability below 1e-18.
    CHECK(same_place < 20);
    CHECK(same_in_both < 20);
    CHECK(neighbours < 20);
}

TEST_CASE("p2m: listed", "[p2m]")
{
    const GuestRam ram{{{Gfn{0}, 16}, {Gfn{32}, 8}}};
    // Out of order; the first two touch in the guest and are far apart in the machine.
    const FrameLayout p2m{
        ram, listed({{Gfn{32}, Mfn{4}, 8}, {Gfn{10}, Mfn{0x1000}, 6}, {Gfn{0}, Mfn{0x500}, 10}})};
    checked_image(p2m);
    CHECK(p2m.mfn_of(Gfn{0}) == Mfn{0x500});
    CHECK(p2m.mfn_of(Gfn{9}) == Mfn{0x509});
    CHECK(p2m.mfn_of(Gfn{10}) == Mfn{0x1000});
    CHECK(p2m.mfn_of(Gfn{15}) == Mfn{0x1005});
    CHECK_FALSE(p2m.mfn_of(Gfn{16}).has_value());
    CHECK(p2m.mfn_of(Gfn{32}) == Mfn{4});
    CHECK(p2m.mfn_of(Gfn{39}) == Mfn{11});
    CHECK(p2m.gfn_of(Mfn{11}) == Gfn{39});
    CHECK_FALSE(p2m.gfn_of(Mfn{3}).has_value());
    CHECK_FALSE(p2m.gfn_of(Mfn{12}).has_value());
    // The very last machine frame can be used; one entry may span ranges that touch.
    const FrameLayout last{GuestRam{{{Gfn{0}, 4}, {Gfn{4}, 4}}}, listed({{Gfn{0}, Mfn{kAllFrames - 8}, 8}})};
    CHECK(last.mfn_of(Gfn{7}) == Mfn{kAllFrames - 1});
}

TEST_CASE("p2m: random lists", "[p2m]")
{
    for (std::uint64_t seed = 1; seed <= 30; ++seed) {
        INFO("seed " << seed);
        std::mt19937_64 random{seed};
        const GuestRam ram = ram_in_pieces(30 + random() % 60);
        std::vector<Entry> entries;
        std::map<std::uint64_t, std::uint64_t> expected;
        for (const GfnRange& range : ram.ranges()) {
            for (std::uint64_t at = 0; at < range.count;) {
                const std::uint64_t count = 1 + random() % std::min<std::uint64_t>(8, range.count - at);
                entries.push_back({range.first + at, Mfn{}, count});
                at += count;
            }
        }
        std::shuffle(entries.begin(), entries.end(), random);
        std::uint64_t mfn = random() % 50;
        for (Entry& entry : entries) {
            entry.mfn = Mfn{mfn};
            for (std::uint64_t i = 0; i < entry.count; ++i) expected[entry.gfn.number() + i] = mfn + i;
            mfn += entry.count + random() % 3;
        }
        std::shuffle(entries.begin(), entries.end(), random);
        const FrameLayout p2m{ram, listed(entries)};
        for (const auto& [gfn, machine] : expected) REQUIRE(p2m.mfn_of(Gfn{gfn}) == Mfn{machine});
        checked_image(p2m);
    }
}

TEST_CASE("p2m: layouts that are refused", "[p2m]")
{
    const auto refused = [](const GuestRam& ram, const P2mLayout& layout) {
        try {
            const FrameLayout p2m{ram, layout};
            return false;
        } catch (const LayoutError& error) {
            return std::string{error.what()}.find("p2m") != std::string::npos;  // says what it is about
        }
    };
    const GuestRam ram{{{Gfn{0}, 16}, {Gfn{32}, 8}}};
    const Entry low{Gfn{0}, Mfn{0}, 16};
    const Entry high{Gfn{32}, Mfn{16}, 8};
    CHECK_FALSE(refused(ram, listed({low, high})));
    // Beyond 52 address bits.
    CHECK_FALSE(refused(ram, offset_by(kAllFrames - 40)));
    CHECK(refused(ram, offset_by(kAllFrames - 39)));
    CHECK(refused(ram, offset_by(kAllFrames)));
    CHECK(refused(ram, offset_by(~std::uint64_t{0})));
    CHECK(refused(ram, offset_by(~std::uint64_t{0} - 30)));
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{kAllFrames - 7}, 8}})));
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{kAllFrames}, 8}})));
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{~std::uint64_t{0}}, 8}})));
    // A range of no frames, or of far too many.
    CHECK(refused(ram, listed({low, high, {Gfn{1}, Mfn{100}, 0}})));
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{16}, ~std::uint64_t{0}}})));
    // Outside the RAM, wholly or with one end, or over a hole.
    CHECK(refused(ram, listed({low, high, {Gfn{16}, Mfn{100}, 1}})));
    CHECK(refused(ram, listed({low, {Gfn{33}, Mfn{16}, 8}})));
    CHECK(refused(ram, listed({low, {Gfn{31}, Mfn{16}, 9}})));
    CHECK(refused(ram, listed({{Gfn{0}, Mfn{0}, 40}})));
    // Twice the same, on either side.
    CHECK(refused(ram, listed({low, high, {Gfn{3}, Mfn{100}, 1}})));
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{15}, 8}})));
    CHECK(refused(ram, listed({low, low, high})));
    CHECK(refused(ram, listed({{Gfn{0}, Mfn{50}, 16}, {Gfn{32}, Mfn{60}, 8}})));
    // A frame that is overlapped and one that is missing do not make up for each other.
    CHECK(refused(ram, listed({{Gfn{0}, Mfn{0}, 8}, {Gfn{7}, Mfn{100}, 8}, high})));
    // One frame missing, at an end or in the middle; and no list at all.
    CHECK(refused(ram, listed({low, {Gfn{32}, Mfn{16}, 7}})));
    CHECK(refused(ram, listed({{Gfn{0}, Mfn{0}, 7}, {Gfn{8}, Mfn{8}, 8}, high})));
    CHECK(refused(ram, listed({})));
}

TEST_CASE("p2m: RAM beyond 52 address bits is refused in every layout", "[p2m]")
{
    const GuestRam too_high{{{Gfn{kAllFrames - 1}, 2}}};
    CHECK_THROWS_AS((FrameLayout{too_high, P2mLayout{}}), LayoutError);
    CHECK_THROWS_AS((FrameLayout{too_high, offset_by(0)}), LayoutError);
    CHECK_THROWS_AS((FrameLayout{too_high, shuffled_with(1)}), LayoutError);
    const GuestRam highest{{{Gfn{kAllFrames - 2}, 2}}};
    CHECK_NOTHROW(FrameLayout{highest, P2mLayout{}});
    CHECK_NOTHROW(FrameLayout{highest, shuffled_with(1)});
}

TEST_CASE("p2m: a free run overlaps no frame in use and is the first one", "[p2m]")
{
    const GuestRam ram{{{Gfn{2}, 5}, {Gfn{10}, 3}, {Gfn{13}, 2}, {Gfn{20}, 1}}};
    const std::vector<P2mLayout> layouts{
        {},
        offset_by(4),
        shuffled_with(9),
        listed({{Gfn{2}, Mfn{9}, 5}, {Gfn{10}, Mfn{0}, 3}, {Gfn{13}, Mfn{30}, 2}, {Gfn{20}, Mfn{5}, 1}}),
    };
    for (const P2mLayout& layout : layouts) {
        INFO(to_string(layout));
        const FrameLayout p2m{ram, layout};
        std::set<std::uint64_t> used;
        for (const std::uint64_t gfn : frames_of(ram)) used.insert(p2m.mfn_of(Gfn{gfn})->number());
        for (std::uint64_t from = 0; from < 45; ++from) {
            for (std::uint64_t count = 1; count < 12; ++count) {
                INFO("from " << from << ", " << count << " frames");
                std::uint64_t expected = from;
                for (std::uint64_t length = 0; length < count;) {
                    if (used.count(expected + length) != 0) {
                        expected += length + 1;
                        length = 0;
                    } else {
                        ++length;
                    }
                }
                REQUIRE(p2m.free_run(Mfn{from}, count) == Mfn{expected});
            }
        }
    }
}

TEST_CASE("p2m: a free run at the end of the machine", "[p2m]")
{
    const FrameLayout p2m{GuestRam{{{Gfn{4}, 4}}}, {}};
    // No room above: the lowest instead.
    CHECK(p2m.free_run(Mfn{kAllFrames - 5}, 5) == Mfn{kAllFrames - 5});
    CHECK(p2m.free_run(Mfn{kAllFrames - 5}, 6) == Mfn{8});
    CHECK(p2m.free_run(Mfn{kAllFrames - 5}, 4) == Mfn{kAllFrames - 5});
    CHECK(p2m.free_run(Mfn{kAllFrames}, 1) == Mfn{0});
    CHECK(p2m.free_run(Mfn{0}, 5) == Mfn{8});
    // No room anywhere.
    CHECK(p2m.free_run(Mfn{0}, kAllFrames - 8) == Mfn{8});
    CHECK_FALSE(p2m.free_run(Mfn{0}, kAllFrames - 7).has_value());
    CHECK_FALSE(p2m.free_run(Mfn{0}, kAllFrames).has_value());
    const FrameLayout full{ram_of(kAllFrames), {}};
    CHECK_FALSE(full.free_run(Mfn{0}, 1).has_value());
    CHECK_FALSE(full.free_run(Mfn{1000}, 1).has_value());
    // RAM at the top of the machine.
    const FrameLayout top{ram_of(100), offset_by(kAllFrames - 100)};
    CHECK(top.free_run(Mfn{kAllFrames - 150}, 50) == Mfn{kAllFrames - 150});
    CHECK(top.free_run(Mfn{kAllFrames - 150}, 51) == Mfn{0});
}

TEST_CASE("p2m: free runs that no machine could hold", "[p2m]")
{
    const FrameLayout p2m{GuestRam{{{Gfn{4}, 4}}}, {}};
    CHECK_FALSE(p2m.free_run(Mfn{0}, ~std::uint64_t{0}).has_value());
    CHECK_FALSE(p2m.free_run(Mfn{0}, ~std::uint64_t{0} - 6).has_value());
    CHECK(p2m.free_run(Mfn{~std::uint64_t{0}}, 1) == Mfn{0});
    CHECK(p2m.free_run(Mfn{~std::uint64_t{0} - 3}, 8) == Mfn{8});
}

TEST_CASE("p2m: layouts as the command line spells them", "[p2m]")
{
    CHECK(parse_p2m_layout("identity") == P2mLayout{});
    CHECK(parse_p2m_layout("offset:0x100000") == offset_by(0x10'0000));
    CHECK(parse_p2m_layout("offset:16") == offset_by(16));
    CHECK(parse_p2m_layout("shuffled:7") == shuffled_with(7));
    CHECK(parse_p2m_layout("shuffled:0xffffffffffffffff") == shuffled_with(~std::uint64_t{0}));
    for (const char* text : {"",
                             "offset",
                             "shuffled",
                             "offset:",
                             "shuffled:",
                             "offset:0x",
                             "offset:x",
                             "offset:1 ",
                             "offset: 1",
                             "offset:-1",
                             "offset:+1",
                             "offset:1x",
                             "offset:0x1g",
                             "shuffled:0x10000000000000000",
                             "identity:1",
                             "listed",
                             "listed:1",
                             "Identity",
                             ":1",
                             "offset:1:2"}) {
        INFO(text);
        CHECK_FALSE(parse_p2m_layout(text).has_value());
    }
    for (const P2mLayout& layout : {P2mLayout{}, offset_by(0x10'0000), offset_by(0), shuffled_with(7)})
        CHECK(parse_p2m_layout(to_string(layout)) == layout);
    CHECK(to_string(P2mLayout{}) == "identity");
    CHECK(to_string(offset_by(0x10'0000)) == "offset:0x100000");
    CHECK(to_string(shuffled_with(7)) == "shuffled:7");
}
