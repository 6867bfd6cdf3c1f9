// A method as plain data, and what it means for one model: which tensors train, with which mask.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "direction/low_rank.h"
#include "model/model.h"
#include "store/store.h"

namespace smezo {

// How the losses of a step's branches become scalars (engine/loss.h).
enum class QueryPlan : uint8_t {
  two_sided,  // w + eps z and w - eps z of each query
  one_sided,  // w, and w + eps z of each query
  curved      // w, w + eps z and w - eps z of the one query; two scalars (HiZOO)
};
enum class Estimator : uint8_t {
  difference,  // over eps, or 2 eps
  deviation,   // over the standard deviation of the queries' losses (FZOO)
  sign         // of the difference
};
enum class IndexKind : uint8_t {
  none,
  random,      // a share of each tensor, drawn from the run's seed
  rows,        // the largest |w| of each row
  whole_rows,  // a share of each tensor's rows, drawn from the run's seed
  file         // a file's lists
};

// A method is a combination of parts. `kind` is the row's name, a label for people.
struct MethodConfig {
  std::string kind = "mezo";
  // Selection.
  std::string trains = "linear";  // linear | all | a glob pattern over parameter names
  MaskKind mask = MaskKind::all;
  double sparsity = 0;  // frozen fraction, 0 <= sparsity < 1
  IndexKind index_set = IndexKind::none;
  double fraction = 0;     // random, rows: of a tensor, of a row
  std::string index;       // path of the file
  std::string index_hash;  // of its content; filled when it is opened
  double drop = 0;         // share of the decoder's layers that sit a step out
  // Direction.
  NoiseKind noise = NoiseKind::gaussian8;
  LowRankKind low_rank = LowRankKind::none;
  int rank = 0;
  int refresh = 0;          // steps that factors stay; 0: the run
  bool only_reads = false;  // low rank: what trains lies beside the base (model/beside.h)
  int rank_cap = 0;         // the most rank that may pile up there; 0: none does
  // Query plan and scalars.
  QueryPlan plan = QueryPlan::two_sided;
  Estimator estimator = Estimator::difference;
  int queries = 1;
  bool over_eps = false;  // deviation: divided by eps too
  // Rule.
  RuleKind rule = RuleKind::sgd;
  double beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8;
  bool damped = true;       // momentum: averages, instead of adding up
  bool corrected = true;    // adam: takes the averages' bias out
  int window = 0;           // records that moments are rebuilt from, the newest included; 0: they are kept
  double smoothing = 1e-6;  // hizoo: s
  double weight_decay = 0;  // lambda; matrices only

