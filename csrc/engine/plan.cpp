#include "engine/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/pages.h"
#include "direction/threshold.h"
#include "engine/generation_interval.h"
#include "kernels/overlay.h"
#include "model/batch_check.h"
#include "model/factors.h"
#include "model/layout.h"
#include "model/pass.h"
#include "store/plan.h"
#include "store/uploads.h"

namespace smezo {
namespace {

// Of a thread that counts magnitudes (direction/threshold.cpp).
constexpr int64_t kHistogramBytes = int64_t{8} << 16;

// Not mapped in place: it does not lie at a multiple of its size.
bool is_aligned(const BaseTensor& t) {
  if (t.dtype == DType::NF4 || t.dtype == DType::I8) return true;
  return t.data->offset % dtype_bytes(t.dtype) == 0;
}

bool whole_head(const Batch& batch, const StepShape& shape) {
  return asks_whole_head(batch, shape.want_logits);
}

int64_t n_label_columns(const Batch& batch) {
  std::set<int64_t> columns;
  for (const Label& l : batch.labels) columns.insert(l.position);
  return static_cast<int64_t>(columns.size());
}

}  // namespace

int64_t other_bytes(const MethodConfig& m, int n_threads, size_t n_tensors, int64_t n_units) {
  constexpr int64_t kAlways = int64_t{13} << 18, kThread = int64_t{64} << 10, kEntry = 2048;
  // What is to be read and where it goes, and where what stays is found: of a small ring's units there are
  // thousands.
  constexpr int64_t kUnit = static_cast<int64_t>(sizeof(ReadJob) + 2 * sizeof(Unit)) + 64;
  // Of a generation: tensors, and what the rule keeps of each.
  const int64_t n_kept = m.keeps_moments() && !m.lies_beside() ? n_moments(m.rule) : 0;
  const int64_t n_entries = static_cast<int64_t>(n_tensors) * (1 + n_kept);
  return kAlways + n_threads * kThread + n_entries * kEntry + n_units * kUnit;
}

Planner::Planner(const EngineOptions& options)
    : options_(options),
      opening_(opening_of(options)),
      base_(options.model_dir, opening_.requests),
      n_indexed_(opening_.requests.size(), 0),
      kernels_(kernels_for(choose_isa())),
      n_threads_(options.threads > 0 ? options.threads : default_threads()) {
  if (options.method.has_index_set())
    n_indexed_ = index_counts(options.method, opening_.trained, opening_.requests);
}

StreamOptions Planner::stream(int64_t budget) const {
  StreamOptions out = stream_options_of(options_);
  out.budget_bytes = budget;
  return out;
}

bool Planner::streams_trained(int64_t budget) const {
  return options_.memory_budget > 0 &&
         smezo::streams_trained(stream(budget), opening_.requests, opening_.values);
}

bool Planner::packs(uint32_t id) const {
  const MethodConfig& m = options_.method;
  return opening_.requests[id].trained && opening_.requests[id].rows > 1 &&
         (mask_kind(m) == MaskKind::small || mask_kind(m) == MaskKind::large);
}

int64_t Planner::n_state(uint32_t id) const {
  if (!opening_.trained[id]) return 0;
  if (options_.method.has_index_set()) return n_indexed_[id];
  if (options_.method.lies_beside()) return 0;
  const int64_t n = opening_.requests[id].rows * opening_.requests[id].cols;
  return packs(id) ? n_kept(n, options_.method.sparsity) : n;
}

Planner::Fixed Planner::fixed(int64_t budget) const {
  Fixed f;
  const bool streams = options_.memory_budget > 0, keeps_trained = !streams_trained(budget);
  for (uint32_t id = 0; id < opening_.requests.size(); ++id) {
    const TensorRequest& r = opening_.requests[id];
    const BaseTensor& t = base_.tensor(id);
    const bool copied = streams ? is_copied(r, t.dtype, keeps_trained) : r.trained || !is_aligned(t);
    if (copied) f.copies += whole_pages(copy_bytes(r.rows * r.cols, r.trained ? opening_.values : t.dtype));
    if (has_index_set(id)) f.index_sets += IndexOverlay::n_bytes_of(r.rows, n_indexed_[id]);
    if (opening_.trained[id]) {
      if (keeps_trained || r.rows == 1 || has_index_set(id))
        f.moments += n_moments(options_.method.rule) *
                     whole_pages(n_moments_of(options_.method, r.rows, r.cols, n_indexed_[id]) * 4);
      f.factors += low_rank_kept_bytes(options_.method, r.rows, r.cols);
    }
    if (packs(id) && !keeps_trained) f.supports += (r.rows + 1) * static_cast<int64_t>(sizeof(uint32_t));
  }
  f.streams_trained = !keeps_trained;
  f.scales = base_.scale_bytes();
  if (streams) {
    const int64_t ring = whole_pages(ring_bytes_for(stream(budget), base_, opening_.requests));
    f.ring = keeps_trained ? ring : 2 * ring;  // one more for states
  }
  const int64_t n_units =
      streams ? static_cast<int64_t>(pass_of(tensors_of(opening_.config), true, cut(budget)).size()) : 0;
  f.other = other_bytes(options_.method, n_threads_, opening_.requests.size(), n_units);
  return f;
}

// While the base is hashed each thread reads through a buffer; index sets and, but for NF4 weights that are
// copied, the ring are not there yet. Then the largest index set is listed before it is packed, or weights
// are counted by their magnitude.
int64_t Planner::opening_bytes(const Fixed& f) const {
  if (options_.memory_budget == 0) return 0;
  const int64_t most = *std::max_element(n_indexed_.begin(), n_indexed_.end());
  const int64_t listing = most * static_cast<int64_t>(sizeof(int64_t));
  const int64_t counting = options_.method.sparsity > 0 ? n_threads_ * kHistogramBytes : 0;
  const bool reads_again = !units_to_copy(base_, opening_.requests, 1 << 20, f.streams_trained).empty();
  const int64_t hashing = n_threads_ * kHashBufferBytes - f.index_sets - (reads_again ? 0 : f.ring);
  return f.sum() + std::max({listing, counting, hashing});
}

int64_t Planner::needed(int64_t budget, int64_t forward) const {
  const Fixed f = fixed(budget);
  return std::max(f.sum() + forward, opening_bytes(f));
}

void Planner::check_opening() const {
  if (options_.memory_budget == 0) return;
  const int64_t least = smallest_budget(0);
  check<BudgetError>(options_.memory_budget >= least, "memory_budget",
                     std::to_string(options_.memory_budget) + " bytes, expected at least the " +
                         std::to_string(least) +
                         " that working copies, index sets and the ring for streamed weights take before any "
                         "batch");
}

MicroBatches Planner::micro_batches(const Batch& batch, const StepShape& shape, int64_t room) const {
  check_batch(batch, opening_.config, shape.want_logits);
  const Compute compute = compute_for(options_.dtype, base_.dtype());
  const uint32_t embedding = static_cast<uint32_t>(tensors_of(opening_.config).embedding);
  const BaseTensor& t = base_.tensor(embedding);
  const TensorRequest& r = opening_.requests[embedding];
  const bool reads_rows = options_.memory_budget > 0
                              ? !is_copied(r, t.dtype, !streams_trained(options_.memory_budget))
                              : !r.trained && is_aligned(t) && t.dtype != DType::NF4;
  const bool streams = r.trained && streams_trained(options_.memory_budget);
  const int64_t row_bytes = streams      ? copy_bytes(t.cols, opening_.values)
                            : reads_rows ? single_row_bytes(t)
                                         : 0;
  const MethodConfig& method = options_.method;
  const ForwardShape forward{&kernels_,
                             compute,
                             shape.n_branches,
                             n_threads_,
                             row_bytes,
                             method.low_rank_of(),
                             method.all_ranks(),
                             !method.only_reads,
                             most_waiting(method.low_rank_of(), options_.generation_every)};
  return micro_batches_for(
      batch, room,
      [&](const Batch& b) { return forward_bytes(opening_.config, b, forward, shape.want_logits); },
      value_bytes(opening_.config, batch, shape.n_branches, shape.want_logits));
}

bool Planner::fits(const Batch& batch, const StepShape& shape) const {
  const int64_t budget = options_.memory_budget;
  return budget == 0 || needed(budget, micro_batches(batch, shape, 0).forward_bytes) <= budget;
}

// The ring grows with the budget, but by an eighth of it: what is left over grows too.
int64_t Planner::smallest_budget(int64_t forward) const {
  int64_t low = 0, high = 1 << 20;
  while (needed(high, forward) > high) low = high, high *= 2;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (needed(middle, forward) <= middle ? high : low) = middle;
  }
  return high;
}

