// SPDX-License-Identifier: Apache-2.0
//
// Tables in machine memory, as the hardware walker sees them: those of a native guest, or the shadows.
// Counts the entries it reads.
#pragma once

#include <cstdint>

#include <mmusim/words/address.hpp>
#include <mmusim/words/memory.hpp>

namespace mmusim {

class MachineTables {
public:
    using Space = space::Machine;

    explicit MachineTables(SparseMemory& memory) : memory_{&memory} {}

    template <class Word>
    [[nodiscard]] Word load(Mfn frame, unsigned offset)
    {
        ++loads_;
        return memory_->load<Word>(frame.number(), offset);
    }

    template <class Word>
    [[nodiscard]] bool exchange(Mfn frame, unsigned offset, Word expected, Word desired)
    {
        if (memory_->load<Word>(frame.number(), offset) != expected) return false;
        memory_->store(frame.number(), offset, desired);
        return true;
    }

    /// Entries read so far.
    [[nodiscard]] std::uint64_t loads() const { return loads_; }
    void reset_loads() { loads_ = 0; }

private:
    SparseMemory* memory_;
    std::uint64_t loads_ = 0;
};

}  // namespace mmusim
