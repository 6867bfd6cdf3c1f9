#include "engine/rates.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "model/catch_up.h"

namespace smezo {
namespace {

constexpr int64_t kCols = 576, kRows = 64, kTokens = 512;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> buffer(int64_t n_bytes) {
  const int64_t rounded = (n_bytes + kStripAlign - 1) / kStripAlign * kStripAlign;
  T* p = static_cast<T*>(std::aligned_alloc(kStripAlign, static_cast<size_t>(rounded)));
  std::fill_n(reinterpret_cast<char*>(p), rounded, 0);
  return Buffer<T>(p);
}

// One thread's own weight, operands and activations.
struct Lane {
  Buffer<uint16_t> hi = buffer<uint16_t>(kRows * kCols * 2);
  Buffer<int8_t> tail = buffer<int8_t>(kRows * kCols);
  Buffer<char> plus, minus, packed;
  Buffer<float> c = buffer<float>(kRows * kTokens * 4);
  WeightView w;
};

// Calls of `body` a second, all threads together, the best round of about `seconds`.
double best_rate(ThreadPool& pool, double seconds, const std::function<void(int64_t)>& body) {
  using clock = std::chrono::steady_clock;
  const auto begin = clock::now();
  double best = 0;
  do {
    constexpr int kRepeat = 20;
    const auto t = clock::now();
    pool.run(pool.size(), [&](int64_t item, int) {
      for (int i = 0; i < kRepeat; ++i) body(item);
    });
    best = std::max(best, kRepeat * pool.size() / std::chrono::duration<double>(clock::now() - t).count());
  } while (std::chrono::duration<double>(clock::now() - begin).count() < seconds);
  return best;
}

}  // namespace

Rates measure_rates(const Kernels& kernels, ThreadPool& pool, double seconds) {
  const int64_t strip_bytes =
      kRows * kernels.operand_ld(Compute::bf16, kCols) * dtype_bytes(kernels.operand_dtype(Compute::bf16));
  std::vector<Lane> lanes(static_cast<size_t>(pool.size()));
  for (Lane& l : lanes) {
    l.plus = buffer<char>(strip_bytes);
    l.minus = buffer<char>(strip_bytes);
    l.packed = buffer<char>(kernels.packed_bytes(Compute::bf16, kCols, kTokens / kLanes));
    std::fill_n(l.hi.get(), kRows * kCols, uint16_t{0x3c00});
    l.w.data = l.hi.get(), l.w.tail = l.tail.get();
    l.w.dtype = DType::BF16T8, l.w.rows = kRows, l.w.cols = kCols, l.w.writable = true;
  }
  TensorMethod method;
  method.trained = true;
  method.mask = {MaskKind::small, 1.0f, 0};
  const auto lane = [&](int64_t i) -> Lane& { return lanes[static_cast<size_t>(i)]; };
  const float c = 0;

  Rates out;
  out.gemm_flops_per_s = 2.0 * kRows * kCols * kTokens * best_rate(pool, seconds / 3, [&](int64_t i) {
                           Lane& l = lane(i);
                           kernels.gemm(Compute::bf16, {l.plus.get(), kCols, l.packed.get()}, {}, kRows,
                                        kTokens / kLanes, 1.0f, Epilogue::store, l.c.get(), kTokens);
                         });
  out.operands_per_s = 1.0 * kRows * kCols * best_rate(pool, seconds / 3, [&](int64_t i) {
                         Lane& l = lane(i);
                         OperandJob job;
                         job.w = l.w;
                         job.dir = direction_of(method, 0, 0, 1, 0);
                         job.eps = 1e-3f;
                         kernels.produce(job, 0, kRows, l.plus.get(), l.minus.get());
                       });
  out.updates_per_s = 1.0 * kRows * kCols * best_rate(pool, seconds / 3, [&](int64_t i) {
                        UpdateJob job;
                        job.w = lane(i).w;
                        job.dir = direction_of(method, 0, 0, 1, 0);
                        job.n_queries = 1;
                        job.c = &c;
                        kernels.apply_update(job, 0, kRows);
                      });
  return out;
}

}  // namespace smezo
