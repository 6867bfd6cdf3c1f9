// Generations of an engine: when one is due, writing it beside a pass, and taking it back.
#include <algorithm>
#include <chrono>
#include <limits>

#include "base/error.h"
#include "engine/checkpoint.h"
#include "engine/generation_interval.h"
#include "format/codec.h"
#include "model/catch_up.h"

namespace smezo {

bool Engine::Impl::streams_state() const {
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (store->streams_state(id)) return true;
  }
  return false;
}

bool Engine::Impl::generation_is_due() const {
  if (!journal || !is_started || n_committed == newest_generation || !streams_state()) return false;
  if (waited_long_enough(header.method.low_rank_of(), newest_generation + 1, n_committed + 1)) return true;
  int every = options.generation_every;
  if (every == 0) {
    double writing = generation_seconds;
    if (writing == 0) {
      for (uint32_t id = 0; id < parameters.size(); ++id) {
        const int64_t n = store->packs(id) ? store->n_packed(id) : store->shape(id).n();
        if (store->streams_state(id))
          writing += static_cast<double>(bytes_of(header.values, n)) / kGuessedWriteBytesPerS;
      }
    }
    every = steps_between_generations(writing, seconds_per_record);
  }
  return n_committed - newest_generation >= static_cast<uint32_t>(every);
}

void Engine::Impl::write_generation_with(const std::function<void()>& forward) {
  if (journal && n_unsynced > 0) journal->sync();  // I2
  n_unsynced = 0;
  std::vector<StateTensor> tensors;
  std::vector<uint32_t> ids;
  std::vector<size_t> index(parameters.size()), moments_at(parameters.size());
  std::vector<std::pair<size_t, Moments>> moments;
  int64_t n_bytes = 0;
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained) continue;
    const IndexOverlay* const overlay = store->overlay(id);
    StateTensor t;
    t.name = parameters[id].name;
    t.dtype = header.values;
    t.packed = overlay || store->packs(id);
    t.shape = t.packed ? std::vector<int64_t>{overlay ? overlay->n() : store->n_packed(id)}
                       : std::vector<int64_t>{parameters[id].rows, parameters[id].cols};
    n_bytes += bytes_of(t.dtype, t.n());
    index[id] = tensors.size();
    const std::string name = t.name;
    tensors.push_back(std::move(t));
    ids.push_back(id);
    moments_at[id] = tensors.size();
    for (int k = 0; k < 2; ++k) {
      const Moments kept = moments_of(*this, moment_name(name, k));
      if (kept.n == 0) continue;
      if (kept.values) moments.emplace_back(tensors.size(), kept);
      tensors.push_back({moment_name(name, k), DType::F32, {kept.n}, true});
      n_bytes += kept.n * 4;
    }
  }
  const std::string folder = generations();
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto begin = now();
  std::chrono::duration<double> in_forward{0}, in_writes{0};
  std::vector<char> visited(parameters.size(), false);
  struct StopWriting {
    Store& store;
    ~StopWriting() { store.write_units({}); }
  };
  write_generation(folder, state_header(*this), tensors, [&](StateSink& sink) {
    store->write_units([&](uint32_t id, const Store::UnitState& unit) {
      visited[id] = true;
      const auto before = now();
      if (unit.n > 0) sink.write(index[id], unit.values, unit.tail, unit.n);
      for (int k = 0; k < store->request(id).n_moments; ++k)
        sink.write(moments_at[id] + static_cast<size_t>(k), unit.moments[k], nullptr, unit.n_moments);
      in_writes += now() - before;
    });
    // Before what the writer holds: where the forward throws, it has to end first.
    const StopWriting stop{*store};
    const auto before = now();
    forward();
    in_forward = now() - before;
    store->finish_writing();
    for (const uint32_t id : ids) {
      if (const IndexOverlay* o = store->overlay(id)) {
        flush();
        sink.write(index[id], o->value.data(), nullptr, o->n());
      } else if (store->streams_state(id)) {
        // What no pass visits.
        if (!visited[id]) pending->for_state(id, [](const WeightView&, int64_t, int64_t) {});
        store->finish_writing();
      } else {
        pending->for_state(
            id, [&](const WeightView& w, int64_t, int64_t) { sink.write(index[id], w.data, w.tail, w.n()); });
      }
    }
    flush();
    for (const auto& [at, kept] : moments) sink.write(at, kept.values, nullptr, kept.n);
  });
  newest_generation = n_committed;
  generation_bytes += n_bytes;
  if (streams_state()) {
    store->use_generation(StateReader::open(generation_path(folder, n_committed), StateKind::generation));
    pending->streamed_state_is_at_tail();
    // Writing on the way takes one thread of several.
    generation_seconds =
        std::chrono::duration<double>(now() - begin - in_forward + in_writes / pool.size()).count();
  }
  remove_old_generations(folder, 1);
}

