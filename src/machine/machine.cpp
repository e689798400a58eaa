// SPDX-License-Identifier: Apache-2.0
#include <mmusim/machine/machine.hpp>

#include <algorithm>
#include <cassert>
#include <utility>

#include <fmt/format.h>

#include "walk_in.hpp"

namespace mmusim {

namespace {

constexpr std::array<std::pair<TranslationMode, std::string_view>, 7> kModeNames{{
    {TranslationMode::shadow, "shadow"},
    {TranslationMode::shadow_2_on_3, "2-on-3"},
    {TranslationMode::shadow_3_on_3, "3-on-3"},
    {TranslationMode::shadow_4_on_4, "4-on-4"},
    {TranslationMode::shadow_5_on_5, "5-on-5"},
    {TranslationMode::native, "native"},
    {TranslationMode::nested, "nested"},
}};

/// Machine frames set aside for the hypervisor: 16 GiB of them. Leaf entries name frames of the guest, all
/// others name shadows; so where the guest's RAM leaves no frames, a second bank of memory whose numbers
/// overlap the guest's serves as well.
constexpr std::uint64_t kPoolFrames = std::uint64_t{1} << 22;

/// Of these, from the first on: shadows; memory that is populated on demand; the event ring. The P2M's tables
/// begin at the last.
constexpr std::uint64_t kShadowFrames = kPoolFrames / 2;
constexpr std::uint64_t kSpareFrames = kPoolFrames / 4;

/// Frames that one change of the P2M may name: 16 GiB.
constexpr std::uint64_t kMaxP2mChange = std::uint64_t{1} << 22;

/// The machine itself: everything that its CPU can do.
constexpr Cpuid host_cpuid(unsigned physical_address_bits)
{
    return {.vendor = Vendor::intel,
            .physical_address_bits = physical_address_bits,
            .nx = true,
            .pse = true,
            .pse36 = true,
            .pge = true,
            .pcid = true,
            .invpcid = true,
            .smep = true,
            .smap = true,
            .pku = true,
            .pks = true,
            .page1gb = true,
            .la57 = true};
}

/// Its width: where all frames in use (before `end`) fit, one bit is left for marks in shadow entries.
unsigned machine_bits(Mfn end)
{
    constexpr unsigned kWithMarks = kMaxPhysicalAddressBits - 1;
    const bool fits = end.number() <= std::uint64_t{1} << (kWithMarks - kPageShift);
    return fits ? kWithMarks : kMaxPhysicalAddressBits;
}

bool mode_fits(TranslationMode mode, Paging paging)
{
    switch (mode) {
    case TranslationMode::shadow:
    case TranslationMode::native:
    case TranslationMode::nested: return true;
    case TranslationMode::shadow_2_on_3: return paging == Paging::off || paging == Paging::two_level;
    case TranslationMode::shadow_3_on_3: return paging == Paging::pae;
    case TranslationMode::shadow_4_on_4: return paging == Paging::four_level;
    case TranslationMode::shadow_5_on_5: return paging == Paging::five_level;
    }
    return false;
}

std::uint64_t root_frame(const Registers& registers, const Cpuid& cpuid)
{
    // Outside long mode CR3 bits 63:32 are ignored.
    const unsigned bits = registers.long_mode() ? cpuid.physical_address_bits : 32;
    return (registers.cr3 & bit_range(kPageShift, bits - 1)) >> kPageShift;
}

unsigned pcid_of(const Registers& registers)
{
    return registers.has_cr4(cr4::kPcide) ? static_cast<unsigned>(registers.cr3 & cr3::kPcid) : 0;
}

Exception general_protection(std::string_view why)
{
    return {Vector::general_protection, 0, {}, why};
}

constexpr std::string_view kPrivileged = "a privileged instruction at a CPL above 0";

}  // namespace

std::string_view name_of(TranslationMode mode)
{
    for (const auto& [value, name] : kModeNames) {
        if (value == mode) return name;
    }
    return "?";
}

std::optional<TranslationMode> parse_translation_mode(std::string_view name)
{
    for (const auto& [value, known] : kModeNames) {
        if (known == name) return value;
    }
    return std::nullopt;
}

Machine::Machine(MachineConfig config)
    : config_{std::move(config)}
    , layout_{GuestRam{config_.ram}, native() ? P2mLayout{} : config_.p2m}
    // Above the guest's width where the layout leaves room there.
    , pool_{layout_.free_run(Mfn{std::uint64_t{1} << (config_.cpuid.physical_address_bits - kPageShift)},
                             kPoolFrames)}
    , table_memory_{pool_ || native() ? &machine_ : &bank_}
    , p2m_{make_p2m()}
    , guest_memory_{machine_, p2m_}
    , tables_{shadowed() ? *table_memory_ : machine_}
    , machine_bits_{machine_bits(std::max(layout_.end(), pool_.value_or(Mfn{}) + kPoolFrames))}
    , vcpus_(config_.vcpus)
{
    if (!config_.cpu) config_.cpu = std::make_shared<const CpuProfile>();
    const CpuProfile& cpu = *config_.cpu;
    const bool timed = config_.clock != ClockKind::off;
    std::vector<std::string> tlbs;
    std::vector<std::string> caches;
    for (const TlbSpec& tlb : cpu.tlbs.tlbs) tlbs.push_back(tlb.name);
    for (const CacheSpec& cache : cpu.timing.data_caches) caches.push_back(cache.name);
    labels_ = CycleLabels{std::move(tlbs), std::move(caches), nested()};
    for (Vcpu& vcpu : vcpus_) {
        if (nested())
            vcpu.second_level = std::make_unique<SecondLevel>(*table_memory_, p2m_, config_.second_level);
        vcpu.mmu =
            std::make_unique<Mmu>(cpu, tables_, shadowed() ? &p2m_ : nullptr, timed ? &labels_ : nullptr,
                                  config_.program_uses_caches, vcpu.second_level.get());
    }
    if (config_.check_coherence) {
        const bool stale_for_all = shadowed() && config_.policy()->declared().stale_for_all;
        oracle_ = std::make_unique<CoherenceOracle>(guest_memory_, config_.vcpus, stale_for_all);
    }
    start();
}

P2m Machine::make_p2m()
{
    if (native() || config_.p2m_format == P2mFormat::flat) return P2m{layout_};
    const Mfn last = pool_.value_or(Mfn{}) + (kPoolFrames - 1);
    auto tables = std::make_unique<P2mTables>(*table_memory_, config_.p2m_format, config_.p2m_levels, last);
    return P2m{layout_, std::move(tables), config_.largest_p2m_page};
}

void Machine::start()
{
    if (oracle_) oracle_->reset();
    monitor_ = {};
    if (!native() && config_.event_ring_pages != 0) open_event_ring(config_.event_ring_pages);
    if (shadowed()) {
        shadow_ = std::make_unique<ShadowEngine>(
            machine_, *table_memory_, p2m_, monitor_, config_.cpuid, config_.vcpus, config_.policy(),
            config_.populate, pool_.value_or(Mfn{}), pool_pages(), machine_bits_, config_.secure_view);
        shadow_->observe(observer_);
        const bool touches_take_time = config_.clock != ClockKind::off && !timing().data_caches.empty();
        shadow_->note_touches(touches_take_time ? &touches_ : nullptr);
    }
    if (config_.clock != ClockKind::off) {
        clock_.emplace(config_.clock, config_.window, timing().front_end.issue_width, labels_.size());
    }
    for (unsigned i = 0; i < vcpus_.size(); ++i) refresh(i);
}

std::uint64_t Machine::pool_pages() const
{
    std::uint64_t ram = 0;
    for (const GfnRange& range : config_.ram) ram += range.count;
    const std::uint64_t wanted =
        config_.shadow_pool_pages != 0 ? config_.shadow_pool_pages : default_shadow_pool(config_.vcpus, ram);
    return std::min(wanted, kShadowFrames);
}

void Machine::reset()
{
    monitor_.deliver();
    machine_.clear();
    bank_.clear();
    p2m_.reset();
    guest_memory_.forget_kept();
    spare_ = 0;
    tables_.reset_loads();
    exits_ = 0;
    flushes_ = 0;
    for (Vcpu& vcpu : vcpus_) {
        vcpu.registers = {};
        vcpu.pdptes = {};
        vcpu.further = 0;
        vcpu.mmu->reset();
        if (vcpu.second_level) vcpu.second_level->reset();
    }
    start();
}

void Machine::observe(ShadowObserver* observer)
{
    observer_ = observer;
    if (shadow_) shadow_->observe(observer);
}

MachineCounters Machine::counters() const
{
    MachineCounters counters;
    counters.memory_references = tables_.loads();
    counters.exits = exits_;
    counters.flushes = flushes_;
    counters.tlbs.resize(config_.cpu->tlbs.tlbs.size());
    for (const Vcpu& vcpu : vcpus_) {
        counters.walks += vcpu.mmu->walks();
        for (std::size_t i = 0; i < counters.tlbs.size(); ++i)
            counters.tlbs[i].add(vcpu.mmu->tlb_counters(i));
        for (int level = 2; level <= kMaxLevels; ++level) {
            const PagingStructureCacheCounters& one = vcpu.mmu->psc_counters(level);
            PagingStructureCacheCounters& sum =
                counters.paging_structure_caches[static_cast<std::size_t>(level)];
            sum.lookups += one.lookups;
            sum.hits += one.hits;
        }
        if (!vcpu.second_level) continue;
        const SecondLevelCounters& one = vcpu.second_level->counters();
        for (const SecondLevelCounterName& name : kSecondLevelCounterNames)
            counters.second_level.*name.member += one.*name.member;
    }
    counters.memory_references += counters.second_level.memory_references;
    if (clock_) counters.cycles = clock_->by();
    if (shadow_) {
        counters.unseen_switches = shadow_->unseen_switches();
        counters.hazards = shadow_->hazards();
        counters.log_dirty = shadow_->log_dirty_counters();
    }
    if (oracle_) counters.coherence = oracle_->counts();
    counters.mem_access = monitor_.counts();
    return counters;
}

void Machine::refresh(unsigned index)
{
    Vcpu& vcpu = vcpus_[index];
    const Registers& registers = vcpu.registers;
    const Paging paging = registers.paging();
    const Gfn root{root_frame(registers, config_.cpuid)};
    vcpu.guest = {paging,
                  walk_rules(mode_of(paging), registers, config_.cpuid),
                  registers.entry_settings(),
                  {root, vcpu.pdptes},
                  registers.has_cr4(cr4::kPge)};
    vcpu.fits = mode_fits(config_.mode, paging);
    vcpu.long_mode = registers.long_mode();
    vcpu.linear_bits = registers.linear_bits();
    vcpu.paging_off = native() && paging == Paging::off;

    HardwareContext hardware;
    if (!shadowed()) {
        hardware.paging = paging;
        hardware.rules = vcpu.guest.rules;
        // Natively an access with paging off is not the MMU's business.
        if (paging == Paging::off) hardware.rules.control = {};
        hardware.root = {Mfn{root.number()}, vcpu.pdptes};
        hardware.guest_root = vcpu.guest.root;
        hardware.pcid = pcid_of(registers);
        hardware.globals = registers.has_cr4(cr4::kPge);
        using Upper = HardwareContext::UpperInvalidation;
        if (config_.cpuid.vendor == Vendor::amd) {
            hardware.upper = registers.has_efer(efer::kTce) ? Upper::address : Upper::all;
        }
    } else {
        // The hardware under a shadow: the machine's own width and features, CR0.WP always set, the rest of
        // the guest's rights in force only while the guest has paging on.
        const PagingMode shadow_mode = shadow_mode_of(mode_of(paging));
        hardware.paging = shadow_mode.paging;
        hardware.rules.entries =
            entry_rules(shadow_mode, host_cpuid(machine_bits_), {.nxe = true, .pse = false});
        hardware.rules.control = paging == Paging::off ? RightsControl{} : vcpu.guest.rules.control;
        hardware.rules.control.write_protect = true;
        hardware.root = shadow_->hardware_root(index);
    }
    vcpu.mmu->load(hardware);
    if (oracle_) {
        oracle_->context(index, paging, vcpu.guest.rules, vcpu.guest.root, pcid_of(registers),
                         registers.has_cr4(cr4::kPge));
    }
}

bool Machine::adopt_root(unsigned index)
{
    Mmu& mmu = *vcpus_[index].mmu;
    HardwareContext hardware = mmu.context();
    hardware.root = shadow_->hardware_root(index);
    if (hardware.root == mmu.context().root) return false;
    mmu.load(hardware);
    return true;
}

void Machine::flush_hardware(unsigned index)
{
    vcpus_[index].mmu->drop_everything(true);
    ++flushes_;
    if (shadow_) shadow_->hardware_flushed(index);
    if (clock_) clock_->serialize(CycleLabels::kFlush, timing().hypervisor.flush);
}

// --- the hypervisor's time ---------------------------------------------------------------------------

void Machine::system_instruction(Label label, Cycles cycles)
{
    if (clock_) clock_->serialize(label, cycles);
}

template <class Work>
void Machine::in_hypervisor(unsigned index, Work work)
{
    ++exits_;
    system_instruction(CycleLabels::kExit, timing().hypervisor.exit);
    const ShadowWork before = before_work();
    const bool flush_due = work();
    charge(index, before);
    settle(index, flush_due);
    system_instruction(CycleLabels::kEntry, timing().hypervisor.entry);
}

void Machine::settle(unsigned index, bool flush_due)
{
    const bool everywhere = shadow_->take_flush_due();
    const bool here = adopt_root(index) || flush_due;
    for (unsigned i = 0; i < vcpus_.size(); ++i) {
        if (!everywhere && !(here && i == index)) continue;
        if (i != index) system_instruction(CycleLabels::kIpi, timing().hypervisor.ipi);
        flush_hardware(i);
    }
}

void Machine::settle_all(unsigned running)
{
    settle(running);
    for (unsigned i = 0; i < vcpus_.size(); ++i) settle(i);
}

ShadowWork Machine::before_work()
{
    touches_.clear();  // of what takes no time
    return shadow_->work();
}

void Machine::charge_touches(unsigned index)
{
    if (touches_.empty()) return;
    clock_->serialize(CycleLabels::kInstructions, 0);  // begins when everything before it is over
    for (const MemoryTouch& touch : touches_) {
        const Cycles start = clock_->now();
        const auto load = vcpus_[index].mmu->hypervisor_data({touch.address, touch.bytes}, start);
        clock_->serialize(labels_.hypervisor_data(load.answered_by), load.ready_at - start);
    }
    touches_.clear();
}

void Machine::charge(unsigned index, const ShadowWork& before)
{
    if (!clock_) return;
    charge_touches(index);
    const PriceList& prices = timing().hypervisor;
    const ShadowWork now = shadow_->work();
    clock_->serialize(CycleLabels::kFaultHandler, (now.faults - before.faults) * prices.fault_handler);
    clock_->serialize(CycleLabels::kGuestWalk,
                      (now.guest_entries_read - before.guest_entries_read) * prices.guest_walk_load);
    clock_->serialize(CycleLabels::kShadowPage,
                      (now.shadows_made - before.shadows_made) * prices.shadow_page);
    const std::uint64_t prefetched = now.entries_prefetched - before.entries_prefetched;
    clock_->serialize(CycleLabels::kPropagate,
                      (now.entries_written - before.entries_written - prefetched) * prices.propagate);
    clock_->serialize(CycleLabels::kPrefetch, prefetched * prices.prefetch);
    clock_->serialize(CycleLabels::kEmulate, (now.emulated - before.emulated) * prices.emulate);
    clock_->serialize(CycleLabels::kLoadRoot, (now.roots_loaded - before.roots_loaded) * prices.load_root);
    clock_->serialize(CycleLabels::kHash, (now.hash_steps - before.hash_steps) * prices.hash_step);
    clock_->serialize(CycleLabels::kGuess, (now.guesses - before.guesses) * prices.guess);
    clock_->serialize(CycleLabels::kSearch,
                      (now.entries_searched - before.entries_searched) * prices.search_entry);
    clock_->serialize(CycleLabels::kSnapshot, (now.snapshots - before.snapshots) * prices.snapshot);
    clock_->serialize(CycleLabels::kCompare,
                      (now.entries_compared - before.entries_compared) * prices.compare_entry);
    clock_->serialize(CycleLabels::kAccessEvent,
                      (now.access_events - before.access_events) * prices.access_event);
}

void Machine::exit_for(unsigned index, const Access& access, std::uint32_t error_code, FaultAnswer& answer)
{
    in_hypervisor(index, [&] {
        shadow_->catch_up(index, vcpus_[index].guest);
        const auto handle = [&] {
            answer = shadow_->fault(index, vcpus_[index].guest, access, error_code);
            return answer.kind == FaultAnswer::Kind::populate;
        };
        while (handle()) {
            const auto change = on_demand(Gfn::of(answer.address));
            put_into_p2m({&change, 1});
            settle_all(index);
        }
        return false;
    });
}

void Machine::emulated_store(std::span<const ShadowEngine::StorePart> parts)
{
    const ShadowWork before = before_work();
    shadow_->emulated_store(parts);
    charge(shadow_->emulating(), before);
    settle_all(shadow_->emulating());
}

// --- registers ---------------------------------------------------------------------------------------

std::optional<Exception> Machine::load_pdptes(const Registers& registers,
                                              std::array<std::uint64_t, 4>& pdptes) const
{
    // 32-byte aligned, so within one frame. CR3 has 32 bits outside long mode.
    const GuestPhysical table{registers.cr3 & 0xffff'ffe0};
    const std::uint64_t reserved = reserved_in_pdpte(config_.cpuid);
    for (unsigned i = 0; i < 4; ++i) {
        pdptes[i] = guest_memory_.load<std::uint64_t>(Gfn::of(table), table.offset_in_page() + 8 * i);
        if ((pdptes[i] & pte::kPresent) != 0 && (pdptes[i] & reserved) != 0) {
            return general_protection("a present PDPTE has a reserved bit set");
        }
    }
    return std::nullopt;
}

std::optional<Exception> Machine::commit(unsigned index, const RegisterLoad& load, Load what)
{
    Vcpu& vcpu = vcpus_[index];
    give_up_further(index);
    if (vcpu.registers.cpl != 0) return general_protection(kPrivileged);
    if (!load) return general_protection(load.error().why);
    const Registers old = vcpu.registers;
    const Registers& now = load.value();

    const bool reloads = reloads_pdptes(old, now);
    if ((what != Load::control && now.paging() == Paging::pae) || reloads) {
        std::array<std::uint64_t, 4> pdptes{};
        if (auto refused = load_pdptes(now, pdptes)) return refused;
        vcpu.pdptes = pdptes;
    }
    vcpu.registers = now;
    refresh(index);
    if (oracle_) tell_oracle_of_load(index, old, what);

    // A change in how entries are read empties the TLBs, and the shadows' vCPU too: over-invalidation is
    // always legal.
    const bool reread = old.paging() != now.paging() || !(old.entry_settings() == now.entry_settings());
    FlushScope due = reread ? FlushScope::everything : due_flush(old, now);
    if (due == FlushScope::none && reloads) due = FlushScope::current_pcid;
    if (!shadowed()) {
        flush_natively(index, old, due, what);
    } else if (what != Load::cr3 || !switch_unseen(index)) {
        in_hypervisor(index, [&] { return flush_shadows(index, due, what); });
    }
    return std::nullopt;
}

void Machine::tell_oracle_of_load(unsigned index, const Registers& old, Load what)
{
    const Registers& now = vcpus_[index].registers;
    const FlushScope due = due_flush(old, now);
    const std::string_view name = old.cr0 != now.cr0 ? "MOV CR0" : "MOV CR4";
    if (due == FlushScope::everything) {
        oracle_->invalidated_all(index, true, name);
    } else if (due == FlushScope::current_pcid) {
        oracle_->invalidated_pcid(index, pcid_of(now), name);
    }
    if (what == Load::cr3) oracle_->invalidated_pcid(index, pcid_of(now), "MOV CR3");
}

void Machine::check_coherence(unsigned index, const Access& access, GuestPhysical found)
{
    if (auto violation = oracle_->check(index, access, found)) violations_.push_back(violation->text);
}

void Machine::raise_page_fault(unsigned index, LinearAddress address)
{
    if (oracle_) {
        oracle_->invalidated_page(index, pcid_of(vcpus_[index].registers), address, false, "a page fault");
    }
    system_instruction(CycleLabels::kGuestFault, timing().instructions.page_fault);
}

void Machine::flush_natively(unsigned index, const Registers& old, FlushScope due, Load what)
{
    const Registers& now = vcpus_[index].registers;
    Mmu& mmu = *vcpus_[index].mmu;
    // Of what concerns one PCID the manual does not say whether its globals count: everything is legal.
    if (due != FlushScope::none) mmu.drop_everything(true);
    const InstructionSpec& costs = timing().instructions;
    if (what == Load::control) {
        system_instruction(CycleLabels::kMovCr, costs.mov_cr);
        return;
    }
    mmu.cr3_loaded(pcid_of(old), now.has_cr4(cr4::kPcide), what != Load::cr3_noflush);
    system_instruction(CycleLabels::kMovCr3, costs.mov_cr3);
}

bool Machine::flush_shadows(unsigned index, FlushScope due, Load what)
{
    const bool loads_cr3 = what != Load::control;
    if (due == FlushScope::everything) {
        shadow_->flush(index, GuestFlush::everything);
    } else if (loads_cr3) {
        shadow_->flush(index, what == Load::cr3 ? GuestFlush::load_cr3 : GuestFlush::load_cr3_noflush);
    } else if (due == FlushScope::current_pcid) {
        shadow_->flush(index, GuestFlush::context);
    }
    load_shadow_roots(index, !loads_cr3);
    // Shadows know no PCIDs: whatever the guest flushes, the hardware flushes whole.
    return due != FlushScope::none || loads_cr3;
}

void Machine::load_shadow_roots(unsigned index, bool new_settings)
{
    shadow_->load_roots(index, vcpus_[index].guest);
    if (new_settings) shadow_->forget_prepared(index);
    if (const auto target = cr3_target(index)) shadow_->prepare_root(index, *target);
}

std::optional<unsigned> Machine::cr3_target(unsigned index) const
{
    const Registers& registers = vcpus_[index].registers;
    const auto& targets = config_.cr3_targets;
    const auto found = std::find(targets.begin(), targets.end(), registers.cr3);
    if (found == targets.end() || registers.paging() == Paging::off) return std::nullopt;
    return static_cast<unsigned>(found - targets.begin());
}

bool Machine::switch_unseen(unsigned index)
{
    const auto target = cr3_target(index);
    if (!target || !shadow_->switch_unseen(index, *target, vcpus_[index].guest)) return false;
    (void)adopt_root(index);
    vcpus_[index].mmu->drop_everything(true);  // MOV CR3's own doing
    system_instruction(CycleLabels::kMovCr3, timing().instructions.mov_cr3);
    return true;
}

std::optional<Exception> Machine::mov_cr0(unsigned vcpu, std::uint64_t value)
{
    return commit(vcpu, mmusim::mov_cr0(vcpus_[vcpu].registers, value, config_.cpuid), Load::control);
}

std::optional<Exception> Machine::mov_cr3(unsigned vcpu, std::uint64_t value)
{
    const Registers& registers = vcpus_[vcpu].registers;
    const bool keeps = registers.has_cr4(cr4::kPcide) && (value & cr3::kNoFlush) != 0;
    return commit(vcpu, mmusim::mov_cr3(registers, value, config_.cpuid),
                  keeps ? Load::cr3_noflush : Load::cr3);
}

std::optional<Exception> Machine::mov_cr4(unsigned vcpu, std::uint64_t value)
{
    return commit(vcpu, mmusim::mov_cr4(vcpus_[vcpu].registers, value, config_.cpuid), Load::control);
}

std::optional<Exception> Machine::wrmsr(unsigned vcpu, std::uint32_t msr, std::uint64_t value)
{
    if (msr == efer::kMsr)
        return commit(vcpu, wrmsr_efer(vcpus_[vcpu].registers, value, config_.cpuid), Load::control);
    give_up_further(vcpu);
    if (vcpus_[vcpu].registers.cpl != 0) return general_protection(kPrivileged);
    if (msr != kPkrsMsr || !config_.cpuid.pks) return general_protection("there is no such MSR");
    if (value >> 32 != 0) return general_protection("IA32_PKRS bits 63:32 are reserved");
    vcpus_[vcpu].registers.pkrs = static_cast<std::uint32_t>(value);
    refresh(vcpu);
    system_instruction(CycleLabels::kMovCr, timing().instructions.mov_cr);  // no hypervisor is asked
    return std::nullopt;
}

std::optional<Exception> Machine::wrpkru(unsigned vcpu, std::uint32_t value)
{
    if (!config_.cpuid.pku) {
        return Exception{Vector::undefined_opcode, 0, {}, "WRPKRU needs the feature pku"};
    }
    vcpus_[vcpu].registers.pkru = value;
    refresh(vcpu);
    return std::nullopt;
}

void Machine::set_cpl(unsigned vcpu, std::uint8_t cpl)
{
    give_up_further(vcpu);
    vcpus_[vcpu].registers.cpl = cpl;
}

void Machine::set_ac(unsigned vcpu, bool ac)
{
    Vcpu& changed = vcpus_[vcpu];
    changed.registers.ac = ac;
    changed.guest.rules.control.ac = ac;
    // The hardware knows of it only while it walks under the guest's rights.
    if (changed.guest.paging != Paging::off) changed.mmu->load_ac(ac);
    if (oracle_) {
        oracle_->context(vcpu, changed.guest.paging, changed.guest.rules, changed.guest.root,
                         pcid_of(changed.registers), changed.registers.has_cr4(cr4::kPge));
    }
}

std::optional<Refusal> Machine::set_registers(unsigned vcpu, const Registers& wanted)
{
    vcpus_[vcpu].further = 0;
    const Registers registers = settled(wanted);
    if (const auto refusal = impossible(registers, config_.cpuid)) return refusal;
    if (!registers.long_mode() && registers.cr3 >> 32 != 0) {
        return Refusal{"CR3 has 32 bits outside long mode"};
    }
    std::array<std::uint64_t, 4> pdptes{};
    if (registers.paging() == Paging::pae) {
        if (const auto exception = load_pdptes(registers, pdptes)) return Refusal{exception->why};
    }
    vcpus_[vcpu].registers = registers;
    vcpus_[vcpu].pdptes = pdptes;
    refresh(vcpu);
    if (shadow_) {
        shadow_->flush(vcpu, GuestFlush::everything);
        load_shadow_roots(vcpu, true);
        settle(vcpu);
    }
    vcpus_[vcpu].mmu->drop_everything(true);
    if (oracle_) oracle_->invalidated_all(vcpu, true, "the record set");
    return std::nullopt;
}

// --- invalidation ------------------------------------------------------------------------------------

void Machine::drop_before_fault(unsigned vcpu, LinearAddress address)
{
    vcpus_[vcpu].mmu->page_fault(address);
    if (!shadow_) return;
    shadow_->catch_up(vcpu, vcpus_[vcpu].guest);
    shadow_->flush(vcpu, GuestFlush::page_fault, address);
    settle(vcpu);
}

std::optional<Exception> Machine::invlpg(unsigned vcpu, LinearAddress address)
{
    give_up_further(vcpu);
    const Registers& registers = vcpus_[vcpu].registers;
    if (!registers.long_mode()) address = LinearAddress{address.value() & 0xffff'ffff};
    if (registers.cpl != 0) return general_protection(kPrivileged);
    // Not canonical: no operation.
    const bool nothing = registers.long_mode() && !canonical(address.value(), registers.linear_bits());
    if (oracle_ && !nothing) oracle_->invalidated_page(vcpu, pcid_of(registers), address, true, "INVLPG");
    if (!shadowed()) {
        if (!nothing) vcpus_[vcpu].mmu->invlpg(address);
        system_instruction(CycleLabels::kInvlpg, timing().instructions.invlpg);
    } else {
        in_hypervisor(vcpu, [&] { return !nothing && flush_shadow_page(vcpu, address); });
    }
    return std::nullopt;
}

bool Machine::flush_shadow_page(unsigned vcpu, LinearAddress address)
{
    shadow_->catch_up(vcpu, vcpus_[vcpu].guest);
    const InvlpgAnswer answer = shadow_->invlpg(vcpu, address);
    if (!answer.suppress) vcpus_[vcpu].mmu->invlpg(address);
    return answer.flush_all;
}

std::optional<Exception> Machine::invpcid(unsigned vcpu, std::uint64_t type, std::uint64_t pcid,
                                          LinearAddress address)
{
    give_up_further(vcpu);
    const Registers& registers = vcpus_[vcpu].registers;
    if (!config_.cpuid.invpcid) {
        return Exception{Vector::undefined_opcode, 0, {}, "INVPCID needs the feature invpcid"};
    }
    if (registers.cpl != 0) return general_protection(kPrivileged);
    if (!registers.long_mode()) address = LinearAddress{address.value() & 0xffff'ffff};
    if (type > 3) return general_protection("INVPCID has no such type");
    if (pcid > cr3::kPcid) return general_protection("a PCID has 12 bits");
    const auto kind = static_cast<InvpcidType>(type);
    const bool one_pcid = kind == InvpcidType::address || kind == InvpcidType::context;
    if (one_pcid && pcid != 0 && !registers.has_cr4(cr4::kPcide)) {
        return general_protection("only PCID 0 exists while CR4.PCIDE is 0");
    }
    if (kind == InvpcidType::address && registers.long_mode() &&
        !canonical(address.value(), registers.linear_bits())) {
        return general_protection("INVPCID of an address that is not canonical");
    }
    if (oracle_) {
        switch (kind) {
        case InvpcidType::address:
            oracle_->invalidated_page(vcpu, pcid, address, false, "INVPCID of an address");
            break;
        case InvpcidType::context: oracle_->invalidated_pcid(vcpu, pcid, "INVPCID of a PCID"); break;
        case InvpcidType::all_with_globals: oracle_->invalidated_all(vcpu, true, "INVPCID of all"); break;
        case InvpcidType::all_without_globals:
            oracle_->invalidated_all(vcpu, false, "INVPCID of all but globals");
            break;
        }
    }
    if (!shadowed()) {
        invpcid_natively(vcpu, kind, static_cast<unsigned>(pcid), address);
        system_instruction(CycleLabels::kInvpcid, timing().instructions.invpcid);
        return std::nullopt;
    }
    in_hypervisor(vcpu, [&] {
        if (kind == InvpcidType::address) return flush_shadow_page(vcpu, address);
        shadow_->flush(vcpu, kind == InvpcidType::context ? GuestFlush::context : GuestFlush::everything);
        load_shadow_roots(vcpu, false);
        return true;
    });
    return std::nullopt;
}

void Machine::invpcid_natively(unsigned vcpu, InvpcidType type, unsigned pcid, LinearAddress address)
{
    Mmu& mmu = *vcpus_[vcpu].mmu;
    switch (type) {
    case InvpcidType::address: mmu.invpcid_address(pcid, address); break;
    case InvpcidType::context: mmu.invpcid_context(pcid); break;
    case InvpcidType::all_with_globals: mmu.drop_everything(true); break;
    case InvpcidType::all_without_globals: mmu.drop_everything(false); break;
    }
}

// --- from outside ------------------------------------------------------------------------------------

void Machine::poke(GuestPhysical at, std::span<const std::byte> bytes)
{
    make_usable(Gfn::of(at), AccessKind::write);
    if (oracle_) oracle_->before_store(at, bytes);
    guest_memory_.write(at, bytes);
    forget(Gfn::of(at));
}

void Machine::clear_frame(Gfn frame)
{
    if (oracle_) {
        const std::array<std::byte, kPageBytes> zeros{};
        oracle_->before_store(frame.address(), zeros);
    }
    make_usable(frame, AccessKind::write);
    guest_memory_.clear(frame);
    forget(frame);
}

void Machine::forget(Gfn frame)
{
    if (!shadow_) return;
    shadow_->mark_dirty(frame);
    shadow_->forget(frame);
    settle_all();
}

void Machine::pagetable_dying(unsigned vcpu, GuestPhysical root)
{
    if (!shadow_) return;
    give_up_further(vcpu);
    in_hypervisor(vcpu, [&] {
        shadow_->pagetable_dying(vcpu, root);
        return false;
    });
}

void Machine::blow_shadows()
{
    if (!shadow_) return;
    shadow_->blow();
    settle_all();
}

LogDirtyAnswer Machine::log_dirty(LogDirtyAction action)
{
    if (!shadow_) return {LogDirtyAnswer::kInvalid, 0, 0, {}};
    const ShadowWork before = before_work();
    LogDirtyAnswer answer = shadow_->log_dirty(action);
    charge(0, before);
    settle_all();
    return answer;
}

std::optional<Refusal> Machine::refuse_frames(Gfn first, std::uint64_t count) const
{
    const std::uint64_t frames = std::uint64_t{1} << (config_.cpuid.physical_address_bits - kPageShift);
    if (native()) return Refusal{"native mode has no P2M"};
    if (count == 0) return Refusal{"no frame is named"};
    if (count > kMaxP2mChange) return Refusal{"more frames than a change may have: 2^22"};
    if (first.number() >= frames || count > frames - first.number())
        return Refusal{"a frame lies beyond the guest's physical addresses"};
    if (nested() && (first.number() + count - 1) >> (9 * p2m_.tables()->levels()) != 0)
        return Refusal{"a frame lies beyond what the P2M's tables can map"};
    return std::nullopt;
}

std::optional<Refusal> Machine::refuse_p2m(Gfn first, std::uint64_t count, P2mType type,
                                           std::optional<Mfn> mfn) const
{
    if (const auto refused = refuse_frames(first, count)) return refused;
    switch (type) {
    case P2mType::ram_paging_out:
    case P2mType::ram_paged:
    case P2mType::ram_paging_in:
    case P2mType::ram_shared:
        if (!nested()) return Refusal{"paging and sharing of memory need nested paging"};
        break;
    default: break;
    }
    if (!has_frame(type)) return std::nullopt;
    if (mfn) {
        // Above, shadow entries have their marks, where there is room for them.
        const std::uint64_t machine_frames = std::uint64_t{1} << (machine_bits_ - kPageShift);
        if (mfn->number() >= machine_frames || count > machine_frames - mfn->number())
            return Refusal{"a machine frame lies beyond the machine's physical addresses"};
        if (pool_ && mfn->number() < pool_->number() + kPoolFrames && mfn->number() + count > pool_->number())
            return Refusal{"a machine frame is the hypervisor's"};
        return std::nullopt;
    }
    for (std::uint64_t i = 0; i < count; ++i) {
        if (!guest_memory_.frame_of(first + i))
            return Refusal{"a frame has no machine frame that it could keep"};
    }
    return std::nullopt;
}

std::optional<Refusal> Machine::set_p2m(Gfn first, std::uint64_t count, P2mType type,
                                        std::optional<MemAccess> access, std::optional<Mfn> mfn)
{
    if (const auto refused = refuse_p2m(first, count, type, mfn)) return refused;
    const auto must_not_be_special = [&](Gfn frame) {
        if (!is_special(p2m_.entry(frame).type)) return;
        throw DomainCrashed(fmt::format(
            "the hypervisor ended the domain: the P2M entry of frame {} is not to be changed (-EPERM)",
            frame));
    };
    std::vector<std::pair<Gfn, P2mEntry>> changes;
    for (std::uint64_t i = 0; i < count; ++i) {
        const Gfn frame = first + i;
        // Under shadows the right is the monitor's alone to know.
        P2mEntry now{{}, type, nested() ? access.value_or(MemAccess::rwx) : MemAccess::rwx};
        if (now.has_frame()) now.mfn = mfn ? *mfn + i : *guest_memory_.frame_of(frame);
        if (is_hole(type)) now.access = MemAccess::rwx;
        if (now == p2m_.entry(frame)) continue;
        must_not_be_special(frame);
        // A machine frame is one guest frame's at most. (One of those that change gets another.)
        if (now.has_frame()) {
            const auto alias = p2m_.gfn_of(now.mfn);
            if (alias && !GfnRange{first, count}.contains(*alias)) {
                must_not_be_special(*alias);
                changes.emplace_back(*alias, P2mEntry{});
            }
        }
        changes.emplace_back(frame, now);
    }
    for (const auto& change : changes) monitor_.rights().clear(change.first);
    if (!changes.empty()) change_p2m(changes);
    if (shadowed() && !is_hole(type))
        give_access(first, count, access.value_or(monitor_.rights().default_access()));
    return std::nullopt;
}

// --- mem_access --------------------------------------------------------------------------------------

void Machine::open_event_ring(unsigned pages)
{
    constexpr std::uint64_t kRingAt = kShadowFrames + kSpareFrames;
    if (native() || monitor_.ring() != nullptr) return;
    monitor_.make_ring(pool_.value_or(Mfn{}) + kRingAt, pages);
}

std::optional<Refusal> Machine::set_mem_access(Gfn first, std::uint64_t count,
                                               std::optional<MemAccess> access)
{
    if (!shadowed()) return Refusal{"this version has mem_access under shadows alone"};
    if (const auto refused = refuse_frames(first, count)) return refused;
    for (std::uint64_t i = 0; i < count; ++i) {
        const P2mEntry entry = p2m_.entry(first + i);
        if (!entry.has_frame() && entry.type != P2mType::populate_on_demand)
            return Refusal{"nothing is behind a frame"};
    }
    for (std::uint64_t i = 0; i < count && p2m_.changed(); ++i) {
        if (p2m_.entry(first + i).type == P2mType::populate_on_demand) populate_on_demand(first + i);
    }
    give_access(first, count, access.value_or(monitor_.rights().default_access()));
    return std::nullopt;
}

void Machine::give_access(Gfn first, std::uint64_t count, MemAccess access)
{
    std::vector<Gfn> changed;
    for (std::uint64_t i = 0; i < count; ++i) {
        if (monitor_.rights().of(first + i) == access) continue;
        monitor_.rights().set(first + i, access);
        changed.push_back(first + i);
    }
    follow_access(changed);
}

void Machine::follow_access(std::span<const Gfn> frames)
{
    if (frames.empty()) return;
    const ShadowWork before = before_work();
    for (unsigned i = 0; i < vcpus_.size(); ++i) shadow_->catch_up(i, vcpus_[i].guest);
    shadow_->access_changed(frames);
    charge(0, before);
    settle_all();
}

std::optional<Refusal> Machine::set_default_mem_access(MemAccess access)
{
    if (!shadowed()) return Refusal{"this version has mem_access under shadows alone"};
    monitor_.rights().set_default(access);
    const ShadowWork before = before_work();
    for (unsigned i = 0; i < vcpus_.size(); ++i) shadow_->catch_up(i, vcpus_[i].guest);
    shadow_->default_access_changed();
    charge(0, before);
    settle_all();
    return std::nullopt;
}

void Machine::detach_listener()
{
    deliver_events();
    monitor_.detach();
}

void Machine::deliver_events()
{
    monitor_.deliver();
    follow_access(monitor_.take_narrowed());
}

void Machine::change_p2m(std::span<const std::pair<Gfn, P2mEntry>> changes)
{
    if (nested()) {
        put_into_p2m(changes);
        return flush_second_level();
    }
    std::vector<Mfn> replaced;
    for (const auto& change : changes) {
        if (const auto old = p2m_.mfn_of(change.first)) replaced.push_back(*old);
    }
    std::sort(replaced.begin(), replaced.end());
    const ShadowWork before = before_work();
    put_into_p2m(changes);
    charge(0, before);
    settle_all();
    // The guest may have taken an entry away and not flushed: Xen flushes before the frame is used again.
    for (unsigned i = 0; i < vcpus_.size(); ++i) {
        bool held = false;
        vcpus_[i].mmu->for_each_translation([&](const TlbSpec&, TlbTag, const TlbContent& content) {
            const Mfn frame = Mfn::of(MachineAddress{content.frame});
            held |= std::binary_search(replaced.begin(), replaced.end(), frame);
        });
        if (held) flush_hardware(i);
    }
}

void Machine::put_into_p2m(std::span<const std::pair<Gfn, P2mEntry>> changes)
{
    if (oracle_) {
        std::array<std::byte, kPageBytes> content;
        for (const auto& [frame, entry] : changes) {
            if (is_paged_out(entry.type)) continue;  // what it holds comes back
            content.fill(std::byte{0});
            if (entry.has_frame()) machine_.read(entry.mfn.number(), 0, content);
            oracle_->before_remap(frame, content);
        }
    }
    std::vector<Gfn> frames;
    std::vector<Gfn> added;  // with other memory behind them than before
    for (const auto& [frame, entry] : changes) {
        frames.push_back(frame);
        if (entry.has_frame() && p2m_.mfn_of(frame) != entry.mfn) added.push_back(frame);
    }
    if (shadow_) {
        for (unsigned i = 0; i < vcpus_.size(); ++i) shadow_->catch_up(i, vcpus_[i].guest);
        shadow_->before_p2m_change(frames);
    } else {
        keep_aside(changes);
    }
    // Rows of them at once, so that they can be large pages.
    for (std::size_t i = 0; i < changes.size();) {
        const auto& [first, entry] = changes[i];
        std::size_t count = 1;
        while (i + count < changes.size() &&
               changes[i + count] == std::pair{first + count, entry.at(count)}) {
            ++count;
        }
        p2m_.set(first, count, entry);
        i += count;
    }
    if (!shadow_) return;
    shadow_->after_p2m_change();
    for (const Gfn frame : added) shadow_->mark_dirty(frame);
}

Mfn Machine::take_spare_frame(Gfn frame, std::string_view purpose)
{
    if (!pool_ || spare_ == kSpareFrames) {
        throw DomainCrashed(
            fmt::format("the hypervisor ended the domain: no memory is left to {} frame {}", purpose, frame));
    }
    return *pool_ + (kShadowFrames + spare_++);
}

std::pair<Gfn, P2mEntry> Machine::on_demand(Gfn frame)
{
    const Mfn mfn = take_spare_frame(frame, "populate on demand");
    return {frame, {mfn, P2mType::ram_rw, p2m_.entry(frame).access}};
}

void Machine::populate_on_demand(Gfn frame)
{
    const auto change = on_demand(frame);
    // Nested: the hardware keeps nothing of what is not there.
    if (nested()) return p2m_.set(frame, 1, change.second);
    change_p2m({&change, 1});
}

void Machine::set_secure_frames(std::vector<Gfn> frames)
{
    assert(shadow_);
    shadow_->set_secure_frames(std::move(frames));
    settle_all();
}

void Machine::set_secure_mode(unsigned vcpu, bool on)
{
    assert(shadow_);
    give_up_further(vcpu);
    in_hypervisor(vcpu, [&] {
        const bool changes = shadow_->secure_mode(vcpu) != on;
        shadow_->catch_up(vcpu, vcpus_[vcpu].guest);
        shadow_->set_secure_mode(vcpu, on, vcpus_[vcpu].guest);
        if (const auto target = cr3_target(vcpu); target && changes) shadow_->prepare_root(vcpu, *target);
        return changes;
    });
}

std::vector<std::string> Machine::audit() const
{
    std::vector<std::string> violations = shadow_ ? shadow_->audit() : std::vector<std::string>{};
    if (p2m_.changed()) p2m_.audit(violations);
    for (unsigned i = 0; i < vcpus_.size(); ++i) {
        vcpus_[i].mmu->audit(violations);
        if (shadow_) audit_against_shadows(i, violations);
        if (nested()) audit_against_p2m(i, violations);
    }
    return violations;
}

void Machine::audit_against_shadows(unsigned index, std::vector<std::string>& violations) const
{
    const auto permitted_by_mem_access = [&](Rights held, Gfn frame) {
        const FrameRights rights = monitor_.rights_to(frame);
        return rights.read && (rights.write || !held.writable) && (rights.execute || held.no_execute);
    };
    // What the guest took away it must flush itself; what the hypervisor relies on must hold at once.
    vcpus_[index].mmu->for_each_translation([&](const TlbSpec& tlb, TlbTag tag, const TlbContent& content) {
        const LinearAddress address{tag.number() << content.attributes.entry_shift()};
        const auto frame = p2m_.gfn_of(Mfn::of(MachineAddress{content.frame}));
        if (!frame) {
            violations.push_back(fmt::format(
                "TLB {} holds a translation of {} to a frame that is not the guest's", tlb.name, address));
        } else if (shadow_->keeps_views_apart() &&
                   shadow_->refusal(index, vcpus_[index].guest, {address}, *frame)) {
            violations.push_back(
                fmt::format("TLB {} of vCPU {}, not in secure mode, holds a translation of {} to frame {}, "
                            "which is secure",
                            tlb.name, index, address, *frame));
        } else if (!permitted_by_mem_access(content.attributes.rights(), *frame)) {
            violations.push_back(fmt::format(
                "TLB {} of vCPU {} holds a translation of {} with more than mem_access permits of frame {}",
                tlb.name, index, address, *frame));
        } else if (content.attributes.rights().writable && content.attributes.dirty() &&
                   shadow_->unlogged(*frame)) {
            violations.push_back(
                fmt::format("TLB {} holds a writable translation of {} to frame {}, which is clean", tlb.name,
                            address, *frame));
        } else if (content.attributes.rights().writable && content.attributes.dirty() &&
                   shadow_->traps_writes_to(*frame)) {
            violations.push_back(
                fmt::format("TLB {} holds a writable translation of {} to frame {}, which is a table",
                            tlb.name, address, *frame));
        }
    });
}

}  // namespace mmusim
