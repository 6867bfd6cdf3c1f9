// fp16 and bf16 to fp32 and back: nearest even, and bf16 by stochastic rounding with bits the caller gives.
// Infinities stay, a NaN stays a NaN (made the quiet 0x7FC0 by rounding, so that no payload can carry into a
// number). Subnormals are kept.
#pragma once
#include <cstdint>

#include "base/bits.h"
#include "base/host_device.h"

namespace smezo {

constexpr uint16_t kBf16Nan = 0x7FC0;
constexpr uint16_t kFp16Nan = 0x7E00;

SMEZO_HD bool bits_are_nan(uint32_t u) { return (u & 0x7FFFFFFFu) > 0x7F800000u; }

SMEZO_HD float bf16_to_f32(uint16_t h) { return f32_from_bits(static_cast<uint32_t>(h) << 16); }

SMEZO_HD uint16_t f32_to_bf16(float x) {
  const uint32_t u = f32_bits(x);
  if (bits_are_nan(u)) return kBf16Nan;
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1)) >> 16);
}

// Away from zero when the 16 low bits of x plus `random` carry: probability is the distance, and E is x.
// random: 16 bits.
SMEZO_HD uint16_t f32_to_bf16_stochastic(float x, uint32_t random) {
  const uint32_t u = f32_bits(x);
  if (bits_are_nan(u)) return kBf16Nan;
  return static_cast<uint16_t>((u + random) >> 16);
}

// Rounded to bf16 and held in fp32.
SMEZO_HD float round_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)); }

SMEZO_HD float fp16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31, fraction = h & 1023u;
  if (exponent == 31) return f32_from_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormals, exact
  return f32_from_bits(sign | f32_bits(magnitude));
}

SMEZO_HD uint16_t f32_to_fp16(float x) {
  const uint32_t u = f32_bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return kFp16Nan;
  if (a >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and above
  if (a >= 0x38800000u)                         // normal in fp16
    return static_cast<uint16_t>(sign | ((a + 0xFFFu + ((a >> 13) & 1) - (112u << 23)) >> 13));
  // Subnormal: adding 1/2 leaves the multiple of 2^-24, rounded to nearest even by the addition, in the low
  // bits.
  return static_cast<uint16_t>(sign | (f32_bits(f32_from_bits(a) + 0.5f) - 0x3F000000u));
}

}  // namespace smezo
