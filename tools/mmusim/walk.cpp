// SPDX-License-Identifier: Apache-2.0
#include <mmusim/pagewalk/walk.hpp>

#include <stdexcept>

#include <fmt/format.h>

#include <mmusim/replay/replayer.hpp>
#include <mmusim/trace/trace_reader.hpp>

#include "explain.hpp"
#include "text.hpp"
#include "verbs.hpp"

namespace mmusim::tool {

namespace {

/// What the shadow code counted between two points.
void print_events(const ShadowCounters& before, const ShadowCounters& after)
{
    fmt::print("hypervisor:");
    bool any = false;
    for (const ShadowCounterName& counter : kShadowCounterNames) {
        if (counter.gauge || after.*counter.member == before.*counter.member) continue;
        fmt::print(" {} {}", counter.name, after.*counter.member - before.*counter.member);
        any = true;
    }
    fmt::print("{}\n", any ? "" : " not entered");
}

/// Explains one operand, then does it.
void explain_and_run(Machine& machine, unsigned vcpu, const Operand& operand)
{
    const Registers& registers = machine.registers(vcpu);
    const auto located = machine.locate(vcpu, operand);
    if (!located) {
        fmt::print("verdict: the guest sees {}\n", describe(located.error()));
        return;
    }
    const LinearAddress address = *located;
    if (operand.segmented) {
        fmt::print("segmentation: {}:{} -> linear {}\n",
                   kSegmentNames[static_cast<std::size_t>(operand.segmented->segment)],
                   operand.segmented->offset, address);
    }
    fmt::print("{} of {} byte{} at linear {}, {}-mode{}, CPL {}\n", name_of(operand.kind), operand.bytes,
               operand.bytes == 1 ? "" : "s", address, operand.user_mode ? "user" : "supervisor",
               operand.implicit ? " (implicit)" : "", registers.cpl);

    std::vector<Access> pages{{address, operand.kind, operand.user_mode, operand.implicit}};
    if (address.offset_in_page() + operand.bytes > kPageBytes) {
        std::uint64_t next = (address.value() | kPageOffsetMask) + 1;
        if (!registers.long_mode()) next &= 0xffff'ffff;
        pages.push_back(pages.front());
        pages.back().address = LinearAddress{next};
    }
    const bool shadow = machine.shadow() != nullptr;
    const ShadowCounters before = shadow ? machine.shadow()->counters() : ShadowCounters{};
    for (const Access& access : pages) {
        if (pages.size() > 1) fmt::print("page at {}\n", access.address);
        fmt::print("{}", explain_guest_walk(machine, vcpu, access));
        fmt::print("{}", explain_shadow_walk(machine, vcpu, access));
    }
    const auto placed = machine.access(vcpu, operand);
    if (shadow) {
        const ShadowCounters after = machine.shadow()->counters();
        print_events(before, after);
        if (after.fault != before.fault) {
            for (const Access& access : pages)
                fmt::print("after: {}", explain_shadow_walk(machine, vcpu, access));
        }
    }
    if (!placed) {
        fmt::print("verdict: the guest sees {}\n", describe(placed.error()));
        return;
    }
    for (const Placed::Part& part : placed->pages()) {
        const auto mfn = machine.p2m().mfn_of(Gfn::of(part.address));
        fmt::print("verdict: guest-physical {}, {}{}\n", part.address,
                   mfn ? fmt::format("machine {}", mfn->address(part.address.offset_in_page()))
                       : std::string{"outside RAM (device space)"},
                   part.emulated ? ", done by the hypervisor" : "");
    }
}

void explain_record(Replayer& replayer, const Record& record)
{
    if (const auto* access = std::get_if<AccessRecord>(&record)) {
        explain_and_run(replayer.machine(), access->vcpu, replayer.operand_of(*access));
        return;
    }
    const auto* instruction = std::get_if<InstructionRecord>(&record);
    if (instruction == nullptr)
        throw std::runtime_error("the record is not an access; see `mmusim walk --help`");
    explain_and_run(replayer.machine(), instruction->fetch.vcpu, replayer.operand_of(instruction->fetch));
    for (const AccessRecord& operand : instruction->operands) {
        fmt::print("\n");
        explain_and_run(replayer.machine(), operand.vcpu, replayer.operand_of(operand));
    }
}

}  // namespace

int walk(const WalkOptions& options)
{
    if (!options.record && !options.address) {
        throw ConfigError("walk needs --at RECORD, --la ADDRESS, or both");
    }
    ReplayConfig config = options.config.effective();
    config.check = false;
    TraceReader reader{options.trace};
    Replayer replayer{reader.header(), config, builtin_shadow_policies()};
    const std::uint64_t vcpu = options.vcpu.value_or(0);
    if (vcpu >= reader.header().vcpus) {
        throw ConfigError(fmt::format("--vcpu {}: the trace has {} vCPUs", vcpu, reader.header().vcpus));
    }
    Record record;
    bool found = false;
    try {
        while (reader.next(record)) {
            if (options.record && reader.records() == *options.record) {
                found = true;
                break;
            }
            replayer.replay(record);
        }
        if (options.record && !found) {
            throw ConfigError(
                fmt::format("--at {}: the trace has {} records", *options.record, reader.records()));
        }
        fmt::print("{}, {}{}\n", reader.header().name,
                   found ? fmt::format("record {} (line {})", *options.record, reader.place().line)
                         : fmt::format("after record {}", reader.records()),
                   options.address && found ? ", before it" : "");
        if (!options.address) {
            explain_record(replayer, record);
            return kDone;
        }
        AccessRecord access;
        access.kind = options.kind;
        access.address = *options.address;
        access.vcpu = static_cast<std::uint16_t>(vcpu);
        if (options.cpl) access.cpl = static_cast<std::uint8_t>(*options.cpl);
        explain_and_run(replayer.machine(), access.vcpu, replayer.operand_of(access));
    } catch (const RecordError& error) {
        throw TraceError(reader.place(), error.what(), error.key);
    } catch (const ModeMismatch& error) {
        throw TraceError(reader.place(), error.what());
    }
    return kDone;
}

}  // namespace mmusim::tool
