// Safetensors: one test for each way of failing, from literal bytes, and round trips.
#include "io/safetensors.h"

#include <cstring>

#include "base/error.h"
#include "crash_simulator.h"
#include "io/file.h"
#include "io/json.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;

namespace {

std::string with_length(const std::string& header, const std::string& data, uint64_t length) {
  std::string s;
  for (int i = 0; i < 8; ++i) s += static_cast<char>(length >> (8 * i));
  return s + header + data;
}
std::string file_of(const std::string& header, const std::string& data) {
  return with_length(header, data, header.size());
}

// Opens these bytes as a single file. The disk is in memory.
void open_bytes(const std::string& bytes) {
  write_atomically("x.safetensors", bytes);
  Safetensors::open("x.safetensors");
}
void open_one(const std::string& entry, const std::string& data) {
  open_bytes(file_of("{\"t\":" + entry + "}", data));
}

const std::string eight(8, 'd');

}  // namespace

#define REFUSED(E, part, header, data)                        \
  do {                                                        \
    CrashSimulator disk(1);                                   \
    CHECK_THROWS(E, part, open_bytes(file_of(header, data))); \
  } while (0)
#define ENTRY_REFUSED(E, part, entry, data)       \
  do {                                            \
    CrashSimulator disk(1);                       \
    CHECK_THROWS(E, part, open_one(entry, data)); \
  } while (0)

TEST(reads_a_literal_file) {
  CrashSimulator disk(1);
  write_atomically(
      "x.safetensors",
      file_of(R"({"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},)"
              R"("b":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}  )",
              "0123456789"));
  const Safetensors s = Safetensors::open("x.safetensors");
  CHECK(s.n_shards() == 1);
  CHECK(s.metadata().at("a") == "b");
  CHECK(s.tensors().size() == 2);
  CHECK(s.tensors()[0].name == "b" && s.tensors()[0].n == 1 && s.tensors()[0].n_bytes == 2);
  const TensorEntry& w = s.at("w");
  CHECK(w.dtype == "F32" && w.shape == (std::vector<int64_t>{1, 2}) && w.n == 2 && w.n_bytes == 8 &&
        w.shard == 0);
  CHECK(std::memcmp(s.data(w), "23456789", 8) == 0);
  CHECK(s.shard_bytes(0) == w.offset + 8);
  char part[3];
  s.read(w, 5, 3, part);
  CHECK(std::memcmp(part, "789", 3) == 0);
  CHECK_THROWS(ArgumentError, "outside", s.read(w, 6, 3, part));
  CHECK_THROWS(FormatError, "no tensor 'v' among 2", s.at("v"));
  CHECK(s.find("v") == nullptr);
}

TEST(zero_elements_and_no_tensors_are_fine) {
  CrashSimulator disk(1);
  open_bytes(file_of("{}", ""));
  open_one(R"({"dtype":"F32","shape":[0,5],"data_offsets":[0,0]})", "");
  open_one(R"({"dtype":"F4","shape":[2,8],"data_offsets":[0,8]})", eight);
}

