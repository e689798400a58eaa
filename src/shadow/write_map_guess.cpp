// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/write_map_guess.hpp>

namespace mmusim {

namespace {

constexpr Gfn kLowMemory{0x38000};  ///< Linux maps 896 MiB of a 32-bit guest's memory directly

void guess_two_level(WriteMapGuesses& guesses, int level, std::uint64_t va, Gfn table)
{
    const auto add = [&](unsigned heuristic, std::uint64_t address) {
        guesses.push_back({heuristic, LinearAddress{address & 0xffff'ffff}});
    };
    if (level == 1) add(1, 0xc000'0000 + (va >> 10));
    if (table < kLowMemory) add(4, 0xc000'0000 + table.address().value());
    if (level == 1) add(6, 0xbfc0'0000 + (va >> 10));
}

void guess_pae(WriteMapGuesses& guesses, int level, std::uint64_t va, Gfn table)
{
    const auto add = [&](unsigned heuristic, std::uint64_t address) {
        guesses.push_back({heuristic, LinearAddress{address & 0xffff'ffff}});
    };
    if (level == 1) add(2, 0xc000'0000 + (va >> 9));
    if (level == 2) add(2, 0xc060'0000 + (va >> 18));
    if (table < kLowMemory) add(4, 0xc000'0000 + table.address().value());
    if (level == 1) add(6, 0xbf80'0000 + (va >> 9));
    if (level == 2) add(6, 0xbfdf'c000 + (va >> 18));
}

void guess_four_level(WriteMapGuesses& guesses, int level, std::uint64_t va, Gfn table)
{
    const auto add = [&](unsigned heuristic, std::uint64_t address) {
        guesses.push_back({heuristic, LinearAddress{address}});
    };
    const std::uint64_t va48 = va & 0xffff'ffff'ffff;
    const std::uint64_t gpa = table.address().value();
    if (level == 1) add(3, 0xffff'f680'0000'0000 + (va48 >> 9));
    if (level == 2) add(3, 0xffff'f6fb'4000'0000 + (va48 >> 18));
    if (level == 3) add(3, 0xffff'f6fb'7da0'0000 + (va48 >> 27));
    add(4, 0xffff'8800'0000'0000 + gpa);
    add(4, 0xffff'8100'0000'0000 + gpa);
    add(4, 0x0000'0100'0000'0000 + gpa);
    add(4, 0xffff'fe00'0000'0000 + gpa);
    if (level == 1) add(6, 0xffff'8000'0000'0000 + (va48 >> 9));
    if (level == 2) add(6, 0xffff'8040'0000'0000 + (va48 >> 18));
    if (level == 3) add(6, 0xffff'8040'2000'0000 + (va48 >> 27));
    add(6, 0xffff'ff00'0000'0000 + gpa);
}

}  // namespace

WriteMapGuesses write_map_guesses(Paging paging, int level, LinearAddress address, Gfn table)
{
    WriteMapGuesses guesses;
    switch (paging) {
    case Paging::off: break;
    case Paging::two_level: guess_two_level(guesses, level, address.value(), table); break;
    case Paging::pae: guess_pae(guesses, level, address.value(), table); break;
    case Paging::four_level: guess_four_level(guesses, level, address.value(), table); break;
    // Xen has no five-level guests: Linux's direct map there.
    case Paging::five_level:
        guesses.push_back({4, LinearAddress{0xff11'0000'0000'0000 + table.address().value()}});
        break;
    }
    return guesses;
}

}  // namespace mmusim
