#include "direction/low_rank.h"

#include "base/bits.h"
#include "format/half.h"

namespace smezo {

std::vector<float> middle_of(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, uint32_t step,
                             uint32_t query) {
  const Stream s = query_stream(run_seed, tensor_id, step, query);
  std::vector<float> out(static_cast<size_t>(d.n_middle()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = noise_at(d.noise, s, i);
  return out;
}

std::vector<float> orthonormal_columns(const Stream& stream, int64_t n, int rank) {
  const size_t rows = static_cast<size_t>(n);
  std::vector<double> q(rows * static_cast<size_t>(rank));
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<double>(noise_at(NoiseKind::gaussian, stream, i));
  std::vector<float> out(q.size());
  for (int s = 0; s < rank; ++s) {
    double* const x = q.data() + static_cast<size_t>(s) * rows;
    const auto dot = [&](const double* y) {
      double sum = 0;
      for (size_t j = 0; j < rows; ++j) sum += x[j] * y[j];
      return sum;
    };
    for (int pass = 0; pass < 2; ++pass) {
      for (int t = 0; t < s; ++t) {
        const double* const y = q.data() + static_cast<size_t>(t) * rows;
        const double along = dot(y);
        for (size_t j = 0; j < rows; ++j) x[j] -= along * y[j];
      }
    }
    const double norm = std::sqrt(dot(x));
    for (size_t j = 0; j < rows; ++j) x[j] /= norm;
    for (size_t j = 0; j < rows; ++j)
      out[static_cast<size_t>(s) * rows + j] = round_bf16(static_cast<float>(x[j]));
  }
  return out;
}

}  // namespace smezo
