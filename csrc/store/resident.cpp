// The resident store. Chunks of the base are hashed in parallel, in the pass over the file that also makes
// the working copies, and their pages are dropped from this process behind it.
#include <cstring>
#include <limits>

#include "base/error.h"
#include "store/convert.h"
#include "store/plan.h"
#include "store/store.h"

namespace smezo {
namespace {

class Resident final : public Store {
 public:
  Resident(const std::string& folder, std::vector<TensorRequest> requests, DType values, ThreadPool& pool)
      : Store(folder, std::move(requests), values) {
    place();
    load(pool);
  }

  WeightView weight(uint32_t id) override { return weights_[id]; }
  void base_values(uint32_t id, int64_t e0, int64_t n, float* out) override {
    const BaseTensor& t = base_.tensor(id);
    read_as(base_view_[id], e0, n, values_, out);
    // What is read here is read once (deltas, supports): it shall not stay resident beside the working copy.
    const int64_t begin = bytes_of(t.dtype, e0);
    base_.file().dont_need(*t.data, begin, bytes_of(t.dtype, e0 + n) - begin);
  }

  int64_t unit_rows(uint32_t id) const override { return requests_[id].rows; }
  int64_t hold_bytes() const override { return std::numeric_limits<int64_t>::max(); }
  int64_t unit_bytes(const Unit&) const override { return 0; }
  void begin_pass(std::vector<Unit>) override {}
  WeightView acquire(const Unit& unit) override { return weights_[unit.tensor_id]; }
  void release(const Unit&) override {}
  int64_t row_bytes(uint32_t id) const override {
    return reads_rows(id) ? single_row_bytes(base_.tensor(id)) : 0;
  }
  RowViews rows(uint32_t id, const std::vector<int32_t>& rows) override {
    if (!reads_rows(id)) return RowViews(weights_[id]);
    return copy_rows(id, rows, [&](int64_t begin, int64_t n, void* to) {
      base_.file().read(*base_.tensor(id).data, begin, n, to);
    });
  }
  void rest(uint32_t id) override {
    if (!memory_[id]) base_.file().dont_need(*base_.tensor(id).data, 0, base_.tensor(id).data->n_bytes);
  }

 private:
  // Touching a mapped row brings the pages around it into this process: rows are read instead.
  bool reads_rows(uint32_t id) const { return !memory_[id] && base_view_[id].dtype != DType::NF4; }
  void place();
  void load(ThreadPool& pool);

  std::vector<WeightView> base_view_, weights_;
  std::vector<std::vector<uint8_t>> absmax_;  // copies of those that do not lie aligned
};

void Resident::place() {
  absmax_.resize(requests_.size());
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const BaseTensor& t = base_.tensor(id);
    const uint8_t* data = base_.file().data(*t.data);
    const uint8_t* absmax = t.absmax ? base_.file().data(*t.absmax) : nullptr;
    if (reinterpret_cast<uintptr_t>(absmax) % sizeof(float) != 0 && t.absmax->dtype == "F32") {
      absmax_[id].assign(absmax, absmax + t.absmax->n_bytes);
      absmax = absmax_[id].data();
    }
    base_view_.push_back(t.view(id, 0, data, absmax));
  }
  weights_ = base_view_;
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const DType dtype = base_view_[id].dtype;
    const bool packed = dtype == DType::NF4 || dtype == DType::I8;
    const bool aligned =
        packed ||
        reinterpret_cast<uintptr_t>(base_view_[id].data) % static_cast<uintptr_t>(dtype_bytes(dtype)) == 0;
    if (requests_[id].trained) {
      weights_[id] = allocate(id, values_);
    } else if (!aligned) {
      weights_[id] = allocate(id, dtype);
    }
  }
}

void Resident::load(ThreadPool& pool) {
  const auto is_block_scaled = [&](uint32_t id) { return base_view_[id].dtype == DType::NF4; };
  fingerprint_ = base_.hash(
      pool, [&](const Base::Chunk& c, int) { return base_.file().data(*c.entry) + c.at; },
      [&](const Base::Chunk& c, const uint8_t*) {
        const DType dtype = base_view_[c.id].dtype;
        if (memory_[c.id] && !is_block_scaled(c.id)) {
          const int64_t size = dtype_bytes(dtype);
          convert(base_view_[c.id], c.at / size, c.n_bytes / size, weights_[c.id]);
        }
        base_.file().dont_need(*c.entry, c.at, c.n_bytes);
      });
  // A fault brings neighbours too, also into what was let go of already.
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const BaseTensor& t = base_.tensor(id);
    base_.file().dont_need(*t.data, 0, t.data->n_bytes);
    if (t.absmax) base_.file().dont_need(*t.absmax, 0, t.absmax->n_bytes);
  }
  // A chunk of NF4 codes has its scales elsewhere: once more, by rows.
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    if (!memory_[id] || !is_block_scaled(id)) continue;
    const BaseTensor& t = base_.tensor(id);
    pool.run(t.rows, [&](int64_t row, int) { convert(base_view_[id], row * t.cols, t.cols, weights_[id]); });
    base_.file().dont_need(*t.data, 0, t.data->n_bytes);
    base_.file().dont_need(*t.absmax, 0, t.absmax->n_bytes);
  }
}

}  // namespace

std::unique_ptr<Store> Store::open(const std::string& folder, const std::vector<TensorRequest>& requests,
                                   DType values, ThreadPool& pool) {
  return std::make_unique<Resident>(folder, requests, values, pool);
}

}  // namespace smezo
