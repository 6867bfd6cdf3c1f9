// NF4: 4-bit normal float (QLoRA, arXiv 2305.14314, section 3 and appendix E), bit-equal to bitsandbytes on
// the CPU. An element is kNf4[code] * absmax of its block, in fp32. Doubly quantized, an absmax is itself a
// code: nested_code[code] * nested_absmax + nested_offset, two roundings.
//
// Encoding is bitsandbytes 0.50's on the CPU (its torch kernel quantize_4bit): a block is multiplied by
// 1 / absmax in fp32, but a last block shorter than the rest is divided by its absmax, which is then at least
// 1e-38 and stored so; a code is the number of thresholds below x.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/view.h"

namespace smezo {

// Code -> value. In the function, so that CUDA sees it; static, or CUDA would make the table anew on every
// call's stack.
SMEZO_HD float nf4_value(uint32_t code) {
  static constexpr float kNf4[16] = {
      -1.0f,      -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
      0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
  };
  return kNf4[code & 15];
}

// Between code k and k + 1: (value + value) / 2 in fp32. A number that lies on it takes code k.
SMEZO_HD float nf4_threshold(uint32_t k) { return (nf4_value(k) + nf4_value(k + 1)) * 0.5f; }

// What an element is brought to [-1, 1] by. It stays there without a clamp only up to rounding, which changes
// no code: the outermost thresholds are far inside.
constexpr float kNf4LeastAbsmax = 1e-38f;
SMEZO_HD float nf4_scaled(float x, float absmax, bool whole_block) {
  const float least = absmax < kNf4LeastAbsmax ? kNf4LeastAbsmax : absmax;
  return whole_block ? x * (1.0f / least) : x / least;
}

// Code of a scaled element. A NaN takes 0 (bitsandbytes: 15); quantize refuses one before it gets here.
SMEZO_HD uint32_t nf4_code(float scaled) {
  uint32_t code = 0;
  for (uint32_t k = 0; k < 15; ++k) code += scaled > nf4_threshold(k) ? 1 : 0;
  return code;
}

// What is stored as the absmax of a block.
SMEZO_HD float nf4_stored_absmax(float absmax, bool whole_block) {
  return !whole_block && absmax < kNf4LeastAbsmax ? kNf4LeastAbsmax : absmax;
}

// Absmax of a block of the tensor, which is block `at` of the view.
SMEZO_HD float nf4_absmax(const Scales& s, int64_t block, int64_t at) {
  if (s.absmax8 == nullptr) return s.absmax[at];
  const float scaled = s.nested_code[s.absmax8[at]] * s.nested_absmax[block / s.nested_block];
  return scaled + s.nested_offset;
}

// Absmax of the block that element e is in.
SMEZO_HD float nf4_absmax_at(const WeightView& w, int64_t e) {
  const Scales& s = w.scales;
  const int64_t block = e / s.block;
  return nf4_absmax(s, block, block - w.first / s.block);
}

SMEZO_HD float nf4_at(const WeightView& w, int64_t e) {
  const int64_t at = e - w.first;
  const uint32_t two = static_cast<const uint8_t*>(w.data)[at / 2];
  return nf4_value(at % 2 == 0 ? two >> 4 : two) * nf4_absmax_at(w, e);
}

}  // namespace smezo
