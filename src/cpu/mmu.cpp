// SPDX-License-Identifier: Apache-2.0
#include <mmusim/cpu/mmu.hpp>

#include <algorithm>
#include <cassert>

namespace mmusim {

/// The trail of a walk: the entries that it loaded, and when.
struct Mmu::Loads {
    struct Load {
        int level;
        std::uint64_t address;
        std::uint64_t raw;
        Cycles ready;
    };
    int register_level = 0;  ///< whose entries are registers
    std::size_t count = 0;
    std::array<Load, std::size_t{2} * kMaxLevels> list;

    void entry(int level, Mfn table, unsigned offset, std::uint64_t raw)
    {
        if (level == register_level) return;
        assert(count < list.size());
        Load& load = list[count++];
        load.level = level;
        load.address = table.address().value() + offset;
        load.raw = raw;
        load.ready = 0;
    }
};

Mmu::Mmu(const CpuProfile& profile, MachineTables& tables, const P2m* names, const CycleLabels* labels,
         bool program_uses_caches, SecondLevel* second_level)
    : tables_{&tables}
    , names_{names}
    , labels_{labels}
    , second_level_{second_level}
    , tags_pcids_{profile.tlbs.pcid}
    , timing_{profile.timing}
    , caches_{labels != nullptr ? profile.timing.data_caches : std::vector<CacheSpec>{},
              profile.timing.memory_latency}
    , walkers_{profile.timing.walker.count}
    , program_uses_caches_{program_uses_caches}
{
    tlbs_.reserve(profile.tlbs.tlbs.size());
    for (const TlbSpec& spec : profile.tlbs.tlbs) tlbs_.emplace_back(spec).share_clock(stamp_clock_);

    const auto serves = [](const TlbSpec& spec, AccessKind kind) {
        switch (kind) {
        case AccessKind::fetch: return spec.fetches;
        case AccessKind::read: return spec.loads;
        case AccessKind::write: return spec.stores;
        }
        return false;
    };
    for (const AccessKind kind : {AccessKind::read, AccessKind::write, AccessKind::fetch}) {
        Chain& chain = chains_[static_cast<std::size_t>(kind)];
        for (Tlb& tlb : tlbs_) {
            if (serves(tlb.spec(), kind)) chain.tlbs.push_back(&tlb);
        }
        for (std::size_t u = 0; u < chain.tlbs.size(); ++u) {
            const TlbSpec* const next = u + 1 < chain.tlbs.size() ? &chain.tlbs[u + 1]->spec() : nullptr;
            const bool spills =
                next != nullptr && (next->inclusion == Inclusion::exclusive || next->takes_evictions);
            chain.plain.push_back(chain.tlbs[u]->spec().inclusion != Inclusion::inclusive && !spills ? 1 : 0);
        }
        for (std::size_t u = 1; u < chain.tlbs.size(); ++u) {
            chain.touches_later |= chain.tlbs[u]->spec().touched_by_earlier_hits;
        }
        chain.short_cuts =
            !chain.tlbs.empty() && !chain.touches_later && chain.tlbs.front()->touch_is_enough();
        short_cuts_[static_cast<std::size_t>(kind)].resize(kShortCuts);
        if (chain.tlbs.empty()) continue;
        chain.lookup_cycles = chain.tlbs.front()->spec().lookup_cycles;
        if (labels_ != nullptr) chain.label = label_of(*chain.tlbs.front());
    }

    has_pscs_ = !profile.tlbs.paging_structure_caches.empty();
    psc_arrays_.reserve(profile.tlbs.paging_structure_caches.size());
    for (const PagingStructureCacheSpec& spec : profile.tlbs.paging_structure_caches) {
        Psc& psc = pscs_[static_cast<std::size_t>(spec.level)];
        if (spec.stored_in.empty()) {
            psc.array = &psc_arrays_.emplace_back(spec.array);
            continue;
        }
        for (Tlb& tlb : tlbs_) {
            if (tlb.spec().name != spec.stored_in) continue;
            psc.array = tlb.array_of(EntryKind::pde);
            psc.owner = &tlb;
        }
    }
}

void Mmu::reset()
{
    for (Tlb& tlb : tlbs_) tlb.reset();
    for (TlbArray& array : psc_arrays_) array.reset();
    for (Psc& psc : pscs_) psc.counters = {};
    walks_ = 0;
    violation_.reset();
    ++epoch_;
    short_cut_hits_ = {};
    caches_.reset();
    walkers_.reset();
}

void Mmu::load(const HardwareContext& context)
{
    ++epoch_;
    context_ = context;
    if (!tags_pcids_) context_.pcid = 0;
    ac_ = context.rules.control.ac ? 4 : 0;
    const PagingMode mode = mode_of(context.paging);
    for (int level = 2; level <= mode.root_level(); ++level) {
        pscs_[static_cast<std::size_t>(level)].shift = mode.shift(level);
    }
}

TlbCounters Mmu::tlb_counters(std::size_t i) const
{
    TlbCounters counters = tlbs_[i].counters;
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
        if (chains_[kind].tlbs.empty() || chains_[kind].tlbs.front() != &tlbs_[i]) continue;
        counters.lookups += short_cut_hits_[kind];
        counters.hits += short_cut_hits_[kind];
    }
    return counters;
}

