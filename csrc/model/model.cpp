// The order of a forward: rope tables, embedding, blocks, head.
#include "model/model.h"

#include <algorithm>

#include "base/error.h"
#include "model/batch_check.h"
#include "model/block.h"
#include "model/head.h"
#include "model/layout.h"
#include "model/rope.h"

namespace smezo {

struct Model::Impl {
  Impl(const ModelConfig& c, Store& s) : config(c), store(s), tensors(tensors_of(c)), rope(c) {}

  void fill_rope(const Batch& batch, Workspace& w);
  void embed(Forward& f);

  ModelConfig config;
  Store& store;
  ModelTensors tensors;
  RopeTable rope;
  Arena arena;
};

void Model::Impl::fill_rope(const Batch& batch, Workspace& w) {
  rope.reserve(std::min(longest_text(batch), config.max_position));
  for (const Segment& s : batch.segments) {
    const int64_t before = s.parent >= 0 ? batch.segments[static_cast<size_t>(s.parent)].len : 0;
    for (int64_t i = 0; i < s.len; ++i)
      rope.fill(before + i, before + s.len, s.start + i, w.ld, w.cos, w.sin);
  }
}

void Model::Impl::embed(Forward& f) {
  f.weights.catch_up(tensors.embedding);
  const int64_t n_tokens = f.work.n_tokens;
  const RowViews rows = f.weights.rows(tensors.embedding, f.batch.tokens);
  f.context.pool->run(panels_of(n_tokens), [&](int64_t panel, int thread) {
    const int64_t t0 = panel * kLanes, n = std::min(kLanes, n_tokens - t0);
    f.weights.embed(tensors.embedding, rows, f.batch.tokens.data() + t0, n, t0, f.work.x, f.work.ld,
                    f.work.strip[static_cast<size_t>(thread)]);
  });
}

Model::Model(const ModelConfig& config, Store& store) : impl_(std::make_unique<Impl>(config, store)) {
  const std::vector<ParameterSpec> expected = parameters_of(config);
  check<FormatError>(static_cast<int64_t>(expected.size()) == store.n_tensors(), "model",
                     "the store holds " + std::to_string(store.n_tensors()) + " tensors, expected " +
                         std::to_string(expected.size()) + " by config.json");
  for (size_t i = 0; i < expected.size(); ++i) {
    const TensorRequest& r = store.request(static_cast<uint32_t>(i));
    const ParameterSpec& p = expected[i];
    check<FormatError>(r.name == p.name && r.rows == p.rows && r.cols == p.cols, "model",
                       "tensor " + std::to_string(i) + " of the store is " + r.name + " [" +
                           std::to_string(r.rows) + ", " + std::to_string(r.cols) + "], expected " + p.name +
                           " [" + std::to_string(p.rows) + ", " + std::to_string(p.cols) +
                           "] by config.json");
  }
}

Model::~Model() = default;

const ModelConfig& Model::config() const { return impl_->config; }

namespace {

ForwardShape shape_of(const VisitContext& c, const Store& store, int64_t embedding) {
  ForwardShape s;
  s.kernels = c.kernels, s.compute = c.compute;
  s.n_branches = static_cast<int64_t>(c.branches.size()), s.n_threads = c.pool->size();
  s.row_bytes = store.row_bytes(static_cast<uint32_t>(embedding));
  for (const TensorMethod& m : *c.methods) {
    if (!m.trained || !m.low_rank) continue;
    s.low_rank = m.low_rank;
    s.most_rank = m.most_rank;
    s.updates_by_factors = !m.only_read;
    s.n_waiting = c.n_waiting;
    break;
  }
  return s;
}

}  // namespace

int64_t Model::forward_bytes(const Batch& batch, const VisitContext& context, bool want_logits,
                             bool left) const {
  return smezo::forward_bytes(impl_->config, batch, shape_of(context, impl_->store, impl_->tensors.embedding),
                              want_logits, left ? impl_->arena.size_bytes() + impl_->rope.size_bytes() : 0);
}

int64_t Model::n_units() const {
  return static_cast<int64_t>(pass_of(impl_->tensors, true, cut_of(impl_->store)).size());
}

void Model::drop_buffers() {
  impl_->arena = Arena();
  impl_->rope = RopeTable(impl_->config);
}

ForwardResult Model::forward(const Batch& batch, const VisitContext& context, bool want_logits) {
  check_batch(batch, impl_->config, want_logits);
  PartTimes times;
  Weights weights(context, impl_->store);
  const bool whole_head = asks_whole_head(batch, want_logits);
  Workspace work = plan_workspace(impl_->arena, impl_->config, batch,
                                  shape_of(context, impl_->store, impl_->tensors.embedding), whole_head);
  Forward f{impl_->config, context, batch, weights, work, times};
  impl_->store.begin_pass(pass_of(impl_->tensors, whole_head, cut_of(impl_->store)));
  impl_->fill_rope(batch, work);
  times.spent(Part::other);
  impl_->embed(f);
  times.spent(Part::embed);

  const std::vector<LayerTensors>& layers = impl_->tensors.layers;
  for (size_t l = 0; l < layers.size(); ++l) run_block(f, layers[l], l + 1 == layers.size());
  ForwardResult result;
  result.values = run_head(f, impl_->tensors, want_logits);
  impl_->store.expect_same_pass();
  // Of the vocabulary only the batch's tokens and the candidates were read: its mapped pages need not stay
  // resident.
  for (const int64_t id : {impl_->tensors.embedding, impl_->tensors.head}) {
    if (!whole_head || id != impl_->tensors.head) impl_->store.rest(static_cast<uint32_t>(id));
  }
  for (int p = 0; p < kParts; ++p)
    result.parts.emplace_back(kPartNames[static_cast<size_t>(p)], times.seconds(p));
  return result;
}

}  // namespace smezo
