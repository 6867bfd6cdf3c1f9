// Quantized formats: vectors from bitsandbytes 0.50.2 on x86-64 (tests/test_quantized.py holds everything
// against it), names and state text, pieces in order, and a new folder that is complete or not there.
#include "store/quantize.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "format/codec.h"
#include "format/dynamic8.h"
#include "io/file.h"
#include "store/encode.h"
#include "store/in_order.h"
#include "test.h"

using namespace smezo;

namespace {

// A block of 32 and a short one of 8, which is divided by its absmax instead of multiplied.
const std::vector<float> kWeights = {0.015f,  -0.052f, 0.038f, 0.047f,  -0.098f, -0.065f, 0.006f,  -0.016f,
                                     -0.001f, -0.043f, 0.044f, 0.039f,  0.003f,  0.056f,  0.023f,  -0.043f,
                                     0.018f,  -0.048f, 0.044f, -0.002f, -0.009f, -0.034f, 0.061f,  -0.008f,
                                     -0.021f, -0.018f, 0.027f, 0.018f,  0.021f,  0.022f,  0.107f,  -0.02f,
                                     0.03f,   -0.02f,  0.01f,  0.f,     -0.03f,  0.0075f, -0.001f, 0.025f};

std::string temporary_folder() {
  const std::string path = "/tmp/smezo_quantize_test-" + std::to_string(getpid());
  make_folders(path);
  return path;
}

std::vector<uint8_t> nf4_codes(const std::vector<float>& x, int64_t block, std::vector<float>* absmax) {
  std::vector<uint8_t> codes(x.size() / 2);
  absmax->resize((x.size() + static_cast<size_t>(block) - 1) / static_cast<size_t>(block));
  nf4_encode(x.data(), static_cast<int64_t>(x.size()), block, codes.data(), absmax->data());
  return codes;
}

}  // namespace

TEST(nf4_codes_of_published_weights) {
  std::vector<float> absmax;
  const std::vector<uint8_t> want = {0x92, 0xbc, 0x02, 0x85, 0x73, 0xcb, 0x7d, 0xa3, 0x93, 0xc7,
                                     0x64, 0xd6, 0x55, 0xa9, 0x9a, 0xf5, 0xf1, 0xb7, 0x0a, 0x7e};
  CHECK(nf4_codes(kWeights, 32, &absmax) == want);
  CHECK(f32_bits(absmax[0]) == 0x3ddb22d1 && f32_bits(absmax[1]) == 0x3cf5c28f);
}

TEST(nf4_zeros_ties_and_short_blocks) {
  std::vector<float> absmax;
  // Zeros: code 7. The absmax of a whole block stays 0, that of a short one is 1e-38.
  CHECK(nf4_codes(std::vector<float>(48, 0.0f), 32, &absmax) == std::vector<uint8_t>(24, 0x77));
  CHECK(absmax[0] == 0 && absmax[1] == 1e-38f);
  for (uint32_t k = 0; k < 15; ++k) {
    const float on = nf4_threshold(k);
    CHECK(nf4_code(on) == k);
    CHECK(nf4_code(std::nextafterf(on, 2)) == k + 1);
    CHECK(nf4_code(nf4_value(k)) == k && nf4_code(nf4_value(k + 1)) == k + 1);
  }
  // A NaN or an infinity shows in the absmax, wherever it stands.
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x(64, 1.0f);
    x[37] = bad;
    nf4_codes(x, 32, &absmax);
    CHECK(absmax[0] == 1 && !std::isfinite(absmax[1]));
  }
}

// Encoding what was decoded changes nothing: an absmax stands for itself only where a block has it, so the
// blocks get one.
TEST(nf4_round_trip) {
  std::vector<float> absmax;
  std::vector<uint8_t> codes(128);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37 + 11);
  for (size_t b = 0; b < codes.size(); b += 16) codes[b] = static_cast<uint8_t>(codes[b] | 0x0f);
  const std::vector<float> scale = {1.0f, 0.013f, 3e-5f, 700.0f, 1e-37f, 0.3f, 1.5f, 2e30f};
  WeightView w;
  w.data = codes.data();
  w.dtype = DType::NF4;
  w.rows = 1, w.cols = 256;
  w.scales.block = 32;
  w.scales.absmax = scale.data();
  std::vector<float> x(256);
  for (int64_t e = 0; e < 256; ++e) x[static_cast<size_t>(e)] = decode_at(w, e);
  CHECK(nf4_codes(x, 32, &absmax) == codes);
  CHECK(absmax == scale);
}

