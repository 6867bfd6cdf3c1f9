// bf16 + 8-bit tail (I10). The value is u24: an fp32 without its low 8 bits. Stored as its nearest bf16 `hi`,
// which feeds a GEMM as it is, and a signed byte `tail`:
//
//   hi = (u24 + 0x80) >> 8        tail = u24 - (hi << 8), in [-128, 127]        u24 = (hi << 8) + tail
//
// Joining is exact for every u24 (arithmetic modulo 2^24). A value of magnitude 2^128 - 2^119 or more, still
// finite as u24, has an infinite hi and a negative tail: it joins back to itself, but its hi is infinite, as
// rounding to bf16 makes it. Rounding may carry the largest fp32 numbers to infinity, as rounding does. NaN
// becomes the quiet 0x7FC000 before splitting, so that no payload carries into hi's sign.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "format/half.h"

namespace smezo {

constexpr uint32_t kSplit24Nan = 0x7FC000;

struct Split24 {
  uint16_t hi;
  int8_t tail;
};

SMEZO_HD Split24 split24(uint32_t u24) {
  const uint32_t hi = (u24 + 0x80u) >> 8;
  return {static_cast<uint16_t>(hi), static_cast<int8_t>(static_cast<uint8_t>(u24 - (hi << 8)))};
}

SMEZO_HD uint32_t join24(Split24 s) {
  return ((static_cast<uint32_t>(s.hi) << 8) + static_cast<uint32_t>(static_cast<int32_t>(s.tail))) &
         0xFFFFFFu;
}

SMEZO_HD float u24_to_f32(uint32_t u24) { return f32_from_bits(u24 << 8); }

// Stochastic rounding: up in magnitude when x's low byte plus `random` (8 bits) carries.
SMEZO_HD uint32_t f32_to_u24(float x, uint32_t random) {
  const uint32_t u = f32_bits(x);
  return bits_are_nan(u) ? kSplit24Nan : (u + random) >> 8;
}

// Nearest, ties to even; for writing a value that was not trained.
SMEZO_HD uint32_t f32_to_u24_nearest(float x) {
  const uint32_t u = f32_bits(x);
  return bits_are_nan(u) ? kSplit24Nan : (u + 0x7Fu + ((u >> 8) & 1)) >> 8;
}

}  // namespace smezo
