// Updates: the formula of one record, bit for bit, through the scalar table's apply_update, against
// straight-line code that takes only noise, mask and rounding bits from the library.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "format/codec.h"
#include "kernels/kernels.h"
#include "test.h"
#include "update/rule.h"
#include "update/sgd.h"

using namespace smezo;

namespace {

struct Tensor {
  std::vector<float> f32;
  std::vector<uint16_t> high;
  std::vector<int8_t> tail;
  WeightView view;
  Tensor(DType dtype, int64_t rows, int64_t cols) {
    const auto n = static_cast<size_t>(rows * cols);
    f32.resize(n);
    high.resize(n);
    tail.resize(n);
    void* data = dtype == DType::F32 ? static_cast<void*>(f32.data()) : high.data();
    view = {data, tail.data(), dtype, rows, cols, 0, 11, {}, true};
    std::mt19937 rng(2);
    std::normal_distribution<float> normal(0, 0.1f);
    for (size_t e = 0; e < n; ++e) encode_nearest_at(view, static_cast<int64_t>(e), normal(rng));
  }
  std::vector<float> values() const {
    std::vector<float> all;
    for (int64_t e = 0; e < view.n(); ++e) all.push_back(decode_at(view, e));
    return all;
  }
};

// One fp32 rounding of a * b + c by exact double arithmetic: a product of two floats is exact in double; the
// sum is rounded to odd so that rounding it once more is right (Boldo and Melquiond, "Emulation of FMA and
// correctly rounded sums").
float fma_by_double(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, addend = c, sum = product + addend;
  const double part = sum - addend, error = (product - part) + (addend - (sum - part));
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  if (error != 0 && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : ~uint64_t{0};
  double odd;
  std::memcpy(&odd, &bits, 8);
  return static_cast<float>(odd);
}

constexpr float kC[] = {3e-4f, -1.7e-3f, 2.5e-5f};

UpdateJob job_of(Tensor& t, Mask mask, float decay, int n_queries, NoiseKind noise = NoiseKind::gaussian8) {
  return {t.view, {noise, mask, {99, 5, 0, Purpose::direction, t.view.tensor_id}}, decay, n_queries, kC};
}

// What element e must hold after the job, from its value before.
float expected(const UpdateJob& j, uint64_t e, float before) {
  const Mask& m = j.dir.mask;
  const uint32_t keep = bits_at({99, 0, 0, Purpose::mask, 11}, e, 16);
  const bool in = m.kind == MaskKind::all || (m.kind == MaskKind::small && std::fabs(before) <= m.h) ||
                  (m.kind == MaskKind::large && std::fabs(before) >= m.h) ||
                  (m.kind == MaskKind::random && keep < m.keep);
  if (!in) return before;
  float w = before;
  if (j.decay != 0) w = fma_by_double(-j.decay, w, w);
  for (uint32_t q = 0; q < static_cast<uint32_t>(j.n_queries); ++q)
    w = fma_by_double(-kC[q], noise_at(j.dir.noise, {99, 5, q, Purpose::direction, 11}, e), w);
  const Stream rounding{99, 5, 0, Purpose::rounding, 11};
  if (j.w.dtype == DType::F32) return w;
  if (j.w.dtype == DType::BF16) return f32_from_bits((f32_bits(w) + bits_at(rounding, e, 16)) & 0xffff0000u);
  return f32_from_bits((f32_bits(w) + bits_at(rounding, e, 8)) & 0xffffff00u);
}

}  // namespace

TEST(record_follows_the_formula_for_every_dtype_mask_and_noise) {
  const auto& k = kernels_for(Isa::scalar);
  for (DType dtype : {DType::F32, DType::BF16, DType::BF16T8}) {
    for (const Mask& mask : {Mask{}, Mask{MaskKind::small, 0.05f}, Mask{MaskKind::large, 0.05f},
                             Mask{MaskKind::random, 0, 20000}}) {
      for (NoiseKind noise : {NoiseKind::gaussian, NoiseKind::gaussian8, NoiseKind::rademacher}) {
        Tensor t(dtype, 7, 93);
        const std::vector<float> before = t.values();
        const UpdateJob job = job_of(t, mask, 1e-3f, 3, noise);
        k.apply_update(job, 2, 4);
        int64_t wrong = 0, moved = 0;
        for (int64_t e = 0; e < t.view.n(); ++e) {
          const float was = before[static_cast<size_t>(e)];
          const float want = e >= 2 * 93 && e < 6 * 93 ? expected(job, static_cast<uint64_t>(e), was) : was;
          wrong += f32_bits(decode_at(t.view, e)) != f32_bits(want);
          moved += want != was;
        }
        CHECK(wrong == 0);
        CHECK(moved > 50);
      }
    }
  }
}

// Queries after the first, and the decay, change the result: the loop above does not compare nothing with
// nothing.
TEST(decay_and_every_query_count) {
  const auto& k = kernels_for(Isa::scalar);
  std::vector<std::vector<float>> results;
  for (float decay : {0.0f, 1e-2f}) {
    for (int q : {1, 2}) {
      Tensor t(DType::F32, 1, 64);
      k.apply_update(job_of(t, {}, decay, q), 0, 1);
      for (const auto& other : results) CHECK(other != t.values());
      results.push_back(t.values());
    }
  }
}

TEST(no_decay_leaves_minus_zero) {
  CHECK(std::signbit(sgd_decay(-0.0f, 0)));
  CHECK(sgd_decay(2.0f, 0.25f) == 1.5f);
  CHECK(sgd_step(1.0f, -2.0f, 0.5f) == 2.0f);
}

TEST(I2_the_base_is_never_written) {
  const auto& k = kernels_for(Isa::scalar);
  Tensor t(DType::BF16, 1, 64);
  t.view.writable = false;
  CHECK_THROWS(ArgumentError, "of the base", k.apply_update(job_of(t, {}, 0, 1), 0, 1));
  Tensor half(DType::F16, 1, 64);
  CHECK_THROWS(ArgumentError, "F16", k.apply_update(job_of(half, {}, 0, 1), 0, 1));
}

// I10: with 8 more bits, 100 tiny steps of one sign arrive on average; the expected value of rounding is the
// value.
TEST(I10_tail_keeps_small_steps) {
  const auto& k = kernels_for(Isa::scalar);
  Tensor t(DType::BF16T8, 1, 4096);
  for (int64_t e = 0; e < t.view.n(); ++e) encode_nearest_at(t.view, e, 0.75f);
  double expected_mean = 0.75;
  for (uint32_t step = 1; step <= 100; ++step) {
    UpdateJob job = job_of(t, {}, 1e-6f, 0);  // decay alone: 7.5e-7 a step, a sixth of the format's step
    job.dir.stream.step = step;
    k.apply_update(job, 0, 1);
    expected_mean -= expected_mean * 1e-6;
  }
  double mean = 0;
  for (float x : t.values()) mean += static_cast<double>(x) / 4096;
  const double ulp = 0x1p-16, deviation = ulp * std::sqrt(100 * 0.25 / 4096);
  CHECK(std::fabs(mean - expected_mean) < 5 * deviation);
  CHECK(expected_mean < 0.75 - 20 * deviation);
}

TEST(coefficients_are_rounded_once) {
  CHECK(step_coefficient(1e-3f, 7.0f, 1) == static_cast<float>(static_cast<double>(1e-3f) * 7.0));
  CHECK(step_coefficient(0.1f, 0.3f, 3) == static_cast<float>(static_cast<double>(0.1f) * 0.3f / 3));
  CHECK(decay_coefficient(0.1f, 0.01f) == static_cast<float>(static_cast<double>(0.1f) * 0.01f));
}

TEST_MAIN()
