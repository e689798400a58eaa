// SPDX-License-Identifier: Apache-2.0
//
// In the steady state an access takes no memory from the heap: natively always, under shadows wherever no
// shadow has to be made.
#include <cstdlib>
#include <new>

#include "support/catch.hpp"
#include "support/guest_builder.hpp"

namespace {

std::size_t allocations = 0;

void* counted(std::size_t bytes)
{
    ++allocations;
    return std::malloc(bytes == 0 ? 1 : bytes);
}

void* counted(std::size_t bytes, std::align_val_t alignment)
{
    ++allocations;
    const auto to = static_cast<std::size_t>(alignment);
    return std::aligned_alloc(to, (bytes + to - 1) / to * to);
}

void* or_throw(void* memory)
{
    if (memory == nullptr) throw std::bad_alloc{};
    return memory;
}

}  // namespace

// clang-format off
// Replaced for the whole test program: all they do beyond the usual is to count. Every form is here, since
// a sanitizer has its own of each and minds if they are mixed.
using Size = std::size_t;
using Align = std::align_val_t;
using NoThrow = std::nothrow_t;

void* operator new(Size bytes) { return or_throw(counted(bytes)); }
void* operator new[](Size bytes) { return or_throw(counted(bytes)); }
void* operator new(Size bytes, Align to) { return or_throw(counted(bytes, to)); }
void* operator new[](Size bytes, Align to) { return or_throw(counted(bytes, to)); }
void* operator new(Size bytes, const NoThrow&) noexcept { return counted(bytes); }
void* operator new[](Size bytes, const NoThrow&) noexcept { return counted(bytes); }
void* operator new(Size bytes, Align to, const NoThrow&) noexcept { return counted(bytes, to); }
void* operator new[](Size bytes, Align to, const NoThrow&) noexcept { return counted(bytes, to); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, Size) noexcept { std::free(memory); }
void operator delete[](void* memory, Size) noexcept { std::free(memory); }
void operator delete(void* memory, Align) noexcept { std::free(memory); }
void operator delete[](void* memory, Align) noexcept { std::free(memory); }
void operator delete(void* memory, Size, Align) noexcept { std::free(memory); }
void operator delete[](void* memory, Size, Align) noexcept { std::free(memory); }
void operator delete(void* memory, const NoThrow&) noexcept { std::free(memory); }
void operator delete[](void* memory, const NoThrow&) noexcept { std::free(memory); }
void operator delete(void* memory, Align, const NoThrow&) noexcept { std::free(memory); }
void operator delete[](void* memory, Align, const NoThrow&) noexcept { std::free(memory); }
// clang-format on

using namespace guest;

namespace {

/// Allocations of 1000 rounds of `verb`, after two that warm up.
template <class Verb>
std::size_t allocations_of(Verb verb)
{
    verb();
    verb();
    const std::size_t before = allocations;
    for (int i = 0; i < 1000; ++i) verb();
    return allocations - before;
}

}  // namespace

TEST_CASE("steady state: accesses allocate nothing", "[machine]")
{
    CHECK(allocations_of([] { ::operator delete(::operator new(1)); }) >= 1000);  // it does count
    for (const Options& options : everywhere()) {
        for (const Paging paging : {Paging::two_level, Paging::pae, Paging::four_level, Paging::five_level}) {
            Guest guest{paging, options};
            guest.map(0x40'0000, 0x101'000);
            guest.map(0x40'1000, 0x102'000);
            guest.map(0x4000'0000, 0, kAll, 2);
            const std::uint64_t value = 5;
            std::uint64_t sum = 0;
            CHECK(allocations_of([&] {
                      for (const std::uint64_t at : {0x40'0000u, 0x40'0ffcu, 0x40'1000u, 0x4000'3000u}) {
                          const auto placed = guest.machine.access(0, Guest::operand(AccessKind::write, at));
                          if (!placed) std::abort();
                          guest.machine.store(*placed, std::as_bytes(std::span{&value, 1}));
                          sum += placed->parts[0].address.value();
                      }
                  }) == 0);
            CHECK(sum != 0);
        }
    }
}

TEST_CASE("steady state: instructions allocate nothing", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000);
        guest.map(0x40'1000, 0x102'000);
        const std::array<Operand, 4> operands{
            Guest::operand(AccessKind::fetch, 0x40'0100, 4), Guest::operand(AccessKind::read, 0x40'0ffc),
            Guest::operand(AccessKind::read, 0x40'1008), Guest::operand(AccessKind::write, 0x40'0010)};
        Execution result;
        CHECK(allocations_of([&] {
                  guest.machine.execute(0, operands, Restart::instruction, result);
                  if (result.fault) std::abort();
              }) == 0);
    }
}

TEST_CASE("steady state: faults of the guest and emulated accesses allocate nothing", "[machine]")
{
    for (const Options& options : everywhere()) {
        Guest guest{Paging::four_level, options};
        guest.map(0x40'0000, 0x101'000, P | A);
        guest.map(0x50'0000, 0xfee0'0000);
        CHECK(allocations_of([&] {
                  if (guest.machine.access(0, Guest::operand(AccessKind::write, 0x40'0000)).ok())
                      std::abort();
                  if (guest.machine.access(0, Guest::operand(AccessKind::write, 0x60'0000)).ok())
                      std::abort();
                  if (!guest.machine.access(0, Guest::operand(AccessKind::read, 0x50'0000)).ok())
                      std::abort();
              }) == 0);
    }
}
