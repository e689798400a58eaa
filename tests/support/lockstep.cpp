// SPDX-License-Identifier: Apache-2.0
#include "support/lockstep.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace stress {

using namespace mmusim;

// --- setups ------------------------------------------------------------------------------------------------

namespace {

Setup plain_setup()
{
    Setup setup;
    setup.config.p2m = P2mLayout{};
    setup.config.cpu = "none";
    setup.config.clock = ClockKind::off;
    return setup;
}

/// Whether the reference's list of translations that may be cached has all that a policy's shadows may hold:
/// what accesses have asked for, made by one walk. Not so where tables go out of sync: entries are then
/// propagated that no access has asked for, or upper ones outlive what is below them. Nor where tables with
/// global pages come back when their page has faulted in between: the reference takes the manual to mean that
/// page too, the oracle does not (docs/coherence.md).
bool walks_alone(const PolicyDeclaration& declared)
{
    return !declared.protects_tables && declared.keyed_by == ShadowKeying::position;
}

/// Read once.
std::shared_ptr<const CpuProfile> profile(const std::string& name)
{
    static std::map<std::string, std::shared_ptr<const CpuProfile>> known;
    std::shared_ptr<const CpuProfile>& found = known[name];
    if (!found) found = std::make_shared<const CpuProfile>(find_cpu_profile(name));
    return found;
}

MachineConfig config_for(const TraceHeader& header, const Setup& setup)
{
    MachineConfig config;
    config.cpuid = header.cpuid;
    config.vcpus = header.vcpus;
    config.ram = header.ram;
    config.mode = setup.config.mode;
    if (setup.config.cpu != "none") {
        config.cpu = profile(setup.config.cpu);
        config.check_coherence = true;
    }
    if (config.mode == TranslationMode::native) return config;
    if (config.mode == TranslationMode::nested) {
        const NestedConfig& nested = setup.config.nested;
        config.p2m = setup.config.p2m.value();
        config.p2m_format = nested.format.value();
        config.p2m_levels = nested.levels.value();
        config.largest_p2m_page = nested.largest_page;
        config.second_level = {nested.ad_bits, nested.tlb_entries};
        return config;
    }
    config.p2m = setup.config.p2m.value();
    config.policy = setup.policy;
    config.populate = setup.config.populate;
    config.shadow_pool_pages = setup.config.shadow_pool_pages.value_or(0);
    config.cr3_targets = setup.config.cr3_targets;
    const PolicyDeclaration declared = setup.policy()->declared();
    config.check_coherence |= setup.config.check_coherence || !(declared.coherent() || walks_alone(declared));
    return config;
}

}  // namespace

Setup setup_for(const std::string& policy, const ShadowPolicyCatalog& catalog)
{
    Setup setup = plain_setup();
    setup.config.policy = policy;
    setup.policy = catalog.find(policy);
    return setup;
}

Setup custom_setup(const CustomShadowPolicy& parts)
{
    Setup setup = plain_setup();
    setup.config.policy = "custom";
    setup.config.custom = parts;
    setup.policy = [parts] { return make_custom_policy(parts); };
    return setup;
}

Setup native_setup()
{
    Setup setup = plain_setup();
    setup.config.mode = TranslationMode::native;
    return setup;
}

Setup nested_setup()
{
    Setup setup = plain_setup();
    setup.config.mode = TranslationMode::nested;
    setup.config.nested.format = P2mFormat::ept;
    setup.config.nested.levels = 4;
    return setup;
}

std::string options_of(const Setup& setup)
{
    const ReplayConfig& config = setup.config;
    std::string text = fmt::format("--cpu {} --clock off --mode {}", config.cpu, name_of(config.mode));
    if (config.mode == TranslationMode::native) return text;
    if (config.mode == TranslationMode::nested) {
        const NestedConfig& nested = config.nested;
        constexpr std::array<const char*, 3> kPages{"4k", "2m", "1g"};
        return text + fmt::format(
                          " --p2m {} --set nested.format={} --set nested.levels={}"
                          " --set nested.largest_page={} --set nested.tlb_entries={}"
                          " --set nested.ad_bits={}",
                          to_string(*config.p2m), nested.format == P2mFormat::ept ? "ept" : "npt",
                          nested.levels.value(), kPages[static_cast<std::size_t>(nested.largest_page) - 1],
                          nested.tlb_entries, nested.ad_bits);
    }
    text += fmt::format(" --policy {} --p2m {} --set shadow.populate={}", config.policy,
                        to_string(*config.p2m), config.populate == Populate::leaf ? "leaf" : "step");
    if (config.shadow_pool_pages)
        text += fmt::format(" --set shadow.pool_pages={}", *config.shadow_pool_pages);
    if (!config.cr3_targets.empty())
        text += fmt::format(" --set 'shadow.cr3_targets=[{}]'", fmt::join(config.cr3_targets, ","));
    if (config.policy != "custom") return text;
    const ShadowSwitches& switches = config.custom.switches;
    for (const auto& [name, on] :
         {std::pair{"writable_heuristic", switches.writable_heuristic},
          std::pair{"early_unshadow", switches.early_unshadow},
          std::pair{"fast_fault_path", switches.fast_fault_path}, std::pair{"prefetch", switches.prefetch},
          std::pair{"linux_l3_toplevel", switches.linux_l3_toplevel},
          std::pair{"skip_verify", switches.skip_verify}, std::pair{"virtual_tlb", switches.virtual_tlb},
          std::pair{"fast_emulation", switches.fast_emulation},
          std::pair{"out_of_sync", config.custom.out_of_sync}}) {
        if (!on) text += fmt::format(" --set shadow.custom.{}=false", name);
    }
    return text;
}

