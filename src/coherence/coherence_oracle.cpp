// SPDX-License-Identifier: Apache-2.0
#include <mmusim/coherence/coherence_oracle.hpp>

#include <algorithm>

#include <fmt/format.h>

#include <boost/unordered/unordered_flat_map.hpp>

#include "coherence/path_search.hpp"
#include "coherence/table_journal.hpp"
#include "coherence/time.hpp"
#include "coherence/vcpu_history.hpp"

namespace mmusim {

using namespace coherence;

namespace {

using FreshPath = WalkPath<space::GuestPhysical>;
using Fresh = Result<Translation<space::GuestPhysical>, PageFault>;

Fresh fresh_walk(Paging paging, GuestMemory& memory, const WalkRoot<space::GuestPhysical>& root,
                 const WalkRules& rules, const Access& access, FreshPath& path)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return walk<kTwoLevel>(memory, root, rules, access, AdBits::leave, path);
    case Paging::pae: return walk<kPae>(memory, root, rules, access, AdBits::leave, path);
    case Paging::four_level: return walk<kFourLevel>(memory, root, rules, access, AdBits::leave, path);
    case Paging::five_level: break;
    }
    return walk<kFiveLevel>(memory, root, rules, access, AdBits::leave, path);
}

std::uint8_t root_role(Paging paging, const EntryRules& rules)
{
    switch (paging) {
    case Paging::off:
    case Paging::two_level: return rules.leaf_bit[2] != 0 ? role::kShort2Large : role::kShort2;
    case Paging::pae: return role::long_level(kPae.root_level());
    case Paging::four_level: return role::long_level(kFourLevel.root_level());
    case Paging::five_level: break;
    }
    return role::long_level(kFiveLevel.root_level());
}

bool same_rules(const EntryRules& a, const EntryRules& b)
{
    return a.leaf_bit == b.leaf_bit && a.reserved_in_table == b.reserved_in_table &&
           a.reserved_in_leaf == b.reserved_in_leaf;
}

/// All of it in two words that differ if anything does.
std::array<std::uint64_t, 2> packed(const RightsControl& control)
{
    std::uint64_t flags = 0;
    for (const bool flag : {control.write_protect, control.smep, control.smap, control.ac, control.user_keys,
                            control.supervisor_keys, control.nxe_format}) {
        flags = flags << 1 | (flag ? 1 : 0);
    }
    return {flags, std::uint64_t{control.pkru} << 32 | control.pkrs};
}

/// Accesses since then, that with number `access` included.
std::uint64_t age_of(Time time, std::uint64_t access)
{
    return access - std::min(access, accesses_before(time));
}

std::string ago(std::uint64_t accesses)
{
    return fmt::format("{} access{} ago", accesses, accesses == 1 ? "" : "es");
}

/// The accessed and dirty bits that the walk would set in the entry of `level`.
std::uint64_t missing_bits(const FreshPath& path, int level, AccessKind kind)
{
    const std::uint64_t raw = path.entries[static_cast<std::size_t>(level)];
    std::uint64_t wanted = pte::kAccessed;
    if (level == path.lowest && kind == AccessKind::write) wanted |= pte::kDirty;
    return wanted & ~raw;
}

}  // namespace

StalenessCounts& StalenessCounts::operator+=(const StalenessCounts& more)
{
    checked += more.checked;
    not_present += more.not_present;
    rights += more.rights;
    address += more.address;
    dirty += more.dirty;
    accessed += more.accessed;
    age_sum += more.age_sum;
    oldest = std::max(oldest, more.oldest);
    violations += more.violations;
    return *this;
}

StalenessCounts& StalenessCounts::operator-=(const StalenessCounts& less)
{
    checked -= less.checked;
    not_present -= less.not_present;
    rights -= less.rights;
    address -= less.address;
    dirty -= less.dirty;
    accessed -= less.accessed;
    age_sum -= less.age_sum;
    violations -= less.violations;
    return *this;
}

struct CoherenceOracle::State {
    struct Vcpu {
        Paging paging = Paging::off;
        WalkRules rules;
        WalkRoot<space::GuestPhysical> root;
        std::uint32_t rules_index = 0;
        std::uint64_t pcid = 0;
        bool globals = false;
        VcpuHistory history;
    };
    /// What a walk depends on besides memory, and its number.
    struct View {
        Paging paging = Paging::off;
        std::uint32_t rules = 0;
        std::array<std::uint64_t, 2> control{};
        WalkRoot<space::GuestPhysical> root;
        std::uint64_t number = kPagingOff;
    };

