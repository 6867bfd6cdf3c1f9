// Stored elements from one dtype to another, nearest even, without noise: for values that were not trained.
#pragma once
#include <cstdint>

#include "base/view.h"

namespace smezo {

// Elements [e0, e0 + n) of `from`, which may lie at any address (old safetensors writers did not pad the
// header), to the same elements of `to`.
void convert(const WeightView& from, int64_t e0, int64_t n, const WeightView& to);

// What those elements, converted to `values` (F32, BF16 or BF16T8), would read as, fp32.
void read_as(const WeightView& from, int64_t e0, int64_t n, DType values, float* out);

}  // namespace smezo
