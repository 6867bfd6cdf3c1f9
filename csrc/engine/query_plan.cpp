#include "engine/query_plan.h"

#include <cmath>
#include <string>

#include "base/error.h"

namespace smezo {

std::vector<Branch> branches_of(const MethodConfig& m, float eps) {
  std::vector<Branch> out;
  if (m.plan != QueryPlan::two_sided) out.push_back({0, +1, 0.0f});
  for (int q = 0; q < m.queries; ++q) {
    out.push_back({q, +1, eps});
    if (m.plan != QueryPlan::one_sided) out.push_back({q, -1, eps});
  }
  return out;
}

std::vector<float> scalars_of(const MethodConfig& m, const std::vector<Branch>& branches,
                              const std::vector<double>& l) {
  check<ArgumentError>(static_cast<int>(branches.size()) == m.n_branches() && l.size() == branches.size(),
                       "scalars",
                       std::to_string(l.size()) + " losses, expected one for each of " +
                           std::to_string(m.n_branches()) + " branches");
  const double eps = static_cast<double>(branches.back().eps);
  const std::vector<Branch> expected = branches_of(m, branches.back().eps);
  for (size_t b = 0; b < branches.size(); ++b)
    check<ArgumentError>(branches[b].query == expected[b].query && branches[b].sign == expected[b].sign &&
                             branches[b].eps == expected[b].eps,
                         "scalars", "branches of another order than this method asks");
  // A NaN stays one: I11.
  const auto rounded = [&](double g) {
    return static_cast<float>(m.estimator != Estimator::sign ? g : g > 0 ? 1.0 : g < 0 ? -1.0 : g);
  };
  std::vector<float> out;
  if (m.plan == QueryPlan::one_sided) {
    double over = eps;
    if (m.estimator == Estimator::deviation) {
      double mean = 0, square = 0;
      for (size_t q = 1; q < l.size(); ++q) mean += l[q] / m.queries;
      for (size_t q = 1; q < l.size(); ++q) square += (l[q] - mean) * (l[q] - mean) / m.queries;
      over = std::sqrt(square) * (m.over_eps ? eps : 1.0);
    }
    for (size_t q = 1; q < l.size(); ++q) out.push_back(rounded((l[q] - l[0]) / over));
    return out;
  }
  const size_t first = m.plan == QueryPlan::curved ? 1 : 0;
  for (size_t b = first; b + 1 < l.size(); b += 2) out.push_back(rounded((l[b] - l[b + 1]) / (2 * eps)));
  if (m.plan == QueryPlan::curved)
    out.push_back(static_cast<float>(std::fabs(l[1] + l[2] - 2 * l[0]) / (2 * eps * eps)));
  return out;
}

}  // namespace smezo
