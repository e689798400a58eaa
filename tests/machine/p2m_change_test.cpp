// SPDX-License-Identifier: Apache-2.0
//
// Machine::set_p2m against two maps: which machine frame and type each guest frame has, and what each machine
// frame holds. Random changes of one frame to several 2 MiB pages, that overlap themselves and each other,
// in every format and with every size of page.
#include <mmusim/machine/machine.hpp>

#include <array>
#include <map>
#include <optional>
#include <random>
#include <set>

#include <fmt/format.h>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace mmusim;

namespace {

constexpr std::uint64_t kFrames = 0x1000;    // guest frames that change, RAM or not
constexpr std::uint64_t kSpare = 0x60'0000;  // machine frames that no layout uses
constexpr std::uint64_t kNone = ~std::uint64_t{0};

struct Model {
    struct Entry {
        std::uint64_t mfn = kNone;
        P2mType type = P2mType::mmio_dm;
    };
    std::map<std::uint64_t, Entry> p2m;            // by guest frame; holes are not in it
    std::map<std::uint64_t, std::uint64_t> holds;  // the first word of each machine frame

    Entry at(std::uint64_t gfn) const
    {
        const auto found = p2m.find(gfn);
        return found == p2m.end() ? Entry{} : found->second;
    }
    std::uint64_t word(std::uint64_t gfn) const
    {
        const auto found = holds.find(at(gfn).mfn);
        return found == holds.end() ? 0 : found->second;
    }
};

class Run {
public:
    Run(std::uint64_t seed, P2mFormat format, int largest, const char* layout, const char* policy)
        : random_{seed}, machine_{config(format, largest, layout, policy)}
    {
        for (std::uint64_t gfn = 0; gfn < kFrames / 2; ++gfn) {
            const auto mfn = machine_.p2m().mfn_of(Gfn{gfn});
            model_.p2m[gfn] = {mfn->number(), P2mType::ram_rw};
        }
    }

    void step()
    {
        const unsigned what = random_.below(100);
        if (what < 30) return change();
        access(touched_.empty() || random_.percent(20) ? random_.below(kFrames) : random_.one_of(touched_));
    }

    void compare() const
    {
        for (std::uint64_t gfn = 0; gfn < kFrames; ++gfn) {
            const P2mEntry entry = machine_.p2m().entry(Gfn{gfn});
            const Model::Entry wanted = model_.at(gfn);
            if (entry.type != wanted.type) FAIL("frame " << gfn << " is " << name_of(entry.type));
            const bool on_demand = wanted.type == P2mType::populate_on_demand;
            if (!entry.has_frame() || on_demand) continue;
            const bool unknown = wanted.mfn >= kUnknown && wanted.mfn != kNone;
            if (!unknown && entry.mfn.number() != wanted.mfn)
                FAIL(fmt::format("frame {:#x} is {}, not {:#x}", gfn, entry.mfn, wanted.mfn));
            if (machine_.p2m().gfn_of(entry.mfn) != Gfn{gfn})
                FAIL(fmt::format("machine frame {} is not frame {:#x}", entry.mfn, gfn));
        }
        const auto violations = machine_.audit();
        if (!violations.empty()) FAIL(violations.front());
    }

private:
    static constexpr std::uint64_t kUnknown = std::uint64_t{1} << 60;  // machine frames given on demand

    static MachineConfig config(P2mFormat format, int largest, const char* layout, const char* policy)
    {
        MachineConfig config;
        config.cpuid.physical_address_bits = 36;
        config.ram = {{Gfn{0}, kFrames / 2}};
        config.p2m = parse_p2m_layout(layout).value();
        config.p2m_format = format;
        config.largest_p2m_page = format == P2mFormat::flat ? 1 : largest;
        config.policy = builtin_shadow_policies().find(policy);
        return config;
    }

