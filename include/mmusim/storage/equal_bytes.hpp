// SPDX-License-Identifier: Apache-2.0
//
// Which of 16 bytes are a given one: the search through the ways of a set.
#pragma once

#include <cstdint>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace mmusim {

inline constexpr unsigned kEqualBytes = 16;

/// Bit i: whether bytes[i] is `value`, for any machine.
[[nodiscard]] inline unsigned equal_bytes_plainly(const std::uint8_t* bytes, std::uint8_t value)
{
    unsigned equal = 0;
    for (unsigned i = 0; i < kEqualBytes; ++i) equal |= (bytes[i] == value ? 1u : 0u) << i;
    return equal;
}

/// The same.
[[nodiscard]] inline unsigned equal_bytes(const std::uint8_t* bytes, std::uint8_t value)
{
#ifdef __SSE2__
    const __m128i there = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(value));
    return static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(there, wanted)));
#else
    return equal_bytes_plainly(bytes, value);
#endif
}

}  // namespace mmusim
