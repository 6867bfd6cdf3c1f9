// Deltas and generations of an engine: what training changed, written at the journal's tail (I4) and read
// back.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "direction/direction.h"
#include "engine/engine_impl.h"
#include "engine/generation_interval.h"
#include "format/codec.h"
#include "model/catch_up.h"

namespace smezo {

namespace {

constexpr int64_t kChunk = 1 << 18;  // elements copied at a time

// Is the support of a tensor something the base regenerates? Then only the values on it are stored, in
// element order.
bool has_implicit_support(const TensorMethod& m) { return m.mask.kind != MaskKind::all; }

// The elements of [e0, e0 + n) that are on the support, from the value the base has in the stored dtype
// (I10).
std::vector<int64_t> support(const TensorDirection& d, const float* w0, int64_t e0, int64_t n) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < n; ++i) {
    if (mask_at(d, static_cast<uint64_t>(e0 + i), w0[i])) out.push_back(e0 + i);
  }
  return out;
}

// Copies chosen elements of a working copy out of it, or into it.
void gather(const WeightView& w, const std::vector<int64_t>& at, std::vector<uint8_t>* values,
            std::vector<int8_t>* tail) {
  const int64_t size = plane_element_bytes(w.dtype);
  values->resize(at.size() * static_cast<size_t>(size));
  tail->resize(w.dtype == DType::BF16T8 ? at.size() : 0);
  for (size_t i = 0; i < at.size(); ++i) {
    std::memcpy(values->data() + i * static_cast<size_t>(size),
                static_cast<const uint8_t*>(w.data) + (at[i] - w.first) * size, static_cast<size_t>(size));
    if (!tail->empty()) (*tail)[i] = w.tail[at[i] - w.first];
  }
}
void scatter(const WeightView& w, const std::vector<int64_t>& at, const uint8_t* values, const int8_t* tail) {
  const int64_t size = plane_element_bytes(w.dtype);
  for (size_t i = 0; i < at.size(); ++i) {
    std::memcpy(static_cast<uint8_t*>(w.data) + at[i] * size, values + i * static_cast<size_t>(size),
                static_cast<size_t>(size));
    if (w.dtype == DType::BF16T8) w.tail[at[i]] = tail[i];
  }
}

}  // namespace

// Calls body(elements of the support) over elements [e0, end) of a tensor, chunk by chunk, in element order.
template <class Body>
static void for_each_support(Engine::Impl& m, uint32_t id, int64_t e0, int64_t end, const Body& body) {
  const TensorMethod& method = m.selection.tensors[id];
  TensorDirection d = direction_of(method, id, m.header.seed, 0, 0);
  std::vector<float> w0(kChunk);
  for (; e0 < end; e0 += kChunk) {
    const int64_t k = std::min(kChunk, end - e0);
    m.store->base_values(id, e0, k, w0.data());
    body(support(d, w0.data(), e0, k));
  }
}

static StateHeader state_header(const Engine::Impl& m) {
  StateHeader h;
  h.method_json = to_json(m.header);
  h.base_fingerprint = m.header.base_fingerprint;
  h.watermark = m.n_committed;
  h.journal_tail = m.journal ? m.journal->tail_checksum() : m.replayed_chain;
  return h;
}

void Engine::save_delta(const std::string& path) {
  Impl& m = *impl_;
  sync();  // I2: nothing with a watermark reaches a file before the journal is synced to it
  flush();
  std::vector<StateTensor> tensors;
  std::vector<uint32_t> ids;
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    const TensorMethod& method = m.selection.tensors[id];
    if (!method.trained) continue;
    const WeightView w = m.store->shape(id);
    StateTensor t;
    t.name = m.parameters[id].name;
    t.dtype = m.header.values;
    const Beside* const beside = m.besides->of(id);
    t.packed = beside || m.store->overlay(id) || has_implicit_support(method);
    if (beside) {
      t.shape = {static_cast<int64_t>(beside->values.size())};
    } else if (const IndexOverlay* o = m.store->overlay(id)) {
      t.shape = {o->n()};
    } else if (t.packed) {
      int64_t n = 0;
      for_each_support(m, id, 0, m.store->shape(id).n(),
                       [&](const std::vector<int64_t>& at) { n += static_cast<int64_t>(at.size()); });
      t.shape = {n};
    } else if (w.rows == 1) {
      t.shape = {w.cols};
    } else {
      t.shape = {w.rows, w.cols};
    }
    tensors.push_back(std::move(t));
    ids.push_back(id);
  }
  write_delta(path, state_header(m), tensors, [&](StateSink& sink) {
    std::vector<uint8_t> values;
    std::vector<int8_t> tail;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (const Beside* beside = m.besides->of(ids[i])) {
        sink.write(i, beside->values.data(), nullptr, tensors[i].n());
        continue;
      }
      if (const IndexOverlay* o = m.store->overlay(ids[i])) {
        sink.write(i, o->value.data(), nullptr, o->n());
        continue;
      }
      m.pending->for_state(ids[i], [&](const WeightView& w, int64_t row0, int64_t n) {
        const int64_t e0 = row0 * w.cols, end = (row0 + n) * w.cols, at0 = e0 - w.first;
        if (!tensors[i].packed) {
          sink.write(i, static_cast<const uint8_t*>(w.data) + at0 * plane_element_bytes(w.dtype),
                     w.tail ? w.tail + at0 : nullptr, end - e0);
          return;
        }
        for_each_support(m, ids[i], e0, end, [&](const std::vector<int64_t>& at) {
          if (at.empty()) return;
          gather(w, at, &values, &tail);
          sink.write(i, values.data(), tail.empty() ? nullptr : tail.data(), static_cast<int64_t>(at.size()));
        });
      });
    }
  });
}

