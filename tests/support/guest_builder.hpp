// SPDX-License-Identifier: Apache-2.0
//
// A small guest for hand-written cases: a machine with some RAM, and tables built entry by entry from
// outside. Entries are plain numbers; levels are numbered as everywhere, 1 is the leaf table.
#pragma once

#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <mmusim/machine/machine.hpp>

namespace guest {

using namespace mmusim;

inline constexpr std::uint64_t P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100;
inline constexpr std::uint64_t NX = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kAll = P | W | U | A | D;

inline constexpr std::uint64_t key(unsigned number)
{
    return std::uint64_t{number} << 59;
}

struct Options {
    TranslationMode mode = TranslationMode::shadow;
    std::string policy = "write-protect";
    Populate populate = Populate::leaf;
    std::string layout = "offset:0x8000";
    unsigned vcpus = 1;
};

inline Options native()
{
    Options options;
    options.mode = TranslationMode::native;
    return options;
}

inline Options under(const std::string& policy, Populate populate = Populate::leaf)
{
    Options options;
    options.policy = policy;
    options.populate = populate;
    return options;
}

/// Native and every policy.
inline std::vector<Options> everywhere()
{
    std::vector<Options> all{native()};
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const auto& policy : catalog.entries()) all.push_back(under(policy.name));
    return all;
}

inline MachineConfig config_of(const Options& options)
{
    MachineConfig config;
    for (const auto& [name, feature] : kFeatureNames) config.cpuid.*feature = true;
    config.vcpus = options.vcpus;
    // 4 MiB; in the second 1 GiB page; above 4 GiB.
    config.ram = {{Gfn{0}, 0x400}, {Gfn{0x40000}, 0x10}, {Gfn{0x100000}, 0x10}};
    config.mode = options.mode;
    config.populate = options.populate;
    if (options.mode != TranslationMode::native) {
        config.p2m = parse_p2m_layout(options.layout).value();
        config.policy = builtin_shadow_policies().find(options.policy);
    }
    return config;
}

/// How an access ended.
struct Seen {
    std::optional<Exception> fault;
    Placed placed;

    [[nodiscard]] bool ok() const { return !fault; }
    [[nodiscard]] std::uint64_t at(std::size_t part = 0) const { return placed.parts[part].address.value(); }
    [[nodiscard]] bool emulated() const { return placed.parts[0].emulated; }
    [[nodiscard]] bool page_fault(std::uint32_t code, std::uint64_t cr2) const
    {
        return fault && fault->vector == Vector::page_fault && fault->error_code == code &&
               fault->address.value() == cr2;
    }
    [[nodiscard]] bool raised(Vector vector) const { return fault && fault->vector == vector; }
};

class Guest {
public:
    Machine machine;

    explicit Guest(Paging paging, const Options& options = {}) : Guest(paging, config_of(options)) {}
    Guest(Paging paging, MachineConfig config) : machine{std::move(config)}, paging_{paging}
    {
        root_ = new_table();
        for (unsigned vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) load(vcpu, root_);
    }

