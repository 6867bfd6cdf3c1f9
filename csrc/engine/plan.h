// What a run will hold, read and take, from headers alone: no weight is read. The sizes come from the
// functions that the run itself uses (store/plan.h, model/sizes.h, model/pass.h).
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "engine/opening.h"
#include "engine/rates.h"
#include "model/micro_batch.h"
#include "model/pass.h"
#include "model/sizes.h"
#include "store/base.h"

namespace smezo {

// What a run holds beside what is counted one by one: tables of names and places, threads' stacks, the
// journal's buffers, what the interpreter makes of a batch. Measured, see benchmarks/memory.py.
int64_t other_bytes(const MethodConfig& method, int n_threads, size_t n_tensors, int64_t n_units);

// How a step asks the model.
struct StepShape {
  int64_t n_branches = 2;
  bool want_logits = false;
};

struct Plan {
  bool fits = true;
  bool streams_trained = false;  // what trains is kept as generations on disk
  int64_t budget_bytes = 0;      // 0: none
  // Above what the process has when the run is opened. Does it not fit: with nothing kept in memory.
  int64_t peak_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> bytes_by_purpose;  // at the peak
  int64_t bytes_read = 0, bytes_written = 0;                      // a step
  double step_s = -1;                                             // -1: rates are not known
  int64_t n_micro_batches = 1;
  int64_t generation_bytes = 0;       // of one; 0: what trains is in memory
  double steps_a_generation = 0;      // 0: not known, or what trains is in memory
  int64_t smallest_budget_bytes = 0;  // that this batch fits in
};

class Planner {
 public:
  // ArgumentError, FormatError, IoError: as opening a run with these options.
  explicit Planner(const EngineOptions& options);

  // rates: those of this machine; all 0: not known.
  Plan of(const Batch& batch, const StepShape& shape, const Rates& rates, double read_bytes_per_s) const;
  bool fits(const Batch& batch, const StepShape& shape) const;
  // BudgetError when opening it would not fit, whatever the batch.
  void check_opening() const;
  const ModelConfig& config() const { return opening_.config; }
  std::string base_dtype() const { return dtype_name(base_.dtype()); }  // of most matrices

 private:
  // What does not depend on the batch.
  struct Fixed {
    bool streams_trained = false;
    int64_t copies = 0, index_sets = 0, supports = 0, moments = 0, factors = 0, scales = 0, ring = 0,
            other = 0;
    int64_t sum() const { return copies + index_sets + supports + moments + factors + scales + ring + other; }
  };
  struct Streaming {
    int64_t kept = 0, ring = 0, bytes_read = 0;  // ring: what of it is touched
    int64_t bytes_read_to_write = 0;             // a generation: state that no pass visits
  };
  StreamOptions stream(int64_t budget) const;
  bool streams_trained(int64_t budget) const;
  Cut cut(int64_t budget) const;
  bool packs(uint32_t id) const;       // does a generation hold the tensor's support only?
  int64_t n_state(uint32_t id) const;  // elements of a tensor in a generation
  Fixed fixed(int64_t budget) const;
  int64_t opening_bytes(const Fixed& f) const;
  int64_t needed(int64_t budget, int64_t forward) const;
  // How the batch goes through the model with `room` bytes for it; 0: as it takes least.
  MicroBatches micro_batches(const Batch& batch, const StepShape& shape, int64_t room) const;
  int64_t smallest_budget(int64_t forward) const;
  Streaming streaming(const Batch& batch, const MicroBatches& micro, const StepShape& shape,
                      int64_t room) const;
  int64_t mapped_bytes(const Batch& batch, const StepShape& shape) const;
  int64_t generation_bytes() const;
  double update_seconds(const Rates& rates) const;  // of one record
  double steps_a_generation(const Rates& rates) const;
  double compute_seconds(const Batch& batch, int64_t n_passes, const StepShape& shape,
                         const Rates& rates) const;
  bool has_index_set(uint32_t id) const { return options_.method.has_index_set() && opening_.trained[id]; }

  EngineOptions options_;
  Opening opening_;
  Base base_;
  std::vector<int64_t> n_indexed_;  // [n_tensors], of an index set
  const Kernels& kernels_;
  int n_threads_;
};

}  // namespace smezo
