// SPDX-License-Identifier: Apache-2.0
#include <mmusim/words/segment.hpp>

namespace mmusim {

namespace {

Exception violation(Segment segment, std::string_view why)
{
    return {segment == Segment::ss ? Vector::stack_fault : Vector::general_protection, 0, {}, why};
}

bool inside(const SegmentRegister& segment, std::uint64_t first, std::uint32_t bytes)
{
    const std::uint64_t last = first + bytes - 1;
    if (segment.expand_down) {
        const std::uint64_t top = segment.big ? 0xffff'ffff : 0xffff;
        return first > segment.limit && last <= top;
    }
    // A 4 GiB segment has no end to run over: the address wraps.
    return segment.limit == 0xffff'ffff || last <= segment.limit;
}

}  // namespace

Result<LinearAddress, Exception> linear_address(const SegmentRegisters& segments, Segment segment,
                                                VirtualAddress offset, std::uint32_t bytes, bool long_mode)
{
    const SegmentRegister& descriptor = segments[segment];
    if (long_mode) {
        const bool has_base = segment == Segment::fs || segment == Segment::gs;
        return LinearAddress{(has_base ? descriptor.base : 0) + offset.value()};
    }
    if (descriptor.null) return violation(segment, "the segment register holds a null selector");
    if (!inside(descriptor, offset.value(), bytes)) {
        return violation(segment, "the access lies outside the segment's limit");
    }
    return LinearAddress{(descriptor.base + offset.value()) & 0xffff'ffff};
}

}  // namespace mmusim
