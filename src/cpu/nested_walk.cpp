// SPDX-License-Identifier: Apache-2.0
//
// The nested walk: the walk of the guest's tables, in which the second level finds each table and the page in
// the machine's memory.
//
//   root ==> [entry] ==> [entry] ==> [entry] ==> page        ==>: through the second level
//
// A paging-structure cache leads to a table of the guest in the machine's memory: no second level there. A
// violation ends the walk, and fills nothing; like a fault, it is raised only after a walk from the root.
#include <algorithm>
#include <cassert>

#include <boost/container/static_vector.hpp>

#include <mmusim/cpu/mmu.hpp>

namespace mmusim {

/// What the second level's loads take.
struct Mmu::SecondLevelTime {
    Mmu* mmu;
    Passage* passage;

    void load(int level, MachineAddress address)
    {
        const Cycles asked =
            passage->now() + mmu->timing_.walker.load_cycles[static_cast<std::size_t>(level)];
        const DataCaches::Load done = mmu->caches_.load(address.value(), asked);
        passage->spend(mmu->labels_->second_level(level, done.answered_by), done.ready_at);
    }
    void wait(Cycles ready) { passage->spend(CycleLabels::kWalkWait, std::max(passage->now(), ready)); }
    [[nodiscard]] Cycles now() const { return passage->now(); }
};

namespace {

template <bool Timed, class Time>
auto time_of(auto* mmu, Passage* passage)
{
    if constexpr (Timed) {
        return Time{mmu, passage};
    } else {
        return NoSecondLevelTime{};
    }
}

}  // namespace

/// The guest's tables as the walker sees them, and the trail of its walk.
template <bool Timed>
struct Mmu::GuestTables {
    using Space = space::GuestPhysical;

    struct Load {
        int level;
        Gfn table;
        Mfn machine;  ///< where that is
        std::uint64_t raw;
        Cycles ready;
    };

    Mmu* mmu;
    Passage* passage;
    int register_level = 0;        ///< whose entries are registers
    std::optional<Mfn> resumed{};  ///< where the first table is
    Mfn last{};                    ///< the table read last
    bool last_writable = false;    ///< as far as the second level is concerned
    bool violated = false;
    bool assisted = false;
    struct Known {
        Gfn frame;
        Mfn machine;
        bool writable;
    };
    boost::container::static_vector<Known, kMaxLevels> known{};  ///< tables read in this walk
    boost::container::static_vector<Load, kMaxLevels> loads{};

    void begin()
    {
        known.clear();
        loads.clear();
        violated = false;
    }

    [[nodiscard]] std::optional<SecondLevelPage> find(Gfn frame, unsigned offset, AccessKind kind)
    {
        auto time = time_of<Timed, SecondLevelTime>(mmu, passage);
        const auto page = mmu->second_level_->translate({frame.address(offset), kind, true}, time);
        violated = !page;
        if (page) assisted |= page->assisted;
        return page;
    }

    template <class Word>
    [[nodiscard]] Word load(Gfn frame, unsigned offset)
    {
        if (violated) return 0;
        if (resumed) {
            last = *resumed;
            last_writable = false;  // nobody has asked
            resumed.reset();
        } else {
            const auto page = find(frame, offset, AccessKind::read);
            if (!page) return 0;
            last = Mfn::of(page->address);
            last_writable = page->rights.write && page->dirty;
        }
        return mmu->tables_->load<Word>(last, offset);
    }

    void entry(int level, Gfn table, unsigned offset, std::uint64_t raw)
    {
        if (level == register_level || violated) return;
        Cycles ready = 0;
        if constexpr (Timed) {
            const Cycles asked =
                passage->now() + mmu->timing_.walker.load_cycles[static_cast<std::size_t>(level)];
            const DataCaches::Load done = mmu->caches_.load(last.address(offset).value(), asked);
            passage->spend(mmu->labels_->walk(level, done.answered_by), done.ready_at);
            ready = done.ready_at;
        }
        if (!loads.empty() && level >= loads.back().level) {
            // The walk has begun anew: an entry was not what it had been.
            loads.clear();
            known.clear();
        }
        known.push_back({table, last, last_writable});
        loads.push_back({level, table, last, raw, ready});
    }

