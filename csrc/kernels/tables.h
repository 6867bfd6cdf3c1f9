// The tables of kernels, one an instruction set, that this build may hold. An implementation defines its
// function; dispatch.cpp lists those whose files the build has (CMake defines SMEZO_HAVE_<SET> for each).
#pragma once
#include "kernels/kernels.h"

namespace smezo {

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();  // avx512 on machines with vdpbf16ps
const Kernels* amx_kernels();
const Kernels* neon_kernels();

}  // namespace smezo
