// SPDX-License-Identifier: Apache-2.0
#include "trace/text_buffer.hpp"

#include <cstring>

namespace mmusim::trace {

namespace {

constexpr std::size_t kFirstBytes = std::size_t{256} << 10;

}  // namespace

TextBuffer::TextBuffer(ByteSource& source) : source_{&source}, text_(kFirstBytes + kTextPadding) {}

bool TextBuffer::more()
{
    if (begin_ > 0) {
        std::memmove(text_.data(), text_.data() + begin_, end_ - begin_);
        dropped_ += begin_;
        end_ -= begin_;
        begin_ = 0;
    }
    if (end_ == text_.size() - kTextPadding) text_.resize(2 * end_ + kTextPadding);
    const std::size_t got = source_->read({text_.data() + end_, text_.size() - kTextPadding - end_});
    end_ += got;
    return got > 0;
}

}  // namespace mmusim::trace
