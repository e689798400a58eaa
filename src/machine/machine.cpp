// SPDX-License-Identifier: Apache-2.0
#include <mmusim/machine/machine.hpp>

#include <algorithm>
#include <cassert>

#include <fmt/format.h>

namespace mmusim {

namespace {

constexpr std::array<std::pair<TranslationMode, std::string_view>, 6> kModeNames{{
    {TranslationMode::shadow, "shadow"},
    {TranslationMode::shadow_2_on_3, "2-on-3"},
    {TranslationMode::shadow_3_on_3, "3-on-3"},
    {TranslationMode::shadow_4_on_4, "4-on-4"},
    {TranslationMode::shadow_5_on_5, "5-on-5"},
    {TranslationMode::native, "native"},
}};

/// Machine frames set aside for shadows: 16 GiB of them. Leaf entries name frames of the guest, all
/// others name shadows; so where the guest's RAM leaves no frames, a second bank of memory whose numbers
/// overlap the guest's serves as well.
constexpr std::uint64_t kPoolFrames = std::uint64_t{1} << 22;

/// The machine itself: everything that its CPU can do.
constexpr Cpuid kHostCpuid{.vendor = Vendor::intel,
                           .physical_address_bits = kMaxPhysicalAddressBits,
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

PagingMode mode_of(Paging paging)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return kTwoLevel;
    case Paging::pae: return kPae;
    case Paging::four_level: return kFourLevel;
    case Paging::five_level: return kFiveLevel;
    }
    return kTwoLevel;
}

bool mode_fits(TranslationMode mode, Paging paging)
{
    switch (mode) {
    case TranslationMode::shadow:
    case TranslationMode::native: return true;
    case TranslationMode::shadow_2_on_3: return paging == Paging::off || paging == Paging::two_level;
    case TranslationMode::shadow_3_on_3: return paging == Paging::pae;
    case TranslationMode::shadow_4_on_4: return paging == Paging::four_level;
    case TranslationMode::shadow_5_on_5: return paging == Paging::five_level;
    }
    return false;
}

/// A walk under a paging mode known at run time. `off` is the caller's business.
template <class Tables>
[[gnu::always_inline]] inline Result<Translation<typename Tables::Space>, PageFault> walk_in(
    Paging paging, Tables& tables, const WalkRoot<typename Tables::Space>& root, const WalkRules& rules,
    const Access& access, AdBits ad_bits)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return walk<kTwoLevel>(tables, root, rules, access, ad_bits);
    case Paging::pae: return walk<kPae>(tables, root, rules, access, ad_bits);
    case Paging::four_level: return walk<kFourLevel>(tables, root, rules, access, ad_bits);
    case Paging::five_level: return walk<kFiveLevel>(tables, root, rules, access, ad_bits);
    }
    return PageFault{};
}

std::uint64_t root_frame(const Registers& registers, const Cpuid& cpuid)
{
    // Outside long mode CR3 bits 63:32 are ignored.
    const unsigned bits = registers.long_mode() ? cpuid.physical_address_bits : 32;
    return (registers.cr3 & bit_range(kPageShift, bits - 1)) >> kPageShift;
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
    , p2m_{GuestRam{config_.ram}, native() ? P2mLayout{} : config_.p2m}
    , guest_memory_{machine_, p2m_}  // Above the guest's width where the layout leaves room there.
    , pool_{p2m_.free_run(Mfn{std::uint64_t{1} << (config_.cpuid.physical_address_bits - kPageShift)},
                          kPoolFrames)}
    , table_memory_{pool_ || native() ? &machine_ : &bank_}
    , tables_{*table_memory_}
    , vcpus_(config_.vcpus)
{
    make_shadow_engine();
    for (unsigned i = 0; i < vcpus_.size(); ++i) refresh(i);
}

void Machine::make_shadow_engine()
{
    if (native()) return;
    shadow_ = std::make_unique<ShadowEngine>(machine_, *table_memory_, p2m_, config_.cpuid, config_.vcpus,
                                             config_.policy(), config_.populate, pool_.value_or(Mfn{}));
}

void Machine::reset()
{
    machine_.clear();
    bank_.clear();
    tables_.reset_loads();
    walks_ = 0;
    make_shadow_engine();
    for (unsigned i = 0; i < vcpus_.size(); ++i) {
        vcpus_[i] = Vcpu{};
        refresh(i);
    }
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
                  {root, vcpu.pdptes}};
    vcpu.fits = mode_fits(config_.mode, paging);
    vcpu.long_mode = registers.long_mode();
    vcpu.linear_bits = registers.linear_bits();
    if (native()) {
        vcpu.hardware = {paging, vcpu.guest.rules, {Mfn{root.number()}, vcpu.pdptes}};
        return;
    }
    // The hardware under a shadow: the machine's own width and features, CR0.WP always set, the rest of
    // the guest's rights in force only while the guest has paging on.
    const PagingMode shadow_mode = shadow_mode_of(mode_of(paging));
    vcpu.hardware.paging = shadow_mode.paging;
    vcpu.hardware.rules.entries = entry_rules(shadow_mode, kHostCpuid, {.nxe = true, .pse = false});
    vcpu.hardware.rules.control = paging == Paging::off ? RightsControl{} : vcpu.guest.rules.control;
    vcpu.hardware.rules.control.write_protect = true;
    refresh_hardware_root(index);
}

