// SPDX-License-Identifier: Apache-2.0
//
// Replays a trace on a machine, record by record: accesses are translated and done, registers loaded,
// expectations compared, everything counted. An access counts once, however often its instruction is
// started again.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <mmusim/machine/machine.hpp>
#include <mmusim/replay/config.hpp>
#include <mmusim/replay/statistics.hpp>
#include <mmusim/trace/record.hpp>
#include <mmusim/trace/trace_error.hpp>

namespace mmusim {

/// A record that makes no sense on the machine as it stands (a register value that no CPU holds, a
/// linear address that is too wide, a mode that does not fit). Knows the key, not the place.
struct RecordError : std::runtime_error {
    RecordError(const std::string& message, std::string json_key)
        : std::runtime_error{message}, key{std::move(json_key)}
    {
    }
    std::string key;
};

/// An expectation that did not hold.
struct Mismatch {
    std::uint64_t record = 0;  ///< 1 is the first after the header
    std::string expected;
    std::string happened;
};

/// A translation that nothing permits: some event should have removed it from a cache.
struct CoherenceViolation {
    std::uint64_t record = 0;  ///< 1 is the first after the header
    std::string text;
};

/// A hazard of shadow paging that the configuration brings about.
struct Hazard {
    std::uint64_t record = 0;  ///< 1 is the first after the header
    std::string text;
};

/// What `--audit` found.
struct AuditFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Replayer {
public:
    static constexpr std::size_t kMismatchesKept = 10;

    /// Throws UnknownPolicy, CpuProfileError or LayoutError.
    Replayer(const TraceHeader& header, const ReplayConfig& config, const ShadowPolicyCatalog& catalog);

    /// Replays one record. Throws RecordError, and AuditFailure where an audit is due and finds something.
    void replay(const Record& record);
    /// From now on `observer` is told what the shadow engine does, skipped records left out; null: nobody is.
    /// In native mode there is nothing to tell.
    void observe(ShadowObserver* observer);
    /// The record under way, or replayed last; 1 is the first after the header, 0: none yet.
    [[nodiscard]] std::uint64_t record() const { return record_; }
    /// Whether the limit of the configuration has been reached.
    [[nodiscard]] bool finished() const;
    /// Ends the last phase. Call once, after the last record.
    void finish();

    /// Of the records counted: those beyond `skip`.
    [[nodiscard]] const Statistics& total() const { return total_; }
    [[nodiscard]] const std::vector<Phase>& phases() const { return phases_; }
    /// The first ones.
    [[nodiscard]] const std::vector<Mismatch>& mismatches() const { return mismatches_; }

    /// The first ones.
    [[nodiscard]] const std::vector<CoherenceViolation>& violations() const { return violations_; }

    /// The first ones.
    [[nodiscard]] const std::vector<Hazard>& hazards() const { return hazards_; }

    /// Whether the trace has spoken of mem_access.
    [[nodiscard]] bool mem_access_used() const { return mem_access_used_; }

    [[nodiscard]] Machine& machine() { return machine_; }
    [[nodiscard]] const Machine& machine() const { return machine_; }

    /// The operand that an access record stands for on the machine as it is now.
    [[nodiscard]] Operand operand_of(const AccessRecord& access) const;

private:
    /// Answers all events alike.
    class Listener : public EventListener {
    public:
        /// Nothing: the frame is rwx from then on.
        explicit Listener(std::optional<EventAction> action) : action_{action} {}
        EventResponse on_event(const MemAccessEvent&) override
        {
            if (action_) return {*action_, std::nullopt};
            return {EventAction::resume, MemAccess::rwx};
        }

    private:
        std::optional<EventAction> action_;
    };

    void replay_record(const AccessRecord& record);
    void replay_record(const InstructionRecord& record);
    void replay_record(const SetRecord& record);
    void replay_record(const RegisterWriteRecord& record);
    void replay_record(const InvlpgRecord& record);
    void replay_record(const InvpcidRecord& record);
    void replay_record(const PageRecord& record);
    void replay_record(const PokeRecord& record);
    void replay_record(const ExpectMemoryRecord& record);
    void replay_record(const ResetRecord& record);
    void replay_record(const MarkRecord& record);
    void replay_record(const ShadowBlowRecord& record);
    void replay_record(const P2mSetRecord& record);
    void replay_record(const P2mClearRecord& record);
    void replay_record(const LogDirtyRecord& record);
    void replay_record(const MemAccessRecord& record);
    void replay_record(const SecureFramesRecord& record);
    void replay_record(const SecureModeRecord& record);
    void replay_record(const EndRecord& record);

    /// Throws where there is no hypervisor that could do what the record says.
    void need_hypervisor(std::string_view op) const;
    void need_shadows(std::string_view op) const;
    /// Throws where there is no memory behind the frame, as the P2M says now.
    void need_ram(Gfn frame, std::string_view key) const;
    void change_p2m(Gfn first, std::uint64_t count, P2mType type, std::optional<MemAccess> access,
                    std::optional<Mfn> mfn);
    /// The first record `mem_access` since the header or a reset: the ring, and its listener.
    void begin_mem_access();
    /// Checks the event that the access was to raise, and takes it from those that its instruction raised.
    void check_event(const AccessRecord& access);
    void count(AccessKind kind);
    /// Counts, completes and checks one access whose translation is known.
    void complete(const AccessRecord& access, const Placed& placed);
    void fail(const AccessRecord& access, const Exception& exception);
    /// Of the 8 bytes at `at`: bits that are clear because of permitted stale translations.
    [[nodiscard]] std::uint64_t left_unset(GuestPhysical at) const;
    void check_placed(const AccessRecord& access, const Placed& placed);
    void check_content(const AccessRecord& access, const Placed& placed);
    void check_exception(const std::optional<ExpectedFault>& expected,
                         const std::optional<Exception>& happened);
    /// Counts an expectation; `describe` gives what was expected and what happened, if it did not hold.
    template <class Describe>
    void check(bool holds, Describe describe);
    /// What the machine has counted since its last reset.
    [[nodiscard]] Statistics counted_by_machine() const;
    /// Everything counted so far, skipped records and resets included.
    [[nodiscard]] Statistics counted() const;
    void end_phase();
    void collect_violations();
    void collect_hazards();

    ReplayConfig config_;
    TraceHeader header_;
    Machine machine_;
    bool checking_ = false;
    ShadowObserver* observer_ = nullptr;
    std::uint64_t record_ = 0;           ///< number of the record under way
    Statistics running_;                 ///< all that was counted here; the machine's own counters apart
    Statistics before_resets_;           ///< the machine's counters that resets have ended
    std::optional<Statistics> skipped_;  ///< what had been counted when skipping ended
    Statistics phase_start_;
    Statistics total_;
    std::string phase_name_;
    bool phase_has_records_ = false;
    std::vector<Phase> phases_;
    std::vector<Mismatch> mismatches_;
    std::vector<CoherenceViolation> violations_;
    Listener listener_;
    bool has_hazards_ = false;  ///< the configuration can have them
    std::vector<Hazard> hazards_;
    Execution execution_;
    std::vector<Operand> operands_;
    bool mem_access_begun_ = false;       ///< since the last reset
    bool mem_access_used_ = false;        ///< in this replay
    std::vector<MemAccessEvent> raised_;  ///< by the record under way, as far as nobody expected them
};

}  // namespace mmusim
