// SPDX-License-Identifier: Apache-2.0
//
// An array of a fixed size that begins as zeros, and of which only what is touched costs memory: the lines
// of a large cache.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace mmusim {

template <class T>
class ZeroedArray {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

public:
    explicit ZeroedArray(std::size_t size)
        : items_{static_cast<T*>(std::calloc(size == 0 ? 1 : size, sizeof(T)))}, size_{size}
    {
        if (items_ == nullptr) throw std::bad_alloc{};
    }

    [[nodiscard]] T& operator[](std::size_t i) { return items_.get()[i]; }
    [[nodiscard]] const T& operator[](std::size_t i) const { return items_.get()[i]; }
    [[nodiscard]] T* begin() { return items_.get(); }
    [[nodiscard]] std::size_t size() const { return size_; }

private:
    struct Free {
        void operator()(T* items) const { std::free(items); }
    };
    std::unique_ptr<T, Free> items_;
    std::size_t size_;
};

}  // namespace mmusim
