#include "model/catch_up.h"

#include <algorithm>
#include <cmath>

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

Pages pack_columns(const Kernels& kernels, const std::vector<float>& v, int rank, int64_t ld) {
  const int64_t n_panels = ld / kLanes;
  Pages out = allocate_pages(kernels.packed_bytes(Compute::f32, rank, n_panels));
  check<BudgetError>(out != nullptr, "factors", "no memory for the factors of a tensor");
  kernels.pack(Compute::f32, v.data(), ld, rank, 0, n_panels, out.get());
  return out;
}

void check_writable(const WeightView& w, const IndexOverlay* overlay) {
  // The kernels cannot throw (no shared symbols in an instruction set's object), so what they would ignore is
  // refused here.
  check<ArgumentError>(overlay || (w.writable && holds_trained(w.dtype)), "record",
                       "tensor " + std::to_string(w.tensor_id) +
                           " is not a working copy, expected one; the base is never written");
}

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

CatchUp::CatchUp(const Tensor& tensor, const std::vector<PendingRecord>& records, const Kernels& kernels,
                 ThreadPool& pool, FactorSource& factors, Track track)
    : tensor_(tensor), kernels_(&kernels) {
  for (const PendingRecord& r : records) {
    if (!r.skips(*tensor.method)) records_.push_back(r);
  }
  if (!tensor.method->low_rank) return;
  for (const PendingRecord& r : records_) add_low_rank(r, pool, factors, &track);
}

size_t CatchUp::columns_of(uint32_t step, const Kernels& kernels, ThreadPool& pool, FactorSource& factors,
                           bool squares) {
  const LowRank& d = tensor_.method->low_rank;
  const uint32_t epoch = epoch_of(d, step);
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (columns_[i].factors->epoch() == epoch) return i;
  }
  Columns c;
  c.factors = factors.of(d, tensor_.id, tensor_.rows, tensor_.cols, epoch);
  const int64_t ld = panels_of_columns(tensor_.cols) * kLanes;
  std::vector<float> v(static_cast<size_t>(d.rank * ld));
  pool.run(d.rank, [&](int64_t s, int) { c.factors->v_column(static_cast<int>(s), v.data() + s * ld); });
  c.v = pack_columns(kernels, v, d.rank, ld);
  if (squares) {
    for (float& x : v) x *= x;
    c.v_squared = pack_columns(kernels, v, d.rank, ld);
  }
  columns_.push_back(std::move(c));
  return columns_.size() - 1;
}

void CatchUp::add_low_rank(const PendingRecord& r, ThreadPool& pool, FactorSource& factors, Track* track) {
  const LowRank& d = tensor_.method->low_rank;
  const bool adam = r.rule.kind == RuleKind::adam;
  LowRankRecord out;
  out.columns = columns_of(r.step, *kernels_, pool, factors, adam);
  const float scale = columns_[out.columns].factors->scale();
  if (d.kind == LowRankKind::uv) {
    // Averaged, the queries' share is in the moments, and the step comes after them.
    for (const float c : r.c) out.middle.push_back(r.rule.kind == RuleKind::sgd ? c * scale : c);
    if (r.rule.kind == RuleKind::momentum && r.after > 0 && epoch_of(d, r.after) != epoch_of(d, r.step)) {
      const size_t n = static_cast<size_t>(tensor_.cols);
      const std::shared_ptr<const Factors> old =
          factors.of(d, tensor_.id, tensor_.rows, tensor_.cols, epoch_of(d, r.after));
      std::vector<float> before(n), now(n);
      out.turn.resize(static_cast<size_t>(d.rank * d.rank));
      for (int s = 0; s < d.rank; ++s) {
        old->v_column(s, before.data());
        for (int t = 0; t < d.rank; ++t) {
          columns_[out.columns].factors->v_column(t, now.data());
          double sum = 0;
          for (size_t j = 0; j < n; ++j) sum += static_cast<double>(before[j]) * static_cast<double>(now[j]);
          out.turn[static_cast<size_t>(s * d.rank + t)] = static_cast<float>(sum / static_cast<double>(n));
        }
      }
    }
  } else if (adam) {
    advance_track(d, tensor_.run_seed, tensor_.id, r, track);
    for (size_t i = 0; i < track->m.size(); ++i) {
      out.middle.push_back(scale * track->m[i]);
      out.second.push_back(scale * scale * track->v[i]);
    }
  } else {
    out.middle = middle_estimate(d, tensor_.run_seed, tensor_.id, r.step, r.c);
    for (float& x : out.middle) x *= scale;
    if (d.kind == LowRankKind::uzv) {
      const int64_t ld = panels_of_columns(d.rank) * kLanes;
      std::vector<float> rows(static_cast<size_t>(d.rank * ld), 0.0f);
      for (int s = 0; s < d.rank; ++s)
        std::copy_n(out.middle.data() + s * d.rank, d.rank, rows.data() + s * ld);
      out.packed_middle = pack_columns(*kernels_, rows, d.rank, ld);
    }
  }
  low_rank_.push_back(std::move(out));
}

