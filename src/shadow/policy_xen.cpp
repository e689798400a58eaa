// SPDX-License-Identifier: Apache-2.0
//
// `xen`: today's hybrid (reference/xen.md B11, B20): upper tables are coherent, level-1 tables go out of sync
// at the first write and are repaired when the guest flushes. `xen-2006`: the same mechanism before that,
// each write emulated: the baseline of the measurements of 2008. `custom`: with other switches and sizes.
#include <mmusim/shadow/policy_catalog.hpp>

#include "policies.hpp"

namespace mmusim {

namespace {

constexpr unsigned kLevel1 = 1u << 1;

class XenPolicy final : public ShadowPolicy {
public:
    explicit XenPolicy(const CustomShadowPolicy& parts) : parts_{parts} {}

    [[nodiscard]] PolicyDeclaration declared() const override
    {
        PolicyDeclaration declaration{.switches = parts_.switches, .sizes = parts_.sizes};
        if (parts_.out_of_sync) {
            declaration.stale_levels = kLevel1;
        } else {
            declaration.sizes.out_of_sync = 0;
        }
        return declaration;
    }
    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush) override
    {
        return parts_.out_of_sync ? FlushAnswer::resync : FlushAnswer::nothing;
    }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite&) override
    {
        return parts_.out_of_sync ? TableWriteAnswer::unsync : TableWriteAnswer::emulate;
    }

private:
    CustomShadowPolicy parts_;
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_custom_policy(const CustomShadowPolicy& parts)
{
    return std::make_unique<XenPolicy>(parts);
}

}  // namespace mmusim
