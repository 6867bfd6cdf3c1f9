// Weights as the branches see them: the only model file that knows direction. A strip of rows is caught up
// with its pending records, each query's operands are made from the stored weight into scratch (I5), and
// every branch multiplies its own (HACKING.md, One step).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "model/catch_up.h"
#include "model/layout.h"
#include "model/model.h"
#include "model/pass.h"
#include "model/side_product.h"
#include "model/sizes.h"

namespace smezo {

// Strips, and units of block matrices, begin at multiples of it: few thin tiles, and no pair of features that
// a packed activation keeps together (silu_mul_pack) is cut.
constexpr int64_t kStripStep = 16;

// Branches that share the making of an operand: the two signs of one query, or all that use the plain weight.
struct BranchGroup {
  int query = 0;
  float eps = 0;
  int plus = -1, minus = -1;  // branch numbers, -1: none
  std::vector<int> branches;  // those two, or all plain ones
};

// Groups of the branches for a trained tensor. ArgumentError: a sign that is not +1 or -1, a negative or
// non-finite eps, no branch.
std::vector<BranchGroup> group_branches(const std::vector<Branch>& branches);

// Rows of a strip: a range of a unit, or a list (candidates, tokens).
struct StripRows {
  const WeightView* w = nullptr;    // range
  const RowViews* views = nullptr;  // list
  int64_t row0 = 0;
  int64_t n = 0;
  const int32_t* list = nullptr;
  const IndexOverlay* overlay = nullptr;  // range only
  const WeightView& any() const { return list ? views->at(list[0]) : *w; }
  int64_t first() const { return list ? list[0] : row0; }
};

// One product of a region: out[b] (+)= W_b X_b, with the bias added where there is one.
struct LinearPart {
  int64_t weight = kNoTensor;
  int64_t bias = kNoTensor;
  std::vector<float*> out;  // one a branch, [rows][ld]
};

// The gated unit of a block: h = silu(gate x) * up x.
struct GatedPart {
  int64_t gate = kNoTensor, gate_bias = kNoTensor;
  int64_t up = kNoTensor, up_bias = kNoTensor;
};

// The weights of one forward.
class Weights {
 public:
  Weights(const VisitContext& context, Store& store);

  int n_branches() const { return static_cast<int>(context_.branches.size()); }

  int64_t strip_rows(int64_t k) const { return sizes_.rows(k); }
  int64_t strip_bytes(int64_t k) const { return sizes_.bytes(k); }

  // Norms and biases, fp32, of every branch, instead of those loaded before; pending records are applied
  // first.
  void load_vectors(const std::vector<int64_t>& ids);
  const float* vector(int64_t id, int branch) const;

  // Every row of a tensor gets its pending records. For tensors of which only some rows are read.
  void catch_up(int64_t id);

  // Views of some rows (repeats and any order allowed).
  RowViews rows(int64_t id, std::vector<int32_t> list) const;

  // Sixteen rows of the embedding, w + sign eps m z in fp32 (not rounded to bf16), written as columns
  // [column, column + n) of out[b] [d][ld]. `scratch`: StripSizes::embed_bytes.
  void embed(int64_t id, const RowViews& rows, const int32_t* tokens, int64_t n, int64_t column,
             const std::vector<float*>& out, int64_t ld, void* scratch) const;

  // All parts read the same packed activations (one a branch) of k features and n_panels panels. One parallel
  // region over row strips of all parts; pending records are applied on the way. `scratch(thread)`:
  // StripSizes::bytes(k).
  void multiply(const std::vector<LinearPart>& parts, int64_t k, const std::vector<void*>& packed,
                int64_t n_panels, int64_t ld, Epilogue epilogue, const std::vector<char*>& scratch);

  // The gated unit, packed for the next product: h[b] has as many features as gate and up have rows. A strip
  // of both and the sums of a few tokens stay in cache; no [rows][ld] buffer exists. `scratch(thread)`:
  // gated_bytes(k).
  void multiply_gated(const GatedPart& part, int64_t k, const std::vector<void*>& packed, int64_t n_panels,
                      const std::vector<void*>& h, const std::vector<char*>& scratch);

  // body(view of the unit) for every unit of a tensor that was caught up.
  void for_units(int64_t id, const std::function<void(const Unit&, const WeightView&)>& body);

  // One strip on the calling thread: out[b] [rows.n][ld]. The tensor must have been caught up.
  void multiply_strip(int64_t id, const StripRows& rows, const std::vector<void*>& packed, int64_t n_panels,
                      const std::vector<float*>& out, int64_t ld, Epilogue epilogue, char* scratch) const;

 private:
  // A unit in a parallel region, with the records its strips get on the way.
  struct Visit {
    int64_t id;
    Unit unit;
    WeightView w;
    IndexOverlay* overlay;
    CatchUp records;
  };
  struct Operands {
    char *plus, *minus;
  };
  Visit begin_visit(const Unit& unit);
  // visits: gates and ups in turns.
  void multiply_gated_units(const GatedPart& part, const std::vector<Visit>& visits, int64_t k,
                            const std::vector<void*>& packed, int64_t n_panels, const std::vector<void*>& h,
                            const std::vector<char*>& scratch) const;
  void catch_up_strip(const Visit& v, int64_t row0, int64_t n) const;
  void end_visit(const Visit& v) const;

  bool trained(int64_t id) const;
  // Has every branch a weight of its own? Not where the direction is a side product, or the layer rests.
  bool perturbed(int64_t id) const;
  const std::vector<BranchGroup>& groups(int64_t id) const {
    return perturbed(id) ? trained_groups_ : plain_groups_;
  }
  // What `g`, a group of some tensor, is for this one: itself, or the plain branches where this is not
  // perturbed.
  const BranchGroup& own_group(int64_t id, const BranchGroup& g) const {
    return perturbed(id) ? g : plain_groups_[0];
  }
  // Before the products of a tensor of low rank; `slot`: of the tensors multiplied together.
  void prepare_side(size_t slot, int64_t id, int64_t k, const std::vector<void*>& packed, int64_t n_panels);
  const SideProduct* side_of(int64_t id) const;
  // row0: of what is made first.
  OperandJob job_for(const WeightView& w, int64_t row0, const BranchGroup& g, OperandMode mode,
                     Compute compute) const;
  Operands operands_at(char* scratch, int64_t k) const;
  void make_over_base(const BranchGroup& g, const StripRows& rows, const Operands& to) const;
  void make_group(const BranchGroup& g, const StripRows& rows, const Operands& to) const;
  void product(const BranchGroup& g, int branch, const Operands& operands, int64_t n_rows, int64_t k,
               const void* packed, const Terms& more, int64_t n_panels, Epilogue epilogue, float* out,
               int64_t ld) const;
  void add_bias(int64_t bias, int branch, int64_t row0, int64_t n, int64_t n_panels, float* out,
                int64_t ld) const;
  void make(OperandJob job, const StripRows& rows, int64_t ld_bytes, char* plus, char* minus) const;
  int64_t operand_row_bytes(Compute compute, int64_t k) const { return sizes_.row_bytes(compute, k); }

  const VisitContext& context_;
  const Kernels& kernels_;
  Store& store_;
  StripSizes sizes_;
  std::vector<BranchGroup> trained_groups_, plain_groups_;
  std::vector<SideProduct> sides_{3};
  std::map<int64_t, std::vector<std::vector<float>>> vectors_;  // by tensor id, [branch, or one shared entry]
};

}  // namespace smezo