// --- the run
// -------------------------------------------------------------------------------------------------

void Coverage::add(const Coverage& more)
{
    for (std::uint64_t Coverage::*count :
         {&Coverage::steps, &Coverage::placed, &Coverage::faults, &Coverage::stale, &Coverage::emulated,
          &Coverage::to_tables, &Coverage::unsynced, &Coverage::no_room, &Coverage::secure,
          &Coverage::withheld, &Coverage::unseen, &Coverage::remapped, &Coverage::dirty}) {
        this->*count += more.*count;
    }
}

/// What is wrong.
struct Lockstep::Mismatch : std::runtime_error {
    Mismatch(Failure::Kind what_kind, const std::string& what) : std::runtime_error{what}, kind{what_kind} {}
    Failure::Kind kind;
};

template <class... T>
void Lockstep::mismatch(Failure::Kind kind, fmt::format_string<T...> format, T&&... values)
{
    throw Mismatch(kind, fmt::format(format, std::forward<T>(values)...));
}

Lockstep::Lockstep(const TraceHeader& header, const Setup& setup)
    : setup_{setup}
    , by_block_{header.fetch == TraceHeader::Fetch::block}
    , reference_{reference_for(header)}
    , machine_{config_for(header, setup)}
    , exact_{(machine_.shadow() == nullptr || machine_.shadow()->policy().coherent()) &&
             machine_.config().cpu->tlbs.tlbs.empty()}
    , oracle_{machine_.config().check_coherence}
{
}

std::optional<Failure> Lockstep::run(std::span<const Record> steps, const Checks& checks)
{
    const auto due = [](std::size_t i, unsigned every) { return every != 0 && i % every == every - 1; };
    std::size_t i = 0;
    if (checks.dirty_every != 0 && machine_.shadow() != nullptr) log_dirty();
    try {
        for (; i < steps.size(); ++i) {
            step(steps[i]);
            if (written_) note_written(steps[i]);
            if (written_ && due(i, checks.dirty_every)) compare_dirty_set(i / checks.dirty_every % 2 != 0);
            if (due(i, checks.audit_every)) audit();
            if (due(i, checks.memory_every)) compare_memory();
        }
        i = steps.empty() ? 0 : steps.size() - 1;
        audit();
        compare_memory();
        if (written_) compare_dirty_set(false);
    } catch (const Mismatch& wrong) {
        return Failure{wrong.kind, i, wrong.what()};
    } catch (const DomainCrashed& crash) {
        return Failure{Failure::Kind::crash, i, crash.what()};
    }
    return std::nullopt;
}

void Lockstep::log_dirty()
{
    written_.emplace();
    if (machine_.log_dirty(LogDirtyAction::enable).rc != 0) throw std::runtime_error{"log-dirty is refused"};
    note_changed();
    written_->frames.clear();
}

void Lockstep::note_written(const Record& record)
{
    const OperandList operands = operands_of(record);
    if (!operands.empty() && fits(operands[0]->vcpu) && !execution_.fault) {
        for (std::size_t i = 0; i < operands.size(); ++i) {
            if (operands_[i].kind != AccessKind::write) continue;
            for (const Placed::Part& part : execution_.placed[i].pages()) {
                const std::uint64_t frame = part.address.value() >> kPageShift;
                const auto behind = reference_.memory.behind(frame);
                if (behind.slot && !behind.read_only) written_->frames.insert(frame);
            }
        }
    }
    // Zeros alone populate nothing.
    const auto note_if_ram = [&](Gfn frame) {
        if (machine_.p2m().mfn_of(frame)) written_->frames.insert(frame.number());
    };
    if (const auto* poke = std::get_if<PokeRecord>(&record)) note_if_ram(Gfn::of(poke->gpa));
    if (const auto* page = std::get_if<PageRecord>(&record)) note_if_ram(page->gfn);
    note_changed();
}

