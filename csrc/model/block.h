// One decoder block of the llama family, all branches, over the packed tokens.
#pragma once
#include "model/linear.h"
#include "model/workspace.h"

namespace smezo {

struct Forward {
  const ModelConfig& config;
  const VisitContext& context;
  const Batch& batch;
  Weights& weights;
  Workspace& work;
  PartTimes& times;
  int n_branches() const { return weights.n_branches(); }
};

// RMS norm of x over panels [0, n_panels), packed for the next product.
void norm_and_pack(Forward& f, int64_t norm, int64_t n_panels);

// With `last`, everything after attention is done for label columns only: x then holds work.columns.size()
// columns.
void run_block(Forward& f, const LayerTensors& layer, bool last);

}  // namespace smezo
