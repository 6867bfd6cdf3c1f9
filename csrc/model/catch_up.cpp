#include "model/catch_up.h"

#include <algorithm>

#include "base/error.h"

namespace smezo {

void catch_up_rows(const WeightView& w, IndexOverlay* overlay, const TensorMethod& method, uint64_t run_seed,
                   const std::vector<PendingRecord>& records, const Kernels& kernels, int64_t row0,
                   int64_t n_rows) {
  // The kernels cannot throw (no shared symbols in an instruction set's object), so what they would ignore is
  // refused here.
  check<ArgumentError>(overlay || (w.writable && holds_trained(w.dtype)), "record",
                       "tensor " + std::to_string(w.tensor_id) +
                           " is not a working copy, expected one; the base is never written");
  for (const PendingRecord& r : records) {
    UpdateJob job;
    job.w = w;
    job.dir = direction_of(method, w.tensor_id, run_seed, r.step, 0);
    job.decay = w.rows > 1 ? r.decay : 0.0f;
    job.n_queries = static_cast<int>(r.c.size());
    job.c = r.c.data();
    if (overlay) {
      update_overlay(*overlay, job, row0, n_rows);
    } else {
      kernels.apply_update(job, row0, n_rows);
    }
  }
}

void catch_up_tensor(Store& store, uint32_t id, const TensorMethod& method, uint64_t run_seed,
                     const std::vector<PendingRecord>& records, const Kernels& kernels, ThreadPool& pool) {
  IndexOverlay* const overlay = store.overlay(id);
  const WeightView w = overlay ? store.shape(id) : store.weight(id);
  const int64_t strip = std::max<int64_t>(1, 32768 / w.cols);
  const int64_t n_strips = (w.rows + strip - 1) / strip;
  pool.run(n_strips, [&](int64_t i, int) {
    const int64_t row0 = i * strip;
    catch_up_rows(w, overlay, method, run_seed, records, kernels, row0, std::min(strip, w.rows - row0));
  });
}

}  // namespace smezo
