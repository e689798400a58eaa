// SPDX-License-Identifier: Apache-2.0
//
// The secure view (docs/secure-view.md): shadows of their own for vCPUs in secure mode, so that a table which
// both kinds use has two shadows, and an entry that maps a secure frame is in one of them alone.
#include <mmusim/shadow/shadow_engine.hpp>

#include <utility>

namespace mmusim {

void ShadowEngine::set_secure_frames(std::vector<Gfn> frames)
{
    events_.begin(std::nullopt, Paging::off);
    secure_frames_.assign(std::move(frames));
    for (Vcpu& vcpu : vcpus_) {
        vcpu.virtual_tlb.clear();
        vcpu.fast_emulation.reset();
    }
    if (!secure_frames_.any()) return;
    for (const ShadowId id : cache_.leaf_shadows()) {
        for (unsigned i = 0; i < cache_[id].entries(); ++i) {
            const ShadowSlot slot{id, static_cast<std::uint16_t>(i)};
            const std::uint64_t entry = cache_.entry(slot);
            if ((entry & pte::kPresent) == 0) continue;
            const auto page = p2m_->gfn_of(Mfn{(entry & pte::kFrame) >> kPageShift});
            if (page && withheld(*page, cache_[id].key.role)) cache_.set_leaf(slot, 0);
        }
    }
    // The hardware may hold translations whose entries have changed since.
    cache_.flush_due();
}

void ShadowEngine::set_secure_mode(unsigned vcpu, bool on, const GuestContext& guest)
{
    if (vcpus_[vcpu].secure == on) return;
    vcpus_[vcpu].secure = on;
    load_roots(vcpu, guest);
}

std::optional<PageFault> ShadowEngine::refusal(unsigned vcpu, const GuestContext& guest, const Access& access,
                                               Gfn frame) const
{
    if (!withheld(frame, view_of(vcpu))) return std::nullopt;
    const RightsControl control = guest.paging == Paging::off ? RightsControl{} : guest.rules.control;
    return PageFault{access.address, control.access_bits(access) | pf::kPresent, FaultCause::rights, 1};
}

}  // namespace mmusim
