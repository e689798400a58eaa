// SPDX-License-Identifier: Apache-2.0
//
// What a Linux of the years 2006 to 2008 does to its pagetables on one CPU, and no more than that: processes
// with areas of memory, demand paging, copy on write, fork, exec, exit. Facts that matter to a hypervisor:
//
// - The kernel's half of an address space is the same everywhere: large global pages that map all RAM, and
//   through which tables are read and written. Each new top table gets a copy of it; in PAE the one level-2
//   table of the kernel is shared.
// - A table is cleared when it is allocated, and freed frames are used again first, for whatever is needed.
// - fork copies private pages' entries and takes write access from both sides; a flush by MOV CR3 follows.
// - A fault fills one entry. An entry that was present is followed by INVLPG.
// - exec makes the new address space before the old one, which is no longer loaded, is taken apart. exit
//   takes its own apart while it is loaded; its top table goes when the parent has waited for it.
// - Taking apart: each entry is zeroed, table by table, then the tables' own entries.
// - A PAE entry is two 4-byte halves: set high half first, cleared low half first, so that it is never
// present
//   with half of its address.
// - String instructions (to clear and copy pages) are one access.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "recorder.hpp"

namespace process_workload {

/// Pages of a program file: its text, then its initialised data.
struct Program {
    unsigned file = 0;
    unsigned text_pages = 0;
    unsigned data_pages = 0;
    unsigned heap_pages = 0;
};

/// The areas of a process.
enum AreaName : unsigned { kText, kData, kHeap, kLibraryText, kLibraryData, kMapping, kStack, kAreas };

struct Area {
    std::uint64_t start = 0;
    unsigned pages = 0;  ///< 0: there is no such area
    bool writable = false;
    std::optional<unsigned> file;  ///< none: anonymous memory
    unsigned file_page = 0;        ///< of its first page
    bool has_private_pages = false;

    [[nodiscard]] std::uint64_t page(unsigned number) const { return start + number * kPageBytes; }
    [[nodiscard]] bool contains(std::uint64_t address) const
    {
        return address >= start && address - start < pages * kPageBytes;
    }
};

using ProcessId = unsigned;

class GuestKernel {
public:
    /// Boots: kernel tables, and a first process (0) that runs `shell`. `paging`: two_level, pae or
    /// four_level.
    GuestKernel(Recorder& recorder, Paging paging, const Program& shell, const Program& library);

    /// What the trace's header says of a machine for this kernel.
    [[nodiscard]] static TraceHeader header(Paging paging);

    // --- what the running process does by itself. Page faults are handled.
    void fetch(std::uint64_t address, std::uint32_t bytes);
    void read(std::uint64_t address, std::uint32_t bytes);
    void write(std::uint64_t address, std::uint64_t value, std::uint32_t bytes);

    // --- what it asks of the kernel
    ProcessId fork();
    void exec(const Program& program);
    /// Ends the running process; `next` runs.
    void exit(ProcessId next);
    /// Collects a process that has ended.
    void wait_for(ProcessId ended);
    void switch_to(ProcessId next);
    void map(unsigned pages);
    void unmap();
    /// The kernel copies between a buffer of its own and the process's memory.
    void copy_to_user(std::uint64_t address, std::uint32_t bytes);
    void copy_from_user(std::uint64_t address, std::uint32_t bytes);

    [[nodiscard]] const Area& area(AreaName name) const { return current().areas[name]; }
    [[nodiscard]] unsigned word_bytes() const { return word_; }

private:
    /// A table below the top, and where its entry is.
    struct Table {
        std::uint64_t start = 0;  ///< the first address that it translates
        int level = 0;
        Gfn frame;
        Gfn parent;
        unsigned index = 0;
    };
    struct Process {
        Gfn root;
        Gfn kernel_stack;
        std::array<Area, kAreas> areas;
        std::vector<Table> tables;
    };
    struct Place {
        Gfn table;  ///< of level 1
        unsigned index = 0;
    };
    /// Routines of the kernel, by where their code is.
    enum class Routine : unsigned {
        page_fault,
        syscall,
        fork,
        exec,
        exit,
        switch_to,
        map,
        copy,
        return_to_user
    };

    void boot();
    [[nodiscard]] Process& current() { return processes_.at(running_); }
    [[nodiscard]] const Process& current() const { return processes_.at(running_); }

    // Memory, as the kernel sees it.
    [[nodiscard]] std::uint64_t direct(Gfn frame, std::uint64_t offset = 0) const
    {
        return direct_map_ + frame.address(offset).value();
    }
    std::uint64_t load(std::uint64_t address, std::uint32_t bytes);
    void store(std::uint64_t address, std::uint64_t value, std::uint32_t bytes);
    void touch(AccessKind kind, std::uint64_t address, std::uint32_t bytes);
    void run(Routine routine);
    void clear_page(Gfn frame);
    void copy_page(Gfn to, Gfn from);
    Gfn allocate();
    void share(Gfn frame);
    void release(Gfn frame);
    Gfn file_page(unsigned file, unsigned page);

    // Tables.
    std::uint64_t read_entry(Gfn table, unsigned index);
    void set_entry(Gfn table, unsigned index, std::uint64_t entry);
    void replace_entry(Gfn table, unsigned index, std::uint64_t entry);
    void protect_entry(Gfn table, unsigned index, std::uint64_t old);
    void clear_entry(Gfn table, unsigned index);
    [[nodiscard]] std::uint64_t leaf(const Area& area, Gfn frame, bool writable) const;
    Gfn make_root();
    void free_root(Gfn root);
    std::optional<Place> find(Process& process, std::uint64_t address, bool make);
    void copy_area(Process& from, Process& to, const Area& area);
    /// Zeroes what maps the area's pages; returns these, which may be used again after a flush.
    std::vector<Gfn> zap(Process& process, const Area& area);
    std::vector<Gfn> take_apart(Process& process);

    // Ways into the kernel and out of it.
    void enter();
    void leave();
    void raise(bool from_user);
    void return_from_exception(bool to_user);
    void handle_fault(const Exception& fault, bool from_user);
    void user_access(const AccessRecord& request);
    void kernel_access_to_user(AccessKind kind, std::uint64_t address, std::uint32_t bytes);
    void schedule(ProcessId next);

    [[nodiscard]] std::array<Area, kAreas> areas_of(const Program& program) const;

    Recorder& recorder_;
    PagingMode mode_;
    unsigned word_;  ///< bytes
    std::uint64_t direct_map_;
    std::uint64_t image_;  ///< where frame 0 is in the mapping of the kernel's own code
    Program library_;
    Gfn zero_page_;
    std::vector<unsigned> references_;  ///< by frame
    std::vector<Gfn> free_;             ///< the last one is used first
    std::map<std::pair<unsigned, unsigned>, Gfn> page_cache_;
    std::map<ProcessId, Process> processes_;
    ProcessId running_ = 0;
    ProcessId next_id_ = 1;
};

}  // namespace process_workload
