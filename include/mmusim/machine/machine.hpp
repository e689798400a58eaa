// SPDX-License-Identifier: Apache-2.0
//
// One machine: guest memory behind its P2M, vCPUs with their registers, and what translates for them:
// the hardware's walk of the guest's own tables (native), the same in two dimensions (nested), or the shadow
// engine's tables and, behind them, the engine. The one place that knows everybody below.
//
// A guest's instruction is a list of operands that take effect together: an access that crosses a page
// is two translations, both needed before either counts, and where any translation faults, no memory
// and no dirty bit has changed. An exit to the hypervisor starts the instruction again.
//
// Each vCPU has an Mmu of the CPU profile. With a clock, what happens takes its time on it: accesses through
// the front end, everything else between them (docs/timing.md).
//
// Guest-visible faults are values. An access under a paging mode that the machine's mode excludes
// throws ModeMismatch. One machine belongs to one thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/container/small_vector.hpp>

#include <mmusim/coherence/coherence_oracle.hpp>
#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/cpu/mmu.hpp>
#include <mmusim/cpu/second_level.hpp>
#include <mmusim/p2m/access_monitor.hpp>
#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/machine_tables.hpp>
#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/shadow/policy_catalog.hpp>
#include <mmusim/shadow/shadow_engine.hpp>
#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/memory.hpp>
#include <mmusim/words/page_fault.hpp>
#include <mmusim/words/registers.hpp>

namespace mmusim {

/// Who translates. The four fixed shadow modes refuse accesses under another guest paging mode.
enum class TranslationMode : std::uint8_t {
    shadow,  ///< the shadow mode that fits the guest's paging at each point
    shadow_2_on_3,
    shadow_3_on_3,
    shadow_4_on_4,
    shadow_5_on_5,
    native,  ///< the CPU walks the guest's own tables; the P2M is the identity
    nested,  ///< the CPU walks the guest's own tables, and for each address in them the P2M's
};

/// "shadow", "2-on-3", "3-on-3", "4-on-4", "5-on-5", "native", "nested".
[[nodiscard]] std::string_view name_of(TranslationMode mode);
[[nodiscard]] std::optional<TranslationMode> parse_translation_mode(std::string_view name);

struct ModeMismatch : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct MachineConfig {
    Cpuid cpuid;
    unsigned vcpus = 1;
    std::vector<GfnRange> ram;
    P2mLayout p2m;  ///< not used in native mode
    /// The P2M's tables: `flat` for none, levels 4 or 5, and the level of the largest pages, 1 to 3.
    P2mFormat p2m_format = P2mFormat::npt;
    int p2m_levels = 4;
    int largest_p2m_page = 2;
    SecondLevelSpec second_level;  ///< in nested mode, where the P2M has tables
    bool vpid = true;              ///< nested: what the TLBs hold survives exits to the hypervisor
    TranslationMode mode = TranslationMode::shadow;
    ShadowPolicyFactory policy;  ///< not used in native mode
    Populate populate = Populate::leaf;
    std::uint64_t shadow_pool_pages = 0;    ///< 4 KiB pages for shadows; 0: as many as Xen's tool stack gives
    std::shared_ptr<const CpuProfile> cpu;  ///< null: nothing is cached, every access walks
    ClockKind clock = ClockKind::off;
    unsigned window = 0;              ///< accesses in flight, for ClockKind::window
    bool program_uses_caches = true;  ///< the program's own accesses go through the data caches
    SecureView secure_view = SecureView::separate;
    /// MOV CR3 to one of these values does not exit once its root is prepared (docs/secure-view.md); not used
    /// in native mode.
    std::vector<std::uint64_t> cr3_targets;
    unsigned event_ring_pages = 0;  ///< of mem_access; 0: there is no ring, as in a domain that did not ask
    bool check_coherence = false;   ///< compare each translation with what a fresh walk gives
};

/// An offset in a segment.
struct SegmentedAddress {
    Segment segment = Segment::ds;
    VirtualAddress offset;
};

/// One memory operand, or a fetch.
struct Operand {
    LinearAddress address;
    std::uint32_t bytes = 1;  ///< 1 to 4096
    AccessKind kind = AccessKind::read;
    bool user_mode = false;
    bool implicit = false;
    std::optional<SegmentedAddress> segmented = {};  ///< if set, the segmentation unit makes the address
    std::uint64_t gap = 0;                           ///< instructions before it; for the clock
};

/// An access of a stream: what most operands are, in 16 bytes.
struct StreamAccess {
    LinearAddress address;
    std::uint32_t gap = 0;    ///< instructions before it; for the clock
    std::uint16_t bytes = 1;  ///< 1 to 4096
    AccessKind kind = AccessKind::read;
    bool user_mode = false;
};

/// Where an operand is in guest-physical memory: in one page or in two. Without padding: the copies that
/// compilers make of a struct with holes stall on each access.
struct Placed {
    struct Part {
        GuestPhysical address;
        std::uint32_t bytes = 0;
        std::uint32_t emulated = 0;  ///< not 0: the hypervisor does the access for the guest
    };
    /// A value of `Part::emulated`: what is written has no effect.
    static constexpr std::uint32_t kDiscarded = 2;
    std::array<Part, 2> parts{};
    std::size_t count = 1;

