// SPDX-License-Identifier: Apache-2.0
//
// Memory for tables that keeps its history: every load and every exchange that took effect, in order. A few
// frames 1 GiB apart (so that each may also be named by a large page's entry); all else reads as 0. A hook
// runs before each exchange, where another CPU may step in.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim::test {

class FakeTables {
public:
    using Space = space::Machine;

    static constexpr std::uint64_t kStride = std::uint64_t{1} << 30;  ///< bytes from one frame to the next
    static constexpr std::size_t kFrames = 8;

    struct Exchange {
        std::uint64_t at;
        std::uint64_t before;
        std::uint64_t after;
    };

    /// Physical address of frame `n`, 0 to 7. Frame 0 is not at address 0.
    static constexpr std::uint64_t address(std::size_t n) { return kStride * (n + 1); }
    static constexpr Mfn frame(std::size_t n) { return Mfn{address(n) >> 12}; }

    FakeTables() : bytes_(kFrames * 4096) {}

    // ---- what the walk uses

    template <class Word>
    [[nodiscard]] Word load(Mfn frame, unsigned offset)
    {
        const std::uint64_t at = frame.address(offset).value();
        loads_.push_back(at);
        return static_cast<Word>(peek(at, sizeof(Word)));
    }

    template <class Word>
    [[nodiscard]] bool exchange(Mfn frame, unsigned offset, Word expected, Word desired)
    {
        const std::uint64_t at = frame.address(offset).value();
        if (before_exchange) before_exchange(at);
        ++attempts_;
        if (peek(at, sizeof(Word)) != expected) return false;
        poke(at, sizeof(Word), desired);
        exchanges_.push_back({at, expected, desired});
        return true;
    }

    // ---- what the test uses

    std::function<void(std::uint64_t at)> before_exchange;

    [[nodiscard]] std::uint64_t peek(std::uint64_t at, std::uint64_t size) const
    {
        std::uint64_t word = 0;
        if (const std::byte* place = find(at)) std::memcpy(&word, place, size);
        return word;
    }
    void poke(std::uint64_t at, std::uint64_t size, std::uint64_t word)
    {
        if (std::byte* place = const_cast<std::byte*>(find(at))) std::memcpy(place, &word, size);
    }
    [[nodiscard]] const std::vector<std::uint64_t>& loads() const { return loads_; }
    [[nodiscard]] const std::vector<Exchange>& exchanges() const { return exchanges_; }
    [[nodiscard]] int attempts() const { return attempts_; }
    void forget()
    {
        loads_.clear();
        exchanges_.clear();
        attempts_ = 0;
    }

private:
    [[nodiscard]] const std::byte* find(std::uint64_t at) const
    {
        const std::uint64_t n = at / kStride;
        if (n == 0 || n > kFrames || at % kStride >= 4096) return nullptr;
        return bytes_.data() + (n - 1) * 4096 + at % kStride;
    }

    std::vector<std::byte> bytes_;
    std::vector<std::uint64_t> loads_;
    std::vector<Exchange> exchanges_;
    int attempts_ = 0;
};

static_assert(TableMemory<FakeTables>);

/// Calls `f.template operator()<Mode>()` with the mode of that name.
template <class F>
decltype(auto) with_mode(Paging paging, F&& f)
{
    switch (paging) {
    case Paging::two_level: return f.template operator()<kTwoLevel>();
    case Paging::pae: return f.template operator()<kPae>();
    case Paging::five_level: return f.template operator()<kFiveLevel>();
    default: return f.template operator()<kFourLevel>();
    }
}

inline constexpr std::array<Paging, 4> kModes{Paging::two_level, Paging::pae, Paging::four_level,
                                              Paging::five_level};

}  // namespace mmusim::test
