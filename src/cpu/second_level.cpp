// SPDX-License-Identifier: Apache-2.0
#include <mmusim/cpu/second_level.hpp>

#include <cassert>

#include <fmt/format.h>

namespace mmusim {

namespace {

constexpr std::array<EntryKind, 3> kKinds{EntryKind::page_4k, EntryKind::page_2m, EntryKind::page_1g};

TlbArraySpec array_spec(unsigned entries)
{
    TlbArraySpec spec;
    spec.entries = entries;
    spec.ways = entries;
    for (const EntryKind kind : kKinds)
        spec.views.push_back({.kind = kind, .ways = entries, .first_way = 0, .stride = entries});
    return spec;
}

EntryKind kind_of(unsigned page_shift)
{
    return page_shift == 12 ? EntryKind::page_4k : page_shift == 21 ? EntryKind::page_2m : EntryKind::page_1g;
}

}  // namespace

SecondLevel::SecondLevel(SparseMemory& memory, P2m& p2m, const SecondLevelSpec& spec)
    : p2m_{&p2m}
    , tables_{memory}
    , format_{p2m.tables()->format()}
    , levels_{p2m.tables()->levels()}
    , ad_bits_{format_ == P2mFormat::npt || spec.ad_bits}
{
    if (spec.tlb_entries != 0) tlb_.emplace(array_spec(spec.tlb_entries));
}

void SecondLevel::reset()
{
    if (tlb_) tlb_->reset();
    counters_ = {};
}

void SecondLevel::drop_all()
{
    if (tlb_) tlb_->remove_if([](TlbTag, const TlbContent&) { return true; });
}

void SecondLevel::count_violation()
{
    if (violation_.misconfigured) {
        ++counters_.misconfigurations;
    } else if (violation_.access.of_table) {
        ++counters_.of_tables;
    } else {
        switch (violation_.access.kind) {
        case AccessKind::read: ++counters_.reads; break;
        case AccessKind::write: ++counters_.writes; break;
        case AccessKind::fetch: ++counters_.fetches; break;
        }
    }
}

std::uint32_t SecondLevel::find(GuestPhysical address) const
{
    for (const EntryKind kind : kKinds) {
        if (!tlb_->any(kind)) continue;
        const std::uint32_t entry = tlb_->find(kind, address.value() >> shift_of(kind), 0);
        if (entry != TlbArray::kNone) return entry;
    }
    return TlbArray::kNone;
}

void SecondLevel::fill(GuestPhysical address, const SecondLevelPage& page, Cycles ready)
{
    const std::uint64_t in_page = (std::uint64_t{1} << page.page_shift) - 1;
    TlbContent content;
    content.frame = page.address.value() & ~in_page;
    content.origin = address.value() & ~in_page;
    content.ready_at = ready;
    const Rights rights{page.rights.read, page.rights.write, !page.rights.execute, 0};
    content.attributes = {rights, page.page_shift, page.dirty};
    const TlbTag tag{kind_of(page.page_shift), address.value() >> page.page_shift, 0, false};
    tlb_->insert(tag, content, nullptr, false);
}

FrameRights SecondLevel::rights_of_entry(std::uint64_t raw) const
{
    if (format_ == P2mFormat::ept) {
        return {(raw & ept::kRead) != 0, (raw & ept::kWrite) != 0, (raw & ept::kExecute) != 0};
    }
    if ((raw & pte::kPresent) == 0) return {};
    // Every access is a user's (APM vol. 2, 15.25.5).
    if ((raw & pte::kUser) == 0) return {};
    return {true, (raw & pte::kWritable) != 0, (raw & pte::kNoExecute) == 0};
}

bool SecondLevel::malformed(std::uint64_t raw, int level) const
{
    const bool leaf = is_leaf(raw, level);
    if (leaf && level > kLargestP2mPage) return true;
    // Address bits inside a large page; bit 12 is NPT's PAT.
    const unsigned page_shift = kPageShift + 9 * (static_cast<unsigned>(level) - 1);
    const unsigned lowest = format_ == P2mFormat::ept ? kPageShift : kPageShift + 1;
    if (leaf && level > 1 && (raw & bit_range(lowest, page_shift - 1)) != 0) return true;
    if (format_ != P2mFormat::ept) return false;
    if ((raw & ept::kRights) == ept::kWrite || (raw & ept::kRights) == (ept::kWrite | ept::kExecute))
        return true;
    constexpr std::uint64_t kMemoryType = 7u << 3;
    if (!leaf) return (raw & bit_range(3, 6)) != 0;
    const std::uint64_t type = (raw & kMemoryType) >> 3;
    return type == 2 || type == 3 || type == 7;
}

bool SecondLevel::set_ad_bits(int leaf, bool make_dirty)
{
    const std::uint64_t accessed = format_ == P2mFormat::ept ? ept::kAccessed : pte::kAccessed;
    const std::uint64_t dirty = format_ == P2mFormat::ept ? ept::kDirty : pte::kDirty;
    bool assisted = false;
    for (int level = levels_; level >= leaf; --level) {
        Used& used = used_[static_cast<std::size_t>(level)];
        const std::uint64_t wanted = used.raw | accessed | (level == leaf && make_dirty ? dirty : 0);
        if (wanted == used.raw) continue;
        // Each of the P2M's tables is there once: no entry is used twice.
        const bool exchanged = tables_.exchange(used.table, used.offset, used.raw, wanted);
        assert(exchanged);
        (void)exchanged;
        used.raw = wanted;
        assisted = true;
    }
    return assisted;
}

void SecondLevel::audit(std::vector<std::string>& violations) const
{
    if (!tlb_) return;
    tlb_->audit("(nested)", violations);
    tlb_->for_each([&](TlbTag tag, const TlbContent& content) {
        const unsigned shift = shift_of(tag.kind());
        const Gfn first{tag.number() << (shift - kPageShift)};
        const Mfn frame = Mfn::of(MachineAddress{content.frame});
        const Rights rights = content.attributes.rights();
        // Of a 1 GiB page every 512th frame.
        const std::uint64_t step = shift == 30 ? 512 : 1;
        for (std::uint64_t i = 0; i < std::uint64_t{1} << (shift - kPageShift); i += step) {
            const P2mEntry entry = p2m_->entry(first + i);
            const FrameRights now = entry.rights();
            if (entry.has_frame() && entry.mfn == frame + i && (!rights.user || now.read) &&
                (!rights.writable || now.write) && (rights.no_execute || now.execute)) {
                continue;
            }
            violations.push_back(
                fmt::format("nested TLB: what it holds of frame {} is not what the P2M says", first + i));
            return;
        }
    });
}

}  // namespace mmusim
