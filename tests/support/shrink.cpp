// SPDX-License-Identifier: Apache-2.0
#include "support/shrink.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <mmusim/trace/trace_writer.hpp>

namespace stress {

using namespace mmusim;

namespace {

using Steps = std::vector<Record>;

/// What to look at in each step so that a failure of this kind shows at once.
Checks checks_for(const Failure& failure)
{
    Checks checks;
    if (failure.kind == Failure::Kind::audit) checks.audit_every = 1;
    if (failure.kind == Failure::Kind::memory) checks.memory_every = 1;
    if (failure.kind == Failure::Kind::dirty) checks.dirty_every = 1;
    return checks;
}

class Shrinker {
public:
    Shrinker(const GuestProgram& program, const Setup& setup, const Failure& failure)
        : header_{program.header}
        , setup_{setup}
        , checks_{checks_for(failure)}
        , steps_{program.steps}
        , failure_{failure}
    {
        (void)adopt_if_fails(steps_);
    }

    void shrink()
    {
        for (std::size_t before = steps_.size() + 1; steps_.size() < before;) {
            before = steps_.size();
            for (std::size_t chunk = std::max<std::size_t>(before / 2, 1); chunk > 0; chunk /= 2)
                leave_out(chunk);
            leave_out_operands();
        }
    }
    Shrunk result() { return {{header_, std::move(steps_)}, failure_}; }

private:
    /// Takes the candidate over up to where it fails, if it does.
    bool adopt_if_fails(Steps candidate)
    {
        const std::optional<Failure> failure = Lockstep{header_, setup_}.run(candidate, checks_);
        if (!failure || failure->kind != failure_.kind) return false;
        candidate.resize(std::min(candidate.size(), failure->step + 1));
        steps_ = std::move(candidate);
        failure_ = *failure;
        return true;
    }

    void leave_out(std::size_t chunk)
    {
        // From the end: what comes late matters least to what comes before it.
        for (std::size_t end = steps_.size(); end > 0;) {
            const std::size_t first = end - std::min(end, chunk);
            Steps candidate{steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(first)};
            candidate.insert(candidate.end(), steps_.begin() + static_cast<std::ptrdiff_t>(end),
                             steps_.end());
            (void)adopt_if_fails(std::move(candidate));
            end = std::min(first, steps_.size());
        }
    }

    void leave_out_operands()
    {
        for (std::size_t i = 0; i < steps_.size(); ++i) {
            const auto* instruction = std::get_if<InstructionRecord>(&steps_[i]);
            for (std::size_t k = 0; instruction != nullptr && k < instruction->operands.size();) {
                Steps candidate = steps_;
                auto& operands = std::get<InstructionRecord>(candidate[i]).operands;
                operands.erase(operands.begin() + static_cast<std::ptrdiff_t>(k));
                if (!adopt_if_fails(std::move(candidate))) ++k;
                if (i >= steps_.size()) return;
                instruction = std::get_if<InstructionRecord>(&steps_[i]);
            }
            if (instruction == nullptr) continue;
            // One operand without the instruction.
            Steps candidate = steps_;
            candidate[i] = instruction->operands.empty() ? instruction->fetch : instruction->operands.front();
            if (instruction->operands.size() < 2) (void)adopt_if_fails(std::move(candidate));
        }
    }

    TraceHeader header_;
    Setup setup_;
    Checks checks_;
    Steps steps_;
    Failure failure_;
};

}  // namespace

Shrunk shrink(const GuestProgram& program, const Setup& setup, const Failure& failure)
{
    Shrinker shrinker{program, setup, failure};
    shrinker.shrink();
    return shrinker.result();
}

void write_trace(const std::string& path, const GuestProgram& program, const Setup& setup,
                 const std::string& name)
{
    Lockstep lockstep{program.header, setup};
    lockstep.record_trace();
    (void)lockstep.run(program.steps, {});
    TraceHeader header = program.header;
    header.name = name;
    header.p2m = setup.config.p2m.value();
    TraceWriter writer{path, header};
    for (const Record& record : lockstep.take_trace()) writer.write(record);
    writer.finish();
}

std::string replay_command(const std::string& path, const Setup& setup, const Failure& failure)
{
    std::string text = fmt::format("mmusim replay {} --check {}", path, options_of(setup));
    if (failure.kind == Failure::Kind::coherence) text += " --check-coherence";
    if (failure.kind == Failure::Kind::audit) text += " --audit 1";
    return text;
}

}  // namespace stress
