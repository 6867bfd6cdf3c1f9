#include "model/side_product.h"

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "format/half.h"

namespace smezo {
namespace {

constexpr int64_t kBlockPanels = 4, kBlockLd = (kBlockPanels + 1) * kLanes;

int64_t operand_row_bytes(const Kernels& kernels, Compute compute, int64_t k) {
  return kernels.operand_ld(compute, k) * plane_element_bytes(kernels.operand_dtype(compute));
}

// A row of an operand, padded with zeros from k on. is_exact: bf16 numbers, which need no rounding.
void put_row(const Kernels& kernels, Compute compute, const float* values, int64_t k, int64_t ld,
             bool is_exact, char* row) {
  const bool is_float = kernels.operand_dtype(compute) == DType::F32;
  std::memset(row + k * (is_float ? 4 : 2), 0, static_cast<size_t>((ld - k) * (is_float ? 4 : 2)));
  if (is_float) {
    float* const to = reinterpret_cast<float*>(row);
    const bool as_it_is = is_exact || compute == Compute::f32;
    for (int64_t i = 0; i < k; ++i) to[i] = as_it_is ? values[i] : round_bf16(values[i]);
    return;
  }
  uint16_t* const to = reinterpret_cast<uint16_t*>(row);
  if (is_exact) {
    for (int64_t i = 0; i < k; ++i) to[i] = static_cast<uint16_t>(f32_bits(values[i]) >> 16);
  } else {
    for (int64_t i = 0; i < k; ++i) to[i] = f32_to_bf16(values[i]);
  }
}

// out = M p over panels of columns, [rank][kBlockLd]; packed: memory for p.
void times_middle(const Kernels& kernels, const LowRank& d, const std::vector<float>& middle, const float* p,
                  int64_t n_panels, float* packed, float* out) {
  if (d.kind == LowRankKind::uzv) {
    kernels.pack(Compute::f32, p, kBlockLd, d.rank, 0, n_panels, packed);
    kernels.exact_gemm({middle.data(), d.rank, packed}, d.rank, n_panels, nullptr, out, kBlockLd);
    return;
  }
  for (int s = 0; s < d.rank; ++s) {
    const float a = middle[d.kind == LowRankKind::uv ? 0 : static_cast<size_t>(s)];
    for (int64_t i = 0; i < n_panels * kLanes; ++i) out[s * kBlockLd + i] = a * p[s * kBlockLd + i];
  }
}

// [rank][rank] as an operand.
std::vector<float> as_operand(const Kernels& kernels, const std::vector<float>& square, int rank) {
  const int64_t ld = kernels.operand_ld(Compute::f32, rank);
  std::vector<float> out(static_cast<size_t>(rank * ld), 0.0f);
  for (int s = 0; s < rank; ++s) std::copy_n(square.data() + s * rank, rank, out.data() + s * ld);
  return out;
}

}  // namespace

void SideProduct::plan(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                       int64_t n_branches, int n_threads) {
  columns_ = arena_.take<char>(rank * operand_row_bytes(kernels, compute, n));
  packed_.clear(), sums_.clear();
  for (int64_t b = 0; b < n_branches; ++b)
    packed_.push_back(arena_.take<char>(kernels.packed_bytes(compute, rank, n_panels)));
  for (int i = 0; i < 3 * n_threads; ++i) sums_.push_back(arena_.take<float>(rank * kBlockLd));
}

int64_t SideProduct::bytes(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                           int64_t n_branches, int n_threads) {
  SideProduct p;
  p.arena_.begin();
  p.plan(kernels, compute, rank, n, n_panels, n_branches, n_threads);
  return p.arena_.used_bytes();
}

// What is between the factors of a term for a branch, scaled: one number, one a rank, or an operand.
std::vector<float> SideProduct::middle_of_branch(const Term& t, const Branch& b) const {
  const LowRank& d = t.factors->direction();
  const float step = rests_ || !t.moves ? 0.0f : static_cast<float>(b.sign) * b.eps;
  if (t.by_rows()) return {1.0f};
  if (d.kind == LowRankKind::uv) return {step * t.factors->scale()};
  std::vector<float> out(static_cast<size_t>(d.n_middle()), 0.0f);
  if (step != 0) out = t.factors->middle(context_->step, static_cast<uint32_t>(b.query));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = t.factors->scale() * __builtin_fmaf(step, out[i], t.values ? t.values[i] : 0.0f);
  return d.kind == LowRankKind::uzv ? as_operand(*context_->kernels, out, d.rank) : out;
}

// A term for every block, and the direction of this step: in its epoch's term, or (uv: another u) one of its
// own.
void SideProduct::find_terms(uint32_t id, int64_t m, int64_t n) {
  const VisitContext& c = *context_;
  const LowRank& d = (*c.methods)[id].low_rank;
  const Beside* const beside = c.beside ? c.beside(id) : nullptr;
  const bool moves =
      !rests_ && std::any_of(c.branches.begin(), c.branches.end(), [](const Branch& b) { return b.eps > 0; });
  const uint32_t now = epoch_of(d, c.step);
  const auto factors = [&](uint32_t epoch) { return c.factors->of(d, id, m, n, epoch); };
  terms_.clear();
  bool there = false;
  for (uint32_t e = 0; beside && e < static_cast<uint32_t>(beside->n_blocks()); ++e) {
    const bool mine = moves && e == now && d.kind != LowRankKind::uv;
    there |= mine;
    terms_.push_back({factors(e), beside->block(e), mine});
  }
  if (moves && !there) terms_.push_back({factors(now), nullptr, true});
  rank_ = static_cast<int>(terms_.size()) * d.rank;
  const bool always = beside && beside->n_blocks() > 0;
  has_.clear();
  for (const Branch& b : c.branches) has_.push_back(always || (moves && b.eps > 0));
}

void SideProduct::fill_columns(int64_t n) {
  const VisitContext& c = *context_;
  const int rank = terms_[0].factors->direction().rank;
  const int64_t row_bytes = operand_row_bytes(*c.kernels, c.compute, n),
                ld = c.kernels->operand_ld(c.compute, n);
  c.pool->run(rank_, [&](int64_t s, int) {
    std::vector<float> column(static_cast<size_t>(n));
    terms_[static_cast<size_t>(s / rank)].factors->v_column(static_cast<int>(s % rank), column.data());
    put_row(*c.kernels, c.compute, column.data(), n, ld, true, columns_ + s * row_bytes);
  });
}

void SideProduct::prepare(const VisitContext& c, uint32_t id, int64_t m, int64_t n,
                          const std::vector<void*>& x, int64_t n_panels) {
  context_ = &c;
  id_ = id;
  rests_ = c.rests((*c.methods)[id]);
  find_terms(id, m, n);
  if (terms_.empty()) return;

  const Kernels& kernels = *c.kernels;
  const int64_t n_branches = static_cast<int64_t>(c.branches.size());
  arena_.begin();
  plan(kernels, c.compute, rank_, n, n_panels, n_branches, c.pool->size());
  arena_.commit();
  plan(kernels, c.compute, rank_, n, n_panels, n_branches, c.pool->size());
  fill_columns(n);
  std::vector<std::vector<std::vector<float>>> middles;  // [branch][term]
  for (const Branch& b : c.branches) {
    middles.emplace_back();
    for (const Term& t : terms_) middles.back().push_back(middle_of_branch(t, b));
  }
  const int64_t n_blocks = (n_panels + kBlockPanels - 1) / kBlockPanels;
  c.pool->run(n_branches * n_blocks, [&](int64_t item, int thread) {
    const size_t b = static_cast<size_t>(item / n_blocks), mine = 3 * static_cast<size_t>(thread);
    if (!has_[b]) return;
    const int64_t p0 = item % n_blocks * kBlockPanels, np = std::min(kBlockPanels, n_panels - p0);
    float *const p = sums_[mine], *const q = sums_[mine + 1], *const packed = sums_[mine + 2];
    const char* const from = static_cast<const char*>(x[b]) + kernels.packed_bytes(c.compute, n, p0);
    kernels.gemm(c.compute, {columns_, n, from}, {}, rank_, np, 1.0f, Epilogue::store, p, kBlockLd);
    for (size_t t = 0; t < terms_.size(); ++t) {
      const LowRank& d = terms_[t].factors->direction();
      const int64_t at = static_cast<int64_t>(t) * d.rank * kBlockLd;
      times_middle(kernels, d, middles[b][t], p + at, np, packed, q + at);
    }
    kernels.pack(c.compute, q, kBlockLd, rank_, 0, np,
                 packed_[b] + kernels.packed_bytes(c.compute, rank_, p0));
  });
}

// u of all terms side by side.
void SideProduct::make_rows(FactorStrip& strip, int64_t row0, int64_t n_rows, int query) const {
  const VisitContext& c = *context_;
  const int64_t row_bytes = operand_row_bytes(*c.kernels, c.compute, rank_),
                ld = c.kernels->operand_ld(c.compute, rank_);
  const int rank = terms_[0].factors->direction().rank;
  const size_t size = static_cast<size_t>(n_rows * rank);
  std::vector<float> rows(static_cast<size_t>(n_rows * rank_)), u(size);
  bool is_exact = true;
  for (size_t t = 0; t < terms_.size(); ++t) {
    const float* from = u.data();
    if (terms_[t].by_rows())
      from = terms_[t].values + row0 * rank, is_exact = false;
    else
      terms_[t].factors->u_rows(row0, n_rows, c.step, static_cast<uint32_t>(query), u.data());
    for (int64_t i = 0; i < n_rows; ++i)
      std::copy_n(from + i * rank, rank, rows.data() + i * rank_ + static_cast<int64_t>(t) * rank);
  }
  for (int64_t i = 0; i < n_rows; ++i)
    put_row(*c.kernels, c.compute, rows.data() + i * rank_, rank_, ld, is_exact,
            strip.memory + i * row_bytes);
  strip.query = query;
}

Terms SideProduct::terms(FactorStrip& strip, int64_t row0, int64_t n_rows, int branch, int64_t panel0) const {
  const size_t b = static_cast<size_t>(branch);
  if (!has_[b]) return {};
  const VisitContext& c = *context_;
  const bool by_query = terms_.back().moves && terms_[0].factors->direction().kind == LowRankKind::uv;
  const int query = by_query ? c.branches[b].query : 0;
  if (strip.query != query) make_rows(strip, row0, n_rows, query);
  return {strip.memory, rank_, packed_[b] + c.kernels->packed_bytes(c.compute, rank_, panel0)};
}

}  // namespace smezo
