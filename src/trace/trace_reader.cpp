// SPDX-License-Identifier: Apache-2.0
#include <mmusim/trace/trace_reader.hpp>

#include <algorithm>
#include <utility>

#include "trace/byte_source.hpp"
#include "trace/fault.hpp"
#include "trace/header_parser.hpp"
#include "trace/record_parser.hpp"
#include "trace/splitter.hpp"
#include "trace/text_buffer.hpp"

namespace mmusim {

class TraceReader::Impl {
public:
    explicit Impl(const std::string& path)
        : path_{path}
        , source_{located([&] { return std::make_unique<trace::ByteSource>(path); })}
        , text_{*source_}
        , header_{located([&] { return read_header(); })}
        , parser_{header_}
    {
    }

    bool next(Record& record)
    {
        return located([&] { return read_next(record); });
    }

    [[nodiscard]] TracePlace place() const { return {path_, piece_.line, piece_.column}; }

    [[nodiscard]] const TraceHeader& header() const { return header_; }
    [[nodiscard]] std::uint64_t records() const { return records_; }

private:
    TraceHeader read_header()
    {
        splitter_ = trace::splitter_for(text_);
        if (!splitter_->next(piece_)) throw trace::PlacedFault{1, 0, "has no header"};
        return trace::parse_header(piece_.text);
    }

    bool read_next(Record& record)
    {
        trace::Extent piece;
        if (!splitter_->next(piece)) return false;
        piece_ = piece;
        if (ended_) throw trace::Fault{0, "text after the \"end\" record"};
        parser_.parse(piece.text, records_, record);
        if (std::holds_alternative<EndRecord>(record)) {
            ended_ = true;
        } else {
            ++records_;
        }
        return true;
    }

    /// Does `work`; a fault becomes an error with its place in the file.
    template <class Work>
    auto located(Work work) -> decltype(work())
    {
        try {
            return work();
        } catch (const trace::Fault& fault) {
            throw TraceError{place_of(fault.offset), fault.message, fault.key};
        } catch (const trace::PlacedFault& fault) {
            const std::uint64_t line = fault.line != 0 ? fault.line : splitter_ ? splitter_->line() : 0;
            throw TraceError{{path_, line, fault.column}, fault.message, fault.key};
        }
    }

    /// The place of a byte of the piece that was read last; in a document it may span lines.
    [[nodiscard]] TracePlace place_of(std::size_t offset) const
    {
        const std::string_view before = piece_.text.substr(0, std::min(offset, piece_.text.size()));
        const auto lines = static_cast<std::uint64_t>(std::count(before.begin(), before.end(), '\n'));
        if (lines == 0) return {path_, piece_.line, piece_.column + before.size()};
        return {path_, piece_.line + lines, before.size() - before.rfind('\n')};
    }

    std::string path_;
    trace::Extent piece_;                        // the one that was read last
    std::unique_ptr<trace::Splitter> splitter_;  // made with the header; none before
    std::unique_ptr<trace::ByteSource> source_;
    trace::TextBuffer text_;
    TraceHeader header_;
    trace::RecordParser parser_;
    std::uint64_t records_ = 0;
    bool ended_ = false;
};

TraceReader::TraceReader(const std::string& path) : impl_{std::make_unique<Impl>(path)} {}

TraceReader::~TraceReader() = default;
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;

const TraceHeader& TraceReader::header() const
{
    return impl_->header();
}

bool TraceReader::next(Record& record)
{
    return impl_->next(record);
}

std::uint64_t TraceReader::records() const
{
    return impl_->records();
}

TracePlace TraceReader::place() const
{
    return impl_->place();
}

}  // namespace mmusim
