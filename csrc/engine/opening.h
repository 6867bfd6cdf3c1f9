// What options and a config make of a model before any weight is read: the same for a run and for a plan.
#pragma once
#include <vector>

#include "engine/engine.h"

namespace smezo {

struct Opening {
  ModelConfig config;
  std::vector<ParameterSpec> parameters;
  std::vector<bool> trained;
  std::vector<int> layers;  // [n_tensors]: of the decoder, -1: outside
  std::vector<TensorRequest> requests;
  DType values = DType::F32;
};

// Reads config.json. ArgumentError: see check_method, trained_tensors, values; FormatError: see load_config.
Opening opening_of(const EngineOptions& options);

StreamOptions stream_options_of(const EngineOptions& options);

// What GEMM inputs are rounded to, over a base of mostly this dtype.
Compute compute_for(const std::string& dtype, DType base);

}  // namespace smezo
