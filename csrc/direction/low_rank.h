// Low-rank directions of a matrix [m, n] (LOZO, arXiv 2410.07698; SubZero, 2410.08989; TeZO, 2501.19057):
//
//   z[i, j] = sum over s of a[i, s] v[s, j], as fma(a, v, sum) in the order of s, from 0
//
//   uv    a = scale u                  u of a query and step                    scale = 1 / sqrt(r)
//   utv   a = u diag(scale tau)        u fixed, tau [r] of a query and step     scale = 1 / sqrt(r)
//   uzv   a = u (scale t)              u, v orthonormal, t [r, r] of a query    scale = sqrt(m n) / r
//
// E||Z||^2 = m n for each, so that eps and lr mean what they mean for a dense direction. What stays for
// `refresh` steps (v; uzv: u too) belongs to an epoch. All of it is regenerated, none is stored; factors are
// bf16 numbers, so that products take them as they are.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "noise/address.h"
#include "noise/normal.h"

namespace smezo {

enum class LowRankKind : uint8_t { none, uv, uzv, utv };

constexpr int kMaxRank = 256;

struct LowRank {
  LowRankKind kind = LowRankKind::none;
  NoiseKind noise = NoiseKind::gaussian8;
  int rank = 0;
  int refresh = 0;  // steps of an epoch; 0: the run
  explicit operator bool() const { return kind != LowRankKind::none; }
  // Numbers between u and v.
  int n_middle() const {
    return kind == LowRankKind::uzv ? rank * rank : kind == LowRankKind::utv ? rank : 0;
  }
};

inline uint32_t epoch_of(const LowRank& d, uint32_t step) {
  return d.refresh == 0 || step == 0 ? 0 : (step - 1) / static_cast<uint32_t>(d.refresh);
}

inline float scale_of(const LowRank& d, int64_t m, int64_t n) {
  const double r = d.rank;
  return static_cast<float>(d.kind == LowRankKind::uzv
                                ? std::sqrt(static_cast<double>(m) * static_cast<double>(n)) / r
                                : 1 / std::sqrt(r));
}

// Element s n + j of v, element i r + s of u: where their noise comes from. u of kind uv is of a query and
// step.
inline Stream v_stream(uint64_t run_seed, uint32_t tensor_id, uint32_t epoch) {
  return {run_seed, epoch, 0, Purpose::factor, tensor_id};
}
inline Stream u_stream(uint64_t run_seed, uint32_t tensor_id, uint32_t epoch) {
  return {run_seed, epoch, 1, Purpose::factor, tensor_id};
}
inline Stream query_stream(uint64_t run_seed, uint32_t tensor_id, uint32_t step, uint32_t query) {
  return {run_seed, step, query, Purpose::direction, tensor_id};
}

// tau [r], or t [r, r] by rows, of a query: kinds that have such.
std::vector<float> middle_of(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, uint32_t step,
                             uint32_t query);

// The orthonormal factor of a Gaussian [n, r] whose triangular factor has a positive diagonal, by columns,
// [r][n]: modified Gram-Schmidt, twice. `at` s n + j of the stream is element j of column s, exact normals.
void orthonormal_columns(const Stream& stream, int64_t n, int rank, double* out);

}  // namespace smezo
