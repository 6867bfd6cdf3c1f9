// Sizes of the buffers.
#include "model/workspace.h"

#include <algorithm>

namespace smezo {
namespace {

// Rows a power of two apart fall on the same few cache sets.
int64_t leading_dimension(int64_t n_tokens) {
  const int64_t ld = panels_of(n_tokens) * kLanes;
  return ld % 128 == 0 ? ld + kLanes : ld;
}

std::vector<int64_t> label_columns(const Batch& batch) {
  std::vector<int64_t> out;
  for (const Label& l : batch.labels) out.push_back(l.position);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace

Workspace plan_workspace(Arena& arena, const ModelConfig& c, const Batch& batch, const ForwardShape& shape,
                         bool whole_head, int64_t* only_bytes) {
  const StripSizes strips(*shape.kernels, shape.compute);
  Workspace w;
  w.n_tokens = static_cast<int64_t>(batch.tokens.size());
  w.ld = leading_dimension(w.n_tokens);
  w.columns = label_columns(batch);
  w.head_ld = leading_dimension(static_cast<int64_t>(w.columns.size()));
  const int64_t d = c.hidden_size, f = c.intermediate_size, n_panels = panels_of(w.n_tokens);
  const int64_t n_q = c.n_heads * c.head_dim, n_kv = c.n_kv_heads * c.head_dim;
  w.head_rows = std::min(strips.rows(d), kVocabularyBlock);
  const int64_t n_blocks = (c.vocab_size + kVocabularyBlock - 1) / kVocabularyBlock;

  int64_t strip_bytes = std::max(strips.embed_bytes(d), strips.gated_bytes(d)), packed_bytes = 0;
  for (const int64_t k : {d, f, n_q}) strip_bytes = std::max(strip_bytes, strips.bytes(k));
  for (const int64_t k : {d, n_q})
    packed_bytes = std::max(packed_bytes, shape.kernels->packed_bytes(shape.compute, k, n_panels));
  const int64_t heads_bytes = (n_q + 2 * n_kv) * w.ld * static_cast<int64_t>(sizeof(float));
  const int64_t shared_bytes = std::max(heads_bytes, shape.kernels->packed_bytes(shape.compute, f, n_panels));
  const size_t n_branches = static_cast<size_t>(shape.n_branches),
               n_threads = static_cast<size_t>(shape.n_threads);

  const auto assign = [&] {
    w.x.clear(), w.q.clear(), w.k.clear(), w.v.clear();
    w.packed.clear(), w.gated.clear(), w.strip.clear(), w.attention_scratch.clear(), w.logits.clear();
    for (size_t b = 0; b < n_branches; ++b) {
      w.x.push_back(arena.take<float>(d * w.ld));
      char* const shared = arena.take<char>(shared_bytes);
      float* const heads = reinterpret_cast<float*>(shared);
      w.q.push_back(heads);
      w.k.push_back(heads + n_q * w.ld);
      w.v.push_back(heads + (n_q + n_kv) * w.ld);
      w.gated.push_back(shared);
      w.packed.push_back(arena.take<char>(packed_bytes));
    }
    w.cos = arena.take<float>(c.head_dim / 2 * w.ld);
    w.sin = arena.take<float>(c.head_dim / 2 * w.ld);
    for (size_t t = 0; t < n_threads; ++t) {
      w.strip.push_back(arena.take<char>(strip_bytes));
      w.attention_scratch.push_back(
          arena.take<float>(attention_scratch_floats(c.head_dim, longest_text(batch))));
      w.logits.emplace_back();
      for (size_t b = 0; b < n_branches; ++b)
        w.logits.back().push_back(arena.take<float>(w.head_rows * w.head_ld));
    }
    if (!whole_head) return;
    w.block_max = arena.take<float>(n_blocks * static_cast<int64_t>(n_branches) * w.head_ld);
    w.block_sum = arena.take<float>(n_blocks * static_cast<int64_t>(n_branches) * w.head_ld);
  };
  arena.begin();
  assign();
  if (only_bytes) {
    *only_bytes = arena.used_bytes();
    return w;
  }
  arena.commit();
  assign();
  return w;
}

}  // namespace smezo