TEST(dynamic_map_and_codes) {
  const Dynamic8& d = dynamic8();
  struct Row {
    size_t code;
    uint32_t bits;
  };
  for (const Row& r :
       {Row{0, 0xbf7e3333}, Row{1, 0xbf7a999a}, Row{64, 0xbdc9eb85}, Row{100, 0xbbf4bc6a},
        Row{126, 0xb513a3b7}, Row{127, 0}, Row{128, 0x3513a3b7}, Row{129, 0x365a1a94}, Row{131, 0x37b24206},
        Row{140, 0x3a3c6a80}, Row{200, 0x3e6f3333}, Row{254, 0x3f7e3333}, Row{255, 0x3f800000}})
    CHECK(f32_bits(d.value[r.code]) == r.bits);
  const std::vector<float> absmax = {0.0449f, 0.0419f, 0.0562f, 0.0613f, 0.0489f, 0.0416f,
                                     0.0418f, 0.0565f, 0.0574f, 0.0554f, 0.0433f, 0.0523f};
  std::vector<uint8_t> codes(12);
  float nested = 0;
  nested_encode(absmax.data(), 12, 0.05f, codes.data(), &nested);
  CHECK(codes == (std::vector<uint8_t>{39, 20, 222, 255, 64, 18, 19, 224, 230, 217, 28, 198}));
  CHECK(f32_bits(nested) == 0x3c3923a0);
  // The lattice has no zero: 0 takes 131, but a block of nothing else takes 0.
  CHECK(dynamic8_code(0) == 131 && dynamic8_code(1) == 255 && dynamic8_code(-1) == 0);
  const std::vector<float> zeros(12);
  CHECK(dynamic8_encode(zeros.data(), 12, codes.data()) == 0 && codes == std::vector<uint8_t>(12, 0));
}

TEST(nested_offset_is_the_mean_rounded_once) {
  // In fp32 every addition of 1 to 2^24 is lost.
  std::vector<float> x(1025, 1.0f);
  x[0] = 16777216.0f;
  CHECK(nested_offset(x.data(), 1025) == static_cast<float>((16777216.0 + 1024) / 1025));
}

TEST(int8_codes_and_ties) {
  const std::vector<float> x = {0.5f, -1.27f, 0.005f, 0.015f, 0.025f, -0.635f, 1.265f, 0,  //
                                0,    0,      0,      0,      0,      0,       0,      0,  //
                                -127, 0.5f,   1.5f,   2.5f,   -0.5f,  -1.5f,   126.5f, 63};
  const std::vector<int8_t> want = {50,   -127, 0, 2, 2, -64, 126, 0,  //
                                    0,    0,    0, 0, 0, 0,   0,   0,  //
                                    -127, 0,    2, 2, 0, -2,  126, 63};
  std::vector<int8_t> codes(24);
  std::vector<float> absmax(3);
  int8_encode(x.data(), 3, 8, codes.data(), absmax.data());
  CHECK(codes == want);
  CHECK(absmax == (std::vector<float>{1.27f, 0, 127}));
  CHECK(int8_code(1e-37f, int8_factor(1e-37f)) == 0);
}

TEST(which_weights_are_block_linears) {
  const std::vector<int64_t> matrix = {4, 4};
  for (const char* name : {"model.layers.0.mlp.up_proj.weight", "layers.31.self_attn.q_proj.weight",
                           "model.language_model.layers.7.mlp.down_proj.weight"})
    CHECK(is_block_linear(name, matrix));
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
                           "model.layers.0.mlp.up_proj.bias", "model.layers.x.mlp.up_proj.weight",
                           "model.layers.weight", "model.mylayers.0.mlp.weight", "model.layers.3"})
    CHECK(!is_block_linear(name, matrix));
  CHECK(!is_block_linear("model.layers.0.input_layernorm.weight", {4}));
}

