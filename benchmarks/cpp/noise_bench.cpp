// How fast operands, noise and updates are made, per instruction set: one JSON line a case, rates in G
// weights/s (a weight counts once though both signs are made); per thread-second is the rate of one thread's
// processor time, which other programs disturb less. Usage: noise_bench [seconds a case] [substring of "isa
// verb kind" to run].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.h"

namespace {
using namespace smezo;

constexpr int64_t kStripRows = 32;
double g_seconds = 0.2;
const char* g_only = "";

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, FreeDeleter>;
Buffer aligned(int64_t n_bytes) {
  return Buffer(std::aligned_alloc(64, static_cast<size_t>((n_bytes + 63) / 64 * 64)));
}

// Weights of std about 0.02 from a small generator of its own.
struct Tensor {
  Buffer data, tail;
  WeightView view;
  Tensor(DType dtype, int64_t rows, int64_t cols) {
    const int64_t n = rows * cols;
    data = aligned(n * 4);
    tail = aligned(n);
    uint32_t x = 12345;
    for (int64_t i = 0; i < n; ++i) {
      x = x * 1664525u + 1013904223u;
      const float w = (static_cast<float>(x >> 8) * 0x1p-24f - 0.5f) * 0.07f;
      if (dtype == DType::F32) {
        static_cast<float*>(data.get())[i] = w;
      } else {
        uint32_t u;
        std::memcpy(&u, &w, 4);
        static_cast<uint16_t*>(data.get())[i] = static_cast<uint16_t>(u >> 16);
        static_cast<int8_t*>(tail.get())[i] = static_cast<int8_t>(x >> 3);
      }
    }
    view = {data.get(), static_cast<int8_t*>(tail.get()), dtype, rows, cols, 7, true};
  }
};

// body(thread, first row) over all strips of kStripRows rows, threads taking equal shares; the best pass
// counts.
struct Rate {
  double wall = 0, cpu = 0;  // best G weights per second, and per second of processor time of one thread
};
Rate rate(int n_threads, const WeightView& w, const std::function<void(int, int64_t)>& body) {
  const int64_t n_strips = w.rows / kStripRows;
  Rate best;
  double spent = 0;
  while (spent < g_seconds) {
    int64_t repeats = 1 + (int64_t{1} << 23) / w.n();
    const std::clock_t cpu_begin = std::clock();
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    const auto share = [&](int t) {
      for (int64_t r = 0; r < repeats; ++r) {
        for (int64_t s = t * n_strips / n_threads; s < (t + 1) * n_strips / n_threads; ++s)
          body(t, s * kStripRows);
      }
    };
    for (int t = 1; t < n_threads; ++t) threads.emplace_back(share, t);
    share(0);
    for (auto& t : threads) t.join();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const double cpu_s = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
    const double g = static_cast<double>(repeats * n_strips * kStripRows * w.cols) * 1e-9;
    best.wall = std::max(best.wall, g / s);
    best.cpu = std::max(best.cpu, g / cpu_s);
    spent += s;
  }
  return best;
}

void report(const char* isa, const char* verb, const std::string& kind, const WeightView& w, int n_threads,
            const std::function<void(int, int64_t)>& body) {
  const std::string name = std::string(isa) + " " + verb + " " + kind;
  if (name.find(g_only) == std::string::npos) return;
  const Rate r = rate(n_threads, w, body);
  std::printf(
      "{\"isa\": \"%s\", \"verb\": \"%s\", \"kind\": \"%s\", \"dtype\": \"%s\", \"rows\": %lld, \"cols\": "
      "%lld, "
      "\"n_threads\": %d, \"g_weights_per_s\": %.3f, \"g_weights_per_thread_s\": %.3f}\n",
      isa, verb, kind.c_str(), dtype_name(w.dtype), static_cast<long long>(w.rows),
      static_cast<long long>(w.cols), n_threads, r.wall, r.cpu);
  std::fflush(stdout);
}

struct Named {
  const char* name;
  NoiseKind kind;
};
constexpr Named kNoises[] = {{"gaussian", NoiseKind::gaussian},
                             {"gaussian8", NoiseKind::gaussian8},
                             {"rademacher", NoiseKind::rademacher}};

TensorDirection direction(NoiseKind noise, MaskKind mask) {
  TensorDirection d;
  d.noise = noise;
  d.mask.kind = mask;
  d.mask.h = 0.01f;
  d.mask.keep = 16384;
  d.stream = {42, 3, 0, Purpose::direction, 7};
  return d;
}

void operands(const char* isa, const Kernels& k, Tensor& w, int n_threads, const Named& noise, MaskKind mask,
              const char* mask_name, OperandMode mode, const char* mode_name) {
  const int64_t strip_bytes = kStripRows * k.operand_ld(Compute::bf16, w.view.cols) * 4;
  std::vector<Buffer> plus, minus;
  for (int t = 0; t < n_threads; ++t) {
    plus.push_back(aligned(strip_bytes));
    minus.push_back(aligned(strip_bytes));
  }
  const OperandJob job{w.view, direction(noise.kind, mask), mode, Compute::bf16, 1e-3f};
  report(isa, "produce", std::string(noise.name) + "/" + mask_name + "/" + mode_name, w.view, n_threads,
         [&](int t, int64_t row) { k.produce(job, row, kStripRows, plus[t].get(), minus[t].get()); });
}

void measure(const char* isa, const Kernels& k, DType dtype, int64_t rows, int64_t cols, int n_threads) {
  Tensor w(dtype, rows, cols);
  for (const Named& noise : kNoises) {
    operands(isa, k, w, n_threads, noise, MaskKind::small, "small", OperandMode::nearest, "nearest");
    operands(isa, k, w, n_threads, noise, MaskKind::small, "small", OperandMode::dither, "dither");
  }
  operands(isa, k, w, n_threads, kNoises[1], MaskKind::all, "all", OperandMode::nearest, "nearest");
  operands(isa, k, w, n_threads, kNoises[1], MaskKind::random, "random", OperandMode::nearest, "nearest");
  operands(isa, k, w, n_threads, kNoises[1], MaskKind::small, "small", OperandMode::split, "split");
  const float c = 1e-6f;
  for (const Named& noise : kNoises) {
    UpdateJob job{w.view, direction(noise.kind, MaskKind::small), 0, 1, &c};
    report(isa, "apply_update", noise.name, w.view, n_threads,
           [&](int, int64_t row) { k.apply_update(job, row, kStripRows); });
    std::vector<Buffer> out;
    for (int t = 0; t < n_threads; ++t) out.push_back(aligned(kStripRows * cols * 4));
    report(isa, "noise", noise.name, w.view, n_threads, [&](int t, int64_t row) {
      k.noise(job.dir, row * cols, kStripRows * cols, static_cast<float*>(out[t].get()));
    });
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) g_seconds = std::atof(argv[1]);
  if (argc > 2) g_only = argv[2];
  for (Isa isa : supported_isas()) {
    const Kernels& k = kernels_for(isa);
    for (int n_threads : {1, 2}) {
      for (DType dtype : {DType::BF16, DType::BF16T8, DType::F32})
        measure(isa_name(isa), k, dtype, 768, 576, n_threads);
    }
    if (isa != Isa::scalar) measure(isa_name(isa), k, DType::BF16, 32768, 4096, 2);  // 256 MB
  }
  return 0;
}
