// SPDX-License-Identifier: Apache-2.0
//
// Nested mode: what the hypervisor does where the second level does not permit an access (reference/xen.md
// C1, "on fault (HAP)").
#include <array>
#include <utility>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>

#include "walk_in.hpp"

namespace mmusim {

namespace {

/// The guest's tables as the hypervisor walks them for an instruction that it emulates. Accessed and dirty
/// bits it sets in any frame, as in shadow modes.
class EmulatorsTables {
public:
    using Space = space::GuestPhysical;
    explicit EmulatorsTables(GuestMemory& memory) : memory_{&memory} {}

    template <class Word>
    [[nodiscard]] Word load(Gfn frame, unsigned offset)
    {
        ++loads;
        return memory_->load<Word>(frame, offset);
    }
    template <class Word>
    [[nodiscard]] bool exchange(Gfn frame, unsigned offset, Word expected, Word desired)
    {
        return memory_->exchange(frame, offset, expected, desired);
    }

    std::uint64_t loads = 0;

private:
    GuestMemory* memory_;
};

std::string_view article_of(AccessKind kind)
{
    return kind == AccessKind::write ? "a write" : kind == AccessKind::fetch ? "a fetch" : "a read";
}

}  // namespace

Machine::Step Machine::violated(unsigned index, const Access& access, const SecondLevelViolation& violation)
{
    ++exits_;
    Mmu& mmu = *vcpus_[index].mmu;
    if (!config_.vpid) mmu.drop_everything(true);
    system_instruction(CycleLabels::kExit, timing().hypervisor.exit);
    system_instruction(CycleLabels::kFaultHandler, timing().hypervisor.fault_handler);
    const Step step = answer(index, access, violation);
    if (!config_.vpid) mmu.drop_everything(true);
    system_instruction(CycleLabels::kEntry, timing().hypervisor.entry);
    if (step.kind == Step::Kind::fault) raise_page_fault(index, access.address);
    return step;
}

bool Machine::answer_access(const SecondLevelViolation& violation, const P2mEntry& entry)
{
    if (rights_of(entry.access).permits(violation.access.kind)) return false;
    if (!rights_of(entry.type).permits(violation.access.kind)) return false;
    const Gfn frame = Gfn::of(violation.access.address);
    P2mEntry now = entry;
    // Nobody listens: it is permitted from now on (C5).
    const bool converts = entry.access == MemAccess::rx2rw && violation.access.kind == AccessKind::write;
    now.access = converts ? MemAccess::rw : MemAccess::rwx;
    const std::array change{std::pair{frame, now}};
    change_p2m(change);
    return true;
}

Machine::Step Machine::answer(unsigned index, const Access& access, const SecondLevelViolation& violation)
{
    const GuestPhysical address = violation.access.address;
    const Gfn frame = Gfn::of(address);
    const P2mEntry entry = p2m_.entry(frame);
    const AccessKind kind = violation.access.kind;
    const auto crash = [&] {
        throw DomainCrashed(fmt::format(
            "the hypervisor ended the domain: {}{} of guest-physical address {}, whose frame is {}, for {}",
            article_of(kind), violation.access.of_table ? " by a walk of the guest's tables" : "", address,
            name_of(entry.type), access.address));
    };
    if (violation.misconfigured) {
        throw DomainCrashed(
            fmt::format("the hypervisor ended the domain: a misconfigured entry of the P2M's tables for "
                        "guest-physical address {}, for {}",
                        address, access.address));
    }
    if (answer_access(violation, entry)) return {Step::Kind::retry, {}};
    // Permitted, but the format of the tables cannot say so.
    if (entry.rights().permits(kind)) return emulate_nested(index, access);
    const bool write = kind == AccessKind::write;
    switch (entry.type) {
    case P2mType::populate_on_demand: populate_on_demand(frame); return {Step::Kind::retry, {}};
    case P2mType::ram_paging_out:
    case P2mType::ram_paged:
    case P2mType::ram_paging_in: page_in(frame); return {Step::Kind::retry, {}};
    case P2mType::mmio_dm: return emulate_nested(index, access);
    case P2mType::ram_ro:
    case P2mType::grant_map_ro:
        if (write) return emulate_nested(index, access);
        break;
    case P2mType::ram_logdirty:
        if (write) {
            // The first write: this frame alone is writable from now on.
            p2m_.set(frame, 1, {entry.mfn, P2mType::ram_rw, entry.access});
            return {Step::Kind::retry, {}};
        }
        break;
    case P2mType::ram_shared:
        if (write) {
            unshare(frame);
            return {Step::Kind::retry, {}};
        }
        break;
    case P2mType::ram_rw:
    case P2mType::invalid:
    case P2mType::mmio_direct:
    case P2mType::grant_map_rw:
    case P2mType::ram_broken:
    case P2mType::map_foreign:
    case P2mType::ioreq_server: break;
    }
    crash();
    return {Step::Kind::retry, {}};
}

Machine::Step Machine::emulate_nested(unsigned index, const Access& access)
{
    const GuestContext& guest = vcpus_[index].guest;
    EmulatorsTables tables{guest_memory_};
    using Walked = Result<Translation<space::GuestPhysical>, PageFault>;
    const Walked walked = guest.paging == Paging::off
                              ? Walked{Translation<space::GuestPhysical>{
                                    .address = GuestPhysical{access.address.value()}, .rights = {}}}
                              : walk_in(guest.paging, tables, guest.root, guest.rules, access, AdBits::set);
    system_instruction(CycleLabels::kGuestWalk, tables.loads * timing().hypervisor.guest_walk_load);
    if (!walked) {
        vcpus_[index].mmu->page_fault(access.address);  // the hardware has seen none
        return faulted(walked.error());
    }
    make_usable(Gfn::of(walked->address), access.kind);
    system_instruction(CycleLabels::kEmulate, timing().hypervisor.emulate);
    return {.kind = Step::Kind::emulated, .address = walked->address};
}

void Machine::make_usable(Gfn frame, AccessKind kind)
{
    if (!p2m_.changed()) return;
    const P2mEntry entry = p2m_.entry(frame);
    if (entry.type == P2mType::populate_on_demand) {
        populate_on_demand(frame);
    } else if (is_paged_out(entry.type)) {
        page_in(frame);
    } else if (entry.type == P2mType::ram_shared && kind == AccessKind::write) {
        unshare(frame);
    }
}

void Machine::page_in(Gfn frame)
{
    const P2mEntry old = p2m_.entry(frame);
    const Mfn mfn = old.has_frame() ? old.mfn : *guest_memory_.kept_of(frame);
    guest_memory_.keep(frame, std::nullopt);
    p2m_.set(frame, 1, {mfn, P2mType::ram_rw, old.access});
}

void Machine::unshare(Gfn frame)
{
    const P2mEntry old = p2m_.entry(frame);
    const Mfn own = take_spare_frame(frame, "make a copy of");
    std::array<std::byte, kPageBytes> content;
    machine_.read(old.mfn.number(), 0, content);
    machine_.write(own.number(), 0, content);
    const std::array change{std::pair{frame, P2mEntry{own, P2mType::ram_rw, old.access}}};
    change_p2m(change);
}

void Machine::keep_aside(std::span<const std::pair<Gfn, P2mEntry>> changes)
{
    for (const auto& [frame, entry] : changes) {
        const auto old = guest_memory_.frame_of(frame);
        if (!is_paged_out(entry.type)) {
            guest_memory_.keep(frame, std::nullopt);
            continue;
        }
        if (guest_memory_.kept_of(frame) && is_paged_out(p2m_.entry(frame).type)) continue;
        const Mfn kept = take_spare_frame(frame, "page out");
        if (old) {
            std::array<std::byte, kPageBytes> content;
            machine_.read(old->number(), 0, content);
            machine_.write(kept.number(), 0, content);
        }
        guest_memory_.keep(frame, kept);
    }
}

void Machine::flush_second_level()
{
    for (unsigned i = 0; i < vcpus_.size(); ++i) {
        if (i != 0) system_instruction(CycleLabels::kIpi, timing().hypervisor.ipi);
        vcpus_[i].second_level->drop_all();
        flush_hardware(i);
    }
}

void Machine::audit_against_p2m(unsigned index, std::vector<std::string>& violations) const
{
    vcpus_[index].second_level->audit(violations);
    vcpus_[index].mmu->for_each_translation([&](const TlbSpec& tlb, TlbTag tag, const TlbContent& content) {
        const unsigned shift = content.attributes.entry_shift();
        const Rights rights = content.attributes.rights();
        const std::uint64_t frames = std::uint64_t{1} << (shift - kPageShift);
        for (std::uint64_t i = 0; i<frames; i += frames> 1024 ? 512 : 1) {
            const Gfn frame = Gfn::of(GuestPhysical{content.origin}) + i;
            const P2mEntry entry = p2m_.entry(frame);
            const FrameRights now = entry.rights();
            if (entry.has_frame() && entry.mfn == Mfn::of(MachineAddress{content.frame}) + i && now.read &&
                (now.write || !rights.writable || !content.attributes.dirty()) &&
                (now.execute || rights.no_execute)) {
                continue;
            }
            violations.push_back(
                fmt::format("TLB {} holds a translation of {} to frame {} that the P2M does not permit",
                            tlb.name, LinearAddress{tag.number() << shift}, frame));
            return;
        }
    });
}

}  // namespace mmusim
