// Which branches a step asks, and what it makes of their losses.
#pragma once
#include <vector>

#include "engine/method.h"
#include "model/model.h"

namespace smezo {

// The branches of a step, in the order scalars_of takes their losses in.
std::vector<Branch> branches_of(const MethodConfig& m, float eps);

// The scalars of a record, made in double and rounded once to fp32, from the branches' mean losses:
//   two-sided   g_q = (l_q+ - l_q-) / (2 eps)
//   one-sided   g_q = (l_q - l_0) / eps; deviation: / s, or / (s eps), s the population's standard
//               deviation of the l_q (1/Q; FZOO, arXiv 2506.09034, as its released code)
//               sign: of that, and of the two-sided one
//   curved      g = (l+ - l-) / (2 eps), and |l+ + l- - 2 l_0| / (2 eps^2) (HiZOO, arXiv 2402.15173)
// ArgumentError: other branches than branches_of gives.
std::vector<float> scalars_of(const MethodConfig& m, const std::vector<Branch>& branches,
                              const std::vector<double>& mean_losses);

}  // namespace smezo
