// SPDX-License-Identifier: Apache-2.0
//
// The P2M changes under the shadows (reference/xen.md C3): before, the frames are tables no more, and nothing
// maps what was behind them; after, marks that say of a frame that it is a device's may be wrong.
#include <mmusim/shadow/shadow_engine.hpp>

#include <fmt/format.h>
#include <boost/unordered/unordered_flat_set.hpp>

namespace mmusim {

void ShadowEngine::before_p2m_change(std::span<const Gfn> frames)
{
    events_.begin(std::nullopt, Paging::off);
    boost::unordered_flat_set<std::uint64_t> gone;
    for (const Gfn frame : frames) {
        const auto mfn = p2m_->mfn_of(frame);
        if (!mfn) continue;
        if (!unshadow(frame, false)) {
            throw DomainCrashed(fmt::format(
                "the hypervisor ended the domain: frame {} is a table still, while its P2M entry changes",
                frame));
        }
        ++counters_.mappings;
        gone.insert(mfn->number());
    }
    // Xen's reference counts say of a frame that nothing maps it; of each other it searches all shadows.
    if (!gone.empty()) {
        boost::unordered_flat_set<std::uint64_t> found;
        std::uint64_t entries = 0;
        for (const ShadowId id : cache_.leaf_shadows()) {
            entries += cache_[id].entries();
            cache_.remove_mappings(id, [&](Mfn mfn) {
                if (!gone.contains(mfn.number())) return false;
                found.insert(mfn.number());
                return true;
            });
        }
        counters_.mappings_bf += found.size();
        work_.entries_searched += found.size() * entries;
        if (!found.empty()) cache_.flush_due();
    }
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
