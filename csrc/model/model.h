// The forward pass of the llama family over n branches at once: weights are visited once, each branch's
// operand is made from the stored weight (I5). Knows nothing of journals, steps or files.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "direction/low_rank.h"
#include "kernels/kernels.h"
#include "model/batch.h"
#include "model/config.h"
#include "store/store.h"

namespace smezo {

// One perturbed model. eps > 0 with sign +1 / -1, or eps = 0: the plain model (query is then ignored).
struct Branch {
  int query = 0;
  int sign = +1;
  float eps = 0;
};

class CatchUp;       // catch_up.h
struct Beside;       // beside.h
class FactorSource;  // factors.h

// How one tensor is perturbed and updated; made by the engine from the method, looked up by tensor id.
struct TensorMethod {
  bool trained = false;
  NoiseKind noise = NoiseKind::gaussian8;
  Mask mask;
  LowRank low_rank;
  int most_rank = 0;  // of it and what may lie beside a base that is only read
  RuleKind rule = RuleKind::sgd;
  int layer = -1;          // of the decoder, where whole layers sit steps out; -1: takes part in all
  bool only_read = false;  // its weight stays the base's: an index set, or coefficients, lie beside it
};

// A record's noise as a later record's rule wants it.
struct PastScalars {
  uint32_t step = 0;
  std::vector<float> c;  // one a query
};

// A committed record that has not reached a tensor yet (I3: it carries its own coefficients).
struct PendingRecord {
  uint32_t step = 0;
  uint32_t after = 0;  // the step of the record before it; 0: none
  float decay = 0;
  std::vector<float> c;  // one a query: lr g_q / Q for sgd, g_q / Q for other rules
  Rule rule;
  std::vector<PastScalars> past;  // rules that rebuild their moments: of so many records before it
  std::vector<bool> resting;      // [n_layers]: they sit this step out; empty: none
  bool skips(const TensorMethod& m) const {
    return m.layer >= 0 && !resting.empty() && resting[static_cast<size_t>(m.layer)];
  }
};

// What a visit needs to know beside the batch.
struct VisitContext {
  const Kernels* kernels = nullptr;
  ThreadPool* pool = nullptr;
  Compute compute = Compute::bf16;
  OperandMode mode = OperandMode::nearest;
  uint64_t run_seed = 0;
  uint32_t step = 0;                                   // of the probe: noise of the branches
  std::vector<Branch> branches;                        // + and - of one query are adjacent
  const std::vector<TensorMethod>* methods = nullptr;  // [n_tensors]
  std::vector<bool> resting;                           // [n_layers] at this step; empty: none
  FactorSource* factors = nullptr;
  int n_waiting = 1;  // records that `catch_up` gives for a tensor, at most
  std::function<const Beside*(uint32_t tensor_id)> beside;  // nullptr: a tensor has none
  // Records to apply to a trained tensor before it is used. The model calls `caught_up(id)` when every row of
  // the tensor has had them; the engine then moves the tensor's watermark. Empty when there is nothing to do.
  std::function<CatchUp(uint32_t tensor_id)> catch_up;
  std::function<void(uint32_t tensor_id)> caught_up;

  bool rests(const TensorMethod& m) const {
    return m.layer >= 0 && !resting.empty() && resting[static_cast<size_t>(m.layer)];
  }
};

// What one forward gives back, for branch b:
struct ForwardResult {
  // language_model, choice_sequences: log p(target) of every label, [n_branches][n_labels]
  // choice_candidates: candidate logits, [n_branches][n_labels * n_options]
  // logits wanted: all logits, [n_branches][n_labels * V], label-major
  std::vector<std::vector<float>> values;
  // Seconds by part, as the calling thread saw them pass: embed, qkv, attention, o, mlp, head, other.
  std::vector<std::pair<std::string, double>> parts;
};

class Model {
 public:
  // Store must outlive the model. FormatError when a tensor the config asks for is missing or has another
  // shape.
  Model(const ModelConfig& config, Store& store);
  ~Model();

  const ModelConfig& config() const;

  // want_logits: values are full logits, whatever the task.
  ForwardResult forward(const Batch&, const VisitContext&, bool want_logits = false);
  // Bytes that such a forward takes beside the store: activations and scratch, rows of the embedding, values.
  // left: counting the buffers that earlier batches have left.
  int64_t n_units() const;  // of the longest pass
  int64_t forward_bytes(const Batch&, const VisitContext&, bool want_logits = false, bool left = true) const;
  void drop_buffers();  // that earlier batches have left

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Names and shapes of every logical parameter of a config, in the order of tensor ids (byte order of the
// canonical Hugging Face names, a tied head under the embedding's name, buffers excluded: I6, I7), and
// whether it is a linear weight of a decoder block.
struct ParameterSpec {
  std::string name;
  int64_t rows, cols;  // vectors: rows = 1
  bool block_linear;
};
std::vector<ParameterSpec> parameters_of(const ModelConfig& config);

}  // namespace smezo
