#include "engine/pending.h"

#include <algorithm>

namespace smezo {

Pending::Pending(Store& store, const std::vector<TensorMethod>& methods, const Kernels& kernels,
                 ThreadPool& pool, FactorSource& factors, uint64_t run_seed, uint32_t watermark)
    : store_(store),
      methods_(methods),
      kernels_(kernels),
      pool_(pool),
      factors_(factors),
      run_seed_(run_seed),
      tail_(watermark),
      watermark_(methods.size(), watermark),
      tracks_(methods.size()) {}

// Working copies and index sets; coefficients are nobody's but the engine's.
bool Pending::has_state(uint32_t id) const {
  const TensorMethod& m = methods_[id];
  return m.trained && !(m.low_rank && m.only_read);
}

static bool has_track(const TensorMethod& m) {
  return m.low_rank && m.rule == RuleKind::adam && !m.only_read;
}

void Pending::push(PendingRecord record) {
  if (record.step <= tail_) {
    for (uint32_t id = 0; id < methods_.size(); ++id) {
      if (methods_[id].trained && has_track(methods_[id]) && !record.skips(methods_[id]))
        advance_track(methods_[id].low_rank, run_seed_, id, record, &tracks_[id]);
    }
    return;
  }
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

CatchUp Pending::catch_up(uint32_t id) { return has_state(id) ? catch_up_with(id, of(id)) : CatchUp(); }

CatchUp Pending::catch_up_with(uint32_t id, const std::vector<PendingRecord>& records) {
  const TensorRequest& r = store_.request(id);
  CatchUp::Tensor t{&methods_[id], id, r.rows, r.cols, run_seed_};
  t.moments = [this, id](int64_t row, int k) { return store_.moments_at(id, row, k); };
  return CatchUp(t, records, kernels_, pool_, factors_, tracks_[id]);
}

void Pending::advance(uint32_t id, const std::vector<PendingRecord>& records) {
  for (const PendingRecord& r : records) {
    if (has_track(methods_[id]) && !r.skips(methods_[id]))
      advance_track(methods_[id].low_rank, run_seed_, id, r, &tracks_[id]);
    watermark_[id] = r.step;
  }
}

void Pending::advance(uint32_t id) {
  if (has_track(methods_[id])) advance(id, std::vector<PendingRecord>(of(id)));
  watermark_[id] = tail_;
}

void Pending::caught_up(uint32_t tensor_id) {
  advance(tensor_id);
  drop_applied();
}

void Pending::drop_applied() {
  uint32_t lowest = tail_;
  for (uint32_t id = 0; id < watermark_.size(); ++id) {
    if (has_state(id)) lowest = std::min(lowest, watermark_[id]);
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
  const CatchUp records = catch_up(id);
  store_.for_state(
      id, kernels_, pool_,
      [&](const WeightView& w, int64_t row0, int64_t n) { records.apply(w, nullptr, row0, n); }, body);
}

void Pending::streamed_state_is_at_tail() {
  for (uint32_t id = 0; id < methods_.size(); ++id) {
    if (methods_[id].trained && store_.streams_state(id)) advance(id);
  }
  drop_applied();
}

void Pending::flush() {
  for (uint32_t id = 0; id < methods_.size(); ++id) {
    if (!has_state(id) || watermark_[id] == tail_ || store_.streams_state(id)) continue;
    // Two epochs of factors at a time: after a long time away there are many.
    const LowRank& d = methods_[id].low_rank;
    std::vector<PendingRecord> some;
    const std::vector<PendingRecord> all = of(id);
    for (const PendingRecord& r : all) {
      if (d && !some.empty() && epoch_of(d, r.step) > epoch_of(d, some.front().step) + 1) {
        catch_up_with(id, some).apply_all(store_, pool_);
        advance(id, some);
        some.clear();
      }
      some.push_back(r);
    }
    catch_up_with(id, some).apply_all(store_, pool_);
    advance(id, some);
    watermark_[id] = tail_;
  }
  drop_applied();
}

}  // namespace smezo
