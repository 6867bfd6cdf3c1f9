// Statistics of 2^26 draws of each noise kind against the kind's own exact values, within five standard
// errors: moments, tails, serial correlation, and correlation between streams whose addresses differ in one
// field.
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "noise/normal.h"
#include "test.h"

using namespace smezo;

namespace {

constexpr int64_t kDraws = int64_t{1} << 26;
constexpr int64_t kChunk = 1 << 16;  // a multiple of every group
constexpr NoiseKind kKinds[] = {NoiseKind::rademacher, NoiseKind::gaussian8, NoiseKind::gaussian};

Stream base_stream() { return {2024, 1, 0, Purpose::direction, 17}; }

// Elements [e0, e0 + kChunk) in order: noise_at, but each block made once.
void fill(NoiseKind kind, const Stream& s, uint64_t e0, std::vector<float>* out) {
  out->resize(kChunk);
  const uint32_t bits = noise_bits(kind), slots = 128 / bits;
  for (uint64_t e = e0; e < e0 + kChunk; e += 16 * slots) {
    float* group = out->data() + (e - e0);
    for (uint64_t lane = 0; lane < 16; ++lane) {
      const Block b = block_at(s, block_of(e, bits) + lane);
      float z[4];
      if (kind == NoiseKind::gaussian) gaussian_values(b, z);
      for (uint32_t slot = 0; slot < slots; ++slot) {
        const uint32_t first = slot * bits, word = b.w[first / 32] >> (first % 32);
        group[slot * 16 + lane] = kind == NoiseKind::gaussian    ? z[slot]
                                  : kind == NoiseKind::gaussian8 ? gaussian8_value(word & 255)
                                                                 : rademacher_value(word & 1);
      }
    }
  }
}

// E z^2, z^4, z^6, z^8.
struct Exact {
  double m2, m4, m6, m8;
};
Exact exact(NoiseKind kind) {
  if (kind == NoiseKind::gaussian) return {1, 3, 15, 105};
  if (kind == NoiseKind::rademacher) return {1, 1, 1, 1};
  Exact m{};
  for (uint32_t i = 0; i < 128; ++i) {
    const double q = std::pow(gaussian8_value(i), 2);
    m.m2 += q / 128;
    m.m4 += q * q / 128;
    m.m6 += q * q * q / 128;
    m.m8 += q * q * q * q / 128;
  }
  return m;
}

bool within(const char* what, double got, double want, double variance_of_one, double n) {
  const double error = std::sqrt(variance_of_one / n);
  const bool ok = std::fabs(got - want) <= 5 * error + 1e-12;
  if (!ok) std::printf("  %s: %.8f, expected %.8f +- %.2g\n", what, got, want, 5 * error);
  return ok;
}

constexpr int64_t kLags[] = {1, 16, 256};

struct Sums {
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0;
  double lagged[3] = {};
  int64_t beyond[3] = {};  // 3, 4, 5 standard deviations
  void add(const std::vector<float>& z) {
    double s[4] = {};
    for (size_t i = 0; i < z.size(); ++i) {
      const double x = z[i], q = x * x;
      s[0] += x;
      s[1] += q;
      s[2] += q * x;
      s[3] += q * q;
      if (q > 9) {
        ++beyond[0];
        beyond[1] += q > 16;
        beyond[2] += q > 25;
      }
    }
    m1 += s[0];
    m2 += s[1];
    m3 += s[2];
    m4 += s[3];
    for (size_t l = 0; l < 3; ++l) {
      const auto lag = static_cast<size_t>(kLags[l]);
      double sum = 0;
      for (size_t i = 0; i + lag < z.size(); ++i) sum += static_cast<double>(z[i]) * z[i + lag];
      lagged[l] += sum;
    }
  }
};

}  // namespace

TEST(chunks_are_noise_at) {
  std::vector<float> z;
  for (NoiseKind kind : kKinds) {
    fill(kind, base_stream(), 3 * kChunk, &z);
    for (uint64_t i = 0; i < kChunk; i += 97) CHECK(z[i] == noise_at(kind, base_stream(), 3 * kChunk + i));
  }
}