// Rows of what is multiplied by v, [n_rows][operand_ld(rank)], and of what is by its squares. Products and
// sums are rounded apart: an fma is a call where the compiler may not assume one.
void CatchUp::row_factors(const PendingRecord& r, const LowRankRecord& l, int64_t row0, int64_t n_rows,
                          float* first, float* second) const {
  const LowRank& d = tensor_.method->low_rank;
  const Factors& factors = *columns_[l.columns].factors;
  const int64_t ld = kernels_->operand_ld(Compute::f32, d.rank);
  const int rank = d.rank;
  std::vector<float> u(static_cast<size_t>(n_rows * rank));
  std::fill_n(first, n_rows * ld, 0.0f);
  if (d.kind == LowRankKind::uv) {
    for (size_t q = 0; q < l.middle.size(); ++q) {
      factors.u_rows(row0, n_rows, r.step, static_cast<uint32_t>(q), u.data());
      for (int64_t i = 0; i < n_rows; ++i) {
        for (int s = 0; s < rank; ++s)
          first[i * ld + s] += l.middle[q] * u[static_cast<size_t>(i * rank + s)];
      }
    }
    if (r.rule.kind != RuleKind::momentum) return;
    std::vector<float> turned(static_cast<size_t>(rank)), none(turned);
    const float step = r.rule.step * factors.scale();
    for (int64_t i = 0; i < n_rows; ++i) {
      float* const kept = tensor_.moments(row0 + i, 0);
      float* const m = kept ? kept : none.data();
      if (!l.turn.empty()) {
        std::fill(turned.begin(), turned.end(), 0.0f);
        for (int s = 0; s < rank; ++s) {
          for (int t = 0; t < rank; ++t)
            turned[static_cast<size_t>(t)] += m[s] * l.turn[static_cast<size_t>(s * rank + t)];
        }
        std::copy(turned.begin(), turned.end(), m);
      }
      for (int s = 0; s < rank; ++s) {
        float unused = 0;
        advance_moments(r.rule, first[i * ld + s], &m[s], &unused);
        first[i * ld + s] = step * m[s];
      }
    }
    return;
  }
  factors.u_rows(row0, n_rows, r.step, 0, u.data());
  if (d.kind == LowRankKind::uzv) {
    const int64_t n_panels = panels_of_columns(rank), ldc = n_panels * kLanes;
    std::vector<float> strip(static_cast<size_t>(n_rows * ld), 0.0f), out(static_cast<size_t>(n_rows * ldc));
    for (int64_t i = 0; i < n_rows; ++i) std::copy_n(u.data() + i * rank, rank, strip.data() + i * ld);
    kernels_->exact_gemm(strip.data(), n_rows, rank, l.packed_middle.get(), n_panels, out.data(), ldc);
    for (int64_t i = 0; i < n_rows; ++i) std::copy_n(out.data() + i * ldc, rank, first + i * ld);
    return;
  }
  if (second) std::fill_n(second, n_rows * ld, 0.0f);
  for (int64_t i = 0; i < n_rows; ++i) {
    const float* const row = u.data() + i * rank;
    for (int s = 0; s < rank; ++s) {
      first[i * ld + s] = row[s] * l.middle[static_cast<size_t>(s)];
      if (second) second[i * ld + s] = row[s] * row[s] * l.second[static_cast<size_t>(s)];
    }
  }
}