// --- translation -------------------------------------------------------------------------------------

// Flattened: a miss is a dozen small steps, and their calls would cost a third more.
template <bool Timed>
[[gnu::flatten]] Result<Mmu::Place, PageFault> Mmu::look_up(const Access& access, Passage* passage)
{
    const Chain& chain = chains_[static_cast<std::size_t>(access.kind)];
    const RightsControl& control = context_.rules.control;
    for (std::size_t u = 0; u < chain.tlbs.size(); ++u) {
        Tlb& tlb = *chain.tlbs[u];
        ++tlb.counters.lookups;
        if constexpr (Timed) passage->spend(label_of(tlb), passage->now() + tlb.spec().lookup_cycles);
        Tlb::Match match = tlb.find(access.address, context_.pcid);
        if (!match) continue;
        const TlbContent content = match.content();
        if (denied(content.attributes.rights(), control, access) != 0) {
            ++tlb.counters.denied;
            drop_address(access.address);
            return walk_and_fill<Timed>(access, passage, true, false);
        }
        ++tlb.counters.hits;
        if (access.kind == AccessKind::write && !content.attributes.dirty()) {
            ++tlb.counters.dirty_walks;
            return walk_and_fill<Timed>(access, passage, false, false);
        }
        match.array->touch(match.entry);
        if constexpr (Timed) {
            passage->spend(label_of(tlb), std::max(passage->now(), content.ready_at));
        }
        const TlbTag tag = match.array->tag(match.entry);
        const std::uint64_t in_entry = offset_in(access.address, content.attributes.entry_shift());
        const Place place{content.frame + in_entry, content.origin + in_entry};
        if (u > 0) {
            Tlb::Page page{access.address, context_.pcid, tag.global(), content};
            page.content.frame = place.machine;
            page.content.origin = place.origin;
            if constexpr (Timed) page.content.ready_at = passage->now();
            if (tlb.spec().inclusion == Inclusion::exclusive) match.array->remove(match.entry);
            if (!tlb.spec().refills) return place;
            for (std::size_t v = u; v-- > 0;) match = fill(chain, v, page, true);
        } else if (chain.touches_later) {
            for (std::size_t v = 1; v < chain.tlbs.size(); ++v) {
                if (!chain.tlbs[v]->spec().touched_by_earlier_hits) continue;
                const Tlb::Match later = chain.tlbs[v]->find(access.address, context_.pcid);
                if (later) later.array->touch(later.entry);
            }
        }
        take_short_cut(chain, access, match);
        return place;
    }
    return walk_and_fill<Timed>(access, passage, false, true);
}

