// SPDX-License-Identifier: Apache-2.0
//
// Events of mem_access on their way from the hypervisor to a listener (reference/xen.md C5): what an event
// says, what the listener answers, and the ring between them, of a fixed number of requests.
//
//   violation --> [request | request | ... ] --> EventListener::on_event --> EventResponse
//                  EventRing, in frames that are none of the guest's
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string_view>

#include <mmusim/p2m/p2m_type.hpp>
#include <mmusim/words/address.hpp>

namespace mmusim {

/// A violation of the right to a frame.
struct MemAccessEvent {
    unsigned vcpu = 0;
    Gfn gfn;
    unsigned offset = 0;                          ///< in the frame, of the first byte
    std::optional<LinearAddress> linear_address;  ///< whose translation or access it was
    FrameRights rights;                           ///< that were asked for; a write asks for read too
    bool in_guest_tables = false;  ///< by a walk of the guest's tables; else by the access itself
    bool paused = true;            ///< the vCPU waits for the response

    friend bool operator==(const MemAccessEvent&, const MemAccessEvent&) = default;
};

/// "r", "rw", "x": the rights that are there, in this order; "-" for none.
[[nodiscard]] std::string_view name_of(FrameRights rights);

/// What a paused vCPU does next.
enum class EventAction : std::uint8_t {
    resume,           ///< runs on: with a right that has not changed, the access is not done
    emulate,          ///< the instruction is emulated, whatever the rights
    emulate_nowrite,  ///< ... and what it writes is discarded
    single_step,      ///< the instruction runs with the restriction lifted; then it is back
};
inline constexpr std::size_t kEventActions = 4;

/// "resume", "emulate", ...
[[nodiscard]] std::string_view name_of(EventAction action);

struct EventResponse {
    EventAction action = EventAction::resume;
    std::optional<MemAccess> access = {};  ///< the frame's right from now on
};

class EventListener {
public:
    virtual ~EventListener() = default;
    /// Called for each event, in order. The answer to one whose vCPU is not paused changes the right alone.
    virtual EventResponse on_event(const MemAccessEvent& event) = 0;
};

/// A queue of requests in a few frames.
class EventRing {
public:
    /// Bytes of the ring's indices at its begin, and of a request with a vCPU's registers: an assumption, of
    /// the size that Xen's are.
    static constexpr std::size_t kHeaderBytes = 64;
    static constexpr std::size_t kRequestBytes = 384;

    /// In `pages` frames from `first` on: as many requests as fit, a power of two.
    EventRing(Mfn first, unsigned pages);

    [[nodiscard]] Mfn first_frame() const { return first_; }
    [[nodiscard]] unsigned pages() const { return pages_; }
    [[nodiscard]] std::size_t capacity() const { return capacity_; }
    [[nodiscard]] bool full() const { return queue_.size() == capacity_; }
    [[nodiscard]] bool empty() const { return queue_.empty(); }
    /// Not into a full one.
    void put(const MemAccessEvent& event);
    /// Not from an empty one.
    [[nodiscard]] MemAccessEvent take();

private:
    Mfn first_;
    unsigned pages_;
    std::size_t capacity_;
    std::deque<MemAccessEvent> queue_;
};

}  // namespace mmusim
