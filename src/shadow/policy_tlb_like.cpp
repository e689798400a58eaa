// SPDX-License-Identifier: Apache-2.0
//
// `tlb-like`: the shadows of a vCPU are a large TLB (reference/xen.md B20, first column; SDM vol. 3B
// "Virtual TLB"). The guest writes its tables freely; its flushes drop what they would drop in a TLB.
// A #PF that is given to the guest drops its page, as the hardware's does: without this, an entry with
// fewer rights than the walk that faulted could still be used afterwards.
#include "policies.hpp"

namespace mmusim {

namespace {

class TlbLikePolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {.keyed_by = ShadowKeying::position,
                .protects_tables = false,
                .stale_levels = 0b111110,
                .sizes = {.out_of_sync = 0}};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush flush) override
    {
        const bool one_page = flush == GuestFlush::address || flush == GuestFlush::page_fault;
        return one_page ? FlushAnswer::drop_entry : FlushAnswer::drop_tree;
    }
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_tlb_like_policy()
{
    return std::make_unique<TlbLikePolicy>();
}

}  // namespace mmusim