    [[nodiscard]] std::span<const Part> pages() const { return {parts.data(), count}; }
};

/// What an instruction came to: `placed` holds the operands that were translated, in order; where
/// `fault` is set, the next one raised it.
struct Execution {
    boost::container::small_vector<Placed, 4> placed;
    std::optional<Exception> fault;
};

/// Where an instruction starts again after an exit.
enum class Restart : std::uint8_t { instruction, operand };

/// What the hardware did, over all vCPUs.
struct MachineCounters {
    std::uint64_t walks = 0;              ///< walks by the hardware
    std::uint64_t memory_references = 0;  ///< table entries that these read
    std::uint64_t exits = 0;              ///< to the hypervisor
    std::uint64_t flushes = 0;            ///< of a vCPU's TLBs by the hypervisor, whole
    std::vector<TlbCounters> tlbs;        ///< as the profile lists them
    std::array<PagingStructureCacheCounters, kMaxLevels + 1> paging_structure_caches{};  ///< by level
    std::uint64_t unseen_switches = 0;  ///< MOV CR3 without an exit
    LogDirtyCounters log_dirty;
    HazardCounts hazards;
    MemAccessCounts mem_access;
    std::vector<Cycles> cycles;  ///< by label; empty: no clock
    SecondLevelCounters second_level;
    StalenessCounts coherence;  ///< with MachineConfig::check_coherence

    friend bool operator==(const MachineCounters&, const MachineCounters&) = default;
};

class Machine {
public:
    /// Throws LayoutError where RAM or P2M do not fit.
    explicit Machine(MachineConfig config);

    /// Back to the state after construction: memory 0, registers at reset, nothing shadowed.
    void reset();

    // --- the guest's instructions -------------------------------------------------------------------

    /// The operand's linear address, or why it has none: a segment violation, or it is not canonical.
    [[nodiscard]] Result<LinearAddress, Exception> locate(unsigned vcpu, const Operand& operand) const;
    /// One operand on its own.
    [[nodiscard]] Result<Placed, Exception> access(unsigned vcpu, const Operand& operand);
    /// Several operands as one instruction. `result` is overwritten.
    void execute(unsigned vcpu, std::span<const Operand> operands, Restart restart, Execution& result);
    /// Accesses one after another, for what they do to the hardware; the number that raised an exception.
    std::uint64_t run(unsigned vcpu, std::span<const StreamAccess> accesses);
    /// Completes a write or a read that was placed.
    void store(const Placed& placed, std::span<const std::byte> bytes);
    void load(const Placed& placed, std::span<std::byte> bytes) const;

    /// Instructions that pass before what comes next; for the clock. (An operand brings its own.)
    void gap(std::uint64_t instructions)
    {
        if (clock_) clock_->pass(instructions);
    }

    /// Each returns the exception instead of which nothing else happened.
    [[nodiscard]] std::optional<Exception> mov_cr0(unsigned vcpu, std::uint64_t value);
    [[nodiscard]] std::optional<Exception> mov_cr3(unsigned vcpu, std::uint64_t value);
    [[nodiscard]] std::optional<Exception> mov_cr4(unsigned vcpu, std::uint64_t value);
    [[nodiscard]] std::optional<Exception> wrmsr(unsigned vcpu, std::uint32_t msr, std::uint64_t value);
    [[nodiscard]] std::optional<Exception> wrpkru(unsigned vcpu, std::uint32_t value);
    [[nodiscard]] std::optional<Exception> invlpg(unsigned vcpu, LinearAddress address);
    [[nodiscard]] std::optional<Exception> invpcid(unsigned vcpu, std::uint64_t type, std::uint64_t pcid,
                                                   LinearAddress address);
    void set_cpl(unsigned vcpu, std::uint8_t cpl);
    void set_ac(unsigned vcpu, bool ac);
    /// The guest says that an address space is being torn down, by Xen's hypercall HVMOP_pagetable_dying;
    /// `root`: what its CR3 held. A hint: nothing changes that the guest could see.
    void pagetable_dying(unsigned vcpu, GuestPhysical root);

