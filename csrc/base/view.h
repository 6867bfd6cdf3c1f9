// A stored weight as everybody sees it: pointers, dtype, shape. Owns nothing.
#pragma once
#include <cstdint>

#include "base/dtype.h"

namespace smezo {

// [rows, cols] row-major in Hugging Face storage order; a vector (norm, bias) is rows = 1, cols = n.
// Element i (row * cols + col) is the address that noise and masks use (I6).
struct WeightView {
  void* data = nullptr;    // F32: float; F16, BF16: uint16_t; BF16T8: the bf16 plane (uint16_t)
  int8_t* tail = nullptr;  // BF16T8 only: the tail plane
  DType dtype = DType::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  uint32_t tensor_id = 0;
  bool writable = false;  // false: part of the base, nobody may write (I2)
  int64_t n() const { return rows * cols; }
};

}  // namespace smezo
