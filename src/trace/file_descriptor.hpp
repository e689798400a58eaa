// SPDX-License-Identifier: Apache-2.0
//
// An open file of the operating system, closed with its owner; standard input and output stay open.
#pragma once

#include <utility>

#include <unistd.h>

namespace mmusim::trace {

class FileDescriptor {
public:
    explicit FileDescriptor(int number) : number_{number} {}
    FileDescriptor(FileDescriptor&& other) noexcept : number_{std::exchange(other.number_, -1)} {}
    FileDescriptor& operator=(FileDescriptor&&) = delete;
    ~FileDescriptor()
    {
        if (number_ > STDERR_FILENO) ::close(number_);
    }

    [[nodiscard]] int number() const { return number_; }
    [[nodiscard]] bool open() const { return number_ >= 0; }
    /// Closes the file and says whether the system has taken all that was written.
    bool close()
    {
        const int number = std::exchange(number_, -1);
        return number <= STDERR_FILENO || ::close(number) == 0;
    }

private:
    int number_;
};

}  // namespace mmusim::trace