    State(const GuestMemory& guest, std::size_t count, bool for_all, std::size_t sweep_limit,
          detail::FrameFilter& watched)
        : memory{guest}
        , journal{guest, watched}
        , vcpus(count)
        , rules(1)
        , views(std::min<std::size_t>(16 + 4 * count, 64))
        , stale_for_all{for_all}
        , sweep_after{sweep_limit}
        , next_sweep{sweep_limit}
    {
    }

    [[nodiscard]] Time tick(const StalenessCounts& counts)
    {
        return time = std::max(time + 1, counts.checked << kEventBits);
    }
    /// An invalidation right after a load of the same vCPU is part of it: they are one event.
    [[nodiscard]] Time flush_time(unsigned vcpu, const StalenessCounts& counts)
    {
        const bool of_the_load =
            loaded_by == vcpu && loaded_at == time && counts.checked << kEventBits <= time;
        return of_the_load ? time : tick(counts);
    }
    [[nodiscard]] std::uint32_t index_of(const EntryRules& wanted);
    [[nodiscard]] std::uint64_t number_of(const View& wanted);
    [[nodiscard]] std::size_t remembered() const;
    void sweep(detail::FrameFilter& watched);
    void note_unset(const FreshPath& path, const Vcpu& vcpu, AccessKind kind, detail::FrameFilter& watched);

    GuestMemory memory;
    TableJournal journal;
    std::vector<Vcpu> vcpus;
    std::vector<EntryRules> rules;  ///< each that there was; the first is of no mode
    std::vector<View> views;        ///< the last ones
    std::size_t next_view = 0;
    std::uint64_t last_number = kPagingOff;
    Time time = 0;
    bool stale_for_all;
    Time loaded_at = 0;  ///< the last load of registers
    unsigned loaded_by = 0;
    std::size_t sweep_after;
    std::size_t next_sweep;
    /// By address of an 8-byte word.
    boost::unordered_flat_map<std::uint64_t, std::uint64_t> unset;
};

CoherenceOracle::CoherenceOracle(const GuestMemory& memory, unsigned vcpus, bool stale_for_all,
                                 std::size_t sweep_after)
    : view_of_(vcpus, kPagingOff)
    , agreements_(kAgreements)
    , state_{std::make_unique<State>(memory, vcpus, stale_for_all, sweep_after, watched_)}
{
}

CoherenceOracle::~CoherenceOracle() = default;

void CoherenceOracle::reset()
{
    counts_ = {};
    // Numbers of views are not used again, so no agreement from before holds.
    std::fill(view_of_.begin(), view_of_.end(), kPagingOff);
    State& state = *state_;
    state.journal.reset();
    for (State::Vcpu& vcpu : state.vcpus) vcpu = State::Vcpu{};
    std::fill(state.views.begin(), state.views.end(), State::View{});
    state.time = state.loaded_at = 0;
    state.next_sweep = state.sweep_after;
    state.unset.clear();
}

// --- what happens ------------------------------------------------------------------------------------

std::uint32_t CoherenceOracle::State::index_of(const EntryRules& wanted)
{
    const auto found = std::find_if(rules.begin() + 1, rules.end(),
                                    [&](const EntryRules& known) { return same_rules(known, wanted); });
    const auto index = static_cast<std::uint32_t>(found - rules.begin());
    if (found == rules.end()) rules.push_back(wanted);
    return index;
}

std::uint64_t CoherenceOracle::State::number_of(const View& wanted)
{
    if (wanted.paging == Paging::off) return kPagingOff;
    for (const View& view : views) {
        if (view.paging == wanted.paging && view.rules == wanted.rules && view.control == wanted.control &&
            view.root == wanted.root) {
            return view.number;
        }
    }
    View& slot = views[next_view++ % views.size()];
    slot = wanted;
    slot.number = ++last_number;
    return slot.number;
}

