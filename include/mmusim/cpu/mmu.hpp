// SPDX-License-Identifier: Apache-2.0
//
// The MMU of one vCPU: its TLBs, paging-structure caches and walkers, over the tables that the hardware
// walks (docs/timing.md; SDM vol. 3A 4.10). What it holds follows from the accesses and invalidations
// alone, in their order; with a clock, it also says when.
//
//   access -> TLB level 1 -> level 2 … -> paging-structure caches -> walk -> fills, last level first
//
// With a second level the walk is of the guest's tables, each of which, and the page at last, the second
// level finds in the machine's memory; what is cached then are combined translations (SDM vol. 3C 28.4).
//
// A permitted access never faults because of what is cached: a cached translation that denies it is dropped
// and the tables are walked. A cached translation that permits may be stale; so may the CPU's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <boost/container/static_vector.hpp>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/cpu/second_level.hpp>
#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/machine_tables.hpp>
#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/timing/clock.hpp>
#include <mmusim/timing/data_caches.hpp>
#include <mmusim/timing/slots.hpp>
#include <mmusim/tlb/tlb.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/cpuid.hpp>

namespace mmusim {

/// The walk that the hardware would do now. Paging::off: none.
struct HardwareContext {
    Paging paging = Paging::off;
    WalkRules rules;
    WalkRoot<space::Machine> root;
    WalkRoot<space::GuestPhysical> guest_root;  ///< instead of it, with a second level
    unsigned pcid = 0;                          ///< that tags entries; 0 while CR4.PCIDE is 0
    bool globals = false;                       ///< CR4.PGE
    /// What INVLPG drops of the paging-structure caches.
    enum class UpperInvalidation : std::uint8_t {
        pcid,     ///< Intel: all of the current PCID
        all,      ///< AMD, EFER.TCE = 0
        address,  ///< AMD, EFER.TCE = 1: those for the address
    };
    UpperInvalidation upper = UpperInvalidation::pcid;
};

struct PagingStructureCacheCounters {
    std::uint64_t lookups = 0;
    std::uint64_t hits = 0;

    friend bool operator==(const PagingStructureCacheCounters&,
                           const PagingStructureCacheCounters&) = default;
};

class Mmu {
public:
    /// `names`: what the guest calls a machine frame; null if the same. `labels` may be null: no clock.
    /// `program_uses_caches`: the program's own loads and stores go through the data caches. `second_level`:
    /// null where addresses in `tables` are the machine's.
    Mmu(const CpuProfile& profile, MachineTables& tables, const P2m* names, const CycleLabels* labels,
        bool program_uses_caches, SecondLevel* second_level = nullptr);
    Mmu(const Mmu&) = delete;
    Mmu& operator=(const Mmu&) = delete;

    /// As after construction.
    void reset();

    /// Registers or root have changed. Drops nothing.
    void load(const HardwareContext& context);
    /// EFLAGS.AC has changed: cheaper than `load`.
    void load_ac(bool ac)
    {
        context_.rules.control.ac = ac;
        ac_ = ac ? 4 : 0;
    }
    [[nodiscard]] const HardwareContext& context() const { return context_; }

    struct Place {
        std::uint64_t machine = 0;  ///< address; without a clock nobody asks for it, and it may be 0
        std::uint64_t origin = 0;   ///< what the guest calls it
    };
    /// Where an access goes, or the fault that a fresh walk ends in. `Timed`: `passage` says when.
    template <bool Timed>
    [[nodiscard]] Result<Place, PageFault> translate(const Access& access, Passage* passage)
    {
        const std::uint64_t vpn = access.address.value() >> kPageShift;
        const auto kind = static_cast<std::size_t>(access.kind);
        const ShortCut& cut = short_cuts_[kind][vpn % kShortCuts];
        if (cut.vpn == vpn && cut.epoch == epoch_ && cut.content->id == cut.id &&
            (cut.permits >> privilege_of(access) & 1) != 0) [[likely]] {
            *cut.stamp = ++stamp_clock_;
            Replacement::apply(*cut.touch, *cut.word);
            ++short_cut_hits_[kind];
            const std::uint64_t offset = access.address.offset_in_page();
            if constexpr (!Timed) return Place{0, cut.origin + offset};
            const TlbContent& content = *cut.content;
            const Chain& chain = chains_[kind];
            const Cycles answered = passage->now() + chain.lookup_cycles;
            passage->spend(chain.label, std::max(answered, content.ready_at));
            return Place{content.frame + offset_in(access.address, content.attributes.entry_shift()),
                         cut.origin + offset};
        }
        return look_up<Timed>(access, passage);
    }
    /// With a second level: whether the fault that was returned last is none, but a violation of that; once.
    [[nodiscard]] std::optional<SecondLevelViolation> take_violation()
    {
        return std::exchange(violation_, std::nullopt);
    }

