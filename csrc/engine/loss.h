// Per-example losses of every branch.
#pragma once
#include <cstdint>
#include <vector>

#include "model/batch.h"
#include "model/model.h"

namespace smezo {

// Losses of one branch. Sums are int64 fixed point (2^-32), so they are exact and order-free over examples,
// threads and ranks (I12).
struct BranchLoss {
  std::vector<double>
      sum;  // [n_examples]: choice: the cross-entropy; language model: summed negative log-likelihood
  std::vector<int32_t> count;  // [n_examples]: 1, or the example's number of labels
  int64_t fixed_sum = 0;       // by the reduction: of per-example means, or of the plain sums
  int64_t n = 0;               // what fixed_sum is divided by
  bool finite = true;   // I11: false when an example's loss is not finite or does not fit in fixed point
  double mean() const;  // NaN when not finite
};

// values: ForwardResult::values of one branch.
BranchLoss branch_loss(const Batch& batch, const std::vector<float>& values, Reduction reduction);

// Scores of the options, [n_examples * n_options]: candidate logits turned to log-probabilities over the
// options are not taken, these are the raw scores (logit, or mean token log-probability).
std::vector<float> option_scores(const Batch& batch, const std::vector<float>& values);

}  // namespace smezo
