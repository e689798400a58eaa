// SPDX-License-Identifier: Apache-2.0
//
// What a guest frame is to the hypervisor, and who may access it: Xen's sixteen P2M types and eleven access
// types, by Xen's names (reference/xen.md C1, C5). What each of them permits is a table here, and nowhere
// else; who enforces it (shadows, EPT, NPT) asks.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include <mmusim/words/access.hpp>

namespace mmusim {

/// The numbers are those of the P2M entry's type field.
enum class P2mType : std::uint8_t {
    ram_rw,
    invalid,
    ram_logdirty,  ///< clean RAM: the first write marks it
    ram_ro,        ///< writes are discarded
    mmio_dm,       ///< a hole: the device model emulates
    mmio_direct,   ///< a device's frame
    populate_on_demand,
    grant_map_rw,
    grant_map_ro,
    ram_paging_out,
    ram_paged,
    ram_paging_in,
    ram_shared,  ///< a write makes a copy of one's own
    ram_broken,
    map_foreign,
    ioreq_server,
};
inline constexpr unsigned kP2mTypes = 16;

/// The numbers are Xen's internal ones: up to 7 the bits read 1, write 2, execute 4.
enum class MemAccess : std::uint8_t { n, r, w, rw, x, rx, wx, rwx, rx2rw, n2rwx, r_pw };
inline constexpr unsigned kMemAccessTypes = 11;

[[nodiscard]] std::string_view name_of(P2mType type);
[[nodiscard]] std::string_view name_of(MemAccess access);
[[nodiscard]] std::optional<P2mType> parse_p2m_type(std::string_view name);
[[nodiscard]] std::optional<MemAccess> parse_mem_access(std::string_view name);

/// Rights to a guest frame.
struct FrameRights {
    bool read = false;
    bool write = false;
    bool execute = false;

    [[nodiscard]] constexpr bool permits(AccessKind kind) const
    {
        return kind == AccessKind::read ? read : kind == AccessKind::write ? write : execute;
    }
    friend constexpr FrameRights operator&(FrameRights a, FrameRights b)
    {
        return {a.read && b.read, a.write && b.write, a.execute && b.execute};
    }
    friend bool operator==(FrameRights, FrameRights) = default;
};

/// What the type alone leaves of them in a second-level table (EPT, NPT).
[[nodiscard]] constexpr FrameRights rights_of(P2mType type)
{
    switch (type) {
    case P2mType::ram_rw:
    case P2mType::mmio_direct: return {true, true, true};
    case P2mType::ram_logdirty:
    case P2mType::ram_ro:
    case P2mType::ram_shared: return {true, false, true};
    case P2mType::grant_map_rw:
    case P2mType::map_foreign:
    case P2mType::ioreq_server: return {true, true, false};
    case P2mType::grant_map_ro: return {true, false, false};
    case P2mType::invalid:
    case P2mType::mmio_dm:
    case P2mType::populate_on_demand:
    case P2mType::ram_paging_out:
    case P2mType::ram_paged:
    case P2mType::ram_paging_in:
    case P2mType::ram_broken: break;
    }
    return {};
}

/// What the access type leaves of them; of `rx2rw` and `n2rwx` before they convert.
[[nodiscard]] constexpr FrameRights rights_of(MemAccess access)
{
    switch (access) {
    case MemAccess::rx2rw: return {true, false, true};
    case MemAccess::n2rwx: return {};
    case MemAccess::r_pw: return {true, false, false};
    default: break;
    }
    const auto bits = static_cast<unsigned>(access);
    return {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
}

/// Whether a walk of the guest's tables may set accessed and dirty bits in a table of such a frame.
[[nodiscard]] constexpr bool permits_walk_writes(MemAccess access)
{
    return rights_of(access).write || access == MemAccess::r_pw;
}

/// Whether an entry of this type has a machine frame that the guest's accesses reach.
[[nodiscard]] constexpr bool has_frame(P2mType type)
{
    switch (type) {
    case P2mType::invalid:
    case P2mType::mmio_dm:
    case P2mType::populate_on_demand:
    case P2mType::ram_paged:
    case P2mType::ram_paging_in:
    case P2mType::ram_broken: return false;
    default: return true;
    }
}

/// Nothing is behind it: accesses go to the device model.
[[nodiscard]] constexpr bool is_hole(P2mType type)
{
    return type == P2mType::invalid || type == P2mType::mmio_dm;
}

/// Its content is in a pager's hands.
[[nodiscard]] constexpr bool is_paged_out(P2mType type)
{
    return type == P2mType::ram_paged || type == P2mType::ram_paging_in;
}

/// The guest may not write it, though it is there.
[[nodiscard]] constexpr bool is_read_only(P2mType type)
{
    return type == P2mType::ram_logdirty || type == P2mType::ram_ro || type == P2mType::grant_map_ro ||
           type == P2mType::ram_shared;
}

/// A write has no effect.
[[nodiscard]] constexpr bool discards_writes(P2mType type)
{
    return type == P2mType::ram_ro || type == P2mType::grant_map_ro;
}

/// Changed only by those who made it (reference/xen.md C3: -EPERM, and the domain ends).
[[nodiscard]] constexpr bool is_special(P2mType type)
{
    return type == P2mType::grant_map_rw || type == P2mType::grant_map_ro || type == P2mType::map_foreign ||
           type == P2mType::mmio_direct;
}

/// What of a bulk change of type (log-dirty) concerns.
[[nodiscard]] constexpr bool changes_in_bulk(P2mType type)
{
    return type == P2mType::ram_rw || type == P2mType::ram_logdirty || type == P2mType::ioreq_server;
}

}  // namespace mmusim
