// A checkpoint of every format and cut for the tests of the streamed store, and what compares it with the
// resident one, byte for byte.
#pragma once
#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"
#include "checkpoint.h"
#include "faulty_files.h"
#include "format/codec.h"
#include "store/plan.h"
#include "store/store.h"
#include "test.h"

namespace smezo_test {

using namespace smezo;

struct Row {
  const char* name;
  const char* format;
  int64_t rows, cols, block;
  int64_t row_step;
};
// In byte order of their names. Columns that no block divides, last blocks that are short, vectors.
inline const std::vector<Row> kRows = {
    {"embed.weight", "BF16", 2000, 40, 0, 512},
    {"layers.0.a.weight", "F32", 301, 33, 0, 1},
    {"layers.0.b.weight", "F16", 257, 64, 0, 1},
    {"layers.0.c.weight", "BF16", 300, 100, 0, 16},
    {"layers.0.d.weight", "nf4", 200, 96, 64, 1},
    {"layers.0.e.weight", "nf4", 130, 50, 32, 1},
    {"layers.0.f.weight", "nf4-double", 400, 72, 64, 1},
    {"layers.0.g.weight", "nf4-double", 96, 130, 4096, 2},
    {"layers.0.h.weight", "int8", 333, 47, 0, 1},
    {"layers.0.norm.weight", "BF16", 1, 40, 0, 1},
    {"norm.weight", "F32", 1, 40, 0, 1},
};

struct Checkpoint {
  Checkpoint(const std::string& name, size_t shift) : folder(name) {
    smezo_test::no_longer_than(280);
    std::vector<smezo_test::Stored> tensors;
    unsigned seed = 1;
    for (const Row& r : kRows)
      smezo_test::add_tensor(tensors, r.name, r.format, r.rows, r.cols, r.block, seed++);
    std::mt19937 random(static_cast<unsigned>(shift));
    std::shuffle(tensors.begin(), tensors.end(), random);
    smezo_test::write_unpadded(folder.path() + "/model.safetensors", tensors, shift);
  }
  const std::string& path() const { return folder.path(); }
  TemporaryFolder folder;
};

inline std::vector<TensorRequest> requests(const std::set<uint32_t>& trained = {}) {
  std::vector<TensorRequest> out;
  for (const Row& r : kRows) {
    const uint32_t id = static_cast<uint32_t>(out.size());
    out.push_back({r.name, r.rows, r.cols, trained.count(id) > 0, r.row_step});
  }
  return out;
}

inline int64_t least_ring(const std::string& folder, const std::vector<TensorRequest>& all) {
  return least_ring_bytes(Base(folder, all), all);
}

inline int64_t address_rest(const void* p, int64_t align) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(align));
}

// Rows [row0, row0 + n) of two views of a tensor hold the same, and are aligned as kernels want them.
inline bool same_rows(const WeightView& a, const WeightView& b, int64_t row0, int64_t n) {
  if (a.dtype != b.dtype || a.rows != b.rows || a.cols != b.cols || a.tensor_id != b.tensor_id ||
      a.writable != b.writable)
    return false;
  const int64_t align = a.dtype == DType::NF4 ? 1 : a.dtype == DType::BF16T8 ? 2 : dtype_bytes(a.dtype);
  for (const WeightView* w : {&a, &b}) {
    if (address_rest(w->data, align) != 0 || address_rest(w->scales.absmax, 4) != 0) return false;
  }
  for (int64_t e = row0 * a.cols; e < (row0 + n) * a.cols; ++e) {
    const float x = decode_at(a, e), y = decode_at(b, e);
    if (std::memcmp(&x, &y, sizeof x) != 0) return false;
  }
  return true;
}

inline std::vector<Unit> units_of(const Store& store, uint32_t id, int64_t rows) {
  std::vector<Unit> out;
  for (int64_t row0 = 0; row0 < store.request(id).rows; row0 += rows)
    out.push_back({id, row0, std::min(rows, store.request(id).rows - row0)});
  return out;
}

