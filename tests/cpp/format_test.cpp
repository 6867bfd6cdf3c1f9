// Formats: every bf16 and fp16 pattern, every tail of the 24-bit format, rounding to nearest by a search over
// neighbours, and stochastic rounding by counting.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "format/codec.h"
#include "test.h"

using namespace smezo;

namespace {

// Value of an fp16 pattern by the definition of the format.
double fp16_value(uint16_t h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  double v = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) v = fraction ? std::nan("") : INFINITY;
  return h & 0x8000 ? -v : v;
}

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : f32_bits(a) == f32_bits(b); }

// Is `got` the nearest of the format's finite non-negative values to x, ties to the even pattern? `value`
// decodes a pattern and the pattern after the largest finite one stands for the value rounding overflows to.
template <class Value>
bool is_nearest_even(double x, uint32_t got, Value value) {
  const double here = std::fabs(value(got) - x);
  if (got > 0) {
    const double below = std::fabs(value(got - 1) - x);
    if (below < here || (below == here && got % 2 == 1)) return false;
  }
  const double above = std::fabs(value(got + 1) - x);
  return !(above < here || (above == here && got % 2 == 1));
}

double bf16_ladder(uint32_t h) {
  return h == 0x7f80 ? 0x1p128 : static_cast<double>(bf16_to_f32(static_cast<uint16_t>(h)));
}
double fp16_ladder(uint32_t h) { return h == 0x7c00 ? 65536.0 : fp16_value(static_cast<uint16_t>(h)); }

std::vector<float> finite_samples() {
  std::vector<float> all;
  std::mt19937 rng(3);
  for (int i = 0; i < 200000; ++i)
    all.push_back(f32_from_bits((static_cast<uint32_t>(rng()) & 0x7fffffffu) % 0x7f7f8000u));
  // Ties and their neighbours, for both formats.
  for (uint32_t top = 0; top < 0x7f7f; top += 7)
    for (uint32_t low : {0x7fffu, 0x8000u, 0x8001u}) all.push_back(f32_from_bits(top << 16 | low));
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float middle = static_cast<float>(
        (fp16_value(static_cast<uint16_t>(h)) + fp16_value(static_cast<uint16_t>(h + 1))) / 2);
    for (float x : {middle, std::nextafterf(middle, 0), std::nextafterf(middle, INFINITY)}) all.push_back(x);
  }
  return all;
}

WeightView view_of(std::vector<uint16_t>* data, std::vector<int8_t>* tail, DType dtype, int64_t n) {
  data->assign(static_cast<size_t>(n) * (dtype == DType::F32 ? 2 : 1), 0);
  tail->assign(static_cast<size_t>(n), 0);
  return {data->data(), tail->data(), dtype, 1, n, 0, true};
}

}  // namespace

TEST(every_bf16_pattern_survives) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = bf16_to_f32(static_cast<uint16_t>(h));
    const bool nan = (h & 0x7fff) > 0x7f80;
    CHECK(std::isnan(x) == nan);
    CHECK(f32_to_bf16(x) == (nan ? kBf16Nan : h));
    for (uint32_t random : {0u, 0xffffu}) CHECK(f32_to_bf16_stochastic(x, random) == (nan ? kBf16Nan : h));
  }
}

TEST(every_fp16_pattern_survives) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = fp16_to_f32(static_cast<uint16_t>(h));
    CHECK(same(x, static_cast<float>(fp16_value(static_cast<uint16_t>(h)))));
    CHECK(f32_to_fp16(x) == (std::isnan(x) ? kFp16Nan : h));
  }
}

TEST(rounding_is_to_nearest_even) {
  for (float x : finite_samples()) {
    CHECK(is_nearest_even(x, f32_to_bf16(x), bf16_ladder));
    CHECK(f32_to_bf16(-x) == (f32_to_bf16(x) | 0x8000));
    if (x < 65520) CHECK(is_nearest_even(x, f32_to_fp16(x), fp16_ladder));
    CHECK(f32_to_fp16(-x) == (f32_to_fp16(x) | 0x8000));
    if (x >= 65520) CHECK(f32_to_fp16(x) == 0x7c00);
  }
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
  for (uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    CHECK(f32_to_bf16(f32_from_bits(nan)) == kBf16Nan);
    CHECK(f32_to_bf16_stochastic(f32_from_bits(nan), 0xffff) == kBf16Nan);
    CHECK(f32_to_fp16(f32_from_bits(nan)) == kFp16Nan);
    CHECK(f32_to_u24(f32_from_bits(nan), 0xff) == kSplit24Nan);
    CHECK(f32_to_u24_nearest(f32_from_bits(nan)) == kSplit24Nan);
  }
}

