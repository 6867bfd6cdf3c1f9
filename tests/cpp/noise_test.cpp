// Noise: Philox against its published answers, the address table against pinned values made by
// tests/philox_reference.py (an implementation of its own), the Gaussian's error, and the gaussian8 table.
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "noise/normal.h"
#include "test.h"

using namespace smezo;

namespace {

struct Pinned {
  uint64_t e;
  uint32_t b1, b8, b16, b32;
  double gaussian;
};
// Run seed 0x0123456789abcdef, step 7, query 3, purpose dither, tensor 54321.
constexpr Pinned kPinned[] = {
    {0x0u, 0, 0xC6, 0xA2C6, 0x565CA2C6, -1.080612766},
    {0x1u, 0, 0xAA, 0xE7AA, 0xA29BE7AA, -0.391099497},
    {0xFu, 0, 0xB2, 0x0DB2, 0x102D0DB2, -0.962071166},
    {0x10u, 1, 0xA2, 0x565C, 0x61858F18, 1.002765516},
    {0x11u, 1, 0xE7, 0xA29B, 0x513C3718, 0.868734099},
    {0x3Fu, 0, 0x10, 0x512F, 0x31625908, 0.737958900},
    {0x40u, 0, 0x18, 0xDDD3, 0x5A21647F, -0.133873274},
    {0x64u, 1, 0x1C, 0xC91F, 0xD232A7A8, -0.062311412},
    {0xFFu, 0, 0x31, 0xCF3B, 0xD3195B38, -1.376606110},
    {0x100u, 0, 0x7F, 0x4884, 0x9815772B, 0.005572621},
    {0x3E8u, 0, 0xD5, 0xC6BF, 0xB6A94283, -0.459548924},
    {0x7FFu, 0, 0x44, 0xE3D3, 0xF6F907F2, -0.331805595},
    {0x800u, 1, 0xCA, 0xC503, 0xF3EA6EAD, 0.308534899},
    {0x1388u, 0, 0xFA, 0x2BB6, 0x633FE5B1, 0.019380098},
    {0x75BCD15u, 0, 0xEF, 0x10F3, 0xD91113F2, -0.702356227},
    {0x9876543210u, 1, 0xF1, 0x87AD, 0x85174E55, -0.031591579},
    {0x10000003039u, 1, 0xE4, 0xBFB3, 0x7B15500A, 0.067243226},
};

Stream pinned_stream() { return {0x0123456789abcdefull, 7, 3, Purpose::dither, 54321}; }

bool equals(const Block& b, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  return b.w[0] == w0 && b.w[1] == w1 && b.w[2] == w2 && b.w[3] == w3;
}

// Error of both normals of a pair against the formula in long double, and the relative error of the radius.
struct Error {
  double absolute = 0, radius = 0;
  void add(uint32_t w0, uint32_t w1) {
    float z0, z1;
    gaussian_pair<float, uint32_t>(w0, w1, &z0, &z1);
    const long double log_u = w0 >> 31 ? log1pl(-(static_cast<long double>(~w0) + 0.5L) * 0x1p-32L)
                                       : logl((static_cast<long double>(w0) + 0.5L) * 0x1p-32L);
    const long double r = sqrtl(-2 * log_u), a = 2 * acosl(-1) * (w1 + 0.5L) * 0x1p-32L;
    absolute =
        std::fmax(absolute, static_cast<double>(std::fmax(fabsl(z0 - r * cosl(a)), fabsl(z1 - r * sinl(a)))));
    radius =
        std::fmax(radius, std::fabs(static_cast<double>(std::hypot(static_cast<double>(z0), z1) / r) - 1));
  }
};

}  // namespace

