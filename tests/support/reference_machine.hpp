// SPDX-License-Identifier: Apache-2.0
//
// The plainest possible reference of what a guest can observe of its MMU, written from the manual's rules
// (SDM vol. 3A chapter 4; the rules as such in reference/hardware.md section 2). It shares no code with the
// library: memory is arrays of 8-byte words, registers are integers, a walk is a loop. There are no shadows
// and no P2M, since a guest can see neither.
//
// For implementations that may hold stale translations, each vCPU also has the list of translations that it
// could have cached since the last invalidation that the architecture REQUIRES. Single walks alone are
// kept: combinations of a stale upper entry with a fresh lower one are not.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace reference {

enum class Kind { read, write, fetch };

struct Features {
    bool amd = false;
    unsigned width = 40;  // MAXPHYADDR
    bool nx = true, pse = true, pse36 = true, pge = true, pcid = true, invpcid = true;
    bool smep = true, smap = true, pku = true, pks = true, page1gb = true, la57 = true;
};

/// Words of 8 bytes by number (address / 8). A word that was never stored to is 0.
class Words {
public:
    static constexpr std::uint64_t kPage = 512;

    std::uint64_t operator[](std::uint64_t word) const
    {
        const std::uint32_t index = page_of(word / kPage);
        return index == kNone ? 0 : pages_[index][word % kPage];
    }
    void set(std::uint64_t word, std::uint64_t value);
    /// Number and value of each word that is not 0, in order.
    std::vector<std::pair<std::uint64_t, std::uint64_t>> nonzero() const;

    friend bool operator==(const Words& one, const Words& other)
    {
        return one.holds(other) && other.holds(one);
    }

private:
    static constexpr std::uint32_t kNone = ~std::uint32_t{0};
    struct Remembered {
        std::uint64_t page = ~std::uint64_t{0};
        std::uint32_t index = kNone;
    };

    std::uint32_t page_of(std::uint64_t page) const
    {
        Remembered& slot = remembered_[page % remembered_.size()];
        if (slot.page != page) {
            const auto found = index_.find(page);
            slot = {page, found == index_.end() ? kNone : found->second};
        }
        return slot.index;
    }
    bool holds(const Words& other) const;

    std::map<std::uint64_t, std::uint32_t> index_;
    std::vector<std::array<std::uint64_t, kPage>> pages_;
    mutable std::array<Remembered, 64> remembered_{};  // most look-ups end here
};

/// Guest-physical memory. What lies outside RAM reads as 0 and takes no store. The frames of RAM at first are
/// slots with the same numbers; the hypervisor may put other slots behind frames, or none.
struct Memory {
    struct Behind {
        std::optional<std::uint64_t> slot;  // none: no RAM
        bool read_only = false;             // the guest's stores have no effect
    };

    std::vector<std::pair<std::uint64_t, std::uint64_t>> ram;  // first frame, number of frames
    std::map<std::uint64_t, Behind> changed;                   // by frame
    Words words;                                               // of slots

    Behind behind(std::uint64_t frame) const;
    bool is_ram(std::uint64_t address) const { return behind(address / 4096).slot.has_value(); }
    std::uint64_t read(std::uint64_t address, unsigned bytes) const;  // 1 to 8 bytes
    void write(std::uint64_t address, unsigned bytes, std::uint64_t value);
    void store(std::uint64_t address, unsigned bytes, std::uint64_t value);  // by the guest
    /// Slots from `slot` on, or those that are there; a slot is behind one frame at most.
    void put(std::uint64_t frame, std::uint64_t count, std::optional<std::uint64_t> slot, bool read_only);
    void take(std::uint64_t frame, std::uint64_t count);
    void put_empty(std::uint64_t frame, std::uint64_t count);  // slots never used before
    /// Address and value of each word of the guest's that is not 0.
    std::vector<std::pair<std::uint64_t, std::uint64_t>> nonzero() const;

private:
    std::uint64_t place(std::uint64_t word) const;
    std::optional<std::uint64_t> owner(std::uint64_t slot) const;
    std::uint64_t unused_ = std::uint64_t{1} << 40;
};

/// A translation of one page, as a TLB could hold it.
struct Page {
    std::uint64_t linear = 0;
    std::uint64_t physical = 0;
    unsigned shift = 12;
    bool user = true, writable = true, no_execute = false, dirty = true;
    unsigned key = 0;
    bool global = false;
    std::uint64_t pcid = 0;

    friend bool operator==(const Page&, const Page&) = default;
};

/// What the guest sees instead of an access: a vector, for #PF an error code and CR2.
struct Fault {
    unsigned vector = 14;
    std::uint32_t code = 0;
    std::uint64_t cr2 = 0;

