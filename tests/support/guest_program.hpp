// SPDX-License-Identifier: Apache-2.0
//
// Guest programs as data: a trace's header and records without expectations, in an order that makes sense for
// any subset of them, so that a program that fails can be cut down. What a record does to the guest is stated
// here on the reference machine alone.
//
// Random ones are made by running the reference while they grow: over a small RAM, tables hold mostly
// sensible entries: tables shared between address spaces and between levels, entries that reference their own
// table, superpages of all sizes, frames outside RAM, reserved bits now and then, A and D clear or set. The
// steps are accesses of all kinds, alone or several as one instruction, stores to tables through translated
// addresses, loads of control registers (some of them refused), invalidations, mode changes, and changes from
// outside.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <boost/container/static_vector.hpp>

#include <mmusim/trace/record.hpp>

#include "support/reference_machine.hpp"

namespace stress {

struct GuestProgram {
    mmusim::TraceHeader header;  ///< its P2M is whoever's who runs it
    std::vector<mmusim::Record> steps;
};

inline constexpr std::uint64_t kTables = 10;  ///< frames 0 to 9 of a random program hold tables

/// A program of `steps` steps after those that write its first tables and registers. All vCPUs begin in the
/// mode `home`; in every second program none leaves it, in the others they come back to it.
[[nodiscard]] GuestProgram random_program(reference::Paging home, std::uint64_t seed, unsigned steps);

/// The reference machine after reset.
[[nodiscard]] reference::Machine reference_for(const mmusim::TraceHeader& header);

/// A step that is no access. The vector with which it is refused; of a `set`: any.
std::optional<unsigned> perform(reference::Machine& machine, const mmusim::Record& step);

/// The part of an operand that lies in one page.
struct PagePart {
    reference::Access access;
    std::uint32_t bytes = 0;
    unsigned operand = 0;
};
inline constexpr std::size_t kMaxOperands = 4;

/// An access, or the accesses of one instruction, as pages.
struct Pages {
    boost::container::static_vector<PagePart, 2 * kMaxOperands> parts;
    std::optional<unsigned> misplaced;  ///< the first operand with an address that is not canonical
};
using Operands = std::span<const mmusim::AccessRecord* const>;
using OperandList = boost::container::static_vector<const mmusim::AccessRecord*, kMaxOperands>;

/// The operands of an access or an instruction; none of any other record.
[[nodiscard]] OperandList operands_of(const mmusim::Record& step);
[[nodiscard]] Pages pages_of(const reference::Machine& machine, unsigned vcpu, Operands operands);

/// What the guest sees of it: walks in order, up to the one that faults.
struct Outcome {
    boost::container::static_vector<reference::Walk, 2 * kMaxOperands> walks;  ///< of pages translated
    std::optional<reference::Fault> fault;                                     ///< of the next one

    [[nodiscard]] std::uint64_t address(const Pages& pages, std::size_t page) const;
};
[[nodiscard]] Outcome outcome_of(const reference::Machine& machine, unsigned vcpu, const Pages& pages);
/// Does it: accessed and dirty bits, what may be cached, stores.
void complete(reference::Machine& machine, unsigned vcpu, Operands operands, const Pages& pages,
              const Outcome& outcome);

}  // namespace stress
