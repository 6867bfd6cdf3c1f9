// The plain loops, verb by verb, shared between reference.cpp (the table) and the files that hold the bodies.
#pragma once
#include "kernels/kernels.h"

namespace smezo::reference {

void produce(const OperandJob& j, int64_t row0, int64_t n_rows, void* plus, void* minus);
void apply_update(const UpdateJob& j, int64_t row0, int64_t n_rows);
void decode(const WeightView& w, int64_t e0, int64_t n, float* out);
int64_t unpack_state(const StateJob& j, int64_t e0, int64_t n);
int64_t pack_state(const StateJob& j, int64_t e0, int64_t n);
int64_t count_state(const StateJob& j, int64_t e0, int64_t n);
void noise(const TensorDirection& d, int64_t e0, int64_t n, float* out);

DType operand_dtype(Compute);
int64_t operand_ld(Compute, int64_t k);
int64_t packed_bytes(Compute, int64_t k, int64_t n_panels);
void pack(Compute compute, const float* x, int64_t ld, int64_t k, int64_t panel0, int64_t n_panels,
          void* packed);
void exact_gemm(const Terms&, int64_t n_rows, int64_t n_panels, const Rule* root, float* c, int64_t ldc);
void gemm(Compute, const Terms& terms, const Terms& more, int64_t n_rows, int64_t n_panels, float alpha,
          Epilogue epilogue, float* c, int64_t ldc);

float rms_scale(const float* column, int64_t ld, int64_t d,
                float eps);  // 1 / sqrt(mean(x^2) + eps) of one token
float silu(float x);
void rms_norm(const float* x, int64_t ld, int64_t d, const float* gain, float eps, int64_t panel0,
              int64_t n_panels, float* y);
void rope(float* head, int64_t ld, int64_t rot_dim, const float* cos, const float* sin, int64_t panel0,
          int64_t n_panels);
void attention(const AttentionJob& j);
void silu_mul(const float* gate, const float* up, int64_t n, float* h);
void silu_mul_pack(Compute compute, const float* gate, const float* up, int64_t ld, int64_t k, int64_t row0,
                   int64_t n_rows, int64_t panel0, int64_t n_panels, void* packed);
void rms_norm_pack(Compute compute, const float* x, int64_t ld, int64_t k, const float* gain, float eps,
                   int64_t panel0, int64_t n_panels, void* packed);
void lse_update(const float* logits, int64_t n_rows, int64_t ld, int64_t n_panels, float* max, float* sum);

}  // namespace smezo::reference