void CoherenceOracle::context(unsigned index, Paging paging, const WalkRules& rules,
                              const WalkRoot<space::GuestPhysical>& root, std::uint64_t pcid, bool globals)
{
    State& state = *state_;
    State::Vcpu& vcpu = state.vcpus[index];
    const bool same_entries = vcpu.paging == paging && vcpu.pcid == pcid && vcpu.globals == globals &&
                              vcpu.root == root && same_rules(vcpu.rules.entries, rules.entries);
    vcpu.rules = rules;
    if (!same_entries) {
        vcpu.paging = paging;
        vcpu.root = root;
        vcpu.rules_index = paging == Paging::off ? 0 : state.index_of(rules.entries);
        vcpu.pcid = pcid;
        vcpu.globals = globals;
        const Time now = state.tick(counts_);
        state.loaded_at = now;
        state.loaded_by = index;
        const bool registers = paging == Paging::pae;
        Root from{paging, registers ? Gfn{} : root.frame, {}};
        if (registers) from.pdptes = root.pdptes;
        vcpu.history.context(now, from, {now, paging, vcpu.rules_index}, pcid, globals);
        if (registers) {
            for (const std::uint64_t pdpte : root.pdptes) {
                if ((pdpte & pte::kPresent) == 0) continue;
                state.journal.enroll(Gfn{(pdpte & pte::kFrame) >> kPageShift},
                                     root_role(paging, rules.entries), now);
            }
        } else if (paging != Paging::off) {
            state.journal.enroll(root.frame, root_role(paging, rules.entries), now);
        }
    }
    view_of_[index] = state.number_of({paging, vcpu.rules_index, packed(rules.control), root, 0});
}

void CoherenceOracle::invalidated_page(unsigned vcpu, std::uint64_t pcid, LinearAddress address,
                                       bool with_globals, std::string_view name)
{
    state_->vcpus[vcpu].history.invalidated_page(state_->tick(counts_), pcid, address, with_globals, name);
    sweep_if_due();
}

void CoherenceOracle::invalidated_pcid(unsigned vcpu, std::uint64_t pcid, std::string_view name)
{
    state_->vcpus[vcpu].history.invalidated_pcid(state_->flush_time(vcpu, counts_), pcid, name);
    sweep_if_due();
}

void CoherenceOracle::invalidated_all(unsigned vcpu, bool with_globals, std::string_view name)
{
    state_->vcpus[vcpu].history.invalidated_all(state_->flush_time(vcpu, counts_), with_globals, name);
    sweep_if_due();
}

void CoherenceOracle::table_store(GuestPhysical at, std::span<const std::byte> bytes)
{
    if (state_->memory.has(Gfn::of(at))) table_change(at, bytes);  // else nothing takes it
}

void CoherenceOracle::table_change(GuestPhysical at, std::span<const std::byte> bytes)
{
    State& state = *state_;
    if (!state.unset.empty()) {
        // What is stored counts now, whatever walks should have done before.
        const std::uint64_t end = at.value() + bytes.size();
        for (std::uint64_t word = at.value() & ~std::uint64_t{7}; word < end; word += 8) {
            const auto found = state.unset.find(word);
            if (found == state.unset.end()) continue;
            for (std::uint64_t byte = std::max(word, at.value()); byte < std::min(word + 8, end); ++byte) {
                found->second &= ~(std::uint64_t{0xff} << (byte - word) * 8);
            }
            if (found->second == 0) state.unset.erase(found);
        }
    }
    sweep_if_due();  // before: the journal and memory are at one now
    if (state.journal.store(at, bytes, state.tick(counts_))) ++changes_;
}

std::size_t CoherenceOracle::State::remembered() const
{
    std::size_t sum = journal.changes();
    for (const Vcpu& vcpu : vcpus) sum += vcpu.history.remembered();
    return sum;
}

std::size_t CoherenceOracle::remembered() const
{
    return state_->journal.changes();
}

void CoherenceOracle::sweep_if_due()
{
    State& state = *state_;
    if (state.remembered() < state.next_sweep) return;
    state.sweep(watched_);
    ++changes_;  // tables that are not watched any more may be a view's that comes back
    // So that the work is in proportion to what is remembered in between.
    state.next_sweep = 2 * state.remembered() + state.sweep_after;
}

