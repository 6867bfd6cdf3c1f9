// The CUDA side of cuda.h: a block of the device for the bodies of body.h, and their launches. Compiled with
// -fmad=false, or contraction would give other bits than the CPU's.
#pragma nv_diag_suppress 1675  // #pragma GCC unroll, which noise/philox.h has for gcc
#include <algorithm>

#include "kernels/cuda/body.h"

namespace smezo::cuda {
namespace {

struct DeviceBlock {
  static constexpr int kStates = 1;
  Shared& shared;
};

// The barrier is the device's alone; bodies compile for the host too.
template <class Phase>
SMEZO_HD void each(DeviceBlock&, const Phase& phase) {
#if defined(__CUDA_ARCH__)
  phase(static_cast<int>(threadIdx.x));
  __syncthreads();
#endif
}

template <class Job>
__global__ void __launch_bounds__(kThreads, 4) kernel(const __grid_constant__ Job job) {
  __shared__ Shared shared;
  DeviceBlock block{shared};
  run(block, blockIdx.x, gridDim.x, job);
}

constexpr int64_t kMaxGrid = int64_t{1} << 20;  // a block with more to do goes on to further windows

template <class Job>
void launch(const char* verb, const Job& job, void* stream) {
  const int64_t grid = std::min(n_windows(job.range), kMaxGrid);
  if (grid == 0) return;
  kernel<<<static_cast<unsigned>(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(job);
  const cudaError_t error = cudaGetLastError();
  check<IoError>(error == cudaSuccess, "device",
                 std::string("launch of ") + verb + ": " + cudaGetErrorString(error) +
                     ", expected success; this build has kernels for sm_75 to sm_120");
}

}  // namespace

void noise(const TensorDirection& d, int64_t e0, int64_t n, float* out, void* stream) {
  launch("noise", noise_job(d, e0, n, out), stream);
}
void mask(const WeightView& w, const TensorDirection& d, int64_t e0, int64_t n, uint8_t* out, void* stream) {
  launch("mask", mask_job(w, d, e0, n, out), stream);
}
void decode(const WeightView& w, int64_t e0, int64_t n, float* out, void* stream) {
  launch("decode", decode_job(w, e0, n, out), stream);
}
void produce(const OperandJob& job, int64_t row0, int64_t n_rows, const Branches& out, void* stream) {
  launch("produce", produce_job(job, row0, n_rows, out), stream);
}
void apply_update(const UpdateJob& job, int64_t row0, int64_t n_rows, void* stream) {
  launch("apply_update", record_job(job, row0, n_rows), stream);
}

}  // namespace smezo::cuda