    // --- invalidation: what docs/timing.md says is dropped ---------------------------------------------
    void invlpg(LinearAddress address);
    void invpcid_address(unsigned pcid, LinearAddress address);
    void invpcid_context(unsigned pcid);
    void drop_everything(bool with_globals);
    /// MOV CR3 has been loaded (`load` was called); `old` was the PCID before. `flushing`: not bit 63.
    void cr3_loaded(unsigned old, bool pcids_in_use, bool flushing);
    /// A page fault was raised at the address.
    void page_fault(LinearAddress address);

    // --- time --------------------------------------------------------------------------------------------
    struct Piece {
        std::uint64_t machine;  ///< address
        std::uint32_t bytes;
    };
    /// The program's own load or store of these pieces, from the passage's end on.
    void data(std::span<const Piece> pieces, Passage& passage);
    /// The hypervisor's load or store of a piece on this CPU: each line that it touches, all at `start`; the
    /// one that is ready last.
    [[nodiscard]] DataCaches::Load hypervisor_data(const Piece& piece, Cycles start)
    {
        return load_lines({&piece, 1}, start);
    }

    // --- counts ------------------------------------------------------------------------------------------
    [[nodiscard]] std::size_t tlbs() const { return tlbs_.size(); }
    [[nodiscard]] const TlbSpec& tlb(std::size_t i) const { return tlbs_[i].spec(); }
    [[nodiscard]] TlbCounters tlb_counters(std::size_t i) const;
    /// Of the cache of entries of `level`, 2 to 5.
    [[nodiscard]] const PagingStructureCacheCounters& psc_counters(int level) const
    {
        return pscs_[static_cast<std::size_t>(level)].counters;
    }
    [[nodiscard]] bool has_psc(int level) const
    {
        return pscs_[static_cast<std::size_t>(level)].array != nullptr;
    }
    [[nodiscard]] std::uint64_t walks() const { return walks_; }
    /// Null if there is none.
    [[nodiscard]] const SecondLevel* second_level() const { return second_level_; }

    /// Calls `visit(tlb, tag, content)` for each translation that is cached.
    template <class Visit>
    void for_each_translation(Visit visit) const
    {
        for (const Tlb& tlb : tlbs_)
            tlb.for_each([&](TlbTag tag, const TlbContent& content) {
                if (tag.kind() != EntryKind::pde) visit(tlb.spec(), tag, content);
            });
    }
    /// Violated invariants of the TLBs' and paging-structure caches' books, as sentences.
    void audit(std::vector<std::string>& violations) const;

private:
    static constexpr std::size_t kKinds = 3;
    static constexpr std::size_t kShortCuts = 128;

    /// A short cut to an entry of a level-1 TLB, for one 4 KiB page and kind of access. It is right as long
    /// as the content's id is the same and the epoch has not changed; then the outcome is that of a lookup.
    struct alignas(64) ShortCut {
        std::uint64_t vpn = ~std::uint64_t{0};
        std::uint32_t epoch = 0;
        std::uint8_t permits = 0;  ///< by `privilege_of`: what is known to be permitted
        const TlbContent* content = nullptr;
        std::uint64_t id = 0;
        std::uint64_t origin = 0;  ///< of the 4 KiB page
        std::uint64_t* stamp = nullptr;
        std::uint64_t* word = nullptr;
        const Replacement::Touch* touch = nullptr;
    };
    static_assert(sizeof(ShortCut) == 64);
    struct Psc {
        TlbArray* array = nullptr;
        Tlb* owner = nullptr;  ///< the TLB that the array is part of, if it is
        unsigned shift = 0;
        PagingStructureCacheCounters counters;
    };
    /// TLBs that serve one kind of access, level 1 first.
    struct Chain {
        std::vector<Tlb*> tlbs;
        std::vector<std::uint8_t> plain;  ///< of a level: what it evicts concerns no other level
        bool short_cuts = false;          ///< level-1 hits change no more than a short cut does
        bool touches_later = false;       ///< some later level counts level-1 hits as use
        Cycles lookup_cycles = 0;         ///< of level 1
        Label label = 0;
    };
    struct Loads;
    struct SecondLevelTime;
    template <bool Timed>
    struct GuestTables;
    /// A combined translation.
    struct Combined {
        Place place;
        TlbAttributes attributes;
        bool global = false;
        bool cacheable = true;
    };

