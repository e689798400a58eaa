// SPDX-License-Identifier: Apache-2.0
//
// The configuration of a replay: what the command's options and a configuration file can set. As JSON
// (docs/configuration.md) it has a key for each member; a key that is not known, a value of the wrong type or
// out of range is a ConfigError that names the key by its path.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <mmusim/cpu/cpu_profile.hpp>
#include <mmusim/machine/machine.hpp>
#include <mmusim/p2m/event_ring.hpp>
#include <mmusim/p2m/frame_layout.hpp>
#include <mmusim/shadow/policy_catalog.hpp>
#include <mmusim/shadow/shadow_engine.hpp>

namespace mmusim {

struct ConfigError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// The second level of nested mode (docs/nested.md).
struct NestedConfig {
    std::optional<P2mFormat> format;  ///< none: that of the guest's vendor
    std::optional<int> levels;        ///< none: 4, or 5 where the RAM needs it
    int largest_page = 3;             ///< level of the largest pages of the P2M
    unsigned tlb_entries = 32;        ///< of the nested TLB; 0: none
    bool ad_bits = false;             ///< EPT: accessed and dirty bits are in use
    bool vpid = true;                 ///< what TLBs hold survives exits

    friend bool operator==(const NestedConfig&, const NestedConfig&) = default;
};

struct ReplayConfig {
    TranslationMode mode = TranslationMode::shadow;
    std::optional<P2mLayout> p2m;  ///< instead of the trace header's layout
    std::string policy{kDefaultShadowPolicy};
    Populate populate = Populate::leaf;
    CustomShadowPolicy custom;                      ///< for the policy `custom`
    SecureView secure_view = SecureView::separate;  ///< how secure frames are kept
    std::vector<std::uint64_t> cr3_targets;         ///< MOV CR3 to one of these does not exit
    /// Pages of the event ring; none: one, as soon as the trace speaks of mem_access.
    std::optional<std::uint64_t> event_ring_pages;
    /// What the listener of mem_access answers; none: the frame is rwx from then on.
    std::optional<EventAction> event_response = EventAction::single_step;
    std::optional<std::uint64_t> shadow_pool_pages;  ///< none: as many as Xen's tool stack gives
    NestedConfig nested;
    std::string cpu{kDefaultCpuProfile};  ///< a bundled profile or a file
    ClockKind clock = ClockKind::blocking;
    unsigned window = 0;                 ///< accesses in flight, for ClockKind::window
    bool program_uses_caches = true;     ///< the program's own accesses go through the data caches
    bool check_coherence = false;        ///< compare each translation with what a fresh walk gives
    bool check = false;                  ///< verify the trace's expectations
    std::uint64_t audit = 0;             ///< check all invariants every so many records; 0: never
    std::uint64_t skip = 0;              ///< records that are replayed, but neither counted nor checked
    std::optional<std::uint64_t> limit;  ///< stop after so many records beyond those skipped

    friend bool operator==(const ReplayConfig&, const ReplayConfig&) = default;
};

/// Whether there is a hypervisor with shadows.
[[nodiscard]] bool has_shadows(const ReplayConfig& config);
/// Whether the configuration asks for what has hazards: CR3 values without an exit, or shared shadows of
/// secure frames.
[[nodiscard]] bool can_have_hazards(const ReplayConfig& config);

/// The full configuration, with defaults, keys in a fixed order.
[[nodiscard]] nlohmann::ordered_json to_json(const ReplayConfig& config);
/// Applies the members of `document` on top of `config`. Throws ConfigError.
void apply_document(ReplayConfig& config, const nlohmann::ordered_json& document);
/// Applies one `key.path=value`; the value is JSON, or else a plain string. Throws ConfigError.
void apply_setting(ReplayConfig& config, std::string_view setting);
/// Reads a configuration file; // and /* */ comments are allowed. Throws ConfigError with the file's name.
[[nodiscard]] nlohmann::ordered_json read_config_file(const std::string& path);

}  // namespace mmusim
