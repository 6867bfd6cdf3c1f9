// NF4: 4-bit normal float (QLoRA, arXiv 2305.14314, section 3 and appendix E), bit-equal to bitsandbytes on
// the CPU. An element is kNf4[code] * absmax of its block, in fp32. Doubly quantized, an absmax is itself a
// code: nested_code[code] * nested_absmax + nested_offset, two roundings.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/view.h"

namespace smezo {

// Absmax of a block of the tensor, which is block `at` of the view.
SMEZO_HD float nf4_absmax(const Scales& s, int64_t block, int64_t at) {
  if (s.absmax8 == nullptr) return s.absmax[at];
  const float scaled = s.nested_code[s.absmax8[at]] * s.nested_absmax[block / s.nested_block];
  return scaled + s.nested_offset;
}

// Code -> value. In the function, so that CUDA sees it; the compiler makes one table of it.
SMEZO_HD float nf4_value(uint32_t code) {
  constexpr float kNf4[16] = {
      -1.0f,      -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
      0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
  };
  return kNf4[code & 15];
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
