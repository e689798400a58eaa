// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>

#include <fmt/format.h>

#include "shadow_mmu.hpp"

namespace mmusim {

namespace {

/// Calls `verb` with the ShadowMmu of the guest's mode.
template <class Verb>
void in_mode(ShadowEngine& engine, Paging paging, Verb verb)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: verb(ShadowMmu<kTwoLevel>{engine}); break;
    case Paging::pae: verb(ShadowMmu<kPae>{engine}); break;
    case Paging::four_level: verb(ShadowMmu<kFourLevel>{engine}); break;
    case Paging::five_level: verb(ShadowMmu<kFiveLevel>{engine}); break;
    }
}

/// The mode whose entries a table format has. Those of five-level paging include four-level's.
Paging paging_of(TableFormat format)
{
    switch (format) {
    case TableFormat::bits32: return Paging::two_level;
    case TableFormat::pae: return Paging::pae;
    case TableFormat::bits64: return Paging::five_level;
    }
    return Paging::five_level;
}

/// The context of a vCPU with paging off: its tables are the identity table's.
GuestContext identity_context()
{
    GuestContext context;
    context.paging = Paging::off;
    context.settings = {.nxe = false, .pse = true};
    context.rules.entries = entry_rules(kTwoLevel, Cpuid{}, context.settings);
    context.root.frame = kIdentityTable;
    return context;
}

}  // namespace

ShadowEngine::ShadowEngine(SparseMemory& machine, SparseMemory& tables, const P2m& p2m, const Cpuid& cpuid,
                           unsigned vcpus, std::unique_ptr<ShadowPolicy> policy, Populate populate,
                           Mfn pool_first)
    : p2m_{&p2m}
    , cpuid_{cpuid}
    , guest_memory_{machine, p2m}
    , policy_{std::move(policy)}
    , declared_{policy_->declared()}
    , populate_{populate}
    , empty_table_{pool_first}
    , cache_{tables, pool_first + 1, declared_.protects_tables, counters_}
    , roots_(vcpus)
{
}

FaultAnswer ShadowEngine::fault(unsigned vcpu, const GuestContext& guest, const Access& access)
{
    if (guest.paging == Paging::off) {
        IdentityTables identity;
        return ShadowMmu<kTwoLevel>{*this}.fault(identity, vcpu, identity_context(), access);
    }
    FaultAnswer answer;
    in_mode(*this, guest.paging, [&](auto mmu) { answer = mmu.fault(guest_memory_, vcpu, guest, access); });
    return answer;
}

FaultAnswer ShadowEngine::emulated_access(unsigned vcpu, const GuestContext& guest, const Access& access)
{
    FaultAnswer answer{FaultAnswer::Kind::emulated, {}, GuestPhysical{access.address.value()}};
    if (guest.paging == Paging::off) return answer;
    in_mode(*this, guest.paging,
            [&](auto mmu) { answer = mmu.emulated_access(guest_memory_, vcpu, guest, access); });
    return answer;
}

void ShadowEngine::release_roots(Roots& roots)
{
    for (ShadowId& id : roots.ids) {
        if (id != kNoShadow) cache_.release(id);
        id = kNoShadow;
    }
}

void ShadowEngine::load_roots(unsigned vcpu, const GuestContext& guest)
{
    Roots& roots = roots_[vcpu];
    ++work_.roots_loaded;
    if (roots.paging != guest.paging) release_roots(roots);
    roots.paging = guest.paging;
    const bool off = guest.paging == Paging::off;
    in_mode(*this, guest.paging, [&](auto mmu) { mmu.load_roots(vcpu, off ? identity_context() : guest); });
}

void ShadowEngine::flush(unsigned vcpu, GuestFlush flush, LinearAddress address)
{
    switch (policy_->on_flush(vcpu, flush)) {
    case FlushAnswer::nothing: break;
    case FlushAnswer::drop_entry:
        in_mode(*this, roots_[vcpu].paging, [&](auto mmu) { mmu.drop_entry(vcpu, address); });
        break;
    case FlushAnswer::drop_tree:
        for (const ShadowId id : roots_[vcpu].ids) {
            if (id != kNoShadow) cache_.clear_all(id);
        }
        break;
    }
}

