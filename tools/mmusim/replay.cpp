// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/replayer.hpp>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <mmusim/replay/event_line.hpp>
#include <mmusim/replay/statistics.hpp>
#include <mmusim/trace/trace_reader.hpp>

#include "sha256.hpp"
#include "text.hpp"
#include "verbs.hpp"

namespace mmusim::tool {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start)
{
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// From /proc: getrusage would include the peak of the program that started this one.
std::uint64_t peak_memory_bytes()
{
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        std::uint64_t kibibytes = 0;
        if (word == "VmHWM:" && status >> kibibytes) return kibibytes * 1024;
    }
    return 0;
}

/// A line on the terminal that says how far the replay is; nothing anywhere else.
class Progress {
public:
    Progress() = default;
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress()
    {
        if (shown_) fmt::print(stderr, "\r\033[K");
    }
    void show(std::uint64_t records)
    {
        if (!terminal_ || records % kEvery != 0) return;
        fmt::print(stderr, "\r{} records", grouped(records));
        shown_ = true;
    }

private:
    static constexpr std::uint64_t kEvery = 1 << 18;
    bool terminal_ = isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
};

/// Where the events go: opened before the replay, written between its records.
class EventFile : public ShadowObserver {
public:
    explicit EventFile(const std::string& path) : path_{path}
    {
        if (!wanted()) return;
        file_ = to_stdout() ? stdout : std::fopen(path.c_str(), "wb");
        if (file_ == nullptr) throw std::system_error(errno, std::generic_category(), path_);
    }
    EventFile(const EventFile&) = delete;
    EventFile& operator=(const EventFile&) = delete;
    ~EventFile() override
    {
        if (file_ != nullptr && file_ != stdout) std::fclose(file_);
    }
    [[nodiscard]] bool wanted() const { return !path_.empty(); }
    [[nodiscard]] bool to_stdout() const { return path_ == "-"; }

    void of(const Replayer& replayer) { replayer_ = &replayer; }
    void on_event(const ShadowEvent& event) override
    {
        const auto* const clock = replayer_->machine().clock();
        text_ += to_json_line(event, replayer_->record(),
                              clock != nullptr ? std::optional{clock->now()} : std::nullopt);
        text_ += '\n';
    }
    /// Whether what has been told so far could be written; it may wait for more.
    [[nodiscard]] bool write()
    {
        if (text_.size() < kAtATime) return true;
        return put();
    }
    [[nodiscard]] bool finish()
    {
        if (!wanted()) return true;
        if (!put()) return false;
        if (to_stdout()) return true;  // flushed at the end of the command
        std::FILE* const file = std::exchange(file_, nullptr);
        if (std::fclose(file) == 0) return true;
        error_ = errno;
        return false;
    }
    [[nodiscard]] std::string error() const
    {
        return std::system_error(error_, std::generic_category(), path_).what();
    }

private:
    static constexpr std::size_t kAtATime = 1 << 16;
    bool put()
    {
        const bool done = std::fwrite(text_.data(), 1, text_.size(), file_) == text_.size();
        if (!done) error_ = errno;
        text_.clear();
        return done;
    }
    std::string path_;
    std::FILE* file_ = nullptr;
    const Replayer* replayer_ = nullptr;
    std::string text_;
    int error_ = 0;
};

/// What a replay ended with, besides its counts.
struct Ending {
    std::string error;  ///< why the trace was not replayed to its end
    int code = kDone;
};

Ending run(TraceReader& reader, Replayer& replayer, EventFile& events)
{
    Progress progress;
    Record record;
    try {
        while (!replayer.finished() && reader.next(record)) {
            replayer.replay(record);
            if (!events.write()) return {events.error(), kBadInput};
            progress.show(reader.records());
        }
    } catch (const TraceError& error) {
        return {error.what(), kBadInput};
    } catch (const RecordError& error) {
        return {TraceError(reader.place(), error.what(), error.key).what(), kBadInput};
    } catch (const AuditFailure& error) {
        return {fmt::format("audit {}", error.what()), kExpectationFailed};
    }
    return {};
}

void print_mismatches(std::FILE* out, const Replayer& replayer)
{
    for (const Mismatch& mismatch : replayer.mismatches()) {
        fmt::print(out, "mismatch at record {}: expected {}; happened: {}\n", mismatch.record,
                   mismatch.expected, mismatch.happened);
    }
    const std::uint64_t more = replayer.total().checks.mismatched - replayer.mismatches().size();
    if (more > 0) fmt::print(out, "... and {} more\n", grouped(more));
}

