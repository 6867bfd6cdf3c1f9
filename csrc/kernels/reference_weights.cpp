// Verbs on stored weights, element by element: element.h says what each does.
#include <cstring>

#include "base/error.h"
#include "kernels/element.h"
#include "kernels/reference.h"

namespace smezo::reference {

void produce(const OperandJob& j, int64_t row0, int64_t n_rows, void* plus, void* minus) {
  auto* p = static_cast<float*>(plus);
  auto* m = static_cast<float*>(j.eps == 0 ? nullptr : minus);
  const int64_t first = row0 * j.w.cols;
  for (int64_t i = 0; i < n_rows * j.w.cols; ++i) {
    const Operands o = operands_at(j, first + i);
    if (p) p[i] = o.plus;
    if (m) m[i] = o.minus;
  }
}

void apply_update(const UpdateJob& j, int64_t row0, int64_t n_rows) {
  check<ArgumentError>(
      j.w.writable && holds_trained(j.w.dtype), "update",
      "tensor " + std::to_string(j.w.tensor_id) + " is " + dtype_name(j.w.dtype) +
          (j.w.writable ? "" : " of the base") +
          ", expected a working copy in F32, BF16 or BF16T8; a record was sent to a frozen tensor");
  for (int64_t e = row0 * j.w.cols; e < (row0 + n_rows) * j.w.cols; ++e) update_at(j, e, row0);
}

void decode(const WeightView& w, int64_t e0, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = decode_at(w, e0 + i);
}

namespace {

struct Planes {
  void* data;
  int8_t* tail;
};
Planes planes_from(const WeightView& w, int64_t e) {
  const int64_t at = e - w.first;
  return {static_cast<uint8_t*>(w.data) + at * plane_element_bytes(w.dtype),
          w.dtype == DType::BF16T8 && w.tail ? w.tail + at : nullptr};
}

void copy_element(DType d, Planes from, Planes to) {
  std::memcpy(to.data, from.data, static_cast<size_t>(plane_element_bytes(d)));
  if (d == DType::BF16T8) *to.tail = from.tail ? *from.tail : 0;
}

bool on_support(const StateJob& j, int64_t e) {
  TensorDirection d;
  d.mask = j.mask;
  return mask_at(d, static_cast<uint64_t>(e), nearest_value(j.state.dtype, decode_at(j.base, e)));
}

Planes packed_at(const StateJob& j, int64_t i) {
  return {static_cast<uint8_t*>(j.packed) + i * plane_element_bytes(j.state.dtype),
          j.state.dtype == DType::BF16T8 ? j.packed_tail + i : nullptr};
}

}  // namespace

int64_t unpack_state(const StateJob& j, int64_t e0, int64_t n) {
  int64_t taken = 0;
  for (int64_t e = e0; e < e0 + n; ++e) {
    if (j.packed && on_support(j, e))
      copy_element(j.state.dtype, packed_at(j, taken++), planes_from(j.state, e));
    else if (keeps_bits(j.base.dtype, j.state.dtype))
      copy_element(j.state.dtype, planes_from(j.base, e), planes_from(j.state, e));
    else
      encode_nearest_at(j.state, e, decode_at(j.base, e));
  }
  return taken;
}

int64_t pack_state(const StateJob& j, int64_t e0, int64_t n) {
  int64_t taken = 0;
  for (int64_t e = e0; e < e0 + n; ++e) {
    if (on_support(j, e)) copy_element(j.state.dtype, planes_from(j.state, e), packed_at(j, taken++));
  }
  return taken;
}

int64_t count_state(const StateJob& j, int64_t e0, int64_t n) {
  int64_t count = 0;
  for (int64_t e = e0; e < e0 + n; ++e) count += on_support(j, e);
  return count;
}

void noise(const TensorDirection& d, int64_t e0, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = z_at(d, static_cast<uint64_t>(e0 + i));
}

}  // namespace smezo::reference