    // --- from outside the guest ---------------------------------------------------------------------

    /// Loads all registers silently; in PAE mode the PDPTEs from memory too. Refused as a whole.
    [[nodiscard]] std::optional<Refusal> set_registers(unsigned vcpu, const Registers& registers);
    /// Guest memory changed by someone else, within one frame.
    void poke(GuestPhysical at, std::span<const std::byte> bytes);
    void clear_frame(Gfn frame);
    void peek(GuestPhysical at, std::span<std::byte> bytes) const { memory().read(at, bytes); }
    /// Drops every shadow.
    void blow_shadows();
    /// The P2M's entries of `count` frames from `first` on change (reference/xen.md C3). Without `mfn` each
    /// keeps the machine frame that it has, without `access` the right to them is the default one. Refused as
    /// a whole, and natively, where there is no P2M; throws DomainCrashed where the hypervisor ends the
    /// domain for it.
    [[nodiscard]] std::optional<Refusal> set_p2m(Gfn first, std::uint64_t count, P2mType type,
                                                 std::optional<MemAccess> access, std::optional<Mfn> mfn);
    /// Log-dirty by whoever is outside (docs/log-dirty.md). Under shadows alone, else -EINVAL.
    [[nodiscard]] LogDirtyAnswer log_dirty(LogDirtyAction action);

    // mem_access (docs/mem-access.md), under shadows. In other modes all of it is refused, or does nothing.

    /// The right to `count` frames from `first` on; nothing: what the default is now. Populates those that
    /// are populated on demand. Refused as a whole.
    [[nodiscard]] std::optional<Refusal> set_mem_access(Gfn first, std::uint64_t count,
                                                        std::optional<MemAccess> access);
    /// The right to all frames, at once.
    [[nodiscard]] std::optional<Refusal> set_default_mem_access(MemAccess access);
    /// Makes the event ring, once; after a reset there is the configuration's again.
    void open_event_ring(unsigned pages);
    /// From now on `listener` answers events, until it is detached or the machine reset. False: no ring.
    [[nodiscard]] bool attach_listener(EventListener& listener) { return monitor_.attach(listener); }
    void detach_listener();
    /// Whether a violation ends the domain where there is no listener.
    void require_listener(bool required) { monitor_.set_required(required); }
    /// The listener gets the events that it has not got yet.
    void deliver_events();
    /// The events since the last call, in order.
    [[nodiscard]] std::vector<MemAccessEvent> take_access_events() { return monitor_.take_events(); }
    [[nodiscard]] const AccessMonitor& access_monitor() const { return monitor_; }

    /// From now on these frames alone may be mapped only by vCPUs in secure mode (docs/secure-view.md).
    /// Not natively: who would see to it?
    void set_secure_frames(std::vector<Gfn> frames);
    /// The vCPU enters or leaves secure mode, in the hypervisor: an exit.
    void set_secure_mode(unsigned vcpu, bool on);

    /// From now on `observer` is told what the shadow engine does; null: nobody is. Stays over a reset.
    void observe(ShadowObserver* observer);
    /// Tells of emulated writes whose store has not come (`store`), and will not.
    void complete_events()
    {
        if (shadow_) shadow_->complete_events();
    }

    // --- what there is to see -----------------------------------------------------------------------

    [[nodiscard]] const Registers& registers(unsigned vcpu) const { return vcpus_[vcpu].registers; }
    [[nodiscard]] const std::array<std::uint64_t, 4>& pdptes(unsigned vcpu) const
    {
        return vcpus_[vcpu].pdptes;
    }
    [[nodiscard]] const MachineConfig& config() const { return config_; }
    [[nodiscard]] const P2m& p2m() const { return p2m_; }
    [[nodiscard]] const GuestMemory& memory() const { return guest_memory_; }
    /// The memory whose tables the hardware walks.
    [[nodiscard]] const SparseMemory& table_memory() const { return *table_memory_; }
    [[nodiscard]] MachineCounters counters() const;
    /// Null without a clock.
    [[nodiscard]] const Clock* clock() const { return clock_ ? &*clock_ : nullptr; }
    [[nodiscard]] const CycleLabels& cycle_labels() const { return labels_; }
    [[nodiscard]] const Mmu& mmu(unsigned vcpu) const { return *vcpus_[vcpu].mmu; }
    /// Null in the modes native and nested.
    [[nodiscard]] const ShadowEngine* shadow() const { return shadow_.get(); }
    /// The guest's own translation state, as the hypervisor's walk uses it.
    [[nodiscard]] const GuestContext& guest_context(unsigned vcpu) const { return vcpus_[vcpu].guest; }
    /// The walk that the hardware would do now.
    [[nodiscard]] const HardwareContext& hardware_context(unsigned vcpu) const
    {
        return vcpus_[vcpu].mmu->context();
    }

