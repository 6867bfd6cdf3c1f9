// The threshold of a magnitude mask: the k-th smallest (Sparse-MeZO, arXiv 2402.15751) or k-th largest |w0|
// of a matrix, exactly, by a two-pass radix select over the decoded values' bits. Only integer counts are
// added, so threads do not change the answer.
#pragma once
#include <cstdint>

#include "base/threads.h"
#include "base/view.h"

namespace smezo {

struct Threshold {
  float h = 0;
  int64_t n_selected = 0;  // elements the mask lets in, all ties included
};

// k = max(1, round((1 - sparsity) * n)), halves up: how many elements a matrix of n trains before ties.
int64_t n_kept(int64_t n, double sparsity);

// h = the k-th smallest |w|; the mask |w| <= h. sparsity 0: h is infinity and every element is in.
// ArgumentError: sparsity outside [0, 1), an empty matrix, or (sparsity > 0) an infinite or NaN weight. pool
// may be null.
Threshold smallest_threshold(const WeightView& w, double sparsity, ThreadPool* pool = nullptr);
// h = the k-th largest |w|; the mask |w| >= h. sparsity 0: h is 0.
Threshold largest_threshold(const WeightView& w, double sparsity, ThreadPool* pool = nullptr);

}  // namespace smezo