void Engine::save_generation() {
  check<ArgumentError>(impl_->journal != nullptr, "generation", "there is no run folder to write it to");
  if (impl_->header.method.lies_beside()) return;  // the journal alone is as good
  impl_->write_generation_with([] {});
}

void Engine::Impl::write_generation_if_replay_is_long() {
  if (!journal || streams_state() || header.method.lies_beside()) return;
  const uint32_t since = std::max(newest_generation, last_attempt);
  if ((n_committed - since) * seconds_per_record <= kLongestReplay) return;
  last_attempt = n_committed;
  journal->sync();  // outside: a journal that cannot be synced is no note
  n_unsynced = 0;
  try {
    write_generation_with([] {});
  } catch (const IoError& e) {
    note_unwritten(e);
  }
}

void Engine::Impl::note_unwritten(const IoError& e) {
  notes.push_back("no generation of step " + std::to_string(n_committed) +
                  " could be written, opening the run again takes longer: " + e.what());
}

// The best of three times that `replay` takes.
template <class Replay>
static double seconds_of(const Replay& replay) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    replay();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

double Engine::Impl::measure_replay_rate() {
  constexpr int64_t kElements = 1 << 17;
  int64_t n_all = 0, most = 0;
  uint32_t largest = 0;
  if (header.method.lies_beside()) return 0;
  const auto n_of = [&](uint32_t id) {
    return store->overlay(id) ? store->overlay(id)->n() : store->shape(id).n();
  };
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained) continue;
    n_all += n_of(id);
    if (n_of(id) > most) most = n_of(id), largest = id;
  }
  const TensorMethod& method = selection.tensors[largest];
  Record zero;
  zero.step = 1;
  zero.scalars.assign(static_cast<size_t>(header.method.n_scalars()), 0.0f);
  RecordRules rules_of_zero(header.method, header.seed, 1);
  PendingRecord record = rules_of_zero.next(zero);
  record.resting.clear();
  for (int i = 1; i < header.method.window; ++i) record.past.push_back({1, record.c});
  // On a copy: only a committed record may touch what trains (I1).
  if (const IndexOverlay* overlay = store->overlay(largest)) {
    IndexOverlay copy = overlay->copy();
    const WeightView shape = store->shape(largest);
    const CatchUp once({&method, largest, shape.rows, shape.cols, header.seed}, std::span(&record, 1),
                       kernels, pool, *factors);
    const double s = seconds_of([&] { once.apply(shape, &copy, 0, shape.rows); });
    return s / static_cast<double>(copy.n()) * static_cast<double>(n_all) / pool.size();
  }
  WeightView sample = store->shape(largest);
  const int64_t rows = std::clamp<int64_t>(kElements / sample.cols, 1, sample.rows);
  const int64_t n = rows * sample.cols;
  std::vector<float> w0(static_cast<size_t>(n));
  store->base_values(largest, 0, n, w0.data());
  std::vector<uint8_t> values(static_cast<size_t>(n * plane_element_bytes(header.values)));
  std::vector<int8_t> tail(header.values == DType::BF16T8 ? static_cast<size_t>(n) : 0);
  sample.data = values.data();
  sample.tail = tail.empty() ? nullptr : tail.data();
  sample.dtype = header.values;
  sample.writable = true;
  sample.rows = rows;
  for (int64_t e = 0; e < n; ++e) encode_nearest_at(sample, e, w0[static_cast<size_t>(e)]);
  const CatchUp once({&method, largest, store->shape(largest).rows, sample.cols, header.seed},
                     std::span(&record, 1), kernels, pool, *factors);
  const double s = seconds_of([&] { once.apply(sample, nullptr, 0, rows); });
  return s / static_cast<double>(n) * static_cast<double>(n_all) / pool.size();
}

void Engine::Impl::load_generation(uint32_t watermark, uint32_t chain) {
  const StateReader file = [&] {
    try {
      return open_generation(generations(), watermark, header.base_fingerprint);
    } catch (const FormatError& e) {
      throw FormatError(std::string(e.what()) +
                        "; the journal has all of it: without this file the run is made from its base, which "
                        "takes longer");
    }
  }();
  check<FormatError>(watermark <= n_committed && file.header().journal_tail == chain, "generation",
                     "'" + file.path() + "' is of step " + std::to_string(watermark) +
                         " of another journal, expected one of " +
                         (replays() ? options.journal : journal_path) + " (" + std::to_string(n_committed) +
                         " steps); was the journal replaced?");
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained) continue;
    check<FormatError>(file.find(parameters[id].name) >= 0, "generation",
                       file.path() + " has no '" + parameters[id].name + "', expected all that trains");
    for (int k = 0; k < 2; ++k) {
      const std::string name = moment_name(parameters[id].name, k);
      check<FormatError>(moments_of(*this, name).n == 0 || file.find(name) >= 0, "generation",
                         file.path() + " has no '" + name + "', expected what the rule keeps of it");
    }
  }
  take_state(*this, file, file.path());
  newest_generation = watermark;
}

}  // namespace smezo
