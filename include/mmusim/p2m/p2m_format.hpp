// SPDX-License-Identifier: Apache-2.0
//
// One entry of the P2M, and its bits in the two formats that hardware walks: EPT (SDM vol. 3C 28.3.2, with
// type and access where Xen has them) and NPT, a long-mode pagetable (AMD APM vol. 2, 15.25). Rights that a
// format cannot say are enforced by absence: write without read in EPT, no read in NPT, execute without read
// in NPT.
//
//            63 62     58|57    52|51              12|11 10| 9 8|7 6 5 4 3|2 1 0
//   EPT         access   |  type  | frame            |     | D A|S   memtype|X W R     S: a page above level
//   1 NPT      NX access   |  type  | frame            |     |    |S D A     |U W P
#pragma once

#include <cstdint>

#include <mmusim/p2m/p2m_type.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/pte.hpp>

namespace mmusim {

struct P2mEntry {
    Mfn mfn;  ///< where the type has a frame
    P2mType type = P2mType::mmio_dm;
    MemAccess access = MemAccess::rwx;

    [[nodiscard]] bool has_frame() const { return mmusim::has_frame(type); }
    /// What the guest may do with the frame without an exit.
    [[nodiscard]] FrameRights rights() const { return rights_of(type) & rights_of(access); }
    /// The entry of the frame `frames` further on in the same page.
    [[nodiscard]] P2mEntry at(std::uint64_t frames) const
    {
        return {has_frame() ? mfn + frames : mfn, type, access};
    }
    friend bool operator==(const P2mEntry&, const P2mEntry&) = default;
};

enum class P2mFormat : std::uint8_t {
    ept,
    npt,
    flat,  ///< no tables: a list, for tests and where no hardware walks it
};

namespace ept {
inline constexpr std::uint64_t kRead = 1u << 0;
inline constexpr std::uint64_t kWrite = 1u << 1;
inline constexpr std::uint64_t kExecute = 1u << 2;
inline constexpr std::uint64_t kRights = kRead | kWrite | kExecute;
inline constexpr std::uint64_t kWriteBack = 6u << 3;  ///< memory type
inline constexpr std::uint64_t kPage = 1u << 7;       ///< above level 1: a page, no table
inline constexpr std::uint64_t kAccessed = 1u << 8;
inline constexpr std::uint64_t kDirty = 1u << 9;
}  // namespace ept

/// Where both formats keep what only the hypervisor reads.
inline constexpr unsigned kP2mTypeShift = 52, kP2mAccessShift = 58;

/// In an NPT entry that is not present though it has a frame: all else may be 0.
inline constexpr std::uint64_t kNotNothing = 1u << 11;

/// The entry as bits, for a page of `level`. Nothing is 0; another absent entry keeps its type.
[[nodiscard]] constexpr std::uint64_t encode(P2mFormat format, const P2mEntry& entry, int level)
{
    if (entry == P2mEntry{}) return 0;
    std::uint64_t raw = std::uint64_t{static_cast<unsigned>(entry.type)} << kP2mTypeShift |
                        std::uint64_t{static_cast<unsigned>(entry.access)} << kP2mAccessShift;
    if (!entry.has_frame()) return raw | (level > 1 ? ept::kPage : 0);
    raw |= entry.mfn.address().value();
    const FrameRights rights = entry.rights();
    if (format == P2mFormat::ept) {
        if (rights.read || !rights.write) {
            raw |= (rights.read ? ept::kRead : 0) | (rights.write ? ept::kWrite : 0) |
                   (rights.execute ? ept::kExecute : 0);
        }
        return raw | ept::kWriteBack | (level > 1 ? ept::kPage : 0);
    }
    if (level > 1) raw |= pte::kPageSize;
    if (!rights.read) return raw | kNotNothing;
    return raw | pte::kPresent | pte::kUser | (rights.write ? pte::kWritable : 0) |
           (rights.execute ? 0 : pte::kNoExecute);
}

/// What the hypervisor reads of it.
[[nodiscard]] constexpr P2mEntry decode(std::uint64_t raw)
{
    if (raw == 0) return {};
    return {Mfn{(raw & pte::kFrame) >> kPageShift}, static_cast<P2mType>(raw >> kP2mTypeShift & 0x3f),
            static_cast<MemAccess>(raw >> kP2mAccessShift & 0xf)};
}

/// An entry that references a table. (A page's has `ept::kPage`, which is `pte::kPageSize`.)
[[nodiscard]] constexpr std::uint64_t table_entry(P2mFormat format, Mfn table)
{
    const std::uint64_t flags =
        format == P2mFormat::ept ? ept::kRights : pte::kPresent | pte::kWritable | pte::kUser;
    return table.address().value() | flags;
}
[[nodiscard]] constexpr bool is_table_entry(std::uint64_t raw, int level)
{
    static_assert(ept::kPage == pte::kPageSize);
    return level > 1 && raw != 0 && (raw & ept::kPage) == 0;
}

}  // namespace mmusim
