// Random jobs for the CUDA kernels: stored weights of every format, whole or a range of rows, at aligned and
// odd addresses, with directions and shapes that reach every path. Used by cuda_host_test.cpp (bodies on the
// host against the CPU kernels) and cuda_device_test.cu (a device against the host).
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/job.h"
#include "kernels/element.h"

namespace cuda_cases {
using namespace smezo;

constexpr NoiseKind kNoises[] = {NoiseKind::gaussian, NoiseKind::gaussian8, NoiseKind::rademacher};
constexpr MaskKind kMasks[] = {MaskKind::all, MaskKind::small, MaskKind::large, MaskKind::random};
constexpr DType kDTypes[] = {DType::F32, DType::F16, DType::BF16, DType::BF16T8, DType::NF4, DType::I8};
constexpr DType kTrained[] = {DType::F32, DType::BF16, DType::BF16T8};
constexpr OperandMode kModes[] = {OperandMode::nearest, OperandMode::dither, OperandMode::split};
constexpr int64_t kCols[] = {1, 3, 16, 20, 64, 576, 1000, 4104};

using Random = std::mt19937;
inline uint32_t below(Random& random, int64_t n) {
  return static_cast<uint32_t>(random() % static_cast<uint64_t>(n));
}
inline bool one_in(Random& random, int64_t n) { return below(random, n) == 0; }

// Ordinary weights, zeros of both signs, ties of rounding, subnormal, huge; infinite and NaN unless finite.
inline float any_weight(Random& random, bool finite) {
  std::normal_distribution<float> normal(0, 0.02f);
  const float w = normal(random);
  switch (below(random, finite ? 48 : 64)) {
    case 0:
      return 0.0f;
    case 1:
      return -0.0f;
    case 2:
      return f32_from_bits(f32_bits(w) & 0xFFFF0000u);
    case 3:
      return f32_from_bits((f32_bits(w) & 0xFFFF0000u) | 0x8000u);
    case 4:
      return f32_from_bits(static_cast<uint32_t>(random()) & 0x807FFFFFu);
    case 5:
      return f32_from_bits((static_cast<uint32_t>(random()) & 0x807FFFFFu) | 0x7F000000u);
    case 62:
      return f32_from_bits(0x7F800000u | static_cast<uint32_t>(random()) << 31);
    case 63:
      return f32_from_bits(0x7F800001u | static_cast<uint32_t>(random()));
  }
  return w;
}

// The arrays of a stored weight, each of exactly the size that is needed, so that a sanitizer sees what lies
// outside; on the host or on a device.
struct Arrays {
  uint8_t* data;
  int8_t* tail;
  float* absmax;
  uint8_t* absmax8;
  float* nested_code;
  float* nested_absmax;
};

struct Stored {
  std::vector<uint8_t> data, absmax8;
  std::vector<int8_t> tail;
  std::vector<float> absmax, nested_code, nested_absmax;
  WeightView shape;        // without pointers
  int64_t skip_bytes = 0;  // before the first element in `data`, and in `tail`

