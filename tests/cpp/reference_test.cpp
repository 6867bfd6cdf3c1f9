// The scalar table's verbs against textbook formulas in double: operands in every mode, the product, norm,
// rope, attention with prefix and window, SwiGLU, log-sum-exp.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "base/error.h"
#include "format/codec.h"
#include "kernels/kernels.h"
#include "test.h"

using namespace smezo;

namespace {

const Kernels& scalar() { return kernels_for(Isa::scalar); }

std::vector<float> random_values(size_t n, unsigned seed, float scale = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(b)); }

struct Weights {
  std::vector<uint16_t> high;
  std::vector<int8_t> tail;
  WeightView view;
  Weights(int64_t rows, int64_t cols) : high(static_cast<size_t>(rows * cols)), tail(high.size()) {
    view = {high.data(), tail.data(), DType::BF16T8, rows, cols, 0, 3, {}, false};
    const auto v = random_values(high.size(), 4, 0.1f);
    for (size_t i = 0; i < v.size(); ++i) encode_nearest_at(view, static_cast<int64_t>(i), v[i]);
  }
};

constexpr int64_t kRows = 5, kCols = 77;

}  // namespace

TEST(I5_operands_come_from_the_stored_weight) {
  Weights w(kRows, kCols);
  const TensorDirection dir{NoiseKind::gaussian8, {MaskKind::small, 0.08f}, {1, 2, 3, Purpose::direction, 3}};
  const float eps = 1e-2f;
  std::vector<float> plus(3 * kCols), minus(3 * kCols);
  for (Compute compute : {Compute::f32, Compute::bf16}) {
    for (OperandMode mode : {OperandMode::nearest, OperandMode::dither, OperandMode::split}) {
      scalar().produce({w.view, dir, mode, compute, eps}, 1, 3, plus.data(), minus.data());
      int64_t wrong = 0, out = 0;
      for (int64_t i = 0; i < 3 * kCols; ++i) {
        const int64_t e = kCols + i;
        const float stored = decode_at(w.view, e);
        const bool in = std::fabs(stored) <= 0.08f;
        out += !in;
        const float z = in ? noise_at(NoiseKind::gaussian8, dir.stream, static_cast<uint64_t>(e)) : 0;
        const uint32_t dither = bits_at({1, 2, 3, Purpose::dither, 3}, static_cast<uint64_t>(e), 16);
        const auto q = [&](float x) {
          if (compute == Compute::f32) return x;
          return mode == OperandMode::dither ? bf16_to_f32(f32_to_bf16_stochastic(x, dither)) : round_bf16(x);
        };
        float want_plus = q(std::fma(eps, z, stored)), want_minus = q(std::fma(-eps, z, stored));
        if (mode == OperandMode::split) {
          want_plus = compute == Compute::f32 ? stored : bf16_to_f32(w.high[static_cast<size_t>(e)]);
          want_minus = z;
        }
        wrong += plus[static_cast<size_t>(i)] != want_plus || minus[static_cast<size_t>(i)] != want_minus;
      }
      CHECK(wrong == 0);
      CHECK(out > 20 && out < 3 * kCols - 20);
    }
  }
}

// eps = 0: the bf16 plane as it is, nothing in minus, no direction needed; a branch nobody wants may be null.
TEST(plain_operand_is_the_bf16_plane) {
  Weights w(kRows, kCols);
  std::vector<float> plus(kCols), minus(kCols, 7.0f), again(kCols);
  scalar().produce({w.view, {}, OperandMode::dither, Compute::bf16, 0}, 2, 1, plus.data(), minus.data());
  for (size_t i = 0; i < kCols; ++i) {
    CHECK(plus[i] == bf16_to_f32(w.high[2 * kCols + i]));
    CHECK(minus[i] == 7.0f);
  }
  const OperandJob job{w.view, {}, OperandMode::nearest, Compute::f32, 1e-3f};
  scalar().produce(job, 2, 1, plus.data(), minus.data());
  scalar().produce(job, 2, 1, nullptr, again.data());
  CHECK(again == minus);
  scalar().produce(job, 2, 1, again.data(), nullptr);
  CHECK(again == plus);
}

