// SPDX-License-Identifier: Apache-2.0
//
// The source of random choices in tests: the same numbers everywhere for a seed.
#pragma once

#include <cstdint>
#include <iterator>

namespace support {

/// splitmix64.
class Random64 {
public:
    explicit Random64(std::uint64_t seed) : state_{seed} {}

    std::uint64_t word()
    {
        std::uint64_t z = state_ += 0x9e37'79b9'7f4a'7c15;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return z ^ (z >> 31);
    }
    unsigned below(unsigned limit) { return static_cast<unsigned>(word() % limit); }
    /// first..last, inclusive.
    unsigned from_to(unsigned first, unsigned last) { return first + below(last - first + 1); }
    bool percent(unsigned chance) { return below(100) < chance; }
    template <class Container>
    auto one_of(const Container& values)
    {
        return values[below(static_cast<unsigned>(std::size(values)))];
    }

private:
    std::uint64_t state_;
};

}  // namespace support
