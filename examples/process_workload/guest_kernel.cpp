// SPDX-License-Identifier: Apache-2.0
#include "guest_kernel.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace process_workload {

namespace {

constexpr std::uint64_t kRamFrames = 0x4000;  // 64 MiB

// Frames that the kernel has from the start.
constexpr Gfn kCode{0x100};
constexpr Gfn kDescriptors{0x180};  // the IDT; the TSS is in the next one
constexpr Gfn kBuffer{0x182};
constexpr Gfn kZeroPage{0x183};
constexpr Gfn kKernelRoot{0x200};
constexpr Gfn kKernelTables{0x201};
constexpr Gfn kBootStack{0x210};
constexpr Gfn kFirstFree{0x400};

constexpr unsigned kRoutineBytes = 0x400;
constexpr std::uint32_t kFetchBytes = 64;
constexpr std::uint32_t kFrameBytes = 48;   // that an exception or a system call leaves on the stack
constexpr std::uint64_t kStackTop = 0xff0;  // in its page
constexpr std::uint64_t kNested = 0x200;    // below that, an exception in the kernel

constexpr std::uint64_t kTableEntry =
    pte::kPresent | pte::kWritable | pte::kUser | pte::kAccessed | pte::kDirty;
constexpr std::uint64_t kKernelTableEntry = pte::kPresent | pte::kWritable | pte::kAccessed | pte::kDirty;
constexpr std::uint64_t kKernelLargePage = kKernelTableEntry | pte::kPageSize | pte::kGlobal;

/// Where the areas of a process are.
struct UserLayout {
    std::uint64_t program;  ///< text; data follow in the next page
    std::uint64_t heap;
    std::uint64_t library;
    std::uint64_t mapping;
    std::uint64_t stack_end;
};

constexpr UserLayout kLayout32{0x0804'8000, 0x0880'0000, 0xb7e0'0000, 0xb7f0'0000, 0xbfff'f000};
constexpr UserLayout kLayout64{0x0040'0000, 0x0160'0000, 0x7f12'3460'0000, 0x7f12'3470'0000,
                               0x7fff'ffff'e000};
constexpr unsigned kStackPages = 8;

PagingMode checked(Paging paging)
{
    if (paging == Paging::off || paging == Paging::five_level) {
        throw std::invalid_argument("this kernel runs in 2-level, PAE or 4-level paging");
    }
    return mode_of(paging);
}

constexpr std::uint64_t low_half(std::uint64_t entry)
{
    return entry & 0xffff'ffff;
}

AccessRecord request_of(AccessKind kind, std::uint64_t address, std::uint32_t bytes)
{
    AccessRecord request;
    request.kind = kind;
    request.address = address;
    request.bytes = bytes;
    return request;
}

AccessRecord store_of(std::uint64_t address, std::uint64_t value, std::uint32_t bytes)
{
    AccessRecord request = request_of(AccessKind::write, address, bytes);
    request.content.resize(bytes);
    std::memcpy(request.content.data(), &value, bytes);
    return request;
}

}  // namespace

TraceHeader GuestKernel::header(Paging paging)
{
    TraceHeader header;
    header.cpuid.pse = true;
    header.cpuid.pge = true;
    header.cpuid.nx = checked(paging).has_nx;
    header.ram = {{Gfn{0}, kRamFrames}};
    header.fetch = TraceHeader::Fetch::block;
    return header;
}

GuestKernel::GuestKernel(Recorder& recorder, Paging paging, const Program& shell, const Program& library)
    : recorder_{recorder}
    , mode_{checked(paging)}
    , word_{mode_ == kFourLevel ? 8u : 4u}
    , direct_map_{mode_ == kFourLevel ? 0xffff'8800'0000'0000 : 0xc000'0000}
    , image_{mode_ == kFourLevel ? 0xffff'ffff'8000'0000 : 0xc000'0000}
    , library_{library}
    , zero_page_{kZeroPage}
    , references_(kRamFrames)
{
    for (std::uint64_t number = kRamFrames; number-- > kFirstFree.number();) free_.push_back(Gfn{number});
    boot();
    // The first process is made by hand: it has nothing yet, and takes its own program.
    Process& first = processes_[0];
    first.kernel_stack = kBootStack;
    first.root = make_root();
    recorder_.mov_cr3(first.root.address().value());
    exec(shell);
}

void GuestKernel::boot()
{
    const unsigned superpage_shift = mode_.shift(2);
    const std::uint64_t superpages = (kRamFrames << kPageShift) >> superpage_shift;
    std::vector<std::pair<std::uint32_t, std::uint64_t>> large;
    const std::uint32_t first = mode_.index(LinearAddress{direct_map_}, 2);
    for (std::uint64_t i = 0; i < superpages; ++i) {
        large.emplace_back(first + static_cast<std::uint32_t>(i), (i << superpage_shift) | kKernelLargePage);
    }
    const auto table = [](unsigned number) { return kKernelTables + number; };
    const auto to = [](Gfn frame, std::uint64_t flags) { return frame.address().value() | flags; };
    if (mode_ == kTwoLevel) {
        recorder_.page(kKernelRoot, 4, large);
    } else if (mode_ == kPae) {
        recorder_.page(table(0), 8, large);
        recorder_.page(kKernelRoot, 8, {{3, to(table(0), pte::kPresent)}});
    } else {
        // The direct map, and the first 2 MiB again where the kernel's code is linked to.
        const LinearAddress data{direct_map_};
        const LinearAddress code{image_};
        recorder_.page(table(0), 8, {{mode_.index(data, 3), to(table(1), kKernelTableEntry)}});
        recorder_.page(table(1), 8, large);
        recorder_.page(table(2), 8, {{mode_.index(code, 3), to(table(3), kKernelTableEntry)}});
        recorder_.page(table(3), 8, {{mode_.index(code, 2), kKernelLargePage}});
        recorder_.page(kKernelRoot, 8,
                       {{mode_.index(data, 4), to(table(0), kKernelTableEntry)},
                        {mode_.index(code, 4), to(table(2), kKernelTableEntry)}});
    }
    Registers registers;
    registers.cr0 = cr0::kPe | cr0::kEt | cr0::kWp | cr0::kPg;
    registers.cr3 = kKernelRoot.address().value();
    registers.cr4 = cr4::kPse | cr4::kPge | (mode_ == kTwoLevel ? 0 : cr4::kPae);
    if (mode_.has_nx) registers.efer |= efer::kNxe;
    if (mode_ == kFourLevel) registers.efer |= efer::kSce | efer::kLme | efer::kLma;
    recorder_.start(registers);
}

// --- memory, as the kernel sees it

std::uint64_t GuestKernel::load(std::uint64_t address, std::uint32_t bytes)
{
    touch(AccessKind::read, address, bytes);
    return recorder_.found();
}

void GuestKernel::store(std::uint64_t address, std::uint64_t value, std::uint32_t bytes)
{
    if (recorder_.access(store_of(address, value, bytes))) throw std::logic_error("a fault on kernel memory");
}

void GuestKernel::touch(AccessKind kind, std::uint64_t address, std::uint32_t bytes)
{
    if (recorder_.access(request_of(kind, address, bytes)))
        throw std::logic_error("a fault on kernel memory");
}

void GuestKernel::run(Routine routine)
{
    const std::uint64_t code = image_ + kCode.address().value();
    touch(AccessKind::fetch, code + static_cast<unsigned>(routine) * kRoutineBytes, kFetchBytes);
}

void GuestKernel::clear_page(Gfn frame)
{
    AccessRecord request = request_of(AccessKind::write, direct(frame), kPageBytes);
    request.content.resize(kPageBytes);
    if (recorder_.access(std::move(request))) throw std::logic_error("a fault on kernel memory");
}

void GuestKernel::copy_page(Gfn to, Gfn from)
{
    AccessRecord request = request_of(AccessKind::write, direct(to), kPageBytes);
    request.content = recorder_.content_of(from);
    touch(AccessKind::read, direct(from), kPageBytes);
    if (recorder_.access(std::move(request))) throw std::logic_error("a fault on kernel memory");
}

Gfn GuestKernel::allocate()
{
    if (free_.empty()) throw std::runtime_error("the guest is out of memory");
    const Gfn frame = free_.back();
    free_.pop_back();
    references_[frame.number()] = 1;
    return frame;
}

void GuestKernel::share(Gfn frame)
{
    if (frame != zero_page_) ++references_[frame.number()];
}

void GuestKernel::release(Gfn frame)
{
    if (frame != zero_page_ && --references_[frame.number()] == 0) free_.push_back(frame);
}

Gfn GuestKernel::file_page(unsigned file, unsigned page)
{
    const auto [place, missing] = page_cache_.try_emplace({file, page});
    if (missing) {
        // The disk is not modelled: what it holds is zero.
        place->second = allocate();
        clear_page(place->second);
    }
    return place->second;
}

// --- tables

std::uint64_t GuestKernel::read_entry(Gfn table, unsigned index)
{
    const std::uint64_t at = direct(table, index * mode_.entry_bytes);
    if (mode_ != kPae) return load(at, mode_.entry_bytes);
    const std::uint64_t low = load(at, 4);
    return low | load(at + 4, 4) << 32;
}

void GuestKernel::set_entry(Gfn table, unsigned index, std::uint64_t entry)
{
    const std::uint64_t at = direct(table, index * mode_.entry_bytes);
    if (mode_ == kPae) {
        store(at + 4, entry >> 32, 4);
        store(at, low_half(entry), 4);
    } else {
        store(at, entry, mode_.entry_bytes);
    }
}

/// Of a present entry.
void GuestKernel::replace_entry(Gfn table, unsigned index, std::uint64_t entry)
{
    if (mode_ == kPae) store(direct(table, index * mode_.entry_bytes), 0, 4);
    set_entry(table, index, entry);
}

/// Takes write access by an instruction that changes one bit.
void GuestKernel::protect_entry(Gfn table, unsigned index, std::uint64_t old)
{
    AccessRecord request = store_of(direct(table, index * mode_.entry_bytes), old & ~pte::kWritable, word_);
    request.rmw = true;
    if (recorder_.access(std::move(request))) throw std::logic_error("a fault on kernel memory");
}

void GuestKernel::clear_entry(Gfn table, unsigned index)
{
    const std::uint64_t at = direct(table, index * mode_.entry_bytes);
    store(at, 0, word_);
    if (mode_ == kPae) store(at + 4, 0, 4);
}

std::uint64_t GuestKernel::leaf(const Area& area, Gfn frame, bool writable) const
{
    std::uint64_t entry = frame.address().value() | pte::kPresent | pte::kUser | pte::kAccessed;
    if (writable) entry |= pte::kWritable | pte::kDirty;
    if (mode_.has_nx && area.writable) entry |= pte::kNoExecute;
    return entry;
}

Gfn GuestKernel::make_root()
{
    const Gfn root = allocate();
    clear_page(root);
    if (mode_ == kPae) {
        // All four at once: the CPU reads them when the root is loaded.
        for (unsigned i = 0; i < 3; ++i) {
            const Gfn table = allocate();
            clear_page(table);
            set_entry(root, i, table.address().value() | pte::kPresent);
        }
        set_entry(root, 3, read_entry(kKernelRoot, 3));
        return root;
    }
    const unsigned first_of_kernel = mode_ == kFourLevel ? 256 : 768;
    const std::uint64_t offset = std::uint64_t{first_of_kernel} * mode_.entry_bytes;
    AccessRecord copy =
        request_of(AccessKind::write, direct(root, offset), static_cast<std::uint32_t>(kPageBytes - offset));
    const Content table = recorder_.content_of(kKernelRoot);
    copy.content.assign(table.begin() + static_cast<std::ptrdiff_t>(offset), table.end());
    touch(AccessKind::read, direct(kKernelRoot, offset), copy.bytes);
    if (recorder_.access(std::move(copy))) throw std::logic_error("a fault on kernel memory");
    return root;
}

void GuestKernel::free_root(Gfn root)
{
    if (mode_ == kPae) {
        for (unsigned i = 0; i < 3; ++i) {
            const Gfn table{(read_entry(root, i) & pte::kFrame) >> kPageShift};
            clear_entry(root, i);
            release(table);
        }
    }
    release(root);
}

std::optional<GuestKernel::Place> GuestKernel::find(Process& process, std::uint64_t address, bool make)
{
    const LinearAddress linear{address};
    Gfn table = process.root;
    for (int level = mode_.levels; level > 1; --level) {
        const unsigned index = mode_.index(linear, level);
        const std::uint64_t entry = read_entry(table, index);
        if ((entry & pte::kPresent) != 0) {
            table = Gfn{(entry & pte::kFrame) >> kPageShift};
            continue;
        }
        if (!make) return {};
        const Gfn lower = allocate();
        clear_page(lower);
        set_entry(table, index, lower.address().value() | kTableEntry);
        const std::uint64_t span = std::uint64_t{1} << mode_.shift(level);
        process.tables.push_back({address & ~(span - 1), level - 1, lower, table, index});
        table = lower;
    }
    return Place{table, mode_.index(linear, 1)};
}

void GuestKernel::copy_area(Process& from, Process& to, const Area& area)
{
    std::optional<Place> source;
    std::optional<Place> target;
    for (unsigned page = 0; page < area.pages; ++page) {
        const std::uint64_t address = area.page(page);
        const unsigned index = mode_.index(LinearAddress{address}, 1);
        if (page == 0 || index == 0) {
            source = find(from, address, false);
            target.reset();
        }
        if (!source) continue;
        std::uint64_t entry = read_entry(source->table, index);
        if ((entry & pte::kPresent) == 0) continue;
        if (!target) target = find(to, address, true);
        if ((entry & pte::kWritable) != 0) protect_entry(source->table, index, entry);
        entry &= ~(pte::kWritable | pte::kAccessed);
        set_entry(target->table, index, entry);
        share(Gfn{(entry & pte::kFrame) >> kPageShift});
    }
}

std::vector<Gfn> GuestKernel::zap(Process& process, const Area& area)
{
    std::vector<Gfn> pages;
    std::optional<Place> place;
    for (unsigned page = 0; page < area.pages; ++page) {
        const std::uint64_t address = area.page(page);
        const unsigned index = mode_.index(LinearAddress{address}, 1);
        if (page == 0 || index == 0) place = find(process, address, false);
        if (!place) continue;
        const std::uint64_t entry = read_entry(place->table, index);
        if ((entry & pte::kPresent) == 0) continue;
        clear_entry(place->table, index);
        pages.push_back(Gfn{(entry & pte::kFrame) >> kPageShift});
    }
    return pages;
}

std::vector<Gfn> GuestKernel::take_apart(Process& process)
{
    std::vector<Gfn> frames;
    for (const Area& area : process.areas) {
        const std::vector<Gfn> pages = zap(process, area);
        frames.insert(frames.end(), pages.begin(), pages.end());
    }
    // Upwards, and by address: a table's own entry goes when all of its entries have gone.
    std::sort(process.tables.begin(), process.tables.end(), [](const Table& a, const Table& b) {
        return std::pair{a.level, a.start} < std::pair{b.level, b.start};
    });
    for (const Table& table : process.tables) {
        clear_entry(table.parent, table.index);
        frames.push_back(table.frame);
    }
    process.tables.clear();
    return frames;
}

// --- ways into the kernel and out of it

void GuestKernel::enter()
{
    recorder_.set_cpl(0);
    touch(AccessKind::write, direct(current().kernel_stack, kStackTop - kFrameBytes), kFrameBytes);
    run(Routine::syscall);
}

void GuestKernel::leave()
{
    run(Routine::return_to_user);
    touch(AccessKind::read, direct(current().kernel_stack, kStackTop - kFrameBytes), kFrameBytes);
    recorder_.set_cpl(3);
}

void GuestKernel::raise(bool from_user)
{
    const std::uint32_t gate_bytes = 2 * word_;
    AccessRecord gate =
        request_of(AccessKind::read, image_ + kDescriptors.address(14 * gate_bytes).value(), gate_bytes);
    gate.implicit = true;
    recorder_.access(gate);
    if (from_user) {
        AccessRecord stack = request_of(AccessKind::read, image_ + (kDescriptors + 1).address(4).value(), 8);
        stack.implicit = true;
        recorder_.access(stack);
        recorder_.set_cpl(0);
    }
    const std::uint64_t top = kStackTop - (from_user ? 0 : kNested);
    touch(AccessKind::write, direct(current().kernel_stack, top - kFrameBytes), kFrameBytes);
    run(Routine::page_fault);
}

void GuestKernel::return_from_exception(bool to_user)
{
    run(Routine::return_to_user);
    const std::uint64_t top = kStackTop - (to_user ? 0 : kNested);
    touch(AccessKind::read, direct(current().kernel_stack, top - kFrameBytes), kFrameBytes);
    if (to_user) recorder_.set_cpl(3);
}

void GuestKernel::handle_fault(const Exception& fault, bool from_user)
{
    raise(from_user);
    Process& process = current();
    const std::uint64_t address = fault.address.value();
    const auto found = std::find_if(process.areas.begin(), process.areas.end(),
                                    [&](const Area& area) { return area.contains(address); });
    if (found == process.areas.end()) throw std::logic_error("a fault outside of all areas");
    Area& area = *found;
    const bool write = (fault.error_code & pf::kWrite) != 0;
    if (write && !area.writable) throw std::logic_error("a write to a read-only area");

    const auto [table, index] = *find(process, address, true);
    const std::uint64_t old = read_entry(table, index);
    const bool present = (old & pte::kPresent) != 0;
    if (present && (!write || (old & pte::kWritable) != 0)) throw std::logic_error("a spurious fault");

    // The page as it is, or would be for a reader.
    Gfn source = zero_page_;
    if (present) {
        source = Gfn{(old & pte::kFrame) >> kPageShift};
    } else if (area.file) {
        const auto page = static_cast<unsigned>((address - area.start) >> kPageShift);
        source = file_page(*area.file, area.file_page + page);
    }
    if (!write) {
        share(source);
        set_entry(table, index, leaf(area, source, false));
    } else {
        area.has_private_pages = true;
        Gfn own = source;
        if (!present || source == zero_page_ || references_[source.number()] > 1) {
            own = allocate();
            if (source == zero_page_) {
                clear_page(own);
            } else {
                copy_page(own, source);
            }
            if (present) release(source);
        }
        if (present) {
            replace_entry(table, index, leaf(area, own, true));
            recorder_.invlpg(address);
        } else {
            set_entry(table, index, leaf(area, own, true));
        }
    }
    return_from_exception(from_user);
}

void GuestKernel::user_access(const AccessRecord& request)
{
    while (const auto fault = recorder_.access(request)) handle_fault(*fault, true);
}

void GuestKernel::kernel_access_to_user(AccessKind kind, std::uint64_t address, std::uint32_t bytes)
{
    while (const auto fault = recorder_.access(request_of(kind, address, bytes))) handle_fault(*fault, false);
}

void GuestKernel::schedule(ProcessId next)
{
    run(Routine::switch_to);
    running_ = next;
    recorder_.mov_cr3(current().root.address().value());
    touch(AccessKind::read, direct(current().kernel_stack, kStackTop - 2 * kFrameBytes), kFrameBytes);
    store(image_ + (kDescriptors + 1).address(4).value(), direct(current().kernel_stack, kStackTop), word_);
}

// --- what a process does

void GuestKernel::fetch(std::uint64_t address, std::uint32_t bytes)
{
    user_access(request_of(AccessKind::fetch, address, bytes));
}

void GuestKernel::read(std::uint64_t address, std::uint32_t bytes)
{
    user_access(request_of(AccessKind::read, address, bytes));
}

void GuestKernel::write(std::uint64_t address, std::uint64_t value, std::uint32_t bytes)
{
    user_access(store_of(address, value, bytes));
}

ProcessId GuestKernel::fork()
{
    enter();
    run(Routine::fork);
    const ProcessId id = next_id_++;
    Process& parent = current();
    Process& child = processes_[id];
    child.kernel_stack = allocate();
    touch(AccessKind::write, direct(child.kernel_stack, kStackTop - 2 * kFrameBytes), 2 * kFrameBytes);
    child.root = make_root();
    child.areas = parent.areas;
    // Files' pages come back by faults; only what is nowhere else is copied.
    for (const Area& area : parent.areas) {
        if (area.has_private_pages) copy_area(parent, child, area);
    }
    recorder_.mov_cr3(parent.root.address().value());
    leave();
    return id;
}

void GuestKernel::exec(const Program& program)
{
    enter();
    run(Routine::exec);
    Process& process = current();
    Process old = process;
    process.root = make_root();
    process.areas = areas_of(program);
    process.tables.clear();

    // The arguments are written before the new address space is used, through the direct map.
    Area& stack_area = process.areas[kStack];
    const Gfn arguments = allocate();
    clear_page(arguments);
    touch(AccessKind::write, direct(arguments, kPageBytes - 256), 256);
    const auto place = find(process, stack_area.page(stack_area.pages - 1), true);
    set_entry(place->table, place->index, leaf(stack_area, arguments, true));
    stack_area.has_private_pages = true;

    recorder_.mov_cr3(process.root.address().value());
    for (const Gfn frame : take_apart(old)) release(frame);
    free_root(old.root);
    // What follows the data in their last page is cleared: the kernel's own access faults.
    const Area& data_area = process.areas[kData];
    kernel_access_to_user(AccessKind::write, data_area.page(data_area.pages - 1) + 0x800, 0x800);
    leave();
}

void GuestKernel::exit(ProcessId next)
{
    enter();
    run(Routine::exit);
    Process& process = current();
    const std::vector<Gfn> frames = take_apart(process);
    recorder_.mov_cr3(process.root.address().value());
    for (const Gfn frame : frames) release(frame);
    process.areas = {};
    schedule(next);
    leave();
}

void GuestKernel::wait_for(ProcessId ended)
{
    enter();
    const auto place = processes_.find(ended);
    free_root(place->second.root);
    release(place->second.kernel_stack);
    processes_.erase(place);
    leave();
}

void GuestKernel::switch_to(ProcessId next)
{
    enter();
    touch(AccessKind::write, direct(current().kernel_stack, kStackTop - 2 * kFrameBytes), kFrameBytes);
    schedule(next);
    leave();
}

void GuestKernel::map(unsigned pages)
{
    enter();
    run(Routine::map);
    current().areas[kMapping].pages = pages;
    leave();
}

void GuestKernel::unmap()
{
    enter();
    run(Routine::map);
    Area& area = current().areas[kMapping];
    const std::vector<Gfn> pages = zap(current(), area);
    recorder_.mov_cr3(current().root.address().value());
    for (const Gfn page : pages) release(page);
    area.pages = 0;
    area.has_private_pages = false;
    leave();
}

void GuestKernel::copy_to_user(std::uint64_t address, std::uint32_t bytes)
{
    enter();
    run(Routine::copy);
    touch(AccessKind::read, direct(kBuffer), bytes);
    kernel_access_to_user(AccessKind::write, address, bytes);
    leave();
}

void GuestKernel::copy_from_user(std::uint64_t address, std::uint32_t bytes)
{
    enter();
    run(Routine::copy);
    kernel_access_to_user(AccessKind::read, address, bytes);
    touch(AccessKind::write, direct(kBuffer), bytes);
    leave();
}

std::array<Area, kAreas> GuestKernel::areas_of(const Program& program) const
{
    const UserLayout& layout = mode_ == kFourLevel ? kLayout64 : kLayout32;
    std::array<Area, kAreas> areas;
    const auto of_file = [](const Program& file, std::uint64_t start, Area& code, Area& variables) {
        code = {start, file.text_pages, false, file.file, 0, false};
        variables = {
            code.page(file.text_pages + 1), file.data_pages, true, file.file, file.text_pages, false};
    };
    of_file(program, layout.program, areas[kText], areas[kData]);
    of_file(library_, layout.library, areas[kLibraryText], areas[kLibraryData]);
    areas[kHeap] = {layout.heap, program.heap_pages, true, {}, 0, false};
    areas[kMapping] = {layout.mapping, 0, true, {}, 0, false};
    areas[kStack] = {layout.stack_end - kStackPages * kPageBytes, kStackPages, true, {}, 0, false};
    return areas;
}

}  // namespace process_workload
