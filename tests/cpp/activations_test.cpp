// Norm, rope, attention, the gated unit and log-sum-exp of every instruction set against loops in double
// precision; that neighbours change no bit (I12) and are not written to; that non-finite values are not
// hidden (I11).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "kernel_tables.h"
#include "test.h"

namespace {

using namespace smezo;
using smezo_test::tables_but_products;

std::vector<float> normals(int64_t n, std::mt19937& random, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

bool near(double got, double want, double relative, double absolute = 1e-30) {
  return std::fabs(got - want) <= relative * std::fabs(want) + absolute;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

void report(bool ok, const std::string& name, const char* what) {
  if (!ok) std::printf("  %s: %s\n", name.c_str(), what);
  CHECK(ok);
}

struct Attention {
  int64_t n_heads, n_kv, head_dim, ld, start, len, prefix_start, prefix_len, window;
  std::vector<float> q, k, v;

  AttentionJob job(int64_t head, float* out, float* scratch) const {
    AttentionJob j{};
    j.q = q.data();
    j.k = k.data();
    j.v = v.data();
    j.out = out;
    j.ld = ld;
    j.head_dim = head_dim;
    j.q_head = head;
    j.kv_head = head * n_kv / n_heads;
    j.start = start;
    j.len = len;
    j.prefix_start = prefix_start;
    j.prefix_len = prefix_len;
    j.window = window;
    j.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    j.scratch = scratch;
    return j;
  }
  std::vector<float> run(const Kernels& kernels, float fill) const {
    std::vector<float> out(static_cast<size_t>(n_heads * head_dim * ld), fill);
    const int64_t n = attention_scratch_floats(head_dim, prefix_len + len);
    float* scratch = static_cast<float*>(::operator new(static_cast<size_t>(n) * 4, std::align_val_t(64)));
    for (int64_t i = 0; i < n; ++i) scratch[i] = NAN;
    for (int64_t h = 0; h < n_heads; ++h) kernels.attention(job(h, out.data(), scratch));
    ::operator delete(scratch, std::align_val_t(64));
    return out;
  }
  int64_t key_column(int64_t key) const {
    return key < prefix_len ? prefix_start + key : start + key - prefix_len;
  }
  std::vector<double> in_double(int64_t head, int64_t query) const {
    const int64_t own = prefix_len + query, first = window > 0 ? std::max<int64_t>(0, own - window + 1) : 0;
    const int64_t kv = head * n_kv / n_heads;
    std::vector<double> score, out(static_cast<size_t>(head_dim), 0.0);
    for (int64_t key = first; key <= own; ++key) {
      double s = 0;
      for (int64_t d = 0; d < head_dim; ++d)
        s += static_cast<double>(q[static_cast<size_t>((head * head_dim + d) * ld + start + query)]) *
             k[static_cast<size_t>((kv * head_dim + d) * ld + key_column(key))];
      score.push_back(s / std::sqrt(static_cast<double>(head_dim)));
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (double& s : score) sum += s = std::exp(s - top);
    for (int64_t key = first; key <= own; ++key)
      for (int64_t d = 0; d < head_dim; ++d)
        out[static_cast<size_t>(d)] += score[static_cast<size_t>(key - first)] / sum *
                                       v[static_cast<size_t>((kv * head_dim + d) * ld + key_column(key))];
    return out;
  }
};

Attention random_attention(std::mt19937& random) {
  const auto up_to = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n + 1)); };
  Attention a{};
  a.n_kv = 1 + up_to(1);
  a.n_heads = a.n_kv * (1 + up_to(2));
  a.head_dim = std::vector<int64_t>{4, 7, 16, 20, 64}[random() % 5];
  a.prefix_start = up_to(20);
  a.prefix_len = up_to(2) == 0 ? 0 : 1 + up_to(40);
  a.start = a.prefix_start + a.prefix_len + up_to(20);
  a.len = 1 + up_to(75);
  a.window = up_to(2) == 0 ? 1 + up_to(50) : 0;
  a.ld = (a.start + a.len + up_to(20) + 15) / 16 * 16;
  a.q = normals(a.n_heads * a.head_dim * a.ld, random, 2.0f);
  a.k = normals(a.n_kv * a.head_dim * a.ld, random);
  a.v = normals(a.n_kv * a.head_dim * a.ld, random);
  return a;
}

}  // namespace