template <bool Timed>
Result<Mmu::Place, PageFault> Mmu::walk_and_fill(const Access& access, Passage* passage, bool fresh,
                                                 bool absent)
{
    if (second_level_ != nullptr) return walk_nested<Timed>(access, passage, fresh, absent);
    const auto walked = [&] {
        switch (context_.paging) {
        case Paging::off:
        case Paging::two_level: return walk_pages<Timed, kTwoLevel>(access, passage, fresh);
        case Paging::pae: return walk_pages<Timed, kPae>(access, passage, fresh);
        case Paging::four_level: return walk_pages<Timed, kFourLevel>(access, passage, fresh);
        case Paging::five_level: break;
        }
        return walk_pages<Timed, kFiveLevel>(access, passage, fresh);
    }();
    if (!walked) return walked.error();
    const Place place = place_of(*walked);
    const Chain& chain = chains_[static_cast<std::size_t>(access.kind)];
    if (chain.tlbs.empty()) return place;

    Tlb::Page page{access.address, context_.pcid, walked->global && context_.globals, {}};
    page.content.frame = place.machine;
    page.content.origin = place.origin;
    page.content.attributes = {walked->rights, walked->page_shift, walked->dirty};
    if constexpr (Timed) page.content.ready_at = passage->now();
    fill_all(chain, page, absent);
    return place;
}

template <PagingMode Mode>
const TlbContent* Mmu::find_resume(LinearAddress address, int& level)
{
    for (level = 2; level <= Mode.root_level(); ++level) {
        Psc& psc = pscs_[static_cast<std::size_t>(level)];
        if (psc.array == nullptr) continue;
        ++psc.counters.lookups;
        const std::uint32_t entry =
            psc.array->find(EntryKind::pde, page_number(address, Mode.shift(level)), context_.pcid);
        if (entry == TlbArray::kNone) continue;
        ++psc.counters.hits;
        psc.array->touch(entry);
        return &psc.array->content(entry);
    }
    return nullptr;
}

template <bool Timed, PagingMode Mode>
Result<Translation<space::Machine>, PageFault> Mmu::walk_pages(const Access& access, Passage* passage,
                                                               bool fresh)
{
    ++walks_;
    WalkResume<space::Machine> resume;
    Cycles resume_ready = 0;
    int resume_level = 0;
    if (const TlbContent* const found = fresh ? nullptr : find_resume<Mode>(access.address, resume_level)) {
        resume = {resume_level - 1, Mfn::of(MachineAddress{found->frame}), found->attributes.rights()};
        resume_ready = found->ready_at;
    }
    Slots::Held walker{};
    if constexpr (Timed) {
        walker = walkers_.take(passage->now());
        passage->spend(CycleLabels::kWalkWait, walker.from);
        passage->spend(CycleLabels::kWalkStart, passage->now() + timing_.walker.start_cycles);
        passage->spend(CycleLabels::kWalkWait, std::max(passage->now(), resume_ready));
    }

    Loads loads;
    if (Mode.top_in_registers) loads.register_level = Mode.levels;
    const WalkRules& rules = context_.rules;
    std::size_t timed = 0;
    std::size_t first = 0;  // load of the walk that counted
    auto walked = resume.level != 0
                      ? walk<Mode>(*tables_, context_.root, rules, access, AdBits::set, loads, resume)
                      : walk<Mode>(*tables_, context_.root, rules, access, AdBits::set, loads);
    if constexpr (Timed) spend_loads(loads, timed, *passage);
    if (!walked && resume.level != 0) {
        // What was cached may be stale. The fault is raised if the tables say so too.
        resume = {};
        first = loads.count;
        walked = walk<Mode>(*tables_, context_.root, rules, access, AdBits::set, loads);
        if constexpr (Timed) spend_loads(loads, timed, *passage);
    }
    if constexpr (Timed) {
        if (walked && walked->assisted) {
            passage->spend(CycleLabels::kWalkAssist, passage->now() + timing_.walker.assist_cycles);
        }
        walkers_.release(walker.slot, passage->now());
    }
    if (!walked || !has_pscs_) return walked;

    Rights rights = resume.level != 0 ? resume.rights : Rights{};
    for (std::size_t i = first; i + 1 < loads.count; ++i) {
        const Loads::Load& load = loads.list[i];
        rights.user &= (load.raw & pte::kUser) != 0;
        rights.writable &= (load.raw & pte::kWritable) != 0;
        rights.no_execute |= Mode.has_nx && (load.raw & pte::kNoExecute) != 0;
        TlbContent content;
        content.frame = Pte<Mode>{load.raw}.table_address();
        content.attributes = {rights, kPageShift, false};
        content.ready_at = load.ready;
        fill_psc(load.level, access.address, content, !fresh && first == 0);
    }
    return walked;
}

