// SPDX-License-Identifier: Apache-2.0
//
// Policies built wrong on purpose: they forget flushes. Whatever flush a policy needs, the comparison with
// the reference or the coherence oracle catches its absence; the program that showed it is cut down to a few
// steps, and fails as a trace in the replayer too. With the right policy the same trace passes.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/shrink.hpp"
#include "support/stress.hpp"

namespace {

using namespace mmusim;
using P = reference::Paging;

/// Another policy, but that some of the guest's flushes do nothing.
class Forgetful final : public ShadowPolicy {
public:
    Forgetful(std::unique_ptr<ShadowPolicy> right, GuestFlush forgotten, std::optional<unsigned> by)
        : right_{std::move(right)}, forgotten_{forgotten}, by_{by}
    {
    }

    [[nodiscard]] PolicyDeclaration declared() const override { return right_->declared(); }
    [[nodiscard]] FlushAnswer on_flush(unsigned vcpu, GuestFlush flush) override
    {
        const FlushAnswer answer = right_->on_flush(vcpu, flush);
        return flush == forgotten_ && (!by_ || *by_ == vcpu) ? FlushAnswer::nothing : answer;
    }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite& write) override
    {
        return right_->on_table_write(write);
    }

private:
    std::unique_ptr<ShadowPolicy> right_;
    GuestFlush forgotten_;
    std::optional<unsigned> by_;
};

/// Says that it keeps nothing stale, and does.
class Liar final : public ShadowPolicy {
public:
    explicit Liar(std::unique_ptr<ShadowPolicy> right) : right_{std::move(right)} {}

    [[nodiscard]] PolicyDeclaration declared() const override
    {
        PolicyDeclaration declared = right_->declared();
        declared.stale_levels = 0;
        return declared;
    }
    [[nodiscard]] FlushAnswer on_flush(unsigned vcpu, GuestFlush flush) override
    {
        return right_->on_flush(vcpu, flush);
    }
    [[nodiscard]] TableWriteAnswer on_table_write(const TableWrite& write) override
    {
        return right_->on_table_write(write);
    }

private:
    std::unique_ptr<ShadowPolicy> right_;
};

stress::Setup forgetful(const std::string& policy, GuestFlush flush, std::optional<unsigned> by = {})
{
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    const ShadowPolicyFactory right = catalog.find(policy);
    catalog.add("wrong", "forgets a flush", [=] { return std::make_unique<Forgetful>(right(), flush, by); });
    stress::Setup setup = stress::setup_for("wrong", catalog);
    setup.config.check_coherence = true;
    return setup;
}

struct Caught {
    std::uint64_t seed = 0;
    stress::GuestProgram program;
    stress::Failure failure;
};

/// The first program from a seed on that fails, of a thousand.
std::optional<Caught> first_caught(const stress::Setup& setup, P home, std::uint64_t first_seed)
{
    for (std::uint64_t seed = first_seed; seed < first_seed + 1000; ++seed) {
        if (seed % 8 >= 6) continue;  // secure frames come and go: no part in this
        stress::GuestProgram program = stress::random_program(home, seed, 1000);
        if (auto failure = stress::Lockstep{program.header, setup}.run(program.steps, {}))
            return Caught{seed, std::move(program), *std::move(failure)};
    }
    return std::nullopt;
}

/// What the replayer finds wrong with a trace.
std::uint64_t wrong_in_replay(const std::string& path, const stress::Setup& setup)
{
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    catalog.add(setup.config.policy, "as set up", setup.policy);
    TraceReader reader{path};
    ReplayConfig config = setup.config;
    config.check = config.check_coherence = true;
    Replayer replayer{reader.header(), config, catalog};
    Record record;
    while (reader.next(record)) replayer.replay(record);
    replayer.finish();
    return replayer.total().checks.mismatched + replayer.violations().size();
}

/// A flush that a policy needs, and a program from which on one shows it.
struct Required {
    const char* policy;
    GuestFlush flush;
    P home;
    std::uint64_t seed;
};