TEST(no_file) {
  CrashSimulator disk(1);
  CHECK_THROWS(IoError, "No such file", Safetensors::open("none.safetensors"));
}
TEST(shorter_than_a_length) {
  CrashSimulator disk(1);
  CHECK_THROWS(FormatError, "3 bytes, expected at least 8", open_bytes("abc"));
}
TEST(header_too_large) {
  CrashSimulator disk(1);
  CHECK_THROWS(FormatError, "at most 100000000", open_bytes(with_length("{}", "", ~uint64_t{0})));
  CHECK_THROWS(FormatError, "at most 100000000", open_bytes("version https://git-lfs.github.com/spec/v1"));
}
TEST(header_past_the_end) {
  CrashSimulator disk(1);
  CHECK_THROWS(FormatError, "expected it inside the file", open_bytes(with_length("{}", "", 3)));
}
TEST(header_empty) { REFUSED(FormatError, "does not begin with '{'", "", ""); }
TEST(header_begins_with_space) { REFUSED(FormatError, "does not begin with '{'", " {}", ""); }
TEST(header_not_json) { REFUSED(FormatError, "expected a key", "{x", ""); }
TEST(header_not_utf8) { REFUSED(FormatError, "UTF-8", "{\"\xff\":1}", ""); }
TEST(header_has_text_after) { REFUSED(FormatError, "more text after", "{}{}", ""); }
TEST(header_key_twice) {
  REFUSED(
      FormatError, "'t' stands twice",
      R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
      eight);
}
TEST(header_too_deep) {
  REFUSED(FormatError, "nested deeper", "{\"a\":" + std::string(50, '[') + std::string(50, ']') + "}", "");
}
TEST(metadata_not_text) {
  REFUSED(FormatError, "__metadata__ a is an integer, expected text", R"({"__metadata__":{"a":1}})", "");
}
TEST(metadata_not_object) { REFUSED(FormatError, "expected an object", R"({"__metadata__":[]})", ""); }
TEST(entry_not_object) { ENTRY_REFUSED(FormatError, "tensor 't' is an array", "[]", ""); }
TEST(entry_without_dtype) {
  ENTRY_REFUSED(FormatError, "no key 'dtype'", R"({"shape":[],"data_offsets":[0,4]})", eight);
}
TEST(entry_without_shape) {
  ENTRY_REFUSED(FormatError, "no key 'shape'", R"({"dtype":"F32","data_offsets":[0,4]})", eight);
}
TEST(entry_without_offsets) {
  ENTRY_REFUSED(FormatError, "no key 'data_offsets'", R"({"dtype":"F32","shape":[2]})", eight);
}
TEST(entry_with_a_key_not_understood) {
  ENTRY_REFUSED(FormatError, "key 'codec'",
                R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"codec":"zstd"})", eight);
}
TEST(dtype_unknown) {
  ENTRY_REFUSED(FormatError, "dtype 'F33'", R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})", eight);
}
TEST(shape_negative) {
  ENTRY_REFUSED(FormatError, "no negative", R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", eight);
}
TEST(shape_fraction) {
  ENTRY_REFUSED(FormatError, "shape is a number", R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})",
                eight);
}
TEST(shape_past_int64) {
  ENTRY_REFUSED(FormatError, "expected an integer",
                R"({"dtype":"F32","shape":[18446744073709551618],"data_offsets":[0,8]})", eight);
}
TEST(shape_overflows) {
  ENTRY_REFUSED(FormatError, "overflows",
                R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})", "");
}
TEST(shape_times_dtype_overflows) {
  ENTRY_REFUSED(FormatError, "overflows",
                R"({"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]})", eight);
}
TEST(size_not_whole_bytes) {
  ENTRY_REFUSED(FormatError, "whole bytes", R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})", "dd");
}
TEST(size_differs_from_offsets) {
  ENTRY_REFUSED(FormatError, "takes 8 bytes, expected 12 for F32 [3]",
                R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", eight);
}
TEST(offsets_not_two) {
  ENTRY_REFUSED(FormatError, "1 data_offsets", R"({"dtype":"F32","shape":[2],"data_offsets":[8]})", eight);
}
TEST(offsets_backwards) {
  ENTRY_REFUSED(FormatError, "0 <= begin <= end", R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
                eight);
}
TEST(offsets_negative) {
  ENTRY_REFUSED(FormatError, "0 <= begin <= end", R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})",
                eight);
}
TEST(hole_at_the_front) {
  ENTRY_REFUSED(FormatError, "a hole", R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", eight);
}
TEST(hole_between) {
  REFUSED(
      FormatError, "'b' begins at byte 5 of the data, expected 4: a hole",
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}})",
      eight);
}
TEST(overlap) {
  REFUSED(
      FormatError, "'b' begins at byte 3 of the data, expected 4: it overlaps",
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})",
      eight);
}
TEST(same_bytes_twice) {
  REFUSED(
      FormatError, "overlaps",
      R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
      eight);
}
TEST(truncated) {
  ENTRY_REFUSED(IoError, "is truncated", R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})", eight);
}
TEST(bytes_after_the_last_tensor) {
  ENTRY_REFUSED(FormatError, "4 bytes after the last tensor",
                R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", eight);
}

TEST(every_truncation_is_refused) {
  CrashSimulator disk(1);
  const std::string whole = file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight);
  for (size_t n = 0; n < whole.size(); ++n) CHECK_THROWS(Error, "expected", open_bytes(whole.substr(0, n)));
}

