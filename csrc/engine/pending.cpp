#include "engine/pending.h"

#include <algorithm>

#include "engine/generation_interval.h"

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

static std::vector<PendingRecord>::const_iterator first_after(const std::vector<PendingRecord>& records,
                                                              uint32_t watermark) {
  return std::upper_bound(records.begin(), records.end(), watermark,
                          [](uint32_t w, const PendingRecord& r) { return w < r.step; });
}

Pending::Records Pending::of(uint32_t id) const {
  return {first_after(records_, watermark_[id]), records_.end()};
}

CatchUp Pending::catch_up(uint32_t id) {
  if (!has_state(id)) return {};
  if (!store_.streams_state(id)) return catch_up_with(id, of(id));
  for (const Shared& s : shared_) {
    if (s.tensor_id == id && s.watermark == watermark_[id] && s.tail == tail_) return s.catch_up;
  }
  if (shared_.size() == kMostShared) shared_.erase(shared_.begin());
  shared_.push_back({id, watermark_[id], tail_, catch_up_with(id, of(id))});
  return shared_.back().catch_up;
}

CatchUp Pending::catch_up_with(uint32_t id, Records records) {
  const TensorRequest& r = store_.request(id);
  CatchUp::Tensor t{&methods_[id], id, r.rows, r.cols, run_seed_};
  t.moments = [this, id](int64_t row, int k) { return store_.moments_at(id, row, k); };
  return CatchUp(t, records, kernels_, pool_, factors_, tracks_[id]);
}

void Pending::advance(uint32_t id, Records records) {
  for (const PendingRecord& r : records) {
    if (has_track(methods_[id]) && !r.skips(methods_[id]))
      advance_track(methods_[id].low_rank, run_seed_, id, r, &tracks_[id]);
    watermark_[id] = r.step;
  }
}

void Pending::advance_to_tail(uint32_t id) {
  advance(id, of(id));
  watermark_[id] = tail_;
}

void Pending::caught_up(uint32_t tensor_id) {
  advance_to_tail(tensor_id);
  drop_applied();
}

void Pending::drop_applied() {
  uint32_t lowest = tail_;
  for (uint32_t id = 0; id < watermark_.size(); ++id) {
    if (has_state(id)) lowest = std::min(lowest, watermark_[id]);
  }
  records_.erase(records_.begin(), first_after(records_, lowest));
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
    if (methods_[id].trained && store_.streams_state(id)) advance_to_tail(id);
  }
  shared_.clear();
  drop_applied();
}

// Records of low rank make factors, of two epochs at most, and numbers between them: after a long time away
// there are many.
static size_t n_at_once(const LowRank& d, std::span<const PendingRecord> records) {
  if (!d) return records.size();
  size_t n = 1;
  while (n < std::min(records.size(), size_t{kMostWaiting}) &&
         epoch_of(d, records[n].step) <= epoch_of(d, records[0].step) + 1)
    ++n;
  return n;
}

void Pending::flush() {
  for (uint32_t id = 0; id < methods_.size(); ++id) {
    if (!has_state(id) || watermark_[id] == tail_ || store_.streams_state(id)) continue;
    for (Records rest = of(id); !rest.empty();) {
      const Records some = rest.first(n_at_once(methods_[id].low_rank, rest));
      catch_up_with(id, some).apply_all(store_, pool_);
      advance(id, some);
      rest = rest.subspan(some.size());
    }
    watermark_[id] = tail_;
  }
  drop_applied();
}

}  // namespace smezo
