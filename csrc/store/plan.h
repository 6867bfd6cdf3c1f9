// How a budget is shared out: arithmetic only.
#pragma once
#include <cstdint>

#include "store/store.h"

namespace smezo {

// Room that a unit of so many rows takes at most, wherever it lies in its file.
int64_t most_unit_bytes(const BaseTensor& tensor, int64_t rows);
// Bytes of the largest unit that cannot be cut further, over all tensors that are streamed.
int64_t least_unit_bytes(const Base& base, const std::vector<TensorRequest>& requests);
// The smallest ring a pass can go through.
int64_t least_ring_bytes(const Base& base, const std::vector<TensorRequest>& requests);

// The ring: as asked for, or an eighth of the budget, within [least, 64 MiB].
int64_t ring_bytes_for(const StreamOptions& o, const Base& base, const std::vector<TensorRequest>& requests);
// Units of an eighth of the ring: little is lost where it wraps, and a read is still a long one.
int64_t unit_bytes_for(int64_t ring_bytes);

}  // namespace smezo
