// Deltas of an engine: what training changed, written at the journal's tail (I4) and read back.
#include "engine/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "direction/direction.h"
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

StateHeader state_header(const Engine::Impl& m) {
  StateHeader h;
  h.method_json = to_json(m.header);
  h.base_fingerprint = m.header.base_fingerprint;
  h.watermark = m.n_committed;
  h.journal_tail = m.chain;
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
    // What a dense delta brought differs from the base outside the mask too.
    const bool is_whole = !m.taken_whole.empty() && m.taken_whole[id];
    t.packed = beside || m.store->overlay(id) || (has_implicit_support(method) && !is_whole);
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

Moments moments_of(const Engine::Impl& m, const std::string& name) {
  for (int k = 0; k < 2; ++k) {
    const std::string suffix = moment_name("", k);
    if (name.size() <= suffix.size() || name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0)
      continue;
    const uint32_t id = id_of(m, name.substr(0, name.size() - suffix.size()));
    if (id >= m.parameters.size()) return {};
    const TensorRequest& r = m.store->request(id);
    if (m.store->streams_state(id)) return {nullptr, k < r.n_moments ? r.rows * r.moments_a_row : 0};
    float* const values = m.store->moments(id, k);
    return {values, values ? m.store->n_moments(id) : 0};
  }
  return {};
}

void Engine::Impl::check_masks(const RunHeader& h, const std::string& where, const StateReader* file) const {
  check<FormatError>(h.masks.size() == parameters.size(), "run",
                     where + " has " + std::to_string(h.masks.size()) + " masks, expected " +
                         std::to_string(parameters.size()) + ", one a tensor; damaged?");
  const MaskKind kind = mask_kind(h.method);
  for (size_t id = 0; id < parameters.size(); ++id) {
    if (!selection.tensors[id].trained || (file && file->find(parameters[id].name) < 0)) continue;
    check<FormatError>(h.masks[id].kind == kind, "run",
                       where + " has another kind of mask on '" + parameters[id].name + "' than its method " +
                           h.method.kind + " makes; damaged?");
  }
}

// Whole blocks of numbers, no more of them than a run of this method may pile up: products are planned for
// those.
static void check_beside(const Engine::Impl& m, const StateTensor& t, int64_t block,
                         const std::string& where) {
  const int64_t most = m.header.method.most_rank() / m.header.method.rank * block;
  check<FormatError>(t.packed && t.n() > 0 && t.n() % block == 0 && t.n() <= most, "delta",
                     where + " has " + std::to_string(t.n()) + " values of '" + t.name +
                         "', expected a multiple of " + std::to_string(block) + " up to " +
                         std::to_string(most) +
                         "; was it made by another method, or with another rank or rank_cap?");
}

void Engine::Impl::check_state(const StateReader& file, const std::string& where) const {
  const RunHeader made_by = named(where, [&] { return run_header_from_json(file.header().method_json); });
  check_masks(made_by, where, &file);
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
    if (const Beside* const beside = besides->of(id)) check_beside(*this, t, beside->block_size, where);
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

static void load_beside(Engine::Impl& m, const StateReader& file, size_t at, uint32_t id) {
  const StateTensor& t = file.tensors()[at];
  Beside& beside = m.besides->at(id);
  beside.values.resize(static_cast<size_t>(t.n()));
  std::memcpy(beside.values.data(), file.values(at), static_cast<size_t>(t.n()) * sizeof(float));
}

static void load_overlay(IndexOverlay& overlay, const StateReader& file, size_t at,
                         const std::string& where) {
  const StateTensor& t = file.tensors()[at];
  check<FormatError>(t.packed && t.n() == overlay.n(), "delta",
                     where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                         std::to_string(overlay.n()) + "; was it made with another index set?");
  std::memcpy(overlay.value.data(), file.values(at), static_cast<size_t>(overlay.n()) * sizeof(float));
}

static void load_working_copy(Engine::Impl& m, const StateReader& file, size_t from, uint32_t id,
                              const std::string& where) {
  const StateTensor& t = file.tensors()[from];
  const WeightView w = m.store->weight(id);
  const uint8_t* values = static_cast<const uint8_t*>(file.values(from));
  const int8_t* tail = file.tail(from);
  const int64_t size = plane_element_bytes(w.dtype);
  if (!t.packed) {
    std::memcpy(w.data, values, static_cast<size_t>(w.n() * size));
    if (tail) std::memcpy(w.tail, tail, static_cast<size_t>(w.n()));
    return;
  }
  int64_t done = 0;
  for_each_support(m, id, 0, w.n(), [&](const std::vector<int64_t>& at) {
    const int64_t k = static_cast<int64_t>(at.size());
    check<FormatError>(done + k <= t.n(), "delta",
                       where + " has " + std::to_string(t.n()) + " values of '" + t.name +
                           "', fewer than the method selects; was it made with another sparsity or seed?");
    scatter(w, at, values + done * size, tail ? tail + done : nullptr);
    done += k;
  });
  check<FormatError>(done == t.n(), "delta",
                     where + " has " + std::to_string(t.n()) + " values of '" + t.name + "', expected " +
                         std::to_string(done) + "; was it made with another sparsity or seed?");
}

// Reads a state file's tensors into what lies in memory.
static void load_state(Engine::Impl& m, const StateReader& file, const std::string& where) {
  m.check_state(file, where);
  for (size_t at = 0; at < file.tensors().size(); ++at) {
    const StateTensor& t = file.tensors()[at];
    const uint32_t id = id_of(m, t.name);
    if (const Moments kept = moments_of(m, t.name); kept.n > 0) {
      if (kept.values == nullptr) continue;
      std::memcpy(kept.values, file.values(at), static_cast<size_t>(kept.n) * sizeof(float));
    } else if (m.besides->of(id)) {
      load_beside(m, file, at, id);
    } else if (m.store->streams_state(id)) {
      continue;
    } else if (IndexOverlay* const overlay = m.store->overlay(id)) {
      load_overlay(*overlay, file, at, where);
    } else {
      load_working_copy(m, file, at, id, where);
    }
    file.release(at);
  }
}

void take_state(Engine::Impl& m, const StateReader& file, const std::string& where) {
  load_state(m, file, where);
  if (m.streams_state()) m.store->use_generation(file);
}

void Engine::Impl::load_delta(const StateReader& delta) {
  take_state(*this, delta, delta.path());
  taken_whole.resize(parameters.size());
  for (const StateTensor& t : delta.tensors()) {
    const uint32_t id = id_of(*this, t.name);
    if (id < parameters.size() && !t.packed) taken_whole[id] = true;
  }
}

}  // namespace smezo
