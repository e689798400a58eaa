// SPDX-License-Identifier: Apache-2.0
//
// The shadow engine of one domain: the hypervisor's side of shadow paging, for all guest modes
// (reference/xen.md B7 to B12). It acts; the policy decides. Outside it is seen through a few verbs:
// a fault, a load of roots, a flush, a store made by emulation, a change from outside.
//
//   guest root --> [guest tables, gfns]                       what the guest wrote
//                       | emulated walk through the P2M, then propagate, entry by entry
//   root slots --> [shadow tables, mfns]                      what the hardware walks
//
// A shadow entry is present only where the guest's is present and accessed, writable only where the
// guest's leaf is dirty; superpages are splintered to 4 KiB; G, PS, PAT and available bits are dropped,
// a leaf's protection key is kept. Guest modes shadow as 2-on-3, 3-on-3, 4-on-4 and 5-on-5; a vCPU with
// paging off runs 2-on-3 on an identity table that exists in the engine alone.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/shadow/counters.hpp>
#include <mmusim/shadow/policy.hpp>
#include <mmusim/shadow/shadow_cache.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/registers.hpp>

namespace mmusim {

/// How far a fault builds shadows.
enum class Populate : std::uint8_t {
    leaf,  ///< down to the entry of the page
    step,  ///< one more level for each fault, as textbooks tell it
};

/// What the hypervisor knows of a vCPU's own translation.
struct GuestContext {
    Paging paging = Paging::off;
    WalkRules rules;
    EntrySettings settings;
    WalkRoot<space::GuestPhysical> root;
};

/// How the hypervisor answers a page fault that the shadows caused.
struct FaultAnswer {
    enum class Kind : std::uint8_t {
        retry,     ///< the shadows have changed: run the instruction again
        guest,     ///< the fault is the guest's own: `fault`
        emulated,  ///< the access was done for the guest, at `address`
    };
    Kind kind = Kind::retry;
    PageFault fault;
    GuestPhysical address;
};

/// What the engine has done so far, in units that have a price.
struct ShadowWork {
    std::uint64_t faults = 0;
    std::uint64_t guest_entries_read = 0;  ///< on walks of the guest's tables
    std::uint64_t shadows_made = 0;
    std::uint64_t entries_written = 0;
    std::uint64_t emulated = 0;  ///< accesses done for the guest
    std::uint64_t roots_loaded = 0;
};

class ShadowEngine {
public:
    /// The guest's RAM is in `machine`; shadows live in frames of `tables` from `pool_first` upwards.
    ShadowEngine(SparseMemory& machine, SparseMemory& tables, const P2m& p2m, const Cpuid& cpuid,
                 unsigned vcpus, std::unique_ptr<ShadowPolicy> policy, Populate populate, Mfn pool_first);

    /// The hardware could not translate `access` with the shadows.
    [[nodiscard]] FaultAnswer fault(unsigned vcpu, const GuestContext& guest, const Access& access);
    /// An access of an instruction that is being emulated: the guest's own walk decides. Never `retry`.
    [[nodiscard]] FaultAnswer emulated_access(unsigned vcpu, const GuestContext& guest, const Access& access);
    /// The vCPU's root or paging mode has changed: finds or makes the shadows of its new root tables.
    void load_roots(unsigned vcpu, const GuestContext& guest);
    /// The guest has invalidated; `address` counts for GuestFlush::address and page_fault.
    void flush(unsigned vcpu, GuestFlush flush, LinearAddress address = {});
    void count_invlpg() { ++counters_.invlpg; }
    /// A store done by emulation, within one frame: memory changes, and so do the shadows of its entries.
    void emulated_store(GuestPhysical at, std::span<const std::byte> bytes);
    /// Whether a write of the guest to this frame would trap.
    [[nodiscard]] bool traps_writes_to(Gfn frame) const
    {
        return declared_.protects_tables && cache_.is_table(frame);
    }
    /// The content of a guest frame was changed from outside the guest.
    void forget(Gfn frame);
    /// Drops every shadow.
    void blow();

    /// Whether the hardware has to drop what it has cached, on all vCPUs: asked after each verb.
    [[nodiscard]] bool take_flush_due() { return cache_.take_flush_due(); }
    /// Whether the address is in a guest superpage that the shadows map in pieces.
    [[nodiscard]] bool splintered(unsigned vcpu, LinearAddress address);
    [[nodiscard]] ShadowWork work() const;

    /// Where the hardware's walk begins. A root that has no shadow yet is an empty table.
    [[nodiscard]] WalkRoot<space::Machine> hardware_root(unsigned vcpu) const;

    [[nodiscard]] const ShadowCounters& counters() const { return counters_; }
    [[nodiscard]] const ShadowCache& cache() const { return cache_; }
    [[nodiscard]] const PolicyDeclaration& policy() const { return declared_; }
    /// Violated invariants (reference/xen.md B19), as sentences.
    [[nodiscard]] std::vector<std::string> audit() const;

private:
    template <PagingMode Guest>
    friend class ShadowMmu;

    struct Roots {
        Paging paging = Paging::off;
        std::array<ShadowId, 4> ids{kNoShadow, kNoShadow, kNoShadow, kNoShadow};
    };

    void release_roots(Roots& roots);
    /// Bytes [first, last] of a guest frame have changed: propagates their entries into the shadows of the
    /// frame, those of `except` apart.
    void revalidate(Gfn frame, unsigned first, unsigned last, std::optional<TableFormat> except);
    [[nodiscard]] bool keyed_by_position() const { return declared_.keyed_by == ShadowKeying::position; }

    const P2m* p2m_;
    Cpuid cpuid_;
    GuestMemory guest_memory_;
    std::unique_ptr<ShadowPolicy> policy_;
    PolicyDeclaration declared_;
    Populate populate_;
    Mfn empty_table_;
    ShadowCounters counters_;
    ShadowWork work_;  ///< what is not counted elsewhere
    ShadowCache cache_;
    std::vector<Roots> roots_;  ///< by vCPU
};

}  // namespace mmusim
