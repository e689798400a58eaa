// SPDX-License-Identifier: Apache-2.0
//
// `xen-2005`: Xen's first shadow code (reference/other_policies.md 2.1). A write to any table lets it out of
// sync, with a copy; nothing is emulated. Each fault looks first whether an entry on its own path differs
// from the copy, and if so resyncs everything; so does each load of CR3. `xen-2005-always` resyncs at each
// fault, as a later account of it has it.
//
// Not modelled: pages came from the domain's heap without a limit, here the pool and its reclaim are as under
// `xen`; a copy was made of the used part of a table; a new root that had no shadow was built without a
// resync.
#include "policies.hpp"

namespace mmusim {

namespace {

class Xen2005Policy final : public ShadowPolicy {
public:
    explicit Xen2005Policy(FaultResync fault_resync) : fault_resync_{fault_resync} {}

    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {.stale_levels = 0b111110,
                .sizes = {.out_of_sync = 0, .fixups = 1, .prefetch_window = 1, .virtual_tlb = 0},
                .out_of_sync = OutOfSyncList::per_domain,
                .fault_resync = fault_resync_,
                .gives_up_user_written = false};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush) override { return FlushAnswer::resync; }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite&) override
    {
        return TableWriteAnswer::unsync;
    }

private:
    FaultResync fault_resync_;
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_xen_2005_policy(FaultResync fault_resync)
{
    return std::make_unique<Xen2005Policy>(fault_resync);
}

}  // namespace mmusim
