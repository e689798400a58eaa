// SPDX-License-Identifier: Apache-2.0
//
// A guest that runs on a native machine and is recorded: each thing that it does is done there and written to
// a trace with what came of it. So every expectation of the trace is what the hardware showed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mmusim/machine/machine.hpp>
#include <mmusim/trace/trace_writer.hpp>

namespace process_workload {

using namespace mmusim;

class Recorder {
public:
    /// Opens the trace. Throws std::system_error where the file can't be written.
    Recorder(const std::string& path, const TraceHeader& header);

    // --- before the guest runs
    void page(Gfn frame, unsigned width, std::vector<std::pair<std::uint32_t, std::uint64_t>> entries);
    void start(const Registers& registers);

    // --- the guest's instructions
    /// `request`: an access without expectations. Done and recorded with what it showed: where it went, or
    /// the exception, which is returned.
    std::optional<Exception> access(AccessRecord request);
    /// What the last read found, if that was at most 8 bytes.
    [[nodiscard]] std::uint64_t found() const { return found_; }
    /// A frame as it is now, to be written elsewhere.
    [[nodiscard]] Content content_of(Gfn frame) const;
    void mov_cr3(std::uint64_t value);
    void invlpg(std::uint64_t address);
    void set_cpl(std::uint8_t cpl);

    void mark(std::string phase);
    void finish() { writer_.finish(); }

    [[nodiscard]] std::uint64_t records() const { return records_; }
    [[nodiscard]] std::uint64_t page_faults() const { return page_faults_; }

private:
    void write(const Record& record);

    Machine machine_;
    TraceWriter writer_;
    std::uint64_t found_ = 0;
    std::uint64_t records_ = 0;
    std::uint64_t page_faults_ = 0;
};

}  // namespace process_workload