static uint32_t id_of(const Engine::Impl& m, const std::string& name) {
  uint32_t id = 0;
  while (id < m.parameters.size() && m.parameters[id].name != name) ++id;
  return id;
}

namespace {

struct Moments {
  float* values = nullptr;
  int64_t n = 0;
};

}  // namespace

// What this run keeps under the name of a moment; nothing: it is none.
static Moments moments_of(const Engine::Impl& m, const std::string& name) {
  for (int k = 0; k < 2; ++k) {
    const std::string suffix = moment_name("", k);
    if (name.size() <= suffix.size() || name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0)
      continue;
    const uint32_t id = id_of(m, name.substr(0, name.size() - suffix.size()));
    if (id >= m.parameters.size()) return {};
    const TensorRequest& r = m.store->request(id);
    if (m.store->streams_state(id)) return {nullptr, k < r.n_moments ? r.rows * r.moments_a_row : 0};
    return {m.store->moments(id, k), m.store->n_moments(id)};
  }
  return {};
}

void Engine::Impl::check_masks(const RunHeader& h, const std::string& where) const {
  check<FormatError>(h.masks.size() == parameters.size(), "run",
                     where + " has " + std::to_string(h.masks.size()) + " masks, expected " +
                         std::to_string(parameters.size()) + ", one a tensor; damaged?");
  const MaskKind kind = mask_kind(h.method);
  for (size_t id = 0; id < parameters.size(); ++id)
    check<FormatError>(!selection.tensors[id].trained || h.masks[id].kind == kind, "run",
                       where + " has another kind of mask on '" + parameters[id].name + "' than its method " +
                           h.method.kind + " makes; damaged?");
}