// I10: all 2^24 values, so every tail of every bf16.
TEST(I10_bf16_and_tail_join_to_the_24_bit_value) {
  int64_t wrong_join = 0, wrong_hi = 0, wrong_tail = 0;
  for (uint32_t u24 = 0; u24 < 1u << 24; ++u24) {
    const Split24 s = split24(u24);
    wrong_join += join24(s) != u24;
    wrong_tail += static_cast<int64_t>(u24) - static_cast<int64_t>(s.hi) * 256 != s.tail && s.hi != 0;
    const uint32_t magnitude = u24 & 0x7fffff;
    if (magnitude >= 0x7f8000) continue;
    // hi is a nearest bf16: within half a step.
    const double x = u24_to_f32(magnitude), hi = bf16_ladder(s.hi & 0x7fff);
    const double step = bf16_ladder((magnitude >> 8) + 1) - bf16_ladder(magnitude >> 8);
    wrong_hi += std::fabs(hi - x) > step / 2 || (s.hi >> 15) != (u24 >> 23);
  }
  CHECK(wrong_join == 0);
  CHECK(wrong_tail == 0);
  CHECK(wrong_hi == 0);
}

// The probability of rounding up is the distance, exactly: over all 256 (or 65536) random values.
TEST(stochastic_rounding_is_unbiased) {
  std::mt19937 rng(5);
  for (int i = 0; i < 20; ++i) {
    const uint32_t u =
        (static_cast<uint32_t>(rng()) & 0xffffffffu) % 0x7f000000u | (i % 2 ? 0x80000000u : 0u);
    const float x = f32_from_bits(u);
    uint32_t up = 0;
    for (uint32_t r = 0; r < 256; ++r) {
      const uint32_t got = f32_to_u24(x, r);
      CHECK(got == u >> 8 || got == (u >> 8) + 1);
      up += got - (u >> 8);
    }
    CHECK(up == (u & 0xff));
    up = 0;
    for (uint32_t r = 0; r < 65536; ++r) up += f32_to_bf16_stochastic(x, r) - (u >> 16);
    CHECK(up == (u & 0xffff));
  }
  CHECK(f32_to_u24(INFINITY, 255) == 0x7f8000);
  CHECK(f32_to_u24(-INFINITY, 255) == 0xff8000);
  CHECK(f32_to_bf16_stochastic(-INFINITY, 65535) == 0xff80);
}

TEST(codec_stores_and_reads_each_dtype) {
  std::vector<uint16_t> data;
  std::vector<int8_t> tail;
  const float x = f32_from_bits(0xbf12b4c7);  // low byte 0xc7, low half 0xb4c7
  struct Row {
    DType dtype;
    uint32_t random_bits, nearest, down, up;  // bits of what is read back
  };
  for (const Row& row : {Row{DType::F32, 0, 0xbf12b4c7, 0xbf12b4c7, 0xbf12b4c7},
                         Row{DType::F16, 0, 0xbf12c000, 0xbf12c000, 0xbf12c000},
                         Row{DType::BF16, 16, 0xbf130000, 0xbf120000, 0xbf130000},
                         Row{DType::BF16T8, 8, 0xbf12b500, 0xbf12b400, 0xbf12b500}}) {
    const WeightView w = view_of(&data, &tail, row.dtype, 3);
    CHECK(rounding_bits(row.dtype) == row.random_bits);
    encode_nearest_at(w, 1, x);
    CHECK(f32_bits(decode_at(w, 1)) == row.nearest);
    encode_at(w, 1, x, 0);
    CHECK(f32_bits(decode_at(w, 1)) == row.down);
    encode_at(w, 1, x, row.random_bits == 16 ? 0xffff : 0xff);
    CHECK(f32_bits(decode_at(w, 1)) == row.up);
    CHECK(decode_at(w, 0) == 0 && decode_at(w, 2) == 0);
  }
}

TEST_MAIN()
