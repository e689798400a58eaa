// SPDX-License-Identifier: Apache-2.0
//
// Result<T, E>: a value, or the architecture's other answer (a page fault, a refused register value).
// Such answers are values, not C++ errors. Small on purpose: C++20 has no std::expected.
#pragma once

#include <cassert>
#include <utility>
#include <variant>

namespace mmusim {

template <class T, class E>
class [[nodiscard]] Result {
public:
    constexpr Result(T value) : state_{std::in_place_index<0>, std::move(value)} {}
    constexpr Result(E error) : state_{std::in_place_index<1>, std::move(error)} {}

    [[nodiscard]] constexpr bool ok() const { return state_.index() == 0; }
    constexpr explicit operator bool() const { return ok(); }

    /// Only if ok().
    [[nodiscard]] constexpr const T& value() const
    {
        assert(ok());
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] constexpr const T& operator*() const { return value(); }
    [[nodiscard]] constexpr const T* operator->() const { return &value(); }

    /// Only if not ok().
    [[nodiscard]] constexpr const E& error() const
    {
        assert(!ok());
        return *std::get_if<1>(&state_);
    }

private:
    std::variant<T, E> state_;
};

}  // namespace mmusim
