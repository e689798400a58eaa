// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <map>
#include <string>

#include <fmt/format.h>

#include <mmusim/trace/trace_reader.hpp>

#include "text.hpp"
#include "verbs.hpp"

namespace mmusim::tool {

namespace {

/// The record's `op`.
struct OpName {
    std::string operator()(const AccessRecord& access) const { return std::string{name_of(access.kind)}; }
    std::string operator()(const InstructionRecord&) const { return "insn"; }
    std::string operator()(const SetRecord&) const { return "set"; }
    std::string operator()(const RegisterWriteRecord& write) const
    {
        static constexpr std::array<const char*, 7> kNames{"mov_cr0", "mov_cr3", "mov_cr4", "wrmsr",
                                                           "wrpkru",  "cpl",     "ac"};
        return kNames[static_cast<std::size_t>(write.target)];
    }
    std::string operator()(const InvlpgRecord&) const { return "invlpg"; }
    std::string operator()(const InvpcidRecord&) const { return "invpcid"; }
    std::string operator()(const PageRecord&) const { return "page"; }
    std::string operator()(const PokeRecord&) const { return "poke"; }
    std::string operator()(const ExpectMemoryRecord&) const { return "expect_memory"; }
    std::string operator()(const ResetRecord&) const { return "reset"; }
    std::string operator()(const MarkRecord&) const { return "mark"; }
    std::string operator()(const ShadowBlowRecord&) const { return "shadow_blow"; }
    std::string operator()(const P2mSetRecord&) const { return "p2m_set"; }
    std::string operator()(const P2mClearRecord&) const { return "p2m_clear"; }
    std::string operator()(const LogDirtyRecord&) const { return "log_dirty"; }
    std::string operator()(const MemAccessRecord&) const { return "mem_access"; }
    std::string operator()(const SecureFramesRecord&) const { return "secure_frames"; }
    std::string operator()(const SecureModeRecord&) const { return "secure_mode"; }
    std::string operator()(const EndRecord&) const { return "end"; }
};

}  // namespace

int trace_info(const std::string& trace)
{
    TraceReader reader{trace};
    std::map<std::string, std::uint64_t> ops;
    Record record;
    while (reader.next(record)) ++ops[std::visit(OpName{}, record)];

    const TraceHeader& header = reader.header();
    const auto line = [](std::string_view name, const std::string& text) {
        fmt::print("{:<16}{}\n", name, text);
    };
    const auto plural = [](std::uint64_t count) { return count == 1 ? "" : "s"; };
    line("name", header.name);
    line("guest", fmt::format("hvm, {} vCPU{}, {}, {} physical address bits", header.vcpus,
                              plural(header.vcpus), header.cpuid.vendor == Vendor::intel ? "intel" : "amd",
                              header.cpuid.physical_address_bits));
    std::string features;
    for (const auto& [name, member] : kFeatureNames) {
        if (!(header.cpuid.*member)) continue;
        if (!features.empty()) features += ' ';
        features += name;
    }
    line("features", features.empty() ? "none" : features);
    std::uint64_t frames = 0;
    for (const GfnRange& range : header.ram) frames += range.count;
    line("RAM", fmt::format("{} frames of 4 KiB in {} range{}", grouped(frames), header.ram.size(),
                            plural(header.ram.size())));
    line("P2M layout", to_string(header.p2m));
    line("fetch record", header.fetch == TraceHeader::Fetch::block ? "a translated block" : "an instruction");
    if (!header.meta.empty()) line("meta", header.meta);
    line("records", grouped(reader.records()));
    for (const auto& [name, count] : ops) fmt::print("  {:<14}{:>14}\n", name, grouped(count));
    return kDone;
}

int trace_validate(const std::string& trace)
{
    TraceReader reader{trace};
    Record record;
    bool ended = false;
    while (reader.next(record)) ended = std::holds_alternative<EndRecord>(record);
    fmt::print("{}: {} records, well-formed{}\n", trace, grouped(reader.records()),
               ended ? ", whole" : "; without an end record it may have been cut between two lines");
    return kDone;
}

}  // namespace mmusim::tool
