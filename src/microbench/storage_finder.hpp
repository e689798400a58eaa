// SPDX-License-Identifier: Apache-2.0
//
// Finds the shape of a storage from answers to one question: does it, empty at first, hold all of these
// numbers at once? Free ways are taken first, so the answer depends on no replacement policy: it is yes if
// and only if no set gets more numbers than it has ways.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <mmusim/microbench/storage_shape.hpp>

#include "microbench/random.hpp"

namespace mmusim::microbench {

class Storage {
public:
    Storage() = default;
    virtual ~Storage() = default;
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    /// Numbers are 0 to 2^bits - 1.
    [[nodiscard]] virtual unsigned bits() const = 0;
    using Numbers = std::span<const std::uint64_t>;

    /// Whether all of `numbers` are there once each of them and then of `more` has been brought in. A yes is
    /// certain. A no may have another cause; then other numbers of the same sets may do.
    [[nodiscard]] virtual bool holds(Numbers numbers, Numbers more = {}) = 0;
    /// What follows, until `release`, is about these and something more: what is arranged so that they are
    /// held may stay as it is. False if they are not held.
    [[nodiscard]] virtual bool fix(Numbers numbers) { return holds(numbers); }
    virtual void release() {}
    /// Numbers that bring in the same tables as `number`. If each of them drives something out where it does,
    /// it is the tables that take the room.
    [[nodiscard]] virtual std::vector<std::uint64_t> neighbours(std::uint64_t /*number*/) const { return {}; }
};

/// Nothing, if the answers fit neither numbers modulo sets nor XORs of their bits.
[[nodiscard]] std::optional<StorageShape> find_shape(Storage& storage, Random& random);

}  // namespace mmusim::microbench
