// SPDX-License-Identifier: Apache-2.0
//
// The secure view (docs/secure-view.md): shadows of their own for vCPUs in secure mode, so that a table which
// both kinds use has two shadows, and an entry that maps a secure frame is in one of them alone. And what the
// mail of 2010 warns of: shadows that both kinds share, and CR3 values to which a vCPU goes without an exit.
#include <mmusim/shadow/shadow_engine.hpp>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "in_mode.hpp"

namespace mmusim {

namespace {

// Bits of ShadowEngine::run_in_.
constexpr std::uint8_t kRunOrdinary = 1;
constexpr std::uint8_t kRunSecure = 2;

constexpr std::size_t kTextsKept = 16;

}  // namespace

void ShadowEngine::set_secure_frames(std::vector<Gfn> frames)
{
    events_.begin(std::nullopt, Paging::off);
    events_.begin(std::nullopt, Paging::off);
    secure_frames_.assign(std::move(frames));
    for (Vcpu& vcpu : vcpus_) {
        vcpu.virtual_tlb.clear();
        vcpu.fast_emulation.reset();
        vcpu.unflushed.reset();
    }
    std::vector<Mfn> machine_frames;
    for (const Gfn frame : secure_frames_.all()) {
        if (const auto mfn = p2m_->mfn_of(frame)) machine_frames.push_back(*mfn);
    }
    cache_.watch(machine_frames);
    if (machine_frames.empty()) return;
    for (const Mfn frame : machine_frames) {
        const auto slots = cache_.watched_mappings(frame);
        for (const ShadowSlot slot : std::vector<ShadowSlot>{slots.begin(), slots.end()}) {
            const bool secure = keeps_views_apart() && (cache_[slot.shadow].key.role & kSecureRole) != 0;
            if (!secure) cache_.set_leaf(slot, 0);
        }
    }
    // The hardware may hold translations whose entries have changed since.
    cache_.flush_due();
}

void ShadowEngine::set_secure_mode(unsigned vcpu, bool on, const GuestContext& guest)
{
    if (vcpus_[vcpu].secure == on) return;
    vcpus_[vcpu].secure = on;
    // A flush of one page has dropped it in the view that was left alone.
    if (out_of_sync_.any()) listed() ? resync_all(vcpu) : resync_own(vcpu);
    load_roots(vcpu, guest);
}

std::optional<PageFault> ShadowEngine::refusal(unsigned vcpu, const GuestContext& guest, const Access& access,
                                               Gfn frame) const
{
    if (vcpus_[vcpu].secure || !secure_frames_.contains(frame)) return std::nullopt;
    const RightsControl control = guest.paging == Paging::off ? RightsControl{} : guest.rules.control;
    return PageFault{access.address, control.access_bits(access) | pf::kPresent, FaultCause::rights, 1};
}

// --- CR3 values without an exit ----------------------------------------------------------------------

void ShadowEngine::release(const Roots& roots)
{
    for (const ShadowId id : roots.ids) {
        if (id != kNoShadow) cache_.release(id);
    }
}

void ShadowEngine::prepare_root(unsigned vcpu, unsigned target)
{
    if (keyed_by_vcpu()) return;  // the only tree there is becomes the next root's
    Vcpu& mine = vcpus_[vcpu];
    if (mine.prepared.size() <= target) mine.prepared.resize(target + 1);
    Vcpu::Prepared& prepared = mine.prepared[target];
    for (const ShadowId id : mine.roots.ids) {
        if (id != kNoShadow) cache_.retain(id);
    }
    release(prepared.roots);
    prepared = {true, mine.secure, mine.roots};
}

void ShadowEngine::forget_prepared(unsigned vcpu)
{
    Vcpu& mine = vcpus_[vcpu];
    for (unsigned target = 0; target < mine.prepared.size(); ++target) {
        if (mine.unseen == target) continue;  // the hardware is there
        release(mine.prepared[target].roots);
        mine.prepared[target] = {};
    }
}

bool ShadowEngine::switch_unseen(unsigned vcpu, unsigned target, const GuestContext& guest)
{
    Vcpu& mine = vcpus_[vcpu];
    if (target >= mine.prepared.size() || !mine.prepared[target].ready) return false;
    mine.unseen = target;
    mine.secure = mine.prepared[target].secure;
    mine.reference_missed = false;
    ++unseen_switches_;
    look_for_stale_shadows(vcpu, guest);
    return true;
}

void ShadowEngine::catch_up(unsigned vcpu, const GuestContext& guest)
{
    Vcpu& mine = vcpus_[vcpu];
    if (!mine.unseen) return;
    const unsigned target = *mine.unseen;
    Vcpu::Unflushed kept =
        mine.unflushed ? *std::move(mine.unflushed) : Vcpu::Unflushed{mine.virtual_tlb, mine.fast_emulation};
    flush(vcpu, GuestFlush::load_cr3);
    load_roots(vcpu, guest);
    prepare_root(vcpu, target);
    mine.unflushed = std::move(kept);
    mine.looked = true;
}

// --- hazards -----------------------------------------------------------------------------------------

void ShadowEngine::tell(std::uint64_t HazardCounts::*kind, std::string text)
{
    ++(hazards_.*kind);
    if (hazard_texts_.size() < kTextsKept) hazard_texts_.push_back(std::move(text));
}

std::vector<ShadowId> ShadowEngine::roots_above(ShadowId id) const
{
    std::vector<ShadowId> seen{id};
    std::vector<ShadowId> roots;
    for (std::size_t i = 0; i < seen.size(); ++i) {
        const Shadow& shadow = cache_[seen[i]];
        if (shadow.key.type.top()) roots.push_back(seen[i]);
        for (const ShadowSlot parent : shadow.parents) {
            if (std::find(seen.begin(), seen.end(), parent.shadow) == seen.end())
                seen.push_back(parent.shadow);
        }
    }
    std::sort(roots.begin(), roots.end());
    return roots;
}

void ShadowEngine::look_for_stale_shadows(unsigned vcpu, const GuestContext& guest)
{
    const Roots& roots = running(vcpus_[vcpu]);
    bool right = false;
    in_mode(*this, guest.paging, [&](auto mmu) { right = mmu.are_roots(vcpu, guest, roots.ids); });
    if (!right) {
        tell(&HazardCounts::stale_shadows,
             fmt::format(
                 "vCPU {}: MOV CR3 to root {} was not seen: the shadows that were prepared are of other "
                 "tables than the PDPTEs name now",
                 vcpu, guest.root.frame));
    }
    // All others are right at any time.
    std::vector<ShadowId> may_be_stale;
    if (declared_.protects_tables) {
        for (const Gfn frame : out_of_sync_.all()) {
            const auto ids = cache_.of_frame(frame);
            may_be_stale.insert(may_be_stale.end(), ids.begin(), ids.end());
        }
    } else {
        may_be_stale = cache_.all();
    }
    for (const ShadowId id : may_be_stale) {
        const auto tops = roots_above(id);
        const bool here = std::any_of(tops.begin(), tops.end(), [&](ShadowId top) {
            return std::find(roots.ids.begin(), roots.ids.end(), top) != roots.ids.end();
        });
        std::vector<std::string> wrong;
        if (here) audit_entries(id, wrong);
        if (wrong.empty()) continue;
        tell(&HazardCounts::stale_shadows,
             fmt::format("vCPU {}: MOV CR3 to root {} was not seen, so nothing was brought up to date: {}",
                         vcpu, guest.root.frame, wrong.front()));
    }
}

void ShadowEngine::look_at_old_hint(unsigned vcpu, const GuestContext& guest, const Access& access,
                                    std::uint32_t error_code)
{
    auto& hint = vcpus_[vcpu].unflushed->fast_emulation;
    if (!hint || hint->page != access.address.value() >> kPageShift) return;
    if (error_code == (pf::kWrite | pf::kPresent) && traps_writes_to(hint->table)) {
        std::optional<Gfn> now;
        in_mode(*this, guest.paging, [&](auto mmu) { now = mmu.frame_of(guest, access); });
        if (now == hint->table) return;
        tell(&HazardCounts::fast_emulation,
             fmt::format(
                 "vCPU {}: MOV CR3 was not seen, so a write to {} would go to frame {}, as under another "
                 "root; under root {} {}",
                 vcpu, access.address, hint->table, guest.root.frame,
                 now ? fmt::format("it is frame {}", *now) : "it faults"));
    }
    hint.reset();
}

void ShadowEngine::look_for_missed_references()
{
    if (keyed_by_position()) return;  // such roots are kept for nobody but the list
    for (unsigned vcpu = 0; vcpu < vcpus_.size(); ++vcpu) {
        Vcpu& mine = vcpus_[vcpu];
        if (!(mine.unseen || mine.looked) || mine.reference_missed) continue;
        for (const ShadowId root : running(mine).ids) {
            if (root == kNoShadow) continue;
            // What a hypervisor would not have counted: the list, and vCPUs that it does not know to be here.
            std::uint32_t uncounted = 0;
            for (const Vcpu& one : vcpus_) {
                for (const Vcpu::Prepared& prepared : one.prepared)
                    uncounted += static_cast<std::uint32_t>(
                        std::count(prepared.roots.ids.begin(), prepared.roots.ids.end(), root));
                if (one.looked)
                    uncounted += static_cast<std::uint32_t>(
                        std::count(one.roots.ids.begin(), one.roots.ids.end(), root));
            }
            if (cache_[root].references != uncounted) continue;
            mine.reference_missed = true;
            tell(&HazardCounts::root_references,
                 fmt::format(
                     "vCPU {}: MOV CR3 was not seen, so nothing refers to the shadow of root {} on which "
                     "it runs: it would have been freed",
                     vcpu, cache_[root].key.frame));
            break;
        }
    }
}

void ShadowEngine::look_for_shared_tables()
{
    if (keeps_views_apart() || !secure_frames_.any()) return;
    for (const Vcpu& vcpu : vcpus_) {
        for (const ShadowId root : running(vcpu).ids) {
            if (root == kNoShadow) continue;
            if (run_in_.size() <= root) run_in_.resize(root + std::size_t{1});
            run_in_[root] |= vcpu.secure ? kRunSecure : kRunOrdinary;
        }
    }
    for (const Gfn frame : secure_frames_.all()) {
        const auto mfn = p2m_->mfn_of(frame);
        if (!mfn) continue;
        for (const ShadowSlot slot : cache_.watched_mappings(*mfn)) {
            const auto roots = roots_above(slot.shadow);
            const auto first_run_in = [&](std::uint8_t mode, std::uint8_t mask) {
                return std::find_if(roots.begin(), roots.end(), [&](ShadowId root) {
                    return root < run_in_.size() && (run_in_[root] & mask) == mode;
                });
            };
            const auto ordinary = first_run_in(kRunOrdinary, kRunOrdinary);
            auto secure = first_run_in(kRunSecure, kRunSecure | kRunOrdinary);
            if (secure == roots.end()) secure = first_run_in(kRunSecure, kRunSecure);
            if (ordinary == roots.end() || secure == roots.end()) continue;
            const ShadowKey table = cache_[slot.shadow].key;
            const Gfn secure_root = cache_[*secure].key.frame;
            const Gfn ordinary_root = cache_[*ordinary].key.frame;
            if (!shared_tables_told_
                     .insert({table.frame.number(), slot.index, secure_root.number(), ordinary_root.number(),
                              frame.number()})
                     .second) {
                continue;
            }
            tell(&HazardCounts::shared_tables,
                 fmt::format(
                     "{} {} is reachable from secure root {} and ordinary root {}: they share its shadow, "
                     "whose entry {:#x} maps secure frame {}",
                     table.type.splinter ? "superpage" : "table page", table.frame, secure_root,
                     ordinary_root, slot.index, frame));
        }
    }
}

}  // namespace mmusim
