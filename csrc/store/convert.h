// Stored elements from one dtype to another, nearest even, without noise: for values that were not trained.
#pragma once
#include <cstdint>

#include "base/dtype.h"
#include "base/view.h"

namespace smezo {

// `from` may be at any address (old safetensors writers did not pad the header). Elements [e0, e0 + n) of
// `to` are written from n elements at `from`. dtype `from_dtype` is F32, F16 or BF16.
void convert(const uint8_t* from, DType from_dtype, int64_t n, const WeightView& to, int64_t e0);

// What n elements converted to `values` (F32, BF16 or BF16T8) would read as, fp32.
void read_as(const uint8_t* from, DType from_dtype, int64_t n, DType values, float* out);

}  // namespace smezo
