// Committed records of a low-rank method on the rows of a working copy. A record takes off the product of a
// few numbers a row and the columns of v, made for some rows at a time by exact_gemm.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/spare_pages.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/factors.h"
#include "model/model.h"

namespace smezo {

// Where the numbers begin that the rule keeps of a row (of an index set: all of them); null: none.
using MomentsOf = std::function<float*(int64_t row, int k)>;

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

class LowRankUpdate {
 public:
  LowRankUpdate(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, int64_t m, int64_t n,
                const Kernels& kernels)
      : d_(d), run_seed_(run_seed), tensor_id_(tensor_id), m_(m), n_(n), kernels_(kernels) {}
  ~LowRankUpdate();
  LowRankUpdate(const LowRankUpdate&) = delete;
  LowRankUpdate& operator=(const LowRankUpdate&) = delete;

  // The next record. Makes its factors; not inside a parallel region. track: before it, and then after it.
  void add(const PendingRecord& r, ThreadPool& pool, FactorSource& factors, Track* track);
  // Record number i, r, on rows [row0, row0 + n_rows). job: the weight, the direction's stream, the decay.
  void apply(const UpdateJob& job, const PendingRecord& r, size_t i, int64_t row0, int64_t n_rows,
             const MomentsOf& moments) const;

  // Bytes of packed columns that n_together such take, of n_records beside them, and of a thread's scratch.
  static int64_t column_bytes(const Kernels& kernels, const LowRank& d, int64_t cols, int n_together);
  static int64_t bytes(const Kernels& kernels, const LowRank& d, int64_t rows, int64_t cols, int n_records);
  static int64_t thread_bytes(const LowRank& d, int64_t cols);

 private:
  // v of an epoch as packed activations of `rank` features and a token a column, and its squares.
  struct Columns {
    std::shared_ptr<const Factors> factors;
    Pages v, v_squared;
  };
  struct Prepared {
    size_t columns;
    std::vector<float> middle;  // scaled: of the step; kind uv: lr c_q, one a query
    Pages packed_middle;        // uzv: as packed activations
    std::vector<float> second;  // scaled: of the second moment
    std::vector<float> turn;    // uv with moments: [rank, rank] that takes them to a new epoch; empty: none
  };
  size_t columns_of(uint32_t step, ThreadPool& pool, FactorSource& factors, bool squares);
  std::vector<float> turn_between(uint32_t before, const Factors& now, FactorSource& factors) const;
  // Numbers of rows that are multiplied by v, [n_rows][operand_ld(rank)], and of those that are by its
  // squares.
  void rows_of(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows,
               const MomentsOf& moments, float* first, float* second) const;
  void rows_of_uv(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows, float* u,
                  float* first) const;
  void average_rows(const PendingRecord& r, const Prepared& p, int64_t row0, int64_t n_rows,
                    const MomentsOf& moments, float* first) const;
  void rows_of_uzv(const Prepared& p, int64_t n_rows, const float* u, float* first) const;

  LowRank d_;
  uint64_t run_seed_;
  uint32_t tensor_id_;
  int64_t m_, n_;
  const Kernels& kernels_;
  SparePages* spare_ = nullptr;  // where packed columns come from and go
  std::vector<Columns> columns_;
  std::vector<Prepared> records_;
};

}  // namespace smezo
