// Everything between the products of a branch but attention: normalisation, rotary positions, the gated unit,
// log-sum-exp. Included inside the namespace of an instruction set, after vec.h.
//
// A lane is a token and sums run over features (or rows) in increasing order, so which tokens share a vector
// changes nothing (I12).

// e^x to about 1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, e^r by a polynomial of relative error 3e-9
// (weighted least squares on Chebyshev points), 2^n by adding to the exponent. Below the smallest normal
// number: 0. Above the largest: it saturates near 3.4e38. A NaN stays one (min and max return their second
// operand then).
SMEZO_VEC F16 exp(F16 x) {
  const F16 tiny = set1(-87.3365402f);
  const F16 y = min(set1(88.7228317f), max(tiny, x));
  const U16 n = f_to_i32(y * set1(1.44269502f));
  const F16 nf = i32_to_f(n);
  const F16 r = fnma(nf, set1(-2.12194440e-4f),
                     fnma(nf, set1(0.693359375f), y));  // ln 2 in two pieces, the first exact in 9 bits
  F16 e = set1(1.38144661e-3f);
  e = fma(e, r, set1(8.36878084e-3f));
  e = fma(e, r, set1(4.16683927e-2f));
  e = fma(e, r, set1(0.166665196f));
  e = fma(e, r, set1(0.49999994f));
  e = fma(e * r, r, r) + set1(1.0f);
  const F16 scaled = as_f(as_u(e) + (n << 23));
  return select(x < tiny, zero_f(), scaled);
}

// Where e^-x would saturate it counts as infinite: x / 3.4e38 is not small for every x.
SMEZO_VEC F16 silu(F16 x) {
  const F16 e = select(x < set1(-88.7228317f), set1(__builtin_inff()), exp(negate(x)));
  return x / (set1(1.0f) + e);
}

constexpr int kNormGroup = 4;

// 1 / sqrt(mean(x^2) + eps) of n panels side by side: one panel's sum would wait for itself.
SMEZO_VEC void rms_scales(const float* x, int64_t ld, int64_t d, float eps, int n, F16* scale) {
  F16 sum[kNormGroup] = {zero_f(), zero_f(), zero_f(), zero_f()};
  if (n == kNormGroup) {
    for (int64_t i = 0; i < d; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < kNormGroup; ++p) {
        const F16 v = load(x + i * ld + p * kLanes);
        sum[p] = fma(v, v, sum[p]);
      }
  } else {
    for (int p = 0; p < n; ++p) {
      F16 s = zero_f();
      for (int64_t i = 0; i < d; ++i) {
        const F16 v = load(x + i * ld + p * kLanes);
        s = fma(v, v, s);
      }
      sum[p] = s;
    }
  }
  for (int p = 0; p < n; ++p) scale[p] = set1(1.0f) / sqrt(sum[p] / set1(static_cast<float>(d)) + set1(eps));
}

static void rms_norm(const float* x, int64_t ld, int64_t d, const float* gain, float eps, int64_t panel0,
                     int64_t n_panels, float* y) {
  for (int64_t first = panel0; first < panel0 + n_panels; first += kNormGroup) {
    const int64_t left = panel0 + n_panels - first;
    const int n = static_cast<int>(left < kNormGroup ? left : kNormGroup);
    F16 scale[kNormGroup];
    rms_scales(x + first * kLanes, ld, d, eps, n, scale);
    for (int64_t i = 0; i < d; ++i)
      for (int p = 0; p < n; ++p) {
        const int64_t at = i * ld + (first + p) * kLanes;
        store(y + at, load(x + at) * scale[p] * set1(gain[i]));
      }
  }
}

static void rope(float* head, int64_t ld, int64_t rot_dim, const float* cos, const float* sin, int64_t panel0,
                 int64_t n_panels) {
  const int64_t half = rot_dim / 2;
  for (int64_t i = 0; i < half; ++i)
    for (int64_t t = panel0 * kLanes; t < (panel0 + n_panels) * kLanes; t += kLanes) {
      float* a = head + i * ld + t;
      float* b = head + (i + half) * ld + t;
      const F16 x = load(a), y = load(b), c = load(cos + i * ld + t), s = load(sin + i * ld + t);
      store(a, fnma(y, s, x * c));
      store(b, fma(x, s, y * c));
    }
}

static void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(h + i, silu(load(gate + i)) * load(up + i));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    store_n(h + i, silu(load_n(gate + i, left)) * load_n(up + i, left), left);
  }
}

// One exponential a value: with d = x - max, the smaller of the two terms is e^-|d| times the larger.
static void lse_update(const float* logits, int64_t n_rows, int64_t ld, int64_t n_panels, float* max_out,
                       float* sum_out) {
  for (int64_t t = 0; t < n_panels * kLanes; t += kLanes) {
    F16 top = load(max_out + t), sum = load(sum_out + t);
    for (int64_t r = 0; r < n_rows; ++r) {
      const F16 x = load(logits + r * ld + t);
      const F16 d = x - top, e = exp(negate(abs(d)));
      const M16 higher = d > zero_f();
      sum = fma(sum, select(higher, e, set1(1.0f)), select(higher, set1(1.0f), e));
      top = select(higher, x, top);
    }
    store(max_out + t, top);
    store(sum_out + t, sum);
  }
}
