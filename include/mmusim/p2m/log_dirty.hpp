// SPDX-License-Identifier: Apache-2.0
//
// Log-dirty: which frames of a guest have been written since they were read last (reference/xen.md B15, C4).
// The verbs and what they answer, the same however writes are noticed.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include <mmusim/words/address.hpp>

namespace mmusim {

enum class LogDirtyAction : std::uint8_t {
    enable,   ///< nothing is dirty yet, every first write is noticed
    peek,     ///< reads the set
    clean,    ///< reads the set and empties it
    disable,  ///< the set and its pages go
};

/// What a verb answers.
struct LogDirtyAnswer {
    static constexpr int kNoMemory = -12, kInvalid = -22;  ///< -ENOMEM, -EINVAL

    /// 0, or the negative errno: then nothing has been done, and nothing else is set.
    int rc = 0;
    std::uint64_t fault_count = 0;  ///< faults that the hypervisor fixed since the set was empty
    std::uint64_t dirty_count = 0;  ///< different frames marked since then
    std::vector<Gfn> frames;        ///< of peek and clean: the set, in ascending order
};

/// Over a whole run, over all times that log-dirty was on.
struct LogDirtyCounters {
    std::uint64_t fault_count = 0;         ///< faults fixed while it was on
    std::uint64_t dirty_count = 0;         ///< frames marked that were clean
    std::uint64_t enables = 0;             ///< times that it was turned on
    std::uint64_t peeks = 0;               ///< times that the set was read
    std::uint64_t cleans = 0;              ///< times that it was read and emptied
    std::uint64_t failed_allocations = 0;  ///< pages that the set did not get
    std::uint64_t pages_of_trie = 0;       ///< pages that the set takes now

    friend bool operator==(const LogDirtyCounters&, const LogDirtyCounters&) = default;
};

struct LogDirtyCounterName {
    std::string_view name;
    std::uint64_t LogDirtyCounters::*member;
    bool gauge = false;  ///< a level, not a count
};

inline constexpr std::array<LogDirtyCounterName, 7> kLogDirtyCounterNames{{
    {"fault_count", &LogDirtyCounters::fault_count},
    {"dirty_count", &LogDirtyCounters::dirty_count},
    {"enables", &LogDirtyCounters::enables},
    {"peeks", &LogDirtyCounters::peeks},
    {"cleans", &LogDirtyCounters::cleans},
    {"failed_allocations", &LogDirtyCounters::failed_allocations},
    {"pages_of_trie", &LogDirtyCounters::pages_of_trie, true},
}};

static_assert(sizeof(LogDirtyCounters) == kLogDirtyCounterNames.size() * sizeof(std::uint64_t),
              "every counter has a name");

}  // namespace mmusim