TEST(product_of_strip_and_packed_activations) {
  constexpr int64_t k = 37, n_rows = 6, n_panels = 3, ld = n_panels * kLanes + 5;
  const auto a = random_values(n_rows * k, 1), x = random_values(k * ld, 2),
             before = random_values(n_rows * ld, 3);
  for (Compute compute : {Compute::f32, Compute::bf16}) {
    std::vector<float> packed(static_cast<size_t>(scalar().packed_bytes(compute, k, n_panels)) / 4);
    scalar().pack(compute, x.data(), ld, k, 0, 1, packed.data());
    scalar().pack(compute, x.data(), ld, k, 1, 2, packed.data());
    for (Epilogue epilogue : {Epilogue::store, Epilogue::add}) {
      std::vector<float> c = before;
      scalar().gemm(compute, {a.data(), k, packed.data()}, {}, n_rows, n_panels, 0.5f, epilogue, c.data(),
                    ld);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t t = 0; t < n_panels * kLanes; ++t) {
          double sum = 0;
          for (int64_t i = 0; i < k; ++i) {
            const float v = x[static_cast<size_t>(i * ld + t)];
            sum += static_cast<double>(a[static_cast<size_t>(r * k + i)]) *
                   (compute == Compute::bf16 ? round_bf16(v) : v);
          }
          const auto at = static_cast<size_t>(r * ld + t);
          CHECK(near(c[at], 0.5 * sum + (epilogue == Epilogue::add ? before[at] : 0), 1e-5));
        }
      }
    }
  }
}

TEST(norm_and_gated_unit_packed_or_not) {
  constexpr int64_t d = 19, n_panels = 2, ld = n_panels * kLanes;
  const auto x = random_values(d * ld, 5, 3), up = random_values(d * ld, 6), gain = random_values(d, 7);
  std::vector<float> y(x.size()), h(x.size()), packed(x.size()), want(x.size());
  scalar().rms_norm(x.data(), ld, d, gain.data(), 1e-5f, 0, n_panels, y.data());
  scalar().silu_mul(x.data(), up.data(), d * ld, h.data());
  for (size_t t = 0; t < ld; ++t) {
    double mean = 0;
    for (size_t i = 0; i < d; ++i) mean += std::pow(x[i * ld + t], 2) / d;
    for (size_t i = 0; i < d; ++i) {
      const size_t at = i * ld + t;
      CHECK(near(y[at], x[at] / std::sqrt(mean + 1e-5) * gain[i], 1e-5));
      CHECK(near(h[at], x[at] / (1 + std::exp(-static_cast<double>(x[at]))) * up[at], 1e-5));
    }
  }
  for (Compute compute : {Compute::f32, Compute::bf16}) {
    scalar().rms_norm_pack(compute, x.data(), ld, d, gain.data(), 1e-5f, 0, n_panels, packed.data());
    scalar().pack(compute, y.data(), ld, d, 0, n_panels, want.data());
    CHECK(packed == want);
    scalar().silu_mul_pack(compute, x.data(), up.data(), ld, d, 0, d, 0, n_panels, packed.data());
    scalar().pack(compute, h.data(), ld, d, 0, n_panels, want.data());
    CHECK(packed == want);
  }
}

TEST(rope_rotates_pairs_of_the_half_layout) {
  constexpr int64_t rot = 8, rows = 10, ld = kLanes;
  auto x = random_values(rows * ld, 8);
  const auto before = x, angle = random_values(rot / 2 * ld, 9, 2);
  std::vector<float> c(angle.size()), s(angle.size());
  for (size_t i = 0; i < angle.size(); ++i) {
    c[i] = std::cos(angle[i]);
    s[i] = std::sin(angle[i]);
  }
  scalar().rope(x.data(), ld, rot, c.data(), s.data(), 0, 1);
  for (size_t t = 0; t < ld; ++t) {
    for (size_t i = 0; i < rot / 2; ++i) {
      const double a = before[i * ld + t], b = before[(i + rot / 2) * ld + t], phi = angle[i * ld + t];
      CHECK(near(x[i * ld + t], a * std::cos(phi) - b * std::sin(phi), 1e-5));
      CHECK(near(x[(i + rot / 2) * ld + t], b * std::cos(phi) + a * std::sin(phi), 1e-5));
    }
    for (size_t i = rot; i < rows; ++i) CHECK(x[i * ld + t] == before[i * ld + t]);  // partial rope
  }
}

