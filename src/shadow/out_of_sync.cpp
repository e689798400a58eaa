// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/out_of_sync.hpp>

#include <cassert>
#include <utility>

namespace mmusim {

OutOfSyncTables::OutOfSyncTables(unsigned vcpus, unsigned slots, unsigned fixups)
    : slots_{slots}, fixups_{fixups}, vcpus_(vcpus)
{
    for (Slots& mine : vcpus_) mine.resize(slots);
}

const OutOfSyncTables::Table* OutOfSyncTables::find(Gfn frame) const
{
    if (count_ == 0) return nullptr;
    if (listed_) {
        const auto found = number_of_.find(frame.number());
        return found == number_of_.end() ? nullptr : &list_.at(found->second);
    }
    for (const Slots& slots : vcpus_) {
        for (const auto& table : slots) {
            if (table && table->frame == frame) return &*table;
        }
    }
    return nullptr;
}

OutOfSyncTables::Table* OutOfSyncTables::find(Gfn frame)
{
    return const_cast<Table*>(std::as_const(*this).find(frame));
}

std::optional<Gfn> OutOfSyncTables::evicted_by(unsigned vcpu, Gfn frame) const
{
    if (listed_) return std::nullopt;
    const Slots& slots = vcpus_[vcpu];
    const std::size_t home = home_of(frame);
    if (!slots[home]) return std::nullopt;
    // Who is at home there moves on, and who is where it goes has to leave.
    const bool moves = home_of(slots[home]->frame) == home;
    const auto& loser = moves ? slots[(home + 1) % slots_] : slots[home];
    return loser ? std::optional{loser->frame} : std::nullopt;
}

OutOfSyncTables::Table& OutOfSyncTables::add(unsigned vcpu, Gfn frame)
{
    assert(!evicted_by(vcpu, frame));
    ++count_;
    if (listed_) {
        number_of_[frame.number()] = arrivals_;
        return start(list_[arrivals_++], frame);
    }
    Slots& slots = vcpus_[vcpu];
    const std::size_t home = home_of(frame);
    if (slots[home]) slots[(home + 1) % slots_] = std::move(slots[home]);
    return start(slots[home].emplace(), frame);
}

OutOfSyncTables::Table& OutOfSyncTables::start(Table& table, Gfn frame)
{
    table.frame = frame;
    table.may_write = true;
    table.fixups.resize(fixups_);
    return table;
}

void OutOfSyncTables::remove(Gfn frame)
{
    if (const auto found = number_of_.find(frame.number()); found != number_of_.end()) {
        list_.erase(found->second);
        number_of_.erase(found);
        --count_;
        return;
    }
    for (Slots& slots : vcpus_) {
        for (auto& table : slots) {
            if (!table || table->frame != frame) continue;
            table.reset();
            --count_;
            return;
        }
    }
}

std::vector<Gfn> OutOfSyncTables::of(unsigned vcpu) const
{
    std::vector<Gfn> frames;
    for (const auto& table : vcpus_[vcpu]) {
        if (table) frames.push_back(table->frame);
    }
    return frames;
}

std::vector<Gfn> OutOfSyncTables::all() const
{
    std::vector<Gfn> frames;
    for (unsigned vcpu = 0; vcpu < vcpus(); ++vcpu) {
        const auto mine = of(vcpu);
        frames.insert(frames.end(), mine.begin(), mine.end());
    }
    for (const auto& [number, table] : list_) frames.push_back(table.frame);
    return frames;
}

std::vector<OutOfSyncTables::Table> OutOfSyncTables::take_all()
{
    std::vector<Table> tables;
    for (Slots& slots : vcpus_) {
        for (auto& table : slots) {
            if (table) tables.push_back(std::move(*table));
            table.reset();
        }
    }
    for (auto& [number, table] : list_) tables.push_back(std::move(table));
    list_.clear();
    number_of_.clear();
    count_ = 0;
    return tables;
}

}  // namespace mmusim
