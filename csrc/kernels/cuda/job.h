// What a launch is given, made from the arguments of cuda.h on the host, checked there once. Passed by value,
// so that a kernel reads it from constant memory. The kernels and the host launcher are given the same.
#pragma once
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda.h"

namespace smezo::cuda {

constexpr int kThreads = 256;  // of a CUDA block
constexpr int kPiece = 8;      // consecutive elements that one thread works on
// Elements a CUDA block works on at a time: a whole number of groups of every noise kind (noise/address.h),
// and aligned to its size, so that a Philox block never belongs to two windows.
constexpr int64_t kWindow = kThreads * kPiece;
static_assert(kWindow % 2048 == 0);

// Elements [begin, end). whole_pieces: pointers and shapes are such that a thread may move a piece that lies
// inside the range with vector loads and stores.
struct Range {
  int64_t begin, end;
  bool whole_pieces;
};

struct NoiseJob {
  Range range;
  TensorDirection dir;
  float* out;
};

struct MaskJob {
  Range range;
  TensorDirection dir;
  WeightView w;
  uint8_t* out;
};

struct ProduceJob {
  Range range;
  OperandJob job;
  int64_t cols;  // of the outputs; element range.begin is their first
  Branches out;
};

struct RecordJob {
  Range range;
  UpdateJob job;  // job.c is null; it is c here
  float c[kMaxQueries];
};

inline bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline bool whole_pieces(const WeightView& w) {
  if (w.first % kPiece != 0) return false;
  switch (w.dtype) {
    case DType::F32:
    case DType::F16:
    case DType::BF16:
      return aligned(w.data, 16);
    case DType::BF16T8:
      return aligned(w.data, 16) && aligned(w.tail, 8);
    case DType::NF4:
      return aligned(w.data, 4);
    case DType::I8:  // a piece has one scale
      return aligned(w.data, 8) && w.cols % kPiece == 0;
  }
  return false;
}

inline Range range_of(int64_t begin, int64_t n, bool whole) { return {begin, begin + n, whole}; }

inline NoiseJob noise_job(const TensorDirection& d, int64_t e0, int64_t n, float* out) {
  return {range_of(e0, n, e0 % kPiece == 0 && aligned(out, 16)), d, out};
}

inline MaskJob mask_job(const WeightView& w, const TensorDirection& d, int64_t e0, int64_t n, uint8_t* out) {
  return {range_of(e0, n, e0 % kPiece == 0 && aligned(out, 8) && whole_pieces(w)), d, w, out};
}

inline ProduceJob decode_job(const WeightView& w, int64_t e0, int64_t n, float* out) {
  ProduceJob p{};
  p.range = range_of(e0, n, e0 % kPiece == 0 && aligned(out, 16) && whole_pieces(w));
  p.job.w = w;
  p.job.compute = Compute::f32;
  p.cols = p.out.ld = n;  // one row
  p.out.plain = out;
  return p;
}

inline ProduceJob produce_job(const OperandJob& job, int64_t row0, int64_t n_rows, const Branches& out) {
  const int most = job.eps == 0 ? 0 : kMaxBranchQueries;
  check<ArgumentError>(out.n_queries >= 0 && out.n_queries <= most, "device",
                       std::to_string(out.n_queries) + " queries at eps = " + std::to_string(job.eps) +
                           ", expected 0.." + std::to_string(most));
  check<ArgumentError>(out.ld >= job.w.cols, "device",
                       "operand rows of " + std::to_string(out.ld) + " elements, expected at least " +
                           std::to_string(job.w.cols));
  const uint64_t last = job.dir.stream.query + static_cast<uint64_t>(out.n_queries);
  check<ArgumentError>(last <= kMaxQuery + uint64_t{1}, "device",
                       "queries up to " + std::to_string(last) + ", expected below " +
                           std::to_string(kMaxQuery + uint64_t{1}));
  bool whole =
      whole_pieces(job.w) && aligned(out.plain, 16) && job.w.cols % kPiece == 0 && out.ld % kPiece == 0;
  for (int q = 0; q < out.n_queries; ++q) {
    whole = whole && aligned(out.plus[q], 16) && aligned(out.minus[q], 16);
    check<ArgumentError>(job.mode != OperandMode::split || out.plus[q] == nullptr, "device",
                         "plus of query " + std::to_string(q) +
                             " was asked for in split mode, expected null; Q(w) goes to plain");
  }
  return {range_of(row0 * job.w.cols, n_rows * job.w.cols, whole), job, job.w.cols, out};
}

inline RecordJob record_job(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  check<ArgumentError>(job.w.writable && holds_trained(job.w.dtype), "update",
                       "tensor " + std::to_string(job.w.tensor_id) + " is " + dtype_name(job.w.dtype) +
                           (job.w.writable ? "" : " of the base") +
                           ", expected a working copy in F32, BF16 or BF16T8; a record was sent to a frozen "
                           "tensor");
  check<ArgumentError>(
      job.n_queries >= 0 && job.n_queries <= kMaxQueries, "update",
      std::to_string(job.n_queries) + " queries in a record, expected 0.." + std::to_string(kMaxQueries));
  check<ArgumentError>(
      job.rule.kind == RuleKind::sgd && job.given == nullptr, "device",
      "a record of another rule than sgd with a dense direction, expected that: others run on the "
      "host");
  RecordJob r{range_of(row0 * job.w.cols, n_rows * job.w.cols, whole_pieces(job.w)), job, {}};
  for (int q = 0; q < job.n_queries; ++q) r.c[q] = job.c[q];
  r.job.c = nullptr;
  return r;
}

// Windows that a range touches: a CUDA block each, if there are that many.
inline int64_t n_windows(const Range& r) {
  return r.begin < r.end ? (r.end - 1) / kWindow - r.begin / kWindow + 1 : 0;
}

}  // namespace smezo::cuda
