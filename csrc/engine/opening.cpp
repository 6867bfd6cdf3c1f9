#include "engine/opening.h"

#include "base/error.h"
#include "model/linear.h"
#include "model/workspace.h"

namespace smezo {
namespace {

DType values_for(const std::string& name, const MethodConfig& method) {
  if (name == "auto") return method.leaves_base() ? DType::F32 : DType::BF16T8;
  const DType values = values_from_name(name);
  check<ArgumentError>(!method.leaves_base() || values == DType::F32, "values",
                       name +
                           (method.has_index_set() ? " for an index set" : " for numbers between factors") +
                           ", expected fp32: they lie beside the base");
  return values;
}

}  // namespace

StreamOptions stream_options_of(const EngineOptions& o) {
  StreamOptions out;
  out.budget_bytes = o.memory_budget;
  out.ring_bytes = o.ring_bytes;
  out.stream_trained = o.stream_trained;
  out.n_readers = o.n_readers;
  out.device_bytes = o.device_bytes;
  out.cached_reads = o.cached_reads;
  return out;
}

Compute compute_for(const std::string& dtype, DType base) {
  if (dtype == "fp32") return Compute::f32;
  if (dtype == "bf16") return Compute::bf16;
  check<ArgumentError>(dtype == "auto", "dtype", "'" + dtype + "', expected auto, fp32 or bf16");
  return base == DType::F32 ? Compute::f32 : Compute::bf16;
}

Opening opening_of(const EngineOptions& o) {
  check_method(o.method);
  check<ArgumentError>(o.sync_every >= 1, "sync_every",
                       std::to_string(o.sync_every) + ", expected at least 1");
  Opening out;
  out.config = load_config(o.model_dir);
  out.parameters = parameters_of(out.config);
  out.trained = trained_tensors(o.method, out.parameters);
  for (size_t id = 0; id < out.parameters.size(); ++id) {
    const ParameterSpec& p = out.parameters[id];
    const bool in_vocabulary = p.rows > 1 && !p.block_linear;
    TensorRequest r{p.name, p.rows, p.cols, out.trained[id] && !o.method.leaves_base(),
                    in_vocabulary ? kVocabularyBlock : kStripStep};
    if (r.trained && n_moments_of(o.method, 1, p.cols, 0) > 0) {
      r.n_moments = n_moments(o.method.rule);
      r.moments_a_row = n_moments_of(o.method, 1, p.cols, 0);
      r.first_moment = first_moment(o.method.rule);
    }
    out.requests.push_back(r);
  }
  out.layers = layers_of(out.parameters);
  out.values = values_for(o.values, o.method);
  return out;
}

}  // namespace smezo
