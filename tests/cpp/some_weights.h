// Weights of every sort for tests: whole tensors and views that hold only a part of one.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "format/codec.h"

namespace smezo_test {
using namespace smezo;

constexpr int64_t kGuard = 64;  // elements around a buffer that nobody may touch

inline uint32_t below(std::mt19937& random, uint32_t n) { return static_cast<uint32_t>(random()) % n; }

struct Tensor {
  std::vector<uint32_t> data;  // room for any format
  std::vector<int8_t> tail;
  std::vector<float> absmax, nested_code, nested_absmax;
  std::vector<uint8_t> absmax8;
  WeightView view;
  void point_to_own() {
    view.data = data.data();
    view.tail = tail.data();
    view.scales.absmax = absmax.data();
    view.scales.absmax8 = absmax8.empty() ? nullptr : absmax8.data();
    view.scales.nested_code = nested_code.data();
    view.scales.nested_absmax = nested_absmax.data();
  }
  bool operator==(const Tensor& o) const { return data == o.data && tail == o.tail; }
};

// Mostly ordinary; also of the sorts that a damaged or an all-zero block has.
inline float make_absmax(std::mt19937& random) {
  constexpr float kRare[] = {0.0f, -0.3f, 1e-39f, 3e38f, INFINITY, NAN};
  return random() % 8 ? 0.001f + 0.1f * static_cast<float>(random() % 4096) / 4096 : kRare[below(random, 6)];
}

// Random codes, and scales of random blocks.
inline void quantize(std::mt19937& random, Tensor& t) {
  for (uint32_t& word : t.data) word = random();
  int64_t n_scales = t.view.rows;
  if (t.view.dtype == DType::NF4) {
    Scales& s = t.view.scales;
    s.block = 32 << below(random, 8);  // to 4096
    n_scales = (t.view.n() + s.block - 1) / s.block;
    if (random() % 2) {  // doubly
      constexpr int32_t kNested[] = {256, 4, 3, 1};
      s.nested_block = kNested[below(random, 4)];
      s.nested_offset = 0.01f;
      for (int i = 0; i < 256; ++i) t.nested_code.push_back(static_cast<float>(i - 100) / 155);
      for (int64_t i = 0; i < n_scales; ++i) t.absmax8.push_back(static_cast<uint8_t>(random()));
      n_scales = (n_scales + s.nested_block - 1) / s.nested_block;
      for (int64_t i = 0; i < n_scales; ++i) t.nested_absmax.push_back(make_absmax(random));
      n_scales = 0;
    }
  }
  for (int64_t i = 0; i < n_scales; ++i) t.absmax.push_back(make_absmax(random));
}

// A tensor that holds no more than elements [first, end) of t. (first is even for NF4.)
inline Tensor part_of(const Tensor& t, int64_t first, int64_t end) {
  Tensor part = t;
  const auto* bytes = reinterpret_cast<const uint8_t*>(t.data.data());
  const int64_t begin = bytes_of(t.view.dtype, first), n = bytes_of(t.view.dtype, end) - begin;
  // bytes_of counts both planes of BF16T8.
  const int64_t size = t.view.dtype == DType::BF16T8 ? n * 2 / 3 : n;
  part.data.assign(static_cast<size_t>((size + 3) / 4), 0xA5A5A5A5u);
  std::memcpy(part.data.data(), bytes + (t.view.dtype == DType::BF16T8 ? begin * 2 / 3 : begin),
              static_cast<size_t>(size));
  part.tail.assign(t.tail.begin() + first, t.tail.begin() + end);
  part.view.first = first;
  if (t.view.dtype == DType::NF4) {
    const int64_t block0 = first / t.view.scales.block;
    if (!part.absmax.empty()) part.absmax.erase(part.absmax.begin(), part.absmax.begin() + block0);
    if (!part.absmax8.empty()) part.absmax8.erase(part.absmax8.begin(), part.absmax8.begin() + block0);
  }
  part.point_to_own();
  return part;
}

// Where a part may begin that is to hold element e: just there, or somewhere before.
inline int64_t some_first(std::mt19937& random, const WeightView& w, int64_t e) {
  const int64_t first = random() % 2 ? e : e - static_cast<int64_t>(random() % 100) * e / 100;
  return w.dtype == DType::NF4 ? first / w.scales.block * w.scales.block : first;
}
inline int64_t some_end(std::mt19937& random, const WeightView& w, int64_t end) {
  return random() % 2 ? end : std::min<int64_t>(w.n(), end + random() % 100);
}

// Weights of every sort: ordinary, zeros of both signs, ties of the rounding, subnormal, huge, infinite, NaN.
inline Tensor make_tensor(std::mt19937& random, DType dtype, int64_t rows, int64_t cols) {
  Tensor t;
  const int64_t n = rows * cols;
  t.data.resize(static_cast<size_t>(n + kGuard), 0xA5A5A5A5u);
  t.tail.resize(static_cast<size_t>(n + kGuard), 0x5A);
  t.view.dtype = dtype;
  t.view.rows = rows;
  t.view.cols = cols;
  t.view.tensor_id = below(random, kMaxTensorId + 1);
  t.view.writable = true;
  if (dtype == DType::NF4 || dtype == DType::I8) quantize(random, t);
  t.point_to_own();
  if (dtype == DType::NF4 || dtype == DType::I8) return t;
  std::normal_distribution<float> normal(0, 0.02f);
  for (int64_t i = 0; i < n; ++i) {
    float w = normal(random);
    switch (random() % 64) {
      case 0:
        w = 0.0f;
        break;
      case 1:
        w = -0.0f;
        break;
      case 2:
        w = f32_from_bits(f32_bits(w) & 0xFFFF0000u);
        break;
      case 3:
        w = f32_from_bits((f32_bits(w) & 0xFFFF0000u) | 0x8000u);
        break;
      case 4:
        w = f32_from_bits(random() & 0x807FFFFFu);
        break;
      case 5:
        w = f32_from_bits((random() & 0x807FFFFFu) | 0x7F000000u);
        break;
      case 6:
        w = random() % 4 ? w : f32_from_bits(0x7F800000u | random() << 31);
        break;
      case 7:
        w = random() % 4 ? w : f32_from_bits(0x7F800001u | random());
        break;
    }
    if (dtype == DType::F16 && random() % 8 == 0)
      static_cast<uint16_t*>(t.view.data)[i] = static_cast<uint16_t>(random());
    else
      encode_at(t.view, i, w, random() & (dtype == DType::BF16 ? 0xFFFFu : 0xFFu));
  }
  return t;
}

}  // namespace smezo_test
