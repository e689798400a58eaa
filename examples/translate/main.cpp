// SPDX-License-Identifier: Apache-2.0
// Builds a 4-level guest, maps one page, and translates an address through shadow pagetables.
#include <cstring>

#include <fmt/format.h>

#include <mmusim/machine/machine.hpp>

using namespace mmusim;

int main()
{
    MachineConfig config;
    config.ram = {{Gfn{0}, 0x100}};  // 1 MiB, behind a P2M that moves it
    config.p2m = {.kind = P2mLayout::Kind::offset, .offset = 0x8000, .seed = 0, .entries = {}};
    config.policy = builtin_shadow_policies().find("write-protect");
    Machine machine{config};

    const auto write_entry = [&](Gfn table, unsigned index, std::uint64_t entry) {
        std::array<std::byte, 8> bytes;
        std::memcpy(bytes.data(), &entry, sizeof entry);
        machine.poke(table.address(index * 8), bytes);
    };
    const LinearAddress page{0x40'0000'1000};  // L4[0], L3[256], L2[0], L1[1]
    write_entry(Gfn{1}, 0, 0x2000 | pte::kPresent | pte::kWritable);
    write_entry(Gfn{2}, 256, 0x3000 | pte::kPresent | pte::kWritable);
    write_entry(Gfn{3}, 0, 0x4000 | pte::kPresent | pte::kWritable);
    write_entry(Gfn{4}, 1, 0x7000 | pte::kPresent | pte::kWritable);

    Registers registers;
    registers.cr0 = cr0::kPe | cr0::kPg | cr0::kWp;
    registers.cr3 = 0x1000;
    registers.cr4 = cr4::kPae;
    registers.efer = efer::kLme;
    if (const auto refusal = machine.set_registers(0, registers)) return 1;

    const auto placed = machine.access(0, {.address = page + 0x123, .bytes = 4, .kind = AccessKind::write});
    if (!placed) return 1;
    const GuestPhysical found = placed->parts[0].address;
    fmt::print("linear {} -> guest-physical {} -> machine frame {}, after {} shadow faults\n", page + 0x123,
               found, *machine.p2m().mfn_of(Gfn::of(found)), machine.shadow()->counters().fault);
    return found == GuestPhysical{0x7123} ? 0 : 1;
}
