#include "model/catch_up.h"

#include <algorithm>

#include "base/error.h"

namespace smezo {
namespace {

void check_writable(const WeightView& w, const IndexOverlay* overlay) {
  // The kernels cannot throw (no shared symbols in an instruction set's object), so what they would ignore is
  // refused here.
  check<ArgumentError>(overlay || (w.writable && holds_trained(w.dtype)), "record",
                       "tensor " + std::to_string(w.tensor_id) +
                           " is not a working copy, expected one; the base is never written");
}

}  // namespace

CatchUp::CatchUp(const Tensor& tensor, std::span<const PendingRecord> records, const Kernels& kernels,
                 ThreadPool& pool, FactorSource& factors, Track track) {
  const auto work = std::make_shared<Work>(Work{tensor, &kernels, {}, nullptr});
  for (const PendingRecord& r : records) {
    if (!r.skips(*tensor.method)) work->records.push_back(r);
  }
  work_ = work;
  if (!tensor.method->low_rank) return;
  work->low_rank = std::make_unique<LowRankUpdate>(tensor.method->low_rank, tensor.run_seed, tensor.id,
                                                   tensor.rows, tensor.cols, kernels);
  for (const PendingRecord& r : work->records) work->low_rank->add(r, pool, factors, &track);
}

void CatchUp::apply(const WeightView& w, IndexOverlay* overlay, int64_t row0, int64_t n_rows) const {
  if (empty()) return;
  check_writable(w, overlay);
  const auto& [tensor, kernels, records, low_rank] = *work_;
  const TensorMethod& method = *tensor.method;
  std::vector<PastRecord> past;
  for (size_t i = 0; i < records.size(); ++i) {
    const PendingRecord& r = records[i];
    UpdateJob job;
    job.w = w;
    job.dir = direction_of(method, tensor.id, tensor.run_seed, r.step, 0);
    job.decay = tensor.rows > 1 ? r.decay : 0.0f;
    if (method.low_rank) {
      low_rank->apply(job, r, i, row0, n_rows, tensor.moments);
      continue;
    }
    job.n_queries = static_cast<int>(r.c.size());
    job.c = r.c.data();
    job.rule = r.rule;
    for (int k = 0; k < 2; ++k) {
      float* const kept = tensor.moments(row0, k);
      job.moments[k] = kept && !overlay ? kept - (row0 * w.cols - w.first) : kept;
    }
    past.clear();
    for (const PastScalars& p : r.past) past.push_back({p.step, p.c.data()});
    job.past = past.data();
    job.n_past = static_cast<int>(past.size());
    if (overlay) {
      update_overlay(*overlay, job, row0, n_rows);
    } else {
      kernels->apply_update(job, row0, n_rows);
    }
  }
}

void CatchUp::apply_all(Store& store, ThreadPool& pool) const {
  if (empty()) return;
  const uint32_t id = work_->tensor.id;
  IndexOverlay* const overlay = store.overlay(id);
  const WeightView w = overlay ? store.shape(id) : store.weight(id);
  const int64_t strip = std::max<int64_t>(1, 32768 / w.cols);
  const int64_t n_strips = (w.rows + strip - 1) / strip;
  pool.run(n_strips, [&](int64_t i, int) {
    const int64_t row0 = i * strip;
    apply(w, overlay, row0, std::min(strip, w.rows - row0));
  });
}

}  // namespace smezo
