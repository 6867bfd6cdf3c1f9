#include "store/bnb_layout.h"

#include "base/error.h"
#include "format/codec.h"

namespace smezo {
namespace {

// Longest "nested_offset" of an fp32 number as the shortest double that reads back, and its neighbours.
constexpr size_t kOffsetRoom = 32;

std::string without(const std::string& name, const std::string& end) {
  const bool ends = name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
  check<ArgumentError>(ends, "quantize", "tensor '" + name + "', expected a name that ends in " + end);
  return name.substr(0, name.size() - end.size());
}

const char* torch_name(DType stored) {
  return stored == DType::F32 ? "float32" : stored == DType::F16 ? "float16" : "bfloat16";
}

// As Python's json.dumps spaces it.
std::string state_json(int64_t rows, int64_t cols, const char* stored, const QuantFormat& f,
                       const std::string& offset) {
  std::string text = "{\"quant_type\": \"nf4\", \"blocksize\": " + std::to_string(f.block) +
                     ", \"dtype\": \"" + stored + "\", \"shape\": [" + std::to_string(rows) + ", " +
                     std::to_string(cols) + "]";
  if (f.double_quant)
    text += ", \"nested_blocksize\": " + std::to_string(kNestedBlock) +
            ", \"nested_dtype\": \"float32\", \"nested_offset\": " + offset;
  return text + "}";
}

}  // namespace

void check_quant_format(const QuantFormat& f) {
  check<ArgumentError>(f.dtype == DType::NF4 || f.dtype == DType::I8, "quantize",
                       std::string("dtype ") + dtype_name(f.dtype) + ", expected nf4 or int8");
  if (f.dtype == DType::I8) return;
  check<ArgumentError>(f.block >= 32 && f.block <= 4096 && (f.block & (f.block - 1)) == 0, "quantize",
                       "blocksize " + std::to_string(f.block) + ", expected a power of two from 32 to 4096");
}

QuantTensors quantized_tensors(const std::string& name, int64_t rows, int64_t cols, const QuantFormat& f) {
  QuantTensors t;
  const auto add = [&](std::string tensor, const char* dtype, std::vector<int64_t> shape) {
    t.specs.push_back({std::move(tensor), dtype, std::move(shape)});
    return static_cast<int>(t.specs.size()) - 1;
  };
  if (f.dtype == DType::I8) {
    const std::string layer = without(name, "weight");
    t.codes = add(name, "I8", {rows, cols});
    t.absmax = add(layer + "SCB", "F32", {rows});
    t.weight_format = add(layer + "weight_format", "U8", {});
    return t;
  }
  const int64_t n = rows * cols, blocks = (n + f.block - 1) / f.block;
  check<ArgumentError>(n % 2 == 0, "quantize",
                       "tensor '" + name + "' has " + std::to_string(n) +
                           " elements, expected an even number: two share a byte in nf4; use int8");
  t.codes = add(name, "U8", {n / 2, 1});
  t.absmax = add(name + ".absmax", f.double_quant ? "U8" : "F32", {blocks});
  t.map = add(name + ".quant_map", "F32", {16});
  if (f.double_quant) {
    t.nested_absmax = add(name + ".nested_absmax", "F32", {(blocks + kNestedBlock - 1) / kNestedBlock});
    t.nested_map = add(name + ".nested_quant_map", "F32", {256});
  }
  const std::string longest = state_json(rows, cols, "bfloat16", f, std::string(kOffsetRoom, '0'));
  t.state = add(name + ".quant_state.bitsandbytes__nf4", "U8", {static_cast<int64_t>(longest.size())});
  return t;
}

std::string quant_state_text(int64_t rows, int64_t cols, DType stored, const QuantFormat& f, float offset) {
  const size_t room = state_json(rows, cols, "bfloat16", f, std::string(kOffsetRoom, '0')).size();
  std::string text = state_json(rows, cols, torch_name(stored), f, Json(static_cast<double>(offset)).dump());
  text.append(room - text.size(), ' ');
  return text;
}

Json quantization_config(const QuantFormat& f) {
  const bool nf4 = f.dtype == DType::NF4;
  return Json::Object{{"_load_in_4bit", nf4},
                      {"_load_in_8bit", !nf4},
                      {"bnb_4bit_compute_dtype", "float32"},
                      {"bnb_4bit_quant_storage", "uint8"},
                      {"bnb_4bit_quant_type", nf4 ? "nf4" : "fp4"},
                      {"bnb_4bit_use_double_quant", nf4 && f.double_quant},
                      {"llm_int8_enable_fp32_cpu_offload", false},
                      {"llm_int8_has_fp16_weight", false},
                      {"llm_int8_skip_modules", nullptr},
                      {"llm_int8_threshold", 6.0},
                      {"load_in_4bit", nf4},
                      {"load_in_8bit", !nf4},
                      {"quant_method", "bitsandbytes"}};
}

bool is_block_linear(const std::string& name, const std::vector<int64_t>& shape) {
  const std::string end = ".weight";
  if (shape.size() != 2 || name.size() < end.size() ||
      name.compare(name.size() - end.size(), end.size(), end) != 0)
    return false;
  const size_t at = name.rfind("layers.", name.size());
  if (at == std::string::npos || (at > 0 && name[at - 1] != '.')) return false;
  const size_t digits = at + 7, dot = name.find_first_not_of("0123456789", digits);
  return dot != std::string::npos && dot > digits && name[dot] == '.';
}

}  // namespace smezo