// As the store cuts its tensors.
Cut Planner::cut(int64_t budget) const {
  const int64_t unit_bytes =
      unit_bytes_for(whole_pages(ring_bytes_for(stream(budget), base_, opening_.requests)));
  const auto in_memory = [this, keeps_trained = !streams_trained(budget)](uint32_t id) {
    return is_copied(opening_.requests[id], base_.tensor(id).dtype, keeps_trained);
  };
  Cut cut;
  cut.rows = [this](uint32_t id) { return opening_.requests[id].rows; };
  cut.unit_rows = [this, in_memory, unit_bytes](uint32_t id) {
    const TensorRequest& r = opening_.requests[id];
    return in_memory(id) ? r.rows : streamed_unit_rows(base_.tensor(id), r, unit_bytes, opening_.values);
  };
  cut.unit_step = [this, in_memory](uint32_t id) {
    return in_memory(id) ? 1 : std::lcm(base_.tensor(id).row_multiple(), opening_.requests[id].row_step);
  };
  return cut;
}

// What begin_pass keeps of a pass with `room` bytes for units that stay, and what each later step reads once
// there is a generation.
Planner::Streaming Planner::streaming(const Batch& batch, const MicroBatches& micro, const StepShape& shape,
                                      int64_t room) const {
  const int64_t budget = options_.memory_budget;
  const int64_t ring = whole_pages(ring_bytes_for(stream(budget), base_, opening_.requests));
  const bool keeps_trained = !streams_trained(budget);
  const auto request = [&](uint32_t id) -> const TensorRequest& { return opening_.requests[id]; };
  const auto in_memory = [&](uint32_t id) {
    return is_copied(request(id), base_.tensor(id).dtype, keeps_trained);
  };
  const Cut cut = this->cut(budget);
  const ModelTensors tensors = tensors_of(opening_.config);
  Streaming out;
  int64_t through = 0, states = 0;  // the ring of what is read, the ring of states
  int64_t kept = 0;
  if (options_.device_bytes > 0) room = options_.device_bytes - ring;
  std::vector<Unit> pass = pass_of(tensors, whole_head(batch, shape), cut);
  std::reverse(pass.begin(), pass.end());  // the last ones stay
  for (const Unit& u : pass) {
    if (in_memory(u.tensor_id)) continue;
    const ReadJob job = read_job_for(base_, u);
    const TensorRequest& r = request(u.tensor_id);
    const int64_t n_bytes = options_.device_bytes > 0 ? Uploads::room_for(job) : Transfer::room_for(job);
    const int64_t moments = r.n_moments * r.moment_bytes(u.n_rows);
    through += moments;
    out.bytes_read += moments;
    const bool stays = !r.trained && kept + n_bytes <= room;
    if (!stays || options_.device_bytes > 0) through += Transfer::room_for(job);
    if (stays) {
      kept += n_bytes;
      continue;
    }
    if (r.trained && !packs(u.tensor_id)) continue;  // a dense generation has everything
    for (const ReadPart& p : job.parts) out.bytes_read += p.n_bytes;
  }
  std::set<uint32_t> visited;
  for (const Unit& u : pass) visited.insert(u.tensor_id);
  for (uint32_t id = 0; id < opening_.requests.size() && !keeps_trained; ++id) {
    if (!request(id).trained || in_memory(id)) continue;
    const int64_t state = bytes_of(opening_.values, n_state(id));
    if (visited.count(id)) {
      states += copy_bytes(request(id).rows * request(id).cols, opening_.values);
      out.bytes_read += state;
      through += state;
    } else {
      out.bytes_read_to_write += state + (packs(id) ? base_.tensor(id).data->n_bytes : 0);
    }
  }
  out.bytes_read *= static_cast<int64_t>(micro.n());
  const auto rows = [&](int64_t tensor, size_t n) {
    const uint32_t id = static_cast<uint32_t>(tensor);
    if (in_memory(id)) return;
    const bool trains = request(id).trained;
    int64_t row = trains ? bytes_of(opening_.values, n_state(id)) / request(id).rows : 0;
    if (!trains || packs(id)) row += bytes_of(base_.tensor(id).dtype, request(id).cols);
    out.bytes_read += row * static_cast<int64_t>(n);
  };
  for (size_t i = 0; i < micro.n(); ++i) {
    const std::vector<int32_t>& tokens = micro.at(i, batch).tokens;
    rows(tensors.embedding, std::set<int32_t>(tokens.begin(), tokens.end()).size());
    if (!whole_head(batch, shape)) rows(tensors.head, batch.candidates.size());
  }
  // Index sets are filled, and NF4 weights made working copies, through the ring when it is opened.
  const auto room_of = [&](const std::vector<Unit>& units) {
    int64_t n = 0;
    for (const Unit& u : units) n += Transfer::room_for(read_job_for(base_, u));
    return n;
  };
  through = std::max(through,
                     room_of(units_to_copy(base_, opening_.requests, unit_bytes_for(ring), !keeps_trained)));
  for (uint32_t id = 0; id < opening_.requests.size(); ++id) {
    if (has_index_set(id)) through = std::max(through, room_of(units_of({id}, cut)));
  }
  // A ring that is not filled is touched by huge pages.
  const auto touched = [&](int64_t n) {
    return std::min(ring, (n + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes);
  };
  out.ring = touched(through) + touched(states);
  out.kept = options_.device_bytes > 0 ? 0 : kept;  // in host memory
  return out;
}

// Pages of a mapped base that stay: what is trained is let go of after its copy is made, and rows of the
// vocabulary are read, not mapped, unless all of it is asked for.
int64_t Planner::mapped_bytes(const Batch& batch, const StepShape& shape) const {
  const ModelTensors tensors = tensors_of(opening_.config);
  const bool whole = whole_head(batch, shape);
  int64_t n = 0;
  for (uint32_t id = 0; id < opening_.requests.size(); ++id) {
    const BaseTensor& t = base_.tensor(id);
    const bool by_rows = id == tensors.embedding || id == tensors.head;
    if (opening_.requests[id].trained || (by_rows && !(id == tensors.head && whole))) continue;
    n += t.data->n_bytes + (t.absmax ? t.absmax->n_bytes : 0);
  }
  return n;
}

int64_t Planner::generation_bytes() const {
  const MethodConfig& m = options_.method;
  const bool streams = streams_trained(options_.memory_budget);
  int64_t n_bytes = 0;
  for (uint32_t id = 0; id < opening_.requests.size(); ++id) {
    if (!opening_.trained[id]) continue;
    const TensorRequest& r = opening_.requests[id];
    // What lies in memory is written as it lies there.
    const int64_t n = packs(id) && !streams ? r.rows * r.cols : n_state(id);
    n_bytes += bytes_of(opening_.values, n) + n_moments(m.rule) *
                                                  n_moments_of(m, r.rows, r.cols, n_indexed_[id]) *
                                                  static_cast<int64_t>(sizeof(float));
  }
  return n_bytes;
}

double Planner::update_seconds(const Rates& rates) const {
  double n = 0;
  for (uint32_t id = 0; id < opening_.requests.size(); ++id) {
    const TensorRequest& r = opening_.requests[id];
    n += static_cast<double>(has_index_set(id) ? n_indexed_[id] : r.trained ? r.rows * r.cols : 0);
  }
  const MethodConfig& m = options_.method;
  const double noises = m.low_rank != LowRankKind::none ? 1 : m.queries * std::max(1, m.window);
  return n * (1 - m.drop) * noises / rates.updates_per_s;
}

// As the engine decides (Engine::Impl::generation_is_due): at the least cost of writing and of replaying.
double Planner::steps_a_generation(const Rates& rates) const {
  if (!streams_trained(options_.memory_budget))
    return rates.updates_per_s > 0 ? kLongestReplay / update_seconds(rates) : 0;
  const double writing = static_cast<double>(generation_bytes()) / kGuessedWriteBytesPerS;
  const int every =
      options_.generation_every > 0
          ? options_.generation_every
          : steps_between_generations(writing, rates.updates_per_s > 0 ? update_seconds(rates) : 0);
  const int64_t longest = steps_that_may_wait(options_.method.low_rank_of());
  return static_cast<double>(longest > 0 ? std::min<int64_t>(every, longest) : every);
}

double Planner::compute_seconds(const Batch& batch, int64_t n_passes, const StepShape& shape,
                                const Rates& rates) const {
  const ModelConfig& c = opening_.config;
  const ModelTensors tensors = tensors_of(c);
  const double n_tokens = static_cast<double>(batch.tokens.size());
  const double n_columns = static_cast<double>(n_label_columns(batch));
  double products = 0, operands = 0;  // of a branch; weights
  const auto add = [&](int64_t id, double columns, int64_t rows) {
    const TensorRequest& r = opening_.requests[static_cast<size_t>(id)];
    const double n = static_cast<double>((rows < 0 ? r.rows : rows) * r.cols);
    products += n * columns;
    const MethodConfig& m = options_.method;
    const bool apart = opening_.trained[static_cast<size_t>(id)] && m.low_rank == LowRankKind::none;
    operands += n * (apart ? m.drop + (1 - m.drop) * m.queries : 1);
  };
  for (size_t l = 0; l < tensors.layers.size(); ++l) {
    const LayerTensors& t = tensors.layers[l];
    const double late = l + 1 == tensors.layers.size() ? n_columns : n_tokens;
    for (const int64_t id : {t.q, t.k, t.v}) add(id, n_tokens, -1);
    for (const int64_t id : {t.o, t.gate, t.up, t.down}) add(id, late, -1);
  }
  add(tensors.head, n_columns,
      whole_head(batch, shape) ? c.vocab_size : static_cast<int64_t>(batch.candidates.size()));
  for (const Segment& s : batch.segments) {
    const double before =
        s.parent < 0 ? 0 : static_cast<double>(batch.segments[static_cast<size_t>(s.parent)].len);
    const double len = static_cast<double>(s.len);
    products += 2 * len * (before + len / 2) * static_cast<double>(c.n_heads * c.head_dim * c.n_layers);
  }
  const double passes = static_cast<double>(n_passes);
  return 2 * products * static_cast<double>(shape.n_branches) / rates.gemm_flops_per_s +
         passes * operands / rates.operands_per_s +
         update_seconds(rates) *
             (streams_trained(options_.memory_budget) ? passes * (steps_a_generation(rates) + 1) / 2 : 1);
}

Plan Planner::of(const Batch& batch, const StepShape& shape, const Rates& rates,
                 double read_bytes_per_s) const {
  Plan out;
  out.budget_bytes = options_.memory_budget;
  Fixed f = fixed(out.budget_bytes);
  out.streams_trained = f.streams_trained;
  const int64_t room =
      out.budget_bytes > 0 ? out.budget_bytes - f.sum() : std::numeric_limits<int64_t>::max();
  const MicroBatches micro = micro_batches(batch, shape, std::max<int64_t>(room, 0));
  const int64_t forward = micro.forward_bytes;
  out.n_micro_batches = static_cast<int64_t>(micro.n());
  int64_t kept = 0, mapped = 0;
  if (out.budget_bytes > 0) {
    out.fits = needed(out.budget_bytes, forward) <= out.budget_bytes;
    const Streaming s = streaming(batch, micro, shape, room - forward);
    kept = s.kept;
    out.bytes_read = s.bytes_read;
    if (const double steps = steps_a_generation(rates); steps > 0)
      out.bytes_read += static_cast<int64_t>(static_cast<double>(s.bytes_read_to_write) / steps);
    out.smallest_budget_bytes = smallest_budget(micro_batches(batch, shape, 0).forward_bytes);
    f.ring = s.ring;
  } else {
    mapped = mapped_bytes(batch, shape);
  }
  out.peak_bytes = f.sum() + forward + kept + mapped;
  const int64_t opening = std::max<int64_t>(0, opening_bytes(f) - out.peak_bytes);
  out.peak_bytes += opening;
  out.bytes_by_purpose = {{"working copies", f.copies},
                          {"index sets", f.index_sets},
                          {"supports", f.supports},
                          {"moments", f.moments},
                          {"factors", f.factors},
                          {"scales", f.scales},
                          {"ring", f.ring},
                          {"resident units", kept},
                          {"mapped base", mapped},
                          {"forward", forward},
                          {"opening", opening},
                          {"other", f.other}};
  out.bytes_written = kRecordHeadBytes + 4 * options_.method.n_scalars();
  if (out.streams_trained) {
    out.generation_bytes = generation_bytes();
    out.steps_a_generation = steps_a_generation(rates);
  }
  if (const double steps = steps_a_generation(rates); steps > 0)
    out.bytes_written += static_cast<int64_t>(static_cast<double>(generation_bytes()) / steps);
  if (rates.gemm_flops_per_s > 0 && rates.operands_per_s > 0 && rates.updates_per_s > 0) {
    out.step_s = compute_seconds(batch, out.n_micro_batches, shape, rates);
    if (out.bytes_read > 0 && read_bytes_per_s <= 0) {
      out.step_s = -1;
    } else if (out.bytes_read > 0) {
      const double reading = static_cast<double>(out.bytes_read) / read_bytes_per_s;
      out.step_s = options_.n_readers > 0 ? std::max(out.step_s, reading) : out.step_s + reading;
    }
  }
  return out;
}

}  // namespace smezo
