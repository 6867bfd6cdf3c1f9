// Bindings of base/cpu.h and base/threads.h: what this machine can do.
#include "base/cpu.h"

#include "base/threads.h"
#include "bindings/init.h"

namespace py = pybind11;

namespace smezo {

void init_cpu(py::module_& m) {
  m.def(
      "cpu_features",
      [] {
        const CpuFeatures& f = cpu_features();
        py::dict d;
        d["avx2"] = f.avx2;
        d["avx512"] = f.avx512;
        d["avx512_bf16"] = f.avx512_bf16;
        d["amx_bf16"] = f.amx_bf16;
        d["neon"] = f.neon;
        return d;
      },
      "What the processor has and the operating system saves.");
  m.def(
      "supported_isas",
      [] {
        py::list names;
        for (Isa isa : supported_isas()) names.append(isa_name(isa));
        return names;
      },
      "Names of the instruction sets of this machine, best last.");
  m.def("choose_isa", [] { return isa_name(choose_isa()); }, "The best set, or the one SMEZO_ISA names.");
  m.def(
      "numerics_name", [] { return numerics_name(choose_isa()); }, "The chosen set as a journal records it.");
  m.def("default_threads", &default_threads, "SMEZO_THREADS, else the CPUs this process may run on.");
}

}  // namespace smezo
