#include "store/trained_units.h"

#include <cstring>

namespace smezo {
namespace {

int64_t value_bytes(DType d) { return d == DType::F32 ? 4 : 2; }

// Of rows from row0 on; `packed`: with their values of the support.
StateJob job_for(const TrainedTensor& t, const HeldUnit& h, int64_t row0, bool packed) {
  StateJob j{h.base, h.state, t.direction.mask};
  if (!packed) return j;
  const int64_t at = t.row_begin[static_cast<size_t>(row0)] - t.row_begin[static_cast<size_t>(h.unit.row0)];
  j.packed = h.values + at * value_bytes(h.state.dtype);
  if (h.state.tail) j.packed_tail = reinterpret_cast<int8_t*>(h.tail) + at;
  return j;
}

}  // namespace

void count_support(const TensorDirection& d, const WeightView& base, DType values, int64_t row0, int64_t n,
                   const Kernels& kernels, uint32_t* counts) {
  StateJob j{base, {}, d.mask};
  j.state.dtype = values;
  for (int64_t r = row0; r < row0 + n; ++r)
    counts[r - row0] = static_cast<uint32_t>(kernels.count_state(j, r * base.cols, base.cols));
}

void materialize_rows(const TrainedTensor& t, const HeldUnit& h, int64_t row0, int64_t n,
                      const Kernels& kernels) {
  const WeightView& s = h.state;
  const int64_t e0 = row0 * s.cols, at = e0 - s.first, size = value_bytes(s.dtype);
  if (!t.in_generation || t.packed_there) {
    kernels.unpack_state(job_for(t, h, row0, t.in_generation), e0, n * s.cols);
    return;
  }
  std::memcpy(static_cast<uint8_t*>(s.data) + at * size, h.values + at * size,
              static_cast<size_t>(n * s.cols * size));
  if (s.tail) std::memcpy(s.tail + at, h.tail + at, static_cast<size_t>(n * s.cols));
}

void pack_rows(const TrainedTensor& t, const HeldUnit& h, int64_t row0, int64_t n, const Kernels& kernels) {
  kernels.pack_state(job_for(t, h, row0, true), row0 * h.state.cols, n * h.state.cols);
}

}  // namespace smezo