TEST(philox_known_answers) {
  constexpr uint32_t ones = 0xffffffffu;
  CHECK(equals(philox({0, 0, 0, 0}, {0, 0}), 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  CHECK(equals(philox({ones, ones, ones, ones}, {ones, ones}), 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u,
               0x6d5451fdu));
  CHECK(equals(philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
               0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(addressed_bits_are_pinned) {
  const Stream s = pinned_stream();
  for (const Pinned& p : kPinned) {
    CHECK(bits_at(s, p.e, 1) == p.b1);
    CHECK(bits_at(s, p.e, 8) == p.b8);
    CHECK(bits_at(s, p.e, 16) == p.b16);
    CHECK(bits_at(s, p.e, 32) == p.b32);
    CHECK(noise_at(NoiseKind::rademacher, s, p.e) == (p.b1 ? -1.0f : 1.0f));
    CHECK(std::fabs(noise_at(NoiseKind::gaussian8, s, p.e)) == gaussian8_value(p.b8 & 127));
    CHECK(std::signbit(noise_at(NoiseKind::gaussian8, s, p.e)) == (p.b8 >= 128));
    CHECK(std::fabs(noise_at(NoiseKind::gaussian, s, p.e) - p.gaussian) < 1e-6);
  }
}

// Every element of two groups owns bits nobody else owns, and together they own all of the group's blocks.
TEST(elements_own_every_bit_once) {
  for (uint32_t bits : {1u, 8u, 16u, 32u}) {
    const uint64_t n = 2 * 16 * (128 / bits);
    std::set<std::pair<uint64_t, uint32_t>> owned;
    for (uint64_t e = 0; e < n; ++e) {
      CHECK(bit_of(e, bits) % bits == 0);
      owned.insert({block_of(e, bits), bit_of(e, bits)});
    }
    CHECK(owned.size() == n);
    CHECK(owned.rbegin()->first == 31);
    CHECK(owned.rbegin()->second == 128 - bits);
  }
}

// I6: no two addresses share a counter: each field changes it, at both ends of its range.
TEST(I6_addresses_never_share_a_counter) {
  std::set<std::vector<uint32_t>> seen;
  size_t n = 0;
  for (uint64_t block : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, kMaxBlock}) {
    for (uint32_t tensor : {0u, 1u, kMaxTensorId}) {
      for (uint32_t purpose = 0; purpose < 8; ++purpose) {
        for (uint32_t step : {0u, 1u, 0xffffffffu}) {
          for (uint32_t query : {0u, 1u, kMaxQuery}) {
            const Counter c = counter_of({1, step, query, static_cast<Purpose>(purpose), tensor}, block);
            seen.insert({c.c0, c.c1, c.c2, c.c3});
            ++n;
          }
        }
      }
    }
  }
  CHECK(seen.size() == n);
  const Key k = key_of({0x0123456789abcdefull, 0, 0, Purpose::direction, 0});
  CHECK(k.k0 == 0x89abcdefu && k.k1 == 0x01234567u);
}

TEST(gaussian_follows_its_formula) {
  Error edges, random;
  std::vector<uint32_t> ends;
  for (uint32_t w : {0u, 0x20000000u, 0x40000000u, 0x60000000u, 0x80000000u, 0xa0000000u, 0xb504f300u,
                     0xb504f400u, 0xe0000000u, 0x00800000u, 0xff800000u})
    for (uint32_t d : {0u, 1u, 2u, 0xffffffffu, 0xfffffffeu}) ends.push_back(w + d);
  for (uint32_t w0 : ends)
    for (uint32_t w1 : ends) edges.add(w0, w1);
  CHECK(edges.absolute < 1.1e-6);
  CHECK(edges.radius < 3e-7);
  std::mt19937 rng(1);
  for (int i = 0; i < 500000; ++i) {
    const uint32_t w = static_cast<uint32_t>(rng()) >> (rng() % 32);
    random.add(static_cast<uint32_t>(rng()), static_cast<uint32_t>(rng()));
    random.add(w, static_cast<uint32_t>(rng()));
    random.add(~w, static_cast<uint32_t>(rng()));
  }
  CHECK(random.absolute < 1.1e-6);
  CHECK(random.radius < 3e-7);
}

// The farthest and the nearest value there can be.
TEST(gaussian_ends) {
  float z0, z1;
  gaussian_pair<float, uint32_t>(0, 0, &z0, &z1);
  CHECK(std::fabs(z0 - 6.7637056) < 1e-5);
  gaussian_pair<float, uint32_t>(0xffffffffu, 0, &z0, &z1);
  CHECK(z0 == 0x1p-16f);
}

// Journals of earlier versions replay only while every bit stays: FNV-1a over the bits of 65536 values. A new
// number here is a new numerics version.
TEST(noise_bits_never_change) {
  const auto hash = [](NoiseKind kind) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (uint64_t e = 0; e < 65536; ++e)
      h = (h ^ f32_bits(noise_at(kind, pinned_stream(), e))) * 0x100000001b3ull;
    return h;
  };
  CHECK(hash(NoiseKind::rademacher) == 0xfe95c3acaeb62325ull);
  CHECK(hash(NoiseKind::gaussian8) == 0x8c45d97f88112325ull);
  CHECK(hash(NoiseKind::gaussian) == 0x5e36be19d0db9ae6ull);
}

TEST(gaussian8_table_is_what_its_comment_says) {
  double square = 0;
  for (int i = 0; i < kGaussian8Size; ++i) {
    const double z = gaussian8_value(static_cast<uint32_t>(i));
    square += z * z / kGaussian8Size;
    CHECK(gaussian8_value(static_cast<uint32_t>(i) | 128) == -z);
    // The quantile belongs to the value: P(|N| <= z / scale) = (i + 1/2) / 128, to half a bf16 step.
    const double p = std::erf(z / 1.00231 / std::sqrt(2.0));
    CHECK(std::fabs(p - (i + 0.5) / kGaussian8Size) < 2e-3);
    CHECK(i == 0 || kGaussian8[i] > kGaussian8[i - 1]);
  }
  CHECK(std::fabs(square - 1) < 2e-5);
}

TEST_MAIN()
