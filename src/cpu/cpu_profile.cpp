// SPDX-License-Identifier: Apache-2.0
//
// Where profiles come from. `bundled_cpu_profiles` is generated from profiles/ (cmake/EmbedProfiles.cmake).
#include <mmusim/cpu/cpu_profile.hpp>

#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

namespace mmusim {

namespace {

constexpr std::size_t kMostBytes = 1 << 20;

const BundledCpuProfile* bundled(std::string_view name)
{
    for (const BundledCpuProfile& profile : bundled_cpu_profiles()) {
        if (profile.name == name) return &profile;
    }
    return nullptr;
}

[[noreturn]] void refuse_unknown(const std::string& name)
{
    std::string known;
    for (const BundledCpuProfile& profile : bundled_cpu_profiles()) {
        known += fmt::format("{}{}", known.empty() ? "" : ", ", profile.name);
    }
    throw CpuProfileError(fmt::format("'{}' is not a CPU profile ({}) and not a file", name, known));
}

std::string content_of(const std::string& path)
{
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    if (status.type() == std::filesystem::file_type::not_found) refuse_unknown(path);
    if (std::filesystem::is_directory(status)) throw CpuProfileError(fmt::format("{}: is a directory", path));
    std::ifstream file(path, std::ios::binary);
    std::string text(kMostBytes + 1, '\0');
    if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (!file && !file.eof()) throw CpuProfileError(fmt::format("{}: can't be read", path));
    text.resize(static_cast<std::size_t>(file.gcount()));
    if (text.size() > kMostBytes) throw CpuProfileError(fmt::format("{}: is larger than 1 MiB", path));
    return text;
}

}  // namespace

CpuProfile find_cpu_profile(const std::string& name_or_file)
{
    return parse_cpu_profile(cpu_profile_text(name_or_file), name_or_file);
}

std::string cpu_profile_text(const std::string& name_or_file)
{
    if (const BundledCpuProfile* const profile = bundled(name_or_file)) return std::string{profile->text};
    return content_of(name_or_file);
}

}  // namespace mmusim
