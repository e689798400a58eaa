// SPDX-License-Identifier: Apache-2.0
//
// The verbs of the command, apart from how their options are parsed (main.cpp). Each returns the exit
// code 0 or 1; whatever makes it 2 is an exception.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mmusim/replay/config.hpp>
#include <mmusim/words/access.hpp>

namespace mmusim::tool {

inline constexpr int kDone = 0;
inline constexpr int kExpectationFailed = 1;
inline constexpr int kBadInput = 2;

/// Options that make up a configuration, as they were given.
struct ConfigOptions {
    std::string file;
    std::optional<std::string> mode;
    std::optional<std::string> p2m;
    std::optional<std::string> policy;
    std::optional<std::string> cpu;
    std::optional<std::string> clock;
    std::vector<std::string> settings;
    bool check = false;
    bool check_coherence = false;
    std::optional<std::uint64_t> audit;
    std::optional<std::uint64_t> limit;
    std::optional<std::uint64_t> skip;

    /// Defaults, then the file, then the options.
    [[nodiscard]] ReplayConfig effective() const;
};

struct ReplayOptions {
    ConfigOptions config;
    std::string trace;
    std::string stats;   ///< a file, "-", or empty
    std::string events;  ///< the same
};
int replay(const ReplayOptions& options);

struct CompareOptions {
    ConfigOptions config;
    std::string trace;
    // Each combination is a row; an empty list stands for what the configuration has.
    std::vector<std::string> policies;
    std::vector<std::string> modes;
    std::vector<std::string> cpus;
    std::optional<std::uint64_t> threads;
    std::string csv;   ///< a file, "-", or empty
    std::string json;  ///< the same
};
int compare(const CompareOptions& options);

struct MigrateOptions {
    ConfigOptions config;
    std::string trace;
    std::optional<std::uint64_t> rounds;
    std::optional<std::uint64_t> bandwidth;  ///< pages per million cycles
    std::string csv;                         ///< a file, "-", or empty
    std::string json;                        ///< the same
};
int migrate(const MigrateOptions& options);

struct WalkOptions {
    ConfigOptions config;
    std::string trace;
    std::optional<std::uint64_t> record;   ///< 1 is the first after the header
    std::optional<std::uint64_t> address;  ///< linear
    AccessKind kind = AccessKind::read;
    std::optional<unsigned> cpl;
    std::optional<std::uint64_t> vcpu;  ///< 0 if not given
};
int walk(const WalkOptions& options);

int trace_info(const std::string& trace);
int trace_validate(const std::string& trace);
int policies();

struct CpusOptions {
    std::string profile;  ///< a name or a file; empty: list them
    bool json = false;    ///< the text of the profile itself
};
int cpus(const CpusOptions& options);

/// As they were given; what is left out has the experiment's own default.
struct MicrobenchOptions {
    std::string experiment = "geometry";
    std::vector<std::string> given;  ///< names of the options that were
    std::string cpu = "golden_cove";
    AccessKind kind = AccessKind::read;
    std::string page = "4K";
    std::string mapping = "shared";
    std::optional<std::uint64_t> pages;
    std::optional<std::uint64_t> stride;
    std::string points;
    std::string entries = "pde";
    std::string spacing = "1";
    std::optional<std::uint64_t> work;
    std::optional<std::uint64_t> rounds;
    std::optional<std::uint64_t> warm_up;
    std::optional<std::uint64_t> trials;
    std::optional<std::uint64_t> seed;
    std::string csv;  ///< a file, "-", or empty
    std::string measured;
    std::string column = "cycles";
    std::vector<std::uint64_t> from;
    std::string svg;
};
int microbench(const MicrobenchOptions& options);
int config_print(const ConfigOptions& options);
int version();

}  // namespace mmusim::tool
