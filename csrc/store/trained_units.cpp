#include "store/trained_units.h"

#include <cstring>

#include "format/codec.h"
#include "store/convert.h"

namespace smezo {
namespace {

// The values that a fresh working copy of dtype `values` has in one row of the base.
void fresh_row(const WeightView& base, DType values, int64_t row, const Kernels& kernels,
               std::vector<float>& out) {
  out.resize(static_cast<size_t>(base.cols) + 16);
  kernels.decode(base, row * base.cols, base.cols, out.data());
  if (values == DType::F32) return;
  for (int64_t i = 0; i < base.cols; ++i)
    out[static_cast<size_t>(i)] = values == DType::BF16
                                      ? round_bf16(out[static_cast<size_t>(i)])
                                      : u24_to_f32(f32_to_u24_nearest(out[static_cast<size_t>(i)]));
}

int64_t value_bytes(DType d) { return d == DType::F32 ? 4 : 2; }

// Copies element `from` of two planes to element `to` of two others.
void copy_element(DType d, const void* values, const void* tail, int64_t from, void* to_values, void* to_tail,
                  int64_t to) {
  if (d == DType::F32) {
    static_cast<float*>(to_values)[to] = static_cast<const float*>(values)[from];
    return;
  }
  static_cast<uint16_t*>(to_values)[to] = static_cast<const uint16_t*>(values)[from];
  if (d == DType::BF16T8) static_cast<int8_t*>(to_tail)[to] = static_cast<const int8_t*>(tail)[from];
}

bool same_bits(const WeightView& base, DType values) {
  return base.dtype == values || (base.dtype == DType::BF16 && values == DType::BF16T8);
}

}  // namespace

void count_support(const TensorDirection& d, const WeightView& base, DType values, int64_t row0, int64_t n,
                   const Kernels& kernels, uint32_t* counts) {
  std::vector<float> w;
  for (int64_t r = row0; r < row0 + n; ++r) {
    fresh_row(base, values, r, kernels, w);
    uint32_t count = 0;
    for (int64_t c = 0; c < base.cols; ++c)
      count += mask_at(d, static_cast<uint64_t>(r * base.cols + c), w[static_cast<size_t>(c)]);
    counts[r - row0] = count;
  }
}

void materialize_rows(const TrainedTensor& t, const HeldUnit& h, int64_t row0, int64_t n,
                      const Kernels& kernels) {
  const WeightView& s = h.state;
  const int64_t cols = s.cols, e0 = row0 * cols, at = e0 - s.first, size = value_bytes(s.dtype);
  if (t.in_generation && !t.packed_there) {
    std::memcpy(static_cast<uint8_t*>(s.data) + at * size, h.values + at * size,
                static_cast<size_t>(n * cols * size));
    if (s.tail) std::memcpy(s.tail + at, h.tail + at, static_cast<size_t>(n * cols));
    return;
  }
  const bool exact = same_bits(h.base, s.dtype);
  if (exact) convert(h.base, e0, n * cols, s);
  if (exact && !t.in_generation) return;
  std::vector<float> w;
  const uint32_t before = t.in_generation ? t.row_begin[static_cast<size_t>(h.unit.row0)] : 0;
  for (int64_t r = row0; r < row0 + n; ++r) {
    fresh_row(h.base, s.dtype, r, kernels, w);
    const int64_t row_at = r * cols - s.first;
    if (!exact) {
      for (int64_t c = 0; c < cols; ++c) encode_nearest_at(s, r * cols + c, w[static_cast<size_t>(c)]);
    }
    if (!t.in_generation) continue;
    int64_t next = t.row_begin[static_cast<size_t>(r)] - before;
    for (int64_t c = 0; c < cols; ++c) {
      if (mask_at(t.direction, static_cast<uint64_t>(r * cols + c), w[static_cast<size_t>(c)]))
        copy_element(s.dtype, h.values, h.tail, next++, s.data, s.tail, row_at + c);
    }
  }
}

void pack_rows(const TrainedTensor& t, const HeldUnit& h, int64_t row0, int64_t n, const Kernels& kernels) {
  const WeightView& s = h.state;
  std::vector<float> w;
  const uint32_t before = t.row_begin[static_cast<size_t>(h.unit.row0)];
  for (int64_t r = row0; r < row0 + n; ++r) {
    fresh_row(h.base, s.dtype, r, kernels, w);
    int64_t next = t.row_begin[static_cast<size_t>(r)] - before;
    for (int64_t c = 0; c < s.cols; ++c) {
      if (mask_at(t.direction, static_cast<uint64_t>(r * s.cols + c), w[static_cast<size_t>(c)]))
        copy_element(s.dtype, s.data, s.tail, r * s.cols - s.first + c, h.values, h.tail, next++);
    }
  }
}

}  // namespace smezo
