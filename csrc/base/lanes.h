// The operations that the formulas of noise and of update rules are written in, for one lane: float and
// uint32_t. A vector instruction set brings a type F of floats and a type U of 32-bit words with the same
// operations on every lane, and then runs the formulas of philox.h, box_muller.h and rule.h as they stand;
// each operation is exact or correctly rounded by IEEE 754, so lanes agree bit for bit on every machine.
//
// A vector type needs: F: + - * /; U: + - & | ^ and << >> by an int (>> logical); and overloads of the lane_
// functions below, found by argument-dependent lookup. No comparisons, no branches, no libm.
#pragma once
#include <cstdint>

#include "base/bits.h"
#include "base/host_device.h"

namespace smezo {

// The constant x on every lane of a type like the second argument, whose value is not used.
SMEZO_HD float lane_const(float x, float) { return x; }
SMEZO_HD uint32_t lane_const(uint32_t x, uint32_t) { return x; }
// a * b + c, rounded once. Without FMA hardware the C library does it in software, to the same bits.
SMEZO_HD float lane_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SMEZO_HD float lane_sqrt(float a) { return __builtin_sqrtf(a); }
// The word read as a signed integer, to the nearest float.
SMEZO_HD float lane_from_int(uint32_t a) { return static_cast<float>(static_cast<int32_t>(a)); }
SMEZO_HD uint32_t lane_bits(float a) { return f32_bits(a); }
SMEZO_HD float lane_float(uint32_t a) { return f32_from_bits(a); }
// Arithmetic shift right.
SMEZO_HD uint32_t lane_sar(uint32_t a, int n) { return static_cast<uint32_t>(static_cast<int32_t>(a) >> n); }
// a where bit 31 of sign is set, else b.
SMEZO_HD float lane_select(uint32_t sign, float a, float b) { return static_cast<int32_t>(sign) < 0 ? a : b; }
// 1, -1 or 0, as a is.
SMEZO_HD float lane_sign(float a) { return a > 0 ? 1.0f : a < 0 ? -1.0f : 0.0f; }
// The 64-bit product a * m in two words.
SMEZO_HD void lane_mul(uint32_t a, uint32_t m, uint32_t* hi, uint32_t* lo) {
  const uint64_t p = static_cast<uint64_t>(a) * m;
  *hi = static_cast<uint32_t>(p >> 32);
  *lo = static_cast<uint32_t>(p);
}

}  // namespace smezo
