// All verbs of one instruction set and the table of them. Included inside `namespace smezo::<set>` after
// <cstring>, <immintrin.h> and the headers of format/, noise/ and kernels/; the including file says how the
// set multiplies:
//
//   kBf16Operands   Compute::bf16 is stored as bf16 pairs (else as bf16-rounded fp32)
//   kPairPadding    pairs are padded with zeros to a multiple of this many k
//   Pairs           after this file: a type whose `multiply` is the product of bf16 operands, for
//   table_named; void without kBf16Operands
//
// Every set compiles all of it for itself: what several sets shared, the linker would keep once, with one
// set's instructions.

#include "kernels/cpu/vec.h"
//
#include "kernels/cpu/elements.inl"
#include "kernels/cpu/noise.inl"
#include "kernels/cpu/quantized.inl"
//
#include "kernels/cpu/expand.inl"
#include "kernels/cpu/producer.inl"
#include "kernels/cpu/state.inl"
#include "kernels/cpu/update.inl"
//
#include "kernels/cpu/activations.inl"
#include "kernels/cpu/attention.inl"
#include "kernels/cpu/terms.inl"
//
#include "kernels/cpu/gemm.inl"
#include "kernels/cpu/pack.inl"

static void produce(const OperandJob& job, int64_t row0, int64_t n_rows, void* plus, void* minus) {
  produce_rows<kBf16Operands ? Strip::bf16 : Strip::bf16_in_f32>(job, operand_ld(job.compute, job.w.cols),
                                                                 row0, n_rows, plus, minus);
}

static void exact_gemm(const Terms& terms, int64_t n_rows, int64_t n_panels, const Rule* root, float* c,
                       int64_t ldc) {
  const int64_t lda = operand_ld(Compute::f32, terms.k);
  if (root)
    gemm_strip<RootedProduct>({terms, lda}, {{}, 0}, n_rows, n_panels, 1.0f, Epilogue::store, c, ldc, root);
  else
    gemm_strip<FloatProduct>({terms, lda}, {{}, 0}, n_rows, n_panels, 1.0f, Epilogue::store, c, ldc);
}

template <class Pairs>
static void gemm(Compute compute, const Terms& terms, const Terms& more, int64_t n_rows, int64_t n_panels,
                 float alpha, Epilogue epilogue, float* c, int64_t ldc) {
  const int64_t lda = operand_ld(compute, terms.k), ld_more = operand_ld(compute, more.k);
  if constexpr (kBf16Operands) {
    if (compute == Compute::bf16) {
      Pairs::multiply({terms, lda}, {more, ld_more}, n_rows, n_panels, alpha, epilogue, c, ldc);
      return;
    }
  }
  gemm_strip<FloatProduct>({terms, lda}, {more, ld_more}, n_rows, n_panels, alpha, epilogue, c, ldc);
}

template <class Pairs>
static constexpr Kernels table_named(const char* name) {
  return {.name = name,
          .operand_dtype = operand_dtype,
          .operand_ld = operand_ld,
          .packed_bytes = packed_bytes,
          .produce = produce,
          .apply_update = update_rows,
          .decode = decode_range,
          .unpack_state = unpack_state,
          .pack_state = pack_state,
          .count_state = count_state,
          .noise = noise_range,
          .pack = pack,
          .gemm = gemm<Pairs>,
          .exact_gemm = exact_gemm,
          .rms_norm = rms_norm,
          .rope = rope,
          .attention = attention,
          .silu_mul = silu_mul,
          .silu_mul_pack = silu_mul_pack,
          .rms_norm_pack = rms_norm_pack,
          .lse_update = lse_update};
}
