#include "model/low_rank_update.h"

#include <algorithm>

#include "base/error.h"

namespace smezo {
namespace {

// Rows of a change made at a time: they stay in the second-level cache.
constexpr int64_t kGivenFloats = 32768;

int64_t panels_of_columns(int64_t cols) { return (cols + kLanes - 1) / kLanes; }
int64_t rows_at_a_time(int64_t cols) {
  return std::max<int64_t>(1, kGivenFloats / (panels_of_columns(cols) * kLanes));
}

// Scratch of the calling thread, aligned; it stays.
float* scratch(int64_t n_floats) {
  static thread_local std::vector<float> memory;
  const size_t wanted = static_cast<size_t>(n_floats) + kStripAlign / sizeof(float);
  if (memory.size() < wanted) memory.resize(wanted);
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((at + kStripAlign - 1) / kStripAlign * kStripAlign);
}

constexpr int64_t kPackPanels = 8;

}  // namespace

std::vector<float> middle_estimate(const LowRank& d, uint64_t run_seed, uint32_t id, uint32_t step,
                                   const std::vector<float>& c) {
  std::vector<float> e(static_cast<size_t>(d.n_middle()), 0.0f);
  for (size_t q = 0; q < c.size(); ++q) {
    const std::vector<float> z = middle_of(d, run_seed, id, step, static_cast<uint32_t>(q));
    for (size_t i = 0; i < e.size(); ++i) e[i] = __builtin_fmaf(c[q], z[i], e[i]);
  }
  return e;
}

void advance_track(const LowRank& d, uint64_t run_seed, uint32_t id, const PendingRecord& r, Track* track) {
  const size_t n = static_cast<size_t>(d.n_middle());
  track->m.resize(n), track->v.resize(n);
  const std::vector<float> e = middle_estimate(d, run_seed, id, r.step, r.c);
  for (size_t i = 0; i < n; ++i) advance_moments(r.rule, e[i], &track->m[i], &track->v[i]);
}

LowRankUpdate::~LowRankUpdate() {
  for (Columns& c : columns_) {
    spare_->give_back(std::move(c.v));
    spare_->give_back(std::move(c.v_squared));
  }
}

size_t LowRankUpdate::columns_of(uint32_t step, ThreadPool& pool, FactorSource& factors, bool squares) {
  const uint32_t epoch = epoch_of(d_, step);
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (columns_[i].factors->epoch() == epoch) return i;
  }
  Columns c;
  c.factors = factors.of(d_, tensor_id_, m_, n_, epoch);
  const int64_t ld = panels_of_columns(n_) * kLanes;
  spare_ = &factors.spare();
  const int64_t n_panels = ld / kLanes, packed_bytes = kernels_.packed_bytes(Compute::f32, d_.rank, n_panels);
  Pages rows = spare_->take(d_.rank * ld * static_cast<int64_t>(sizeof(float)));
  float* const v = static_cast<float*>(rows.get());
  pool.run(d_.rank, [&](int64_t s, int) {
    c.factors->v_column(static_cast<int>(s), v + s * ld);
    std::fill(v + s * ld + n_, v + (s + 1) * ld, 0.0f);
  });
  c.v = spare_->take(packed_bytes);
  if (squares) c.v_squared = spare_->take(packed_bytes);
  pool.run((n_panels + kPackPanels - 1) / kPackPanels, [&](int64_t i, int) {
    const int64_t p0 = i * kPackPanels, np = std::min(kPackPanels, n_panels - p0);
    kernels_.pack(Compute::f32, v, ld, d_.rank, p0, np, c.v.get());
    if (!squares) return;
    for (int s = 0; s < d_.rank; ++s) {
      float* const x = v + s * ld + p0 * kLanes;
      for (int64_t t = 0; t < np * kLanes; ++t) x[t] *= x[t];
    }
    kernels_.pack(Compute::f32, v, ld, d_.rank, p0, np, c.v_squared.get());
  });
  spare_->give_back(std::move(rows));
  columns_.push_back(std::move(c));
  return columns_.size() - 1;
}

// V_old^T V_new / n, [rank, rank] (LOZO-M, section 3.3).
std::vector<float> LowRankUpdate::turn_between(uint32_t before, const Factors& now,
                                               FactorSource& factors) const {
  const std::shared_ptr<const Factors> old = factors.of(d_, tensor_id_, m_, n_, before);
  const size_t n = static_cast<size_t>(n_);
  std::vector<float> x(n), y(n), out;
  for (int s = 0; s < d_.rank; ++s) {
    old->v_column(s, x.data());
    for (int t = 0; t < d_.rank; ++t) {
      now.v_column(t, y.data());
      double sum = 0;
      for (size_t j = 0; j < n; ++j) sum += static_cast<double>(x[j]) * static_cast<double>(y[j]);
      out.push_back(static_cast<float>(sum / static_cast<double>(n_)));
    }
  }
  return out;
}

