// The rate of the product verb against the machine's peak, measured in the same run: the peak is a loop of
// the very instruction on registers alone. One JSON line per shape. Shapes are those of SmolLM2-135M and of a
// 7B llama; operands lie in a strip of 32 rows that each thread uses again, as the producer leaves them in
// cache; activations are streamed.
//
//   gemm_bench [isa=<name>] [compute=bf16|f32] [k=<K>] [t=<T>] [threads=<n>]     (each filters)
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"

namespace {

using namespace smezo;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double best_s(int n, F&& f) {
  double best = 1e9;
  for (int i = 0; i < n; ++i) {
    const double t = now_s();
    f();
    best = std::min(best, now_s() - t);
  }
  return best;
}

constexpr int kLoops = 50000;

#if defined(__x86_64__)
#define CLOBBER \
  "ecx", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm14", "xmm15"
#define TEN(op, r, d)                                                                                   \
  op " %%" r "15,%%" r "14,%%" r d "0\n" op " %%" r "15,%%" r "14,%%" r d "1\n" op " %%" r "15,%%" r    \
     "14,%%" r d "2\n" op " %%" r "15,%%" r "14,%%" r d "3\n" op " %%" r "15,%%" r "14,%%" r d "4\n" op \
     " %%" r "15,%%" r "14,%%" r d "5\n" op " %%" r "15,%%" r "14,%%" r d "6\n" op " %%" r "15,%%" r    \
     "14,%%" r d "7\n" op " %%" r "15,%%" r "14,%%" r d "8\n" op " %%" r "15,%%" r "14,%%" r d "9\n"
#define TEN_CHAINS(op, r)                                                                                \
  asm volatile("vpxor %%xmm14,%%xmm14,%%xmm14\n vpxor %%xmm15,%%xmm15,%%xmm15\n mov %0,%%ecx\n1:\n" TEN( \
                   op, r, "") "dec %%ecx\n jnz 1b\n vzeroupper\n" ::"i"(kLoops)                          \
               : CLOBBER)

// Flops of one peak loop of this instruction set, which is run; 0: no loop for it.
double run_peak(const std::string& numerics, Compute compute) {
  const bool pairs = compute == Compute::bf16;
  if (numerics == "amx" && pairs) {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; ++i) config[16 + 2 * i] = 64, config[48 + i] = 16;
    asm volatile(
        "ldtilecfg %1\n mov %0,%%ecx\n1:\n"
        "tdpbf16ps %%tmm7,%%tmm6,%%tmm0\n tdpbf16ps %%tmm7,%%tmm6,%%tmm1\n"
        "tdpbf16ps %%tmm7,%%tmm6,%%tmm2\n tdpbf16ps %%tmm7,%%tmm6,%%tmm3\n"
        "dec %%ecx\n jnz 1b\n tilerelease\n" ::"i"(kLoops),
        "m"(config)
        : "ecx");
    return 4.0 * kLoops * 16 * 16 * 64;
  }
  if ((numerics == "amx" || numerics == "avx512-bf16") && pairs) {
    TEN_CHAINS("vdpbf16ps", "zmm");
    return 10.0 * kLoops * 64;
  }
  if (numerics == "amx" || numerics == "avx512-bf16" || numerics == "avx512") {
    TEN_CHAINS("vfmadd231ps", "zmm");
    return 10.0 * kLoops * 32;
  }
  if (numerics == "avx2") {
    TEN_CHAINS("vfmadd231ps", "ymm");
    return 10.0 * kLoops * 16;
  }
  return 0;
}
#else
double run_peak(const std::string&, Compute) { return 0; }
#endif

