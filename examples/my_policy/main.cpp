// SPDX-License-Identifier: Apache-2.0
//
// A shadow policy of one's own, raced against the library's on a trace. It needs nothing but the installed
// library: one class, added to a catalog.
//
// The policy lets a table out of sync only if it was written before: the first write is emulated. A table
// that is written once between two flushes then costs one exit, as under xen-2006, one that is written often
// two, and nothing more until the next flush.
#include <cstdio>
#include <exception>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <mmusim/replay/compare.hpp>

using namespace mmusim;

namespace {

class SecondWritePolicy final : public ShadowPolicy {
public:
    [[nodiscard]] PolicyDeclaration declared() const override
    {
        constexpr unsigned kLevel1 = 1u << 1;
        return {.stale_levels = kLevel1, .switches = kAllShadowSwitches};
    }

    [[nodiscard]] FlushAnswer on_flush(unsigned /*vcpu*/, GuestFlush flush) override
    {
        const bool one_page = flush == GuestFlush::address || flush == GuestFlush::page_fault;
        if (!one_page) written_.clear();
        return FlushAnswer::resync;
    }

    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite& write) override
    {
        const bool first = written_.insert(write.frame).second;
        return first ? TableWriteAnswer::emulate : TableWriteAnswer::unsync;
    }

private:
    std::set<Gfn> written_;
};

}  // namespace

int main(int argc, char** argv)
try {
    const std::string trace = argc > 1 ? argv[1] : "traces/linux-6.1-amd64-4level.jsonl.zst";
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    catalog.add("second-write", "the first write to a table is emulated, the second lets it out of sync",
                [] { return std::make_unique<SecondWritePolicy>(); });

    std::vector<ReplayConfig> configs;
    for (const char* const policy : {"second-write", "xen", "xen-2006"}) {
        ReplayConfig config;
        config.policy = policy;
        config.check = true;
        configs.push_back(config);
    }
    bool right = true;
    for (const Contest& contest : compare(trace, configs, catalog, 2)) {
        std::printf(
            "%-14s %12llu cycles, %llu exits, %llu tables out of sync, %llu of %llu expectations missed\n",
            contest.config.policy.c_str(), static_cast<unsigned long long>(contest.cycles()),
            static_cast<unsigned long long>(contest.total.hardware.exits),
            static_cast<unsigned long long>(contest.total.shadow.unsync),
            static_cast<unsigned long long>(contest.total.checks.mismatched),
            static_cast<unsigned long long>(contest.total.checks.checked));
        right &= contest.total.checks.mismatched == 0;
    }
    return right ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "my_policy: %s\n", error.what());
    return 2;
}
