// AVX-512 without vdpbf16ps: products in fp32, of bf16-rounded values where compute is bf16.
#include <immintrin.h>

#include <cstring>

#include "format/int8.h"
#include "format/nf4.h"
#include "kernels/tables.h"
#include "noise/normal.h"

namespace smezo {
namespace avx512 {

constexpr bool kBf16Operands = false;
constexpr int64_t kPairPadding = 2;

#include "kernels/cpu/table.inl"

static constexpr Kernels kTable = table_named<void>("avx512");

}  // namespace avx512

const Kernels* avx512_kernels() { return &avx512::kTable; }

}  // namespace smezo