void Lockstep::note_changed()
{
    const auto note = [&](std::uint64_t frame) {
        Written::Frame now;
        now.behind = machine_.p2m().mfn_of(Gfn{frame});
        machine_.peek(Gfn{frame}.address(), now.content);
        Written::Frame& last = written_->last[frame];
        const bool other = now.behind != last.behind;
        if (other ? now.behind.has_value() : now.content != last.content) written_->frames.insert(frame);
        last = now;
    };
    for (const auto& [first, count] : reference_.memory.ram) {
        for (std::uint64_t frame = first; frame < first + count; ++frame) note(frame);
    }
    for (const auto& [frame, behind] : reference_.memory.changed) note(frame);
}

void Lockstep::compare_dirty_set(bool clean)
{
    const LogDirtyAnswer answer = machine_.log_dirty(clean ? LogDirtyAction::clean : LogDirtyAction::peek);
    std::vector<std::uint64_t> read;
    for (const Gfn frame : answer.frames) read.push_back(frame.number());
    const std::vector<std::uint64_t> written{written_->frames.begin(), written_->frames.end()};
    if (answer.rc != 0 || read != written || answer.dirty_count != written.size()) {
        mismatch(Failure::Kind::dirty, "dirty frames [{}] ({}, rc {}), not [{}]", fmt::join(read, " "),
                 answer.dirty_count, answer.rc, fmt::join(written, " "));
    }
    coverage_.dirty += written.size();
    if (clean) written_->frames.clear();
}

Coverage Lockstep::coverage() const
{
    Coverage coverage = coverage_;
    coverage.unseen = machine_.counters().unseen_switches;
    if (const ShadowEngine* shadow = machine_.shadow()) {
        coverage.unsynced = shadow->counters().unsync;
        coverage.no_room = shadow->counters().prealloc_1;
    }
    return coverage;
}

void Lockstep::step(const Record& record)
{
    ++coverage_.steps;
    const OperandList operands = operands_of(record);
    if (operands.empty()) return other(record);
    // Of a subset of a program's steps: the machine's mode can't say anything there.
    if (fits(operands[0]->vcpu)) instruct(record, operands[0]->vcpu, operands);
}

bool Lockstep::fits(unsigned vcpu) const
{
    using P = reference::Paging;
    const P paging = reference_.cpus[vcpu].paging();
    switch (setup_.config.mode) {
    case TranslationMode::shadow:
    case TranslationMode::native:
    case TranslationMode::nested: return true;
    case TranslationMode::shadow_2_on_3: return paging == P::off || paging == P::two_level;
    case TranslationMode::shadow_3_on_3: return paging == P::pae;
    case TranslationMode::shadow_4_on_4: return paging == P::four_level;
    case TranslationMode::shadow_5_on_5: return paging == P::five_level;
    }
    return false;
}

