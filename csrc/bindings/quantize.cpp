// Bindings of the quantized formats: whole folders, random models, and the codecs themselves, which the tests
// hold against bitsandbytes.
#include "store/quantize.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/init.h"
#include "bindings/progress.h"
#include "engine/opening.h"
#include "format/codec.h"
#include "format/dynamic8.h"
#include "store/encode.h"
#include "store/random_model.h"

namespace py = pybind11;

namespace smezo {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

QuantFormat format_named(const std::string& dtype, int64_t block, bool double_quant) {
  check<ArgumentError>(dtype == "nf4" || dtype == "int8", "quantize",
                       "dtype '" + dtype + "', expected nf4 or int8");
  check<ArgumentError>(dtype == "nf4" || !double_quant, "quantize",
                       "double quantization of int8, expected nf4: int8 has one scale a row");
  const QuantFormat format{dtype == "nf4" ? DType::NF4 : DType::I8, block, double_quant};
  check_quant_format(format);
  return format;
}

py::dict quantize_dict(const std::string& from, const std::string& to, const std::string& dtype,
                       int64_t block, bool double_quant, int threads, int64_t shard_bytes,
                       const PyProgress& progress, const std::string& keep) {
  const QuantFormat format = format_named(dtype, block, double_quant);
  QuantizeResult r;
  {
    py::gil_scoped_release release;
    ThreadPool pool(threads == 0 ? default_threads() : threads);
    KeepOptions originals{keep, {}};
    if (!keep.empty()) {
      EngineOptions o;
      o.model_dir = from;
      originals.tensors = opening_of(o).requests;
    }
    r = quantize_folder(from, to, format, shard_bytes, pool, with_gil(progress), originals);
  }
  py::dict out;
  out["bytes_in"] = r.bytes_in;
  out["bytes_out"] = r.bytes_out;
  out["n_quantized"] = r.n_quantized;
  out["n_kept"] = r.n_kept;
  out["n_originals"] = r.n_originals;
  return out;
}

int64_t random_model(const std::string& to, const std::string& config_json,
                     const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors, bool quantized,
                     int64_t block, bool double_quant, uint64_t seed, int threads, int64_t shard_bytes,
                     const PyProgress& progress) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, shape] : tensors) specs.push_back({name, "BF16", shape});
  py::gil_scoped_release release;
  ThreadPool pool(threads == 0 ? default_threads() : threads);
  return write_random_model(to, Json::parse(config_json, "config.json"), specs, quantized,
                            {DType::NF4, block, double_quant}, seed, shard_bytes, pool, with_gil(progress));
}

py::tuple nf4_encode_arrays(const Array<float>& x, int64_t block) {
  check_quant_format({DType::NF4, block, false});
  check<ArgumentError>(x.size() % 2 == 0, "nf4",
                       std::to_string(x.size()) + " elements, expected an even number");
  py::array_t<uint8_t> codes(x.size() / 2);
  py::array_t<float> absmax((x.size() + block - 1) / block);
  nf4_encode(x.data(), x.size(), block, codes.mutable_data(), absmax.mutable_data());
  return py::make_tuple(codes, absmax);
}

py::tuple nested_encode_arrays(const Array<float>& absmax, std::optional<float> offset) {
  const float centre = offset ? *offset : nested_offset(absmax.data(), absmax.size());
  py::array_t<uint8_t> codes(absmax.size());
  py::array_t<float> nested((absmax.size() + kNestedBlock - 1) / kNestedBlock);
  nested_encode(absmax.data(), absmax.size(), centre, codes.mutable_data(), nested.mutable_data());
  return py::make_tuple(codes, nested, centre);
}

py::tuple int8_encode_arrays(const Array<float>& x) {
  check<ArgumentError>(x.ndim() == 2, "int8", std::to_string(x.ndim()) + " dimensions, expected 2");
  py::array_t<int8_t> codes({x.shape(0), x.shape(1)});
  py::array_t<float> absmax(x.shape(0));
  int8_encode(x.data(), x.shape(0), x.shape(1), codes.mutable_data(), absmax.mutable_data());
  return py::make_tuple(codes, absmax);
}

// Every element through decode_at; bf16: rounded to nearest and handed over as its bits.
py::array decode_all(const WeightView& w, bool bf16) {
  if (!bf16) {
    py::array_t<float> out(w.n());
    for (int64_t e = 0; e < w.n(); ++e) out.mutable_data()[e] = decode_at(w, e);
    return out;
  }
  py::array_t<uint16_t> out(w.n());
  for (int64_t e = 0; e < w.n(); ++e) out.mutable_data()[e] = f32_to_bf16(decode_at(w, e));
  return out;
}

