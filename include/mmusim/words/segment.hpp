// SPDX-License-Identifier: Apache-2.0
//
// The segmentation unit: virtual (an offset in a segment) -> linear (SDM vol. 3A 3.4, 5.3, 5.4; vol. 1
// 3.3.7.1 for canonical addresses). Outside 64-bit mode: base plus offset, modulo 2^32, with limit,
// expand-down and null-selector checks. In 64-bit mode the segments are flat, only FS and GS have a base,
// and nothing is checked here: whether the linear address is canonical is the machine's business. A
// violation is #SS through SS, #GP through the others. Types and privilege levels of descriptors are not
// modelled.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include <mmusim/words/address.hpp>
#include <mmusim/words/page_fault.hpp>
#include <mmusim/words/result.hpp>

namespace mmusim {

enum class Segment : std::uint8_t { cs, ss, ds, es, fs, gs };

inline constexpr std::array<std::string_view, 6> kSegmentNames{"cs", "ss", "ds", "es", "fs", "gs"};

struct SegmentRegister {
    std::uint64_t base = 0;
    std::uint32_t limit = 0xffff'ffff;  ///< last valid offset in bytes; expand-down: last invalid one
    bool null = false;                  ///< loaded with a null selector
    bool expand_down = false;           ///< data segment whose valid offsets lie above the limit
    bool big = true;                    ///< D/B: an expand-down segment ends at 2^32 - 1, else at 2^16 - 1

    friend bool operator==(const SegmentRegister&, const SegmentRegister&) = default;
};

struct SegmentRegisters {
    std::array<SegmentRegister, 6> registers{};

    [[nodiscard]] SegmentRegister& operator[](Segment segment)
    {
        return registers[static_cast<std::size_t>(segment)];
    }
    [[nodiscard]] const SegmentRegister& operator[](Segment segment) const
    {
        return registers[static_cast<std::size_t>(segment)];
    }

    friend bool operator==(const SegmentRegisters&, const SegmentRegisters&) = default;
};

/// The linear address of byte 0 of an access of `bytes` bytes at `offset` in `segment`.
[[nodiscard]] Result<LinearAddress, Exception> linear_address(const SegmentRegisters& segments,
                                                              Segment segment, VirtualAddress offset,
                                                              std::uint32_t bytes, bool long_mode);

}  // namespace mmusim
