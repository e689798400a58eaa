// SPDX-License-Identifier: Apache-2.0
#include "recorder.hpp"

#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <stdexcept>

namespace process_workload {

namespace {

MachineConfig machine_of(const TraceHeader& header)
{
    MachineConfig config;
    config.cpuid = header.cpuid;
    config.ram = header.ram;
    config.mode = TranslationMode::native;
    return config;
}

/// The kernel here does nothing that a CPU refuses.
void must_succeed(const std::optional<Exception>& exception)
{
    if (exception) throw std::logic_error("the guest kernel got " + describe(*exception));
}

}  // namespace

Recorder::Recorder(const std::string& path, const TraceHeader& header)
    : machine_{machine_of(header)}, writer_{path, header}
{
}

void Recorder::write(const Record& record)
{
    writer_.write(record);
    ++records_;
}

void Recorder::page(Gfn frame, unsigned width, std::vector<std::pair<std::uint32_t, std::uint64_t>> entries)
{
    std::array<std::byte, kPageBytes> content{};
    for (const auto& [index, value] : entries) {
        std::memcpy(content.data() + std::size_t{index} * width, &value, width);
    }
    machine_.poke(frame.address(), content);
    write(PageRecord{frame, width, std::move(entries)});
}

void Recorder::start(const Registers& registers)
{
    if (machine_.set_registers(0, registers)) throw std::logic_error("the CPU refuses these registers");
    SetRecord set;
    set.cr0 = registers.cr0;
    set.cr3 = registers.cr3;
    set.cr4 = registers.cr4;
    set.efer = registers.efer;
    set.cpl = registers.cpl;
    write(set);
}

std::optional<Exception> Recorder::access(AccessRecord request)
{
    Operand operand;
    operand.address = LinearAddress{request.address};
    operand.bytes = request.bytes;
    operand.kind = request.kind;
    operand.user_mode = !request.implicit && machine_.registers(0).cpl == 3;
    operand.implicit = request.implicit;
    const auto placed = machine_.access(0, operand);
    if (!placed) {
        const Exception& exception = placed.error();
        if (exception.vector != Vector::page_fault) must_succeed(exception);
        request.fault = ExpectedFault{exception.vector, exception.error_code, exception.address.value()};
        write(request);
        ++page_faults_;
        return exception;
    }
    request.gpa = placed->parts[0].address.value();
    if (placed->count > 1) request.gpa2 = placed->parts[1].address.value();
    if (request.kind == AccessKind::write && !request.content.empty()) {
        machine_.store(*placed, {request.content.data(), request.content.size()});
    }
    if (request.kind == AccessKind::read && request.bytes <= sizeof found_) {
        request.content.resize(request.bytes);
        machine_.load(*placed, {request.content.data(), request.content.size()});
        found_ = 0;
        std::memcpy(&found_, request.content.data(), request.content.size());
    }
    write(request);
    return {};
}

Content Recorder::content_of(Gfn frame) const
{
    Content content(kPageBytes, std::byte{});
    machine_.peek(frame.address(), {content.data(), content.size()});
    return content;
}

void Recorder::mov_cr3(std::uint64_t value)
{
    must_succeed(machine_.mov_cr3(0, value));
    RegisterWriteRecord record;
    record.target = RegisterWriteRecord::Target::cr3;
    record.value = value;
    write(record);
}

void Recorder::invlpg(std::uint64_t address)
{
    must_succeed(machine_.invlpg(0, LinearAddress{address}));
    InvlpgRecord record;
    record.address = address;
    write(record);
}

void Recorder::set_cpl(std::uint8_t cpl)
{
    machine_.set_cpl(0, cpl);
    RegisterWriteRecord record;
    record.target = RegisterWriteRecord::Target::cpl;
    record.value = cpl;
    write(record);
}

void Recorder::mark(std::string phase)
{
    write(MarkRecord{std::move(phase)});
}

}  // namespace process_workload
