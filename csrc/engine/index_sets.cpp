// Which elements an index set has, of a file, by chance or by the base's magnitudes.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "direction/index_set.h"
#include "engine/method.h"
#include "io/safetensors.h"
#include "store/index_file.h"

namespace smezo {
namespace {

int64_t n_of_row(const MethodConfig& m, int64_t cols) { return n_indexed(cols, m.fraction); }

int64_t count_of(const MethodConfig& m, const TensorRequest& r) {
  if (m.index_set == IndexKind::rows) return r.rows * n_of_row(m, r.cols);
  if (m.index_set == IndexKind::whole_rows) return n_indexed(r.rows, m.fraction) * r.cols;
  return n_indexed(r.rows * r.cols, m.fraction);
}

// The k largest |w| of every row; of equal ones the first (MaZO, arXiv 2502.11513, with the weight's
// magnitude as its score).
std::vector<int64_t> largest_of_rows(const MethodConfig& m, uint32_t id, Store& store, const Kernels& kernels,
                                     ThreadPool& pool) {
  const TensorRequest& r = store.request(id);
  const int64_t k = n_of_row(m, r.cols);
  std::vector<int64_t> out(static_cast<size_t>(r.rows * k));
  store.for_units(id, [&](const Unit& u, const WeightView& w) {
    pool.run(u.n_rows, [&](int64_t i, int) {
      const int64_t row = u.row0 + i;
      std::vector<float> values(static_cast<size_t>(r.cols));
      kernels.decode(w, row * r.cols, r.cols, values.data());
      std::vector<int64_t> order(values.size());
      std::iota(order.begin(), order.end(), int64_t{0});
      const auto before = [&](int64_t a, int64_t b) {
        const float x = std::fabs(values[static_cast<size_t>(a)]),
                    y = std::fabs(values[static_cast<size_t>(b)]);
        return x != y ? x > y : a < b;
      };
      std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), before);
      std::sort(order.begin(), order.begin() + k);
      for (int64_t j = 0; j < k; ++j)
        out[static_cast<size_t>(row * k + j)] = row * r.cols + order[static_cast<size_t>(j)];
    });
  });
  return out;
}

}  // namespace

std::string hash_of_index(const std::string& path) { return path.empty() ? "" : hash_of_file(path); }

std::vector<int64_t> index_counts(const MethodConfig& m, const std::vector<bool>& trained,
                                  const std::vector<TensorRequest>& requests) {
  std::vector<int64_t> out(requests.size(), 0);
  if (m.index_set != IndexKind::file) {
    for (size_t id = 0; id < out.size(); ++id) {
      if (trained[id]) out[id] = count_of(m, requests[id]);
    }
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
                      Store& store, const Kernels& kernels, ThreadPool& pool) {
  std::vector<TensorRequest> requests;
  for (uint32_t id = 0; id < trained.size(); ++id) requests.push_back(store.request(id));
  const std::vector<int64_t> n_of = index_counts(m, trained, requests);
  std::unique_ptr<Safetensors> file;
  if (m.index_set == IndexKind::file) file = std::make_unique<Safetensors>(Safetensors::open(m.index));
  for (uint32_t id = 0; id < trained.size(); ++id) {
    if (!trained[id]) continue;
    const TensorRequest& r = store.request(id);
    std::vector<int64_t> elements;
    if (file) {
      if (const TensorEntry* t = file->find(r.name))
        elements = named(m.index, [&] { return listed_elements(*file, *t); });
    } else if (m.index_set == IndexKind::rows) {
      elements = largest_of_rows(m, id, store, kernels, pool);
    } else if (m.index_set == IndexKind::whole_rows) {
      const int64_t k = n_of[id] / r.cols;
      elements.reserve(static_cast<size_t>(n_of[id]));
      for (int64_t i = 0; i < n_of[id]; ++i)
        elements.push_back(random_index_at(run_seed, id, r.rows, k, i / r.cols) * r.cols + i % r.cols);
    } else {
      const int64_t n = r.rows * r.cols, k = n_of[id];
      elements.reserve(static_cast<size_t>(k));
      for (int64_t i = 0; i < k; ++i) elements.push_back(random_index_at(run_seed, id, n, k, i));
    }
    store.set_overlay(id, named(m.index, [&] { return make_overlay(elements, r.rows, r.cols); }));
  }
}

}  // namespace smezo
