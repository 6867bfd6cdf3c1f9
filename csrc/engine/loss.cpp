#include "engine/loss.h"

#include <cmath>
#include <limits>

#include "base/error.h"

namespace smezo {
namespace {

constexpr double kFixedOne = 4294967296.0;  // 2^32
// 2^20 examples of a loss this large still sum inside int64.
constexpr double kLargestLoss = 2047.0;

// Adds x to a fixed-point sum; false when x cannot be held.
bool add_fixed(double x, double limit, int64_t* sum) {
  if (!(std::fabs(x) <= limit)) return false;
  return !__builtin_add_overflow(*sum, std::llround(x * kFixedOne), sum);
}

}  // namespace

double BranchLoss::mean() const {
  if (!finite || n == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(fixed_sum) / kFixedOne / static_cast<double>(n);
}

std::vector<float> option_scores(const Batch& batch, const std::vector<float>& values) {
  const int64_t n_options = batch.n_options;
  std::vector<float> scores(static_cast<size_t>(batch.n_examples * n_options));
  if (batch.task == Task::choice_candidates) {
    for (size_t i = 0; i < batch.labels.size(); ++i) {
      for (int64_t o = 0; o < n_options; ++o) {
        scores[static_cast<size_t>(batch.labels[i].example * n_options + o)] =
            values[i * static_cast<size_t>(n_options) + static_cast<size_t>(o)];
      }
    }
    return scores;
  }
  std::vector<double> sum(scores.size(), 0.0);
  std::vector<int32_t> count(scores.size(), 0);
  for (size_t i = 0; i < batch.labels.size(); ++i) {
    const size_t at = static_cast<size_t>(batch.labels[i].example * n_options + batch.labels[i].option);
    sum[at] += static_cast<double>(values[i]);
    ++count[at];
  }
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(sum[i] / count[i]);
  return scores;
}

BranchLoss branch_loss(const Batch& batch, const std::vector<float>& values, Reduction reduction) {
  BranchLoss out;
  const size_t n_examples = static_cast<size_t>(batch.n_examples);
  out.sum.assign(n_examples, 0.0);
  out.count.assign(n_examples, 0);
  if (batch.task == Task::language_model) {
    for (size_t i = 0; i < batch.labels.size(); ++i) {
      const size_t e = static_cast<size_t>(batch.labels[i].example);
      out.sum[e] -= static_cast<double>(values[i]);
      ++out.count[e];
    }
  } else {
    const std::vector<float> scores = option_scores(batch, values);
    const size_t n_options = static_cast<size_t>(batch.n_options);
    for (size_t e = 0; e < n_examples; ++e) {
      const float* s = scores.data() + e * n_options;
      double max = s[0], total = 0;
      for (size_t o = 1; o < n_options; ++o) max = std::fmax(max, static_cast<double>(s[o]));
      for (size_t o = 0; o < n_options; ++o) total += std::exp(static_cast<double>(s[o]) - max);
      out.sum[e] = max + std::log(total) - static_cast<double>(s[batch.answers[e]]);
      out.count[e] = 1;
    }
  }
  for (size_t e = 0; e < n_examples; ++e) {
    if (out.count[e] == 0) continue;  // an example without a label says nothing
    if (reduction == Reduction::example) {
      out.finite &= add_fixed(out.sum[e] / out.count[e], kLargestLoss, &out.fixed_sum);
      out.n += 1;
    } else {
      out.finite &= add_fixed(out.sum[e], kLargestLoss * out.count[e], &out.fixed_sum);
      out.n += out.count[e];
    }
  }
  return out;
}

}  // namespace smezo