namespace {

std::string tensor_file(const std::string& name) {
  return file_of("{\"" + name + R"(":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", eight);
}

void folder_of(const std::string& weight_map) {
  make_folders("m");
  write_atomically("m/model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
  write_atomically("m/s1.safetensors", tensor_file("a"));
  write_atomically("m/s2.safetensors", tensor_file("b"));
}

}  // namespace

TEST(sharded_folder) {
  CrashSimulator disk(1);
  folder_of(R"({"b":"s2.safetensors","a":"s1.safetensors"})");
  const Safetensors s = Safetensors::open("m");
  CHECK(s.n_shards() == 2);
  CHECK(s.at("a").shard == 0 && s.at("b").shard == 1);
  CHECK(s.shard_path(1) == "m/s2.safetensors");
  CHECK(std::memcmp(s.data(s.at("b")), eight.data(), 8) == 0);
  write_atomically("m/model.safetensors", tensor_file("c"));  // where both are, the single file counts
  CHECK(Safetensors::open("m").tensors().size() == 1);
}
TEST(folder_without_weights) {
  CrashSimulator disk(1);
  make_folders("m");
  CHECK_THROWS(IoError, "neither model.safetensors nor", Safetensors::open("m"));
}
TEST(shard_names_stay_inside_the_folder) {
  for (const char* name :
       {"../s1.safetensors", "/s1.safetensors", "sub/s1.safetensors", "..\\\\s1.safetensors", "",
        ".hidden.safetensors", "s1.safetensors\\u0000.safetensors"}) {
    CrashSimulator disk(1);
    folder_of(std::string("{\"a\":\"") + name + "\"}");
    CHECK_THROWS(FormatError, "expected a plain file name", Safetensors::open("m"));
  }
  CrashSimulator disk(1);
  folder_of(R"({"a":"config.json"})");
  CHECK_THROWS(FormatError, "ending in .safetensors", Safetensors::open("m"));
}
TEST(shard_missing) {
  CrashSimulator disk(1);
  folder_of(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  remove_file("m/s2.safetensors");
  CHECK_THROWS(IoError, "shard 'm/s2.safetensors' is missing, expected 2 shards", Safetensors::open("m"));
}
TEST(shard_truncated) {
  CrashSimulator disk(1);
  folder_of(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  disk.bytes("m/s2.safetensors").pop_back();
  CHECK_THROWS(IoError, "'m/s2.safetensors' is truncated", Safetensors::open("m"));
}
TEST(index_and_shards_disagree) {
  {
    CrashSimulator disk(1);
    folder_of(R"({"a":"s2.safetensors","b":"s1.safetensors"})");
    CHECK_THROWS(FormatError, "tensor 'a' is in 's1.safetensors', expected in 's2.safetensors'",
                 Safetensors::open("m"));
  }
  {
    CrashSimulator disk(1);
    folder_of(R"({"a":"s1.safetensors","c":"s2.safetensors"})");
    CHECK_THROWS(FormatError, "tensor 'c' is in no shard", Safetensors::open("m"));
  }
  {
    CrashSimulator disk(1);
    folder_of(R"({"a":"s1.safetensors"})");
    write_atomically("m/s1.safetensors", file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                                 R"("z":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                                 eight));
    CHECK_THROWS(FormatError, "1 tensors listed, but the shards hold 2", Safetensors::open("m"));
  }
  {
    CrashSimulator disk(1);
    folder_of(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
    write_atomically("m/s2.safetensors", tensor_file("a"));
    CHECK_THROWS(FormatError, "'a' is in two shards", Safetensors::open("m"));
  }
  {
    CrashSimulator disk(1);
    folder_of("{}");
    CHECK_THROWS(FormatError, "empty weight_map", Safetensors::open("m"));
  }
}

TEST(round_trip) {
  CrashSimulator disk(1);
  const std::vector<TensorSpec> specs = {
      {"tail", "I8", {3}}, {"half", "BF16", {3}}, {"full", "F32", {2, 1}}, {"none", "F32", {0}}};
  const float full[2] = {1.5f, -0.0f};
  const uint16_t half[3] = {1, 2, 0xffff};
  const int8_t tail[3] = {-128, 0, 127};
  write_safetensors("o.safetensors", specs, {{"k\"ey", "v\nal"}, {"sum", "00"}}, [&](SafetensorsSink& to) {
    to.write(0, tail, 2);
    to.write(1, half, 6);
    to.write(2, full, 8);
    to.write(0, tail + 2, 1);
    to.replace_metadata("sum", "5a");
    CHECK_THROWS(ArgumentError, "length", to.replace_metadata("sum", "123"));
    CHECK_THROWS(ArgumentError, "expected 6", to.write(1, half, 1));
  });
  const Safetensors s = Safetensors::open("o.safetensors");
  CHECK(s.tensors().size() == 4);
  CHECK(std::memcmp(s.data(s.at("full")), full, 8) == 0);
  CHECK(std::memcmp(s.data(s.at("half")), half, 6) == 0);
  CHECK(std::memcmp(s.data(s.at("tail")), tail, 3) == 0);
  CHECK(s.metadata().at("k\"ey") == "v\nal");
  CHECK(s.metadata().at("sum") == "5a");
  for (const auto& t : s.tensors()) CHECK(t.offset % (safetensors_dtype_bits(t.dtype) / 8) == 0);
}

TEST(writer_refuses) {
  CrashSimulator disk(1);
  const auto nothing = [](SafetensorsSink&) {};
  CHECK_THROWS(ArgumentError, "given 0 bytes, expected 4",
               write_safetensors("o", {{"a", "F32", {1}}}, {}, nothing));
  CHECK_THROWS(ArgumentError, "stands twice",
               write_safetensors("o", {{"a", "F32", {0}}, {"a", "F32", {0}}}, {}, nothing));
  CHECK_THROWS(ArgumentError, "dtype 'F33'", write_safetensors("o", {{"a", "F33", {0}}}, {}, nothing));
  CHECK_THROWS(ArgumentError, "no size", write_safetensors("o", {{"a", "F32", {-1}}}, {}, nothing));
  CHECK(list_folder(".").empty());  // nothing half written stays
}

TEST_MAIN()
