// SPDX-License-Identifier: Apache-2.0
#include <mmusim/words/memory.hpp>

#include <algorithm>
#include <cassert>

namespace mmusim {

SparseMemory::SparseMemory() : remembered_(kRemembered, Remembered{kNoFrame, nullptr}) {}

void SparseMemory::look_up(Remembered& slot, std::uint64_t frame) const
{
    const auto found = pages_.find(frame);
    slot = {frame, found == pages_.end() ? nullptr : found->second->bytes.data()};
}

std::byte* SparseMemory::make(std::uint64_t frame)
{
    Remembered& slot = remembered_[frame % kRemembered];
    if (slot.frame == frame && slot.page != nullptr) return slot.page;
    std::unique_ptr<Page>& page = pages_[frame];
    if (!page) {
        if (free_.empty()) {
            page = std::make_unique<Page>();
        } else {
            page = std::move(free_.back());
            free_.pop_back();
        }
        page->bytes.fill(std::byte{0});
    }
    slot = {frame, page->bytes.data()};
    return slot.page;
}

void SparseMemory::read(std::uint64_t frame, unsigned offset, std::span<std::byte> bytes) const
{
    assert(offset + bytes.size() <= kPageBytes);
    if (bytes.empty()) return;
    if (const std::byte* page = find(frame)) {
        std::memcpy(bytes.data(), page + offset, bytes.size());
    } else {
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
    }
}

void SparseMemory::write(std::uint64_t frame, unsigned offset, std::span<const std::byte> bytes)
{
    assert(offset + bytes.size() <= kPageBytes);
    if (bytes.empty()) return;
    std::memcpy(make(frame) + offset, bytes.data(), bytes.size());
}

void SparseMemory::discard(std::uint64_t frame)
{
    const auto found = pages_.find(frame);
    if (found == pages_.end()) return;
    free_.push_back(std::move(found->second));
    pages_.erase(found);
    Remembered& slot = remembered_[frame % kRemembered];
    if (slot.frame == frame) slot = {kNoFrame, nullptr};
}

void SparseMemory::clear()
{
    for (auto& [frame, page] : pages_) free_.push_back(std::move(page));
    pages_.clear();
    std::fill(remembered_.begin(), remembered_.end(), Remembered{kNoFrame, nullptr});
}

}  // namespace mmusim
