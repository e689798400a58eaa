// SPDX-License-Identifier: Apache-2.0
//
// `write-protect`: shadows are always coherent (reference/xen.md B20, second column). Every write to a
// shadowed table traps, is emulated and propagated, so no flush of the guest has anything to do, and a
// CR3 write finds the shadows that were made before.
#include "policies.hpp"

namespace mmusim {

namespace {

class WriteProtectPolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override { return {.sizes = {.out_of_sync = 0}}; }

    [[nodiscard]] FlushAnswer on_flush(unsigned, GuestFlush) override { return FlushAnswer::nothing; }
};

}  // namespace

std::unique_ptr<ShadowPolicy> make_write_protect_policy()
{
    return std::make_unique<WriteProtectPolicy>();
}

}  // namespace mmusim
