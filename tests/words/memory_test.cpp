// SPDX-License-Identifier: Apache-2.0
//
// Sparse memory against a std::map of arrays: random stores, loads, reads, writes, discards and clears over
// frames that share the places where a frame's page is remembered (frames a multiple of a power of two apart,
// neighbours, the highest frames of 52 address bits). What was never stored to reads as 0 and allocates
// nothing; what was discarded reads as 0 again at once, also through a page that is used anew.
#include <mmusim/words/memory.hpp>

#include <array>
#include <map>
#include <random>
#include <vector>

#include "support/catch.hpp"

using namespace mmusim;

namespace {

using Bytes = std::array<std::byte, 4096>;

class Model {
public:
    void write(std::uint64_t frame, unsigned offset, std::span<const std::byte> bytes)
    {
        Bytes& page = pages_.try_emplace(frame, Bytes{}).first->second;
        for (std::size_t i = 0; i < bytes.size(); ++i) page[offset + i] = bytes[i];
    }
    [[nodiscard]] std::vector<std::byte> read(std::uint64_t frame, unsigned offset, std::size_t count) const
    {
        std::vector<std::byte> bytes(count, std::byte{0});
        if (const auto page = pages_.find(frame); page != pages_.end())
            for (std::size_t i = 0; i < count; ++i) bytes[i] = page->second[offset + i];
        return bytes;
    }
    [[nodiscard]] std::uint64_t load(std::uint64_t frame, unsigned offset, unsigned count) const
    {
        std::uint64_t value = 0;  // little-endian
        const auto bytes = read(frame, offset, count);
        for (unsigned i = 0; i < count; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
        return value;
    }
    void discard(std::uint64_t frame) { pages_.erase(frame); }
    void clear() { pages_.clear(); }
    [[nodiscard]] bool has(std::uint64_t frame) const { return pages_.count(frame) != 0; }
    [[nodiscard]] std::size_t size() const { return pages_.size(); }
    [[nodiscard]] const std::map<std::uint64_t, Bytes>& pages() const { return pages_; }

private:
    std::map<std::uint64_t, Bytes> pages_;
};

template <class Word>
void store_both(SparseMemory& memory, Model& model, std::uint64_t frame, unsigned offset, Word word)
{
    memory.store(frame, offset, word);
    std::array<std::byte, sizeof(Word)> bytes{};
    for (std::size_t i = 0; i < sizeof(Word); ++i)
        bytes[i] = static_cast<std::byte>(static_cast<std::uint64_t>(word) >> (8 * i));
    model.write(frame, offset, bytes);
}

}  // namespace

TEST_CASE("memory: random operations against a map", "[words]")
{
    for (const std::uint64_t seed : {1ull, 2ull, 3ull}) {
        INFO("seed " << seed);
        std::mt19937_64 random{seed};
        const auto below = [&](std::uint64_t n) { return random() % n; };
        SparseMemory memory;
        Model model;
        std::vector<std::uint64_t> frames;
        for (const std::uint64_t base : {0ull, 1ull, 5ull, 1023ull})
            for (const std::uint64_t step : {0ull, 1024ull, 2048ull, 1ull << 20, 1ull << 39})
                frames.push_back(base + step);
        frames.push_back((1ull << 40) - 1);
        frames.push_back((1ull << 40) - 1025);

        for (int step = 0; step < 60'000; ++step) {
            const std::uint64_t frame = frames[below(frames.size())];
            bool same = true;
            switch (below(step % 1000 == 0 ? 11 : 10)) {
            case 0: store_both(memory, model, frame, static_cast<unsigned>(below(512)) * 8, random()); break;
            case 1:
                store_both(memory, model, frame, static_cast<unsigned>(below(1024)) * 4,
                           static_cast<std::uint32_t>(random()));
                break;
            case 2:
                store_both(memory, model, frame, static_cast<unsigned>(below(4096)),
                           static_cast<std::uint8_t>(random()));
                break;
            case 3:
            case 4: {
                const auto offset = static_cast<unsigned>(below(512)) * 8;
                same = memory.load<std::uint64_t>(frame, offset) == model.load(frame, offset, 8);
                break;
            }
            case 5: {
                const auto offset = static_cast<unsigned>(below(1024)) * 4;
                same = memory.load<std::uint32_t>(frame, offset) == model.load(frame, offset, 4);
                break;
            }
            case 6: {
                const auto offset = static_cast<unsigned>(below(4096));
                std::vector<std::byte> bytes(1 + below(4096 - offset), std::byte{0xee});
                memory.read(frame, offset, bytes);
                same = bytes == model.read(frame, offset, bytes.size());
                break;
            }
            case 7: {
                const auto offset = static_cast<unsigned>(below(4096));
                std::vector<std::byte> bytes(1 + below(4096 - offset));
                for (auto& byte : bytes) byte = static_cast<std::byte>(random());
                memory.write(frame, offset, bytes);
                model.write(frame, offset, bytes);
                break;
            }
            case 8: same = (memory.find(frame) != nullptr) == model.has(frame); break;
            case 9:
                memory.discard(frame);
                model.discard(frame);
                same = memory.find(frame) == nullptr && memory.load<std::uint64_t>(frame, 0) == 0;
                break;
            default:
                memory.clear();
                model.clear();
                break;
            }
            if (!same || memory.frames_in_use() != model.size()) {
                INFO("step " << step << ", frame " << frame);
                FAIL("memory differs from the map");
            }
        }
        for (const std::uint64_t frame : frames) {
            std::vector<std::byte> bytes(4096);
            memory.read(frame, 0, bytes);
            CHECK(bytes == model.read(frame, 0, 4096));
        }
    }
}

TEST_CASE("memory: reading what was never stored allocates nothing", "[words]")
{
    SparseMemory memory;
    std::array<std::byte, 64> bytes{};
    for (std::uint64_t frame = 0; frame < (1ull << 40); frame += (1ull << 40) / 5000) {
        bytes.fill(std::byte{1});
        memory.read(frame, 32, bytes);
        REQUIRE(bytes == std::array<std::byte, 64>{});
        REQUIRE(memory.load<std::uint64_t>(frame, 8) == 0);
        REQUIRE(memory.load<std::uint32_t>(frame, 4092) == 0);
        REQUIRE(memory.find(frame) == nullptr);
        memory.discard(frame);
    }
    CHECK(memory.frames_in_use() == 0);
}

TEST_CASE("memory: a frame that was looked for in vain is found once it is stored to", "[words]")
{
    SparseMemory memory;
    CHECK(memory.load<std::uint64_t>(7, 0) == 0);  // remembered as absent
    memory.store<std::uint64_t>(7, 0, 42);
    CHECK(memory.load<std::uint64_t>(7, 0) == 42);
    REQUIRE(memory.find(7) != nullptr);
    memory.discard(7);  // remembered as present
    CHECK(memory.load<std::uint64_t>(7, 0) == 0);
    memory.store<std::uint64_t>(7, 8, 1);
    CHECK(memory.load<std::uint64_t>(7, 0) == 0);  // its old content does not come back
    CHECK(memory.load<std::uint64_t>(7, 8) == 1);
}

TEST_CASE("memory: discarding one frame leaves one that shares its place alone", "[words]")
{
    SparseMemory memory;
    for (const std::uint64_t distance : {256ull, 512ull, 1024ull, 4096ull, 1ull << 32}) {
        memory.store<std::uint64_t>(3, 0, 3);
        memory.store<std::uint64_t>(3 + distance, 0, 4);
        memory.discard(3);
        CHECK(memory.load<std::uint64_t>(3 + distance, 0) == 4);
        CHECK(memory.load<std::uint64_t>(3, 0) == 0);
        memory.store<std::uint64_t>(3, 0, 5);
        CHECK(memory.load<std::uint64_t>(3 + distance, 0) == 4);
        memory.discard(3 + distance);
        CHECK(memory.load<std::uint64_t>(3, 0) == 5);
        CHECK(memory.load<std::uint64_t>(3 + distance, 0) == 0);
    }
}

TEST_CASE("memory: clear makes everything 0, also in pages used again", "[words]")
{
    SparseMemory memory;
    for (std::uint64_t frame = 0; frame < 3000; ++frame) memory.store<std::uint64_t>(frame, 4088, ~0ull);
    CHECK(memory.frames_in_use() == 3000);
    memory.clear();
    CHECK(memory.frames_in_use() == 0);
    for (std::uint64_t frame = 0; frame < 3000; ++frame)
        REQUIRE(memory.load<std::uint64_t>(frame, 4088) == 0);
    CHECK(memory.frames_in_use() == 0);
    for (std::uint64_t frame = 5000; frame < 8000; ++frame) memory.store<std::uint8_t>(frame, 0, 1);
    for (std::uint64_t frame = 5000; frame < 8000; ++frame) {
        REQUIRE(memory.load<std::uint64_t>(frame, 4088) == 0);
        REQUIRE(memory.load<std::uint64_t>(frame, 0) == 1);
    }
}

TEST_CASE("memory: no bytes at all may be read and written, at the end of a frame too", "[words]")
{
    SparseMemory memory;
    memory.store<std::uint64_t>(1, 4088, 5);
    for (const unsigned offset : {0u, 4096u}) {
        memory.read(1, offset, {});
        memory.read(2, offset, {});
        memory.write(1, offset, {});
    }
    CHECK(memory.load<std::uint64_t>(1, 4088) == 5);
    CHECK(memory.frames_in_use() == 1);
}

TEST_CASE("memory: words are little-endian", "[words]")
{
    SparseMemory memory;
    memory.store<std::uint64_t>(1, 8, 0x8877'6655'4433'2211);
    CHECK(memory.load<std::uint8_t>(1, 8) == 0x11);
    CHECK(memory.load<std::uint8_t>(1, 15) == 0x88);
    CHECK(memory.load<std::uint32_t>(1, 12) == 0x8877'6655);
    CHECK(memory.load<std::uint16_t>(1, 9) == 0x3322);
}
