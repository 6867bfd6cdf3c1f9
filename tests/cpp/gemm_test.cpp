// The product of strips and packed activations, every instruction set and the emulated AMX tiles, against a
// plain loop in double precision; and that an element's bits depend on nothing but its row and its column
// (I12).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "base/pages.h"
#include "kernel_tables.h"
#include "test.h"

namespace amx_emulated {

using smezo::Epilogue;
using smezo::kLanes;
using smezo::Terms;

// What amx_gemm.inl takes from vec.h and gemm.inl.
struct F16 {
  float v[16];
};
static F16 load(const float* p) {
  F16 x;
  memcpy(x.v, p, sizeof x.v);
  return x;
}
static void finish(F16 sum, float alpha, Epilogue epilogue, float* c) {
  for (int i = 0; i < 16; ++i) {
    const float x = alpha != 1.0f ? sum.v[i] * alpha : sum.v[i];
    c[i] = epilogue == Epilogue::add ? c[i] + x : x;
  }
}
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/terms.inl"
//
#include "kernels/cpu/amx_gemm.inl"

}  // namespace amx_emulated

namespace {

using namespace smezo;

struct Multiplier {
  std::string name;
  decltype(Kernels::operand_dtype) dtype;
  decltype(Kernels::operand_ld) ld;
  decltype(Kernels::packed_bytes) packed_bytes;
  decltype(Kernels::pack) pack;
  decltype(Kernels::gemm) gemm;
  bool emulated = false;
};

int64_t padded(int64_t k) { return (k + 31) / 32 * 32; }

uint16_t bf16_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
float bf16_value(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

int64_t amx_ld([[maybe_unused]] int64_t k) {
#if defined(__x86_64__)
  return amx_kernels()->operand_ld(Compute::bf16, k);
#else
  return padded(k);
#endif
}

void emulated_pack(Compute, const float* x, int64_t ld, int64_t k, int64_t panel0, int64_t n_panels,
                   void* packed) {
  uint16_t* out = static_cast<uint16_t*>(packed);
  for (int64_t p = panel0; p < panel0 + n_panels; ++p)
    for (int64_t i = 0; i < padded(k); ++i)
      for (int64_t t = 0; t < 16; ++t)
        out[((p * padded(k) + i / 2 * 2) * 16) + t * 2 + i % 2] =
            i < k ? bf16_bits(x[i * ld + p * 16 + t]) : 0;
}
template <int64_t (*ld)(int64_t)>
void emulated_gemm(Compute, const Terms& terms, const Terms& more, int64_t n_rows, int64_t n_panels,
                   float alpha, Epilogue epilogue, float* c, int64_t ldc) {
  amx_emulated::multiply_tiles<amx_emulated::EmulatedTiles>({terms, ld(terms.k)}, {more, ld(more.k)}, n_rows,
                                                            n_panels, alpha, epilogue, c, ldc);
}

std::vector<Multiplier> multipliers() {
  std::vector<Multiplier> all;
  const auto add = [&](const std::string& name, const Kernels& k, decltype(Kernels::gemm) gemm,
                       bool emulated) {
    all.push_back({name, k.operand_dtype, k.operand_ld, k.packed_bytes, k.pack, gemm, emulated});
  };
  for (const auto& t : smezo_test::runnable_tables()) add(t.name, *t.kernels, t.kernels->gemm, false);
  all.push_back({"amx emulated", [](Compute) { return DType::BF16; },
                 [](Compute, int64_t k) { return padded(k); },
                 [](Compute, int64_t k, int64_t n) { return padded(k) * n * 32; }, emulated_pack,
                 emulated_gemm<padded>, true});
  for (const auto& t : smezo_test::tables_but_products())
    if (t.name == "amx") add("amx emulated, own packing", *t.kernels, emulated_gemm<amx_ld>, true);
  return all;
}

struct Aligned {  // 64-byte aligned, exactly n bytes
  explicit Aligned(int64_t n) : p(::operator new(static_cast<size_t>(n), std::align_val_t(64))) {
    memset(p, 0, static_cast<size_t>(n));
  }
  ~Aligned() { ::operator delete(p, std::align_val_t(64)); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  void* p;
};

struct Problem {
  Problem(const Multiplier& m, Compute compute, int64_t n_rows, int64_t k, int64_t n_panels,
          std::mt19937& random)
      : m(m),
        compute(compute),
        n_rows(n_rows),
        k(k),
        n_panels(n_panels),
        t(n_panels * 16),
        ld(m.ld(compute, k)),
        a(static_cast<size_t>(n_rows * k)),
        x(static_cast<size_t>(k * (t + 16))),
        element_bytes(m.dtype(compute) == DType::BF16 ? 2 : 4),
        strip(n_rows * ld * element_bytes),
        packed(m.packed_bytes(compute, k, n_panels)) {
    std::normal_distribution<float> normal;
    for (float& v : a) v = normal(random);
    for (float& v : x) v = normal(random);
    for (int64_t r = 0; r < n_rows; ++r)
      for (int64_t i = 0; i < k; ++i) {
        float& v = a[static_cast<size_t>(r * k + i)];
        if (compute == Compute::bf16) v = bf16_value(bf16_bits(v));
        if (element_bytes == 2)
          static_cast<uint16_t*>(strip.p)[r * ld + i] = bf16_bits(v);
        else
          static_cast<float*>(strip.p)[r * ld + i] = v;
      }
    // In two pieces, to see that panel0 is honoured.
    m.pack(compute, x.data(), t + 16, k, n_panels / 2, n_panels - n_panels / 2, packed.p);
    m.pack(compute, x.data(), t + 16, k, 0, n_panels / 2, packed.p);
    if (compute == Compute::bf16)
      for (float& v : x) v = bf16_value(bf16_bits(v));
  }
  // Rows [row0, row0 + rows) by panels [panel0, panel0 + panels) into c.
  void multiply(int64_t row0, int64_t rows, int64_t panel0, int64_t panels, float alpha, Epilogue epilogue,
                float* c, int64_t ldc) const {
    m.gemm(compute, terms(row0, panel0), more ? more->terms(row0, panel0) : Terms{}, rows, panels, alpha,
           epilogue, c, ldc);
  }
  Terms terms(int64_t row0, int64_t panel0) const {
    return {static_cast<char*>(strip.p) + row0 * ld * element_bytes, k,
            static_cast<char*>(packed.p) + panel0 * m.packed_bytes(compute, k, 1)};
  }

  const Multiplier& m;
  Compute compute;
  int64_t n_rows, k, n_panels, t, ld;
  std::vector<float> a, x;
  int64_t element_bytes;
  Aligned strip, packed;
  const Problem* more = nullptr;
};

void check_against_double(const Problem& p, const std::vector<float>& c, int64_t ldc) {
  int bad = 0;
  for (int64_t r = 0; r < p.n_rows; ++r)
    for (int64_t t = 0; t < p.t; ++t) {
      double sum = 0, size = 0;
      int64_t n_terms = 0;
      for (const Problem* of = &p; of; of = of->more) {
        for (int64_t i = 0; i < of->k; ++i) {
          const double term = static_cast<double>(of->a[static_cast<size_t>(r * of->k + i)]) *
                              of->x[static_cast<size_t>(i * (p.t + 16) + t)];
          sum += term;
          size += std::fabs(term);
        }
        n_terms += of->k;
      }
      const double bound = size * (static_cast<double>(n_terms) + 2) * 0x1p-24 + 1e-30;
      if (!(std::fabs(c[static_cast<size_t>(r * ldc + t)] - sum) <= bound)) ++bad;
    }
  if (bad != 0)
    std::printf("  %s: %d wrong of %d x %d, k = %d\n", p.m.name.c_str(), bad, static_cast<int>(p.n_rows),
                static_cast<int>(p.t), static_cast<int>(p.k));
  CHECK(bad == 0);
}

bool same(float a, float b) { return memcmp(&a, &b, 4) == 0; }

// k_more: of a second product that the sums go on over; 0: none.
void one_problem(const Multiplier& m, Compute compute, int64_t n_rows, int64_t k, int64_t k_more,
                 int64_t n_panels, std::mt19937& random) {
  const Problem more(m, compute, n_rows, std::max<int64_t>(k_more, 1), n_panels, random);
  Problem p(m, compute, n_rows, k, n_panels, random);
  if (k_more > 0) p.more = &more;
  const int64_t ldc = p.t + 16;
  const float guard = 12345.0f;
  std::vector<float> c(static_cast<size_t>(n_rows * ldc), guard);
  p.multiply(0, n_rows, 0, n_panels, 1.0f, Epilogue::store, c.data(), ldc);
  check_against_double(p, c, ldc);
  bool guarded = true;
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t t = p.t; t < ldc; ++t) guarded &= c[static_cast<size_t>(r * ldc + t)] == guard;
  CHECK(guarded);

  // Any sub-block, with any factor, stored or added, gives the bits that follow from the whole product's.
  for (int trial = 0; trial < 3; ++trial) {
    const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    const int64_t row0 = pick(n_rows), rows = 1 + pick(n_rows - row0);
    const int64_t panel0 = pick(n_panels), panels = 1 + pick(n_panels - panel0);
    const float alpha = trial == 0 ? 1.0f : 0.37f;
    const Epilogue epilogue = trial == 1 ? Epilogue::store : Epilogue::add;
    std::vector<float> part(static_cast<size_t>(rows * panels * 16), 0.75f);
    p.multiply(row0, rows, panel0, panels, alpha, epilogue, part.data(), panels * 16);
    int different = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < panels * 16; ++t) {
        float expected = alpha * c[static_cast<size_t>((row0 + r) * ldc + panel0 * 16 + t)];
        if (epilogue == Epilogue::add) expected = 0.75f + expected;
        if (!same(expected, part[static_cast<size_t>(r * panels * 16 + t)])) ++different;
      }
    if (different != 0)
      std::printf("  %s: %d elements changed with their block\n", m.name.c_str(), different);
    CHECK(different == 0);
  }
}

}  // namespace