  WeightView view(const Arrays& at) const {
    WeightView v = shape;
    v.data = at.data + skip_bytes;
    v.tail = v.dtype == DType::BF16T8 ? at.tail + skip_bytes : nullptr;
    const bool nested = !absmax8.empty();
    v.scales.absmax = absmax.empty() ? nullptr : at.absmax;
    v.scales.absmax8 = nested ? at.absmax8 : nullptr;
    v.scales.nested_code = nested ? at.nested_code : nullptr;
    v.scales.nested_absmax = nested ? at.nested_absmax : nullptr;
    return v;
  }
  Arrays arrays() {
    return {data.data(),    tail.data(),        absmax.data(),
            absmax8.data(), nested_code.data(), nested_absmax.data()};
  }
  WeightView view() { return view(arrays()); }
  bool operator==(const Stored& o) const { return data == o.data && tail == o.tail; }
};

inline std::vector<float> random_scales(Random& random, int64_t n) {
  std::uniform_real_distribution<float> scale(0.001f, 0.2f);
  std::vector<float> all(static_cast<size_t>(n));
  for (float& s : all) s = one_in(random, 16) ? 0.0f : scale(random);
  return all;
}

// Rows [row0, rows) of a [rows, cols] weight are at hand; row0 is made smaller where it must lie on the edge
// of a block.
inline Stored make_stored(Random& random, DType dtype, int64_t rows, int64_t cols, int64_t row0,
                          bool finite = false) {
  Stored s;
  const int64_t n = rows * cols, block = int64_t{32} << below(random, 3);
  s.shape.dtype = dtype;
  s.shape.rows = rows;
  s.shape.cols = cols;
  s.shape.first = dtype == DType::NF4 ? row0 * cols / block * block : row0 * cols;
  s.shape.tensor_id = below(random, kMaxTensorId + 1);
  s.shape.writable = true;
  const int64_t at_hand = n - s.shape.first;
  const int64_t bytes = bytes_of(dtype == DType::BF16T8 ? DType::BF16 : dtype, at_hand);
  const int64_t bytes_each = dtype == DType::F32 ? 4 : dtype == DType::NF4 || dtype == DType::I8 ? 1 : 2;
  if (one_in(random, 4)) s.skip_bytes = bytes_each * (1 + below(random, 7));
  s.data.resize(static_cast<size_t>(bytes + s.skip_bytes));
  for (uint8_t& b : s.data) b = static_cast<uint8_t>(random());
  if (dtype == DType::BF16T8) s.tail.resize(static_cast<size_t>(at_hand + s.skip_bytes));
  if (dtype == DType::I8) s.absmax = random_scales(random, rows);
  if (dtype == DType::NF4) {
    Scales& scales = s.shape.scales;
    scales.block = static_cast<int32_t>(block);
    const int64_t n_blocks = (n + block - 1) / block, first_block = s.shape.first / block;
    if (one_in(random, 2)) {
      scales.nested_block = 4 << below(random, 3);
      scales.nested_offset = 0.04f;
      s.absmax8.resize(static_cast<size_t>(n_blocks - first_block));
      for (uint8_t& b : s.absmax8) b = static_cast<uint8_t>(random());
      s.nested_code = random_scales(random, 256);
      s.nested_absmax = random_scales(random, (n_blocks + scales.nested_block - 1) / scales.nested_block);
    } else {
      s.absmax = random_scales(random, n_blocks - first_block);
    }
  }
  const WeightView v = s.view();
  for (int64_t e = v.first; e < n; ++e) {
    const bool any_bits = dtype == DType::F16 && one_in(random, 8);
    if (!any_bits || finite)
      encode_at(v, e, any_weight(random, finite),
                static_cast<uint32_t>(random()) & (dtype == DType::BF16 ? 0xFFFFu : 0xFFu));
  }
  return s;
}

inline TensorDirection make_direction(Random& random, NoiseKind noise, MaskKind mask, uint32_t tensor_id) {
  TensorDirection d;
  d.noise = noise;
  d.mask.kind = mask;
  d.mask.h = !one_in(random, 8) ? 0.015f : one_in(random, 2) ? 0.0f : INFINITY;
  d.mask.keep = !one_in(random, 4) ? below(random, 65537) : one_in(random, 2) ? 0 : 65536;
  d.stream = {static_cast<uint64_t>(random()) << 32 | random(), static_cast<uint32_t>(random()),
              below(random, kMaxQuery - 8), Purpose::direction, tensor_id};
  return d;
}

// A weight and rows of it to work on, all at hand.
struct Case {
  Stored w;
  TensorDirection dir;
  int64_t row0, n_rows;
};

inline Case make_case(Random& random, DType dtype, NoiseKind noise, MaskKind mask, bool finite = false) {
  const int64_t cols = kCols[below(random, std::size(kCols))];
  const int64_t rows = 2 + below(random, cols < 100 ? 6000 / cols : 9);
  const int64_t row0 = one_in(random, 3) ? 0 : below(random, rows);  // the first at hand
  Case c{make_stored(random, dtype, rows, cols, row0, finite), {}, 0, 0};
  c.dir = make_direction(random, noise, mask, c.w.shape.tensor_id);
  c.row0 = row0 + below(random, rows - row0);
  c.n_rows = 1 + below(random, rows - c.row0);
  return c;
}

// Rows of operands as wide as cols, a little wider, or an odd width.
inline int64_t random_ld(Random& random, int64_t cols) {
  return one_in(random, 2) ? cols : one_in(random, 2) ? (cols + 31) / 32 * 32 : cols + 1 + below(random, 9);
}

inline int64_t random_grid(Random& random, const cuda::Range& r) {
  const int64_t all = cuda::n_windows(r);
  return all > 1 && one_in(random, 2) ? 1 + below(random, all) : all;
}

inline OperandJob make_operand_job(Random& random, Case& c, OperandMode mode, Compute compute) {
  return {c.w.view(), c.dir, mode, compute, one_in(random, 12) ? 0.0f : one_in(random, 2) ? 1e-3f : 0.37f};
}

}  // namespace cuda_cases
