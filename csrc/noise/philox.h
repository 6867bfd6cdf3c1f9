// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Tested
// against the known answers its authors publish.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/lanes.h"
#include "noise/address.h"

namespace smezo {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments

// The four counter words in place become the four output words, on every lane of U; the key is the same on
// all lanes.
template <class U>
SMEZO_HD void philox_lanes(U& c0, U& c1, U& c2, U& c3, Key key) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    U hi0, lo0, hi1, lo1;
    lane_mul(c0, kPhiloxM0, &hi0, &lo0);
    lane_mul(c2, kPhiloxM1, &hi1, &lo1);
    c0 = hi1 ^ c1 ^ lane_const(key.k0, c1);
    c1 = lo1;
    c2 = hi0 ^ c3 ^ lane_const(key.k1, c3);
    c3 = lo0;
    key.k0 += kPhiloxW0;
    key.k1 += kPhiloxW1;
  }
}

struct Block {
  uint32_t w[4];
};

SMEZO_HD Block philox(const Counter& c, const Key& k) {
  Block b{{c.c0, c.c1, c.c2, c.c3}};
  philox_lanes<uint32_t>(b.w[0], b.w[1], b.w[2], b.w[3], k);
  return b;
}

SMEZO_HD Block block_at(const Stream& s, uint64_t block) { return philox(counter_of(s, block), key_of(s)); }

// The `bits` (1, 8, 16 or 32) random bits that element e owns by the table of address.h, in the low bits of
// the result.
SMEZO_HD uint32_t bits_at(const Stream& s, uint64_t e, uint32_t bits) {
  const Block b = block_at(s, block_of(e, bits));
  const uint32_t first = bit_of(e, bits);
  const uint32_t word = b.w[first / 32] >> (first % 32);
  return bits == 32 ? word : word & ((1u << bits) - 1);
}

}  // namespace smezo