void LowRankUpdate::add(const PendingRecord& r, ThreadPool& pool, FactorSource& factors, Track* track) {
  const bool adam = r.rule.kind == RuleKind::adam;
  Prepared p;
  p.columns = columns_of(r.step, pool, factors, adam);
  const Factors& now = *columns_[p.columns].factors;
  const float scale = now.scale();
  if (d_.kind == LowRankKind::uv) {
    // Averaged, the queries' share is in the moments, and the step comes after them.
    for (const float c : r.c) p.middle.push_back(r.rule.kind == RuleKind::sgd ? c * scale : c);
    if (r.rule.kind == RuleKind::momentum && r.after > 0 && epoch_of(d_, r.after) != now.epoch())
      p.turn = turn_between(epoch_of(d_, r.after), now, factors);
  } else if (adam) {
    advance_track(d_, run_seed_, tensor_id_, r, track);
    for (size_t i = 0; i < track->m.size(); ++i) {
      p.middle.push_back(scale * track->m[i]);
      p.second.push_back(scale * scale * track->v[i]);
    }
  } else {
    p.middle = middle_estimate(d_, run_seed_, tensor_id_, r.step, r.c);
    for (float& x : p.middle) x *= scale;
  }
  if (d_.kind == LowRankKind::uzv) {
    const int64_t ld = panels_of_columns(d_.rank) * kLanes;
    std::vector<float> rows(static_cast<size_t>(d_.rank * ld), 0.0f);
    for (int s = 0; s < d_.rank; ++s)
      std::copy_n(p.middle.data() + s * d_.rank, d_.rank, rows.data() + s * ld);
    const int64_t n_panels = ld / kLanes;
    p.middle = {};
    p.packed_middle = allocate_pages(kernels_.packed_bytes(Compute::f32, d_.rank, n_panels));
    check<BudgetError>(p.packed_middle != nullptr, "factors", "no memory for what lies between them");
    kernels_.pack(Compute::f32, rows.data(), ld, d_.rank, 0, n_panels, p.packed_middle.get());
  }
  records_.push_back(std::move(p));
}

// Products and sums are rounded apart: an fma is a call where the compiler may not assume one.
void LowRankUpdate::rows_of_uv(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows,
                               float* u, float* first) const {
  const int64_t ld = kernels_.operand_ld(Compute::f32, d_.rank);
  for (size_t q = 0; q < p.middle.size(); ++q) {
    columns_[p.columns].factors->u_rows(row0, n_rows, r.step, static_cast<uint32_t>(q), u);
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int s = 0; s < d_.rank; ++s) first[i * ld + s] += p.middle[q] * u[i * d_.rank + s];
    }
  }
}

// The estimate's rows go into the moments, which give the step's.
void LowRankUpdate::average_rows(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows,
                                 const MomentsOf& moments, float* first) const {
  const int64_t ld = kernels_.operand_ld(Compute::f32, d_.rank);
  const int rank = d_.rank;
  std::vector<float> turned(static_cast<size_t>(rank)), none(turned);
  const float step = r.rule.step * columns_[p.columns].factors->scale();
  for (int64_t i = 0; i < n_rows; ++i) {
    float* const kept = moments(row0 + i, 0);
    float* const m = kept ? kept : none.data();
    if (!p.turn.empty()) {
      std::fill(turned.begin(), turned.end(), 0.0f);
      for (int s = 0; s < rank; ++s) {
        for (int t = 0; t < rank; ++t)
          turned[static_cast<size_t>(t)] += m[s] * p.turn[static_cast<size_t>(s * rank + t)];
      }
      std::copy(turned.begin(), turned.end(), m);
    }
    for (int s = 0; s < rank; ++s) {
      float unused = 0;
      advance_moments(r.rule, first[i * ld + s], &m[s], &unused);
      first[i * ld + s] = step * m[s];
    }
  }
}

