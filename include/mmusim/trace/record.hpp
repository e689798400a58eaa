// SPDX-License-Identifier: Apache-2.0
//
// The records of a trace, format version 1 (docs/trace-format.md). A record is one of the structs of
// `Record`; the header comes first and is not a record. Everything here is checked for form when it is
// read (ranges, sizes, unknown keys); whether a value makes sense on the machine is the replayer's
// business.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <boost/container/small_vector.hpp>

#include <mmusim/p2m/frame_layout.hpp>
#include <mmusim/p2m/guest_ram.hpp>
#include <mmusim/p2m/p2m_type.hpp>
#include <mmusim/words/access.hpp>
#include <mmusim/words/address.hpp>
#include <mmusim/words/cpuid.hpp>
#include <mmusim/words/page_fault.hpp>
#include <mmusim/words/segment.hpp>

namespace mmusim {

struct TraceHeader {
    enum class Fetch : std::uint8_t { instruction, block };  ///< what one fetch record stands for

    std::string name;
    unsigned vcpus = 1;
    Cpuid cpuid;
    std::vector<GfnRange> ram;
    P2mLayout p2m;
    Fetch fetch = Fetch::instruction;
    std::string meta;  ///< the object as JSON text, kept as it is; empty if absent

    friend bool operator==(const TraceHeader&, const TraceHeader&) = default;
};

/// Bytes that a write stores or that a read is expected to find, in memory order.
using Content = boost::container::small_vector<std::byte, 8>;

/// The exception that a record expects.
struct ExpectedFault {
    Vector vector = Vector::page_fault;  ///< page_fault, general_protection or stack_fault
    std::uint32_t error_code = 0;        ///< of a page fault
    std::optional<std::uint64_t> cr2;    ///< of a page fault; absent: not compared

    friend bool operator==(const ExpectedFault&, const ExpectedFault&) = default;
};

/// The mem_access event that an access is expected to raise.
struct MemAccessEventExpectation {
    Gfn gfn;
    FrameRights rights;  ///< those that the access asked for: one at least

    friend bool operator==(const MemAccessEventExpectation&, const MemAccessEventExpectation&) = default;
};

inline constexpr std::uint32_t kMaxAccessBytes = 4096;

/// `read`, `write`, `fetch`.
struct AccessRecord {
    AccessKind kind = AccessKind::read;
    bool rmw = false;
    bool implicit = false;
    std::optional<Segment> segment;  ///< set: `address` is an offset in it; else a linear address
    std::optional<std::uint8_t> cpl;
    std::uint16_t vcpu = 0;
    std::uint32_t bytes = 1;  ///< 1 to 4096
    std::uint64_t address = 0;
    std::uint64_t gap = 0;  ///< instructions retired since the vCPU's previous record
    Content content;        ///< `value` or `bytes`: empty, or exactly `bytes` long
    std::optional<std::uint64_t> gpa;
    std::optional<std::uint64_t> gpa2;
    std::optional<ExpectedFault> fault;
    std::optional<MemAccessEventExpectation> event;

    friend bool operator==(const AccessRecord&, const AccessRecord&) = default;
};

/// `insn`: a fetch and its memory operands, restarted as one.
struct InstructionRecord {
    AccessRecord fetch;
    std::vector<AccessRecord> operands;

    friend bool operator==(const InstructionRecord&, const InstructionRecord&) = default;
};

/// A segment register in `set`: keys not named keep their value.
struct SegmentUpdate {
    Segment segment = Segment::ds;
    std::optional<std::uint64_t> base;
    std::optional<std::uint32_t> limit;
    std::optional<bool> null;
    std::optional<bool> expand_down;
    std::optional<bool> big;

    friend bool operator==(const SegmentUpdate&, const SegmentUpdate&) = default;
};

/// `set`: registers loaded silently.
struct SetRecord {
    std::uint16_t vcpu = 0;
    std::optional<std::uint64_t> cr0, cr3, cr4, efer;
    std::optional<std::uint32_t> pkru, pkrs;
    std::optional<std::uint8_t> cpl;
    std::optional<bool> ac;
    std::vector<SegmentUpdate> segments;

    friend bool operator==(const SetRecord&, const SetRecord&) = default;
};

/// `mov_cr0`, `mov_cr3`, `mov_cr4`, `wrmsr`, `wrpkru`, `cpl`, `ac`: one register written by the guest.
struct RegisterWriteRecord {
    enum class Target : std::uint8_t { cr0, cr3, cr4, msr, pkru, cpl, ac };
    Target target = Target::cr3;
    std::uint16_t vcpu = 0;
    std::uint32_t msr = 0;  ///< of `wrmsr`
    std::uint64_t value = 0;
    std::uint64_t gap = 0;
    std::optional<ExpectedFault> fault;

    friend bool operator==(const RegisterWriteRecord&, const RegisterWriteRecord&) = default;
};

struct InvlpgRecord {
    std::uint16_t vcpu = 0;
    std::uint64_t address = 0;
    std::uint64_t gap = 0;
    std::optional<ExpectedFault> fault;

