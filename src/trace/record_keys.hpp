// SPDX-License-Identifier: Apache-2.0
//
// The names that stand in records: keys and ops. The lookups compare in place with the JSON text, where
// a name ends with its quote; the first character leaves one to seven candidates.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <type_traits>

namespace mmusim::trace {

// clang-format off
enum class Key : std::uint8_t {
    op, la, va, seg, size, value, bytes, rmw, implicit, cpl, vcpu, gap, gpa, gpa2, fault, cr2, mem,
    cr0, cr3, cr4, efer, ac, pkru, pkrs, segments, msr, type, pcid,
    cs, ss, ds, es, fs, gs, base, limit, null, expand_down, big,
    gfn, gfns, width, entries, ignore, name, records,
    mfn, count, access, action, expect, listener, required,
    default_all,  // its name is "default", a word of the language
    event, kind, rights,
    unknown,
};

inline constexpr std::size_t kKeys = static_cast<std::size_t>(Key::unknown);
inline constexpr std::array<std::string_view, kKeys> kKeyNames{
    "op", "la", "va", "seg", "size", "value", "bytes", "rmw", "implicit", "cpl", "vcpu", "gap", "gpa", "gpa2",
    "fault", "cr2", "mem",
    "cr0", "cr3", "cr4", "efer", "ac", "pkru", "pkrs", "segments", "msr", "type", "pcid",
    "cs", "ss", "ds", "es", "fs", "gs", "base", "limit", "null", "expand_down", "big",
    "gfn", "gfns", "width", "entries", "ignore", "name", "records",
    "mfn", "count", "access", "action", "expect", "listener", "required", "default",
    "event", "kind", "rights",
};
// clang-format on
static_assert(kKeyNames[static_cast<std::size_t>(Key::mem)] == "mem");
static_assert(kKeyNames[static_cast<std::size_t>(Key::pcid)] == "pcid");
static_assert(kKeyNames[static_cast<std::size_t>(Key::big)] == "big");
static_assert(kKeyNames[static_cast<std::size_t>(Key::default_all)] == "default");
static_assert(kKeyNames[static_cast<std::size_t>(Key::rights)] == "rights");

[[nodiscard]] constexpr std::string_view name_of(Key key)
{
    return kKeyNames[static_cast<std::size_t>(key)];
}

/// A set of keys.
using KeySet = std::uint64_t;
static_assert(kKeys < 64);

[[nodiscard]] constexpr KeySet bit(Key key)
{
    return KeySet{1} << static_cast<unsigned>(key);
}
[[nodiscard]] constexpr KeySet keys(std::initializer_list<Key> list)
{
    KeySet set = 0;
    for (const Key key : list) set |= bit(key);
    return set;
}

/// Whether the JSON string that starts at `text` (after its quote) is `name`.
[[nodiscard]] inline bool is_name(const char* text, std::string_view name)
{
    return std::memcmp(text, name.data(), name.size()) == 0 && text[name.size()] == '"';
}

/// The first of the candidates that starts at `text`, else `unknown`. Templates, so that each comparison
/// is of a known length.
template <auto... kCandidates>
[[nodiscard]] inline auto first_of(const char* text)
{
    using Name = std::common_type_t<decltype(kCandidates)...>;
    Name found = Name::unknown;
    static_cast<void>(((is_name(text, name_of(kCandidates)) && (found = kCandidates, true)) || ...));
    return found;
}

/// The key that starts at `text`, after its quote. kTextPadding bytes can be read.
[[nodiscard]] inline Key key_at(const char* text)
{
    using enum Key;
    switch (text[0]) {
    case 'a': return first_of<ac, access, action>(text);
    case 'b': return first_of<bytes, base, big>(text);
    case 'c': return first_of<cpl, cr2, cr3, cr0, cr4, cs, count>(text);
    case 'd': return first_of<ds, default_all>(text);
    case 'e': return first_of<efer, entries, event, es, expand_down, expect>(text);
    case 'f': return first_of<fault, fs>(text);
    case 'g': return first_of<gpa, gap, gfn, gpa2, gs, gfns>(text);
    case 'i': return first_of<ignore, implicit>(text);
    case 'k': return first_of<kind>(text);
    case 'l': return first_of<la, limit, listener>(text);
    case 'm': return first_of<mem, msr, mfn>(text);
    case 'n': return first_of<name, null>(text);
    case 'o': return first_of<op>(text);
    case 'p': return first_of<pkru, pkrs, pcid>(text);
    case 'r': return first_of<rmw, records, required, rights>(text);
    case 's': return first_of<size, seg, segments, ss>(text);
    case 't': return first_of<type>(text);
    case 'v': return first_of<value, vcpu, va>(text);
    case 'w': return first_of<width>(text);
    default: return unknown;
    }
}

// clang-format off
enum class Op : std::uint8_t {
    read, write, fetch, insn,
    set, mov_cr0, mov_cr3, mov_cr4, wrmsr, wrpkru, cpl, ac, invlpg, invpcid,
    page, poke, expect_memory, reset, mark, shadow_blow, p2m_set, p2m_clear, log_dirty, mem_access,
    secure_frames, secure_mode, end,
    unknown,
};

inline constexpr std::size_t kOps = static_cast<std::size_t>(Op::unknown);
inline constexpr std::array<std::string_view, kOps> kOpNames{
    "read", "write", "fetch", "insn",
    "set", "mov_cr0", "mov_cr3", "mov_cr4", "wrmsr", "wrpkru", "cpl", "ac", "invlpg", "invpcid",
    "page", "poke", "expect_memory", "reset", "mark", "shadow_blow", "p2m_set", "p2m_clear", "log_dirty",
    "mem_access", "secure_frames", "secure_mode", "end",
};
// clang-format on
static_assert(kOpNames[static_cast<std::size_t>(Op::invpcid)] == "invpcid");
static_assert(kOpNames[static_cast<std::size_t>(Op::end)] == "end");

[[nodiscard]] constexpr std::string_view name_of(Op op)
{
    return kOpNames[static_cast<std::size_t>(op)];
}

/// Ops of the format that this version does not replay yet.
inline constexpr std::array<std::string_view, 10> kLaterOps{
    "frame",   "mmu_update", "update_va_mapping", "mmuext",     "multicall",
    "set_gdt", "set_ldt",    "update_descriptor", "guest_mode", "expect_frame",
};

/// The op that starts at `text`, after its quote. kTextPadding bytes can be read.
[[nodiscard]] inline Op op_at(const char* text)
{
    using enum Op;
    switch (text[0]) {
    case 'a': return first_of<ac>(text);
    case 'c': return first_of<cpl>(text);
    case 'e': return first_of<expect_memory, end>(text);
    case 'f': return first_of<fetch>(text);
    case 'i': return first_of<insn, invlpg, invpcid>(text);
    case 'l': return first_of<log_dirty>(text);
    case 'm': return first_of<mov_cr3, mov_cr0, mov_cr4, mark, mem_access>(text);
    case 'p': return first_of<poke, page, p2m_set, p2m_clear>(text);
    case 'r': return first_of<read, reset>(text);
    case 's': return first_of<set, shadow_blow, secure_mode, secure_frames>(text);
    case 'w': return first_of<write, wrmsr, wrpkru>(text);
    default: return unknown;
    }
}

}  // namespace mmusim::trace
