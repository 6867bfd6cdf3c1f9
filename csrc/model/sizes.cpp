#include "model/sizes.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "model/factors.h"
#include "model/low_rank_update.h"
#include "model/rope.h"
#include "model/side_product.h"
#include "model/workspace.h"

namespace smezo {
namespace {

constexpr int64_t kStripBudgetBytes =
    256 * 1024;                        // operands of both signs: half of a common second-level cache
constexpr int64_t kMaxStripRows = 48;  // eight tiles of the vector product, three of AMX

int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

int64_t StripSizes::row_bytes(Compute compute, int64_t k) const {
  return kernels_.operand_ld(compute, k) * dtype_bytes(kernels_.operand_dtype(compute));
}

int64_t StripSizes::rows(int64_t k) const {
  const int64_t fits = kStripBudgetBytes / (2 * row_bytes(compute_, k));
  return std::clamp<int64_t>(fits / 16 * 16, 16, kMaxStripRows);
}

int64_t StripSizes::bytes(int64_t k) const {
  return 2 * align_up(rows(k) * row_bytes(compute_, k), kStripAlign);
}

int64_t StripSizes::gated_bytes(int64_t k) const {
  return 2 * bytes(k) + 2 * rows(k) * kGatedLd * static_cast<int64_t>(sizeof(float));
}

int64_t StripSizes::embed_bytes(int64_t d) const {
  return 2 * align_up(kLanes * row_bytes(Compute::f32, d), kStripAlign);
}

// Of the factors of the tensors that are multiplied together.
static int64_t low_rank_bytes(const ModelConfig& c, const Batch& batch, const ForwardShape& shape) {
  if (!shape.low_rank) return 0;
  constexpr int kTogether = 3;
  const int64_t d = c.hidden_size, f = c.intermediate_size, q = c.n_heads * c.head_dim,
                kv = c.n_kv_heads * c.head_dim;
  const int64_t n_panels = panels_of(static_cast<int64_t>(batch.tokens.size()));
  int64_t n =
      kTogether * SideProduct::bytes(*shape.kernels, shape.compute, shape.most_rank, std::max({d, f, q}),
                                     n_panels, shape.n_branches, shape.n_threads);
  int64_t making = 0, updates = 0;
  using Sides = std::pair<int64_t, int64_t>;
  for (const std::vector<Sides>& group :
       {std::vector<Sides>{{q, d}, {kv, d}, {kv, d}}, {{d, q}}, {{f, d}, {f, d}}, {{d, f}}}) {
    int64_t of_group = 0;
    for (const auto& [rows, cols] : group) {
      making = std::max(making, Factors::making_bytes(shape.low_rank, rows, cols));
      of_group += LowRankUpdate::bytes(*shape.kernels, shape.low_rank, rows, cols, shape.n_waiting);
    }
    updates = std::max(updates, of_group);
  }
  if (shape.updates_by_factors)
    n += updates +
         LowRankUpdate::column_bytes(*shape.kernels, shape.low_rank, std::max({d, f, q}), kTogether) +
         shape.n_threads * LowRankUpdate::thread_bytes(shape.low_rank, std::max({d, f, q}));
  return n + making;
}

int64_t forward_bytes(const ModelConfig& c, const Batch& batch, const ForwardShape& shape, bool want_logits,
                      int64_t left_bytes) {
  Arena arena;
  int64_t n_bytes = 0;
  plan_workspace(arena, c, batch, shape, asks_whole_head(batch, want_logits), &n_bytes);
  n_bytes = std::max(n_bytes + RopeTable::bytes(c, longest_text(batch)), left_bytes);
  // As if no token came twice: batches of a length take the same.
  n_bytes += static_cast<int64_t>(batch.tokens.size()) * shape.row_bytes + low_rank_bytes(c, batch, shape);
  return n_bytes + value_bytes(c, batch, shape.n_branches, want_logits);
}

int64_t value_bytes(const ModelConfig& c, const Batch& batch, int64_t n_branches, bool want_logits) {
  const int64_t n_values = want_logits ? c.vocab_size : std::max<int64_t>(1, batch.n_options);
  return n_branches * static_cast<int64_t>(batch.labels.size()) * n_values * 4;
}

}  // namespace smezo