TEST(random_shapes) {
  std::mt19937 random(1);
  for (const Multiplier& m : multipliers())
    for (int i = 0; i < (m.emulated ? 40 : 60); ++i)
      for (Compute compute : {Compute::bf16, Compute::f32}) {
        if (m.emulated && compute == Compute::f32) continue;
        const int64_t most_k = m.emulated ? 150 : i % 4 == 0 ? 700 : 100;
        const int64_t n_rows = 1 + random() % 70, k = 1 + random() % most_k, n_panels = 1 + random() % 9;
        one_problem(m, compute, n_rows, k, i % 2 ? 1 + random() % 90 : 0, n_panels, random);
      }
}

TEST(sums_longer_than_a_block_of_k) {
  std::mt19937 random(2);
  for (const Multiplier& m : multipliers())
    for (Compute compute : {Compute::bf16, Compute::f32}) {
      if (m.emulated) continue;
      for (int64_t k : {1024, 1025, 2049, 3333})
        for (int64_t k_more : {0, 48})
          one_problem(m, compute, 1 + random() % 60, k, k_more, 1 + random() % 5, random);
    }
}

TEST(leading_dimension_avoids_powers_of_two) {
  for (const auto& t : smezo_test::runnable_tables()) {
    if (t.name == "scalar") continue;
    for (Compute compute : {Compute::bf16, Compute::f32})
      for (int64_t k : {1, 33, 576, 1024, 1536, 4096, 11008}) {
        const int64_t ld = t.kernels->operand_ld(compute, k);
        const int64_t bytes = ld * (t.kernels->operand_dtype(compute) == DType::BF16 ? 2 : 4);
        CHECK(ld >= k && ld < k + 64);
        CHECK(bytes % 512 != 0);
      }
  }
}

