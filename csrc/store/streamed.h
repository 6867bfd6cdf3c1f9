// The streamed store (Store::open_streamed). streamed.cpp: passes, units and rows of what does not train;
// streamed_state.cpp: trained state that is not in memory, and generations.
#pragma once
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/background.h"
#include "store/kept_units.h"
#include "store/plan.h"
#include "store/trained_units.h"
#include "store/unit_source.h"

namespace smezo {

class Streamed final : public Store {
 public:
  Streamed(const std::string& folder, std::vector<TensorRequest> requests, DType values,
           const StreamOptions& options, ThreadPool& pool);

  WeightView weight(uint32_t id) override;
  void base_values(uint32_t id, int64_t e0, int64_t n, float* out) override;
  int64_t unit_rows(uint32_t id) const override;
  int64_t unit_step(uint32_t id) const override {
    return memory_[id] ? 1 : std::lcm(base_.tensor(id).row_multiple(), requests_[id].row_step);
  }
  int64_t hold_bytes() const override { return transfer().ring_bytes() / 2; }
  int64_t unit_bytes(const Unit& unit) const override {
    if (memory_[unit.tensor_id]) return 0;
    return std::max(Transfer::room_for(job_for(unit)),
                    trained_[unit.tensor_id].streamed ? state_room(unit) : 0);
  }
  void begin_pass(std::vector<Unit> units) override;
  void expect_same_pass() override;
  WeightView acquire(const Unit& unit) override;
  void release(const Unit& unit) override;
  RowViews rows(uint32_t id, const std::vector<int32_t>& rows) override;
  void rest(uint32_t) override {}
  Traffic traffic() const override {
    return {transfer().bytes_given() + small_bytes_read_, source_.stall_s()};
  }
  void set_resident_bytes(int64_t n_bytes) override;
  int64_t resident_bytes() const override { return device_ ? 0 : kept_.bytes(); }
  int64_t device_bytes() const override { return device_ ? device_->used_bytes() : 0; }
  int64_t row_bytes(uint32_t id) const override {
    if (trained_[id].streamed) return copy_bytes(requests_[id].cols, values_);
    return memory_[id] ? 0 : single_row_bytes(base_.tensor(id));
  }
  int64_t support_bytes() const override {
    size_t n = 0;
    for (const TrainedTensor& t : trained_) n += t.row_begin.size() * sizeof(uint32_t);
    return static_cast<int64_t>(n);
  }
  int64_t ring_bytes() const override { return transfer().ring_bytes() + state_ring_.size(); }
  bool streams_state(uint32_t id) const override { return trained_[id].streamed; }
  void prepare_rows(const Unit& unit, int64_t row0, int64_t n, const Kernels& kernels) override;
  RowViews state_rows(uint32_t id, const std::vector<int32_t>& rows, const Kernels& kernels) override;
  bool packs(uint32_t id) const override { return trained_[id].packs; }
  int64_t n_packed(uint32_t id) const override {
    return trained_[id].packs ? trained_[id].row_begin.back() : 0;
  }
  void keep_support(uint32_t id, const TensorDirection& d, const Kernels& kernels, ThreadPool& pool) override;
  void use_generation(const StateReader& file) override;
  float* moments_at(uint32_t id, int64_t row, int k) override;
  void write_units(WriteUnit write) override;
  void finish_writing() override;
  void finish_rows(const Unit& unit, int64_t row0, int64_t n, const Kernels& kernels) override;

 private:
  bool place_trained(const StreamOptions& options);
  void check_ring() const;
  int64_t value_bytes() const { return plane_element_bytes(values_); }
  int64_t state_room(const Unit& u) const;
  WeightView state_view(const Unit& u, uint8_t* memory) const;
  const HeldUnit* held(const Unit& u) const;
  WeightView acquire_state(const Unit& u);
  void load(ThreadPool& pool);
  ReadJob job_for(const Unit& unit) const;
  WeightView view(const Unit& unit, const Transfer::Pointers& at) const {
    return base_.tensor(unit.tensor_id).view(unit.tensor_id, unit.row0, at[0], at[1]);
  }

  Transfer& transfer() { return source_.transfer(); }
  const Transfer& transfer() const { return source_.transfer(); }
  void give_back(bool all);

  std::unique_ptr<Device> device_;  // nullptr: units are used in host memory
  KeptUnits kept_;                  // outlives the readers that write there
  UnitSource source_;
  int64_t unit_bytes_;
  std::vector<TrainedTensor> trained_;  // [n_tensors]
  Ring state_ring_;
  std::deque<HeldUnit> held_;  // of trained_, in the order acquired
  // Released units, oldest first, whose memory is given back when what is written of them has been.
  struct Leaving {
    int64_t job;  // of writer_; 0: nothing is written
    bool has_state;
  };
  std::deque<Leaving> leaving_;
  WriteUnit write_;
  std::vector<WeightView> weights_;  // of those in memory_
  std::vector<Unit> pass_;
  bool is_expected_ = false;  // pass_ has not begun
  size_t next_ = 0;
  int64_t small_bytes_read_ = 0;
  Background writer_;  // first to end: what it writes lies in the rings
};

}  // namespace smezo
