// SPDX-License-Identifier: Apache-2.0
//
// Guest-physical memory through the P2M: what the guest stores at a guest address lies at the machine
// address that the layout gives, and nowhere else; outside the RAM everything reads as 0, stores are dropped
// and nothing is allocated. A walk of the guest's tables through a shuffled P2M answers as one of the same
// tables under the identity.
#include <mmusim/p2m/guest_memory.hpp>

#include <array>
#include <random>
#include <vector>

#include <mmusim/pagewalk/walk.hpp>

#include "pagewalk/plain_walk.hpp"
#include "support/catch.hpp"

using namespace mmusim;

namespace {

static_assert(TableMemory<GuestMemory>);

P2mLayout shuffled_with(std::uint64_t seed)
{
    P2mLayout layout;
    layout.kind = P2mLayout::Kind::shuffled;
    layout.seed = seed;
    return layout;
}

std::vector<std::byte> some_bytes(std::mt19937_64& random, std::size_t count)
{
    std::vector<std::byte> bytes(count);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
}

}  // namespace

TEST_CASE("guest memory: stores lie where the layout says", "[p2m]")
{
    const std::uint64_t seed = 0x6e3;
    INFO("seed " << seed);
    std::mt19937_64 random{seed};
    const P2m p2m{GuestRam{{{Gfn{0}, 100}, {Gfn{0x1000}, 57}}}, shuffled_with(3)};
    SparseMemory machine;
    GuestMemory guest{machine, p2m};
    std::vector<std::array<std::byte, 4096>> model(157);
    for (int step = 0; step < 20'000; ++step) {
        const std::uint64_t index = random() % 157;
        const Gfn gfn{index < 100 ? index : 0x1000 + index - 100};
        auto& page = model[index];
        const auto offset = static_cast<unsigned>(random() % 512) * 8;
        switch (random() % 6) {
        case 0: {
            const auto bytes = some_bytes(random, 1 + random() % (4096 - offset));
            guest.write(gfn.address(offset), bytes);
            std::copy(bytes.begin(), bytes.end(), page.begin() + offset);
            break;
        }
        case 1: {
            std::vector<std::byte> bytes(1 + random() % (4096 - offset), std::byte{0xee});
            guest.read(gfn.address(offset), bytes);
            REQUIRE(std::equal(bytes.begin(), bytes.end(), page.begin() + offset));
            break;
        }
        case 2: {
            std::uint64_t word = 0;
            std::memcpy(&word, page.data() + offset, 8);
            REQUIRE(guest.load<std::uint64_t>(gfn, offset) == word);
            REQUIRE(guest.load<std::uint32_t>(gfn, offset + 4) == word >> 32);
            // The machine frame behind it holds the same.
            REQUIRE(machine.load<std::uint64_t>(p2m.mfn_of(gfn)->number(), offset) == word);
            break;
        }
        case 3: {
            std::uint64_t word = 0;
            std::memcpy(&word, page.data() + offset, 8);
            const std::uint64_t desired = random();
            REQUIRE_FALSE(guest.exchange<std::uint64_t>(gfn, offset, word + 1, desired));
            REQUIRE(guest.load<std::uint64_t>(gfn, offset) == word);
            REQUIRE(guest.exchange<std::uint64_t>(gfn, offset, word, desired));
            std::memcpy(page.data() + offset, &desired, 8);
            break;
        }
        case 4: {
            std::uint32_t word = 0;
            std::memcpy(&word, page.data() + offset, 4);
            const auto desired = static_cast<std::uint32_t>(random());
            REQUIRE(guest.exchange<std::uint32_t>(gfn, offset, word, desired));
            std::memcpy(page.data() + offset, &desired, 4);
            break;
        }
        default:
            if (random() % 8 != 0) break;
            guest.clear(gfn);
            page.fill(std::byte{0});
            break;
        }
    }
    CHECK(machine.frames_in_use() <= 157);
}

