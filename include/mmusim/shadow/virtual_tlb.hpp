// SPDX-License-Identifier: Apache-2.0
//
// Xen's "virtual TLB" (reference/xen.md B17): translations that a vCPU's faults have found, kept so that the
// emulation of a write need not walk again. Direct-mapped by page number.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <mmusim/words/address.hpp>

namespace mmusim {

class VirtualTlb {
public:
    explicit VirtualTlb(unsigned entries) : entries_(entries) {}

    /// `error_code`: of the fault that found it, with P; the rights that it proved.
    void insert(LinearAddress address, Gfn frame, std::uint32_t error_code)
    {
        if (entries_.empty()) return;
        const std::uint64_t page = address.value() >> kPageShift;
        entries_[page % entries_.size()] = {page, frame, error_code};
    }
    /// The frame, if all of `error_code` was proved.
    [[nodiscard]] std::optional<Gfn> find(LinearAddress address, std::uint32_t error_code) const
    {
        if (entries_.empty()) return std::nullopt;
        const std::uint64_t page = address.value() >> kPageShift;
        const Entry& entry = entries_[page % entries_.size()];
        if (entry.error_code == 0 || entry.page != page || (error_code & ~entry.error_code) != 0)
            return std::nullopt;
        return entry.frame;
    }
    void clear() { entries_.assign(entries_.size(), {}); }

private:
    struct Entry {
        std::uint64_t page = 0;
        Gfn frame;
        std::uint32_t error_code = 0;  ///< 0: empty
    };
    std::vector<Entry> entries_;
};

}  // namespace mmusim
