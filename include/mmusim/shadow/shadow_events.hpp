// SPDX-License-Identifier: Apache-2.0
//
// What the shadow engine does, told event by event to an observer (docs/events.md). Names are those of Xen's
// trace events and path flags (reference/xen.md B18, H4); where it has none, those of its counters.
//
// A page fault that reaches the engine ends in one event, which comes after those of what was done on the
// way. Without an observer an event costs the test of a null pointer, on paths that are slow anyway.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <boost/container/static_vector.hpp>

#include <mmusim/shadow/shadow_type.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/paging_mode.hpp>

namespace mmusim {

enum class ShadowEventKind : std::uint8_t {
    // how a fault ended
    not_shadow,             ///< it is the guest's own
    fixup,                  ///< the entry of the page was set
    link,                   ///< a lower table was linked (Populate::step)
    mmio,                   ///< a device's address: the hypervisor does the access
    fast_propagate,         ///< a mark told that the page is not present: the guest's own
    fast_mmio,              ///< a mark told of a device's address
    false_fast_path,        ///< the mark was gone
    emulate,                ///< the hypervisor does the access
    emulate_unshadow_user,  ///< a user's write to a table: it is none any more
    domf_dying,             ///< the domain was ended (also outside a fault)
    // on the way
    emulated_write,   ///< another write under emulation than the one that faulted
    emulate_further,  ///< a further instruction was tried in the exit of an emulated one
    wrmap_bf,         ///< a search through all shadows for writable mappings
    prealloc_unpin,
    prealloc_unhook,
    resync_full,
    resync_only,  ///< entries alone: the table stays out of sync
    unsync,
    unsync_evict,
    oos_fixup_add,
    oos_fixup_evict,
    early_unshadow,
    unshadow,
    promote,  ///< a shadow was made
    demote,   ///< ... destroyed
    // verbs
    update_cr3,
    invlpg,
    // mem_access
    mem_access,  ///< an event was put into the ring; the fault ends with it, or goes on
};
inline constexpr std::size_t kShadowEventKinds = 28;

/// "not_shadow", ...
[[nodiscard]] std::string_view name_of(ShadowEventKind kind);

/// What was done on the way to an event. Bits of ShadowEvent::flags, in Xen's order.
enum class PathFlag : std::uint8_t {
    set_ad,             ///< the walk set accessed or dirty bits of the guest
    l1_get_ref,         ///< a level-1 entry came to map a page
    l1_put_ref,         ///< ... mapped one before
    l2_propagate,       ///< a guest entry of level 2 was propagated
    set_changed,        ///< the emulated write changed a shadow entry
    set_flush,          ///< ... so that TLBs have to be flushed
    set_error,          ///< ... to what no table has: it was given up
    demote,             ///< a shadow was destroyed
    promote,            ///< ... made
    wrmap,              ///< writable mappings of a table were searched
    wrmap_guess_found,  ///< ... and one found by a guess
    wrmap_brute_force,  ///< ... or looked for in all shadows
    early_unshadow,     ///< a second zero was written to a table: it was given up
    prealloc_unhook,    ///< entries of running roots were given up for room
    unsync,             ///< a table was let out of sync
    oos_fixup_add,      ///< a writable mapping of such a table was remembered
    oos_fixup_evict,    ///< ... in the place of another
};
inline constexpr std::size_t kPathFlags = 17;

/// "set_ad", ...
[[nodiscard]] std::string_view name_of(PathFlag flag);

/// One event. What does not concern it is not set.
struct ShadowEvent {
    /// An entry of a shadow.
    struct Entry {
        ShadowType type;
        Gfn frame;  ///< that the shadow is of
        unsigned index = 0;
        std::uint64_t value = 0;
    };
    /// What an emulated write stored; `bytes` is valid during the call.
    struct Write {
        GuestPhysical at;
        std::optional<GuestPhysical> second;  ///< its part in another page
        std::vector<std::byte> bytes;
    };

    ShadowEventKind kind = ShadowEventKind::fixup;
    std::optional<unsigned> vcpu;
    std::optional<LinearAddress> address;  ///< that faulted, or that INVLPG names
    /// Levels of the guest's tables; 2 too while its paging is off: the engine's identity table has as many.
    std::optional<unsigned> guest_levels;
    std::optional<std::uint32_t> error_code;        ///< of the fault, as the hardware gave it
    std::optional<std::uint32_t> guest_error_code;  ///< not_shadow, fast_propagate: as the guest gets it
    std::optional<Gfn> frame;  ///< the guest's page; of an event about a table, the table's frame
    boost::container::static_vector<Gfn, kMaxLevels>
        tables;                                ///< of the walk, top down; update_cr3: the roots
    std::optional<std::uint64_t> guest_entry;  ///< the last that the walk read, as it was read
    std::optional<ShadowType> type;            ///< of the shadow that it is about
    std::optional<Entry> entry;                ///< of a shadow, that was set or that it is about
    std::optional<unsigned> prefetched;        ///< fixup: further entries that were filled
    std::optional<int> level;                  ///< of a table
    std::string_view how;                      ///< docs/events.md; may be empty
    std::optional<Write> write;
    std::uint32_t flags = 0;  ///< since the fault or verb began, by PathFlag

    [[nodiscard]] bool has(PathFlag flag) const { return (flags >> static_cast<unsigned>(flag) & 1) != 0; }
};

/// Is told each event, in order.
class ShadowObserver {
public:
    virtual ~ShadowObserver() = default;
    virtual void on_event(const ShadowEvent& event) = 0;
};

/// The engine's end of it.
class ShadowEvents {
public:
    /// Null: nobody is told.
    void observe(ShadowObserver* observer)
    {
        complete();
        observer_ = observer;
    }
    [[nodiscard]] bool observed() const { return observer_ != nullptr; }

    /// A fault or another verb begins: what follows is on its way.
    void begin(std::optional<unsigned> vcpu, Paging paging, std::optional<LinearAddress> address = {},
               std::optional<std::uint32_t> error_code = {});
    /// A step of an instruction under emulation: goes on where its fault ended, or begins.
    void begin_emulated(unsigned vcpu, Paging paging, std::optional<LinearAddress> address = {});
    void flag(PathFlag flag) { flags_ |= std::uint32_t{1} << static_cast<unsigned>(flag); }
    /// Tells an event; `fill` sets what belongs to its kind.
    template <class Fill>
    void tell(ShadowEventKind kind, Fill fill)
    {
        if (observer_ == nullptr) [[likely]]
            return;
        ShadowEvent event = begun_;
        event.kind = kind;
        fill(event);
        send(event);
    }
    /// The same at the end of a fault whose access is a write to `at` that comes as an emulated store.
    template <class Fill>
    void tell_with_store(ShadowEventKind kind, GuestPhysical at, Fill fill)
    {
        if (observer_ == nullptr) [[likely]]
            return;
        held_ = begun_;
        held_->kind = kind;
        held_at_ = at;
        fill(*held_);
    }
    /// The store of these parts was done: ends the event that waits for it, or is one of its own.
    void stored(const ShadowEvent::Write& write);
    /// Tells of a write whose store has not come.
    void complete();

private:
    void send(ShadowEvent& event);

    ShadowObserver* observer_ = nullptr;
    ShadowEvent begun_;
    std::optional<ShadowEvent> held_;
    GuestPhysical held_at_;
    std::uint32_t flags_ = 0;
};

}  // namespace mmusim