void CoherenceOracle::State::sweep(detail::FrameFilter& watched)
{
    std::vector<TableJournal::Root> roots;
    std::vector<Interval> visible;
    Time globals_since = kForever;
    for (Vcpu& vcpu : vcpus) {
        vcpu.history.sweep();
        globals_since = std::min(globals_since, vcpu.history.globals_since());
        for (const auto& [pcid, space] : vcpu.history.spaces()) {
            const Time since = vcpu.history.last_flush(pcid).time;
            const Interval reach{space.current().first(since), space.current().end()};
            if (reach.start >= reach.end) continue;
            visible.push_back(reach);
            for (const auto& [root, times] : space.roots()) {
                if (times.end() <= since) break;
                // All rules that the mode was used with: which of them then is of no importance.
                for (const EntryRules& known : rules) {
                    const std::uint8_t as = root_role(root.paging, known);
                    if (root.paging != Paging::pae) {
                        roots.push_back({root.frame, as});
                        continue;
                    }
                    for (const std::uint64_t pdpte : root.pdptes) {
                        if ((pdpte & pte::kPresent) == 0) continue;
                        roots.push_back({Gfn{(pdpte & pte::kFrame) >> kPageShift}, as});
                    }
                }
            }
        }
    }
    // Disjoint, ascending.
    std::sort(visible.begin(), visible.end(),
              [](const Interval& a, const Interval& b) { return a.start < b.start; });
    std::size_t last = 0;
    for (std::size_t i = 1; i < visible.size(); ++i) {
        if (visible[i].start <= visible[last].end) {
            visible[last].end = std::max(visible[last].end, visible[i].end);
        } else {
            visible[++last] = visible[i];
        }
    }
    if (!visible.empty()) visible.resize(last + 1);
    journal.sweep(roots, visible, globals_since, ++time);
    for (const auto& [word, bits] : unset) watched.add(Gfn::of(GuestPhysical{word}));
}

// --- the question ------------------------------------------------------------------------------------

void CoherenceOracle::State::note_unset(const FreshPath& path, const Vcpu& vcpu, AccessKind kind,
                                        detail::FrameFilter& watched)
{
    for (int level = mode_of(vcpu.paging).root_level(); level >= path.lowest; --level) {
        const std::uint64_t bits = missing_bits(path, level, kind);
        if (bits == 0) continue;
        const auto i = static_cast<std::size_t>(level);
        const std::uint64_t at = path.tables[i].address(path.offsets[i]).value();
        unset[at & ~std::uint64_t{7}] |= bits << at % 8 * 8;
        watched.add(path.tables[i]);
    }
}

std::uint64_t CoherenceOracle::left_unset(GuestPhysical word) const
{
    const auto found = state_->unset.find(word.value());
    if (found == state_->unset.end()) return 0;
    const auto now = state_->memory.load<std::uint64_t>(Gfn::of(word), word.offset_in_page());
    return found->second & ~now;
}

namespace {

/// Everything that a report tells.
struct Report {
    unsigned vcpu;
    std::uint64_t pcid;
    const Answer* answer;
    const Fresh* fresh;
    const FreshPath* fresh_path;
    int root_level;
    std::uint64_t number;  ///< of the access, among those checked

