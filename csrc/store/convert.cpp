// bf16 to bf16 + tail is a copy and zeros: a bf16 is its own nearest bf16 (I10).
#include "store/convert.h"

#include <cstring>

#include "format/half.h"
#include "format/split24.h"

namespace smezo {
namespace {

template <class T>
T at(const uint8_t* from, int64_t i) {
  T v;
  std::memcpy(&v, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return v;
}

template <class Read>
void write_all(const Read& read, int64_t n, const WeightView& to, int64_t e0) {
  if (to.dtype == DType::F32) {
    float* const out = static_cast<float*>(to.data) + e0;
    for (int64_t i = 0; i < n; ++i) out[i] = read(i);
    return;
  }
  uint16_t* const out = static_cast<uint16_t*>(to.data) + e0;
  if (to.dtype == DType::BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = f32_to_bf16(read(i));
  } else if (to.dtype == DType::F16) {
    for (int64_t i = 0; i < n; ++i) out[i] = f32_to_fp16(read(i));
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const Split24 s = split24(f32_to_u24_nearest(read(i)));
      out[i] = s.hi;
      to.tail[e0 + i] = s.tail;
    }
  }
}

}  // namespace

void convert(const uint8_t* from, DType from_dtype, int64_t n, const WeightView& to, int64_t e0) {
  const bool same = from_dtype == to.dtype || (from_dtype == DType::BF16 && to.dtype == DType::BF16T8);
  if (same) {
    const int64_t size = dtype_bytes(from_dtype);
    std::memcpy(static_cast<uint8_t*>(to.data) + e0 * size, from, static_cast<size_t>(n * size));
    if (to.dtype == DType::BF16T8) std::memset(to.tail + e0, 0, static_cast<size_t>(n));
  } else if (from_dtype == DType::F32) {
    write_all([&](int64_t i) { return at<float>(from, i); }, n, to, e0);
  } else if (from_dtype == DType::BF16) {
    write_all([&](int64_t i) { return bf16_to_f32(at<uint16_t>(from, i)); }, n, to, e0);
  } else {
    write_all([&](int64_t i) { return fp16_to_f32(at<uint16_t>(from, i)); }, n, to, e0);
  }
}

void read_as(const uint8_t* from, DType from_dtype, int64_t n, DType values, float* out) {
  WeightView to;
  to.data = out;
  convert(from, from_dtype, n, to, 0);
  if (values == DType::BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = round_bf16(out[i]);
  } else if (values == DType::BF16T8) {
    for (int64_t i = 0; i < n; ++i) out[i] = u24_to_f32(f32_to_u24_nearest(out[i]));
  }
}

}  // namespace smezo