TEST(moments_tails_and_serial_correlation) {
  std::vector<float> z;
  for (NoiseKind kind : kKinds) {
    Sums s;
    for (uint64_t e = 0; e < kDraws; e += kChunk) {
      fill(kind, base_stream(), e, &z);
      s.add(z);
    }
    const Exact x = exact(kind);
    const double n = kDraws;
    CHECK(std::fabs(x.m2 - 1) < 2e-5);
    CHECK(within("mean", s.m1 / n, 0, x.m2, n));
    CHECK(within("variance", s.m2 / n, x.m2, x.m4 - x.m2 * x.m2, n));
    CHECK(within("third moment", s.m3 / n, 0, x.m6, n));
    CHECK(within("fourth moment", s.m4 / n, x.m4, x.m8 - x.m4 * x.m4, n));
    for (size_t l = 0; l < 3; ++l) {
      const double pairs = n / kChunk * static_cast<double>(kChunk - kLags[l]);
      CHECK(within("serial product", s.lagged[l] / pairs, 0, x.m2 * x.m2, pairs));
    }
    for (int k = 0; k < 3; ++k) {
      const double p = kind == NoiseKind::gaussian ? std::erfc((k + 3) / std::sqrt(2.0)) : 0;
      CHECK(within("tail", static_cast<double>(s.beyond[k]) / n, p, p * (1 - p), n));
    }
  }
}

// Streams that differ in one field of the address are uncorrelated, also after squaring, at the same element
// and a block apart.
TEST(streams_are_independent) {
  const std::function<void(Stream&)> changes[] = {[](Stream& s) { s.run_seed += 1; },
                                                  [](Stream& s) { s.run_seed += uint64_t{1} << 32; },
                                                  [](Stream& s) { s.step += 1; },
                                                  [](Stream& s) { s.query += 1; },
                                                  [](Stream& s) { s.tensor_id += 1; },
                                                  [](Stream& s) { s.purpose = Purpose::dither; },
                                                  [](Stream& s) { s.purpose = Purpose::mask; }};
  constexpr int64_t n = 1 << 20;
  std::vector<float> a, b;
  for (NoiseKind kind : kKinds) {
    const Exact x = exact(kind);
    for (const auto& change : changes) {
      Stream other = base_stream();
      change(other);
      double product = 0, shifted = 0, squares = 0;
      for (uint64_t e = 0; e < n; e += kChunk) {
        fill(kind, base_stream(), e, &a);
        fill(kind, other, e, &b);
        for (size_t i = 0; i < a.size(); ++i) {
          const double p = a[i], q = b[i];
          product += p * q;
          shifted += p * b[i ^ 16];
          squares += (p * p - x.m2) * (q * q - x.m2);
        }
      }
      CHECK(within("product", product / n, 0, x.m2 * x.m2, n));
      CHECK(within("shifted product", shifted / n, 0, x.m2 * x.m2, n));
      CHECK(within("product of squares", squares / n, 0, std::pow(x.m4 - x.m2 * x.m2, 2), n));
    }
  }
}

// All 256 bytes of gaussian8 and all 16-bit mask values are equally likely: chi-square, five standard
// deviations.
TEST(bytes_are_uniform) {
  constexpr int64_t n = 1 << 20;
  for (uint32_t bits : {8u, 16u}) {
    std::vector<double> counts(size_t{1} << bits);
    for (uint64_t e = 0; e < n; ++e) counts[bits_at(base_stream(), e, bits)] += 1;
    const double cells = static_cast<double>(counts.size()), want = n / cells;
    double chi = 0;
    for (double c : counts) chi += (c - want) * (c - want) / want;
    CHECK(std::fabs(chi - (cells - 1)) < 5 * std::sqrt(2 * cells));
  }
}

TEST_MAIN()