void CatchUp::apply_low_rank(const UpdateJob& job, const PendingRecord& r, const LowRankRecord& l,
                             int64_t row0, int64_t n_rows) const {
  const Columns& columns = columns_[l.columns];
  const int rank = tensor_.method->low_rank.rank;
  const int64_t n_panels = panels_of_columns(tensor_.cols), ldc = n_panels * kLanes;
  const int64_t lda = kernels_->operand_ld(Compute::f32, rank), most = rows_at_a_time(tensor_.cols);
  const bool adam = r.rule.kind == RuleKind::adam;
  float* const change = scratch(2 * most * (ldc + lda));
  float *const second = change + most * ldc, *const first_rows = second + most * ldc,
               *const second_rows = first_rows + most * lda;
  for (int64_t done = 0; done < n_rows; done += most) {
    const int64_t k = std::min(most, n_rows - done);
    row_factors(r, l, row0 + done, k, first_rows, adam ? second_rows : nullptr);
    const auto product = [&](const float* rows, const Pages& v, float* out) {
      kernels_->exact_gemm(rows, k, rank, v.get(), n_panels, out, ldc);
    };
    product(first_rows, columns.v, change);
    if (adam) {
      product(second_rows, columns.v_squared, second);
    }
    UpdateJob part = job;
    const float one = 1.0f;
    part.rule = r.rule;
    part.rule.kind = RuleKind::sgd;
    part.given_second = adam ? second : nullptr;
    part.n_queries = 1;
    part.c = &one;
    part.given = change;
    part.ld_given = ldc;
    kernels_->apply_update(part, row0 + done, k);
  }
}

void CatchUp::apply(const WeightView& w, IndexOverlay* overlay, int64_t row0, int64_t n_rows) const {
  if (records_.empty()) return;
  check_writable(w, overlay);
  const TensorMethod& method = *tensor_.method;
  std::vector<PastRecord> past;
  for (size_t i = 0; i < records_.size(); ++i) {
    const PendingRecord& r = records_[i];
    UpdateJob job;
    job.w = w;
    job.dir = direction_of(method, tensor_.id, tensor_.run_seed, r.step, 0);
    job.decay = tensor_.rows > 1 ? r.decay : 0.0f;
    if (method.low_rank) {
      apply_low_rank(job, r, low_rank_[i], row0, n_rows);
      continue;
    }
    job.n_queries = static_cast<int>(r.c.size());
    job.c = r.c.data();
    job.rule = r.rule;
    for (int k = 0; k < 2; ++k) {
      float* const kept = tensor_.moments(row0, k);
      job.moments[k] = kept && !overlay ? kept - (row0 * w.cols - w.first) : kept;
    }
    past.clear();
    for (const PastScalars& p : r.past) past.push_back({p.step, p.c.data()});
    job.past = past.data();
    job.n_past = static_cast<int>(past.size());
    if (overlay) {
      update_overlay(*overlay, job, row0, n_rows);
    } else {
      kernels_->apply_update(job, row0, n_rows);
    }
  }
}

void CatchUp::apply_all(Store& store, ThreadPool& pool) const {
  if (records_.empty()) return;
  IndexOverlay* const overlay = store.overlay(tensor_.id);
  const WeightView w = overlay ? store.shape(tensor_.id) : store.weight(tensor_.id);
  const int64_t strip = std::max<int64_t>(1, 32768 / w.cols);
  const int64_t n_strips = (w.rows + strip - 1) / strip;
  pool.run(n_strips, [&](int64_t i, int) {
    const int64_t row0 = i * strip;
    apply(w, overlay, row0, std::min(strip, w.rows - row0));
  });
}

int64_t CatchUp::bytes(const Kernels& kernels, const LowRank& d, int64_t cols) {
  // Two epochs; squares; and the columns before they are packed.
  return 5 * whole_pages(kernels.packed_bytes(Compute::f32, d.rank, panels_of_columns(cols)));
}

int64_t CatchUp::thread_bytes(const LowRank& d, int64_t cols) {
  const int64_t most = rows_at_a_time(cols);
  return 2 * most * (panels_of_columns(cols) * kLanes + d.rank + kLanes) *
             static_cast<int64_t>(sizeof(float)) +
         most * d.rank * static_cast<int64_t>(sizeof(float));
}

}  // namespace smezo