    [[nodiscard]] std::string age(Time time) const { return ago(age_of(time, number)); }
    [[nodiscard]] std::string given() const;
    [[nodiscard]] std::string expected() const;
    [[nodiscard]] std::string change(const Path& path, const TableJournal& journal) const;
    [[nodiscard]] std::string due(const Path& path, const VcpuHistory& history) const;
};

std::string entry_name(int level, Gfn table, unsigned offset, unsigned bytes)
{
    return fmt::format("L{} entry {:#x} of table frame {}", level, offset / bytes, table);
}

std::string Report::given() const
{
    const Access& access = answer->access;
    const std::string_view mode =
        access.implicit ? "implicit supervisor" : (access.user_mode ? "user-mode" : "supervisor-mode");
    return fmt::format("vCPU {}, PCID {}: {} {} of linear address {} went to guest-physical {}", vcpu, pcid,
                       mode, name_of(access.kind), access.address, answer->at);
}

std::string Report::expected() const
{
    if (!*fresh) {
        const PageFault& fault = fresh->error();
        const std::string_view why = fault.cause == FaultCause::not_present    ? "not present"
                                     : fault.cause == FaultCause::reserved_bit ? "a reserved bit"
                                                                               : "rights";
        return fmt::format("a fresh walk ends in {} ({} at L{})", describe(Exception::of(fault)), why,
                           fault.level);
    }
    if ((*fresh)->address != answer->at) return fmt::format("a fresh walk goes to {}", (*fresh)->address);
    std::string entries;
    for (int level = root_level; level >= fresh_path->lowest; --level) {
        const std::uint64_t missing = missing_bits(*fresh_path, level, answer->access.kind);
        if (missing == 0) continue;
        entries += fmt::format("{}{} of the L{} entry", entries.empty() ? "" : " and ",
                               missing == pte::kAccessed ? "A"
                               : missing == pte::kDirty  ? "D"
                                                         : "A and D",
                               level);
    }
    return fmt::format("a fresh walk goes there too, but sets {}", entries);
}

std::string Report::change(const Path& path, const TableJournal& journal) const
{
    const unsigned bytes = mode_of(path.root.paging).entry_bytes;
    for (const Path::Step& step : path.steps) {
        if (step.version.end != path.right_until || step.version.end == kForever) continue;
        const auto became = journal.entry_at(step.table, step.offset, bytes, step.version.end);
        return fmt::format("{} was {:#x}{}, changed {}",
                           entry_name(step.level, step.table, step.offset, bytes), step.version.raw,
                           became ? fmt::format(" and became {:#x}", *became) : std::string{},
                           age(step.version.end));
    }
    if (path.right_until == kForever) return "only the registers differ from those that it was right with";
    return path.root.paging == Paging::pae
               ? fmt::format("it was right with other PDPTE registers, until {}", age(path.root_until))
               : fmt::format("it was right with root frame {}{}, until {}", path.root.frame,
                             path.pcid != pcid ? fmt::format(" of PCID {}", path.pcid) : std::string{},
                             age(path.root_until));
}

std::string Report::due(const Path& path, const VcpuHistory& history) const
{
    const unsigned shift = mode_of(path.root.paging).shift(path.steps.back().level);
    const LinearAddress address = answer->access.address;
    if (!path.global && path.pcid != pcid) {
        return fmt::format("it belongs to PCID {}, and is not global", path.pcid);
    }
    const Flush flush =
        path.global ? history.last_global_flush(address, shift) : history.last_flush(pcid, address, shift);
    if (flush.time == 0) return "no walk could have combined the entries so";
    if (path.right_until > flush.time) {
        return fmt::format("no walk since the last {}, {}, could have combined the entries so", flush.name,
                           age(flush.time));
    }
    return fmt::format("{}, {}, should have removed what was cached{}", flush.name, age(flush.time),
                       path.global ? " (global)" : "");
}

}  // namespace

std::optional<CoherenceOracle::Violation> CoherenceOracle::compare(unsigned index, const Access& access,
                                                                   GuestPhysical at)
{
    State& state = *state_;
    const State::Vcpu& vcpu = state.vcpus[index];
    FreshPath path;
    const Fresh fresh = fresh_walk(vcpu.paging, state.memory, vcpu.root, vcpu.rules, access, path);
    const int root_level = mode_of(vcpu.paging).root_level();
    std::uint64_t missing = 0;
    for (int level = root_level; fresh && level >= path.lowest; --level) {
        missing |= missing_bits(path, level, access.kind);
    }
    if (fresh && fresh->address == at && missing == 0) {
        const std::uint64_t key = key_of(access);
        agreements_[slot_of(key)] = {key, view_of_[index], changes_, at.value() - access.address.value()};
        return std::nullopt;
    }

    if (missing != 0) state.note_unset(path, vcpu, access.kind, watched_);
    const Answer answer{access, vcpu.rules.control, at};
    PathSearch search{state.journal, state.rules, vcpu.history, answer, state.stale_for_all};
    if (const auto cached = search.cached()) {
        std::uint64_t* kind = &counts_.accessed;
        if (!fresh) {
            kind = fresh.error().cause == FaultCause::rights ? &counts_.rights : &counts_.not_present;
        } else if (fresh->address != at) {
            kind = &counts_.address;
        } else if ((missing & pte::kDirty) != 0) {
            kind = &counts_.dirty;
        }
        ++*kind;
        // If no entry has changed, the way in which they are read has.
        const Time until =
            cached->right_until != kForever ? cached->right_until : vcpu.history.formats().back().start;
        const std::uint64_t age = age_of(until, counts_.checked);
        counts_.age_sum += age;
        counts_.oldest = std::max(counts_.oldest, age);
        return std::nullopt;
    }

    ++counts_.violations;
    const Report report{index, vcpu.pcid, &answer, &fresh, &path, root_level, counts_.checked};
    std::string text = fmt::format("{}; {}; ", report.given(), report.expected());
    if (const auto once = search.ever()) {
        text += fmt::format("{}; {}", report.change(*once, state.journal), report.due(*once, vcpu.history));
    } else {
        text += "no walk that is remembered gave that";
    }
    return Violation{std::move(text)};
}

}  // namespace mmusim
