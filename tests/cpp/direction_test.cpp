// Masks and thresholds: the radix select against std::nth_element, ties, ends, and mask_at against its
// definition.
#include "direction/direction.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "base/error.h"
#include "direction/threshold.h"
#include "format/codec.h"
#include "test.h"

using namespace smezo;

namespace {

struct Matrix {
  std::vector<float> f32;
  std::vector<uint16_t> high;
  std::vector<int8_t> tail;
  WeightView view;
  Matrix(DType dtype, int64_t n, float step = 0)
      : f32(static_cast<size_t>(n)), high(f32.size()), tail(f32.size()) {
    view = {dtype == DType::F32 ? static_cast<void*>(f32.data()) : high.data(),
            tail.data(),
            dtype,
            1,
            n,
            0,
            4,
            {},
            true};
    std::mt19937 rng(static_cast<unsigned>(n));
    std::normal_distribution<float> normal(0, 0.2f);
    for (int64_t e = 0; e < n; ++e) {
      const float x = normal(rng);
      encode_nearest_at(view, e, step > 0 ? std::round(x / step) * step : x);
    }
  }
  std::vector<float> magnitudes() const {
    std::vector<float> all;
    for (int64_t e = 0; e < view.n(); ++e) all.push_back(std::fabs(decode_at(view, e)));
    return all;
  }
};

}  // namespace

TEST(threshold_is_the_kth_magnitude) {
  ThreadPool pool(3);
  for (DType dtype : {DType::F32, DType::F16, DType::BF16, DType::BF16T8}) {
    for (int64_t n : {1, 2, 5, 1000, 40961}) {
      for (float step : {0.0f, 0.125f}) {  // the second makes many ties
        const Matrix m(dtype, n, step);
        for (double sparsity : {0.25, 0.5, 0.75, 0.999}) {
          const int64_t k = std::max<int64_t>(
              1, static_cast<int64_t>(std::floor((1 - sparsity) * static_cast<double>(n) + 0.5)));
          CHECK(n_kept(n, sparsity) == k);
          std::vector<float> small = m.magnitudes(), large = m.magnitudes();
          std::nth_element(small.begin(), small.begin() + (k - 1), small.end());
          std::nth_element(large.begin(), large.begin() + (k - 1), large.end(), std::greater<float>());
          const float hs = small[static_cast<size_t>(k - 1)], hl = large[static_cast<size_t>(k - 1)];
          const std::vector<float> all = m.magnitudes();
          const auto in_small = std::count_if(all.begin(), all.end(), [&](float a) { return a <= hs; });
          const auto in_large = std::count_if(all.begin(), all.end(), [&](float a) { return a >= hl; });
          for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), &pool}) {
            const Threshold s = smallest_threshold(m.view, sparsity, p),
                            l = largest_threshold(m.view, sparsity, p);
            CHECK(s.h == hs && s.n_selected == in_small);
            CHECK(l.h == hl && l.n_selected == in_large);
            CHECK(s.n_selected >= k && l.n_selected >= k);
          }
        }
      }
    }
  }
}

TEST(threshold_ends) {
  const Matrix m(DType::BF16, 100);
  const Threshold s = smallest_threshold(m.view, 0), l = largest_threshold(m.view, 0);
  CHECK(s.h == std::numeric_limits<float>::infinity() && s.n_selected == 100);
  CHECK(l.h == 0 && l.n_selected == 100);
  for (double bad : {-0.1, 1.0, 1.5, std::nan("")}) {
    CHECK_THROWS(ArgumentError, "sparsity", smallest_threshold(m.view, bad));
    CHECK_THROWS(ArgumentError, "sparsity", largest_threshold(m.view, bad));
  }
  CHECK_THROWS(ArgumentError, "empty", smallest_threshold(Matrix(DType::F32, 0).view, 0.5));
  for (float bad : {INFINITY, -std::nanf("")}) {
    Matrix broken(DType::F32, 100);
    broken.f32[42] = bad;
    CHECK_THROWS(ArgumentError, "infinite or NaN", smallest_threshold(broken.view, 0.5));
  }
}

// All magnitudes equal: whatever k is, everything is in.
TEST(threshold_takes_all_ties) {
  Matrix m(DType::F32, 64);
  for (size_t i = 0; i < 64; ++i) m.f32[i] = i % 2 ? 0.5f : -0.5f;
  CHECK(smallest_threshold(m.view, 0.9).n_selected == 64);
  CHECK(largest_threshold(m.view, 0.9).n_selected == 64);
}

TEST(masks_select_what_they_say) {
  TensorDirection d{NoiseKind::gaussian8, {}, {5, 17, 2, Purpose::direction, 9}};
  CHECK(mask_at(d, 3, 100.0f));
  d.mask = {MaskKind::small, 0.25f};
  CHECK(mask_at(d, 0, 0.25f) && mask_at(d, 0, -0.25f) && !mask_at(d, 0, std::nextafterf(0.25f, 1)));
  d.mask = {MaskKind::large, 0.25f};
  CHECK(mask_at(d, 0, 0.25f) && mask_at(d, 0, -0.25f) && !mask_at(d, 0, std::nextafterf(0.25f, 0)));
}

// The random mask is fixed for the run: neither step, query nor weight matter; density is keep / 65536.
TEST(random_mask_is_fixed_for_the_run) {
  TensorDirection d{NoiseKind::gaussian8, {MaskKind::random, 0, 16384}, {5, 17, 2, Purpose::direction, 9}};
  TensorDirection later = d, other_run = d, other_tensor = d;
  later.stream.step = 400;
  later.stream.query = 7;
  other_run.stream.run_seed = 6;
  other_tensor.stream.tensor_id = 10;
  constexpr uint64_t n = 1 << 16;
  int64_t in = 0, run_differs = 0, tensor_differs = 0;
  for (uint64_t e = 0; e < n; ++e) {
    const bool here = mask_at(d, e, 1.0f);
    CHECK(here == mask_at(later, e, -3.0f));
    in += here;
    run_differs += here != mask_at(other_run, e, 1.0f);
    tensor_differs += here != mask_at(other_tensor, e, 1.0f);
  }
  const double deviation = std::sqrt(n * 0.25 * 0.75);
  CHECK(std::fabs(static_cast<double>(in) - n * 0.25) < 5 * deviation);
  CHECK(std::fabs(static_cast<double>(run_differs) - n * 0.375) < 5 * std::sqrt(n * 0.375 * 0.625));
  CHECK(std::fabs(static_cast<double>(tensor_differs) - n * 0.375) < 5 * std::sqrt(n * 0.375 * 0.625));
  d.mask.keep = 65536;
  CHECK(mask_at(d, 12345, 0));
  d.mask.keep = 0;
  CHECK(!mask_at(d, 12345, 0));
}

TEST_MAIN()
