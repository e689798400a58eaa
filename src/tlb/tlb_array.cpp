// SPDX-License-Identifier: Apache-2.0
#include <mmusim/tlb/tlb_array.hpp>

#include <algorithm>

namespace mmusim {

namespace {

/// Rows of the array's own ways, if all kinds keep to them; else one row of everything, where only policies
/// that go by stamps make sense.
unsigned row_ways_of(const TlbArraySpec& spec)
{
    const bool own_rows = std::all_of(spec.views.begin(), spec.views.end(),
                                      [&](const EntryView& view) { return view.stride == spec.ways; });
    return own_rows ? spec.ways : spec.entries;
}

}  // namespace

TlbArray::TlbArray(const TlbArraySpec& spec)
    : row_ways_{row_ways_of(spec)}
    , replacement_{spec.replacement.make(spec.entries / row_ways_, row_ways_)}
    , tags_(spec.entries)
    , ids_(spec.entries, 0)
    , contents_(spec.entries)
{
    for (const EntryView& view : spec.views) {
        views_[static_cast<std::size_t>(view.kind)] = {view.ways, view.first_way, view.stride,
                                                       static_cast<std::uint8_t>(indices_.size())};
        indices_.emplace_back(spec.index, spec.entries / view.stride);
    }
}

std::uint32_t TlbArray::find(EntryKind kind, std::uint64_t number, unsigned pcid) const
{
    const View& view = views_[static_cast<std::size_t>(kind)];
    const TlbTag of_pcid{kind, number, pcid, false};
    const TlbTag global{kind, number, 0, true};
    const std::uint32_t first = first_of_set(view, number);
    for (std::uint32_t i = first; i < first + view.ways; ++i) {
        if (tags_[i] == of_pcid || tags_[i] == global) return i;
    }
    return kNone;
}

TlbArray::Insertion TlbArray::insert(TlbTag tag, const TlbContent& content)
{
    const auto kind = static_cast<std::size_t>(tag.kind());
    const View& view = views_[kind];
    const std::uint32_t first = first_of_set(view, tag.number());
    std::uint32_t place = kNone;
    std::uint32_t free = kNone;
    for (std::uint32_t i = first; i < first + view.ways; ++i) {
        if (tags_[i] == tag) {
            place = i;
            break;
        }
        if (free == kNone && !tags_[i].valid()) free = i;
    }
    Insertion result{};
    if (place == kNone) place = free;
    if (place == kNone) {
        const unsigned row = row_of(first);
        place = row * row_ways_ + replacement_->victim(row, {way_of(first), view.ways});
        result.evicted = Evicted{tags_[place], contents_[place]};
    }
    if (tags_[place].valid()) remove(place);
    tags_[place] = tag;
    ids_[place] = ++next_id_;
    contents_[place] = content;
    ++live_[kind];
    fragments_ += content.page_shift > shift_of(tag.kind()) ? 1 : 0;
    replacement_->filled(row_of(place), way_of(place));
    result.entry = place;
    return result;
}

void TlbArray::remove(std::uint32_t entry)
{
    const EntryKind kind = tags_[entry].kind();
    --live_[static_cast<std::size_t>(kind)];
    fragments_ -= contents_[entry].page_shift > shift_of(kind) ? 1 : 0;
    tags_[entry] = {};
    ids_[entry] = 0;
}

void TlbArray::reset()
{
    if (next_id_ == 0) return;  // never filled
    remove_if([](TlbTag, const TlbContent&) { return true; });
    for (unsigned row = 0; row < entries() / row_ways_; ++row) replacement_->reset(row);
    next_id_ = 0;
}

void TlbArray::remove_page(EntryKind kind, std::uint64_t number, unsigned pcid, bool with_globals,
                           bool with_pcid)
{
    const View& view = views_[static_cast<std::size_t>(kind)];
    const TlbTag of_pcid{kind, number, pcid, false};
    const TlbTag global{kind, number, 0, true};
    const std::uint32_t first = first_of_set(view, number);
    for (std::uint32_t i = first; i < first + view.ways; ++i) {
        if ((with_pcid && tags_[i] == of_pcid) || (with_globals && tags_[i] == global)) remove(i);
    }
}

}  // namespace mmusim
