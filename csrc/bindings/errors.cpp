// The core's four error types as Python exceptions under PysmezoError.
#include "base/error.h"
#include "bindings/init.h"

namespace py = pybind11;

namespace smezo {

void init_errors(py::module_& m) {
  static py::handle base = py::exception<Error>(m, "PysmezoError", PyExc_RuntimeError).release();
  static py::handle argument = py::exception<ArgumentError>(m, "ArgumentError", base).release();
  static py::handle format = py::exception<FormatError>(m, "FormatError", base).release();
  static py::handle budget = py::exception<BudgetError>(m, "BudgetError", base).release();
  static py::handle io = py::exception<IoError>(m, "IoError", base).release();
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ArgumentError& e) {
      py::set_error(argument, e.what());
    } catch (const FormatError& e) {
      py::set_error(format, e.what());
    } catch (const BudgetError& e) {
      py::set_error(budget, e.what());
    } catch (const IoError& e) {
      py::set_error(io, e.what());
    } catch (const Error& e) {
      py::set_error(base, e.what());
    }
  });
}

}  // namespace smezo