namespace {

/// The vector, 0 if it is none that refuses a register or an invalidation.
std::optional<unsigned> vector_of(const std::optional<Exception>& exception)
{
    if (!exception) return std::nullopt;
    if (exception->vector == Vector::general_protection) return reference::kGeneralProtection;
    return exception->vector == Vector::undefined_opcode ? reference::kUndefined : 0;
}

std::array<std::byte, 8> bytes_of(std::uint64_t value)
{
    std::array<std::byte, 8> bytes;
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

/// As the guest's CPU takes it: outside long mode without the upper half.
std::uint64_t linear_in(const reference::Machine& machine, unsigned vcpu, std::uint64_t address)
{
    return machine.linear_of(vcpu, address);
}

}  // namespace

void Lockstep::other(const Record& record)
{
    // What becomes of the record in a trace: nothing, where it is refused by a vector that traces don't have.
    Record traced = record;
    std::optional<unsigned> refused;
    const auto same = [&](const char* what, const std::optional<Exception>& exception) {
        refused = perform(reference_, record);
        const auto vector = vector_of(exception);
        if (vector != refused) {
            mismatch(Failure::Kind::answer, "{}: vector {}, not {} (0: none)", what, vector.value_or(0),
                     refused.value_or(0));
        }
    };
    bool dropped = false;
    if (const auto* write = std::get_if<RegisterWriteRecord>(&record)) {
        using Target = RegisterWriteRecord::Target;
        const unsigned vcpu = write->vcpu;
        switch (write->target) {
        case Target::cr0: same("mov cr0", machine_.mov_cr0(vcpu, write->value)); break;
        case Target::cr3: same("mov cr3", machine_.mov_cr3(vcpu, write->value)); break;
        case Target::cr4: same("mov cr4", machine_.mov_cr4(vcpu, write->value)); break;
        case Target::msr: same("wrmsr", machine_.wrmsr(vcpu, write->msr, write->value)); break;
        case Target::pkru:
            same("wrpkru", machine_.wrpkru(vcpu, static_cast<std::uint32_t>(write->value)));
            break;
        case Target::cpl:
            machine_.set_cpl(vcpu, static_cast<std::uint8_t>(write->value));
            same("cpl", std::nullopt);
            break;
        case Target::ac:
            machine_.set_ac(vcpu, write->value != 0);
            same("ac", std::nullopt);
            break;
        }
        same_registers(vcpu);
        if (refused)
            std::get<RegisterWriteRecord>(traced).fault = ExpectedFault{Vector::general_protection, 0, {}};
    } else if (const auto* set = std::get_if<SetRecord>(&record)) {
        Registers registers = machine_.registers(set->vcpu);
        registers.cr0 = set->cr0.value_or(registers.cr0);
        registers.cr3 = set->cr3.value_or(registers.cr3);
        registers.cr4 = set->cr4.value_or(registers.cr4);
        registers.efer = set->efer.value_or(registers.efer);
        registers.pkru = set->pkru.value_or(registers.pkru);
        registers.pkrs = set->pkrs.value_or(registers.pkrs);
        registers.cpl = set->cpl.value_or(registers.cpl);
        registers.ac = set->ac.value_or(registers.ac);
        const bool refuses = machine_.set_registers(set->vcpu, registers).has_value();
        refused = perform(reference_, record);
        if (refuses != refused.has_value()) mismatch(Failure::Kind::answer, "set: refused {}", refuses);
        dropped = refuses;
        same_registers(set->vcpu);
    } else if (const auto* invlpg = std::get_if<InvlpgRecord>(&record)) {
        same("invlpg", machine_.invlpg(invlpg->vcpu, LinearAddress{invlpg->address}));
        auto& out = std::get<InvlpgRecord>(traced);
        out.address = linear_in(reference_, out.vcpu, out.address);
        if (refused) out.fault = ExpectedFault{Vector::general_protection, 0, {}};
    } else if (const auto* invpcid = std::get_if<InvpcidRecord>(&record)) {
        same("invpcid",
             machine_.invpcid(invpcid->vcpu, invpcid->type, invpcid->pcid, LinearAddress{invpcid->address}));
        auto& out = std::get<InvpcidRecord>(traced);
        out.address = linear_in(reference_, out.vcpu, out.address);
        if (refused) out.fault = ExpectedFault{Vector::general_protection, 0, {}};
    } else {
        const bool needs_hypervisor = std::holds_alternative<SecureFramesRecord>(record) ||
                                      std::holds_alternative<SecureModeRecord>(record) ||
                                      std::holds_alternative<P2mSetRecord>(record) ||
                                      std::holds_alternative<P2mClearRecord>(record);
        if (needs_hypervisor && setup_.config.mode == TranslationMode::native) return;
        const bool needs_shadows = std::holds_alternative<SecureFramesRecord>(record) ||
                                   std::holds_alternative<SecureModeRecord>(record);
        if (needs_shadows && machine_.shadow() == nullptr) return;
        if (const auto* change = std::get_if<P2mSetRecord>(&record)) {
            // Of a subset of a program's steps: there is nothing to keep.
            dropped = machine_.set_p2m(change->gfn, change->count, change->type, MemAccess::rwx, change->mfn)
                          .has_value();
            if (dropped && (change->mfn || change->type == P2mType::populate_on_demand))
                mismatch(Failure::Kind::answer, "a change of the P2M is refused");
            if (dropped) return;
        } else if (const auto* clear = std::get_if<P2mClearRecord>(&record)) {
            if (machine_.set_p2m(clear->gfn, clear->count, P2mType::mmio_dm, MemAccess::rwx, std::nullopt))
                mismatch(Failure::Kind::answer, "a change of the P2M is refused");
        }
        coverage_.remapped +=
            std::holds_alternative<P2mSetRecord>(record) || std::holds_alternative<P2mClearRecord>(record);
        refused = perform(reference_, record);
        const auto is_ram = [&](Gfn frame) { return reference_.memory.is_ram(frame.address().value()); };
        if (auto* secure = std::get_if<SecureFramesRecord>(&traced))
            std::erase_if(secure->gfns, std::not_fn(is_ram));
        if (const auto* poke = std::get_if<PokeRecord>(&record)) {
            dropped = !is_ram(Gfn::of(poke->gpa));
            const auto bytes = bytes_of(poke->value);
            machine_.poke(poke->gpa, std::span{bytes}.first(poke->bytes));
        } else if (const auto* page = std::get_if<PageRecord>(&record)) {
            dropped = !is_ram(page->gfn);
            machine_.clear_frame(page->gfn);
        } else if (std::holds_alternative<ShadowBlowRecord>(record)) {
            machine_.blow_shadows();
        } else if (const auto* frames = std::get_if<SecureFramesRecord>(&record)) {
            machine_.set_secure_frames(frames->gfns);
        } else if (const auto* mode = std::get_if<SecureModeRecord>(&record)) {
            machine_.set_secure_mode(mode->vcpu, mode->on);
        }
    }
    if (tracing_ && !dropped && refused != reference::kUndefined) trace_.push_back(std::move(traced));
}

void Lockstep::execute(unsigned vcpu, Operands operands)
{
    operands_.clear();
    const reference::Cpu& cpu = reference_.cpus[vcpu];
    for (const AccessRecord* from : operands) {
        Operand operand;
        operand.address = LinearAddress{from->address};
        operand.bytes = from->bytes;
        operand.kind = from->kind;
        operand.user_mode = from->cpl.value_or(static_cast<std::uint8_t>(cpu.cpl)) == 3;
        operand.implicit = from->implicit;
        // Outside long mode segments have limits, of which the reference does not know.
        if (from->segment && cpu.long_mode())
            operand.segmented = SegmentedAddress{*from->segment, VirtualAddress{from->address}};
        operands_.push_back(operand);
    }
    if (operands.size() > 1) {
        machine_.execute(vcpu, operands_, by_block_ ? Restart::operand : Restart::instruction, execution_);
        return;
    }
    execution_.placed.clear();
    execution_.fault.reset();
    const auto placed = machine_.access(vcpu, operands_[0]);
    if (placed) {
        execution_.placed.push_back(*placed);
    } else {
        execution_.fault = placed.error();
    }
}

void Lockstep::instruct(const Record& record, unsigned vcpu, Operands operands)
{
    const Pages pages = pages_of(reference_, vcpu, operands);
    if (!tracing_) {
        execute(vcpu, operands);
        return compare(vcpu, operands, pages);
    }
    const Outcome outcome = outcome_of(reference_, vcpu, pages);
    const reference::Machine before = reference_;
    try {
        execute(vcpu, operands);
        compare(vcpu, operands, pages);
    } catch (const std::runtime_error&) {
        // What a right machine would have done.
        reference_ = before;
        for (Seen& seen : seen_) seen.fresh = true;
        trace(record, vcpu, operands, pages, outcome);
        complete(reference_, vcpu, operands, pages, outcome);
        throw;
    }
    trace(record, vcpu, operands, pages, outcome);
}

bool Lockstep::explained(unsigned vcpu, reference::Access access, std::uint64_t found) const
{
    // The writes of an instruction that faults are translated, but do not happen.
    if (execution_.fault && access.kind == reference::Kind::write) access.kind = reference::Kind::read;
    return oracle_ || reference_.explains(vcpu, access, found);
}

void Lockstep::compare(unsigned vcpu, Operands operands, const Pages& pages)
{
    constexpr auto kAnswer = Failure::Kind::answer;
    const auto& parts = pages.parts;
    const auto& fault = execution_.fault;

    // Which page faulted, and where the others are.
    std::size_t passed = parts.size();
    bool page_fault = false;
    if (fault) {
        const std::size_t at = execution_.placed.size();
        page_fault = fault->vector == Vector::page_fault;
        if (!page_fault && at != pages.misplaced)
            mismatch(kAnswer, "operand {}: {}", at, name_of(fault->vector));
        if (!page_fault && (fault->vector == Vector::stack_fault) != operands_[at].segmented.has_value()) {
            mismatch(kAnswer, "operand {}: {} is the wrong vector", at, name_of(fault->vector));
        }
        passed = 0;
        while (passed < parts.size() && parts[passed].operand < at) ++passed;
        const bool second = page_fault && passed + 1 < parts.size() && parts[passed + 1].operand == at &&
                            fault->address.value() == parts[passed + 1].access.linear;
        if (second) ++passed;
        if (page_fault && passed == parts.size()) mismatch(kAnswer, "a page fault of no operand");
    } else if (pages.misplaced) {
        mismatch(kAnswer, "operand {} should have raised #GP or #SS", *pages.misplaced);
    }
    seen_.assign(passed, {});
    std::size_t page = 0;
    for (const Placed& placed : execution_.placed) {
        for (const Placed::Part& part : placed.pages()) {
            if (page == passed || part.bytes != parts[page].bytes)
                mismatch(kAnswer, "page {} has {} bytes", page, part.bytes);
            seen_[page++].found = part.address.value();
            if (part.emulated) ++coverage_.emulated;
        }
    }

    if (oracle_) {
        const std::vector<std::string> violations = machine_.take_violations();
        // Of bits that walks set in tables with entries of two sizes the oracle may not know
        // (docs/coherence.md).
        const bool unknown_bits = narrow_entries_ && wide_entries_;
        for (const std::string& violation : violations) {
            if (unknown_bits && violation.find("no walk that is remembered") != std::string::npos) continue;
            mismatch(Failure::Kind::coherence, "{}", violation);
        }
    }

    // Nothing stale can be a reason to reach a secure frame.
    for (const Seen& seen : seen_) {
        if (!seen.found || reference_.secure_frames.count(*seen.found >> 12) == 0) continue;
        if (reference_.in_secure_mode.count(vcpu) == 0)
            mismatch(kAnswer, "{:#x} is in a secure frame", *seen.found);
        ++coverage_.secure;
    }

    // Each page: as a fresh walk says, or stale and explained.
    for (std::size_t i = 0; i < passed; ++i) {
        Seen& seen = seen_[i];
        seen.walk = reference_.walk(vcpu, parts[i].access);
        const reference::Walk& walk = seen.walk;
        const std::uint64_t here =
            walk.page.physical + (parts[i].access.linear & ((std::uint64_t{1} << walk.page.shift) - 1));
        ++coverage_.placed;
        seen.fresh = !walk.fault && (!seen.found || *seen.found == here);
        if (seen.fresh) continue;
        ++coverage_.stale;
        if (!exact_ && (seen.found ? explained(vcpu, parts[i].access, *seen.found)
                                   : oracle_ || !reference_.cpus[vcpu].cached.empty()))
            continue;
        if (walk.fault) mismatch(kAnswer, "page {} should fault with code {:#x}", i, walk.fault->code);
        mismatch(kAnswer, "page {} is at {:#x}, not at {:#x}", i, *seen.found, here);
    }
    if (page_fault) {
        ++coverage_.faults;
        const reference::Walk walk = reference_.walk(vcpu, parts[passed].access);
        if (!walk.fault) mismatch(kAnswer, "page {} should not fault", passed);
        if (reference_.secure_frames.count(walk.page.physical >> 12) != 0 && (fault->error_code & 1) != 0)
            ++coverage_.withheld;
        const reference::Fault seen{reference::kPageFault, fault->error_code, fault->address.value()};
        if (seen != *walk.fault) {
            mismatch(kAnswer, "page {}: code {:#x} CR2 {:#x}, not {:#x} and {:#x}", passed, seen.code,
                     seen.cr2, walk.fault->code, walk.fault->cr2);
        }
    }

    // Accessed and dirty bits. A faulting instruction dirties nothing.
    if (exact_) {
        for (std::size_t i = 0; i < passed; ++i)
            reference_.set_bits(seen_[i].walk, !fault && parts[i].access.kind == reference::Kind::write);
    } else {
        compare_stale_bits(vcpu, pages, passed);
        if (page_fault) reference_.drop_page(vcpu, parts[passed].access.linear);
    }
    if (!fault) move_data(operands, pages);
}

/// Bits may be missing where a stale translation was used; the reference adopts those that are set.
void Lockstep::compare_stale_bits(unsigned vcpu, const Pages& pages, std::size_t passed)
{
    constexpr auto kAnswer = Failure::Kind::answer;
    const auto& parts = pages.parts;
    const auto dirties = [&](std::size_t i) {
        return parts[i].access.kind == reference::Kind::write && !execution_.fault;
    };
    std::array<std::array<std::uint64_t, 5>, 2 * kMaxOperands> before{};
    for (std::size_t i = 0; i < passed; ++i) {
        for (std::size_t k = 0; k < seen_[i].walk.used.size(); ++k) {
            const reference::Entry& used = seen_[i].walk.used[k];
            before[i][k] = reference_.memory.read(used.address, used.bytes);
        }
    }
    for (std::size_t i = 0; i < passed; ++i) {
        if (seen_[i].fresh) reference_.set_bits(seen_[i].walk, dirties(i));
    }
    std::array<bool, 2 * kMaxOperands> walked{};
    for (std::size_t i = 0; i < passed; ++i) {
        const Seen& seen = seen_[i];
        walked[i] = true;
        for (std::size_t k = 0; seen.fresh && k < seen.walk.used.size(); ++k) {
            const reference::Entry& used = seen.walk.used[k];
            const std::uint64_t expected = reference_.memory.read(used.address, used.bytes);
            const std::uint64_t word = machine_word(used);
            if (word == expected) continue;
            if ((word & ~expected) != 0 || (before[i][k] & ~word) != 0) {
                mismatch(kAnswer, "page {}: the entry at {:#x} is {:#x}, not {:#x}", i, used.address, word,
                         expected);
            }
            // Others of the instruction may have missed theirs in the same entry.
            const std::uint64_t own = 1u << 5 | (dirties(i) && &used == &seen.walk.used.back() ? 1u << 6 : 0);
            if ((own & ~word) != 0) walked[i] = false;
        }
        if (!walked[i] && seen.found && !explained(vcpu, parts[i].access, *seen.found))
            mismatch(kAnswer, "page {}: A or D bits are missing without a stale translation", i);
    }
    for (std::size_t i = 0; i < passed; ++i) {
        const Seen& seen = seen_[i];
        if (!seen.fresh) continue;
        // Another of the instruction's writes may have set its leaf's dirty bit before it was walked.
        if (walked[i] && !oracle_ && !seen.walk.used.empty())
            reference_.cache(vcpu, seen.walk.page, (machine_word(seen.walk.used.back()) & 1u << 6) != 0);
        for (const reference::Entry& used : seen.walk.used)
            reference_.memory.write(used.address, used.bytes, machine_word(used));
    }
    // Pages after the one that faulted may have been walked too, before a stale translation was dropped; and
    // pages for which a stale one was found again, once a shadow that had it was linked.
    for (std::size_t i = 0; i < parts.size(); ++i) {
        if (i < passed && seen_[i].fresh) continue;
        const reference::Walk walk = reference_.walk(vcpu, parts[i].access);
        if (walk.fault || walk.used.empty()) continue;
        for (const reference::Entry& used : walk.used) {
            const std::uint64_t old = reference_.memory.read(used.address, used.bytes);
            if (machine_word(used) == (old | 1u << 5))
                reference_.memory.write(used.address, used.bytes, old | 1u << 5);
        }
        if (!oracle_ && i >= passed)
            reference_.cache(vcpu, walk.page, (machine_word(walk.used.back()) & 1u << 6) != 0);
    }
}

void Lockstep::move_data(Operands operands, const Pages& pages)
{
    std::array<std::byte, kMaxAccessBytes> storage;
    std::size_t page = 0;
    for (std::size_t i = 0; i < operands.size(); ++i) {
        const AccessRecord& operand = *operands[i];
        const bool write = operand.kind == AccessKind::write;
        std::span<const std::byte> bytes{operand.content.data(), operand.content.size()};
        if (write && bytes.empty()) {
            while (page < pages.parts.size() && pages.parts[page].operand == i) ++page;
            continue;
        }
        if (write) {
            machine_.store(execution_.placed[i], bytes);
        } else {
            machine_.load(execution_.placed[i], std::span{storage}.first(operand.bytes));
            bytes = std::span{storage}.first(operand.bytes);
        }
        for (; page < pages.parts.size() && pages.parts[page].operand == i; ++page) {
            const std::uint64_t at = *seen_[page].found;
            if (write && at >> 12 < kTables) ++coverage_.to_tables;
            for (std::uint32_t k = 0; k < pages.parts[page].bytes; k += 8) {
                const std::uint32_t count = std::min(pages.parts[page].bytes - k, 8u);
                std::uint64_t word = 0;
                std::memcpy(&word, bytes.data() + k, count);
                if (write) {
                    reference_.memory.store(at + k, count, word);
                } else if (reference_.memory.read(at + k, count) != word) {
                    mismatch(Failure::Kind::answer, "operand {} reads {:#x} at {:#x}", i, word, at + k);
                }
            }
            bytes = bytes.subspan(pages.parts[page].bytes);
        }
    }
}

// --- checks
// ----------------------------------------------------------------------------------------------------

void Lockstep::same_registers(unsigned vcpu)
{
    const Registers& r = machine_.registers(vcpu);
    const reference::Cpu& c = reference_.cpus[vcpu];
    if (r.cr0 != c.cr0 || r.cr3 != c.cr3 || r.cr4 != c.cr4 || r.efer != c.efer) {
        mismatch(Failure::Kind::answer,
                 "registers: cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}, not {:#x} {:#x} {:#x} {:#x}", r.cr0,
                 r.cr3, r.cr4, r.efer, c.cr0, c.cr3, c.cr4, c.efer);
    }
    if (c.paging() == reference::Paging::pae && machine_.pdptes(vcpu) != c.pdptes)
        mismatch(Failure::Kind::answer, "the PDPTE registers differ");
    narrow_entries_ |= c.paging() == reference::Paging::two_level;
    wide_entries_ |= c.paging() != reference::Paging::two_level && c.paging() != reference::Paging::off;
    // Where MOV CR3 is not seen, the secure mode is that of the root.
    if (machine_.config().cr3_targets.empty()) return;
    if (machine_.shadow()->secure_mode(vcpu)) {
        reference_.in_secure_mode.insert(vcpu);
    } else {
        reference_.in_secure_mode.erase(vcpu);
    }
}

void Lockstep::audit()
{
    const HazardCounts hazards = machine_.counters().hazards;
    if (exact_ && hazards.stale_shadows + hazards.shared_tables != 0)
        mismatch(Failure::Kind::audit, "hazards: {}", machine_.take_hazards().front());
    const std::vector<std::string> violations = machine_.audit();
    if (!violations.empty())
        mismatch(Failure::Kind::audit, "audit, {} in all: {}", violations.size(), violations.front());
}

void Lockstep::compare_memory()
{
    std::array<std::uint64_t, 512> words{};
    const auto compare_frame = [&](Gfn frame) {
        machine_.peek(frame.address(), std::as_writable_bytes(std::span{words}));
        for (std::uint64_t k = 0; k < 512; ++k) {
            const std::uint64_t value = reference_.memory.read(frame.address(8 * k).value(), 8);
            if (words[k] != value) {
                mismatch(Failure::Kind::memory, "memory at {:#x} is {:#x}, not {:#x}",
                         frame.address(8 * k).value(), words[k], value);
            }
        }
    };
    for (const GfnRange& range : machine_.config().ram) {
        for (std::uint64_t i = 0; i < range.count; ++i) compare_frame(range.first + i);
    }
    for (const auto& [frame, behind] : reference_.memory.changed) compare_frame(Gfn{frame});
}

std::uint64_t Lockstep::machine_word(const reference::Entry& entry) const
{
    std::uint64_t value = 0;
    machine_.peek(GuestPhysical{entry.address},
                  std::as_writable_bytes(std::span{&value, 1}).first(entry.bytes));
    return value;
}

// --- as a trace
// ------------------------------------------------------------------------------------------------

void Lockstep::trace(const Record& record, unsigned vcpu, Operands operands, const Pages& pages,
                     const Outcome& outcome)
{
    std::vector<AccessRecord> traced;
    bool certain = true;  // no permitted stale answer so far
    std::size_t page = 0;
    for (unsigned i = 0; i < operands.size(); ++i) {
        AccessRecord& out = traced.emplace_back(*operands[i]);
        out.address = linear_in(reference_, vcpu, out.address);
        if (!reference_.cpus[vcpu].long_mode()) out.segment.reset();
        const std::size_t first = page;
        while (page < pages.parts.size() && pages.parts[page].operand == i) ++page;
        for (std::size_t k = first; k < std::min(page, seen_.size()); ++k)
            certain = certain && seen_[k].fresh;
        if (!certain) continue;
        if (outcome.walks.size() < page) {
            out.fault = ExpectedFault{Vector::page_fault, outcome.fault->code, outcome.fault->cr2};
            certain = false;
        } else if (i == pages.misplaced) {
            out.fault = ExpectedFault{
                out.segment == Segment::ss ? Vector::stack_fault : Vector::general_protection, 0, {}};
            certain = false;
        } else if (page > first) {
            out.gpa = outcome.address(pages, first);
            if (page > first + 1) out.gpa2 = outcome.address(pages, first + 1);
        }
    }
    if (std::holds_alternative<AccessRecord>(record)) {
        trace_.emplace_back(std::move(traced[0]));
        return;
    }
    InstructionRecord whole{std::move(traced[0]), {}};
    whole.operands.assign(std::make_move_iterator(traced.begin() + 1), std::make_move_iterator(traced.end()));
    trace_.emplace_back(std::move(whole));
}

std::vector<Record> Lockstep::take_trace()
{
    // Accessed and dirty bits depend on what was cached, where something may be.
    const std::uint64_t ignored = exact_ ? 0 : 0x0000'0060'0000'0060;
    for (const auto& [address, value] : reference_.memory.nonzero())
        trace_.emplace_back(ExpectMemoryRecord{GuestPhysical{address}, 8, value, ignored});
    return std::move(trace_);
}

}  // namespace stress