    /// Violated invariants, as sentences.
    [[nodiscard]] std::vector<std::string> audit() const;
    /// Translations that nothing permits, as sentences, since the last call. With check_coherence.
    [[nodiscard]] std::vector<std::string> take_violations() { return std::exchange(violations_, {}); }
    /// Hazards of shadow paging, as sentences: the first ones since the last call.
    [[nodiscard]] std::vector<std::string> take_hazards()
    {
        return shadow_ ? shadow_->take_hazards() : std::vector<std::string>{};
    }
    /// Accessed and dirty bits of the 8 bytes at `word` that are clear because of permitted stale
    /// translations.
    [[nodiscard]] std::uint64_t left_unset(GuestPhysical word) const
    {
        return oracle_ ? oracle_->left_unset(word) : 0;
    }

private:
    struct Vcpu {
        Registers registers;
        std::array<std::uint64_t, 4> pdptes{};
        GuestContext guest;
        std::unique_ptr<SecondLevel> second_level;
        std::unique_ptr<Mmu> mmu;
        bool fits = true;         ///< the guest's paging is one that the machine's mode translates
        bool paging_off = false;  ///< natively: a linear address is the machine's
        bool long_mode = false;
        std::uint8_t further = 0;  ///< instructions that may still be emulated in the exit of the last one
        unsigned linear_bits = 32;
    };
    /// One translation of an instruction. Of a fault, `exception_` holds the rest.
    struct Step {
        enum class Kind : std::uint8_t { done, emulated, fault, retry };
        Kind kind = Kind::done;
        bool granted = false;   ///< of `emulated`: mem_access lets the instruction pass
        bool discards = false;  ///< ... but nothing that it writes
        GuestPhysical address{};
        std::uint64_t machine = 0;  ///< where that is; of `done`
    };
    [[nodiscard]] static Step done_at(GuestPhysical address, std::uint64_t machine)
    {
        return {.address = address, .machine = machine};
    }
    /// For Placed::Part.
    [[nodiscard]] static std::uint32_t emulated_as(const Step& step)
    {
        if (step.kind != Step::Kind::emulated) return 0;
        return step.discards ? Placed::kDiscarded : 1;
    }
    struct PageAccess {
        Access access;
        std::uint32_t bytes = 0;
        std::uint32_t operand = 0;
    };

    /// Pages of the instruction under way, [first, last), that are translated again if the next one exits.
    struct Again {
        std::size_t first;
        std::size_t last;
    };

    /// The operand that is in flight, with a clock: the way of its translation that was ready last.
    struct Flight {
        Cycles issued = 0;
        Passage passage;
    };

    /// SDM vol. 2, INVPCID.
    enum class InvpcidType : std::uint8_t { address, context, all_with_globals, all_without_globals };

