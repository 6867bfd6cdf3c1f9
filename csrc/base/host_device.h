// The sole macro header. SMEZO_HD marks an element function that every instruction set and CUDA compile for
// themselves. It is static and always inlined on purpose: a plain inline function compiled with wide-vector
// flags could be the copy the linker keeps for everybody, and a narrower machine would then crash.
#pragma once

#if defined(__CUDACC__)
#define SMEZO_HD static __host__ __device__ __forceinline__
#else
#define SMEZO_HD static inline __attribute__((always_inline))
#endif
