// A method as plain data, and what it means for one model: which tensors train, with which mask.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "model/model.h"
#include "store/store.h"

namespace smezo {

struct MethodConfig {
  std::string kind = "mezo";      // mezo | random-mask | largest-mask | sparse-mezo | sensitive
  std::string trains = "linear";  // linear | all | a glob pattern over parameter names
  double sparsity = 0;            // frozen fraction, 0 <= sparsity < 1
  NoiseKind noise = NoiseKind::gaussian8;
  int queries = 1;
  double weight_decay = 0;  // lambda; matrices only
  // sensitive: what trains is an index set, the base stays as it is. A share of each tensor at random, or a
  // file that holds sorted element numbers under the names of tensors (safetensors, I32 or I64).
  double fraction = 0;
  std::string index;       // path of the file; "": random
  std::string index_hash;  // of its content; filled when it is opened
  bool has_index_set() const { return kind == "sensitive"; }
};

NoiseKind noise_from_name(const std::string& name);  // ArgumentError lists the known ones
const char* noise_name(NoiseKind kind);

MaskKind mask_kind(const MethodConfig& m);  // on what it trains
// ArgumentError: unknown kind, sparsity or queries out of range, weight decay not finite or negative.
void check_method(const MethodConfig& m);

// How many elements each tensor's index set has, from the header of the file. FormatError: see below.
std::vector<int64_t> index_counts(const MethodConfig& m, const std::vector<bool>& trained,
                                  const std::vector<TensorRequest>& requests);
// Puts the method's index sets into the store as overlays; a trained tensor that the file does not name has
// an empty one. FormatError: a list of a tensor that does not train, or that is not one.
void place_index_sets(const MethodConfig& m, const std::vector<bool>& trained, uint64_t run_seed,
                      Store& store);
std::string hash_of_index(const std::string& path);  // "" for ""

// Does the method train this parameter? ArgumentError when nothing of the model matches.
std::vector<bool> trained_tensors(const MethodConfig& m, const std::vector<ParameterSpec>& parameters);

// Masks of all tensors, from the values they have in the store (the base's, before any record), with the
// elements each selects (expected number for a random mask). Thresholds are computed once a run and kept in
// the journal header.
struct Selection {
  std::vector<TensorMethod> tensors;  // [n_tensors]
  std::vector<int64_t> n_selected;    // [n_tensors], 0 when not trained
};
Selection select(const MethodConfig& m, const std::vector<bool>& trained, Store& store,
                 const Kernels& kernels, ThreadPool& pool);

}  // namespace smezo
