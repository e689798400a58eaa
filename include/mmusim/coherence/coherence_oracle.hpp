// SPDX-License-Identifier: Apache-2.0
//
// The coherence oracle: compares each translation that a vCPU used with what a walk of the guest's own tables
// gives at that moment (docs/coherence.md; SDM vol. 3A 4.10). A difference is permitted staleness if the
// architecture lets some translation be cached that gives this answer: one that could have been made since
// the last invalidation that the architecture requires. Else it is a violation, and is told with the entry
// that changed and the event that should have removed what was cached.
//
// It works on the guest's level: an answer is (vCPU, access, guest-physical address), whoever translated. So
// it holds TLBs, paging-structure caches and shadow policies to the same rule, and shows guests that forget
// a flush.
//
// Left out: faults (a spurious one is not noticed).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/paging_mode.hpp>

namespace mmusim {

/// What the checks came to. Each stale answer is of one kind, the first that fits in this order.
struct StalenessCounts {
    std::uint64_t checked = 0;
    std::uint64_t not_present = 0;  ///< a fresh walk finds an entry that is not present or has a reserved bit
    std::uint64_t rights = 0;       ///< a fresh walk denies the access
    std::uint64_t address = 0;      ///< a fresh walk ends at another address
    std::uint64_t dirty = 0;        ///< a fresh walk would set the leaf's dirty bit, which is clear
    std::uint64_t accessed = 0;     ///< a fresh walk would set an accessed bit that is clear
    std::uint64_t age_sum = 0;      ///< of the stale answers: accesses since each was right, itself included
    std::uint64_t oldest = 0;       ///< gauge: the greatest age so far
    std::uint64_t violations = 0;

    /// Permitted stale answers.
    [[nodiscard]] std::uint64_t stale() const { return not_present + rights + address + dirty + accessed; }
    /// Adds counts; of the gauge keeps the greater value.
    StalenessCounts& operator+=(const StalenessCounts& more);
    /// Takes away counts; the gauge stays.
    StalenessCounts& operator-=(const StalenessCounts& less);

    friend bool operator==(const StalenessCounts&, const StalenessCounts&) = default;
};

namespace detail {

/// Says quickly of most frames that nobody watches them.
class FrameFilter {
public:
    [[nodiscard]] bool may_hold(Gfn frame) const
    {
        return (words_[frame.number() / 64 % words_.size()] >> (frame.number() % 64) & 1) != 0;
    }
    void add(Gfn frame)
    {
        words_[frame.number() / 64 % words_.size()] |= std::uint64_t{1} << (frame.number() % 64);
    }
    void clear() { words_.fill(0); }

private:
    std::array<std::uint64_t, 1024> words_{};
};

}  // namespace detail

class CoherenceOracle {
public:
    /// An answer that no translation could give that may still be cached.
    struct Violation {
        std::string text;  ///< for people, in a line
    };

    /// So many changes of tables are kept before it is looked for those that nobody can need any more.
    static constexpr std::size_t kSweepAfter = std::size_t{1} << 16;

    /// `memory` is the guest's and must outlive the oracle.
    /// `stale_for_all`: a shadow policy's declaration (shadow/policy.hpp).
    CoherenceOracle(const GuestMemory& memory, unsigned vcpus, bool stale_for_all = false,
                    std::size_t sweep_after = kSweepAfter);
    CoherenceOracle(const CoherenceOracle&) = delete;
    CoherenceOracle& operator=(const CoherenceOracle&) = delete;
    ~CoherenceOracle();

    /// As after construction, the counts too. Memory may have been cleared.
    void reset();

    // --- what happens to the guest: each call comes when it has happened, in the order of events -----------

    /// Registers or root; `globals`: CR4.PGE. A load that also invalidates: first this, then at once the
    /// invalidation, and the two are one event.
    void context(unsigned vcpu, Paging paging, const WalkRules& rules,
                 const WalkRoot<space::GuestPhysical>& root, std::uint64_t pcid, bool globals);

