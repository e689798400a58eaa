// SPDX-License-Identifier: Apache-2.0
#include <mmusim/storage/index_function.hpp>

namespace mmusim {

IndexSpec xor_index(unsigned bits)
{
    IndexSpec spec;
    for (unsigned i = 0; i < bits; ++i) {
        spec.xor_masks.push_back(std::uint64_t{1} << i | std::uint64_t{1} << (i + bits));
    }
    return spec;
}

IndexFunction::IndexFunction(const IndexSpec& spec, unsigned sets) : last_{sets - 1}, masks_{spec.xor_masks}
{
    const auto bits = static_cast<unsigned>(masks_.size());
    if (bits == 0) {
        folds_ = std::has_single_bit(sets);
    } else {
        folds_ = spec == xor_index(bits);
        if (folds_) fold_ = bits;
    }
}

}  // namespace mmusim