void Machine::refresh_hardware_root(unsigned index)
{
    if (shadow_) vcpus_[index].hardware.root = shadow_->hardware_root(index);
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

std::optional<Exception> Machine::commit(unsigned index, const RegisterLoad& load, bool loads_cr3)
{
    Vcpu& vcpu = vcpus_[index];
    if (vcpu.registers.cpl != 0) return general_protection(kPrivileged);
    if (!load) return general_protection(load.error().why);
    const Registers old = vcpu.registers;
    const Registers& now = load.value();

    if ((loads_cr3 && now.paging() == Paging::pae) || reloads_pdptes(old, now)) {
        std::array<std::uint64_t, 4> pdptes{};
        if (auto refused = load_pdptes(now, pdptes)) return refused;
        vcpu.pdptes = pdptes;
    }
    vcpu.registers = now;
    refresh(index);

    // A change in how entries are read empties the shadows' vCPU too: over-invalidation is always legal.
    const bool reread = old.paging() != now.paging() || !(old.entry_settings() == now.entry_settings());
    const FlushScope due = reread ? FlushScope::everything : due_flush(old, now);
    if (due == FlushScope::everything) {
        flush(index, GuestFlush::everything);
    } else if (due == FlushScope::current_pcid || loads_cr3) {
        flush(index, GuestFlush::context);
    }
    if (shadow_) {
        shadow_->load_roots(index, vcpu.guest);
        refresh_hardware_root(index);
    }
    return std::nullopt;
}

std::optional<Exception> Machine::mov_cr0(unsigned vcpu, std::uint64_t value)
{
    return commit(vcpu, mmusim::mov_cr0(vcpus_[vcpu].registers, value, config_.cpuid), false);
}

std::optional<Exception> Machine::mov_cr3(unsigned vcpu, std::uint64_t value)
{
    return commit(vcpu, mmusim::mov_cr3(vcpus_[vcpu].registers, value, config_.cpuid), true);
}

std::optional<Exception> Machine::mov_cr4(unsigned vcpu, std::uint64_t value)
{
    return commit(vcpu, mmusim::mov_cr4(vcpus_[vcpu].registers, value, config_.cpuid), false);
}

std::optional<Exception> Machine::wrmsr(unsigned vcpu, std::uint32_t msr, std::uint64_t value)
{
    if (msr == efer::kMsr)
        return commit(vcpu, wrmsr_efer(vcpus_[vcpu].registers, value, config_.cpuid), false);
    if (vcpus_[vcpu].registers.cpl != 0) return general_protection(kPrivileged);
    if (msr != kPkrsMsr || !config_.cpuid.pks) return general_protection("there is no such MSR");
    if (value >> 32 != 0) return general_protection("IA32_PKRS bits 63:32 are reserved");
    vcpus_[vcpu].registers.pkrs = static_cast<std::uint32_t>(value);
    refresh(vcpu);
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
    vcpus_[vcpu].registers.cpl = cpl;
}

void Machine::set_ac(unsigned vcpu, bool ac)
{
    vcpus_[vcpu].registers.ac = ac;
    refresh(vcpu);
}

std::optional<Refusal> Machine::set_registers(unsigned vcpu, const Registers& wanted)
{
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
    flush(vcpu, GuestFlush::everything);
    if (shadow_) {
        shadow_->load_roots(vcpu, vcpus_[vcpu].guest);
        refresh_hardware_root(vcpu);
    }
    return std::nullopt;
}

// --- invalidation ------------------------------------------------------------------------------------

void Machine::flush(unsigned vcpu, GuestFlush kind, LinearAddress address)
{
    if (shadow_) shadow_->flush(vcpu, kind, address);
}

std::optional<Exception> Machine::invlpg(unsigned vcpu, LinearAddress address)
{
    const Registers& registers = vcpus_[vcpu].registers;
    if (registers.cpl != 0) return general_protection(kPrivileged);
    if (shadow_) shadow_->count_invlpg();
    // Not canonical: no operation.
    if (registers.long_mode() && !canonical(address.value(), registers.linear_bits())) return std::nullopt;
    flush(vcpu, GuestFlush::address, address);
    return std::nullopt;
}

std::optional<Exception> Machine::invpcid(unsigned vcpu, std::uint64_t type, std::uint64_t pcid,
                                          LinearAddress address)
{
    const Registers& registers = vcpus_[vcpu].registers;
    if (!config_.cpuid.invpcid) {
        return Exception{Vector::undefined_opcode, 0, {}, "INVPCID needs the feature invpcid"};
    }
    if (registers.cpl != 0) return general_protection(kPrivileged);
    if (type > 3) return general_protection("INVPCID has no such type");
    if (pcid > cr3::kPcid) return general_protection("a PCID has 12 bits");
    const auto kind = static_cast<InvpcidType>(type);
    const bool one_pcid = kind == InvpcidType::address || kind == InvpcidType::context;
    if (one_pcid && pcid != 0 && !registers.has_cr4(cr4::kPcide)) {
        return general_protection("only PCID 0 exists while CR4.PCIDE is 0");
    }
    if (kind == InvpcidType::address) {
        if (registers.long_mode() && !canonical(address.value(), registers.linear_bits())) {
            return general_protection("INVPCID of an address that is not canonical");
        }
        flush(vcpu, GuestFlush::address, address);
    } else {
        flush(vcpu, kind == InvpcidType::context ? GuestFlush::context : GuestFlush::everything);
    }
    return std::nullopt;
}

// --- from outside ------------------------------------------------------------------------------------

void Machine::poke(GuestPhysical at, std::span<const std::byte> bytes)
{
    guest_memory_.write(at, bytes);
    if (shadow_) shadow_->forget(Gfn::of(at));
}

void Machine::clear_frame(Gfn frame)
{
    guest_memory_.clear(frame);
    if (shadow_) shadow_->forget(frame);
}

void Machine::blow_shadows()
{
    if (!shadow_) return;
    shadow_->blow();
    for (unsigned i = 0; i < vcpus_.size(); ++i) refresh_hardware_root(i);
}

std::vector<std::string> Machine::audit() const
{
    return shadow_ ? shadow_->audit() : std::vector<std::string>{};
}

// --- accesses ----------------------------------------------------------------------------------------

void Machine::refuse_mode(const Vcpu& vcpu) const
{
    throw ModeMismatch(fmt::format("mode {} does not fit an access with {}", name_of(config_.mode),
                                   name_of(vcpu.guest.paging)));
}

Result<LinearAddress, Exception> Machine::locate(unsigned index, const Operand& operand) const
{
    const Vcpu& vcpu = vcpus_[index];
    LinearAddress address = operand.address;
    if (operand.segmented) {
        const auto& [segment, offset] = *operand.segmented;
        const auto linear =
            linear_address(vcpu.registers.segments, segment, offset, operand.bytes, vcpu.long_mode);
        if (!linear) return linear.error();
        address = *linear;
    }
    if (!vcpu.long_mode) return LinearAddress{address.value() & 0xffff'ffff};
    const std::uint64_t last = address.value() + operand.bytes - 1;
    if (canonical(address.value(), vcpu.linear_bits) && canonical(last, vcpu.linear_bits)) return address;
    const bool stack = operand.segmented && operand.segmented->segment == Segment::ss;
    return Exception{
        stack ? Vector::stack_fault : Vector::general_protection, 0, {}, "the address is not canonical"};
}

Access Machine::access_of(const Operand& operand, LinearAddress address)
{
    return {address, operand.kind, operand.user_mode && !operand.implicit, operand.implicit};
}

void Machine::split(const Vcpu& vcpu, const Operand& operand, LinearAddress address, std::uint32_t index)
{
    const auto room = static_cast<std::uint32_t>(kPageBytes - address.offset_in_page());
    const std::uint32_t here = std::min(operand.bytes, room);
    pages_.push_back({access_of(operand, address), here, index});
    if (here < operand.bytes) {
        std::uint64_t next = address.value() + here;
        if (!vcpu.long_mode) next &= 0xffff'ffff;
        pages_.push_back({access_of(operand, LinearAddress{next}), operand.bytes - here, index});
    }
}

inline Result<Translation<space::Machine>, PageFault> Machine::hardware_walk(const Vcpu& vcpu,
                                                                             const Access& access)
{
    ++walks_;
    return walk_in(vcpu.hardware.paging, tables_, vcpu.hardware.root, vcpu.hardware.rules, access,
                   AdBits::set);
}

Result<Translation<space::GuestPhysical>, PageFault> Machine::guest_walk(const Vcpu& vcpu,
                                                                         const Access& access)
{
    if (vcpu.guest.paging == Paging::off) {
        return Translation<space::GuestPhysical>{.address = GuestPhysical{access.address.value()},
                                                 .rights = {}};
    }
    return walk_in(vcpu.guest.paging, guest_memory_, vcpu.guest.root, vcpu.guest.rules, access,
                   AdBits::leave);
}

Machine::Step Machine::faulted(const PageFault& fault)
{
    exception_ = Exception::of(fault);
    return {Step::Kind::fault, {}};
}

inline Machine::Step Machine::translate(unsigned index, const Access& access)
{
    const Vcpu& vcpu = vcpus_[index];
    if (!vcpu.fits) [[unlikely]]
        refuse_mode(vcpu);
    if (vcpu.hardware.paging == Paging::off) return {Step::Kind::done, GuestPhysical{access.address.value()}};
    const auto walked = hardware_walk(vcpu, access);
    if (walked) [[likely]] {
        const MachineAddress found = walked->address;
        if (!shadow_) return {Step::Kind::done, GuestPhysical{found.value()}};
        const auto gfn = p2m_.gfn_of(Mfn::of(found));
        assert(gfn && "a shadow maps guest RAM alone");
        return {Step::Kind::done, gfn->address(found.offset_in_page())};
    }
    return shadow_ ? exit_to_hypervisor(index, access) : faulted(walked.error());
}

Machine::Step Machine::step_of(const FaultAnswer& answer)
{
    switch (answer.kind) {
    case FaultAnswer::Kind::retry: break;
    case FaultAnswer::Kind::guest: return faulted(answer.fault);
    case FaultAnswer::Kind::emulated: return {Step::Kind::emulated, answer.address};
    }
    return {Step::Kind::retry, {}};
}

Machine::Step Machine::exit_to_hypervisor(unsigned index, const Access& access)
{
    const FaultAnswer answer = shadow_->fault(index, vcpus_[index].guest, access);
    refresh_hardware_root(index);
    return step_of(answer);
}

Machine::Step Machine::emulate(unsigned index, const Access& access)
{
    return step_of(shadow_->emulated_access(index, vcpus_[index].guest, access));
}

Result<Placed, Exception> Machine::access(unsigned index, const Operand& operand)
{
    const auto address = locate(index, operand);
    if (!address) [[unlikely]]
        return address.error();
    if (address->offset_in_page() + operand.bytes <= kPageBytes) [[likely]] {
        const Access access = access_of(operand, *address);
        for (;;) {
            const Step step = translate(index, access);
            if (step.kind == Step::Kind::retry) continue;
            if (step.kind == Step::Kind::fault) return exception_;
            Placed placed;
            placed.parts[0] = {step.address, operand.bytes, step.kind == Step::Kind::emulated};
            return placed;
        }
    }
    Execution execution;
    execute(index, {&operand, 1}, Restart::instruction, execution);
    if (execution.fault) return *execution.fault;
    return execution.placed[0];
}

std::size_t Machine::first_to_fault(const Vcpu& vcpu)
{
    const auto faulting = std::find_if(
        pages_.begin(), pages_.end(), [&](const PageAccess& page) { return !guest_walk(vcpu, page.access); });
    return static_cast<std::size_t>(faulting - pages_.begin());
}

std::size_t Machine::run_pages(unsigned index, Restart restart, bool fault_follows)
{
    // The CPU checks every translation before any takes effect. Where one will fault, the writes before it
    // are not going to happen: they translate, but set no dirty bit, as reads do.
    const auto last = fault_follows ? pages_.end() : std::prev(pages_.end());
    const bool a_fault_may_follow_a_write = std::any_of(
        pages_.begin(), last, [](const PageAccess& page) { return page.access.kind == AccessKind::write; });
    const std::size_t faulting = a_fault_may_follow_a_write ? first_to_fault(vcpus_[index]) : pages_.size();
    // Nothing cached may let it pass; a TLB may drop what it likes.
    if (faulting < pages_.size()) flush(index, GuestFlush::page_fault, pages_[faulting].access.address);
    bool completes = !fault_follows && faulting == pages_.size();

    steps_.assign(pages_.size(), {});
    for (;;) {
        bool emulating = false;
        for (std::size_t i = 0; i < pages_.size();) {
            Access access = pages_[i].access;
            if (!completes && i < faulting && access.kind == AccessKind::write)
                access.kind = AccessKind::read;
            // An emulated instruction is emulated to its end.
            steps_[i] = emulating ? emulate(index, access) : translate(index, access);
            if (steps_[i].kind == Step::Kind::fault) return i;
            if (steps_[i].kind == Step::Kind::retry) {
                if (restart == Restart::instruction) i = 0;
                continue;
            }
            emulating |= steps_[i].kind == Step::Kind::emulated;
            ++i;
        }
        if (completes || fault_follows) break;
        completes = true;  // the policy has kept a stale translation: now the writes do happen
    }
    // A later operand's translation may have made a table of a frame that an earlier one writes.
    for (std::size_t i = 0; shadow_ && i < pages_.size(); ++i) {
        const bool write = pages_[i].access.kind == AccessKind::write;
        if (write && shadow_->traps_writes_to(Gfn::of(steps_[i].address)))
            steps_[i].kind = Step::Kind::emulated;
    }
    return pages_.size();
}

void Machine::execute(unsigned index, std::span<const Operand> operands, Restart restart, Execution& result)
{
    const Vcpu& vcpu = vcpus_[index];
    result.placed.clear();
    result.fault.reset();
    pages_.clear();
    std::size_t reached = 0;
    for (; reached < operands.size(); ++reached) {
        const auto address = locate(index, operands[reached]);
        if (!address) {
            result.fault = address.error();
            break;
        }
        split(vcpu, operands[reached], *address, static_cast<std::uint32_t>(reached));
    }
    if (!pages_.empty()) {
        const std::size_t faulted = run_pages(index, restart, result.fault.has_value());
        if (faulted < pages_.size()) {
            result.fault = exception_;
            reached = pages_[faulted].operand;
        }
    }
    std::size_t page = 0;
    for (std::uint32_t i = 0; i < reached; ++i) {
        Placed placed;
        placed.count = 0;
        for (; page < pages_.size() && pages_[page].operand == i; ++page) {
            placed.parts[placed.count++] = {steps_[page].address, pages_[page].bytes,
                                            steps_[page].kind == Step::Kind::emulated};
        }
        result.placed.push_back(placed);
    }
}

void Machine::store(const Placed& placed, std::span<const std::byte> bytes)
{
    std::size_t done = 0;
    for (const Placed::Part& part : placed.pages()) {
        const auto piece = bytes.subspan(done, part.bytes);
        if (part.emulated) {
            shadow_->emulated_store(part.address, piece);
        } else {
            guest_memory_.write(part.address, piece);
        }
        done += part.bytes;
    }
}

void Machine::load(const Placed& placed, std::span<std::byte> bytes) const
{
    std::size_t done = 0;
    for (const Placed::Part& part : placed.pages()) {
        guest_memory_.read(part.address, bytes.subspan(done, part.bytes));
        done += part.bytes;
    }
}

}  // namespace mmusim
