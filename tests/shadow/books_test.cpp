// SPDX-License-Identifier: Apache-2.0
//
// The small books of the shadow code against numbers worked out by hand: reference/xen.md H1 (hash, flush
// filter, pool, guesses), B11 and S6 (slots of out-of-sync tables), B17 (the virtual TLB).
#include <mmusim/shadow/flush_filter.hpp>
#include <mmusim/shadow/out_of_sync.hpp>
#include <mmusim/shadow/shadow_engine.hpp>
#include <mmusim/shadow/virtual_tlb.hpp>
#include <mmusim/shadow/write_map_guess.hpp>

#include "support/catch.hpp"

using namespace mmusim;

TEST_CASE("shadow hash: buckets", "[shadow]")
{
    struct Vector {
        std::uint64_t frame;
        ShadowType type;
        unsigned bucket;
    };
    constexpr ShadowType kL1_32{TableFormat::bits32, 1}, kL2_32{TableFormat::bits32, 2};
    constexpr ShadowType kL1_pae{TableFormat::pae, 1};
    constexpr ShadowType kL1_64{TableFormat::bits64, 1}, kFl1_64{TableFormat::bits64, 1, true};
    constexpr ShadowType kL2_64{TableFormat::bits64, 2}, kL4_64{TableFormat::bits64, 4};
    for (const auto& [frame, type, bucket] :
         {Vector{0, kL1_32, 131}, Vector{1, kL1_32, 73}, Vector{0x1234, kL1_64, 44},
          Vector{0x1234, kL2_64, 55}, Vector{0x1234, kL4_64, 74}, Vector{0xabcde, kL2_32, 70},
          Vector{0x100000, kFl1_64, 245}, Vector{0xff'ffff'ffff, kL4_64, 123},
          Vector{0x80000, kL1_pae, 248}}) {
        INFO(to_string(type) << " of frame " << frame);
        CHECK(shadow_bucket(frame, type.code()) == bucket);
    }
}

TEST_CASE("flush filter: who has to flush", "[shadow]")
{
    CHECK_FALSE(flush_needed(10, 9, 5));
    CHECK(flush_needed(10, 5, 5));
    CHECK(flush_needed(10, 4, 5));
    CHECK(flush_needed(0, 9, 5));
    CHECK_FALSE(flush_needed(3, 0xffff'fffa, 0xffff'fffd));
    CHECK(flush_needed(3, 1, 2));

    FlushFilter filter{2};
    const std::uint32_t freed = filter.now();
    CHECK(filter.needed(freed));
    CHECK_FALSE(filter.flushed(0));
    CHECK(filter.needed(freed));  // the other has not
    CHECK_FALSE(filter.flushed(1));
    CHECK_FALSE(filter.needed(freed));
    CHECK(filter.needed(filter.now()));
}

TEST_CASE("shadow pool: floor and default", "[shadow]")
{
    CHECK(shadow_pool_floor(1, 65536, true, 0) == 385);
    CHECK(shadow_pool_floor(4, 1048576, true, 0) == 4609);
    CHECK(shadow_pool_floor(2, 262144, false, 0) == 1280);
    CHECK(shadow_pool_floor(1, 65536, true, 1000) == 1128);
    CHECK(default_shadow_pool(1, 65536) == 1024);           // 256 + 256, but never below 4 MiB
    CHECK(default_shadow_pool(4, 1048576) == 1024 + 4096);  // 256 a vCPU, one for each MiB
}

