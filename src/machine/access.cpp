// SPDX-License-Identifier: Apache-2.0
//
// Accesses: from an operand to a place in memory, with the exits to the hypervisor on the way.
#include <algorithm>
#include <cassert>
#include <utility>

#include <fmt/format.h>
#include <boost/container/static_vector.hpp>

#include <mmusim/machine/machine.hpp>

#include "walk_in.hpp"

namespace mmusim {

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

Result<Translation<space::GuestPhysical>, PageFault> Machine::guest_walk(unsigned index, const Access& access)
{
    using Walked = Result<Translation<space::GuestPhysical>, PageFault>;
    const GuestContext& guest = vcpus_[index].guest;
    const Walked walked =
        guest.paging == Paging::off
            ? Walked{Translation<space::GuestPhysical>{.address = GuestPhysical{access.address.value()},
                                                       .rights = {}}}
            : walk_in(guest.paging, guest_memory_, guest.root, guest.rules, access, AdBits::leave);
    if (walked && shadow_) {
        const Gfn frame = Gfn::of(walked->address);
        if (const auto refused = shadow_->refusal(index, guest, access, frame)) return *refused;
        if (const auto nothing = shadow_->nothing_behind(guest, access, frame)) return *nothing;
        // To its instruction the same.
        if (shadow_->may_be_stopped(guest, access)) return PageFault{access.address};
    }
    return walked;
}

Machine::Step Machine::faulted(const PageFault& fault)
{
    exception_ = Exception::of(fault);
    return {Step::Kind::fault};
}

// --- time --------------------------------------------------------------------------------------------

void Machine::take_off(std::uint64_t gap)
{
    clock_->pass(gap);
    flight_.issued = clock_->issue();
    flight_.passage = Passage{flight_.issued};
}

void Machine::touch_data(unsigned index, AccessKind kind, LinearAddress address,
                         std::span<const Mmu::Piece> pieces)
{
    if (kind != AccessKind::fetch) {
        vcpus_[index].mmu->data(pieces, flight_.passage);
        return;
    }
    constexpr std::uint64_t kBlock = 16;
    std::uint64_t bytes = 0;
    for (const Mmu::Piece& piece : pieces) bytes += piece.bytes;
    const std::uint64_t first = address.value() % kBlock;
    const std::uint64_t blocks = (first + bytes + kBlock - 1) / kBlock;
    const Cycles each = timing().front_end.fetch_cycles;
    flight_.passage.spend(CycleLabels::kFetch, flight_.passage.now() + blocks * each);
}

void Machine::land()
{
    clock_->retire(flight_.issued, flight_.passage);
}

// --- one translation ---------------------------------------------------------------------------------

template <bool Timed>
inline Machine::Step Machine::translate(unsigned index, const Access& access, Again again)
{
    Vcpu& vcpu = vcpus_[index];
    if (!vcpu.fits) [[unlikely]]
        refuse_mode(vcpu);
    if (vcpu.paging_off) [[unlikely]] {
        return done_at(GuestPhysical{access.address.value()}, access.address.value());
    }
    if constexpr (!Timed) {
        const auto found = vcpu.mmu->translate<false>(access, nullptr);
        if (!found) [[unlikely]]
            return missed(index, access, found.error(), again);
        if (oracle_) [[unlikely]]
            check_coherence(index, access, GuestPhysical{found->origin});
        return done_at(GuestPhysical{found->origin}, found->machine);
    } else {
        Passage passage{flight_.issued};
        const auto found = vcpu.mmu->translate<true>(access, &passage);
        // Of two pages, the one that is ready later is the operand's way.
        if (passage.now() > flight_.passage.now()) flight_.passage = passage;
        if (!found) [[unlikely]] {
            land();
            return missed(index, access, found.error(), again);
        }
        if (oracle_) [[unlikely]]
            check_coherence(index, access, GuestPhysical{found->origin});
        return done_at(GuestPhysical{found->origin}, found->machine);
    }
}

Machine::Step Machine::missed(unsigned index, const Access& access, const PageFault& fault, Again again)
{
    if (const auto violation = vcpus_[index].mmu->take_violation())
        return violated(index, access, *violation);
    vcpus_[index].mmu->page_fault(access.address);
    if (shadow_) {
        // The hypervisor sets the dirty bit: whatever is translated again must not fault then.
        if (access.kind == AccessKind::write && one_faults(index, again)) return {Step::Kind::retry};
        return exit_to_hypervisor(index, access, fault.error_code);
    }
    raise_page_fault(index, access.address);
    return faulted(fault);
}

Machine::Step Machine::step_of(const FaultAnswer& answer)
{
    switch (answer.kind) {
    case FaultAnswer::Kind::retry:
    case FaultAnswer::Kind::populate: break;  // (it has been)
    case FaultAnswer::Kind::guest: return faulted(answer.fault);
    case FaultAnswer::Kind::stopped:
        exception_ = {Vector::mem_access, 0, {}, "the frame's right does not permit it: not done"};
        return {Step::Kind::fault};
    case FaultAnswer::Kind::emulated:
        if (p2m_.changed() && p2m_.entry(Gfn::of(answer.address)).type == P2mType::populate_on_demand)
            populate_on_demand(Gfn::of(answer.address));
        return {.kind = Step::Kind::emulated,
                .granted = answer.granted.has_value(),
                .discards = answer.granted == EventAction::emulate_nowrite,
                .address = answer.address};
    }
    return {Step::Kind::retry};
}

Machine::Step Machine::exit_to_hypervisor(unsigned index, const Access& access, std::uint32_t error_code)
{
    FaultAnswer answer;
    exit_for(index, access, error_code, answer);
    vcpus_[index].further = answer.goes_on ? kFurtherInstructions : std::uint8_t{0};
    if (answer.kind == FaultAnswer::Kind::guest) raise_page_fault(index, access.address);
    if (answer.granted == EventAction::single_step) end_single_step(index);
    return step_of(answer);
}

void Machine::end_single_step(unsigned index)
{
    // The restriction is back: what the step has used of the page is cached no more.
    ++exits_;
    system_instruction(CycleLabels::kExit, timing().hypervisor.exit);
    flush_hardware(index);
    system_instruction(CycleLabels::kEntry, timing().hypervisor.entry);
}

Machine::Step Machine::emulate(unsigned index, const Access& access, bool checked)
{
    if (!shadow_) {
        const Step step = emulate_nested(index, access);
        if (step.kind == Step::Kind::fault) raise_page_fault(index, access.address);
        return step;
    }
    const ShadowWork before = before_work();
    const FaultAnswer answer = shadow_->emulated_access(index, vcpus_[index].guest, access, checked);
    charge(index, before);
    settle(index);
    if (answer.kind == FaultAnswer::Kind::guest) {
        vcpus_[index].mmu->page_fault(access.address);  // the hardware has seen none
        raise_page_fault(index, access.address);
    }
    return step_of(answer);
}

std::optional<std::size_t> Machine::emulate_further(unsigned index)
{
    Vcpu& vcpu = vcpus_[index];
    const bool possible = std::all_of(pages_.begin(), pages_.end(), [&](const PageAccess& page) {
        if (page.access.user_mode) return false;  // something has changed the CPL
        const auto found = guest_walk(index, page.access);
        return found && p2m_.mfn_of(Gfn::of(found->address)).has_value();
    });
    if (!possible) return std::nullopt;
    for (const std::uint64_t before : gaps_) gap(before);
    steps_.assign(pages_.size(), {});
    bool wrote_table = false;
    for (std::size_t i = 0; i < pages_.size(); ++i) {
        const Access& access = pages_[i].access;
        steps_[i] = emulate(index, access);
        if (steps_[i].kind == Step::Kind::fault) {
            // Accessed bits of the pages before were among the tables of this one.
            give_up_further(index);
            return i;
        }
        wrote_table |=
            access.kind == AccessKind::write && shadow_->cache().is_table(Gfn::of(steps_[i].address));
    }
    shadow_->count_further(
        index, wrote_table ? ShadowEngine::Further::wrote_table : ShadowEngine::Further::wrote_none);
    vcpu.further = wrote_table ? std::uint8_t{0} : static_cast<std::uint8_t>(vcpu.further - 1);
    return pages_.size();
}

void Machine::give_up_further(unsigned index)
{
    if (vcpus_[index].further == 0) return;
    vcpus_[index].further = 0;
    shadow_->count_further(index, ShadowEngine::Further::failed);
}

template <bool Timed>
inline Result<Placed, Exception> Machine::access_one_page(unsigned index, const Access& access,
                                                          std::uint32_t bytes, std::uint64_t gap)
{
    for (;;) {
        if constexpr (Timed) take_off(gap);
        const Step step = translate<Timed>(index, access);
        if (step.kind == Step::Kind::fault) return exception_;
        if (step.kind == Step::Kind::retry) {
            gap = 0;
            continue;
        }
        if constexpr (Timed) {
            if (step.kind == Step::Kind::done) {
                const Mmu::Piece piece{step.machine, bytes};
                touch_data(index, access.kind, access.address, {&piece, 1});
                land();
            }
        }
        Placed placed;
        placed.parts[0] = {step.address, bytes, emulated_as(step)};
        return placed;
    }
}

Result<Placed, Exception> Machine::access(unsigned index, const Operand& operand)
{
    const auto address = locate(index, operand);
    if (!address) [[unlikely]] {
        give_up_further(index);
        gap(operand.gap);
        return address.error();
    }
    const bool plain = address->offset_in_page() + operand.bytes <= kPageBytes && vcpus_[index].further == 0;
    if (plain) [[likely]] {
        const Access access = access_of(operand, *address);
        return clock_ ? access_one_page<true>(index, access, operand.bytes, operand.gap)
                      : access_one_page<false>(index, access, operand.bytes, 0);
    }
    Execution execution;
    execute(index, {&operand, 1}, Restart::instruction, execution);
    if (execution.fault) return *execution.fault;
    return execution.placed[0];
}

std::uint64_t Machine::run(unsigned index, std::span<const StreamAccess> accesses)
{
    std::uint64_t exceptions = 0;
    for (const StreamAccess& one : accesses) {
        const Vcpu& vcpu = vcpus_[index];
        const bool plain = one.address.offset_in_page() + one.bytes <= kPageBytes &&
                           (!vcpu.long_mode || canonical(one.address.value(), vcpu.linear_bits));
        if (plain && !clock_) [[likely]] {
            const LinearAddress address{vcpu.long_mode ? one.address.value()
                                                       : one.address.value() & 0xffff'ffff};
            const Access access{address, one.kind, one.user_mode, false};
            for (;;) {
                const Step step = translate<false>(index, access);
                if (step.kind == Step::Kind::retry) continue;
                exceptions += step.kind == Step::Kind::fault ? 1 : 0;
                break;
            }
            continue;
        }
        Operand operand{.address = one.address, .bytes = one.bytes, .kind = one.kind};
        operand.user_mode = one.user_mode;
        operand.gap = one.gap;
        vcpus_[index].further = 0;  // a stream stores nothing: no half of an entry either
        exceptions += access(index, operand) ? 0 : 1;
    }
    vcpus_[index].further = 0;
    return exceptions;
}

bool Machine::one_faults(unsigned index, Again pages)
{
    // They have been translated as the guest's tables say, where nothing is stale.
    if (shadow_->policy().coherent() && config_.cpu->tlbs.tlbs.empty()) return false;
    for (std::size_t i = pages.first; i < pages.last; ++i) {
        if (guest_walk(index, pages_[i].access)) continue;
        drop_before_fault(index, pages_[i].access.address);
        return true;
    }
    return false;
}

std::size_t Machine::first_to_fault(unsigned index)
{
    const auto faulting = std::find_if(pages_.begin(), pages_.end(), [&](const PageAccess& page) {
        return !guest_walk(index, page.access);
    });
    return static_cast<std::size_t>(faulting - pages_.begin());
}

/// Faults of one page of an instruction, on average, after which the hypervisor emulates all of it: more than
/// any that gets on has.
constexpr std::size_t kPatience = 50;

std::size_t Machine::run_pages(unsigned index, Restart restart, bool fault_follows)
{
    // The CPU checks every translation before any takes effect. Where one will fault, the writes before it
    // are not going to happen: they translate, but set no dirty bit, as reads do.
    const auto last = fault_follows ? pages_.end() : std::prev(pages_.end());
    const bool a_fault_may_follow_a_write = std::any_of(
        pages_.begin(), last, [](const PageAccess& page) { return page.access.kind == AccessKind::write; });
    const std::size_t faulting = a_fault_may_follow_a_write ? first_to_fault(index) : pages_.size();
    // Nothing cached may let it pass; a TLB may drop what it likes.
    if (faulting < pages_.size()) drop_before_fault(index, pages_[faulting].access.address);
    bool completes = !fault_follows && faulting == pages_.size();

    steps_.assign(pages_.size(), {});
    const auto same_operand = [&](std::size_t i, std::size_t j) {
        return j < pages_.size() && pages_[i].operand == pages_[j].operand;
    };
    // Operands that need each other's tables as data could take turns for ever.
    std::size_t patience = kPatience * pages_.size();
    // From this one on the instruction is done whatever the rights; asked once.
    std::size_t granted = pages_.size();
    bool discards = false;
    for (;;) {
        bool emulating = shadow_ && patience == 0;
        for (std::size_t i = 0; i < pages_.size();) {
            const bool second_page = i > 0 && same_operand(i, i - 1);
            if (clock_ && !second_page) {
                const std::uint64_t before = std::exchange(gaps_[pages_[i].operand], 0);
                emulating ? gap(before) : take_off(before);
            }
            Access access = pages_[i].access;
            if (!completes && i < faulting && access.kind == AccessKind::write)
                access.kind = AccessKind::read;
            // An emulated instruction is emulated to its end.
            const Again again{restart == Restart::instruction ? 0 : i - (second_page ? 1 : 0), i};
            emulating |= i >= granted;
            steps_[i] = emulating ? emulate(index, access, i < granted)
                        : clock_  ? translate<true>(index, access, again)
                                  : translate<false>(index, access, again);
            if (steps_[i].kind == Step::Kind::fault) return i;
            if (steps_[i].kind == Step::Kind::retry) {
                if (patience != 0 && --patience == 0) emulating = true;
                // The whole instruction again, or its operand from the first page on.
                i = restart == Restart::instruction ? 0 : i - (second_page ? 1 : 0);
                continue;
            }
            emulating |= steps_[i].kind == Step::Kind::emulated;
            if (steps_[i].granted) {
                granted = std::min(granted, i);
                discards = steps_[i].discards;
            }
            if (clock_ && !emulating && !same_operand(i, i + 1)) {
                boost::container::static_vector<Mmu::Piece, 2> pieces;
                if (second_page) pieces.push_back({steps_[i - 1].machine, pages_[i - 1].bytes});
                pieces.push_back({steps_[i].machine, pages_[i].bytes});
                touch_data(index, access.kind, pages_[second_page ? i - 1 : i].access.address, pieces);
                land();
            }
            ++i;
        }
        if (completes || fault_follows) break;
        completes = true;  // the policy has kept a stale translation: now the writes do happen
    }
    // A later operand's translation may have made a table of a frame that an earlier one writes. And where
    // one is emulated, a table that another may write freely does not stay so for sure.
    bool emulated = false;
    for (const bool others : {false, true}) {
        for (std::size_t i = 0; shadow_ && i < pages_.size(); ++i) {
            if (pages_[i].access.kind != AccessKind::write) continue;
            const Gfn frame = Gfn::of(steps_[i].address);
            if (shadow_->traps_writes_to(frame) || (others && emulated && shadow_->cache().is_table(frame)))
                steps_[i].kind = Step::Kind::emulated;
            emulated |= steps_[i].kind == Step::Kind::emulated;
        }
    }
    if (discards) {
        for (Step& step : steps_) {
            step.kind = Step::Kind::emulated;
            step.discards = true;
        }
    }
    return pages_.size();
}

void Machine::execute(unsigned index, std::span<const Operand> operands, Restart restart, Execution& result)
{
    Vcpu& vcpu = vcpus_[index];
    result.placed.clear();
    result.fault.reset();
    pages_.clear();
    gaps_.clear();
    std::size_t reached = 0;
    for (; reached < operands.size(); ++reached) {
        const auto address = locate(index, operands[reached]);
        if (!address) {
            result.fault = address.error();
            break;
        }
        split(vcpu, operands[reached], *address, static_cast<std::uint32_t>(reached));
        gaps_.push_back(operands[reached].gap);
    }
    const bool block = restart == Restart::operand && operands.size() > 1;  // nobody knows of how many
    std::optional<std::size_t> emulated;
    if (vcpu.further != 0) {
        // A fetch alone is part of the instruction that follows.
        const bool fetch = operands.size() == 1 && operands[0].kind == AccessKind::fetch;
        if (!fetch && !block && !result.fault) emulated = emulate_further(index);
        if (!fetch && !block && !emulated) give_up_further(index);
    }
    if (!pages_.empty()) {
        const std::size_t faulted =
            emulated ? *emulated : run_pages(index, restart, result.fault.has_value());
        if (faulted < pages_.size()) {
            result.fault = exception_;
            reached = pages_[faulted].operand;
        } else if (result.fault) {
            gap(operands[reached].gap);
        }
    } else if (result.fault) {
        gap(operands[reached].gap);
    }
    if (block || result.fault) vcpu.further = 0;
    std::size_t page = 0;
    for (std::uint32_t i = 0; i < reached; ++i) {
        Placed placed;
        placed.count = 0;
        for (; page < pages_.size() && pages_[page].operand == i; ++page) {
            placed.parts[placed.count++] = {steps_[page].address, pages_[page].bytes,
                                            emulated_as(steps_[page])};
        }
        result.placed.push_back(placed);
    }
}

void Machine::store(const Placed& placed, std::span<const std::byte> bytes)
{
    boost::container::static_vector<ShadowEngine::StorePart, 2> emulated;
    std::size_t done = 0;
    for (const Placed::Part& part : placed.pages()) {
        const auto piece = bytes.subspan(done, part.bytes);
        done += part.bytes;
        if (part.emulated == Placed::kDiscarded) continue;
        if (p2m_.changed() && discards_writes(p2m_.entry(Gfn::of(part.address)).type)) continue;
        if (oracle_) oracle_->before_store(part.address, piece);
        if (part.emulated && shadow_) {
            emulated.push_back({part.address, piece});
        } else {
            guest_memory_.write(part.address, piece);
        }
    }
    if (!emulated.empty()) emulated_store(emulated);
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
