// SPDX-License-Identifier: Apache-2.0
//
// The configuration as JSON: it comes back as it went out, and whatever is wrong with it is named by its
// path.
#include <mmusim/replay/config.hpp>

#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "replay/replay_run.hpp"
#include "support/catch.hpp"

using namespace mmusim;
using namespace mmusim::replay_test;

namespace {

using Json = nlohmann::ordered_json;

std::vector<ReplayConfig> some_configs()
{
    std::vector<ReplayConfig> configs{ReplayConfig{}};
    for (const TranslationMode mode :
         {TranslationMode::shadow, TranslationMode::shadow_2_on_3, TranslationMode::shadow_3_on_3,
          TranslationMode::shadow_4_on_4, TranslationMode::shadow_5_on_5, TranslationMode::native,
          TranslationMode::nested}) {
        configs.emplace_back().mode = mode;
    }
    for (const char* const layout :
         {"identity", "offset:0", "offset:0x123", "shuffled:0", "shuffled:18446744073709551615"}) {
        configs.emplace_back().p2m = parse_p2m_layout(layout);
        REQUIRE(configs.back().p2m.has_value());
    }
    ReplayConfig& all = configs.emplace_back();
    all.mode = TranslationMode::shadow_3_on_3;
    all.p2m = parse_p2m_layout("shuffled:7");
    all.policy = "tlb-like";
    all.populate = Populate::step;
    all.secure_view = SecureView::shared;
    all.cr3_targets = {0x1000, 0, ~std::uint64_t{0}, 0x2001};
    all.nested = {P2mFormat::npt, 5, 2, 0, true, false};
    all.event_ring_pages = 2;
    all.event_response.reset();
    all.cpu = "zen2";
    all.clock = ClockKind::window;
    all.window = 12;
    all.program_uses_caches = false;
    all.check = true;
    all.check_coherence = true;
    all.audit = 1000;
    all.skip = ~std::uint64_t{0};
    all.limit = 0;
    return configs;
}

/// What a document is refused with.
std::string refusal(const Json& document)
{
    ReplayConfig config;
    try {
        apply_document(config, document);
    } catch (const ConfigError& error) {
        return error.what();
    }
    return "accepted";
}

std::string setting_refusal(const std::string& setting)
{
    ReplayConfig config;
    try {
        apply_setting(config, setting);
    } catch (const ConfigError& error) {
        return error.what();
    }
    return "accepted";
}

std::string file_refusal(const std::string& text)
{
    const ScratchFile file{text, ".json"};
    ReplayConfig config;
    try {
        apply_document(config, read_config_file(file.path()));
    } catch (const ConfigError& error) {
        const std::string what = error.what();
        CHECK(what.find('\n') == std::string::npos);
        return what;
    }
    return "accepted";
}

bool has(const std::string& text, const std::string& words)
{
    return text.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("a configuration comes back from its JSON", "[replay][config]")
{
    for (const ReplayConfig& config : some_configs()) {
        const Json document = to_json(config);
        INFO(document.dump());
        ReplayConfig same;
        same.mode = TranslationMode::native;
        same.check = true;
        same.limit = 99;
        same.skip = 3;
        apply_document(same, document);
        CHECK(same == config);
        ReplayConfig read;
        apply_document(read, Json::parse(document.dump(2)));
        CHECK(read == config);
        const ScratchFile file{document.dump(2), ".json"};
        ReplayConfig from_file;
        apply_document(from_file, read_config_file(file.path()));
        CHECK(from_file == config);
    }
}

TEST_CASE("the JSON of a configuration has every key, with its default", "[replay][config]")
{
    CHECK(
        to_json(ReplayConfig{}).dump() ==
        R"({"mode":"shadow","p2m":"header","policy":"xen","shadow":{"populate":"leaf","pool_pages":null,)"
        R"("secure_view":"separate","cr3_targets":[],)"
        R"("custom":{"writable_heuristic":true,"early_unshadow":true,"fast_fault_path":true,"prefetch":true,)"
        R"("linux_l3_toplevel":true,"skip_verify":true,"virtual_tlb":true,"fast_emulation":true,)"
        R"("out_of_sync":true,"out_of_sync_tables":3,"fixups":2,"prefetch_window":32,"virtual_tlb_entries":13}},)"
        R"("nested":{"format":null,"levels":null,"largest_page":"1g","tlb_entries":32,"ad_bits":false,"vpid":true},)"
        R"("mem_access":{"ring":null,"response":"single_step"},)"
        R"("cpu":"golden_cove","clock":"blocking","data_caches":{"program":true},)"
        R"("check":false,"check_coherence":false,"audit":0,"skip":0,"limit":null})");
}

TEST_CASE("a document changes what it names and nothing else", "[replay][config]")
{
    ReplayConfig config;
    config.policy = "tlb-like";
    config.limit = 5;
    apply_document(config, Json::parse(R"({"mode":"native","shadow":{"populate":"step"}})"));
    ReplayConfig expected;
    expected.policy = "tlb-like";
    expected.limit = 5;
    expected.mode = TranslationMode::native;
    expected.populate = Populate::step;
    CHECK(config == expected);
    apply_document(config, Json::object());
    apply_document(config, Json::parse(R"({"shadow":{}})"));
    CHECK(config == expected);
    apply_document(config, Json::parse(R"({"limit":null,"p2m":"header","shadow":{"populate":"leaf"}})"));
    CHECK(!config.limit.has_value());
    CHECK(config.populate == Populate::leaf);
}

TEST_CASE("an unknown key is named by its path", "[replay][config]")
{
    CHECK(has(refusal(Json::parse(R"({"modus":"native"})")), "\"modus\""));
    CHECK(has(refusal(Json::parse(R"({"shadow":{"pages":3}})")), "\"shadow.pages\""));
    CHECK(has(refusal(Json::parse(R"({"shadow":{"populate":{"x":1}}})")), "\"shadow.populate\""));
    CHECK(has(refusal(Json::parse(R"({"Mode":"native"})")), "\"Mode\""));
    CHECK(has(refusal(Json::parse(R"({"":1})")), "\"\""));
    CHECK(has(refusal(Json::parse(R"({"shadow.populate":"step"})")), "accepted"));
    CHECK(has(refusal(Json::parse(R"({"mode.x":"native"})")), "\"mode.x\""));
    CHECK(has(setting_refusal("shadow.x=1"), "\"shadow.x\""));
    CHECK(has(setting_refusal("x.y.z=1"), "\"x.y.z\""));
}

TEST_CASE("a value of the wrong type or out of range is named by its path", "[replay][config]")
{
    const std::vector<std::pair<const char*, const char*>> cases{
        {R"({"mode":1})", "mode"},
        {R"({"mode":"nesting"})", "mode"},
        {R"({"mode":null})", "mode"},
        {R"({"p2m":7})", "p2m"},
        {R"({"p2m":"shuffled"})", "p2m"},
        {R"({"p2m":"shuffled:"})", "p2m"},
        {R"({"p2m":"shuffled:x"})", "p2m"},
        {R"({"p2m":"shuffled:-1"})", "p2m"},
        {R"({"p2m":"shuffled:18446744073709551616"})", "p2m"},
        {R"({"p2m":"offset:0x"})", "p2m"},
        {R"({"p2m":"offset:1 "})", "p2m"},
        {R"({"p2m":"listed"})", "p2m"},
        {R"({"policy":["tlb-like"]})", "policy"},
        {R"({"shadow":"step"})", "shadow"},
        {R"({"shadow":null})", "shadow"},
        {R"({"shadow":{"populate":"page"}})", "shadow.populate"},
        {R"({"shadow":{"populate":true}})", "shadow.populate"},
        {R"({"shadow":{"secure_view":"both"}})", "shadow.secure_view"},
        {R"({"shadow":{"secure_view":true}})", "shadow.secure_view"},
        {R"({"mem_access":{"ring":17}})", "mem_access.ring"},
        {R"({"mem_access":{"ring":"1"}})", "mem_access.ring"},
        {R"({"mem_access":{"response":"deny"}})", "mem_access.response"},
        {R"({"mem_access":{"rings":1}})", "mem_access.rings"},
        {R"({"shadow":{"cr3_targets":4096}})", "shadow.cr3_targets"},
        {R"({"shadow":{"cr3_targets":[1,2,3,4,5]}})", "shadow.cr3_targets"},
        {R"({"shadow":{"cr3_targets":["0x1000",4096]}})", "shadow.cr3_targets"},
        {R"({"shadow":{"cr3_targets":["4 KiB"]}})", "shadow.cr3_targets"},
        {R"({"shadow":{"cr3_targets":[-1]}})", "shadow.cr3_targets"},
        {R"({"shadow":{"cr3_targets":[null]}})", "shadow.cr3_targets"},
        {R"({"nested":"ept"})", "nested"},
        {R"({"nested":{"format":"flat"}})", "nested.format"},
        {R"({"nested":{"format":3}})", "nested.format"},
        {R"({"nested":{"levels":3}})", "nested.levels"},
        {R"({"nested":{"levels":"4"}})", "nested.levels"},
        {R"({"nested":{"largest_page":"4m"}})", "nested.largest_page"},
        {R"({"nested":{"largest_page":4096}})", "nested.largest_page"},
        {R"({"nested":{"tlb_entries":65537}})", "nested.tlb_entries"},
        {R"({"nested":{"tlb_entries":-1}})", "nested.tlb_entries"},
        {R"({"nested":{"ad_bits":1}})", "nested.ad_bits"},
        {R"({"nested":{"vpid":null}})", "nested.vpid"},
        {R"({"nested":{"asid":true}})", "nested.asid"},
        {R"({"check":1})", "check"},
        {R"({"check":"true"})", "check"},
        {R"({"audit":-1})", "audit"},
        {R"({"audit":"5"})", "audit"},
        {R"({"audit":1.0})", "audit"},
        {R"({"skip":true})", "skip"},
        {R"({"skip":null})", "skip"},
        {R"({"limit":-5})", "limit"},
        {R"({"limit":1e3})", "limit"},
        {R"({"limit":18446744073709551616})", "limit"},
    };
    for (const auto& [document, key] : cases) {
        INFO(document);
        CHECK(has(refusal(Json::parse(document)), fmt::format("\"{}\"", key)));
    }
    CHECK(has(refusal(Json::parse("[]")), "object"));
    CHECK(has(refusal(Json::parse("3")), "object"));
}

TEST_CASE("a setting is a path and JSON, or else a plain string", "[replay][config]")
{
    ReplayConfig config;
    apply_setting(config, "mode=native");
    apply_setting(config, "policy=\"tlb-like\"");
    apply_setting(config, "shadow.populate=step");
    apply_setting(config, "p2m=offset:0x100");
    apply_setting(config, "check=true");
    apply_setting(config, "audit=7");
    apply_setting(config, "skip=18446744073709551615");
    apply_setting(config, "limit=3");
    CHECK(config.mode == TranslationMode::native);
    CHECK(config.policy == "tlb-like");
    CHECK(config.populate == Populate::step);
    CHECK(config.p2m == parse_p2m_layout("offset:0x100"));
    CHECK(config.check);
    CHECK(config.audit == 7);
    CHECK(config.skip == ~std::uint64_t{0});
    CHECK(config.limit == std::uint64_t{3});
    apply_setting(config, "limit=null");
    CHECK(!config.limit.has_value());
    apply_setting(config, R"(shadow={"populate":"leaf"})");
    CHECK(config.populate == Populate::leaf);
    apply_setting(config, "audit=1");
    apply_setting(config, "audit=2");
    CHECK(config.audit == 2);
}

TEST_CASE("a bad setting is named", "[replay][config]")
{
    for (const char* const setting : {"mode", "", "=native", "mode native"}) {
        INFO(setting);
        CHECK(has(setting_refusal(setting), "key.path=value"));
    }
    CHECK(has(setting_refusal("mode="), "\"mode\""));
    CHECK(has(setting_refusal("mode=2"), "\"mode\""));
    CHECK(has(setting_refusal("policy=5"), "\"policy\""));
    CHECK(has(setting_refusal("check=yes"), "\"check\""));
    CHECK(has(setting_refusal("audit=-1"), "\"audit\""));
    CHECK(has(setting_refusal("audit=1 2"), "\"audit\""));
    CHECK(has(setting_refusal("shadow=step"), "\"shadow\""));
    CHECK(has(setting_refusal(" mode=native"), "\" mode\""));
}

TEST_CASE("a configuration file may have comments", "[replay][config]")
{
    const ScratchFile file{
        "// a comment\n{ /* another, */ \"mode\": \"native\", // one more\n \"audit\": 5 }\n", ".json"};
    ReplayConfig config;
    apply_document(config, read_config_file(file.path()));
    CHECK(config.mode == TranslationMode::native);
    CHECK(config.audit == 5);
}

TEST_CASE("a bad configuration file is named with what is wrong", "[replay][config]")
{
    const auto names_file = [](const std::string& what) { return has(what, ".json"); };
    CHECK(names_file(file_refusal("")));
    CHECK(names_file(file_refusal("{")));
    CHECK(names_file(file_refusal("{\"mode\":\"native\"} x")));
    CHECK(names_file(file_refusal("{\"mode\":'native'}")));
    CHECK(names_file(file_refusal(std::string(4, '\0'))));
    CHECK(names_file(file_refusal("{\"mode\":\"\xff\"}")));
    const std::string twice = file_refusal(R"({"mode":"native","audit":1,"mode":"shadow"})");
    CHECK(names_file(twice));
    CHECK(has(twice, "\"mode\""));
    const std::string inner = file_refusal(R"({"shadow":{"populate":"leaf","populate":"leaf"}})");
    CHECK(has(inner, "populate"));
    // The same name in two objects is no duplicate.
    CHECK(has(file_refusal(R"({"shadow":{"mode":1},"mode":"native"})"), "\"shadow.mode\""));
    CHECK_THROWS_AS(read_config_file("/nonexistent/mmusim.json"), ConfigError);
    CHECK_THROWS_AS(read_config_file(std::filesystem::temp_directory_path().string()), ConfigError);
}

TEST_CASE("a policy is looked up by name, and the known ones are listed", "[replay][config]")
{
    ReplayConfig config;
    config.policy = "no-such-policy";
    TraceHeader header;
    header.ram = {{Gfn{0}, 1}};
    try {
        const Replayer replayer{header, config, builtin_shadow_policies()};
        FAIL("the policy was accepted");
    } catch (const UnknownPolicy& error) {
        CHECK(has(error.what(), "no-such-policy"));
        const ShadowPolicyCatalog catalog = builtin_shadow_policies();
        for (const ShadowPolicyCatalog::Entry& entry : catalog.entries()) {
            CHECK(has(error.what(), entry.name));
        }
    }
    CHECK_NOTHROW(builtin_shadow_policies().find(kDefaultShadowPolicy));
}
