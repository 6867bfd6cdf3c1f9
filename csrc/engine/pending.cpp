#include "engine/pending.h"

#include <algorithm>

#include "model/catch_up.h"

namespace smezo {

Pending::Pending(Store& store, const std::vector<TensorMethod>& methods, const Kernels& kernels,
                 ThreadPool& pool, uint64_t run_seed, uint32_t watermark)
    : store_(store),
      methods_(methods),
      kernels_(kernels),
      pool_(pool),
      run_seed_(run_seed),
      tail_(watermark),
      watermark_(methods.size(), watermark) {}

void Pending::push(PendingRecord record) {
  tail_ = record.step;
  records_.push_back(std::move(record));
}

const std::vector<PendingRecord>& Pending::of(uint32_t tensor_id) {
  const uint32_t mark = watermark_[tensor_id];
  if (records_.empty() || records_.front().step > mark) return records_;
  suffix_.clear();
  for (const PendingRecord& r : records_) {
    if (r.step > mark) suffix_.push_back(r);
  }
  return suffix_;
}

void Pending::caught_up(uint32_t tensor_id) {
  watermark_[tensor_id] = tail_;
  drop_applied();
}

void Pending::drop_applied() {
  uint32_t lowest = tail_;
  for (size_t id = 0; id < watermark_.size(); ++id) {
    if (methods_[id].trained) lowest = std::min(lowest, watermark_[id]);
  }
  const auto first =
      std::find_if(records_.begin(), records_.end(), [&](const PendingRecord& r) { return r.step > lowest; });
  records_.erase(records_.begin(), first);
}

void Pending::for_state(uint32_t id, const Store::OnRows& body) {
  if (!store_.streams_state(id)) {
    flush();
    return store_.for_state(id, kernels_, pool_, nullptr, body);
  }
  const std::vector<PendingRecord> records = of(id);
  store_.for_state(
      id, kernels_, pool_,
      [&](const WeightView& w, int64_t row0, int64_t n) {
        catch_up_rows(w, nullptr, methods_[id], run_seed_, records, kernels_, row0, n);
      },
      body);
}

void Pending::streamed_state_is_at_tail() {
  for (uint32_t id = 0; id < methods_.size(); ++id) {
    if (methods_[id].trained && store_.streams_state(id)) watermark_[id] = tail_;
  }
  drop_applied();
}

void Pending::flush() {
  for (uint32_t id = 0; id < methods_.size(); ++id) {
    if (!methods_[id].trained || watermark_[id] == tail_ || store_.streams_state(id)) continue;
    const std::vector<PendingRecord> records = of(id);
    catch_up_tensor(store_, id, methods_[id], run_seed_, records, kernels_, pool_);
    watermark_[id] = tail_;
  }
  drop_applied();
}

}  // namespace smezo
