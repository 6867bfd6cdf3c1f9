// A Python callable as the core's OnProgress.
#pragma once
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <optional>

#include "store/new_checkpoint.h"

namespace smezo {

using PyProgress = std::optional<std::function<void(int64_t, int64_t)>>;

// Takes the GIL for the call, and sees an interrupt even when the callable has nothing to say.
inline OnProgress with_gil(const PyProgress& progress) {
  return [&progress](int64_t done, int64_t total) {
    pybind11::gil_scoped_acquire acquire;
    if (progress) (*progress)(done, total);
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  };
}

}  // namespace smezo
