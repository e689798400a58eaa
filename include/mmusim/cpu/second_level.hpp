// SPDX-License-Identifier: Apache-2.0
//
// The second dimension of a nested walk, of one vCPU: from a guest-physical address to the machine's, by a
// walk of the P2M's tables (SDM vol. 3C 28.3, EPT; AMD APM vol. 2, 15.25, nested paging) with a TLB of its
// own in front of it.
//
//   guest-physical address -> nested TLB -> walk of 4 or 5 levels -> machine address, page size, rights
//
// Rights are ANDed over the levels. Under NPT an access to an entry of the guest's tables is always a write;
// under EPT it is where accessed and dirty bits are in use, else a read, and what sets bits in the entry asks
// by itself. NPT sets A and D in its own entries always, EPT where they are in use. Nothing is cached of what
// is not permitted; what the P2M changes has to be dropped (`drop_all`, INVEPT).
// Left out: memory types, #VE, mode-based execute, the paging-structure caches of this dimension.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include <mmusim/p2m/p2m.hpp>
#include <mmusim/pagewalk/machine_tables.hpp>
#include <mmusim/tlb/tlb_array.hpp>
#include <mmusim/words/access.hpp>

namespace mmusim {

struct SecondLevelSpec {
    bool ad_bits = false;       ///< EPT: accessed and dirty bits in use. NPT has them always
    unsigned tlb_entries = 32;  ///< fully associative, LRU; 0: none
};

/// An access to guest-physical memory.
struct SecondLevelAccess {
    GuestPhysical address;
    AccessKind kind = AccessKind::read;
    bool of_table = false;  ///< to an entry of the guest's tables
};

/// Why the hardware hands the access to the hypervisor: an EPT violation or misconfiguration, a nested page
/// fault.
struct SecondLevelViolation {
    SecondLevelAccess access;
    LinearAddress linear;        ///< of the guest's access
    FrameRights permitted;       ///< what the tables permit there
    bool misconfigured = false;  ///< an entry is none that the hardware knows
    friend bool operator==(const SecondLevelViolation& a, const SecondLevelViolation& b)
    {
        return a.access.address == b.access.address && a.access.kind == b.access.kind &&
               a.access.of_table == b.access.of_table && a.linear == b.linear && a.permitted == b.permitted &&
               a.misconfigured == b.misconfigured;
    }
};

struct SecondLevelCounters {
    std::uint64_t lookups = 0;  ///< of the nested TLB
    std::uint64_t hits = 0;
    std::uint64_t walks = 0;
    std::uint64_t memory_references = 0;  ///< entries of the P2M's tables that these read
    // Violations, by what was asked for.
    std::uint64_t of_tables = 0;  ///< an entry of the guest's tables
    std::uint64_t reads = 0;
    std::uint64_t writes = 0;
    std::uint64_t fetches = 0;
    std::uint64_t misconfigurations = 0;

    [[nodiscard]] std::uint64_t violations() const
    {
        return of_tables + reads + writes + fetches + misconfigurations;
    }
    friend bool operator==(const SecondLevelCounters&, const SecondLevelCounters&) = default;
};

/// Names of the counters, as in the statistics document; the violations have a member of their own there.
struct SecondLevelCounterName {
    const char* name;
    std::uint64_t SecondLevelCounters::*member;
    bool violation;
};
inline constexpr std::array<SecondLevelCounterName, 9> kSecondLevelCounterNames{{
    {"lookups", &SecondLevelCounters::lookups, false},
    {"hits", &SecondLevelCounters::hits, false},
    {"walks", &SecondLevelCounters::walks, false},
    {"memory_references", &SecondLevelCounters::memory_references, false},
    {"of_tables", &SecondLevelCounters::of_tables, true},
    {"reads", &SecondLevelCounters::reads, true},
    {"writes", &SecondLevelCounters::writes, true},
    {"fetches", &SecondLevelCounters::fetches, true},
    {"misconfigurations", &SecondLevelCounters::misconfigurations, true},
}};

/// What became of a guest-physical address.
struct SecondLevelPage {
    MachineAddress address;
    unsigned page_shift = kPageShift;  ///< log2 of the bytes of the P2M's page: 12, 21 or 30
    FrameRights rights;
    bool dirty = true;      ///< a write has no dirty bit left to set
    bool assisted = false;  ///< the walk has set accessed or dirty bits
};

/// Without a clock.
struct NoSecondLevelTime {
    static constexpr void load(int, MachineAddress) {}
    static constexpr void wait(Cycles) {}
    [[nodiscard]] static constexpr Cycles now() { return 0; }
};

class SecondLevel {
public:
    /// `memory` has the P2M's tables.
    SecondLevel(SparseMemory& memory, P2m& p2m, const SecondLevelSpec& spec);

    /// Nothing if the access is not permitted: then `violation()` says what, without a linear address.
    /// `time`: is told of each load (level, address), waits, and says what time it is.
    template <class Time>
    [[nodiscard]] std::optional<SecondLevelPage> translate(const SecondLevelAccess& access, Time& time);

