// Bits -> noise values. Three kinds, all with mean 0 and variance 1, no libm, equal bits on every machine.
// The bits an element owns are in address.h; here is what they mean:
//
//   rademacher   1 bit: 0 is +1, 1 is -1
//   gaussian8    8 bits: the low 7 index a table of 128 magnitudes (gaussian8_table.h), the top bit is
//                the sign (1 is minus). Bounded by 2.890625
//   gaussian     a block's 4 elements (slots 0..3) come from its words 0..3 by pairs: slots 0, 1 are z0, z1
//                of words (0, 1), slots 2, 3 are z0, z1 of words (2, 3) (box_muller.h)
#pragma once
#include <cstdint>

#include "noise/box_muller.h"
#include "noise/gaussian8_table.h"
#include "noise/philox.h"

namespace smezo {

enum class NoiseKind : uint8_t { gaussian, gaussian8, rademacher };

// Bits an element spends.
SMEZO_HD uint32_t noise_bits(NoiseKind kind) {
  return kind == NoiseKind::gaussian ? 32 : kind == NoiseKind::gaussian8 ? 8 : 1;
}

SMEZO_HD float rademacher_value(uint32_t bit) { return lane_float(0x3F800000u | bit << 31); }

// The bf16 pattern of a byte's value. A copy of the table in the function, because CUDA sees no other.
SMEZO_HD uint16_t gaussian8_bf16(uint32_t byte) {
  static constexpr Gaussian8Table table = kGaussian8Table;
  return static_cast<uint16_t>(table.magnitude[byte & 127] | (byte & 128) << 8);
}
SMEZO_HD float gaussian8_value(uint32_t byte) {
  return lane_float(static_cast<uint32_t>(gaussian8_bf16(byte)) << 16);
}

// Values of the four slots of a Gaussian block.
SMEZO_HD void gaussian_values(const Block& b, float z[4]) {
  gaussian_pair<float, uint32_t>(b.w[0], b.w[1], &z[0], &z[1]);
  gaussian_pair<float, uint32_t>(b.w[2], b.w[3], &z[2], &z[3]);
}

// The noise of element e.
SMEZO_HD float noise_at(NoiseKind kind, const Stream& s, uint64_t e) {
  switch (kind) {
    case NoiseKind::rademacher:
      return rademacher_value(bits_at(s, e, 1));
    case NoiseKind::gaussian8:
      return gaussian8_value(bits_at(s, e, 8));
    case NoiseKind::gaussian: {
      const Block b = block_at(s, block_of(e, 32));
      const uint32_t slot = bit_of(e, 32) / 32;
      float z0, z1;
      gaussian_pair<float, uint32_t>(b.w[slot & 2], b.w[(slot & 2) + 1], &z0, &z1);
      return slot & 1 ? z1 : z0;
    }
  }
  return 0;
}

}  // namespace smezo
