#include "store/trained_units.h"

#include <array>
#include <cstring>

#include "store/plan.h"

namespace smezo {
namespace {

// Of rows from row0 on; `packed`: with their values of the support.
StateJob job_for(const TrainedTensor& t, const HeldUnit& h, int64_t row0, bool packed) {
  StateJob j{h.base, h.state, t.direction.mask};
  if (!packed) return j;
  const int64_t at = t.row_begin[static_cast<size_t>(row0)] - t.row_begin[static_cast<size_t>(h.unit.row0)];
  j.packed = h.values + at * plane_element_bytes(h.state.dtype);
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
  const int64_t e0 = row0 * s.cols, at = e0 - s.first, size = plane_element_bytes(s.dtype);
  if (!t.in_generation || t.packed_there) {
    kernels.unpack_state(job_for(t, h, row0, t.in_generation), e0, n * s.cols);
    return;
  }
  std::memcpy(static_cast<uint8_t*>(s.data) + at * size, h.values + at * size,
              static_cast<size_t>(n * s.cols * size));
  if (s.tail) std::memcpy(s.tail + at, h.tail + at, static_cast<size_t>(n * s.cols));
}

StateRows read_state_rows(const TrainedTensor& t, const BaseTensor& base, const WeightView& shape,
                          const std::vector<int32_t>& rows, const RangeFile& base_file,
                          const RangeFile* generation, const Kernels& kernels) {
  const int64_t cols = shape.cols, size = plane_element_bytes(shape.dtype),
                room = copy_bytes(cols, shape.dtype);
  const bool dense = t.in_generation && !t.packed_there, has_tail = shape.dtype == DType::BF16T8;
  struct Range {
    const RangeFile* file;
    int64_t offset, n_bytes;
  };
  // Of a row: in the base, values and tails in the generation.
  const auto ranges = [&](int32_t row) {
    const size_t r = static_cast<size_t>(row);
    const int64_t first = dense ? row * cols : t.packed_there ? t.row_begin[r] : 0;
    const int64_t n = dense ? cols : t.packed_there ? t.row_begin[r + 1] - t.row_begin[r] : 0;
    const BaseTensor::Range b = base.data_range(row, 1);
    return std::array<Range, 3>{
        Range{&base_file, base.data->offset + b.begin, dense ? 0 : b.n_bytes},
        Range{generation, t.values.offset + first * size, t.in_generation ? n * size : 0},
        Range{generation, t.tail.offset + first, t.in_generation && has_tail ? n : 0}};
  };
  StateRows out;
  for (const int32_t row : rows) {
    for (const Range& r : ranges(row)) {
      if (r.n_bytes > 0) r.file->will_need(r.offset, r.n_bytes);
      out.bytes_read += r.n_bytes;
    }
  }
  constexpr int64_t kAlign = 64;
  std::vector<uint8_t> memory(rows.size() * static_cast<size_t>(room) + kAlign), read[3];
  uint8_t* const begin = memory.data() + (kAlign - reinterpret_cast<uintptr_t>(memory.data()) % kAlign);
  std::vector<WeightView> views;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::array<Range, 3> from = ranges(rows[i]);
    for (size_t p = 0; p < 3; ++p) {
      read[p].resize(static_cast<size_t>(from[p].n_bytes));
      if (from[p].n_bytes > 0) from[p].file->read_small(from[p].offset, from[p].n_bytes, read[p].data());
    }
    WeightView state = shape;
    state.data = begin + static_cast<int64_t>(i) * room;
    state.tail = has_tail ? static_cast<int8_t*>(state.data) + plane_bytes(cols, shape.dtype) : nullptr;
    state.first = rows[i] * cols;
    state.writable = true;
    const HeldUnit held{{shape.tensor_id, rows[i], 1},
                        base.view(shape.tensor_id, rows[i], read[0].data(), nullptr),
                        read[1].data(),
                        read[2].data(),
                        state,
                        {}};
    materialize_rows(t, held, rows[i], 1, kernels);
    views.push_back(state);
  }
  base_file.let_go_of_small(base.data->offset, base.data->n_bytes);
  if (t.in_generation) {
    generation->let_go_of_small(t.values.offset, t.values.n_bytes);
    if (has_tail) generation->let_go_of_small(t.tail.offset, t.tail.n_bytes);
  }
  out.views = RowViews(rows, std::move(views), std::move(memory));
  return out;
}

void pack_rows(const TrainedTensor& t, const HeldUnit& h, int64_t row0, int64_t n, const Kernels& kernels) {
  kernels.pack_state(job_for(t, h, row0, true), row0 * h.state.cols, n * h.state.cols);
}

}  // namespace smezo