    [[nodiscard]] const SecondLevelViolation& violation() const { return violation_; }
    /// Counts the last violation: it does end a walk.
    void count_violation();

    void drop_all();
    /// As after construction.
    void reset();

    [[nodiscard]] const SecondLevelCounters& counters() const { return counters_; }
    [[nodiscard]] const P2m& p2m() const { return *p2m_; }
    /// Violated invariants, as sentences: what is cached has to agree with the P2M.
    void audit(std::vector<std::string>& violations) const;

private:
    struct Walked {
        SecondLevelPage page;
        bool permitted = false;
    };
    [[nodiscard]] AccessKind asked_for(const SecondLevelAccess& access) const
    {
        return access.of_table && ad_bits_ && access.kind == AccessKind::read ? AccessKind::write
                                                                              : access.kind;
    }
    [[nodiscard]] std::uint32_t find(GuestPhysical address) const;
    void fill(GuestPhysical address, const SecondLevelPage& page, Cycles ready);
    [[nodiscard]] bool is_leaf(std::uint64_t raw, int level) const
    {
        return level == 1 || (raw & ept::kPage) != 0;
    }
    [[nodiscard]] FrameRights rights_of_entry(std::uint64_t raw) const;
    [[nodiscard]] bool malformed(std::uint64_t raw, int level) const;
    /// Sets accessed bits on the way, and the leaf's dirty bit; whether any was missing.
    bool set_ad_bits(int leaf, bool make_dirty);

    P2m* p2m_;
    MachineTables tables_;
    P2mFormat format_;
    int levels_;
    bool ad_bits_;
    std::optional<TlbArray> tlb_;
    SecondLevelCounters counters_;
    SecondLevelViolation violation_;

    struct Used {
        Mfn table;
        unsigned offset = 0;
        std::uint64_t raw = 0;
    };
    std::array<Used, 6> used_{};  ///< by the walk under way, by level
};

template <class Time>
std::optional<SecondLevelPage> SecondLevel::translate(const SecondLevelAccess& access, Time& time)
{
    const AccessKind kind = asked_for(access);
    if (tlb_) {
        ++counters_.lookups;
        const std::uint32_t entry = find(access.address);
        if (entry != TlbArray::kNone) {
            const TlbContent& content = tlb_->content(entry);
            const Rights rights = content.attributes.rights();
            const FrameRights frame{rights.user, rights.writable, !rights.no_execute};
            if (frame.permits(kind) && (kind != AccessKind::write || content.attributes.dirty())) {
                ++counters_.hits;
                tlb_->touch(entry);
                time.wait(content.ready_at);
                const unsigned shift = content.attributes.page_shift();
                const std::uint64_t offset = access.address.value() & ((std::uint64_t{1} << shift) - 1);
                return SecondLevelPage{MachineAddress{content.frame + offset}, shift, frame,
                                       content.attributes.dirty(), false};
            }
        }
    }

    ++counters_.walks;
    violation_ = {access, {}, {}, false};
    violation_.access.kind = kind;
    const Gfn gfn = Gfn::of(access.address);
    if (gfn.number() >> (9 * levels_) != 0) return std::nullopt;  // beyond what the tables map
    p2m_->populate(gfn);
    FrameRights rights{true, true, true};
    Mfn table = p2m_->tables()->root();
    for (int level = levels_;; --level) {
        const auto offset = static_cast<unsigned>(gfn.number() >> (9 * (level - 1)) & 511) * 8;
        const std::uint64_t raw = tables_.load<std::uint64_t>(table, offset);
        ++counters_.memory_references;
        time.load(level, table.address(offset));
        used_[static_cast<std::size_t>(level)] = {table, offset, raw};
        const FrameRights here = rights_of_entry(raw);
        if (here == FrameRights{}) return std::nullopt;  // not present
        if (malformed(raw, level)) {
            violation_.misconfigured = true;
            return std::nullopt;
        }
        rights = rights & here;
        table = Mfn{(raw & pte::kFrame) >> kPageShift};
        if (!is_leaf(raw, level)) continue;
        violation_.permitted = rights;
        if (!rights.permits(kind)) return std::nullopt;
        SecondLevelPage page;
        page.page_shift = kPageShift + 9 * (static_cast<unsigned>(level) - 1);
        page.rights = rights;
        if (ad_bits_) {
            page.assisted = set_ad_bits(level, kind == AccessKind::write);
            const std::uint64_t dirty = format_ == P2mFormat::ept ? ept::kDirty : pte::kDirty;
            page.dirty = (used_[static_cast<std::size_t>(level)].raw & dirty) != 0;
        }
        const std::uint64_t in_page = (std::uint64_t{1} << page.page_shift) - 1;
        page.address =
            MachineAddress{(table.address().value() & ~in_page) | (access.address.value() & in_page)};
        if (tlb_) fill(access.address, page, time.now());
        return page;
    }
}

}  // namespace mmusim
