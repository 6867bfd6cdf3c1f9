#include "kernels/overlay.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "format/half.h"
#include "kernels/element.h"

namespace smezo {
namespace {

// An element of the overlay as a stored fp32 weight, so that the element functions take it as any other.
WeightView as_weight(const WeightView& shape, float* value, int64_t e) {
  WeightView w = shape;
  w.data = value;
  w.tail = nullptr;
  w.dtype = DType::F32;
  w.first = e;
  w.writable = true;
  return w;
}

void put(void* strip, DType dtype, int64_t i, float x) {
  if (dtype == DType::F32) {
    static_cast<float*>(strip)[i] = x;
  } else {
    static_cast<uint16_t*>(strip)[i] = f32_to_bf16(x);
  }
}

}  // namespace

int64_t IndexOverlay::n_bytes_of(int64_t rows, int64_t n) {
  return whole_pages((rows + 1) * static_cast<int64_t>(sizeof(uint32_t)) +
                     n * static_cast<int64_t>(sizeof(uint16_t) + sizeof(float)));
}

IndexOverlay::IndexOverlay(int64_t rows, int64_t n) : memory_(allocate_pages(n_bytes_of(rows, n))) {
  check<BudgetError>(memory_ != nullptr, "index set",
                     "no memory for " + std::to_string(n_bytes_of(rows, n)) + " bytes of indices and values");
  const size_t n_rows = static_cast<size_t>(rows), size = static_cast<size_t>(n);
  row_begin = {static_cast<uint32_t*>(memory_.get()), n_rows + 1};
  value = {reinterpret_cast<float*>(row_begin.data() + n_rows + 1), size};
  col = {reinterpret_cast<uint16_t*>(value.data() + size), size};
}

IndexOverlay IndexOverlay::copy() const {
  IndexOverlay out(static_cast<int64_t>(row_begin.size()) - 1, n());
  std::copy(row_begin.begin(), row_begin.end(), out.row_begin.begin());
  std::copy(col.begin(), col.end(), out.col.begin());
  std::copy(value.begin(), value.end(), out.value.begin());
  return out;
}

IndexOverlay make_overlay(const std::vector<int64_t>& elements, int64_t rows, int64_t cols) {
  check<ArgumentError>(cols <= 65536, "index set",
                       "a tensor of " + std::to_string(cols) + " columns, expected at most 65536");
  IndexOverlay o(rows, static_cast<int64_t>(elements.size()));
  int64_t before = -1;
  for (size_t i = 0; i < elements.size(); ++i) {
    const int64_t e = elements[i];
    if (e <= before || e >= rows * cols)
      fail<ArgumentError>("index set", "element " + std::to_string(e) + " after " + std::to_string(before) +
                                           ", expected increasing numbers below " +
                                           std::to_string(rows * cols));
    before = e;
    ++o.row_begin[static_cast<size_t>(e / cols) + 1];
    o.col[i] = static_cast<uint16_t>(e % cols);
  }
  for (size_t r = 1; r < o.row_begin.size(); ++r) o.row_begin[r] += o.row_begin[r - 1];
  return o;
}

void patch_operands(const IndexOverlay& o, OperandJob job, int64_t row0, int64_t n_rows, DType strip,
                    int64_t ld, void* plus, void* minus) {
  const WeightView shape = job.w;
  const float* const curvature = job.curvature;
  job.dir.mask = Mask{};
  for (int64_t r = 0; r < n_rows; ++r) {
    const size_t row = static_cast<size_t>(row0 + r);
    for (uint32_t i = o.row_begin[row]; i < o.row_begin[row + 1]; ++i) {
      const int64_t e = (row0 + r) * shape.cols + o.col[i];
      job.w = as_weight(shape, const_cast<float*>(&o.value[i]), e);
      job.curvature = curvature ? curvature + i : nullptr;
      const Operands x = operands_at(job, e);
      if (plus) put(plus, strip, r * ld + o.col[i], x.plus);
      if (minus && job.eps != 0) put(minus, strip, r * ld + o.col[i], x.minus);
    }
  }
}

void patch_values(const IndexOverlay& o, int64_t row0, int64_t n_rows, int64_t cols, float* values) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const size_t row = static_cast<size_t>(row0 + r);
    for (uint32_t i = o.row_begin[row]; i < o.row_begin[row + 1]; ++i)
      values[r * cols + o.col[i]] = o.value[i];
  }
}

void update_overlay(IndexOverlay& o, UpdateJob job, int64_t row0, int64_t n_rows) {
  const WeightView shape = job.w;
  float* const moments[2] = {job.moments[0], job.moments[1]};
  job.dir.mask = Mask{};
  for (int64_t r = row0; r < row0 + n_rows; ++r) {
    for (uint32_t i = o.row_begin[static_cast<size_t>(r)]; i < o.row_begin[static_cast<size_t>(r) + 1]; ++i) {
      const int64_t e = r * shape.cols + o.col[i];
      job.w = as_weight(shape, &o.value[i], e);
      for (int k = 0; k < 2; ++k) job.moments[k] = moments[k] ? moments[k] + i : nullptr;
      update_at(job, e, row0);
    }
  }
}

}  // namespace smezo
