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
    : free_{spec.entries}
    , row_ways_{row_ways_of(spec)}
    , row_reciprocal_{((std::uint64_t{1} << kReciprocalShift) + row_ways_ - 1) / row_ways_}
    , replacement_{spec.replacement.make(spec.entries / row_ways_, row_ways_)}
    , tags_(spec.entries)
    , prints_(spec.entries + sizeof(std::uint64_t), 0)
    , contents_(spec.entries)
{
    for (const EntryView& view : spec.views) {
        views_[static_cast<std::size_t>(view.kind)] = {view.ways, view.first_way, view.stride,
                                                       IndexFunction{spec.index, spec.entries / view.stride}};
    }
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