TEST(attention_is_causal_with_prefix_and_window) {
  constexpr int64_t hd = 6, n_heads = 4, n_kv = 2, ld = 64, prefix_start = 3, prefix_len = 9, start = 20,
                    len = 21;
  const auto q = random_values(n_heads * hd * ld, 10), k = random_values(n_kv * hd * ld, 11),
             v = random_values(n_kv * hd * ld, 12);
  std::vector<float> scratch(static_cast<size_t>(attention_scratch_floats(hd, prefix_len + len)));
  for (int64_t with_prefix : {int64_t{0}, prefix_len}) {
    for (int64_t window : {0, 1, 7}) {
      std::vector<float> out(q.size(), 42.0f);
      const float scale = 0.3f;
      scalar().attention({q.data(), k.data(), v.data(), out.data(), ld, hd, 3, 1, start, len, prefix_start,
                          with_prefix, window, scale, scratch.data()});
      std::vector<int64_t> columns;
      for (int64_t i = 0; i < with_prefix; ++i) columns.push_back(prefix_start + i);
      for (int64_t i = 0; i < len; ++i) {
        columns.push_back(start + i);
        const size_t first = window > 0 && static_cast<int64_t>(columns.size()) > window
                                 ? columns.size() - static_cast<size_t>(window)
                                 : 0;
        double total = 0;
        std::vector<double> mix(hd);
        for (size_t j = first; j < columns.size(); ++j) {
          double score = 0;
          for (int64_t d = 0; d < hd; ++d)
            score += static_cast<double>(q[static_cast<size_t>((3 * hd + d) * ld + start + i)]) *
                     k[static_cast<size_t>((hd + d) * ld + columns[j])];
          const double p = std::exp(score * scale);
          total += p;
          for (int64_t d = 0; d < hd; ++d)
            mix[static_cast<size_t>(d)] += p * v[static_cast<size_t>((hd + d) * ld + columns[j])];
        }
        for (int64_t d = 0; d < hd; ++d)
          CHECK(near(out[static_cast<size_t>((3 * hd + d) * ld + start + i)],
                     mix[static_cast<size_t>(d)] / total, 1e-5));
      }
      CHECK(out[0] == 42.0f);                                               // another head
      CHECK(out[static_cast<size_t>(3 * hd * ld + start + len)] == 42.0f);  // another token
    }
  }
}

TEST(log_sum_exp_is_the_same_in_pieces) {
  constexpr int64_t n_rows = 50, ld = kLanes;
  const auto x = random_values(n_rows * ld, 13, 20);
  std::vector<float> max(ld, -INFINITY), sum(ld), max2 = max, sum2 = sum;
  scalar().lse_update(x.data(), n_rows, ld, 1, max.data(), sum.data());
  scalar().lse_update(x.data(), 20, ld, 1, max2.data(), sum2.data());
  scalar().lse_update(x.data() + 20 * ld, n_rows - 20, ld, 1, max2.data(), sum2.data());
  CHECK(max == max2 && sum == sum2);
  for (size_t t = 0; t < ld; ++t) {
    double top = -INFINITY, total = 0;
    for (size_t i = 0; i < n_rows; ++i) top = std::fmax(top, x[i * ld + t]);
    for (size_t i = 0; i < n_rows; ++i) total += std::exp(x[i * ld + t] - top);
    CHECK(near(max[t] + std::log(sum[t]), top + std::log(total), 1e-6));
  }
}

TEST(an_absent_instruction_set_is_an_error) {
  const Isa absent = isa_supported(Isa::neon) ? Isa::avx2 : Isa::neon;
  CHECK_THROWS(ArgumentError, "not in this build", kernels_for(absent));
}

TEST_MAIN()
