// AVX2, FMA and F16C: everything in fp32.
#include <immintrin.h>

#include <cstring>

#include "format/int8.h"
#include "format/nf4.h"
#include "kernels/tables.h"
#include "noise/normal.h"

namespace smezo {
namespace avx2 {

constexpr bool kBf16Operands = false;
constexpr int64_t kPairPadding = 2;

#include "kernels/cpu/table.inl"

static constexpr Kernels kTable = table_named<void>("avx2");

}  // namespace avx2

const Kernels* avx2_kernels() { return &avx2::kTable; }

}  // namespace smezo
