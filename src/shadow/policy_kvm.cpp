// SPDX-License-Identifier: Apache-2.0
//
// `kvm`: Linux's shadow MMU (reference/other_policies.md part 1). A table has a shadow for each set of rights
// that it is reached with. Level-1 tables go out of sync at the first write, without a limit and a copy; a
// load of CR3 resyncs those under the new root, whose entries are derived anew; three previous roots stay at
// hand. A write to an upper table is emulated and drops its entry; the third in a row ends the shadow. Pages
// are reclaimed in the order in which they were made.
//
// Not modelled: the pool is the domain's (`shadow.pool_pages`), not 2 % of its RAM; the hash table is Xen's;
// the two halves of a 2-level guest's table are one shadow; writes that a clear CR0.WP permits are emulated.
#include "policies.hpp"

namespace mmusim {

namespace {

class KvmPolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        return {.keyed_by = ShadowKeying::frame_and_access,
                .stale_levels = 1u << 1,
                .stale_for_all = true,
                .switches = {.prefetch = true},
                .sizes = {.out_of_sync = 0,
                          .fixups = 0,
                          .prefetch_window = 8,
                          .virtual_tlb = 0,
                          .previous_roots = 3,
                          .writes_before_zap = 3},
                .out_of_sync = OutOfSyncList::per_domain,
                .repair = Repair::rederive,
                .write_search = WriteSearch::reverse_map,
                .written_entry = WrittenEntry::drop,
                .reclaim = Reclaim::oldest_shadow,
                .prefetch_aligned = true,
                .gives_up_user_written = false};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush flush) override
    {
        // The free load: what is below stays as it is, whoever has filled it meanwhile.
        return flush == GuestFlush::load_cr3_noflush ? FlushAnswer::nothing : FlushAnswer::resync_reachable;
    }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite&) override
    {
        return TableWriteAnswer::unsync;
    }
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_kvm_policy()
{
    return std::make_unique<KvmPolicy>();
}

}  // namespace mmusim
