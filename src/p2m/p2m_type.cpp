// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/p2m_type.hpp>

#include <algorithm>
#include <array>

namespace mmusim {

namespace {

constexpr std::array<std::string_view, kP2mTypes> kTypeNames{
    "ram_rw",       "invalid",        "ram_logdirty",       "ram_ro",
    "mmio_dm",      "mmio_direct",    "populate_on_demand", "grant_map_rw",
    "grant_map_ro", "ram_paging_out", "ram_paged",          "ram_paging_in",
    "ram_shared",   "ram_broken",     "map_foreign",        "ioreq_server"};

constexpr std::array<std::string_view, kMemAccessTypes> kAccessNames{
    "n", "r", "w", "rw", "x", "rx", "wx", "rwx", "rx2rw", "n2rwx", "r_pw"};

template <class Value, std::size_t N>
std::optional<Value> parse(const std::array<std::string_view, N>& names, std::string_view name)
{
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) return std::nullopt;
    return static_cast<Value>(found - names.begin());
}

}  // namespace

std::string_view name_of(P2mType type)
{
    return kTypeNames[static_cast<std::size_t>(type)];
}

std::string_view name_of(MemAccess access)
{
    return kAccessNames[static_cast<std::size_t>(access)];
}

std::optional<P2mType> parse_p2m_type(std::string_view name)
{
    return parse<P2mType>(kTypeNames, name);
}

std::optional<MemAccess> parse_mem_access(std::string_view name)
{
    return parse<MemAccess>(kAccessNames, name);
}

}  // namespace mmusim
