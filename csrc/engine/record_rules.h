// What a journal's records mean to a weight: the rule with its numbers, the records it looks back at, the
// layers that sat the step out. And what a base that is only read has beside it.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "engine/method.h"
#include "io/journal.h"
#include "model/beside.h"
#include "model/catch_up.h"
#include "model/model.h"

namespace smezo {

class RecordRules {
 public:
  RecordRules(const MethodConfig& method, uint64_t run_seed, int64_t n_layers)
      : method_(method), run_seed_(run_seed), n_layers_(n_layers) {}

  // Of every record of kind step, from the journal's first on, in order.
  PendingRecord next(const Record& record);
  // Instead of the first n: none of them will be looked back at, and the last was not after `step`.
  void pass(int64_t n, uint32_t step);
  // [n_layers], or empty: those that rest at a step.
  std::vector<bool> resting(uint32_t step) const;

 private:
  Rule rule_of(const Record& record, int64_t n_averaged) const;

  MethodConfig method_;
  uint64_t run_seed_;
  int64_t n_layers_;
  int64_t n_steps_ = 0;
  uint32_t last_ = 0;
  std::deque<PastScalars> past_;
};

// What lies beside a base that is only read, of all tensors. A function of the records alone, so that nothing
// but the journal keeps it.
class Besides {
 public:
  Besides(const std::vector<TensorMethod>& methods, const std::vector<ParameterSpec>& parameters,
          FactorSource& factors, uint64_t run_seed);
  void apply(const PendingRecord& record);
  const Beside* of(uint32_t tensor_id) const;  // nullptr: it has none
  Beside& at(uint32_t tensor_id) { return all_[tensor_id]; }

 private:
  void add_rows(uint32_t id, const PendingRecord& r, float* block);

  const std::vector<TensorMethod>& methods_;
  const std::vector<ParameterSpec>& parameters_;
  FactorSource& factors_;
  uint64_t run_seed_;
  std::vector<Beside> all_;  // [n_tensors]
  std::vector<Track> tracks_;
};

}  // namespace smezo