py::array nf4_decode_array(Array<uint8_t> codes, const Array<float>& absmax, int32_t block, bool bf16) {
  check<ArgumentError>(absmax.size() * block >= codes.size() * 2, "nf4",
                       "too few absmax values for the codes");
  WeightView w;
  w.data = codes.mutable_data();
  w.dtype = DType::NF4;
  w.rows = 1, w.cols = codes.size() * 2;
  w.scales.block = block;
  w.scales.absmax = absmax.data();
  return decode_all(w, bf16);
}

py::array nf4_decode_nested_array(Array<uint8_t> codes, const Array<uint8_t>& absmax8,
                                  const Array<float>& nested_code, const Array<float>& nested_absmax,
                                  float offset, int32_t block, int32_t nested_block, bool bf16) {
  check<ArgumentError>(absmax8.size() * block >= codes.size() * 2 && nested_code.size() == 256 &&
                           nested_absmax.size() * nested_block >= absmax8.size(),
                       "nf4", "too few scales for the codes");
  WeightView w;
  w.data = codes.mutable_data();
  w.dtype = DType::NF4;
  w.rows = 1, w.cols = codes.size() * 2;
  w.scales = {block, nullptr, absmax8.data(), nested_code.data(), nested_absmax.data(), nested_block, offset};
  return decode_all(w, bf16);
}

py::array int8_decode_array(Array<int8_t> codes, const Array<float>& absmax, bool bf16) {
  check<ArgumentError>(codes.ndim() == 2 && absmax.size() == codes.shape(0), "int8",
                       "codes without one absmax a row");
  WeightView w;
  w.data = codes.mutable_data();
  w.dtype = DType::I8;
  w.rows = codes.shape(0), w.cols = codes.shape(1);
  w.scales.absmax = absmax.data();
  return decode_all(w, bf16);
}

}  // namespace

void init_quantize(py::module_& m) {
  m.def("quantize_folder", &quantize_dict, py::arg("source"), py::arg("out"), py::arg("dtype"),
        py::arg("blocksize") = 64, py::arg("double_quant") = false, py::arg("threads") = 0,
        py::arg("shard_bytes") = kShardBytes, py::arg("progress") = py::none(), py::arg("keep") = "",
        "Quantizes a Hugging Face folder into a new one as bitsandbytes stores it. dtype: 'nf4' | 'int8'; "
        "progress(bytes_done, bytes_in) after each tensor; keep: an index file, whose elements' originals go "
        "to kept.safetensors. Returns {bytes_in, bytes_out, n_quantized, n_kept, n_originals}.");
  m.def("write_random_model", &random_model, py::arg("out"), py::arg("config_json"), py::arg("tensors"),
        py::arg("quantized"), py::arg("blocksize") = 64, py::arg("double_quant") = false, py::arg("seed") = 0,
        py::arg("threads") = 0, py::arg("shard_bytes") = kShardBytes, py::arg("progress") = py::none(),
        "Writes a folder of random bf16 weights, [(name, shape)], the block linears in NF4 if quantized. "
        "Returns the bytes of all tensors.");
  m.def("nf4_encode", &nf4_encode_arrays, py::arg("x"), py::arg("blocksize"),
        "(codes [n/2], absmax [blocks])");
  m.def("nested_encode", &nested_encode_arrays, py::arg("absmax"), py::arg("offset") = py::none(),
        "(codes [n], absmax [n/256], offset); without an offset it is the mean.");
  m.def("int8_encode", &int8_encode_arrays, py::arg("x"), "(codes [rows, cols], absmax [rows])");
  m.def("dynamic8_map", [] { return py::array_t<float>(256, dynamic8().value.data()); });
  m.def("nf4_decode", &nf4_decode_array, py::arg("codes"), py::arg("absmax"), py::arg("blocksize"),
        py::arg("bf16") = false, "fp32 [n], or the bits of bf16.");
  m.def("nf4_decode_nested", &nf4_decode_nested_array, py::arg("codes"), py::arg("absmax8"),
        py::arg("nested_code"), py::arg("nested_absmax"), py::arg("offset"), py::arg("blocksize"),
        py::arg("nested_blocksize") = kNestedBlock, py::arg("bf16") = false);
  m.def("int8_decode", &int8_decode_array, py::arg("codes"), py::arg("absmax"), py::arg("bf16") = false,
        "fp32 [n], or the bits of bf16.");
}

}  // namespace smezo