    /// Invalidations that the architecture REQUIRES, no others. `name` is kept: a literal. Of a page: INVLPG
    /// (the current PCID, with globals), INVPCID type 0 and a page fault (without).
    void invalidated_page(unsigned vcpu, std::uint64_t pcid, LinearAddress address, bool with_globals,
                          std::string_view name);
    void invalidated_pcid(unsigned vcpu, std::uint64_t pcid, std::string_view name);
    void invalidated_all(unsigned vcpu, bool with_globals, std::string_view name);

    /// Guest memory is going to change, within one frame, whoever changes it; it still is as before. What
    /// walks do to accessed and dirty bits need not be told.
    void before_store(GuestPhysical at, std::span<const std::byte> bytes)
    {
        if (watched_.may_hold(Gfn::of(at))) [[unlikely]]
            table_store(at, bytes);
    }
    /// Another machine frame, or none, is going to stand behind a guest frame: its content then.
    void before_remap(Gfn frame, std::span<const std::byte> content)
    {
        if (watched_.may_hold(frame)) [[unlikely]]
            table_change(frame.address(), content);
    }

    // --- the question --------------------------------------------------------------------------------------

    /// An access (within one page) was translated to `at`, and has not stored yet. Counts; nothing where the
    /// answer is right or may be stale. With paging off there is nothing to check.
    [[nodiscard]] std::optional<Violation> check(unsigned vcpu, const Access& access, GuestPhysical at)
    {
        const std::uint64_t view = view_of_[vcpu];
        if (view == kPagingOff) return std::nullopt;
        ++counts_.checked;
        const std::uint64_t key = key_of(access);
        const Agreement& last = agreements_[slot_of(key)];
        if (last.key == key && last.view == view && last.changes == changes_ &&
            last.distance == at.value() - access.address.value()) [[likely]] {
            return std::nullopt;
        }
        return compare(vcpu, access, at);
    }

    [[nodiscard]] const StalenessCounts& counts() const { return counts_; }

    /// Accessed and dirty bits, where they are in the 8-byte word at `word` (aligned), that are clear though
    /// fresh walks would have set them since the word was last stored to: the cached translations that were
    /// used instead did not.
    [[nodiscard]] std::uint64_t left_unset(GuestPhysical word) const;

    /// Changes of tables that are remembered.
    [[nodiscard]] std::size_t remembered() const;

private:
    struct State;

    /// An answer that a fresh walk gave too, with all accessed and dirty bits set that it needs. It is so
    /// while the view is the same and no entry has changed that a walk could depend on.
    struct Agreement {
        std::uint64_t key = ~std::uint64_t{0};
        std::uint64_t view = kPagingOff;
        std::uint64_t changes = 0;
        std::uint64_t distance = 0;  ///< from linear to guest-physical, modulo 2^64
    };
    static constexpr std::uint64_t kPagingOff = 0;
    static constexpr std::size_t kAgreements = 4096;

    [[nodiscard]] static std::uint64_t key_of(const Access& access)
    {
        return access.address.value() >> kPageShift << 4 | static_cast<std::uint64_t>(access.kind) << 2 |
               (access.user_mode ? 2u : 0u) | (access.implicit ? 1u : 0u);
    }
    [[nodiscard]] static std::size_t slot_of(std::uint64_t key)
    {
        return (key >> 4 ^ (key & 15) << 8) % kAgreements;
    }
    void table_store(GuestPhysical at, std::span<const std::byte> bytes);
    void table_change(GuestPhysical at, std::span<const std::byte> bytes);
    void sweep_if_due();
    [[nodiscard]] std::optional<Violation> compare(unsigned vcpu, const Access& access, GuestPhysical at);

    StalenessCounts counts_;
    /// Changes of present entries in tables.
    std::uint64_t changes_ = 0;
    /// Numbers what a walk of each vCPU depends on besides memory: the same number, the same rules and root.
    std::vector<std::uint64_t> view_of_;
    std::vector<Agreement> agreements_;
    detail::FrameFilter watched_;
    std::unique_ptr<State> state_;
};

}  // namespace mmusim