struct Buffer {
  explicit Buffer(int64_t n) : p(::operator new(static_cast<size_t>(n), std::align_val_t(64))) {
    std::memset(p, 0, static_cast<size_t>(n));
  }
  ~Buffer() { ::operator delete(p, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* p;
};

struct Shape {
  int64_t k, n;
};
constexpr Shape kShapes[] = {{576, 576},   {576, 1536},   {1536, 576},  {576, 192},
                             {4096, 4096}, {4096, 11008}, {11008, 4096}};
constexpr int64_t kStripRows = 32;
constexpr double kEnoughFlops =
    2e8;  // of one repetition and thread: short enough that another process seldom cuts in

std::map<std::string, std::string> filters;
bool wanted(const char* key, const std::string& value) {
  const auto it = filters.find(key);
  return it == filters.end() || it->second == value;
}

void bench(Isa isa, Compute compute, Shape shape, int64_t t, int n_threads) {
  const Kernels& kernels = kernels_for(isa);
  const std::string numerics = numerics_name(isa);
  ThreadPool pool(n_threads);
  const int64_t n_panels = t / kLanes, ld = kernels.operand_ld(compute, shape.k);
  const int64_t strip_bytes = (kStripRows * ld * 4 + 63) / 64 * 64;
  Buffer strips(strip_bytes * n_threads), packed(kernels.packed_bytes(compute, shape.k, n_panels));
  const double strip_flops = 2.0 * kStripRows * static_cast<double>(shape.k * t);
  const int64_t few =
      std::max<int64_t>(n_threads, static_cast<int64_t>(kEnoughFlops * n_threads / strip_flops));
  const int64_t n_strips = std::min(shape.n / kStripRows, few / n_threads * n_threads);
  const int repeats = std::max(1, static_cast<int>(few / n_strips));
  Buffer c(n_strips * kStripRows * t * 4);
  // Several loops a thread: with one each, a worker that wakes late leaves both to the other.
  constexpr int kPeakLoops = 16;
  const double peak_flops = kPeakLoops * run_peak(numerics, compute);
  const auto peak = [&] {
    pool.run(kPeakLoops * n_threads, [&](int64_t, int) { run_peak(numerics, compute); });
  };
  const auto multiply = [&] {
    for (int i = 0; i < repeats; ++i)
      pool.run(n_strips, [&](int64_t s, int thread) {
        kernels.gemm(compute, static_cast<char*>(strips.p) + strip_bytes * thread, kStripRows, shape.k,
                     packed.p, n_panels, 1.0f, Epilogue::store, static_cast<float*>(c.p) + s * kStripRows * t,
                     t);
      });
  };
  const double peak_s = best_s(9, peak), gemm_s = best_s(25, multiply) / repeats;
  const double rate = strip_flops * static_cast<double>(n_strips) / gemm_s / 1e9;
  const double top = n_threads * peak_flops / peak_s / 1e9;
  std::printf(
      "{\"bench\": \"gemm\", \"isa\": \"%s\", \"compute\": \"%s\", \"k\": %d, \"n\": %d, \"t\": %d, "
      "\"threads\": %d, "
      "\"gflops\": %.1f, \"peak_gflops\": %.1f, \"fraction\": %.3f}\n",
      numerics.c_str(), compute == Compute::bf16 ? "bf16" : "f32", static_cast<int>(shape.k),
      static_cast<int>(shape.n), static_cast<int>(t), n_threads, rate, top, top > 0 ? rate / top : 0.0);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t eq = arg.find('=');
    if (eq == std::string::npos) {
      std::fprintf(stderr,
                   "[gemm_bench] '%s', expected key=value with key one of isa, compute, k, t, threads\n",
                   argv[i]);
      return 2;
    }
    filters[arg.substr(0, eq)] = arg.substr(eq + 1);
  }
  const std::vector<Isa> isas = filters.count("isa") ? supported_isas() : std::vector<Isa>{choose_isa()};
  for (Isa isa : isas) {
    if (!wanted("isa", isa_name(isa))) continue;
    for (Compute compute : {Compute::bf16, Compute::f32}) {
      if (!wanted("compute", compute == Compute::bf16 ? "bf16" : "f32")) continue;
      for (int n_threads : {1, 2}) {
        if (!wanted("threads", std::to_string(n_threads))) continue;
        for (const Shape& shape : kShapes) {
          if (!wanted("k", std::to_string(shape.k))) continue;
          for (int64_t t : {32, 64, 128, 256, 512, 1024, 2048})
            if (wanted("t", std::to_string(t))) bench(isa, compute, shape, t, n_threads);
        }
      }
    }
  }
  return 0;
}
