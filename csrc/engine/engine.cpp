// Open, probe, commit. Resuming lives in resume.cpp, what is saved in checkpoint.cpp and generation.cpp.
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/generation_interval.h"
#include "engine/plan.h"
#include "model/batch_check.h"
#include "model/catch_up.h"
#include "update/rule.h"

namespace smezo {
Engine::Impl::Impl(const EngineOptions& o)
    : options(o),
      isa(choose_isa()),
      kernels(kernels_for(isa)),
      pool(o.threads > 0 ? o.threads : default_threads()) {
  if (o.memory_budget > 0) Planner(o).check_opening();
  const Opening opening = opening_of(o);
  parameters = opening.parameters;
  const std::vector<TensorRequest>& requests = opening.requests;
  const DType values = opening.values;
  if (o.memory_budget > 0) {
    store = Store::open_streamed(o.model_dir, requests, values, stream_options_of(o), pool);
  } else {
    store = Store::open(o.model_dir, requests, values, pool);
  }
  model = std::make_unique<Model>(opening.config, *store);

  header.instruction_set = numerics_name(isa);
  header.base_fingerprint = store->fingerprint();
  header.mathematics = mathematics(opening.config);
  header.method = o.method;
  header.values = values;
  header.compute = compute_for(o.dtype, store->base_dtype());
  header.operand = operand_from_name(o.operand);
  header.reduction = reduction_from_name(o.reduction);
  header.seed = o.seed;

  factors = std::make_unique<FactorSource>(o.seed, kernels, pool, o.method.only_reads);
  rules = std::make_unique<RecordRules>(o.method, o.seed, opening.config.n_layers);
  if (o.method.has_index_set()) {
    header.method.index_hash = hash_of_index(o.method.index);
    place_index_sets(o.method, opening.trained, o.seed, *store, kernels, pool);
    tell_originals();
  }

  if (!o.run_dir.empty()) {
    make_folders(o.run_dir);
    lock = std::make_unique<RunLock>(o.run_dir);
    journal_path = o.run_dir + "/journal.smz";
    if (folder_exists(generations())) remove_temporaries(generations());
  }
  check<ArgumentError>(!replays() || o.run_dir.empty(), "journal",
                       "a run folder too, expected one of them: a run folder has its own");
  if (replays() || (!journal_path.empty() && file_exists(journal_path))) {
    resume(opening);
  } else {
    check<ArgumentError>(journal_path.empty() || list_generations(generations()).empty(), "run folder",
                         o.run_dir +
                             " holds generations of a run but no journal.smz, expected both or "
                             "neither; put the journal back, or name a new run folder");
    selection = select(o.method, opening.trained, opening.layers, *store, kernels, pool);
    keep_supports();
    keep_moments();
    besides = std::make_unique<Besides>(selection.tensors, parameters, *factors, header.seed);
    for (const TensorMethod& t : selection.tensors) header.masks.push_back(t.mask);
    header.n_selected = selection.n_selected;
    if (!o.delta.empty()) {
      const StateReader delta = open_delta(o.delta, header.base_fingerprint);
      header.delta_hash = delta.identity();
      load_delta(delta);
    }
    begin(0);
  }
}

void Engine::Impl::begin(uint32_t watermark) {
  pending =
      std::make_unique<Pending>(*store, selection.tensors, kernels, pool, *factors, header.seed, watermark);
}

void Engine::Impl::apply(const Record& r) {
  const PendingRecord p = rules->next(r);
  besides->apply(p);
  pending->push(p);
}

void Engine::Impl::keep_moments() {
  const MethodConfig& m = header.method;
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained) continue;
    const IndexOverlay* const overlay = store->overlay(id);
    const int64_t n = n_moments_of(m, parameters[id].rows, parameters[id].cols, overlay ? overlay->n() : 0);
    check<ArgumentError>(
        n == 0 || !store->streams_state(id) || parameters[id].block_linear, "memory_budget",
        "what trains does not fit, and rule " + std::string(word(m.rule)) + " keeps moments of '" +
            parameters[id].name +
            "', of which single rows are read; expected only weights of the decoder blocks, a "
            "window (moments are then rebuilt from the journal), or a larger budget");
    if (n > 0 && !store->streams_state(id))
      store->keep_moments(id, n, n_moments(m.rule), first_moment(m.rule));
  }
}

