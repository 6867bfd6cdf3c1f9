// A stored weight as everybody sees it: pointers, dtype, shape. Owns nothing.
#pragma once
#include <cstdint>

#include "base/dtype.h"

namespace smezo {

// Scales of a quantized weight. What goes by block begins with the block of the view's first element, which
// lies on an edge of a block.
struct Scales {
  int32_t block = 0;                   // NF4: elements that share an absmax, a power of two >= 32
  const float* absmax = nullptr;       // NF4: of each block. I8: of each row, from row 0 (bitsandbytes' SCB)
  const uint8_t* absmax8 = nullptr;    // NF4 doubly quantized, instead of absmax: the code of each block's
  const float* nested_code = nullptr;  // [256] what a code stands for
  const float* nested_absmax = nullptr;  // of each nested_block blocks, from the tensor's beginning
  int32_t nested_block = 0;
  float nested_offset = 0;
};

// [rows, cols] row-major in Hugging Face storage order; a vector (norm, bias) is rows = 1, cols = n.
// Element i (row * cols + col) is the address that noise and masks use (I6).
struct WeightView {
  // F32: float; F16, BF16: uint16_t; BF16T8: the bf16 plane (uint16_t); I8: int8_t; NF4: uint8_t, two
  // elements each, the first in the high half.
  void* data = nullptr;
  int8_t* tail = nullptr;  // BF16T8 only: the tail plane
  DType dtype = DType::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t first =
      0;  // the element that data and tail begin with; not 0 where only a range of rows is at hand
  uint32_t tensor_id = 0;
  Scales scales;          // NF4, I8 only
  bool writable = false;  // false: part of the base, nobody may write (I2)
  int64_t n() const { return rows * cols; }
};

}  // namespace smezo
