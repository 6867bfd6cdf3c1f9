// A unit's working copy is made when it is acquired and thrown away, or written to the next generation, when
// it is released (trained_units.h).
#include <algorithm>

#include "base/error.h"
#include "base/pages.h"
#include "store/streamed.h"

namespace smezo {

bool Streamed::place_trained(const StreamOptions& options) {
  trained_.resize(requests_.size());
  if (!streams_trained(options, requests_, values_)) return false;
  for (uint32_t id = 0; id < requests_.size(); ++id)
    trained_[id].streamed = requests_[id].trained && requests_[id].rows > 1;
  return true;
}

int64_t Streamed::state_room(const Unit& u) const {
  return whole_pages(copy_bytes(u.n_rows * requests_[u.tensor_id].cols, values_));
}

WeightView Streamed::state_view(const Unit& u, uint8_t* memory) const {
  WeightView w = shape(u.tensor_id);
  const int64_t n = u.n_rows * w.cols;
  w.data = memory;
  w.tail = values_ == DType::BF16T8 ? reinterpret_cast<int8_t*>(memory + plane_bytes(n, values_)) : nullptr;
  w.dtype = values_;
  w.first = u.row0 * w.cols;
  w.writable = true;
  return w;
}

void Streamed::keep_support(uint32_t id, const TensorDirection& d, const Kernels& kernels, ThreadPool& pool) {
  TrainedTensor& t = trained_[id];
  // Bits of a random mask cost more than the values they leave out.
  if (!t.streamed || (d.mask.kind != MaskKind::small && d.mask.kind != MaskKind::large)) return;
  std::vector<uint32_t> counts(static_cast<size_t>(requests_[id].rows));
  for_units(id, [&](const Unit& u, const WeightView&) {
    const WeightView base = held(u)->base;
    pool.run(u.n_rows, [&](int64_t i, int) {
      count_support(d, base, values_, u.row0 + i, 1, kernels, &counts[static_cast<size_t>(u.row0 + i)]);
    });
  });
  t.row_begin.assign(1, 0);
  for (const uint32_t n : counts) t.row_begin.push_back(t.row_begin.back() + n);
  t.direction = d;
  t.packs = true;
}

void Streamed::use_generation(const StateReader& file) {
  transfer().set_file(base_.file().n_shards(), file.path());
  pass_.clear();
  is_expected_ = false;
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    TrainedTensor& t = trained_[id];
    if (!t.streamed) continue;
    const int64_t i = file.find(requests_[id].name);
    t.in_generation = i >= 0;
    if (!t.in_generation) continue;  // a delta of fewer tensors: it is as the base has it
    const StateTensor& there = file.tensors()[static_cast<size_t>(i)];
    const int64_t n = there.packed ? n_packed(id) : requests_[id].rows * requests_[id].cols;
    check<FormatError>(
        there.dtype == values_ && there.n() == n, "generation",
        file.path() + " has " + std::to_string(there.n()) + " values of '" + there.name + "' as " +
            dtype_name(there.dtype) + ", expected " + std::to_string(n) + " as " + dtype_name(values_) +
            "; another method's, or random masks, which need more memory to start from a delta?");
    t.packed_there = there.packed;
    // Dense once (a run that was in memory before), dense for good: its place in the ring cannot be read and
    // packed into at a time.
    if (!there.packed) t.packs = false;
    t.values = file.values_entry(static_cast<size_t>(i));
    t.tail = file.tail_entry(static_cast<size_t>(i));
    t.moments_there = requests_[id].n_moments > 0;
    for (int k = 0; k < requests_[id].n_moments; ++k) {
      const int64_t at = file.find(moment_name(requests_[id].name, k));
      t.moments_there &= at >= 0;  // a delta has none
      if (at >= 0) t.moments[k] = file.values_entry(static_cast<size_t>(at));
    }
  }
}

float* Streamed::moments_at(uint32_t id, int64_t row, int k) {
  if (!trained_[id].streamed) return Store::moments_at(id, row, k);
  if (k >= requests_[id].n_moments) return nullptr;
  for (const HeldUnit& h : held_) {
    if (h.unit.tensor_id == id && h.unit.row0 <= row && row < h.unit.row0 + h.unit.n_rows)
      return h.moments[k] + (row - h.unit.row0) * requests_[id].moments_a_row;
  }
  fail<ArgumentError>("store", "moments of '" + requests_[id].name + "' are asked for, which is not held");
}

const HeldUnit* Streamed::held(const Unit& u) const {
  for (const HeldUnit& h : held_) {
    if (h.unit.tensor_id == u.tensor_id && h.unit.row0 == u.row0) return &h;
  }
  fail<ArgumentError>("store", "a unit of '" + requests_[u.tensor_id].name + "' is not held");
}

WeightView Streamed::acquire_state(const Unit& u) {
  // Before waiting for what may find no room while units are leaving.
  give_back(!transfer().next_is_there());
  const Transfer::Pointers at = source_.next();
  HeldUnit h{u, view(u, at), at[2], at[3], {}, {}};
  for (int k = 0; k < requests_[u.tensor_id].n_moments; ++k)
    h.moments[k] = reinterpret_cast<float*>(at[static_cast<size_t>(4 + k)]);
  uint8_t* memory = state_ring_.take(state_room(u));
  if (memory == nullptr) {
    give_back(true);
    memory = state_ring_.take(state_room(u));
  }
  check<BudgetError>(memory != nullptr, "store", "more units held than the ring of states has room for");
  h.state = state_view(u, memory);
  held_.push_back(h);
  return h.state;
}

void Streamed::prepare_rows(const Unit& u, int64_t row0, int64_t n, const Kernels& kernels) {
  const TrainedTensor& t = trained_[u.tensor_id];
  if (!t.streamed) return;
  materialize_rows(t, *held(u), row0, n, kernels);
  const TensorRequest& r = requests_[u.tensor_id];
  for (int k = 0; k < r.n_moments && !t.moments_there; ++k)
    std::fill_n(moments_at(u.tensor_id, row0, k), n * r.moments_a_row, r.first_moment);
}

void Streamed::finish_rows(const Unit& u, int64_t row0, int64_t n, const Kernels& kernels) {
  if (write_ && trained_[u.tensor_id].packs) pack_rows(trained_[u.tensor_id], *held(u), row0, n, kernels);
}

// Rings take back in order. `all`: waits for what is being written.
void Streamed::give_back(bool all) {
  for (; !leaving_.empty(); leaving_.pop_front()) {
    const Leaving& l = leaving_.front();
    if (!writer_.is_over(l.job)) {
      if (!all) return;
      writer_.wait(l.job);
    }
    if (l.has_state) state_ring_.give_back_oldest();
    source_.release_oldest();
  }
}

void Streamed::finish_writing() {
  writer_.wait_for_all();
  give_back(false);
}

void Streamed::write_units(WriteUnit write) {
  writer_.drop();
  give_back(false);
  write_ = std::move(write);
}

RowViews Streamed::state_rows(uint32_t id, const std::vector<int32_t>& rows, const Kernels& kernels) {
  const TrainedTensor& t = trained_[id];
  WeightView state = shape(id);
  state.dtype = values_;
  const BaseTensor& base = base_.tensor(id);
  StateRows found =
      read_state_rows(t, base, state, rows, transfer().file(base.data->shard),
                      t.in_generation ? &transfer().file(base_.file().n_shards()) : nullptr, kernels);
  small_bytes_read_ += found.bytes_read;
  return std::move(found.views);
}

}  // namespace smezo
