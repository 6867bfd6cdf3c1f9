// Trained values on a static index set, beside a base that nobody writes: operands are made from the base and
// then patched where the set is. One element in a thousand: plain loops over the element functions, the same
// on every instruction set.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/pages.h"
#include "kernels/kernels.h"

namespace smezo {

class IndexOverlay {
 public:
  IndexOverlay() = default;
  // Zeros. BudgetError.
  IndexOverlay(int64_t rows, int64_t n);

  std::span<uint32_t> row_begin;  // [rows + 1], into the two others
  std::span<uint16_t> col;        // increasing within a row
  std::span<float> value;
  IndexOverlay copy() const;
  int64_t n() const { return static_cast<int64_t>(value.size()); }
  int64_t n_bytes() const { return n_bytes_of(static_cast<int64_t>(row_begin.size()) - 1, n()); }
  static int64_t n_bytes_of(int64_t rows, int64_t n);  // whole pages

 private:
  Pages memory_;
};

// An overlay of these elements (increasing) with values still to be filled. ArgumentError: not increasing,
// outside of the tensor, more than 65536 columns.
IndexOverlay make_overlay(const std::vector<int64_t>& elements, int64_t rows, int64_t cols);

// A job's moments and curvature are of the set's elements, [n()].
// Overwrites the set's elements of strips that hold rows [row0, row0 + n_rows) of the base as `produce` makes
// them for `job` (its w tells shape and id only); strips of elements `strip`, `ld` a row. Either may be null.
void patch_operands(const IndexOverlay& o, OperandJob job, int64_t row0, int64_t n_rows, DType strip,
                    int64_t ld, void* plus, void* minus);
// fp32 values of rows [row0, row0 + n_rows), [n_rows][cols].
void patch_values(const IndexOverlay& o, int64_t row0, int64_t n_rows, int64_t cols, float* values);
// One record on the set's elements of those rows.
void update_overlay(IndexOverlay& o, UpdateJob job, int64_t row0, int64_t n_rows);

}  // namespace smezo
