// SPDX-License-Identifier: Apache-2.0
//
// The P2M changes under the shadows (reference/xen.md C3): before, the frames are tables no more, and nothing
// maps what was behind them; after, marks that say of a frame that it is a device's may be wrong.
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>

#include <fmt/format.h>
#include <boost/unordered/unordered_flat_set.hpp>

namespace mmusim {

std::optional<PageFault> ShadowEngine::look_for_nothing(const GuestContext& guest, const Access& access,
                                                        Gfn frame) const
{
    const P2mType type = p2m_->entry(frame).type;
    if (type == P2mType::ram_broken) {
        throw DomainCrashed(
            fmt::format("the hypervisor ended the domain: it used frame {}, which is broken", frame));
    }
    if (type != P2mType::invalid) return std::nullopt;
    const RightsControl control = guest.paging == Paging::off ? RightsControl{} : guest.rules.control;
    return PageFault{access.address, control.access_bits(access) | pf::kPresent, FaultCause::rights, 1};
}

void ShadowEngine::leave_roots(Gfn frame)
{
    if (!cache_.is_table(frame)) return;
    const auto is_of_frame = [&](ShadowId id) { return id != kNoShadow && cache_[id].key.frame == frame; };
    for (Vcpu& vcpu : vcpus_) {
        const bool uses = std::any_of(vcpu.roots.ids.begin(), vcpu.roots.ids.end(), is_of_frame) ||
                          std::any_of(vcpu.previous_roots.begin(), vcpu.previous_roots.end(), is_of_frame);
        if (uses) release_roots(vcpu);
    }
}

void ShadowEngine::before_p2m_change(std::span<const Gfn> frames)
{
    events_.begin(std::nullopt, Paging::off);
    // A root that was outside RAM may have become one that is not.
    for (unsigned vcpu = 0; vcpu < vcpus_.size(); ++vcpu) forget_prepared(vcpu);
    boost::unordered_flat_set<std::uint64_t> gone;
    for (const Gfn frame : frames) {
        const auto mfn = p2m_->mfn_of(frame);
        if (!mfn) continue;
        leave_roots(frame);
        if (!unshadow(frame, false)) {
            throw DomainCrashed(fmt::format(
                "the hypervisor ended the domain: frame {} is a table still, while its P2M entry changes",
                frame));
        }
        ++counters_.mappings;
        gone.insert(mfn->number());
    }
    drop_mappings(gone);
    forget_translations();
}

void ShadowEngine::drop_mappings(const boost::unordered_flat_set<std::uint64_t>& machine_frames)
{
    // Xen's reference counts say of a frame that nothing maps it; of each other it searches all shadows.
    if (machine_frames.empty()) return;
    boost::unordered_flat_set<std::uint64_t> found;
    std::uint64_t entries = 0;
    for (const ShadowId id : cache_.leaf_shadows()) {
        entries += cache_[id].entries();
        cache_.remove_mappings(id, [&](Mfn mfn) {
            if (!machine_frames.contains(mfn.number())) return false;
            found.insert(mfn.number());
            return true;
        });
    }
    counters_.mappings_bf += found.size();
    work_.entries_searched += found.size() * entries;
    if (!found.empty()) cache_.flush_due();
}

void ShadowEngine::forget_translations()
{
    for (Vcpu& vcpu : vcpus_) {
        vcpu.virtual_tlb.clear();
        vcpu.fast_emulation.reset();
        vcpu.unflushed.reset();
    }
}

void ShadowEngine::after_p2m_change()
{
    if (cache_.take_mmio_marks()) blow();
    if (secure_frames_.any()) set_secure_frames(secure_frames_.all());
}

}  // namespace mmusim
