// SPDX-License-Identifier: Apache-2.0
//
// The reader as a whole: files, pipes and zstd frames, lines and documents, ends and cuts.
#include <mmusim/trace/trace_reader.hpp>

#include <filesystem>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>

#include "support/catch.hpp"
#include "trace/text_buffer.hpp"
#include "trace/trace_text.hpp"

using namespace mmusim;
using namespace mmusim::test;

namespace {

const std::string kRead = R"({"op":"read","la":"0x10","size":8})"
                          "\n";

std::string lines(std::size_t records)
{
    std::string text = kHeaderLine;
    for (std::size_t i = 0; i < records; ++i) {
        text += R"({"op":"write","la":")" + std::to_string(i) + "\"}\n";
        text.replace(text.size() - std::to_string(i).size() - 3, 0, "0x");
    }
    return text;
}

/// What `text` is refused with, without the file's name.
std::string refusal(std::string_view text, std::string_view suffix = ".jsonl")
{
    const ScratchFile file{text, suffix};
    const Reading reading = read_file(file.path());
    if (!reading.error) return "accepted";
    CHECK(reading.error->place().file == file.path());
    CHECK(reading.what.find('\n') == std::string::npos);
    const bool named = reading.what.starts_with(file.path() + ":");
    CHECK(named);
    return reading.what.substr(std::min(reading.what.size(), file.path().size() + 1));
}

}  // namespace

TEST_CASE("records come in their order, with their places", "[trace][reader]")
{
    const ScratchFile file{lines(3) + R"(  {"op":"end","records":3})"
                                      "\n"};
    TraceReader reader{file.path()};
    CHECK(reader.header().name == "t");
    CHECK(reader.place().file == file.path());
    CHECK(reader.place().line == 1);
    Record record;
    for (std::uint64_t i = 0; i < 3; ++i) {
        REQUIRE(reader.next(record));
        CHECK(std::get<AccessRecord>(record).address == (i < 10 ? i : 0));
        CHECK(reader.records() == i + 1);
        CHECK(reader.place().line == i + 2);
        CHECK(reader.place().column == 1);
    }
    REQUIRE(reader.next(record));
    CHECK(std::holds_alternative<EndRecord>(record));
    CHECK(reader.records() == 3);  // `end` is none of the trace's records
    CHECK(!reader.next(record));
    CHECK(!reader.next(record));
}

TEST_CASE("a reader can be moved", "[trace][reader]")
{
    const ScratchFile file{lines(2)};
    TraceReader first{file.path()};
    Record record;
    REQUIRE(first.next(record));
    TraceReader second{std::move(first)};
    REQUIRE(second.next(record));
    CHECK(!second.next(record));
}

TEST_CASE("lines may end in CRLF, and have space around the record", "[trace][reader]")
{
    const std::string text = kHeaderLine.substr(0, kHeaderLine.size() - 1) + "\r\n\t " +
                             kRead.substr(0, kRead.size() - 1) + "  \r\n";
    CHECK(read_text(text).records.size() == 1);
}

TEST_CASE("a trace without records is a trace", "[trace][reader]")
{
    CHECK(!read_text(kHeaderLine).error);
    CHECK(!read_text(kHeaderLine + "{\"op\":\"end\",\"records\":0}\n").error);
}

TEST_CASE("what is wrong with lines is told with its place", "[trace][reader]")
{
    const std::string head = kHeaderLine;
    CHECK(refusal(head + kRead + "\n" + kRead) == "3:1: an empty line");
    CHECK(refusal(head + "\n") == "2:1: an empty line");
    CHECK(refusal("\n" + head) == "1:1: an empty line, where the header should stand");
    CHECK(refusal(kRead + head) == "1:1: key \"op\": a record before the header");
    CHECK(refusal(head + head) == "2:2: key \"format\": is not a key of a record");
    CHECK(refusal(head + kRead.substr(0, 20)) ==
          "2:21: the last line has no line end: the file was cut short");
    CHECK(refusal(head + kRead + kRead.substr(0, kRead.size() - 1)) ==
          "3:35: the last line has no line end: the file was cut short");
    CHECK(refusal(head.substr(0, 50)) == "1:51: the last line has no line end: the file was cut short");
    CHECK(refusal(head + kRead +
                  R"(  {"op":"read","la":"0x10","size":0})"
                  "\n") == "3:35: key \"size\": 0 is out of range (1 to 4096)");
    CHECK(refusal("\xef\xbb\xbf" + head).starts_with("1:1: starts with a byte order mark"));
    CHECK(refusal("hello\n").starts_with("1:1: malformed JSON"));
    CHECK(refusal(std::string(300, '\0')).starts_with("1:301: the last line has no line end"));
}