void Engine::Impl::tell_originals() {
  int64_t n = 0;
  for (uint32_t id = 0; id < parameters.size(); ++id) n += store->overlay(id) ? store->overlay(id)->n() : 0;
  if (store->has_originals() && store->n_originals() < n)
    notes.push_back(std::to_string(store->n_originals()) + " of " + std::to_string(n) +
                    " elements of the index set start from the originals that were kept, the others from "
                    "what their quantized weights decode to");
}

void Engine::Impl::keep_supports() {
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (selection.tensors[id].trained)
      store->keep_support(id, direction_of(selection.tensors[id], id, header.seed, 0, 0), kernels, pool);
  }
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::open(const EngineOptions& options) {
  constexpr int kTries = 10;
  for (int i = 1;; ++i) {
    try {
      return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(options)));
    } catch (const GenerationReplaced&) {
      if (i == kTries) throw;
    }
  }
}

float Engine::least_eps() const {
  const bool curved = impl_->header.method.plan == QueryPlan::curved;
  return curved && impl_->header.compute == Compute::bf16 ? 0.01f : 0.0f;
}

void Engine::check_eps(float eps) const {
  check<ArgumentError>(std::isfinite(eps) && eps > 0, "eps",
                       text(eps) + ", expected a positive number: it is the size of the perturbation");
  check<ArgumentError>(eps >= least_eps(), "eps",
                       text(eps) +
                           " for a second difference of bf16 products, expected at least 0.01, or dtype "
                           "fp32: at less it is mostly rounding");
}

void Engine::start(float lr, float eps) {
  check<ArgumentError>(!impl_->is_started, "start", "the run has started, its lr and eps are fixed");
  check<ArgumentError>(std::isfinite(lr) && lr > 0, "lr", text(lr) + ", expected a positive number");
  check_eps(eps);
  check<ArgumentError>(
      !impl_->streams_state() || !impl_->journal_path.empty(), "run_dir",
      "none, expected one: what trains does not fit in the memory budget, and generations of it need "
      "a place");
  impl_->factors->forget();  // of probes at steps that the run may never reach
  impl_->header.lr = lr;
  impl_->header.eps = eps;
  if (!impl_->journal_path.empty()) {
    impl_->journal = std::make_unique<Journal>(Journal::create(impl_->journal_path, to_json(impl_->header)));
    impl_->chain = impl_->journal->tail_checksum();
  }
  impl_->seconds_per_record = impl_->measure_replay_rate();
  impl_->is_started = true;
}

int64_t Engine::Impl::factor_bytes() const {
  int64_t n = 0;
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (selection.tensors[id].trained)
      n += low_rank_kept_bytes(header.method, parameters[id].rows, parameters[id].cols);
  }
  return n;
}

int64_t Engine::Impl::other_bytes() const {
  return smezo::other_bytes(header.method, pool.size(), parameters.size(),
                            options.memory_budget > 0 ? model->n_units() : 0);
}

int64_t Engine::Impl::fixed_bytes() const {
  return factor_bytes() + store->working_copy_bytes() + store->overlay_bytes() + store->support_bytes() +
         store->moment_bytes() + store->scale_bytes() + store->ring_bytes() + other_bytes();
}

// Whatever the batch leaves of the budget holds units that need not be read again.
MicroBatches Engine::Impl::make_room(const Batch& batch, const VisitContext& visit, bool want_logits) {
  const int64_t room =
      options.memory_budget > 0 ? options.memory_budget - fixed_bytes() : std::numeric_limits<int64_t>::max();
  const auto plan = [&](bool left) {
    return micro_batches_for(
        batch, room, [&](const Batch& b) { return model->forward_bytes(b, visit, want_logits, left); },
        value_bytes(model->config(), batch, static_cast<int64_t>(visit.branches.size()), want_logits));
  };
  MicroBatches out = plan(true);
  if (!out.parts.empty() || out.forward_bytes > room) {
    MicroBatches fresh = plan(false);
    if (fresh.n() < out.n() || out.forward_bytes > room) {
      model->drop_buffers();
      out = std::move(fresh);
    }
  }
  forward_bytes = out.forward_bytes;
  check<BudgetError>(forward_bytes <= room, "memory_budget",
                     std::to_string(options.memory_budget) + " bytes, expected at least " +
                         std::to_string(options.memory_budget - room + forward_bytes) + " for a batch of " +
                         std::to_string(batch.tokens.size()) + " tokens; allow more, or use shorter texts");
  if (options.memory_budget > 0) store->set_resident_bytes(room - forward_bytes);
  return out;
}

