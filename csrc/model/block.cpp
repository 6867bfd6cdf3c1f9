// Llama decoder block (arXiv 2302.13971): x += O attention(norm x); x += down(silu(gate norm x) * up norm x).
#include "model/block.h"

#include <algorithm>
#include <cmath>

namespace smezo {
namespace {

constexpr int64_t kPanelGroup = 4;  // panels of one pack item: whole cache lines of a row at a time

// body(branch, first panel, number of panels) in parallel.
template <class Body>
void for_panels(const Forward& f, int64_t n_panels, const Body& body) {
  const int64_t n_groups = (n_panels + kPanelGroup - 1) / kPanelGroup;
  f.context.pool->run(f.n_branches() * n_groups, [&](int64_t item, int) {
    const int64_t panel0 = item % n_groups * kPanelGroup;
    body(static_cast<size_t>(item / n_groups), panel0, std::min(kPanelGroup, n_panels - panel0));
  });
}

void rotate(Forward& f, int64_t n_panels) {
  const ModelConfig& c = f.config;
  const int64_t n_heads = c.n_heads + c.n_kv_heads;
  f.context.pool->run(f.n_branches() * n_heads, [&](int64_t item, int) {
    const size_t b = static_cast<size_t>(item / n_heads);
    // k follows q in memory.
    float* const head = f.work.q[b] + item % n_heads * c.head_dim * f.work.ld;
    f.context.kernels->rope(head, f.work.ld, c.head_dim, f.work.cos, f.work.sin, 0, n_panels);
  });
}

void attend(Forward& f) {
  const ModelConfig& c = f.config;
  const int64_t n_segments = static_cast<int64_t>(f.batch.segments.size());
  f.context.pool->run(f.n_branches() * n_segments * c.n_heads, [&](int64_t item, int thread) {
    const Segment& s = f.batch.segments[static_cast<size_t>(item / c.n_heads % n_segments)];
    const size_t b = static_cast<size_t>(item / c.n_heads / n_segments);
    AttentionJob job{};
    job.q = f.work.q[b], job.k = f.work.k[b], job.v = f.work.v[b], job.out = f.work.q[b];
    job.ld = f.work.ld;
    job.head_dim = c.head_dim;
    job.q_head = item % c.n_heads;
    job.kv_head = job.q_head / (c.n_heads / c.n_kv_heads);
    job.start = s.start, job.len = s.len;
    if (s.parent >= 0) {
      const Segment& parent = f.batch.segments[static_cast<size_t>(s.parent)];
      job.prefix_start = parent.start, job.prefix_len = parent.len;
    }
    job.window = c.sliding_window;
    job.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
    job.scratch = f.work.attention_scratch[static_cast<size_t>(thread)];
    f.context.kernels->attention(job);
  });
}

// Moves the label columns of the residual and of the attended values to the front; in place, since columns
// only move left.
void keep_label_columns(Forward& f) {
  const int64_t d = f.config.hidden_size, rows = d + f.config.n_heads * f.config.head_dim;
  constexpr int64_t kRows = 64;
  const int64_t n_items = (rows + kRows - 1) / kRows;
  f.context.pool->run(f.n_branches() * n_items, [&](int64_t item, int) {
    const size_t b = static_cast<size_t>(item / n_items);
    const int64_t first = item % n_items * kRows;
    for (int64_t r = first; r < std::min(first + kRows, rows); ++r) {
      float* const row = r < d ? f.work.x[b] + r * f.work.ld : f.work.q[b] + (r - d) * f.work.ld;
      for (size_t j = 0; j < f.work.columns.size(); ++j) row[j] = row[f.work.columns[j]];
    }
  });
}

}  // namespace

void norm_and_pack(Forward& f, int64_t norm, int64_t n_panels) {
  for_panels(f, n_panels, [&](size_t b, int64_t panel0, int64_t n) {
    f.context.kernels->rms_norm_pack(f.context.compute, f.work.x[b], f.work.ld, f.config.hidden_size,
                                     f.weights.vector(norm, static_cast<int>(b)),
                                     static_cast<float>(f.config.rms_norm_eps), panel0, n, f.work.packed[b]);
  });
}

void run_block(Forward& f, const LayerTensors& layer, bool last) {
  const ModelConfig& c = f.config;
  Workspace& w = f.work;
  const Kernels& kernels = *f.context.kernels;
  int64_t n_panels = panels_of(w.n_tokens);

  f.weights.load_vectors(layer.vectors);
  norm_and_pack(f, layer.input_norm, n_panels);
  f.times.spent(Part::other);
  f.weights.multiply(
      {{layer.q, layer.q_bias, w.q}, {layer.k, layer.k_bias, w.k}, {layer.v, layer.v_bias, w.v}},
      c.hidden_size, w.packed, n_panels, w.ld, Epilogue::store, w.strip);
  f.times.spent(Part::qkv);
  rotate(f, n_panels);
  attend(f);
  f.times.spent(Part::attention);
  if (last) {
    keep_label_columns(f);
    n_panels = panels_of(static_cast<int64_t>(w.columns.size()));
  }
  for_panels(f, n_panels, [&](size_t b, int64_t panel0, int64_t n) {
    kernels.pack(f.context.compute, w.q[b], w.ld, c.n_heads * c.head_dim, panel0, n, w.packed[b]);
  });
  f.times.spent(Part::other);
  f.weights.multiply({{layer.o, layer.o_bias, w.x}}, c.n_heads * c.head_dim, w.packed, n_panels, w.ld,
                     Epilogue::add, w.strip);
  f.times.spent(Part::o);

  norm_and_pack(f, layer.post_norm, n_panels);
  f.times.spent(Part::other);
  f.weights.multiply_gated({layer.gate, layer.gate_bias, layer.up, layer.up_bias}, c.hidden_size, w.packed,
                           n_panels, w.gated, w.strip);
  f.weights.multiply({{layer.down, layer.down_bias, w.x}}, c.intermediate_size, w.gated, n_panels, w.ld,
                     Epilogue::add, w.strip);
  f.times.spent(Part::mlp);
}

}  // namespace smezo