// Some tensors in some order, each in units of what the store says, or less.
inline std::vector<Unit> random_pass(const Store& store, std::mt19937& random) {
  std::vector<Unit> out;
  for (unsigned i = 0; i < 1 + random() % 12; ++i) {
    const uint32_t id = static_cast<uint32_t>(random() % kRows.size());
    if (kRows[id].rows == 1) continue;
    const int64_t step = store.unit_step(id), most = store.unit_rows(id);
    const int64_t rows =
        random() % 4 == 0 && most > step ? std::max<int64_t>(most / 2 / step, 1) * step : most;
    for (const Unit& u : units_of(store, id, rows)) out.push_back(u);
  }
  return out;
}

// Goes through a pass as far as `until`, two units held at a time now and then; false: a read failed.
inline void go_through(Store& streamed, Store& resident, const std::vector<Unit>& pass, size_t until,
                       std::mt19937& random) {
  streamed.begin_pass(pass);
  std::vector<std::pair<Unit, WeightView>> held;
  const auto release = [&] {
    const auto& [u, w] = held.front();
    CHECK(same_rows(w, resident.weight(u.tensor_id), u.row0, u.n_rows));
    streamed.release(u);
    held.erase(held.begin());
  };
  for (size_t i = 0; i < until; ++i) {
    held.push_back({pass[i], streamed.acquire(pass[i])});
    if (held.size() == 2 || random() % 2) release();
    if (held.size() == 2) release();
  }
  while (!held.empty() && random() % 8) release();
}

// All of a tensor, decoded.
inline std::vector<float> values_of(Store& store, uint32_t id, ThreadPool& pool) {
  std::vector<float> out(static_cast<size_t>(store.shape(id).n()));
  store.for_units(id, [&](const Unit& u, const WeightView& w) {
    pool.run(u.n_rows, [&](int64_t i, int) {
      const int64_t e = (u.row0 + i) * w.cols;
      kernels_for(Isa::scalar).decode(w, e, w.cols, out.data() + e);
    });
  });
  return out;
}

inline void compare_values(Store& a, Store& b, ThreadPool& pool) {
  for (uint32_t id = 0; id < kRows.size(); ++id) {
    const std::vector<float> x = values_of(a, id, pool), y = values_of(b, id, pool);
    CHECK(x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  }
}

inline void compare_base_values(Store& a, Store& b, std::mt19937& random) {
  for (uint32_t id = 0; id < kRows.size(); ++id) {
    const int64_t n = kRows[id].rows * kRows[id].cols,
                  e0 = static_cast<int64_t>(random() % static_cast<unsigned>(n));
    const int64_t k = static_cast<int64_t>(random() % static_cast<unsigned>(n - e0 + 1));
    std::vector<float> x(static_cast<size_t>(k) + 1, 7.0f), y = x;
    a.base_values(id, e0, k, x.data());
    b.base_values(id, e0, k, y.data());
    CHECK(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  }
}

inline void compare_rows(Store& a, Store& b, std::mt19937& random) {
  for (const uint32_t id : {0u, 1u, 8u}) {
    std::set<int32_t> some;
    for (int i = 0; i < 20; ++i)
      some.insert(static_cast<int32_t>(random() % static_cast<unsigned>(kRows[id].rows)));
    const std::vector<int32_t> list(some.begin(), some.end());
    const RowViews x = a.rows(id, list), y = b.rows(id, list);
    for (const int32_t r : list) CHECK(same_rows(x.at(r), y.at(r), r, 1));
  }
}

inline StreamOptions options_of(int64_t ring, int n_readers) {
  StreamOptions o;
  o.budget_bytes = int64_t{1} << 24;
  o.ring_bytes = ring;
  o.n_readers = n_readers;
  return o;
}

}  // namespace smezo_test
