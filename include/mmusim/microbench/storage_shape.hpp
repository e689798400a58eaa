// SPDX-License-Identifier: Apache-2.0
//
// What a storage of translations looks like from outside: sets, ways, and which numbers share a set. Index
// functions that differ only in how they name the sets are one and the same here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <mmusim/storage/index_function.hpp>

namespace mmusim::microbench {

struct StorageShape {
    std::uint64_t sets = 1;
    unsigned ways = 0;
    /// Of a set that XORs make: masks whose parities tell the sets apart, in reduced echelon form. Empty: the
    /// number modulo `sets` does.
    std::vector<std::uint64_t> xor_masks = {};

    [[nodiscard]] std::uint64_t entries() const { return sets * ways; }
    /// A name for the number's set.
    [[nodiscard]] std::uint64_t set_of(std::uint64_t number) const;

    friend bool operator==(const StorageShape&, const StorageShape&) = default;
};

/// As the profile states it, in terms of numbers of so many bits.
[[nodiscard]] StorageShape shape_of(std::uint64_t sets, unsigned ways, const IndexSpec& index, unsigned bits);

/// Reduced echelon form over GF(2), each row's highest bit its own, highest first. Rows that depend on others
/// are gone.
[[nodiscard]] std::vector<std::uint64_t> reduced_masks(std::span<const std::uint64_t> masks);
/// A basis of the numbers of so many bits on which all of these (reduced) masks have parity 0.
[[nodiscard]] std::vector<std::uint64_t> kernel_of(std::span<const std::uint64_t> reduced, unsigned bits);

/// "0x2040 0x81".
[[nodiscard]] std::string masks_text(std::span<const std::uint64_t> masks);
/// "2048 = 128 sets x 16 ways, xor-7", "96 = 16 sets x 6 ways, linear", "16, fully associative".
[[nodiscard]] std::string to_string(const StorageShape& shape);

/// The lowest `count` numbers from `first` on that are in the set of `first` in each of these storages.
[[nodiscard]] std::vector<std::uint64_t> same_set(std::span<const StorageShape> storages, std::uint64_t first,
                                                  std::size_t count);

}  // namespace mmusim::microbench
