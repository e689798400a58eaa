// SPDX-License-Identifier: Apache-2.0
//
// `vtlb-stale`: a TLB with stale marks (reference/other_policies.md 3.3). A table is write-protected before
// its entries are cached. Its first write is intercepted once: the table is stale from then on, and written
// freely. A flush of the guest drops what was cached of stale tables, and protects them again; all else
// stays, shared by address spaces and vCPUs. The nearest relative of out of sync that drops instead of
// comparing.
//
// Not modelled: tables that are not tracked, and the purge of everything above a threshold of them: here
// every table whose entries are cached is tracked.
#include "policies.hpp"

namespace mmusim {

namespace {

class VtlbStalePolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {.stale_levels = 0b111110,
                .sizes = {.out_of_sync = 0, .fixups = 0, .prefetch_window = 1, .virtual_tlb = 0},
                .out_of_sync = OutOfSyncList::per_domain,
                .repair = Repair::drop,
                .write_search = WriteSearch::reverse_map,
                .gives_up_user_written = false};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush) override { return FlushAnswer::resync; }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite&) override
    {
        return TableWriteAnswer::unsync;
    }
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_vtlb_stale_policy()
{
    return std::make_unique<VtlbStalePolicy>();
}

}  // namespace mmusim
