// SPDX-License-Identifier: Apache-2.0
//
// Storage of records, kept from one record to the next. A reader fills the same Record again and again;
// where the kind of record changes, what the old one had allocated is kept here for the next of its kind.
#pragma once

#include <cstddef>
#include <utility>
#include <variant>
#include <vector>

#include <mmusim/trace/record.hpp>

namespace mmusim::trace {

class SpareStorage {
public:
    /// Makes `record` a T, with the storage that it or an earlier record had.
    template <class T>
    T& remake(Record& record)
    {
        if (T* const same = std::get_if<T>(&record)) return *same;
        std::visit([this](auto& old) { this->keep(old); }, record);
        T& fresh = record.emplace<T>();
        hand_out(fresh);
        return fresh;
    }

    /// Makes `content` `bytes` long, which may be more than fits in it without an allocation.
    void resize(Content& content, std::size_t bytes)
    {
        if (bytes > content.capacity() && !contents_.empty()) {
            content = std::move(contents_.back());
            contents_.pop_back();
        }
        content.resize(bytes, boost::container::default_init);
    }
    /// Adds an access to a list of operands, or takes the ones after `count` from it.
    AccessRecord& append(std::vector<AccessRecord>& operands, std::size_t position)
    {
        return position < operands.size() ? operands[position] : operands.emplace_back();
    }
    /// An empty list of frames.
    [[nodiscard]] std::vector<Gfn> frames()
    {
        frames_.clear();
        return std::move(frames_);
    }
    void keep(std::vector<Gfn> frames)
    {
        if (frames.capacity() > frames_.capacity()) frames_ = std::move(frames);
    }
    void shrink(std::vector<AccessRecord>& operands, std::size_t count)
    {
        while (operands.size() > count) {
            keep(operands.back());
            operands.pop_back();
        }
    }

private:
    static constexpr std::size_t kMostContents = 16;

    void keep(AccessRecord& old)
    {
        if (old.content.capacity() > Content::static_capacity && contents_.size() < kMostContents) {
            contents_.push_back(std::move(old.content));
        }
    }
    void keep(InstructionRecord& old)
    {
        keep(old.fetch);
        operands_ = std::move(old.operands);
    }
    void keep(SetRecord& old) { segments_ = std::move(old.segments); }
    void keep(PageRecord& old) { entries_ = std::move(old.entries); }
    void keep(LogDirtyRecord& old)
    {
        if (old.expect) keep(std::move(*old.expect));
    }
    void keep(SecureFramesRecord& old) { keep(std::move(old.gfns)); }
    template <class T>
    void keep(T& /*old*/)
    {
    }

    void hand_out(InstructionRecord& fresh) { fresh.operands = std::move(operands_); }
    void hand_out(SetRecord& fresh) { fresh.segments = std::move(segments_); }
    void hand_out(PageRecord& fresh) { fresh.entries = std::move(entries_); }
    void hand_out(SecureFramesRecord& fresh) { fresh.gfns = frames(); }
    template <class T>
    void hand_out(T& /*fresh*/)
    {
    }

    std::vector<Content> contents_;
    std::vector<AccessRecord> operands_;
    std::vector<SegmentUpdate> segments_;
    std::vector<Gfn> frames_;
    decltype(PageRecord::entries) entries_;
};

}  // namespace mmusim::trace
