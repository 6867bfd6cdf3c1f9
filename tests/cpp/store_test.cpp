// The resident store: what working copies hold, what stays in place, what is refused, and what a fingerprint
// covers.
#include "store/store.h"

#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "checkpoint.h"
#include "crash_simulator.h"
#include "io/safetensors.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;
using smezo_test::stored;
using smezo_test::Stored;

namespace {

void save(const std::vector<Stored>& tensors) {
  make_folders("m");
  std::vector<TensorSpec> specs;
  for (const Stored& t : tensors) specs.push_back(t.spec);
  write_safetensors("m/model.safetensors", specs, {}, [&](SafetensorsSink& sink) {
    for (size_t i = 0; i < tensors.size(); ++i)
      sink.write(i, tensors[i].bytes.data(), static_cast<int64_t>(tensors[i].bytes.size()));
  });
}

std::vector<float> random_floats(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.2f);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}
std::vector<uint16_t> random_bits16(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> out(n);
  for (uint16_t& x : out) x = static_cast<uint16_t>(random() & 0xBFFF);  // finite in both 16-bit formats
  return out;
}

std::unique_ptr<Store> open_store(const std::vector<TensorRequest>& requests, DType values,
                                  int n_threads = 2) {
  ThreadPool pool(n_threads);
  return Store::open("m", requests, values, pool);
}

constexpr int64_t kRows = 700, kCols = 1024;  // more than one hash chunk in 16 bits
const std::vector<TensorRequest> kTrained = {{"a", kRows, kCols, true}};

}  // namespace

TEST(bf16_base_becomes_hi_plane_and_zero_tails) {
  CrashSimulator disk(1);
  const auto bits = random_bits16(kRows * kCols, 1);
  save({stored("a", "BF16", {kRows, kCols}, bits)});
  const auto store = open_store(kTrained, DType::BF16T8);
  const WeightView w = store->weight(0);
  CHECK(w.dtype == DType::BF16T8 && w.writable && w.rows == kRows && w.cols == kCols && w.tensor_id == 0);
  CHECK(std::memcmp(w.data, bits.data(), bits.size() * 2) == 0);
  CHECK(std::all_of(w.tail, w.tail + w.n(), [](int8_t t) { return t == 0; }));
  CHECK(reinterpret_cast<uintptr_t>(w.data) % 64 == 0 && reinterpret_cast<uintptr_t>(w.tail) % 64 == 0);
  CHECK(store->working_copy_bytes() == whole_pages(kRows * kCols * 3));
  CHECK(store->base_dtype() == DType::BF16);
}

TEST(fp32_base_is_rounded_to_the_nearest_24_bits) {
  CrashSimulator disk(1);
  const auto values = random_floats(kRows * kCols, 2);
  save({stored("a", "F32", {kRows, kCols}, values)});
  const auto store = open_store(kTrained, DType::BF16T8);
  const WeightView w = store->weight(0);
  std::vector<float> told(values.size());
  store->base_values(0, 0, w.n(), told.data());
  bool joined = true, nearest = true, same = true;
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t u24 = (static_cast<int64_t>(static_cast<uint16_t*>(w.data)[i]) << 8) + w.tail[i];
    const uint32_t u = static_cast<uint32_t>(u24) << 8;
    float x;
    std::memcpy(&x, &u, 4);
    // 16 significant bits: half a unit in the last place is 2^-16 of the binade.
    nearest &= std::fabs(x - values[i]) <= std::ldexp(1.0f, std::ilogb(values[i]) - 16);
    joined &= u24 >= 0 && u24 < (1 << 24);
    same &= told[i] == x;
  }
  CHECK(joined);
  CHECK(nearest);
  CHECK(same);
}

TEST(fp16_base_becomes_fp32_values) {
  CrashSimulator disk(1);
  const std::vector<uint16_t> bits = {0x3C00, 0xC000, 0x0001, 0x7BFF};
  save({stored("a", "F16", {2, 2}, bits)});
  const auto store = open_store({{"a", 2, 2, true}}, DType::F32);
  const float* x = static_cast<float*>(store->weight(0).data);
  CHECK(x[0] == 1.0f && x[1] == -2.0f && x[2] == std::ldexp(1.0f, -24) && x[3] == 65504.0f);
}

