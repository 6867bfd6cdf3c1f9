// The ordered list of kernel tables, as data: for an instruction set, the first row that this machine can
// run. CMake defines SMEZO_HAVE_AVX2, SMEZO_HAVE_AVX512, SMEZO_HAVE_AVX512_BF16, SMEZO_HAVE_AMX,
// SMEZO_HAVE_NEON on this file for the sets whose sources exist.
#include <string>

#include "base/error.h"
#include "kernels/tables.h"

namespace smezo {
namespace {

struct Row {
  Isa isa;
  bool (*runs_here)(const CpuFeatures&);
  const Kernels* (*table)();
};

// Best first within a set.
constexpr Row kRows[] = {
#if defined(SMEZO_HAVE_AMX)
    {Isa::amx, [](const CpuFeatures& f) { return f.amx_bf16; }, amx_kernels},
#endif
#if defined(SMEZO_HAVE_AVX512_BF16)
    {Isa::avx512, [](const CpuFeatures& f) { return f.avx512 && f.avx512_bf16; }, avx512_bf16_kernels},
#endif
#if defined(SMEZO_HAVE_AVX512)
    {Isa::avx512, [](const CpuFeatures& f) { return f.avx512; }, avx512_kernels},
#endif
#if defined(SMEZO_HAVE_AVX2)
    {Isa::avx2, [](const CpuFeatures& f) { return f.avx2; }, avx2_kernels},
#endif
#if defined(SMEZO_HAVE_NEON)
    {Isa::neon, [](const CpuFeatures& f) { return f.neon; }, neon_kernels},
#endif
    {Isa::scalar, [](const CpuFeatures&) { return true; }, scalar_kernels},
};

}  // namespace

// Keys and values gathered side by side, a block of 16 queries and its scores (the layout is in
// cpu/attention.inl; other implementations need less).
int64_t attention_scratch_floats(int64_t head_dim, int64_t n_keys) {
  const int64_t keys = (n_keys + kLanes - 1) / kLanes * kLanes;
  return head_dim * (2 * (keys | kLanes) + kLanes) + keys * kLanes;
}

const Kernels& kernels_for(Isa isa) {
  bool built = false;
  for (const Row& row : kRows) {
    if (row.isa != isa) continue;
    built = true;
    if (row.runs_here(cpu_features())) return *row.table();
  }
  std::string have;
  for (const Row& row : kRows) {
    if (row.runs_here(cpu_features())) have += std::string(have.empty() ? "" : ", ") + isa_name(row.isa);
  }
  fail<ArgumentError>("kernels", std::string("instruction set ") + isa_name(isa) +
                                     (built ? " is not supported by this machine" : " is not in this build") +
                                     ", expected one of: " + have + "; choose another with SMEZO_ISA");
}

}  // namespace smezo
