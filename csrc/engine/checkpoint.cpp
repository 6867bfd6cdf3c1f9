// Deltas and generations of an engine: what training changed, written at the journal's tail (I4) and read
// back.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "direction/direction.h"
#include "engine/engine_impl.h"
#include "io/delta.h"
#include "io/generation.h"
#include "model/catch_up.h"

namespace smezo {
namespace {

constexpr int64_t kChunk = 1 << 18;  // elements copied at a time

// Is the support of a tensor something the base regenerates? Then only the values on it are stored, in
// element order.
bool has_implicit_support(const TensorMethod& m) { return m.mask.kind != MaskKind::all; }

int64_t element_bytes(DType d) { return d == DType::F32 ? 4 : 2; }

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
  const int64_t size = element_bytes(w.dtype);
  values->resize(at.size() * static_cast<size_t>(size));
  tail->resize(w.dtype == DType::BF16T8 ? at.size() : 0);
  for (size_t i = 0; i < at.size(); ++i) {
    std::memcpy(values->data() + i * static_cast<size_t>(size),
                static_cast<const uint8_t*>(w.data) + at[i] * size, static_cast<size_t>(size));
    if (!tail->empty()) (*tail)[i] = w.tail[at[i]];
  }
}
void scatter(const WeightView& w, const std::vector<int64_t>& at, const uint8_t* values, const int8_t* tail) {
  const int64_t size = element_bytes(w.dtype);
  for (size_t i = 0; i < at.size(); ++i) {
    std::memcpy(static_cast<uint8_t*>(w.data) + at[i] * size, values + i * static_cast<size_t>(size),
                static_cast<size_t>(size));
    if (w.dtype == DType::BF16T8) w.tail[at[i]] = tail[i];
  }
}

}  // namespace

// Calls body(elements of the support) over a tensor, chunk by chunk, in element order.
template <class Body>
static void for_each_support(Engine::Impl& m, uint32_t id, const Body& body) {
  const TensorMethod& method = m.selection.tensors[id];
  TensorDirection d = direction_of(method, id, m.header.seed, 0, 0);
  std::vector<float> w0(kChunk);
  const int64_t n = m.store->weight(id).n();
  for (int64_t e0 = 0; e0 < n; e0 += kChunk) {
    const int64_t k = std::min(kChunk, n - e0);
    m.store->base_values(id, e0, k, w0.data());
    body(support(d, w0.data(), e0, k));
  }
}

static StateHeader state_header(const Engine::Impl& m) {
  StateHeader h;
  h.method_json = to_json(m.header);
  h.base_fingerprint = m.header.base_fingerprint;
  h.watermark = m.n_committed;
  h.journal_tail = m.journal ? m.journal->tail_checksum() : 0;
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
    const WeightView w = m.store->overlay(id) ? m.store->shape(id) : m.store->weight(id);
    StateTensor t;
    t.name = m.parameters[id].name;
    t.dtype = w.dtype;
    t.packed = m.store->overlay(id) || has_implicit_support(method);
    if (const IndexOverlay* o = m.store->overlay(id)) {
      t.shape = {o->n()};
    } else if (t.packed) {
      int64_t n = 0;
      for_each_support(m, id, [&](const std::vector<int64_t>& at) { n += static_cast<int64_t>(at.size()); });
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
      if (const IndexOverlay* o = m.store->overlay(ids[i])) {
        sink.write(i, o->value.data(), nullptr, o->n());
        continue;
      }
      const WeightView w = m.store->weight(ids[i]);
      if (!tensors[i].packed) {
        sink.write(i, w.data, w.tail, w.n());
        continue;
      }
      for_each_support(m, ids[i], [&](const std::vector<int64_t>& at) {
        gather(w, at, &values, &tail);
        sink.write(i, values.data(), tail.empty() ? nullptr : tail.data(), static_cast<int64_t>(at.size()));
      });
    }
  });
}

// Reads a state file's tensors into the working copies.
static void load_state(Engine::Impl& m, const StateReader& file, const std::string& where) {
  for (const StateTensor& t : file.tensors()) {
    uint32_t id = 0;
    while (id < m.parameters.size() && m.parameters[id].name != t.name) ++id;
    check<ArgumentError>(id < m.parameters.size() && m.selection.tensors[id].trained, "delta",
                         where + " holds '" + t.name +
                             "', which this method does not train; open it with the method it was made by");
    IndexOverlay* const overlay = m.store->overlay(id);
    const WeightView w = overlay ? m.store->shape(id) : m.store->weight(id);
    check<ArgumentError>(t.dtype == w.dtype, "delta",
                         where + " holds '" + t.name + "' as " + values_name(t.dtype) + ", this run keeps " +
                             values_name(w.dtype) + "; set values to match");
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
      check<FormatError>(t.n() == w.n(), "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                             std::to_string(w.n()));
      std::memcpy(w.data, values, static_cast<size_t>(w.n() * element_bytes(w.dtype)));
      if (tail) std::memcpy(w.tail, tail, static_cast<size_t>(w.n()));
      file.release(i);
      continue;
    }
    int64_t done = 0;
    for_each_support(m, id, [&](const std::vector<int64_t>& at) {
      const int64_t k = static_cast<int64_t>(at.size());
      check<FormatError>(done + k <= t.n(), "delta",
                         where + " has " + std::to_string(t.n()) + " values of '" + t.name +
                             "', fewer than the method selects; was it made with another sparsity or seed?");
      scatter(w, at, values + done * element_bytes(w.dtype), tail ? tail + done : nullptr);
      done += k;
    });
    check<FormatError>(done == t.n(), "delta",
                       where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                           std::to_string(done) + "; was it made with another sparsity or seed?");
    file.release(i);
  }
}

