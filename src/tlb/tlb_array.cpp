// SPDX-License-Identifier: Apache-2.0
#include <mmusim/tlb/tlb_array.hpp>

#include <algorithm>

#include <fmt/format.h>

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
    , own_rows_{std::all_of(spec.views.begin(), spec.views.end(),
                            [&](const EntryView& view) { return view.stride == row_ways_; })}
    , row_reciprocal_{((std::uint64_t{1} << kReciprocalShift) + row_ways_ - 1) / row_ways_}
    , replacement_{spec.replacement.make(spec.entries / row_ways_, row_ways_)}
    , tags_(spec.entries)
    , prints_(spec.entries + kEqualBytes, 0)
    , contents_(spec.entries)
{
    for (const EntryView& view : spec.views) {
        views_[static_cast<std::size_t>(view.kind)] = {view.ways, view.first_way, view.stride,
                                                       first_ways(view.ways),
                                                       IndexFunction{spec.index, spec.entries / view.stride}};
    }
}

void TlbArray::audit(std::string_view name, std::vector<std::string>& violations) const
{
    std::array<std::uint32_t, kEntryKinds> live{};
    unsigned live_kinds = 0;
    std::uint32_t free = 0;
    std::uint32_t fragments = 0;
    for (std::uint32_t i = 0; i < tags_.size(); ++i) {
        const TlbTag tag = tags_[i];
        const auto complain = [&](std::string_view what) {
            violations.push_back(fmt::format("TLB {}, entry {} ({} page {:#x}, PCID {}): {}", name, i,
                                             name_of(tag.kind()), tag.number(), tag.pcid(), what));
        };
        if (!tag.valid()) {
            ++free;
            if (prints_[i] != 0 || contents_[i].id != 0) complain("free, but not to the search");
            continue;
        }
        ++live[static_cast<std::size_t>(tag.kind())];
        live_kinds |= 1u << static_cast<unsigned>(tag.kind());
        fragments += contents_[i].attributes.fragment() ? 1 : 0;
        const View& view = views_[static_cast<std::size_t>(tag.kind())];
        const std::uint32_t first = view.ways == 0 ? i + 1 : first_of_set(view, tag.number());
        if (i < first || i >= first + view.ways) complain("is not in its set");
        if (prints_[i] != tag.fingerprint()) complain("its fingerprint is another's");
        for (std::uint32_t j = first; j < i; ++j) {
            if (tags_[j] == tag) complain("is there twice");
        }
    }
    if (live != live_ || live_kinds != live_kinds_ || free != free_ || fragments != fragments_) {
        violations.push_back(fmt::format("TLB {}: the counts of its entries are wrong", name));
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
