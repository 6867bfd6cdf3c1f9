// AMX: bf16 products on tiles, everything else as AVX-512.
#include <immintrin.h>

#include <cstring>

#include "format/int8.h"
#include "format/nf4.h"
#include "kernels/tables.h"
#include "noise/normal.h"

namespace smezo {
namespace amx {

constexpr bool kBf16Operands = true;
constexpr int64_t kPairPadding = 32;

#include "kernels/cpu/table.inl"
//
#include "kernels/cpu/amx_tile.h"
//
#include "kernels/cpu/amx_gemm.inl"

struct Pairs {
  static void multiply(const TermsOf<uint16_t>& terms, const TermsOf<uint16_t>& more, int64_t n_rows,
                       int64_t n_panels, float alpha, Epilogue epilogue, float* c, int64_t ldc) {
    multiply_tiles<HardwareTiles>(terms, more, n_rows, n_panels, alpha, epilogue, c, ldc);
  }
};

static constexpr Kernels kTable = table_named<Pairs>("amx");

}  // namespace amx

const Kernels* amx_kernels() { return &amx::kTable; }

}  // namespace smezo
