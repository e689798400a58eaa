// SPDX-License-Identifier: Apache-2.0
//
// The tables that guests may write until the next resync (reference/xen.md B11), each with a copy of the
// table as the shadow knows it, and the writable mappings that were made of it ("fixups"). Either per vCPU a
// few slots, a small hash table: a frame's home is its number modulo the slots, its second place the next
// one. Or one list without a limit. Books alone: who resyncs, and how, is the engine's business.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/shadow/shadow_cache.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

class OutOfSyncTables {
public:
    struct Table {
        Gfn frame;
        bool may_write = false;  ///< cleared first when it is resynced
        std::array<std::byte, kPageBytes> snapshot{};
        std::vector<ShadowSlot> fixups;  ///< a ring; free ones name no shadow
        std::size_t next_fixup = 0;

        /// The entry at a byte offset, as the copy has it, and set there.
        template <class Word>
        [[nodiscard]] Word copied(unsigned offset) const
        {
            Word word = 0;
            std::memcpy(&word, snapshot.data() + offset, sizeof word);
            return word;
        }
        template <class Word>
        void copy(unsigned offset, Word word)
        {
            std::memcpy(snapshot.data() + offset, &word, sizeof word);
        }
    };

    /// With `slots` for each of the vCPUs.
    OutOfSyncTables(unsigned vcpus, unsigned slots, unsigned fixups);
    /// One list.
    explicit OutOfSyncTables(unsigned fixups) : OutOfSyncTables{0, 0, fixups} { listed_ = true; }

    [[nodiscard]] bool any() const { return count_ != 0; }
    /// Null if the frame is in sync.
    [[nodiscard]] Table* find(Gfn frame);
    [[nodiscard]] const Table* find(Gfn frame) const;
    [[nodiscard]] bool may_write(Gfn frame) const
    {
        const Table* const table = count_ == 0 ? nullptr : find(frame);
        return table != nullptr && table->may_write;
    }
    /// The table that has to make room for `frame` among a vCPU's, if any.
    [[nodiscard]] std::optional<Gfn> evicted_by(unsigned vcpu, Gfn frame) const;
    /// A new one, empty of fixups, the snapshot to be filled; what `evicted_by` named is gone. A frame at
    /// home there moves to its second place.
    [[nodiscard]] Table& add(unsigned vcpu, Gfn frame);
    void remove(Gfn frame);
    /// The vCPU's, in order of slots.
    [[nodiscard]] std::vector<Gfn> of(unsigned vcpu) const;
    /// All: those of the first vCPU first; those of a list in the order in which they came.
    [[nodiscard]] std::vector<Gfn> all() const;
    /// The same, taken out.
    [[nodiscard]] std::vector<Table> take_all();
    [[nodiscard]] unsigned vcpus() const { return static_cast<unsigned>(vcpus_.size()); }

private:
    using Slots = std::vector<std::optional<Table>>;
    [[nodiscard]] std::size_t home_of(Gfn frame) const { return frame.number() % slots_; }

    [[nodiscard]] Table& start(Table& table, Gfn frame);

    std::size_t slots_;
    std::size_t fixups_;
    bool listed_ = false;
    std::map<std::uint64_t, Table> list_;  ///< by number of arrival
    std::uint64_t arrivals_ = 0;
    boost::unordered_flat_map<std::uint64_t, std::uint64_t> number_of_;  ///< of frames in the list
    std::size_t count_ = 0;
    std::vector<Slots> vcpus_;
};

}  // namespace mmusim
