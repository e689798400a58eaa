// SPDX-License-Identifier: Apache-2.0
//
// Runs the built command, or another program, as a child and says what it wrote, what it ended with and how
// much memory it had.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "replay/replay_run.hpp"

namespace mmusim::command_test {

struct Run {
    int code = -1;  ///< exit code; -1: ended by a signal
    std::string out;
    std::string error;
    /// Peak resident memory. Linux counts what the child had of its parent before it became the command.
    std::uint64_t peak_bytes = 0;
};

struct RunOptions {
    std::string input = "/dev/null";  ///< standard input comes from this file
    std::string output;               ///< standard output goes there, and not into Run::out
};

inline Run run_program(const std::string& program, const std::vector<std::string>& arguments,
                       const RunOptions& options = {})
{
    std::array<std::array<int, 2>, 2> pipes{};
    for (auto& ends : pipes) {
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    }
    std::vector<std::string> words{program};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("no child");
    if (child == 0) {
        const int input = ::open(options.input.c_str(), O_RDONLY);
        const int output = options.output.empty() ? pipes[0][1] : ::open(options.output.c_str(), O_WRONLY);
        if (input < 0 || output < 0 || ::dup2(input, 0) < 0 || ::dup2(output, 1) < 0 ||
            ::dup2(pipes[1][1], 2) < 0 || ::chdir(MMUSIM_SOURCE_DIR) != 0) {
            ::_exit(127);
        }
        ::execv(program.c_str(), argv.data());
        ::_exit(127);
    }
    Run result;
    std::array<std::string*, 2> texts{&result.out, &result.error};
    std::array<pollfd, 2> ends{};
    for (std::size_t i = 0; i < 2; ++i) {
        ::close(pipes[i][1]);
        ends[i] = {pipes[i][0], POLLIN, 0};
    }
    while (ends[0].fd >= 0 || ends[1].fd >= 0) {
        if (::poll(ends.data(), ends.size(), -1) < 0) continue;
        for (std::size_t i = 0; i < 2; ++i) {
            if (ends[i].fd < 0 || ends[i].revents == 0) continue;
            std::array<char, 65536> buffer;
            const ssize_t got = ::read(ends[i].fd, buffer.data(), buffer.size());
            if (got > 0) {
                texts[i]->append(buffer.data(), static_cast<std::size_t>(got));
            } else if (got == 0 || errno != EINTR) {
                ::close(ends[i].fd);
                ends[i].fd = -1;
            }
        }
    }
    int status = 0;
    rusage usage{};
    while (::wait4(child, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
    result.peak_bytes = static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
    return result;
}

inline Run run(const std::vector<std::string>& arguments, const RunOptions& options = {})
{
    return run_program(MMUSIM_COMMAND, arguments, options);
}

inline bool has(const std::string& text, const std::string& words)
{
    return text.find(words) != std::string::npos;
}

inline std::vector<std::string> lines_of(const std::string& text)
{
    std::vector<std::string> lines;
    std::istringstream stream{text};
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

/// The whole is one line, and nothing in it moves a cursor or changes a colour.
inline bool is_one_plain_line(const std::string& text)
{
    if (text.empty() || text.back() != '\n' || text.find('\n') != text.size() - 1) return false;
    for (const char c : text) {
        if (c != '\n' && (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)) return false;
    }
    return true;
}

}  // namespace mmusim::command_test
