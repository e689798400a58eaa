// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <iterator>

#include <fmt/format.h>
#include <boost/container/static_vector.hpp>

#include "in_mode.hpp"
#include "shadow_mmu.hpp"

namespace mmusim {

namespace {

/// The context of a vCPU with paging off: its tables are the identity table's.
GuestContext identity_context()
{
    GuestContext context;
    context.paging = Paging::off;
    context.settings = {.nxe = false, .pse = true};
    context.rules.entries = entry_rules(kTwoLevel, Cpuid{}, context.settings);
    context.root.frame = kIdentityTable;
    return context;
}

}  // namespace

std::uint64_t shadow_pool_floor(unsigned vcpus, std::uint64_t ram_pages, bool hvm, std::uint64_t p2m_pages)
{
    constexpr std::uint64_t kPerVcpu = 128;
    const std::uint64_t extra = std::max<std::uint64_t>(ram_pages / 256, hvm ? 6 : 0) + (hvm ? 1 : 0);
    return kPerVcpu * vcpus + std::max(extra, p2m_pages);
}

std::uint64_t default_shadow_pool(unsigned vcpus, std::uint64_t ram_pages)
{
    constexpr std::uint64_t kPerVcpu = 256, kPagesPerMebibyte = 256, kLeast = 1024;
    return std::max({kPerVcpu * vcpus + ram_pages / kPagesPerMebibyte,
                     shadow_pool_floor(vcpus, ram_pages, true, 0), kLeast});
}

ShadowEngine::ShadowEngine(SparseMemory& machine, SparseMemory& tables, const P2m& p2m,
                           AccessMonitor& monitor, const Cpuid& cpuid, unsigned vcpus,
                           std::unique_ptr<ShadowPolicy> policy, Populate populate, Mfn pool_first,
                           std::uint64_t pool_pages, unsigned machine_bits, SecureView secure_view)
    : p2m_{&p2m}
    , monitor_{&monitor}
    , cpuid_{cpuid}
    , guest_memory_{machine, p2m}
    , policy_{std::move(policy)}
    , declared_{policy_->declared()}
    , populate_{populate}
    , empty_table_{pool_first}
    , filter_{vcpus}
    , cache_{tables, pool_first + 1, pool_pages, filter_, counters_, events_}
    , vcpus_(vcpus, Vcpu{{},
                         {},
                         false,
                         VirtualTlb{declared_.switches.virtual_tlb ? declared_.sizes.virtual_tlb : 0},
                         false,
                         {},
                         kNoShadow,
                         false,
                         {}})
    , out_of_sync_{listed() ? OutOfSyncTables{declared_.sizes.fixups}
                            : OutOfSyncTables{vcpus, declared_.sizes.out_of_sync, declared_.sizes.fixups}}
    , secure_frames_{secure_view}
    , dirty_{tables, [this] { return take_trie_page(); },
             [this](Mfn page, unsigned offset, unsigned bytes) { cache_.touch(page, offset, bytes); }}
    , marks_mmio_{declared_.switches.fast_fault_path && declared_.keyed_by == ShadowKeying::frame_and_type &&
                  machine_bits < kMaxPhysicalAddressBits}
    // A guest makes entries present without a flush: where it writes a table freely, no mark may tell.
    , marks_absent_{marks_mmio_ && declared_.protects_tables && declared_.coherent() &&
                    declared_.sizes.out_of_sync == 0}
{
    require_sound(declared_);
    cache_.let_l3_be_pinned(declared_.switches.linux_l3_toplevel);
    cache_.on_destroy([this](ShadowId id) { forget_hints(id); });
}

// --- verbs -------------------------------------------------------------------------------------------

FaultAnswer ShadowEngine::fault(unsigned vcpu, const GuestContext& guest, const Access& access,
                                std::uint32_t error_code)
{
    events_.begin(vcpu, guest.paging, access.address, error_code);
    if (vcpus_[vcpu].unflushed) look_at_old_hint(vcpu, guest, access, error_code);
    FaultAnswer answer;
    if (guest.paging == Paging::off) {
        IdentityTables identity;
        answer = ShadowMmu<kTwoLevel>{*this}.fault(identity, vcpu, identity_context(), access, error_code);
    } else {
        in_mode(*this, guest.paging,
                [&](auto mmu) { answer = mmu.fault(guest_memory_, vcpu, guest, access, error_code); });
    }
    look_for_missed_references();
    vcpus_[vcpu].looked = false;
    look_for_shared_tables();
    return answer;
}

FaultAnswer ShadowEngine::emulated_access(unsigned vcpu, const GuestContext& guest, const Access& access,
                                          bool checked)
{
    events_.begin_emulated(vcpu, guest.paging, access.address);
    if (guest.paging == Paging::off) {
        const GuestPhysical at{access.address.value()};
        if (const auto refused = refusal(vcpu, guest, access, Gfn::of(at)))
            return {FaultAnswer::Kind::guest, *refused, {}};
        if (const auto nothing = nothing_behind(guest, access, Gfn::of(at)))
            return {FaultAnswer::Kind::guest, *nothing, {}};
        if (checked) {
            IdentityTables identity;
            const auto answer =
                ShadowMmu<kTwoLevel>{*this}.check_access(identity, vcpu, identity_context(), access);
            if (answer) return *answer;
        }
        emulation_ = {vcpu, kTwoLevel.entry_bytes, std::nullopt};
        if (access.kind == AccessKind::write) log_write(Gfn::of(at));
        return {FaultAnswer::Kind::emulated, {}, at};
    }
    FaultAnswer answer;
    in_mode(*this, guest.paging,
            [&](auto mmu) { answer = mmu.emulated_access(guest_memory_, vcpu, guest, access, checked); });
    return answer;
}

bool ShadowEngine::may_be_stopped(const GuestContext& guest, const Access& access) const
{
    if (!monitor_->restricts()) return false;
    // It changes nothing.
    auto& engine = const_cast<ShadowEngine&>(*this);
    if (guest.paging == Paging::off) {
        IdentityTables identity;
        const auto found = ShadowMmu<kTwoLevel>{engine}.violation_of(identity, identity_context(), access);
        return found && monitor_->may_stop(found->frame, found->kind);
    }
    bool may = false;
    in_mode(engine, guest.paging, [&](auto mmu) {
        const auto found = mmu.violation_of(engine.guest_memory_, guest, access);
        may = found && monitor_->may_stop(found->frame, found->kind);
    });
    return may;
}

void ShadowEngine::release_roots(Vcpu& vcpu)
{
    for (ShadowId& id : vcpu.roots.ids) {
        if (id != kNoShadow) cache_.release(id);
        id = kNoShadow;
    }
    for (const ShadowId id : vcpu.previous_roots) cache_.release(id);
    vcpu.previous_roots.clear();
}

void ShadowEngine::keep_previous_root(Vcpu& vcpu, ShadowId left)
{
    auto& kept = vcpu.previous_roots;
    kept.insert(kept.begin(), left);
    if (kept.size() <= declared_.sizes.previous_roots) return;
    cache_.release(kept.back());
    kept.pop_back();
}

void ShadowEngine::load_roots(unsigned vcpu, const GuestContext& guest)
{
    events_.begin(vcpu, guest.paging);
    Roots& roots = vcpus_[vcpu].roots;
    current_ = vcpu;
    vcpus_[vcpu].unseen.reset();
    vcpus_[vcpu].unflushed.reset();
    vcpus_[vcpu].looked = false;
    ++work_.roots_loaded;
    if (roots.paging != guest.paging) {
        resync_all(vcpu);
        release_roots(vcpus_[vcpu]);
    }
    roots.paging = guest.paging;
    const bool off = guest.paging == Paging::off;
    in_mode(*this, guest.paging, [&](auto mmu) { mmu.load_roots(vcpu, off ? identity_context() : guest); });
    vcpus_[vcpu].virtual_tlb.clear();
    vcpus_[vcpu].fast_emulation.reset();
    if (std::exchange(vcpus_[vcpu].resync_roots, false)) resync_reachable(vcpu);
    if (!listed()) resync_others_lightly(vcpu);
    events_.tell(ShadowEventKind::update_cr3, [&](ShadowEvent& event) {
        for (const ShadowId id : roots.ids) {
            if (id != kNoShadow) event.tables.push_back(cache_[id].key.frame);
        }
    });
    look_for_missed_references();
    look_for_shared_tables();
}

void ShadowEngine::flush(unsigned vcpu, GuestFlush flush, LinearAddress address)
{
    const bool one_page = flush == GuestFlush::address || flush == GuestFlush::page_fault;
    events_.begin(vcpu, vcpus_[vcpu].roots.paging, one_page ? std::optional{address} : std::nullopt);
    answer_flush(vcpu, flush, address);
}

void ShadowEngine::answer_flush(unsigned vcpu, GuestFlush flush, LinearAddress address)
{
    const bool one_page = flush == GuestFlush::address || flush == GuestFlush::page_fault;
    switch (policy_->on_flush(vcpu, flush)) {
    case FlushAnswer::nothing: break;
    case FlushAnswer::drop_entry:
        in_mode(*this, vcpus_[vcpu].roots.paging, [&](auto mmu) { mmu.drop_entry(vcpu, address); });
        break;
    case FlushAnswer::drop_tree:
        for (const ShadowId id : vcpus_[vcpu].roots.ids) {
            if (id != kNoShadow) cache_.clear_all(id);
        }
        break;
    case FlushAnswer::drop_top: {
        // Of a change of CR4 the manual does not say that it spares globals.
        const bool globals_too = flush == GuestFlush::context || flush == GuestFlush::everything;
        in_mode(*this, vcpus_[vcpu].roots.paging, [&](auto mmu) { mmu.drop_top(vcpu, globals_too); });
        break;
    }
    case FlushAnswer::resync:
        if (one_page) {
            resync_page(vcpu, flush, address);
        } else if (listed()) {
            resync_all(vcpu);
        } else {
            resync_own(vcpu);
        }
        break;
    case FlushAnswer::resync_reachable:
        if (one_page) {
            resync_page(vcpu, flush, address);
            break;
        }
        vcpus_[vcpu].resync_roots = true;
        // Other contexts than the new root's may be meant: their roots are not at hand any more.
        if (flush == GuestFlush::context || flush == GuestFlush::everything) {
            for (const ShadowId id : std::exchange(vcpus_[vcpu].previous_roots, {})) cache_.release(id);
        }
        break;
    }
}

void ShadowEngine::resync_page(unsigned vcpu, GuestFlush flush, LinearAddress address)
{
    if (!out_of_sync_.any()) return;
    // INVLPG drops all upper entries that a CPU holds of its context, not only those of its page.
    if (flush == GuestFlush::address && out_of_sync_above_level_1()) resync_domain(vcpu);
    in_mode(*this, vcpus_[vcpu].roots.paging, [&](auto mmu) { mmu.resync_page(vcpu, address); });
}

InvlpgAnswer ShadowEngine::invlpg(unsigned vcpu, LinearAddress address)
{
    events_.begin(vcpu, vcpus_[vcpu].roots.paging, address);
    ++counters_.invlpg;
    vcpus_[vcpu].virtual_tlb.clear();
    vcpus_[vcpu].fast_emulation.reset();
    vcpus_[vcpu].unflushed.reset();
    vcpus_[vcpu].looked = false;
    InvlpgAnswer answer;
    in_mode(*this, vcpus_[vcpu].roots.paging, [&](auto mmu) { answer = mmu.invlpg_answer(vcpu, address); });
    answer_flush(vcpu, GuestFlush::address, address);
    events_.tell(ShadowEventKind::invlpg, [&](ShadowEvent& event) {
        event.how = answer.suppress ? "nothing" : answer.flush_all ? "everything" : "page";
    });
    return answer;
}

void ShadowEngine::touch(Gfn frame, unsigned offset, unsigned bytes) const
{
    if (!cache_.notes_touches()) return;
    if (const auto mfn = p2m_->mfn_of(frame)) cache_.touch(*mfn, offset, bytes);
}

void ShadowEngine::emulated_store(std::span<const StorePart> parts)
{
    events_.begin_emulated(emulation_.vcpu, vcpus_[emulation_.vcpu].roots.paging);
    store_and_propagate(parts);
    if (!events_.observed()) return;
    ShadowEvent::Write write{parts[0].at, std::nullopt, {}};
    if (parts.size() > 1) write.second = parts[1].at;
    for (const StorePart& part : parts)
        write.bytes.insert(write.bytes.end(), part.bytes.begin(), part.bytes.end());
    events_.stored(write);
}

void ShadowEngine::store_and_propagate(std::span<const StorePart> parts)
{
    constexpr std::size_t kWidest = 8;  // what string instructions and vectors store is that many times
    std::size_t bytes = 0;
    for (const StorePart& part : parts) bytes += part.bytes.size();
    const std::size_t unit = std::bit_floor(std::min(bytes, kWidest));
    if (declared_.protects_tables && parts[0].at.value() % unit != 0) {
        // Not how tables are written: probably this is none any more.
        for (const StorePart& part : parts) (void)unshadow(Gfn::of(part.at), false);
    }
    current_ = emulation_.vcpu;
    std::byte old{};
    guest_memory_.read(parts[0].at, {&old, 1});
    for (const StorePart& part : parts) {
        guest_memory_.write(part.at, part.bytes);
        mark_dirty(Gfn::of(part.at));
        touch(Gfn::of(part.at), part.at.offset_in_page(), static_cast<unsigned>(part.bytes.size()));
    }
    if (!declared_.protects_tables) return;

    for (const StorePart& part : parts) {
        if (declared_.sizes.writes_before_zap == 0) break;
        for (const ShadowId id : cache_.of_frame(Gfn::of(part.at))) {
            if (!cache_[id].alive() || cache_[id].key.type.level == 1) continue;
            if (cache_.written(id) >= declared_.sizes.writes_before_zap) zap(id);
        }
    }
    consider_unshadowing(emulation_.vcpu, parts[0].at, parts[0].bytes);
    const bool was_present = (std::to_integer<std::uint64_t>(old) & pte::kPresent) != 0;
    if (was_present || parts.size() > 1 || !may_skip_verifying(parts[0].at, parts[0].bytes)) {
        for (const StorePart& part : parts) {
            const unsigned first = part.at.offset_in_page();
            revalidate(Gfn::of(part.at), first, first + static_cast<unsigned>(part.bytes.size()) - 1,
                       std::nullopt);
        }
    }
    look_for_shared_tables();
    if (!declared_.switches.fast_emulation) return;
    if (emulation_.remember && cache_.is_table(emulation_.remember->table)) {
        Vcpu& mine = vcpus_[emulation_.vcpu];
        mine.fast_emulation = emulation_.remember;
        if (mine.unflushed) mine.unflushed->fast_emulation = emulation_.remember;
    }
    emulation_.remember.reset();
}

void ShadowEngine::count_further(unsigned vcpu, Further outcome)
{
    events_.begin(vcpu, vcpus_[vcpu].roots.paging);
    events_.tell(ShadowEventKind::emulate_further, [&](ShadowEvent& event) {
        event.how = outcome == Further::wrote_table  ? "wrote_table"
                    : outcome == Further::wrote_none ? "wrote_none"
                                                     : "failed";
    });
    switch (outcome) {
    case Further::wrote_table: ++counters_.em_ex_pt; break;
    case Further::wrote_none: ++counters_.em_ex_non_pt; break;
    case Further::failed: ++counters_.em_ex_fail; break;
    }
}

void ShadowEngine::consider_unshadowing(unsigned vcpu, GuestPhysical at, std::span<const std::byte> bytes)
{
    if (!declared_.switches.early_unshadow) return;
    constexpr std::size_t kLooked = 4;
    auto& zero_written = vcpus_[vcpu].zero_written;
    const bool zero = bytes.size() >= kLooked && std::all_of(bytes.begin(), bytes.begin() + kLooked,
                                                             [](std::byte b) { return b == std::byte{}; });
    if (!zero) {
        zero_written.reset();
        return;
    }
    // Elsewhere it may be the second half of an entry: no reason to begin anew.
    if (at.value() % emulation_.entry_bytes != 0) return;
    const Gfn frame = Gfn::of(at);
    const bool torn_down = vcpus_[vcpu].dying || (!dying_used_ && zero_written == frame);
    const auto top_level = [&] {
        const auto ids = cache_.of_frame(frame);
        return std::any_of(ids.begin(), ids.end(), [&](ShadowId id) { return cache_[id].key.type.top(); });
    };
    // A guest that tells which roots are dying will do so for this one too.
    if (torn_down && cache_.is_table(frame) && !(dying_used_ && top_level())) {
        ++counters_.early_unshadow;
        events_.flag(PathFlag::early_unshadow);
        tell_of_table(ShadowEventKind::early_unshadow, frame);
        (void)unshadow(frame, true);
    }
    zero_written = frame;
}

void ShadowEngine::pagetable_dying(unsigned vcpu, GuestPhysical root)
{
    const Paging paging = vcpus_[vcpu].roots.paging;
    const PagingMode mode = mode_of(paging);
    events_.begin(vcpu, paging);
    boost::container::static_vector<Gfn, 4> tables;
    if (mode.top_in_registers) {
        const GuestPhysical pdptes{root.value() & ~std::uint64_t{31}};
        for (unsigned i = 0; i < 4; ++i) {
            const auto pdpte =
                guest_memory_.load<std::uint64_t>(Gfn::of(pdptes), pdptes.offset_in_page() + 8 * i);
            if ((pdpte & pte::kPresent) != 0) tables.push_back(Gfn{(pdpte & pte::kFrame) >> kPageShift});
        }
    } else {
        tables.push_back(Gfn::of(root));
    }
    for (const Gfn table : tables) {
        for (const ShadowId id : cache_.of_frame(table)) {
            const ShadowType type = cache_[id].key.type;
            if (type.format != format_of(mode) || type.level != mode.root_level()) continue;
            dying_.insert(table.number());
            cache_.touch_all(id);
            const unsigned step = type.entries_per_guest_entry();
            for (unsigned i = 0; i < cache_[id].entries(); i += step) {
                const ShadowSlot slot{id, static_cast<std::uint16_t>(i)};
                constexpr std::uint64_t kUsers = pte::kPresent | pte::kUser;
                if ((cache_.entry(slot) & kUsers) == kUsers) cache_.clear(slot);
            }
            cache_.flush_due();
        }
    }
    dying_used_ = true;
    vcpus_[vcpu].dying = true;
}

bool ShadowEngine::running_root(Gfn table) const
{
    return std::any_of(vcpus_.begin(), vcpus_.end(), [&](const Vcpu& vcpu) {
        const auto& ids = vcpu.roots.ids;
        return std::any_of(ids.begin(), ids.end(),
                           [&](ShadowId id) { return id != kNoShadow && cache_[id].key.frame == table; });
    });
}

void ShadowEngine::unshadow_if_dying(Gfn table)
{
    if (dying(table) && !running_root(table)) (void)unshadow(table, true);
}

bool ShadowEngine::may_skip_verifying(GuestPhysical at, std::span<const std::byte> bytes) const
{
    if (!declared_.switches.skip_verify) return false;
    if ((std::to_integer<std::uint64_t>(bytes[0]) & pte::kPresent) != 0) return false;
    const Gfn frame = Gfn::of(at);
    const bool wide = !cache_.is_table_of(TableFormat::bits32, frame);
    const bool narrow = !cache_.is_table_of_other(TableFormat::bits32, frame);
    return (wide && at.value() % 8 == 0 && bytes.size() <= 8) ||
           (narrow && at.value() % 4 == 0 && bytes.size() <= 4);
}

void ShadowEngine::revalidate(Gfn frame, unsigned first, unsigned last, std::optional<TableFormat> except)
{
    if (any_level()) resync_all(emulation_.vcpu);
    bool failed = false;
    const bool flush_was_due = cache_.flush_is_due();
    for (const ShadowId id : cache_.of_frame(frame)) {
        // Validating one may have dropped the last reference to the next.
        if (!cache_[id].alive() || cache_[id].key.type.format == except) continue;
        in_mode(*this, paging_of(cache_[id].key.type.format),
                [&](auto mmu) { failed |= !mmu.validate(id, first, last); });
    }
    if (!flush_was_due && cache_.flush_is_due()) events_.flag(PathFlag::set_flush);
    // A guest that writes such entries has no table there. Of accessed and dirty bits it knows nothing.
    if (failed && !except) {
        events_.flag(PathFlag::set_error);
        (void)unshadow(frame, false);
    }
}

void ShadowEngine::forget(Gfn frame)
{
    events_.begin(std::nullopt, Paging::off);
    for (const ShadowId id : cache_.of_frame(frame)) {
        if (cache_[id].alive()) cache_.clear_all(id);
    }
}

void ShadowEngine::blow()
{
    events_.begin(std::nullopt, Paging::off);
    for (Vcpu& vcpu : vcpus_) release_roots(vcpu);
    while (!cache_.pinned().empty()) cache_.unpin(cache_.pinned().front());
    look_for_missed_references();
    for (unsigned vcpu = 0; vcpu < vcpus_.size(); ++vcpu) {
        vcpus_[vcpu].unseen.reset();
        forget_prepared(vcpu);
    }
    cache_.flush_due();
}

void ShadowEngine::hardware_flushed(unsigned vcpu)
{
    if (filter_.flushed(vcpu)) cache_.flush_due();
}

ShadowWork ShadowEngine::work() const
{
    ShadowWork work = work_;
    work.faults = counters_.fault;
    work.shadows_made = counters_.alloc;
    work.entries_written = cache_.work().entries_written;
    work.hash_steps = cache_.work().hash_steps;
    return work;
}

// --- what there is to see ------------------------------------------------------------------------------

void ShadowEngine::tell_of_shadow(ShadowEventKind kind, ShadowId shadow)
{
    events_.tell(kind, [&](ShadowEvent& event) {
        event.frame = cache_[shadow].key.frame;
        event.type = cache_[shadow].key.type;
    });
}

void ShadowEngine::tell_of_entry(ShadowEventKind kind, Gfn table, ShadowSlot slot)
{
    events_.tell(kind, [&](ShadowEvent& event) {
        event.frame = table;
        event.entry = cache_.described(slot);
    });
}

void ShadowEngine::tell_of_table(ShadowEventKind kind, Gfn table)
{
    events_.tell(kind, [&](ShadowEvent& event) { event.frame = table; });
}

WalkRoot<space::Machine> ShadowEngine::hardware_root(unsigned vcpu) const
{
    const Roots& roots = running(vcpus_[vcpu]);
    WalkRoot<space::Machine> hardware{empty_table_, {}};
    const ShadowId first = roots.ids[0];
    switch (roots.paging) {
    case Paging::off:
    case Paging::two_level:
        // The four pages of the l2_32 are the four tables of the PAE top.
        for (std::size_t i = 0; first != kNoShadow && i < 4; ++i) {
            hardware.pdptes[i] = cache_[first].frames[i].address().value() | pte::kPresent;
        }
        break;
    case Paging::pae:
        for (std::size_t i = 0; i < 4; ++i) {
            if (roots.ids[i] == kNoShadow) continue;
            hardware.pdptes[i] = cache_[roots.ids[i]].frames[0].address().value() | pte::kPresent;
        }
        break;
    case Paging::four_level:
    case Paging::five_level:
        if (first != kNoShadow) hardware.frame = cache_[first].frames[0];
        break;
    }
    return hardware;
}

std::vector<std::string> ShadowEngine::audit() const
{
    std::vector<std::string> violations;
    cache_.audit([&](ShadowId id) { return holders_of(id); }, violations);
    for (const ShadowId id : cache_.all()) {
        const Shadow& shadow = cache_[id];
        for (unsigned i = 0; shadow.key.type.level == 1 && i < shadow.entries(); ++i) {
            const std::uint64_t entry = cache_.entry({id, static_cast<std::uint16_t>(i)});
            const Mfn mfn{(entry & pte::kFrame) >> kPageShift};
            if ((entry & pte::kPresent) == 0 || magic::is_mark(entry)) continue;
            const auto page = p2m_->gfn_of(mfn);
            if (page && (entry & pte::kWritable) != 0 && is_read_only(p2m_->entry(*page).type)) {
                violations.push_back(
                    fmt::format("{} of frame {}, entry {}: maps frame {} writable, which is {}",
                                to_string(shadow.key.type), shadow.key.frame, i, *page,
                                name_of(p2m_->entry(*page).type)));
            }
            if (page && permitted(*page, entry) != entry) {
                violations.push_back(
                    fmt::format("{} of frame {}, entry {} ({:#x}): more than mem_access "
                                "permits of frame {}: {}",
                                to_string(shadow.key.type), shadow.key.frame, i, entry, *page,
                                name_of(monitor_->rights().of(*page))));
            }
            const bool bare = keeps_views_apart() && page && withheld(*page, shadow.key.role);
            if (page && (entry & pte::kWritable) != 0 && unlogged(*page)) {
                violations.push_back(
                    fmt::format("{} of frame {}, entry {}: maps frame {} writable, which is clean",
                                to_string(shadow.key.type), shadow.key.frame, i, *page));
            }
            if (page && !bare) continue;
            violations.push_back(fmt::format("{} of frame {}, entry {}: {}", to_string(shadow.key.type),
                                             shadow.key.frame, i,
                                             page ? fmt::format("maps the secure frame {}", *page)
                                                  : fmt::format("machine frame {} is not the guest's", mfn)));
        }
    }
    for (unsigned vcpu = 0; vcpu < vcpus_.size(); ++vcpu) {
        for (const ShadowId root : running(vcpus_[vcpu]).ids) {
            if (root == kNoShadow || (cache_[root].key.role & kSecureRole) == view_of(vcpu)) continue;
            violations.push_back(fmt::format("vCPU {} runs on a root of the other view", vcpu));
        }
    }
    if (!declared_.protects_tables) return violations;
    for (const ShadowId id : cache_.all()) {
        if (!cache_[id].key.type.splinter && out_of_sync_.find(cache_[id].key.frame) != nullptr) continue;
        audit_entries(id, violations);
    }
    return violations;
}

void ShadowEngine::audit_entries(ShadowId id, std::vector<std::string>& violations) const
{
    // It changes nothing.
    in_mode(const_cast<ShadowEngine&>(*this), paging_of(cache_[id].key.type.format),
            [&](auto mmu) { mmu.audit_entries(id, violations); });
}

}  // namespace mmusim
