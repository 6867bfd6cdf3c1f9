// Records that are committed but not yet applied, and the watermark of every tensor (I1, I3).
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/catch_up.h"
#include "model/factors.h"
#include "model/model.h"
#include "store/store.h"

namespace smezo {

class Pending {
 public:
  Pending(Store& store, const std::vector<TensorMethod>& methods, const Kernels& kernels, ThreadPool& pool,
          FactorSource& factors, uint64_t run_seed, uint32_t watermark);

  // In increasing step order. One up to the watermark is taken as applied: rules that average look back.
  void push(PendingRecord record);

  // The records after the tensor's watermark.
  CatchUp catch_up(uint32_t tensor_id);
  void caught_up(uint32_t tensor_id);  // every row has had all of them

  // Brings every trained tensor to the tail, all its records in one pass over its rows. State that is
  // streamed is left alone: it is caught up wherever it is looked at.
  void flush();
  // A trained tensor's state at the tail, in pieces (Store::for_state).
  void for_state(uint32_t tensor_id, const Store::OnRows& body);
  // A generation holds all streamed state at the tail now.
  void streamed_state_is_at_tail();

 private:
  using Records = std::span<const PendingRecord>;
  Records of(uint32_t tensor_id) const;
  bool has_state(uint32_t tensor_id) const;
  CatchUp catch_up_with(uint32_t tensor_id, Records records);
  void advance(uint32_t tensor_id, Records records);  // its track and its watermark
  void advance_to_tail(uint32_t tensor_id);
  void drop_applied();

  Store& store_;
  const std::vector<TensorMethod>& methods_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  FactorSource& factors_;
  uint64_t run_seed_;
  uint32_t tail_;
  std::vector<uint32_t> watermark_;  // [n_tensors]
  std::vector<Track> tracks_;        // [n_tensors]; of low rank with adam: at the watermark
  // Of tensors whose units are visited one by one: records are made ready once. Q, k and v are visited
  // together.
  static constexpr size_t kMostShared = 3;
  struct Shared {
    uint32_t tensor_id, watermark, tail;
    CatchUp catch_up;
  };
  std::vector<Shared> shared_;
  std::vector<PendingRecord> records_;  // those after the lowest watermark of a trained tensor
};

}  // namespace smezo
