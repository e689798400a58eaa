// SPDX-License-Identifier: Apache-2.0
//
// The search for a way in which an answer can have come about: a root that the vCPU had, then for each level
// a version of the entry, read at times that don't go back on the way down (the manual lets an upper entry
// be cached and a lower one be read later), such that the whole permits the access and gives the address.
//
//   time ->    w                                             now
//   root       |------- R1 --------|---------- R2 ------------|
//   L2 entry   |--- a ---|------------- b --------------------|      t2 <= t1, all of them not before w:
//   L1 entry   |-------- c ---------------|------- d ---------|      a c, a d, b c, b d may be cached
//
// Two kinds of translation differ in what they may have survived. One that is not global is tagged with the
// current PCID, and all of it is younger than the last invalidation that covers its page. A global one may
// have been made under any PCID. Then only its last read is younger than the last invalidation that covers
// global translations of the page; but all reads lie between two flushes of the PCID that was current.
//
// Where a shadow policy declares that its tables are stale for all who use them, an entry may be read at any
// time, also while the vCPU had another root or PCID. What its own flushes take does not change.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include <boost/container/static_vector.hpp>

#include <mmusim/pagewalk/rights.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/paging_mode.hpp>
#include <mmusim/words/pte.hpp>

#include "coherence/table_journal.hpp"
#include "coherence/time.hpp"
#include "coherence/vcpu_history.hpp"

namespace mmusim::coherence {

/// An answer that was given.
struct Answer {
    Access access;
    RightsControl control;
    GuestPhysical at;
};

/// One way in which it can have come about.
struct Path {
    /// One entry that was read.
    struct Step {
        int level = 0;
        Gfn table;
        unsigned offset = 0;
        bool leaf = false;
        TableJournal::Version version;
    };

    Root root;
    std::uint64_t pcid = 0;
    bool global = false;
    boost::container::static_vector<Step, kMaxLevels> steps;  ///< from the root down
    Time root_until = 0;   ///< the vCPU had the root under this PCID; kForever: it has it now
    Time right_until = 0;  ///< the first of the entries, or the root, changed; kForever: none did
};

class PathSearch {
public:
    PathSearch(const TableJournal& journal, std::span<const EntryRules> rules, const VcpuHistory& history,
               const Answer& answer, bool stale_for_all)
        : journal_{&journal}
        , rules_{rules}
        , history_{&history}
        , answer_{&answer}
        , stale_for_all_{stale_for_all}
    {
    }

    /// Of the translations that may be cached now, the one that was right last.
    [[nodiscard]] std::optional<Path> cached();
    /// Of all that are remembered; if there is one, of the vCPU's own PCID or global.
    [[nodiscard]] std::optional<Path> ever();

private:
    enum class Which : std::uint8_t {
        own,         ///< not global, of the current PCID, may be cached now
        global,      ///< global, may be cached now
        own_once,    ///< of the current PCID, at any time
        other_once,  ///< of any PCID, at any time
    };

    void search(Which which);
    void search_space(std::uint64_t pcid, const AddressSpace& space);
    void descend(int level, Gfn table, Rights rights);
    void take(int level, const Path::Step& step, const Rights& above);
    void judge(const Rights& rights);
    [[nodiscard]] bool may_be_read_as(std::uint64_t raw, int level, bool leaf) const;
    [[nodiscard]] bool may_be_cached(bool global) const;
    [[nodiscard]] bool global_may_be_cached() const;
    /// Whether the steps can be read within `window`, in order, the last not before `leaf_from`.
    [[nodiscard]] bool readable_within(Interval window, Time leaf_from) const;
    /// The first moment from `from` on at which an entry can be read, that the vCPU could read at `when`.
    [[nodiscard]] Time first_readable(const Timeline& when, Time from) const
    {
        return stale_for_all_ ? from : when.first(from);
    }
    [[nodiscard]] Time best() const { return found_ ? found_->right_until : 0; }

    const TableJournal* journal_;
    std::span<const EntryRules> rules_;
    const VcpuHistory* history_;
    const Answer* answer_;
    bool stale_for_all_;

    Which which_ = Which::own;
    Time floor_ = 0;  ///< versions that ended by then can't be on any path
    const AddressSpace* space_ = nullptr;
    const Timeline* root_times_ = nullptr;
    PagingMode mode_ = kFourLevel;
    Path path_;
    Time newest_start_ = 0;  ///< of the steps
    Time first_end_ = 0;     ///< of the steps and the root
    std::optional<Path> found_;
};

}  // namespace mmusim::coherence
