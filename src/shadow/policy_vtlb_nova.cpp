// SPDX-License-Identifier: Apache-2.0
//
// `vtlb-nova`: NOVA's virtual TLB (reference/other_policies.md 3.2). Each vCPU has one tree, whatever root it
// loads. A load of CR3 empties the top table alone, but for entries under which everything is global; a lower
// table is emptied when it is used again, of all but its global pages if it stands for the same table with
// the same rights. Otherwise as `tlb-like`; its guests may have any paging mode, NOVA's had two levels.
#include "policies.hpp"

namespace mmusim {

namespace {

class VtlbNovaPolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {.keyed_by = ShadowKeying::vcpu,
                .protects_tables = false,
                .stale_levels = 0b111110,
                .sizes = {.out_of_sync = 0}};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush flush) override
    {
        const bool one_page = flush == GuestFlush::address || flush == GuestFlush::page_fault;
        return one_page ? FlushAnswer::drop_entry : FlushAnswer::drop_top;
    }
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_vtlb_nova_policy()
{
    return std::make_unique<VtlbNovaPolicy>();
}

}  // namespace mmusim
