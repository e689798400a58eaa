// SPDX-License-Identifier: Apache-2.0
#include "sha256.hpp"

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <vector>

#include <sha2.h>

namespace mmusim::tool {

std::string sha256_of_file(const std::string& path)
{
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) return {};
    std::ifstream file(path, std::ios::binary);
    std::vector<char> block(std::size_t{1} << 16);
    SHA2_CTX sha;
    SHA256Init(&sha);
    while (file) {
        file.read(block.data(), static_cast<std::streamsize>(block.size()));
        SHA256Update(&sha, reinterpret_cast<const std::uint8_t*>(block.data()),
                     static_cast<std::size_t>(file.gcount()));
    }
    std::array<char, SHA256_DIGEST_STRING_LENGTH> text{};
    return SHA256End(&sha, text.data());
}

}  // namespace mmusim::tool
