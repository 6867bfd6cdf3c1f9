// How a budget is shared out: arithmetic only.
#pragma once
#include <cstdint>

#include "store/content_hash.h"
#include "store/store.h"
#include "store/transfer.h"

namespace smezo {

// Room that a unit of so many rows takes at most, wherever it lies in its file.
int64_t most_unit_bytes(const BaseTensor& tensor, int64_t rows);
// Bytes of a working copy, or of its first plane.
int64_t plane_bytes(int64_t n, DType dtype);
int64_t copy_bytes(int64_t n, DType dtype);

// Working copies take at most half of the budget; else the state of all matrices that train is streamed.
bool streams_trained(const StreamOptions& o, const std::vector<TensorRequest>& requests, DType values);
// A streamed store: does the tensor get a copy in memory? keeps_trained: not streams_trained.
bool is_copied(const TensorRequest& request, DType base, bool keeps_trained);
// The most rows of a unit of one that does not.
int64_t streamed_unit_rows(const BaseTensor& tensor, const TensorRequest& request, int64_t unit_bytes,
                           DType values);
// What a single row is read into: whole cache lines.
int64_t single_row_bytes(const BaseTensor& tensor);
// Of the base, without a generation.
ReadJob read_job_for(const Base& base, const Unit& unit);
// What becomes working copies through the ring when the store is opened: NF4 weights.
std::vector<Unit> units_to_copy(const Base& base, const std::vector<TensorRequest>& requests,
                                int64_t unit_bytes, bool streams_trained);
// What a thread reads the base through when it is opened.
constexpr int64_t kHashBufferBytes = kHashChunkBytes + 2 * RangeFile::kAlign;

// Bytes of the largest unit that cannot be cut further, over all tensors that are streamed.
int64_t least_unit_bytes(const Base& base, const std::vector<TensorRequest>& requests);
// The smallest ring a pass can go through.
int64_t least_ring_bytes(const Base& base, const std::vector<TensorRequest>& requests);

// The ring: as asked for, or an eighth of the budget, within [least, 64 MiB].
int64_t ring_bytes_for(const StreamOptions& o, const Base& base, const std::vector<TensorRequest>& requests);
// Units of an eighth of the ring: little is lost where it wraps, and a read is still a long one.
int64_t unit_bytes_for(int64_t ring_bytes);

}  // namespace smezo
