// SPDX-License-Identifier: Apache-2.0
//
// Shadow policies by name. A program may add its own to a catalog and hand it to the machine; there is
// no global registry.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/shadow/policy.hpp>

namespace mmusim {

using ShadowPolicyFactory = std::function<std::unique_ptr<ShadowPolicy>()>;

/// A name that the catalog does not have; the message lists those that it has.
struct UnknownPolicy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class ShadowPolicyCatalog {
public:
    struct Entry {
        std::string name;
        std::string description;  ///< one line
        ShadowPolicyFactory make;
    };

    /// A name that is already there is replaced.
    void add(std::string name, std::string description, ShadowPolicyFactory make);
    /// Throws UnknownPolicy.
    [[nodiscard]] const ShadowPolicyFactory& find(std::string_view name) const;
    [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }

private:
    std::vector<Entry> entries_;
};

/// Xen's mechanism with any of its switches and sizes: the policy `custom`. Its defaults are `xen`.
struct CustomShadowPolicy {
    ShadowSwitches switches = kAllShadowSwitches;
    bool out_of_sync = true;
    ShadowSizes sizes = {};

    friend bool operator==(const CustomShadowPolicy&, const CustomShadowPolicy&) = default;
};
[[nodiscard]] std::unique_ptr<ShadowPolicy> make_custom_policy(const CustomShadowPolicy& parts);

/// `xen` (the default), `xen-2006`, `xen-2006-first`, `custom`, `xen-2005`, `xen-2005-always`, `kvm`,
/// `write-protect`, `tlb-like`, `vtlb-nova` and `vtlb-stale`.
[[nodiscard]] ShadowPolicyCatalog builtin_shadow_policies();
inline constexpr std::string_view kDefaultShadowPolicy = "xen";

}  // namespace mmusim
