// Bindings of noise/: addressed bits, noise values, and the permutation that orders data.
#include <pybind11/numpy.h>

#include "base/error.h"
#include "bindings/init.h"
#include "direction/direction.h"
#include "engine/method.h"
#include "kernels/kernels.h"

namespace py = pybind11;

namespace smezo {
namespace {

Purpose purpose_from_name(const std::string& name) {
  static constexpr std::pair<const char*, Purpose> kRows[] = {
      {"direction", Purpose::direction},   {"mask", Purpose::mask},     {"rounding", Purpose::rounding},
      {"subset", Purpose::subset},         {"factor", Purpose::factor}, {"query_plan", Purpose::query_plan},
      {"data_order", Purpose::data_order}, {"dither", Purpose::dither}};
  std::string known;
  for (const auto& [n, p] : kRows) {
    if (name == n) return p;
    known += std::string(known.empty() ? "" : ", ") + n;
  }
  fail<ArgumentError>("purpose", "'" + name + "', expected one of " + known);
}

py::array_t<float> noise(const std::string& kind, uint64_t run_seed, uint32_t step, uint32_t query,
                         uint32_t tensor_id, int64_t start, int64_t n, const std::string& purpose) {
  TensorDirection d;
  read_word(kind, &d.noise);
  d.stream = {run_seed, step, query, purpose_from_name(purpose), tensor_id};
  py::array_t<float> out(n);
  kernels_for(choose_isa()).noise(d, start, n, out.mutable_data());
  return out;
}

py::array_t<uint32_t> random_bits(const std::string& purpose, uint64_t run_seed, uint32_t step,
                                  uint32_t query, uint32_t tensor_id, int64_t start, int64_t n,
                                  uint32_t bits) {
  check<ArgumentError>(bits == 1 || bits == 8 || bits == 16 || bits == 32, "random_bits",
                       std::to_string(bits) + " bits, expected 1, 8, 16 or 32");
  const Stream s{run_seed, step, query, purpose_from_name(purpose), tensor_id};
  py::array_t<uint32_t> out(n);
  uint32_t* p = out.mutable_data();
  for (int64_t i = 0; i < n; ++i) p[i] = bits_at(s, static_cast<uint64_t>(start + i), bits);
  return out;
}

// Fisher-Yates from the last place down; place i swaps with (32 bits of element i * (i + 1)) >> 32. Step of
// the address: the epoch.
py::array_t<int64_t> permutation(uint64_t run_seed, uint32_t epoch, int64_t n) {
  check<ArgumentError>(n >= 0 && n <= 0xffffffff, "permutation",
                       std::to_string(n) + " items, expected fewer than 2^32");
  const Stream s{run_seed, epoch, 0, Purpose::data_order, 0};
  py::array_t<int64_t> out(n);
  int64_t* p = out.mutable_data();
  for (int64_t i = 0; i < n; ++i) p[i] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const uint64_t word = bits_at(s, static_cast<uint64_t>(i), 32);
    std::swap(p[i], p[(word * static_cast<uint64_t>(i + 1)) >> 32]);
  }
  return out;
}

}  // namespace

void init_noise(py::module_& m) {
  m.def("noise", &noise, py::arg("kind"), py::arg("run_seed"), py::arg("step"), py::arg("query"),
        py::arg("tensor_id"), py::arg("start"), py::arg("n"), py::arg("purpose") = "direction",
        "z of elements [start, start + n) of one tensor, float32 [n], without its mask.");
  m.def("random_bits", &random_bits, py::arg("purpose"), py::arg("run_seed"), py::arg("step"),
        py::arg("query"), py::arg("tensor_id"), py::arg("start"), py::arg("n"), py::arg("bits"),
        "The addressed bits of elements [start, start + n), uint32 [n] (noise/address.h).");
  m.def("permutation", &permutation, py::arg("run_seed"), py::arg("epoch"), py::arg("n"),
        "Order of n examples in an epoch, int64 [n]: Fisher-Yates from the data-order counter.");
}

}  // namespace smezo