TEST(frozen_tensors_stay_in_place_and_are_not_writable) {
  CrashSimulator disk(1);
  save({stored("a", "BF16", {2, 8}, random_bits16(16, 3)), stored("b", "F32", {4}, random_floats(4, 4))});
  const std::vector<TensorRequest> requests = {{"a", 2, 8, false}, {"b", 1, 4, false}};
  const auto store = open_store(requests, DType::BF16T8);
  for (uint32_t id : {0u, 1u}) {
    CHECK(!store->weight(id).writable);
  }
  CHECK(store->working_copy_bytes() == 0);
  const uint16_t first = *static_cast<uint16_t*>(store->weight(0).data);
  store->rest(0);
  CHECK(*static_cast<uint16_t*>(store->weight(0).data) == first);
}

TEST(every_misfit_is_named) {
  CrashSimulator disk(1);
  const auto good = stored("a", "F32", {2, 2}, std::vector<float>{1, 2, 3, 4});
  save({good});
  CHECK_THROWS(FormatError, "'b' is missing", open_store({{"a", 2, 2}, {"b", 1, 2}}, DType::F32));
  CHECK_THROWS(FormatError, "'a' has shape [2, 2], expected [4, 1]", open_store({{"a", 4, 1}}, DType::F32));
  CHECK_THROWS(ArgumentError, "byte order", open_store({{"b", 1, 2}, {"a", 2, 2}}, DType::F32));
  CHECK_THROWS(ArgumentError, "F16", open_store({{"a", 2, 2}}, DType::F16));
  save({stored("a", "I32", {2, 2}, std::vector<int32_t>{1, 2, 3, 4})});
  CHECK_THROWS(FormatError, "has dtype I32", open_store({{"a", 2, 2}}, DType::F32));
  save({good, stored("z", "F32", {1}, std::vector<float>{1})});
  CHECK_THROWS(FormatError, "'z' [1]", open_store({{"a", 2, 2}}, DType::F32));
  save({good, stored("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}, std::vector<float>{1}),
        stored("lm_head.weight", "F32", {2, 2}, std::vector<float>{1, 2, 3, 4})});
  CHECK(open_store({{"a", 2, 2}}, DType::F32)->n_tensors() == 1);  // a buffer, and the copy of a tied head
}

TEST(fingerprint_covers_content_names_dtypes_shapes_and_not_threads) {
  CrashSimulator disk(1);
  auto bits = random_bits16(kRows * kCols, 5);
  save({stored("a", "BF16", {kRows, kCols}, bits)});
  const std::string first = open_store(kTrained, DType::BF16T8, 1)->fingerprint();
  CHECK(first.size() == 16);
  CHECK(open_store(kTrained, DType::F32, 3)->fingerprint() == first);
  CHECK(open_store({{"a", kRows, kCols, false}}, DType::F32)->fingerprint() == first);
  save({stored("a", "F16", {kRows, kCols}, bits)});
  CHECK(open_store(kTrained, DType::F32)->fingerprint() != first);
  save({stored("a", "BF16", {kCols, kRows}, bits)});
  CHECK(open_store({{"a", kCols, kRows, true}}, DType::F32)->fingerprint() != first);
  save({stored("b", "BF16", {kRows, kCols}, bits)});
  CHECK(open_store({{"b", kRows, kCols, true}}, DType::F32)->fingerprint() != first);
  for (size_t at : {size_t{0}, size_t{12345}, bits.size() - 1}) {
    auto changed = bits;
    changed[at] ^= 1;
    save({stored("a", "BF16", {kRows, kCols}, changed)});
    CHECK(open_store(kTrained, DType::F32)->fingerprint() != first);
  }
  std::swap(bits[0], bits[4 * 4]);  // the same lane of the hash, another order
  save({stored("a", "BF16", {kRows, kCols}, bits)});
  CHECK(open_store(kTrained, DType::F32)->fingerprint() != first);
}

TEST_MAIN()