TEST(attention_agrees_with_double) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(3);
    for (int trial = 0; trial < 60; ++trial) {
      const Attention a = random_attention(random);
      const std::vector<float> out = a.run(*t.kernels, 77.0f);
      bool agrees = true, untouched = true;
      for (int64_t h = 0; h < a.n_heads; ++h)
        for (int64_t column = 0; column < a.ld; ++column) {
          const bool inside = column >= a.start && column < a.start + a.len;
          const std::vector<double> want = inside ? a.in_double(h, column - a.start) : std::vector<double>();
          for (int64_t d = 0; d < a.head_dim; ++d) {
            const float got = out[static_cast<size_t>((h * a.head_dim + d) * a.ld + column)];
            if (inside)
              agrees &= near(got, want[static_cast<size_t>(d)], 1e-5, 1e-5);
            else
              untouched &= got == 77.0f;
          }
        }
      report(agrees, t.name, "attention differs from double");
      report(untouched, t.name, "attention wrote to columns of others");
    }
  }
}

// Attended values may take the place of their queries.
TEST(attention_in_place) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(9);
    for (int trial = 0; trial < 30; ++trial) {
      const Attention a = random_attention(random);
      const std::vector<float> apart = a.run(*t.kernels, 0.0f);
      Attention b = a;
      const int64_t n = attention_scratch_floats(a.head_dim, a.prefix_len + a.len);
      float* scratch = static_cast<float*>(::operator new(static_cast<size_t>(n) * 4, std::align_val_t(64)));
      for (int64_t h = 0; h < a.n_heads; ++h) t.kernels->attention(b.job(h, b.q.data(), scratch));
      ::operator delete(scratch, std::align_val_t(64));
      bool same = true, untouched = true;
      for (size_t i = 0; i < b.q.size(); ++i) {
        const int64_t column = static_cast<int64_t>(i) % a.ld;
        const bool inside = column >= a.start && column < a.start + a.len;
        same &= !inside || memcmp(&b.q[i], &apart[i], 4) == 0;
        untouched &= inside || b.q[i] == a.q[i];
      }
      report(same, t.name, "attention differs in place");
      report(untouched, t.name, "attention in place wrote to columns of others");
    }
  }
}

// The same segment at another place in the packed tokens, with NaN in every column that is not its own.
TEST(attention_depends_on_its_segment_only) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(4);
    for (int trial = 0; trial < 30; ++trial) {
      const Attention a = random_attention(random);
      Attention b = a;
      b.prefix_start = a.prefix_start + 3;
      b.start = a.start + 11;
      b.ld = a.ld + 32;
      const auto moved = [&](const std::vector<float>& from) {
        std::vector<float> to(from.size() / static_cast<size_t>(a.ld) * static_cast<size_t>(b.ld), NAN);
        for (size_t row = 0; row < from.size() / static_cast<size_t>(a.ld); ++row)
          for (int64_t key = 0; key < a.prefix_len + a.len; ++key)
            to[row * static_cast<size_t>(b.ld) + static_cast<size_t>(b.key_column(key))] =
                from[row * static_cast<size_t>(a.ld) + static_cast<size_t>(a.key_column(key))];
        return to;
      };
      b.q = moved(a.q);
      b.k = moved(a.k);
      b.v = moved(a.v);
      const std::vector<float> x = a.run(*t.kernels, 0.0f), y = b.run(*t.kernels, 0.0f);
      bool same = true;
      for (int64_t row = 0; row < a.n_heads * a.head_dim; ++row)
        same &= memcmp(&x[static_cast<size_t>(row * a.ld + a.start)],
                       &y[static_cast<size_t>(row * b.ld + b.start)], static_cast<size_t>(a.len) * 4) == 0;
      report(same, t.name, "attention depends on where its segment lies");
    }
  }
}

