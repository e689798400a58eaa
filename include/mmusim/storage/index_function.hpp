// SPDX-License-Identifier: Apache-2.0
//
// Which set a page or a line belongs to. `linear`: the number modulo the sets, which may be any number.
// `xor_bits`: bit i of the set is the parity of the number's bits under mask i; XOR-7, as Skylake's second
// level has it, is bits i and i + 7 for i = 0 to 6.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace mmusim {

struct IndexSpec {
    /// Empty: linear. Else the storage has 2^size sets.
    std::vector<std::uint64_t> xor_masks;

    friend bool operator==(const IndexSpec&, const IndexSpec&) = default;
};

/// XOR-n over 2^n sets.
[[nodiscard]] IndexSpec xor_index(unsigned bits);

class IndexFunction {
public:
    IndexFunction() = default;
    IndexFunction(const IndexSpec& spec, unsigned sets);

    /// `number` < 2^63.
    [[nodiscard]] unsigned operator()(std::uint64_t number) const
    {
        if (folds_) [[likely]]
            return static_cast<unsigned>(number ^ (number >> fold_)) & last_;
        if (masks_.empty()) return static_cast<unsigned>(number % (std::uint64_t{last_} + 1));
        unsigned set = 0;
        for (std::size_t i = 0; i < masks_.size(); ++i) {
            set |= static_cast<unsigned>(std::popcount(number & masks_[i]) & 1) << i;
        }
        return set;
    }

private:
    unsigned last_ = 0;   ///< set
    unsigned fold_ = 63;  ///< n of XOR-n; of `linear` over a power of two, where nothing comes down
    bool folds_ = true;   ///< one of these two
    std::vector<std::uint64_t> masks_;
};

}  // namespace mmusim
