// How large the buffers of a forward are: arithmetic on a config, kernels and a batch, no weight is needed.
#pragma once
#include <cstdint>

#include "direction/low_rank.h"
#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/config.h"

namespace smezo {

// What sizes depend on beside the config and the batch.
struct ForwardShape {
  const Kernels* kernels = nullptr;
  Compute compute = Compute::bf16;
  int64_t n_branches = 1;
  int n_threads = 1;
  // What a row of the embedding is read into (Store::rows); 0: it is at hand.
  int64_t row_bytes = 0;
  LowRank low_rank;                 // of what trains
  int most_rank = 0;                // with what may lie beside the base
  bool updates_by_factors = false;  // low rank, and its records change working copies
  int n_waiting = 1;                // records that a visit has to apply, at most
};

constexpr int64_t kGatedPanels = 16;
constexpr int64_t kGatedLd = (kGatedPanels + 1) * kLanes;  // not a power of two: rows on different cache sets

// Bytes of scratch a thread needs for strips with k columns, and the rows of such a strip: at most 256 KiB of
// operands of both signs.
class StripSizes {
 public:
  StripSizes(const Kernels& kernels, Compute compute) : kernels_(kernels), compute_(compute) {}
  int64_t row_bytes(Compute compute, int64_t k) const;
  int64_t rows(int64_t k) const;
  int64_t bytes(int64_t k) const;
  int64_t gated_bytes(int64_t k) const;
  int64_t embed_bytes(int64_t d) const;

 private:
  const Kernels& kernels_;
  Compute compute_;
};

// Bytes that a forward takes beside the store: activations and scratch, rotary tables, rows of the embedding,
// values. left_bytes: of buffers and tables that an earlier batch has left.
int64_t forward_bytes(const ModelConfig& config, const Batch& batch, const ForwardShape& shape,
                      bool want_logits, int64_t left_bytes = 0);
// Of the values alone (ForwardResult).
int64_t value_bytes(const ModelConfig& config, const Batch& batch, int64_t n_branches, bool want_logits);

}  // namespace smezo