ProbeResult Engine::probe(const Batch& batch, const std::vector<Branch>& branches, uint32_t noise_step,
                          bool want_logits) {
  Impl& m = *impl_;
  VisitContext visit;
  visit.kernels = &m.kernels;
  visit.pool = &m.pool;
  visit.compute = m.header.compute;
  visit.mode = m.header.operand;
  visit.run_seed = m.header.seed;
  visit.step = noise_step;
  visit.branches = branches;
  visit.methods = &m.selection.tensors;
  visit.resting = m.rules->resting(noise_step);
  visit.factors = m.factors.get();
  visit.n_waiting = most_waiting(m.header.method.low_rank_of(), m.options.generation_every);
  visit.beside = [&m](uint32_t id) { return m.besides->of(id); };
  visit.catch_up = [&m](uint32_t id) { return m.pending->catch_up(id); };
  visit.caught_up = [&m](uint32_t id) { m.pending->caught_up(id); };
  check_batch(batch, m.model->config(), want_logits);  // cutting it trusts it
  const MicroBatches micro = m.make_room(batch, visit, want_logits);
  ForwardResult f;
  for (size_t i = 0; i < micro.n(); ++i) {
    ForwardResult found;
    const auto forward = [&] { found = m.model->forward(micro.at(i, batch), visit, want_logits); };
    if (m.generation_is_due()) {
      m.write_generation_with(forward);
    } else {
      forward();
    }
    if (micro.parts.empty()) {
      f = std::move(found);
    } else {
      put_into(f, batch.labels.size(), micro.parts[i], found);
    }
  }
  ProbeResult out;
  out.branches = branches;
  out.values = std::move(f.values);
  out.parts = std::move(f.parts);
  if (!want_logits) {
    for (const auto& v : out.values) out.losses.push_back(branch_loss(batch, v, m.header.reduction));
  }
  return out;
}

bool Engine::commit(const StepDecision& d) {
  Impl& m = *impl_;
  check<ArgumentError>(m.is_started, "commit", "the run has not started, expected start(lr, eps) first");
  check<ArgumentError>(
      !m.replays(), "commit",
      "a journal that is replayed, expected a run of its own: fork the run to go on from here");
  check<ArgumentError>(!m.mixed, "commit", "deltas in use, expected none: use({}) puts the base back");
  check<ArgumentError>(m.journal || m.journal_path.empty(), "commit",
                       "the run is closed, expected an open one: the record would be lost");
  check<ArgumentError>(d.scalars.size() == static_cast<size_t>(m.header.method.n_scalars()), "commit",
                       std::to_string(d.scalars.size()) +
                           " scalars, expected one a query: " + std::to_string(m.header.method.n_scalars()));
  const MethodConfig& method = m.header.method;
  const int64_t rank = (epoch_of(method.low_rank_of(), m.n_committed + 1) + int64_t{1}) * method.rank;
  check<ArgumentError>(!method.only_reads || rank <= method.most_rank(), "commit",
                       "step " + std::to_string(m.n_committed + 1) +
                           " begins new factors, which makes rank " + std::to_string(rank) +
                           " beside a base that is only read, expected at most rank_cap " +
                           std::to_string(method.most_rank()) +
                           "; merge what is trained and start anew, or allow more from the start");
  Record r;
  r.step = m.n_committed + 1;
  r.lr = d.lr;
  r.decay = decay_coefficient(d.lr, m.header.method.weight_decay);
  r.loss = d.loss;
  r.loss_plus = d.loss_plus;
  r.loss_minus = d.loss_minus;
  bool finite = std::isfinite(d.loss) && std::isfinite(d.lr);
  for (float g : d.scalars) finite &= std::isfinite(g);
  if (finite) {
    r.scalars = d.scalars;
  } else {
    r.kind = RecordKind::skipped;  // I11
    r.decay = 0;
  }
  if (m.journal) {
    m.journal->append(r);
    m.chain = m.journal->tail_checksum();
    if (++m.n_unsynced >= m.options.sync_every) sync();
  }
  m.n_committed = r.step;
  if (finite) m.apply(r);
  m.write_generation_if_replay_is_long();
  return finite;
}

void Engine::sync() {
  if (impl_->journal && impl_->n_unsynced > 0) impl_->journal->sync();
  impl_->n_unsynced = 0;
}

void Engine::flush() { impl_->flush(); }

void Engine::close() {
  // The run is let go of whatever happens here: else it could not be opened again before this process ends.
  const std::unique_ptr<RunLock> lock = std::move(impl_->lock);
  const std::unique_ptr<Journal> journal = std::move(impl_->journal);
  const bool owes = journal && journal->usable() && impl_->n_unsynced > 0;
  impl_->n_unsynced = 0;
  if (owes) journal->sync();
}

