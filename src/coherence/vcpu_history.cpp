// SPDX-License-Identifier: Apache-2.0
#include "coherence/vcpu_history.hpp"

#include <algorithm>

namespace mmusim::coherence {

namespace {

/// log2 of the page sizes there are. An INVLPG of an address covers the page of each size around it.
constexpr std::array<unsigned, 4> kPageShifts{12, 21, 22, 30};
constexpr unsigned kLinearBits = 57;

const Flush& later(const Flush& a, const Flush& b)
{
    return a.time < b.time ? b : a;
}

}  // namespace

void AddressSpace::open(const Root& root, Time now)
{
    const auto [place, is_new] = by_root_.try_emplace(root);
    if (is_new) {
        roots_.push_front({root, {}});
        place->second = roots_.begin();
    } else {
        roots_.splice(roots_.begin(), roots_, place->second);
    }
    roots_.front().times.open(now);
    current_.open(now);
}

void AddressSpace::close(Time now)
{
    roots_.front().times.close(now);
    current_.close(now);
}

void AddressSpace::forget(Time time)
{
    current_.forget(time);
    for (RootUse& use : roots_) use.times.forget(time);
    while (!roots_.empty() && roots_.back().times.empty()) {
        by_root_.erase(roots_.back().root);
        roots_.pop_back();
    }
    // The flush that the era of `time` began with stays.
    const auto later = std::upper_bound(flushes_.begin(), flushes_.end(), time);
    if (later != flushes_.begin()) flushes_.erase(flushes_.begin(), std::prev(later));
}

Interval AddressSpace::era(Time time) const
{
    const auto next = std::upper_bound(flushes_.begin(), flushes_.end(), time);
    return {next == flushes_.begin() ? 0 : *std::prev(next), next == flushes_.end() ? kForever : *next};
}

void VcpuHistory::context(Time now, const Root& root, Format format, std::uint64_t pcid, bool globals)
{
    if (root_.paging != Paging::off) spaces_[pcid_].close(now);
    root_ = root;
    pcid_ = pcid;
    globals_ = globals;
    if (root_.paging != Paging::off) {
        spaces_[pcid_].open(root_, now);
        ++loads_;
    }
    if (formats_.back().paging != format.paging || formats_.back().rules != format.rules) {
        format.start = now;
        formats_.push_back(format);
    }
}

std::uint64_t VcpuHistory::page_key(Scope scope, std::uint64_t pcid, LinearAddress address, unsigned shift)
{
    const std::uint64_t page = (address.value() & ((std::uint64_t{1} << kLinearBits) - 1)) >> shift;
    const auto size = static_cast<std::uint64_t>(std::find(kPageShifts.begin(), kPageShifts.end(), shift) -
                                                 kPageShifts.begin());
    return page << 15 | pcid << 3 | size << 1 | (scope == Scope::global ? 1 : 0);
}

void VcpuHistory::invalidated_page(Time now, std::uint64_t pcid, LinearAddress address, bool with_globals,
                                   std::string_view name)
{
    const Flush flush{now, name, pcid, true};
    for (const unsigned shift : kPageShifts) {
        pages_[page_key(Scope::pcid, pcid, address, shift)] = flush;
        if (with_globals) pages_[page_key(Scope::global, 0, address, shift)] = flush;
    }
}

void VcpuHistory::invalidated_pcid(Time now, std::uint64_t pcid, std::string_view name)
{
    const auto space = spaces_.find(pcid);
    if (space == spaces_.end()) return;  // it was never current
    space->second.last_flush = {now, name};
    space->second.flush(now);
    ++loads_;
}

void VcpuHistory::invalidated_all(Time now, bool with_globals, std::string_view name)
{
    all_ = {now, name};
    if (with_globals) all_with_globals_ = all_;
    for (auto& [pcid, space] : spaces_) space.flush(now);
    loads_ += spaces_.size();
}

Flush VcpuHistory::last_page_flush(Scope scope, std::uint64_t pcid, LinearAddress address,
                                   unsigned shift) const
{
    const auto found = pages_.find(page_key(scope, pcid, address, shift));
    return found == pages_.end() ? Flush{} : found->second;
}

Flush VcpuHistory::last_flush(std::uint64_t pcid, LinearAddress address, unsigned shift) const
{
    return later(last_flush(pcid), last_page_flush(Scope::pcid, pcid, address, shift));
}

Flush VcpuHistory::last_global_flush(LinearAddress address, unsigned shift) const
{
    return later(all_with_globals_, last_page_flush(Scope::global, 0, address, shift));
}

const Flush& VcpuHistory::last_flush(std::uint64_t pcid) const
{
    const auto space = spaces_.find(pcid);
    return space == spaces_.end() ? all_ : later(all_, space->second.last_flush);
}

void VcpuHistory::sweep()
{
    for (auto& [pcid, space] : spaces_) space.forget(globals_ ? empty_since() : last_flush(pcid).time);
    boost::unordered::erase_if(pages_, [&](const auto& item) {
        const Flush& flush = item.second;
        const bool global = (item.first & 1) != 0;
        return flush.time <= (global ? empty_since() : last_flush(flush.pcid).time);
    });
    loads_ = 0;
}

}  // namespace mmusim::coherence
