// The threshold of a magnitude mask: the k-th smallest (Sparse-MeZO, arXiv 2402.15751) or k-th largest |w0|
// of a matrix, exactly, by a two-pass radix select over the decoded values' bits. Only integer counts are
// added, so threads do not change the answer.
#pragma once
#include <cstdint>
#include <functional>

#include "base/threads.h"
#include "base/view.h"

namespace smezo {

// A tensor a piece at a time: calls its argument with a view that holds elements [e0, e0 + n), for pieces
// that together are the tensor. It is gone through twice.
using Pieces = std::function<void(const std::function<void(const WeightView& w, int64_t e0, int64_t n)>&)>;

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
// The same over pieces of a tensor of n elements.
Threshold smallest_threshold(const Pieces& pieces, int64_t n, double sparsity, ThreadPool* pool);
Threshold largest_threshold(const Pieces& pieces, int64_t n, double sparsity, ThreadPool* pool);

}  // namespace smezo
