// SPDX-License-Identifier: Apache-2.0
#include <mmusim/machine/machine.hpp>

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

/// INVPCID types (SDM vol. 2 INVPCID).
enum class InvpcidType : std::uint8_t { address, context, all_with_globals, all_without_globals };

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

}  // namespace mmusim