void Mmu::fill_psc(int level, LinearAddress address, const TlbContent& content, bool absent)
{
    const Psc& psc = pscs_[static_cast<std::size_t>(level)];
    if (psc.array == nullptr) return;
    const TlbTag tag{EntryKind::pde, page_number(address, psc.shift), context_.pcid, false};
    TlbArray::Evicted evicted;
    const bool made_room =
        psc.array->insert(tag, content, psc.owner != nullptr ? &evicted : nullptr, absent).evicted;
    if (made_room && psc.owner != nullptr) evicted_by_pde(*psc.owner, evicted);
}

void Mmu::fill_all(const Chain& chain, const Tlb::Page& page, bool absent)
{
    for (std::size_t u = chain.tlbs.size(); u-- > 0;) {
        if (chain.tlbs[u]->spec().inclusion != Inclusion::exclusive) fill(chain, u, page, absent);
    }
}

void Mmu::evicted_by_pde(Tlb& owner, const TlbArray::Evicted& evicted)
{
    ++owner.counters.evictions;
    if (owner.spec().inclusion != Inclusion::inclusive) return;
    for (Tlb& other : tlbs_) {
        if (other.spec().level < owner.spec().level) other.drop_overlapping(evicted);
    }
}

void Mmu::spend_loads(Loads& loads, std::size_t& from, Passage& passage)
{
    for (; from < loads.count; ++from) {
        Loads::Load& load = loads.list[from];
        const Cycles asked = passage.now() + timing_.walker.load_cycles[static_cast<std::size_t>(load.level)];
        const DataCaches::Load done = caches_.load(load.address, asked);
        passage.spend(labels_->walk(load.level, done.answered_by), done.ready_at);
        load.ready = done.ready_at;
    }
}

Mmu::Place Mmu::place_of(const Translation<space::Machine>& translation) const
{
    const MachineAddress found = translation.address;
    if (names_ == nullptr) return {found.value(), found.value()};
    const auto gfn = names_->gfn_of(Mfn::of(found));
    assert(gfn && "a shadow maps guest RAM alone");
    return {found.value(), gfn->address(found.offset_in_page()).value()};
}

inline Tlb::Match Mmu::fill(const Chain& chain, std::size_t u, const Tlb::Page& page, bool absent)
{
    Tlb& tlb = *chain.tlbs[u];
    if (!chain.plain[u]) return fill_making_room(chain, u, page, absent);
    const Tlb::Fill done = tlb.fill(page, nullptr, absent);
    if (u == 0 && (!absent || done.kind != EntryKind::page_4k)) filled_first(tlb, page, done, absent);
    return done.match;
}

