// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <mmusim/version.hpp>

#include "verbs.hpp"

namespace mmusim::tool {

ReplayConfig ConfigOptions::effective() const
{
    ReplayConfig config;
    if (!file.empty()) {
        const auto document = read_config_file(file);
        try {
            apply_document(config, document);
        } catch (const ConfigError& error) {
            throw ConfigError(fmt::format("{}: {}", file, error.what()));
        }
    }
    for (const std::string& setting : settings) apply_setting(config, setting);
    nlohmann::ordered_json options = nlohmann::ordered_json::object();
    if (mode) options["mode"] = *mode;
    if (p2m) options["p2m"] = *p2m;
    if (policy) options["policy"] = *policy;
    if (cpu) options["cpu"] = *cpu;
    if (clock) options["clock"] = *clock;
    if (check) options["check"] = true;
    if (check_coherence) options["check_coherence"] = true;
    if (audit) options["audit"] = *audit;
    if (limit) options["limit"] = *limit;
    if (skip) options["skip"] = *skip;
    apply_document(config, options);
    // An unknown policy or CPU is found here, before any trace is opened.
    static_cast<void>(builtin_shadow_policies().find(config.policy));
    static_cast<void>(find_cpu_profile(config.cpu));
    return config;
}

int config_print(const ConfigOptions& options)
{
    fmt::print("{}\n", to_json(options.effective()).dump(2));
    return kDone;
}

int policies()
{
    const ShadowPolicyCatalog catalog = builtin_shadow_policies();
    for (const ShadowPolicyCatalog::Entry& policy : catalog.entries()) {
        fmt::print("{:<17}{}{}\n", policy.name, policy.description,
                   policy.name == kDefaultShadowPolicy ? " (the default)" : "");
    }
    return kDone;
}

int version()
{
    fmt::print("mmusim {}\n", kVersion);
    return kDone;
}

}  // namespace mmusim::tool