bool Engine::started() const { return impl_->is_started; }
float Engine::lr() const { return impl_->header.lr; }
float Engine::eps() const { return impl_->header.eps; }
uint32_t Engine::step() const { return impl_->n_committed; }
const ModelConfig& Engine::model_config() const { return impl_->model->config(); }
const RunHeader& Engine::header() const { return impl_->header; }
const std::vector<ParameterSpec>& Engine::parameters() const { return impl_->parameters; }
int Engine::threads() const { return impl_->pool.size(); }
int64_t Engine::working_copy_bytes() const { return impl_->store->working_copy_bytes(); }
int64_t Engine::device_bytes() const { return impl_->store->device_bytes(); }
Traffic Engine::traffic() const { return impl_->store->traffic(); }
int64_t Engine::generation_bytes_written() const { return impl_->generation_bytes; }

std::vector<std::pair<std::string, int64_t>> Engine::bytes_by_purpose() const {
  const Store& s = *impl_->store;
  return {{"working copies", s.working_copy_bytes()},
          {"index sets", s.overlay_bytes()},
          {"supports", s.support_bytes()},
          {"moments", s.moment_bytes()},
          {"factors", impl_->factor_bytes()},
          {"scales", s.scale_bytes()},
          {"ring", s.ring_bytes()},
          {"resident units", s.resident_bytes()},
          {"forward", impl_->forward_bytes},
          {"other", impl_->other_bytes()}};
}

const std::vector<std::string>& Engine::notes() const { return impl_->notes; }

int64_t Engine::n_trained() const {
  int64_t n = 0;
  for (int64_t k : impl_->selection.n_selected) n += k;
  return n;
}

std::vector<float> Engine::weights(uint32_t tensor_id) {
  check<ArgumentError>(tensor_id < impl_->parameters.size(), "weights",
                       "tensor id " + std::to_string(tensor_id) + ", expected less than " +
                           std::to_string(impl_->parameters.size()));
  const WeightView shape = impl_->store->shape(tensor_id);
  std::vector<float> out(static_cast<size_t>(shape.n()));
  impl_->for_values(tensor_id, [&](const float* values, int64_t row0, int64_t n) {
    std::copy_n(values, n * shape.cols, out.data() + row0 * shape.cols);
  });
  return out;
}

std::pair<std::vector<float>, std::vector<float>> Engine::factors(uint32_t id, uint32_t step,
                                                                  uint32_t query) const {
  Impl& m = *impl_;
  const LowRank& d = m.selection.tensors.at(id).low_rank;
  check<ArgumentError>(static_cast<bool>(d), "factors",
                       "tensor " + std::to_string(id) + " has no low-rank direction, expected one that has");
  const int64_t rows = m.parameters[id].rows, cols = m.parameters[id].cols, r = d.rank;
  const std::shared_ptr<const Factors> f = m.factors->of(d, id, rows, cols, epoch_of(d, step));
  std::vector<float> u(static_cast<size_t>(rows * r)), v(static_cast<size_t>(r * cols)), out(u.size(), 0.0f);
  f->u_rows(0, rows, step, query, u.data());
  for (int s = 0; s < d.rank; ++s) f->v_column(s, v.data() + s * cols);
  const std::vector<float> middle = f->middle(step, query);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t s = 0; s < r; ++s) {
      const float x = f->scale() * u[static_cast<size_t>(i * r + s)];
      float* const row = out.data() + i * r;
      if (d.kind == LowRankKind::uv) row[s] = x;
      if (d.kind == LowRankKind::utv) row[s] = x * middle[static_cast<size_t>(s)];
      for (int64_t t = 0; d.kind == LowRankKind::uzv && t < r; ++t)
        row[t] += x * middle[static_cast<size_t>(s * r + t)];
    }
  }
  return {out, v};
}

std::vector<float> Engine::coefficients(uint32_t id) const {
  return impl_->besides->of(id) ? impl_->besides->at(id).values : std::vector<float>();
}

std::vector<float> Engine::moments(uint32_t id, int k) {
  flush();
  const float* const values = impl_->store->moments(id, k);
  return values ? std::vector<float>(values, values + impl_->store->n_moments(id)) : std::vector<float>();
}

std::vector<bool> Engine::resting(uint32_t step) const { return impl_->rules->resting(step); }

TensorDirection Engine::direction(uint32_t tensor_id, uint32_t step, uint32_t query) const {
  return direction_of(impl_->selection.tensors.at(tensor_id), tensor_id, impl_->header.seed, step, query);
}

}  // namespace smezo
