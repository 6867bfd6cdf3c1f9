// A linear layer of 4096 x 4096 with an NF4 base beside the same with a bf16 base, on two threads:
// activations packed, operands of a strip made, the strip multiplied, as a frozen layer does it. And how fast
// operands and fp32 values are made of quantized weights, alone. One JSON line a case; seconds are medians,
// and the cases of one line took turns.
//
//   quantized_bench [m=<tokens>] [seconds=<a case>] [threads=<n>]     m=0: operands alone
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/kernels.h"

namespace {
using namespace smezo;

constexpr int64_t kSize = 4096, kStripRows = 32;
constexpr int kBlock = 64, kNestedBlock = 256;

double g_seconds = 0.3;

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, FreeDeleter>;
Buffer aligned(int64_t n_bytes) {
  return Buffer(std::aligned_alloc(64, static_cast<size_t>((n_bytes + 63) / 64 * 64)));
}

// Weights of std about 0.02, and scales of that size.
struct Tensor {
  Buffer data;
  std::vector<float> absmax, nested_code, nested_absmax;
  std::vector<uint8_t> absmax8;
  WeightView view;
  explicit Tensor(DType dtype, bool doubly = false) {
    const int64_t n = kSize * kSize;
    data = aligned(n * 2);
    uint32_t x = 12345;
    const auto random = [&] { return (x = x * 1664525u + 1013904223u) >> 8; };
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t sign_and_low = (random() & 0x807Fu) | 0x3C00u;
      if (dtype == DType::BF16)
        static_cast<uint16_t*>(data.get())[i] = static_cast<uint16_t>(sign_and_low);
      else
        static_cast<uint8_t*>(data.get())[i] = static_cast<uint8_t>(x >> 24);
    }
    for (int64_t i = 0; i < n / kBlock; ++i) {
      absmax8.push_back(static_cast<uint8_t>(random()));
      absmax.push_back(0.02f + 0.05f * static_cast<float>(absmax8.back()) / 256);
    }
    for (int i = 0; i < 256; ++i) nested_code.push_back(static_cast<float>(i - 128) / 128);
    nested_absmax.assign(absmax8.size() / kNestedBlock, 0.02f);
    view.data = data.get();
    view.dtype = dtype;
    view.rows = view.cols = kSize;
    view.scales.block = kBlock;
    view.scales.absmax = doubly ? nullptr : absmax.data();
    view.scales.absmax8 = doubly ? absmax8.data() : nullptr;
    view.scales.nested_code = nested_code.data();
    view.scales.nested_absmax = nested_absmax.data();
    view.scales.nested_block = kNestedBlock;
    view.scales.nested_offset = 0.05f;
  }
};

// Median seconds of each case; they take turns.
std::vector<double> medians(const std::vector<std::function<void()>>& cases) {
  std::vector<std::vector<double>> seconds(cases.size());
  double spent = 0;
  for (int round = -1; round < 5 || spent < g_seconds * static_cast<double>(cases.size()); ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      cases[i]();
      const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (round >= 0) seconds[i].push_back(s), spent += s;
    }
  }
  std::vector<double> out;
  for (auto& s : seconds) {
    std::nth_element(s.begin(), s.begin() + static_cast<std::ptrdiff_t>(s.size() / 2), s.end());
    out.push_back(s[s.size() / 2]);
  }
  return out;
}

struct Machine {
  const Kernels& kernels = kernels_for(choose_isa());
  ThreadPool pool;
  int64_t strip_bytes = kStripRows * kernels.operand_ld(Compute::f32, kSize) * 4;
  Buffer strips;
  explicit Machine(int n_threads) : pool(n_threads), strips(aligned(strip_bytes * n_threads)) {}
  void* strip(int thread) const { return static_cast<char*>(strips.get()) + strip_bytes * thread; }
};