void Engine::Impl::check_state(const StateReader& file, const std::string& where) const {
  const RunHeader made_by = named(where, [&] { return run_header_from_json(file.header().method_json); });
  check_masks(made_by, where);
  for (const auto& [key, value] : header.mathematics) {
    const auto found = made_by.mathematics.find(key);
    check<FormatError>(found != made_by.mathematics.end() && found->second == value, "delta",
                       where + " was trained with another " + key + " of config.json, expected " + value);
  }
  for (const StateTensor& t : file.tensors()) {
    if (moments_of(*this, t.name).n > 0) {
      check<FormatError>(t.dtype == DType::F32 && t.n() == moments_of(*this, t.name).n, "generation",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                             std::to_string(moments_of(*this, t.name).n));
      continue;
    }
    const uint32_t id = id_of(*this, t.name);
    check<ArgumentError>(id < parameters.size() && selection.tensors[id].trained, "delta",
                         where + " holds '" + t.name +
                             "', which this method does not train; open it with the method it was made by");
    check<ArgumentError>(t.dtype == header.values, "delta",
                         where + " holds '" + t.name + "' as " + values_name(t.dtype) + ", this run keeps " +
                             values_name(header.values) + "; set values to match");
    if (!t.packed) {
      const int64_t n = store->shape(id).n();
      check<FormatError>(!store->overlay(id), "delta",
                         where + " holds all of '" + t.name + "', expected values of an index set");
      check<FormatError>(t.n() == n, "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                             std::to_string(n));
      continue;
    }
    const std::string differs = support_difference(header, made_by, id);
    check<ArgumentError>(
        differs.empty(), "delta",
        where + " holds values of '" + t.name + "' for other elements than this run trains: " + differs);
  }
}

// Reads a state file's tensors into the working copies.
static void load_state(Engine::Impl& m, const StateReader& file, const std::string& where) {
  m.check_state(file, where);
  for (const StateTensor& t : file.tensors()) {
    const size_t at = static_cast<size_t>(file.find(t.name));
    if (const Moments kept = moments_of(m, t.name); kept.n > 0) {
      if (kept.values == nullptr) continue;
      std::memcpy(kept.values, file.values(at), static_cast<size_t>(kept.n) * sizeof(float));
      file.release(at);
      continue;
    }
    const uint32_t id = id_of(m, t.name);
    if (m.besides->of(id)) {
      Beside& beside = m.besides->at(id);
      const int64_t most = m.header.method.most_rank() / m.header.method.rank * beside.block_size;
      check<FormatError>(t.packed && t.n() % beside.block_size == 0 && t.n() > 0 && t.n() <= most, "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name +
                             "', expected a multiple of " + std::to_string(beside.block_size) + " up to " +
                             std::to_string(most) + "; was it made with another rank?");
      beside.values.resize(static_cast<size_t>(t.n()));
      std::memcpy(beside.values.data(), file.values(at), static_cast<size_t>(t.n()) * sizeof(float));
      continue;
    }
    if (m.store->streams_state(id)) continue;
    IndexOverlay* const overlay = m.store->overlay(id);
    const WeightView w = overlay ? m.store->shape(id) : m.store->weight(id);
    const size_t i = static_cast<size_t>(file.find(t.name));
    const uint8_t* values = static_cast<const uint8_t*>(file.values(i));
    const int8_t* tail = file.tail(i);
    if (overlay) {
      check<FormatError>(t.packed && t.n() == overlay->n(), "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                             std::to_string(overlay->n()) + "; was it made with another index set?");
      std::memcpy(overlay->value.data(), values, static_cast<size_t>(overlay->n()) * sizeof(float));
      file.release(i);
      continue;
    }
    if (!t.packed) {
      std::memcpy(w.data, values, static_cast<size_t>(w.n() * plane_element_bytes(w.dtype)));
      if (tail) std::memcpy(w.tail, tail, static_cast<size_t>(w.n()));
      file.release(i);
      continue;
    }
    int64_t done = 0;
    for_each_support(m, id, 0, w.n(), [&](const std::vector<int64_t>& at) {
      const int64_t k = static_cast<int64_t>(at.size());
      check<FormatError>(done + k <= t.n(), "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name +
                             "', fewer than the method selects; was it made with another sparsity or seed?");
      scatter(w, at, values + done * plane_element_bytes(w.dtype), tail ? tail + done : nullptr);
      done += k;
    });
    check<FormatError>(done == t.n(), "delta",
                       where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                           std::to_string(done) + "; was it made with another sparsity or seed?");
    file.release(i);
  }
}

// In memory what lies there, streamed what does not.
static void take_state(Engine::Impl& m, const StateReader& file, const std::string& where) {
  load_state(m, file, where);
  if (m.streams_state()) m.store->use_generation(file);
}

void Engine::Impl::load_delta(const StateReader& delta) { take_state(*this, delta, delta.path()); }

bool Engine::Impl::streams_state() const {
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (store->streams_state(id)) return true;
  }
  return false;
}

bool Engine::Impl::generation_is_due() const {
  if (!journal || !is_started || n_committed == newest_generation || !streams_state()) return false;
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
    const TensorRequest& r = store->request(id);
    moments_at[id] = tensors.size();
    for (int k = 0; k < 2; ++k) {
      const int64_t n = store->streams_state(id) ? (k < r.n_moments ? r.rows * r.moments_a_row : 0)
                        : store->moments(id, k)  ? store->n_moments(id)
                                                 : 0;
      if (n == 0) continue;
      if (!store->streams_state(id)) moments.emplace_back(tensors.size(), Moments{store->moments(id, k), n});
      tensors.push_back({moment_name(name, k), DType::F32, {n}, true});
      n_bytes += n * 4;
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
    const CatchUp once({&method, largest, shape.rows, shape.cols, header.seed}, {record}, kernels, pool,
                       *factors);
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
  const CatchUp once({&method, largest, store->shape(largest).rows, sample.cols, header.seed}, {record},
                     kernels, pool, *factors);
  const double s = seconds_of([&] { once.apply(sample, nullptr, 0, rows); });
  return s / static_cast<double>(n) * static_cast<double>(n_all) / pool.size();
}

void Engine::Impl::load_generation(uint32_t watermark, uint32_t chain) {
  const StateReader file = open_generation(generations(), watermark, header.base_fingerprint);
  check<FormatError>(watermark <= n_committed && file.header().journal_tail == chain, "generation",
                     "'" + file.path() + "' is of step " + std::to_string(watermark) +
                         " of another journal, expected one of " + journal_path + " (" +
                         std::to_string(n_committed) + " steps); was the journal replaced?");
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    check<FormatError>(!selection.tensors[id].trained || file.find(parameters[id].name) >= 0, "generation",
                       file.path() + " has no '" + parameters[id].name + "', expected all that trains");
  }
  take_state(*this, file, file.path());
  newest_generation = watermark;
}

}  // namespace smezo