    // --- tables ---
    Gfn new_table() { return Gfn{next_table_++}; }
    [[nodiscard]] Gfn root() const { return root_; }
    [[nodiscard]] int levels() const
    {
        if (paging_ == Paging::two_level) return 2;
        return paging_ == Paging::pae ? 3 : paging_ == Paging::four_level ? 4 : 5;
    }
    [[nodiscard]] unsigned entry_bytes() const { return paging_ == Paging::two_level ? 4 : 8; }
    [[nodiscard]] unsigned shift(int level) const
    {
        return 12 + static_cast<unsigned>(level - 1) * (paging_ == Paging::two_level ? 10 : 9);
    }
    [[nodiscard]] std::uint64_t word(std::uint64_t gpa, unsigned bytes = 8) const
    {
        std::uint64_t value = 0;
        machine.peek(GuestPhysical{gpa}, std::as_writable_bytes(std::span{&value, 1}).first(bytes));
        return value;
    }
    void poke(std::uint64_t gpa, std::uint64_t value, unsigned bytes = 8)
    {
        machine.poke(GuestPhysical{gpa}, std::as_bytes(std::span{&value, 1}).first(bytes));
    }
    /// Where the entry of `level` for an address is; the tables above must be there.
    [[nodiscard]] std::uint64_t entry_at(std::uint64_t linear, int level) const
    {
        return entry_at(root_, linear, level);
    }
    [[nodiscard]] std::uint64_t entry_at(Gfn root, std::uint64_t linear, int level) const
    {
        std::uint64_t table = root.address().value();
        for (int at = levels();; --at) {
            const std::uint64_t mask = paging_ == Paging::two_level ? 1023 : 511;
            const std::uint64_t here = table + (linear >> shift(at) & mask) * entry_bytes();
            if (at == level) return here;
            table = word(here, entry_bytes()) & (entry_bytes() == 4 ? 0xffff'f000 : pte::kFrame);
        }
    }
    [[nodiscard]] std::uint64_t entry(std::uint64_t linear, int level) const
    {
        return word(entry_at(linear, level), entry_bytes());
    }
    void set_entry(std::uint64_t linear, int level, std::uint64_t value)
    {
        poke(entry_at(linear, level), value, entry_bytes());
    }
    /// Maps a page (of `level`: a superpage) and makes the tables above that are missing.
    void map(std::uint64_t linear, std::uint64_t gpa, std::uint64_t flags = kAll, int level = 1)
    {
        map_in(root_, linear, gpa, flags, level);
    }
    void map_in(Gfn root, std::uint64_t linear, std::uint64_t gpa, std::uint64_t flags = kAll, int level = 1)
    {
        for (int at = levels(); at > level; --at) {
            const std::uint64_t where = entry_at(root, linear, at);
            if ((word(where, entry_bytes()) & P) != 0) continue;
            const bool pdpte = paging_ == Paging::pae && at == 3;
            poke(where, new_table().address().value() | (pdpte ? P : P | W | U | A), entry_bytes());
        }
        std::uint64_t value = gpa | flags | (level > 1 ? PS : 0);
        if (paging_ == Paging::two_level && level == 2) value |= (gpa >> 32) << 13;
        poke(entry_at(root, linear, level), value & (entry_bytes() == 4 ? 0xffff'ffff : ~std::uint64_t{0}),
             entry_bytes());
        if (paging_ == Paging::pae) reload();
    }

    // --- registers ---
    void load(unsigned vcpu, Gfn root)
    {
        Registers registers;
        registers.cr0 = cr0::kPg | cr0::kWp | cr0::kPe;
        registers.cr3 = root.address().value();
        if (paging_ == Paging::two_level) {
            registers.cr4 = cr4::kPse;
        } else {
            registers.cr4 = cr4::kPae;
            registers.efer = efer::kNxe;
        }
        if (paging_ == Paging::four_level || paging_ == Paging::five_level) registers.efer |= efer::kLme;
        if (paging_ == Paging::five_level) registers.cr4 |= cr4::kLa57;
        if (machine.set_registers(vcpu, registers)) throw std::logic_error("registers refused");
    }
    /// PAE: the PDPTE registers from memory.
    void reload()
    {
        for (unsigned vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
            if (machine.set_registers(vcpu, machine.registers(vcpu))) throw std::logic_error("refused");
        }
    }
    bool mov_cr3(Gfn root, unsigned vcpu = 0) { return !machine.mov_cr3(vcpu, root.address().value()); }
    bool set_cr0(std::uint64_t bits, bool value, unsigned vcpu = 0)
    {
        const std::uint64_t old = machine.registers(vcpu).cr0;
        return !machine.mov_cr0(vcpu, value ? old | bits : old & ~bits);
    }
    bool set_cr4(std::uint64_t bits, bool value, unsigned vcpu = 0)
    {
        const std::uint64_t old = machine.registers(vcpu).cr4;
        return !machine.mov_cr4(vcpu, value ? old | bits : old & ~bits);
    }
    bool invlpg(std::uint64_t linear, unsigned vcpu = 0)
    {
        return !machine.invlpg(vcpu, LinearAddress{linear});
    }

    // --- accesses ---
    Seen access(const Operand& operand, unsigned vcpu = 0)
    {
        const auto placed = machine.access(vcpu, operand);
        if (!placed) return {placed.error(), {}};
        return {{}, *placed};
    }
    static Operand operand(AccessKind kind, std::uint64_t linear, std::uint32_t bytes = 8, bool user = false)
    {
        Operand operand;
        operand.address = LinearAddress{linear};
        operand.bytes = bytes;
        operand.kind = kind;
        operand.user_mode = user;
        return operand;
    }
    Seen read(std::uint64_t linear, std::uint32_t bytes = 8, unsigned vcpu = 0)
    {
        return access(operand(AccessKind::read, linear, bytes), vcpu);
    }
    Seen write(std::uint64_t linear, std::uint32_t bytes = 8, unsigned vcpu = 0)
    {
        return access(operand(AccessKind::write, linear, bytes), vcpu);
    }
    Seen fetch(std::uint64_t linear, std::uint32_t bytes = 1, unsigned vcpu = 0)
    {
        return access(operand(AccessKind::fetch, linear, bytes), vcpu);
    }
    /// A write that completes.
    Seen store(std::uint64_t linear, std::uint64_t value, std::uint32_t bytes = 8, unsigned vcpu = 0)
    {
        const Seen seen = write(linear, bytes, vcpu);
        if (seen.ok()) machine.store(seen.placed, std::as_bytes(std::span{&value, 1}).first(bytes));
        return seen;
    }
    std::uint64_t load_word(std::uint64_t linear, std::uint32_t bytes = 8, unsigned vcpu = 0)
    {
        const Seen seen = read(linear, bytes, vcpu);
        if (!seen.ok()) throw std::logic_error("load_word: a fault");
        std::uint64_t value = 0;
        machine.load(seen.placed, std::as_writable_bytes(std::span{&value, 1}).first(bytes));
        return value;
    }

    // --- the shadows ---
    [[nodiscard]] const ShadowCounters& counters() const { return machine.shadow()->counters(); }
    [[nodiscard]] const ShadowCache& shadows() const { return machine.shadow()->cache(); }

private:
    Paging paging_;
    Gfn root_;
    std::uint64_t next_table_ = 0x10;
};

}  // namespace guest
