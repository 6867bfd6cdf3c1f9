// What low rank adds to a product without touching its weight: y_b += u (M_b (v^T x_b)), where M_b holds the
// branch's own direction and, over a base that is only read, what training has changed (the coefficients).
// All branches share the weight's one operand.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model/arena.h"
#include "model/factors.h"
#include "model/model.h"

namespace smezo {

// Where add() makes rows of u: `memory` for as many rows as the strip has. They hold for one strip, and for
// kind uv for one query.
struct FactorStrip {
  char* memory = nullptr;
  int query = -1;
};

class SideProduct {
 public:
  bool is_of(int64_t id) const { return id_ == id && factors_ != nullptr; }
  // M_b (v^T x_b) of all branches, packed; x: [n_branches] packed activations of n features. One parallel
  // region.
  void prepare(const VisitContext& context, uint32_t id, int64_t m, int64_t n, const std::vector<void*>& x,
               int64_t n_panels);
  void clear() { factors_.reset(); }
  // out [n_rows][ld] += rows [row0, row0 + n_rows) of the product; out begins with the columns of panel0. Any
  // thread.
  void add(FactorStrip& strip, int64_t row0, int64_t n_rows, int branch, int64_t panel0, int64_t n_panels,
           float* out, int64_t ld) const;
  // At most, for a product of n features in all.
  static int64_t bytes(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
                       int64_t n_branches, int n_threads);

 private:
  void fill_columns(const VisitContext& context, int64_t n);
  std::vector<float> middle_of_branch(const VisitContext& context, const Branch& branch) const;
  void plan(const Kernels& kernels, Compute compute, int rank, int64_t n, int64_t n_panels,
            int64_t n_branches, int n_threads);

  int64_t id_ = -1;
  std::shared_ptr<const Factors> factors_;
  const VisitContext* context_ = nullptr;
  std::vector<bool> has_;  // [n_branches]
  const float* coefficients_ = nullptr;
  Arena arena_;
  char* columns_ = nullptr;    // v as an operand, [rank][operand_ld(n)]
  std::vector<char*> packed_;  // one a branch
  std::vector<float*> sums_;   // two a thread, [rank][kBlockLd]
};

}  // namespace smezo
