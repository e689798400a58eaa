// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/p2m.hpp>

#include <algorithm>
#include <cassert>
#include <map>

#include <fmt/format.h>

namespace mmusim {

P2m::P2m(FrameLayout layout) : layout_{std::move(layout)}, store_{std::make_unique<FlatP2m>()} {}

P2m::P2m(FrameLayout layout, std::unique_ptr<P2mTables> tables, int largest_page)
    : layout_{std::move(layout)}, tables_{tables.get()}, largest_page_{largest_page}
{
    store_ = std::move(tables);
}

void P2m::reset()
{
    store_->clear();
    changed_ = false;
    populated_last_ = kNoRegion;
    regions_.clear();
    regions_1g_.clear();
    begun_1g_.clear();
    m2p_.clear();
}

P2mEntry P2m::initial(Gfn gfn) const
{
    const auto mfn = layout_.mfn_of(gfn);
    return mfn ? P2mEntry{*mfn, P2mType::ram_rw, MemAccess::rwx} : P2mEntry{};
}

P2mEntry P2m::look_up(Gfn gfn) const
{
    if (!populated(gfn.number() >> 9)) return initial(gfn);
    return store_->get(gfn).entry;
}

std::optional<Gfn> P2m::gfn_of(Mfn mfn) const
{
    if (!m2p_.empty()) {
        if (const auto found = m2p_.find(mfn.number()); found != m2p_.end()) {
            if (found->second == kNobody) return std::nullopt;
            return Gfn{found->second};
        }
    }
    return layout_.gfn_of(mfn);
}

int P2m::page_level(Gfn gfn)
{
    populate(gfn);
    return store_->get(gfn).level;
}

void P2m::populate_region(std::uint64_t region)
{
    for (int level = largest_page_; level > 1; --level) {
        const std::uint64_t frames = p2m_page_frames(level);
        const Gfn first{region * 512 & ~(frames - 1)};
        // A change in the larger region has put some of it there, in smaller pages.
        if (level == 3 && begun_1g_.contains(region >> 9)) continue;
        const auto mfn = layout_.run(first, frames);
        if (!mfn || (mfn->number() & (frames - 1)) != 0) continue;
        store_->set(first, level, {*mfn, P2mType::ram_rw, MemAccess::rwx});
        if (level == 3) {
            regions_1g_.insert(region >> 9);
        } else {
            regions_.insert(region);
            begun_1g_.insert(region >> 9);
        }
        return;
    }
    const Gfn first{region * 512};
    regions_.insert(region);
    begun_1g_.insert(region >> 9);
    if (!layout_.ram().any(first, 512)) return;
    if (tables_ != nullptr) {
        tables_->fill_table(first, [&](unsigned i) { return initial(first + i); });
        return;
    }
    for (unsigned i = 0; i < 512; ++i) store_->set(first + i, 1, initial(first + i));
}

void P2m::populate_all()
{
    for (const GfnRange& range : ram().ranges()) {
        const std::uint64_t last = (range.end().number() - 1) >> 9;
        for (std::uint64_t region = range.first.number() >> 9; region <= last; ++region)
            populate(Gfn{region * 512});
    }
}

void P2m::set_page(Gfn first, int level, const P2mEntry& entry)
{
    for (std::uint64_t i = 0; i < p2m_page_frames(level); ++i) {
        const Gfn gfn = first + i;
        const P2mEntry old = this->entry(gfn);
        const P2mEntry now = entry.at(i);
        if (old.has_frame() && gfn_of(old.mfn) == gfn) m2p_[old.mfn.number()] = kNobody;
        if (!now.has_frame()) continue;
        if (const auto alias = gfn_of(now.mfn); alias && *alias != gfn) {
            populate(*alias);
            store_->set(*alias, 1, {});
        }
        m2p_[now.mfn.number()] = gfn.number();
    }
    store_->set(first, level, entry);
}

void P2m::set(Gfn first, std::uint64_t count, const P2mEntry& entry)
{
    for (std::uint64_t region = first.number() >> 9; region <= (first.number() + count - 1) >> 9; ++region)
        populate(Gfn{region * 512});
    changed_ = true;
    for (std::uint64_t done = 0; done < count;) {
        const Gfn gfn = first + done;
        const P2mEntry here = entry.at(done);
        int level = largest_page_;
        const auto fits = [&] {
            const std::uint64_t frames = p2m_page_frames(level);
            const std::uint64_t both = gfn.number() | (here.has_frame() ? here.mfn.number() : 0);
            return (both & (frames - 1)) == 0 && count - done >= frames;
        };
        while (level > 1 && !fits()) --level;
        set_page(gfn, level, here);
        done += p2m_page_frames(level);
    }
}

int P2m::merge(Gfn gfn)
{
    populate(gfn);
    for (int level = 2; level <= largest_page_; ++level) {
        // All of it must be there.
        const std::uint64_t frames = p2m_page_frames(level);
        const std::uint64_t first = gfn.number() & ~(frames - 1);
        for (std::uint64_t at = first; at < first + frames; at += 512) populate(Gfn{at});
        if (!store_->merge(gfn, level)) break;
    }
    return store_->get(gfn).level;
}

void P2m::audit(std::vector<std::string>& violations) const
{
    store_->audit(violations);
    const std::map<std::uint64_t, std::uint64_t> in_order{m2p_.begin(), m2p_.end()};
    for (const auto& [mfn, gfn] : in_order) {
        if (gfn == kNobody) continue;
        const P2mEntry found = entry(Gfn{gfn});
        if (!found.has_frame() || found.mfn != Mfn{mfn}) {
            violations.push_back(
                fmt::format("M2P: machine frame {} is not guest frame {}", Mfn{mfn}, Gfn{gfn}));
        }
    }
}

}  // namespace mmusim
