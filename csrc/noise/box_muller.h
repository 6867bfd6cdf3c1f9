// Exact Gaussian noise: G. E. P. Box and M. E. Muller, "A note on the generation of random normal deviates",
// 1958, with a logarithm, sine and cosine of its own (minimax polynomials), because libm gives other bits on
// other machines. Written over the lanes of lanes.h: the scalar and the vector kernels run this very source.
//
//   u = (w0 + 1/2) / 2^32        r = sqrt(-2 ln u)           (r <= 6.77)
//   a = 2 pi (w1 + 1/2) / 2^32   z0 = r cos a,  z1 = r sin a
//
// Error against the formula in real numbers: at most 1e-6 in z. Near u = 1, where r is small, ln is taken
// from 1 - u, whose bits are the complement of w0's, so r keeps its relative accuracy down to its least
// value, 2^-16.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/lanes.h"

namespace smezo {

// -2 ln u of u = (w + 1/2) / 2^32. With u = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)): f p(f) - 2 k ln 2.
template <class F, class U>
SMEZO_HD F minus_two_log(U w) {
  const F f0 = lane_from_int(w);
  const auto c = [&](float x) { return lane_const(x, f0); };
  const auto n = [&](uint32_t x) { return lane_const(x, w); };
  // t = u in the lower half of the range, 1 - u in the upper.
  const U folded = w ^ lane_sar(w, 31);
  const F t = lane_fma(lane_from_int(folded), c(0x1p-32f), c(0x1p-33f));
  const F one_minus = c(1.0f) - t;
  const F v = lane_select(w, one_minus, t);
  const F lost = lane_select(w, (c(1.0f) - one_minus) - t, c(0.0f));  // what rounding 1 - t dropped, exactly
  const U bits = lane_bits(v);
  const U k23 = (bits - n(0x3F3504F3u)) & n(0xFF800000u);  // k * 2^23
  const F f = (lane_float(bits - k23) - c(1.0f)) + lost;
  F p = c(-0x1.65c790p-3f);
  p = lane_fma(p, f, c(0x1.2504b6p-2f));
  p = lane_fma(p, f, c(-0x1.31852cp-2f));
  p = lane_fma(p, f, c(0x1.535d2cp-2f));
  p = lane_fma(p, f, c(-0x1.98d2bep-2f));
  p = lane_fma(p, f, c(0x1.00049ap-1f));
  p = lane_fma(p, f, c(-0x1.5556f4p-1f));
  p = lane_fma(p, f, c(0x1.fffffap-1f));
  p = lane_fma(p, f, c(-2.0f));
  return lane_fma(lane_from_int(k23), c(-0x1.62e430p-23f), p * f);
}

// Both normals of one pair of words.
template <class F, class U>
SMEZO_HD void gaussian_pair(U w0, U w1, F* z0, F* z1) {
  const F r = lane_sqrt(minus_two_log<F, U>(w0));
  const auto c = [&](float x) { return lane_const(x, r); };
  const auto n = [&](uint32_t x) { return lane_const(x, w1); };
  // The angle is turn / 4 + x / 4 of a circle with x in [-1/2, 1/2]; the top two bits of `turn` count the
  // quarters.
  const U turn = w1 + n(0x20000000u);
  const F x = lane_fma(lane_from_int(lane_sar(w1 << 2, 2)), c(0x1p-30f), c(0x1p-31f));
  const F y = x * x;
  F s = c(-0x1.2d9bb8p-8f);
  s = lane_fma(s, y, c(0x1.465ec6p-4f));
  s = lane_fma(s, y, c(-0x1.4abbbap-1f));
  s = lane_fma(s, y, c(0x1.921fb6p+0f));
  s = s * x;
  F k = c(-0x1.4ea9e8p-6f);
  k = lane_fma(k, y, c(0x1.03b162p-2f));
  k = lane_fma(k, y, c(-0x1.3bd3a2p+0f));
  k = lane_fma(k, y, c(1.0f));
  const U odd = turn << 1;
  const F cosine = lane_select(odd, s, k);
  const F sine = lane_select(odd, k, s);
  const U sign = n(0x80000000u);
  *z0 = r * lane_float(lane_bits(cosine) ^ ((turn + n(0x40000000u)) & sign));
  *z1 = r * lane_float(lane_bits(sine) ^ (turn & sign));
}

}  // namespace smezo