void LowRankUpdate::rows_of_uzv(const Prepared& p, int64_t n_rows, const float* u, float* first) const {
  const int64_t ld = kernels_.operand_ld(Compute::f32, d_.rank), rank = d_.rank;
  const int64_t n_panels = panels_of_columns(rank), ldc = n_panels * kLanes;
  std::vector<float> strip(static_cast<size_t>(n_rows * ld), 0.0f), out(static_cast<size_t>(n_rows * ldc));
  for (int64_t i = 0; i < n_rows; ++i) std::copy_n(u + i * rank, rank, strip.data() + i * ld);
  kernels_.exact_gemm({strip.data(), rank, p.packed_middle.get()}, n_rows, n_panels, nullptr, out.data(),
                      ldc);
  for (int64_t i = 0; i < n_rows; ++i) std::copy_n(out.data() + i * ldc, rank, first + i * ld);
}

void LowRankUpdate::rows_of(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows,
                            const MomentsOf& moments, float* first, float* second) const {
  const int64_t ld = kernels_.operand_ld(Compute::f32, d_.rank);
  const int rank = d_.rank;
  std::vector<float> u(static_cast<size_t>(n_rows * rank));
  std::fill_n(first, n_rows * ld, 0.0f);
  if (d_.kind == LowRankKind::uv) {
    rows_of_uv(r, p, row0, n_rows, u.data(), first);
    if (r.rule.kind == RuleKind::momentum) average_rows(r, p, row0, n_rows, moments, first);
    return;
  }
  columns_[p.columns].factors->u_rows(row0, n_rows, r.step, 0, u.data());
  if (d_.kind == LowRankKind::uzv) return rows_of_uzv(p, n_rows, u.data(), first);
  if (second) std::fill_n(second, n_rows * ld, 0.0f);
  for (int64_t i = 0; i < n_rows; ++i) {
    const float* const row = u.data() + i * rank;
    for (int s = 0; s < rank; ++s) {
      first[i * ld + s] = row[s] * p.middle[static_cast<size_t>(s)];
      if (second) second[i * ld + s] = row[s] * row[s] * p.second[static_cast<size_t>(s)];
    }
  }
}

void LowRankUpdate::apply(const UpdateJob& job, const PendingRecord& r, size_t i, int64_t row0,
                          int64_t n_rows, const MomentsOf& moments) const {
  const Prepared& p = records_[i];
  const Columns& columns = columns_[p.columns];
  const int64_t n_panels = panels_of_columns(n_), ldc = n_panels * kLanes;
  const int64_t lda = kernels_.operand_ld(Compute::f32, d_.rank), most = rows_at_a_time(n_);
  const bool adam = r.rule.kind == RuleKind::adam;
  float* const change = scratch(most * (ldc + 2 * lda));
  float *const first_rows = change + most * ldc, *const second_rows = first_rows + most * lda;
  const float one = 1.0f;
  UpdateJob part = job;
  part.rule = r.rule;
  part.rule.kind = RuleKind::sgd;
  part.n_queries = 1, part.c = &one;
  part.given = change, part.ld_given = ldc;
  for (int64_t done = 0; done < n_rows; done += most) {
    const int64_t k = std::min(most, n_rows - done);
    rows_of(r, p, row0 + done, k, moments, first_rows, adam ? second_rows : nullptr);
    kernels_.exact_gemm({first_rows, d_.rank, columns.v.get()}, k, n_panels, nullptr, change, ldc);
    if (adam)
      kernels_.exact_gemm({second_rows, d_.rank, columns.v_squared.get()}, k, n_panels, &r.rule, change, ldc);
    kernels_.apply_update(part, row0 + done, k);
  }
}

int64_t LowRankUpdate::column_bytes(const Kernels& kernels, const LowRank& d, int64_t cols, int n_together) {
  // Two epochs, or one and its squares; and the columns before they are packed. What is used again is as
  // large as the largest.
  return (2 * n_together + 1) *
         whole_pages(kernels.packed_bytes(Compute::f32, d.rank, panels_of_columns(cols)));
}

int64_t LowRankUpdate::bytes(const Kernels& kernels, const LowRank& d, int64_t rows, int64_t cols,
                             int n_records) {
  if (d.kind != LowRankKind::uzv) return 0;
  const int64_t middle = whole_pages(kernels.packed_bytes(Compute::f32, d.rank, panels_of_columns(d.rank)));
  return Factors::kept_bytes(d, rows, cols) + n_records * middle;  // factors of the epoch before
}

int64_t LowRankUpdate::thread_bytes(const LowRank& d, int64_t cols) {
  const int64_t most = rows_at_a_time(cols);
  return most * (panels_of_columns(cols) * kLanes + 3 * d.rank + 2 * kLanes) *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace smezo