  bool has_index_set() const { return index_set != IndexKind::none; }
  bool lies_beside() const { return low_rank != LowRankKind::none && only_reads; }
  bool leaves_base() const { return has_index_set() || lies_beside(); }  // no working copies
  int most_rank() const { return std::max(rank, rank_cap); }
  int all_ranks() const { return rank_cap > 0 ? rank_cap + rank : rank; }  // a step's own direction with it
  bool keeps_moments() const { return n_moments(rule) > 0 && window == 0; }
  int n_scalars() const { return plan == QueryPlan::curved ? 2 : queries; }
  int n_branches() const {
    return plan == QueryPlan::two_sided ? 2 * queries : plan == QueryPlan::one_sided ? queries + 1 : 3;
  }
  LowRank low_rank_of() const { return {low_rank, noise, rank, refresh}; }
};

// visit(name, field) of what a header says of a method in its own right, and of its parts. A new part is
// added here: headers, their comparison and the bindings go by these lists.
template <class Method, class Visit>
void visit_fields(Method& m, const Visit& visit) {
  visit("kind", m.kind);
  visit("trains", m.trains);
  visit("sparsity", m.sparsity);
  visit("noise", m.noise);
  visit("queries", m.queries);
  visit("weight_decay", m.weight_decay);
}
template <class Method, class Visit>
void visit_parts(Method& m, const Visit& visit) {
  visit("mask", m.mask);
  visit("index_set", m.index_set);
  visit("drop", m.drop);
  visit("low_rank", m.low_rank);
  visit("rank", m.rank);
  visit("refresh", m.refresh);
  visit("only_reads", m.only_reads);
  visit("rank_cap", m.rank_cap);
  visit("plan", m.plan);
  visit("estimator", m.estimator);
  visit("over_eps", m.over_eps);
  visit("rule", m.rule);
  visit("beta1", m.beta1);
  visit("beta2", m.beta2);
  visit("adam_eps", m.adam_eps);
  visit("damped", m.damped);
  visit("corrected", m.corrected);
  visit("window", m.window);
  visit("smoothing", m.smoothing);
}

// The words for kinds of parts. read_word: ArgumentError lists the known ones.
const char* word(NoiseKind kind);
const char* word(MaskKind kind);
const char* word(IndexKind kind);
const char* word(LowRankKind kind);
const char* word(QueryPlan plan);
const char* word(Estimator estimator);
const char* word(RuleKind kind);
void read_word(const std::string& word, NoiseKind* to);
void read_word(const std::string& word, MaskKind* to);
void read_word(const std::string& word, IndexKind* to);
void read_word(const std::string& word, LowRankKind* to);
void read_word(const std::string& word, QueryPlan* to);
void read_word(const std::string& word, Estimator* to);
void read_word(const std::string& word, RuleKind* to);
// The parts of the rows that are named in headers without them: mezo, random-mask, largest-mask, sparse-mezo,
// sensitive. ArgumentError: another.
void set_parts_of_kind(MethodConfig* m);

// Layers of a model of n that sit a step out.
int64_t n_resting(const MethodConfig& m, int64_t n_layers);
// Bytes that low rank keeps of a trained matrix between steps: factors that take long to make, and what lies
// beside the base.
int64_t low_rank_kept_bytes(const MethodConfig& m, int64_t rows, int64_t cols);
// Numbers of a rule's moments beside a trained matrix: of every element, or of u's rows.
int64_t n_moments_of(const MethodConfig& m, int64_t rows, int64_t cols, int64_t n_indexed);

MaskKind mask_kind(const MethodConfig& m);  // on what it trains
// ArgumentError: a number out of range, or parts that make no sense together.
void check_method(const MethodConfig& m);

// How many elements each tensor's index set has, from the header of the file. FormatError: see below.
std::vector<int64_t> index_counts(const MethodConfig& m, const std::vector<bool>& trained,
                                  const std::vector<TensorRequest>& requests);
// Puts the method's index sets into the store as overlays; a trained tensor that the file does not name has
// an empty one. FormatError: a list of a tensor that does not train, or that is not one.
void place_index_sets(const MethodConfig& m, const std::vector<bool>& trained, uint64_t run_seed,
                      Store& store, const Kernels& kernels, ThreadPool& pool);
std::string hash_of_index(const std::string& path);  // "" for ""

// Does the method train this parameter? ArgumentError: nothing of the model matches, or something that the
// method cannot train does.
std::vector<bool> trained_tensors(const MethodConfig& m, const std::vector<ParameterSpec>& parameters);

// Masks of all tensors, from the values they have in the store (the base's, before any record), with the
// elements each selects (expected number for a random mask). Thresholds are computed once a run and kept in
// the journal header.
struct Selection {
  std::vector<TensorMethod> tensors;  // [n_tensors]
  std::vector<int64_t> n_selected;    // [n_tensors], 0 when not trained
};
Selection select(const MethodConfig& m, const std::vector<bool>& trained, const std::vector<int>& layers,
                 Store& store, const Kernels& kernels, ThreadPool& pool);
// How the method treats a tensor, but for its mask; layer: of the decoder, -1: outside.
TensorMethod tensor_method(const MethodConfig& m, bool trained, int layer);
// [n_tensors]: the decoder layer that each parameter belongs to, -1: none.
std::vector<int> layers_of(const std::vector<ParameterSpec>& parameters);

}  // namespace smezo