void print_hardware(std::FILE* out, const ReplayConfig& config, const StatisticsDocument& document)
{
    const MachineCounters& hardware = document.total.hardware;
    const auto share = [](std::uint64_t part, std::uint64_t whole) {
        return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
    };
    for (std::size_t i = 0; i < hardware.tlbs.size(); ++i) {
        const TlbCounters& tlb = hardware.tlbs[i];
        fmt::print(out, "{:<15}{} lookups, {:.2f} % hits\n",
                   fmt::format("TLB {}", document.cpu->tlbs.tlbs[i].name), grouped(tlb.lookups),
                   share(tlb.hits, tlb.lookups));
    }
    if (hardware.cycles.empty()) return;
    Cycles total = 0;
    std::vector<std::pair<Cycles, std::string>> causes;
    for (std::size_t i = 0; i < hardware.cycles.size(); ++i) {
        total += hardware.cycles[i];
        causes.emplace_back(hardware.cycles[i], document.labels.name(static_cast<Label>(i)));
    }
    std::stable_sort(causes.begin(), causes.end(),
                     [](const auto& one, const auto& other) { return one.first > other.first; });
    std::string most;
    for (std::size_t i = 0; i < causes.size() && i < 5 && causes[i].first > 0; ++i) {
        most +=
            fmt::format("{}{} {:.1f} %", i == 0 ? "" : ", ", causes[i].second, share(causes[i].first, total));
    }
    fmt::print(out, "{:<15}{} on {}: {}\n", "cycles", grouped(total), config.cpu, most);
}

void print_summary(std::FILE* out, const TraceHeader& header, const ReplayConfig& config,
                   const StatisticsDocument& document)
{
    const Statistics& total = document.total;
    const auto line = [&](std::string_view name, const std::string& text) {
        fmt::print(out, "{:<15}{}\n", name, text);
    };
    line("trace", fmt::format("{}, {} records{}", header.name, grouped(total.records),
                              document.complete ? "" : " (incomplete)"));
    line("mode", document.shadow ? fmt::format("{}, policy {}, P2M {}", name_of(config.mode), config.policy,
                                               to_string(config.p2m.value_or(header.p2m)))
                                 : std::string{name_of(config.mode)});
    const auto& accesses = total.accesses;
    line("accesses", fmt::format("{}: {} fetches, {} reads, {} writes", grouped(accesses.total()),
                                 grouped(accesses.fetch), grouped(accesses.read), grouped(accesses.write)));
    line("guest faults", fmt::format("{} page faults", grouped(total.guest_faults)));
    line("walks", fmt::format("{} by hardware, {} table entries read", grouped(total.hardware.walks),
                              grouped(total.hardware.memory_references)));
    print_hardware(out, config, document);
    if (document.shadow) {
        const ShadowCounters& shadow = total.shadow;
        line("shadow faults",
             fmt::format("{}: {} fixed, {} the guest's, {} writes to tables emulated", grouped(shadow.fault),
                         grouped(shadow.fault_fixed), grouped(shadow.fault_bail_real_fault),
                         grouped(shadow.fault_emulate_write)));
        line("shadow pages", fmt::format("{} of 4 KiB in use at the end", grouped(shadow.alloc_count)));
    }
    if (document.hazards) {
        std::string hazards;
        for (const HazardName& hazard : kHazardNames) {
            hazards += fmt::format("{}{} {}", hazards.empty() ? "" : ", ",
                                   grouped(total.hardware.hazards.*hazard.member), hazard.name);
        }
        line("hazards",
             fmt::format("{}; {} MOV CR3 without an exit", hazards, grouped(total.hardware.unseen_switches)));
    }
    if (document.mem_access) {
        const MemAccessCounts& counts = total.hardware.mem_access;
        line("mem_access",
             fmt::format("{} violations, {} events, {} accesses not done", grouped(counts.violations),
                         grouped(counts.events), grouped(counts.stopped)));
    }
    if (config.check) {
        line("checks", fmt::format("{} expectations, {} mismatches", grouped(total.checks.checked),
                                   grouped(total.checks.mismatched)));
    }
    if (config.check_coherence) {
        const StalenessCounts& coherence = total.hardware.coherence;
        line("coherence",
             fmt::format("{} translations, {} stale as permitted, {} violations", grouped(coherence.checked),
                         grouped(coherence.stale()), grouped(coherence.violations)));
    }
    const double seconds = document.host.seconds;
    line("speed", fmt::format("{:.3f} s, {:.2f} million accesses/s", seconds,
                              seconds > 0 ? static_cast<double>(accesses.total()) / seconds / 1e6 : 0.0));
}

void print_hazards(std::FILE* out, const Replayer& replayer)
{
    for (const Hazard& hazard : replayer.hazards())
        fmt::print(out, "hazard at record {}: {}\n", hazard.record, hazard.text);
    std::uint64_t more = 0;
    for (const HazardName& kind : kHazardNames) more += replayer.total().hardware.hazards.*kind.member;
    more -= std::min<std::uint64_t>(more, replayer.hazards().size());
    if (more > 0) fmt::print(out, "... and {} more\n", grouped(more));
}

