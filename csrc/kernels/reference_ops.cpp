// Norm, rope, attention, SwiGLU and log-sum-exp on feature-major activations. exp and sqrt are libm's:
// nothing here is replayed.
#include <algorithm>
#include <cmath>

#include "kernels/reference.h"

namespace smezo::reference {

// Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467.
float rms_scale(const float* column, int64_t ld, int64_t d, float eps) {
  float sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += column[i * ld] * column[i * ld];
  return 1 / std::sqrt(sum / static_cast<float>(d) + eps);
}

void rms_norm(const float* x, int64_t ld, int64_t d, const float* gain, float eps, int64_t panel0,
              int64_t n_panels, float* y) {
  for (int64_t t = panel0 * kLanes; t < (panel0 + n_panels) * kLanes; ++t) {
    const float scale = rms_scale(x + t, ld, d, eps);
    for (int64_t i = 0; i < d; ++i) y[i * ld + t] = x[i * ld + t] * scale * gain[i];
  }
}

// Su et al., "RoFormer", arXiv 2104.09864, in the half layout of Hugging Face checkpoints.
void rope(float* head, int64_t ld, int64_t rot_dim, const float* cos, const float* sin, int64_t panel0,
          int64_t n_panels) {
  const int64_t half = rot_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    for (int64_t t = panel0 * kLanes; t < (panel0 + n_panels) * kLanes; ++t) {
      float& low = head[i * ld + t];
      float& high = head[(i + half) * ld + t];
      const float a = low, b = high, c = cos[i * ld + t], s = sin[i * ld + t];
      low = a * c - b * s;
      high = b * c + a * s;
    }
  }
}

void attention(const AttentionJob& j) {
  const float* q = j.q + j.q_head * j.head_dim * j.ld;
  const float* k = j.k + j.kv_head * j.head_dim * j.ld;
  const float* v = j.v + j.kv_head * j.head_dim * j.ld;
  float* out = j.out + j.q_head * j.head_dim * j.ld;
  // Keys in the order of their positions: the prefix, then the segment itself.
  const auto column = [&](int64_t key) {
    return key < j.prefix_len ? j.prefix_start + key : j.start + key - j.prefix_len;
  };
  for (int64_t i = 0; i < j.len; ++i) {
    const int64_t t = j.start + i, n_keys = j.prefix_len + i + 1;
    const int64_t first = j.window > 0 ? std::max<int64_t>(0, n_keys - j.window) : 0;
    float highest = -INFINITY;
    for (int64_t key = first; key < n_keys; ++key) {
      float score = 0;
      for (int64_t d = 0; d < j.head_dim; ++d) score += q[d * j.ld + t] * k[d * j.ld + column(key)];
      j.scratch[key] = score * j.scale;
      highest = std::max(highest, j.scratch[key]);
    }
    float total = 0;
    for (int64_t key = first; key < n_keys; ++key) {
      j.scratch[key] = std::exp(j.scratch[key] - highest);
      total += j.scratch[key];
    }
    for (int64_t d = 0; d < j.head_dim; ++d) {
      float sum = 0;
      for (int64_t key = first; key < n_keys; ++key) sum += j.scratch[key] * v[d * j.ld + column(key)];
      out[d * j.ld + t] = sum / total;
    }
  }
}

float silu(float x) { return x / (1 + std::exp(-x)); }

void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  for (int64_t i = 0; i < n; ++i) h[i] = silu(gate[i]) * up[i];
}

void lse_update(const float* logits, int64_t n_rows, int64_t ld, int64_t n_panels, float* max, float* sum) {
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t t = 0; t < n_panels * kLanes; ++t) {
      const float x = logits[row * ld + t];
      if (x > max[t]) {
        sum[t] = sum[t] * std::exp(max[t] - x) + 1;
        max[t] = x;
      } else {
        sum[t] += std::exp(x - max[t]);
      }
    }
  }
}

}  // namespace smezo::reference