    [[nodiscard]] bool native() const { return config_.mode == TranslationMode::native; }
    [[nodiscard]] bool nested() const { return config_.mode == TranslationMode::nested; }
    /// Else the guest owns the tables that the hardware walks: what it flushes, the hardware flushes at once.
    [[nodiscard]] bool shadowed() const { return !native() && !nested(); }
    [[nodiscard]] P2m make_p2m();
    void start();
    [[nodiscard]] std::uint64_t pool_pages() const;
    void refresh(unsigned vcpu);
    /// Gives the hardware the engine's root; whether that is another one.
    bool adopt_root(unsigned vcpu);
    [[nodiscard]] std::optional<Exception> load_pdptes(const Registers& registers,
                                                       std::array<std::uint64_t, 4>& pdptes) const;
    /// Which register is loaded, and for CR3 whether bit 63 asks for no flush.
    enum class Load : std::uint8_t { control, cr3, cr3_noflush };
    [[nodiscard]] std::optional<Exception> commit(unsigned vcpu, const RegisterLoad& load, Load what);
    void flush_natively(unsigned vcpu, const Registers& old, FlushScope due, Load what);
    // What the guest flushes, flushed in the shadows; whether the vCPU's hardware has to be flushed whole.
    bool flush_shadows(unsigned vcpu, FlushScope due, Load what);
    bool flush_shadow_page(unsigned vcpu, LinearAddress address);
    /// `new_settings`: roots that were prepared are of no use any more.
    void load_shadow_roots(unsigned vcpu, bool new_settings);
    /// The number of the vCPU's CR3 among those that need no exit.
    [[nodiscard]] std::optional<unsigned> cr3_target(unsigned vcpu) const;
    /// MOV CR3 to a value whose root is prepared: no exit.
    [[nodiscard]] bool switch_unseen(unsigned vcpu);
    void flush_hardware(unsigned vcpu);
    void invpcid_natively(unsigned vcpu, InvpcidType type, unsigned pcid, LinearAddress address);
    /// Runs `work` as the hypervisor: exit, what the work costs, flushes of the hardware, entry. `work` says
    /// whether the vCPU's hardware has to be flushed whole.
    template <class Work>
    void in_hypervisor(unsigned vcpu, Work work);
    /// The hardware's part of what the engine has changed.
    void settle(unsigned vcpu, bool flush_due = false);
    /// The same on all vCPUs; `running`: the one in whose exit it was.
    void settle_all(unsigned running = 0);
    /// What the engine has done before work that is going to be charged.
    [[nodiscard]] ShadowWork before_work();
    /// Charges what the engine has done since `before`, on a vCPU.
    void charge(unsigned vcpu, const ShadowWork& before);
    /// The accesses to memory of that work: through the vCPU's data caches, one after another.
    void charge_touches(unsigned vcpu);
    void system_instruction(Label label, Cycles cycles);
    /// Drops what is cached of a page that is going to fault.
    void drop_before_fault(unsigned vcpu, LinearAddress address);
    /// The guest sees a page fault: what it takes, and drops.
    void raise_page_fault(unsigned vcpu, LinearAddress address);
    void tell_oracle_of_load(unsigned vcpu, const Registers& old, Load what);
    void audit_against_shadows(unsigned vcpu, std::vector<std::string>& violations) const;
    void check_coherence(unsigned vcpu, const Access& access, GuestPhysical found);
    void forget(Gfn frame);
    [[nodiscard]] std::optional<Refusal> refuse_p2m(Gfn first, std::uint64_t count, P2mType type,
                                                    std::optional<Mfn> mfn) const;
    /// Puts entries into the P2M; what they replace is no longer used by anybody afterwards.
    void change_p2m(std::span<const std::pair<Gfn, P2mEntry>> changes);
    /// The same without the time that it takes, and without the hardware's part.
    void put_into_p2m(std::span<const std::pair<Gfn, P2mEntry>> changes);
    /// The change that gives a frame its memory, which is populated on demand.
    [[nodiscard]] std::pair<Gfn, P2mEntry> on_demand(Gfn frame);
    [[nodiscard]] std::optional<Refusal> refuse_frames(Gfn first, std::uint64_t count) const;
    void give_access(Gfn first, std::uint64_t count, MemAccess access);
    /// No entry, and nothing cached, permits what the frames' rights did before.
    void follow_access(std::span<const Gfn> frames);
    void populate_on_demand(Gfn frame);
    [[noreturn]] void refuse_mode(const Vcpu& vcpu) const;
    [[nodiscard]] static Access access_of(const Operand& operand, LinearAddress address);
    void split(const Vcpu& vcpu, const Operand& operand, LinearAddress address, std::uint32_t index);
    /// The guest's own walk as it would end now; changes nothing.
    [[nodiscard]] Result<Translation<space::GuestPhysical>, PageFault> guest_walk(unsigned vcpu,
                                                                                  const Access& access);
    [[nodiscard]] Step faulted(const PageFault& fault);
    [[nodiscard]] Step step_of(const FaultAnswer& answer);
    template <bool Timed>
    [[nodiscard]] Step translate(unsigned vcpu, const Access& access, Again again = {0, 0});
    template <bool Timed>
    [[nodiscard]] Result<Placed, Exception> access_one_page(unsigned vcpu, const Access& access,
                                                            std::uint32_t bytes, std::uint64_t gap);
    /// With a clock: an operand is issued, ends with its data, or is given up.
    void take_off(std::uint64_t gap);
    void touch_data(unsigned vcpu, AccessKind kind, LinearAddress address,
                    std::span<const Mmu::Piece> pieces);
    void land();
    void emulated_store(std::span<const ShadowEngine::StorePart> parts);
    [[nodiscard]] const TimingSpec& timing() const { return config_.cpu->timing; }
    [[nodiscard]] Step missed(unsigned vcpu, const Access& access, const PageFault& fault, Again again);
    /// Whether one of the pages would fault now, after all. What was cached of it is dropped then.
    [[nodiscard]] bool one_faults(unsigned vcpu, Again pages);
    void exit_for(unsigned vcpu, const Access& access, std::uint32_t error_code, FaultAnswer& answer);
    [[nodiscard]] Step exit_to_hypervisor(unsigned vcpu, const Access& access, std::uint32_t error_code);
    // With a second level: exits for its violations.
    [[nodiscard]] Step violated(unsigned vcpu, const Access& access, const SecondLevelViolation& violation);
    [[nodiscard]] Step answer(unsigned vcpu, const Access& access, const SecondLevelViolation& violation);
    /// Whether the violation is one of the frame's access rights; it is answered then, and the access is
    /// tried again.
    [[nodiscard]] bool answer_access(const SecondLevelViolation& violation, const P2mEntry& entry);
    [[nodiscard]] Step emulate_nested(unsigned vcpu, const Access& access);
    /// Sees to it that the frame has memory that the hypervisor's access of this kind may reach.
    void make_usable(Gfn frame, AccessKind kind);
    void page_in(Gfn frame);
    void unshare(Gfn frame);
    [[nodiscard]] Mfn take_spare_frame(Gfn frame, std::string_view purpose);
    /// The memory of frames that are paged out from now on is kept.
    void keep_aside(std::span<const std::pair<Gfn, P2mEntry>> changes);
    void flush_second_level();
    void audit_against_p2m(unsigned vcpu, std::vector<std::string>& violations) const;
    /// An instruction has run that mem_access let pass as a single step.
    void end_single_step(unsigned vcpu);
    /// `checked`: mem_access counts.
    [[nodiscard]] Step emulate(unsigned vcpu, const Access& access, bool checked = true);
    /// Emulates the instruction of `pages_` in the exit of the one before; fills `steps_`. As `run_pages`;
    /// nothing if it would fault, or is beyond the emulator: it then runs by itself.
    [[nodiscard]] std::optional<std::size_t> emulate_further(unsigned vcpu);
    /// The vCPU's next instruction is none that can be emulated in that exit.
    void give_up_further(unsigned vcpu);
    /// Index of the first of `pages_` that would fault now; their number if none would.
    [[nodiscard]] std::size_t first_to_fault(unsigned vcpu);
    /// Runs `pages_`; fills `steps_`. Returns the index of the translation that faulted, or their number.
    /// `fault_follows`: the instruction will not complete even if all of them succeed.
    std::size_t run_pages(unsigned vcpu, Restart restart, bool fault_follows);

