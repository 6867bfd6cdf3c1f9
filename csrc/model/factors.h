// The factors of low-rank directions (direction/low_rank.h), made when they are asked for. Orthonormal ones
// take long to make: those of a tensor's newest epoch are kept, two bytes an element.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/spare_pages.h"
#include "base/threads.h"
#include "direction/low_rank.h"
#include "kernels/kernels.h"

namespace smezo {

// u and v of one tensor [m, n] at one epoch.
class Factors {
 public:
  Factors(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, int64_t m, int64_t n, uint32_t epoch,
          const Kernels& kernels, ThreadPool& pool);

  const LowRank& direction() const { return d_; }
  uint32_t epoch() const { return epoch_; }
  int64_t n() const { return n_; }
  float scale() const { return scale_of(d_, m_, n_); }
  // Column s of v, [n].
  void v_column(int s, float* out) const;
  // Rows of u, [n_rows][rank]; step and query count for kind uv alone.
  void u_rows(int64_t row0, int64_t n_rows, uint32_t step, uint32_t query, float* out) const;
  std::vector<float> middle(uint32_t step, uint32_t query) const {
    return middle_of(d_, run_seed_, tensor_id_, step, query);
  }
  // What such factors keep.
  static int64_t kept_bytes(const LowRank& d, int64_t m, int64_t n) {
    return d.kind == LowRankKind::uzv ? whole_pages(d.rank * m * 2) + whole_pages(d.rank * n * 2) : 0;
  }
  // What making them takes beside.
  static int64_t making_bytes(const LowRank& d, int64_t m, int64_t n) {
    return d.kind == LowRankKind::uzv ? whole_pages(d.rank * m * 8) + whole_pages(d.rank * n * 8) : 0;
  }

 private:
  void to_bf16_numbers(float* values, int64_t n) const;

  LowRank d_;
  uint64_t run_seed_;
  uint32_t tensor_id_;
  int64_t m_, n_;
  uint32_t epoch_;
  const Kernels* kernels_;
  Pages u_, v_;  // uzv: bf16, u by rows, v by columns
};

class FactorSource {
 public:
  // keeps_all: every epoch's stay, not only the newest.
  FactorSource(uint64_t run_seed, const Kernels& kernels, ThreadPool& pool, bool keeps_all)
      : run_seed_(run_seed), kernels_(kernels), pool_(pool), keeps_all_(keeps_all) {}
  // For what is packed of factors, tensor after tensor.
  SparePages& spare() { return spare_; }
  void forget() { kept_.clear(); }
  // Not inside a parallel region.
  std::shared_ptr<const Factors> of(const LowRank& d, uint32_t tensor_id, int64_t m, int64_t n,
                                    uint32_t epoch);

 private:
  uint64_t run_seed_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  bool keeps_all_;
  SparePages spare_;
  std::map<std::pair<uint32_t, uint32_t>, std::shared_ptr<const Factors>> kept_;  // by tensor and epoch
};

}  // namespace smezo
