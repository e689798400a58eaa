// SPDX-License-Identifier: Apache-2.0
//
// A guest program on the machine and on the reference machine, step by step. What must hold:
//   native, nested, coherent policies: each fault, error code, CR2, guest-physical address, and each bit of
//                                memory with A and D is the reference's
//   policies with stale levels   each fault is that of a fresh walk. An access that ends otherwise than a
//                                fresh walk is explained by ONE earlier walk whose translation could still
//                                be cached; A and D bits may be missing only after such an access. Where
//                                shadows hold what no access has asked for, the coherence oracle explains
// and audit() finds nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>
#include <mmusim/replay/config.hpp>
#include <mmusim/trace/record.hpp>

#include "support/guest_program.hpp"

namespace stress {

/// How a program is run: a replay's configuration (its P2M layout, policy and so on), and what makes the
/// policy. A clock and expectations have no part in it.
struct Setup {
    mmusim::ReplayConfig config;
    mmusim::ShadowPolicyFactory policy;  ///< not used in the modes native and nested
};

/// One of the catalog's, with a P2M that is the identity and a large pool.
[[nodiscard]] Setup setup_for(const std::string& policy, const mmusim::ShadowPolicyCatalog& catalog);
[[nodiscard]] Setup custom_setup(const mmusim::CustomShadowPolicy& parts);
[[nodiscard]] Setup native_setup();
[[nodiscard]] Setup nested_setup();
/// The options of `mmusim replay` for it.
[[nodiscard]] std::string options_of(const Setup& setup);

/// How often what is not compared in each step is looked at; 0: never. Everything is at the end.
struct Checks {
    unsigned audit_every = 0;
    unsigned memory_every = 0;
    /// Log-dirty is on, and its set is read every so many steps, by turns without and with emptying it. It
    /// must be what has been written since: frames that writes were placed in, those whose content has
    /// changed, and those with other memory behind them. Not in native mode.
    unsigned dirty_every = 0;
};

struct Failure {
    enum class Kind : std::uint8_t { answer, coherence, audit, memory, dirty, crash };
    Kind kind = Kind::answer;
    std::size_t step = 0;  ///< the last that was run
    std::string what;
};

/// What programs came across: a sweep that never meets what it is about shows nothing.
struct Coverage {
    std::uint64_t steps = 0;
    std::uint64_t placed = 0;     // pages that were translated
    std::uint64_t faults = 0;     // #PF of the guest
    std::uint64_t stale = 0;      // pages whose translation was a stale one
    std::uint64_t emulated = 0;   // pages that the hypervisor accessed for the guest
    std::uint64_t to_tables = 0;  // writes to the frames of tables
    std::uint64_t unsynced = 0;   // tables gone out of sync
    std::uint64_t no_room = 0;    // times that the shadow pool was short of pages
    std::uint64_t secure = 0;     // pages accessed in secure frames
    std::uint64_t withheld = 0;   // #PF at a page whose first frame is secure
    std::uint64_t unseen = 0;     // MOV CR3 without an exit
    std::uint64_t remapped = 0;   // changes of the P2M
    std::uint64_t dirty = 0;      // frames that log-dirty named

    void add(const Coverage& more);
};

class Lockstep {
public:
    Lockstep(const mmusim::TraceHeader& header, const Setup& setup);

    /// Where it fails, if it does. Once for each object.
    [[nodiscard]] std::optional<Failure> run(std::span<const mmusim::Record> steps, const Checks& checks);
    [[nodiscard]] Coverage coverage() const;

    /// From now on keeps the steps as a trace's records, with what the reference says as expectations. Of an
    /// access with a permitted stale answer nothing is expected.
    void record_trace() { tracing_ = true; }
    /// With the memory at the end. Call once, after run().
    [[nodiscard]] std::vector<mmusim::Record> take_trace();

private:
    struct Mismatch;
    template <class... T>
    [[noreturn]] static void mismatch(Failure::Kind kind, fmt::format_string<T...> format, T&&... values);

    void step(const mmusim::Record& record);
    void other(const mmusim::Record& record);
    void instruct(const mmusim::Record& record, unsigned vcpu, Operands operands);
    void execute(unsigned vcpu, Operands operands);
    void compare(unsigned vcpu, Operands operands, const Pages& pages);
    void compare_stale_bits(unsigned vcpu, const Pages& pages, std::size_t passed);
    void move_data(Operands operands, const Pages& pages);
    void same_registers(unsigned vcpu);
    void audit();
    void compare_memory();
    void trace(const mmusim::Record& record, unsigned vcpu, Operands operands, const Pages& pages,
               const Outcome& outcome);
    [[nodiscard]] bool explained(unsigned vcpu, reference::Access access, std::uint64_t found) const;
    [[nodiscard]] std::uint64_t machine_word(const reference::Entry& entry) const;
    [[nodiscard]] bool fits(unsigned vcpu) const;

    void log_dirty();
    void note_written(const mmusim::Record& record);
    void note_changed();
    void compare_dirty_set(bool clean);

    /// What log-dirty has to say.
    struct Written {
        struct Frame {
            std::optional<mmusim::Mfn> behind;
            std::array<std::byte, 4096> content{};
        };
        std::set<std::uint64_t> frames;
        std::map<std::uint64_t, Frame> last;  ///< by frame, after the last step
    };

    /// What an instruction came to, by page.
    struct Seen {
        std::optional<std::uint64_t> found;  ///< by the machine
        reference::Walk walk;                ///< a fresh one
        bool fresh = false;                  ///< the answer is a fresh walk's
    };

    Setup setup_;
    bool by_block_;
    reference::Machine reference_;
    mmusim::Machine machine_;
    bool exact_;   ///< nothing may be stale
    bool oracle_;  ///< of what is stale the coherence oracle judges
    mmusim::Execution execution_;
    std::vector<mmusim::Operand> operands_;
    boost::container::static_vector<Seen, 2 * kMaxOperands> seen_;
    Coverage coverage_;
    bool narrow_entries_ = false;  ///< tables with 4-byte entries have been in use
    bool wide_entries_ = false;    ///< with 8-byte ones
    std::optional<Written> written_;
    bool tracing_ = false;
    std::vector<mmusim::Record> trace_;
};

}  // namespace stress