void Mmu::filled_first(Tlb& tlb, const Tlb::Page& page, const Tlb::Fill& done, bool absent)
{
    if (!done.match) return;
    if (!absent) {
        // An older short cut may lead to an entry that a lookup would now find later.
        const std::uint64_t vpn = page.address.value() >> kPageShift;
        for (auto& cuts : short_cuts_) {
            ShortCut& cut = cuts[vpn % kShortCuts];
            if (cut.vpn == vpn) cut.vpn = ~std::uint64_t{0};
        }
    }
    if (done.kind != EntryKind::page_4k && (!absent || !tlb.searches_by_size() || tlb.any_larger(done.kind)))
        ++epoch_;
}

Tlb::Match Mmu::fill_making_room(const Chain& chain, std::size_t u, const Tlb::Page& page, bool absent)
{
    Tlb& tlb = *chain.tlbs[u];
    TlbArray::Evicted evicted;
    const Tlb::Fill done = tlb.fill(page, &evicted, absent);
    if (u == 0) filled_first(tlb, page, done, absent);
    if (!done.evicted || evicted.tag.kind() == EntryKind::pde) return done.match;
    if (tlb.spec().inclusion == Inclusion::inclusive) {
        for (Tlb& other : tlbs_) {
            if (other.spec().level < tlb.spec().level) other.drop_overlapping(evicted);
        }
    }
    if (u + 1 == chain.tlbs.size()) return done.match;
    const TlbSpec& next = chain.tlbs[u + 1]->spec();
    if (next.inclusion == Inclusion::exclusive || next.takes_evictions) {
        const LinearAddress address{evicted.tag.number() << evicted.content.attributes.entry_shift()};
        fill_making_room(chain, u + 1, {address, evicted.tag.pcid(), evicted.tag.global(), evicted.content},
                         false);
    }
    return done.match;
}

void Mmu::take_short_cut(const Chain& chain, const Access& access, const Tlb::Match& match)
{
    if (!chain.short_cuts || !match) return;
    TlbArray& array = *match.array;
    const TlbContent& content = match.content();
    if (access.kind == AccessKind::write && !content.attributes.dirty()) return;
    if (!array.tag(match.entry).valid()) return;  // what its own fill evicted has dragged it along
    const std::uint64_t vpn = access.address.value() >> kPageShift;
    const auto permits = static_cast<std::uint8_t>(1u << privilege_of(access));
    ShortCut& cut = short_cuts_[static_cast<std::size_t>(access.kind)][vpn % kShortCuts];
    if (cut.vpn == vpn && cut.epoch == epoch_ && cut.content == &content && cut.id == content.id) {
        cut.permits |= permits;  // the same entry, for another privilege
        return;
    }
    Replacement& replacement = array.replacement();
    const unsigned row = array.row_of(match.entry);
    const unsigned way = array.way_of(match.entry);
    cut.vpn = vpn;
    cut.epoch = epoch_;
    cut.permits = permits;
    cut.content = &content;
    cut.id = content.id;
    cut.origin =
        content.origin + (offset_in(access.address, content.attributes.entry_shift()) & ~(kPageBytes - 1));
    cut.stamp = replacement.stamp_of(row, way);
    if (cut.stamp == nullptr) cut.stamp = &unused_stamp_;
    cut.word = replacement.word_of(row);
    cut.touch = replacement.touch_of(way);
}

// --- invalidation ------------------------------------------------------------------------------------

void Mmu::drop_all_pscs()
{
    for (Psc& psc : pscs_) {
        if (psc.array == nullptr) continue;
        psc.array->remove_if([](TlbTag tag, const TlbContent&) { return tag.kind() == EntryKind::pde; });
    }
}

void Mmu::drop_pscs(unsigned pcid)
{
    for (Psc& psc : pscs_) {
        if (psc.array == nullptr || !psc.array->any(EntryKind::pde)) continue;
        psc.array->remove_if([&](TlbTag tag, const TlbContent&) {
            return tag.kind() == EntryKind::pde && tag.pcid() == pcid;
        });
    }
}

void Mmu::drop_pscs_of(unsigned pcid, LinearAddress address)
{
    for (Psc& psc : pscs_) {
        if (psc.array == nullptr) continue;
        psc.array->remove_page(EntryKind::pde, page_number(address, psc.shift), pcid, false);
    }
}