    [[nodiscard]] unsigned privilege_of(const Access& access) const
    {
        return (access.user_mode ? 1u : 0u) | (access.implicit ? 2u : 0u) | ac_;
    }
    [[nodiscard]] static std::uint64_t offset_in(LinearAddress address, unsigned shift)
    {
        return address.value() & ((std::uint64_t{1} << shift) - 1);
    }
    [[nodiscard]] Label label_of(const Tlb& tlb) const
    {
        return labels_->tlb(static_cast<std::size_t>(&tlb - tlbs_.data()));
    }
    template <bool Timed>
    [[nodiscard]] Result<Place, PageFault> look_up(const Access& access, Passage* passage);
    template <bool Timed>
    [[nodiscard]] Result<Place, PageFault> walk_and_fill(const Access& access, Passage* passage, bool fresh,
                                                         bool absent);
    template <bool Timed, PagingMode Mode>
    [[nodiscard]] Result<Translation<space::Machine>, PageFault> walk_pages(const Access& access,
                                                                            Passage* passage, bool fresh);
    /// The content of the deepest paging-structure cache that has the address, and its level; or null.
    template <PagingMode Mode>
    [[nodiscard]] const TlbContent* find_resume(LinearAddress address, int& level);
    /// What an entry of a table, on the way of a walk that succeeded, leaves there.
    void fill_psc(int level, LinearAddress address, const TlbContent& content, bool absent);
    // With a second level.
    template <bool Timed>
    [[nodiscard]] Result<Place, PageFault> walk_nested(const Access& access, Passage* passage, bool fresh,
                                                       bool absent);
    template <bool Timed, PagingMode Mode>
    [[nodiscard]] std::optional<Result<Combined, PageFault>> walk_guest(const Access& access,
                                                                        Passage* passage, bool fresh);
    template <bool Timed>
    [[nodiscard]] std::optional<Combined> combine(const Access& access,
                                                  const Translation<space::GuestPhysical>& found,
                                                  Passage* passage, bool& assisted);
    void fill_all(const Chain& chain, const Tlb::Page& page, bool absent);
    [[nodiscard]] DataCaches::Load load_lines(std::span<const Piece> pieces, Cycles start);
    void spend_loads(Loads& loads, std::size_t& from, Passage& passage);
    /// Fills the page into level `u` of the chain; what makes room goes where the profile says. `absent`: the
    /// level is known to hold no entry of that page.
    Tlb::Match fill(const Chain& chain, std::size_t u, const Tlb::Page& page, bool absent);
    Tlb::Match fill_making_room(const Chain& chain, std::size_t u, const Tlb::Page& page, bool absent);
    /// What a fill of level 1 means for the short cuts.
    void filled_first(Tlb& tlb, const Tlb::Page& page, const Tlb::Fill& done, bool absent);
    void evicted_by_pde(Tlb& owner, const TlbArray::Evicted& evicted);
    void take_short_cut(const Chain& chain, const Access& access, const Tlb::Match& match);
    void drop_address(LinearAddress address);
    void drop_pscs_of(unsigned pcid, LinearAddress address);
    void drop_pscs(unsigned pcid);
    void drop_all_pscs();
    [[nodiscard]] Place place_of(const Translation<space::Machine>& translation) const;

    MachineTables* tables_;
    const P2m* names_;
    const CycleLabels* labels_;
    SecondLevel* second_level_;
    std::optional<SecondLevelViolation> violation_;
    HardwareContext context_;
    unsigned ac_ = 0;  ///< EFLAGS.AC as a bit of `privilege_of`
    bool tags_pcids_;
    std::vector<Tlb> tlbs_;
    std::array<Chain, kKinds> chains_;
    std::vector<TlbArray> psc_arrays_;
    std::array<Psc, kMaxLevels + 1> pscs_;
    std::uint64_t walks_ = 0;

    std::uint32_t epoch_ = 1;
    std::array<std::uint64_t, kKinds> short_cut_hits_{};
    std::array<std::vector<ShortCut>, kKinds> short_cuts_;
    std::uint64_t stamp_clock_ = 0;   ///< of all TLBs' policies
    std::uint64_t unused_stamp_ = 0;  ///< for those that do not stamp hits

    TimingSpec timing_;
    DataCaches caches_;
    Slots walkers_;
    bool has_pscs_ = false;
    bool program_uses_caches_ = true;
};

}  // namespace mmusim
