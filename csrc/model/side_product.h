// What low rank adds to a product without touching its weight: y_b += sum over terms of u (M_b (v^T x_b)). A
// term is the branch's own direction, or what training has made beside a base that is only read (beside.h).
// All branches share the weight's one operand; the terms' factors lie side by side, so that there is one
// product with v, and the sums of the weight's product go on over u.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model/arena.h"
#include "model/beside.h"
#include "model/factors.h"
#include "model/model.h"

namespace smezo {

// Where terms() makes rows of u: `memory` for as many rows as the strip has. They hold for one strip, and for
// kind uv for one query.
struct FactorStrip {
  char* memory = nullptr;
  int query = -1;
};

class SideProduct {
 public:
  bool is_of(int64_t id) const { return id_ == id && !terms_.empty(); }
  // M_b (v^T x_b) of all branches, packed; x: [n_branches] packed activations of n features.
  void prepare(const VisitContext& context, uint32_t id, int64_t m, int64_t n, const std::vector<void*>& x,
               int64_t n_panels);
  void clear() { terms_.clear(); }
  // What the sums of rows [row0, row0 + n_rows) go on over, from panel0 on. Any thread.
  Terms terms(FactorStrip& strip, int64_t row0, int64_t n_rows, int branch, int64_t panel0) const;
  // At most, for a product of n features in all; rank: of all terms.
  static int64_t bytes(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                       int64_t n_branches, int n_threads);

 private:
  struct Term {
    std::shared_ptr<const Factors> factors;
    const float* values;  // of a block; nullptr: none
    bool moves;           // has the branch's own direction
    bool by_rows() const { return values && factors->direction().kind == LowRankKind::uv; }
  };
  void find_terms(uint32_t id, int64_t m, int64_t n);
  void fill_columns(int64_t n);
  void make_rows(FactorStrip& strip, int64_t row0, int64_t n_rows, int query) const;
  std::vector<float> middle_of_branch(const Term& term, const Branch& branch) const;
  void plan(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
            int64_t n_branches, int n_threads);

  int64_t id_ = -1;
  const VisitContext* context_ = nullptr;
  std::vector<Term> terms_;
  int rank_ = 0;           // of all terms
  bool rests_ = false;     // no branch moves
  std::vector<bool> has_;  // [n_branches]
  Arena arena_;
  char* columns_ = nullptr;    // v of all terms as an operand, [rank][operand_ld(n)]
  std::vector<char*> packed_;  // one a branch
  std::vector<float*> sums_;   // three a thread, [rank][kBlockLd]
};

}  // namespace smezo
