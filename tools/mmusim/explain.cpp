// SPDX-License-Identifier: Apache-2.0
#include "explain.hpp"

#include <array>

#include <fmt/format.h>

#include <mmusim/pagewalk/walk.hpp>
#include <mmusim/words/pte.hpp>

namespace mmusim::tool {

namespace {

/// Machine memory to look at.
class LookOnlyTables {
public:
    using Space = space::Machine;
    explicit LookOnlyTables(const SparseMemory& memory) : memory_{&memory} {}

    template <class Word>
    [[nodiscard]] Word load(Mfn frame, unsigned offset) const
    {
        return memory_->load<Word>(frame.number(), offset);
    }
    template <class Word>
    [[nodiscard]] static bool exchange(Mfn, unsigned, Word, Word)
    {
        return true;  // not called: the walk leaves accessed and dirty bits alone
    }

private:
    const SparseMemory* memory_;
};

std::string flags_of(std::uint64_t entry, int level, bool is_pdpte, PagingMode mode)
{
    static constexpr std::array<std::pair<std::uint64_t, const char*>, 8> kFlags{{
        {pte::kPresent, "P"},
        {pte::kWritable, "RW"},
        {pte::kUser, "US"},
        {pte::kWriteThrough, "PWT"},
        {pte::kCacheDisable, "PCD"},
        {pte::kAccessed, "A"},
        {pte::kDirty, "D"},
        {pte::kGlobal, "G"},
    }};
    std::string text;
    for (const auto& [bit, name] : kFlags) {
        if ((entry & bit) != 0) text += fmt::format(" {}", name);
    }
    if (!is_pdpte && (entry & pte::kPageSize) != 0) text += level == 1 ? " PAT" : " PS";
    if (mode.has_nx && (entry & pte::kNoExecute) != 0) text += " XD";
    if (mode.has_keys && (entry & pte::kKey) != 0) {
        text += fmt::format(" key {}", (entry & pte::kKey) >> pte::kKeyShift);
    }
    return text;
}

std::string page_size(unsigned shift)
{
    if (shift >= 30) return fmt::format("{} GiB", 1u << (shift - 30));
    if (shift >= 20) return fmt::format("{} MiB", 1u << (shift - 20));
    return fmt::format("{} KiB", 1u << (shift - 10));
}

const char* yes_no(bool yes)
{
    return yes ? "yes" : "no";
}

std::string rights_line(const Rights& rights)
{
    return fmt::format("  rights over the path: user {}, writable {}, execute-disable {}, key {}\n",
                       yes_no(rights.user), yes_no(rights.writable), yes_no(rights.no_execute), rights.key);
}

/// Why rights deny an access, in the order of SDM vol. 3A 4.6.
std::string denial(const Rights& rights, const RightsControl& control, const Access& access)
{
    const bool fetch = access.kind == AccessKind::fetch;
    std::string why;
    const auto add = [&](std::string_view reason) {
        why += fmt::format("{}{}", why.empty() ? "" : "; ", reason);
    };
    if (key_denies(rights, control, access)) {
        add(fmt::format("protection key {} denies it ({} {:#x})", rights.key,
                        rights.user ? "PKRU" : "IA32_PKRS", rights.user ? control.pkru : control.pkrs));
    }
    if (fetch && rights.no_execute) add("execute-disable is set on the path");
    if (access.user_mode && !rights.user) add("a user-mode access to a supervisor page");
    if (access.kind == AccessKind::write && !rights.writable && (access.user_mode || control.write_protect)) {
        add(access.user_mode ? "the page is not writable" : "the page is not writable and CR0.WP is set");
    }
    if (!access.user_mode && rights.user && fetch && control.smep)
        add("SMEP: a supervisor fetch from a user page");
    if (!access.user_mode && rights.user && !fetch && control.smap && (access.implicit || !control.ac)) {
        add(access.implicit ? "SMAP: an implicit access to a user page"
                            : "SMAP: a supervisor access to a user page with EFLAGS.AC clear");
    }
    return why;
}

std::string cause_of(const PageFault& fault, std::string_view denied_because)
{
    switch (fault.cause) {
    case FaultCause::not_present: return fmt::format("the L{} entry is not present", fault.level);
    case FaultCause::reserved_bit: return fmt::format("the L{} entry has a reserved bit set", fault.level);
    case FaultCause::rights: return std::string{denied_because};
    }
    return {};
}

/// A walk in words; `step` adds what a frame number means in its space.
template <PagingMode Mode, class Tables, class Step>
std::string walk_in_words(Tables& tables, const WalkRoot<typename Tables::Space>& root,
                          const WalkRules& rules, const Access& access, Step step)
{
    using Space = typename Tables::Space;
    WalkPath<Space> path;
    const auto result = mmusim::walk<Mode>(tables, root, rules, access, AdBits::leave, path);

    std::string text;
    Rights rights;
    for (int level = Mode.levels; level >= path.lowest; --level) {
        const auto i = static_cast<std::size_t>(level);
        const Pte<Mode> entry{path.entries[i]};
        const bool register_entry = Mode.top_in_registers && level == Mode.levels;
        const std::string place =
            register_entry ? "register" : fmt::format("at {}", path.tables[i].address(path.offsets[i]));
        text += fmt::format(
            "  L{}[{}] {} = {:#x}:{}", level, Mode.index(access.address, level), place, entry.raw(),
            entry.present() ? flags_of(entry.raw(), level, register_entry, Mode) : " not present");
        if (entry.present()) {
            const bool leaf = !register_entry && rules.entries.is_leaf(entry.raw(), level);
            const std::uint64_t to = leaf ? entry.page_address(level) : entry.table_address();
            text += fmt::format(
                " -> {} {}{}", leaf ? page_size(Mode.shift(level)) + " page, frame" : "table, frame",
                Frame<Space>::of(Address<Space>{to}), step(Frame<Space>::of(Address<Space>{to})));
            if (!register_entry) {
                rights.user &= entry.user();
                rights.writable &= entry.writable();
                rights.no_execute |= entry.no_execute();
                if (leaf) rights.key = static_cast<std::uint8_t>(entry.key());
            }
        }
        text += '\n';
    }
    const bool whole_path = result.ok() || result.error().cause == FaultCause::rights;
    if (whole_path) text += rights_line(rights);
    if (result) {
        text += fmt::format("  permitted: {}\n", result->address);
    } else {
        const PageFault& fault = result.error();
        text += fmt::format("  #PF, error code {:#x} ({}): {}\n", fault.error_code,
                            describe_error_code(fault.error_code),
                            cause_of(fault, denial(rights, rules.control, access)));
    }
    return text;
}

template <class Tables, class Step>
std::string walk_in_words(Paging paging, Tables& tables, const WalkRoot<typename Tables::Space>& root,
                          const WalkRules& rules, const Access& access, Step step)
{
    switch (paging) {
    case Paging::off: break;
    case Paging::two_level: return walk_in_words<kTwoLevel>(tables, root, rules, access, step);
    case Paging::pae: return walk_in_words<kPae>(tables, root, rules, access, step);
    case Paging::four_level: return walk_in_words<kFourLevel>(tables, root, rules, access, step);
    case Paging::five_level: return walk_in_words<kFiveLevel>(tables, root, rules, access, step);
    }
    return {};
}

}  // namespace

std::string explain_guest_walk(const Machine& machine, unsigned vcpu, const Access& access)
{
    const GuestContext& guest = machine.guest_context(vcpu);
    if (guest.paging == Paging::off) {
        return fmt::format("guest: paging off\n  permitted: {}\n", access.address);
    }
    GuestMemory memory = machine.memory();
    const auto p2m_step = [&](Gfn gfn) {
        const auto mfn = machine.p2m().mfn_of(gfn);
        return mfn ? fmt::format(", P2M: machine frame {}", *mfn) : std::string{", outside RAM"};
    };
    return fmt::format("guest: {} walk from CR3 {:#x} (addresses and frames are guest-physical)\n",
                       name_of(guest.paging), machine.registers(vcpu).cr3) +
           walk_in_words(guest.paging, memory, guest.root, guest.rules, access, p2m_step);
}

std::string explain_shadow_walk(const Machine& machine, unsigned vcpu, const Access& access)
{
    const ShadowEngine* shadow = machine.shadow();
    if (shadow == nullptr) return {};
    const auto& hardware = machine.hardware_context(vcpu);
    LookOnlyTables tables{machine.table_memory()};
    const auto owner = [&](Mfn mfn) {
        if (const auto id = shadow->cache().shadow_at(mfn); id != kNoShadow) {
            const ShadowKey& key = shadow->cache()[id].key;
            return fmt::format(", the {} of guest frame {}", to_string(key.type), key.frame);
        }
        const auto gfn = machine.p2m().gfn_of(mfn);
        return gfn ? fmt::format(", guest frame {}", *gfn) : std::string{};
    };
    return fmt::format("shadow: {} walk by the hardware (addresses and frames are the machine's)\n",
                       name_of(hardware.paging)) +
           walk_in_words(hardware.paging, tables, hardware.root, hardware.rules, access, owner);
}

}  // namespace mmusim::tool