// A NaN or an infinity must come out as one (I11).
TEST(non_finite_values_survive) {
  for (const auto& t : smezo_test::runnable_tables())
    for (Compute compute : {Compute::bf16, Compute::f32}) {
      std::vector<float> x(8 * 16, 1.0f), c(16, 0.0f);
      uint32_t nan_bits = 0x7FFFFFFF;  // all ones: adding to it carries into the sign
      memcpy(&x[3], &nan_bits, 4);
      x[5] = INFINITY;
      const int64_t ld = t.kernels->operand_ld(compute, 8);
      Aligned strip(ld * 4), packed(t.kernels->packed_bytes(compute, 8, 1));
      for (int64_t i = 0; i < 8; ++i) {
        if (t.kernels->operand_dtype(compute) == DType::BF16)
          static_cast<uint16_t*>(strip.p)[i] = 0x3F80;
        else
          static_cast<float*>(strip.p)[i] = 1.0f;
      }
      t.kernels->pack(compute, x.data(), 16, 8, 0, 1, packed.p);
      t.kernels->gemm(compute, {strip.p, 8, packed.p}, {}, 1, 1, 1.0f, Epilogue::store, c.data(), 16);
      CHECK(std::isnan(c[3]));
      CHECK(std::isinf(c[5]));
      CHECK(c[0] == 8.0f);
    }
}

