// The verbs on stored weights for a CUDA device: noise, mask, decode, operands of all branches, update. Plain
// C++ that needs no CUDA header. Link one of two: kernels.cu (CMake target smezo_cuda) or, where CUDA is
// absent, none.cpp (smezo_no_cuda), whose entries throw ArgumentError.
//
// Every pointer, those inside a WeightView included, is the device's, unless its comment says host. `stream`
// is a cudaStream_t; calls return once the work is queued on it. Bits equal those of the CPU kernels, except
// that a NaN kept or made in fp32 has the machine's own payload. ArgumentError for a job that cannot be,
// IoError when the driver refuses a launch.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace smezo::cuda {

constexpr int kMaxBranchQueries = 8;

// Where the operands of one read of the stored weight go: uint16_t (bf16 patterns) when compute is bf16, else
// float; [n_rows][ld] row-major, columns cols..ld-1 made zero. A null pointer is a branch that nobody wants.
//   nearest, dither   plain = Q(w), plus[q] and minus[q] the branches of query dir.stream.query + q
//   split             plain = Q(w), minus[q] = m z of query q; plus[q] is null
//   job.eps = 0       plain only, n_queries is 0
struct Branches {
  int64_t ld = 0;  // at least cols
  void* plain = nullptr;
  int n_queries = 0;
  void* plus[kMaxBranchQueries] = {};
  void* minus[kMaxBranchQueries] = {};
};

// Noise without mask of elements [e0, e0 + n), fp32.
void noise(const TensorDirection& d, int64_t e0, int64_t n, float* out, void* stream);
// 1 where mask_at lets the element in, else 0, for elements [e0, e0 + n).
void mask(const WeightView& w, const TensorDirection& d, int64_t e0, int64_t n, uint8_t* out, void* stream);
// Stored elements [e0, e0 + n) -> fp32.
void decode(const WeightView& w, int64_t e0, int64_t n, float* out, void* stream);
// Operands of rows [row0, row0 + n_rows) on every branch asked for.
void produce(const OperandJob& job, int64_t row0, int64_t n_rows, const Branches& out, void* stream);
// One record on rows [row0, row0 + n_rows) in place; job.c is on the host and read before the call returns.
void apply_update(const UpdateJob& job, int64_t row0, int64_t n_rows, void* stream);

}  // namespace smezo::cuda
