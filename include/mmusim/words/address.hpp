// SPDX-License-Identifier: Apache-2.0
//
// Addresses and frame numbers, typed by the space they belong to (SDM vol. 3A 3.1, "virtual -> linear ->
// physical"; reference: a guest's physical address is not the machine's). All are byte addresses or
// numbers of 4 KiB frames. There is no implicit conversion between spaces: the only ways across are
// the segmentation unit (virtual -> linear), a page walk (linear -> physical) and the P2M
// (guest-physical -> machine). Whether an address is canonical depends on the paging mode and is not a
// property of the type.
#pragma once

#include <compare>
#include <cstdint>

#include <fmt/core.h>

namespace mmusim {

inline constexpr unsigned kPageShift = 12;
inline constexpr std::uint64_t kPageBytes = std::uint64_t{1} << kPageShift;
inline constexpr std::uint64_t kPageOffsetMask = kPageBytes - 1;

namespace space {
struct Virtual;
struct Linear;
struct GuestPhysical;
struct Machine;
}  // namespace space

/// A byte address in one space.
template <class Space>
class Address {
public:
    constexpr Address() = default;
    constexpr explicit Address(std::uint64_t value) : value_{value} {}

    [[nodiscard]] constexpr std::uint64_t value() const { return value_; }
    [[nodiscard]] constexpr unsigned offset_in_page() const
    {
        return static_cast<unsigned>(value_ & kPageOffsetMask);
    }

    friend constexpr auto operator<=>(Address, Address) = default;
    friend constexpr Address operator+(Address address, std::uint64_t bytes)
    {
        return Address{address.value_ + bytes};
    }

private:
    std::uint64_t value_ = 0;
};

/// A 4 KiB frame in one space.
template <class Space>
class Frame {
public:
    constexpr Frame() = default;
    constexpr explicit Frame(std::uint64_t number) : number_{number} {}
    /// The frame that holds `address`.
    static constexpr Frame of(Address<Space> address) { return Frame{address.value() >> kPageShift}; }

    [[nodiscard]] constexpr std::uint64_t number() const { return number_; }
    [[nodiscard]] constexpr Address<Space> address(std::uint64_t offset = 0) const
    {
        return Address<Space>{(number_ << kPageShift) + offset};
    }

    friend constexpr auto operator<=>(Frame, Frame) = default;
    friend constexpr Frame operator+(Frame frame, std::uint64_t frames)
    {
        return Frame{frame.number_ + frames};
    }

private:
    std::uint64_t number_ = 0;
};

using VirtualAddress = Address<space::Virtual>;  ///< an offset in a segment
using LinearAddress = Address<space::Linear>;    ///< what paging translates
using GuestPhysical = Address<space::GuestPhysical>;
using MachineAddress = Address<space::Machine>;
using Gfn = Frame<space::GuestPhysical>;
using Mfn = Frame<space::Machine>;

}  // namespace mmusim

template <class Space>
struct fmt::formatter<mmusim::Address<Space>> : fmt::formatter<std::uint64_t> {
    template <class Context>
    auto format(mmusim::Address<Space> address, Context& context) const
    {
        return fmt::format_to(context.out(), "{:#x}", address.value());
    }
};

template <class Space>
struct fmt::formatter<mmusim::Frame<Space>> : fmt::formatter<std::uint64_t> {
    template <class Context>
    auto format(mmusim::Frame<Space> frame, Context& context) const
    {
        return fmt::format_to(context.out(), "{:#x}", frame.number());
    }
};
