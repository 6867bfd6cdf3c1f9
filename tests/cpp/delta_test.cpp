// Deltas and generations: round trip, refusals, damage, and saves cut off at every operation.
#include "io/delta.h"

#include "base/error.h"
#include "crash_simulator.h"
#include "io/generation.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;
using smezo_test::Device;
using smezo_test::PowerLoss;

namespace {

StateHeader header_of(uint32_t watermark) {
  StateHeader h;
  h.method_json = R"({"name":"SparseMeZO"})";
  h.base_fingerprint = "00112233aabbccdd";
  h.watermark = watermark;
  h.journal_tail = 0x0a0b0c0d + watermark;
  h.extra["note"] = "n";
  return h;
}

// Odd counts, so that a wrong order of planes would be misaligned.
const std::vector<StateTensor> tensors = {{"w.b", DType::BF16T8, {3, 5}, false},
                                          {"w.a", DType::F32, {7}, true},
                                          {"w.c", DType::BF16, {9}, true},
                                          {"w.d", DType::F32, {0}, true}};

struct Values {
  std::vector<uint16_t> b, c;
  std::vector<int8_t> tail;
  std::vector<float> a;
};

// Other values at each watermark.
Values values_at(uint32_t w) {
  Values v;
  for (uint32_t i = 0; i < 15; ++i)
    v.b.push_back(static_cast<uint16_t>(i * 7 + w)), v.tail.push_back(static_cast<int8_t>(i * 11 + w));
  for (uint32_t i = 0; i < 9; ++i) v.c.push_back(static_cast<uint16_t>(i + 100 * w));
  for (uint32_t i = 0; i < 7; ++i) v.a.push_back(static_cast<float>(i) / static_cast<float>(w + 1));
  return v;
}

void fill(StateSink& to, uint32_t w) {
  const Values v = values_at(w);
  to.write(0, v.b.data(), v.tail.data(), 5);
  to.write(1, v.a.data(), nullptr, 7);
  to.write(0, v.b.data() + 5, v.tail.data() + 5, 10);
  to.write(2, v.c.data(), nullptr, 9);
}

void save(const std::string& path, uint32_t w) {
  write_delta(path, header_of(w), tensors, [&](StateSink& to) { fill(to, w); });
}

bool holds(const StateReader& r, uint32_t w) {
  const Values v = values_at(w);
  const auto at = [&](const char* name) { return static_cast<size_t>(r.find(name)); };
  return r.header().watermark == w && r.header().journal_tail == 0x0a0b0c0d + w &&
         std::memcmp(r.values(at("w.b")), v.b.data(), 30) == 0 &&
         std::memcmp(r.tail(at("w.b")), v.tail.data(), 15) == 0 &&
         std::memcmp(r.values(at("w.a")), v.a.data(), 28) == 0 &&
         std::memcmp(r.values(at("w.c")), v.c.data(), 18) == 0;
}

}  // namespace

TEST(round_trip) {
  CrashSimulator disk(1);
  save("d", 12);
  const StateReader r = open_delta("d", "00112233aabbccdd");
  CHECK(holds(r, 12));
  CHECK(!holds(r, 13));
  CHECK(r.header().method_json == R"({"name":"SparseMeZO"})");
  CHECK(r.header().extra.size() == 1 && r.header().extra.at("note") == "n");
  CHECK(r.tensors().size() == 4);
  CHECK(r.tensors()[0].name == "w.a" && r.tensors()[0].packed && r.tensors()[0].dtype == DType::F32 &&
        r.tensors()[0].n() == 7);
  CHECK(r.tensors()[1].dtype == DType::BF16T8 && !r.tensors()[1].packed && r.tensors()[1].n() == 15);
  CHECK(r.tensors()[2].dtype == DType::BF16 && r.tail(2) == nullptr);
  CHECK(r.find("w.z") == -1);
  CHECK(r.file_bytes() == static_cast<int64_t>(disk.bytes("d").size()));
}

TEST(every_flipped_bit_of_the_values_is_seen) {
  CrashSimulator disk(1);
  save("d", 3);
  const auto whole = disk.bytes("d");
  const size_t n_data = 30 + 15 + 28 + 18;
  for (size_t at = whole.size() - n_data; at < whole.size(); ++at) {
    disk.bytes("d") = whole;
    disk.bytes("d")[at] ^= static_cast<uint8_t>(1u << (at % 8));
    CHECK_THROWS(FormatError, "has checksum", open_delta("d"));
  }
  for (size_t n = 0; n < whole.size(); ++n) {
    disk.bytes("d").assign(whole.begin(), whole.begin() + static_cast<int64_t>(n));
    CHECK_THROWS(Error, "expected", open_delta("d"));
  }
}