void ShadowEngine::emulated_store(GuestPhysical at, std::span<const std::byte> bytes)
{
    guest_memory_.write(at, bytes);
    if (!declared_.protects_tables) return;
    const unsigned first = at.offset_in_page();
    revalidate(Gfn::of(at), first, first + static_cast<unsigned>(bytes.size()) - 1, std::nullopt);
}

void ShadowEngine::revalidate(Gfn frame, unsigned first, unsigned last, std::optional<TableFormat> except)
{
    for (const ShadowId id : cache_.of_frame(frame)) {
        if (cache_[id].key.type.format == except) continue;
        // Validating one may have dropped the last reference to the next.
        if (!cache_[id].alive()) continue;
        in_mode(*this, paging_of(cache_[id].key.type.format),
                [&](auto mmu) { mmu.validate(id, first, last); });
    }
}

void ShadowEngine::forget(Gfn frame)
{
    for (const ShadowId id : cache_.of_frame(frame)) {
        if (cache_[id].alive()) cache_.clear_all(id);
    }
}

void ShadowEngine::blow()
{
    for (Roots& roots : roots_) release_roots(roots);
    for (const ShadowId id : cache_.all()) {
        if (cache_[id].alive()) cache_.unpin(id);
    }
}

bool ShadowEngine::splintered(unsigned vcpu, LinearAddress address)
{
    bool found = false;
    in_mode(*this, roots_[vcpu].paging, [&](auto mmu) { found = mmu.splintered(vcpu, address); });
    return found;
}

ShadowWork ShadowEngine::work() const
{
    ShadowWork work = work_;
    work.faults = counters_.fault;
    work.shadows_made = counters_.alloc;
    work.entries_written = cache_.entries_written();
    return work;
}

WalkRoot<space::Machine> ShadowEngine::hardware_root(unsigned vcpu) const
{
    const Roots& roots = roots_[vcpu];
    WalkRoot<space::Machine> hardware{empty_table_, {}};
    const ShadowId first = roots.ids[0];
    switch (roots.paging) {
    case Paging::off:
    case Paging::two_level:
        // The four pages of the l2_32 are the four tables of the PAE top.
        for (std::size_t i = 0; first != kNoShadow && i < 4; ++i) {
            hardware.pdptes[i] = cache_[first].frames[i].address().value() | pte::kPresent;
        }
        break;
    case Paging::pae:
        for (std::size_t i = 0; i < 4; ++i) {
            if (roots.ids[i] == kNoShadow) continue;
            hardware.pdptes[i] = cache_[roots.ids[i]].frames[0].address().value() | pte::kPresent;
        }
        break;
    case Paging::four_level:
    case Paging::five_level:
        if (first != kNoShadow) hardware.frame = cache_[first].frames[0];
        break;
    }
    return hardware;
}

std::vector<std::string> ShadowEngine::audit() const
{
    std::vector<std::string> violations;
    const auto roots_to = [&](ShadowId id) {
        std::uint32_t count = 0;
        for (const Roots& roots : roots_) {
            count += static_cast<std::uint32_t>(std::count(roots.ids.begin(), roots.ids.end(), id));
        }
        return count;
    };
    cache_.audit(roots_to, violations);
    for (const ShadowId id : cache_.all()) {
        const Shadow& shadow = cache_[id];
        for (unsigned i = 0; shadow.key.type.level == 1 && i < shadow.entries(); ++i) {
            const std::uint64_t entry = cache_.entry({id, static_cast<std::uint16_t>(i)});
            const Mfn mfn{(entry & pte::kFrame) >> kPageShift};
            if ((entry & pte::kPresent) == 0 || p2m_->gfn_of(mfn)) continue;
            violations.push_back(fmt::format("{} of frame {}, entry {}: machine frame {} is not the guest's",
                                             to_string(shadow.key.type), shadow.key.frame, i, mfn));
        }
    }
    if (!declared_.coherent()) return violations;
    for (const ShadowId id : cache_.all()) {
        // The audit of entries changes nothing.
        in_mode(const_cast<ShadowEngine&>(*this), paging_of(cache_[id].key.type.format),
                [&](auto mmu) { mmu.audit_entries(id, violations); });
    }
    return violations;
}

}  // namespace mmusim