void linear(Machine& m, int64_t n_tokens) {
  const Tensor nf4(DType::NF4, true), bf16(DType::BF16);
  const int64_t n_panels = n_tokens / kLanes;
  const Buffer x = aligned(kSize * n_tokens * 4), out = aligned(kSize * n_tokens * 4),
               packed = aligned(m.kernels.packed_bytes(Compute::bf16, kSize, n_panels));
  std::fill_n(static_cast<float*>(x.get()), kSize * n_tokens, 0.5f);
  const auto run = [&](const WeightView& w) {
    m.pool.run(n_panels, [&](int64_t p, int) {
      m.kernels.pack(Compute::bf16, static_cast<const float*>(x.get()), n_tokens, kSize, p, 1, packed.get());
    });
    const OperandJob job{w, {}, OperandMode::nearest, Compute::bf16, 0};
    m.pool.run(kSize / kStripRows, [&](int64_t s, int thread) {
      m.kernels.produce(job, s * kStripRows, kStripRows, m.strip(thread), nullptr);
      m.kernels.gemm(Compute::bf16, m.strip(thread), kStripRows, kSize, packed.get(), n_panels, 1.0f,
                     Epilogue::store, static_cast<float*>(out.get()) + s * kStripRows * n_tokens, n_tokens);
    });
  };
  const std::vector<double> s = medians({[&] { run(nf4.view); }, [&] { run(bf16.view); }});
  std::printf("{\"isa\": \"%s\", \"m\": %lld, \"threads\": %d, \"nf4_s\": %.6f, \"bf16_s\": %.6f}\n",
              numerics_name(choose_isa()).c_str(), static_cast<long long>(n_tokens), m.pool.size(), s[0],
              s[1]);
}

void alone(Machine& m, const char* name, const Tensor& t) {
  const auto every_strip = [&](const std::function<void(int64_t, void*)>& body) {
    return [&m, body] {
      m.pool.run(kSize / kStripRows, [&](int64_t s, int thread) { body(s * kStripRows, m.strip(thread)); });
    };
  };
  const OperandJob job{t.view, {}, OperandMode::nearest, Compute::bf16, 0};
  const std::vector<double> s =
      medians({every_strip([&](int64_t row, void* strip) {
                 m.kernels.produce(job, row, kStripRows, strip, nullptr);
               }),
               every_strip([&](int64_t row, void* strip) {
                 m.kernels.decode(t.view, row * kSize, kStripRows * kSize, static_cast<float*>(strip));
               })});
  const double g = static_cast<double>(kSize * kSize) * 1e-9;
  std::printf(
      "{\"isa\": \"%s\", \"m\": 0, \"weights\": \"%s\", \"threads\": %d, \"produce_g_per_s\": %.2f, "
      "\"decode_g_per_s\": %.2f}\n",
      numerics_name(choose_isa()).c_str(), name, m.pool.size(), g / s[0], g / s[1]);
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t eq = arg.find('=');
    if (eq == std::string::npos) {
      std::fprintf(stderr, "[quantized_bench] '%s', expected key=value with key one of m, seconds, threads\n",
                   argv[i]);
      return 2;
    }
    options[arg.substr(0, eq)] = arg.substr(eq + 1);
  }
  const auto wanted = [&](int m) { return !options.count("m") || std::atoi(options["m"].c_str()) == m; };
  if (options.count("seconds")) g_seconds = std::atof(options["seconds"].c_str());
  Machine machine(options.count("threads") ? std::atoi(options["threads"].c_str()) : 2);
  if (wanted(0)) {
    alone(machine, "nf4", Tensor(DType::NF4));
    alone(machine, "nf4 doubly", Tensor(DType::NF4, true));
    alone(machine, "int8", Tensor(DType::I8));
    alone(machine, "bf16", Tensor(DType::BF16));
  }
  for (int m : {16, 64, 256, 1024}) {
    if (wanted(m)) linear(machine, m);
  }
  return 0;
}
