// SPDX-License-Identifier: Apache-2.0
#include <mmusim/tlb/tlb.hpp>

#include <algorithm>

namespace mmusim {

namespace {

constexpr std::array<EntryKind, 4> kPages{EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_4m,
                                          EntryKind::page_1g};
constexpr unsigned kPcids = 4096;

}  // namespace

void TlbCounters::add(const TlbCounters& more)
{
    lookups += more.lookups;
    hits += more.hits;
    dirty_walks += more.dirty_walks;
    denied += more.denied;
    fills += more.fills;
    evictions += more.evictions;
}

void TlbCounters::subtract(const TlbCounters& earlier)
{
    lookups -= earlier.lookups;
    hits -= earlier.hits;
    dirty_walks -= earlier.dirty_walks;
    denied -= earlier.denied;
    fills -= earlier.fills;
    evictions -= earlier.evictions;
}

Tlb::Tlb(const TlbSpec& spec) : spec_{spec}
{
    arrays_.reserve(spec.arrays.size());
    unsigned last = 0;
    for (const TlbArraySpec& array : spec.arrays) {
        TlbArray& made = arrays_.emplace_back(array);
        for (const EntryKind kind : kPages) {
            if (!made.holds(kind)) continue;
            probes_.push_back({&made, kind, shift_of(kind)});
            searches_by_size_ &= shift_of(kind) >= last;
            last = shift_of(kind);
        }
    }
    // The size itself, or where fragments are held, the largest smaller one. No paging mode has both 4M and
    // 1G pages.
    for (std::size_t size = 0; size < kPages.size(); ++size) {
        Place& place = places_[shift_of(kPages[size])];
        for (std::size_t kind = size + 1; kind-- > 0 && place.array == nullptr;) {
            const bool fragment = kind != size;
            if (kPages[size] == EntryKind::page_1g && kPages[kind] == EntryKind::page_4m) continue;
            if (fragment && spec.level != 1 && !spec.splinters) break;
            if (TlbArray* array = array_of(kPages[kind]))
                place = {array, kPages[kind], shift_of(kPages[kind])};
        }
    }
}

TlbArray* Tlb::array_of(EntryKind kind)
{
    const auto found = std::find_if(arrays_.begin(), arrays_.end(),
                                    [&](const TlbArray& array) { return array.holds(kind); });
    return found == arrays_.end() ? nullptr : &*found;
}

bool Tlb::any_larger(EntryKind kind) const
{
    return std::any_of(probes_.begin(), probes_.end(), [&](const Probe& probe) {
        return probe.shift > shift_of(kind) && probe.array->any(probe.kind);
    });
}

bool Tlb::touch_is_enough()
{
    return std::all_of(arrays_.begin(), arrays_.end(),
                       [](TlbArray& array) { return array.replacement().touch_is_enough(); });
}

void Tlb::drop_page(LinearAddress address, unsigned pcid, bool with_globals, bool with_pcid)
{
    for (const Probe& probe : probes_) {
        if (!probe.array->any(probe.kind)) continue;
        probe.array->remove_page(probe.kind, page_number(address, probe.shift), pcid, with_globals,
                                 with_pcid);
        if (!probe.array->any_fragment()) continue;
        probe.array->remove_if([&](TlbTag tag, const TlbContent& content) {
            if (tag.kind() != probe.kind || !content.attributes.fragment()) return false;
            if (tag.global() ? !with_globals : !with_pcid || tag.pcid() != pcid) return false;
            const unsigned whole_shift = content.attributes.whole_shift();
            return tag.number() >> (whole_shift - probe.shift) == page_number(address, whole_shift);
        });
    }
}

void Tlb::drop_pcid(unsigned pcid)
{
    for (TlbArray& array : arrays_) {
        array.remove_if([&](TlbTag tag, const TlbContent&) {
            return tag.kind() != EntryKind::pde && !tag.global() && tag.pcid() == pcid;
        });
    }
}

void Tlb::drop_all(bool with_globals)
{
    for (TlbArray& array : arrays_) {
        array.remove_if([&](TlbTag tag, const TlbContent&) {
            return tag.kind() != EntryKind::pde && (with_globals || !tag.global());
        });
    }
}

void Tlb::reset()
{
    for (TlbArray& array : arrays_) array.reset();
    recent_pcids_.clear();
    counters = {};
}

void Tlb::audit(std::vector<std::string>& violations) const
{
    for (const TlbArray& array : arrays_) array.audit(spec_.name, violations);
}

void Tlb::share_clock(std::uint64_t& clock)
{
    for (TlbArray& array : arrays_) array.replacement().share_clock(clock);
}

void Tlb::drop_overlapping(const TlbArray::Evicted& evicted)
{
    if (evicted.tag.kind() == EntryKind::pde) return;
    const unsigned shift = shift_of(evicted.tag.kind());
    for (const Probe& probe : probes_) {
        if (!probe.array->any(probe.kind)) continue;
        const auto same_context = [&](TlbTag tag) {
            return tag.global() == evicted.tag.global() && tag.pcid() == evicted.tag.pcid();
        };
        if (probe.shift >= shift) {
            probe.array->remove_page(probe.kind, evicted.tag.number() >> (probe.shift - shift),
                                     evicted.tag.pcid(), evicted.tag.global(), !evicted.tag.global());
            continue;
        }
        probe.array->remove_if([&](TlbTag tag, const TlbContent&) {
            return tag.kind() == probe.kind && same_context(tag) &&
                   tag.number() >> (shift - probe.shift) == evicted.tag.number();
        });
    }
}

void Tlb::pcid_loaded(unsigned old, unsigned pcid, bool flushing)
{
    if (spec_.pcids_kept_flush >= kPcids && spec_.pcids_kept_noflush >= kPcids) return;
    const unsigned kept = flushing ? spec_.pcids_kept_flush : spec_.pcids_kept_noflush;
    for (const unsigned current : {old, pcid}) {
        std::erase(recent_pcids_, current);
        recent_pcids_.insert(recent_pcids_.begin(), current);
    }
    if (recent_pcids_.size() <= kept) return;
    const auto first_dropped = recent_pcids_.begin() + kept;
    for (TlbArray& array : arrays_) {
        array.remove_if([&](TlbTag tag, const TlbContent&) {
            return tag.kind() != EntryKind::pde && !tag.global() &&
                   std::find(first_dropped, recent_pcids_.end(), tag.pcid()) != recent_pcids_.end();
        });
    }
}

}  // namespace mmusim
