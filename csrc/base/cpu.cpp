// Detection of instruction sets. A set counts only when the processor has it and the operating system saves
// its registers: cpuid leaves 1 and 7, XCR0 bits 1-2 (AVX), 5-7 (AVX-512), 17-18 (AMX tiles); Intel SDM
// volume 1, chapters 13 to 18.
#include "base/cpu.h"

#include <cstdlib>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace smezo {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon};

#if defined(__x86_64__)

bool bit(uint32_t word, int i) { return (word >> i) & 1u; }

uint64_t saved_registers() {
  uint32_t lo = 0, hi = 0;
  // Inline, since the intrinsic would need -mxsave on this file, which must run on every x86-64.
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

// Linux keeps the 8 KiB of tile data off until a process asks; the permission is inherited by threads made
// later.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures f;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave || !avx) return f;
  const uint64_t xcr0 = saved_registers();
  const auto saves = [&](uint64_t mask) { return (xcr0 & mask) == mask; };
  if (!saves(0x6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const uint32_t n_subleaves = a, b7 = b, c7 = c, d7 = d;
  f.avx2 = fma && f16c && bit(b7, 5);
  f.avx512 = f.avx2 && saves(0xe6) && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31) && bit(c7, 1);
  if (!f.avx512 || n_subleaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return f;
  f.avx512_bf16 = bit(a, 5);
  f.amx_bf16 = f.avx512_bf16 && bit(d7, 22) && bit(d7, 24) && saves(0x60000) && tiles_permitted();
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  CpuFeatures f;
  f.neon = true;  // part of every AArch64
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

std::string names(const std::vector<Isa>& sets) {
  std::string all;
  for (Isa isa : sets) all += all.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  return all;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
  }
  return "unknown";
}

bool isa_supported(Isa isa) {
  const CpuFeatures& f = cpu_features();
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return f.avx2;
    case Isa::avx512:
      return f.avx512;
    case Isa::amx:
      return f.amx_bf16;
    case Isa::neon:
      return f.neon;
  }
  return false;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> sets;
  for (Isa isa : kAll)
    if (isa_supported(isa)) sets.push_back(isa);
  return sets;
}

Isa choose_isa() {
  const char* forced = std::getenv("SMEZO_ISA");
  if (forced == nullptr || *forced == '\0') {
    // The AMX kernels have run on an emulated tile unit only; until they have run on a real one they are
    // chosen by name alone.
    std::vector<Isa> sets = supported_isas();
    if (sets.back() == Isa::amx) sets.pop_back();
    return sets.back();
  }
  for (Isa isa : kAll) {
    if (std::string(forced) != isa_name(isa)) continue;
    check<ArgumentError>(isa_supported(isa), "cpu",
                         std::string("SMEZO_ISA=") + forced + " is not on this machine, expected one of " +
                             names(supported_isas()) + ", unset SMEZO_ISA to take the best");
    return isa;
  }
  fail<ArgumentError>("cpu", std::string("SMEZO_ISA=") + forced +
                                 " is no known instruction set, expected one of " +
                                 names({std::begin(kAll), std::end(kAll)}) + ", misspelt?");
}

std::string numerics_name(Isa isa) {
  if (isa == Isa::avx512 && cpu_features().avx512_bf16) return "avx512-bf16";
  return isa_name(isa);
}

}  // namespace smezo
