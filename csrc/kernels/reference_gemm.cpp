// Packed activations, and their product with an operand strip. Sums are fp32, product and addition rounded
// one after the other, k increasing, whatever the strip and the panels are (I12).
#include "format/half.h"
#include "kernels/reference.h"

namespace smezo::reference {

DType operand_dtype(Compute) { return DType::F32; }
int64_t operand_ld(Compute, int64_t k) { return k; }
int64_t packed_bytes(Compute, int64_t k, int64_t n_panels) {
  return n_panels * k * kLanes * static_cast<int64_t>(sizeof(float));
}

namespace {

// Features [row0, row0 + n_rows) of k; value(i, t): feature i of token column t.
template <class Value>
void pack_values(Compute compute, int64_t k, int64_t row0, int64_t n_rows, int64_t panel0, int64_t n_panels,
                 void* packed, Value value) {
  for (int64_t panel = panel0; panel < panel0 + n_panels; ++panel) {
    float* to = static_cast<float*>(packed) + (panel * k + row0) * kLanes;
    for (int64_t i = row0; i < row0 + n_rows; ++i) {
      for (int64_t t = panel * kLanes; t < (panel + 1) * kLanes; ++t) {
        const float x = value(i, t);
        *to++ = compute == Compute::bf16 ? round_bf16(x) : x;
      }
    }
  }
}

}  // namespace

void pack(Compute compute, const float* x, int64_t ld, int64_t k, int64_t panel0, int64_t n_panels,
          void* packed) {
  pack_values(compute, k, 0, k, panel0, n_panels, packed,
              [&](int64_t i, int64_t t) { return x[i * ld + t]; });
}

void silu_mul_pack(Compute compute, const float* gate, const float* up, int64_t ld, int64_t k, int64_t row0,
                   int64_t n_rows, int64_t panel0, int64_t n_panels, void* packed) {
  pack_values(compute, k, row0, n_rows, panel0, n_panels, packed, [&](int64_t i, int64_t t) {
    const int64_t at = (i - row0) * ld + t - panel0 * kLanes;
    return silu(gate[at]) * up[at];
  });
}

void rms_norm_pack(Compute compute, const float* x, int64_t ld, int64_t k, const float* gain, float eps,
                   int64_t panel0, int64_t n_panels, void* packed) {
  for (int64_t panel = panel0; panel < panel0 + n_panels; ++panel) {
    float scale[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) scale[t] = rms_scale(x + panel * kLanes + t, ld, k, eps);
    pack_values(compute, k, 0, k, panel, 1, packed,
                [&](int64_t i, int64_t t) { return x[i * ld + t] * scale[t % kLanes] * gain[i]; });
  }
}

void exact_gemm(const Terms& terms, int64_t n_rows, int64_t n_panels, const Rule* root, float* c,
                int64_t ldc) {
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* a = static_cast<const float*>(terms.strip) + row * terms.k;
    for (int64_t panel = 0; panel < n_panels; ++panel) {
      const float* b = static_cast<const float*>(terms.packed) + panel * terms.k * kLanes;
      float* const out = c + row * ldc + panel * kLanes;
      for (int64_t t = 0; t < kLanes; ++t) {
        float sum = 0;
        for (int64_t i = 0; i < terms.k; ++i) sum = __builtin_fmaf(a[i], b[i * kLanes + t], sum);
        out[t] = root ? over_root(*root, out[t], sum) : sum;
      }
    }
  }
}

void gemm(Compute, const Terms& terms, const Terms& more, int64_t n_rows, int64_t n_panels, float alpha,
          Epilogue epilogue, float* c, int64_t ldc) {
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t panel = 0; panel < n_panels; ++panel) {
      float sum[kLanes] = {};
      for (const Terms* of : {&terms, &more}) {
        const float* a = static_cast<const float*>(of->strip) + row * of->k;
        const float* b = static_cast<const float*>(of->packed) + panel * of->k * kLanes;
        for (int64_t i = 0; i < of->k; ++i) {
          for (int64_t t = 0; t < kLanes; ++t) sum[t] += a[i] * b[i * kLanes + t];
        }
      }
      float* out = c + row * ldc + panel * kLanes;
      for (int64_t t = 0; t < kLanes; ++t) {
        const float value = alpha * sum[t];
        out[t] = epilogue == Epilogue::add ? out[t] + value : value;
      }
    }
  }
}

}  // namespace smezo::reference
