// Checkpoints for tests: tensors of every stored format, quantized with the library's encoders (which
// tests/test_quantized.py holds against bitsandbytes), written at any address.
#pragma once
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "format/dynamic8.h"
#include "format/half.h"
#include "format/nf4.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "store/base.h"
#include "store/bnb_layout.h"
#include "store/encode.h"

namespace smezo_test {

struct Stored {
  smezo::TensorSpec spec;
  std::vector<uint8_t> bytes;
};

template <class T>
Stored stored(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
              const std::vector<T>& values) {
  Stored out{{name, dtype, std::move(shape)}, std::vector<uint8_t>(values.size() * sizeof(T))};
  std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
  return out;
}

inline std::vector<float> random_floats(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.2f);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

// `format`: F32, F16, BF16, nf4, nf4-double or int8; a vector has rows 1 and is stored as one.
inline void add_tensor(std::vector<Stored>& out, const std::string& name, const std::string& format,
                       int64_t rows, int64_t cols, int64_t block = 64, unsigned seed = 1) {
  using namespace smezo;
  const std::vector<float> x = random_floats(rows * cols, seed);
  const std::vector<int64_t> shape =
      rows == 1 ? std::vector<int64_t>{cols} : std::vector<int64_t>{rows, cols};
  if (format == "F32") return out.push_back(stored(name, "F32", shape, x));
  if (format == "F16" || format == "BF16") {
    std::vector<uint16_t> bits;
    for (const float v : x) bits.push_back(format == "F16" ? f32_to_fp16(v) : f32_to_bf16(v));
    return out.push_back(stored(name, format, shape, bits));
  }
  if (format == "int8") {
    std::vector<int8_t> codes(x.size());
    std::vector<float> absmax(static_cast<size_t>(rows));
    int8_encode(x.data(), rows, cols, codes.data(), absmax.data());
    const std::string layer = name.substr(0, name.size() - 6);
    out.push_back(stored(name, "I8", shape, codes));
    out.push_back(stored(layer + "SCB", "F32", {rows}, absmax));
    return out.push_back(stored(layer + "weight_format", "U8", {}, std::vector<uint8_t>{0}));
  }
  QuantFormat f;
  f.block = block;
  f.double_quant = format == "nf4-double";
  const int64_t n = rows * cols, blocks = (n + block - 1) / block;
  std::vector<uint8_t> codes(x.size() / 2);
  std::vector<float> absmax(static_cast<size_t>(blocks)), map;
  nf4_encode(x.data(), n, block, codes.data(), absmax.data());
  for (uint32_t k = 0; k < 16; ++k) map.push_back(nf4_value(k));
  float offset = 0;
  out.push_back(stored(name, "U8", {n / 2, 1}, codes));
  out.push_back(stored(name + ".quant_map", "F32", {16}, map));
  if (f.double_quant) {
    offset = nested_offset(absmax.data(), blocks);
    std::vector<uint8_t> inner(static_cast<size_t>(blocks));
    std::vector<float> outer(static_cast<size_t>((blocks + kNestedBlock - 1) / kNestedBlock));
    nested_encode(absmax.data(), blocks, offset, inner.data(), outer.data());
    const auto& code = dynamic8().value;
    out.push_back(stored(name + ".absmax", "U8", {blocks}, inner));
    out.push_back(stored(name + ".nested_absmax", "F32", {static_cast<int64_t>(outer.size())}, outer));
    out.push_back(
        stored(name + ".nested_quant_map", "F32", {256}, std::vector<float>(code.begin(), code.end())));
  } else {
    out.push_back(stored(name + ".absmax", "F32", {blocks}, absmax));
  }
  const std::string text = quant_state_text(rows, cols, DType::BF16, f, offset);
  out.push_back(stored(name + ".quant_state.bitsandbytes__nf4", "U8", {static_cast<int64_t>(text.size())},
                       std::vector<uint8_t>(text.begin(), text.end())));
}

// As old writers did it: tensors in this order, nothing padded. `shift`: spaces after the header.
inline void write_unpadded(const std::string& path, const std::vector<Stored>& tensors, size_t shift) {
  using namespace smezo;
  Json::Object header;
  std::string data;
  for (const Stored& t : tensors) {
    Json::Array shape;
    for (const int64_t n : t.spec.shape) shape.push_back(n);
    const int64_t begin = static_cast<int64_t>(data.size());
    data.append(t.bytes.begin(), t.bytes.end());
    header.emplace_back(
        t.spec.name, Json::Object{{"dtype", t.spec.dtype},
                                  {"shape", shape},
                                  {"data_offsets", Json::Array{begin, static_cast<int64_t>(data.size())}}});
  }
  std::string text = Json(header).dump();
  text.append((8 - text.size() % 8) % 8 + shift, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  write_atomically(path, length + text + data);
}

}  // namespace smezo_test
