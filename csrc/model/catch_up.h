// Applying committed records to stored weights: the only writer of a working copy after it was opened (I1).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/low_rank_update.h"
#include "model/model.h"
#include "store/store.h"

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

// Records on their way to one tensor's rows. A copy is the same records and factors: units of a tensor share
// them.
class CatchUp {
 public:
  struct Tensor {
    const TensorMethod* method;
    uint32_t id;
    int64_t rows, cols;
    uint64_t run_seed;
    MomentsOf moments = [](int64_t, int) -> float* { return nullptr; };
  };

  CatchUp() = default;
  // Those of `records`, oldest first, that the tensor takes part in. track: before the first of them. Makes
  // factors; not inside a parallel region.
  CatchUp(const Tensor& tensor, std::span<const PendingRecord> records, const Kernels& kernels,
          ThreadPool& pool, FactorSource& factors, Track track = {});

  bool empty() const { return !work_ || work_->records.empty(); }
  // All records on rows [row0, row0 + n_rows), any thread: a strip stays in cache meanwhile. With an overlay
  // its values are what is written, and w tells shape and id only. Weight decay moves matrices only, as in
  // MeZO's code: norms and biases (rows == 1) are left alone.
  void apply(const WeightView& w, IndexOverlay* overlay, int64_t row0, int64_t n_rows) const;
  // The same for a whole tensor of the store, rows split over the pool.
  void apply_all(Store& store, ThreadPool& pool) const;

 private:
  struct Work {
    Tensor tensor;
    const Kernels* kernels;
    std::vector<PendingRecord> records;
    std::unique_ptr<LowRankUpdate> low_rank;  // of all of them, in their order
  };
  std::shared_ptr<const Work> work_;
};

}  // namespace smezo
