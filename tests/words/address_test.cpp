// SPDX-License-Identifier: Apache-2.0
//
// An address knows its space. What must not compile is as much behaviour as what must: no address or
// frame turns into one of another space, nor into or out of a bare number by itself; two spaces can't be
// compared. What compiles is arithmetic within one space, and the way between a frame and its bytes.
#include <mmusim/words/address.hpp>

#include <string>
#include <type_traits>

#include <fmt/format.h>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

template <class A, class B>
concept Comparable = requires(A a, B b)
{
    a == b;
}
|| requires(A a, B b)
{
    a < b;
};

template <class A, class B>
concept Addable = requires(A a, B b)
{
    a + b;
};

/// Neither converts, constructs, assigns nor compares into the other.
template <class A, class B>
constexpr bool kApart = !std::is_convertible_v<A, B> && !std::is_constructible_v<B, A> &&
                        !std::is_assignable_v<B&, A> && !Comparable<A, B> && !Addable<A, B>;

template <class A, class... Others>
constexpr bool kApartFromAll = ((kApart<A, Others> && kApart<Others, A>)&&...);

static_assert(kApartFromAll<VirtualAddress, LinearAddress, GuestPhysical, MachineAddress, Gfn, Mfn>);
static_assert(kApartFromAll<LinearAddress, GuestPhysical, MachineAddress, Gfn, Mfn>);
static_assert(kApartFromAll<GuestPhysical, MachineAddress, Gfn, Mfn>);
static_assert(kApartFromAll<MachineAddress, Gfn, Mfn>);
static_assert(kApartFromAll<Gfn, Mfn>);

/// Numbers go in by name only, and do not come out by themselves.
template <class T>
constexpr bool kSpelledOut =
    std::is_constructible_v<T, std::uint64_t> && !std::is_convertible_v<std::uint64_t, T> &&
    !std::is_convertible_v<int, T> && !std::is_convertible_v<T, std::uint64_t> &&
    !std::is_assignable_v<T&, std::uint64_t> && !Comparable<T, std::uint64_t>;

template <class T>
constexpr bool kPlainWord = sizeof(T) == 8 && std::is_trivially_copyable_v<T>&& kSpelledOut<T>;

static_assert(kPlainWord<VirtualAddress> && kPlainWord<LinearAddress> && kPlainWord<GuestPhysical>);
static_assert(kPlainWord<MachineAddress> && kPlainWord<Gfn> && kPlainWord<Mfn>);

template <class F, class A>
concept FrameOf = requires(A address)
{
    F::of(address);
};

static_assert(FrameOf<Gfn, GuestPhysical> && FrameOf<Mfn, MachineAddress>);
static_assert(!FrameOf<Gfn, MachineAddress> && !FrameOf<Mfn, GuestPhysical>);
static_assert(!FrameOf<Gfn, LinearAddress> && !FrameOf<Mfn, LinearAddress>);
static_assert(std::is_same_v<decltype(Gfn{}.address()), GuestPhysical>);
static_assert(std::is_same_v<decltype(Mfn{}.address()), MachineAddress>);

template <class T>
concept Subtractable = requires(T a, T b)
{
    a - b;
};
static_assert(!Subtractable<Gfn> && !Addable<Gfn, Gfn> && !Addable<LinearAddress, LinearAddress>);

}  // namespace

TEST_CASE("address: a frame and its bytes", "[words]")
{
    const GuestPhysical address{0x1234'5678'9abc};
    CHECK(Gfn::of(address) == Gfn{0x1'2345'6789});
    CHECK(address.offset_in_page() == 0xabc);
    CHECK(Gfn::of(address).address() == GuestPhysical{0x1234'5678'9000});
    CHECK(Gfn::of(address).address(address.offset_in_page()) == address);
    CHECK(Gfn::of(GuestPhysical{0xfff}) == Gfn{0});
    CHECK(Gfn::of(GuestPhysical{0x1000}) == Gfn{1});
    CHECK(Mfn{0xff'ffff'ffff}.address(0xfff) == MachineAddress{0x000f'ffff'ffff'ffff});
}

TEST_CASE("address: order and sums within a space", "[words]")
{
    CHECK(LinearAddress{}.value() == 0);
    CHECK(Gfn{}.number() == 0);
    CHECK(LinearAddress{1} < LinearAddress{0xffff'8000'0000'0000});  // as numbers, not as signed ones
    CHECK(Mfn{3} + 4 == Mfn{7});
    CHECK(LinearAddress{~std::uint64_t{0}} + 1 == LinearAddress{0});
    CHECK(VirtualAddress{0x1000} + 0xfff == VirtualAddress{0x1fff});
}

TEST_CASE("address: printed as hex digits with 0x", "[words]")
{
    CHECK(fmt::format("{}", LinearAddress{0xffff'8000'0000'1000}) == "0xffff800000001000");
    CHECK(fmt::format("{}", VirtualAddress{0x10}) == "0x10");
    CHECK(fmt::format("{}", GuestPhysical{0xabc}) == "0xabc");
    CHECK(fmt::format("{}", MachineAddress{0}) == "0x0");
    CHECK(fmt::format("gfn {} is mfn {}", Gfn{0x10'0000}, Mfn{7}) == "gfn 0x100000 is mfn 0x7");
}
