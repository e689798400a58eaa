// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/dirty_set.hpp>

#include <bit>
#include <utility>

namespace mmusim {

namespace {

constexpr unsigned kLeafBits = 15;
constexpr unsigned kNodeBits = 9;
constexpr std::uint64_t kPresent = 1;  // in an entry; frame 0 is a page like others

/// Of the entry for the frame in a page above the leaves, which have level 1.
constexpr unsigned entry_offset(Gfn frame, unsigned level)
{
    const unsigned shift = kLeafBits + (level - 2) * kNodeBits;
    return static_cast<unsigned>(frame.number() >> shift & ((1u << kNodeBits) - 1)) * 8;
}

constexpr unsigned byte_offset(Gfn frame)
{
    return static_cast<unsigned>(frame.number() % DirtySet::kFramesPerLeaf / 8);
}

constexpr std::uint8_t bit_of(Gfn frame)
{
    return static_cast<std::uint8_t>(1u << (frame.number() % 8));
}

constexpr Mfn page_in(std::uint64_t entry)
{
    return Mfn{entry >> kPageShift};
}

}  // namespace

DirtySet::Mark DirtySet::mark(Gfn frame)
{
    const auto take = [&] {
        const std::optional<Mfn> page = take_page_();
        if (page) pages_.push_back(*page);
        return page;
    };
    if (pages_.empty() && !take()) return Mark::no_page;
    Mfn page = pages_.front();
    for (unsigned level = kLevels; level > 1; --level) {
        const unsigned offset = entry_offset(frame, level);
        touched_(page, offset, 8);
        std::uint64_t entry = memory_->load<std::uint64_t>(page.number(), offset);
        if (entry == 0) {
            const std::optional<Mfn> below = take();
            if (!below) return Mark::no_page;
            entry = below->address().value() | kPresent;
            memory_->store(page.number(), offset, entry);
        }
        page = page_in(entry);
    }
    const unsigned offset = byte_offset(frame);
    touched_(page, offset, 1);
    const auto byte = memory_->load<std::uint8_t>(page.number(), offset);
    if ((byte & bit_of(frame)) != 0) return Mark::known;
    memory_->store(page.number(), offset, static_cast<std::uint8_t>(byte | bit_of(frame)));
    return Mark::added;
}

std::optional<Mfn> DirtySet::leaf_of(Gfn frame) const
{
    if (pages_.empty()) return std::nullopt;
    Mfn page = pages_.front();
    for (unsigned level = kLevels; level > 1; --level) {
        const unsigned offset = entry_offset(frame, level);
        touched_(page, offset, 8);
        const std::uint64_t entry = memory_->load<std::uint64_t>(page.number(), offset);
        if (entry == 0) return std::nullopt;
        page = page_in(entry);
    }
    return page;
}

bool DirtySet::contains(Gfn frame) const
{
    const std::optional<Mfn> leaf = leaf_of(frame);
    if (!leaf) return false;
    touched_(*leaf, byte_offset(frame), 1);
    return (memory_->load<std::uint8_t>(leaf->number(), byte_offset(frame)) & bit_of(frame)) != 0;
}

template <class Visit>
void DirtySet::for_each_leaf(Mfn page, unsigned level, std::uint64_t first, Visit& visit) const
{
    if (level == 1) {
        visit(page, first);
        return;
    }
    const unsigned shift = kLeafBits + (level - 2) * kNodeBits;
    for (unsigned i = 0; i < 1u << kNodeBits; ++i) {
        const std::uint64_t entry = memory_->load<std::uint64_t>(page.number(), i * 8);
        if (entry != 0) for_each_leaf(page_in(entry), level - 1, first | std::uint64_t{i} << shift, visit);
    }
}

std::vector<Gfn> DirtySet::frames() const
{
    std::vector<Gfn> all;
    const auto add = [&](Mfn leaf, std::uint64_t first) {
        for (unsigned i = 0; i < kPageBytes / 8; ++i) {
            auto word = memory_->load<std::uint64_t>(leaf.number(), i * 8);
            for (; word != 0; word &= word - 1)
                all.emplace_back(first + std::uint64_t{i} * 64 +
                                 static_cast<unsigned>(std::countr_zero(word)));
        }
    };
    if (!pages_.empty()) for_each_leaf(pages_.front(), kLevels, 0, add);
    return all;
}

void DirtySet::clear()
{
    const auto discard = [&](Mfn leaf, std::uint64_t) { memory_->discard(leaf.number()); };
    if (!pages_.empty()) for_each_leaf(pages_.front(), kLevels, 0, discard);
}

std::vector<Mfn> DirtySet::release()
{
    for (const Mfn page : pages_) memory_->discard(page.number());
    return std::exchange(pages_, {});
}

}  // namespace mmusim
