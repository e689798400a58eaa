// SPDX-License-Identifier: Apache-2.0
//
// A shadow policy decides; the engine acts. The engine asks on slow paths alone, and never lets a policy
// write an entry: a policy can make a guest slow, but not wrong. What it may leave stale it declares, and
// the checkers hold it to that. So far two things are a policy's: what it declares once (what a shadow is
// found again by, whether tables are write-protected), and what a flush of the guest does.
//
// Order of calls: `declared` once, before anything else. `on_flush` after the guest's instruction has
// taken effect on its registers; new roots are loaded afterwards.
#pragma once

#include <cstdint>

namespace mmusim {

/// What a shadow page is found again by.
enum class ShadowKeying : std::uint8_t {
    frame_and_type,  ///< one shadow for a guest table, shared by all address spaces, kept when unused
    position,        ///< a shadow belongs to its place under one vCPU's root and dies with it
};

/// What holds for a policy all the time.
struct PolicyDeclaration {
    ShadowKeying keyed_by = ShadowKeying::frame_and_type;
    /// Shadowed guest tables are read-only in every shadow: each write to one traps, is emulated and
    /// propagated.
    bool protects_tables = true;
    /// Bit n: entries shadowing level n may be stale until the guest flushes as the architecture demands.
    unsigned stale_levels = 0;

    [[nodiscard]] bool coherent() const { return stale_levels == 0; }
};

/// An invalidation that the guest is entitled to.
enum class GuestFlush : std::uint8_t {
    address,     ///< INVLPG, INVPCID of one address: the page, and all paging-structure caches
    page_fault,  ///< a #PF was given to the guest: the page of CR2
    context,     ///< MOV CR3 (also with the no-flush bit), INVPCID of a PCID, a change of CR4.SMEP or PAE
    everything,  ///< CR4.PGE, CR0.PG, CR4.PCIDE, INVPCID of all; registers set from outside
};

enum class FlushAnswer : std::uint8_t {
    nothing,     ///< the shadows are right as they are
    drop_entry,  ///< the entry of the page (of the whole guest superpage)
    drop_tree,   ///< everything under the vCPU's roots
};

class ShadowPolicy {
public:
    virtual ~ShadowPolicy() = default;

    [[nodiscard]] virtual PolicyDeclaration declared() const = 0;
    [[nodiscard]] virtual FlushAnswer on_flush(unsigned vcpu, GuestFlush flush) = 0;
};

}  // namespace mmusim
