// SPDX-License-Identifier: Apache-2.0
#include "build_job.hpp"

#include <algorithm>

namespace process_workload {

namespace {

constexpr Program kShell{.file = 0, .text_pages = 24, .data_pages = 3, .heap_pages = 24};
constexpr Program kLibrary{.file = 1, .text_pages = 64, .data_pages = 3, .heap_pages = 0};
constexpr unsigned kFirstProgram = 2;
constexpr unsigned kPrograms = 5;

}  // namespace

std::uint64_t Choices::word()
{
    std::uint64_t z = state_ += 0x9e37'79b9'7f4a'7c15;
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
}

BuildJob::BuildJob(Recorder& recorder, Paging paging, std::uint64_t seed)
    : choices_{seed}, recorder_{recorder}, kernel_{recorder, paging, kShell, kLibrary}
{
    for (unsigned i = 0; i < kPrograms; ++i) {
        programs_.push_back({.file = kFirstProgram + i,
                             .text_pages = choices_.from_to(6, 60),
                             .data_pages = choices_.from_to(2, 10),
                             .heap_pages = choices_.from_to(4, 64)});
    }
    work(400);
}

void BuildJob::run(unsigned processes)
{
    left_ = processes;
    while (left_ > 0) pipeline(0, 0);
}

void BuildJob::pipeline(ProcessId parent, unsigned depth)
{
    std::vector<ProcessId> stages;
    for (unsigned wanted = choices_.from_to(1, 2); wanted > 0 && left_ > 0; --wanted, --left_) {
        recorder_.mark("fork");
        stages.push_back(kernel_.fork());
        work(20);
    }
    // Each runs as a copy of its parent first.
    for (const ProcessId stage : stages) {
        recorder_.mark("cow");
        kernel_.switch_to(stage);
        work(60);
        if (depth == 0 && left_ > 0 && choices_.percent(25)) pipeline(stage, depth + 1);
        recorder_.mark("exec");
        kernel_.exec(programs_[choices_.below(kPrograms)]);
        work(40);
    }
    recorder_.mark("run");
    for (unsigned turn = choices_.from_to(4, 12); turn > 0; --turn) {
        for (const ProcessId stage : stages) {
            if (stages.size() > 1) kernel_.switch_to(stage);
            work(choices_.from_to(50, 150));
            system_call();
        }
    }
    // The last one of the loop runs; it goes first.
    recorder_.mark("exit");
    for (std::size_t i = stages.size(); i-- > 0;) kernel_.exit(i > 0 ? stages[i - 1] : parent);
    recorder_.mark("wait");
    for (const ProcessId stage : stages) kernel_.wait_for(stage);
    work(60);
}

void BuildJob::work(unsigned steps)
{
    for (; steps > 0; --steps) {
        kernel_.fetch(word_in(choices_.percent(60) ? kText : kLibraryText), 16);
        const unsigned where = choices_.below(100);
        const AreaName name = where < 45 ? kStack : where < 80 ? kHeap : where < 93 ? kData : kLibraryData;
        const std::uint64_t address = word_in(name);
        if (choices_.percent(name == kStack ? 50 : 35)) {
            kernel_.write(address, choices_.word(), kernel_.word_bytes());
        } else {
            kernel_.read(address, kernel_.word_bytes());
        }
    }
}

std::uint64_t BuildJob::word_in(AreaName name)
{
    const Area& area = kernel_.area(name);
    unsigned& page = last_pages_[name];
    if (choices_.percent(name == kStack ? 3 : 12)) page = choices_.below(area.pages);
    page = std::min(page, area.pages - 1);
    const std::uint64_t offset = choices_.below(kPageBytes / 16) * 16;
    // The stack grows down.
    return area.page(name == kStack ? area.pages - 1 - page / 3 : page) + offset;
}

void BuildJob::system_call()
{
    const unsigned what = choices_.below(100);
    if (what < 25) {
        kernel_.copy_to_user(word_in(kHeap) & ~std::uint64_t{0x1ff}, 512);
    } else if (what < 50) {
        kernel_.copy_from_user(word_in(kHeap) & ~std::uint64_t{0x1ff}, 512);
    } else if (what < 60) {
        const unsigned pages = choices_.from_to(4, 32);
        kernel_.map(pages);
        for (unsigned page = 0; page < pages; ++page) {
            kernel_.write(kernel_.area(kMapping).page(page), choices_.word(), kernel_.word_bytes());
        }
        kernel_.unmap();
    }
}

}  // namespace process_workload
