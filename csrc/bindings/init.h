// The init functions of the extension, in the order module.cpp calls them.
#pragma once
#include <pybind11/pybind11.h>

namespace smezo {

void init_cpu(pybind11::module_& m);
void init_errors(pybind11::module_& m);
void init_noise(pybind11::module_& m);
void init_journal(pybind11::module_& m);
void init_engine(pybind11::module_& m);
void init_quantize(pybind11::module_& m);

}  // namespace smezo
