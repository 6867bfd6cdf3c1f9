// Applying committed records to stored weights: the only writer of a working copy after it was opened (I1).
#pragma once
#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/model.h"

namespace smezo {

// The direction of one tensor at one step and query.
inline TensorDirection direction_of(const TensorMethod& m, uint32_t tensor_id, uint64_t run_seed,
                                    uint32_t step, uint32_t query) {
  TensorDirection d;
  d.noise = m.noise;
  d.mask = m.mask;
  d.stream = {run_seed, step, query, Purpose::direction, tensor_id};
  return d;
}

// All records, oldest first, on rows [row0, row0 + n_rows): a strip stays in cache while they are applied.
// With an overlay its values are what is written, and w tells shape and id only. Weight decay moves matrices
// only, as in MeZO's code: norms and biases (rows == 1) are left alone.
void catch_up_rows(const WeightView& w, IndexOverlay* overlay, const TensorMethod& method, uint64_t run_seed,
                   const std::vector<PendingRecord>& records, const Kernels& kernels, int64_t row0,
                   int64_t n_rows);

// The same for a whole tensor of the store, rows split over the pool.
void catch_up_tensor(Store& store, uint32_t tensor_id, const TensorMethod& method, uint64_t run_seed,
                     const std::vector<PendingRecord>& records, const Kernels& kernels, ThreadPool& pool);

}  // namespace smezo
