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
    Slots& slots = vcpus_[vcpu];
    const std::size_t home = home_of(frame);
    if (slots[home]) slots[(home + 1) % slots_] = std::move(slots[home]);
    slots[home].emplace();
    slots[home]->frame = frame;
    slots[home]->may_write = true;
    slots[home]->fixups.resize(fixups_);
    ++count_;
    return *slots[home];
}

void OutOfSyncTables::remove(Gfn frame)
{
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

}  // namespace mmusim
