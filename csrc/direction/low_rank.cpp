#include "direction/low_rank.h"

#include "base/bits.h"

namespace smezo {

std::vector<float> middle_of(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, uint32_t step,
                             uint32_t query) {
  const Stream s = query_stream(run_seed, tensor_id, step, query);
  std::vector<float> out(static_cast<size_t>(d.n_middle()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = noise_at(d.noise, s, i);
  return out;
}

void orthonormal_columns(const Stream& stream, int64_t n, int rank, double* out) {
  const size_t rows = static_cast<size_t>(n);
  for (size_t i = 0; i < rows * static_cast<size_t>(rank); ++i)
    out[i] = static_cast<double>(noise_at(NoiseKind::gaussian, stream, i));
  for (int s = 0; s < rank; ++s) {
    double* const x = out + static_cast<size_t>(s) * rows;
    const auto dot = [&](const double* y) {
      double sum = 0;
      for (size_t j = 0; j < rows; ++j) sum += x[j] * y[j];
      return sum;
    };
    for (int pass = 0; pass < 2; ++pass) {
      for (int t = 0; t < s; ++t) {
        const double* const y = out + static_cast<size_t>(t) * rows;
        const double along = dot(y);
        for (size_t j = 0; j < rows; ++j) x[j] -= along * y[j];
      }
    }
    const double norm = std::sqrt(dot(x));
    for (size_t j = 0; j < rows; ++j) x[j] /= norm;
  }
}

}  // namespace smezo