    template <class Word>
    [[nodiscard]] bool exchange(Gfn frame, unsigned offset, Word expected, Word desired)
    {
        if (violated) return false;
        const auto found = std::find_if(known.begin(), known.end(),
                                        [&](const Known& one) { return one.frame == frame && one.writable; });
        if (found != known.end()) {
            return mmu->tables_->exchange(found->machine, offset, expected, desired);
        }
        const auto page = find(frame, offset, AccessKind::write);
        return page && mmu->tables_->exchange(Mfn::of(page->address), offset, expected, desired);
    }
};

template <bool Timed>
std::optional<Mmu::Combined> Mmu::combine(const Access& access,
                                          const Translation<space::GuestPhysical>& found, Passage* passage,
                                          bool& assisted)
{
    auto time = time_of<Timed, SecondLevelTime>(this, passage);
    const auto page = second_level_->translate({found.address, access.kind, false}, time);
    if (!page) return std::nullopt;
    assisted |= page->assisted;
    Rights rights = found.rights;
    rights.no_execute |= !page->rights.execute;
    const bool dirty = found.dirty && page->rights.write && page->dirty;
    const TlbAttributes attributes{rights, std::min(found.page_shift, page->page_shift), dirty};
    return Combined{{page->address.value(), found.address.value()},
                    attributes.part_of(found.page_shift),
                    found.global,
                    page->rights.read};
}

template <bool Timed, PagingMode Mode>
std::optional<Result<Mmu::Combined, PageFault>> Mmu::walk_guest(const Access& access, Passage* passage,
                                                                bool fresh)
{
    GuestTables<Timed> tables{this, passage};
    if (Mode.top_in_registers) tables.register_level = Mode.levels;
    WalkResume<space::GuestPhysical> resume;
    int resume_level = 0;
    if (const TlbContent* const cached = fresh ? nullptr : find_resume<Mode>(access.address, resume_level)) {
        resume = {resume_level - 1, Gfn::of(GuestPhysical{cached->origin}), cached->attributes.rights()};
        tables.resumed = Mfn::of(MachineAddress{cached->frame});
        if constexpr (Timed)
            passage->spend(CycleLabels::kWalkWait, std::max(passage->now(), cached->ready_at));
    }

    const WalkRules& rules = context_.rules;
    auto walked = resume.level != 0
                      ? walk<Mode>(tables, context_.guest_root, rules, access, AdBits::set, tables, resume)
                      : walk<Mode>(tables, context_.guest_root, rules, access, AdBits::set, tables);
    std::optional<Combined> combined;
    if (walked && !tables.violated) combined = combine<Timed>(access, *walked, passage, tables.assisted);
    const bool cached_led_astray = !combined && resume.level != 0;
    if (cached_led_astray) {
        resume = {};
        tables.begin();
        walked = walk<Mode>(tables, context_.guest_root, rules, access, AdBits::set, tables);
        if (walked && !tables.violated) combined = combine<Timed>(access, *walked, passage, tables.assisted);
    }
    if constexpr (Timed) {
        if (tables.assisted || (walked && walked->assisted))
            passage->spend(CycleLabels::kWalkAssist, passage->now() + timing_.walker.assist_cycles);
    }
    if (!combined) {
        if (!walked && !tables.violated) return Result<Combined, PageFault>{walked.error()};
        return std::nullopt;
    }
    if (!has_pscs_) return Result<Combined, PageFault>{*combined};

    Rights path = resume.level != 0 ? resume.rights : Rights{};
    for (std::size_t i = 0; i + 1 < tables.loads.size(); ++i) {
        const auto& load = tables.loads[i];
        path.user &= (load.raw & pte::kUser) != 0;
        path.writable &= (load.raw & pte::kWritable) != 0;
        path.no_execute |= Mode.has_nx && (load.raw & pte::kNoExecute) != 0;
        TlbContent content;
        content.frame = tables.loads[i + 1].machine.address().value();
        content.origin = tables.loads[i + 1].table.address().value();
        content.attributes = {path, kPageShift, false};
        content.ready_at = load.ready;
        fill_psc(load.level, access.address, content, !fresh && !cached_led_astray);
    }
    return Result<Combined, PageFault>{*combined};
}

template <bool Timed>
Result<Mmu::Place, PageFault> Mmu::walk_nested(const Access& access, Passage* passage, bool fresh,
                                               bool absent)
{
    ++walks_;
    Slots::Held walker{};
    if constexpr (Timed) {
        walker = walkers_.take(passage->now());
        passage->spend(CycleLabels::kWalkWait, walker.from);
        passage->spend(CycleLabels::kWalkStart, passage->now() + timing_.walker.start_cycles);
    }
    const auto walked = [&]() -> std::optional<Result<Combined, PageFault>> {
        switch (context_.paging) {
        case Paging::off: break;
        case Paging::two_level: return walk_guest<Timed, kTwoLevel>(access, passage, fresh);
        case Paging::pae: return walk_guest<Timed, kPae>(access, passage, fresh);
        case Paging::four_level: return walk_guest<Timed, kFourLevel>(access, passage, fresh);
        case Paging::five_level: return walk_guest<Timed, kFiveLevel>(access, passage, fresh);
        }
        // A linear address is the guest-physical one, in pages as large as the second level's.
        Translation<space::GuestPhysical> same;
        same.address = GuestPhysical{access.address.value()};
        same.page_shift = shift_of(EntryKind::page_1g);
        same.dirty = true;
        bool assisted = false;
        const auto combined = combine<Timed>(access, same, passage, assisted);
        if constexpr (Timed) {
            if (assisted)
                passage->spend(CycleLabels::kWalkAssist, passage->now() + timing_.walker.assist_cycles);
        }
        if (!combined) return std::nullopt;
        Combined page = *combined;
        page.attributes = page.attributes.part_of(page.attributes.page_shift());
        return Result<Combined, PageFault>{page};
    }();
    if constexpr (Timed) walkers_.release(walker.slot, passage->now());
    if (!walked) {
        second_level_->count_violation();
        violation_ = second_level_->violation();
        violation_->linear = access.address;
        return PageFault{access.address};
    }
    if (!*walked) return walked->error();
    const Combined& combined = **walked;
    const Chain& chain = chains_[static_cast<std::size_t>(access.kind)];
    if (chain.tlbs.empty() || !combined.cacheable) return combined.place;

    Tlb::Page page{access.address, context_.pcid, combined.global && context_.globals, {}};
    page.content.frame = combined.place.machine;
    page.content.origin = combined.place.origin;
    page.content.attributes = combined.attributes;
    if constexpr (Timed) page.content.ready_at = passage->now();
    fill_all(chain, page, absent);
    return combined.place;
}

template Result<Mmu::Place, PageFault> Mmu::walk_nested<false>(const Access&, Passage*, bool, bool);
template Result<Mmu::Place, PageFault> Mmu::walk_nested<true>(const Access&, Passage*, bool, bool);

}  // namespace mmusim
