// Applying committed records to stored weights: the only writer of a working copy after it was opened (I1).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/factors.h"
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

// Moments of the numbers between a tensor's factors, after some records.
struct Track {
  std::vector<float> m, v;
};
// e = sum over queries of c_q times what lies between the factors at that query.
std::vector<float> middle_estimate(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, uint32_t step,
                                   const std::vector<float>& c);
// The track after one more record. An empty one begins.
void advance_track(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, const PendingRecord& record,
                   Track* track);

// Records on their way to one tensor's rows.
class CatchUp {
 public:
  struct Tensor {
    const TensorMethod* method;
    uint32_t id;
    int64_t rows, cols;
    uint64_t run_seed;
    // Where the numbers begin that the rule keeps of a row (of an index set: all of them); null: none.
    std::function<float*(int64_t row, int k)> moments = [](int64_t, int) -> float* { return nullptr; };
  };

  CatchUp() = default;
  // Those of `records`, oldest first, that the tensor takes part in. track: before the first of them. Makes
  // factors; not inside a parallel region.
  CatchUp(const Tensor& tensor, const std::vector<PendingRecord>& records, const Kernels& kernels,
          ThreadPool& pool, FactorSource& factors, Track track = {});

  bool empty() const { return records_.empty(); }
  // All records on rows [row0, row0 + n_rows), any thread: a strip stays in cache meanwhile. With an overlay
  // its values are what is written, and w tells shape and id only. Weight decay moves matrices only, as in
  // MeZO's code: norms and biases (rows == 1) are left alone.
  void apply(const WeightView& w, IndexOverlay* overlay, int64_t row0, int64_t n_rows) const;
  // The same for a whole tensor of the store, rows split over the pool.
  void apply_all(Store& store, ThreadPool& pool) const;

  // Bytes of factors that records of two epochs take, and of a thread's scratch.
  static int64_t bytes(const Kernels& kernels, const LowRank& d, int64_t cols);
  static int64_t thread_bytes(const LowRank& d, int64_t cols);

 private:
  // v of an epoch as packed activations of `rank` features and a token a column, and its squares.
  struct Columns {
    std::shared_ptr<const Factors> factors;
    Pages v, v_squared;
  };
  struct LowRankRecord {
    size_t columns;
    std::vector<float> middle;  // scaled: of the step; kind uv: lr c_q, one a query
    Pages packed_middle;        // uzv: as packed activations
    std::vector<float> second;  // scaled: of the second moment
    std::vector<float> turn;    // uv with moments: [rank, rank] that takes them to a new epoch; empty: none
  };
  size_t columns_of(uint32_t step, const Kernels& kernels, ThreadPool& pool, FactorSource& factors,
                    bool squares);
  void add_low_rank(const PendingRecord& r, ThreadPool& pool, FactorSource& factors, Track* track);
  void apply_low_rank(const UpdateJob& job, const PendingRecord& r, const LowRankRecord& l, int64_t row0,
                      int64_t n_rows) const;
  void row_factors(const PendingRecord& r, const LowRankRecord& l, int64_t row0, int64_t n_rows, float* first,
                   float* second) const;

  Tensor tensor_{};
  const Kernels* kernels_ = nullptr;
  std::vector<PendingRecord> records_;
  std::vector<Columns> columns_;
  std::vector<LowRankRecord> low_rank_;  // one a record
};

}  // namespace smezo
