// A batch whose activations do not fit goes through the model in micro-batches, a pass each. Where a batch is
// cut changes no bit of a loss (I12).
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "model/model.h"

namespace smezo {

struct MicroBatch {
  Batch batch;
  std::vector<size_t> labels;  // the batch's numbers of this one's labels
};

// At most n micro-batches of about as many tokens each; a segment is never parted from its children.
// Segments that no label needs are left out.
std::vector<MicroBatch> cut(const Batch& batch, int64_t n);

struct MicroBatches {
  std::vector<MicroBatch> parts;  // none: the batch as it is
  int64_t forward_bytes = 0;      // of the largest
  size_t n() const { return parts.empty() ? 1 : parts.size(); }
  const Batch& at(size_t i, const Batch& whole) const { return parts.empty() ? whole : parts[i].batch; }
};

// The fewest whose forwards take at most `room` bytes each; what takes least where none does (room 0).
// forward_bytes: of a batch; value_bytes: of the values of the whole batch, which stay.
MicroBatches micro_batches_for(const Batch& batch, int64_t room,
                               const std::function<int64_t(const Batch&)>& forward_bytes,
                               int64_t value_bytes);

// Puts what a micro-batch gave to its place in the result of a batch of n_labels labels.
void put_into(ForwardResult& whole, size_t n_labels, const MicroBatch& part, const ForwardResult& found);

}  // namespace smezo