void Mmu::drop_address(LinearAddress address)
{
    for (Tlb& tlb : tlbs_) tlb.drop_page(address, context_.pcid, true, true);
    drop_pscs_of(context_.pcid, address);
}

void Mmu::page_fault(LinearAddress address)
{
    drop_address(address);
}

void Mmu::invlpg(LinearAddress address)
{
    for (Tlb& tlb : tlbs_) tlb.drop_page(address, context_.pcid, true, true);
    switch (context_.upper) {
    case HardwareContext::UpperInvalidation::pcid: drop_pscs(context_.pcid); break;
    case HardwareContext::UpperInvalidation::all: drop_all_pscs(); break;
    case HardwareContext::UpperInvalidation::address: drop_pscs_of(context_.pcid, address); break;
    }
}

void Mmu::invpcid_address(unsigned pcid, LinearAddress address)
{
    if (!tags_pcids_) pcid = 0;
    for (Tlb& tlb : tlbs_) tlb.drop_page(address, pcid, false, true);
    if (context_.upper == HardwareContext::UpperInvalidation::all) {
        drop_all_pscs();
    } else {
        drop_pscs_of(pcid, address);
    }
}

void Mmu::invpcid_context(unsigned pcid)
{
    if (!tags_pcids_) pcid = 0;
    for (Tlb& tlb : tlbs_) tlb.drop_pcid(pcid);
    drop_pscs(pcid);
}

void Mmu::drop_everything(bool with_globals)
{
    for (Tlb& tlb : tlbs_) tlb.drop_all(with_globals);
    drop_all_pscs();
}

void Mmu::cr3_loaded(unsigned old, bool pcids_in_use, bool flushing)
{
    if (!pcids_in_use || !tags_pcids_) {
        drop_everything(false);
        return;
    }
    if (flushing) invpcid_context(context_.pcid);
    for (Tlb& tlb : tlbs_) tlb.pcid_loaded(old, context_.pcid, flushing);
}

void Mmu::audit(std::vector<std::string>& violations) const
{
    for (const Tlb& tlb : tlbs_) tlb.audit(violations);
    for (const TlbArray& array : psc_arrays_) array.audit("(a paging-structure cache)", violations);
}

// --- time --------------------------------------------------------------------------------------------

void Mmu::data(std::span<const Piece> pieces, Passage& passage)
{
    if (!program_uses_caches_) {
        passage.spend(labels_->data(0), passage.now() + caches_.nearest_latency());
        return;
    }
    const DataCaches::Load last = load_lines(pieces, passage.now());
    passage.spend(labels_->data(last.answered_by), last.ready_at);
}

DataCaches::Load Mmu::load_lines(std::span<const Piece> pieces, Cycles start)
{
    const std::uint64_t line_bytes = std::uint64_t{1} << caches_.line_shift();
    DataCaches::Load last{start, 0};
    for (const Piece& piece : pieces) {
        const std::uint64_t end = piece.machine + piece.bytes;
        for (std::uint64_t line = piece.machine & ~(line_bytes - 1); line < end; line += line_bytes) {
            const DataCaches::Load load = caches_.load(line, start);
            if (load.ready_at > last.ready_at) last = load;
        }
    }
    return last;
}

// For nested walks.
template const TlbContent* Mmu::find_resume<kTwoLevel>(LinearAddress, int&);
template const TlbContent* Mmu::find_resume<kPae>(LinearAddress, int&);
template const TlbContent* Mmu::find_resume<kFourLevel>(LinearAddress, int&);
template const TlbContent* Mmu::find_resume<kFiveLevel>(LinearAddress, int&);

template Result<Mmu::Place, PageFault> Mmu::look_up<false>(const Access&, Passage*);
template Result<Mmu::Place, PageFault> Mmu::look_up<true>(const Access&, Passage*);

}  // namespace mmusim
