#include "engine/method.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "direction/index_set.h"
#include "direction/threshold.h"
#include "io/safetensors.h"
#include "store/index_file.h"

namespace smezo {
namespace {

struct NoiseRow {
  const char* name;
  NoiseKind kind;
};
constexpr NoiseRow kNoises[] = {{"gaussian", NoiseKind::gaussian},
                                {"gaussian8", NoiseKind::gaussian8},
                                {"rademacher", NoiseKind::rademacher}};

struct KindRow {
  const char* name;
  MaskKind mask;
};
constexpr KindRow kKinds[] = {{"mezo", MaskKind::all},
                              {"random-mask", MaskKind::random},
                              {"largest-mask", MaskKind::large},
                              {"sparse-mezo", MaskKind::small},
                              {"sensitive", MaskKind::all}};

const KindRow& kind_row(const std::string& name) {
  std::string known;
  for (const KindRow& r : kKinds) {
    if (name == r.name) return r;
    known += std::string(known.empty() ? "" : ", ") + r.name;
  }
  fail<ArgumentError>("method", "'" + name + "', expected one of " + known);
}

// '*' any run, '?' any one character. Only the last '*' is tried again: a pattern comes from a file that
// somebody sent, and trying all of them takes time that grows exponentially with their number.
bool glob(const char* p, const char* s) {
  const char *star = nullptr, *begin = nullptr;
  while (*s) {
    if (*p == '*') {
      star = ++p, begin = s;
    } else if (*p == '?' || *p == *s) {
      ++p, ++s;
    } else if (star) {
      p = star, s = ++begin;
    } else {
      return false;
    }
  }
  while (*p == '*') ++p;
  return !*p;
}

}  // namespace

NoiseKind noise_from_name(const std::string& name) {
  for (const NoiseRow& r : kNoises) {
    if (name == r.name) return r.kind;
  }
  fail<ArgumentError>("noise", "'" + name + "', expected gaussian, gaussian8 or rademacher");
}

const char* noise_name(NoiseKind kind) {
  for (const NoiseRow& r : kNoises) {
    if (kind == r.kind) return r.name;
  }
  return "?";
}

// At sparsity 0 every mask is the whole tensor, so that all kinds equal MeZO bit for bit.
MaskKind mask_kind(const MethodConfig& m) {
  const MaskKind kind = kind_row(m.kind).mask;
  return m.sparsity > 0 ? kind : MaskKind::all;
}

void check_method(const MethodConfig& m) {
  kind_row(m.kind);
  check<ArgumentError>(
      m.sparsity >= 0 && m.sparsity < 1, "method",
      "sparsity " + std::to_string(m.sparsity) +
          ", expected 0 <= sparsity < 1: it is the frozen fraction, and at 1 nothing would train");
  check<ArgumentError>(!m.has_index_set() || !m.index.empty() || (m.fraction > 0 && m.fraction <= 0.5),
                       "method",
                       "fraction " + std::to_string(m.fraction) +
                           ", expected more than 0 and at most 0.5: the share of each tensor that trains");
  check<ArgumentError>(m.queries >= 1 && m.queries <= kMaxQueries, "method",
                       std::to_string(m.queries) + " queries, expected 1 to " + std::to_string(kMaxQueries));
  check<ArgumentError>(
      std::isfinite(m.weight_decay) && m.weight_decay >= 0, "method",
      "weight decay " + std::to_string(m.weight_decay) + ", expected a finite number not below 0");
}

std::vector<bool> trained_tensors(const MethodConfig& m, const std::vector<ParameterSpec>& parameters) {
  std::vector<bool> out;
  bool any = false;
  for (const ParameterSpec& p : parameters) {
    const bool t =
        m.trains == "all" || (m.trains == "linear" ? p.block_linear : glob(m.trains.c_str(), p.name.c_str()));
    check<ArgumentError>(
        !t || !m.has_index_set() || p.block_linear, "method",
        "an index set on '" + p.name + "', expected only linear weights of the decoder blocks");
    out.push_back(t);
    any |= t;
  }
  check<ArgumentError>(
      any, "method",
      "trains '" + m.trains + "' matches no parameter, expected linear, all or a glob pattern such as " +
          "'*.mlp.*'; the first parameter is " + (parameters.empty() ? "absent" : parameters[0].name));
  return out;
}

std::string hash_of_index(const std::string& path) { return path.empty() ? "" : hash_of_file(path); }

std::vector<int64_t> index_counts(const MethodConfig& m, const std::vector<bool>& trained,
                                  const std::vector<TensorRequest>& requests) {
  std::vector<int64_t> out(requests.size(), 0);
  if (m.index.empty()) {
    for (size_t id = 0; id < out.size(); ++id)
      out[id] = trained[id] ? n_indexed(requests[id].rows * requests[id].cols, m.fraction) : 0;
    return out;
  }
  const Safetensors file = Safetensors::open(m.index);
  for (const TensorEntry& t : file.tensors()) {
    size_t id = 0;
    while (id < out.size() && !(trained[id] && requests[id].name == t.name)) ++id;
    check<FormatError>(id < out.size(), "index set",
                       m.index + " lists elements of '" + t.name +
                           "', expected linear weights of this model's blocks; another model's file?");
    out[id] = t.n;
  }
  return out;
}

void place_index_sets(const MethodConfig& m, const std::vector<bool>& trained, uint64_t run_seed,
                      Store& store) {
  std::vector<TensorRequest> requests;
  for (uint32_t id = 0; id < trained.size(); ++id) requests.push_back(store.request(id));
  const std::vector<int64_t> n_of = index_counts(m, trained, requests);
  std::unique_ptr<Safetensors> file;
  if (!m.index.empty()) file = std::make_unique<Safetensors>(Safetensors::open(m.index));
  for (uint32_t id = 0; id < trained.size(); ++id) {
    if (!trained[id]) continue;
    const TensorRequest& r = store.request(id);
    std::vector<int64_t> elements;
    if (file) {
      if (const TensorEntry* t = file->find(r.name))
        elements = named(m.index, [&] { return listed_elements(*file, *t); });
    } else {
      const int64_t n = r.rows * r.cols, k = n_of[id];
      elements.reserve(static_cast<size_t>(k));
      for (int64_t i = 0; i < k; ++i) elements.push_back(random_index_at(run_seed, id, n, k, i));
    }
    store.set_overlay(id, named(m.index, [&] { return make_overlay(elements, r.rows, r.cols); }));
  }
}

Selection select(const MethodConfig& m, const std::vector<bool>& trained, Store& store,
                 const Kernels& kernels, ThreadPool& pool) {
  Selection s;
  const MaskKind kind = mask_kind(m);
  for (uint32_t id = 0; id < trained.size(); ++id) {
    TensorMethod t;
    t.trained = trained[id];
    t.noise = m.noise;
    int64_t n_selected = 0;
    if (t.trained && store.overlay(id)) {
      n_selected = store.overlay(id)->n();
    } else if (t.trained) {
      const WeightView w = store.shape(id);
      const Pieces pieces = [&](const auto& body) {
        store.for_state(id, kernels, pool, nullptr, [&](const WeightView& v, int64_t row0, int64_t n) {
          body(v, row0 * v.cols, n * v.cols);
        });
      };
      n_selected = w.n();
      if (kind != MaskKind::all) {
        const Threshold th = kind == MaskKind::large ? largest_threshold(pieces, w.n(), m.sparsity, &pool)
                                                     : smallest_threshold(pieces, w.n(), m.sparsity, &pool);
        t.mask.kind = kind;
        t.mask.h = th.h;
        n_selected = th.n_selected;
        if (kind == MaskKind::random) {
          const double density = static_cast<double>(th.n_selected) / static_cast<double>(w.n());
          t.mask.h = 0;
          t.mask.keep = static_cast<uint32_t>(std::lround(density * 65536));
          n_selected = static_cast<int64_t>(t.mask.keep / 65536.0 * static_cast<double>(w.n()));
        }
      }
    }
    s.tensors.push_back(t);
    s.n_selected.push_back(n_selected);
  }
  return s;
}

}  // namespace smezo
