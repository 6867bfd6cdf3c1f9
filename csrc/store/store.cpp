// What both stores share.
#include "store/store.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "store/content_hash.h"

namespace smezo {

RowViews::RowViews(std::vector<int32_t> rows, std::vector<WeightView> views, std::vector<uint8_t> memory)
    : rows_(std::move(rows)), views_(std::move(views)), memory_(std::move(memory)) {}

const WeightView& RowViews::at(int32_t row) const {
  if (rows_.empty()) return whole_;
  const auto found = std::lower_bound(rows_.begin(), rows_.end(), row);
  check<ArgumentError>(found != rows_.end() && *found == row, "store",
                       "row " + std::to_string(row) + " was not asked for");
  return views_[static_cast<size_t>(found - rows_.begin())];
}

Store::Store(const std::string& folder, std::vector<TensorRequest> requests, DType values)
    : requests_(std::move(requests)), base_(folder, requests_), values_(values), memory_(requests_.size()) {
  check<ArgumentError>(
      holds_trained(values), "store",
      std::string("working copies in ") + dtype_name(values) + ", expected F32, BF16 or BF16T8");
}

std::string Store::fingerprint() const { return hash_text(fingerprint_); }

void Store::Free::operator()(void* p) const { std::free(p); }

WeightView Store::allocate(uint32_t id, DType dtype) {
  WeightView w;
  w.rows = requests_[id].rows, w.cols = requests_[id].cols;
  const int64_t plane = (w.n() * (dtype == DType::F32 ? 4 : 2) + 63) / 64 * 64;
  const int64_t n_bytes = dtype == DType::BF16T8 ? plane + (w.n() + 63) / 64 * 64 : plane;
  memory_[id].reset(std::aligned_alloc(64, static_cast<size_t>(n_bytes)));
  check<BudgetError>(memory_[id] != nullptr, "store",
                     "no memory for the " + std::to_string(n_bytes) + " bytes of the working copy of '" +
                         requests_[id].name + "'");
  w.data = memory_[id].get();
  w.tail = dtype == DType::BF16T8 ? static_cast<int8_t*>(memory_[id].get()) + plane : nullptr;
  w.dtype = dtype;
  w.tensor_id = id;
  w.writable = requests_[id].trained;
  working_copy_bytes_ += n_bytes;
  return w;
}

}  // namespace smezo