TEST(state_text_always_has_the_room_it_was_given) {
  for (const float offset : {0.0f, -1.1754942e-38f, std::numeric_limits<float>::denorm_min(), -3.4028235e38f,
                             0.05f, 1.0f / 3, -2.6385055e-7f})
    for (const DType stored : {DType::F32, DType::F16, DType::BF16}) {
      const QuantFormat f{DType::NF4, 4096, true};
      const std::string text = quant_state_text(17920, 6656, stored, f, offset);
      const QuantTensors t = quantized_tensors("layers.0.a.weight", 17920, 6656, f);
      CHECK(static_cast<int64_t>(text.size()) == t.specs[static_cast<size_t>(t.state)].shape[0]);
      const Json read = Json::parse(text, "state");
      CHECK(static_cast<float>(read.at("nested_offset", "state").as_double("state")) == offset);
    }
}

TEST(pieces_come_in_order_whoever_makes_them) {
  for (const int n_threads : {1, 2, 5})
    for (const int64_t n : {0, 1, 3, 8, 20, 21, 1000}) {
      ThreadPool pool(n_threads);
      int64_t next = 0;
      std::atomic<int64_t> made{0};
      const auto make = [&](int64_t piece, int, uint8_t* buffer) {
        for (int i = 0; i < 64; ++i) buffer[i] = static_cast<uint8_t>(piece * 7 + i);
        ++made;
      };
      const auto take = [&](int64_t piece, const uint8_t* buffer) {
        CHECK(piece == next++);
        for (int i = 0; i < 64; ++i) CHECK(buffer[i] == static_cast<uint8_t>(piece * 7 + i));
      };
      in_order(pool, n, 64, make, take);
      CHECK(next == n && made == n);
      if (n > 2)
        CHECK_THROWS(FormatError, "third", in_order(pool, n, 64, make, [&](int64_t piece, const uint8_t*) {
                       check<FormatError>(piece != 2, "test", "third");
                     }));
    }
}

TEST(a_new_folder_is_complete_or_not_there) {
  const std::string at = temporary_folder(), out = at + "/out";
  {
    NewFolder folder(out);
    write_atomically(join(folder.path(), "a"), std::string("x"));
    CHECK(!folder_exists(out) && folder_exists(folder.path()));
  }
  CHECK(list_folder(at).empty());
  {
    NewFolder folder(out + "//");
    write_atomically(join(folder.path(), "a"), std::string("x"));
    folder.finish();
  }
  CHECK(list_folder(at) == std::vector<std::string>{"out"} && read_all(out + "/a") == "x");
  CHECK_THROWS(ArgumentError, "already there", NewFolder again(out));
  CHECK_THROWS(ArgumentError, "already there", NewFolder again(out + "/a"));
  {
    NewFolder late(at + "/late");
    make_folders(at + "/late");
    CHECK_THROWS(ArgumentError, "appeared", late.finish());
  }
  for (const std::string& path : {out + "/a", out, at + "/late"}) remove_file(path);
  CHECK(list_folder(at).empty());
  remove_file(at);
}

TEST(shards_hold_whole_groups) {
  const std::string at = temporary_folder();
  const std::vector<TensorGroup> groups = {{{"a", "U8", {60}}, {"a.scale", "F32", {10}}},
                                           {{"b", "U8", {30}}},
                                           {{"c", "U8", {300}}},
                                           {{"d", "U8", {1}}}};
  std::vector<size_t> filled;
  const int64_t total = write_shards(at, groups, 100, [&](size_t group, SafetensorsSink& sink, size_t first) {
    filled.push_back(group);
    for (size_t i = 0; i < groups[group].size(); ++i) {
      const std::vector<uint8_t> bytes(static_cast<size_t>(spec_bytes(groups[group][i])), uint8_t(group + i));
      sink.write(first + i, bytes.data(), static_cast<int64_t>(bytes.size()));
    }
  });
  CHECK(total == 60 + 40 + 30 + 300 + 1);
  CHECK(filled == (std::vector<size_t>{0, 1, 2, 3}));
  const Safetensors read = Safetensors::open(at);
  CHECK(read.n_shards() == 4 && read.at("a").shard == read.at("a.scale").shard);
  CHECK(read.data(read.at("a.scale"))[0] == 1 && read.data(read.at("c"))[299] == 2);
  CHECK(read.metadata(0).at("format") == "pt");
  for (const std::string& name : list_folder(at)) remove_file(join(at, name));
  remove_file(at);
}

TEST_MAIN()