    friend bool operator==(const InvlpgRecord&, const InvlpgRecord&) = default;
};

struct InvpcidRecord {
    std::uint16_t vcpu = 0;
    std::uint64_t type = 0;
    std::uint64_t pcid = 0;
    std::uint64_t address = 0;
    std::uint64_t gap = 0;
    std::optional<ExpectedFault> fault;

    friend bool operator==(const InvpcidRecord&, const InvpcidRecord&) = default;
};

/// `page`: the content of one guest frame; entries not listed are 0.
struct PageRecord {
    Gfn gfn;
    unsigned width = 8;                                            ///< bytes of an entry, 4 or 8
    std::vector<std::pair<std::uint32_t, std::uint64_t>> entries;  ///< index, value

    friend bool operator==(const PageRecord&, const PageRecord&) = default;
};

/// `poke`: memory changed from outside the guest.
struct PokeRecord {
    GuestPhysical gpa;
    unsigned bytes = 8;  ///< 1, 2, 4 or 8, within one frame
    std::uint64_t value = 0;

    friend bool operator==(const PokeRecord&, const PokeRecord&) = default;
};

struct ExpectMemoryRecord {
    GuestPhysical gpa;
    unsigned bytes = 8;  ///< 1, 2, 4 or 8, within one frame
    std::uint64_t value = 0;
    std::uint64_t ignore = 0;  ///< bits that are not compared

    friend bool operator==(const ExpectMemoryRecord&, const ExpectMemoryRecord&) = default;
};

struct ResetRecord {
    std::string name;

    friend bool operator==(const ResetRecord&, const ResetRecord&) = default;
};

struct MarkRecord {
    std::string name;

    friend bool operator==(const MarkRecord&, const MarkRecord&) = default;
};

/// `shadow_blow`: the hypervisor drops every shadow.
struct ShadowBlowRecord {
    friend bool operator==(const ShadowBlowRecord&, const ShadowBlowRecord&) = default;
};

/// `p2m_set`: what stands behind `count` guest frames from `gfn` on.
struct P2mSetRecord {
    Gfn gfn;
    std::uint64_t count = 1;
    std::optional<Mfn> mfn;  ///< of the first; absent: each keeps the machine frame that it has
    P2mType type = P2mType::ram_rw;
    std::optional<MemAccess> access;  ///< absent: the current default

    friend bool operator==(const P2mSetRecord&, const P2mSetRecord&) = default;
};

/// `p2m_clear`: nothing stands behind them any more.
struct P2mClearRecord {
    Gfn gfn;
    std::uint64_t count = 1;

    friend bool operator==(const P2mClearRecord&, const P2mClearRecord&) = default;
};

/// `log_dirty`: the hypervisor's record of the frames that the guest has written.
struct LogDirtyRecord {
    enum class Action : std::uint8_t { enable, peek, clean, disable };
    Action action = Action::enable;
    std::optional<std::vector<Gfn>> expect;  ///< of `peek` and `clean`: the dirty frames; each stands once

    friend bool operator==(const LogDirtyRecord&, const LogDirtyRecord&) = default;
};
inline constexpr std::array<std::string_view, 4> kLogDirtyActionNames{"enable", "peek", "clean", "disable"};

/// `mem_access`: what the listener is, and rights to frames; settings take effect first.
struct MemAccessRecord {
    enum class Target : std::uint8_t {
        none,            ///< settings only
        frames,          ///< `count` of them from `gfn` on
        domain_default,  ///< frames that come later
    };
    Target target = Target::none;
    Gfn gfn;
    std::uint64_t count = 1;
    std::optional<MemAccess> access;  ///< of a target; absent: what the default is now
    std::optional<bool> attached;     ///< the listener; absent: stays as it is
    std::optional<bool> required;     ///< the domain ends where an event has no listener; absent: as it is

    friend bool operator==(const MemAccessRecord&, const MemAccessRecord&) = default;
};

/// `secure_frames`: from now on these, and no others, are the frames that only a vCPU in secure mode may have
/// mapped.
struct SecureFramesRecord {
    std::vector<Gfn> gfns;

    friend bool operator==(const SecureFramesRecord&, const SecureFramesRecord&) = default;
};

/// `secure_mode`: a vCPU enters or leaves secure mode.
struct SecureModeRecord {
    std::uint16_t vcpu = 0;
    bool on = false;

    friend bool operator==(const SecureModeRecord&, const SecureModeRecord&) = default;
};

/// `end`: the last record of a whole trace. The reader has checked `records` against its own count.
struct EndRecord {
    std::uint64_t records = 0;

    friend bool operator==(const EndRecord&, const EndRecord&) = default;
};

using Record = std::variant<AccessRecord, InstructionRecord, SetRecord, RegisterWriteRecord, InvlpgRecord,
                            InvpcidRecord, PageRecord, PokeRecord, ExpectMemoryRecord, ResetRecord,
                            MarkRecord, ShadowBlowRecord, P2mSetRecord, P2mClearRecord, LogDirtyRecord,
                            MemAccessRecord, SecureFramesRecord, SecureModeRecord, EndRecord>;

}  // namespace mmusim
