// SPDX-License-Identifier: Apache-2.0
//
// Which keys may and which must stand in which record. What depends on more than one key is
// record_parser.cpp's business.
#pragma once

#include <array>

#include "trace/record_keys.hpp"

namespace mmusim::trace {

struct Shape {
    KeySet allowed = 0;
    KeySet required = 0;
};

inline constexpr KeySet kAddress = keys({Key::la, Key::va, Key::seg});
inline constexpr KeySet kExpectations = keys({Key::gpa, Key::gpa2, Key::fault, Key::cr2, Key::event});
inline constexpr KeySet kOperand =
    kAddress | kExpectations |
    keys({Key::op, Key::size, Key::value, Key::bytes, Key::rmw, Key::implicit, Key::cpl});
inline constexpr KeySet kAccess = kOperand | keys({Key::vcpu, Key::gap});
inline constexpr KeySet kFetchOfInstruction = kAccess & ~keys({Key::value, Key::bytes, Key::rmw});
inline constexpr KeySet kRegister = keys({Key::op, Key::vcpu, Key::gap, Key::fault});
inline constexpr KeySet kSegments = keys({Key::cs, Key::ss, Key::ds, Key::es, Key::fs, Key::gs});

[[nodiscard]] constexpr Shape shape_of(Op op)
{
    using enum Op;
    const auto with_value = [](KeySet set) { return Shape{set | bit(Key::value), bit(Key::value)}; };
    switch (op) {
    case read:
    case write:
    case fetch: return {kAccess, 0};
    case insn: return {kFetchOfInstruction | bit(Key::mem), bit(Key::mem)};
    case set:
        return {keys({Key::op, Key::vcpu, Key::cr0, Key::cr3, Key::cr4, Key::efer, Key::cpl, Key::ac,
                      Key::pkru, Key::pkrs, Key::segments}),
                0};
    case mov_cr0:
    case mov_cr3:
    case mov_cr4:
    case wrpkru:
    case cpl:
    case ac: return with_value(kRegister);
    case wrmsr: return {kRegister | keys({Key::msr, Key::value}), keys({Key::msr, Key::value})};
    case invlpg: return {kRegister | bit(Key::la), bit(Key::la)};
    case invpcid: return {kRegister | keys({Key::type, Key::pcid, Key::la}), bit(Key::type)};
    case page: {
        constexpr KeySet kPage = keys({Key::gfn, Key::width, Key::entries});
        return {bit(Key::op) | kPage, kPage};
    }
    case poke: {
        constexpr KeySet kPoke = keys({Key::gpa, Key::size, Key::value});
        return {bit(Key::op) | kPoke, kPoke};
    }
    case expect_memory: {
        constexpr KeySet kCell = keys({Key::gpa, Key::size, Key::value});
        return {keys({Key::op, Key::ignore}) | kCell, kCell};
    }
    case reset: return {keys({Key::op, Key::name}), 0};
    case mark: return {keys({Key::op, Key::name}), bit(Key::name)};
    case shadow_blow: return {bit(Key::op), 0};
    case p2m_set:
        return {keys({Key::op, Key::gfn, Key::mfn, Key::count, Key::type, Key::access}), bit(Key::gfn)};
    case p2m_clear: return {keys({Key::op, Key::gfn, Key::count}), bit(Key::gfn)};
    case log_dirty: return {keys({Key::op, Key::action, Key::expect}), bit(Key::action)};
    case mem_access:
        return {keys({Key::op, Key::gfn, Key::count, Key::default_all, Key::access, Key::listener,
                      Key::required}),
                0};
    case secure_frames: return {keys({Key::op, Key::gfns}), bit(Key::gfns)};
    case secure_mode: return with_value(keys({Key::op, Key::vcpu}));
    case end: return {keys({Key::op, Key::records}), bit(Key::records)};
    case unknown: break;
    }
    return {};
}

inline constexpr auto kShapes = [] {
    std::array<Shape, kOps> shapes{};
    for (std::size_t i = 0; i < kOps; ++i) shapes[i] = shape_of(static_cast<Op>(i));
    return shapes;
}();

}  // namespace mmusim::trace
