// What both stores share.
#include "store/store.h"

#include <algorithm>

#include "base/error.h"
#include "format/codec.h"
#include "store/content_hash.h"
#include "store/plan.h"

namespace smezo {

RowViews::RowViews(std::vector<int32_t> rows, std::vector<WeightView> views, std::vector<uint8_t> memory)
    : rows_(std::move(rows)), views_(std::move(views)), memory_(std::move(memory)) {}

const WeightView& RowViews::at(int32_t row) const {
  if (rows_.empty()) return whole_;
  const auto found = std::lower_bound(rows_.begin(), rows_.end(), row);
  if (found == rows_.end() || *found != row)
    fail<ArgumentError>("store", "row " + std::to_string(row) + " was not asked for");
  return views_[static_cast<size_t>(found - rows_.begin())];
}

Store::Store(const std::string& folder, std::vector<TensorRequest> requests, DType values)
    : requests_(std::move(requests)),
      base_(folder, requests_),
      values_(values),
      memory_(requests_.size()),
      overlays_(requests_.size()),
      moments_(requests_.size()) {
  check<ArgumentError>(
      holds_trained(values), "store",
      std::string("working copies in ") + dtype_name(values) + ", expected F32, BF16 or BF16T8");
}

void Store::for_units(uint32_t id, const std::function<void(const Unit&, const WeightView&)>& body) {
  std::vector<Unit> units;
  const int64_t rows = requests_[id].rows, step = unit_rows(id);
  for (int64_t row0 = 0; row0 < rows; row0 += step) units.push_back({id, row0, std::min(step, rows - row0)});
  begin_pass(units);
  for (const Unit& u : units) {
    body(u, acquire(u));
    release(u);
  }
}

void Store::for_state(uint32_t id, const Kernels& kernels, ThreadPool& pool, const OnRows& each,
                      const OnRows& body) {
  for_units(id, [&](const Unit& u, const WeightView& w) {
    constexpr int64_t kElements = 32768;
    const int64_t step = std::max<int64_t>(1, kElements / w.cols);
    pool.run((u.n_rows + step - 1) / step, [&](int64_t i, int) {
      const int64_t row0 = u.row0 + i * step, n = std::min(step, u.row0 + u.n_rows - row0);
      prepare_rows(u, row0, n, kernels);
      if (each) each(w, row0, n);
      finish_rows(u, row0, n, kernels);
    });
    body(w, u.row0, u.n_rows);
  });
}

RowViews Store::copy_rows(uint32_t id, const std::vector<int32_t>& rows,
                          const std::function<void(int64_t, int64_t, void*)>& read) const {
  const BaseTensor& t = base_.tensor(id);
  const int64_t row_bytes = bytes_of(t.dtype, t.cols), room = single_row_bytes(t);
  std::vector<uint8_t> memory(rows.size() * static_cast<size_t>(room) + 64);
  uint8_t* const begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  std::vector<WeightView> views;
  for (size_t i = 0; i < rows.size(); ++i) {
    uint8_t* const to = begin + static_cast<int64_t>(i) * room;
    read(rows[i] * row_bytes, row_bytes, to);
    views.push_back(t.view(id, rows[i], to, nullptr));
  }
  return RowViews(rows, std::move(views), std::move(memory));
}

WeightView Store::shape(uint32_t id) const {
  WeightView w;
  w.rows = requests_[id].rows, w.cols = requests_[id].cols;
  w.tensor_id = id;
  return w;
}

int64_t Store::fill_from_base(uint32_t id, IndexOverlay& overlay) {
  for_units(id, [&](const Unit& u, const WeightView& w) {
    for (int64_t r = u.row0; r < u.row0 + u.n_rows; ++r) {
      for (uint32_t i = overlay.row_begin[static_cast<size_t>(r)];
           i < overlay.row_begin[static_cast<size_t>(r) + 1]; ++i)
        overlay.value[i] = decode_at(w, r * w.cols + overlay.col[i]);
    }
  });
  return base_.originals() ? base_.originals()->fill(requests_[id].name, requests_[id].cols, overlay) : 0;
}

void Store::set_overlay(uint32_t id, IndexOverlay overlay) {
  n_originals_ += fill_from_base(id, overlay);
  overlays_[id] = std::make_unique<IndexOverlay>(std::move(overlay));
}

std::vector<float> Store::overlay_base_values(uint32_t id) {
  IndexOverlay copy = overlays_[id]->copy();
  fill_from_base(id, copy);
  return {copy.value.begin(), copy.value.end()};
}

void Store::keep_moments(uint32_t id, int64_t n, int count, float first) {
  Moments& m = moments_[id];
  m.n = n;
  for (int k = 0; k < count; ++k) {
    m.values[k] = allocate_pages(n * static_cast<int64_t>(sizeof(float)));
    check<BudgetError>(m.values[k] != nullptr, "moments",
                       "no memory for " + std::to_string(n * 4) + " bytes of moments of '" +
                           requests_[id].name + "'; a window rebuilds them from the journal instead");
    if (first != 0) std::fill_n(reinterpret_cast<float*>(m.values[k].get()), n, first);
  }
}

float* Store::moments(uint32_t id, int k) { return reinterpret_cast<float*>(moments_[id].values[k].get()); }

float* Store::moments_at(uint32_t id, int64_t row, int k) {
  float* const all = moments(id, k);
  return all == nullptr || overlays_[id] ? all : all + row * requests_[id].moments_a_row;
}

int64_t Store::moment_bytes() const {
  int64_t n = 0;
  for (const Moments& m : moments_) {
    for (const Pages& p : m.values) n += p ? whole_pages(m.n * static_cast<int64_t>(sizeof(float))) : 0;
  }
  return n;
}

int64_t Store::overlay_bytes() const {
  int64_t n = 0;
  for (const auto& o : overlays_) n += o ? o->n_bytes() : 0;
  return n;
}

std::string Store::fingerprint() const { return hash_text(fingerprint_); }

WeightView Store::allocate(uint32_t id, DType dtype) {
  WeightView w;
  w.rows = requests_[id].rows, w.cols = requests_[id].cols;
  const int64_t n_bytes = copy_bytes(w.n(), dtype), plane = plane_bytes(w.n(), dtype);
  memory_[id] = allocate_pages(n_bytes);
  check<BudgetError>(memory_[id] != nullptr, "store",
                     "no memory for the " + std::to_string(n_bytes) + " bytes of the working copy of '" +
                         requests_[id].name + "'");
  w.data = memory_[id].get();
  w.tail = dtype == DType::BF16T8 ? static_cast<int8_t*>(memory_[id].get()) + plane : nullptr;
  w.dtype = dtype;
  w.tensor_id = id;
  w.writable = requests_[id].trained;
  working_copy_bytes_ += whole_pages(n_bytes);
  return w;
}

}  // namespace smezo
