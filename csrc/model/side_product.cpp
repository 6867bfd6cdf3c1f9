#include "model/side_product.h"

#include <algorithm>
#include <cstring>

#include "format/half.h"

namespace smezo {
namespace {

constexpr int64_t kBlockPanels = 4, kBlockLd = (kBlockPanels + 1) * kLanes;

int64_t operand_row_bytes(const Kernels& kernels, Compute compute, int64_t k) {
  return kernels.operand_ld(compute, k) * plane_element_bytes(kernels.operand_dtype(compute));
}

// bf16 numbers as a row of an operand, padded with zeros.
void put_row(const Kernels& kernels, Compute compute, const float* values, int64_t k, char* row) {
  std::memset(row, 0, static_cast<size_t>(operand_row_bytes(kernels, compute, k)));
  if (kernels.operand_dtype(compute) == DType::F32) {
    std::memcpy(row, values, static_cast<size_t>(k) * sizeof(float));
  } else {
    uint16_t* const to = reinterpret_cast<uint16_t*>(row);
    for (int64_t i = 0; i < k; ++i) to[i] = f32_to_bf16(values[i]);
  }
}

// out = M p over columns, [rank][kBlockLd].
void times_middle(const LowRank& d, const std::vector<float>& middle, const float* p, int64_t n_columns,
                  float* out) {
  for (int s = 0; s < d.rank; ++s) {
    float* const to = out + s * kBlockLd;
    if (d.kind != LowRankKind::uzv) {
      const float a = middle[d.kind == LowRankKind::uv ? 0 : static_cast<size_t>(s)];
      for (int64_t i = 0; i < n_columns; ++i) to[i] = a * p[s * kBlockLd + i];
      continue;
    }
    std::fill_n(to, n_columns, 0.0f);
    for (int t = 0; t < d.rank; ++t) {
      const float a = middle[static_cast<size_t>(s * d.rank + t)];
      for (int64_t i = 0; i < n_columns; ++i) to[i] += a * p[t * kBlockLd + i];
    }
  }
}

}  // namespace

void SideProduct::plan(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                       int64_t n_branches, int n_threads) {
  columns_ = arena_.take<char>(rank * operand_row_bytes(kernels, compute, n));
  packed_.clear(), sums_.clear();
  for (int64_t b = 0; b < n_branches; ++b)
    packed_.push_back(arena_.take<char>(kernels.packed_bytes(compute, rank, n_panels)));
  for (int i = 0; i < 2 * n_threads; ++i) sums_.push_back(arena_.take<float>(rank * kBlockLd));
}

int64_t SideProduct::bytes(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                           int64_t n_branches, int n_threads) {
  SideProduct p;
  p.arena_.begin();
  p.plan(kernels, compute, rank, n, n_panels, n_branches, n_threads);
  return p.arena_.used_bytes();
}

// Of the branch's direction and the coefficients, scaled.
std::vector<float> SideProduct::middle_of_branch(const VisitContext& c, const Branch& b) const {
  const LowRank& d = factors_->direction();
  const bool rests = c.rests((*c.methods)[static_cast<size_t>(id_)]);
  const float step = rests ? 0.0f : static_cast<float>(b.sign) * b.eps, scale = factors_->scale();
  if (d.kind == LowRankKind::uv) return {step * scale};
  std::vector<float> out = factors_->middle(c.step, static_cast<uint32_t>(b.query));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = scale * __builtin_fmaf(step, out[i], coefficients_ ? coefficients_[i] : 0.0f);
  return out;
}

void SideProduct::fill_columns(const VisitContext& c, int64_t n) {
  const int64_t row_bytes = operand_row_bytes(*c.kernels, c.compute, n);
  c.pool->run(factors_->direction().rank, [&](int64_t s, int) {
    std::vector<float> column(static_cast<size_t>(n));
    factors_->v_column(static_cast<int>(s), column.data());
    put_row(*c.kernels, c.compute, column.data(), n, columns_ + s * row_bytes);
  });
}

void SideProduct::prepare(const VisitContext& c, uint32_t id, int64_t m, int64_t n,
                          const std::vector<void*>& x, int64_t n_panels) {
  const TensorMethod& method = (*c.methods)[id];
  const LowRank& d = method.low_rank;
  context_ = &c;
  id_ = id;
  coefficients_ = c.coefficients ? c.coefficients(id) : nullptr;
  has_.clear();
  for (const Branch& b : c.branches) has_.push_back(coefficients_ || (b.eps > 0 && !c.rests(method)));
  if (std::find(has_.begin(), has_.end(), true) == has_.end()) return clear();
  factors_ = c.factors->of(d, id, m, n, epoch_of(d, c.step));

  const Kernels& kernels = *c.kernels;
  const int64_t n_branches = static_cast<int64_t>(c.branches.size());
  arena_.begin();
  plan(kernels, c.compute, d.rank, n, n_panels, n_branches, c.pool->size());
  arena_.commit();
  plan(kernels, c.compute, d.rank, n, n_panels, n_branches, c.pool->size());
  fill_columns(c, n);
  std::vector<std::vector<float>> middles;
  for (const Branch& b : c.branches) middles.push_back(middle_of_branch(c, b));
  const int64_t n_blocks = (n_panels + kBlockPanels - 1) / kBlockPanels;
  c.pool->run(n_branches * n_blocks, [&](int64_t item, int thread) {
    const size_t b = static_cast<size_t>(item / n_blocks);
    if (!has_[b]) return;
    const int64_t p0 = item % n_blocks * kBlockPanels, np = std::min(kBlockPanels, n_panels - p0);
    float *const p = sums_[2 * static_cast<size_t>(thread)], *const q =
                                                                 sums_[2 * static_cast<size_t>(thread) + 1];
    kernels.gemm(c.compute, columns_, d.rank, n,
                 static_cast<const char*>(x[b]) + kernels.packed_bytes(c.compute, n, p0), np, 1.0f,
                 Epilogue::store, p, kBlockLd);
    times_middle(d, middles[b], p, np * kLanes, q);
    kernels.pack(c.compute, q, kBlockLd, d.rank, 0, np,
                 packed_[b] + kernels.packed_bytes(c.compute, d.rank, p0));
  });
}

void SideProduct::add(FactorStrip& strip, int64_t row0, int64_t n_rows, int branch, int64_t panel0,
                      int64_t n_panels, float* out, int64_t ld) const {
  const size_t b = static_cast<size_t>(branch);
  if (!has_[b]) return;
  const VisitContext& c = *context_;
  const Kernels& kernels = *c.kernels;
  const LowRank& d = factors_->direction();
  const int query = d.kind == LowRankKind::uv ? c.branches[b].query : 0;
  if (strip.query != query) {
    const int64_t row_bytes = operand_row_bytes(kernels, c.compute, d.rank);
    constexpr int64_t kRows = 48;
    float rows[kRows * kMaxRank];
    for (int64_t done = 0; done < n_rows; done += kRows) {
      const int64_t k = std::min(kRows, n_rows - done);
      factors_->u_rows(row0 + done, k, c.step, static_cast<uint32_t>(query), rows);
      for (int64_t i = 0; i < k; ++i)
        put_row(kernels, c.compute, rows + i * d.rank, d.rank, strip.memory + (done + i) * row_bytes);
    }
    strip.query = query;
  }
  kernels.gemm(c.compute, strip.memory, n_rows, d.rank,
               packed_[b] + kernels.packed_bytes(c.compute, d.rank, panel0), n_panels, 1.0f, Epilogue::add,
               out, ld);
}

}  // namespace smezo
