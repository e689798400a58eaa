// SPDX-License-Identifier: Apache-2.0
//
// Accesses: from an operand to a place in memory, with the exits to the hypervisor on the way.
#include <algorithm>
#include <cassert>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>

namespace mmusim {

namespace {

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

}  // namespace

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
