// The extension pysmezo._core: lists the init functions, one file a subject (init.h). Binds, never computes.
#include "bindings/init.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ runtime of pysmezo.";
  m.attr("__version__") = SMEZO_VERSION;
  smezo::init_errors(m);
  smezo::init_cpu(m);
  smezo::init_noise(m);
  smezo::init_journal(m);
  smezo::init_engine(m);
  smezo::init_quantize(m);
}