    MachineConfig config_;
    SparseMemory machine_;
    SparseMemory bank_;  ///< for the shadows of a guest whose RAM takes every machine frame
    FrameLayout layout_;
    std::optional<Mfn> pool_;  ///< first machine frame for shadows; none if the guest has all
    SparseMemory* table_memory_;
    P2m p2m_;
    GuestMemory guest_memory_;
    AccessMonitor monitor_;
    MachineTables tables_;
    unsigned machine_bits_;  ///< of its physical addresses, under shadows
    CycleLabels labels_;
    std::optional<Clock> clock_;
    Flight flight_;
    std::uint64_t spare_ = 0;  ///< spare frames in use
    std::uint64_t exits_ = 0;
    std::uint64_t flushes_ = 0;
    std::unique_ptr<CoherenceOracle> oracle_;
    std::vector<std::string> violations_;
    std::unique_ptr<ShadowEngine> shadow_;
    MemoryTouches touches_;  ///< of the engine's work under way, with a clock and data caches
    ShadowObserver* observer_ = nullptr;
    std::vector<Vcpu> vcpus_;
    std::vector<PageAccess> pages_;    ///< of the instruction under way
    std::vector<std::uint64_t> gaps_;  ///< before its operands; 0 once they have passed
    std::vector<Step> steps_;
    Exception exception_;  ///< of the step that faulted last
};

}  // namespace mmusim