    friend bool operator==(const Fault&, const Fault&) = default;
};
inline constexpr unsigned kStackFault = 12, kGeneralProtection = 13, kPageFault = 14, kUndefined = 6;

struct Entry {
    std::uint64_t address = 0;
    unsigned bytes = 8;
};

/// The entries that a walk went through, the leaf's last.
class Entries {
public:
    void push_back(const Entry& entry) { all_[count_++] = entry; }
    std::size_t size() const { return count_; }
    bool empty() const { return count_ == 0; }
    const Entry& operator[](std::size_t i) const { return all_[i]; }
    const Entry* begin() const { return all_.data(); }
    const Entry* end() const { return all_.data() + count_; }
    const Entry& back() const { return all_[count_ - 1]; }

private:
    std::array<Entry, 5> all_{};
    std::size_t count_ = 0;
};

struct Walk {
    std::optional<Fault> fault;
    Page page;
    Entries used;
};

/// One access to one page.
struct Access {
    std::uint64_t linear = 0;
    Kind kind = Kind::read;
    bool user = false;
    bool implicit = false;
};

enum class Paging { off, two_level, pae, four_level, five_level };

struct Cpu {
    std::uint64_t cr0 = 0x10, cr3 = 0, cr4 = 0, efer = 0;
    std::uint32_t pkru = 0, pkrs = 0;
    unsigned cpl = 0;
    bool ac = false;
    std::array<std::uint64_t, 4> pdptes{};
    std::vector<Page> cached;

    bool pg() const { return (cr0 >> 31 & 1) != 0; }
    bool wp() const { return (cr0 >> 16 & 1) != 0; }
    bool cr4_bit(unsigned bit) const { return (cr4 >> bit & 1) != 0; }
    bool long_mode() const { return (efer >> 10 & 1) != 0; }
    bool nxe() const { return (efer >> 11 & 1) != 0; }
    std::uint64_t pcid() const { return cr4_bit(17) ? cr3 & 0xfff : 0; }
    Paging paging() const;
    unsigned linear_bits() const;
};

/// Bits of CR4 by number.
inline constexpr unsigned kPse = 4, kPae = 5, kPge = 7, kLa57 = 12, kPcide = 17, kSmep = 20, kSmap = 21,
                          kPke = 22, kPks = 24;

bool canonical(std::uint64_t address, unsigned bits);

class Machine {
public:
    Features features;
    Memory memory;
    std::vector<Cpu> cpus;
    std::set<std::uint64_t> secure_frames;  // withheld from vCPUs that are not in secure mode
    std::set<unsigned> in_secure_mode;

    // --- instructions: a vector where the CPU refuses, and then nothing has changed --------------------
    std::optional<unsigned> mov_cr0(unsigned cpu, std::uint64_t value);
    std::optional<unsigned> mov_cr3(unsigned cpu, std::uint64_t value);
    std::optional<unsigned> mov_cr4(unsigned cpu, std::uint64_t value);
    std::optional<unsigned> wrmsr_efer(unsigned cpu, std::uint64_t value);
    std::optional<unsigned> wrpkru(unsigned cpu, std::uint32_t value);
    std::optional<unsigned> invlpg(unsigned cpu, std::uint64_t linear);
    std::optional<unsigned> invpcid(unsigned cpu, std::uint64_t type, std::uint64_t pcid,
                                    std::uint64_t linear);
    /// From outside: false where no CPU can be in that state.
    bool set_registers(unsigned cpu, Cpu wanted);

    // --- translation ------------------------------------------------------------------------------------
    /// The linear address as paging sees it: 32 bits outside long mode.
    std::uint64_t linear_of(unsigned cpu, std::uint64_t address) const;
    /// A walk of what is in memory now, and the hypervisor's #PF for a secure frame. Sets no bit.
    Walk walk(unsigned cpu, const Access& access) const;
    /// Accessed in every entry used; dirty in the leaf.
    void set_bits(const Walk& walk, bool dirty);
    /// 0, or the error code (without W, U, I/D) with which a page with these rights refuses the access.
    std::uint32_t refused(const Cpu& cpu, const Page& page, const Access& access) const;

    // --- staleness ---------------------------------------------------------------------------------------
    void cache(unsigned cpu, Page page, bool dirty);
    /// Whether a translation that could be cached takes the access to this physical page.
    bool explains(unsigned cpu, const Access& access, std::uint64_t physical) const;
    void drop_page(unsigned cpu, std::uint64_t linear);  // this PCID's, and global ones

private:
    bool impossible(const Cpu& cpu) const;
    bool load_pdptes(Cpu& cpu) const;
    std::optional<unsigned> load(unsigned cpu, Cpu next, bool cr3_write);
};

}  // namespace reference
