// SPDX-License-Identifier: Apache-2.0
//
// A CPU profile: everything that mmusim knows of one CPU's translation hardware. Profiles of real CPUs come
// with the library (profiles/, by name); a user's own is a JSON file of the same form
// (docs/cpu-profiles.md). Each figure of a bundled profile has a source and a confidence there.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <mmusim/timing/timing_spec.hpp>
#include <mmusim/tlb/tlb_spec.hpp>

namespace mmusim {

struct CpuProfile {
    std::string name;
    std::string description;
    TlbsSpec tlbs;
    TimingSpec timing;
};

/// A profile that can't be used. The message names the file and the key by its path.
struct CpuProfileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A bundled profile's name and the text of its file, in the order in which they are listed.
struct BundledCpuProfile {
    std::string_view name;
    std::string_view text;
};
[[nodiscard]] const std::vector<BundledCpuProfile>& bundled_cpu_profiles();

inline constexpr std::string_view kDefaultCpuProfile = "golden_cove";

/// Reads a profile; `origin` (a file or a name) is for errors. Throws CpuProfileError.
[[nodiscard]] CpuProfile parse_cpu_profile(std::string_view text, std::string_view origin);
/// The bundled profile of that name, or else the profile in the file of that name. Throws CpuProfileError;
/// an unknown name gets a list of the known ones.
[[nodiscard]] CpuProfile find_cpu_profile(const std::string& name_or_file);
/// The text of that profile, as it is stored.
[[nodiscard]] std::string cpu_profile_text(const std::string& name_or_file);

}  // namespace mmusim