std::string Engine::Impl::delta_hash(const std::string& path) {
  const StateReader file = open_delta(path, header.base_fingerprint);
  return std::to_string(file.header().watermark) + "-" + std::to_string(file.header().journal_tail) + "-" +
         std::to_string(file.file_bytes());
}

std::string Engine::Impl::load_delta(const std::string& path) {
  load_state(*this, open_delta(path, header.base_fingerprint), path);
  return delta_hash(path);
}

void Engine::save_generation() {
  Impl& m = *impl_;
  check<ArgumentError>(m.journal != nullptr, "generation", "there is no run folder to write it to");
  sync();
  flush();
  std::vector<StateTensor> tensors;
  std::vector<uint32_t> ids;
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    if (!m.selection.tensors[id].trained) continue;
    const IndexOverlay* const overlay = m.store->overlay(id);
    const WeightView w = overlay ? m.store->shape(id) : m.store->weight(id);
    StateTensor t;
    t.name = m.parameters[id].name;
    t.dtype = w.dtype;
    t.packed = overlay != nullptr;
    t.shape = overlay ? std::vector<int64_t>{overlay->n()} : std::vector<int64_t>{w.rows, w.cols};
    tensors.push_back(std::move(t));
    ids.push_back(id);
  }
  const std::string folder = m.options.run_dir + "/generations";
  write_generation(folder, state_header(m), tensors, [&](StateSink& sink) {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (const IndexOverlay* o = m.store->overlay(ids[i])) {
        sink.write(i, o->value.data(), nullptr, o->n());
        continue;
      }
      const WeightView w = m.store->weight(ids[i]);
      sink.write(i, w.data, w.tail, w.n());
    }
  });
  remove_old_generations(folder, 1);
  m.newest_generation = m.n_committed;
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
  const auto n_of = [&](uint32_t id) {
    return store->overlay(id) ? store->overlay(id)->n() : store->shape(id).n();
  };
  for (uint32_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained) continue;
    n_all += n_of(id);
    if (n_of(id) > most) most = n_of(id), largest = id;
  }
  const TensorMethod& method = selection.tensors[largest];
  PendingRecord record;
  record.c.assign(static_cast<size_t>(header.method.queries), 0.0f);
  // On a copy: only a committed record may touch what trains (I1).
  if (const IndexOverlay* overlay = store->overlay(largest)) {
    IndexOverlay copy = *overlay;
    const WeightView shape = store->shape(largest);
    const double s = seconds_of(
        [&] { catch_up_rows(shape, &copy, method, header.seed, {record}, kernels, 0, shape.rows); });
    return s / static_cast<double>(copy.n()) * static_cast<double>(n_all) / pool.size();
  }
  WeightView sample = store->weight(largest);
  const int64_t rows = std::clamp<int64_t>(kElements / sample.cols, 1, sample.rows);
  const int64_t n = rows * sample.cols;
  std::vector<uint8_t> values(static_cast<size_t>(n * element_bytes(sample.dtype)));
  std::vector<int8_t> tail(sample.tail ? static_cast<size_t>(n) : 0);
  std::memcpy(values.data(), sample.data, values.size());
  if (sample.tail) std::memcpy(tail.data(), sample.tail, tail.size());
  sample.data = values.data();
  sample.tail = tail.empty() ? nullptr : tail.data();
  sample.rows = rows;
  const double s =
      seconds_of([&] { catch_up_rows(sample, nullptr, method, header.seed, {record}, kernels, 0, rows); });
  return s / static_cast<double>(n) * static_cast<double>(n_all) / pool.size();
}

uint32_t Engine::Impl::load_newest_generation() {
  const std::string folder = options.run_dir + "/generations";
  for (uint32_t watermark : list_generations(folder)) {
    const StateReader file = open_generation(folder, watermark, header.base_fingerprint);
    load_state(*this, file, folder);
    newest_generation = watermark;
    return watermark;
  }
  return 0;
}

}  // namespace smezo