// What changes weights: a chain of fma in every set, with sums over more k than a block has.
TEST(exact_products_are_the_same_bits_in_every_set) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (const int64_t k : {1, 2, 7, 16, 64, 1500}) {
    for (const int64_t n_rows : {1, 3, 8, 17}) {
      const int64_t n_panels = 1 + static_cast<int64_t>(random() % 9), ld = n_panels * kLanes;
      std::vector<float> a(static_cast<size_t>(n_rows * k)), x(static_cast<size_t>(k * ld));
      for (float& v : a) v = normal(random);
      for (float& v : x) v = normal(random);
      std::vector<float> want(static_cast<size_t>(n_rows * ld), 0.0f);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t t = 0; t < ld; ++t) {
          float& sum = want[static_cast<size_t>(r * ld + t)];
          for (int64_t i = 0; i < k; ++i)
            sum = std::fma(a[static_cast<size_t>(r * k + i)], x[static_cast<size_t>(i * ld + t)], sum);
        }
      }
      std::vector<float> rooted;  // 0.5 m / sqrt(1.5 v + 100), NaN where v is far below zero
      for (const float x : want) rooted.push_back(0.5f * (x / std::sqrt(1.5f * x + 1e2f)));
      for (const auto& t : smezo_test::runnable_tables()) {
        const Kernels& kernels = *t.kernels;
        const int64_t lda = kernels.operand_ld(Compute::f32, k);
        std::vector<float> strip(static_cast<size_t>(n_rows * lda), 0.0f);
        for (int64_t r = 0; r < n_rows; ++r) std::copy_n(a.begin() + r * k, k, strip.begin() + r * lda);
        Pages packed = allocate_pages(kernels.packed_bytes(Compute::f32, k, n_panels));
        kernels.pack(Compute::f32, x.data(), ld, k, 0, n_panels, packed.get());
        std::vector<float> c(want.size(), 1.0f);
        const Terms terms{strip.data(), k, packed.get()};
        kernels.exact_gemm(terms, n_rows, n_panels, nullptr, c.data(), ld);
        CHECK(std::memcmp(c.data(), want.data(), c.size() * sizeof(float)) == 0);
        const Rule root{RuleKind::adam, 0.5f, 0, 0, 0, 0, 1.5f, 1e2f};
        kernels.exact_gemm(terms, n_rows, n_panels, &root, c.data(), ld);
        CHECK(std::memcmp(c.data(), rooted.data(), c.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_MAIN()
