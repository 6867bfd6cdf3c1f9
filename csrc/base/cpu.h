// Which instruction sets this machine has, asked of the processor and of the operating system (xgetbv,
// arch_prctl for AMX tiles).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace smezo {

// Priority order, worst first. avx512 means F+BW+DQ+VL+VBMI (Ice Lake, Zen 4 and later); machines with less
// use avx2 (+FMA, F16C).
enum class Isa : uint8_t { scalar, avx2, avx512, amx, neon };

struct CpuFeatures {
  bool avx2 = false;         // AVX2 + FMA + F16C + OS support
  bool avx512 = false;       // F BW DQ VL VBMI + OS support
  bool avx512_bf16 = false;  // vdpbf16ps
  bool amx_bf16 = false;     // AMX tiles with bf16, permission granted
  bool neon = false;
};

const CpuFeatures& cpu_features();
const char* isa_name(Isa isa);
bool isa_supported(Isa isa);
std::vector<Isa> supported_isas();  // best last
// Best supported set (but amx only by name), or the one SMEZO_ISA names. ArgumentError: unknown name (lists
// the known ones), or not on this machine.
Isa choose_isa();
// What a journal records, since sums differ: "avx512-bf16" for avx512 with vdpbf16ps, else isa_name().
std::string numerics_name(Isa isa);

}  // namespace smezo
