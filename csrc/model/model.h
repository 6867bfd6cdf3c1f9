// The forward pass of the llama family over n branches at once: weights are visited once, each branch's
// operand is made from the stored weight (I5). Knows nothing of journals, steps or files.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
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

// How one tensor is perturbed and updated; made by the engine from the method, looked up by tensor id.
struct TensorMethod {
  bool trained = false;
  NoiseKind noise = NoiseKind::gaussian8;
  Mask mask;
};

// A committed record that has not reached a tensor yet (I3: it carries its own coefficients).
struct PendingRecord {
  uint32_t step = 0;
  float decay = 0;
  std::vector<float> c;  // one a query
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
  // Records to apply to a trained tensor before it is used, oldest first. The model calls `caught_up(id)`
  // when every row of the tensor has had them; the engine then moves the tensor's watermark. Empty when there
  // is nothing to do.
  std::function<const std::vector<PendingRecord>&(uint32_t tensor_id)> pending;
  std::function<void(uint32_t tensor_id)> caught_up;
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