TEST_CASE("after `end` nothing may follow", "[trace][reader]")
{
    const std::string whole = kHeaderLine + kRead + "{\"op\":\"end\",\"records\":1}\n";
    CHECK(read_text(whole).records.size() == 2);
    CHECK(refusal(whole + "\n") == "4:1: text after the \"end\" record");
    CHECK(refusal(whole + kRead) == "4:1: text after the \"end\" record");
    CHECK(refusal(whole + "{\"op\":\"end\",\"records\":1}\n") == "4:1: text after the \"end\" record");
    CHECK(refusal(whole + " ") == "4:2: the last line has no line end: the file was cut short");
    CHECK(refusal(kHeaderLine + kRead + "{\"op\":\"end\",\"records\":2}\n") ==
          "3:23: key \"records\": says 2, but 1 records came before");
    CHECK(read_text(whole + "x\n").records.size() == 2);
}

TEST_CASE("the records before an error are read", "[trace][reader]")
{
    const Reading reading = read_text(kHeaderLine + kRead + kRead + "{\"op\":\"frob\"}\n");
    CHECK(reading.records.size() == 2);
    REQUIRE(reading.error);
    CHECK(reading.error->place().line == 4);
    CHECK(reading.error->place().column == 7);
    CHECK(reading.error->key() == "op");
}

TEST_CASE("files that can't be read", "[trace][reader]")
{
    const ScratchPath nothing{".jsonl"};
    const auto what = [](const std::string& path) {
        const std::string text = read_file(path).what;
        return text.substr(std::min(text.size(), path.size()));
    };
    CHECK(what(nothing.path()) == ": can't be opened: No such file or directory");
    CHECK(what(std::filesystem::temp_directory_path().string()) == ": is a directory");
    CHECK(what(ScratchFile{""}.path()) == ": is empty: it has no header");
    CHECK(what(ScratchFile{"", ".jsonl.zst"}.path()) == ": is empty");
    CHECK(what(ScratchFile{packed("")}.path()) == ": is empty: it has no header");
    if (::geteuid() != 0) {
        const ScratchFile closed{kHeaderLine};
        ::chmod(closed.path().c_str(), 0);
        CHECK(what(closed.path()) == ": can't be opened: Permission denied");
    }
}

TEST_CASE("zstd is told by its content", "[trace][reader]")
{
    const std::string text = lines(5);
    for (const std::string_view name : {".jsonl", ".jsonl.zst", ".zst", ""}) {
        CHECK(read_text(packed(text), name).records.size() == 5);
    }
    CHECK(refusal(text, ".jsonl.zst") == " is not a zstd frame, though its name ends in .zst");
}

TEST_CASE("zstd frames may follow one another", "[trace][reader]")
{
    const std::string text = lines(9);
    const std::string skippable{
        "\x50\x2a\x4d\x18\x03\x00\x00\x00"
        "abc",
        11};
    std::string frames = skippable;
    for (std::size_t at = 0; at < text.size(); at += 37) frames += packed(text.substr(at, 37)) + skippable;
    CHECK(read_text(frames).records.size() == 9);
    CHECK(read_text(frames + "x").records.size() == 9);
    CHECK(read_text(frames + "x").what.find(":11: ") != std::string::npos);
    CHECK(read_text(frames + "not a frame").what.find("broken zstd frame") != std::string::npos);
}