// Not among them: xen and kvm do without load_cr3_noflush, since nothing is due then and they find shadows by
// frame; the others' shadows belong to the root that was left, or are made right by what they do at each
// load. Policies that are coherent need none.
const std::array kRequired{
    Required{"xen", GuestFlush::address, P::four_level, 280},
    Required{"xen", GuestFlush::page_fault, P::four_level, 186},
    Required{"xen", GuestFlush::load_cr3, P::four_level, 114},
    Required{"xen", GuestFlush::context, P::two_level, 936},
    Required{"xen", GuestFlush::everything, P::two_level, 376},
    Required{"kvm", GuestFlush::address, P::four_level, 280},
    Required{"kvm", GuestFlush::page_fault, P::four_level, 146},
    Required{"kvm", GuestFlush::load_cr3, P::four_level, 114},
    Required{"kvm", GuestFlush::context, P::four_level, 8},
    Required{"kvm", GuestFlush::everything, P::two_level, 74},
    Required{"xen-2005", GuestFlush::address, P::four_level, 18},
    Required{"xen-2005", GuestFlush::page_fault, P::four_level, 73},
    Required{"xen-2005", GuestFlush::load_cr3, P::four_level, 114},
    Required{"xen-2005", GuestFlush::load_cr3_noflush, P::four_level, 212},
    Required{"xen-2005", GuestFlush::context, P::five_level, 773},
    Required{"xen-2005", GuestFlush::everything, P::pae, 139},
    Required{"tlb-like", GuestFlush::address, P::four_level, 144},
    Required{"tlb-like", GuestFlush::page_fault, P::four_level, 26},
    Required{"tlb-like", GuestFlush::load_cr3, P::four_level, 16},
    Required{"tlb-like", GuestFlush::load_cr3_noflush, P::four_level, 212},
    Required{"tlb-like", GuestFlush::context, P::four_level, 8},
    Required{"tlb-like", GuestFlush::everything, P::four_level, 51},
    Required{"vtlb-nova", GuestFlush::address, P::four_level, 144},
    Required{"vtlb-nova", GuestFlush::page_fault, P::four_level, 26},
    Required{"vtlb-nova", GuestFlush::load_cr3, P::four_level, 4},
    Required{"vtlb-nova", GuestFlush::load_cr3_noflush, P::four_level, 212},
    Required{"vtlb-nova", GuestFlush::context, P::four_level, 8},
    Required{"vtlb-nova", GuestFlush::everything, P::four_level, 51},
    Required{"vtlb-stale", GuestFlush::address, P::four_level, 18},
    Required{"vtlb-stale", GuestFlush::page_fault, P::four_level, 26},
    Required{"vtlb-stale", GuestFlush::load_cr3, P::four_level, 114},
    Required{"vtlb-stale", GuestFlush::load_cr3_noflush, P::four_level, 212},
    Required{"vtlb-stale", GuestFlush::context, P::four_level, 76},
    Required{"vtlb-stale", GuestFlush::everything, P::two_level, 74},
};

constexpr std::array kAllFlushes{GuestFlush::address,  GuestFlush::page_fault,
                                 GuestFlush::load_cr3, GuestFlush::load_cr3_noflush,
                                 GuestFlush::context,  GuestFlush::everything};

}  // namespace

TEST_CASE("wrong policies: each required flush that is forgotten is caught", "[machine][coherence]")
{
    for (const Required& one : kRequired) {
        for (const std::optional<unsigned> by : {std::optional<unsigned>{}, std::optional<unsigned>{0}}) {
            INFO(one.policy << " forgets flush " << static_cast<int>(one.flush)
                            << (by ? " on vCPU 0" : " on all vCPUs"));
            CHECK(first_caught(forgetful(one.policy, one.flush, by), one.home, one.seed));
        }
    }
}

TEST_CASE("wrong policies: coherent ones need no flush", "[machine][coherence]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) {
        if (!policy.make()->declared().coherent()) continue;
        for (const GuestFlush flush : kAllFlushes) {
            const stress::Setup setup = forgetful(policy.name, flush);
            const stress::GuestProgram program = stress::random_program(P::four_level, 2, 1000);
            CHECK_FALSE(stress::Lockstep{program.header, setup}.run(program.steps, {}));
        }
    }
}

TEST_CASE("wrong policies: what fails is cut down to a few steps that fail when replayed", "[machine]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const Required& one : kRequired) {
        if (one.flush != GuestFlush::address && one.flush != GuestFlush::load_cr3) continue;
        INFO(one.policy << " forgets flush " << static_cast<int>(one.flush));
        const stress::Setup wrong = forgetful(one.policy, one.flush);
        const auto caught = first_caught(wrong, one.home, one.seed);
        REQUIRE(caught);
        const stress::Shrunk shrunk = stress::shrink(caught->program, wrong, caught->failure);
        CHECK(shrunk.program.steps.size() <= 25);
        CHECK(shrunk.failure.step + 1 == shrunk.program.steps.size());
        CHECK(stress::Lockstep{shrunk.program.header, wrong}.run(shrunk.program.steps, {}));

        // No step can be left out.
        for (std::size_t i = 0; i < shrunk.program.steps.size(); ++i) {
            auto fewer = shrunk.program.steps;
            fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
            const auto failure = stress::Lockstep{shrunk.program.header, wrong}.run(fewer, {});
            CHECK((!failure || failure->kind != shrunk.failure.kind));
        }

        const test::ScratchPath trace;
        stress::write_trace(trace.path(), shrunk.program, wrong, "a forgotten flush");
        CHECK(wrong_in_replay(trace.path(), wrong) > 0);
        CHECK(wrong_in_replay(trace.path(), stress::setup_for(one.policy, catalog)) == 0);
    }
}

TEST_CASE("wrong policies: one that keeps stale entries but says that it is coherent is caught", "[machine]")
{
    ShadowPolicyCatalog catalog = builtin_shadow_policies();
    catalog.add("liar", "tlb-like, said to be coherent",
                [] { return std::make_unique<Liar>(builtin_shadow_policies().find("tlb-like")()); });
    const auto caught = first_caught(stress::setup_for("liar", catalog), P::four_level, 1);
    REQUIRE(caught);
    CHECK(caught->failure.kind == stress::Failure::Kind::answer);
}

TEST_CASE("a trace of a program without a failure passes under every policy", "[machine]")
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const P home : {P::two_level, P::pae, P::four_level, P::five_level}) {
        const stress::GuestProgram program = stress::random_program(home, 3, 300);
        for (const auto& policy : catalog.entries()) {
            stress::Setup setup = stress::setup_for(policy.name, catalog);
            INFO(stress::name_of(home) << " " << policy.name);
            const test::ScratchPath trace;
            stress::write_trace(trace.path(), program, setup, "whole");
            CHECK(wrong_in_replay(trace.path(), setup) == 0);
        }
    }
}
