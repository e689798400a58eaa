// SPDX-License-Identifier: Apache-2.0
#include <mmusim/microbench/testbed.hpp>

#include <stdexcept>

namespace mmusim::microbench {

namespace {

constexpr std::uint64_t kTable = pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed;
constexpr std::uint64_t kLeaf = kTable | pte::kDirty;
constexpr std::uint32_t kAccessBytes = 8;
constexpr unsigned kTableEntries = 512;

/// Frames for tables and 4 KiB pages lie scattered, as on a machine that has run for a while; those for
/// larger pages lie above them.
constexpr unsigned kScatteredBits = 24;
constexpr std::uint64_t kScattered = std::uint64_t{1} << kScatteredBits;
constexpr unsigned kPhysicalBits = 52;

MachineConfig config_of(std::shared_ptr<const CpuProfile> cpu, const TestbedOptions& options)
{
    MachineConfig config;
    for (const auto& [name, feature] : kFeatureNames) config.cpuid.*feature = true;
    config.cpuid.physical_address_bits = kPhysicalBits;
    config.ram = {{Gfn{0}, std::uint64_t{1} << (kPhysicalBits - kPageShift)}};
    config.mode = TranslationMode::native;
    config.cpu = std::move(cpu);
    config.clock = options.clock;
    config.window = options.window;
    return config;
}

}  // namespace

std::string_view name_of(PageSize size)
{
    switch (size) {
    case PageSize::k4k: return "4K";
    case PageSize::k2m: return "2M";
    case PageSize::k1g: return "1G";
    }
    return "?";
}

Testbed::Testbed(std::shared_ptr<const CpuProfile> cpu, const Options& options)
    : machine_{config_of(std::move(cpu), options)}
    , levels_{options.paging == Paging::five_level ? 5 : 4}
    , root_{new_frame()}
{
    Registers registers;
    registers.cr0 = cr0::kPe | cr0::kPg | cr0::kWp;
    registers.cr3 = root_.address().value();
    registers.cr4 = cr4::kPae | (levels_ == 5 ? cr4::kLa57 : 0);
    registers.efer = efer::kLme;
    if (machine_.set_registers(0, registers)) throw std::logic_error("the testbed's registers are refused");
}

Gfn Testbed::new_frame()
{
    // An odd factor: one-to-one modulo a power of two. Frame 0 is used too.
    constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15;
    const std::uint64_t scattered = frames_used_++ * kFactor % kScattered;
    return Gfn{scattered ^ (scattered >> (kScatteredBits / 2))};
}

Gfn Testbed::new_page(PageSize size)
{
    if (size == PageSize::k4k) return new_frame();
    const unsigned frames_shift = shift_of(PageSize::k1g) - kPageShift;
    return Gfn{kScattered + (big_pages_used_++ << frames_shift)};
}

GuestPhysical Testbed::entry_at(Gfn table, int level, LinearAddress address) const
{
    const unsigned index = kFiveLevel.index(address, level);
    return table.address(index * sizeof(std::uint64_t));
}

std::uint64_t Testbed::entry(GuestPhysical at) const
{
    std::uint64_t value = 0;
    machine_.peek(at, std::as_writable_bytes(std::span{&value, 1}));
    return value;
}

void Testbed::set_entry(GuestPhysical at, std::uint64_t value)
{
    machine_.poke(at, std::as_bytes(std::span{&value, 1}));
}

void Testbed::map(LinearAddress page, PageSize size, Gfn frame)
{
    const int leaf = static_cast<int>(size);
    Gfn table = root_;
    for (int level = levels_; level > leaf; --level) {
        const GuestPhysical at = entry_at(table, level, page);
        std::uint64_t value = entry(at);
        if ((value & pte::kPresent) == 0) {
            value = new_frame().address().value() | kTable;
            set_entry(at, value);
        }
        table = Gfn::of(GuestPhysical{value & pte::kFrame});
    }
    set_entry(entry_at(table, leaf, page), frame.address().value() | kLeaf | (leaf > 1 ? pte::kPageSize : 0));
}

void Testbed::map_folded(unsigned first, unsigned count, PageSize size)
{
    const int leaf = static_cast<int>(size);
    std::uint64_t value = new_page(size).address().value() | kLeaf | (leaf > 1 ? pte::kPageSize : 0);
    for (int level = leaf; level < levels_; ++level) {
        const Gfn table = new_frame();
        for (unsigned i = 0; i < kTableEntries; ++i) set_entry(table.address(i * sizeof value), value);
        value = table.address().value() | kTable;
    }
    for (unsigned i = first; i < first + count; ++i) set_entry(root_.address(i * sizeof value), value);
}

Cycles Testbed::access(AccessKind kind, LinearAddress address)
{
    const StreamAccess one{.address = address, .bytes = kAccessBytes, .kind = kind};
    return run({&one, 1});
}

Cycles Testbed::run(std::span<const StreamAccess> accesses)
{
    const Cycles before = machine_.clock()->now();
    if (machine_.run(0, accesses) != 0) throw std::logic_error("an access of the testbed is not mapped");
    return machine_.clock()->now() - before;
}

void Testbed::flush()
{
    if (machine_.mov_cr3(0, root_.address().value())) throw std::logic_error("MOV CR3 is refused");
}

std::uint32_t Testbed::instructions(Cycles cycles) const
{
    return static_cast<std::uint32_t>(cycles * machine_.config().cpu->timing.front_end.issue_width);
}

}  // namespace mmusim::microbench