TEST_CASE("a zstd frame cut anywhere is an error", "[trace][reader]")
{
    const std::string frame = packed(lines(200));
    for (std::size_t size = 0; size < frame.size(); size += 3) {
        INFO(size);
        const std::string cut = refusal(frame.substr(0, size), ".jsonl.zst");
        CHECK(cut != "accepted");
        if (size >= 4) CHECK(cut.ends_with("the last zstd frame is cut short"));
    }
}

TEST_CASE("a damaged zstd frame is an error", "[trace][reader]")
{
    const std::string frame = packed(lines(200));
    const std::vector<Record> whole = read_text(frame).records;
    std::size_t refused = 0;
    for (std::size_t at = 4; at < frame.size(); at += 3) {
        INFO(at);
        std::string damaged = frame;
        damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
        // Some bits mean nothing; what they are in is then as it was.
        const Reading reading = read_text(damaged);
        if (!reading.error) CHECK((reading.records == whole));
        refused += reading.error ? 1 : 0;
    }
    CHECK(refused > frame.size() / 4);
}

TEST_CASE("what precedes a damaged zstd frame is read", "[trace][reader]")
{
    std::string second = packed(lines(5));
    second.back() = static_cast<char>(second.back() ^ 1);  // its checksum
    const Reading reading = read_text(packed(lines(5)) + second);
    CHECK(reading.records.size() == 5);
    REQUIRE(reading.error);
    CHECK(reading.error->place().line == 7);
    CHECK(reading.what.find("broken zstd frame: ") != std::string::npos);
}

TEST_CASE("a pipe is read as it fills", "[trace][reader]")
{
    for (const bool compressed : {false, true}) {
        const ScratchPath pipe{".fifo"};
        REQUIRE(::mkfifo(pipe.path().c_str(), 0600) == 0);
        const std::string stored = compressed ? packed(lines(50)) : lines(50);
        std::thread writer{[&] {
            const int file = ::open(pipe.path().c_str(), O_WRONLY);
            for (const char c : stored) static_cast<void>(::write(file, &c, 1) == 1);
            ::close(file);
        }};
        const Reading reading = read_file(pipe.path());
        writer.join();
        CHECK(reading.what.empty());
        CHECK(reading.records.size() == 50);
    }
}

TEST_CASE("lines longer than a read are put together", "[trace][reader]")
{
    for (const std::size_t size : {1000u, 200000u, 262143u, 262144u, 262145u, 1000000u, 5000000u}) {
        const std::string line = R"({"op":"mark","name":")" + std::string(size, 'x') + "\"}\n";
        std::string text = kHeaderLine;
        for (int i = 0; i < 3; ++i) text += line + kRead;
        for (const std::string& stored : {text, packed(text)}) {
            const Reading reading = read_text(stored);
            CHECK(reading.what.empty());
            REQUIRE(reading.records.size() == 6);
            CHECK(std::get<MarkRecord>(reading.records[4]).name.size() == size);
        }
    }
}

TEST_CASE("a line without end is refused before it fills the memory", "[trace][reader]")
{
    // 100 MB in one line. (That it is not waited for shows in the memory of the command: tests/command.)
    const std::string long_text(std::size_t{100} << 20, '[');
    for (const std::string& start : {kHeaderLine, kHeaderLine + R"({"op":"read","la":)", std::string{}}) {
        const std::string text = start + long_text;
        for (const bool compressed : {false, true}) {
            const ScratchFile file{compressed ? packed(text) : text};
            std::string what;
            try {
                TraceReader reader{file.path()};
                Record record;
                reader.next(record);
            } catch (const TraceError& error) {
                what = error.what();
            }
            CHECK(what.ends_with(": the line is longer than 16 MiB"));
        }
    }
    // The longest line there may be.
    const std::string mark = R"({"op":"mark","name":"")"
                             "}";
    const std::string longest =
        R"({"op":"mark","name":")" + std::string(trace::kMaxPieceBytes - mark.size(), 'x') + "\"}\n";
    REQUIRE(longest.size() == trace::kMaxPieceBytes + 1);
    CHECK(read_text(kHeaderLine + longest).records.size() == 1);
    CHECK(refusal(kHeaderLine + " " + longest) == "2: the line is longer than 16 MiB");
}
