// SPDX-License-Identifier: Apache-2.0
//
// Cuts a guest program that fails down to steps none of which can be left out, and prints it as a trace.
#pragma once

#include <string>

#include "support/guest_program.hpp"
#include "support/lockstep.hpp"

namespace stress {

struct Shrunk {
    GuestProgram program;
    Failure failure;
};

/// Leaves out halves, quarters, … single steps as long as what remains fails, then operands of instructions.
/// The same program and setup give the same result. `failure`: how the whole program fails.
[[nodiscard]] Shrunk shrink(const GuestProgram& program, const Setup& setup, const Failure& failure);

/// Writes the program as a trace, with what the reference machine expects of it.
void write_trace(const std::string& path, const GuestProgram& program, const Setup& setup,
                 const std::string& name);
/// What replays the trace as it failed here.
[[nodiscard]] std::string replay_command(const std::string& path, const Setup& setup, const Failure& failure);

}  // namespace stress