    void change()
    {
        static constexpr std::array kTypes{
            P2mType::ram_rw,  P2mType::ram_rw,       P2mType::ram_ro,
            P2mType::ram_rw,  P2mType::ram_logdirty, P2mType::ioreq_server,
            P2mType::mmio_dm, P2mType::mmio_dm,      P2mType::populate_on_demand};
        const P2mType type = random_.one_of(kTypes);
        // Often as a large page likes it.
        const std::uint64_t align = random_.percent(40) ? 512 : 1;
        const std::uint64_t first = random_.below(kFrames - 1) / align * align;
        std::uint64_t count = 1;
        if (random_.percent(50)) count = align * (1 + random_.below(align == 1 ? 700 : 3));
        count = std::min(count, kFrames - first);
        std::optional<std::uint64_t> mfn;
        if (has_frame(type) && random_.percent(70))
            mfn = kSpare + random_.below(1024) / align * align + (random_.percent(10) ? 1 : 0);
        const auto refused = machine_.set_p2m(Gfn{first}, count, type, MemAccess::rwx,
                                              mfn ? std::optional{Mfn{*mfn}} : std::nullopt);
        std::map<std::uint64_t, Model::Entry> now;
        for (std::uint64_t i = 0; i < count; ++i) {
            Model::Entry entry{mfn ? *mfn + i : model_.at(first + i).mfn, type};
            if (!has_frame(type)) entry.mfn = kNone;
            if (has_frame(type) && entry.mfn == kNone) {
                REQUIRE(refused);
                return;
            }
            now[first + i] = entry;
        }
        REQUIRE_FALSE(refused);
        std::set<std::uint64_t> taken;
        for (const auto& [gfn, entry] : now) taken.insert(entry.mfn);
        std::erase_if(model_.p2m, [&](const auto& other) {
            return other.second.mfn != kNone && taken.count(other.second.mfn) != 0;
        });
        for (const auto& [gfn, entry] : now) {
            model_.p2m[gfn] = entry;
            if (entry.type == P2mType::mmio_dm) model_.p2m.erase(gfn);
        }
        for (unsigned i = 0; i < 3; ++i)
            touched_.push_back(first + random_.below(static_cast<unsigned>(count)));
    }

    void access(std::uint64_t gfn)
    {
        if (model_.at(gfn).type == P2mType::populate_on_demand)
            model_.p2m[gfn] = {kUnknown + populated_++, P2mType::ram_rw};
        Operand operand;
        operand.address = LinearAddress{gfn << 12};
        operand.bytes = 8;
        operand.kind = random_.percent(50) ? AccessKind::write : AccessKind::read;
        const auto placed = machine_.access(0, operand);
        REQUIRE(placed);
        REQUIRE(placed->parts[0].address == Gfn{gfn}.address());
        std::uint64_t value = random_.word();
        const Model::Entry entry = model_.at(gfn);
        if (operand.kind == AccessKind::write) {
            machine_.store(*placed, std::as_bytes(std::span{&value, 1}));
            if (entry.mfn != kNone && entry.type != P2mType::ram_ro) model_.holds[entry.mfn] = value;
        } else {
            machine_.load(*placed, std::as_writable_bytes(std::span{&value, 1}));
            if (value != model_.word(gfn))
                FAIL("frame " << gfn << " reads " << value << ", not " << model_.word(gfn));
        }
        touched_.push_back(gfn);
    }

    support::Random64 random_;
    Machine machine_;
    Model model_;
    std::vector<std::uint64_t> touched_;
    std::uint64_t populated_ = 0;
};

}  // namespace

TEST_CASE("p2m changes: random ones, against a model", "[machine][p2m]")
{
    const std::uint64_t seed = std::random_device{}();
    CAPTURE(seed);
    unsigned variant = 0;
    for (const P2mFormat format : {P2mFormat::npt, P2mFormat::ept, P2mFormat::flat}) {
        for (const int largest : {1, 2, 3}) {
            for (const char* const layout : {"identity", "offset:0x200000", "shuffled:7"}) {
                const char* const policy = variant % 2 == 0 ? "xen" : "tlb-like";
                CAPTURE(largest, layout, policy);
                Run run{seed + variant++, format, largest, layout, policy};
                for (unsigned i = 0; i < 12; ++i) {
                    for (unsigned k = 0; k < 40; ++k) run.step();
                    run.compare();
                }
            }
        }
    }
}
