// What training has made beside a base that is only read, by low-rank directions: W = W_0 + sum over epochs
// of
//
//   utv, uzv   scale u M v^T with the epoch's factors; M: the numbers between them (n_middle)
//   uv         N v^T; N [m, rank]: what the steps of the epoch have added up of scale u
//
// Blocks of an epoch lie one after the other, from epoch 0 on. A function of the records alone.
#pragma once
#include <cstdint>
#include <vector>

#include "direction/low_rank.h"

namespace smezo {

struct Beside {
  std::vector<float> values;  // [n_blocks][block_size]
  int64_t block_size = 0;
  int64_t n_blocks() const { return block_size > 0 ? static_cast<int64_t>(values.size()) / block_size : 0; }
  const float* block(int64_t epoch) const { return values.data() + epoch * block_size; }
  float* block(int64_t epoch) { return values.data() + epoch * block_size; }
};

inline int64_t block_size_of(const LowRank& d, int64_t m) {
  return d.kind == LowRankKind::uv ? m * d.rank : d.n_middle();
}

}  // namespace smezo
