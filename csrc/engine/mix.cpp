// Deltas in use at run time: the model is the base plus what each changed, times its weight.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "format/codec.h"
#include "model/catch_up.h"

namespace smezo {
namespace {

constexpr int64_t kPieceElements = 1 << 16;

struct Delta {
  StateReader file;
  RunHeader made_by;
  double weight;
};

// One delta on one tensor: its values in element order, handed out from front to back.
class Changes {
 public:
  Changes(const Delta& delta, uint32_t id, const std::string& name, const IndexOverlay* overlay)
      : path_(delta.file.path()), weight_(delta.weight), overlay_(overlay) {
    const int64_t found = delta.file.find(name);
    if (found < 0) return;
    const size_t i = static_cast<size_t>(found);
    const StateTensor& t = delta.file.tensors()[i];
    values_.data = const_cast<void*>(delta.file.values(i));  // read only, as the base's views are
    values_.tail = const_cast<int8_t*>(delta.file.tail(i));
    values_.dtype = t.dtype;
    values_.rows = 1, values_.cols = t.n();
    packed_ = t.packed;
    TensorMethod method;
    method.noise = delta.made_by.method.noise;
    method.mask = delta.made_by.masks[id];
    direction_ = direction_of(method, id, delta.made_by.seed, 0, 0);
  }

  // What it adds to elements [e0, e0 + n), whose values in the base are w0.
  void add(int64_t e0, int64_t n, const float* w0, double* sum) {
    if (values_.data == nullptr) return;
    for (int64_t i = 0; i < n; ++i) {
      if (packed_ && !overlay_ && !mask_at(direction_, static_cast<uint64_t>(e0 + i), w0[i])) continue;
      check<FormatError>(next_ < values_.cols, "delta",
                         path_ + " has fewer values than elements that it selects");
      sum[i] += weight_ * (static_cast<double>(decode_at(values_, next_++)) - static_cast<double>(w0[i]));
    }
  }
  void all_are_added() const {
    check<FormatError>(next_ == values_.cols, "delta",
                       path_ + " has " + std::to_string(values_.cols) + " values for " +
                           std::to_string(next_) + " elements, expected as many");
  }

 private:
  std::string path_;
  WeightView values_;
  bool packed_ = false;
  double weight_;
  const IndexOverlay* overlay_;  // then elements are the set's
  TensorDirection direction_;
  int64_t next_ = 0;
};

// What lies beside the base: what it changes is linear in it.
void mix_beside(Engine::Impl& m, const std::vector<Delta>& deltas, uint32_t id) {
  Beside& beside = m.besides->at(id);
  std::vector<double> sum(static_cast<size_t>(beside.block_size), 0.0);
  for (const Delta& d : deltas) {
    const int64_t at = d.file.find(m.parameters[id].name);
    if (at < 0) continue;
    const size_t i = static_cast<size_t>(at), n = static_cast<size_t>(d.file.tensors()[i].n());
    const float* const values = static_cast<const float*>(d.file.values(i));
    if (sum.size() < n) sum.resize(n, 0.0);
    for (size_t k = 0; k < n; ++k) sum[k] += d.weight * static_cast<double>(values[k]);
    d.file.release(i);
  }
  beside.values.assign(sum.begin(), sum.end());
}

// The base and the sum of what the deltas change of it.
void mix(Engine::Impl& m, const std::vector<Delta>& deltas) {
  std::vector<float> w0;
  std::vector<double> sum;
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    if (!m.selection.tensors[id].trained) continue;
    if (m.besides->of(id)) {
      mix_beside(m, deltas, id);
      continue;
    }
    IndexOverlay* const overlay = m.store->overlay(id);
    std::vector<Changes> changes;
    for (const Delta& d : deltas) changes.emplace_back(d, id, m.parameters[id].name, overlay);
    const WeightView w = overlay ? m.store->shape(id) : m.store->weight(id);
    std::vector<float> first;
    if (overlay) first = m.store->overlay_base_values(id);
    const int64_t all = overlay ? overlay->n() : w.n();
    for (int64_t e0 = 0; e0 < all; e0 += kPieceElements) {
      const int64_t n = std::min(kPieceElements, all - e0);
      w0.resize(static_cast<size_t>(n));
      if (overlay) {
        std::copy_n(first.begin() + e0, n, w0.begin());
      } else {
        m.store->base_values(id, e0, n, w0.data());
      }
      sum.assign(w0.begin(), w0.end());
      for (Changes& c : changes) c.add(e0, n, w0.data(), sum.data());
      for (int64_t i = 0; i < n; ++i) {
        const float x = static_cast<float>(sum[static_cast<size_t>(i)]);
        if (overlay) {
          overlay->value[static_cast<size_t>(e0 + i)] = x;
        } else {
          encode_nearest_at(w, e0 + i, x);
        }
      }
    }
    for (const Changes& c : changes) c.all_are_added();
    for (const Delta& d : deltas) {
      const int64_t at = d.file.find(m.parameters[id].name);
      if (at >= 0) d.file.release(static_cast<size_t>(at));
    }
  }
}

}  // namespace

void Engine::use(const std::vector<std::pair<std::string, double>>& paths) {
  Impl& m = *impl_;
  check<ArgumentError>(m.journal_path.empty() && !m.replays() && m.n_committed == 0, "use",
                       "a run that trains, expected one without run_dir and steps: its weights are what its "
                       "journal says");
  check<BudgetError>(!m.streams_state(), "use",
                     "what trains does not fit in the memory budget, expected it in memory: allow more, or "
                     "open the runtime with one delta=");
  std::vector<Delta> deltas;
  for (const auto& [path, weight] : paths) {
    StateReader file = open_delta(path, m.header.base_fingerprint);
    m.check_state(file, path);
    RunHeader made_by = run_header_from_json(file.header().method_json);  // proved by check_state
    deltas.push_back({std::move(file), std::move(made_by), weight});
  }
  m.mixed = !deltas.empty();
  try {
    mix(m, deltas);
  } catch (const Error&) {  // found on the way: nothing stays half mixed
    m.mixed = false;
    mix(m, {});
    throw;
  }
}

}  // namespace smezo
