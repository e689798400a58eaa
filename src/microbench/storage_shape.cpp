// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/storage_shape.hpp>

#include <algorithm>
#include <bit>

#include <fmt/format.h>

namespace mmusim::microbench {

namespace {

std::uint64_t ones(unsigned bits)
{
    return bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
}

std::string index_name(const StorageShape& shape)
{
    if (shape.xor_masks.empty()) return "linear";
    const auto bits = static_cast<unsigned>(shape.xor_masks.size());
    if (bits > 1 && shape.xor_masks == reduced_masks(xor_index(bits).xor_masks))
        return fmt::format("xor-{}", bits);
    return fmt::format("xor {}", masks_text(shape.xor_masks));
}

}  // namespace

std::uint64_t StorageShape::set_of(std::uint64_t number) const
{
    if (xor_masks.empty()) return number % sets;
    std::uint64_t set = 0;
    for (const std::uint64_t mask : xor_masks) {
        set = set << 1 | static_cast<std::uint64_t>(std::popcount(number & mask) & 1);
    }
    return set;
}

StorageShape shape_of(std::uint64_t sets, unsigned ways, const IndexSpec& index, unsigned bits)
{
    StorageShape shape{sets, ways};
    if (index.xor_masks.empty()) return shape;
    std::vector<std::uint64_t> masks = index.xor_masks;
    for (std::uint64_t& mask : masks) mask &= ones(bits);
    shape.xor_masks = reduced_masks(masks);
    shape.sets = std::uint64_t{1} << shape.xor_masks.size();
    // The parities of single low bits are the number modulo the sets.
    const bool low_bits = std::all_of(shape.xor_masks.begin(), shape.xor_masks.end(),
                                      [&](std::uint64_t mask) { return mask < shape.sets; });
    if (low_bits) shape.xor_masks.clear();
    return shape;
}

std::vector<std::uint64_t> reduced_masks(std::span<const std::uint64_t> masks)
{
    std::vector<std::uint64_t> rows;
    for (std::uint64_t mask : masks) {
        for (const std::uint64_t row : rows) mask = std::min(mask, mask ^ row);
        if (mask == 0) continue;
        const std::uint64_t top = std::bit_floor(mask);
        for (std::uint64_t& row : rows) row = (row & top) != 0 ? row ^ mask : row;
        rows.push_back(mask);
    }
    std::sort(rows.rbegin(), rows.rend());
    return rows;
}

std::vector<std::uint64_t> kernel_of(std::span<const std::uint64_t> reduced, unsigned bits)
{
    std::vector<std::uint64_t> basis;
    for (unsigned bit = 0; bit < bits; ++bit) {
        std::uint64_t number = std::uint64_t{1} << bit;
        const auto is_top = [&](std::uint64_t mask) { return std::bit_floor(mask) == number; };
        if (std::any_of(reduced.begin(), reduced.end(), is_top)) continue;
        std::uint64_t tops = 0;
        for (const std::uint64_t mask : reduced) tops |= (mask & number) != 0 ? std::bit_floor(mask) : 0;
        basis.push_back(number | tops);
    }
    return basis;
}

std::string masks_text(std::span<const std::uint64_t> masks)
{
    std::string text;
    for (const std::uint64_t mask : masks) text += fmt::format("{}{:#x}", text.empty() ? "" : " ", mask);
    return text;
}

std::string to_string(const StorageShape& shape)
{
    if (shape.sets == 1) return fmt::format("{}, fully associative", shape.ways);
    return fmt::format("{} = {} sets x {} {}, {}", shape.entries(), shape.sets, shape.ways,
                       shape.ways == 1 ? "way" : "ways", index_name(shape));
}

std::vector<std::uint64_t> same_set(std::span<const StorageShape> storages, std::uint64_t first,
                                    std::size_t count)
{
    std::vector<std::uint64_t> numbers;
    for (std::uint64_t number = first; numbers.size() < count; ++number) {
        const bool same = std::all_of(storages.begin(), storages.end(), [&](const StorageShape& storage) {
            return storage.set_of(number) == storage.set_of(first);
        });
        if (same) numbers.push_back(number);
    }
    return numbers;
}

}  // namespace mmusim::microbench