TEST(rms_norm_agrees_with_double) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(5);
    for (int64_t panels = 1; panels <= 9; ++panels) {
      const int64_t d = 1 + static_cast<int64_t>(random() % 200), ld = (panels + 2) * 16;
      const std::vector<float> x = normals(d * ld, random, 3.0f), gain = normals(d, random);
      std::vector<float> y(x.size(), 77.0f);
      t.kernels->rms_norm(x.data(), ld, d, gain.data(), 1e-5f, 1, panels, y.data());
      bool agrees = true, untouched = true;
      for (int64_t c = 0; c < ld; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < d; ++i)
          sum += std::pow(static_cast<double>(x[static_cast<size_t>(i * ld + c)]), 2);
        for (int64_t i = 0; i < d; ++i) {
          const size_t at = static_cast<size_t>(i * ld + c);
          if (c >= 16 && c < (panels + 1) * 16)
            agrees &= near(
                y[at], x[at] / std::sqrt(sum / static_cast<double>(d) + 1e-5) * gain[static_cast<size_t>(i)],
                2e-5);
          else
            untouched &= y[at] == 77.0f;
        }
      }
      report(agrees, t.name, "rms_norm differs from double");
      report(untouched, t.name, "rms_norm wrote to other panels");

      // A token alone in its group of panels has the same bits.
      std::vector<float> alone(x.size(), 77.0f);
      for (int64_t p = 1; p <= panels; ++p)
        t.kernels->rms_norm(x.data(), ld, d, gain.data(), 1e-5f, p, 1, alone.data());
      report(same_bits(alone, y), t.name, "rms_norm depends on neighbours");
    }
  }
}

// The fused verbs give the bytes of their two steps.
TEST(fused_packing_equals_two_steps) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(6);
    for (Compute compute : {Compute::bf16, Compute::f32})
      for (int64_t panels = 1; panels <= 6; ++panels) {
        const int64_t k = 1 + static_cast<int64_t>(random() % 90), ld = (panels + 1) * 16;
        const std::vector<float> x = normals(k * ld, random), up = normals(k * ld, random),
                                 gain = normals(k, random);
        std::vector<float> made(x.size(), 0.0f);
        const size_t bytes = static_cast<size_t>(t.kernels->packed_bytes(compute, k, panels + 1));
        const auto packed_twice = [&](auto&& fused) {
          std::vector<char> a(bytes, 1), b(bytes, 1);
          t.kernels->pack(compute, made.data(), ld, k, 1, panels, a.data());
          fused(b.data());
          return a == b;
        };
        t.kernels->silu_mul(x.data(), up.data(), k * ld, made.data());
        report(packed_twice([&](void* out) {
                 t.kernels->silu_mul_pack(compute, x.data() + 16, up.data() + 16, ld, k, 0, k, 1, panels,
                                          out);
               }),
               t.name, "silu_mul_pack is not silu_mul and pack");
        // Rows in pieces, last first.
        report(packed_twice([&](void* out) {
                 for (int64_t end = k; end > 0;) {
                   const int64_t begin =
                       std::max<int64_t>(0, end - 1 - static_cast<int64_t>(random() % 20)) / 2 * 2;
                   const int64_t at = begin * ld + 16;
                   t.kernels->silu_mul_pack(compute, x.data() + at, up.data() + at, ld, k, begin, end - begin,
                                            1, panels, out);
                   end = begin;
                 }
               }),
               t.name, "silu_mul_pack depends on how rows are cut");
        t.kernels->rms_norm(x.data(), ld, k, gain.data(), 1e-6f, 0, panels + 1, made.data());
        report(packed_twice([&](void* out) {
                 t.kernels->rms_norm_pack(compute, x.data(), ld, k, gain.data(), 1e-6f, 1, panels, out);
               }),
               t.name, "rms_norm_pack is not rms_norm and pack");
      }
  }
}

