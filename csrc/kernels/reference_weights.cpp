// Verbs on stored weights, element by element: element.h says what each does.
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
  for (int64_t e = row0 * j.w.cols; e < (row0 + n_rows) * j.w.cols; ++e) update_at(j, e);
}

void decode(const WeightView& w, int64_t e0, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = decode_at(w, e0 + i);
}

void noise(const TensorDirection& d, int64_t e0, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = z_at(d, static_cast<uint64_t>(e0 + i));
}

}  // namespace smezo::reference
