// SPDX-License-Identifier: Apache-2.0
//
// Where a guest kernel is likely to map one of its own tables writable (reference/xen.md B10, step 3): in the
// recursive or direct maps of the kernels that are known. A guess is worth a look at one shadow entry.
#pragma once

#include <cstdint>

#include <boost/container/static_vector.hpp>

#include <mmusim/words/address.hpp>
#include <mmusim/words/paging_mode.hpp>

namespace mmusim {

struct WriteMapGuess {
    unsigned heuristic = 0;  ///< 1 to 6: Xen's number, as in the counters `writeable_h_N`
    LinearAddress address;
};

inline constexpr std::size_t kMaxWriteMapGuesses = 12;
using WriteMapGuesses = boost::container::static_vector<WriteMapGuess, kMaxWriteMapGuesses>;

/// In the order in which they are tried. `level`: of the table to protect, in the walk of `address`; 0: of no
/// walk (a resync).
[[nodiscard]] WriteMapGuesses write_map_guesses(Paging paging, int level, LinearAddress address, Gfn table);

}  // namespace mmusim