TEST_CASE("guest memory: outside the RAM", "[p2m]")
{
    for (const P2mLayout& layout : {P2mLayout{}, shuffled_with(1)}) {
        const P2m p2m{GuestRam{{{Gfn{4}, 4}}}, layout};
        SparseMemory machine;
        GuestMemory guest{machine, p2m};
        // A neighbour's machine frames hold something: it is not the guest's.
        machine.store<std::uint64_t>(3, 0, 0x1111);
        machine.store<std::uint64_t>(8, 0, 0x2222);
        for (const std::uint64_t number : {0ull, 3ull, 8ull, 1ull << 40, ~0ull >> 12}) {
            const Gfn gfn{number};
            CHECK(guest.load<std::uint64_t>(gfn, 0) == 0);
            CHECK(guest.load<std::uint32_t>(gfn, 0) == 0);
            std::array<std::byte, 16> bytes;
            bytes.fill(std::byte{0xee});
            guest.read(gfn.address(0), bytes);
            CHECK(bytes == std::array<std::byte, 16>{});
            bytes.fill(std::byte{0xee});
            guest.write(gfn.address(0), bytes);
            (void)guest.exchange<std::uint64_t>(gfn, 0, 0, 0xbad);
            CHECK_FALSE(guest.exchange<std::uint64_t>(gfn, 0, 0x1111, 0xbad));
            guest.clear(gfn);
            CHECK(guest.load<std::uint64_t>(gfn, 0) == 0);
        }
        CHECK(machine.load<std::uint64_t>(3, 0) == 0x1111);
        CHECK(machine.load<std::uint64_t>(8, 0) == 0x2222);
        CHECK(machine.frames_in_use() == 2);
    }
}

TEST_CASE("guest memory: a walk through a shuffled P2M answers as under the identity", "[p2m]")
{
    const std::uint64_t seed = 0x3a1;
    INFO("seed " << seed);
    std::mt19937_64 random{seed};
    plain::Cpu cpu{.nxe = true, .wp = true};
    const plain::Format format{cpu};
    const auto rules = walk_rules(kFourLevel, plain::registers_of(cpu), plain::cpuid_of(cpu));
    unsigned long walked = 0;
    for (int round = 0; round < 20; ++round) {
        // 16 frames of tables that reference each other; some entries lead out of the RAM.
        const P2m identity{GuestRam{{{Gfn{0}, 10}, {Gfn{0x100}, 6}}}, {}};
        const P2m shuffled{identity.ram(), shuffled_with(static_cast<std::uint64_t>(round))};
        SparseMemory here;
        SparseMemory there;
        GuestMemory plainly{here, identity};
        GuestMemory scattered{there, shuffled};
        for (std::uint64_t index = 0; index < 16; ++index) {
            const Gfn table = identity.ram().frame_at(index);
            for (unsigned offset = 0; offset < 4096; offset += 8) {
                const Gfn next{random() % 20 == 0 ? 0x200 : identity.ram().frame_at(random() % 16).number()};
                const std::uint64_t entry = next.address().value() | (random() % 16 != 0 ? 7u : 1u);
                std::array<std::byte, 8> bytes;
                std::memcpy(bytes.data(), &entry, 8);
                plainly.write(table.address(offset), bytes);
                scattered.write(table.address(offset), bytes);
            }
        }
        const WalkRoot<space::GuestPhysical> root{Gfn{3}, {}};
        for (int n = 0; n < 500; ++n) {
            const std::uint64_t la = random() & 0x7fff'ffff'ffff;
            const auto kind = n % 2 == 0 ? AccessKind::read : AccessKind::write;
            plain::Answer expected;
            plain::walk(expected, cpu, format, 0x3000, {}, la, kind, plain::Who::user,
                        [&](std::uint64_t at, std::uint64_t) {
                            const GuestPhysical address{at};
                            return plainly.load<std::uint64_t>(Gfn::of(address), address.offset_in_page());
                        });
            const Access access = plain::access_of(la, kind, plain::Who::user);
            const auto a = walk<kFourLevel>(plainly, root, rules, access, AdBits::set);
            const auto b = walk<kFourLevel>(scattered, root, rules, access, AdBits::set);
            REQUIRE(a.ok() == !expected.fault);
            REQUIRE(b.ok() == !expected.fault);
            if (!expected.fault) {
                ++walked;
                REQUIRE(a->address.value() == expected.address);
                REQUIRE(b->address.value() == expected.address);  // a guest address, not a machine one
            } else {
                REQUIRE(b.error().error_code == expected.code);
            }
        }
        for (std::uint64_t index = 0; index < 16; ++index) {
            const Gfn table = identity.ram().frame_at(index);
            for (unsigned offset = 0; offset < 4096; offset += 8) {
                if (plainly.load<std::uint64_t>(table, offset) !=
                    scattered.load<std::uint64_t>(table, offset))
                    FAIL("tables differ afterwards, round " << round);
            }
        }
    }
    CHECK(walked > 1000);
}
