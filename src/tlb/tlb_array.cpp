// SPDX-License-Identifier: Apache-2.0
#include <mmusim/tlb/tlb_array.hpp>

#include <algorithm>
#include <bit>
#include <cstring>

namespace mmusim {

namespace {

constexpr std::uint64_t kEachByte = 0x0101'0101'0101'0101;

/// The top bit of each byte of `word` that is 0; bytes above the first such one may be marked in error.
std::uint64_t zero_bytes(std::uint64_t word)
{
    return (word - kEachByte) & ~word & (kEachByte << 7);
}

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
    : free_{spec.entries}
    , row_ways_{row_ways_of(spec)}
    , replacement_{spec.replacement.make(spec.entries / row_ways_, row_ways_)}
    , tags_(spec.entries)
    , prints_(spec.entries + sizeof(std::uint64_t), 0)
    , contents_(spec.entries)
{
    for (const EntryView& view : spec.views) {
        views_[static_cast<std::size_t>(view.kind)] = {view.ways, view.first_way, view.stride,
                                                       static_cast<std::uint8_t>(indices_.size())};
        indices_.emplace_back(spec.index, spec.entries / view.stride);
    }
}

template <class Visit>
inline std::uint32_t TlbArray::find_print(std::uint32_t first, unsigned ways, std::uint8_t print,
                                          Visit visit) const
{
    for (unsigned done = 0; done < ways; done += sizeof(std::uint64_t)) {
        std::uint64_t word = 0;
        std::memcpy(&word, &prints_[first + done], sizeof word);
        for (std::uint64_t found = zero_bytes(word ^ kEachByte * print); found != 0; found &= found - 1) {
            const unsigned way = done + static_cast<unsigned>(std::countr_zero(found)) / 8;
            if (way >= ways) break;
            if (prints_[first + way] == print && visit(first + way)) return first + way;
        }
    }
    return kNone;
}

std::uint32_t TlbArray::find(EntryKind kind, std::uint64_t number, unsigned pcid) const
{
    const TlbTag wanted{kind, number, pcid, false};
    const View& view = views_[static_cast<std::size_t>(kind)];
    return find_print(first_of_set(view, number), view.ways, wanted.fingerprint(), [&](std::uint32_t entry) {
        return tags_[entry].same_page(wanted) && tags_[entry].serves(pcid);
    });
}

TlbArray::Insertion TlbArray::insert(TlbTag tag, const TlbContent& content, Evicted* evicted, bool absent)
{
    const auto kind = static_cast<std::size_t>(tag.kind());
    const View& view = views_[kind];
    const std::uint32_t first = first_of_set(view, tag.number());
    Insertion done{kNone, false};
    if (!absent) {
        done.entry = find_print(first, view.ways, tag.fingerprint(),
                                [&](std::uint32_t entry) { return tags_[entry] == tag; });
    }
    if (done.entry == kNone && free_ != 0) {
        done.entry = find_print(first, view.ways, 0, [](std::uint32_t) { return true; });
    }
    if (done.entry == kNone) {
        const unsigned row = row_of(first);
        done = {row * row_ways_ + replacement_->victim(row, {way_of(first), view.ways}), true};
        if (evicted != nullptr) *evicted = {tags_[done.entry], contents_[done.entry]};
    }
    if (tags_[done.entry].valid()) remove(done.entry);
    tags_[done.entry] = tag;
    prints_[done.entry] = tag.fingerprint();
    TlbContent& place = contents_[done.entry];
    place = content;
    place.id = ++next_id_;
    --free_;
    ++live_[kind];
    fragments_ += content.page_shift > content.entry_shift ? 1 : 0;
    replacement_->on_fill(row_of(done.entry), way_of(done.entry));
    return done;
}

void TlbArray::remove(std::uint32_t entry)
{
    --live_[static_cast<std::size_t>(tags_[entry].kind())];
    fragments_ -= contents_[entry].page_shift > contents_[entry].entry_shift ? 1 : 0;
    ++free_;
    tags_[entry] = {};
    prints_[entry] = 0;
    contents_[entry].id = 0;
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
