// SPDX-License-Identifier: Apache-2.0
//
// What the guest's tables held at each moment. A frame is enrolled when it is linked: as a root, or by an
// entry of an enrolled frame; with it, everything that can be reached below. From then on each change of one
// of its 8-byte words is kept with its time. So what a table held before it was enrolled does not matter: no
// walk could get there.
//
//   word   |--- version ---|---- version ----|--- in memory now --->
//          enrolled        change            change
//
// A version lasts until something other than setting accessed and dirty bits happens to the word. Walks set
// these bits unseen, but nothing except a store clears them; so a version whose last value has a bit set had
// it set at some moment.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/coherence/coherence_oracle.hpp>
#include <mmusim/p2m/guest_memory.hpp>
#include <mmusim/words/address.hpp>

#include "coherence/time.hpp"

namespace mmusim::coherence {

/// What a frame is as a table: how wide its entries are, and on which level. A set of these is an OR.
namespace role {
inline constexpr std::uint8_t kLong1 = 1u << 0;  ///< 8-byte entries; level n is kLong1 << (n - 1)
inline constexpr std::uint8_t kLongAny = 0x1f;
inline constexpr std::uint8_t kShort1 = 1u << 5;       ///< 4-byte entries
inline constexpr std::uint8_t kShort2 = 1u << 6;       ///< PS is ignored: CR4.PSE = 0
inline constexpr std::uint8_t kShort2Large = 1u << 7;  ///< PS makes a 4 MiB page
[[nodiscard]] constexpr std::uint8_t long_level(int level)
{
    return static_cast<std::uint8_t>(kLong1 << (level - 1));
}
}  // namespace role

class TableJournal {
public:
    /// What an entry was in [start, end). The one in memory ends at kForever.
    struct Version {
        Time start = 0;
        Time end = 0;
        std::uint64_t raw = 0;
    };
    struct Root {
        Gfn frame;
        std::uint8_t role = 0;
    };

    TableJournal(const GuestMemory& memory, detail::FrameFilter& enrolled);

    void reset();

    /// The frame is a table from now on, and so is what its entries name. (What is no RAM may become some.)
    /// `role`: one.
    void enroll(Gfn frame, std::uint8_t role, Time now);
    /// A store that is about to happen. Whether a walk that ended well may end otherwise afterwards.
    [[nodiscard]] bool store(GuestPhysical at, std::span<const std::byte> bytes, Time now);

    /// The versions of the entry of `bytes` bytes at `offset`, newest first, until `visit(version)` says no.
    template <class Visit>
    void visit(Gfn frame, unsigned offset, unsigned bytes, Visit visit) const
    {
        const Table* table = find(frame);
        if (table == nullptr) return;
        const unsigned shift = bytes == 4 ? offset % 8 * 8 : 0;
        const std::uint64_t mask = bytes == 4 ? 0xffff'ffff : ~std::uint64_t{0};
        const std::uint32_t newest = table->newest_change(offset / 8);
        if (table->roles != 0) {
            const std::uint64_t word = memory_.load<std::uint64_t>(frame, offset & ~7u);
            if (!visit(Version{table->start_of_present(newest), kForever, word >> shift & mask})) return;
        }
        for (std::uint32_t i = newest; i != kNone;) {
            const Change& change = table->changes[i];
            if (!visit(Version{change.start, change.end, change.word >> shift & mask})) return;
            i = change.older;
        }
    }
    /// The entry as it was at `time`, if that is known.
    [[nodiscard]] std::optional<std::uint64_t> entry_at(Gfn frame, unsigned offset, unsigned bytes,
                                                        Time time) const;

    /// Forgets what nobody can need any more. `roots`: those from which a walk may start, now or with what is
    /// cached; `visible`: times (disjoint, ascending) whose entries a walk may combine with later ones;
    /// `globals_since`: from when on global translations may have been cached, kForever if none.
    void sweep(std::span<const Root> roots, std::span<const Interval> visible, Time globals_since, Time now);

    /// Changes that are remembered.
    [[nodiscard]] std::size_t changes() const { return changes_; }

private:
    static constexpr std::uint32_t kNone = ~std::uint32_t{0};
    static constexpr unsigned kWords = kPageBytes / 8;
    using Words = std::array<std::uint64_t, kWords>;

    /// The end of a version.
    struct Change {
        Time start;
        Time end;
        std::uint64_t word;   ///< until `end`
        std::uint32_t older;  ///< change of the same word, or kNone
        std::uint16_t index;
    };
    struct Table {
        std::uint8_t roles = 0;  ///< 0: no walk gets here any more; memory is not watched
        std::uint8_t past_roles = 0;
        std::uint8_t marked = 0;        ///< roles found by the sweep under way
        std::uint8_t global_known = 0;  ///< roles for which `global` is known, in a sweep
        std::uint8_t global = 0;        ///< roles in which a global page can be reached
        Time since = 0;                 ///< memory is watched
        std::vector<Change> changes;    ///< in order of time
        std::unique_ptr<std::array<std::uint32_t, kWords>> newest;

        [[nodiscard]] std::uint32_t newest_change(unsigned index) const
        {
            return newest ? (*newest)[index] : kNone;
        }
        [[nodiscard]] Time start_of_present(std::uint32_t change) const
        {
            return change == kNone ? since : std::max(since, changes[change].end);
        }
    };

    [[nodiscard]] Table* find(Gfn frame) const
    {
        const auto found = tables_.find(frame.number());
        return found == tables_.end() ? nullptr : found->second.get();
    }
    void read(Gfn frame, Words& words) const;
    void enroll_child(std::uint64_t word, std::uint8_t role, Time now);
    void remember(Table& table, unsigned index, std::uint64_t word, Time now);
    void mark(Gfn frame, std::uint8_t role, std::span<const Interval> visible);
    [[nodiscard]] bool reaches_global(Gfn frame, std::uint8_t role);
    [[nodiscard]] bool concerns_global(std::uint64_t word, std::uint8_t roles);
    /// The table is out of reach: what global translations may have come from is kept, if any.
    void retire(Gfn frame, Table& table, Time now);
    void drop_changes(Gfn frame, Table& table, std::span<const Interval> visible, Time globals_since);

    GuestMemory memory_;
    detail::FrameFilter* enrolled_;
    boost::unordered_flat_map<std::uint64_t, std::unique_ptr<Table>> tables_;
    std::size_t changes_ = 0;
    std::vector<std::pair<unsigned, std::uint64_t>> changed_;  ///< words of the store under way
};

}  // namespace mmusim::coherence
