// Runs every CUDA kernel on a device and compares each byte with what the bodies give on the host (which
// cuda_host_test.cpp compares with the CPU kernels). Exit status 0: equal, or no device, then it prints
// `not run: reason`; 1: a difference. Weights here have no NaN: what a NaN keeps in fp32 is the machine's
// own.
#pragma nv_diag_suppress 1675  // #pragma GCC unroll, which noise/philox.h has for gcc
#include <cstdio>

#include "cuda_cases.h"
#include "kernels/cuda/host_launch.h"

namespace {
using namespace smezo;
using namespace cuda_cases;

constexpr int kRounds = 3;

void succeed(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// A vector's bytes on the device; `back` brings them to the host.
template <class T>
struct OnDevice {
  T* at = nullptr;
  size_t bytes;
  explicit OnDevice(const std::vector<T>& host) : bytes(host.size() * sizeof(T)) {
    succeed(cudaMalloc(reinterpret_cast<void**>(&at), bytes == 0 ? 1 : bytes), "cudaMalloc");
    succeed(cudaMemcpy(at, host.data(), bytes, cudaMemcpyHostToDevice), "copy to the device");
  }
  ~OnDevice() { cudaFree(at); }
  OnDevice(const OnDevice&) = delete;
  std::vector<T> back() const {
    std::vector<T> host(bytes / sizeof(T));
    succeed(cudaMemcpy(host.data(), at, bytes, cudaMemcpyDeviceToHost), "kernel, or copy to the host");
    return host;
  }
};

struct StoredOnDevice {
  const Stored& host;
  OnDevice<uint8_t> data, absmax8;
  OnDevice<int8_t> tail;
  OnDevice<float> absmax, nested_code, nested_absmax;
  explicit StoredOnDevice(const Stored& s)
      : host(s),
        data(s.data),
        absmax8(s.absmax8),
        tail(s.tail),
        absmax(s.absmax),
        nested_code(s.nested_code),
        nested_absmax(s.nested_absmax) {}
  WeightView view() const {
    return host.view({data.at, tail.at, absmax.at, absmax8.at, nested_code.at, nested_absmax.at});
  }
};

struct Count {
  int64_t compared = 0, different = 0;
  void add(bool equal, const char* verb, const Case& c) {
    ++compared;
    different += !equal;
    if (!equal && different <= 20)
      std::printf("  %s: other bits for %s [%lld, %lld] noise %d mask %d\n", verb,
                  dtype_name(c.w.shape.dtype), static_cast<long long>(c.w.shape.rows),
                  static_cast<long long>(c.w.shape.cols), static_cast<int>(c.dir.noise),
                  static_cast<int>(c.dir.mask.kind));
  }
};

template <class Job>
void on_host(const Job& job) {
  cuda::host_launch(cuda::n_windows(job.range), job);
}

void operands(Random& random, Case& c, const StoredOnDevice& w, Count& count) {
  for (OperandMode mode : kModes) {
    for (Compute compute : {Compute::f32, Compute::bf16}) {
      OperandJob job = make_operand_job(random, c, mode, compute);
      cuda::Branches host, device;
      host.ld = device.ld = random_ld(random, job.w.cols);
      host.n_queries = device.n_queries = job.eps == 0 ? 0 : static_cast<int>(below(random, 4));
      const int64_t bytes = c.n_rows * host.ld * (compute == Compute::bf16 ? 2 : 4);
      const int n = 1 + 2 * host.n_queries;  // strips, one after the other
      const int64_t apart = (bytes + 15) / 16 * 16 + (one_in(random, 4) ? 4 : 0);
      std::vector<uint8_t> strips(static_cast<size_t>(n * apart));
      const OnDevice<uint8_t> device_strips(strips);
      const auto set = [&](cuda::Branches& out, uint8_t* at) {
        out.plain = at;
        for (int q = 0; q < out.n_queries; ++q) {
          out.plus[q] = mode == OperandMode::split ? nullptr : at + (1 + 2 * q) * apart;
          out.minus[q] = at + (2 + 2 * q) * apart;
        }
      };
      set(host, strips.data());
      set(device, device_strips.at);
      on_host(cuda::produce_job(job, c.row0, c.n_rows, host));
      job.w = w.view();
      cuda::produce(job, c.row0, c.n_rows, device, nullptr);
      count.add(device_strips.back() == strips, "produce", c);
    }
  }
}

void ranges(Random& random, Case& c, const StoredOnDevice& w, Count& count) {
  const WeightView view = c.w.view();
  const int64_t e0 = view.first + below(random, view.n() - view.first), n = 1 + below(random, view.n() - e0);
  std::vector<float> values(static_cast<size_t>(n));
  std::vector<uint8_t> in(static_cast<size_t>(n));
  const OnDevice<float> device_values(values);
  const OnDevice<uint8_t> device_in(in);
  on_host(cuda::decode_job(view, e0, n, values.data()));
  cuda::decode(w.view(), e0, n, device_values.at, nullptr);
  std::vector<float> back = device_values.back();
  count.add(memcmp(back.data(), values.data(), back.size() * 4) == 0, "decode", c);
  on_host(cuda::noise_job(c.dir, e0, n, values.data()));
  cuda::noise(c.dir, e0, n, device_values.at, nullptr);
  back = device_values.back();
  count.add(memcmp(back.data(), values.data(), back.size() * 4) == 0, "noise", c);
  on_host(cuda::mask_job(view, c.dir, e0, n, in.data()));
  cuda::mask(w.view(), c.dir, e0, n, device_in.at, nullptr);
  count.add(device_in.back() == in, "mask", c);
}

void update(Random& random, Case& c, const StoredOnDevice& w, Count& count) {
  const float coefficients[] = {1e-4f, -0.3f, 1e-6f, 0.0f, 2.5f};
  UpdateJob job;
  job.w = c.w.view(), job.dir = c.dir;
  job.decay = one_in(random, 2) ? 0.0f : 0.01f;
  job.n_queries = static_cast<int>(below(random, 6)), job.c = coefficients;
  on_host(cuda::record_job(job, c.row0, c.n_rows));
  job.w = w.view();
  cuda::apply_update(job, c.row0, c.n_rows, nullptr);
  count.add(w.data.back() == c.w.data && w.tail.back() == c.w.tail, "apply_update", c);
}
}  // namespace

int main() {
  int n_devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&n_devices);
  if (found != cudaSuccess || n_devices == 0) {
    std::printf("not run: %s\n", found != cudaSuccess ? cudaGetErrorString(found) : "no CUDA device");
    return 0;
  }
  cudaDeviceProp device;
  succeed(cudaGetDeviceProperties(&device, 0), "properties of device 0");
  Random random(11);
  Count count;
  for (int round = 0; round < kRounds; ++round) {
    for (DType dtype : kDTypes) {
      for (NoiseKind noise : kNoises) {
        for (MaskKind mask : kMasks) {
          Case c = make_case(random, dtype, noise, mask, true);
          const StoredOnDevice w(c.w);
          operands(random, c, w, count);
          ranges(random, c, w, count);
          if (holds_trained(dtype)) update(random, c, w, count);
        }
      }
    }
  }
  std::printf("%s (sm_%d%d): %lld of %lld results equal the host's bits\n", device.name, device.major,
              device.minor, static_cast<long long>(count.compared - count.different),
              static_cast<long long>(count.compared));
  return count.different != 0;
}
