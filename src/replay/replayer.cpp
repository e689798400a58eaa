// SPDX-License-Identifier: Apache-2.0
#include <mmusim/replay/replayer.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace mmusim {

namespace {

/// Of the second level's tables: as many as the RAM needs.
int levels_for(const std::vector<GfnRange>& ram)
{
    const bool beyond = std::any_of(ram.begin(), ram.end(), [](const GfnRange& range) {
        return range.end().number() > std::uint64_t{1} << 36;
    });
    return beyond ? 5 : 4;
}

MachineConfig machine_config(const TraceHeader& header, const ReplayConfig& config,
                             const ShadowPolicyCatalog& catalog)
{
    MachineConfig machine;
    machine.cpuid = header.cpuid;
    machine.vcpus = header.vcpus;
    machine.ram = header.ram;
    machine.p2m = config.p2m.value_or(header.p2m);
    machine.mode = config.mode;
    machine.policy = catalog.find(config.policy);
    if (config.policy == "custom")
        machine.policy = [parts = config.custom] { return make_custom_policy(parts); };
    if (config.mode == TranslationMode::nested) {
        const bool amd = header.cpuid.vendor == Vendor::amd;
        const int needed = levels_for(header.ram);
        machine.p2m_format = config.nested.format.value_or(amd ? P2mFormat::npt : P2mFormat::ept);
        machine.p2m_levels = config.nested.levels.value_or(needed);
        if (machine.p2m_levels < needed)
            throw ConfigError("configuration key \"nested.levels\": the guest's RAM needs 5");
        machine.largest_p2m_page = config.nested.largest_page;
        machine.second_level = {config.nested.ad_bits, config.nested.tlb_entries};
        machine.vpid = config.nested.vpid;
    }
    machine.populate = config.populate;
    machine.secure_view = config.secure_view;
    machine.cr3_targets = config.cr3_targets;
    machine.shadow_pool_pages = config.shadow_pool_pages.value_or(0);
    machine.cpu = std::make_shared<const CpuProfile>(find_cpu_profile(config.cpu));
    machine.clock = config.clock;
    machine.window = config.window;
    machine.program_uses_caches = config.program_uses_caches;
    // What a recording expects of accessed and dirty bits depends on what was cached.
    const bool stale_shadows = has_shadows(config) && !machine.policy()->declared().coherent();
    machine.check_coherence =
        config.check_coherence || (config.check && (stale_shadows || !machine.cpu->tlbs.tlbs.empty()));
    return machine;
}

std::string describe(const ExpectedFault& fault)
{
    if (fault.vector != Vector::page_fault) return std::string{name_of(fault.vector)};
    return fmt::format("#PF, error code {:#x} ({})", fault.error_code, describe_error_code(fault.error_code));
}

/// Memory as a number where it is one, else as bytes.
std::string describe(std::span<const std::byte> bytes)
{
    std::uint64_t value = 0;
    if (bytes.size() <= sizeof value) {
        std::memcpy(&value, bytes.data(), bytes.size());
        return fmt::format("{:#x}", value);
    }
    std::string text;
    for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    return text;
}

/// The first ones are enough to see what is wrong.
std::string describe_dirty(const std::vector<Gfn>& frames)
{
    constexpr std::size_t kShown = 16;
    std::string text = fmt::format("{} dirty frames:", frames.size());
    for (std::size_t i = 0; i < std::min(frames.size(), kShown); ++i) text += fmt::format(" {}", frames[i]);
    if (frames.size() > kShown) text += " ...";
    return text;
}

std::array<std::byte, 8> bytes_of(std::uint64_t value)
{
    std::array<std::byte, 8> bytes;
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

std::uint64_t low_bits(unsigned bytes)
{
    return bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1;
}

/// A linear address or an offset as the record has it, if the machine has addresses so wide.
std::uint64_t address_within(std::uint64_t address, const Registers& registers, const char* key)
{
    if (!registers.long_mode() && address >> 32 != 0) {
        throw RecordError(fmt::format("{:#x} has more than 32 bits, outside long mode", address), key);
    }
    return address;
}

}  // namespace

Replayer::Replayer(const TraceHeader& header, const ReplayConfig& config, const ShadowPolicyCatalog& catalog)
    : config_{config}
    , header_{header}
    , machine_{machine_config(header, config, catalog)}
    , listener_{config.event_response}
    , has_hazards_{can_have_hazards(config)}
{
}

void Replayer::replay(const Record& record)
{
    if (std::holds_alternative<EndRecord>(record)) return;  // says that the trace is whole; no event
    if (!skipped_ && record_ == config_.skip) {
        skipped_ = phase_start_ = counted();
        checking_ = config_.check;
        machine_.observe(observer_);
    }
    ++record_;
    if (skipped_ && !std::holds_alternative<MarkRecord>(record)) phase_has_records_ = true;
    try {
        std::visit([this](const auto& one) { replay_record(one); }, record);
    } catch (const ModeMismatch& error) {
        throw RecordError(error.what(), {});
    } catch (const DomainCrashed& error) {
        throw RecordError(error.what(), {});
    }
    if (skipped_) ++running_.records;
    if (observer_ != nullptr) machine_.complete_events();
    if (config_.check_coherence) collect_violations();
    if (has_hazards_) collect_hazards();
    if (config_.audit != 0 && record_ % config_.audit == 0) {
        if (const auto violations = machine_.audit(); !violations.empty()) {
            throw AuditFailure(fmt::format("after record {}: {} violated invariants, the first: {}", record_,
                                           violations.size(), violations.front()));
        }
    }
}

void Replayer::observe(ShadowObserver* observer)
{
    observer_ = observer;
    if (skipped_) machine_.observe(observer);
}

bool Replayer::finished() const
{
    return config_.limit && record_ >= config_.skip && record_ - config_.skip >= *config_.limit;
}

void Replayer::finish()
{
    if (!skipped_) skipped_ = phase_start_ = counted();
    machine_.complete_events();
    machine_.deliver_events();
    end_phase();
    total_ = counted().since(*skipped_);
}

Statistics Replayer::counted_by_machine() const
{
    Statistics machine;
    machine.hardware = machine_.counters();
    if (machine_.shadow() != nullptr) machine.shadow = machine_.shadow()->counters();
    return machine;
}

Statistics Replayer::counted() const
{
    Statistics now = running_;
    now.add(before_resets_);
    now.add(counted_by_machine());
    return now;
}

void Replayer::collect_violations()
{
    for (std::string& text : machine_.take_violations()) {
        if (violations_.size() < kMismatchesKept) violations_.push_back({record_, std::move(text)});
    }
}

void Replayer::collect_hazards()
{
    for (std::string& text : machine_.take_hazards()) {
        if (hazards_.size() < kMismatchesKept) hazards_.push_back({record_, std::move(text)});
    }
}

void Replayer::end_phase()
{
    if (!phase_has_records_) return;
    phases_.push_back({phase_name_, counted().since(phase_start_)});
}

template <class Describe>
void Replayer::check(bool holds, Describe describe)
{
    ++running_.checks.checked;
    if (holds) return;
    ++running_.checks.mismatched;
    if (mismatches_.size() >= kMismatchesKept) return;
    auto [expected, happened] = describe();
    mismatches_.push_back({record_, std::move(expected), std::move(happened)});
}

// --- accesses ----------------------------------------------------------------------------------------

Operand Replayer::operand_of(const AccessRecord& access) const
{
    const Registers& registers = machine_.registers(access.vcpu);
    Operand operand;
    operand.bytes = access.bytes;
    operand.kind = access.rmw ? AccessKind::write : access.kind;
    operand.implicit = access.implicit;
    operand.gap = access.gap;
    operand.user_mode = access.cpl.value_or(registers.cpl) == 3 && !access.implicit;
    if (access.segment) {
        operand.segmented = {*access.segment,
                             VirtualAddress{address_within(access.address, registers, "va")}};
    } else {
        operand.address = LinearAddress{address_within(access.address, registers, "la")};
    }
    return operand;
}

void Replayer::count(AccessKind kind)
{
    switch (kind) {
    case AccessKind::fetch: ++running_.accesses.fetch; break;
    case AccessKind::read: ++running_.accesses.read; break;
    case AccessKind::write: ++running_.accesses.write; break;
    }
}

void Replayer::replay_record(const AccessRecord& record)
{
    const auto placed = machine_.access(record.vcpu, operand_of(record));
    count(record.kind);
    if (mem_access_begun_) raised_ = machine_.take_access_events();
    if (placed) {
        complete(record, *placed);
    } else {
        fail(record, placed.error());
    }
}

void Replayer::replay_record(const InstructionRecord& record)
{
    operands_.clear();
    operands_.push_back(operand_of(record.fetch));
    for (const AccessRecord& access : record.operands) operands_.push_back(operand_of(access));
    const bool by_block = header_.fetch == TraceHeader::Fetch::block;
    machine_.execute(record.fetch.vcpu, operands_, by_block ? Restart::operand : Restart::instruction,
                     execution_);
    if (mem_access_begun_) raised_ = machine_.take_access_events();

    const auto access_at = [&](std::size_t i) -> const AccessRecord& {
        return i == 0 ? record.fetch : record.operands[i - 1];
    };
    const bool completed = !execution_.fault;
    for (std::size_t i = 0; i < execution_.placed.size(); ++i) {
        const AccessRecord& access = access_at(i);
        count(access.kind);
        // What an instruction that faults has found so far is checked; memory does not change.
        if (completed) {
            complete(access, execution_.placed[i]);
        } else if (checking_) {
            check_placed(access, execution_.placed[i]);
            check_content(access, execution_.placed[i]);
        }
    }
    if (!completed) {
        const AccessRecord& access = access_at(execution_.placed.size());
        count(access.kind);
        fail(access, *execution_.fault);
    }
}

void Replayer::complete(const AccessRecord& access, const Placed& placed)
{
    if (checking_) {
        check_placed(access, placed);
        check_content(access, placed);
    }
    if (access.kind == AccessKind::write && !access.content.empty()) {
        machine_.store(placed, {access.content.data(), access.content.size()});
    }
}

void Replayer::fail(const AccessRecord& access, const Exception& exception)
{
    if (exception.vector == Vector::page_fault) ++running_.guest_faults;
    if (!checking_) return;
    check_event(access);
    if (access.fault) check_exception(access.fault, exception);
    const auto missing = [&](std::string expected) {
        check(false, [&] { return std::pair{std::move(expected), describe(exception)}; });
    };
    if (access.gpa) missing(fmt::format("guest-physical address {:#x}", *access.gpa));
    if (access.gpa2) missing(fmt::format("second guest-physical address {:#x}", *access.gpa2));
    if (access.kind == AccessKind::read && !access.content.empty()) {
        missing(fmt::format("content {}", describe(std::span{access.content.data(), access.content.size()})));
    }
}

void Replayer::check_placed(const AccessRecord& access, const Placed& placed)
{
    const GuestPhysical first = placed.parts[0].address;
    check_event(access);
    if (access.fault) check_exception(access.fault, std::nullopt);
    if (access.gpa) {
        check(first.value() == *access.gpa, [&] {
            return std::pair{fmt::format("guest-physical address {:#x}", *access.gpa),
                             fmt::format("{}", first)};
        });
    }
    if (access.gpa2) {
        const GuestPhysical second = placed.parts[1].address;
        check(placed.count == 2 && second.value() == *access.gpa2, [&] {
            return std::pair{fmt::format("second guest-physical address {:#x}", *access.gpa2),
                             placed.count == 2 ? fmt::format("{}", second) : "no second page"};
        });
    }
}

void Replayer::check_event(const AccessRecord& access)
{
    if (!access.event) return;
    // A write's event says read too, whether it was expected so or not.
    const auto as_told = [](FrameRights rights) {
        rights.read |= rights.write;
        return rights;
    };
    const MemAccessEventExpectation& expected = *access.event;
    const auto found = std::find_if(raised_.begin(), raised_.end(), [&](const MemAccessEvent& event) {
        return event.gfn == expected.gfn && event.rights == as_told(expected.rights);
    });
    check(found != raised_.end(), [&] {
        std::string happened;
        for (const MemAccessEvent& event : raised_) {
            happened += fmt::format("{}event of frame {}, rights {}", happened.empty() ? "" : "; ", event.gfn,
                                    name_of(event.rights));
        }
        return std::pair{
            fmt::format("event of frame {}, rights {}", expected.gfn, name_of(as_told(expected.rights))),
            happened.empty() ? std::string{"no event"} : std::move(happened)};
    });
    if (found != raised_.end()) raised_.erase(found);
}

void Replayer::check_content(const AccessRecord& access, const Placed& placed)
{
    if (access.kind != AccessKind::read || access.content.empty()) return;
    std::array<std::byte, kMaxAccessBytes> storage;
    const std::span found{storage.data(), access.content.size()};
    machine_.load(placed, found);
    check(std::equal(found.begin(), found.end(), access.content.begin()), [&] {
        return std::pair{
            fmt::format("content {}", describe(std::span{access.content.data(), access.content.size()})),
            describe(found)};
    });
}

void Replayer::check_exception(const std::optional<ExpectedFault>& expected,
                               const std::optional<Exception>& happened)
{
    if (!expected && !happened) return;
    const auto what_happened = [&] { return happened ? describe(*happened) : "no fault"; };
    if (!expected) {
        check(false, [&] { return std::pair{std::string{"no fault"}, what_happened()}; });
        return;
    }
    const bool is_page_fault = expected->vector == Vector::page_fault;
    const bool same = happened && happened->vector == expected->vector &&
                      (!is_page_fault || happened->error_code == expected->error_code);
    check(same, [&] { return std::pair{describe(*expected), what_happened()}; });
    if (expected->cr2) {
        const bool has_cr2 = happened && happened->vector == Vector::page_fault;
        check(has_cr2 && happened->address.value() == *expected->cr2, [&] {
            return std::pair{fmt::format("CR2 {:#x}", *expected->cr2), what_happened()};
        });
    }
}

// --- registers ---------------------------------------------------------------------------------------

void Replayer::replay_record(const SetRecord& record)
{
    Registers registers = machine_.registers(record.vcpu);
    const auto load = [](auto& target, const auto& value) {
        if (value) target = *value;
    };
    load(registers.cr0, record.cr0);
    load(registers.cr3, record.cr3);
    load(registers.cr4, record.cr4);
    load(registers.efer, record.efer);
    load(registers.pkru, record.pkru);
    load(registers.pkrs, record.pkrs);
    load(registers.cpl, record.cpl);
    load(registers.ac, record.ac);
    for (const SegmentUpdate& update : record.segments) {
        SegmentRegister& segment = registers.segments[update.segment];
        load(segment.base, update.base);
        load(segment.limit, update.limit);
        load(segment.null, update.null);
        load(segment.expand_down, update.expand_down);
        load(segment.big, update.big);
    }
    if (const auto refusal = machine_.set_registers(record.vcpu, registers)) {
        throw RecordError(fmt::format("no CPU holds these register values: {}", refusal->why), {});
    }
}

void Replayer::replay_record(const RegisterWriteRecord& record)
{
    machine_.gap(record.gap);
    using Target = RegisterWriteRecord::Target;
    std::optional<Exception> exception;
    switch (record.target) {
    case Target::cr0: exception = machine_.mov_cr0(record.vcpu, record.value); break;
    case Target::cr3: exception = machine_.mov_cr3(record.vcpu, record.value); break;
    case Target::cr4: exception = machine_.mov_cr4(record.vcpu, record.value); break;
    case Target::msr: exception = machine_.wrmsr(record.vcpu, record.msr, record.value); break;
    case Target::pkru:
        exception = machine_.wrpkru(record.vcpu, static_cast<std::uint32_t>(record.value));
        break;
    case Target::cpl: machine_.set_cpl(record.vcpu, static_cast<std::uint8_t>(record.value)); break;
    case Target::ac: machine_.set_ac(record.vcpu, record.value != 0); break;
    }
    if (checking_) check_exception(record.fault, exception);
}

void Replayer::replay_record(const InvlpgRecord& record)
{
    machine_.gap(record.gap);
    const Registers& registers = machine_.registers(record.vcpu);
    const LinearAddress address{address_within(record.address, registers, "la")};
    const auto exception = machine_.invlpg(record.vcpu, address);
    if (checking_) check_exception(record.fault, exception);
}

void Replayer::replay_record(const InvpcidRecord& record)
{
    machine_.gap(record.gap);
    const Registers& registers = machine_.registers(record.vcpu);
    const LinearAddress address{address_within(record.address, registers, "la")};
    const auto exception = machine_.invpcid(record.vcpu, record.type, record.pcid, address);
    if (checking_) check_exception(record.fault, exception);
}

// --- memory ------------------------------------------------------------------------------------------

void Replayer::need_ram(Gfn frame, std::string_view key) const
{
    const bool populated_later = machine_.p2m().entry(frame).type == P2mType::populate_on_demand;
    if (populated_later || machine_.memory().has(frame)) return;
    throw RecordError(fmt::format("frame {} is not RAM", frame), std::string{key});
}

void Replayer::replay_record(const PageRecord& record)
{
    need_ram(record.gfn, "gfn");
    if (record.entries.empty()) {
        machine_.clear_frame(record.gfn);
        return;
    }
    std::array<std::byte, kPageBytes> content{};
    for (const auto& [index, value] : record.entries) {
        std::memcpy(content.data() + std::size_t{index} * record.width, &value, record.width);
    }
    machine_.poke(record.gfn.address(), content);
}

void Replayer::replay_record(const PokeRecord& record)
{
    need_ram(Gfn::of(record.gpa), "gpa");
    const auto bytes = bytes_of(record.value);
    machine_.poke(record.gpa, std::span{bytes}.first(record.bytes));
}

std::uint64_t Replayer::left_unset(GuestPhysical at) const
{
    // The oracle speaks of aligned words; eight bytes of memory may lie in two.
    const auto in_word = static_cast<unsigned>(at.value() % 8);
    const GuestPhysical word{at.value() - in_word};
    std::uint64_t bits = machine_.left_unset(word) >> (8 * in_word);
    if (in_word != 0) bits |= machine_.left_unset(GuestPhysical{word.value() + 8}) << (64 - 8 * in_word);
    return bits;
}

void Replayer::replay_record(const ExpectMemoryRecord& record)
{
    need_ram(Gfn::of(record.gpa), "gpa");
    if (!checking_) return;
    std::array<std::byte, 8> bytes{};
    machine_.peek(record.gpa, std::span{bytes}.first(record.bytes));
    std::uint64_t found = 0;
    std::memcpy(&found, bytes.data(), sizeof found);
    std::uint64_t compared = low_bits(record.bytes) & ~record.ignore;
    // Accessed and dirty bits that a walk would have set, had no cached translation been used.
    const std::uint64_t unset = record.value & ~found & compared & left_unset(record.gpa);
    if (unset != 0 && ((found ^ record.value) & compared & ~unset) == 0) ++running_.checks.stale;
    compared &= ~unset;
    check(((found ^ record.value) & compared) == 0, [&] {
        return std::pair{
            fmt::format("{:#x} in memory at {}, {:#x} ignored", record.value, record.gpa, record.ignore),
            fmt::format("{:#x}", found)};
    });
}

void Replayer::replay_record(const ResetRecord&)
{
    before_resets_.add(counted_by_machine());
    machine_.reset();
    mem_access_begun_ = false;
    raised_.clear();
}

void Replayer::replay_record(const ShadowBlowRecord&)
{
    machine_.blow_shadows();
}

void Replayer::need_hypervisor(std::string_view op) const
{
    if (config_.mode != TranslationMode::native) return;
    throw RecordError(
        fmt::format("{} is for a hypervisor to do, and mode {} has none", op, name_of(config_.mode)), "op");
}

void Replayer::need_shadows(std::string_view op) const
{
    need_hypervisor(op);
    if (machine_.shadow() != nullptr) return;
    throw RecordError(fmt::format("{} needs shadows, and mode {} has none", op, name_of(config_.mode)), "op");
}

void Replayer::change_p2m(Gfn first, std::uint64_t count, P2mType type, std::optional<MemAccess> access,
                          std::optional<Mfn> mfn)
{
    if (const auto refused = machine_.set_p2m(first, count, type, access, mfn))
        throw RecordError(fmt::format("the P2M cannot change so: {}", refused->why), "op");
}

void Replayer::replay_record(const P2mSetRecord& record)
{
    need_hypervisor("p2m_set");
    change_p2m(record.gfn, record.count, record.type, record.access, record.mfn);
}

void Replayer::replay_record(const P2mClearRecord& record)
{
    need_hypervisor("p2m_clear");
    change_p2m(record.gfn, record.count, P2mType::mmio_dm, std::nullopt, std::nullopt);
}

void Replayer::replay_record(const LogDirtyRecord& record)
{
    need_shadows("log_dirty");
    using Action = LogDirtyRecord::Action;
    LogDirtyAction action{};
    switch (record.action) {
    case Action::enable: action = LogDirtyAction::enable; break;
    case Action::peek: action = LogDirtyAction::peek; break;
    case Action::clean: action = LogDirtyAction::clean; break;
    case Action::disable: action = LogDirtyAction::disable; break;
    }
    const LogDirtyAnswer answer = machine_.log_dirty(action);
    if (answer.rc != 0) {
        const bool on_already = action == LogDirtyAction::enable;
        throw RecordError(fmt::format("log-dirty refuses this: {}",
                                      answer.rc == LogDirtyAnswer::kNoMemory
                                          ? "the shadow pool had no page for its set (-ENOMEM)"
                                      : on_already ? "it is on already (-EINVAL)"
                                                   : "it is off (-EINVAL)"),
                          "action");
    }
    if (!checking_ || !record.expect) return;
    std::vector<Gfn> expected = *record.expect;
    std::sort(expected.begin(), expected.end());
    check(answer.frames == expected, [&] {
        return std::pair{describe_dirty(expected), describe_dirty(answer.frames)};
    });
}

void Replayer::begin_mem_access()
{
    if (mem_access_begun_) return;
    mem_access_begun_ = mem_access_used_ = true;
    const std::uint64_t pages = config_.event_ring_pages.value_or(1);
    if (pages == 0) return;
    machine_.open_event_ring(static_cast<unsigned>(pages));
    (void)machine_.attach_listener(listener_);
}

void Replayer::replay_record(const MemAccessRecord& record)
{
    need_shadows("mem_access");
    begin_mem_access();
    if (record.attached && *record.attached) {
        if (!machine_.attach_listener(listener_))
            throw RecordError("the domain has no event ring: mem_access.ring is 0", "listener");
    } else if (record.attached) {
        machine_.detach_listener();
    }
    if (record.required) machine_.require_listener(*record.required);
    std::optional<Refusal> refused;
    switch (record.target) {
    case MemAccessRecord::Target::none: break;
    case MemAccessRecord::Target::frames:
        refused = machine_.set_mem_access(record.gfn, record.count, record.access);
        break;
    case MemAccessRecord::Target::domain_default:
        refused = machine_.set_default_mem_access(
            record.access.value_or(machine_.access_monitor().rights().default_access()));
        break;
    }
    if (refused) throw RecordError(fmt::format("mem_access cannot change so: {}", refused->why), {});
}

void Replayer::replay_record(const SecureFramesRecord& record)
{
    need_shadows("secure_frames");
    for (const Gfn frame : record.gfns) need_ram(frame, "gfns");
    machine_.set_secure_frames(record.gfns);
}

void Replayer::replay_record(const SecureModeRecord& record)
{
    need_shadows("secure_mode");
    machine_.set_secure_mode(record.vcpu, record.on);
}

void Replayer::replay_record(const MarkRecord& record)
{
    if (skipped_) {
        end_phase();
        phase_start_ = counted();
        phase_has_records_ = true;  // a phase with a name is there even if it is empty
    }
    phase_name_ = record.name;
}

void Replayer::replay_record(const EndRecord&) {}  // not reached

}  // namespace mmusim
