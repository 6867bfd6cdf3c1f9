// int8 with a scale for each row (LLM.int8(), arXiv 2208.07339, without its outlier path), bit-equal to
// bitsandbytes' int8_vectorwise_dequant: q * absmax * fp32(1/127), two roundings in fp32, from left to right.
//
// Encoding is bitsandbytes' int8_vectorwise_quant with threshold 0: x times (1 / absmax) * 127, each rounded
// in fp32, then to the nearest integer, ties to even. A row whose factor is not finite (all zero, or absmax
// below 3.74e-37) becomes zeros.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/view.h"

namespace smezo {

constexpr float kInt8Step = 7.874015718698502e-3f;  // 1/127

SMEZO_HD float int8_at(const WeightView& w, int64_t e) {
  const float q = static_cast<float>(static_cast<const int8_t*>(w.data)[e - w.first]);
  const float scaled = q * w.scales.absmax[e / w.cols];
  return scaled * kInt8Step;
}

SMEZO_HD float int8_factor(float absmax) { return (1.0f / absmax) * 127.0f; }

// |x * factor| is at most 127 and a rounding. Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in
// the low bits; the call that rounds is slow where the baseline has no instruction for it.
SMEZO_HD int8_t int8_code(float x, float factor) {
  if (!(factor <= 3.402823466e+38f)) return 0;
  return static_cast<int8_t>((x * factor + 12582912.0f) - 12582912.0f);
}

}  // namespace smezo
