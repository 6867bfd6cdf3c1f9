// bf16 to bf16 + tail is a copy and zeros: a bf16 is its own nearest bf16 (I10).
#include "store/convert.h"

#include <cstring>

#include "format/codec.h"

namespace smezo {
namespace {

template <class T>
T at(const WeightView& w, int64_t e) {
  T v;
  std::memcpy(&v, static_cast<const uint8_t*>(w.data) + (e - w.first) * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return v;
}

// body(e, value) over [e0, e0 + n), the switch on dtype outside the loop.
template <class Body>
void for_values(const WeightView& w, int64_t e0, int64_t n, const Body& body) {
  const int64_t end = e0 + n;
  switch (w.dtype) {
    case DType::F32:
      for (int64_t e = e0; e < end; ++e) body(e, at<float>(w, e));
      return;
    case DType::F16:
      for (int64_t e = e0; e < end; ++e) body(e, fp16_to_f32(at<uint16_t>(w, e)));
      return;
    case DType::BF16:
      for (int64_t e = e0; e < end; ++e) body(e, bf16_to_f32(at<uint16_t>(w, e)));
      return;
    case DType::NF4:
      for (int64_t e = e0; e < end; ++e) body(e, nf4_at(w, e));
      return;
    case DType::I8:
      for (int64_t e = e0; e < end; ++e) body(e, int8_at(w, e));
      return;
    case DType::BF16T8:
      for (int64_t e = e0; e < end; ++e) body(e, decode_at(w, e));
      return;
  }
}

}  // namespace

void convert(const WeightView& from, int64_t e0, int64_t n, const WeightView& to) {
  if (keeps_bits(from.dtype, to.dtype)) {
    const int64_t size = dtype_bytes(from.dtype);
    std::memcpy(static_cast<uint8_t*>(to.data) + (e0 - to.first) * size,
                static_cast<const uint8_t*>(from.data) + (e0 - from.first) * size,
                static_cast<size_t>(n * size));
    if (to.dtype == DType::BF16T8) std::memset(to.tail + (e0 - to.first), 0, static_cast<size_t>(n));
    return;
  }
  for_values(from, e0, n, [&](int64_t e, float x) { encode_nearest_at(to, e, x); });
}

void read_as(const WeightView& from, int64_t e0, int64_t n, DType values, float* out) {
  for_values(from, e0, n, [&](int64_t e, float x) { out[e - e0] = nearest_value(values, x); });
}

}  // namespace smezo
