// SPDX-License-Identifier: Apache-2.0
//
// Random guest programs: memory with page tables of one or two paging modes in it, the registers that each
// vCPU starts with, and a stream of events. A program is made without being run: its stores to tables are of
// values around the ones that the tables began with, and from time to time the tables are put right from
// outside. So whoever plays it gets the same events; what they come to is for those to agree on.
//
// The guest: several address spaces in each mode, with pages of all sizes that the mode has, global ones,
// user's and supervisor's, read-only and no-execute ones, protection keys, aliases, holes, entries with
// reserved bits, a table that is an entry of itself, and a window through which the tables can be written.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "model/hardware_model.hpp"
#include "support/reference_machine.hpp"

namespace model {

struct Event {
    enum class Kind {
        access,
        instruction,  // several accesses as one
        mov_cr0,
        mov_cr3,
        mov_cr4,
        wrmsr,
        wrpkru,
        invlpg,
        invpcid,
        cpl,
        ac,
        set,   // registers, from outside
        poke,  // memory, from outside
    };
    Kind kind = Kind::access;
    unsigned cpu = 0;
    std::uint64_t gap = 0;  // instructions before it
    // access, invlpg, invpcid; of a poke the guest-physical address
    std::uint64_t address = 0;
    unsigned bytes = 1;
    reference::Kind access = reference::Kind::read;
    bool user = false;
    bool implicit = false;
    bool stores = false;      // a write that changes memory: `value`, of at most 8 bytes
    std::uint64_t value = 0;  // what is stored or loaded into the register; of `set` an index of `registers`,
                              // of an instruction one of `instructions`
    std::uint32_t msr = 0;
    std::uint64_t type = 0, pcid = 0;
};

struct Program {
    reference::Features features;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ram;  // first frame, number of frames
    reference::Words memory;
    unsigned cpus = 1;
    std::vector<reference::Cpu> registers;  // the first ones are what the vCPUs start with
    std::vector<std::vector<Operand>> instructions;
    std::vector<Event> events;
};

struct ProgramOptions {
    unsigned events = 1000;
    unsigned max_cpus = 3;
    bool self_maps = true;  // a table that is an entry of itself
    unsigned spread = 1;    // so many times as many small pages, at most 25
};

Program random_program(std::uint64_t seed, const ProgramOptions& options = {});

/// A reference machine with the program's features, memory and registers.
reference::Machine machine_for(const Program& program);
/// What an event came to.
struct Played {
    Outcome outcome;                 // of an access
    Execution execution;             // of an instruction
    std::optional<unsigned> vector;  // why the CPU refused another instruction
};
/// Plays an event on the model; stores change the machine's memory.
Played play(Hardware& hardware, reference::Machine& machine, const Program& program, const Event& event);

}  // namespace model