void print_violations(std::FILE* out, const Replayer& replayer)
{
    for (const CoherenceViolation& violation : replayer.violations()) {
        fmt::print(out, "violation at record {}: {}\n", violation.record, violation.text);
    }
    const std::uint64_t more = replayer.total().hardware.coherence.violations - replayer.violations().size();
    if (more > 0) fmt::print(out, "... and {} more\n", grouped(more));
}

/// Where the statistics document goes: opened before the replay, so that a bad path is known at once, and
/// an older document does not stay when the replay fails.
class StatisticsFile {
public:
    explicit StatisticsFile(const std::string& path) : path_{path}
    {
        if (wanted() && !to_stdout()) file_.open(path_, std::ios::binary | std::ios::trunc);
        fail_if_bad();
    }
    [[nodiscard]] bool wanted() const { return !path_.empty(); }
    [[nodiscard]] bool to_stdout() const { return path_ == "-"; }
    void write(const std::string& text)
    {
        if (to_stdout()) {
            fmt::print("{}\n", text);
            return;
        }
        file_ << text << '\n';
        file_.close();
        fail_if_bad();
    }

private:
    void fail_if_bad() const
    {
        if (!file_) throw std::system_error(errno, std::generic_category(), path_);
    }
    std::string path_;
    std::ofstream file_;
};

bool same_file(const std::string& one, const std::string& other)
{
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (one.empty() || other.empty() || (fs::exists(other, ignored) && !fs::is_regular_file(other, ignored)))
        return false;  // a device, say
    return fs::weakly_canonical(one, ignored) == fs::weakly_canonical(other, ignored) ||
           fs::equivalent(one, other, ignored);
}

/// Whether events can be told, and written without harm to another file.
void check_events(const ReplayOptions& options, const ReplayConfig& config)
{
    if (options.events.empty()) return;
    const auto refuse = [](const std::string& why) { throw std::runtime_error("--events: " + why); };
    if (!has_shadows(config))
        refuse(fmt::format("there is no shadow engine in mode {}", name_of(config.mode)));
    if (options.events == "-" && options.stats == "-") {
        refuse("standard output is taken by --stats");
    }
    if (same_file(options.trace, options.events)) refuse(options.events + " is the trace");
    if (same_file(options.stats, options.events)) {
        refuse(options.events + " is also the file of --stats");
    }
}

}  // namespace

int replay(const ReplayOptions& options)
{
    const ReplayConfig config = options.config.effective();
    check_events(options, config);
    const auto configuration = to_json(config);
    EventFile events{options.events};
    StatisticsFile statistics{options.stats};
    StatisticsDocument document;
    document.config = &configuration;
    document.coherence = config.check_coherence;
    document.hazards = can_have_hazards(config);
    document.shadow = has_shadows(config);
    document.nested = config.mode == TranslationMode::nested;
    const auto write_document = [&] {
        if (!statistics.wanted()) return;
        document.trace_sha256 = sha256_of_file(options.trace);
        statistics.write(to_json(document).dump(2));
    };

    Ending ending;
    try {
        TraceReader reader{options.trace};
        document.trace_name = reader.header().name;
        const auto start = Clock::now();
        Replayer replayer{reader.header(), config, builtin_shadow_policies()};
        if (events.wanted()) {
            events.of(replayer);
            replayer.observe(&events);
        }
        ending = run(reader, replayer, events);
        replayer.finish();
        if (!events.finish() && ending.error.empty()) ending = {events.error(), kBadInput};
        document.complete = ending.error.empty();
        document.total = replayer.total();
        document.cpu = replayer.machine().config().cpu;
        document.labels = replayer.machine().cycle_labels();
        document.phases = replayer.phases();
        document.mem_access = replayer.mem_access_used();
        document.host = {seconds_since(start), peak_memory_bytes()};

        std::FILE* const people = statistics.to_stdout() || events.to_stdout() ? stderr : stdout;
        print_summary(people, reader.header(), config, document);
        print_mismatches(people, replayer);
        if (config.check_coherence) print_violations(people, replayer);
        if (document.hazards) print_hazards(people, replayer);
    } catch (...) {
        document.complete =
            false;  // nothing was replayed: not even the header, or it does not fit the options
        write_document();
        throw;
    }
    write_document();
    if (!ending.error.empty()) {
        fmt::print(stderr, "mmusim: {}\n", ending.error);
        return ending.code;
    }
    const bool incoherent = config.check_coherence && document.total.hardware.coherence.violations != 0;
    return document.total.checks.mismatched != 0 || incoherent ? kExpectationFailed : kDone;
}

}  // namespace mmusim::tool
