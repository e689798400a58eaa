// SPDX-License-Identifier: Apache-2.0
#include <mmusim/p2m/p2m_store.hpp>

#include <cassert>

#include <fmt/format.h>

namespace mmusim {

P2mStore::Found FlatP2m::get(Gfn gfn) const
{
    const auto found = entries_.find(gfn.number());
    return {found == entries_.end() ? P2mEntry{} : found->second, 1};
}

void FlatP2m::set(Gfn first, int level, const P2mEntry& entry)
{
    for (std::uint64_t i = 0; i < p2m_page_frames(level); ++i) {
        if (entry == P2mEntry{}) {
            entries_.erase((first + i).number());
        } else {
            entries_[(first + i).number()] = entry.at(i);
        }
    }
}

P2mTables::P2mTables(SparseMemory& memory, P2mFormat format, int levels, Mfn last)
    : memory_{&memory}, format_{format}, levels_{levels}, last_{last}, root_{take()}
{
    assert(format != P2mFormat::flat && (levels == 4 || levels == 5));
}

Mfn P2mTables::take()
{
    if (!free_.empty()) {
        const Mfn table = free_.back();
        free_.pop_back();
        return table;
    }
    return Mfn{last_.number() - taken_++};
}

void P2mTables::give_back(Mfn table, int level)
{
    for (unsigned i = 0; level > 1 && i < kEntries; ++i) {
        const std::uint64_t raw = load(table, i);
        if (is_table_entry(raw, level)) give_back(decode(raw).mfn, level - 1);
    }
    memory_->discard(table.number());
    free_.push_back(table);
}

void P2mTables::clear()
{
    for (std::uint64_t i = 0; i < taken_; ++i) memory_->discard(last_.number() - i);
    free_.clear();
    taken_ = 0;
    root_ = take();
}

P2mStore::Found P2mTables::get(Gfn gfn) const
{
    if (gfn.number() >> (9 * levels_) != 0) return {};
    Mfn table = root_;
    for (int level = levels_; level > 1; --level) {
        const std::uint64_t raw = load(table, index(gfn, level));
        if (!is_table_entry(raw, level)) {
            return {decode(raw).at(gfn.number() & (p2m_page_frames(level) - 1)), level};
        }
        table = Mfn{(raw & pte::kFrame) >> kPageShift};
    }
    return {decode(load(table, index(gfn, 1))), 1};
}

Mfn P2mTables::make_table(Gfn gfn, int wanted)
{
    assert(gfn.number() >> (9 * levels_) == 0);
    Mfn table = root_;
    for (int level = levels_; level > wanted; --level) {
        const std::uint64_t raw = load(table, index(gfn, level));
        if (is_table_entry(raw, level)) {
            table = Mfn{(raw & pte::kFrame) >> kPageShift};
            continue;
        }
        const Mfn made = take();
        // A page splits into 512 that say the same.
        const P2mEntry page = decode(raw);
        for (unsigned i = 0; raw != 0 && i < kEntries; ++i)
            store(made, i, encode(format_, page.at(i * p2m_page_frames(level - 1)), level - 1));
        store(table, index(gfn, level), table_entry(format_, made));
        table = made;
    }
    return table;
}

void P2mTables::set(Gfn first, int level, const P2mEntry& entry)
{
    assert((first.number() & (p2m_page_frames(level) - 1)) == 0);
    const Mfn table = make_table(first, level);
    const unsigned i = index(first, level);
    const std::uint64_t old = load(table, i);
    store(table, i, encode(format_, entry, level));
    if (is_table_entry(old, level)) give_back(Mfn{(old & pte::kFrame) >> kPageShift}, level - 1);
}

bool P2mTables::merge(Gfn gfn, int level)
{
    Mfn table = root_;
    for (int at = levels_; at > level; --at) {
        const std::uint64_t raw = load(table, index(gfn, at));
        if (!is_table_entry(raw, at)) return false;
        table = Mfn{(raw & pte::kFrame) >> kPageShift};
    }
    const std::uint64_t raw = load(table, index(gfn, level));
    if (!is_table_entry(raw, level)) return false;
    const Mfn below{(raw & pte::kFrame) >> kPageShift};
    const std::uint64_t first_raw = load(below, 0);
    if (first_raw == 0 || is_table_entry(first_raw, level - 1)) return false;
    const P2mEntry first = decode(first_raw);
    if (first.has_frame() && (first.mfn.number() & (p2m_page_frames(level) - 1)) != 0) return false;
    constexpr std::uint64_t kHardware = ept::kAccessed | ept::kDirty | pte::kAccessed | pte::kDirty;
    const std::uint64_t ignored = format_ == P2mFormat::ept ? ept::kAccessed | ept::kDirty
                                                            : kHardware & ~(ept::kAccessed | ept::kDirty);
    for (unsigned i = 1; i < kEntries; ++i) {
        const std::uint64_t wanted = encode(format_, first.at(i * p2m_page_frames(level - 1)), level - 1);
        if (((load(below, i) ^ wanted) & ~ignored) != 0) return false;
    }
    store(table, index(gfn, level), encode(format_, first, level));
    give_back(below, level - 1);
    return true;
}

void P2mTables::audit_table(Mfn table, int level, std::uint64_t& tables,
                            std::vector<std::string>& violations) const
{
    ++tables;
    for (unsigned i = 0; i < kEntries; ++i) {
        const std::uint64_t raw = load(table, i);
        if (raw == 0) continue;
        if (is_table_entry(raw, level)) {
            audit_table(Mfn{(raw & pte::kFrame) >> kPageShift}, level - 1, tables, violations);
            continue;
        }
        const P2mEntry entry = decode(raw);
        const std::uint64_t hardware =
            format_ == P2mFormat::ept ? ept::kAccessed | ept::kDirty : pte::kAccessed | pte::kDirty;
        if (((raw ^ encode(format_, entry, level)) & ~hardware) != 0 || level > kLargestP2mPage) {
            violations.push_back(
                fmt::format("P2M table {} of level {}, entry {} ({:#x}) is none that is ever made", table,
                            level, i, raw));
        }
    }
}

void P2mTables::audit(std::vector<std::string>& violations) const
{
    std::uint64_t tables = 0;
    audit_table(root_, levels_, tables, violations);
    if (tables != pages()) {
        violations.push_back(fmt::format("P2M: {} tables are reached, {} are in use", tables, pages()));
    }
}

}  // namespace mmusim
