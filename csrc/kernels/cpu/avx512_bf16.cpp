// AVX-512 with vdpbf16ps. Its table has the same name as avx512's; numerics_name tells them apart.
#include <immintrin.h>

#include <cstring>

#include "format/int8.h"
#include "format/nf4.h"
#include "kernels/tables.h"
#include "noise/normal.h"

namespace smezo {
namespace avx512_bf16 {

constexpr bool kBf16Operands = true;
constexpr int64_t kPairPadding = 2;

#include "kernels/cpu/table.inl"

struct Pairs {
  static void multiply(const TermsOf<uint16_t>& terms, const TermsOf<uint16_t>& more, int64_t n_rows,
                       int64_t n_panels, float alpha, Epilogue epilogue, float* c, int64_t ldc) {
    gemm_strip<PairProduct>(terms, more, n_rows, n_panels, alpha, epilogue, c, ldc);
  }
};

static constexpr Kernels kTable = table_named<Pairs>("avx512");

}  // namespace avx512_bf16

const Kernels* avx512_bf16_kernels() { return &avx512_bf16::kTable; }

}  // namespace smezo
