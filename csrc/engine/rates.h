// What this machine can do, for `doctor`: rates of the very kernels a step uses.
#pragma once
#include "base/threads.h"
#include "kernels/kernels.h"

namespace smezo {

struct Rates {
  double gemm_flops_per_s = 0;  // bf16 operands already made, 576 features, 512 tokens
  double operands_per_s =
      0;  // weights whose + and - operand are made: decode, mask, gaussian8, both signs, rounding
  double updates_per_s = 0;  // weights (bf16+8) that a record is applied to
};

// Measures for about `seconds` in all, on every thread of the pool at once; the best of several rounds.
Rates measure_rates(const Kernels& kernels, ThreadPool& pool, double seconds);

}  // namespace smezo
