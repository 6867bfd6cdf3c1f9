// int8 with a scale for each row (LLM.int8(), arXiv 2208.07339, without its outlier path), bit-equal to
// bitsandbytes' int8_vectorwise_dequant: q * absmax * fp32(1/127), two roundings in fp32, from left to right.
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

}  // namespace smezo