TEST(rope_rotates_pairs) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(7);
    const int64_t ld = 80, rot = 20, rows = 24;
    const std::vector<float> x = normals(rows * ld, random), angle = normals(rot / 2 * ld, random, 3.0f);
    std::vector<float> y = x, c(angle.size()), s(angle.size());
    for (size_t i = 0; i < angle.size(); ++i) c[i] = std::cos(angle[i]), s[i] = std::sin(angle[i]);
    t.kernels->rope(y.data(), ld, rot, c.data(), s.data(), 1, 3);
    bool agrees = true;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t column = 0; column < ld; ++column) {
        const size_t at = static_cast<size_t>(r * ld + column);
        double want = x[at];
        if (r < rot && column >= 16 && column < 64) {
          const bool low = r < rot / 2;
          const size_t i = static_cast<size_t>((low ? r : r - rot / 2) * ld + column);
          const double other = x[static_cast<size_t>((low ? r + rot / 2 : r - rot / 2) * ld + column)];
          want = x[at] * static_cast<double>(c[i]) + (low ? -other : other) * static_cast<double>(s[i]);
        }
        agrees &= near(y[at], want, 1e-6, 1e-6);
      }
    report(agrees, t.name, "rope differs from double");
  }
}

TEST(silu_agrees_with_double) {
  for (const auto& t : tables_but_products()) {
    std::vector<float> x, up, h;
    for (float v = -120.0f; v < 120.0f; v += 0.0137f) x.push_back(v);
    for (float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e30f, -1e30f}) x.push_back(v);
    up.assign(x.size(), 1.5f);
    for (size_t n : {x.size(), size_t{1}, size_t{17}, size_t{31}}) {
      h.assign(x.size() + 1, 77.0f);
      t.kernels->silu_mul(x.data(), up.data(), static_cast<int64_t>(n), h.data());
      bool agrees = true;
      for (size_t i = 0; i < n; ++i)
        agrees &= near(h[i], 1.5 * x[i] / (1 + std::exp(-static_cast<double>(x[i]))), 5e-7, 1e-34);
      report(agrees, t.name, "silu_mul differs from double");
      CHECK(h[n] == 77.0f);
    }
    std::vector<float> in_place = x, nan = {NAN, INFINITY};
    t.kernels->silu_mul(in_place.data(), up.data(), static_cast<int64_t>(x.size()), in_place.data());
    t.kernels->silu_mul(x.data(), up.data(), static_cast<int64_t>(x.size()), h.data());
    h.resize(x.size());
    report(same_bits(in_place, h), t.name, "silu_mul differs in place");
    t.kernels->silu_mul(nan.data(), up.data(), 2, nan.data());
    report(std::isnan(nan[0]) && std::isinf(nan[1]), t.name, "silu_mul hides a non-finite value");
  }
}

TEST(lse_agrees_with_double) {
  for (const auto& t : tables_but_products()) {
    std::mt19937 random(8);
    const int64_t rows = 777, panels = 3, ld = 64;
    std::vector<float> x = normals(rows * ld, random, 8.0f);
    x[static_cast<size_t>(300 * ld + 5)] = NAN;
    std::vector<float> top(64, -INFINITY), sum(64, 0.0f), top2 = top, sum2 = sum;
    t.kernels->lse_update(x.data(), rows, ld, panels, top.data(), sum.data());
    bool agrees = true;
    for (int64_t c = 0; c < panels * 16; ++c) {
      double most = -INFINITY, total = 0;
      for (int64_t r = 0; r < rows; ++r)
        most = std::max(most, static_cast<double>(x[static_cast<size_t>(r * ld + c)]));
      for (int64_t r = 0; r < rows; ++r) total += std::exp(x[static_cast<size_t>(r * ld + c)] - most);
      const size_t at = static_cast<size_t>(c);
      if (c == 5)
        report(!std::isfinite(top[at] + std::log(sum[at])), t.name, "lse_update hides a NaN");
      else
        agrees &= near(top[at] + std::log(sum[at]), most + std::log(total), 1e-6, 2e-6);
    }
    report(agrees, t.name, "lse_update differs from double");
    CHECK(sum[48] == 0.0f);

    // In pieces of any size: the same bits.
    for (int64_t r = 0; r < rows;) {
      const int64_t n = std::min<int64_t>(rows - r, 1 + static_cast<int64_t>(random() % 40));
      t.kernels->lse_update(x.data() + r * ld, n, ld, panels, top2.data(), sum2.data());
      r += n;
    }
    report(same_bits(top, top2) && same_bits(sum, sum2), t.name, "lse_update depends on how rows are cut");
  }
}

TEST_MAIN()