TEST_CASE("write-map guesses: addresses", "[shadow]")
{
    const auto first_of = [](Paging paging, int level, std::uint64_t va, unsigned heuristic) {
        for (const WriteMapGuess& guess : write_map_guesses(paging, level, LinearAddress{va}, Gfn{0x40000})) {
            if (guess.heuristic == heuristic) return guess.address.value() >> 12;
        }
        return std::uint64_t{0};
    };
    constexpr std::uint64_t kVa = 0x7f12'3456'7000;
    CHECK(first_of(Paging::four_level, 1, kVa, 3) == 0xffff'f6bf'891a'2b38 >> 12);
    CHECK(first_of(Paging::four_level, 2, kVa, 3) == 0xffff'f6fb'5fc4'8d15 >> 12);
    CHECK(first_of(Paging::four_level, 3, kVa, 3) == 0xffff'f6fb'7daf'e246 >> 12);
    CHECK(first_of(Paging::two_level, 1, 0x0804'9000, 1) == 0xc002'0124 >> 12);
    CHECK(first_of(Paging::pae, 1, 0x0804'9000, 2) == 0xc004'0248 >> 12);
    CHECK(first_of(Paging::pae, 2, 0x0804'9000, 2) == 0xc060'0201 >> 12);

    // Low memory of 32-bit Linux ends at 896 MiB; a resync is of no walk.
    const auto heuristics = [](Paging paging, int level, Gfn table) {
        std::string text;
        for (const WriteMapGuess& guess :
             write_map_guesses(paging, level, LinearAddress{kVa & 0xffff'ffff}, table))
            text += std::to_string(guess.heuristic);
        return text;
    };
    CHECK(heuristics(Paging::two_level, 1, Gfn{0x37fff}) == "146");
    CHECK(heuristics(Paging::two_level, 1, Gfn{0x38000}) == "16");
    CHECK(heuristics(Paging::two_level, 2, Gfn{0x37fff}) == "4");
    CHECK(heuristics(Paging::two_level, 0, Gfn{0x37fff}) == "4");
    CHECK(heuristics(Paging::pae, 2, Gfn{1}) == "246");
    CHECK(heuristics(Paging::pae, 0, Gfn{0x38000}).empty());
    CHECK(heuristics(Paging::four_level, 1, Gfn{1}) == "3444466");
    CHECK(heuristics(Paging::four_level, 4, Gfn{1}) == "44446");
    CHECK(heuristics(Paging::four_level, 0, Gfn{1}) == "44446");
    CHECK(heuristics(Paging::off, 1, Gfn{1}).empty());
}

TEST_CASE("out of sync: slots of a vCPU", "[shadow]")
{
    OutOfSyncTables tables{2, 3, 2};
    CHECK_FALSE(tables.any());
    CHECK_FALSE(tables.evicted_by(0, Gfn{3}));
    CHECK(tables.add(0, Gfn{3}).fixups.size() == 2);
    CHECK(tables.may_write(Gfn{3}));
    CHECK_FALSE(tables.may_write(Gfn{6}));
    // 6 has the same home: 3 moves on to the second place.
    CHECK_FALSE(tables.evicted_by(0, Gfn{6}));
    (void)tables.add(0, Gfn{6});
    CHECK(tables.of(0) == std::vector{Gfn{6}, Gfn{3}});
    // 9 too: 6 moves on, and 3 has to leave.
    CHECK(tables.evicted_by(0, Gfn{9}) == Gfn{3});
    tables.remove(Gfn{3});
    (void)tables.add(0, Gfn{9});
    CHECK(tables.of(0) == std::vector{Gfn{9}, Gfn{6}});
    // Home is taken by one that is displaced: that one leaves, nobody moves.
    CHECK(tables.evicted_by(0, Gfn{4}) == Gfn{6});
    tables.remove(Gfn{6});
    (void)tables.add(0, Gfn{4});
    CHECK(tables.of(0) == std::vector{Gfn{9}, Gfn{4}});
    CHECK(tables.of(1).empty());
    CHECK_FALSE(tables.evicted_by(1, Gfn{9}));
    tables.remove(Gfn{9});
    tables.remove(Gfn{4});
    CHECK_FALSE(tables.any());
}

TEST_CASE("virtual TLB: 13 entries, by page number", "[shadow]")
{
    VirtualTlb tlb{13};
    const LinearAddress page{0x5000};
    CHECK_FALSE(tlb.find(page, 1));
    tlb.insert(page, Gfn{7}, pf::kPresent | pf::kWrite);
    CHECK(tlb.find(LinearAddress{0x5fff}, pf::kPresent) == Gfn{7});
    CHECK(tlb.find(page, pf::kPresent | pf::kWrite) == Gfn{7});
    CHECK_FALSE(tlb.find(page, pf::kPresent | pf::kUser));  // not what was proved
    CHECK_FALSE(tlb.find(LinearAddress{0x5000 + 13 * 0x1000}, pf::kPresent));
    tlb.insert(LinearAddress{0x5000 + 13 * 0x1000}, Gfn{8}, pf::kPresent);
    CHECK_FALSE(tlb.find(page, pf::kPresent));
    tlb.clear();
    CHECK_FALSE(tlb.find(LinearAddress{0x5000 + 13 * 0x1000}, pf::kPresent));
}