TEST(refusals) {
  CrashSimulator disk(1);
  save("d", 3);
  CHECK_THROWS(FormatError, "was trained on base 00112233aabbccdd, expected ffff", open_delta("d", "ffff"));
  CHECK_THROWS(FormatError, "format 'smezo-delta', expected 'smezo-generation'",
               StateReader::open("d", StateKind::generation));
  write_safetensors("plain", {}, {}, [](SafetensorsSink&) {});
  CHECK_THROWS(FormatError, "no metadata 'format'", open_delta("plain"));
  const auto nothing = [](StateSink&) {};
  CHECK_THROWS(ArgumentError, "F16",
               write_delta("e", header_of(1), {{"a", DType::F16, {1}, false}}, nothing));
  CHECK_THROWS(ArgumentError, "reserved",
               write_delta("e", header_of(1), {{"a.tail", DType::F32, {1}, false}}, nothing));
  CHECK_THROWS(ArgumentError, "more than one dimension",
               write_delta("e", header_of(1), {{"a", DType::F32, {1, 1}, true}}, nothing));
  CHECK_THROWS(ArgumentError, "given 0 bytes", write_delta("e", header_of(1), tensors, nothing));
  StateHeader h = header_of(1);
  h.extra["crc32c"] = "";
  CHECK_THROWS(ArgumentError, "reserved name", write_delta("e", h, {}, nothing));
  CHECK_THROWS(ArgumentError, "a tail goes with BF16T8",
               write_delta("e", header_of(1), tensors, [](StateSink& to) {
                 const uint16_t v = 0;
                 to.write(0, &v, nullptr, 1);
               }));
  CHECK(!file_exists("e"));
}

TEST(metadata_that_was_tampered_with_is_refused) {
  CrashSimulator disk(1);
  const auto change = [&](const std::string& from, const std::string& to) {
    save("d", 3);
    auto& b = disk.bytes("d");
    std::string text(b.begin(), b.end());
    const size_t at = text.find(from);
    CHECK(at != std::string::npos);
    text.replace(at, from.size(), to);
    b.assign(text.begin(), text.end());
  };
  change(R"("format_version":"1")", R"("format_version":"2")");
  CHECK_THROWS(FormatError, "format version '2'", open_delta("d"));
  change(R"("watermark":"3")", R"("watermark":"x")");
  CHECK_THROWS(FormatError, "'watermark' is 'x'", open_delta("d"));
  change(R"("w.b.tail")", R"("w.x.tail")");
  CHECK_THROWS(FormatError, "entry 'w.x.tail'", open_delta("d"));
  change(R"(\"w.c\")", R"(\"w.x\")");
  CHECK_THROWS(FormatError, "'w.x' is listed as packed", open_delta("d"));
}

TEST(a_save_under_power_cuts_is_the_old_or_the_new_delta) {
  int64_t crashes = 0, n_new = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    for (int64_t at = 1;; ++at) {
      CrashSimulator disk(seed * 1000 + static_cast<uint64_t>(at), {.sector_bytes = 64});
      save("d", 1);
      disk.crash_at(at);
      bool done = false;
      try {
        save("d", 2);
        done = true;
      } catch (const PowerLoss&) {
        ++crashes;
      }
      disk.reboot();
      const StateReader r = open_delta("d");
      CHECK(holds(r, 2) || (!done && holds(r, 1)));
      n_new += r.header().watermark == 2;
      if (done) break;
    }
  }
  CHECK(crashes > 500);
  CHECK(n_new > 60);
}

TEST(control_without_sync_saves_are_lost) {
  int64_t bad = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    CrashSimulator disk(seed);
    save("d", 1);
    disk.device().sync_works = disk.device().sync_folder_works = false;
    save("d", 2);
    disk.reboot();
    try {
      bad += !holds(open_delta("d"), 2);
    } catch (const Error&) {
      ++bad;
    }
  }
  CHECK(bad > 50);
}

TEST(generations) {
  CrashSimulator disk(1);
  CHECK(list_generations("g").empty());
  for (const uint32_t w : {5u, 1200u, 40u})
    write_generation("g", header_of(w), tensors, [&](StateSink& to) { fill(to, w); });
  write_atomically("g/generation-0000000007.safetensors.tmp-1-1", "half");
  CHECK(list_generations("g") == (std::vector<uint32_t>{1200, 40, 5}));
  CHECK(holds(open_generation("g", 40, "00112233aabbccdd"), 40));
  CHECK_THROWS(FormatError, "belongs to base", open_generation("g", 40, "ff"));
  CHECK_THROWS(FormatError, "expected 'smezo-delta'", open_delta(generation_path("g", 40)));
  write_atomically(generation_path("g", 41), read_all(generation_path("g", 40)));
  CHECK_THROWS(FormatError, "holds watermark 40", open_generation("g", 41));
  remove_old_generations("g", 2);
  CHECK(list_generations("g") == (std::vector<uint32_t>{1200, 41}));
}

TEST(generations_under_power_cuts) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    CrashSimulator disk(seed, {.sector_bytes = 64});
    disk.crash_at(1 + static_cast<int64_t>(seed % 40));
    uint32_t written = 0;
    try {
      for (uint32_t w = 1; w <= 4; ++w) {
        write_generation("g", header_of(w), tensors, [&](StateSink& to) { fill(to, w); });
        written = w;
        remove_old_generations("g", 1);
      }
    } catch (const PowerLoss&) {
    }
    disk.reboot();
    const auto found = list_generations("g");
    CHECK((found.empty() ? 0 : found[0]) >= written);
    for (const uint32_t w : found) CHECK(holds(open_generation("g", w), w));
  }
}

TEST_MAIN()
