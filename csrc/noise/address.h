// Where every random bit comes from (I6). Nothing in the library draws from a stream: a bit is addressed by
// (run seed, step, query, purpose, tensor id, element), and this header is the one table of how that address
// becomes a Philox counter.
//
//   key  word 0   run seed, low 32 bits
//   key  word 1   run seed, high 32 bits
//   ctr  word 0   block, low 32 bits
//   ctr  word 1   block, high 8 bits (31..24) | tensor id (23..4) | purpose (3..0)
//   ctr  word 2   step
//   ctr  word 3   query (15..0); bits 31..16 are zero
//
// A block is one Philox call: four 32-bit words. Elements map to blocks 16 blocks at a time, so that 16
// vector lanes each run one block and every output word is a vector of consecutive elements; nothing is ever
// transposed:
//
//   a kind that spends b bits an element has groups of 16 * 128 / b elements;
//   group = e / group size, lane = e % 16, slot = (e / 16) % (128 / b);
//   block = group * 16 + lane; its 128 bits are words 0..3, each from its least significant bit up; the
//   element owns bits [slot * b, slot * b + b) of them.
//
//   b = 1    Rademacher           group 2048
//   b = 8    gaussian8, tail rounding (low byte of an fp32)   group 256
//   b = 16   random mask, dither, bf16 stochastic rounding    group 128
//   b = 32   exact Gaussian       group 64 (see normal.h for how words pair up)
#pragma once
#include <cstdint>

#include "base/host_device.h"

namespace smezo {

enum class Purpose : uint32_t {
  direction = 0,
  mask = 1,
  rounding = 2,  // stochastic rounding of a stored weight when a record is applied
  subset = 3,    // which layers take part
  factor = 4,    // low-rank factors
  query_plan = 5,
  data_order = 6,
  dither = 7,  // stochastic rounding of a branch operand
};

struct Counter {
  uint32_t c0, c1, c2, c3;
};
struct Key {
  uint32_t k0, k1;
};

// Everything of an address but the element.
struct Stream {
  uint64_t run_seed = 0;
  uint32_t step = 0;  // 0 for what is fixed for the run (random mask)
  uint32_t query = 0;
  Purpose purpose = Purpose::direction;
  uint32_t tensor_id = 0;
};

constexpr uint32_t kMaxTensorId = (1u << 20) - 1;
constexpr uint64_t kMaxBlock = (uint64_t{1} << 40) - 1;
constexpr uint32_t kMaxQuery = (1u << 16) - 1;

SMEZO_HD Key key_of(const Stream& s) {
  return {static_cast<uint32_t>(s.run_seed), static_cast<uint32_t>(s.run_seed >> 32)};
}

SMEZO_HD Counter counter_of(const Stream& s, uint64_t block) {
  return {static_cast<uint32_t>(block),
          (static_cast<uint32_t>(block >> 32) << 24) | (s.tensor_id << 4) | static_cast<uint32_t>(s.purpose),
          s.step, s.query};
}

// Element e of a kind that spends `bits` an element: its block and the position of its first bit in the
// block's 128.
SMEZO_HD uint64_t block_of(uint64_t e, uint32_t bits) {
  const uint64_t group_size = 16 * (128 / bits);
  return (e / group_size) * 16 + e % 16;
}
SMEZO_HD uint32_t bit_of(uint64_t e, uint32_t bits) {
  return static_cast<uint32_t>((e / 16) % (128 / bits)) * bits;
}

}  // namespace smezo
