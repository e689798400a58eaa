// SPDX-License-Identifier: Apache-2.0
//
// mem_access of one domain: the rights of its frames, and what a violation leads to (reference/xen.md C5,
// docs/mem-access.md). It decides; who translates (shadows, EPT, NPT) asks it, and makes its own entries
// follow where a right has changed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <mmusim/p2m/access_tracker.hpp>
#include <mmusim/p2m/event_ring.hpp>
#include <mmusim/p2m/p2m_type.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

struct MemAccessCounts {
    std::uint64_t violations = 0;  ///< accesses that their frame's right did not permit
    std::uint64_t converted = 0;   ///< of these: the first write to a frame with rx2rw, or access with n2rwx
    std::uint64_t unheard = 0;     ///< without a listener: the frame became rwx
    std::uint64_t events = 0;
    std::uint64_t in_guest_tables = 0;  ///< of the events: by walks
    std::uint64_t not_paused = 0;       ///< of the events: the vCPU went on
    std::uint64_t ring_full = 0;        ///< vCPUs that waited for a place in the ring
    // What became of accesses whose event the listener has answered; the others were tried again.
    std::uint64_t stopped = 0;  ///< not done
    std::uint64_t emulated = 0;
    std::uint64_t emulated_nowrite = 0;
    std::uint64_t single_steps = 0;

    friend bool operator==(const MemAccessCounts&, const MemAccessCounts&) = default;
};

struct MemAccessCountName {
    std::string_view name;
    std::uint64_t MemAccessCounts::*member;
};
inline constexpr std::array<MemAccessCountName, 11> kMemAccessCountNames{{
    {"violations", &MemAccessCounts::violations},
    {"converted", &MemAccessCounts::converted},
    {"unheard", &MemAccessCounts::unheard},
    {"events", &MemAccessCounts::events},
    {"in_guest_tables", &MemAccessCounts::in_guest_tables},
    {"not_paused", &MemAccessCounts::not_paused},
    {"ring_full", &MemAccessCounts::ring_full},
    {"stopped", &MemAccessCounts::stopped},
    {"emulated", &MemAccessCounts::emulated},
    {"emulated_nowrite", &MemAccessCounts::emulated_nowrite},
    {"single_steps", &MemAccessCounts::single_steps},
}};

class AccessMonitor {
public:
    // --- what the domain has ---
    /// The ring that a listener needs.
    void make_ring(Mfn first, unsigned pages) { ring_.emplace(first, pages); }
    [[nodiscard]] const EventRing* ring() const { return ring_ ? &*ring_ : nullptr; }
    /// From now on `listener` is told of events; it must live until it is detached. False: there is no ring.
    [[nodiscard]] bool attach(EventListener& listener);
    /// It has got every event.
    void detach();
    [[nodiscard]] bool listening() const { return listener_ != nullptr; }
    /// Without a listener a violation ends the domain.
    void set_required(bool required) { required_ = required; }
    [[nodiscard]] bool required() const { return required_; }

    // --- rights ---
    [[nodiscard]] AccessTracker& rights() { return rights_; }
    [[nodiscard]] const AccessTracker& rights() const { return rights_; }
    [[nodiscard]] bool restricts() const { return rights_.restricts(); }
    [[nodiscard]] FrameRights rights_to(Gfn frame) const { return rights_of(rights_.of(frame)); }

    // --- violations ---
    struct Answer {
        enum class Kind : std::uint8_t {
            again,  ///< the frame's right has changed: look once more
            stop,   ///< the access is not done
            grant,  ///< the access is done, whatever the rights
            crash,  ///< the domain ends
        };
        Kind kind = Kind::again;
        EventAction action = EventAction::resume;  ///< of grant: how
        bool event = false;                        ///< there was one
    };
    /// `event`: what was asked for that the frame's right does not permit.
    [[nodiscard]] Answer violated(MemAccessEvent event);
    /// Frames whose right has lost something by conversions and responses since the last call: whoever has
    /// entries for them drops them.
    [[nodiscard]] std::vector<Gfn> take_narrowed() { return std::exchange(narrowed_, {}); }
    /// Whether such a violation may leave the access undone, as far as can be told before.
    [[nodiscard]] bool may_stop(Gfn frame, AccessKind kind) const;
    /// The listener gets the events that it has not got yet.
    void deliver();

    [[nodiscard]] const MemAccessCounts& counts() const { return counts_; }
    /// The events since the last call, in order; once there is a ring.
    [[nodiscard]] std::vector<MemAccessEvent> take_events() { return std::exchange(events_, {}); }

private:
    /// The first one in the ring, told; changes the right as the listener says.
    EventResponse deliver_one();
    void change(Gfn frame, MemAccess access);

    AccessTracker rights_;
    std::optional<EventRing> ring_;
    EventListener* listener_ = nullptr;
    bool required_ = false;
    MemAccessCounts counts_;
    std::vector<MemAccessEvent> events_;
    std::vector<Gfn> narrowed_;
};

}  // namespace mmusim
