// Every kernel table of this build that this machine can run, for tests that go through all of them.
#pragma once
#include <string>
#include <vector>

#include "kernels/tables.h"

namespace smezo_test {

struct Table {
  std::string name;
  const smezo::Kernels* kernels;
};

inline std::vector<Table> runnable_tables() {
  std::vector<Table> tables = {{"scalar", smezo::scalar_kernels()}};
#if defined(__x86_64__)
  const smezo::CpuFeatures& f = smezo::cpu_features();
  if (f.avx2) tables.push_back({"avx2", smezo::avx2_kernels()});
  if (f.avx512) tables.push_back({"avx512", smezo::avx512_kernels()});
  if (f.avx512 && f.avx512_bf16) tables.push_back({"avx512-bf16", smezo::avx512_bf16_kernels()});
  if (f.amx_bf16) tables.push_back({"amx", smezo::amx_kernels()});
#endif
  return tables;
}

// The same for tests of everything but the product: without its tiles the amx table needs no more than
// avx512-bf16 has.
inline std::vector<Table> tables_but_products() {
  std::vector<Table> tables = runnable_tables();
#if defined(__x86_64__)
  const smezo::CpuFeatures& f = smezo::cpu_features();
  if (f.avx512 && f.avx512_bf16 && !f.amx_bf16) tables.push_back({"amx", smezo::amx_kernels()});
#endif
  return tables;
}

}  // namespace smezo_test
